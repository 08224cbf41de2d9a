//! Everything is built, started and stopped here, in order.

use std::net::SocketAddr;

use crate::clock::SharedClock;
use crate::config::Config;
use crate::control::orchestrator::Orchestrator;
use crate::db::Db;
use crate::random::Random;

/// What the service is made of from outside: tests and the demo bring their own clock and chance.
pub struct Parts {
    pub config: Config,
    pub clock: SharedClock,
    pub random: Random,
    /// Whether to listen for HTTP.
    pub listen: bool,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] crate::db::Error),
    #[error("{0}")]
    Refused(String),
}

/// A running service.
pub struct App {
    address: Option<SocketAddr>,
    orchestrator: Orchestrator,
    db: Db,
}

impl App {
    /// Opens and migrates the database, loads the rules, starts loop, queue, upkeep and doors.
    pub async fn start(_parts: Parts) -> Result<Self, StartError> {
        Err(StartError::Refused("not built yet".to_owned()))
    }
    /// Where the doors are, if they listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
    /// The loop.
    pub fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }
    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }
    /// Stops everything in the opposite order; the running action ends first.
    pub async fn stop(self) {}
}
