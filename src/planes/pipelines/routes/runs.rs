//! `/api/runs`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::pipelines::{GraphQuery, drawn};
use crate::actor::Caller;
use crate::db::Timestamp;
use crate::ledger::{Change, Stop};
use crate::planes::pipelines::model::{Run, RunStatus, StepRow, StepStatus};
use crate::planes::pipelines::run::in_order;
use crate::planes::pipelines::{Pipeline, Pipelines, steer, store};
use crate::problem::Problem;
use crate::web::{Cursor, IdempotencyKey, Limit, Page, Params, Path};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct RunQuery {
    /// Only runs of this pipeline.
    pub pipeline_id: Option<String>,
    /// Only runs of this status.
    #[param(inline)]
    pub status: Option<RunStatus>,
    #[serde(default)]
    #[param(required = false)]
    pub limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    pub cursor: Option<Cursor<i64>>,
}

/// A run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunView {
    pub id: i64,
    /// The same as `id`.
    pub run_id: i64,
    pub pipeline_id: String,
    /// The version that it began with.
    pub version: i64,
    pub status: RunStatus,
    /// `manual`, `http`, `cron`, `event` or `pipeline`.
    pub trigger: String,
    pub trigger_id: Option<String>,
    pub parent_run_id: Option<i64>,
    #[schema(value_type = Value)]
    pub input: Value,
    #[schema(value_type = Option<Value>)]
    pub output: Option<Value>,
    pub error: Option<String>,
    /// How often somebody had it tried again.
    pub retries: i64,
    /// The engine that has it.
    pub engine: Option<String>,
    /// When it goes on by itself.
    pub wake_at: Option<Timestamp>,
    /// `pause` or `cancel`, where that was asked and the engine has not done it yet.
    pub requested: Option<String>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// From the start to the end, in milliseconds.
    pub duration_ms: Option<u64>,
}

impl From<Run> for RunView {
    fn from(run: Run) -> Self {
        let took = run.finished_at.zip(run.started_at).map(|(end, start)| end.since(start).as_millis() as u64);
        Self {
            id: run.id,
            run_id: run.id,
            pipeline_id: run.pipeline_id,
            version: run.version,
            status: RunStatus::read(&run.status),
            trigger: run.trigger_kind,
            trigger_id: run.trigger_id,
            parent_run_id: run.parent_run_id,
            input: run.input.0,
            output: run.output.map(|output| output.0),
            error: run.error,
            retries: run.retries,
            engine: run.engine,
            wake_at: run.wake_at,
            requested: run.requested,
            created_at: run.created_at,
            started_at: run.started_at,
            finished_at: run.finished_at,
            duration_ms: took,
        }
    }
}

/// One instance of a step.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    pub id: String,
    /// The item of a fan-out, from 0; null for the step itself.
    pub item: Option<i64>,
    pub status: StepStatus,
    pub attempt: i64,
    #[schema(value_type = Option<Value>)]
    pub result: Option<Value>,
    pub error: Option<String>,
    /// When it goes on by itself.
    pub wake_at: Option<Timestamp>,
    /// Its task on the queue.
    pub job_id: Option<i64>,
    /// The version of the task's code with which it ran.
    pub code_version: Option<i64>,
    /// The run that it began.
    pub child_run_id: Option<i64>,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub duration_ms: Option<u64>,
}

impl From<StepRow> for StepView {
    fn from(row: StepRow) -> Self {
        Self {
            id: row.step,
            item: (row.item >= 0).then_some(row.item),
            status: StepStatus::read(&row.status),
            attempt: row.attempt,
            result: row.result.map(|result| result.0),
            error: row.error,
            wake_at: row.wake_at,
            job_id: row.job_id,
            code_version: None,
            child_run_id: row.child_run_id,
            started_at: row.started_at,
            finished_at: row.finished_at,
            duration_ms: row.finished_at.map(|end| end.since(row.started_at).as_millis() as u64),
        }
    }
}

/// A run with its steps.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunDetail {
    #[serde(flatten)]
    pub run: RunView,
    /// In the order in which they began. A step that has not begun is not there.
    pub steps: Vec<StepView>,
    /// Steps whose code differs from the run of this pipeline before: changed, new or gone, or a task whose service has
    /// registered other code.
    pub changed_steps: Vec<String>,
}

/// Runs, newest first.
#[utoipa::path(get, path = "/api/runs", operation_id = "listRuns", tag = "pipelines", params(RunQuery),
    responses((status = 200, description = "A page of runs", body = Page<RunView>)))]
pub(super) async fn list(
    State(plane): State<Arc<Pipelines>>,
    Params(query): Params<RunQuery>,
) -> Result<Json<Page<RunView>>, Problem> {
    let status = query.status.map(RunStatus::as_str);
    let before = query.cursor.map(|Cursor(id)| id);
    let rows = store::runs(&plane.db, query.pipeline_id.as_deref(), status, before, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |run| run.id).map(RunView::from)))
}

fn missing(id: i64) -> Problem {
    Problem::not_found(format!("There is no run {id}; GET /api/runs lists them."))
}

/// One run with its steps.
#[utoipa::path(get, path = "/api/runs/{id}", operation_id = "getRun", tag = "pipelines", params(("id" = i64, Path)),
    responses((status = 200, description = "The run", body = RunDetail)))]
pub(super) async fn get(State(plane): State<Arc<Pipelines>>, Path(id): Path<i64>) -> Result<Json<RunDetail>, Problem> {
    let run = store::run(&plane.db, id).await?.ok_or_else(|| missing(id))?;
    let rows = store::steps_of(&plane.db, id).await?;
    let versions = store::code_versions(&plane.db, id).await?;
    let changed_steps = changed(&plane, &run, &versions).await?;
    let pipeline = plane.version(&run.pipeline_id, run.version).await?;
    let is_fan_out = |step: &str| pipeline.as_ref().is_some_and(|pipeline| pipeline.is_fan_out(step));
    // A fan-out's result is the list of its items' results.
    let mut items: HashMap<String, Vec<StepRow>> = HashMap::new();
    for row in rows.iter().filter(|row| row.item >= 0) {
        items.entry(row.step.clone()).or_default().push(row.clone());
    }
    let steps = rows.into_iter().map(|row| {
        let whole = match row.item < 0 && row.status == "completed" {
            // One over an empty list has no rows of items.
            true => items.remove(&row.step).or_else(|| is_fan_out(&row.step).then(Vec::new)),
            false => None,
        };
        let code_version = versions.get(&(row.step.clone(), row.item)).copied();
        let mut view = StepView { code_version, ..StepView::from(row) };
        if let Some(items) = whole {
            view.result = Some(Value::Array(in_order(items)));
        }
        view
    });
    Ok(Json(RunDetail { steps: steps.collect(), run: run.into(), changed_steps }))
}

/// Steps that differ between a run and the run before: by their definition, or by their task's code.
async fn changed(plane: &Pipelines, run: &Run, versions: &HashMap<(String, i64), i64>) -> Result<Vec<String>, Problem> {
    let Some((before_run, before)) = store::run_before(&plane.db, &run.pipeline_id, run.id).await? else {
        return Ok(Vec::new());
    };
    let earlier = store::code_versions(&plane.db, before_run).await?;
    let other =
        |(place, version): &(&(String, i64), &i64)| earlier.get(*place).is_some_and(|earlier| earlier != *version);
    let mut changed: Vec<String> = versions.iter().filter(other).map(|((step, _), _)| step.clone()).collect();
    let older = plane.version(&run.pipeline_id, before).await?;
    let newer = plane.version(&run.pipeline_id, run.version).await?;
    let (Some(older), Some(newer)) = (older, newer) else { return Ok(changed) };
    let hashes = |pipeline: &Pipeline| -> HashMap<String, String> {
        let steps = pipeline.definition.steps.iter();
        steps.map(|step| (step.id.clone(), Pipeline::code_version(step))).collect()
    };
    let (older, newer) = (hashes(&older), hashes(&newer));
    changed.extend(newer.iter().filter(|(id, hash)| older.get(*id) != Some(hash)).map(|(id, _)| id.clone()));
    changed.extend(older.keys().filter(|id| !newer.contains_key(*id)).cloned());
    changed.sort_unstable();
    changed.dedup();
    Ok(changed)
}

/// The graph of a run's version, its steps coloured by how they stand.
#[utoipa::path(get, path = "/api/runs/{id}/graph", operation_id = "runGraph", tag = "pipelines",
    params(("id" = i64, Path), GraphQuery), responses((status = 200, description = "The graph", body = String)))]
pub(super) async fn graph(
    State(plane): State<Arc<Pipelines>>,
    Path(id): Path<i64>,
    Params(query): Params<GraphQuery>,
) -> Result<Response, Problem> {
    let run = store::run(&plane.db, id).await?.ok_or_else(|| missing(id))?;
    let pipeline = plane.version(&run.pipeline_id, run.version).await?.ok_or_else(|| missing(id))?;
    let mut status = HashMap::new();
    for row in store::steps_of(&plane.db, id).await? {
        if row.item < 0 {
            status.insert(row.step, row.status);
        } else {
            status.entry(row.step).or_insert_with(|| "running".to_owned());
        }
    }
    Ok(drawn(&pipeline, query.format, &status))
}

macro_rules! steering {
    ($name:ident, $path:literal, $operation:literal, $event:literal, $does:expr, $summary:literal) => {
        #[doc = $summary]
        #[utoipa::path(post, path = $path, operation_id = $operation, tag = "pipelines",
            params(("id" = i64, Path), ("Idempotency-Key" = Option<String>, Header)),
            responses((status = 202, description = "Asked; the run shows when it is done", body = RunView),
                      (status = 409, description = "The run cannot take this", body = Problem,
                       content_type = "application/problem+json")))]
        pub(super) async fn $name(
            State(plane): State<Arc<Pipelines>>,
            caller: Caller,
            Path(id): Path<i64>,
            key: IdempotencyKey,
        ) -> Result<Response, Stop> {
            store::run(&plane.db, id).await?.ok_or_else(|| missing(id))?;
            let route = format!("POST {}", $path.replace("{id}", &id.to_string()));
            let mut change = Change::begin(&plane.db, caller, &route, key, &id).await?;
            let before: Run = $does(&mut change.tx, id).await?;
            let payload = json!({ "pipeline": before.pipeline_id, "was": before.status, "error": before.error });
            let after = store::lock_run(&mut change.tx, id).await?.ok_or_else(|| missing(id))?;
            let view = RunView::from(after);
            let response = change.commit($event, format!("run:{id}"), payload, StatusCode::ACCEPTED, &view).await?;
            plane.asked().await;
            Ok(response)
        }
    };
}

steering!(
    pause,
    "/api/runs/{id}/pause",
    "pauseRun",
    "pipelines.run_paused",
    steer::pause,
    "Holds a run. One that is on an engine finishes the calls that are out first."
);
steering!(
    resume,
    "/api/runs/{id}/resume",
    "resumeRun",
    "pipelines.run_resumed",
    steer::resume,
    "Lets a held run go on."
);
steering!(
    cancel,
    "/api/runs/{id}/cancel",
    "cancelRun",
    "pipelines.run_cancelled",
    steer::cancel,
    "Gives a run up, with the tasks and runs that it waits for. Nothing is undone."
);
steering!(
    retry,
    "/api/runs/{id}/retry",
    "retryRun",
    "pipelines.run_retried",
    steer::retry,
    "Has a failed or cancelled run go on from the step that failed; what is done stays done, unless it was undone."
);
