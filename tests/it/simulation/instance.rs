//! One instance of the service in the simulation: its loop, its queue worker and its dispatcher, each taking a step
//! when the seed says so.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use showrunner::actor::Actor;
use showrunner::app::Mode;
use showrunner::clock::SharedClock;
use showrunner::config::Config;
use showrunner::control::decider::RuleBook;
use showrunner::control::orchestrator::Orchestrator;
use showrunner::control::{CycleRunner, Executor, Lead, Monitor, Runner, RunnerParts, forget_old};
use showrunner::db::{Db, Options};
use showrunner::planes::publishing::{self, Dispatcher, Publishing};
use showrunner::planes::queue::{Worker, WorkerOptions};
use showrunner::random::Random;

use super::clock::{SimClock, Skewed};
use super::faults::SimFaults;
use super::platform::SimPlatform;

/// What an instance can do in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The loop looks, and runs a cycle if one is due or asked for.
    Loop,
    /// The dispatcher hands due publications to the queue.
    Dispatch,
    /// The worker claims a batch and runs it.
    Work,
    /// An operator switches the loop on.
    Enable,
    /// An operator switches the loop off.
    Disable,
    /// Retention and periodic reconciliation.
    Upkeep,
    /// A clean stop: the lease is given back.
    Resign,
}

pub struct Instance {
    pub faults: Arc<SimFaults>,
    pub skew: Arc<Skewed>,
    db: Db,
    config: Config,
    orchestrator: Orchestrator,
    runner: Runner,
    worker: Worker,
    dispatcher: Dispatcher,
}

impl Instance {
    pub async fn start(
        url: &str,
        rules: &Path,
        base: &Arc<SimClock>,
        platform: &Arc<SimPlatform>,
        config: &Config,
        random: Random,
    ) -> Self {
        let faults = Arc::new(SimFaults::default());
        let skew = Arc::new(Skewed { base: base.clone(), offset: Mutex::default() });
        let clock: SharedClock = skew.clone();
        let options = Options { max_connections: 2, ..Options::new(url) };
        let opened = Db::open(&options, base.clone()).await.expect("the database");
        let db = opened.with_clock(base.clone()).with_faults(faults.clone());
        let name = format!("instance-{}", &random.token()[..6]);
        let publishing = Publishing::with_connector(
            config.publishing.clone(),
            db.clone(),
            clock.clone(),
            random.clone(),
            platform.clone(),
        );
        let publishing = Arc::new(publishing.expect("a plane"));
        let book = Arc::new(RuleBook::folder(rules));
        let monitor = Monitor::new(db.clone(), publishing.clone());
        let executor = Executor::new(db.clone(), publishing.clone(), config.governors.clone());
        let interval = Duration::from_secs(config.orchestrator.interval_seconds);
        let orchestrator = Orchestrator::new(db.clone(), clock.clone(), monitor.clone(), book.clone(), &name, interval);
        let runner = Runner::new(RunnerParts {
            db: db.clone(),
            clock: clock.clone(),
            instance: name.clone(),
            interval,
            mode: Mode::Serve,
            cycle: CycleRunner::new(
                db.clone(),
                clock.clone(),
                name.clone(),
                book,
                monitor,
                executor,
                config.governors.clone(),
            ),
            lead: Lead::default(),
        });
        let options = WorkerOptions {
            queue: publishing::QUEUE,
            name,
            max_concurrency: 4,
            poll_interval: Duration::from_secs(1),
            lease: Duration::from_secs(60),
            drain: Duration::from_secs(1),
        };
        let worker = Worker::new(db.clone(), clock, random, options, publishing.handlers());
        let dispatcher = Dispatcher::new(publishing, Duration::from_secs(1));
        Self { faults, skew, db, config: config.clone(), orchestrator, runner, worker, dispatcher }
    }

    /// Takes one step; errors are the instance's own business, as they are in life.
    pub async fn take(mut self, step: Step) -> Self {
        let operator = Actor::Operator("sim".to_owned());
        match step {
            Step::Loop => drop(self.runner.step().await),
            Step::Dispatch => drop(self.dispatcher.tick().await),
            Step::Work => drop(self.worker.run_batch().await),
            Step::Enable => drop(self.orchestrator.enable(&operator).await),
            Step::Disable => drop(self.orchestrator.disable(&operator).await),
            Step::Upkeep => {
                drop(forget_old(&self.db, &self.config.retention).await);
                drop(publishing::reconcile_if_needed(&self.db).await);
            }
            Step::Resign => self.runner.resign().await,
        }
        self
    }

    pub async fn close(self) {
        self.db.close().await;
    }
}
