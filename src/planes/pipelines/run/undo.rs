//! A run that has failed or was given up: what waits ends, and what was done is undone, the newest first.

use serde_json::Value;

use super::{Effect, Key, Live, Running, Waits};
use crate::db::Timestamp;
use crate::planes::pipelines::model::StepEvent;
use crate::random::Random;

impl Running {
    /// The run has failed: what only waits is given up; calls that are out are waited for.
    pub(super) fn stop_waiting_forward(&mut self, now: Timestamp) {
        let waiting = |(key, live): (&Key, &Live)| (!key.undo && live.waits != Waits::Call).then_some(*key);
        let keys: Vec<Key> = self.live.iter().filter_map(waiting).collect();
        for key in keys {
            self.give_up(key, now);
        }
        for step in std::mem::take(&mut self.fan_outs) {
            let over = self.progress[step].fan_out.as_ref().is_none_or(|fan_out| fan_out.live == 0);
            match self.progress[step].fan_out.take_if(|_| over) {
                Some(fan_out) => {
                    let key = Key { step, item: -1, undo: false };
                    let (event, error) = match fan_out.error {
                        Some(error) => (StepEvent::Failed { again: false }, Some(error)),
                        None => (StepEvent::Cancelled, None),
                    };
                    self.end(key, 0, fan_out.started_at, now, event, Value::Null, error);
                }
                None if !over => self.fan_outs.push(step),
                None => {}
            }
        }
    }

    pub(super) fn give_up(&mut self, key: Key, now: Timestamp) {
        let Some(live) = self.live.remove(&key) else { return };
        match live.waits {
            // Not begun yet: it never will be.
            Waits::Task(0) | Waits::Child(0) => self.batch.effects.retain(|(_, other, _)| *other != key),
            Waits::Task(job) => self.batch.effects.push((usize::MAX, key, Effect::CancelTask(job))),
            Waits::Child(run) => self.batch.effects.push((usize::MAX, key, Effect::CancelChild(run))),
            Waits::Call | Waits::Time | Waits::Retry => {}
        }
        self.end(key, live.attempt, live.started_at, now, StepEvent::Cancelled, Value::Null, None);
    }

    /// Somebody gave the run up: everything that is under way ends with it.
    pub(in crate::planes::pipelines) fn cancel(&mut self, now: Timestamp) {
        self.again.clear();
        let keys: Vec<Key> = self.live.keys().copied().collect();
        keys.into_iter().for_each(|key| self.give_up(key, now));
    }

    /// Undoes the newest done step that has something to undo it, one after the other.
    pub(super) fn undo(&mut self, now: Timestamp, random: &Random) {
        while self.live.is_empty() && self.again.is_empty() && self.fan_outs.is_empty() {
            let pipeline = self.pipeline.clone();
            let has_undo = |step: &&usize| pipeline.steps[**step].undo.is_some() && !self.undone.contains(step);
            let Some(step) = self.finished.iter().rev().find(has_undo).copied() else { return };
            let before = self.undone.len();
            self.attempt(Key { step, item: -1, undo: true }, 1, now, now, random);
            if self.undone.len() == before {
                return; // it is under way
            }
        }
    }

    pub(super) fn is_undone(&self) -> bool {
        let open = |step: &usize| self.pipeline.steps[*step].undo.is_some() && !self.undone.contains(step);
        !self.finished.iter().any(open)
    }
}
