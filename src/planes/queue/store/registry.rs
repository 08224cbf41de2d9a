//! Who runs what: services, their tasks with the versions of their code, and workers.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::backoff::Growth;
use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::sql;

/// How long the counts of a worker's recent ends go back at most, and at least half of it.
pub(in crate::planes::queue) const RECENT: Duration = Duration::from_secs(10 * 60);

/// A worker without a sign of life for this long is gone.
pub(in crate::planes::queue) const GONE_AFTER: Duration = Duration::from_secs(60);

/// A program that runs tasks.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
pub struct Service {
    pub id: String,
    pub name: String,
    pub version: Option<String>,
    /// Where its workers are called; none where they pull.
    pub endpoint: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// How jobs of a kind are run. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskSettings {
    pub queue: String,
    pub priority: i64,
    /// A running job is lost after twice this without a sign of life.
    pub heartbeat_interval_ms: Option<i64>,
    pub timeout_ms: Option<i64>,
    pub max_attempts: i64,
    pub retry_backoff: Growth,
    pub retry_delay_ms: i64,
    /// The part of a wait that chance decides, 0 to 1.
    pub retry_jitter: f64,
    /// A day unless set.
    pub max_retry_delay_ms: Option<i64>,
    /// Jobs that run at once, in all.
    pub concurrency_limit: Option<i64>,
    /// Jobs that run at once with one concurrency key; one unless set.
    pub key_concurrency_limit: Option<i64>,
    /// Starts in `rate_period_ms`, in all.
    pub rate_limit: Option<i64>,
    /// Starts in `rate_period_ms` with one concurrency key.
    pub key_rate_limit: Option<i64>,
    pub rate_period_ms: i64,
}

impl Default for TaskSettings {
    fn default() -> Self {
        Self {
            queue: "default".to_owned(),
            priority: 0,
            heartbeat_interval_ms: None,
            timeout_ms: None,
            max_attempts: 3,
            retry_backoff: Growth::Exponential,
            retry_delay_ms: 1_000,
            retry_jitter: 0.5,
            max_retry_delay_ms: None,
            concurrency_limit: None,
            key_concurrency_limit: None,
            rate_limit: None,
            key_rate_limit: None,
            rate_period_ms: 1_000,
        }
    }
}

/// A task as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
pub struct Task {
    pub id: String,
    pub service_id: Option<String>,
    pub queue: String,
    pub priority: i64,
    /// SHA-256 in hexadecimal.
    pub code_hash: Option<String>,
    pub code_version: Option<i64>,
    pub heartbeat_interval_ms: Option<i64>,
    pub timeout_ms: Option<i64>,
    pub max_attempts: i64,
    /// `fixed`, `linear` or `exponential`.
    pub retry_backoff: String,
    pub retry_delay_ms: i64,
    pub retry_jitter: f64,
    pub max_retry_delay_ms: Option<i64>,
    pub concurrency_limit: Option<i64>,
    pub key_concurrency_limit: Option<i64>,
    pub rate_limit: Option<i64>,
    pub key_rate_limit: Option<i64>,
    pub rate_period_ms: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A service that tells what it runs.
#[derive(Debug, Clone)]
pub struct Registration {
    pub service: String,
    pub name: String,
    pub version: Option<String>,
    pub endpoint: Option<String>,
    pub tasks: Vec<TaskRegistration>,
}

/// A task of a service that registers.
#[derive(Debug, Clone)]
pub struct TaskRegistration {
    pub id: String,
    /// SHA-256 of its code in hexadecimal, 64 digits.
    pub code_hash: Option<String>,
    pub settings: TaskSettings,
}

/// What registering a task found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TaskVersion {
    pub task: String,
    pub code_version: Option<i64>,
    /// Whether the code is new or another than before.
    pub changed: bool,
}

/// A version of a task's code.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
pub struct CodeChange {
    pub id: i64,
    pub task_id: String,
    pub code_version: i64,
    pub code_hash: String,
    pub previous_hash: Option<String>,
    pub service_id: Option<String>,
    pub service_version: Option<String>,
    pub created_at: Timestamp,
}

/// Writes down a service with its tasks. A task whose hash differs from the one before gets the next code version and
/// a row of history.
pub async fn register(tx: &mut Tx, registration: &Registration) -> Result<Vec<TaskVersion>> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO services (id, name, version, endpoint, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $5)
         ON CONFLICT (id) DO UPDATE SET name = $2, version = $3, endpoint = $4, updated_at = $5",
    )
    .bind(registration.service.clone())
    .bind(registration.name.clone())
    .bind(registration.version.clone())
    .bind(registration.endpoint.clone())
    .bind(now)
    .execute()
    .await?;
    let mut versions = Vec::with_capacity(registration.tasks.len());
    for task in &registration.tasks {
        versions.push(register_task(tx, registration, task).await?);
    }
    Ok(versions)
}

async fn register_task(tx: &mut Tx, service: &Registration, task: &TaskRegistration) -> Result<TaskVersion> {
    let now = tx.now().await?;
    set_task(tx, Some(&service.service), &task.id, &task.settings).await?;
    let (hash, version): (Option<String>, Option<i64>) = tx
        .query(sql!("SELECT code_hash, code_version FROM tasks WHERE id = $1" { sqlite: "", postgres: " FOR UPDATE" }))
        .bind(task.id.clone())
        .one()
        .await?;
    let Some(new) = task.code_hash.as_ref().filter(|new| hash.as_ref() != Some(*new)) else {
        return Ok(TaskVersion { task: task.id.clone(), code_version: version, changed: false });
    };
    let next = version.unwrap_or(0) + 1;
    tx.query("UPDATE tasks SET code_hash = $1, code_version = $2, updated_at = $3 WHERE id = $4")
        .bind(new.clone())
        .bind(next)
        .bind(now)
        .bind(task.id.clone())
        .execute()
        .await?;
    tx.query(
        "INSERT INTO task_code_history
             (task_id, code_version, code_hash, previous_hash, service_id, service_version, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(task.id.clone())
    .bind(next)
    .bind(new.clone())
    .bind(hash)
    .bind(service.service.clone())
    .bind(service.version.clone())
    .bind(now)
    .execute()
    .await?;
    Ok(TaskVersion { task: task.id.clone(), code_version: Some(next), changed: true })
}

/// Sets how jobs of a kind are run; its code version stays.
pub async fn set_task(tx: &mut Tx, service: Option<&str>, task: &str, settings: &TaskSettings) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO tasks (id, service_id, queue, priority, heartbeat_interval_ms, timeout_ms, max_attempts, retry_backoff,
             retry_delay_ms, retry_jitter, max_retry_delay_ms, concurrency_limit, key_concurrency_limit, rate_limit,
             key_rate_limit, rate_period_ms, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $17)
         ON CONFLICT (id) DO UPDATE SET service_id = $2, queue = $3, priority = $4, heartbeat_interval_ms = $5,
             timeout_ms = $6, max_attempts = $7, retry_backoff = $8, retry_delay_ms = $9, retry_jitter = $10,
             max_retry_delay_ms = $11, concurrency_limit = $12, key_concurrency_limit = $13, rate_limit = $14,
             key_rate_limit = $15, rate_period_ms = $16, updated_at = $17",
    )
    .bind(task.to_owned())
    .bind(service.map(str::to_owned))
    .bind(settings.queue.clone())
    .bind(settings.priority)
    .bind(settings.heartbeat_interval_ms)
    .bind(settings.timeout_ms)
    .bind(settings.max_attempts)
    .bind(match settings.retry_backoff {
        Growth::Fixed => "fixed",
        Growth::Linear => "linear",
        Growth::Exponential => "exponential",
    })
    .bind(settings.retry_delay_ms)
    .bind(settings.retry_jitter)
    .bind(settings.max_retry_delay_ms)
    .bind(settings.concurrency_limit)
    .bind(settings.key_concurrency_limit)
    .bind(settings.rate_limit)
    .bind(settings.key_rate_limit)
    .bind(settings.rate_period_ms)
    .bind(now)
    .execute()
    .await?;
    Ok(())
}

/// Services, by id.
pub async fn services(db: &Db) -> Result<Vec<Service>> {
    db.query("SELECT * FROM services ORDER BY id LIMIT 1000").all().await
}

/// One service.
pub async fn service(db: &Db, id: &str) -> Result<Option<Service>> {
    db.query("SELECT * FROM services WHERE id = $1").bind(id.to_owned()).optional().await
}

/// Tasks, by id: all, or a service's.
pub async fn tasks(db: &Db, service: Option<&str>) -> Result<Vec<Task>> {
    db.query("SELECT * FROM tasks WHERE $1 IS NULL OR service_id = $1 ORDER BY id LIMIT 10000")
        .bind(service.map(str::to_owned))
        .all()
        .await
}

/// A task, and a queue in which it is to be looked for.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Lane {
    pub service: String,
    pub queue: String,
    pub task: String,
    /// Whether it is the task's own queue; else jobs of it wait there now.
    pub own: bool,
}

/// Where services' tasks are to be looked for: of all services, or of one.
pub async fn lanes(db: &Db, service: Option<&str>) -> Result<Vec<Lane>> {
    // From queue to queue along the indexes of claims, however many jobs wait in each.
    db.query(
        "WITH RECURSIVE plain (queue) AS (
             SELECT MIN(queue) FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL
             UNION ALL SELECT (SELECT MIN(queue) FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL
                 AND queue > plain.queue) FROM plain WHERE plain.queue IS NOT NULL),
         keyed (queue) AS (
             SELECT MIN(queue) FROM jobs WHERE status = 'pending' AND concurrency_key IS NOT NULL
             UNION ALL SELECT (SELECT MIN(queue) FROM jobs WHERE status = 'pending' AND concurrency_key IS NOT NULL
                 AND queue > keyed.queue) FROM keyed WHERE keyed.queue IS NOT NULL),
         waiting (queue) AS (SELECT queue FROM plain UNION SELECT queue FROM keyed)
         SELECT service_id AS service, queue, id AS task, true AS own FROM tasks
             WHERE service_id IS NOT NULL AND (CAST($1 AS TEXT) IS NULL OR service_id = $1)
         UNION ALL SELECT service_id, waiting.queue, tasks.id, false FROM waiting JOIN tasks ON tasks.queue <> waiting.queue
             WHERE service_id IS NOT NULL AND (CAST($1 AS TEXT) IS NULL OR service_id = $1) AND (
                 EXISTS (SELECT 1 FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL
                     AND jobs.queue = waiting.queue AND kind = tasks.id)
                 OR EXISTS (SELECT 1 FROM jobs WHERE status = 'pending' AND concurrency_key IS NOT NULL
                     AND jobs.queue = waiting.queue AND kind = tasks.id))
         ORDER BY 1, 4 DESC, 2, 3",
    )
    .bind(service.map(str::to_owned))
    .all()
    .await
}

/// One task.
pub async fn task(db: &Db, id: &str) -> Result<Option<Task>> {
    db.query("SELECT * FROM tasks WHERE id = $1").bind(id.to_owned()).optional().await
}

/// The versions of a task's code, newest first; `after` is the version last seen.
pub async fn task_history(db: &Db, task: &str, after: Option<i64>, limit: i64) -> Result<Vec<CodeChange>> {
    db.query(
        "SELECT * FROM task_code_history WHERE task_id = $1 AND code_version < $2 ORDER BY code_version DESC LIMIT $3",
    )
    .bind(task.to_owned())
    .bind(after.unwrap_or(i64::MAX))
    .bind(limit)
    .all()
    .await
}

/// Who runs jobs.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
pub struct WorkerRecord {
    pub id: String,
    pub service_id: Option<String>,
    /// `local`: a task of this program; `push`: called at its endpoint; `pull`: asks by itself.
    pub mode: String,
    pub endpoint: Option<String>,
    pub queue: String,
    #[schema(value_type = Vec<String>)]
    pub kinds: Json<Vec<String>>,
    /// Jobs that it runs at once.
    pub capacity: i64,
    pub last_seen_at: Timestamp,
    pub quarantined_until: Option<Timestamp>,
    pub completed: i64,
    pub failed: i64,
    pub lost: i64,
    pub recent_completed: i64,
    pub recent_failed: i64,
    pub recent_since: Timestamp,
    pub created_at: Timestamp,
}

/// A worker that gives a sign of life.
#[derive(Debug, Clone)]
pub struct WorkerSeen<'a> {
    pub id: &'a str,
    pub service: Option<&'a str>,
    pub mode: &'a str,
    pub endpoint: Option<&'a str>,
    pub queue: &'a str,
    pub kinds: &'a [&'a str],
    pub capacity: i64,
}

/// Writes down that a worker lives, and what it can do.
pub async fn worker_seen(tx: &mut Tx, worker: &WorkerSeen<'_>) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO workers (id, service_id, mode, endpoint, queue, kinds, capacity, last_seen_at, recent_since, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $8)
         ON CONFLICT (id) DO UPDATE SET service_id = $2, mode = $3, endpoint = $4, queue = $5, kinds = $6, capacity = $7,
             last_seen_at = $8",
    )
    .bind(worker.id.to_owned())
    .bind(worker.service.map(str::to_owned))
    .bind(worker.mode.to_owned())
    .bind(worker.endpoint.map(str::to_owned))
    .bind(worker.queue.to_owned())
    .bind(Json(worker.kinds))
    .bind(worker.capacity)
    .bind(now)
    .execute()
    .await?;
    Ok(())
}

/// Whoever holds this job lives.
pub async fn holder_seen(tx: &mut Tx, job: i64) -> Result<()> {
    let now = tx.now().await?;
    tx.query("UPDATE workers SET last_seen_at = $1 WHERE id = (SELECT worker FROM jobs WHERE jobs.id = $2)")
        .bind(now)
        .bind(job)
        .execute()
        .await?;
    Ok(())
}

/// How many jobs a worker holds.
pub async fn held_by(db: &Db, worker: &str) -> Result<i64> {
    let (held,): (i64,) = db
        .query("SELECT COUNT(*) FROM jobs WHERE status = 'processing' AND worker = $1")
        .bind(worker.to_owned())
        .one()
        .await?;
    Ok(held)
}

/// Takes a worker that stopped off the list.
pub async fn worker_gone(tx: &mut Tx, id: &str) -> Result<()> {
    tx.query("DELETE FROM workers WHERE id = $1").bind(id.to_owned()).execute().await?;
    Ok(())
}

/// Workers, the latest sign of life first.
pub async fn workers(db: &Db) -> Result<Vec<WorkerRecord>> {
    db.query("SELECT * FROM workers ORDER BY last_seen_at DESC, id LIMIT 1000").all().await
}

/// Takes away workers that have been silent since `before`; returns how many.
pub async fn forget_workers(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    tx.query("DELETE FROM workers WHERE last_seen_at < $1").bind(before).execute().await
}

/// How tries ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub completed: i64,
    pub failed: i64,
    /// Leases that lapsed: counted as failures too.
    pub lost: i64,
}

/// Counts how a worker's tries ended. The recent counts begin anew every ten minutes.
pub async fn note_outcomes(tx: &mut Tx, worker: &str, outcomes: Outcomes) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE workers SET completed = completed + $1, failed = failed + $2, lost = lost + $3,
             recent_completed = CASE WHEN recent_since < $4 THEN 0 ELSE recent_completed END + $1,
             recent_failed = CASE WHEN recent_since < $4 THEN 0 ELSE recent_failed END + $2 + $3,
             recent_since = CASE WHEN recent_since < $4 THEN $5 ELSE recent_since END
         WHERE id = $6",
    )
    .bind(outcomes.completed)
    .bind(outcomes.failed)
    .bind(outcomes.lost)
    .bind(now.before(RECENT))
    .bind(now)
    .bind(worker.to_owned())
    .execute()
    .await?;
    Ok(())
}

/// Gives a worker no more jobs until then; `false` when there is no such worker.
pub async fn quarantine(tx: &mut Tx, worker: &str, until: Timestamp) -> Result<bool> {
    let changed = tx
        .query("UPDATE workers SET quarantined_until = $1 WHERE id = $2")
        .bind(until)
        .bind(worker.to_owned())
        .execute()
        .await?;
    Ok(changed > 0)
}
