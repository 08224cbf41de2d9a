//! `/api/engines`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc::error::TrySendError;
use utoipa::ToSchema;

use crate::actor::Caller;
use crate::ledger::{Change, Stop};
use crate::planes::pipelines::message::Inbound;
use crate::planes::pipelines::{Engine, Health, Pipelines};
use crate::problem::Problem;
use crate::web::{IdempotencyKey, Path};

/// An engine of the instance that answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct EngineView {
    pub id: String,
    pub instance: String,
    #[serde(flatten)]
    pub health: Health,
}

fn view(plane: &Pipelines, engine: &Engine) -> EngineView {
    EngineView { id: engine.id.clone(), instance: plane.instance.clone(), health: engine.health() }
}

fn found(plane: &Pipelines, id: &str) -> Result<Arc<Engine>, Problem> {
    let missing = || Problem::not_found(format!("This instance has no engine `{id}`; GET /api/engines lists them."));
    plane.engine(id).ok_or_else(missing)
}

/// The engines of this instance.
#[utoipa::path(get, path = "/api/engines", operation_id = "listEngines", tag = "pipelines",
    responses((status = 200, description = "The engines", body = [EngineView])))]
pub(super) async fn list(State(plane): State<Arc<Pipelines>>) -> Json<Vec<EngineView>> {
    Json(plane.engines().iter().map(|engine| view(&plane, engine)).collect())
}

/// Asks an engine how it is; it says so on its outbound channel too.
#[utoipa::path(get, path = "/api/engines/{id}/health", operation_id = "engineHealth", tag = "pipelines",
    params(("id" = String, Path)), responses((status = 200, description = "How it is", body = EngineView)))]
pub(super) async fn health(
    State(plane): State<Arc<Pipelines>>,
    Path(id): Path<String>,
) -> Result<Json<EngineView>, Problem> {
    let engine = found(&plane, &id)?;
    let _ = engine.inbound.try_send(Inbound::HealthCheck); // a full channel is health enough to know
    Ok(Json(view(&plane, &engine)))
}

async fn tell(
    plane: &Pipelines,
    caller: Caller,
    id: String,
    key: IdempotencyKey,
    word: &str,
    event: &'static str,
    message: Inbound,
) -> Result<Response, Stop> {
    let engine = found(plane, &id)?;
    let change = Change::begin(&plane.db, caller, &format!("POST /api/engines/{id}/{word}"), key, &id).await?;
    let payload = json!({ "instance": plane.instance });
    let view = view(plane, &engine);
    let response = change.commit(event, format!("engine:{id}"), payload, StatusCode::ACCEPTED, &view).await?;
    match engine.inbound.try_send(message) {
        // One that has stopped begins nothing more, whatever it is told.
        Ok(()) | Err(TrySendError::Closed(_)) => Ok(response),
        Err(TrySendError::Full(_)) => Err(Problem::unavailable("The engine's channel is full.").into()),
    }
}

/// Has an engine begin nothing until it is resumed; a call that is out is finished.
#[utoipa::path(post, path = "/api/engines/{id}/pause", operation_id = "pauseEngine", tag = "pipelines",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 202, description = "Told", body = EngineView)))]
pub(super) async fn pause(
    State(plane): State<Arc<Pipelines>>,
    caller: Caller,
    Path(id): Path<String>,
    key: IdempotencyKey,
) -> Result<Response, Stop> {
    tell(&plane, caller, id, key, "pause", "pipelines.engine_paused", Inbound::Pause).await
}

/// Lets a paused engine go on; a stopped one is started again.
#[utoipa::path(post, path = "/api/engines/{id}/resume", operation_id = "resumeEngine", tag = "pipelines",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 202, description = "Told", body = EngineView)))]
pub(super) async fn resume(
    State(plane): State<Arc<Pipelines>>,
    caller: Caller,
    Path(id): Path<String>,
    key: IdempotencyKey,
) -> Result<Response, Stop> {
    found(&plane, &id)?;
    plane.register_engine(&id);
    tell(&plane, caller, id, key, "resume", "pipelines.engine_resumed", Inbound::Resume).await
}

/// Stops an engine; its run goes on elsewhere.
#[utoipa::path(post, path = "/api/engines/{id}/stop", operation_id = "stopEngine", tag = "pipelines",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 202, description = "Told", body = EngineView)))]
pub(super) async fn stop(
    State(plane): State<Arc<Pipelines>>,
    caller: Caller,
    Path(id): Path<String>,
    key: IdempotencyKey,
) -> Result<Response, Stop> {
    tell(&plane, caller, id, key, "stop", "pipelines.engine_stopped", Inbound::Stop).await
}
