//! `/v1/publish-logs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::PRIORITIES;
use crate::actor::Caller;
use crate::db::{Timestamp, Topic};
use crate::ledger::{Change, Stop};
use crate::planes::publishing::act;
use crate::planes::publishing::{PublishLog, Publishing, Status, dispatch, store};
use crate::problem::Problem;
use crate::web::{Body, Checks, Cursor, IdempotencyKey, Limit, Page, Params, Path};

/// Retries of one publication, as the table checks them.
const RETRIES: (i64, i64) = (0, 100);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Only publications of this status.
    #[param(inline)]
    pub status: Option<Status>,
    /// Only publications on this platform.
    pub platform: Option<String>,
    /// Only publications of this clip.
    pub clip_id: Option<i64>,
    /// Only publications of this campaign.
    pub campaign_id: Option<i64>,
    #[serde(default)]
    #[param(required = false)]
    pub limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<Cursor<i64>>,
}

/// A publication to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPublishLog {
    pub clip_id: i64,
    /// One of the configured platforms.
    pub platform: String,
    /// When it goes out; at once without it. Windows, spacing and quota are the operator's own affair here.
    pub scheduled_at: Option<Timestamp>,
    /// A larger one goes out first, -1000 to 1000.
    #[serde(default)]
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: i64,
    /// 0 to 100; 3 unless given.
    #[serde(default = "three")]
    #[schema(minimum = 0, maximum = 100)]
    pub max_retries: i64,
}

fn three() -> i64 {
    act::MAX_RETRIES
}

/// What is to change of a publication; what is left out stays.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishLogPatch {
    /// Only `cancelled`, and then nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Moves one that is `scheduled` or `retry`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 100)]
    pub max_retries: Option<i64>,
}

fn check(scheduled_at: Option<Timestamp>, priority: Option<i64>, max_retries: Option<i64>) -> Result<(), Problem> {
    let mut checks = Checks::default();
    checks.time("scheduled_at", scheduled_at);
    checks.range("priority", priority, PRIORITIES);
    checks.range("max_retries", max_retries, RETRIES);
    checks.done()
}

/// Publications, newest first.
#[utoipa::path(get, path = "/v1/publish-logs", operation_id = "listPublishLogs", tag = "publishing", params(LogQuery),
    responses((status = 200, description = "A page of publications", body = Page<PublishLog>)))]
pub(super) async fn list(
    State(publishing): State<Arc<Publishing>>,
    Params(query): Params<LogQuery>,
) -> Result<Json<Page<PublishLog>>, Problem> {
    let limit = query.limit;
    let rows = store::list_logs(publishing.db(), query).await?;
    Ok(Json(Page::cut(rows, limit, |log| log.id)))
}

/// One publication.
#[utoipa::path(get, path = "/v1/publish-logs/{id}", operation_id = "getPublishLog", tag = "publishing",
    params(("id" = i64, Path)), responses((status = 200, description = "The publication", body = PublishLog)))]
pub(super) async fn get(
    State(publishing): State<Arc<Publishing>>,
    Path(id): Path<i64>,
) -> Result<Json<PublishLog>, Problem> {
    store::get_log(publishing.db(), id).await?.map(Json).ok_or_else(|| missing(id))
}

fn missing(id: i64) -> Problem {
    Problem::not_found(format!("There is no publication {id}; GET /v1/publish-logs lists them."))
}

/// Makes a publication: planned for `scheduled_at`, or to go out at once. The campaign must be active and able to pay.
#[utoipa::path(post, path = "/v1/publish-logs", operation_id = "createPublishLog", tag = "publishing",
    params(("Idempotency-Key" = Option<IdempotencyKey>, Header)), request_body = NewPublishLog,
    responses((status = 201, description = "Made", body = PublishLog),
              (status = 409, description = "The clip is there already, archived, or its campaign does not allow it",
               body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(publishing): State<Arc<Publishing>>,
    caller: Caller,
    key: IdempotencyKey,
    Body(new): Body<NewPublishLog>,
) -> Result<Response, Stop> {
    check(new.scheduled_at, Some(new.priority), Some(new.max_retries))?;
    let Some(cost_cents) = publishing.schedule().get(&new.platform).map(|schedule| schedule.cost_cents) else {
        let known = publishing.platforms().join(", ");
        return Err(Problem::refused("platform", format!("is not configured; there are {known}")).into());
    };
    let mut change = Change::begin(publishing.db(), caller, "POST /v1/publish-logs", key, &new).await?;
    if store::lock_clip(&mut change.tx, new.clip_id).await?.is_none() {
        return Err(Problem::refused("clip_id", format!("there is no clip {}", new.clip_id)).into());
    }
    let made = act::publish_by_hand(&mut change.tx, &publishing, &new, cost_cents).await?;
    let (subject, location) = (made.subject(), format!("/v1/publish-logs/{}", made.id));
    let event = "publishing.publication_created";
    let response = change.commit_made(event, subject, json!(new), location, &made).await?;
    publishing.db().wake(Topic::Publications).await;
    Ok(response)
}

/// Changes a publication that is not out: gives it up, moves it, or sets its priority and retries.
#[utoipa::path(patch, path = "/v1/publish-logs/{id}", operation_id = "changePublishLog", tag = "publishing",
    params(("id" = i64, Path), ("Idempotency-Key" = Option<IdempotencyKey>, Header)), request_body = PublishLogPatch,
    responses((status = 200, description = "Changed", body = PublishLog),
              (status = 409, description = "Its status does not allow it", body = Problem,
               content_type = "application/problem+json")))]
pub(super) async fn change(
    State(publishing): State<Arc<Publishing>>,
    caller: Caller,
    Path(id): Path<i64>,
    key: IdempotencyKey,
    Body(patch): Body<PublishLogPatch>,
) -> Result<Response, Stop> {
    check(patch.scheduled_at, patch.priority, patch.max_retries)?;
    let edits = patch.scheduled_at.is_some() || patch.priority.is_some() || patch.max_retries.is_some();
    if patch.status.is_some_and(|status| status != Status::Cancelled || edits) {
        return Err(Problem::refused(
            "status",
            "takes `cancelled` alone; every other status follows from what happens",
        )
        .into());
    }
    let mut change =
        Change::begin(publishing.db(), caller, &format!("PATCH /v1/publish-logs/{id}"), key, &patch).await?;
    let (before, _) = store::lock_log_with_job(&mut change.tx, id).await?.ok_or_else(|| missing(id))?;
    let event = if patch.status.is_some() {
        act::cancel(&mut change.tx, id).await?;
        "publishing.publication_cancelled"
    } else {
        act::may_edit(&before, patch.scheduled_at.is_some())?;
        "publishing.publication_changed"
    };
    let after = store::edit_log(&mut change.tx, id, patch.scheduled_at, patch.priority, patch.max_retries).await?;
    if let (Status::Pending, Some(priority), Some(job_id)) = (after.status, patch.priority, after.job_id) {
        store::raise_job_priority(&mut change.tx, job_id, dispatch::job_priority(priority)).await?;
    }
    let payload = json!({ "from": before.status, "was_scheduled_at": before.scheduled_at, "change": patch });
    let response = change.commit(event, before.subject(), payload, StatusCode::OK, &after).await?;
    publishing.db().wake(Topic::Publications).await;
    Ok(response)
}
