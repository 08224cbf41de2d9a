//! A run as its rows have it: it goes on where it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{FanOut, Key, Live, MAX_FAN_OUT, Running, UNDO, Waits, in_order, too_much};
use crate::db::Json;
use crate::planes::pipelines::compile::Pipeline;
use crate::planes::pipelines::expression::Local;
use crate::planes::pipelines::model::{StepRow, StepStatus};

impl Running {
    /// A run as its rows have it: it goes on where it was.
    pub(in crate::planes::pipelines) fn load(
        id: i64,
        pipeline: Arc<Pipeline>,
        input: Value,
        retries: i64,
        mut rows: Vec<StepRow>,
    ) -> Self {
        let mut run = Self::new(id, pipeline, input, retries);
        rows.sort_by(|one, other| (one.finished_at, &one.step).cmp(&(other.finished_at, &other.step)));
        let mut items: BTreeMap<usize, Vec<StepRow>> = BTreeMap::new();
        let (mut own, mut undo) = (Vec::new(), Vec::new());
        for row in rows {
            let (name, is_undo) = row.step.strip_suffix(UNDO).map_or((row.step.as_str(), false), |name| (name, true));
            let Some(step) = run.pipeline.positions.get(name).copied() else { continue };
            match (is_undo, row.item) {
                (true, _) => undo.push((step, row)),
                (false, ..0) => own.push((step, row)),
                (false, _) => items.entry(step).or_default().push(row),
            }
        }
        for (step, row) in own {
            let status = StepStatus::read(&row.status);
            let key = Key { step, item: -1, undo: false };
            if status.is_final() {
                let result = match items.remove(&step) {
                    Some(rows) => Value::Array(in_order(rows)),
                    // One over an empty list has no rows of items.
                    None if status == StepStatus::Completed && run.pipeline.is_fan_out(&row.step) => {
                        Value::Array(Vec::new())
                    }
                    None => row.result.map_or(Value::Null, |Json(value)| value),
                };
                run.settle(step, status, result, row.error);
            } else {
                run.resume(key, status, row);
            }
        }
        run.ready.extend(std::mem::take(&mut run.next_ready));
        for (step, rows) in items {
            run.resume_fan_out(step, rows);
        }
        for (step, row) in undo {
            let status = StepStatus::read(&row.status);
            if status.is_final() {
                run.undone.push(step);
                run.undo_errors.extend(row.error.filter(|_| status == StepStatus::Failed));
            } else {
                run.resume(Key { step, item: -1, undo: true }, status, row);
            }
        }
        let begun: Vec<usize> =
            run.live.keys().chain(run.again.iter().map(|(key, ..)| key)).map(|key| key.step).collect();
        let progress = &run.progress;
        run.ready.retain(|step| {
            progress[*step].outcome.is_none() && progress[*step].fan_out.is_none() && !begun.contains(step)
        });
        if run.failure.is_some() {
            run.stop_waiting();
        }
        run
    }

    pub(super) fn resume(&mut self, key: Key, status: StepStatus, row: StepRow) {
        if status == StepStatus::Running {
            self.again.push((key, row.attempt, row.started_at));
            return;
        }
        let waits = match (row.job_id, row.child_run_id) {
            (Some(job), _) => Waits::Task(job),
            (_, Some(child)) => Waits::Child(child),
            _ if row.error.is_some() => Waits::Retry,
            _ => Waits::Time,
        };
        let live = Live { waits, wake_at: row.wake_at, attempt: row.attempt, started_at: row.started_at };
        self.live.insert(key, live);
    }

    pub(super) fn resume_fan_out(&mut self, step: usize, rows: Vec<StepRow>) {
        let pipeline = self.pipeline.clone();
        let list = match &pipeline.steps[step].for_each {
            Some(expression) => expression.value(self, Local::default()).ok(),
            None => None,
        };
        let Some(Value::Array(list)) = list else { return };
        let started_at = rows.iter().map(|row| row.started_at).min().unwrap_or_else(|| rows[0].started_at);
        let mut fan_out = FanOut::new(list, started_at);
        for row in rows {
            let Ok(item) = usize::try_from(row.item) else { continue };
            match fan_out.begun.get_mut(item) {
                Some(begun) => *begun = true,
                None => continue,
            }
            let status = StepStatus::read(&row.status);
            if status.is_final() {
                fan_out.over += 1;
                if status == StepStatus::Failed {
                    fan_out.error.get_or_insert(format!("item {item}: {}", row.error.unwrap_or_default()));
                }
                if let Some(Json(result)) = row.result {
                    fan_out.keep(item, result);
                }
            } else {
                fan_out.live += 1;
                self.resume(Key { step, item: row.item, undo: false }, status, row);
            }
        }
        if fan_out.bytes > MAX_FAN_OUT {
            fan_out.error.get_or_insert(too_much());
        }
        self.progress[step].fan_out = Some(fan_out);
        self.fan_outs.push(step);
    }

    /// Loaded after its failure: nothing forward begins any more.
    pub(super) fn stop_waiting(&mut self) {
        self.ready.clear();
    }
}
