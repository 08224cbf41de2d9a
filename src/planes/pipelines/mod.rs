//! Pipelines: steps that wait for each other, carried out by engines, one run at a time on each.
//!
//! A definition ([`Definition`]) is checked and made ready ([`Pipeline::compile`]) and kept by version. A trigger makes
//! a run, which goes to an idle engine at once, or waits durably for one ([`feeder`]). The engine ([`engine`]) asks the
//! run in memory ([`run`]) what may begin, commits what it says under the run's lease, and only then sends what goes
//! out. A run that only waits, for a time, a task or another run, leaves its engine. After a crash the lease lapses and
//! another engine goes on from the rows: a step runs again only if its result was not committed.
//!
//! | room | holds |
//! |---|---|
//! | `definition`, `builder` | a pipeline as its author writes it, in YAML, JSON or Rust |
//! | `expression` | the sandboxed expressions between steps |
//! | `compile`, `graph` | checking, names, levels, cycles, the critical path |
//! | `model` | the state machines of runs and steps |
//! | `store` | all of the plane's SQL |
//! | `begin` | keeping definitions, beginning runs, waiting for their ends |
//! | `run` | one run in memory: pure |
//! | `engine`, `message`, `call` | carrying runs out, what engines are told and say, and the HTTP call |
//! | `feeder` | runs for idle engines, leases, and what is asked of runs |
//! | `steer` | pause, resume, cancel, retry |
//! | `triggers` | what begins runs by itself: cron, HTTP, events |
//! | `plan`, `render` | a dry run's plan, and the graph as Mermaid and SVG |
//! | `observe` | the sections `pipelines` and `engines` |
//! | `act` | `retry_run`, `cancel_run`, `pause_trigger` |
//! | `routes` | its HTTP routes |
//! | `wfformat` | real workflow executions as pipelines |

pub mod act;
mod begin;
mod builder;
mod call;
mod compile;
pub mod definition;
mod engine;
mod expression;
mod feeder;
mod graph;
mod message;
mod model;
mod observe;
mod plan;
mod render;
mod routes;
mod run;
pub mod steer;
mod store;
#[cfg(test)]
mod tests;
pub mod triggers;
mod wfformat;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use begin::{Begun, Origin, StartError};
pub use builder::{PipelineBuilder, StepBuilder};
pub use compile::{Pipeline, is_id};
pub use definition::{Definition, Fault};
pub use engine::Engine;
pub use graph::Graph;
pub use message::{CHANNEL, EngineStatus, Health, Outbound};
pub use model::{IllegalTransition, Run, RunEvent, RunStatus, StepEvent, StepRow, StepStatus};
pub use observe::{EnginesSection, FIGURES, FailedRun, FailingTrigger, Figures, PipelinesSection, observe};
pub use plan::{Plan, PlannedStep};
pub use routes::{open_routes, routes};
pub use run::End;
pub use store::forget_finished;

use crate::clock::SharedClock;
use crate::config;
use crate::db::{self, Db, Timestamp, Topic};
use crate::events::{self, NewEvent};
use crate::random::Random;
use crate::storage::Stores;

/// Between two tellings of the engines' states.
const STATES_EVERY: Duration = Duration::from_secs(5);
/// Engines of one process.
const MAX_ENGINES: usize = 1_000;

/// The plane's handle.
pub struct Pipelines {
    me: Weak<Self>,
    config: config::Pipelines,
    db: Db,
    monitor: events::Monitor,
    clock: SharedClock,
    random: Random,
    instance: String,
    client: reqwest::Client,
    /// What steps copy from and to.
    stores: OnceLock<Stores>,
    engines: RwLock<Vec<Arc<Engine>>>,
    ready: Mutex<HashMap<(String, i64), Arc<Pipeline>>>,
    waiting: Mutex<HashMap<i64, Vec<oneshot::Sender<End>>>>,
    /// The database's time when it was last asked, and this process's own then.
    time: Mutex<(Timestamp, Duration)>,
    look: Notify,
    /// Whether runs wait that no engine was idle for.
    backlog: std::sync::atomic::AtomicBool,
    stop: CancellationToken,
    /// The engines' tasks, and those beside them.
    workers: TaskTracker,
    tasks: TaskTracker,
}

impl Pipelines {
    /// The plane, without engines yet. `instance` names this process in leases; what engines say is told to `monitor`.
    pub async fn new(
        config: config::Pipelines,
        db: Db,
        monitor: events::Monitor,
        clock: SharedClock,
        random: Random,
        instance: &str,
    ) -> Result<Arc<Self>, db::Error> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // once a process; a second time changes nothing
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::limited(5))
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|cause| db::Error::Schema(format!("no HTTP client: {cause}")))?;
        let time = (db.now().await?, clock.elapsed());
        let instance = instance.to_owned();
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            config,
            db,
            monitor,
            clock,
            random,
            instance,
            client,
            stores: OnceLock::new(),
            engines: RwLock::default(),
            ready: Mutex::default(),
            waiting: Mutex::default(),
            time: Mutex::new(time),
            look: Notify::new(),
            backlog: std::sync::atomic::AtomicBool::new(true),
            stop: CancellationToken::new(),
            workers: TaskTracker::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Lets steps copy what these back ends hold.
    pub fn use_stores(&self, stores: Stores) {
        let _ = self.stores.set(stores); // the first ones stay
    }

    /// The same plane without its engines: for engines that live only as long as a request.
    pub async fn apart(&self, suffix: &str) -> Result<Arc<Self>, db::Error> {
        let (config, db, monitor) = (self.config.clone(), self.db.clone(), self.monitor.clone());
        let instance = format!("{}-{suffix}", self.instance);
        let apart = Self::new(config, db, monitor, self.clock.clone(), self.random.clone(), &instance).await?;
        if let Some(stores) = self.stores.get() {
            apart.use_stores(stores.clone());
        }
        Ok(apart)
    }

    /// Starts the configured engines and what hands them runs, and fires what is due.
    pub async fn start_once(&self) -> Result<(), db::Error> {
        self.start_engines();
        self.fire_due().await?;
        triggers::heed_all(self).await
    }

    /// Whether a run is under way here, or could be.
    pub async fn is_busy(&self) -> Result<bool, db::Error> {
        let under_way = |engine: &Arc<Engine>| engine.health().status == EngineStatus::Running;
        Ok(self.engines().iter().any(under_way) || store::has_work(&self.db, self.db.now().await?).await?)
    }

    fn start_engines(&self) {
        for number in 1..=self.config.engines {
            self.register_engine(&format!("engine-{number}"));
        }
        if let Some(me) = self.me.upgrade() {
            self.tasks.spawn(async move { feeder::run(me).await });
        }
    }

    /// Starts the configured engines, and what hands them runs.
    pub fn start(&self) {
        self.start_engines();
        if let Some(me) = self.me.upgrade() {
            let (scheduler, heeder) = (me.clone(), me);
            self.tasks.spawn(async move { triggers::schedule(scheduler).await });
            self.tasks.spawn(async move { triggers::heed(heeder).await });
        }
        let me = self.me.clone();
        self.monitor.watch_engines(STATES_EVERY, move || {
            let engines = me.upgrade().map(|plane| plane.engines()).unwrap_or_default();
            let state = |engine: &Arc<Engine>| {
                let data = serde_json::to_value(engine.health()).unwrap_or_default();
                NewEvent::new(events::types::ENGINE_STATUS, engine.id.as_str()).data(data)
            };
            engines.iter().map(state).collect()
        });
    }

    /// Stops the engines: what is under way is given back, for another instance or the next start.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.workers.close();
        self.workers.wait().await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Stops the engines once whoever holds this is gone, without waiting for them.
    pub fn ends_with(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }

    /// Starts an engine under this id; the one that has the id already, if any.
    pub fn register_engine(&self, id: &str) -> Arc<Engine> {
        let mut engines = self.engines.write().unwrap_or_else(PoisonError::into_inner);
        let stopped = |engine: &Arc<Engine>| engine.health().status == EngineStatus::Stopped;
        if let Some(engine) = engines.iter().find(|engine| engine.id == id && !stopped(engine)) {
            return engine.clone();
        }
        engines.retain(|engine| engine.id != id);
        engines.truncate(MAX_ENGINES - 1);
        let (engine, inbound) = Engine::new(id.to_owned());
        self.monitor.attach_to_engine(id, engine.outbound.subscribe());
        if let Some(me) = self.me.upgrade() {
            let worker = engine::Worker::new(engine.clone(), inbound, me, self.stop.clone());
            self.workers.spawn(worker.run());
        }
        engines.push(engine.clone());
        engine
    }

    /// The engines of this process.
    pub fn engines(&self) -> Vec<Arc<Engine>> {
        self.engines.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The engine of this id.
    pub fn engine(&self, id: &str) -> Option<Arc<Engine>> {
        self.engines().into_iter().find(|engine| engine.id == id)
    }

    /// What an engine says from here on.
    pub fn engine_outbound_channel(&self, id: &str) -> Option<broadcast::Receiver<Outbound>> {
        self.engine(id).map(|engine| engine.outbound.subscribe())
    }

    /// The database's time, reckoned from when it was last asked.
    fn now(&self) -> Timestamp {
        let (base, at) = *self.time.lock().unwrap_or_else(PoisonError::into_inner);
        base.after(self.clock.elapsed().saturating_sub(at))
    }

    async fn ask_time(&self) -> db::Result<()> {
        let asked = (self.db.now().await?, self.clock.elapsed());
        *self.time.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        Ok(())
    }

    /// Tells what became of a run that ended on an engine of this process.
    fn tell_end(&self, run: i64, engine: &str, end: &End) {
        match &end.error {
            None => tracing::debug!(run, engine, status = %end.status, "a run ended"),
            Some(error) => tracing::warn!(run, engine, status = %end.status, error, "a run ended"),
        }
    }

    /// There may be runs to take.
    fn look(&self) {
        self.look.notify_one();
    }

    /// An engine is free: if runs wait for one, they are looked at.
    fn free(&self) {
        if self.backlog.load(std::sync::atomic::Ordering::Acquire) {
            self.look();
        }
    }

    async fn backlogged(&self) {
        self.backlog.store(true, std::sync::atomic::Ordering::Release);
        self.look();
        self.db.wake(Topic::Runs).await;
    }
}
