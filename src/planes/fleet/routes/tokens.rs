//! `/v1/agents/{id}/tokens`: tokens of single agents, for administrators.
//!
//! To change an agent's token without a gap: make a new one, give it to the agent (which says hello with it when it
//! next connects, or at once on its open connection), then revoke the old one.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::actor::{Caller, Role};
use crate::ledger::{self, Entry};
use crate::planes::fleet::intake::hash;
use crate::planes::fleet::protocol::close;
use crate::planes::fleet::store::tokens::{self, AgentToken};
use crate::planes::fleet::{Change, Fleet};
use crate::problem::Problem;
use crate::web::{Body, Path};

/// Good tokens of one agent: one in use, one to change to, and some that were forgotten.
const MOST_TOKENS: i64 = 10;
const LONGEST: usize = 150;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// What it is for.
    #[serde(default)]
    #[schema(max_length = 150)]
    name: Option<String>,
}

/// A new token: the only time that it is shown.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct MadeToken {
    /// The secret that the agent sends in `auth.token`.
    token: String,
    #[serde(flatten)]
    about: AgentToken,
}

fn check(field: &str, text: &str) -> Result<(), Problem> {
    let fits = (1..=LONGEST).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits {
        return Ok(());
    }
    let message = format!("takes 1 to {LONGEST} printable characters");
    Err(Problem::refused(field, message))
}

/// The agent's tokens, without their secrets.
#[utoipa::path(get, path = "/v1/agents/{id}/tokens", operation_id = "listAgentTokens", tag = "fleet",
    params(("id" = String, Path)), responses((status = 200, description = "The newest 100 tokens", body = [AgentToken])))]
pub(super) async fn list(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Vec<AgentToken>>, Problem> {
    caller.require(Role::Admin)?;
    Ok(Json(tokens::list(&fleet.db, &id).await?))
}

/// Makes a token for one agent, also before it first connects. From then on the shared token does not let it in.
#[utoipa::path(post, path = "/v1/agents/{id}/tokens", operation_id = "createAgentToken", tag = "fleet",
    params(("id" = String, Path)), request_body = NewToken,
    responses((status = 201, description = "Made; the token is shown this once", body = MadeToken),
              (status = 409, description = "It has ten good tokens", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Result<Body<NewToken>, Problem>,
) -> Result<Response, Problem> {
    caller.require(Role::Admin)?;
    let Body(new) = body?;
    check("id", &id)?;
    if let Some(name) = &new.name {
        check("name", name)?;
    }
    let token = format!("sra_{}{}", fleet.random.token(), fleet.random.token());
    let mut tx = fleet.db.begin().await?;
    // Under the lock: a hello that is being taken sees it or comes before it.
    let change = Change::begin(&mut tx, &fleet.rules).await?;
    if tokens::count(&mut tx, &id).await? >= MOST_TOKENS {
        return Err(Problem::conflict(format!("Agent `{id}` has {MOST_TOKENS} good tokens; revoke one first.")));
    }
    let about = tokens::insert(&mut tx, &id, new.name, &hash(&token), &caller.actor().to_string()).await?;
    let saved = change.save(&mut tx, Some(&fleet.instance)).await?;
    let entry = Entry::new("fleet.agent_token_created", caller.actor(), json!({ "token": about.id }));
    ledger::append(&mut tx, &[entry.subject(format!("agent:{id}"))]).await?;
    tx.commit().await?;
    fleet.told(saved).await;
    Ok((StatusCode::CREATED, Json(MadeToken { token, about })).into_response())
}

/// Revokes a token. A connection that was opened with it is cut off at once.
#[utoipa::path(delete, path = "/v1/agents/{id}/tokens/{tokenId}", operation_id = "revokeAgentToken", tag = "fleet",
    params(("id" = String, Path), ("tokenId" = i64, Path)),
    responses((status = 200, description = "Revoked", body = AgentToken)))]
pub(super) async fn revoke(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Path((id, token)): Path<(String, i64)>,
) -> Result<Json<AgentToken>, Problem> {
    caller.require(Role::Admin)?;
    let mut tx = fleet.db.begin().await?;
    let mut change = Change::begin(&mut tx, &fleet.rules).await?;
    let revoked = tokens::revoke(&mut tx, &id, token).await?;
    let revoked = revoked.ok_or_else(|| {
        Problem::not_found(format!("Agent `{id}` has no token {token}; GET /v1/agents/{id}/tokens lists them."))
    })?;
    change.load(&mut tx, &[&id], &[]).await?;
    if change.agent(&id).is_some_and(|agent| agent.token_id == Some(token)) {
        change.cut_off(&id, close::UNAUTHORIZED, "this token was revoked");
    }
    let saved = change.save(&mut tx, Some(&fleet.instance)).await?;
    let entry = Entry::new("fleet.agent_token_revoked", caller.actor(), json!({ "token": token }));
    ledger::append(&mut tx, &[entry.subject(format!("agent:{id}"))]).await?;
    tx.commit().await?;
    fleet.told(saved).await;
    Ok(Json(revoked))
}
