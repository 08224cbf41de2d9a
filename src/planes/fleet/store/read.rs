//! Rows as the doors show them, and what is due.

use super::{of_agents, of_jobs};
use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::planes::fleet::record::{Agent, Job, Template};

/// Jobs in the order in which they were made, behind `after`.
pub async fn list_jobs(db: &Db, after: i64, limit: i64) -> Result<Vec<Job>> {
    db.query(of_jobs!("WHERE id > $1 ORDER BY id LIMIT $2")).bind(after).bind(limit).all().await
}

/// Agents by id, behind `after`.
pub async fn list_agents(db: &Db, after: &str, limit: i64) -> Result<Vec<Agent>> {
    db.query(of_agents!("WHERE id > $1 ORDER BY id LIMIT $2")).bind(after.to_owned()).bind(limit).all().await
}

pub async fn job(db: &Db, id: i64) -> Result<Option<Job>> {
    db.query(of_jobs!("WHERE id = $1")).bind(id).optional().await
}

pub async fn agent(db: &Db, id: &str) -> Result<Option<Agent>> {
    db.query(of_agents!("WHERE id = $1")).bind(id.to_owned()).optional().await
}

macro_rules! of_templates {
    ($rest:literal) => {
        concat!(
            "SELECT id, description, config, requires, restart_policy, priority, created_at, updated_at
             FROM stream_templates ",
            $rest
        )
    };
}

/// Templates by id, behind `after`.
pub async fn list_templates(db: &Db, after: &str, limit: i64) -> Result<Vec<Template>> {
    db.query(of_templates!("WHERE id > $1 ORDER BY id LIMIT $2")).bind(after.to_owned()).bind(limit).all().await
}

pub async fn template(tx: &mut Tx, id: &str) -> Result<Option<Template>> {
    tx.query(of_templates!("WHERE id = $1")).bind(id.to_owned()).optional().await
}

/// Makes a template, or changes it.
pub async fn put_template(tx: &mut Tx, template: &Template) -> Result<()> {
    tx.query(
        "INSERT INTO stream_templates (id, description, config, requires, restart_policy, priority, created_at,
             updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
         ON CONFLICT (id) DO UPDATE SET description = excluded.description, config = excluded.config,
             requires = excluded.requires, restart_policy = excluded.restart_policy, priority = excluded.priority,
             updated_at = excluded.updated_at",
    )
    .bind(template.id.clone())
    .bind(template.description.clone())
    .bind(Json(serde_json::to_value(&template.config.0).unwrap_or_default()))
    .bind(Json(serde_json::to_value(&template.requires.0).unwrap_or_default()))
    .bind(template.restart_policy.as_str().to_owned())
    .bind(template.priority)
    .bind(template.updated_at)
    .execute()
    .await?;
    Ok(())
}

/// Whether there was one.
pub async fn delete_template(tx: &mut Tx, id: &str) -> Result<bool> {
    Ok(tx.query("DELETE FROM stream_templates WHERE id = $1").bind(id.to_owned()).execute().await? == 1)
}

/// Jobs about which something is to be done by itself.
pub async fn due_jobs(db: &Db, now: Timestamp, limit: i64) -> Result<Vec<i64>> {
    let ids: Vec<(i64,)> = db
        .query_kept("SELECT id FROM stream_jobs WHERE due_at <= $1 ORDER BY due_at LIMIT $2")
        .bind(now)
        .bind(limit)
        .all()
        .await?;
    Ok(ids.into_iter().map(|(id,)| id).collect())
}

/// Agents whose drain has lasted long enough, or that have rested from their faults.
pub async fn due_agents(db: &Db, now: Timestamp, limit: i64) -> Result<Vec<String>> {
    let ids: Vec<(String,)> = db
        .query_kept(
            "SELECT id FROM (SELECT id FROM agents WHERE drain_deadline_at <= $1
                             UNION SELECT id FROM agents WHERE faulted_until <= $1) AS due ORDER BY id LIMIT $2",
        )
        .bind(now)
        .bind(limit)
        .all()
        .await?;
    Ok(ids.into_iter().map(|(id,)| id).collect())
}

/// Agents that are connected to instances of which nothing was heard since `since`, or to any but `me` where nobody
/// else can be.
pub async fn orphans(db: &Db, me: &str, since: Option<Timestamp>, limit: i64) -> Result<Vec<(String, i64)>> {
    db.query(
        "SELECT id, connection FROM agents WHERE instance IS NOT NULL AND instance <> $1
           AND ($2 IS NULL OR instance NOT IN (SELECT id FROM fleet_instances WHERE seen_at >= $2))
         ORDER BY id LIMIT $3",
    )
    .bind(me.to_owned())
    .bind(since)
    .bind(limit)
    .all()
    .await
}

/// Whether commands wait for this instance.
pub async fn has_commands(db: &Db, instance: &str) -> Result<bool> {
    let (there,): (bool,) = db
        .query_kept("SELECT EXISTS (SELECT 1 FROM agent_commands WHERE instance = $1)")
        .bind(instance.to_owned())
        .one()
        .await?;
    Ok(there)
}

/// Whether an instance other than `me` was heard of since `since`.
pub async fn others_live(db: &Db, me: &str, since: Timestamp) -> Result<bool> {
    let (there,): (bool,) = db
        .query("SELECT EXISTS (SELECT 1 FROM fleet_instances WHERE id <> $1 AND seen_at >= $2)")
        .bind(me.to_owned())
        .bind(since)
        .one()
        .await?;
    Ok(there)
}

/// Whether there are instances that were not heard of since `before`, or commands that nobody has taken since.
pub async fn has_forgotten(db: &Db, before: Timestamp) -> Result<bool> {
    let (there,): (bool,) = db
        .query(
            "SELECT EXISTS (SELECT 1 FROM fleet_instances WHERE seen_at < $1
                            UNION ALL SELECT 1 FROM agent_commands WHERE created_at < $1)",
        )
        .bind(before)
        .one()
        .await?;
    Ok(there)
}
