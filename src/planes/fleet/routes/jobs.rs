//! `/v1/jobs`: stream jobs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::{check_config, limit, listed};
use crate::actor::{Caller, Role};
use crate::events::{self, Event};
use crate::ledger::{self, Entry};
use crate::planes::fleet::model::{JobId, RestartPolicy};
use crate::planes::fleet::store::{self, NewJob, read};
use crate::planes::fleet::{Change, Fleet, JobView, metadata};
use crate::problem::{FieldError, Problem};
use crate::web::{Body, Checks, Cursor, Limit, Page, Params, Path};

const LONGEST_KEY: usize = 255;
const LONGEST_NAME: usize = 150;
/// Agents that a job may name.
const MOST_PREFERRED: usize = 20;
/// Bytes of what a job requires: it is held against every kind of agent.
const MOST_REQUIRED: usize = 4 * 1024;
/// Priorities go so far up and down.
const PRIORITIES: i64 = 1_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JobsQuery {
    /// How many, 1 to 1,000; 1,000 if it is not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Behind this job.
    after: Option<String>,
}

/// A job to submit: exactly one of `templateId` and `inlineConfig`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SubmittedJob {
    /// A template of GET /v1/templates.
    template_id: Option<String>,
    /// What the agent needs to know, as it understands it; at most 512 KiB.
    #[schema(value_type = Option<Object>)]
    inline_config: Option<Map<String, Value>>,
    /// The same key is the same job, for as long as that is kept.
    #[schema(max_length = 255)]
    idempotency_key: Option<String>,
    /// `never` unless the template or this says otherwise.
    restart_policy: Option<RestartPolicy>,
    /// A larger one gets an agent first, -1000 to 1000.
    #[schema(minimum = -1000, maximum = 1000)]
    priority: Option<i64>,
    /// Capabilities that the agent must have: a number or resolution at least as large, a list that holds it, else the
    /// same.
    #[schema(value_type = Option<Object>)]
    requires: Option<Map<String, Value>>,
    /// Agents that get it if they have a slot, at most 20.
    #[serde(default)]
    prefers: Vec<String>,
    /// Jobs of one group go to different agents while there are any.
    #[schema(max_length = 150)]
    group: Option<String>,
}

/// What is known of a stream; further keys are kept as they are.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamMetadata {
    title: Option<String>,
    description: Option<String>,
    #[schema(minimum = 0)]
    viewers: Option<i64>,
    public_url: Option<String>,
    admin_url: Option<String>,
    /// As the agent acknowledged it; a PUT leaves it alone.
    is_muted: Option<bool>,
    stream_id: Option<String>,
    /// e.g. `youtube`, `twitch`
    platform: Option<String>,
}

fn missing(id: &str) -> Problem {
    Problem::not_found(format!("There is no job `{id}`; GET /v1/jobs lists them."))
}

fn number(id: &str) -> Result<i64, Problem> {
    id.parse::<JobId>().map(|id| id.0).map_err(|_| missing(id))
}

/// Stream jobs in the order in which they were submitted.
#[utoipa::path(get, path = "/v1/jobs", operation_id = "listStreamJobs", tag = "fleet", params(JobsQuery),
    responses((status = 200, description = "Jobs; the header `Link` says where the rest is", body = [JobView])))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    Params(query): Params<JobsQuery>,
) -> Result<Response, Problem> {
    let limit = limit(query.limit)?;
    let after = match query.after.as_deref().map(str::parse::<JobId>) {
        None => 0,
        Some(Ok(id)) => id.0,
        Some(Err(wrong)) => return Err(Problem::refused("after", wrong.to_string())),
    };
    let jobs = read::list_jobs(&fleet.db, after, limit + 1).await?;
    let views: Vec<JobView> = jobs.into_iter().map(JobView::from).collect();
    Ok(listed(views, limit, "/v1/jobs", |view| view.id.to_string()))
}

/// One stream job; to operators with its configuration.
#[utoipa::path(get, path = "/v1/jobs/{id}", operation_id = "getStreamJob", tag = "fleet", params(("id" = String, Path)),
    responses((status = 200, description = "The job", body = JobView)))]
pub(super) async fn get(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Problem> {
    shown(&fleet, &caller, number(&id)?).await.map(Json)
}

async fn shown(fleet: &Fleet, caller: &Caller, id: i64) -> Result<JobView, Problem> {
    let job = read::job(&fleet.db, id).await?.ok_or_else(|| missing(&JobId(id).to_string()))?;
    let config = (caller.role >= Role::Operator).then(|| job.config.0.clone());
    Ok(JobView { config, ..job.into() })
}

fn check(job: &SubmittedJob) -> Result<(), Problem> {
    let mut checks = Checks::default();
    match (&job.template_id, &job.inline_config) {
        (Some(_), Some(_)) => checks.refuse("inlineConfig", "stands beside templateId; give one of them"),
        (None, None) => {
            checks.refuse("templateId", "is missing: name a template, or give the configuration itself in inlineConfig")
        }
        _ => {}
    }
    if let Some(config) = &job.inline_config {
        check_config(&mut checks, "inlineConfig", config);
    }
    checks.text("idempotencyKey", job.idempotency_key.as_deref(), LONGEST_KEY);
    checks.text("group", job.group.as_deref(), LONGEST_NAME);
    checks.range("priority", job.priority, (-PRIORITIES, PRIORITIES));
    if job.prefers.len() > MOST_PREFERRED {
        checks.refuse("prefers", format!("takes at most {MOST_PREFERRED} agents"));
    }
    if job.requires.as_ref().is_some_and(|wanted| Value::Object(wanted.clone()).to_string().len() > MOST_REQUIRED) {
        checks.refuse("requires", format!("takes at most {MOST_REQUIRED} bytes"));
    }
    checks.done()
}

/// Submits a stream job. It waits for an agent with a free slot and what it requires; meanwhile `reason` says why.
#[utoipa::path(post, path = "/v1/jobs", operation_id = "submitStreamJob", tag = "fleet", request_body = SubmittedJob,
    responses((status = 201, description = "Submitted", body = JobView),
              (status = 200, description = "The job that was submitted under this key before", body = JobView)))]
pub(super) async fn submit(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Body(job): Body<SubmittedJob>,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?;
    check(&job)?;
    let request = serde_json::to_vec(&job).map_err(Problem::internal)?;
    let request_hash: String = Sha256::digest(request).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut tx = fleet.db.begin().await?;
    let mut change = Change::begin(&mut tx, &fleet.rules).await?;
    if let Some(key) = &job.idempotency_key
        && let Some((id, earlier)) = store::job_of_key(&mut tx, key).await?
    {
        drop(tx);
        if earlier != request_hash {
            return Err(Problem::refused(
                "idempotencyKey",
                format!("was used for {}, which is another job; take a new key", JobId(id)),
            ));
        }
        return Ok(Json(shown(&fleet, &caller, id).await?).into_response());
    }
    let template = match &job.template_id {
        Some(id) => Some(read::template(&mut tx, id).await?.ok_or_else(|| {
            Problem::refused("templateId", format!("there is no template `{id}`; GET /v1/templates lists them"))
        })?),
        None => None,
    };
    let config = template
        .as_ref()
        .map_or_else(|| job.inline_config.clone().unwrap_or_default(), |template| template.config.0.clone());
    let requires = job.requires.or_else(|| template.as_ref().map(|template| template.requires.0.clone()));
    let policy = job.restart_policy.or(template.as_ref().map(|template| template.restart_policy));
    let new = NewJob {
        template_id: job.template_id,
        config: Value::Object(config),
        requires: Value::Object(requires.unwrap_or_default()),
        prefers: job.prefers,
        group_name: job.group,
        priority: job.priority.or(template.map(|template| template.priority)).unwrap_or(0),
        restart_policy: policy.unwrap_or(RestartPolicy::Never).as_str(),
        idempotency_key: job.idempotency_key,
        request_hash,
    };
    let id = store::insert_job(&mut tx, &new, change.next_revision()).await?;
    let saved = change.save(&mut tx, Some(&fleet.instance)).await?;
    tx.commit().await?;
    let view = shown(&fleet, &caller, id).await?;
    fleet.told(saved).await;
    let mut response = (StatusCode::CREATED, Json(view)).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/v1/jobs/{}", JobId(id))) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Changes a job by `work`, whose refusal is a conflict.
async fn changed(
    fleet: &Fleet,
    caller: &Caller,
    id: &str,
    entry: Option<&'static str>,
    work: impl FnOnce(&mut Change, i64) -> Result<(), String>,
) -> Result<Json<JobView>, Problem> {
    caller.require(Role::Operator)?;
    let job = number(id)?;
    let mut tx = fleet.db.begin().await?;
    let mut change = Change::begin(&mut tx, &fleet.rules).await?;
    change.load(&mut tx, &[], &[job]).await?;
    if change.job(job).is_none() {
        return Err(missing(id));
    }
    work(&mut change, job).map_err(|refusal| Problem::conflict(format!("Not possible: {refusal}.")))?;
    let saved = change.save(&mut tx, Some(&fleet.instance)).await?;
    if let Some(event) = entry {
        let entry = Entry::new(event, caller.actor(), json!({})).subject(format!("stream:{id}"));
        ledger::append(&mut tx, &[entry]).await?;
    }
    tx.commit().await?;
    fleet.told(saved).await;
    shown(fleet, caller, job).await.map(Json)
}

/// Ends a job: at once while it waits (`CANCELED`), else by its agent, which is told to kill it if it does not end.
#[utoipa::path(post, path = "/v1/jobs/{id}/stop", operation_id = "stopStreamJob", tag = "fleet",
    params(("id" = String, Path)),
    responses((status = 200, description = "The job as it is now", body = JobView),
              (status = 409, description = "It has ended already", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stop(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Problem> {
    changed(&fleet, &caller, &id, Some("fleet.stream_stopped"), |change, job| change.stop(job)).await
}

/// Mutes the sound of a running job. The agent's acknowledgement shows in `isMuted` of its metadata.
#[utoipa::path(post, path = "/v1/jobs/{id}/mute", operation_id = "muteStreamJob", tag = "fleet",
    params(("id" = String, Path)),
    responses((status = 202, description = "The agent was told", body = JobView),
              (status = 409, description = "It does not run, or its agent is offline", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn mute(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let view = changed(&fleet, &caller, &id, None, |change, job| change.set_muted(job, true)).await?;
    Ok((StatusCode::ACCEPTED, view).into_response())
}

/// Takes the mute back.
#[utoipa::path(post, path = "/v1/jobs/{id}/unmute", operation_id = "unmuteStreamJob", tag = "fleet",
    params(("id" = String, Path)),
    responses((status = 202, description = "The agent was told", body = JobView),
              (status = 409, description = "It does not run, or its agent is offline", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn unmute(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let view = changed(&fleet, &caller, &id, None, |change, job| change.set_muted(job, false)).await?;
    Ok((StatusCode::ACCEPTED, view).into_response())
}

/// What is known of the stream.
#[utoipa::path(get, path = "/v1/jobs/{id}/metadata", operation_id = "getStreamMetadata", tag = "fleet",
    params(("id" = String, Path)), responses((status = 200, description = "The metadata", body = StreamMetadata)))]
pub(super) async fn metadata(
    State(fleet): State<Arc<Fleet>>,
    Path(id): Path<String>,
) -> Result<Json<Map<String, Value>>, Problem> {
    let job = read::job(&fleet.db, number(&id)?).await?.ok_or_else(|| missing(&id))?;
    Ok(Json(job.metadata.0))
}

/// Merges what is given into what is known; null takes a key away.
#[utoipa::path(put, path = "/v1/jobs/{id}/metadata", operation_id = "putStreamMetadata", tag = "fleet",
    params(("id" = String, Path)), request_body = StreamMetadata,
    responses((status = 200, description = "The metadata as it is now", body = StreamMetadata)))]
pub(super) async fn set_metadata(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(changes): Body<Map<String, Value>>,
) -> Result<Json<Map<String, Value>>, Problem> {
    let mut faults = Vec::new();
    let merged = changed(&fleet, &caller, &id, None, |change, job| {
        change.set_metadata(job, &changes).map_err(|found| {
            faults = found;
            String::new()
        })
    });
    match merged.await {
        Ok(Json(view)) => Ok(Json(view.metadata)),
        Err(_) if !faults.is_empty() => Err(Problem::invalid(faults)),
        Err(problem) => Err(problem),
    }
}

impl Change {
    fn set_metadata(&mut self, job: i64, changes: &Map<String, Value>) -> Result<(), Vec<FieldError>> {
        match self.job_mut(job) {
            Some(row) => metadata::merge(&mut row.metadata.0, changes),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    #[serde(default)]
    #[param(required = false, value_type = i64, minimum = 1, maximum = 500)]
    limit: Limit,
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor<i64>>,
}

/// What happened to a job, newest first.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", operation_id = "listStreamJobEvents", tag = "fleet",
    params(("id" = String, Path), EventsQuery),
    responses((status = 200, description = "A page of events", body = Page<Event>)))]
pub(super) async fn events(
    State(fleet): State<Arc<Fleet>>,
    Path(id): Path<String>,
    Params(query): Params<EventsQuery>,
) -> Result<Json<Page<Event>>, Problem> {
    read::job(&fleet.db, number(&id)?).await?.ok_or_else(|| missing(&id))?;
    let before = query.cursor.map(|Cursor(id)| id);
    let events = events::of_subject(&fleet.db, &format!("stream:{id}"), before, query.limit.fetch()).await?;
    Ok(Json(Page::cut(events, query.limit, |event| event.id.unwrap_or_default())))
}
