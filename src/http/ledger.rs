//! The audit chain, read and verified.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use crate::db::Timestamp;
use crate::ledger::{self, Filter, Severity, StoredEntry};
use crate::problem::Problem;
use crate::web::{Cursor, Limit, Page, Params};

/// In which order entries come.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Order {
    #[default]
    Newest,
    Oldest,
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
    /// `newest` or `oldest` first; `newest` unless given.
    #[serde(default)]
    #[param(inline, required = false)]
    order: Order,
    #[serde(default)]
    #[param(required = false)]
    limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor<i64>>,
}

/// Entries of the ledger.
#[utoipa::path(get, path = "/v1/ledger", operation_id = "listLedger", tag = "record", params(LedgerQuery),
    responses((status = 200, description = "A page of entries", body = Page<StoredEntry>)))]
pub async fn list(
    State(state): State<AppState>,
    Params(query): Params<LedgerQuery>,
) -> Result<Json<Page<StoredEntry>>, Problem> {
    let oldest_first = query.order == Order::Oldest;
    let cursor = query.cursor.map(|Cursor(id)| id);
    let filter = Filter {
        event_type: query.event_type,
        severity: query.severity.map(|severity| severity.as_str().to_owned()),
        actor: query.actor,
        subject: query.subject,
        rule: query.rule,
        cycle_id: query.cycle_id,
        since: query.since,
        until: query.until,
        before_id: cursor.filter(|_| !oldest_first),
        after_id: cursor.filter(|_| oldest_first),
    };
    let rows = ledger::query(&state.db, &filter, oldest_first, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |row| row.id)))
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
