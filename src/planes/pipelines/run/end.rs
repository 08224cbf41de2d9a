//! What came back, what has taken too long, and what follows from an end.

use std::time::Duration;

use serde_json::Value;

use super::{Effect, Key, Live, MAX_BATCH, MAX_FAN_OUT, Running, Waits, bytes_of, checked, kept, too_much};
use crate::backoff;
use crate::db::{Json, Timestamp};
use crate::planes::pipelines::definition::{Backoff, Retry};
use crate::planes::pipelines::model::{StepEvent, StepRow, StepStatus};
use crate::random::Random;

impl Running {
    /// What came back for an instance that is under way; what nobody waits for changes nothing.
    pub(in crate::planes::pipelines) fn answer(
        &mut self,
        key: Key,
        answer: Result<Value, String>,
        now: Timestamp,
        random: &Random,
    ) {
        let Some(live) = self.live.remove(&key) else { return };
        match answer.and_then(checked) {
            Ok(value) => self.end(key, live.attempt, live.started_at, now, StepEvent::Succeeded, value, None),
            Err(error) => self.failed(key, live.attempt, live.started_at, now, error, random),
        }
    }

    /// Lets go on what waited for a time that has come.
    pub(in crate::planes::pipelines) fn tick(&mut self, now: Timestamp, random: &Random) {
        let due = |live: &Live| live.waits != Waits::Call && live.wake_at.is_some_and(|at| at <= now);
        let keys: Vec<Key> =
            self.live.iter().filter(|(_, live)| due(live)).map(|(key, _)| *key).take(MAX_BATCH).collect();
        for key in keys {
            let Some(live) = self.live.remove(&key) else { continue };
            let late = |what: &str| format!("{what} took longer than the step's timeout");
            match live.waits {
                Waits::Time => {
                    self.end(key, live.attempt, live.started_at, now, StepEvent::Succeeded, Value::Null, None)
                }
                Waits::Retry => self.attempt(key, live.attempt + 1, live.started_at, now, random),
                Waits::Task(job) => {
                    self.failed(key, live.attempt, live.started_at, now, late("the task"), random);
                    self.batch.effects.push((usize::MAX, key, Effect::CancelTask(job)));
                }
                Waits::Child(run) => {
                    self.failed(key, live.attempt, live.started_at, now, late("the pipeline"), random);
                    self.batch.effects.push((usize::MAX, key, Effect::CancelChild(run)));
                }
                Waits::Call => {}
            }
        }
    }

    /// A try that failed: another one later, or none.
    pub(super) fn failed(
        &mut self,
        key: Key,
        attempt: i64,
        started_at: Timestamp,
        now: Timestamp,
        error: String,
        random: &Random,
    ) {
        let pipeline = self.pipeline.clone();
        let ready = &pipeline.steps[key.step];
        let retry = match (&ready.undo, key.undo) {
            (Some(undo), true) => &undo.retry,
            _ => &ready.retry,
        };
        if attempt < i64::from(retry.attempts) && (self.failure.is_none() || key.undo) {
            let wake_at = Some(now.after(wait(retry, attempt, random)));
            let row = self.row(key, StepStatus::Waiting, attempt, started_at);
            self.write(key, StepRow { wake_at, error: Some(kept(error)), ..row });
            self.live.insert(key, Live { waits: Waits::Retry, wake_at, attempt, started_at });
        } else {
            self.end(key, attempt, started_at, now, StepEvent::Failed { again: false }, Value::Null, Some(error));
        }
    }

    /// The end of an instance: its row, and what follows from it.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn end(
        &mut self,
        key: Key,
        attempt: i64,
        started_at: Timestamp,
        now: Timestamp,
        event: StepEvent,
        result: Value,
        error: Option<String>,
    ) {
        // Refused here, before its row: what is read again later keeps the bound too.
        let (event, result, error) = match self.has_room_for(key, &result) {
            true => (event, result, error),
            false => (StepEvent::Failed { again: false }, Value::Null, Some(too_much())),
        };
        let Some(status) = StepStatus::on(Some(StepStatus::Waiting), event).or(StepStatus::on(None, event)) else {
            return;
        };
        let error = error.map(kept);
        // A fan-out's result is in the rows of its items.
        let is_whole = key.item < 0 && !key.undo && self.pipeline.steps[key.step].for_each.is_some();
        let row = self.row(key, status, attempt, started_at);
        let row = StepRow {
            result: (status == StepStatus::Completed && !is_whole).then(|| Json(result.clone())),
            error: error.clone(),
            finished_at: Some(now),
            ..row
        };
        self.write(key, row);
        if key.undo {
            self.undone.push(key.step);
            self.undo_errors.extend(error);
        } else if key.item < 0 {
            self.settle(key.step, status, result, error);
        } else if let Some(fan_out) = self.progress[key.step].fan_out.as_mut() {
            fan_out.live -= 1;
            fan_out.over += 1;
            if status == StepStatus::Failed {
                fan_out.error.get_or_insert(format!("item {}: {}", key.item, error.unwrap_or_default()));
            }
            fan_out.keep(key.item as usize, result);
        }
    }

    /// Whether an item's result may be held beside those of the others.
    fn has_room_for(&self, key: Key, result: &Value) -> bool {
        let fan_out = self.progress[key.step].fan_out.as_ref().filter(|_| key.item >= 0 && !result.is_null());
        fan_out.is_none_or(|fan_out| fan_out.bytes + bytes_of(result) <= MAX_FAN_OUT)
    }

    /// A step is over: whoever waits for nothing else may begin after the commit.
    pub(super) fn settle(&mut self, step: usize, status: StepStatus, result: Value, error: Option<String>) {
        let pipeline = self.pipeline.clone();
        let ready = &pipeline.steps[step];
        let goes_on = ready.continue_on_error || !matches!(status, StepStatus::Failed | StepStatus::Cancelled);
        if status == StepStatus::Completed {
            self.finished.push(step);
        }
        self.progress[step].outcome = Some((status, result));
        self.done += 1;
        if !goes_on {
            let error = error.unwrap_or_else(|| status.as_str().to_owned());
            self.failure.get_or_insert(format!("step `{}`: {error}", ready.id));
            return;
        }
        for dependent in &ready.dependents {
            self.open[*dependent] -= 1;
            if self.open[*dependent] == 0 {
                self.next_ready.push(*dependent);
            }
        }
    }
}

fn wait(retry: &Retry, attempt: i64, random: &Random) -> Duration {
    let (delay, longest) = (retry.delay.0, retry.max_delay.0);
    let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
    match retry.backoff {
        Backoff::Fixed => delay.min(longest),
        Backoff::Linear => delay.saturating_mul(attempt).min(longest),
        Backoff::Exponential => backoff::exponential(delay, longest, attempt, random),
    }
}
