//! `/api/dlq`: dead letters.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{begin, commit};
use crate::actor::{Caller, Role};
use crate::db::{Timestamp, Topic};
use crate::planes::queue::{
    DeadLetter, DeadLetterFilter, RetryLetter, TaskQueue, dead_letters, purge_dead_letter, purge_dead_letters,
    retry_dead_letter, retry_dead_letters,
};
use crate::problem::Problem;
use crate::web::{Cursor, Limit, Page, Params, Path};

/// Dead letters of one bulk change: one transaction.
const MOST_AT_ONCE: i64 = 1_000;

#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LetterStatus {
    /// Nobody has retried it.
    Open,
    Retried,
}

impl LetterStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Retried => "retried",
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct LetterQuery {
    /// Only dead letters of this task.
    pub task_id: Option<String>,
    /// Only those of this queue.
    pub queue: Option<String>,
    /// Only those of this status.
    #[param(inline)]
    pub status: Option<LetterStatus>,
    #[serde(default)]
    #[param(required = false)]
    pub limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<Cursor<i64>>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct BulkQuery {
    /// Only dead letters of this task.
    pub task_id: Option<String>,
    /// Only those of this queue.
    pub queue: Option<String>,
    /// Only those of this status.
    #[param(inline)]
    pub status: Option<LetterStatus>,
}

impl BulkQuery {
    fn filter(self) -> DeadLetterFilter {
        let status = self.status.map(|status| status.as_str().to_owned());
        DeadLetterFilter { task: self.task_id, queue: self.queue, status, after: None }
    }
}

/// A task run that ran out of tries.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Letter {
    pub id: i64,
    pub run_id: i64,
    pub task_id: String,
    pub queue: String,
    /// `open` or `retried`.
    pub status: String,
    #[schema(value_type = Value)]
    pub input: Value,
    #[schema(value_type = Option<Value>)]
    pub context: Option<Value>,
    pub error: Option<String>,
    /// The last hundred tries, oldest first.
    pub attempts: Vec<LetterAttempt>,
    pub attempt: i64,
    pub max_attempts: i64,
    /// The version of the task's code when it failed.
    pub code_version: Option<i64>,
    pub created_at: Timestamp,
    pub retried_at: Option<Timestamp>,
    pub retried_by: Option<String>,
}

/// A try as the dead letter keeps it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all(serialize = "camelCase"))]
pub struct LetterAttempt {
    pub attempt: i64,
    pub worker: Option<String>,
    pub code_version: Option<i64>,
    #[serde(default, deserialize_with = "readable")]
    pub started_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "readable")]
    pub finished_at: Option<Timestamp>,
    /// `failed`, `lapsed`, `timed_out` or `cancelled`.
    pub outcome: String,
    pub error: Option<String>,
}

/// A time as either database writes it into JSON; other programs write others, which are left out.
fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}

impl From<DeadLetter> for Letter {
    fn from(letter: DeadLetter) -> Self {
        Self {
            id: letter.id,
            run_id: letter.job_id,
            task_id: letter.task_id,
            queue: letter.queue,
            status: letter.status,
            input: letter.input.0,
            context: letter.context.map(|context| context.0),
            error: letter.error,
            attempts: serde_json::from_value(letter.attempts.0).unwrap_or_default(), // written by the trigger alone
            attempt: letter.attempt,
            max_attempts: letter.max_attempts,
            code_version: letter.code_version,
            created_at: letter.created_at,
            retried_at: letter.retried_at,
            retried_by: letter.retried_by,
        }
    }
}

/// What became of a dead letter.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LetterRetried {
    /// The task run, pending again with as many more tries as its task gives now.
    pub run_id: i64,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LettersRetried {
    /// The task runs, pending again; a thousand at most.
    pub run_ids: Vec<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct LettersPurged {
    /// How many were taken away; a thousand at most.
    pub purged: u64,
}

/// Dead letters, newest first.
#[utoipa::path(get, path = "/api/dlq", operation_id = "listDeadLetters", tag = "queue", params(LetterQuery),
    responses((status = 200, description = "A page of dead letters", body = Page<Letter>)))]
pub(super) async fn list(
    State(queue): State<Arc<TaskQueue>>,
    Params(query): Params<LetterQuery>,
) -> Result<Json<Page<Letter>>, Problem> {
    let filter = DeadLetterFilter {
        task: query.task_id,
        queue: query.queue,
        status: query.status.map(|status| status.as_str().to_owned()),
        after: query.cursor.map(|cursor| cursor.0),
    };
    let rows = dead_letters(&queue.db, &filter, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |letter| letter.id).map(Letter::from)))
}

fn missing(id: i64) -> Problem {
    Problem::not_found(format!("There is no dead letter {id}; GET /api/dlq lists them."))
}

/// Gives a dead letter's task run another round of tries; its history stays.
#[utoipa::path(post, path = "/api/dlq/{id}/retry", operation_id = "retryDeadLetter", tag = "queue",
    params(("id" = i64, Path)),
    responses((status = 200, description = "Its task run is pending again", body = LetterRetried),
              (status = 409, description = "It was retried before, or its task run is gone", body = Problem,
               content_type = "application/problem+json")))]
pub(super) async fn retry(
    State(queue): State<Arc<TaskQueue>>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<Json<LetterRetried>, Problem> {
    let mut tx = begin(&queue, &caller).await?;
    let run_id = match retry_dead_letter(&mut tx, id, &caller.actor()).await? {
        RetryLetter::Retried { job_id } => job_id,
        RetryLetter::Unknown => return Err(missing(id)),
        RetryLetter::Already => return Err(Problem::conflict(format!("Dead letter {id} was retried before."))),
        RetryLetter::JobGone => {
            let detail = format!("The task run of dead letter {id} is gone or lives again; enqueue it anew.");
            return Err(Problem::conflict(detail));
        }
    };
    commit(tx, &caller, "queue.dead_letter_retried", format!("dlq:{id}"), json!({ "job": run_id })).await?;
    queue.db.wake(Topic::Jobs).await;
    Ok(Json(LetterRetried { run_id }))
}

/// Retries open dead letters, oldest first, a thousand at most.
#[utoipa::path(post, path = "/api/dlq/retry", operation_id = "retryDeadLetters", tag = "queue", params(BulkQuery),
    responses((status = 200, description = "Their task runs are pending again", body = LettersRetried)))]
pub(super) async fn retry_many(
    State(queue): State<Arc<TaskQueue>>,
    caller: Caller,
    Params(query): Params<BulkQuery>,
) -> Result<Json<LettersRetried>, Problem> {
    let mut tx = begin(&queue, &caller).await?;
    let payload = json!({ "task": query.task_id, "queue": query.queue });
    let run_ids = retry_dead_letters(&mut tx, &query.filter(), MOST_AT_ONCE, &caller.actor()).await?;
    let payload = json!({ "filter": payload, "count": run_ids.len() });
    commit(tx, &caller, "queue.dead_letters_retried", "dlq".to_owned(), payload).await?;
    queue.db.wake(Topic::Jobs).await;
    Ok(Json(LettersRetried { run_ids }))
}

/// Takes dead letters away, oldest first, a thousand at most; their task runs stay failed. Takes an admin.
#[utoipa::path(delete, path = "/api/dlq", operation_id = "purgeDeadLetters", tag = "queue", params(BulkQuery),
    responses((status = 200, description = "They are gone", body = LettersPurged)))]
pub(super) async fn purge(
    State(queue): State<Arc<TaskQueue>>,
    caller: Caller,
    Params(query): Params<BulkQuery>,
) -> Result<Json<LettersPurged>, Problem> {
    caller.require(Role::Admin)?;
    let mut tx = begin(&queue, &caller).await?;
    let payload = json!({ "task": query.task_id, "queue": query.queue, "status": query.status });
    let purged = purge_dead_letters(&mut tx, &query.filter(), MOST_AT_ONCE).await?;
    let payload = json!({ "filter": payload, "count": purged });
    commit(tx, &caller, "queue.dead_letters_purged", "dlq".to_owned(), payload).await?;
    Ok(Json(LettersPurged { purged }))
}

/// Takes one dead letter away. Takes an admin.
#[utoipa::path(delete, path = "/api/dlq/{id}", operation_id = "purgeDeadLetter", tag = "queue",
    params(("id" = i64, Path)), responses((status = 200, description = "It is gone", body = LettersPurged)))]
pub(super) async fn purge_one(
    State(queue): State<Arc<TaskQueue>>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<Json<LettersPurged>, Problem> {
    caller.require(Role::Admin)?;
    let mut tx = begin(&queue, &caller).await?;
    if !purge_dead_letter(&mut tx, id).await? {
        return Err(missing(id));
    }
    commit(tx, &caller, "queue.dead_letters_purged", format!("dlq:{id}"), json!({ "count": 1 })).await?;
    Ok(Json(LettersPurged { purged: 1 }))
}
