//! The state machines of a run and of a step, and the rows as clients see them.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::db::{Json, Timestamp};

/// Where a run is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Waits for an idle engine.
    Pending,
    /// On an engine, under a lease.
    Running,
    /// On no engine: it waits for a time, a task or another run.
    Waiting,
    /// Held by somebody.
    Paused,
    /// Done.
    Completed,
    /// A step failed and the run with it.
    Failed,
    /// Given up by somebody.
    Cancelled,
}

/// What can happen to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEvent {
    /// An engine took it.
    Claimed,
    /// Its engine's lease lapsed or was given back.
    Released,
    /// Nothing is left to do but to wait.
    Parked,
    /// What it waited for has come.
    Woken,
    /// Somebody holds it.
    Paused,
    /// Somebody lets it go on.
    Resumed,
    /// Every step is done.
    Completed,
    /// A step failed.
    Failed,
    /// Somebody gave it up.
    Cancelled,
    /// Somebody wants it tried again from the step that failed.
    Retried,
}

impl std::fmt::Display for RunEvent {
    /// Behind "a run cannot".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Claimed => "be taken by an engine",
            Self::Released => "be given back",
            Self::Parked => "wait",
            Self::Woken => "go on",
            Self::Paused => "be paused",
            Self::Resumed => "be resumed",
            Self::Completed => "complete",
            Self::Failed => "fail",
            Self::Cancelled => "be cancelled",
            Self::Retried => "be tried again",
        })
    }
}

/// A pair of status and event that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run that is {status} cannot {event}")]
pub struct IllegalTransition {
    pub status: RunStatus,
    pub event: RunEvent,
}

impl RunStatus {
    /// The next status; the store's SQL follows this table.
    pub fn on(self, event: RunEvent) -> Result<Self, IllegalTransition> {
        use RunEvent as E;
        match (self, event) {
            (Self::Pending | Self::Waiting | Self::Running, E::Claimed) => Ok(Self::Running),
            (Self::Running, E::Released) => Ok(Self::Pending),
            (Self::Running, E::Parked) => Ok(Self::Waiting),
            (Self::Waiting, E::Woken) => Ok(Self::Pending),
            (Self::Pending | Self::Running | Self::Waiting, E::Paused) => Ok(Self::Paused),
            (Self::Paused, E::Resumed) => Ok(Self::Pending),
            (Self::Running, E::Completed) => Ok(Self::Completed),
            (Self::Running, E::Failed) => Ok(Self::Failed),
            (Self::Pending | Self::Running | Self::Waiting | Self::Paused, E::Cancelled) => Ok(Self::Cancelled),
            (Self::Failed | Self::Cancelled, E::Retried) => Ok(Self::Pending),
            (status, event) => Err(IllegalTransition { status, event }),
        }
    }

    /// Whether nothing more happens by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// From SQL; the column's CHECK lets nothing else in.
    pub fn read(text: &str) -> Self {
        let all = [Self::Running, Self::Waiting, Self::Paused, Self::Completed, Self::Failed, Self::Cancelled];
        all.into_iter().find(|status| status.as_str() == text).unwrap_or(Self::Pending)
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where one instance of a step is. A step that has not begun has no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// A call is out; it was recorded before.
    Running,
    /// Waits for a time, a task or another run.
    Waiting,
    /// Done.
    Completed,
    /// Out of tries.
    Failed,
    /// Its condition was false.
    Skipped,
    /// Ended with its run.
    Cancelled,
}

/// What can happen to an instance of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepEvent {
    /// A call goes out.
    Called,
    /// A pause, a task or another run was begun.
    Deferred,
    /// The result is there.
    Succeeded,
    /// The try failed.
    Failed {
        /// Whether another try is left.
        again: bool,
    },
    /// The condition is false.
    Skipped,
    /// The run was given up.
    Cancelled,
}

impl StepStatus {
    /// The next status; `before` is none for a step that has not begun. An illegal pair is none.
    pub fn on(before: Option<Self>, event: StepEvent) -> Option<Self> {
        use StepEvent as E;
        match (before, event) {
            (None | Some(Self::Running | Self::Waiting), E::Called) => Some(Self::Running),
            (None | Some(Self::Waiting), E::Deferred) => Some(Self::Waiting),
            (None | Some(Self::Running | Self::Waiting), E::Succeeded) => Some(Self::Completed),
            (None | Some(Self::Running | Self::Waiting), E::Failed { again: true }) => Some(Self::Waiting),
            (None | Some(Self::Running | Self::Waiting), E::Failed { again: false }) => Some(Self::Failed),
            (None, E::Skipped) => Some(Self::Skipped),
            (Some(Self::Running | Self::Waiting), E::Cancelled) => Some(Self::Cancelled),
            _ => None,
        }
    }

    /// Whether it is over.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Running | Self::Waiting)
    }

    /// As in SQL, JSON and expressions.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// From SQL; the column's CHECK lets nothing else in.
    pub fn read(text: &str) -> Self {
        let all = [Self::Waiting, Self::Completed, Self::Failed, Self::Skipped, Self::Cancelled];
        all.into_iter().find(|status| status.as_str() == text).unwrap_or(Self::Running)
    }
}

/// A run as its row.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Run {
    pub id: i64,
    pub pipeline_id: String,
    pub version: i64,
    pub status: String,
    pub trigger_kind: String,
    pub trigger_id: Option<String>,
    pub parent_run_id: Option<i64>,
    /// How many runs it stands below.
    pub depth: i64,
    pub input: Json<Value>,
    pub output: Option<Json<Value>>,
    pub error: Option<String>,
    pub retries: i64,
    pub lease: i64,
    pub engine: Option<String>,
    pub wake_at: Option<Timestamp>,
    pub requested: Option<String>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

/// One instance of a step as its row: `item` counts a fan-out's instances from 0, and is -1 for the step itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx::FromRow)]
pub struct StepRow {
    pub step: String,
    pub item: i64,
    pub status: String,
    pub attempt: i64,
    pub result: Option<Json<Value>>,
    pub error: Option<String>,
    pub wake_at: Option<Timestamp>,
    pub job_id: Option<i64>,
    pub child_run_id: Option<i64>,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_over_only_takes_a_retry() {
        use RunEvent as E;
        let events = [
            E::Claimed,
            E::Released,
            E::Parked,
            E::Woken,
            E::Paused,
            E::Resumed,
            E::Completed,
            E::Failed,
            E::Cancelled,
        ];
        for status in [RunStatus::Completed, RunStatus::Failed, RunStatus::Cancelled] {
            assert!(events.iter().all(|event| status.on(*event).is_err()), "{status}");
            assert_eq!(status.on(E::Retried).is_ok(), status != RunStatus::Completed);
        }
        for status in [RunStatus::Pending, RunStatus::Running, RunStatus::Waiting, RunStatus::Paused] {
            assert_eq!(status.on(E::Cancelled), Ok(RunStatus::Cancelled));
            assert_eq!(RunStatus::read(status.as_str()), status);
        }
        assert!(RunStatus::Paused.on(E::Claimed).is_err());
    }

    #[test]
    fn a_step_that_is_over_stays_so() {
        for status in [StepStatus::Completed, StepStatus::Failed, StepStatus::Skipped, StepStatus::Cancelled] {
            assert_eq!(StepStatus::read(status.as_str()), status);
            for event in [StepEvent::Called, StepEvent::Deferred, StepEvent::Succeeded, StepEvent::Cancelled] {
                assert_eq!(StepStatus::on(Some(status), event), None);
            }
        }
        assert_eq!(StepStatus::on(None, StepEvent::Failed { again: true }), Some(StepStatus::Waiting));
    }
}
