//! A run in memory: what is done, what is under way, what may begin. Pure: it is told the time, what came back and that
//! a batch was committed, and says what to write down and what to send out.
//!
//! Whatever changes goes into a batch of rows. The engine commits the batch, then calls [`Running::committed`]: only
//! then what the batch made ready may begin, and only then calls go out. So every step builds on committed results.
//!
//! ```text
//! load ──▶ begin ──▶ batch, committed ──▶ under way ──▶ end ──▶ begin …, or undo ──▶ over
//! ```
//!
//! | room | holds |
//! |---|---|
//! | here | what a run knows, its batch, and whether it is over |
//! | `load` | a run as its rows have it |
//! | `begin`, `fill` | what may begin, and its expressions and templates filled in |
//! | `end` | what came back or took too long, and what follows |
//! | `undo` | a run that failed or was given up |

mod begin;
mod end;
mod fill;
mod load;
mod undo;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::compile::Pipeline;
use super::expression::{Facts, Local};
use super::model::{RunStatus, StepRow, StepStatus};
use crate::db::{Json, Timestamp, has_nul};

/// Rows that one batch holds at most, so that no commit takes long.
const MAX_BATCH: usize = 1_000;
/// Instances of one run that are under way at once.
const MAX_LIVE: usize = 1_000;
/// Items of one fan-out.
const MAX_ITEMS: usize = 10_000;
/// Bytes of one result as JSON; more belongs into a storage, with its place as the result.
pub(super) const MAX_RESULT: usize = 1 << 20;
/// Bytes of all results of one fan-out: they are held at once, here and wherever the run is read.
const MAX_FAN_OUT: usize = 64 << 20;
/// Letters of an error that are kept.
const MAX_ERROR: usize = 2_000;

/// One instance of a step, or of what undoes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) step: usize,
    /// -1 for the step itself.
    pub(super) item: i64,
    pub(super) undo: bool,
}

/// What must happen with a row, beside being written.
#[derive(Debug)]
pub(super) enum Effect {
    /// After the commit: send it.
    Call(Request),
    /// After the commit: copy it. Doing it again changes nothing.
    Copy(CopyCall),
    /// In the commit: enqueue it; the row gets its id.
    Task(TaskCall),
    /// In the commit: begin it; the row gets its id.
    Child { pipeline: String, input: Value },
    /// In the commit: nobody waits for it any more.
    CancelTask(i64),
    /// In the commit: nobody waits for it any more.
    CancelChild(i64),
}

/// A task for the queue, filled in.
#[derive(Debug, Clone)]
pub(super) struct TaskCall {
    pub(super) step: String,
    pub(super) task: super::definition::Task,
    pub(super) input: Value,
    pub(super) key: String,
    /// One where the step says itself how it is tried again; else the task's own.
    pub(super) max_attempts: Option<i64>,
}

/// A copy, filled in: back end and key of both places.
#[derive(Debug, Clone)]
pub(super) struct CopyCall {
    pub(super) from: (Option<String>, String),
    pub(super) to: (Option<String>, String),
    pub(super) timeout: Duration,
}

/// An HTTP call, filled in.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: reqwest::Method,
    pub(super) url: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Option<Value>,
    pub(super) timeout: Duration,
    pub(super) key: String,
}

/// What is to be written down, and what goes with it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) rows: Vec<StepRow>,
    /// By position in `rows`.
    pub(super) effects: Vec<(usize, Key, Effect)>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub status: RunStatus,
    pub output: Value,
    pub error: Option<String>,
}

/// What an instance that is under way waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    Call,
    Time,
    Retry,
    Task(i64),
    Child(i64),
}

#[derive(Debug, Clone)]
struct Live {
    waits: Waits,
    wake_at: Option<Timestamp>,
    attempt: i64,
    started_at: Timestamp,
}

struct FanOut {
    list: Vec<Value>,
    next: usize,
    live: usize,
    /// Which items have begun; after a retry there are gaps.
    begun: Vec<bool>,
    results: Vec<Value>,
    /// About how many bytes the results have.
    bytes: usize,
    over: usize,
    error: Option<String>,
    started_at: Timestamp,
}

#[derive(Default)]
struct Progress {
    outcome: Option<(StepStatus, Value)>,
    fan_out: Option<FanOut>,
}

/// A run in memory.
pub(super) struct Running {
    pub(super) id: i64,
    pub(super) pipeline: Arc<Pipeline>,
    input: Value,
    retries: i64,
    progress: Vec<Progress>,
    /// Needs that are still open, by step.
    open: Vec<usize>,
    ready: VecDeque<usize>,
    /// Ready once the batch is committed.
    next_ready: Vec<usize>,
    fan_outs: Vec<usize>,
    live: BTreeMap<Key, Live>,
    /// Calls that were out when their engine died, and go out again.
    again: Vec<(Key, i64, Timestamp)>,
    done: usize,
    finished: Vec<usize>,
    failure: Option<String>,
    undone: Vec<usize>,
    undo_errors: Vec<String>,
    batch: Batch,
    /// Where each instance's row stands in the batch: no row may stand there twice.
    places: HashMap<Key, usize>,
}

/// The name of what undoes a step in its row; no step can be called so.
const UNDO: &str = ".compensate";

impl Running {
    /// A run that begins.
    pub(super) fn new(id: i64, pipeline: Arc<Pipeline>, input: Value, retries: i64) -> Self {
        let open: Vec<usize> = pipeline.graph.needs.iter().map(Vec::len).collect();
        let ready = (0..open.len()).filter(|step| open[*step] == 0).collect();
        let progress = open.iter().map(|_| Progress::default()).collect();
        Self {
            id,
            pipeline,
            input,
            retries,
            progress,
            open,
            ready,
            next_ready: Vec::new(),
            fan_outs: Vec::new(),
            live: BTreeMap::new(),
            again: Vec::new(),
            done: 0,
            finished: Vec::new(),
            failure: None,
            undone: Vec::new(),
            undo_errors: Vec::new(),
            batch: Batch::default(),
            places: HashMap::new(),
        }
    }

    /// How the run ended, once it has.
    pub(super) fn over(&self) -> Option<End> {
        if !self.live.is_empty() || !self.again.is_empty() || !self.fan_outs.is_empty() {
            return None;
        }
        if let Some(failure) = &self.failure {
            if !self.is_undone() {
                return None;
            }
            let mut error = failure.clone();
            for undo in &self.undo_errors {
                error = format!("{error}; and what undoes a step failed: {undo}");
            }
            return Some(End { status: RunStatus::Failed, output: Value::Null, error: Some(kept(error)) });
        }
        if self.done < self.progress.len() {
            return None;
        }
        let output = match &self.pipeline.output {
            Some(expression) => expression.value(self, Local::default()).and_then(checked),
            None => Ok(self.last_results()),
        };
        Some(match output {
            Ok(output) => End { status: RunStatus::Completed, output, error: None },
            Err(error) => {
                End { status: RunStatus::Failed, output: Value::Null, error: Some(kept(format!("output: {error}"))) }
            }
        })
    }

    /// The results of the steps that no other waits for, by id.
    fn last_results(&self) -> Value {
        let last = self.pipeline.steps.iter().zip(&self.progress).filter(|(step, _)| step.dependents.is_empty());
        let results = last.map(|(step, progress)| {
            (step.id.clone(), progress.outcome.as_ref().map_or(Value::Null, |(_, value)| value.clone()))
        });
        Value::Object(results.collect())
    }

    fn write(&mut self, key: Key, row: StepRow) -> usize {
        let place = *self.places.entry(key).or_insert(self.batch.rows.len());
        match self.batch.rows.get_mut(place) {
            Some(earlier) => *earlier = row,
            None => self.batch.rows.push(row),
        }
        place
    }

    /// What is to be committed now.
    pub(super) fn take_batch(&mut self) -> Batch {
        self.places.clear();
        std::mem::take(&mut self.batch)
    }

    /// The batch was committed, and its tasks and children have these ids: what it made ready may begin.
    pub(super) fn committed(&mut self, begun: &[(Key, Waits)]) {
        for (key, waits) in begun {
            if let Some(live) = self.live.get_mut(key) {
                live.waits = *waits;
            }
        }
        self.ready.extend(std::mem::take(&mut self.next_ready));
    }

    /// The next time at which something goes on by itself.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.live.values().filter(|live| live.waits != Waits::Call).filter_map(|live| live.wake_at).min()
    }

    /// Whether a call is out.
    pub(super) fn is_calling(&self) -> bool {
        self.live.values().any(|live| live.waits == Waits::Call)
    }

    /// The tasks and children that are waited for.
    pub(super) fn awaited(&self) -> Vec<(Key, Waits)> {
        let outside = |live: &Live| matches!(live.waits, Waits::Task(_) | Waits::Child(_));
        self.live.iter().filter(|(_, live)| outside(live)).map(|(key, live)| (*key, live.waits)).collect()
    }

    fn row(&self, key: Key, status: StepStatus, attempt: i64, started_at: Timestamp) -> StepRow {
        let id = &self.pipeline.steps[key.step].id;
        StepRow {
            step: if key.undo { format!("{id}{UNDO}") } else { id.clone() },
            item: key.item,
            status: status.as_str().to_owned(),
            attempt,
            result: None,
            error: None,
            wake_at: None,
            job_id: None,
            child_run_id: None,
            started_at,
            finished_at: None,
        }
    }
}

impl Facts for Running {
    fn input(&self) -> &Value {
        &self.input
    }
    fn step(&self, id: &str) -> Option<(&'static str, &Value)> {
        let (status, value) = self.progress[*self.pipeline.positions.get(id)?].outcome.as_ref()?;
        Some((status.as_str(), value))
    }
    fn ids(&self) -> Vec<&str> {
        self.pipeline.steps.iter().map(|step| step.id.as_str()).collect()
    }
}

impl FanOut {
    fn new(list: Vec<Value>, started_at: Timestamp) -> Self {
        let results = vec![Value::Null; list.len()];
        let begun = vec![false; list.len()];
        Self { list, next: 0, live: 0, begun, results, bytes: 0, over: 0, error: None, started_at }
    }

    fn keep(&mut self, item: usize, result: Value) {
        if let Some(place) = self.results.get_mut(item) {
            self.bytes += bytes_of(&result);
            *place = result;
        }
    }
}

/// About how many bytes a value has as JSON, without writing it.
fn bytes_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| bytes_of(item) + 1).sum::<usize>() + 2,
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + bytes_of(value) + 4).sum::<usize>() + 2,
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

fn too_much() -> String {
    let most = MAX_FAN_OUT >> 20;
    format!("the items' results have more than {most} MiB; keep them in storage and return their places")
}

/// The results of a fan-out's items in their order.
pub(super) fn in_order(mut rows: Vec<StepRow>) -> Vec<Value> {
    rows.sort_by_key(|row| row.item);
    rows.into_iter().map(|row| row.result.map_or(Value::Null, |Json(value)| value)).collect()
}

/// A result that both databases can hold.
fn checked(value: Value) -> Result<Value, String> {
    if matches!(value, Value::Null | Value::Bool(_) | Value::Number(_)) {
        return Ok(value);
    }
    let text = value.to_string();
    if text.len() > MAX_RESULT {
        return Err(format!("the result has {} bytes, more than {MAX_RESULT}", text.len()));
    }
    // JSON writes a NUL only as this escape; an escaped backslash before it is no NUL, and rare enough to look twice.
    if text.contains("\\u0000") && has_nul(&value) {
        return Err("the result holds a NUL character, which cannot be stored".to_owned());
    }
    Ok(value)
}

/// An error as a row has it.
pub(super) fn kept(error: String) -> String {
    error.chars().filter(|letter| *letter != '\0').take(MAX_ERROR).collect()
}
