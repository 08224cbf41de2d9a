//! `/api/pipelines`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::runs::RunView;
use super::{definition, input, no_pipeline};
use crate::actor::{Caller, Role};
use crate::db::Timestamp;
use crate::ledger::{Change, Stop};
use crate::planes::pipelines::definition::{Fault, Span};
use crate::planes::pipelines::plan::Plan;
use crate::planes::pipelines::store::{self, PipelineRow};
use crate::planes::pipelines::{Definition, Origin, Pipelines};
use crate::problem::Problem;
use crate::web::{Cursor, IdempotencyKey, Limit, Page, Params, Path};

/// The longest that a request waits for its run; longer runs are asked for by id.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(25);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    #[serde(default)]
    #[param(required = false)]
    pub limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<Cursor<String>>,
}

/// A pipeline.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PipelineView {
    pub id: String,
    /// Grows by one with every change; a run keeps the version that it began with.
    pub version: i64,
    /// As it was given; `GET /api/pipeline-schema` is its JSON Schema.
    #[schema(value_type = Object)]
    pub definition: Value,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<PipelineRow> for PipelineView {
    fn from(row: PipelineRow) -> Self {
        Self {
            id: row.id,
            version: row.version,
            definition: row.definition.0,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Pipelines by id.
#[utoipa::path(get, path = "/api/pipelines", operation_id = "listPipelines", tag = "pipelines", params(ListQuery),
    responses((status = 200, description = "A page of pipelines", body = Page<PipelineView>)))]
pub(super) async fn list(
    State(plane): State<Arc<Pipelines>>,
    Params(query): Params<ListQuery>,
) -> Result<Json<Page<PipelineView>>, Problem> {
    let after = query.cursor.map(|Cursor(id)| id).unwrap_or_default();
    let rows = store::pipelines(&plane.db, &after, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |row| row.id.clone()).map(PipelineView::from)))
}

/// One pipeline with its newest definition.
#[utoipa::path(get, path = "/api/pipelines/{id}", operation_id = "getPipeline", tag = "pipelines",
    params(("id" = String, Path)), responses((status = 200, description = "The pipeline", body = PipelineView)))]
pub(super) async fn get(
    State(plane): State<Arc<Pipelines>>,
    Path(id): Path<String>,
) -> Result<Json<PipelineView>, Problem> {
    let row = store::pipeline(&plane.db, &id).await?;
    row.map(|row| Json(row.into())).ok_or_else(|| no_pipeline(&id))
}

/// What putting a pipeline did.
#[derive(Debug, Serialize, ToSchema)]
pub struct Put {
    pub id: String,
    pub version: i64,
    /// Whether the definition differs from the version before.
    pub changed: bool,
}

/// Makes a pipeline, or its next version. The body is the definition in YAML or JSON.
#[utoipa::path(put, path = "/api/pipelines/{id}", operation_id = "putPipeline", tag = "pipelines",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    request_body(content = Object, content_type = "application/json"),
    responses((status = 200, description = "Changed, or the same", body = Put), (status = 201, description = "Made", body = Put)))]
pub(super) async fn put(
    State(plane): State<Arc<Pipelines>>,
    caller: Caller,
    Path(id): Path<String>,
    key: IdempotencyKey,
    body: Bytes,
) -> Result<Response, Stop> {
    let definition = definition(&body)?;
    let mut change = Change::begin(&plane.db, caller, &format!("PUT /api/pipelines/{id}"), key, &definition).await?;
    let (version, changed) = Pipelines::put(&mut change.tx, &id, definition).await?;
    let status = if version == 1 && changed { StatusCode::CREATED } else { StatusCode::OK };
    let subject = format!("pipeline:{id}");
    let payload = json!({ "version": version, "changed": changed });
    let put = Put { id, version, changed };
    change.commit("pipelines.pipeline_put", subject, payload, status, &put).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TriggerQuery {
    /// Wait so long for the end of the run, e.g. `10s`; 25 seconds at most. Without it the answer comes at once.
    #[param(value_type = Option<String>)]
    pub wait: Option<Span>,
}

/// Begins a run of the newest version. The body is the bare input.
#[utoipa::path(post, path = "/api/pipelines/{id}/trigger", operation_id = "triggerPipeline", tag = "pipelines",
    params(("id" = String, Path), TriggerQuery, ("Idempotency-Key" = Option<String>, Header)),
    request_body(content = Object, content_type = "application/json"),
    responses((status = 200, description = "Ended within the wait", body = RunView),
              (status = 202, description = "Begun", body = RunView)))]
pub(super) async fn trigger(
    State(plane): State<Arc<Pipelines>>,
    caller: Caller,
    Path(id): Path<String>,
    Params(query): Params<TriggerQuery>,
    key: IdempotencyKey,
    body: Bytes,
) -> Result<Response, Stop> {
    caller.require(Role::Operator)?;
    let input = input(&body)?;
    let run = match key.is_given() {
        true => {
            let route = format!("POST /api/pipelines/{id}/trigger");
            let mut change = Change::begin(&plane.db, caller, &route, key, &input).await?;
            let run = plane.trigger_in(&mut change.tx, &id, input, Origin::MANUAL).await?;
            let answer = json!({ "runId": run, "pipelineId": id, "status": "pending" });
            let subject = format!("run:{run}");
            let response =
                change.commit("pipelines.triggered", subject, answer.clone(), StatusCode::ACCEPTED, &answer).await?;
            plane.backlogged().await;
            return Ok(response);
        }
        false => plane.trigger(&id, input, Origin::MANUAL).await?,
    };
    let id = run.run;
    let ended = match query.wait {
        Some(Span(wait)) => tokio::select! {
            end = plane.wait(run) => end.map(|_| true)?,
            () = plane.clock.sleep(wait.min(LONGEST_WAIT)) => false,
        },
        None => false,
    };
    let row = store::run(&plane.db, id).await?.ok_or_else(|| Problem::internal("a run that was made is gone"))?;
    let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(RunView::from(row))).into_response())
}

/// What a run would do.
#[derive(Debug, Serialize, ToSchema)]
pub struct DryRun {
    /// Whether a run could begin with this input.
    pub valid: bool,
    pub version: i64,
    pub faults: Vec<Fault>,
    pub plan: Plan,
}

/// Checks a pipeline and an input without running anything: faults, order, critical path, and what would run where.
/// The body is the bare input.
#[utoipa::path(post, path = "/api/pipelines/{id}/dry-run", operation_id = "dryRunPipeline", tag = "pipelines",
    params(("id" = String, Path)), request_body(content = Object, content_type = "application/json"),
    responses((status = 200, description = "The plan", body = DryRun)))]
pub(super) async fn dry_run(
    State(plane): State<Arc<Pipelines>>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<DryRun>, Problem> {
    let row = store::pipeline(&plane.db, &id).await?.ok_or_else(|| no_pipeline(&id))?;
    let pipeline = plane.version(&id, row.version).await?.ok_or_else(|| no_pipeline(&id))?;
    let mut faults = match input(&body) {
        Ok(input) => pipeline.take_input(input).err().unwrap_or_default(),
        Err(problem) => return Err(problem),
    };
    for (at, step) in pipeline.definition.steps.iter().enumerate() {
        if let Some(call) = &step.pipeline
            && store::newest_version(&plane.db, &call.id).await?.is_none()
        {
            faults.push(Fault::at(format!("steps[{at}].pipeline.id"), format!("there is no pipeline `{}`", call.id)));
        }
    }
    for (at, step) in pipeline.definition.steps.iter().enumerate() {
        let Some(copy) = &step.copy else { continue };
        for (side, stored) in [("from", &copy.from), ("to", &copy.to)] {
            // One that is worked out is known only when the step runs.
            let literal = stored.backend.as_deref().filter(|id| !id.contains("${"));
            if let (Some(id), Some(stores)) = (literal, plane.stores.get())
                && let Err(unknown) = stores.get(Some(id))
            {
                faults.push(Fault::at(format!("steps[{at}].copy.{side}.backend"), unknown.to_string()));
            }
        }
    }
    let past = store::past_durations(&plane.db, &id).await?;
    Ok(Json(DryRun { valid: faults.is_empty(), version: row.version, faults, plan: pipeline.plan(&past) }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GraphQuery {
    /// `mermaid` or `svg`.
    #[serde(default)]
    #[param(inline, required = false)]
    pub format: GraphFormat,
}

/// The form of a graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GraphFormat {
    #[default]
    Mermaid,
    Svg,
}

/// The graph of the newest version, as Mermaid or SVG.
#[utoipa::path(get, path = "/api/pipelines/{id}/graph", operation_id = "pipelineGraph", tag = "pipelines",
    params(("id" = String, Path), GraphQuery), responses((status = 200, description = "The graph", body = String)))]
pub(super) async fn graph(
    State(plane): State<Arc<Pipelines>>,
    Path(id): Path<String>,
    Params(query): Params<GraphQuery>,
) -> Result<Response, Problem> {
    let version = store::newest_version(&plane.db, &id).await?.ok_or_else(|| no_pipeline(&id))?;
    let pipeline = plane.version(&id, version).await?.ok_or_else(|| no_pipeline(&id))?;
    Ok(drawn(&pipeline, query.format, &HashMap::new()))
}

pub(super) fn drawn(
    pipeline: &crate::planes::pipelines::Pipeline,
    format: GraphFormat,
    status: &HashMap<String, String>,
) -> Response {
    match format {
        GraphFormat::Mermaid => {
            ([(header::CONTENT_TYPE, "text/vnd.mermaid; charset=utf-8")], pipeline.mermaid(status)).into_response()
        }
        GraphFormat::Svg => ([(header::CONTENT_TYPE, "image/svg+xml")], pipeline.svg(status)).into_response(),
    }
}

/// The JSON Schema of definitions.
#[utoipa::path(get, path = "/api/pipeline-schema", operation_id = "pipelineSchema", tag = "pipelines",
    responses((status = 200, description = "A JSON Schema", body = Object)))]
pub(super) async fn schema(_: State<Arc<Pipelines>>) -> Json<Value> {
    Json(Definition::schema())
}
