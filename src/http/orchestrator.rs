//! The loop's own routes: look, run once, switch on and off.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use crate::actor::Caller;
use crate::control::orchestrator::{CycleReport, LoopError, LoopStatus};
use crate::control::snapshot::Snapshot;
use crate::problem::Problem;

impl From<LoopError> for Problem {
    fn from(error: LoopError) -> Self {
        match error {
            LoopError::Store(cause) => cause.into(),
            LoopError::Cycle(_) => {
                let detail = format!("{error}; the ledger has it as `orchestrator.cycle_error`.");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "cycle-failed", detail)
            }
            LoopError::TimedOut(_) | LoopError::StillRunning(_) => Self::unavailable(error.to_string()),
        }
    }
}

/// `"status": "ok"`: every answer of these routes begins with it.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Ok200 {
    Ok,
}

#[derive(Serialize, ToSchema)]
pub struct SnapshotAnswer {
    status: Ok200,
    snapshot: Snapshot,
}

#[derive(Serialize, ToSchema)]
pub struct RunOnceAnswer {
    status: Ok200,
    result: CycleReport,
}

#[derive(Serialize, ToSchema)]
pub struct EnabledAnswer {
    status: Ok200,
    orchestrator: Enabled,
}

#[derive(Serialize, ToSchema)]
pub struct Enabled {
    /// `started`
    #[schema(example = "started")]
    status: &'static str,
    /// Seconds between cycles.
    interval_seconds: u64,
    enabled: bool,
}

#[derive(Serialize, ToSchema)]
pub struct DisabledAnswer {
    status: Ok200,
    orchestrator: Disabled,
}

#[derive(Serialize, ToSchema)]
pub struct Disabled {
    /// `stopped`
    #[schema(example = "stopped")]
    status: &'static str,
}

#[derive(Serialize, ToSchema)]
pub struct StatusAnswer {
    status: Ok200,
    #[serde(flatten)]
    status_of_loop: LoopStatus,
}

/// Looks at the whole platform without deciding anything.
#[utoipa::path(get, path = "/orchestrator/snapshot", operation_id = "getSnapshot", tag = "loop",
    responses((status = 200, description = "What was seen", body = SnapshotAnswer)))]
pub async fn snapshot(State(state): State<AppState>) -> Result<Json<SnapshotAnswer>, Problem> {
    let snapshot = state.orchestrator.snapshot().await?;
    Ok(Json(SnapshotAnswer { status: Ok200::Ok, snapshot }))
}

/// Runs one cycle now, whether the loop is on or off. A running cycle ends first.
#[utoipa::path(post, path = "/orchestrator/run-once", operation_id = "runOnce", tag = "loop",
    responses((status = 200, description = "What the cycle saw, decided and did", body = RunOnceAnswer)))]
pub async fn run_once(State(state): State<AppState>, caller: Caller) -> Result<Json<RunOnceAnswer>, Problem> {
    let result = state.orchestrator.run_once(&caller.actor()).await?;
    Ok(Json(RunOnceAnswer { status: Ok200::Ok, result }))
}

/// Switches the loop on, for every instance and across restarts.
#[utoipa::path(post, path = "/orchestrator/enable", operation_id = "enableLoop", tag = "loop",
    responses((status = 200, description = "Switched on", body = EnabledAnswer)))]
pub async fn enable(State(state): State<AppState>, caller: Caller) -> Result<Json<EnabledAnswer>, Problem> {
    state.orchestrator.enable(&caller.actor()).await?;
    let interval_seconds = state.orchestrator.interval().as_secs();
    let orchestrator = Enabled { status: "started", interval_seconds, enabled: true };
    Ok(Json(EnabledAnswer { status: Ok200::Ok, orchestrator }))
}

/// Switches the loop off, for every instance and across restarts; a running cycle ends first.
#[utoipa::path(post, path = "/orchestrator/disable", operation_id = "disableLoop", tag = "loop",
    responses((status = 200, description = "Switched off", body = DisabledAnswer)))]
pub async fn disable(State(state): State<AppState>, caller: Caller) -> Result<Json<DisabledAnswer>, Problem> {
    state.orchestrator.disable(&caller.actor()).await?;
    Ok(Json(DisabledAnswer { status: Ok200::Ok, orchestrator: Disabled { status: "stopped" } }))
}

/// Whether and where the loop runs, its last cycle and its rules.
#[utoipa::path(get, path = "/orchestrator/status", operation_id = "getStatus", tag = "loop",
    responses((status = 200, description = "The loop's state", body = StatusAnswer)))]
pub async fn status(State(state): State<AppState>) -> Result<Json<StatusAnswer>, Problem> {
    let status_of_loop = state.orchestrator.status().await.map_err(|cause| match (cause, state.db.trouble()) {
        (LoopError::Store(_), Some(trouble)) => Problem::unavailable(format!(
            "The database is not available since {}: {}. The service goes on by itself once it is back.",
            trouble.since, trouble.error
        )),
        (cause, _) => cause.into(),
    })?;
    Ok(Json(StatusAnswer { status: Ok200::Ok, status_of_loop }))
}
