//! Tokens of single agents, by their hashes.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::db::{Db, Json, Result, Sql, Timestamp, Tx};

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct AgentToken {
    pub id: i64,
    pub agent_id: String,
    pub name: Option<String>,
    pub created_by: String,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// A token as it is checked.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Known {
    pub id: i64,
    pub agent_id: String,
    pub hash: String,
    pub revoked: bool,
}

/// All tokens of these agents, the revoked too.
pub async fn of_agents(tx: &mut Tx, agents: &[&str]) -> Result<Vec<Known>> {
    const TEXT: Sql = Sql {
        sqlite: "SELECT id, agent_id, hash, revoked_at IS NOT NULL AS revoked FROM agent_tokens
                 WHERE agent_id IN (SELECT value FROM json_each($1))",
        postgres: "SELECT id, agent_id, hash, revoked_at IS NOT NULL AS revoked FROM agent_tokens
                   WHERE agent_id IN (SELECT jsonb_array_elements_text($1))",
    };
    tx.query(TEXT).bind(Json(json!(agents))).all().await
}

pub async fn list(db: &Db, agent: &str) -> Result<Vec<AgentToken>> {
    db.query(
        "SELECT id, agent_id, name, created_by, created_at, revoked_at FROM agent_tokens WHERE agent_id = $1
         ORDER BY id LIMIT 100",
    )
    .bind(agent.to_owned())
    .all()
    .await
}

/// How many tokens of an agent are good.
pub async fn count(tx: &mut Tx, agent: &str) -> Result<i64> {
    let (count,): (i64,) = tx
        .query("SELECT COUNT(*) FROM agent_tokens WHERE agent_id = $1 AND revoked_at IS NULL")
        .bind(agent.to_owned())
        .one()
        .await?;
    Ok(count)
}

pub async fn insert(tx: &mut Tx, agent: &str, name: Option<String>, hash: &str, by: &str) -> Result<AgentToken> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO agent_tokens (agent_id, name, hash, created_by, created_at) VALUES ($1, $2, $3, $4, $5)
         RETURNING id, agent_id, name, created_by, created_at, revoked_at",
    )
    .bind(agent.to_owned())
    .bind(name)
    .bind(hash.to_owned())
    .bind(by.to_owned())
    .bind(now)
    .one()
    .await
}

/// The revoked token, if there is one.
pub async fn revoke(tx: &mut Tx, agent: &str, id: i64) -> Result<Option<AgentToken>> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE agent_tokens SET revoked_at = coalesce(revoked_at, $3) WHERE agent_id = $1 AND id = $2
         RETURNING id, agent_id, name, created_by, created_at, revoked_at",
    )
    .bind(agent.to_owned())
    .bind(id)
    .bind(now)
    .optional()
    .await
}
