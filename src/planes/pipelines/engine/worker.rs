//! The task behind an engine: one run at a time, from its assignment to its end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::commit::Committed;
use crate::db::{self, Topic};
use crate::panic::caught;
use crate::planes::pipelines::Pipelines;
use crate::planes::pipelines::message::{Asked, Assignment, EngineStatus, Inbound, Outbound, Work};
use crate::planes::pipelines::model::RunStatus;
use crate::planes::pipelines::run::{Batch, End, Key, MAX_RESULT, Running, Waits};
use crate::planes::pipelines::store::{self, Hold};
use crate::storage::is_reference;

/// How long an engine keeps a run that only waits; after that the run waits without an engine.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long an engine sleeps at most while it has a run.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// How long a stopping engine waits for calls that are out; they are repeated under the same key.
const DRAIN: Duration = Duration::from_secs(10);

/// The task behind an engine.
pub(in crate::planes::pipelines) struct Worker {
    pub(super) engine: Arc<Engine>,
    inbound: mpsc::Receiver<Inbound>,
    pub(super) pipelines: Arc<Pipelines>,
    pub(super) stop: CancellationToken,
    paused: bool,
}

/// How an engine and its run part.
pub(super) enum Parted {
    Ended,
    Parked,
    Lost,
    Stopped,
}

impl Worker {
    pub(in crate::planes::pipelines) fn new(
        engine: Arc<Engine>,
        inbound: mpsc::Receiver<Inbound>,
        pipelines: Arc<Pipelines>,
        stop: CancellationToken,
    ) -> Self {
        Self { engine, inbound, pipelines, stop, paused: false }
    }

    /// Works until it is stopped.
    pub(in crate::planes::pipelines) async fn run(mut self) {
        loop {
            let message = tokio::select! {
                () = self.stop.cancelled() => break,
                message = self.inbound.recv() => message,
            };
            match message {
                None | Some(Inbound::Stop) => break,
                Some(Inbound::WorkflowRequest(assignment)) => {
                    if self.take(*assignment).await {
                        break;
                    }
                }
                Some(other) => self.between(other),
            }
        }
        self.engine.becomes(EngineStatus::Stopped, None);
        self.inbound.close();
        // What was handed over and not begun is given back.
        while let Some(message) = self.inbound.recv().await {
            if let Inbound::WorkflowRequest(assignment) = message {
                let given = store::release(&self.pipelines.db, assignment.hold, "pending", None).await;
                if let Err(cause) = given {
                    tracing::warn!(%cause, "a run was not given back; its lease will lapse");
                }
            }
        }
    }

    fn between(&mut self, message: Inbound) {
        match message {
            Inbound::HealthCheck => self.answer_health_check(),
            Inbound::Pause => {
                self.paused = true;
                self.engine.becomes(EngineStatus::Paused, None);
            }
            Inbound::Resume => {
                self.paused = false;
                self.engine.becomes(EngineStatus::Idle, None);
                self.pipelines.look();
            }
            Inbound::WorkflowRequest(_) | Inbound::Asked { .. } | Inbound::Stop => {}
        }
    }

    fn answer_health_check(&self) {
        let health = self.engine.health();
        self.engine.say(Outbound::HealthCheckResponse { engine: self.engine.id.clone(), health });
    }

    /// Carries one run out; true when the engine is to end.
    async fn take(&mut self, assignment: Assignment) -> bool {
        let hold = assignment.hold;
        self.engine.becomes(EngineStatus::Running, Some(hold.run));
        let parted = caught(self.carry_out(assignment)).await;
        let status = if self.paused { EngineStatus::Paused } else { EngineStatus::Idle };
        let ends = match parted {
            Ok(Ok(parted)) => {
                self.engine.becomes(status, None);
                matches!(parted, Parted::Stopped)
            }
            // The database is away: the run is given back once it answers, to go on from its last commit.
            Ok(Err(cause @ db::Error::Unavailable(_))) => {
                self.engine.complain(Some(hold.run), cause.to_string());
                let given_back = self.let_go(hold, "pending", None, Parted::Lost).await;
                if let Err(cause) = given_back {
                    tracing::warn!(%cause, run = hold.run, "a run was not given back; its lease will lapse");
                }
                self.engine.becomes(status, None);
                false
            }
            Ok(Err(cause)) => {
                self.broken(hold, cause.to_string()).await;
                false
            }
            Err(panic) => {
                self.broken(hold, panic).await;
                false
            }
        };
        self.pipelines.free();
        ends
    }

    /// A run that breaks the engine would break the next one too: it fails.
    async fn broken(&mut self, hold: Hold, cause: String) {
        self.engine.complain(Some(hold.run), cause.clone());
        self.engine.becomes(EngineStatus::Error, None);
        let error = Some(format!("the engine could not carry it out: {cause}"));
        let end = End { status: RunStatus::Failed, output: Value::Null, error };
        let ended = async {
            let mut tx = self.pipelines.db.begin().await?;
            let now = self.pipelines.now();
            let held = store::end_run(&mut tx, hold, &[], &end, now).await?;
            tx.commit().await?;
            Ok::<_, db::Error>(held)
        };
        match ended.await {
            Ok(true) => self.pipelines.announce(hold.run, &end),
            Ok(false) => {}
            Err(cause) => {
                tracing::error!(%cause, run = hold.run, "a broken run could not be ended; its lease will lapse")
            }
        }
    }

    async fn carry_out(&mut self, assignment: Assignment) -> db::Result<Parted> {
        let Assignment { hold, parent, depth, mut asked, work } = assignment;
        let mut run = match work {
            Work::Fresh(run) => *run,
            Work::Claimed(row) => {
                let pipeline = match self.pipelines.version(&row.pipeline_id, row.version).await? {
                    Some(pipeline) => pipeline,
                    None => {
                        let error = format!("pipeline {} has no good version {}", row.pipeline_id, row.version);
                        let end = End { status: RunStatus::Failed, output: Value::Null, error: Some(error) };
                        return self.end(hold, parent, Batch::default(), end).await;
                    }
                };
                let rows = store::steps_of(&self.pipelines.db, row.id).await?;
                Running::load(row.id, pipeline, row.input.0, row.retries, rows)
            }
        };
        let mut calls: JoinSet<(Key, Result<Value, String>)> = JoinSet::new();
        let mut stopping: Option<Duration> = None;
        let clock = self.pipelines.clock.clone();
        let random = self.pipelines.random.clone();
        let mut idle_since = clock.elapsed();
        loop {
            let now = self.pipelines.now();
            if asked == Some(Asked::Cancel) {
                calls.abort_all();
                run.cancel(now);
                let end = End { status: RunStatus::Cancelled, output: Value::Null, error: None };
                return self.end(hold, parent, run.take_batch(), end).await;
            }
            if self.stop.is_cancelled() {
                stopping.get_or_insert(clock.elapsed());
            }
            if !self.paused && asked.is_none() && stopping.is_none() {
                run.tick(now, &random);
                run.start(now, &random);
            }
            let batch = run.take_batch();
            if let Some(end) = run.over() {
                return self.end(hold, parent, batch, end).await;
            }
            if !batch.rows.is_empty() || !batch.effects.is_empty() {
                match self.commit(hold, depth, batch, &mut calls).await? {
                    Committed::Held(begun) => run.committed(&begun),
                    Committed::Lost => return Ok(Parted::Lost),
                }
                idle_since = clock.elapsed();
                // A pure step holds the thread for its own time only.
                tokio::task::yield_now().await;
                while let Ok(message) = self.inbound.try_recv() {
                    self.hear(message, hold.run, &mut asked, &mut stopping);
                }
                continue;
            }
            let calling = run.is_calling();
            if !calling && asked == Some(Asked::Pause) {
                return self.let_go(hold, "paused", None, Parted::Parked).await;
            }
            if let Some(since) = stopping
                && (!calling || clock.elapsed() >= since + DRAIN)
            {
                return self.let_go(hold, "pending", None, Parted::Stopped).await;
            }
            let wake_in = run.next_wake().map(|at| at.since(now));
            let idle_for = clock.elapsed().saturating_sub(idle_since);
            if !calling && !self.paused && idle_for >= PATIENCE && wake_in.is_none_or(|wake| wake > PATIENCE) {
                return self.let_go(hold, "waiting", run.next_wake(), Parted::Parked).await;
            }
            // Armed before the look, so that nothing falls between.
            let mut jobs = self.pipelines.db.listen(Topic::JobsEnded);
            let mut runs = self.pipelines.db.listen(Topic::Runs);
            let awaited = run.awaited();
            if !awaited.is_empty() {
                let waits: Vec<Waits> = awaited.iter().map(|(_, waits)| *waits).collect();
                let ended = store::ended(&self.pipelines.db, &waits).await?;
                let mut any = false;
                for (waits, outcome) in ended {
                    let outcome = match outcome {
                        Ok(result) => Ok(self.fetched(result).await),
                        failed => failed,
                    };
                    for (key, _) in awaited.iter().filter(|(_, other)| *other == waits) {
                        run.answer(*key, outcome.clone(), now, &random);
                        any = true;
                    }
                }
                if any {
                    continue;
                }
            }
            let sleep = match wake_in {
                _ if self.paused || stopping.is_some() => LONGEST_SLEEP,
                Some(wake) if calling => wake.min(LONGEST_SLEEP),
                None if calling => LONGEST_SLEEP,
                Some(wake) if wake <= PATIENCE => wake,
                _ => PATIENCE.saturating_sub(idle_for),
            };
            tokio::select! {
                Some(done) = calls.join_next() => {
                    self.take_answer(done, &mut run);
                    while let Some(done) = calls.try_join_next() {
                        self.take_answer(done, &mut run);
                    }
                    idle_since = clock.elapsed();
                }
                message = self.inbound.recv() => match message {
                    Some(message) => self.hear(message, hold.run, &mut asked, &mut stopping),
                    None => { stopping.get_or_insert(clock.elapsed()); }
                },
                () = self.stop.cancelled(), if stopping.is_none() => { stopping = Some(clock.elapsed()); }
                () = jobs.woken(), if !awaited.is_empty() => {}
                () = runs.woken(), if !awaited.is_empty() => {}
                () = clock.sleep(sleep.max(Duration::from_millis(1))) => {}
            }
        }
    }

    /// A task's result that lies in storage, where a step may have it; a larger one is passed on by its name.
    async fn fetched(&self, result: Value) -> Value {
        let is_small = || result["$storage"]["size"].as_u64().is_some_and(|size| size <= MAX_RESULT as u64);
        let Some(stores) = self.pipelines.stores.get().filter(|_| is_reference(&result) && is_small()) else {
            return result;
        };
        match stores.resolve(result.clone()).await {
            Ok(fetched) => fetched,
            Err(cause) => {
                tracing::warn!(%cause, "a task's result cannot be read from storage; its name is passed on");
                result
            }
        }
    }

    fn take_answer(&self, done: Result<(Key, Result<Value, String>), tokio::task::JoinError>, run: &mut Running) {
        match done {
            Ok((key, answer)) => run.answer(key, answer, self.pipelines.now(), &self.pipelines.random),
            Err(cause) => self.engine.complain(Some(run.id), format!("a call ended by panic: {cause}")),
        }
    }

    pub(super) fn hear(
        &mut self,
        message: Inbound,
        run: i64,
        asked: &mut Option<Asked>,
        stopping: &mut Option<Duration>,
    ) {
        match message {
            Inbound::Asked { run: of, what } if of == run => *asked = (*asked).max(Some(what)),
            Inbound::HealthCheck => self.answer_health_check(),
            Inbound::Pause => {
                self.paused = true;
                self.engine.becomes(EngineStatus::Paused, Some(run));
            }
            Inbound::Resume => {
                self.paused = false;
                self.engine.becomes(EngineStatus::Running, Some(run));
            }
            Inbound::Stop => *stopping = Some(self.pipelines.clock.elapsed()),
            // An engine with a run is given no other.
            Inbound::Asked { .. } | Inbound::WorkflowRequest(_) => {}
        }
    }
}
