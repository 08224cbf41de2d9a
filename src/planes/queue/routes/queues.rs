//! `/api/queues`: pausing queues, and their limits.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{LONGEST_NAME, begin, commit};
use crate::actor::Caller;
use crate::db::{Timestamp, Topic};
use crate::planes::queue::{QueueState, TaskQueue, limit_queue, pause, queues, resume};
use crate::problem::Problem;
use crate::web::{Body, Checks, Path};

/// A queue that was paused or limited; one that is not listed runs without limits.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = QueueSettings)]
pub struct QueueView {
    pub name: String,
    pub paused: bool,
    pub paused_by: Option<String>,
    pub paused_at: Option<Timestamp>,
    /// Task runs at once.
    pub concurrency_limit: Option<i64>,
    /// Starts in `ratePeriodMs`.
    pub rate_limit: Option<i64>,
    pub rate_period_ms: i64,
}

impl From<QueueState> for QueueView {
    fn from(queue: QueueState) -> Self {
        let QueueState { name, paused, paused_by, paused_at, concurrency_limit, rate_limit, rate_period_ms } = queue;
        Self { name, paused, paused_by, paused_at, concurrency_limit, rate_limit, rate_period_ms }
    }
}

/// A queue's limits; what is left out is not limited.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct QueueLimits {
    /// Task runs at once; 0 lets none begin.
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub concurrency_limit: Option<i64>,
    /// Starts in `ratePeriodMs`.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub rate_limit: Option<i64>,
    /// A second unless given.
    #[schema(minimum = 1, maximum = 86_400_000)]
    pub rate_period_ms: Option<i64>,
}

/// The queues that were paused or limited.
#[utoipa::path(get, path = "/api/queues", operation_id = "listQueues", tag = "queue",
    responses((status = 200, description = "By name", body = [QueueView])))]
pub(super) async fn list(State(queue): State<Arc<TaskQueue>>) -> Result<Json<Vec<QueueView>>, Problem> {
    Ok(Json(queues(&queue.db).await?.into_iter().map(QueueView::from).collect()))
}

fn check_name(name: &str) -> Result<(), Problem> {
    if name.chars().count() <= LONGEST_NAME && !name.trim().is_empty() {
        return Ok(());
    }
    Err(Problem::not_found(format!("A queue's name has 1 to {LONGEST_NAME} characters.")))
}

async fn shown(queue: &TaskQueue, name: String) -> Result<Json<QueueView>, Problem> {
    let found = queues(&queue.db).await?.into_iter().find(|queue| queue.name == name);
    let unlimited = QueueView {
        name,
        paused: false,
        paused_by: None,
        paused_at: None,
        concurrency_limit: None,
        rate_limit: None,
        rate_period_ms: 1_000,
    };
    Ok(Json(found.map_or(unlimited, QueueView::from)))
}

/// Stops handing out a queue's task runs; running ones go on.
#[utoipa::path(post, path = "/api/queues/{id}/pause", operation_id = "pauseQueue", tag = "queue",
    params(("id" = String, Path, description = "The queue's name")),
    responses((status = 200, description = "It is paused", body = QueueView)))]
pub(super) async fn pause_one(
    State(queue): State<Arc<TaskQueue>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<QueueView>, Problem> {
    check_name(&name)?;
    let mut tx = begin(&queue, &caller).await?;
    if pause(&mut tx, &name, &caller.actor()).await? {
        commit(tx, &caller, "queue.paused", format!("queue:{name}"), json!({})).await?;
    }
    shown(&queue, name).await
}

/// Hands a queue's task runs out again.
#[utoipa::path(post, path = "/api/queues/{id}/resume", operation_id = "resumeQueue", tag = "queue",
    params(("id" = String, Path, description = "The queue's name")),
    responses((status = 200, description = "It runs", body = QueueView)))]
pub(super) async fn resume_one(
    State(queue): State<Arc<TaskQueue>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<QueueView>, Problem> {
    check_name(&name)?;
    let mut tx = begin(&queue, &caller).await?;
    if resume(&mut tx, &name).await? {
        commit(tx, &caller, "queue.resumed", format!("queue:{name}"), json!({})).await?;
        queue.db.wake(Topic::Jobs).await;
    }
    shown(&queue, name).await
}

/// Limits a queue.
#[utoipa::path(put, path = "/api/queues/{id}/limits", operation_id = "limitQueue", tag = "queue",
    params(("id" = String, Path, description = "The queue's name")), request_body = QueueLimits,
    responses((status = 200, description = "It is limited so", body = QueueView)))]
pub(super) async fn limits(
    State(queue): State<Arc<TaskQueue>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(limits): Body<QueueLimits>,
) -> Result<Json<QueueView>, Problem> {
    check_name(&name)?;
    let mut checks = Checks::default();
    checks.range("concurrencyLimit", limits.concurrency_limit, (0, 1_000_000));
    checks.range("rateLimit", limits.rate_limit, (1, 1_000_000));
    checks.range("ratePeriodMs", limits.rate_period_ms, (1, 86_400_000));
    checks.done()?;
    let period = Duration::from_millis(u64::try_from(limits.rate_period_ms.unwrap_or(1_000)).unwrap_or(1_000));
    let mut tx = begin(&queue, &caller).await?;
    let rate = limits.rate_limit.map(|starts| (starts, period));
    limit_queue(&mut tx, &name, limits.concurrency_limit, rate).await?;
    commit(tx, &caller, "queue.limited", format!("queue:{name}"), json!(limits)).await?;
    queue.db.wake(Topic::Jobs).await;
    shown(&queue, name).await
}
