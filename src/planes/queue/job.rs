//! A job: as it is enqueued, as its handler sees it, and as it is kept.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::model::Status;
use crate::db::{Json, Timestamp};

/// What idempotency keys of the service's own begin with; nobody else's may.
pub(super) const OWN_KEYS: &str = "showrunner:";

/// A key of the service's own: no client's key is the same.
pub fn own_key(name: impl Display) -> String {
    format!("{OWN_KEYS}{name}")
}

/// A job to be enqueued. What is `None` comes from the kind's row in `tasks`, else from the queue's defaults.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// What is to be done: the task's id.
    pub kind: Cow<'static, str>,
    /// `default` where neither job nor task names one.
    pub queue: Option<Cow<'static, str>>,
    /// −1000 to 1000; a larger one runs first.
    pub priority: Option<i64>,
    pub input: Value,
    /// Where the input lies if it is too large for a row.
    pub input_ref: Option<String>,
    /// What belongs to the job and not to its input; kept with a dead letter.
    pub context: Option<Value>,
    /// Enqueueing again under the same key gives the same job back.
    pub idempotency_key: Option<String>,
    /// How long the key holds, from now on and also after the job's end; without it, while the job is live.
    pub idempotency_ttl: Option<Duration>,
    /// Not before this time; at once without one.
    pub run_at: Option<Timestamp>,
    pub max_attempts: Option<i64>,
    /// How long one try may take.
    pub timeout: Option<Duration>,
    /// Jobs of a kind with the same key run one at a time, or as many as the task allows.
    pub concurrency_key: Option<String>,
    /// Whether running out of tries leaves a dead letter.
    pub dead_letter: bool,
    /// Whether somebody waits for its end: `Topic::JobsEnded` is hinted.
    pub awaited: bool,
}

impl NewJob {
    /// A job with defaults for all but its kind.
    pub fn new(kind: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind: kind.into(),
            queue: None,
            priority: None,
            input: json!({}),
            input_ref: None,
            context: None,
            idempotency_key: None,
            idempotency_ttl: None,
            run_at: None,
            max_attempts: None,
            timeout: None,
            concurrency_key: None,
            dead_letter: true,
            awaited: false,
        }
    }
}

/// What enqueueing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The job, new or already there under the same key.
    pub id: i64,
    /// Whether it is new.
    pub created: bool,
}

/// A job as its handler sees it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Job {
    pub id: i64,
    pub kind: String,
    pub queue: String,
    pub input: Json<Value>,
    pub input_ref: Option<String>,
    pub context: Option<Json<Value>>,
    /// The number of this try, from 1.
    pub attempt: i64,
    pub max_attempts: i64,
    /// Fences answers: only who holds this number may finish the job.
    pub lease: i64,
    /// How long this try may take.
    pub timeout_ms: Option<i64>,
    /// The version of the task's code when it was claimed.
    pub code_version: Option<i64>,
    pub awaited: bool,
    pub created_at: Timestamp,
}

/// Who holds a job: its id, and the lease's number that fences answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Hold {
    pub id: i64,
    pub lease: i64,
}

impl From<&Job> for Hold {
    fn from(job: &Job) -> Self {
        Self { id: job.id, lease: job.lease }
    }
}

/// A job as it is kept: its row.
#[derive(Debug, Clone, Serialize, ToSchema, sqlx::FromRow)]
pub struct JobRecord {
    pub id: i64,
    pub kind: String,
    pub queue: String,
    pub priority: i64,
    #[sqlx(try_from = "String")]
    pub status: Status,
    #[schema(value_type = Value)]
    pub input: Json<Value>,
    pub input_ref: Option<String>,
    #[schema(value_type = Option<Value>)]
    pub context: Option<Json<Value>>,
    #[schema(value_type = Option<Value>)]
    pub result: Option<Json<Value>>,
    pub result_ref: Option<String>,
    pub idempotency_key: Option<String>,
    pub idempotency_until: Option<Timestamp>,
    pub concurrency_key: Option<String>,
    pub run_at: Option<Timestamp>,
    pub attempt: i64,
    pub max_attempts: i64,
    pub lease: i64,
    pub lease_expires_at: Option<Timestamp>,
    pub timeout_ms: Option<i64>,
    pub deadline_at: Option<Timestamp>,
    pub worker: Option<String>,
    pub code_version: Option<i64>,
    /// Percent.
    pub progress: Option<f64>,
    pub progress_message: Option<String>,
    pub heartbeat_at: Option<Timestamp>,
    pub cancel_requested_at: Option<Timestamp>,
    /// How the last try ended: failed, lapsed, timed_out, cancelled.
    pub outcome: Option<String>,
    pub error: Option<String>,
    pub dead_letter: bool,
    pub awaited: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

/// One try of a job.
#[derive(Debug, Clone, Serialize, ToSchema, sqlx::FromRow)]
pub struct Attempt {
    pub job_id: i64,
    /// From 1.
    pub attempt: i64,
    pub lease: i64,
    pub worker: Option<String>,
    pub code_version: Option<i64>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub duration_ms: Option<i64>,
    /// running, completed, failed, lapsed, timed_out, cancelled.
    pub outcome: String,
    pub error: Option<String>,
}
