//! The loop's public face: what the doors, the command line and the demo hold.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::snapshot::Snapshot;
use crate::actor::Actor;
use crate::db::{self, Timestamp};

/// Why the loop could not do what a door asked.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] db::Error),
    /// The cycle was begun and failed; the ledger has the same words.
    #[error("the cycle failed: {0}")]
    Cycle(String),
    /// No instance took the request in time.
    #[error("no instance ran the cycle within {0} s; is a server running on this database?")]
    TimedOut(u64),
}

/// What one cycle saw, decided and did: the `result` of `POST /orchestrator/run-once`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CycleReport {
    /// The row of `cycles`.
    pub cycle_id: i64,
    /// What was seen.
    pub snapshot: Snapshot,
    /// Every proposal's fate, and the plan.
    #[schema(value_type = Object)]
    pub decision: Value,
    /// What was done: totals and one result an action.
    #[schema(value_type = Object)]
    pub execution: Value,
    /// When it began.
    pub timestamp: Timestamp,
}

/// `GET /orchestrator/status`, beside the seed's `status` and `running`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LoopStatus {
    /// Switched on, with a live leader on whichever instance.
    pub running: bool,
    /// The stored switch.
    pub enabled: bool,
    /// Seconds between cycles.
    pub interval_seconds: u64,
    /// The leader's lease number; 0 before the first leader.
    pub term: i64,
    /// The instance that holds the lease, if it is alive.
    pub leader: Option<String>,
    /// This instance.
    pub instance: String,
    /// The last finished cycle.
    pub last_cycle: Option<LastCycle>,
    /// When the next cycle is due, if the loop is running.
    pub next_due: Option<Timestamp>,
    /// The rules in force on this instance.
    pub rules: RulesStatus,
}

/// The last finished cycle in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct LastCycle {
    pub id: i64,
    pub status: String,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub health_score: Option<i64>,
    pub health_status: String,
    pub actions: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub error: Option<String>,
}

/// The rules in force, and what is wrong with newer ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RulesStatus {
    /// Hash of the set in force.
    pub hash: String,
    /// How many rules it has.
    pub count: usize,
    /// The folder; `null` for the built-in rules.
    pub folder: Option<String>,
    /// Hash of a newer set that was refused.
    pub rejected_hash: Option<String>,
    /// Why it was refused.
    pub rejected_because: Vec<String>,
}

/// The loop's handle; cheap to clone.
#[derive(Clone)]
pub struct Orchestrator {}

impl Orchestrator {
    /// Looks at the platform without deciding anything.
    pub async fn snapshot(&self) -> Result<Snapshot, LoopError> {
        Err(LoopError::TimedOut(0))
    }
    /// Runs one cycle now, under the leader's term and never beside another, whether the loop is on or off.
    pub async fn run_once(&self, _actor: &Actor) -> Result<CycleReport, LoopError> {
        Err(LoopError::TimedOut(0))
    }
    /// Switches the loop on, for every instance and across restarts.
    pub async fn enable(&self, _actor: &Actor) -> Result<(), LoopError> {
        Err(LoopError::TimedOut(0))
    }
    /// Switches the loop off; a running cycle ends first.
    pub async fn disable(&self, _actor: &Actor) -> Result<(), LoopError> {
        Err(LoopError::TimedOut(0))
    }
    /// Whether and where it runs.
    pub async fn status(&self) -> Result<LoopStatus, LoopError> {
        Err(LoopError::TimedOut(0))
    }
}
