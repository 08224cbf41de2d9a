//! One instance of the service in the simulation: its loop, its queue worker and its dispatcher, each taking a step
//! when the seed says so.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
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

use super::clock::{Owner, Skewed};
use super::faults::SimFaults;
use super::platform::{Door, SimPlatform};

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
    /// An operator asks for one cycle, and hangs up while it is waited for.
    RunOnce,
    /// Retention and periodic reconciliation.
    Upkeep,
    /// A clean stop: the lease is given back.
    Resign,
}

/// What instances share.
pub struct Surroundings {
    pub url: String,
    pub rules: std::path::PathBuf,
    pub database_clock: Arc<Skewed>,
    pub platform: Arc<SimPlatform>,
    pub config: Config,
}

pub struct Instance {
    pub owner: Owner,
    pub faults: Arc<SimFaults>,
    pub clock: Arc<Skewed>,
    db: Db,
    config: Config,
    orchestrator: Orchestrator,
    runner: Runner,
    worker: Worker,
    dispatcher: Dispatcher,
}

impl Instance {
    pub async fn start(
        around: &Surroundings,
        owner: Owner,
        skew: Arc<Skewed>,
        faults: Arc<SimFaults>,
        random: Random,
    ) -> Self {
        let Surroundings { url, rules, database_clock, platform, config } = around;
        let clock: SharedClock = skew.clone();
        let options = Options { max_connections: 2, ..Options::new(url) };
        let opened = Db::open(&options, database_clock.clone()).await.expect("the database");
        let db = opened.with_clock(database_clock.clone()).with_faults(faults.clone());
        let name = format!("instance-{}", &random.token()[..6]);
        let door = Door { platform: platform.clone(), clock: skew.clone(), faults: faults.clone() };
        let publishing = Publishing::with_connector(
            config.publishing.clone(),
            db.clone(),
            clock.clone(),
            random.clone(),
            Arc::new(door),
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
            prefetch: 0,
            poll_interval: Duration::from_secs(1),
            lease: Duration::from_secs(60),
            drain: Duration::from_secs(1),
        };
        let worker = Worker::new(db.clone(), clock, random, options, publishing.handlers());
        let dispatcher = Dispatcher::new(publishing, Duration::from_secs(1));
        let config = config.clone();
        Self { owner, faults, clock: skew, db, config, orchestrator, runner, worker, dispatcher }
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
            Step::RunOnce => {
                let mut running = Box::pin(self.orchestrator.run_once(&operator));
                poll_fn(|context| match running.as_mut().poll(context) {
                    Poll::Pending if !self.faults.asked() => Poll::Pending,
                    _ => Poll::Ready(()),
                })
                .await;
            }
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
