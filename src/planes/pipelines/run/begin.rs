//! What may begin: steps whose needs are met, items of fan-outs, and each try of one.

use serde_json::Value;

use super::fill::kind_of;
use super::{Effect, FanOut, Key, Live, MAX_BATCH, MAX_ITEMS, MAX_LIVE, Running, TaskCall, Waits, checked};
use crate::db::{Timestamp, has_nul};
use crate::planes::pipelines::compile::Action;
use crate::planes::pipelines::expression::Local;
use crate::planes::pipelines::model::{StepEvent, StepRow, StepStatus};
use crate::random::Random;

impl Running {
    /// Begins whatever may begin; what it writes is in [`Running::take_batch`].
    pub(in crate::planes::pipelines) fn start(&mut self, now: Timestamp, random: &Random) {
        for (key, attempt, started_at) in std::mem::take(&mut self.again) {
            self.attempt(key, attempt, started_at, now, random);
        }
        if self.failure.is_none() {
            while self.has_room()
                && let Some(step) = self.ready.pop_front()
            {
                self.begin(step, now, random);
                if self.failure.is_some() {
                    break;
                }
            }
        }
        for step in std::mem::take(&mut self.fan_outs) {
            if !self.go_on_with_items(step, now, random) {
                self.fan_outs.push(step);
            }
        }
        if self.failure.is_some() {
            self.stop_waiting_forward(now);
            self.undo(now, random);
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.live.len() < MAX_LIVE && self.batch.rows.len() < MAX_BATCH
    }

    pub(super) fn begin(&mut self, step: usize, now: Timestamp, random: &Random) {
        let pipeline = self.pipeline.clone();
        let ready = &pipeline.steps[step];
        let key = Key { step, item: -1, undo: false };
        // A condition on the item is asked for every item.
        if let Some(when) = ready.when.as_ref().filter(|when| !(ready.for_each.is_some() && when.item)) {
            match self.truth(when, Local::default()) {
                Ok(true) => {}
                Ok(false) => return self.end(key, 0, now, now, StepEvent::Skipped, Value::Null, None),
                Err(error) => {
                    let error = format!("when: {error}");
                    return self.end(key, 0, now, now, StepEvent::Failed { again: false }, Value::Null, Some(error));
                }
            }
        }
        let Some(for_each) = &ready.for_each else { return self.attempt(key, 1, now, now, random) };
        let list = match for_each.value(self, Local::default()) {
            Ok(Value::Array(list)) if list.len() <= MAX_ITEMS => Ok(list),
            Ok(Value::Array(list)) => Err(format!("for_each: {} items are more than {MAX_ITEMS}", list.len())),
            Ok(other) => Err(format!("for_each: gave {}, not a list", kind_of(&other))),
            Err(error) => Err(format!("for_each: {error}")),
        };
        match list {
            Ok(list) => {
                self.progress[step].fan_out = Some(FanOut::new(list, now));
                self.fan_outs.push(step);
            }
            Err(error) => {
                self.end(key, 0, now, now, StepEvent::Failed { again: false }, Value::Null, Some(error));
            }
        }
    }

    /// Starts items while there is room; true once the fan-out is over.
    pub(super) fn go_on_with_items(&mut self, step: usize, now: Timestamp, random: &Random) -> bool {
        let pipeline = self.pipeline.clone();
        let parallel = pipeline.steps[step].parallel;
        let stops = |run: &Self, fan_out: &FanOut| {
            run.failure.is_some() || (fan_out.error.is_some() && !pipeline.steps[step].continue_on_error)
        };
        while self.has_room() {
            let Some(fan_out) = self.progress[step].fan_out.as_mut() else { return true };
            while fan_out.begun.get(fan_out.next) == Some(&true) {
                fan_out.next += 1;
            }
            let Some(fan_out) = self.progress[step].fan_out.as_ref() else { return true };
            if fan_out.next >= fan_out.list.len() || fan_out.live >= parallel || stops(self, fan_out) {
                break;
            }
            let item = fan_out.next;
            let key = Key { step, item: item as i64, undo: false };
            if let Some(fan_out) = self.progress[step].fan_out.as_mut() {
                fan_out.begun[item] = true;
                fan_out.live += 1;
            }
            let ready = &pipeline.steps[step];
            let wanted = match ready.when.as_ref().filter(|when| when.item) {
                Some(when) => self.with_item(key, |run, local| run.truth(when, local)),
                None => Ok(true),
            };
            match wanted {
                Ok(true) => self.attempt(key, 1, now, now, random),
                Ok(false) => self.end(key, 0, now, now, StepEvent::Skipped, Value::Null, None),
                Err(error) => {
                    let error = Some(format!("when: {error}"));
                    self.end(key, 0, now, now, StepEvent::Failed { again: false }, Value::Null, error);
                }
            }
        }
        let Some(fan_out) = self.progress[step].fan_out.as_ref() else { return true };
        let over = fan_out.live == 0 && (fan_out.over >= fan_out.list.len() || stops(self, fan_out));
        if over && let Some(fan_out) = self.progress[step].fan_out.take() {
            let event = match (&fan_out.error, fan_out.over < fan_out.list.len()) {
                (None, false) => StepEvent::Succeeded,
                (None, true) => StepEvent::Cancelled, // the run failed elsewhere meanwhile
                (Some(_), _) => StepEvent::Failed { again: false },
            };
            let key = Key { step, item: -1, undo: false };
            let result = Value::Array(fan_out.results);
            self.end(key, 0, fan_out.started_at, now, event, result, fan_out.error);
        }
        over
    }

    /// One try of an instance.
    pub(super) fn attempt(&mut self, key: Key, attempt: i64, started_at: Timestamp, now: Timestamp, random: &Random) {
        let pipeline = self.pipeline.clone();
        let ready = &pipeline.steps[key.step];
        let (action, timeout) = match (&ready.undo, key.undo) {
            (Some(undo), true) => (&undo.action, undo.timeout),
            _ => (&ready.action, ready.timeout),
        };
        let deadline = timeout.map(|timeout| now.after(timeout));
        let begun = match action {
            Action::Eval(expression) => {
                let result = self.with_item(key, |run, local| expression.value(run, local));
                return match result.and_then(checked) {
                    Ok(value) => self.end(key, attempt, started_at, now, StepEvent::Succeeded, value, None),
                    // The same expression over the same results fails again: no retry.
                    Err(error) => {
                        let event = StepEvent::Failed { again: false };
                        self.end(key, attempt, started_at, now, event, Value::Null, Some(error));
                    }
                };
            }
            Action::Http(call) => self
                .with_item(key, |run, local| run.request(call, local, run.key(key, attempt)))
                .map(|request| (StepEvent::Called, Waits::Call, None, Some(Effect::Call(request)))),
            Action::Copy(copy) => self
                .with_item(key, |run, local| run.copy(copy, local))
                .map(|copy| (StepEvent::Called, Waits::Call, None, Some(Effect::Copy(copy)))),
            Action::Sleep(pause) => self
                .with_item(key, |run, local| run.pause(pause, local))
                .map(|pause| (StepEvent::Deferred, Waits::Time, Some(now.after(pause)), None)),
            Action::Task { task, input } => self.with_item(key, |run, local| input.value(run, local)).map(|input| {
                let step = &self.pipeline.definition.steps[key.step];
                let retries = match key.undo {
                    true => step.compensate.as_ref().is_some_and(|undo| undo.retry.is_some()),
                    false => step.retry.is_some(),
                };
                let effect = Effect::Task(TaskCall {
                    step: step.id.clone(),
                    task: task.clone(),
                    input,
                    key: self.key(key, attempt),
                    max_attempts: retries.then_some(1),
                });
                (StepEvent::Deferred, Waits::Task(0), deadline, Some(effect))
            }),
            Action::Pipeline { id, input } => self.with_item(key, |run, local| input.value(run, local)).map(|input| {
                let effect = Effect::Child { pipeline: id.clone(), input };
                (StepEvent::Deferred, Waits::Child(0), deadline, Some(effect))
            }),
        };
        // It would break the transaction that begins it, and with it the run.
        let begun = begun.and_then(|begun| match &begun.3 {
            Some(Effect::Task(TaskCall { input, .. }) | Effect::Child { input, .. }) if has_nul(input) => {
                Err("its input holds a NUL character, which cannot be stored".to_owned())
            }
            _ => Ok(begun),
        });
        match begun {
            Ok((event, waits, wake_at, effect)) => {
                let status = StepStatus::on(None, event).unwrap_or(StepStatus::Waiting);
                let row = self.row(key, status, attempt, started_at);
                let place = self.write(key, StepRow { wake_at, ..row });
                if let Some(effect) = effect {
                    self.batch.effects.push((place, key, effect));
                }
                self.live.insert(key, Live { waits, wake_at, attempt, started_at });
            }
            Err(error) => self.failed(key, attempt, started_at, now, error, random),
        }
    }
}
