//! Publishing: campaigns own clips, and a clip goes out on platforms, once on each.
//!
//! A publication is a row of `publish_logs` before it is anything else: planned into a free slot ([`act`]), handed to
//! the queue as a job when its time comes ([`Dispatcher`]), recorded as `publishing` and only then sent by a
//! [`Connector`](connectors::Connector) (`publish`), and settled by the platform's answer. Where no answer comes it is
//! `unknown`, and the platform is asked later (`reconcile`). Nothing that may have been accepted is sent again.
//!
//! | room | holds |
//! |---|---|
//! | `model` | campaigns, clips, publications and their state machine |
//! | `store` | all of the plane's SQL |
//! | `windows`, `slots` | when a platform may be published to, and the best free time |
//! | `act` | the six publishing actions |
//! | `dispatch` | handing due publications to the queue, and finding those whose job died |
//! | `publish`, `reconcile` | the two kinds of jobs |
//! | `connectors` | the ways out: a simulated platform, and a signed webhook |
//! | `routes` | its HTTP routes |
//! | `observe` | the sections `publish_logs`, `scheduler`, `campaigns` and `clips` |

pub mod act;
pub mod connectors;
mod dispatch;
mod model;
mod observe;
mod publish;
mod reconcile;
mod routes;
mod slots;
mod store;
#[cfg(test)]
mod tests;
mod windows;

use std::sync::Arc;
use std::time::Duration;

pub use dispatch::{Dispatched, Dispatcher};
pub use model::{Campaign, CampaignStatus, Clip, ClipStatus, Event, IllegalTransition, PublishLog, Status};
pub use observe::*;
pub use reconcile::reconcile_if_needed;
pub use routes::routes;
pub use windows::{PlatformSchedule, Schedule, ScheduleError, Window};

use crate::clock::SharedClock;
use crate::config;
use crate::db::{Db, Timestamp};
use crate::planes::queue;
use crate::random::Random;
use connectors::Connector;
use connectors::sandbox::Sandbox;
use connectors::webhook::Webhook;

/// The queue that carries the plane's jobs.
pub const QUEUE: &str = "publishing";

/// The plane's handle.
pub struct Publishing {
    config: config::Publishing,
    schedule: Schedule,
    db: Db,
    clock: SharedClock,
    random: Random,
    connector: Arc<dyn Connector>,
    /// The connector again, where it is the simulated platform.
    sandbox: Option<Arc<Sandbox>>,
}

impl Publishing {
    /// Builds the plane from its configuration; the error says which setting makes no sense.
    pub fn new(config: config::Publishing, db: Db, clock: SharedClock, random: Random) -> Result<Self, String> {
        let (connector, sandbox): (Arc<dyn Connector>, _) = match config.connector {
            config::ConnectorKind::Sandbox => {
                let sandbox = Arc::new(Sandbox::new(config.sandbox.clone(), db.clone(), clock.clone()));
                (sandbox.clone(), Some(sandbox))
            }
            config::ConnectorKind::Webhook => {
                let timeout = Duration::from_millis(config.call_timeout_ms);
                let webhook =
                    Webhook::new(&config.webhook, timeout, clock.clone()).map_err(|error| error.to_string())?;
                (Arc::new(webhook), None)
            }
        };
        Self::build(config, db, clock, random, connector, sandbox)
    }

    /// The same with a connector of the caller's.
    pub fn with_connector(
        config: config::Publishing,
        db: Db,
        clock: SharedClock,
        random: Random,
        connector: Arc<dyn Connector>,
    ) -> Result<Self, String> {
        Self::build(config, db, clock, random, connector, None)
    }

    fn build(
        config: config::Publishing,
        db: Db,
        clock: SharedClock,
        random: Random,
        connector: Arc<dyn Connector>,
        sandbox: Option<Arc<Sandbox>>,
    ) -> Result<Self, String> {
        let schedule = Schedule::from_config(&config).map_err(|error| error.to_string())?;
        if config.call_timeout_ms == 0 {
            return Err("publishing.call_timeout_ms: at least 1".to_owned());
        }
        // A call that is still running must never be settled as "never heard of it".
        if config.settle_minutes.saturating_mul(60_000) < config.call_timeout_ms.saturating_mul(2) {
            return Err("publishing.settle_minutes: at least twice call_timeout_ms".to_owned());
        }
        Ok(Self { config, schedule, db, clock, random, connector, sandbox })
    }

    /// What was configured.
    pub fn config(&self) -> &config::Publishing {
        &self.config
    }

    /// The platforms' windows.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The configured platforms, by name.
    pub fn platforms(&self) -> Vec<String> {
        self.schedule.names().map(str::to_owned).collect()
    }

    /// The simulated platform, where that is the connector.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandbox.as_deref()
    }

    /// What the loop sees of the windows: the section `scheduler`.
    pub fn observe_scheduler(&self, now: Timestamp) -> SchedulerSection {
        self.schedule.section(now)
    }

    /// Runs the plane's jobs; give them to a worker of the queue [`QUEUE`].
    pub fn handlers(self: &Arc<Self>) -> Vec<Arc<dyn queue::Handler>> {
        vec![
            Arc::new(publish::PublishHandler::new(self.clone())),
            Arc::new(reconcile::ReconcileHandler::new(self.clone())),
        ]
    }

    fn db(&self) -> &Db {
        &self.db
    }

    fn clock(&self) -> &SharedClock {
        &self.clock
    }

    fn random(&self) -> &Random {
        &self.random
    }

    fn connector(&self) -> &dyn Connector {
        self.connector.as_ref()
    }

    /// How long a platform may take to answer.
    fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.config.call_timeout_ms)
    }
}
