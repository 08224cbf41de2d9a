//! What engines are told and what they say, over bounded channels.

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::model::Run;
use super::run::{End, Running};
use super::store::Hold;
use crate::events::{NewEvent, Severity, types};

/// Messages that each direction of an engine holds. Inbound, the sender waits; outbound, a slow listener loses the
/// oldest and is told how many.
pub const CHANNEL: usize = 100;

/// What an engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineStatus {
    /// Waits for a run.
    Idle,
    /// Has a run, or is about to be given one.
    Running,
    /// Begins nothing until it is resumed.
    Paused,
    /// Its last run broke it; it waits for the next one.
    Error,
    /// Ended.
    Stopped,
}

/// What an engine is told.
pub(super) enum Inbound {
    /// Carry this run out.
    WorkflowRequest(Box<Assignment>),
    /// Somebody asks something of a run.
    Asked { run: i64, what: Asked },
    /// Say how you are.
    HealthCheck,
    /// Begin nothing more.
    Pause,
    /// Go on.
    Resume,
    /// Give the run back and end.
    Stop,
}

/// What somebody asks of a run that is on an engine. The greater one holds: a pause takes no cancel back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    Pause,
    Cancel,
}

/// A run for an engine.
pub(super) struct Assignment {
    pub(super) hold: Hold,
    pub(super) parent: Option<i64>,
    pub(super) depth: i64,
    /// What was asked of the run before an engine had it.
    pub(super) asked: Option<Asked>,
    pub(super) work: Work,
}

/// How the engine comes by the run.
pub(super) enum Work {
    /// Just made: nothing has to be read.
    Fresh(Box<Running>),
    /// Claimed: its steps are read first.
    Claimed(Box<Run>),
}

/// What an engine says.
#[derive(Debug, Clone, PartialEq)]
pub enum Outbound {
    /// A run ended.
    WorkflowResponse { engine: String, run: i64, end: End },
    /// The engine does something else now.
    StatusUpdate { engine: String, status: EngineStatus, run: Option<i64> },
    /// The answer to a health check.
    HealthCheckResponse { engine: String, health: Health },
    /// Something failed that is not the run's own fault.
    Error { engine: String, run: Option<i64>, error: String },
}

impl From<Outbound> for NewEvent {
    /// As subscribers of events hear it. How a run ended is recorded with the run: here its engine says that it is done.
    fn from(message: Outbound) -> Self {
        let of_run = |event: Self, run: Option<i64>| match run {
            Some(run) => event.subject(format!("run:{run}")),
            None => event,
        };
        match message {
            Outbound::WorkflowResponse { engine, run, end } => {
                let event = Self::new(types::STATUS_UPDATE, engine).subject(format!("run:{run}"));
                event.data(json!({ "answered": end.status }))
            }
            Outbound::StatusUpdate { engine, status, run } => {
                of_run(Self::new(types::STATUS_UPDATE, engine).data(json!({ "status": status })), run)
            }
            Outbound::HealthCheckResponse { engine, health } => {
                Self::new(types::HEALTH_CHECK_RESPONSE, engine).data(json!(health))
            }
            Outbound::Error { engine, run, error } => {
                let event = Self::new("engine.error", engine).severity(Severity::Warning);
                of_run(event.data(json!({ "error": error })), run)
            }
        }
    }
}

/// How an engine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub status: EngineStatus,
    /// The run that it has.
    pub run: Option<i64>,
    /// Runs that ended on it since it was registered.
    pub runs_ended: u64,
    /// The last thing that failed and was not a run's own fault.
    pub last_error: Option<String>,
}
