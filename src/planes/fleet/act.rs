//! What the loop may do to the fleet, each inside a transaction that it is given. Wake
//! [`Topic::Fleet`](crate::db::Topic) after the commit: commands wait for their instances.

use serde_json::json;

use super::change::{Change, Rules, id_of};
use crate::actor::Actor;
use crate::db::Tx;
use crate::planes::{ActError, Effect};

/// Gives an agent nothing new; never the last one that takes jobs.
pub async fn drain_agent(tx: &mut Tx, rules: &Rules, id: &str) -> Result<Effect, ActError> {
    let mut change = Change::begin(tx, rules).await?;
    change.load(tx, &[id], &[]).await?;
    let agent = change.agent(id).ok_or_else(|| ActError::refused(format!("there is no agent `{id}`")))?;
    if agent.drain {
        return Err(ActError::refused(format!("agent `{id}` is drained already")));
    }
    let (others,): (i64,) = tx
        .query(
            "SELECT COUNT(*) FROM (SELECT 1 AS one FROM agents WHERE instance IS NOT NULL AND NOT drain AND id <> $1
                                   LIMIT 1) AS others",
        )
        .bind(id.to_owned())
        .one()
        .await?;
    if others == 0 {
        return Err(ActError::refused(format!("agent `{id}` is the last one that takes jobs")));
    }
    let detail = json!({ "drops": agent.drops, "jobs": agent.busy });
    change.drain(id, true, &Actor::Loop.to_string(), None);
    change.save(tx, None).await?;
    Ok(Effect { detail })
}

/// Lets an agent work again that the loop has drained; what a person or the agent itself decided is theirs to undo.
pub async fn undrain_agent(tx: &mut Tx, rules: &Rules, id: &str) -> Result<Effect, ActError> {
    let mut change = Change::begin(tx, rules).await?;
    change.load(tx, &[id], &[]).await?;
    let agent = change.agent(id).ok_or_else(|| ActError::refused(format!("there is no agent `{id}`")))?;
    match agent.drained_by.as_deref() {
        Some("loop") => {}
        Some(by) => return Err(ActError::refused(format!("agent `{id}` was drained by {by}"))),
        None => return Err(ActError::refused(format!("agent `{id}` is not drained"))),
    }
    change.drain(id, false, &Actor::Loop.to_string(), None);
    change.save(tx, None).await?;
    Ok(Effect { detail: json!({ "agent": id }) })
}

/// Ends a stream and begins it again.
pub async fn restart_stream(tx: &mut Tx, rules: &Rules, id: &str) -> Result<Effect, ActError> {
    on_stream(tx, rules, id, Change::restart).await
}

/// Ends a stream for good.
pub async fn stop_stream(tx: &mut Tx, rules: &Rules, id: &str) -> Result<Effect, ActError> {
    on_stream(tx, rules, id, Change::stop).await
}

/// Ends a stream and begins it on another agent, where there is one.
pub async fn move_stream(tx: &mut Tx, rules: &Rules, id: &str) -> Result<Effect, ActError> {
    on_stream(tx, rules, id, Change::move_away).await
}

async fn on_stream(
    tx: &mut Tx,
    rules: &Rules,
    id: &str,
    work: impl FnOnce(&mut Change, i64) -> Result<(), String>,
) -> Result<Effect, ActError> {
    let job = id_of(id).ok_or_else(|| ActError::refused(format!("`{id}` is no job's id")))?;
    let mut change = Change::begin(tx, rules).await?;
    change.load(tx, &[], &[job]).await?;
    let before = change.job(job).map(|row| json!({ "agent": row.agent_id, "was": row.status, "lease": row.lease }));
    work(&mut change, job).map_err(ActError::Refused)?;
    change.save(tx, None).await?;
    Ok(Effect { detail: before.unwrap_or_default() })
}
