//! The audit chain, read and verified.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use crate::db::Timestamp;
use crate::ledger::{self, Filter, Severity, StoredEntry};
use crate::problem::Problem;
use crate::web::{Cursor, Limit, Page, Params};

/// One entry of the ledger.
#[derive(Serialize, ToSchema)]
pub struct LedgerEntry {
    id: i64,
    cycle_id: Option<i64>,
    /// e.g. `orchestrator.action_executed`
    event_type: String,
    severity: String,
    /// `loop`, `system` or `operator:<name>`
    actor: String,
    /// What it happened to, e.g. `clip:12`.
    subject: Option<String>,
    /// The rule that asked for it.
    rule: Option<String>,
    /// The rest, letter for letter as it was hashed.
    #[schema(value_type = Object)]
    payload: Box<RawValue>,
    created_at: Timestamp,
    prev_hash: String,
    hash: String,
}

impl TryFrom<StoredEntry> for LedgerEntry {
    type Error = Problem;
    fn try_from(entry: StoredEntry) -> Result<Self, Problem> {
        Ok(Self {
            id: entry.id,
            cycle_id: entry.cycle_id,
            event_type: entry.event_type,
            severity: entry.severity,
            actor: entry.actor,
            subject: entry.subject,
            rule: entry.rule,
            payload: RawValue::from_string(entry.payload).map_err(Problem::internal)?,
            created_at: entry.created_at,
            prev_hash: entry.prev_hash,
            hash: entry.hash,
        })
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LedgerQuery {
    /// Only events whose name begins so, e.g. `orchestrator.`.
    event_type: Option<String>,
    /// Only entries of this severity.
    #[param(inline)]
    severity: Option<Severity>,
    /// `loop`, `system` or `operator:<name>`.
    actor: Option<String>,
    /// e.g. `clip:12`
    subject: Option<String>,
    rule: Option<String>,
    cycle_id: Option<i64>,
    /// Only entries of this time or later.
    since: Option<Timestamp>,
    /// Only entries before this time.
    until: Option<Timestamp>,
    #[serde(default)]
    #[param(required = false)]
    limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor<i64>>,
}

/// Entries of the ledger, newest first.
#[utoipa::path(get, path = "/v1/ledger", operation_id = "listLedger", tag = "record", params(LedgerQuery),
    responses((status = 200, description = "A page of entries", body = Page<LedgerEntry>)))]
pub async fn list(
    State(state): State<AppState>,
    Params(query): Params<LedgerQuery>,
) -> Result<Json<Page<LedgerEntry>>, Problem> {
    let filter = Filter {
        event_type: query.event_type,
        severity: query.severity.map(|severity| severity.as_str().to_owned()),
        actor: query.actor,
        subject: query.subject,
        rule: query.rule,
        cycle_id: query.cycle_id,
        since: query.since,
        until: query.until,
        before_id: query.cursor.map(|Cursor(id)| id),
        after_id: None,
    };
    let rows = ledger::query(&state.db, &filter, false, query.limit.fetch()).await?;
    let Page { items, next_cursor } = Page::cut(rows, query.limit, |row| row.id);
    let items = items.into_iter().map(LedgerEntry::try_from).collect::<Result<_, _>>()?;
    Ok(Json(Page { items, next_cursor }))
}

/// What a walk over the chain found.
#[derive(Serialize, ToSchema)]
pub struct VerifyAnswer {
    /// Whether every entry fits.
    whole: bool,
    /// Entries that fit.
    entries: i64,
    /// The checkpoint from which the chain goes on, if retention took entries away.
    checkpoint_id: Option<i64>,
    /// The first entry that does not fit.
    first_bad: Option<BadEntry>,
}

#[derive(Serialize, ToSchema)]
pub struct BadEntry {
    id: i64,
    reason: String,
}

/// Held while a walk runs: it reads the whole ledger, so one at a time is enough.
#[derive(Clone, Default)]
struct Walking(Arc<Mutex<()>>);

/// The route of [`verify`] with its lock.
pub fn verification() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(verify)).layer(Extension(Walking::default()))
}

/// Walks the whole chain and names the first entry that does not fit. One walk at a time; a ledger that takes longer
/// than the request's time-out is verified by `showrunner ledger verify`.
#[utoipa::path(get, path = "/v1/ledger/verify", operation_id = "verifyLedger", tag = "record",
    responses((status = 200, description = "What the walk found", body = VerifyAnswer)))]
async fn verify(
    State(state): State<AppState>,
    Extension(walking): Extension<Walking>,
) -> Result<Json<VerifyAnswer>, Problem> {
    let Ok(_walk) = walking.0.try_lock() else {
        return Err(Problem::unavailable("Another request is verifying the ledger; try again when it is done."));
    };
    let found = ledger::verify(&state.db, |_| {}).await?;
    Ok(Json(VerifyAnswer {
        whole: found.first_bad.is_none(),
        entries: found.entries,
        checkpoint_id: found.checkpoint_id,
        first_bad: found.first_bad.map(|(id, reason)| BadEntry { id, reason }),
    }))
}
