//! A job and its state machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::db::{Json, Timestamp};

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not due yet.
    Waiting,
    /// Ready to run.
    Pending,
    /// Leased by a worker.
    Processing,
    /// Failed, and due for another try at `run_at`.
    Retry,
    /// Done.
    Completed,
    /// Out of tries.
    Failed,
    /// Given up by somebody.
    Cancelled,
}

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its time has come.
    Due,
    /// A worker took it.
    Claimed,
    /// The worker finished it.
    Completed,
    /// The try failed; whether another is left was known before.
    Failed {
        /// Whether the job may be tried again.
        again: bool,
    },
    /// Nobody renewed its lease.
    LeaseLapsed {
        /// Whether the job may be tried again.
        again: bool,
    },
    /// Somebody gave it up.
    Cancelled,
}

/// A pair of status and event that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {status} cannot take {event:?}")]
pub struct IllegalTransition {
    pub status: Status,
    pub event: Event,
}

impl Status {
    /// The next status; the store's SQL follows this table, and a test holds it to that.
    pub fn on(self, event: Event) -> Result<Self, IllegalTransition> {
        match (self, event) {
            (Self::Waiting | Self::Retry, Event::Due) => Ok(Self::Pending),
            (Self::Pending, Event::Claimed) => Ok(Self::Processing),
            (Self::Processing, Event::Completed) => Ok(Self::Completed),
            (Self::Processing, Event::Failed { again: true } | Event::LeaseLapsed { again: true }) => Ok(Self::Retry),
            (Self::Processing, Event::Failed { again: false } | Event::LeaseLapsed { again: false }) => {
                Ok(Self::Failed)
            }
            (Self::Waiting | Self::Pending | Self::Processing | Self::Retry, Event::Cancelled) => Ok(Self::Cancelled),
            (status, event) => Err(IllegalTransition { status, event }),
        }
    }

    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Retry => "retry",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_value(Value::String(text.to_owned())).map_err(|_| format!("`{text}` is no job status"))
    }
}

/// A job to be enqueued.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub kind: &'static str,
    pub queue: &'static str,
    /// A larger priority runs first.
    pub priority: i64,
    pub input: Value,
    /// While a job with this key is live, enqueueing again changes nothing.
    pub idempotency_key: Option<String>,
    /// Not before this time; at once without one.
    pub run_at: Option<Timestamp>,
    pub max_attempts: i64,
}

/// A job as its handler sees it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Job {
    pub id: i64,
    pub kind: String,
    pub queue: String,
    pub input: Json<Value>,
    /// The number of this try, from 1.
    pub attempt: i64,
    pub max_attempts: i64,
    /// Fences answers: only who holds this number may finish the job.
    pub lease: i64,
    pub created_at: Timestamp,
}
