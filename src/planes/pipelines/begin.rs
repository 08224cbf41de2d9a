//! Keeping definitions, beginning runs of them, and waiting for their ends.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::message::{Assignment, Inbound, Work};
use super::run::{End, Running};
use super::store::{self, Hold, NewRun, Taker};
use super::{Definition, Engine, Fault, Pipeline, Pipelines, RunStatus, StepRow, is_id};
use crate::db::{self, Topic, Tx};

/// Versions that are kept ready; beyond it the cache begins anew.
const READY_VERSIONS: usize = 1_000;

/// Why a run was not begun.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("there is no pipeline `{0}`")]
    NoSuchPipeline(String),
    /// The pipeline does not take this input.
    #[error("the input is refused: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Input(Vec<Fault>),
    /// The stored definition is not good, which a newer program may have made so.
    #[error("the definition is refused: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Definition(Vec<Fault>),
    #[error(transparent)]
    Store(#[from] db::Error),
}

/// Who began a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// `manual`, `http`, `cron` or `event`.
    pub kind: &'static str,
    pub trigger: Option<&'a str>,
}

impl<'a> Origin<'a> {
    /// A person or program, by the API, the command line or the library.
    pub const MANUAL: Origin<'static> = Origin { kind: "manual", trigger: None };

    fn run_of(self, pipeline: &'a str, version: i64, input: &'a Value) -> NewRun<'a> {
        NewRun { pipeline, version, input, trigger_kind: self.kind, trigger_id: self.trigger, parent: None }
    }
}

/// A run that was begun.
pub struct Begun {
    pub run: i64,
    pub version: i64,
    ended: oneshot::Receiver<End>,
}

impl Pipelines {
    /// Checks a definition and keeps it: a new version where it differs from the newest. Its version, and whether it
    /// is new.
    pub async fn register_workflow(&self, id: &str, definition: Definition) -> Result<(i64, bool), StartError> {
        let mut tx = self.db.begin().await?;
        let put = Self::put(&mut tx, id, definition).await?;
        tx.commit().await?;
        Ok(put)
    }

    /// The same inside a transaction.
    pub async fn put(tx: &mut Tx, id: &str, definition: Definition) -> Result<(i64, bool), StartError> {
        if !is_id(id) {
            let message = format!("`{}` is no id: a letter, then letters, digits, `_` and `-`", id.escape_debug());
            return Err(StartError::Definition(vec![Fault::at("id", message)]));
        }
        let value = serde_json::to_value(&definition).unwrap_or_default();
        Pipeline::compile(id, 0, definition).map_err(StartError::Definition)?;
        let hash: String = Sha256::digest(value.to_string()).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(store::put_pipeline(tx, id, &value, &hash).await?)
    }

    /// Begins a run of the newest version and waits until it ends.
    pub async fn execute_workflow(&self, id: &str, input: Value) -> Result<(i64, End), StartError> {
        let begun = self.trigger(id, input, Origin::MANUAL).await?;
        let run = begun.run;
        Ok((run, self.wait(begun).await?))
    }

    /// Begins a run: on an idle engine at once, else it waits durably for one.
    pub async fn trigger(&self, id: &str, input: Value, origin: Origin<'_>) -> Result<Begun, StartError> {
        let missing = || StartError::NoSuchPipeline(id.to_owned());
        let version = store::newest_version(&self.db, id).await?.ok_or_else(missing)?;
        let pipeline = self.version(id, version).await?.ok_or_else(missing)?;
        let input = pipeline.take_input(input).map_err(StartError::Input)?;
        let new = origin.run_of(id, version, &input);
        let engine = self.engines().into_iter().find(|engine| engine.reserve());
        let reserved = engine.as_deref().map(Reserved);
        let lease = Duration::from_secs(self.config.lease_seconds);
        let taker = engine.as_ref().map(|engine| Taker { owner: &self.instance, engine: &engine.id, lease });
        let run = store::begin_run(&self.db, new, taker, self.now()).await?;
        let ended = self.expect(run);
        match &engine {
            Some(engine) => {
                let work = Work::Fresh(Box::new(Running::new(run, pipeline, input, 0)));
                let hold = Hold { run, lease: 1 };
                let assignment = Assignment { hold, parent: None, depth: 0, asked: None, work };
                std::mem::forget(reserved); // the engine has it from here on
                let sent = engine.inbound.send(Inbound::WorkflowRequest(Box::new(assignment))).await;
                if sent.is_err() {
                    self.look.notify_one(); // it stopped meanwhile; the lease lapses
                }
            }
            None => self.backlogged().await,
        }
        Ok(Begun { run, version, ended })
    }

    /// Makes a run inside a transaction; after its commit an engine takes it.
    pub(super) async fn trigger_in(
        &self,
        tx: &mut Tx,
        id: &str,
        input: Value,
        origin: Origin<'_>,
    ) -> Result<i64, StartError> {
        let missing = || StartError::NoSuchPipeline(id.to_owned());
        let version = store::newest_version_in(tx, id).await?.ok_or_else(missing)?;
        let pipeline = self.version_in(tx, id, version).await?.ok_or_else(missing)?;
        let input = pipeline.take_input(input).map_err(StartError::Input)?;
        Ok(store::insert_run(tx, origin.run_of(id, version, &input)).await?)
    }

    /// How a run ended, once it has. A run that another instance carries out is looked at when its end is told, and
    /// now and then.
    pub async fn wait(&self, begun: Begun) -> Result<End, db::Error> {
        let Begun { run, mut ended, .. } = begun;
        let mut told = self.db.listen(Topic::Events);
        let mut is_here = true;
        loop {
            if let Some(row) = store::run(&self.db, run).await?
                && RunStatus::read(&row.status).is_final()
            {
                let output = row.output.map_or(Value::Null, |output| output.0);
                return Ok(End { status: RunStatus::read(&row.status), output, error: row.error });
            }
            tokio::select! {
                end = &mut ended, if is_here => match end {
                    Ok(end) => return Ok(end),
                    Err(_) => is_here = false,
                },
                () = told.woken() => {}
                () = self.clock.sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    /// As [`Pipelines::wait`], of a run that was begun elsewhere.
    pub(super) async fn wait_for(&self, run: i64) -> Result<End, db::Error> {
        self.wait(Begun { run, version: 0, ended: self.expect(run) }).await
    }

    /// The steps of a run that have begun.
    pub async fn steps(&self, run: i64) -> Result<Vec<StepRow>, db::Error> {
        store::steps_of(&self.db, run).await
    }

    /// A version made ready, from memory or the store; none where there is none, or it is not good.
    pub(super) async fn version(&self, id: &str, version: i64) -> db::Result<Option<Arc<Pipeline>>> {
        if let Some(ready) = self.known(id, version) {
            return Ok(Some(ready));
        }
        Ok(store::definition(&self.db, id, version)
            .await?
            .and_then(|definition| self.made_ready(id, version, definition)))
    }

    pub(super) async fn version_in(&self, tx: &mut Tx, id: &str, version: i64) -> db::Result<Option<Arc<Pipeline>>> {
        if let Some(ready) = self.known(id, version) {
            return Ok(Some(ready));
        }
        let definition = store::definition_in(tx, id, version).await?;
        Ok(definition.and_then(|definition| self.made_ready(id, version, definition)))
    }

    fn known(&self, id: &str, version: i64) -> Option<Arc<Pipeline>> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.get(&(id.to_owned(), version)).cloned()
    }

    fn made_ready(&self, id: &str, version: i64, definition: Value) -> Option<Arc<Pipeline>> {
        let made = Definition::from_value(definition).map_err(|fault| vec![fault]);
        let pipeline = match made.and_then(|definition| Pipeline::compile(id, version, definition)) {
            Ok(pipeline) => pipeline,
            Err(faults) => {
                tracing::error!(pipeline = id, version, ?faults, "a stored definition is not good");
                return None;
            }
        };
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.len() >= READY_VERSIONS {
            ready.clear();
        }
        ready.insert((id.to_owned(), version), pipeline.clone());
        Some(pipeline)
    }

    /// Somebody waits for the end of this run.
    pub(super) fn expect(&self, run: i64) -> oneshot::Receiver<End> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Who gave up waiting is forgotten when the list has grown.
        if waiting.len() >= 10_000 {
            waiting.retain(|_, senders| senders.iter().any(|sender| !sender.is_closed()));
        }
        waiting.entry(run).or_default().push(sender);
        receiver
    }

    /// A run has ended on an engine of this process.
    pub(super) fn announce(&self, run: i64, end: &End) {
        let senders = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
        for sender in senders.into_iter().flatten() {
            let _ = sender.send(end.clone());
        }
    }
}

/// An engine that is kept for a run that is being made; dropped, it is free again.
struct Reserved<'a>(&'a Engine);

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.unreserve();
    }
}
