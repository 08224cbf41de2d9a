//! `/v1/campaigns`.

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
use crate::db::Timestamp;
use crate::ledger::{Change, Stop};
use crate::planes::publishing::{Campaign, CampaignStatus, Publishing, store};
use crate::problem::Problem;
use crate::web::{Body, Checks, Cursor, IdempotencyKey, Limit, Page, Params, Path};

/// Budgets stay exact where they are added up as floating-point numbers.
const BUDGETS: (i64, i64) = (0, 1_000_000_000_000_000);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CampaignQuery {
    /// Only campaigns of this status.
    #[param(inline)]
    pub status: Option<CampaignStatus>,
    #[serde(default)]
    #[param(required = false)]
    pub limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<Cursor<i64>>,
}

/// A campaign to be made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCampaign {
    /// 1 to 200 characters.
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    pub name: String,
    /// `draft` unless given.
    #[serde(default = "draft")]
    pub status: CampaignStatus,
    #[schema(minimum = 0, maximum = 1_000_000_000_000_000i64)]
    pub budget_cents: i64,
    /// A larger one comes first, -1000 to 1000.
    #[serde(default)]
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: i64,
    pub starts_at: Option<Timestamp>,
    /// After `starts_at`.
    pub ends_at: Option<Timestamp>,
}

fn draft() -> CampaignStatus {
    CampaignStatus::Draft
}

/// What is to change of a campaign; what is left out stays.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CampaignPatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 200, pattern = r"\S")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<CampaignStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1_000_000_000_000_000i64)]
    pub budget_cents: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: Option<i64>,
    /// Null clears it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schema(value_type = Option<Timestamp>)]
    pub starts_at: Option<Option<Timestamp>>,
    /// Null clears it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schema(value_type = Option<Timestamp>)]
    pub ends_at: Option<Option<Timestamp>>,
}

fn check(
    name: Option<&String>,
    budget_cents: Option<i64>,
    priority: Option<i64>,
    (starts_at, ends_at): (Option<Timestamp>, Option<Timestamp>),
) -> Result<(), Problem> {
    let mut checks = Checks::default();
    checks.text("name", name.map(String::as_str), 200);
    checks.range("budget_cents", budget_cents, BUDGETS);
    checks.range("priority", priority, PRIORITIES);
    checks.time("starts_at", starts_at);
    checks.time("ends_at", ends_at);
    if let (Some(starts_at), Some(ends_at)) = (starts_at, ends_at)
        && ends_at <= starts_at
    {
        checks.refuse("ends_at", format!("takes a time after starts_at, {starts_at}"));
    }
    checks.done()
}

/// Campaigns, newest first.
#[utoipa::path(get, path = "/v1/campaigns", operation_id = "listCampaigns", tag = "publishing", params(CampaignQuery),
    responses((status = 200, description = "A page of campaigns", body = Page<Campaign>)))]
pub(super) async fn list(
    State(publishing): State<Arc<Publishing>>,
    Params(query): Params<CampaignQuery>,
) -> Result<Json<Page<Campaign>>, Problem> {
    let rows = store::list_campaigns(publishing.db(), &query).await?;
    Ok(Json(Page::cut(rows, query.limit, |campaign| campaign.id)))
}

/// One campaign.
#[utoipa::path(get, path = "/v1/campaigns/{id}", operation_id = "getCampaign", tag = "publishing",
    params(("id" = i64, Path)), responses((status = 200, description = "The campaign", body = Campaign)))]
pub(super) async fn get(
    State(publishing): State<Arc<Publishing>>,
    Path(id): Path<i64>,
) -> Result<Json<Campaign>, Problem> {
    store::campaign(publishing.db(), id).await?.map(Json).ok_or_else(|| missing(id))
}

fn missing(id: i64) -> Problem {
    Problem::not_found(format!("There is no campaign {id}; GET /v1/campaigns lists them."))
}

/// Makes a campaign.
#[utoipa::path(post, path = "/v1/campaigns", operation_id = "createCampaign", tag = "publishing",
    params(("Idempotency-Key" = Option<IdempotencyKey>, Header)), request_body = NewCampaign,
    responses((status = 201, description = "Made", body = Campaign)))]
pub(super) async fn create(
    State(publishing): State<Arc<Publishing>>,
    caller: Caller,
    key: IdempotencyKey,
    Body(new): Body<NewCampaign>,
) -> Result<Response, Stop> {
    check(Some(&new.name), Some(new.budget_cents), Some(new.priority), (new.starts_at, new.ends_at))?;
    let mut change = Change::begin(publishing.db(), caller, "POST /v1/campaigns", key, &new).await?;
    let made = store::insert_campaign(&mut change.tx, &new).await?;
    let (subject, location) = (format!("campaign:{}", made.id), format!("/v1/campaigns/{}", made.id));
    change.commit_made("publishing.campaign_created", subject, json!(new), location, &made).await
}

/// Changes a campaign.
#[utoipa::path(patch, path = "/v1/campaigns/{id}", operation_id = "changeCampaign", tag = "publishing",
    params(("id" = i64, Path), ("Idempotency-Key" = Option<IdempotencyKey>, Header)), request_body = CampaignPatch,
    responses((status = 200, description = "Changed", body = Campaign)))]
pub(super) async fn change(
    State(publishing): State<Arc<Publishing>>,
    caller: Caller,
    Path(id): Path<i64>,
    key: IdempotencyKey,
    Body(patch): Body<CampaignPatch>,
) -> Result<Response, Stop> {
    let mut change = Change::begin(publishing.db(), caller, &format!("PATCH /v1/campaigns/{id}"), key, &patch).await?;
    let before = store::lock_campaign(&mut change.tx, id).await?.ok_or_else(|| missing(id))?;
    let times = (patch.starts_at.unwrap_or(before.starts_at), patch.ends_at.unwrap_or(before.ends_at));
    check(patch.name.as_ref(), patch.budget_cents, patch.priority, times)?;
    let payload = json!({ "before": before, "change": patch });
    let after = store::update_campaign(&mut change.tx, id, patch).await?;
    let subject = format!("campaign:{id}");
    change.commit("publishing.campaign_changed", subject, payload, StatusCode::OK, &after).await
}
