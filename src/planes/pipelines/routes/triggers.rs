//! `/api/triggers`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::pipelines::{LONGEST_WAIT, ListQuery, TriggerQuery};
use super::runs::RunView;
use super::{input, invalid, no_pipeline};
use crate::actor::{Caller, Role};
use crate::db::Timestamp;
use crate::ledger::{Change, Stop};
use crate::planes::pipelines::definition::Span;
use crate::planes::pipelines::triggers::{self, Fired, Knock, NewTrigger, Settings, TriggerRow};
use crate::planes::pipelines::{Fault, Pipelines, is_id, store};
use crate::problem::Problem;
use crate::web::{Body, Cursor, IdempotencyKey, Page, Params, Path};

/// A trigger.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerView {
    pub id: String,
    pub pipeline: String,
    pub when: Settings,
    #[schema(value_type = Option<Value>)]
    pub input: Option<Value>,
    /// `skip`, `queue` or `cancel`.
    pub overlap: String,
    pub is_active: bool,
    /// A schedule's next time.
    pub due_at: Option<Timestamp>,
    pub last_fired_at: Option<Timestamp>,
    /// Why the last firing began no run.
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<TriggerRow> for TriggerView {
    fn from(row: TriggerRow) -> Self {
        Self {
            id: row.id,
            pipeline: row.pipeline_id,
            when: row.settings.0,
            input: row.input.0,
            overlap: row.overlap,
            is_active: row.is_active,
            due_at: row.due_at,
            last_fired_at: row.last_fired_at,
            error: row.error,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

fn missing(id: &str) -> Problem {
    Problem::not_found(format!("There is no trigger `{id}`; GET /api/triggers lists them."))
}

/// Triggers by id.
#[utoipa::path(get, path = "/api/triggers", operation_id = "listTriggers", tag = "pipelines", params(ListQuery),
    responses((status = 200, description = "A page of triggers", body = Page<TriggerView>)))]
pub(super) async fn list(
    State(plane): State<Arc<Pipelines>>,
    Params(query): Params<ListQuery>,
) -> Result<Json<Page<TriggerView>>, Problem> {
    let after = query.cursor.map(|Cursor(id)| id).unwrap_or_default();
    let rows = triggers::list(&plane.db, &after, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |row| row.id.clone()).map(TriggerView::from)))
}

/// One trigger.
#[utoipa::path(get, path = "/api/triggers/{id}", operation_id = "getTrigger", tag = "pipelines",
    params(("id" = String, Path)), responses((status = 200, description = "The trigger", body = TriggerView)))]
pub(super) async fn get(
    State(plane): State<Arc<Pipelines>>,
    Path(id): Path<String>,
) -> Result<Json<TriggerView>, Problem> {
    triggers::get(&plane.db, &id).await?.map(|row| Json(row.into())).ok_or_else(|| missing(&id))
}

/// Makes a trigger, or changes it.
#[utoipa::path(put, path = "/api/triggers/{id}", operation_id = "putTrigger", tag = "pipelines",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = NewTrigger,
    responses((status = 200, description = "Made or changed", body = TriggerView)))]
pub(super) async fn put(
    State(plane): State<Arc<Pipelines>>,
    caller: Caller,
    Path(id): Path<String>,
    key: IdempotencyKey,
    Body(new): Body<NewTrigger>,
) -> Result<Response, Stop> {
    let mut faults = new.when.trigger().check();
    if !is_id(&id) {
        faults.push(Fault::at("id", "is no id: a letter, then letters, digits, `_` and `-`"));
    }
    if let Some(fault) = new.input.as_ref().and_then(triggers::fault_of_input) {
        faults.push(fault);
    }
    if !faults.is_empty() {
        return Err(invalid(faults).into());
    }
    let mut change = Change::begin(&plane.db, caller, &format!("PUT /api/triggers/{id}"), key, &new).await?;
    if store::newest_version_in(&mut change.tx, &new.pipeline).await?.is_none() {
        return Err(no_pipeline(&new.pipeline).into());
    }
    let now = change.tx.now().await?;
    let due_at = if new.is_active { new.when.trigger().due_after(now) } else { None };
    triggers::put(&mut change.tx, &id, &new, due_at).await?;
    let row = triggers::lock(&mut change.tx, &id).await?.ok_or_else(|| missing(&id))?;
    let view = TriggerView::from(row);
    let payload = json!({ "pipeline": new.pipeline, "when": new.when, "active": new.is_active });
    change.commit("pipelines.trigger_put", format!("trigger:{id}"), payload, StatusCode::OK, &view).await
}

async fn switch(
    plane: &Pipelines,
    caller: Caller,
    id: String,
    key: IdempotencyKey,
    active: bool,
) -> Result<Response, Stop> {
    let (word, event) = match active {
        true => ("start", "pipelines.trigger_started"),
        false => ("stop", "pipelines.trigger_stopped"),
    };
    let mut change = Change::begin(&plane.db, caller, &format!("POST /api/triggers/{id}/{word}"), key, &active).await?;
    let row = triggers::lock(&mut change.tx, &id).await?.ok_or_else(|| missing(&id))?;
    let now = change.tx.now().await?;
    // Times that passed while it stood still are not made up for.
    let due_at = if active { row.settings.0.trigger().due_after(now) } else { None };
    triggers::set_active(&mut change.tx, &id, active, due_at).await?;
    let row = triggers::lock(&mut change.tx, &id).await?.ok_or_else(|| missing(&id))?;
    let view = TriggerView::from(row);
    change.commit(event, format!("trigger:{id}"), json!({ "active": active }), StatusCode::OK, &view).await
}

/// Starts a trigger. Times that passed while it stood still are not made up for.
#[utoipa::path(post, path = "/api/triggers/{id}/start", operation_id = "startTrigger", tag = "pipelines",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "Started", body = TriggerView)))]
pub(super) async fn start(
    State(plane): State<Arc<Pipelines>>,
    caller: Caller,
    Path(id): Path<String>,
    key: IdempotencyKey,
) -> Result<Response, Stop> {
    switch(&plane, caller, id, key, true).await
}

/// Stops a trigger.
#[utoipa::path(post, path = "/api/triggers/{id}/stop", operation_id = "stopTrigger", tag = "pipelines",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "Stopped", body = TriggerView)))]
pub(super) async fn stop(
    State(plane): State<Arc<Pipelines>>,
    caller: Caller,
    Path(id): Path<String>,
    key: IdempotencyKey,
) -> Result<Response, Stop> {
    switch(&plane, caller, id, key, false).await
}

/// Fires a trigger of the kind `http` or `manual`. One that has a token or a secret is fired by whoever has that; any
/// other takes a token of the service, of an operator. A repeated `webhook-id` or `Idempotency-Key` fires once.
#[utoipa::path(post, path = "/api/triggers/{id}/fire", operation_id = "fireTrigger", tag = "pipelines", security(()),
    params(("id" = String, Path), TriggerQuery,
           ("X-Trigger-Token" = Option<String>, Header), ("webhook-id" = Option<String>, Header),
           ("webhook-timestamp" = Option<String>, Header), ("webhook-signature" = Option<String>, Header)),
    request_body(content = Object, content_type = "application/json"),
    responses((status = 200, description = "The run ended within the wait", body = RunView),
              (status = 202, description = "Fired: `runId`, or `skipped`", body = Object),
              (status = 401, description = "The trigger has no key of its own, and no token of the service came", body = Problem, content_type = "application/problem+json"),
              (status = 403, description = "The key is missing or wrong", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn fire(
    State(plane): State<Arc<Pipelines>>,
    Path(id): Path<String>,
    Params(query): Params<TriggerQuery>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Stop> {
    let row = triggers::get(&plane.db, &id).await?.ok_or_else(|| missing(&id))?;
    if !row.settings.0.trigger().has_key() {
        let Some(Extension(caller)) = caller else {
            let detail =
                "This trigger has no key of its own: send a token of the service, `Authorization: Bearer <token>`.";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).into());
        };
        caller.require(Role::Operator)?;
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let now = plane.db.now().await?;
    let knock = Knock {
        token: header("x-trigger-token"),
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
        body: &body,
        now: now.utc().timestamp(),
    };
    if let Err(reason) = row.settings.0.trigger().opens(&knock) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", format!("Not fired: {reason}.")).into());
    }
    if !row.is_active {
        return Err(Problem::conflict(format!("Trigger `{id}` is stopped; POST /api/triggers/{id}/start.")).into());
    }
    let input = input(&body)?;
    let occasion = header("webhook-id").or_else(|| header("idempotency-key"));
    let occasion = occasion.map_or_else(|| plane.random.token(), |given| given.chars().take(255).collect());
    let answer = match plane.fire(&row, &occasion, input).await? {
        Fired::Run(run) => {
            if let Some(Span(wait)) = query.wait {
                tokio::select! {
                    end = plane.wait_for(run) => drop(end?),
                    () = plane.clock.sleep(wait.min(LONGEST_WAIT)) => {}
                }
                if let Some(run) = store::run(&plane.db, run).await?
                    && run.finished_at.is_some()
                {
                    return Ok((StatusCode::OK, Json(RunView::from(run))).into_response());
                }
            }
            json!({ "runId": run, "pipelineId": row.pipeline_id })
        }
        Fired::Skipped => {
            json!({ "skipped": "a run that this trigger began is still open, or the trigger was stopped meanwhile" })
        }
        Fired::Refused(reason) => return Err(invalid(vec![Fault::at("body", reason)]).into()),
    };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}
