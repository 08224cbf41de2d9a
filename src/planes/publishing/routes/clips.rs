//! `/v1/clips`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{PRIORITIES, present};
use crate::actor::Caller;
use crate::db::Tx;
use crate::ledger::{Change, Stop};
use crate::planes::publishing::{Clip, ClipStatus, Publishing, store};
use crate::problem::Problem;
use crate::web::{Body, Checks, Cursor, IdempotencyKey, Limit, Page, Params, Path};

/// Ten days: no clip is longer.
const DURATIONS: (i64, i64) = (0, 864_000_000);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ClipQuery {
    /// Only clips of this status.
    #[param(inline)]
    pub status: Option<ClipStatus>,
    /// Only clips of this campaign.
    pub campaign_id: Option<i64>,
    /// Only clips that score this or more.
    pub min_visual_score: Option<f64>,
    #[serde(default)]
    #[param(required = false)]
    pub limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<Cursor<i64>>,
}

/// A clip to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewClip {
    /// 1 to 500 characters.
    #[schema(min_length = 1, max_length = 500, pattern = r"\S")]
    pub title: String,
    /// Where the platform fetches it; 1 to 2000 characters.
    #[schema(min_length = 1, max_length = 2000, pattern = r"\S")]
    pub media_uri: String,
    pub campaign_id: Option<i64>,
    /// 0 to 100.
    #[schema(minimum = 0, maximum = 100)]
    pub visual_score: f64,
    /// A larger one comes first, -1000 to 1000.
    #[serde(default)]
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: i64,
    #[schema(minimum = 0, maximum = 864_000_000)]
    pub duration_ms: Option<i64>,
}

/// What is to change of a clip; what is left out stays.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipPatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 500, pattern = r"\S")]
    pub title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 2000, pattern = r"\S")]
    pub media_uri: Option<String>,
    /// Null takes it out of its campaign.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub campaign_id: Option<Option<i64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 100)]
    pub visual_score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: Option<i64>,
    /// Null clears it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 864_000_000)]
    pub duration_ms: Option<Option<i64>>,
    /// `archived` puts it away, `ready` takes it out of the archive; otherwise it follows from the publications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ClipStatus>,
}

fn check(
    title: Option<&String>,
    media_uri: Option<&String>,
    visual_score: Option<f64>,
    priority: Option<i64>,
    duration_ms: Option<i64>,
) -> Result<(), Problem> {
    let mut checks = Checks::default();
    checks.text("title", title.map(String::as_str), 500);
    checks.text("media_uri", media_uri.map(String::as_str), 2000);
    if visual_score.is_some_and(|score| !(0.0..=100.0).contains(&score)) {
        checks.refuse("visual_score", "takes a number from 0 to 100");
    }
    checks.range("priority", priority, PRIORITIES);
    checks.range("duration_ms", duration_ms, DURATIONS);
    checks.done()
}

async fn check_campaign(tx: &mut Tx, campaign_id: Option<i64>) -> Result<(), Stop> {
    if let Some(id) = campaign_id
        && store::lock_campaign(tx, id).await?.is_none()
    {
        return Err(Problem::refused("campaign_id", format!("there is no campaign {id}")).into());
    }
    Ok(())
}

/// Clips, newest first.
#[utoipa::path(get, path = "/v1/clips", operation_id = "listClips", tag = "publishing", params(ClipQuery),
    responses((status = 200, description = "A page of clips", body = Page<Clip>)))]
pub(super) async fn list(
    State(publishing): State<Arc<Publishing>>,
    Params(query): Params<ClipQuery>,
) -> Result<Json<Page<Clip>>, Problem> {
    if query.min_visual_score.is_some_and(|score| !score.is_finite()) {
        return Err(Problem::refused("min_visual_score", "takes a number"));
    }
    let rows = store::list_clips(publishing.db(), &query).await?;
    Ok(Json(Page::cut(rows, query.limit, |clip| clip.id)))
}

/// One clip.
#[utoipa::path(get, path = "/v1/clips/{id}", operation_id = "getClip", tag = "publishing",
    params(("id" = i64, Path)), responses((status = 200, description = "The clip", body = Clip)))]
pub(super) async fn get(State(publishing): State<Arc<Publishing>>, Path(id): Path<i64>) -> Result<Json<Clip>, Problem> {
    store::get_clip(publishing.db(), id).await?.map(Json).ok_or_else(|| missing(id))
}

fn missing(id: i64) -> Problem {
    Problem::not_found(format!("There is no clip {id}; GET /v1/clips lists them."))
}

/// Makes a clip.
#[utoipa::path(post, path = "/v1/clips", operation_id = "createClip", tag = "publishing",
    params(("Idempotency-Key" = Option<IdempotencyKey>, Header)), request_body = NewClip,
    responses((status = 201, description = "Made", body = Clip)))]
pub(super) async fn create(
    State(publishing): State<Arc<Publishing>>,
    caller: Caller,
    key: IdempotencyKey,
    Body(new): Body<NewClip>,
) -> Result<Response, Stop> {
    check(Some(&new.title), Some(&new.media_uri), Some(new.visual_score), Some(new.priority), new.duration_ms)?;
    let mut change = Change::begin(publishing.db(), caller, "POST /v1/clips", key, &new).await?;
    check_campaign(&mut change.tx, new.campaign_id).await?;
    let made = store::insert_clip(&mut change.tx, &new).await?;
    let (subject, location) = (format!("clip:{}", made.id), format!("/v1/clips/{}", made.id));
    change.commit_made("publishing.clip_created", subject, json!(new), location, &made).await
}

/// Changes a clip. One with publications that are still to go out is not archived: cancel those first.
#[utoipa::path(patch, path = "/v1/clips/{id}", operation_id = "changeClip", tag = "publishing",
    params(("id" = i64, Path), ("Idempotency-Key" = Option<IdempotencyKey>, Header)), request_body = ClipPatch,
    responses((status = 200, description = "Changed", body = Clip),
              (status = 409, description = "It has publications that are still to go out", body = Problem,
               content_type = "application/problem+json")))]
pub(super) async fn change(
    State(publishing): State<Arc<Publishing>>,
    caller: Caller,
    Path(id): Path<i64>,
    key: IdempotencyKey,
    Body(patch): Body<ClipPatch>,
) -> Result<Response, Stop> {
    let duration = patch.duration_ms.flatten();
    check(patch.title.as_ref(), patch.media_uri.as_ref(), patch.visual_score, patch.priority, duration)?;
    let mut change = Change::begin(publishing.db(), caller, &format!("PATCH /v1/clips/{id}"), key, &patch).await?;
    let before = store::lock_clip(&mut change.tx, id).await?.ok_or_else(|| missing(id))?;
    check_campaign(&mut change.tx, patch.campaign_id.flatten()).await?;
    let archive = patch.status == Some(ClipStatus::Archived);
    if archive && !store::archive_clip(&mut change.tx, id).await? {
        let detail = format!("Clip {id} has publications that are still to go out; cancel those first.");
        return Err(Problem::conflict(detail).into());
    }
    match patch.status {
        Some(ClipStatus::Ready) => store::restore_clip(&mut change.tx, id).await?,
        Some(ClipStatus::Scheduled | ClipStatus::Published) => {
            let message = "takes `archived`, or `ready` to take it out of the archive; it follows its publications";
            return Err(Problem::refused("status", message).into());
        }
        Some(ClipStatus::Archived) | None => {}
    }
    let payload = json!({ "before": before, "change": patch });
    let after = store::update_clip(&mut change.tx, id, patch).await?;
    change.commit("publishing.clip_changed", format!("clip:{id}"), payload, StatusCode::OK, &after).await
}
