//! `/v1/templates`: what jobs are made from by name.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{check_config, limit, listed};
use crate::actor::{Caller, Role};
use crate::db;
use crate::ledger::{self, Entry};
use crate::planes::fleet::model::RestartPolicy;
use crate::planes::fleet::store::read;
use crate::planes::fleet::{Fleet, Template};
use crate::problem::Problem;
use crate::web::{Body, Checks, Params, Path};

const LONGEST_ID: usize = 150;
const LONGEST_DESCRIPTION: usize = 2_000;
const PRIORITIES: i64 = 1_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TemplatesQuery {
    /// How many, 1 to 1,000; 1,000 if it is not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Behind this template.
    after: Option<String>,
}

/// A template to make or change.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NewTemplate {
    /// 1 to 150 letters, digits, `.`, `_` and `-`. Where the path names it, it may be left out.
    #[serde(default)]
    id: Option<String>,
    #[schema(max_length = 2000)]
    description: Option<String>,
    /// What agents are given; at most 512 KiB.
    #[schema(value_type = Object)]
    config: Map<String, Value>,
    /// What an agent must have, as in a job.
    #[serde(default)]
    #[schema(value_type = Object)]
    requires: Map<String, Value>,
    #[serde(default = "never")]
    restart_policy: RestartPolicy,
    /// -1000 to 1000.
    #[serde(default)]
    #[schema(minimum = -1000, maximum = 1000)]
    priority: i64,
}

fn never() -> RestartPolicy {
    RestartPolicy::Never
}

fn missing(id: &str) -> Problem {
    Problem::not_found(format!("There is no template `{id}`; GET /v1/templates lists them."))
}

/// All templates, by id.
#[utoipa::path(get, path = "/v1/templates", operation_id = "listStreamTemplates", tag = "fleet", params(TemplatesQuery),
    responses((status = 200, description = "Templates; the header `Link` says where the rest is", body = [Template])))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Params(query): Params<TemplatesQuery>,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?; // configurations may hold stream keys
    let limit = limit(query.limit)?;
    let templates = read::list_templates(&fleet.db, &query.after.unwrap_or_default(), limit + 1).await?;
    Ok(listed(templates, limit, "/v1/templates", |template| template.id.clone()))
}

/// One template.
#[utoipa::path(get, path = "/v1/templates/{id}", operation_id = "getStreamTemplate", tag = "fleet",
    params(("id" = String, Path)), responses((status = 200, description = "The template", body = Template)))]
pub(super) async fn get(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Template>, Problem> {
    caller.require(Role::Operator)?;
    let mut tx = fleet.db.begin_read().await?;
    read::template(&mut tx, &id).await?.map(Json).ok_or_else(|| missing(&id))
}

/// Makes a template.
#[utoipa::path(post, path = "/v1/templates", operation_id = "createStreamTemplate", tag = "fleet",
    request_body = NewTemplate,
    responses((status = 201, description = "Made", body = Template),
              (status = 409, description = "There is one of this id", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Body(new): Body<NewTemplate>,
) -> Result<Response, Problem> {
    let id = new.id.clone().ok_or_else(|| Problem::refused("id", "is required"))?;
    let (template, _) = keep(&fleet, &caller, &id, new, true).await?;
    Ok((StatusCode::CREATED, Json(template)).into_response())
}

/// Makes a template, or changes it; jobs keep the configuration that they were submitted with.
#[utoipa::path(put, path = "/v1/templates/{id}", operation_id = "putStreamTemplate", tag = "fleet",
    params(("id" = String, Path)), request_body = NewTemplate,
    responses((status = 200, description = "Changed", body = Template),
              (status = 201, description = "Made", body = Template)))]
pub(super) async fn put(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(new): Body<NewTemplate>,
) -> Result<Response, Problem> {
    if new.id.as_ref().is_some_and(|given| *given != id) {
        return Err(Problem::refused("id", "is not the one in the path"));
    }
    let (template, made) = keep(&fleet, &caller, &id, new, false).await?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(template)).into_response())
}

async fn keep(
    fleet: &Fleet,
    caller: &Caller,
    id: &str,
    new: NewTemplate,
    only_new: bool,
) -> Result<(Template, bool), Problem> {
    caller.require(Role::Operator)?;
    let mut checks = Checks::default();
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(1..=LONGEST_ID).contains(&id.len()) || !id.bytes().all(letter) {
        checks.refuse("id", format!("takes 1 to {LONGEST_ID} letters, digits, `.`, `_` and `-`"));
    }
    if new.description.as_ref().is_some_and(|text| text.chars().count() > LONGEST_DESCRIPTION) {
        checks.refuse("description", format!("takes at most {LONGEST_DESCRIPTION} characters"));
    }
    checks.range("priority", Some(new.priority), (-PRIORITIES, PRIORITIES));
    check_config(&mut checks, "config", &new.config);
    checks.done()?;
    let mut tx = fleet.db.begin().await?;
    let before = read::template(&mut tx, id).await?;
    if only_new && before.is_some() {
        return Err(Problem::conflict(format!(
            "There is a template `{id}` already; PUT /v1/templates/{id} changes it."
        )));
    }
    let now = tx.now().await?;
    let template = Template {
        id: id.to_owned(),
        description: new.description,
        config: db::Json(new.config),
        requires: db::Json(new.requires),
        restart_policy: new.restart_policy,
        priority: new.priority,
        created_at: before.as_ref().map_or(now, |before| before.created_at),
        updated_at: now,
    };
    read::put_template(&mut tx, &template).await?;
    let entry = Entry::new("fleet.template_put", caller.actor(), json!({ "new": before.is_none() }));
    ledger::append(&mut tx, &[entry.subject(format!("stream_template:{id}"))]).await?;
    tx.commit().await?;
    Ok((template, before.is_none()))
}

/// Takes a template away; jobs that were made from it stay as they are.
#[utoipa::path(delete, path = "/v1/templates/{id}", operation_id = "deleteStreamTemplate", tag = "fleet",
    params(("id" = String, Path)), responses((status = 204, description = "Gone")))]
pub(super) async fn delete(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    caller.require(Role::Operator)?;
    let mut tx = fleet.db.begin().await?;
    if !read::delete_template(&mut tx, &id).await? {
        return Err(missing(&id));
    }
    let entry = Entry::new("fleet.template_deleted", caller.actor(), json!({}));
    ledger::append(&mut tx, &[entry.subject(format!("stream_template:{id}"))]).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
