//! For whoever watches the service: alive, ready, measured.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::metrics::{observe, observe_loop};
use crate::control::open_breakers;
use crate::problem::{FieldError, Problem};

/// A database that takes longer to answer a probe is not there for others either.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Serialize, ToSchema)]
pub struct ProbeAnswer {
    /// `ok`
    #[schema(example = "ok")]
    status: &'static str,
}

/// The process is alive. Needs no token.
#[utoipa::path(get, path = "/healthz", operation_id = "isAlive", tag = "probes", security(()),
    responses((status = 200, description = "Alive", body = ProbeAnswer)))]
pub async fn alive() -> Json<ProbeAnswer> {
    Json(ProbeAnswer { status: "ok" })
}

/// The service can work, as `/readyz` says. Needs no token.
#[utoipa::path(get, path = "/health", operation_id = "isHealthy", tag = "probes", security(()),
    responses((status = 200, description = "Healthy", body = ProbeAnswer)))]
pub async fn healthy(state: State<AppState>) -> Result<Json<ProbeAnswer>, Problem> {
    ready(state).await
}

/// The service can work: its database answers, takes what is written and is migrated, and where the loop is on, a cycle
/// finished within three intervals. Needs no token.
#[utoipa::path(get, path = "/readyz", operation_id = "isReady", tag = "probes", security(()),
    responses((status = 200, description = "Ready", body = ProbeAnswer)))]
pub async fn ready(State(state): State<AppState>) -> Result<Json<ProbeAnswer>, Problem> {
    let missing = match tokio::time::timeout(PROBE_PATIENCE, missing(&state)).await {
        Ok(missing) => missing,
        Err(_) => {
            Some(("database", format!("did not answer within {} s{}", PROBE_PATIENCE.as_secs(), trouble(&state))))
        }
    };
    let Some((field, message)) = missing else { return Ok(Json(ProbeAnswer { status: "ok" })) };
    let mut problem = Problem::unavailable(format!("Not ready: {field}: {message}."));
    problem.errors = vec![FieldError { field: field.to_owned(), message }];
    Err(problem)
}

/// The first thing that is missing, and what about it.
async fn missing(state: &AppState) -> Option<(&'static str, String)> {
    let migrations = match state.db.migration_state().await {
        Ok(migrations) => migrations,
        Err(cause) => {
            tracing::warn!(%cause, "not ready: the database does not answer");
            return Some(("database", format!("does not answer{}", trouble(state))));
        }
    };
    if !migrations.pending.is_empty() || !migrations.drift.is_empty() {
        return Some(("migrations", "are not done; see `showrunner migrate --check`".to_owned()));
    }
    let (status, now) = match (state.orchestrator.status().await, state.db.now().await) {
        (Ok(status), Ok(now)) => (status, now),
        (Err(cause), _) => {
            tracing::warn!(%cause, "not ready: the loop's state cannot be read");
            return Some(("loop", "its state cannot be read; the log has the cause".to_owned()));
        }
        (_, Err(_)) => return Some(("database", format!("does not answer{}", trouble(state)))),
    };
    if status.database.is_some() {
        return Some(("database", format!("fails{}", trouble(state))));
    }
    if !status.enabled {
        return None;
    }
    let longest = Duration::from_secs(3 * status.interval_seconds);
    match status.last_cycle.and_then(|cycle| cycle.finished_at) {
        Some(finished) if now.since(finished) <= longest => None,
        Some(finished) => Some(("cycle", format!("the loop is on, but the last cycle finished at {finished}"))),
        None => Some(("cycle", "the loop is on, but no cycle has finished yet".to_owned())),
    }
}

/// What the database fails at, to be read after what else there is to say.
fn trouble(state: &AppState) -> String {
    state
        .db
        .trouble()
        .map_or_else(String::new, |trouble| format!("; it fails since {}: {}", trouble.since, trouble.error))
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", operation_id = "getMetrics", tag = "probes",
    responses((status = 200, description = "Prometheus text", body = String, content_type = "text/plain")))]
pub async fn metrics(State(state): State<AppState>) -> Response {
    match state.orchestrator.snapshot().await {
        Ok(snapshot) => observe(&snapshot),
        Err(cause) => tracing::warn!(%cause, "metrics go out without a fresh look at the platform"),
    }
    if let (Ok(status), Ok(open)) = (state.orchestrator.status().await, open_breakers(&state.db).await) {
        observe_loop(&status, &open);
    }
    state.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render()).into_response()
}
