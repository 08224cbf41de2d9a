//! All SQL of the fleet.
//!
//! Whoever changes something takes the fleet's lock ([`lock`]) first, so that changes happen one after the other on all
//! instances, and numbers the rows that it changes: a reader that asks for what is behind a number ([`feed`]) misses
//! nothing.

pub(super) mod feed;
pub(super) mod read;
pub(super) mod tokens;

use serde::Serialize;
use serde_json::{Value, json};

use super::model::JobStatus;
use super::record::{Agent, Job};
use crate::db::{Json, Result, Sql, Timestamp, Tx};
use crate::sql;

/// A statement over whole job rows.
macro_rules! of_jobs {
    ($rest:literal) => {
        concat!(
            "SELECT id, template_id, config, requires, prefers, group_name, priority, restart_policy, idempotency_key,
                 status, reason, wanted, agent_id, avoid, lease, due_at, killed, offers, restarts, metadata, progress,
                 progressed_at, error, exit_code, created_at, updated_at, assigned_at, started_at, ended_at, version,
                 revision
             FROM stream_jobs ",
            $rest
        )
    };
}
/// The same without what may be large and is only needed to run the job.
macro_rules! of_jobs_in_short {
    ($rest:literal) => {
        Sql {
            sqlite: concat!(
                "SELECT id, template_id, 'null' AS config, requires, prefers, group_name, priority, restart_policy,
                     idempotency_key, status, reason, wanted, agent_id, avoid, lease, due_at, killed, offers, restarts,
                     metadata, progress, progressed_at, error, exit_code, created_at, updated_at, assigned_at,
                     started_at, ended_at, version, revision
                 FROM stream_jobs ",
                $rest
            ),
            postgres: concat!(
                "SELECT id, template_id, CAST('null' AS JSONB) AS config, requires, prefers, group_name, priority,
                     restart_policy, idempotency_key, status, reason, wanted, agent_id, avoid, lease, due_at, killed,
                     offers, restarts, metadata, progress, progressed_at, error, exit_code, created_at, updated_at,
                     assigned_at, started_at, ended_at, version, revision
                 FROM stream_jobs ",
                $rest
            ),
        }
    };
}
macro_rules! of_agents {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, software_version, state, capabilities, slots, drain, drained_by, drain_deadline_at,
                 instance, connection, token_id, current_job_id, busy, failed_starts, faulted_until, drops, drops_since,
                 last_seen_at, connected_at, created_at, updated_at, version, revision
             FROM agents ",
            $rest
        )
    };
}
pub(super) use {of_agents, of_jobs, of_jobs_in_short};

/// Takes the fleet's lock until the transaction ends; returns the last number that was given.
pub async fn lock(tx: &mut Tx) -> Result<i64> {
    let (revision,): (i64,) =
        tx.query("UPDATE fleet_head SET revision = revision WHERE id = 1 RETURNING revision").one().await?;
    Ok(revision)
}

/// Notes the last number that was given in this transaction.
pub async fn set_head(tx: &mut Tx, revision: i64) -> Result<()> {
    tx.query("UPDATE fleet_head SET revision = $1 WHERE id = 1").bind(revision).execute().await?;
    Ok(())
}

/// Jobs by id.
pub async fn jobs(tx: &mut Tx, ids: &[i64]) -> Result<Vec<Job>> {
    const TEXT: Sql = Sql {
        sqlite: of_jobs!("WHERE id IN (SELECT value FROM json_each($1))"),
        postgres: of_jobs!("WHERE id IN (SELECT CAST(jsonb_array_elements_text($1) AS BIGINT))"),
    };
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    tx.query(TEXT).bind(Json(json!(ids))).all().await
}

/// Agents by id.
pub async fn agents(tx: &mut Tx, ids: &[&str]) -> Result<Vec<Agent>> {
    const TEXT: Sql = Sql {
        sqlite: of_agents!("WHERE id IN (SELECT value FROM json_each($1))"),
        postgres: of_agents!("WHERE id IN (SELECT jsonb_array_elements_text($1))"),
    };
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    tx.query(TEXT).bind(Json(json!(ids))).all().await
}

/// A job that takes up a slot, in short.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Held {
    pub agent_id: String,
    pub id: i64,
    #[sqlx(try_from = "String")]
    pub status: JobStatus,
    pub assigned_at: Option<Timestamp>,
}

/// The jobs that take up these agents' slots, in short.
pub async fn held_in_short(tx: &mut Tx, agents: &[&str]) -> Result<Vec<Held>> {
    const TEXT: Sql = Sql {
        sqlite: "SELECT agent_id, id, status, assigned_at FROM stream_jobs
                 WHERE agent_id IN (SELECT value FROM json_each($1))
                   AND status IN ('ASSIGNED', 'ACCEPTED', 'STARTING', 'RUNNING', 'STOPPING', 'UNKNOWN')",
        postgres: "SELECT agent_id, id, status, assigned_at FROM stream_jobs
                   WHERE agent_id IN (SELECT jsonb_array_elements_text($1))
                     AND status IN ('ASSIGNED', 'ACCEPTED', 'STARTING', 'RUNNING', 'STOPPING', 'UNKNOWN')",
    };
    if agents.is_empty() {
        return Ok(Vec::new());
    }
    tx.query(TEXT).bind(Json(json!(agents))).all().await
}

/// The jobs that take up these agents' slots.
pub async fn held_by(tx: &mut Tx, agents: &[&str]) -> Result<Vec<Job>> {
    const TEXT: Sql = Sql {
        sqlite: of_jobs!(
            "WHERE agent_id IN (SELECT value FROM json_each($1))
               AND status IN ('ASSIGNED', 'ACCEPTED', 'STARTING', 'RUNNING', 'STOPPING', 'UNKNOWN')"
        ),
        postgres: of_jobs!(
            "WHERE agent_id IN (SELECT jsonb_array_elements_text($1))
               AND status IN ('ASSIGNED', 'ACCEPTED', 'STARTING', 'RUNNING', 'STOPPING', 'UNKNOWN')"
        ),
    };
    if agents.is_empty() {
        return Ok(Vec::new());
    }
    tx.query(TEXT).bind(Json(json!(agents))).all().await
}

/// Rows as one JSON list, without what is null: a missing key reads as NULL on both databases.
fn rows<T: Serialize>(rows: &[&T], without: &[&str]) -> Json<Value> {
    let row = |row: &&T| {
        let mut value = serde_json::to_value(row).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.retain(|name, value| !value.is_null() && !without.contains(&name.as_str()));
        }
        value
    };
    Json(Value::Array(rows.iter().map(row).collect()))
}

/// Writes what can change of these jobs.
pub async fn write_jobs(tx: &mut Tx, jobs: &[&Job]) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let changed = rows(jobs, &["config", "requires", "prefers"]);
    tx.query(sql!(
        "UPDATE stream_jobs SET status = new.status, reason = new.reason, wanted = new.wanted, agent_id = new.agent_id,
             avoid = new.avoid, lease = new.lease, due_at = new.due_at, killed = new.killed, offers = new.offers,
             restarts = new.restarts, metadata = new.metadata, progress = new.progress,
             progressed_at = new.progressed_at, error = new.error, exit_code = new.exit_code,
             updated_at = new.updated_at, assigned_at = new.assigned_at, started_at = new.started_at,
             ended_at = new.ended_at, version = new.version, revision = new.revision
         FROM "
        {
            sqlite: "(SELECT value ->> 'id' AS id, value ->> 'status' AS status, value ->> 'reason' AS reason,
                 value ->> 'wanted' AS wanted, value ->> 'agent_id' AS agent_id, value -> 'avoid' AS avoid,
                 value ->> 'lease' AS lease, value ->> 'due_at' AS due_at, value ->> 'killed' AS killed,
                 value ->> 'offers' AS offers, value ->> 'restarts' AS restarts, value -> 'metadata' AS metadata,
                 value -> 'progress' AS progress, value ->> 'progressed_at' AS progressed_at, value ->> 'error' AS error,
                 value ->> 'exit_code' AS exit_code, value ->> 'updated_at' AS updated_at,
                 value ->> 'assigned_at' AS assigned_at, value ->> 'started_at' AS started_at,
                 value ->> 'ended_at' AS ended_at, value ->> 'version' AS version, value ->> 'revision' AS revision
               FROM json_each($1)) AS new",
            postgres: "jsonb_to_recordset($1) AS new (id BIGINT, status TEXT, reason TEXT, wanted TEXT, agent_id TEXT,
                 avoid JSONB, lease BIGINT, due_at TIMESTAMPTZ, killed BOOLEAN, offers BIGINT, restarts BIGINT,
                 metadata JSONB, progress JSONB, progressed_at TIMESTAMPTZ, error TEXT, exit_code BIGINT,
                 updated_at TIMESTAMPTZ, assigned_at TIMESTAMPTZ, started_at TIMESTAMPTZ, ended_at TIMESTAMPTZ,
                 version BIGINT, revision BIGINT)"
        }
        " WHERE stream_jobs.id = new.id"
    ))
    .bind(changed)
    .execute()
    .await?;
    Ok(())
}

/// Writes these agents, new or known.
pub async fn write_agents(tx: &mut Tx, agents: &[&Agent]) -> Result<()> {
    if agents.is_empty() {
        return Ok(());
    }
    tx.query(sql!(
        "INSERT INTO agents (id, name, software_version, state, capabilities, slots, drain, drained_by,
             drain_deadline_at, instance, connection, token_id, current_job_id, busy, failed_starts, faulted_until,
             drops, drops_since, last_seen_at, connected_at, created_at, updated_at, version, revision) "
        {
            sqlite: "SELECT value ->> 'id', value ->> 'name', value ->> 'software_version', value ->> 'state',
                 value -> 'capabilities', value ->> 'slots', value ->> 'drain', value ->> 'drained_by',
                 value ->> 'drain_deadline_at', value ->> 'instance', value ->> 'connection', value ->> 'token_id',
                 value ->> 'current_job_id', value ->> 'busy', value ->> 'failed_starts', value ->> 'faulted_until',
                 value ->> 'drops', value ->> 'drops_since', value ->> 'last_seen_at', value ->> 'connected_at',
                 value ->> 'created_at', value ->> 'updated_at', value ->> 'version', value ->> 'revision'
               FROM json_each($1) WHERE TRUE",
            postgres: "SELECT id, name, software_version, state, capabilities, slots, drain, drained_by,
                 drain_deadline_at, instance, connection, token_id, current_job_id, busy, failed_starts, faulted_until,
                 drops, drops_since, last_seen_at, connected_at, created_at, updated_at, version, revision
               FROM jsonb_to_recordset($1) AS new (id TEXT, name TEXT, software_version TEXT, state TEXT,
                 capabilities JSONB, slots BIGINT, drain BOOLEAN, drained_by TEXT, drain_deadline_at TIMESTAMPTZ,
                 instance TEXT, connection BIGINT, token_id BIGINT, current_job_id BIGINT, busy BIGINT,
                 failed_starts BIGINT, faulted_until TIMESTAMPTZ, drops BIGINT, drops_since TIMESTAMPTZ,
                 last_seen_at TIMESTAMPTZ, connected_at TIMESTAMPTZ, created_at TIMESTAMPTZ, updated_at TIMESTAMPTZ,
                 version BIGINT, revision BIGINT)"
        }
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name, software_version = excluded.software_version,
             state = excluded.state, capabilities = excluded.capabilities, slots = excluded.slots,
             drain = excluded.drain, drained_by = excluded.drained_by, drain_deadline_at = excluded.drain_deadline_at,
             instance = excluded.instance, connection = excluded.connection, token_id = excluded.token_id,
             current_job_id = excluded.current_job_id, busy = excluded.busy, failed_starts = excluded.failed_starts,
             faulted_until = excluded.faulted_until, drops = excluded.drops, drops_since = excluded.drops_since,
             last_seen_at = excluded.last_seen_at, connected_at = excluded.connected_at,
             updated_at = excluded.updated_at, version = excluded.version, revision = excluded.revision"
    ))
    .bind(rows(agents, &[]))
    .execute()
    .await?;
    Ok(())
}

/// A job that somebody submits.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub template_id: Option<String>,
    pub config: Value,
    pub requires: Value,
    pub prefers: Vec<String>,
    pub group_name: Option<String>,
    pub priority: i64,
    pub restart_policy: &'static str,
    pub idempotency_key: Option<String>,
    pub request_hash: String,
}

/// Inserts a job under the number `revision`; its id.
pub async fn insert_job(tx: &mut Tx, job: &NewJob, revision: i64) -> Result<i64> {
    let now = tx.now().await?;
    let (id,): (i64,) = tx
        .query(
            "INSERT INTO stream_jobs (template_id, config, requires, prefers, group_name, priority, restart_policy,
                 idempotency_key, request_hash, created_at, updated_at, revision)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11) RETURNING id",
        )
        .bind(job.template_id.clone())
        .bind(Json(job.config.clone()))
        .bind(Json(job.requires.clone()))
        .bind(Json(json!(job.prefers)))
        .bind(job.group_name.clone())
        .bind(job.priority)
        .bind(job.restart_policy.to_owned())
        .bind(job.idempotency_key.clone())
        .bind(job.request_hash.clone())
        .bind(now)
        .bind(revision)
        .one()
        .await?;
    Ok(id)
}

/// The job that was submitted under this key, and the hash of its request.
pub async fn job_of_key(tx: &mut Tx, key: &str) -> Result<Option<(i64, String)>> {
    tx.query("SELECT id, coalesce(request_hash, '') FROM stream_jobs WHERE idempotency_key = $1")
        .bind(key.to_owned())
        .optional()
        .await
}

/// A command on its way to an agent's instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Command {
    pub instance: String,
    pub agent_id: String,
    pub connection: i64,
    pub order: Order,
}

/// What the instance does.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Sends this text.
    Send(String),
    /// Closes the connection.
    Close { code: u16, reason: String },
}

/// Leaves commands for other instances.
pub async fn leave_commands(tx: &mut Tx, commands: &[Command]) -> Result<()> {
    if commands.is_empty() {
        return Ok(());
    }
    let now = tx.now().await?;
    tx.query(sql!(
        "INSERT INTO agent_commands (instance, agent_id, connection, command, created_at) "
        {
            sqlite: "SELECT value ->> 'instance', value ->> 'agent_id', value ->> 'connection', value -> 'order', $2
                     FROM json_each($1) ORDER BY key",
            postgres: "SELECT value ->> 'instance', value ->> 'agent_id', CAST(value ->> 'connection' AS BIGINT),
                              value -> 'order', $2
                       FROM jsonb_array_elements($1) WITH ORDINALITY AS c (value, n) ORDER BY n"
        }
    ))
    .bind(Json(json!(commands)))
    .bind(now)
    .execute()
    .await?;
    Ok(())
}

/// Takes the commands that wait for this instance away, in order.
pub async fn take_commands(tx: &mut Tx, instance: &str) -> Result<Vec<Command>> {
    let mut taken: Vec<(i64, String, i64, Json<Order>)> = tx
        .query("DELETE FROM agent_commands WHERE instance = $1 RETURNING id, agent_id, connection, command")
        .bind(instance.to_owned())
        .all()
        .await?;
    taken.sort_by_key(|(id, ..)| *id);
    let command = |(_, agent_id, connection, order): (i64, String, i64, Json<Order>)| Command {
        instance: instance.to_owned(),
        agent_id,
        connection,
        order: order.0,
    };
    Ok(taken.into_iter().map(command).collect())
}

/// Notes signs of life that came since the rows were last written. Neither numbers the rows nor tells anybody.
pub async fn note_seen(tx: &mut Tx, seen: &[(String, i64, Timestamp)]) -> Result<()> {
    if seen.is_empty() {
        return Ok(());
    }
    tx.query(sql!(
        "UPDATE agents SET last_seen_at = new.at FROM "
        {
            sqlite: "(SELECT value ->> 0 AS id, value ->> 1 AS connection, value ->> 2 AS at FROM json_each($1)) AS new",
            postgres: "(SELECT value ->> 0 AS id, CAST(value ->> 1 AS BIGINT) AS connection,
                            CAST(value ->> 2 AS TIMESTAMPTZ) AS at FROM jsonb_array_elements($1)) AS new"
        }
        " WHERE agents.id = new.id AND agents.connection = new.connection AND agents.last_seen_at < new.at"
    ))
    .bind(Json(json!(seen)))
    .execute()
    .await?;
    Ok(())
}

/// Says that this instance lives.
pub async fn instance_lives(tx: &mut Tx, instance: &str) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO fleet_instances (id, seen_at) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at",
    )
    .bind(instance.to_owned())
    .bind(now)
    .execute()
    .await?;
    Ok(())
}

/// Forgets instances that are gone, and what was left for them.
pub async fn forget_instances(tx: &mut Tx, before: Timestamp) -> Result<()> {
    tx.query("DELETE FROM fleet_instances WHERE seen_at < $1").bind(before).execute().await?;
    tx.query("DELETE FROM agent_commands WHERE created_at < $1").bind(before).execute().await?;
    Ok(())
}

/// Takes away up to 1,000 jobs that ended before `before`, and as many agents that were not heard of since.
pub async fn forget(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    lock(tx).await?; // an agent may be coming back just now
    let jobs = tx
        .query(
            "DELETE FROM stream_jobs WHERE id IN
                 (SELECT id FROM stream_jobs WHERE ended_at < $1 ORDER BY ended_at LIMIT 1000)",
        )
        .bind(before)
        .execute()
        .await?;
    let agents = tx
        .query(
            "DELETE FROM agents WHERE state = 'OFFLINE' AND last_seen_at < $1 AND id IN
                 (SELECT id FROM agents WHERE state = 'OFFLINE' AND last_seen_at < $1 AND busy = 0
                    AND NOT EXISTS (SELECT 1 FROM agent_tokens WHERE agent_id = agents.id)
                  ORDER BY last_seen_at LIMIT 1000)",
        )
        .bind(before)
        .execute()
        .await?;
    Ok(jobs.max(agents))
}
