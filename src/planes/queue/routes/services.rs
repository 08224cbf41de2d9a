//! `/api/services` and `/api/tasks`: who runs what, and the versions of its code.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::db::Timestamp;
use crate::planes::queue::{CodeChange, Service, Task, TaskQueue, service, services, task, task_history, tasks};
use crate::problem::Problem;
use crate::web::{Cursor, Limit, Page, Params, Path};

/// A program that runs tasks.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    pub id: String,
    pub name: String,
    pub version: Option<String>,
    /// Where its tasks are sent; none where its workers pull.
    pub endpoint: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<Service> for ServiceView {
    fn from(service: Service) -> Self {
        let Service { id, name, version, endpoint, created_at, updated_at } = service;
        Self { id, name, version, endpoint, created_at, updated_at }
    }
}

/// How a task is run. Times are in milliseconds.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskView {
    pub id: String,
    pub service_id: Option<String>,
    pub queue: String,
    pub priority: i64,
    /// SHA-256 in hexadecimal.
    pub code_hash: Option<String>,
    pub code_version: Option<i64>,
    pub heartbeat_interval_ms: Option<i64>,
    pub timeout_ms: Option<i64>,
    pub max_attempts: i64,
    /// `fixed`, `linear` or `exponential`.
    pub retry_backoff: String,
    pub retry_delay_ms: i64,
    pub max_retry_delay_ms: Option<i64>,
    pub concurrency_limit: Option<i64>,
    pub key_concurrency_limit: Option<i64>,
    pub rate_limit: Option<i64>,
    pub key_rate_limit: Option<i64>,
    pub rate_period_ms: i64,
    pub updated_at: Timestamp,
}

impl From<Task> for TaskView {
    fn from(task: Task) -> Self {
        Self {
            id: task.id,
            service_id: task.service_id,
            queue: task.queue,
            priority: task.priority,
            code_hash: task.code_hash,
            code_version: task.code_version,
            heartbeat_interval_ms: task.heartbeat_interval_ms,
            timeout_ms: task.timeout_ms,
            max_attempts: task.max_attempts,
            retry_backoff: task.retry_backoff,
            retry_delay_ms: task.retry_delay_ms,
            max_retry_delay_ms: task.max_retry_delay_ms,
            concurrency_limit: task.concurrency_limit,
            key_concurrency_limit: task.key_concurrency_limit,
            rate_limit: task.rate_limit,
            key_rate_limit: task.key_rate_limit,
            rate_period_ms: task.rate_period_ms,
            updated_at: task.updated_at,
        }
    }
}

/// A version of a task's code.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CodeVersion {
    pub task_id: String,
    /// From 1.
    pub code_version: i64,
    /// SHA-256 in hexadecimal.
    pub code_hash: String,
    pub previous_hash: Option<String>,
    pub service_id: Option<String>,
    pub service_version: Option<String>,
    pub created_at: Timestamp,
}

impl From<CodeChange> for CodeVersion {
    fn from(change: CodeChange) -> Self {
        Self {
            task_id: change.task_id,
            code_version: change.code_version,
            code_hash: change.code_hash,
            previous_hash: change.previous_hash,
            service_id: change.service_id,
            service_version: change.service_version,
            created_at: change.created_at,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    #[serde(default)]
    #[param(required = false)]
    limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor<i64>>,
}

/// The registered services, a thousand at most.
#[utoipa::path(get, path = "/api/services", operation_id = "listServices", tag = "queue",
    responses((status = 200, description = "By id", body = [ServiceView])))]
pub(super) async fn list(State(queue): State<Arc<TaskQueue>>) -> Result<Json<Vec<ServiceView>>, Problem> {
    Ok(Json(services(&queue.db).await?.into_iter().map(ServiceView::from).collect()))
}

/// A service's tasks.
#[utoipa::path(get, path = "/api/services/{id}/tasks", operation_id = "listServiceTasks", tag = "queue",
    params(("id" = String, Path)), responses((status = 200, description = "By id", body = [TaskView])))]
pub(super) async fn tasks_of(
    State(queue): State<Arc<TaskQueue>>,
    Path(id): Path<String>,
) -> Result<Json<Vec<TaskView>>, Problem> {
    let missing = || Problem::not_found(format!("There is no service `{id}`; GET /api/services lists them."));
    service(&queue.db, &id).await?.ok_or_else(missing)?;
    Ok(Json(tasks(&queue.db, Some(&id)).await?.into_iter().map(TaskView::from).collect()))
}

/// The versions of a task's code, newest first.
#[utoipa::path(get, path = "/api/tasks/{id}/history", operation_id = "taskHistory", tag = "queue",
    params(("id" = String, Path), HistoryQuery),
    responses((status = 200, description = "A page of versions", body = Page<CodeVersion>)))]
pub(super) async fn history(
    State(queue): State<Arc<TaskQueue>>,
    Path(id): Path<String>,
    Params(query): Params<HistoryQuery>,
) -> Result<Json<Page<CodeVersion>>, Problem> {
    let missing = || Problem::not_found(format!("No service has registered the task `{id}`."));
    task(&queue.db, &id).await?.ok_or_else(missing)?;
    let after = query.cursor.map(|cursor| cursor.0);
    let rows = task_history(&queue.db, &id, after, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |change| change.code_version).map(CodeVersion::from)))
}
