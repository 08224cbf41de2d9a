//! Everything is built, started and stopped here, in order.
//!
//! Up: the address, database and schema, planes, rules, event monitor, loop, queue worker and dispatchers, engines,
//! fleet, upkeep, doors. Down: the fleet first (agents go to other instances while requests are still served), then the
//! doors (running requests end), upkeep, the loop (its running action ends and the lease is given back), the engines
//! (their runs are given back), queue worker and dispatchers, the event monitor, the database.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::config::{self, Config};
use crate::control::cycles;
use crate::control::decider::{RuleBook, RuleSet};
use crate::control::orchestrator::Orchestrator;
use crate::control::{CycleRunner, Executor, Lead, Monitor, Runner, RunnerParts, Upkeep, initialise_switch};
use crate::db::{Db, Options};
use crate::events;
use crate::http;
use crate::planes::fleet::{self, Fleet};
use crate::planes::pipelines::{self, Pipelines};
use crate::planes::publishing::{self, Dispatcher, Publishing};
use crate::planes::queue::{self, TaskQueue, Worker, WorkerOptions};
use crate::random::Random;
use crate::storage::Stores;

pub use crate::control::Mode;

/// How much longer than a platform's call a stopping queue waits for the jobs that run: what was answered is written
/// down.
const QUEUE_DRAIN: Duration = Duration::from_secs(5);

/// What the service is made of from outside: tests and the demo bring their own clock, chance and database.
pub struct Parts {
    pub config: Config,
    pub clock: SharedClock,
    pub random: Random,
    /// An open database in place of the configured one, e.g. one with faults.
    pub db: Option<Db>,
    /// Whether this process serves, or only carries out a command.
    pub mode: Mode,
    /// Whether to listen for HTTP.
    pub listen: bool,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database, or its schema.
    #[error(transparent)]
    Store(#[from] crate::db::Error),
    /// The configuration forbids it; says what to set.
    #[error("{0}")]
    Refused(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {cause}. Is another program using the port? Set PORT to another one")]
    Listen { address: SocketAddr, cause: std::io::Error },
}

/// A running service.
pub struct App {
    address: Option<SocketAddr>,
    orchestrator: Orchestrator,
    publishing: Arc<Publishing>,
    pipelines: Arc<Pipelines>,
    fleet: Arc<Fleet>,
    queue: Arc<TaskQueue>,
    events: events::Monitor,
    stores: Stores,
    db: Db,
    /// Whether the database was opened here, and so is closed here.
    owns_db: bool,
    doors: Part,
    control: Part,
    work: Part,
    watch: Part,
    upkeep: Option<Upkeep>,
}

/// Tasks that stop together.
#[derive(Default)]
struct Part {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Part {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task));
    }
    async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            if let Err(cause) = task.await {
                tracing::error!(%cause, "a part of the service ended by panic");
            }
        }
    }
}

impl App {
    /// Opens and migrates the database, loads the rules, starts loop, queue, upkeep and doors.
    pub async fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { config, clock, random, db, mode, listen } = parts;
        if listen {
            http::check_exposure(&config).map_err(StartError::Refused)?;
        }
        let stores = Stores::open(&config.storage).map_err(StartError::Refused)?;
        // The address first: where it is taken, nothing has begun yet that would have to be stopped.
        let listener = if listen { Some(bind(&config).await?) } else { None };
        let owns_db = db.is_none();
        let db = match db {
            Some(db) => db,
            None => {
                let options = Options { durability: config.durability, ..Options::new(&config.database_url) };
                Db::open(&options, clock.clone()).await?
            }
        };
        db.migrate().await?;
        if mode == Mode::Serve {
            initialise_switch(&db, config.orchestrator.enabled).await?;
        }

        let instance = format!("{}-{}", std::process::id(), &random.token()[..8]);
        let interval = Duration::from_secs(config.orchestrator.interval_seconds);
        let publishing = Publishing::new(config.publishing.clone(), db.clone(), clock.clone(), random.clone())
            .map_err(StartError::Refused)?;
        let events = events::Monitor::new(db.clone(), clock.clone());
        let pipelines = Pipelines::new(
            config.pipelines.clone(),
            db.clone(),
            events.clone(),
            clock.clone(),
            random.clone(),
            &instance,
        )
        .await?;
        pipelines.use_stores(stores.clone());
        let fleet = Fleet::new(&config, db.clone(), clock.clone(), random.clone(), &instance);
        let doors = Part::default();
        let queue =
            TaskQueue::new(&config, db.clone(), clock.clone(), random.clone(), stores.clone(), doors.stop.clone())
                .map_err(StartError::Refused)?;
        let rules = Arc::new(open_rules(&config, &db).await?);
        let publishing = Arc::new(publishing);
        let monitor = Monitor::new(db.clone(), publishing.clone()).with_engines(pipelines.clone());
        let orchestrator =
            Orchestrator::new(db.clone(), clock.clone(), monitor.clone(), rules.clone(), &instance, interval);

        let mut app = Self {
            address: None,
            orchestrator,
            publishing: publishing.clone(),
            pipelines,
            fleet,
            events,
            queue,
            stores,
            db: db.clone(),
            owns_db,
            doors,
            control: Part::default(),
            work: Part::default(),
            watch: Part::default(),
            upkeep: None,
        };
        let backends = if mode == Mode::Serve { events::Backends::Record } else { events::Backends::Watch };
        let watching = app.events.start(app.watch.stop.clone(), backends).await?;
        app.watch.tasks.push(watching);
        let executor = Executor::new(db.clone(), publishing.clone(), config.governors.clone())
            .with_fleet(app.fleet.rules().clone());
        let governors = config.governors.clone();
        let lead = Lead::default();
        let runner = Runner::new(RunnerParts {
            db: db.clone(),
            clock: clock.clone(),
            instance: instance.clone(),
            interval,
            mode,
            cycle: CycleRunner::new(db.clone(), clock.clone(), instance.clone(), rules, monitor, executor, governors),
            lead: lead.clone(),
        });
        let wakeups = db.clone();
        let (relay_clock, relay_stop) = (clock.clone(), app.control.stop.clone());
        app.control.spawn(async move { wakeups.relay_wakeups(relay_clock, relay_stop).await });
        app.control.spawn(runner.run(app.control.stop.clone()));
        if mode == Mode::Serve {
            if config.mode == config::Mode::Standalone {
                app.start_work(&config, clock.clone(), random.clone(), instance.clone());
                app.pipelines.start();
                app.fleet.start();
            }
            let upkeep = Upkeep::start(db, lead, config.retention.clone()).await;
            app.upkeep =
                Some(upkeep.map_err(|cause| StartError::Refused(format!("upkeep cannot be scheduled: {cause}")))?);
        }
        if let Some(listener) = listener {
            app.open_doors(listener, config, clock, random, instance);
        }
        Ok(app)
    }

    /// The queue's worker and the dispatcher, which work whether the loop is on or off.
    fn start_work(&mut self, config: &Config, clock: SharedClock, random: Random, instance: String) {
        let poll_interval = Duration::from_millis(config.queue.poll_interval_ms);
        let worker = self.worker(config, clock, random, instance);
        self.work.spawn(worker.run(self.work.stop.clone()));
        let dispatcher = Dispatcher::new(self.publishing.clone(), poll_interval);
        let stop = self.work.stop.clone();
        self.work.spawn(async move { dispatcher.run(stop).await });
        self.work.spawn(queue::Dispatcher::new(self.queue.clone()).run(self.work.stop.clone()));
    }

    /// What runs this service's own jobs.
    fn worker(&self, config: &Config, clock: SharedClock, random: Random, instance: String) -> Worker {
        let options = WorkerOptions {
            queue: publishing::QUEUE,
            name: instance,
            max_concurrency: config.queue.max_concurrency,
            prefetch: 0, // a publication waits for its turn in the queue, where others can take it
            poll_interval: Duration::from_millis(config.queue.poll_interval_ms),
            lease: Duration::from_secs(config.queue.lease_seconds),
            drain: Duration::from_millis(config.publishing.call_timeout_ms) + QUEUE_DRAIN,
        };
        Worker::new(self.db.clone(), clock, random, options, self.publishing.handlers())
            .with_longest_wait(Duration::from_millis(config.queue.max_retry_delay_ms))
    }

    fn open_doors(
        &mut self,
        listener: TcpListener,
        config: Config,
        clock: SharedClock,
        random: Random,
        instance: String,
    ) {
        self.address = listener.local_addr().ok();
        let poll_interval = Duration::from_millis(config.queue.poll_interval_ms);
        let engines = (config.mode == config::Mode::Serverless).then(|| self.pipelines.clone());
        let processor = http::process::Processor::new(
            self.worker(&config, clock, random.clone(), format!("{instance}-process")),
            queue::Dispatcher::new(self.queue.clone()),
            Dispatcher::new(self.publishing.clone(), poll_interval),
            engines,
            Duration::from_millis(config.http.request_timeout_ms),
        );
        let drain = Duration::from_millis(config.http.drain_timeout_ms);
        let state = http::AppState {
            orchestrator: self.orchestrator.clone(),
            db: self.db.clone(),
            config: Arc::new(config),
            random,
            metrics: http::metrics::recorder(),
        };
        let events = http::events::routes(self.db.clone(), self.events.clone(), self.doors.stop.clone());
        let stored = http::storage::routes(self.stores.clone());
        let planes = publishing::routes(self.publishing.clone())
            .merge(pipelines::routes(self.pipelines.clone()))
            .merge(fleet::routes(self.fleet.clone()))
            .merge(queue::routes(self.queue.clone()))
            .merge(http::process::routes(Arc::new(processor)))
            .merge(events)
            .merge(stored);
        let open = queue::worker_routes(self.queue.clone())
            .merge(pipelines::open_routes(self.pipelines.clone()))
            .merge(fleet::agent_routes(self.fleet.clone()));
        let router = http::router(state, planes, open);
        self.doors.spawn(http::serve(listener, router, http::Bounds::default(), self.doors.stop.clone(), drain));
    }

    /// Where the doors are, if they listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The loop.
    pub fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }

    /// The publishing plane.
    pub fn publishing(&self) -> &Arc<Publishing> {
        &self.publishing
    }

    /// The pipelines plane.
    pub fn pipelines(&self) -> &Arc<Pipelines> {
        &self.pipelines
    }

    /// The fleet plane.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// The event monitor.
    pub fn events(&self) -> &events::Monitor {
        &self.events
    }

    /// The storage back ends.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Stops everything: who comes from outside first, then what works, then what it stands on. What runs comes to its
    /// end, or is given back.
    pub async fn stop(self) {
        self.fleet.stop().await;
        self.doors.end().await;
        if let Some(upkeep) = self.upkeep {
            upkeep.stop().await;
        }
        self.control.end().await;
        self.pipelines.stop().await;
        self.work.end().await;
        self.watch.end().await;
        if self.owns_db {
            self.db.close().await;
        }
    }
}

async fn bind(config: &Config) -> Result<TcpListener, StartError> {
    let address = SocketAddr::new(config.host, config.port);
    TcpListener::bind(address).await.map_err(|cause| StartError::Listen { address, cause })
}

/// The rules' folder. Where it is bad at the start, the rules of the last cycle stay in force.
async fn open_rules(config: &Config, db: &Db) -> Result<RuleBook, StartError> {
    let Some(folder) = &config.rules_dir else { return Ok(RuleBook::built_in()) };
    let book = RuleBook::folder_for(folder, config.publishing.platforms.keys().cloned().collect());
    if !book.status().rejected_because.is_empty()
        && let Some(sources) = cycles::last_rule_sources(db).await?
        && let Ok(set) = RuleSet::load(&sources)
    {
        book.fall_back_to(set);
    }
    Ok(book)
}
