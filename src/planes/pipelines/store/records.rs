//! Definitions by version, and runs as clients read and steer them.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::planes::pipelines::model::Run;
use crate::sql;

/// A pipeline's newest version.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct PipelineRow {
    pub id: String,
    pub version: i64,
    pub definition: Json<Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

const NEWEST_VERSION: &str = "SELECT version FROM pipelines WHERE id = $1";

const DEFINITION: &str = "SELECT definition FROM pipeline_versions WHERE pipeline_id = $1 AND version = $2";

/// A pipeline's newest version number.
pub async fn newest_version(db: &Db, id: &str) -> Result<Option<i64>> {
    let row: Option<(i64,)> = db.query_kept(NEWEST_VERSION).bind(id.to_owned()).optional().await?;
    Ok(row.map(|(version,)| version))
}

/// The same inside a transaction.
pub async fn newest_version_in(tx: &mut Tx, id: &str) -> Result<Option<i64>> {
    let row: Option<(i64,)> = tx.query(NEWEST_VERSION).bind(id.to_owned()).optional().await?;
    Ok(row.map(|(version,)| version))
}

/// One version's definition, inside a transaction.
pub async fn definition_in(tx: &mut Tx, id: &str, version: i64) -> Result<Option<Value>> {
    let row: Option<(Json<Value>,)> = tx.query(DEFINITION).bind(id.to_owned()).bind(version).optional().await?;
    Ok(row.map(|(Json(definition),)| definition))
}

/// One version's definition.
pub async fn definition(db: &Db, id: &str, version: i64) -> Result<Option<Value>> {
    let row: Option<(Json<Value>,)> = db.query(DEFINITION).bind(id.to_owned()).bind(version).optional().await?;
    Ok(row.map(|(Json(definition),)| definition))
}

/// A pipeline with its newest definition.
pub async fn pipeline(db: &Db, id: &str) -> Result<Option<PipelineRow>> {
    db.query(
        "SELECT p.id, p.version, v.definition, p.created_at, p.updated_at FROM pipelines p
         JOIN pipeline_versions v ON v.pipeline_id = p.id AND v.version = p.version WHERE p.id = $1",
    )
    .bind(id.to_owned())
    .optional()
    .await
}

/// Pipelines by id, behind `after`.
pub async fn pipelines(db: &Db, after: &str, limit: i64) -> Result<Vec<PipelineRow>> {
    db.query(
        "SELECT p.id, p.version, v.definition, p.created_at, p.updated_at FROM pipelines p
         JOIN pipeline_versions v ON v.pipeline_id = p.id AND v.version = p.version
         WHERE p.id > $1 ORDER BY p.id LIMIT $2",
    )
    .bind(after.to_owned())
    .bind(limit)
    .all()
    .await
}

/// Makes a pipeline, or its next version where the definition differs. The version, and whether it is new.
pub async fn put_pipeline(tx: &mut Tx, id: &str, definition: &Value, hash: &str) -> Result<(i64, bool)> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO pipelines (id, version, created_at, updated_at) VALUES ($1, 0, $2, $2) ON CONFLICT (id) DO NOTHING",
    )
    .bind(id.to_owned())
    .bind(now)
    .execute()
    .await?;
    let (version,): (i64,) = tx
        .query(sql!("SELECT version FROM pipelines WHERE id = $1 " { sqlite: "", postgres: "FOR UPDATE" }))
        .bind(id.to_owned())
        .one()
        .await?;
    let newest: Option<(String,)> = tx
        .query("SELECT hash FROM pipeline_versions WHERE pipeline_id = $1 AND version = $2")
        .bind(id.to_owned())
        .bind(version)
        .optional()
        .await?;
    if newest.is_some_and(|(newest,)| newest == hash) {
        return Ok((version, false));
    }
    tx.query("UPDATE pipelines SET version = $1, updated_at = $2 WHERE id = $3")
        .bind(version + 1)
        .bind(now)
        .bind(id.to_owned())
        .execute()
        .await?;
    tx.query(
        "INSERT INTO pipeline_versions (pipeline_id, version, definition, hash, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(id.to_owned())
    .bind(version + 1)
    .bind(Json(definition.clone()))
    .bind(hash.to_owned())
    .bind(now)
    .execute()
    .await?;
    Ok((version + 1, true))
}

/// One run.
pub async fn run(db: &Db, id: i64) -> Result<Option<Run>> {
    db.query(
        "SELECT id, pipeline_id, version, status, trigger_kind, trigger_id, parent_run_id, depth, input, output, error, retries,
             lease, engine, wake_at, requested, created_at, started_at, finished_at FROM pipeline_runs WHERE id = $1",
    )
    .bind(id)
    .optional()
    .await
}

/// Runs, newest first, behind `before`.
pub async fn runs(
    db: &Db,
    pipeline: Option<&str>,
    status: Option<&str>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Run>> {
    db.query(sql!(
        "SELECT id, pipeline_id, version, status, trigger_kind, trigger_id, parent_run_id, depth, input, output, error, retries,
             lease, engine, wake_at, requested, created_at, started_at, finished_at FROM pipeline_runs
         WHERE ($1 " { sqlite: "", postgres: "::text" } " IS NULL OR pipeline_id = $1)
             AND ($2 " { sqlite: "", postgres: "::text" } " IS NULL OR status = $2)
             AND ($3 " { sqlite: "", postgres: "::bigint" } " IS NULL OR id < $3)
         ORDER BY id DESC LIMIT $4"
    ))
    .bind(pipeline.map(str::to_owned))
    .bind(status.map(str::to_owned))
    .bind(before)
    .bind(limit)
    .all()
    .await
}

/// The run of the same pipeline before this one, and its version.
pub async fn run_before(db: &Db, pipeline: &str, run: i64) -> Result<Option<(i64, i64)>> {
    db.query("SELECT id, version FROM pipeline_runs WHERE pipeline_id = $1 AND id < $2 ORDER BY id DESC LIMIT 1")
        .bind(pipeline.to_owned())
        .bind(run)
        .optional()
        .await
}

/// The versions of the code with which a run's tasks ran, by step and item.
pub async fn code_versions(db: &Db, run: i64) -> Result<HashMap<(String, i64), i64>> {
    let rows: Vec<(String, i64, i64)> = db
        .query(
            "SELECT step, item, jobs.code_version FROM pipeline_steps JOIN jobs ON jobs.id = pipeline_steps.job_id
             WHERE run_id = $1 AND jobs.code_version IS NOT NULL",
        )
        .bind(run)
        .all()
        .await?;
    Ok(rows.into_iter().map(|(step, item, version)| ((step, item), version)).collect())
}

/// Locks a run for a change by somebody.
pub async fn lock_run(tx: &mut Tx, id: i64) -> Result<Option<Run>> {
    tx.query(sql!(
        "SELECT id, pipeline_id, version, status, trigger_kind, trigger_id, parent_run_id, depth, input, output, error, retries,
             lease, engine, wake_at, requested, created_at, started_at, finished_at FROM pipeline_runs WHERE id = $1 "
        { sqlite: "", postgres: "FOR UPDATE" }
    ))
    .bind(id)
    .optional()
    .await
}

/// Asks the engine that has the run for `pause` or `cancel`; a cancel stays one.
pub async fn request(tx: &mut Tx, id: i64, what: &'static str) -> Result<()> {
    tx.query(
        "UPDATE pipeline_runs SET requested = CASE WHEN requested = 'cancel' THEN requested ELSE $1 END
         WHERE id = $2 AND status = 'running'",
    )
    .bind(what)
    .bind(id)
    .execute()
    .await?;
    Ok(())
}

/// Moves a run that is on no engine.
pub async fn set_status(tx: &mut Tx, id: i64, status: &'static str) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE pipeline_runs SET status = $1, lease = lease + 1, wake_at = NULL, requested = NULL,
             finished_at = CASE WHEN $1 = 'cancelled' THEN $2 ELSE NULL END
         WHERE id = $3 AND status <> 'running'",
    )
    .bind(status)
    .bind(now)
    .bind(id)
    .execute()
    .await?;
    Ok(())
}

/// Gives up what a cancelled run's steps were waiting for; the tasks and runs that nobody waits for any more.
pub async fn cancel_steps(tx: &mut Tx, run: i64) -> Result<Vec<(Option<i64>, Option<i64>)>> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE pipeline_steps SET status = 'cancelled', finished_at = $1
         WHERE run_id = $2 AND status IN ('running', 'waiting') RETURNING job_id, child_run_id",
    )
    .bind(now)
    .bind(run)
    .all()
    .await
}

/// A failed or cancelled run goes on: what failed, was given up or was undone is forgotten and runs again.
pub async fn retry_run(tx: &mut Tx, run: i64, again: &[String]) -> Result<u64> {
    let forgotten = tx
        .query(sql!(
            "DELETE FROM pipeline_steps WHERE run_id = $1 AND (status IN ('running', 'waiting', 'failed', 'cancelled')
                 OR step IN (" { sqlite: "SELECT value FROM json_each($2)", postgres: "SELECT jsonb_array_elements_text($2)" } "))"
        ))
        .bind(run)
        .bind(Json(again.to_vec()))
        .execute()
        .await?;
    tx.query(
        "UPDATE pipeline_runs SET status = 'pending', retries = retries + 1, lease = lease + 1, output = NULL,
             error = NULL, requested = NULL, wake_at = NULL, finished_at = NULL
         WHERE id = $1 AND status IN ('failed', 'cancelled')",
    )
    .bind(run)
    .execute()
    .await?;
    Ok(forgotten)
}

/// Runs whose steps tell how long a step usually takes.
const PAST_RUNS: i64 = 20;
/// Rows that are read for it at most.
const PAST_ROWS: i64 = 20_000;

/// How long each step usually took in the last good runs of a pipeline: the median.
pub async fn past_durations(db: &Db, pipeline: &str) -> Result<HashMap<String, Duration>> {
    let rows: Vec<(String, Timestamp, Timestamp)> = db
        .query(
            "SELECT step, started_at, finished_at FROM pipeline_steps
             WHERE status = 'completed' AND item = -1 AND finished_at IS NOT NULL AND run_id IN (
                 SELECT id FROM pipeline_runs WHERE pipeline_id = $1 AND status = 'completed' ORDER BY id DESC LIMIT $2)
             LIMIT $3",
        )
        .bind(pipeline.to_owned())
        .bind(PAST_RUNS)
        .bind(PAST_ROWS)
        .all()
        .await?;
    let mut durations: HashMap<String, Vec<Duration>> = HashMap::new();
    for (step, started_at, finished_at) in rows {
        durations.entry(step).or_default().push(finished_at.since(started_at));
    }
    let median = |(step, mut durations): (String, Vec<Duration>)| {
        durations.sort_unstable();
        (step, durations[durations.len() / 2])
    };
    Ok(durations.into_iter().map(median).collect())
}

/// Takes away runs that ended before `before`, with their steps, up to a batch; returns how many. A run for which
/// another one still waits stays.
pub async fn forget_finished(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    let gone: Vec<(i64,)> = tx
        .query(
            // Outside again: PostgreSQL waits for who changes a row, and then looks at these conditions only.
            "DELETE FROM pipeline_runs WHERE finished_at < $1 AND status IN ('completed', 'failed', 'cancelled')
                 AND id IN (SELECT id FROM pipeline_runs AS old WHERE finished_at < $1 AND status IN ('completed', 'failed', 'cancelled')
                     AND NOT EXISTS (SELECT 1 FROM pipeline_runs AS parent WHERE parent.id = old.parent_run_id
                         AND parent.status IN ('pending', 'running', 'waiting', 'paused'))
                 ORDER BY finished_at LIMIT 1000)
             RETURNING id",
        )
        .bind(before)
        .all()
        .await?;
    if !gone.is_empty() {
        let ids: Vec<i64> = gone.iter().map(|(id,)| *id).collect();
        tx.query(sql!(
            "DELETE FROM pipeline_steps WHERE run_id IN ("
            { sqlite: "SELECT value FROM json_each($1)", postgres: "SELECT CAST(jsonb_array_elements_text($1) AS BIGINT)" }
            ")"
        ))
        .bind(Json(ids))
        .execute()
        .await?;
    }
    Ok(gone.len() as u64)
}

/// Whether a run has undone any of its steps.
pub async fn has_undone(tx: &mut Tx, run: i64) -> Result<bool> {
    let undone: Option<(i64,)> = tx
        .query("SELECT run_id FROM pipeline_steps WHERE run_id = $1 AND step LIKE '%.compensate' LIMIT 1")
        .bind(run)
        .optional()
        .await?;
    Ok(undone.is_some())
}
