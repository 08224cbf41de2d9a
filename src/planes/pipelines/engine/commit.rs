//! What a run writes: a batch with what goes out with it, its parting from the engine, and its end. All of it under the
//! run's lease, and all of it again where the database is away for now.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use super::worker::{Parted, Worker};
use crate::backoff;
use crate::db::{self, Json, Topic};
use crate::planes::pipelines::message::Outbound;
use crate::planes::pipelines::model::{RunStatus, StepRow};
use crate::planes::pipelines::run::{Batch, Effect, End, Key, Waits};
use crate::planes::pipelines::store::{self, Hold, NewRun};
use crate::planes::pipelines::{call, steer};

/// The waits between tries of a commit that the database refuses for now.
const COMMIT_BASE: Duration = Duration::from_millis(20);

const COMMIT_CAP: Duration = Duration::from_secs(1);

/// Pipelines in pipelines.
const MAX_DEPTH: i64 = 16;

/// A commit under a lease.
pub(super) enum Committed {
    Held(Vec<(Key, Waits)>),
    Lost,
}

impl Worker {
    pub(super) async fn let_go(
        &self,
        hold: Hold,
        status: &'static str,
        wake_at: Option<db::Timestamp>,
        parted: Parted,
    ) -> db::Result<Parted> {
        let mut tries = 0;
        let held = loop {
            let released = store::release(&self.pipelines.db, hold, status, wake_at).await;
            if let Some(released) = self.settled(released, &mut tries).await {
                break released?;
            }
        };
        // A run that was to be held may be pending, for somebody gave it up meanwhile.
        if held && status != "waiting" {
            self.pipelines.db.wake(Topic::Runs).await;
        }
        Ok(if held { parted } else { Parted::Lost })
    }

    /// What came of something with the database; none where it is away for now, after a wait: try again. Only a
    /// refusal is an error.
    async fn settled<T>(&self, result: db::Result<T>, tries: &mut u32) -> Option<db::Result<T>> {
        match result {
            Err(db::Error::Unavailable(cause)) if !self.stop.is_cancelled() => {
                tracing::warn!(%cause, engine = self.engine.id, "a run waits for the database");
                *tries += 1;
                let wait = backoff::exponential(COMMIT_BASE, COMMIT_CAP, *tries, &self.pipelines.random);
                self.pipelines.clock.sleep(wait).await;
                None
            }
            other => Some(other),
        }
    }

    /// Writes a batch down and sends what goes out with it.
    pub(super) async fn commit(
        &self,
        hold: Hold,
        depth: i64,
        mut batch: Batch,
        calls: &mut JoinSet<(Key, Result<Value, String>)>,
    ) -> db::Result<Committed> {
        self.put_large_inputs_away(&mut batch).await;
        let inside = batch.effects.iter().any(|(_, _, effect)| !matches!(effect, Effect::Call(_) | Effect::Copy(_)));
        let mut begun = Vec::new();
        let mut tries = 0;
        let held = loop {
            let written = match inside {
                true => self.commit_with(hold, depth, &batch, &mut begun).await,
                false => store::write_steps(&self.pipelines.db, hold, &batch.rows).await,
            };
            if let Some(written) = self.settled(written, &mut tries).await {
                break written?;
            }
        };
        if !held {
            return Ok(Committed::Lost);
        }
        if begun.iter().any(|(_, waits)| matches!(waits, Waits::Task(_))) {
            self.pipelines.db.wake(Topic::Jobs).await;
        }
        if begun.iter().any(|(_, waits)| matches!(waits, Waits::Child(_))) {
            self.pipelines.look();
            self.pipelines.db.wake(Topic::Runs).await;
        }
        for (_, key, effect) in batch.effects {
            let (client, clock) = (self.pipelines.client.clone(), self.pipelines.clock.clone());
            match effect {
                Effect::Call(request) => {
                    calls.spawn(async move { (key, call::send(client, clock, request).await) });
                }
                Effect::Copy(copy) => {
                    let stores = self.pipelines.stores.get().cloned();
                    calls.spawn(async move { (key, call::copy(stores, clock, copy).await) });
                }
                Effect::Task(_) | Effect::Child { .. } | Effect::CancelTask(_) | Effect::CancelChild(_) => {}
            }
        }
        Ok(Committed::Held(begun))
    }

    /// What tasks are given is kept in storage where it is large, as what clients enqueue is. Where storage does not take
    /// it, it goes with the task.
    async fn put_large_inputs_away(&self, batch: &mut Batch) {
        let Some(stores) = self.pipelines.stores.get() else { return };
        for (_, _, effect) in &mut batch.effects {
            let Effect::Task(task) = effect else { continue };
            match stores.put_json_if_large(None, "inputs", task.input.clone()).await {
                Ok(input) => task.input = input,
                Err(cause) => tracing::warn!(%cause, task = task.task.id, "storage does not take a task's input"),
            }
        }
    }

    /// The same in a transaction, for what must happen together with the rows.
    async fn commit_with(
        &self,
        hold: Hold,
        depth: i64,
        batch: &Batch,
        begun: &mut Vec<(Key, Waits)>,
    ) -> db::Result<bool> {
        let mut rows = batch.rows.clone();
        begun.clear();
        let mut tx = self.pipelines.db.begin().await?;
        // The lease first: nothing is begun for a run that somebody else has.
        if !store::holds(&mut tx, hold).await? {
            return Ok(false);
        }
        for (at, key, effect) in &batch.effects {
            match effect {
                Effect::Call(_) | Effect::Copy(_) => {}
                Effect::Task(task) => {
                    let job = store::enqueue_task(&mut tx, hold.run, task).await?;
                    rows[*at].job_id = Some(job);
                    begun.push((*key, Waits::Task(job)));
                }
                Effect::Child { pipeline, input } => {
                    match self.begin_child(&mut tx, hold, depth, &rows[*at], pipeline, input).await? {
                        Ok(child) => {
                            rows[*at].child_run_id = Some(child);
                            begun.push((*key, Waits::Child(child)));
                        }
                        // No such pipeline, or an input that it does not take: the wait ends at once, as a failed run.
                        Err(refused) => {
                            let child = store::insert_refused(&mut tx, hold.run, pipeline, input, &refused).await?;
                            rows[*at].child_run_id = Some(child);
                            begun.push((*key, Waits::Child(child)));
                        }
                    }
                }
                Effect::CancelTask(job) => store::cancel_task(&mut tx, *job).await?,
                Effect::CancelChild(run) => steer::cancel_in(&mut tx, *run).await?,
            }
        }
        if !rows.is_empty() {
            store::put_steps(&mut tx, hold, &rows).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn begin_child(
        &self,
        tx: &mut db::Tx,
        hold: Hold,
        depth: i64,
        row: &StepRow,
        pipeline: &str,
        input: &Value,
    ) -> db::Result<Result<i64, String>> {
        // A commit whose answer was lost is repeated: the child may be there already.
        if let Some(child) = store::child_of(tx, hold.run, &row.step, row.item, row.attempt).await? {
            return Ok(Ok(child));
        }
        if depth >= MAX_DEPTH {
            return Ok(Err(format!("pipelines stand more than {MAX_DEPTH} deep in each other")));
        }
        let Some(version) = store::newest_version_in(tx, pipeline).await? else {
            return Ok(Err(format!("there is no pipeline `{pipeline}`")));
        };
        let Some(ready) = self.pipelines.version_in(tx, pipeline, version).await? else {
            return Ok(Err(format!("pipeline `{pipeline}` has no good version {version}")));
        };
        let input = match ready.take_input(input.clone()) {
            Ok(input) => input,
            Err(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                return Ok(Err(format!("pipeline `{pipeline}` refuses its input: {}", faults.join("; "))));
            }
        };
        let new = NewRun {
            pipeline,
            version,
            input: &input,
            trigger_kind: "pipeline",
            trigger_id: None,
            parent: Some(hold.run),
        };
        Ok(Ok(store::insert_run(tx, new).await?))
    }

    pub(super) async fn end(&self, hold: Hold, parent: Option<i64>, batch: Batch, end: End) -> db::Result<Parted> {
        let now = self.pipelines.now();
        let mut tries = 0;
        let held = loop {
            let ended = self.write_end(hold, &batch, &end, now).await;
            if let Some(ended) = self.settled(ended, &mut tries).await {
                break ended?;
            }
        };
        // A commit whose answer was lost finds the run ended by itself.
        let end = match held {
            true => end,
            false => match store::run(&self.pipelines.db, hold.run).await? {
                Some(row) if row.lease == hold.lease && RunStatus::read(&row.status).is_final() => End {
                    status: RunStatus::read(&row.status),
                    output: row.output.map_or(Value::Null, |Json(output)| output),
                    error: row.error,
                },
                _ => return Ok(Parted::Lost),
            },
        };
        self.engine.state().runs_ended += 1;
        self.pipelines.announce(hold.run, &end);
        self.pipelines.tell_end(hold.run, &self.engine.id, &end);
        let engine = self.engine.id.clone();
        self.engine.say(Outbound::WorkflowResponse { engine, run: hold.run, end });
        if parent.is_some() {
            self.pipelines.look();
            self.pipelines.db.wake(Topic::Runs).await;
        }
        // While runs wait for an engine, the next one matters more than who hears of this one a moment sooner.
        if !self.pipelines.backlog.load(std::sync::atomic::Ordering::Acquire) {
            self.pipelines.db.wake(Topic::Events).await;
        }
        Ok(Parted::Ended)
    }

    async fn write_end(&self, hold: Hold, batch: &Batch, end: &End, now: db::Timestamp) -> db::Result<bool> {
        let mut tx = self.pipelines.db.begin().await?;
        for (_, _, effect) in &batch.effects {
            match effect {
                Effect::CancelTask(job) => store::cancel_task(&mut tx, *job).await?,
                Effect::CancelChild(run) => steer::cancel_in(&mut tx, *run).await?,
                Effect::Call(_) | Effect::Copy(_) | Effect::Task(_) | Effect::Child { .. } => {}
            }
        }
        let held = store::end_run(&mut tx, hold, &batch.rows, end, now).await?;
        if held {
            tx.commit().await?;
        }
        Ok(held)
    }
}
