//! `/api/queue/status`, `/api/queue/items` and `/api/task-runs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{begin, commit};
use crate::actor::Caller;
use crate::db::{Timestamp, Topic};
use crate::planes::queue::{
    Attempt, Cancelled, JobFilter, JobRecord, Status, TaskQueue, attempts, cancel, counts, get, list, why_waiting,
};
use crate::problem::Problem;
use crate::web::{Cursor, Limit, Page, Params, Path};

/// How many task runs are where.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Ready to run.
    pub pending: i64,
    pub running: i64,
    /// Not due yet, or waiting for another try.
    pub waiting: i64,
    pub completed: i64,
    /// Failed, and not among the dead letters.
    pub failed: i64,
    /// Dead letters that nobody has retried.
    pub dlq: i64,
    pub oldest_pending: Option<Timestamp>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct ItemQuery {
    /// Only task runs of this status.
    #[param(inline)]
    pub status: Option<Status>,
    /// Only runs of this task.
    pub task_id: Option<String>,
    /// Only those of this queue.
    pub queue: Option<String>,
    #[serde(default)]
    #[param(required = false)]
    pub limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<Cursor<i64>>,
}

/// A task run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskRun {
    pub run_id: i64,
    pub task_id: String,
    pub queue: String,
    pub status: Status,
    pub priority: i64,
    /// Where it is large: `{"$storage": {backend, key, size, sha256}}`.
    #[schema(value_type = Value)]
    pub input: Value,
    #[schema(value_type = Option<Value>)]
    pub context: Option<Value>,
    /// Where it is large: `{"$storage": {backend, key, size, sha256}}`.
    #[schema(value_type = Option<Value>)]
    pub result: Option<Value>,
    pub error: Option<String>,
    pub idempotency_key: Option<String>,
    pub concurrency_key: Option<String>,
    pub run_at: Option<Timestamp>,
    pub attempt: i64,
    pub max_attempts: i64,
    pub lease: i64,
    pub lease_expires_at: Option<Timestamp>,
    pub timeout_ms: Option<i64>,
    pub worker: Option<String>,
    pub code_version: Option<i64>,
    /// Percent.
    pub progress: Option<f64>,
    pub progress_message: Option<String>,
    pub heartbeat_at: Option<Timestamp>,
    pub cancel_requested_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl From<JobRecord> for TaskRun {
    fn from(job: JobRecord) -> Self {
        Self {
            run_id: job.id,
            task_id: job.kind,
            queue: job.queue,
            status: job.status,
            priority: job.priority,
            input: job.input.0,
            context: job.context.map(|context| context.0),
            result: job.result.map(|result| result.0),
            error: job.error,
            idempotency_key: job.idempotency_key,
            concurrency_key: job.concurrency_key,
            run_at: job.run_at,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            lease: job.lease,
            lease_expires_at: job.lease_expires_at,
            timeout_ms: job.timeout_ms,
            worker: job.worker,
            code_version: job.code_version,
            progress: job.progress,
            progress_message: job.progress_message,
            heartbeat_at: job.heartbeat_at,
            cancel_requested_at: job.cancel_requested_at,
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }
}

/// One try.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskAttempt {
    /// From 1.
    pub attempt: i64,
    pub lease: i64,
    pub worker: Option<String>,
    pub code_version: Option<i64>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub duration_ms: Option<i64>,
    /// `running`, `completed`, `failed`, `lapsed`, `timed_out` or `cancelled`.
    pub outcome: String,
    pub error: Option<String>,
}

impl From<Attempt> for TaskAttempt {
    fn from(attempt: Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            lease: attempt.lease,
            worker: attempt.worker,
            code_version: attempt.code_version,
            started_at: attempt.started_at,
            finished_at: attempt.finished_at,
            duration_ms: attempt.duration_ms,
            outcome: attempt.outcome,
            error: attempt.error,
        }
    }
}

/// A task run with its tries.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskRunDetail {
    #[serde(flatten)]
    pub run: TaskRun,
    /// Why it does not run yet, in a sentence.
    pub waits_because: Option<String>,
    /// Oldest first, a thousand at most.
    pub attempts: Vec<TaskAttempt>,
}

/// How many task runs are where.
#[utoipa::path(get, path = "/api/queue/status", operation_id = "queueStatus", tag = "queue",
    responses((status = 200, description = "The counts", body = QueueStatus)))]
pub(super) async fn status(State(queue): State<Arc<TaskQueue>>) -> Result<Json<QueueStatus>, Problem> {
    let counts = counts(&queue.db).await?;
    Ok(Json(QueueStatus {
        pending: counts.pending,
        running: counts.processing,
        waiting: counts.waiting + counts.retry,
        completed: counts.completed,
        failed: (counts.failed - counts.dead_letters).max(0), // a purged letter's job is failed, and no letter
        dlq: counts.dead_letters,
        oldest_pending: counts.oldest_pending,
    }))
}

/// Task runs, newest first.
#[utoipa::path(get, path = "/api/queue/items", operation_id = "queueItems", tag = "queue", params(ItemQuery),
    responses((status = 200, description = "A page of task runs", body = Page<TaskRun>)))]
pub(super) async fn items(
    State(queue): State<Arc<TaskQueue>>,
    Params(query): Params<ItemQuery>,
) -> Result<Json<Page<TaskRun>>, Problem> {
    let filter = JobFilter {
        status: query.status,
        kind: query.task_id,
        queue: query.queue,
        after: query.cursor.map(|cursor| cursor.0),
    };
    let rows = list(&queue.db, &filter, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |job| job.id).map(TaskRun::from)))
}

pub(super) fn missing(id: i64) -> Problem {
    Problem::not_found(format!("There is no task run {id}; GET /api/queue/items lists them."))
}

/// One task run: its state, its tries, and why it waits.
#[utoipa::path(get, path = "/api/task-runs/{id}", operation_id = "getTaskRun", tag = "queue",
    params(("id" = i64, Path)), responses((status = 200, description = "The task run", body = TaskRunDetail)))]
pub(super) async fn get_one(
    State(queue): State<Arc<TaskQueue>>,
    Path(id): Path<i64>,
) -> Result<Json<TaskRunDetail>, Problem> {
    let job = get(&queue.db, id).await?.ok_or_else(|| missing(id))?;
    let waits_because = why_waiting(&queue.db, &job).await?;
    let attempts = attempts(&queue.db, id).await?.into_iter().map(TaskAttempt::from).collect();
    Ok(Json(TaskRunDetail { run: job.into(), waits_because, attempts }))
}

/// Gives a task run up: at once where it has not begun, else its worker hears of it with its next sign of life.
#[utoipa::path(post, path = "/api/task-runs/{id}/cancel", operation_id = "cancelTaskRun", tag = "queue",
    params(("id" = i64, Path)),
    responses((status = 200, description = "It is cancelled, or its worker is told", body = TaskRun),
              (status = 409, description = "It has ended", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn cancel_one(
    State(queue): State<Arc<TaskQueue>>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<Json<TaskRun>, Problem> {
    let mut tx = begin(&queue, &caller).await?;
    let cancelled = cancel(&mut tx, id).await?;
    if cancelled == Cancelled::NotLive {
        let job = get(&queue.db, id).await?.ok_or_else(|| missing(id))?;
        return Err(Problem::conflict(format!("Task run {id} is {} already.", job.status)));
    }
    let payload = json!({ "running": cancelled == Cancelled::Requested });
    commit(tx, &caller, "queue.task_run_cancelled", format!("job:{id}"), payload).await?;
    queue.db.wake(Topic::Jobs).await;
    queue.db.wake(Topic::JobsEnded).await;
    let job = get(&queue.db, id).await?.ok_or_else(|| missing(id))?;
    Ok(Json(job.into()))
}
