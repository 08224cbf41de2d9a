//! `/v1/agents`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{limit, listed};
use crate::actor::{Caller, Role};
use crate::db::Timestamp;
use crate::ledger::{self, Entry};
use crate::planes::fleet::store::read;
use crate::planes::fleet::{AgentView, Change, Fleet};
use crate::problem::Problem;
use crate::web::{Body, Params, Path};

/// A drain of a week is a decommissioning.
const LONGEST_DRAIN_SECONDS: u64 = 7 * 24 * 3600;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AgentsQuery {
    /// How many, 1 to 1,000; 1,000 if it is not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Behind this agent.
    after: Option<String>,
}

/// Whether an agent is given anything new.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NewDrain {
    drain: bool,
    /// What still runs after so many seconds is begun on another agent; without it the agent finishes what it has.
    #[serde(default)]
    #[schema(maximum = 604_800)]
    deadline_seconds: Option<u64>,
}

pub(super) fn missing(id: &str) -> Problem {
    Problem::not_found(format!("There is no agent `{id}`; GET /v1/agents lists them."))
}

impl Fleet {
    /// With the last sign of life, which the table has only now and then.
    fn seen(&self, mut view: AgentView) -> AgentView {
        if let Some(ago) = self.hub.silent_for(&view.id, self.clock.elapsed()) {
            view.last_seen_at = Timestamp::new(self.clock.now()).before(ago).max(view.last_seen_at);
        }
        view
    }
}

/// All agents, by id.
#[utoipa::path(get, path = "/v1/agents", operation_id = "listAgents", tag = "fleet", params(AgentsQuery),
    responses((status = 200, description = "Agents; the header `Link` says where the rest is", body = [AgentView])))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    Params(query): Params<AgentsQuery>,
) -> Result<Response, Problem> {
    let limit = limit(query.limit)?;
    let agents = read::list_agents(&fleet.db, &query.after.unwrap_or_default(), limit + 1).await?;
    let views: Vec<AgentView> = agents.into_iter().map(|agent| fleet.seen(agent.into())).collect();
    Ok(listed(views, limit, "/v1/agents", |view| view.id.clone()))
}

/// One agent.
#[utoipa::path(get, path = "/v1/agents/{id}", operation_id = "getAgent", tag = "fleet", params(("id" = String, Path)),
    responses((status = 200, description = "The agent", body = AgentView)))]
pub(super) async fn get(State(fleet): State<Arc<Fleet>>, Path(id): Path<String>) -> Result<Json<AgentView>, Problem> {
    let agent = read::agent(&fleet.db, &id).await?.ok_or_else(|| missing(&id))?;
    Ok(Json(fleet.seen(agent.into())))
}

/// Gives an agent nothing new, or lets it work again. What runs goes on, until the deadline if there is one.
#[utoipa::path(post, path = "/v1/agents/{id}/drain", operation_id = "drainAgent", tag = "fleet",
    params(("id" = String, Path)), request_body = NewDrain,
    responses((status = 200, description = "The agent as it is now", body = AgentView)))]
pub(super) async fn drain(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<NewDrain>,
) -> Result<Json<AgentView>, Problem> {
    caller.require(Role::Operator)?;
    if wanted.deadline_seconds.is_some_and(|seconds| seconds > LONGEST_DRAIN_SECONDS) {
        let message = format!("takes at most {LONGEST_DRAIN_SECONDS} seconds, a week");
        return Err(Problem::refused("deadlineSeconds", message));
    }
    let deadline = wanted.deadline_seconds.map(Duration::from_secs);
    let mut tx = fleet.db.begin().await?;
    let mut change = Change::begin(&mut tx, &fleet.rules).await?;
    change.load(&mut tx, &[&id], &[]).await?;
    if !change.drain(&id, wanted.drain, &caller.actor().to_string(), deadline) {
        return Err(missing(&id));
    }
    let saved = change.save(&mut tx, Some(&fleet.instance)).await?;
    let event = if wanted.drain { "fleet.agent_drained" } else { "fleet.agent_undrained" };
    let payload = json!({ "deadline_seconds": wanted.deadline_seconds });
    let entry = Entry::new(event, caller.actor(), payload).subject(format!("agent:{id}"));
    ledger::append(&mut tx, &[entry]).await?;
    tx.commit().await?;
    fleet.told(saved).await;
    get(State(fleet), Path(id)).await
}
