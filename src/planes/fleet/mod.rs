//! The fleet: stream jobs on agents that are connected by WebSocket, and live updates to UI clients.
//!
//! Somebody submits a job ([`routes`]); it waits until placement ([`placement`], pure) finds an agent with a free slot
//! and what it requires. The job is offered under a new lease, and from then on it is what its agent says it is
//! ([`socket`], [`intake`]), as far as the state machines ([`model`]) allow. An agent that is lost leaves its jobs
//! `UNKNOWN` for a while; if it comes back in time it keeps them, else they are begun elsewhere under a new lease, and
//! what it still runs under the old one is killed.
//!
//! Everything that changes is a [`Change`]: rows under the fleet's one lock, changed in memory, written back together.
//! So changes come one after the other on all instances, and each row carries its place in that order. The mirror
//! ([`mirror`]) follows that order; UI clients and placement read from it, and the database is not asked by either.
//!
//! | room | holds |
//! |---|---|
//! | `protocol` | what agents and UI clients say and hear |
//! | `model` | the state machines of jobs and agents |
//! | `record` | rows, and what clients see of them |
//! | `change`, `offer`, `life`, `presence` | what happens: to the rows, to jobs that wait, to jobs that were taken, to agents |
//! | `metadata` | what is said of a stream, merged |
//! | `redact` | what agents say of a job, without its secrets |
//! | `placement` | which job goes to which agent |
//! | `store` | all of the plane's SQL |
//! | `hub`, `socket` | connected agents of this instance, and one of their connections |
//! | `intake` | what agents say, hundreds of messages a transaction |
//! | `mirror`, `ui` | the fleet as this instance knows it, and who watches it |
//! | `keeper` | placing, what is due, signs of life, commands from elsewhere |
//! | `observe` | the sections `agents` and `streams` |
//! | `act` | `drain_agent`, `undrain_agent`, `restart_stream`, `stop_stream`, `move_stream` |
//! | `routes` | its HTTP routes and WebSockets |

pub mod act;
mod change;
mod hub;
mod intake;
mod keeper;
mod life;
mod metadata;
mod mirror;
pub mod model;
mod observe;
mod offer;
pub mod placement;
mod presence;
pub mod protocol;
mod record;
mod redact;
mod routes;
mod socket;
mod store;
mod ui;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use change::{Change, Rules, Saved};
pub use observe::{
    AGENT_FIGURES, AgentFigures, AgentsSection, DrainedAgent, FlappingAgent, STREAM_FIGURES, StillStream,
    StreamFigures, StreamsSection, observe_agents, observe_streams,
};
pub use record::{Agent, AgentView, Job, JobView, Template};
pub use routes::{agent_routes, routes};
pub use store::forget;

use crate::clock::SharedClock;
use crate::config::Config;
use crate::db::{Db, Dialect, Topic};
use crate::random::Random;
use hub::Hub;
use intake::Report;
use keeper::Signs;
use mirror::Mirror;

/// How long connections may take to end when this instance goes away; who does not read is left then.
const LEAVING: Duration = Duration::from_secs(5);

/// The plane's handle.
pub struct Fleet {
    db: Db,
    clock: SharedClock,
    random: Random,
    instance: String,
    rules: Rules,
    /// Whether the development token is taken: only where the doors are on loopback and open. Where tokens are set, a
    /// proxy on this machine may bring strangers.
    takes_development_token: bool,
    mirror: Mirror,
    hub: Hub,
    signs: Mutex<Signs>,
    intake: mpsc::Sender<Report>,
    /// The intake's other end, until it starts.
    reports: Mutex<Option<mpsc::Receiver<Report>>>,
    is_running: AtomicBool,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Connections of agents and UI clients.
    connections: TaskTracker,
}

impl Fleet {
    /// The plane, which takes no agents yet. `instance` names this process.
    pub fn new(config: &Config, db: Db, clock: SharedClock, random: Random, instance: &str) -> Arc<Self> {
        let (intake, reports) = mpsc::channel(intake::WAITING);
        Arc::new(Self {
            db,
            clock,
            random: random.clone(),
            instance: instance.to_owned(),
            rules: Rules { config: Arc::new(config.fleet.clone()), random },
            takes_development_token: config.host.is_loopback() && config.auth.tokens.is_empty(),
            mirror: Mirror::default(),
            hub: Hub::default(),
            signs: Mutex::default(),
            intake,
            reports: Mutex::new(Some(reports)),
            is_running: AtomicBool::new(false),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            connections: TaskTracker::new(),
        })
    }

    /// Begins to take agents and to place jobs.
    pub fn start(self: &Arc<Self>) {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(reports) = reports else { return };
        self.tasks.spawn(intake::run(self.clone(), reports));
        self.tasks.spawn(keeper::follow(self.clone()));
        self.tasks.spawn(keeper::place_jobs(self.clone()));
        self.tasks.spawn(keeper::keep(self.clone()));
        self.tasks.spawn(keeper::sweep(self.clone()));
        self.tasks.spawn(keeper::carry(self.clone()));
        self.is_running.store(true, Ordering::Release);
    }

    /// What changes go by.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether this process takes agents.
    fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Acquire) && !self.stop.is_cancelled()
    }

    /// Whether other instances may serve the same database; a file has one.
    fn is_one_of_several(&self) -> bool {
        self.db.dialect() == Dialect::Postgres
    }

    /// Sends agents elsewhere and writes down that they left; their jobs wait for them for a while.
    pub async fn stop(&self) {
        self.hub.close_all();
        self.stop.cancel();
        self.connections.close();
        if tokio::time::timeout(LEAVING, self.connections.wait()).await.is_err() {
            let open = self.connections.len();
            tracing::warn!(open, "connections of agents or watchers do not end; they are left");
        }
        let _ = self.intake.send(Report::Stop).await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// After a change is committed: its commands go out, and everybody hears of it. Whether the mirror has it now.
    async fn told(&self, saved: Saved) -> bool {
        self.hub.deliver(saved.commands);
        let known = saved.news.is_some_and(|(base, news)| self.mirror.take_own(base, news));
        if known {
            self.db.wake_others(Topic::Fleet);
        } else {
            self.db.wake(Topic::Fleet).await;
        }
        known
    }
}
