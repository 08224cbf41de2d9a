//! Looking for work, and taking it under a lease.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limit::{self, Limits};
use super::{BATCH, finish, order};
use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::planes::queue::job::Job;
use crate::sql;

/// Who asks for which jobs.
#[derive(Debug, Clone)]
pub struct Claim<'a> {
    pub queue: &'a str,
    /// The kinds that it can run.
    pub kinds: &'a [&'a str],
    /// The name under which it holds leases.
    pub worker: &'a str,
    /// How long a claim holds where the task has no heartbeat interval.
    pub lease: Duration,
    /// The longest wait for another try of what took too long, where the task names none.
    pub longest_wait: Duration,
    /// Jobs at most.
    pub limit: usize,
}

/// What a task's row says about running it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct TaskLimits {
    pub id: String,
    pub code_version: Option<i64>,
    pub heartbeat_interval_ms: Option<i64>,
    pub timeout_ms: Option<i64>,
    pub concurrency_limit: Option<i64>,
    pub key_concurrency_limit: Option<i64>,
    pub rate_limit: Option<i64>,
    pub key_rate_limit: Option<i64>,
    pub rate_period_ms: i64,
}

/// What a queue's row says.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct QueueLimits {
    pub concurrency_limit: Option<i64>,
    pub rate_limit: Option<i64>,
    pub rate_period_ms: i64,
}

/// What there is to do, and what must be known to do it.
#[derive(Debug)]
pub struct Outlook {
    pending: bool,
    keyed: bool,
    due: bool,
    lapsed: bool,
    /// Jobs of this worker that somebody gives up.
    pub cancelling: Vec<(i64, i64)>,
    /// The queue is paused, or the worker is in quarantine: nothing is claimed.
    pub held_back: bool,
    queue: Option<QueueLimits>,
    tasks: Vec<TaskLimits>,
}

impl Outlook {
    /// Whether a transaction is worth its while.
    pub fn has_work(&self) -> bool {
        self.has_upkeep() || (!self.held_back && (self.pending || self.keyed))
    }

    /// Whether jobs are due, or to be taken back.
    pub fn has_upkeep(&self) -> bool {
        self.due || self.lapsed
    }

    /// Whether a limit may have held jobs back.
    pub fn is_limited(&self) -> bool {
        self.keyed
            || self.queue.is_some()
            || self.tasks.iter().any(|task| task.concurrency_limit.is_some() || task.rate_limit.is_some())
    }
}

#[derive(sqlx::FromRow)]
struct OutlookRow {
    pending: bool,
    keyed: bool,
    due: bool,
    lapsed: bool,
    held_back: bool,
    cancelling: Option<Json<Vec<(i64, i64)>>>,
    queue: Option<Json<QueueLimits>>,
    tasks: Option<Json<Vec<TaskLimits>>>,
}

/// Looks whether there is anything to do for `claim`: jobs that it could take, that fall due, or whose lease lapsed,
/// and running ones of its worker that are to be given up. Only reads, by one statement.
pub async fn look(db: &Db, claim: &Claim<'_>) -> Result<Outlook> {
    let now = db.now().await?;
    let row: OutlookRow = db
        .query(sql!(
            "SELECT
                 EXISTS (SELECT 1 FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL AND queue = $1
                     AND (run_at IS NULL OR run_at <= $3) AND kind IN (" { sqlite: "SELECT value FROM json_each($2)", postgres: "SELECT jsonb_array_elements_text($2)" } ")) AS pending,
                 EXISTS (SELECT 1 FROM jobs WHERE status = 'pending' AND concurrency_key IS NOT NULL AND queue = $1
                     AND (run_at IS NULL OR run_at <= $3) AND kind IN (" { sqlite: "SELECT value FROM json_each($2)", postgres: "SELECT jsonb_array_elements_text($2)" } ")) AS keyed,
                 EXISTS (SELECT 1 FROM jobs WHERE status IN ('waiting', 'retry') AND run_at <= $3) AS due,
                 EXISTS (SELECT 1 FROM jobs WHERE status = 'processing' AND (lease_expires_at < $3 OR lease_expires_at > $6
                     OR (lease_expires_at > $5 AND NOT EXISTS (
                         SELECT 1 FROM tasks WHERE tasks.id = jobs.kind AND heartbeat_interval_ms IS NOT NULL)))) AS lapsed,
                 EXISTS (SELECT 1 FROM queues WHERE name = $1 AND paused)
                     OR EXISTS (SELECT 1 FROM workers WHERE id = $4 AND quarantined_until > $3) AS held_back,
                 (SELECT "
            { sqlite: "json_group_array(json_array(id, lease))", postgres: "jsonb_agg(jsonb_build_array(id, lease))" }
            " FROM jobs WHERE status = 'processing' AND cancel_requested_at IS NOT NULL AND worker = $4) AS cancelling,
                 (SELECT "
            { sqlite: "json_object('concurrency_limit', concurrency_limit, 'rate_limit', rate_limit, 'rate_period_ms', rate_period_ms)",
              postgres: "jsonb_build_object('concurrency_limit', concurrency_limit, 'rate_limit', rate_limit, 'rate_period_ms', rate_period_ms)" }
            " FROM queues WHERE name = $1 AND (concurrency_limit IS NOT NULL OR rate_limit IS NOT NULL)) AS queue,
                 (SELECT "
            { sqlite: "json_group_array(json_object('id', id, 'code_version', code_version,
                 'heartbeat_interval_ms', heartbeat_interval_ms, 'timeout_ms', timeout_ms,
                 'concurrency_limit', concurrency_limit, 'key_concurrency_limit', key_concurrency_limit,
                 'rate_limit', rate_limit, 'key_rate_limit', key_rate_limit, 'rate_period_ms', rate_period_ms))",
              postgres: "jsonb_agg(to_jsonb(tasks))" }
            " FROM tasks WHERE id IN ("
            { sqlite: "SELECT value FROM json_each($2)", postgres: "SELECT jsonb_array_elements_text($2)" } ")) AS tasks"
        ))
        .bind(claim.queue.to_owned())
        .bind(Json(claim.kinds))
        .bind(now)
        .bind(claim.worker.to_owned())
        .bind(now.after(claim.lease * 2)) // all instances lease for as long
        .bind(now.after(finish::LONGEST_LEASE))
        .one()
        .await?;
    Ok(Outlook {
        pending: row.pending,
        keyed: row.keyed,
        due: row.due,
        lapsed: row.lapsed,
        cancelling: row.cancelling.map(|list| list.0).unwrap_or_default(),
        held_back: row.held_back,
        queue: row.queue.map(|queue| queue.0),
        tasks: row.tasks.map(|tasks| tasks.0).unwrap_or_default(),
    })
}

/// Takes lapsed leases back, lets due jobs in, and takes up to `claim.limit` of those that are ready, the most urgent
/// first. What `outlook` did not see is not looked for.
pub async fn claim(tx: &mut Tx, outlook: &Outlook, claim: &Claim<'_>) -> Result<Vec<Job>> {
    if outlook.lapsed {
        finish::rescue(tx, claim.lease * 2, claim.longest_wait, BATCH).await?;
    }
    let renewed = outlook.has_upkeep(); // what was taken back is due, and what is due may be of any kind
    if renewed {
        order::promote_due(tx, BATCH).await?;
    }
    if outlook.held_back || claim.limit == 0 || !(outlook.pending || outlook.keyed || renewed) {
        return Ok(Vec::new());
    }
    let limits = Limits::of(outlook.queue.as_ref(), &outlook.tasks);
    let mut jobs = Vec::new();
    let free = limits.unlimited(claim.kinds);
    if !free.is_empty() && (outlook.pending || renewed) {
        jobs = claim_free(tx, claim, &free).await?;
    }
    let room = claim.limit - jobs.len().min(claim.limit);
    if room > 0 && (outlook.keyed || renewed || free.len() < claim.kinds.len()) {
        let ids = limit::choose(tx, claim, &limits, &free, room).await?;
        if !ids.is_empty() {
            jobs.extend(claim_ids(tx, claim, &ids).await?);
        }
    }
    jobs.sort_by_key(|job| job.id); // RETURNING has no order
    apply_settings(tx, claim, &outlook.tasks, &mut jobs).await?;
    Ok(jobs)
}

/// Takes jobs without a key, of kinds without a limit.
async fn claim_free(tx: &mut Tx, claim: &Claim<'_>, kinds: &[&str]) -> Result<Vec<Job>> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE jobs SET status = 'processing', attempt = attempt + 1, lease = lease + 1, lease_expires_at = $1,
             worker = $2, started_at = $3, updated_at = $3, progress = NULL, progress_message = NULL,
             heartbeat_at = NULL, outcome = NULL
         WHERE id "
        { sqlite: "IN (SELECT candidate.id FROM json_each($5) AS kinds, jobs AS candidate
                 WHERE candidate.id IN (
                     SELECT id FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL AND queue = $4
                         AND kind = kinds.value AND (run_at IS NULL OR run_at <= $3) ORDER BY priority DESC, id LIMIT $6)
                 ORDER BY candidate.priority DESC, candidate.id LIMIT $6)",
          postgres: "= ANY(ARRAY(
                 SELECT candidate.id FROM jsonb_array_elements_text($5) AS kinds (kind), LATERAL (
                     SELECT id, priority FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL AND queue = $4
                         AND jobs.kind = kinds.kind AND (run_at IS NULL OR run_at <= $3) ORDER BY priority DESC, id LIMIT $6
                         FOR UPDATE SKIP LOCKED) AS candidate
                 ORDER BY candidate.priority DESC, candidate.id LIMIT $6))" }
        " RETURNING id, kind, queue, input, input_ref, context, attempt, max_attempts, lease, timeout_ms, code_version, awaited,
             created_at"
    ))
    .bind(now.after(claim.lease))
    .bind(claim.worker.to_owned())
    .bind(now)
    .bind(claim.queue.to_owned())
    .bind(Json(kinds))
    .bind(claim.limit as i64)
    .all()
    .await
}

/// Takes the jobs that were chosen, as far as they are still there.
async fn claim_ids(tx: &mut Tx, claim: &Claim<'_>, ids: &[i64]) -> Result<Vec<Job>> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE jobs SET status = 'processing', attempt = attempt + 1, lease = lease + 1, lease_expires_at = $1,
             worker = $2, started_at = $3, updated_at = $3, progress = NULL, progress_message = NULL,
             heartbeat_at = NULL, outcome = NULL
         WHERE id "
        { sqlite: "IN (SELECT value FROM json_each($4)) AND status = 'pending'",
          postgres: "= ANY(ARRAY(SELECT id FROM jobs WHERE status = 'pending'
                 AND id IN (SELECT CAST(jsonb_array_elements_text($4) AS BIGINT)) FOR UPDATE SKIP LOCKED))" }
        " RETURNING id, kind, queue, input, input_ref, context, attempt, max_attempts, lease, timeout_ms, code_version, awaited,
             created_at"
    ))
    .bind(now.after(claim.lease))
    .bind(claim.worker.to_owned())
    .bind(now)
    .bind(Json(ids))
    .all()
    .await
}

/// What the task's row adds to a claim.
#[derive(Serialize)]
struct Setting {
    id: i64,
    code_version: Option<i64>,
    deadline_at: Option<Timestamp>,
    lease_expires_at: Timestamp,
}

/// Gives claimed jobs their code version, time limit and heartbeat lease. A lease never reaches past the time limit,
/// so that one look finds both.
async fn apply_settings(tx: &mut Tx, claim: &Claim<'_>, tasks: &[TaskLimits], jobs: &mut [Job]) -> Result<()> {
    let now = tx.now().await?;
    let tasks: HashMap<&str, &TaskLimits> = tasks.iter().map(|task| (task.id.as_str(), task)).collect();
    let mut settings = Vec::new();
    for job in jobs {
        let task = tasks.get(job.kind.as_str());
        if job.timeout_ms.is_none() && task.is_none() {
            job.code_version = None;
            continue;
        }
        job.code_version = task.and_then(|task| task.code_version);
        job.timeout_ms = job.timeout_ms.or(task.and_then(|task| task.timeout_ms));
        let deadline_at = job.timeout_ms.map(|timeout| now.after(millis(timeout)));
        let lease = task.and_then(|task| task.heartbeat_interval_ms).map_or(claim.lease, |beat| millis(beat) * 2);
        let ends = now.after(lease);
        settings.push(Setting {
            id: job.id,
            code_version: job.code_version,
            deadline_at,
            lease_expires_at: deadline_at.map_or(ends, |deadline| ends.min(deadline)),
        });
    }
    if settings.is_empty() {
        return Ok(());
    }
    tx.query(sql!(
        "UPDATE jobs SET code_version = given.code_version, deadline_at = given.deadline_at,
             lease_expires_at = given.lease_expires_at FROM "
        { sqlite: "(SELECT value ->> 'id' AS id, value ->> 'code_version' AS code_version,
                 value ->> 'deadline_at' AS deadline_at, value ->> 'lease_expires_at' AS lease_expires_at
                 FROM json_each($1)) AS given",
          postgres: "jsonb_to_recordset($1) AS given (id BIGINT, code_version BIGINT, deadline_at TIMESTAMPTZ,
                 lease_expires_at TIMESTAMPTZ)" }
        " WHERE jobs.id = given.id"
    ))
    .bind(Json(settings))
    .execute()
    .await?;
    Ok(())
}

pub(in crate::planes::queue) fn millis(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}
