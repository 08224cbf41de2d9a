//! Looking for work, and taking it under a lease.

use std::time::Duration;

use serde::Deserialize;

use super::limit::{self, Limits};
use super::{BATCH, finish, order};
use crate::db::{Db, Json, Query, Result, Sql, Timestamp, Tx, Value};
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

/// What a task's row says about how many of its jobs may run.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct TaskLimits {
    pub id: String,
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
        .query_kept(sql!(
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
            { sqlite: "json_group_array(json_object('id', id, 'concurrency_limit', concurrency_limit,
                 'key_concurrency_limit', key_concurrency_limit, 'rate_limit', rate_limit,
                 'key_rate_limit', key_rate_limit, 'rate_period_ms', rate_period_ms))",
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
        let now = tx.now().await?;
        jobs = take(tx.query(TAKE_FREE), Some(now), claim, claim.limit as i64).await?;
    }
    let room = claim.limit - jobs.len().min(claim.limit);
    if room > 0 && (outlook.keyed || renewed || free.len() < claim.kinds.len()) {
        let ids = limit::choose(tx, claim, &limits, &free, room).await?;
        if !ids.is_empty() {
            let now = tx.now().await?;
            jobs.extend(take(tx.query(TAKE_CHOSEN), Some(now), claim, Json(ids)).await?);
            jobs.sort_by_key(|job| job.id);
        }
    }
    Ok(jobs)
}

/// Takes jobs ($5) for a worker ($2) from a queue ($3), of kinds ($4) that `fits`, at a time ($1, or when the statement
/// runs), for so many milliseconds ($6). Each gets its task's code version, time limit and heartbeat lease; a lease never
/// reaches past the time limit, so that one look finds both. At their bounds the try stays and the lease begins again:
/// other programs write such rows, and one must not hold up the rest.
macro_rules! taking {
    ($fits:literal, $sqlite:literal, $postgres:literal) => {
        sql!(
            "WITH clock AS (SELECT "
            { sqlite: "$1", postgres: "coalesce($1, date_trunc('milliseconds', clock_timestamp()))" }
            " AS now), task AS "
            { sqlite: "MATERIALIZED", postgres: "" }
            " (SELECT kinds.kind AS of_kind, code_version AS version, timeout_ms AS limit_ms, "
            { sqlite: "strftime('%Y-%m-%dT%H:%M:%fZ', now, '+' || (coalesce(heartbeat_interval_ms * 2, $6) / 1000.0) || ' seconds')",
              postgres: "now + coalesce(heartbeat_interval_ms * 2, $6) * interval '1 millisecond'" }
            " AS ends FROM clock, "
            { sqlite: "(SELECT value AS kind FROM json_each($4)) AS kinds", postgres: "jsonb_array_elements_text($4) AS kinds (kind)" }
            " LEFT JOIN tasks ON tasks.id = kinds.kind WHERE " $fits ")
             UPDATE jobs SET status = 'processing',
                 attempt = CASE WHEN attempt < 1000000 THEN attempt + 1 ELSE attempt END,
                 lease = CASE WHEN lease < 1000000000000000 THEN lease + 1 ELSE 1 END, worker = $2,
                 started_at = clock.now, updated_at = clock.now, progress = NULL, progress_message = NULL,
                 heartbeat_at = NULL, outcome = NULL, code_version = task.version, "
            { sqlite: "deadline_at = strftime('%Y-%m-%dT%H:%M:%fZ', now, '+' || (coalesce(timeout_ms, limit_ms) / 1000.0) || ' seconds'),
                 lease_expires_at = min(ends, coalesce(strftime('%Y-%m-%dT%H:%M:%fZ', now,
                     '+' || (coalesce(timeout_ms, limit_ms) / 1000.0) || ' seconds'), ends))",
              postgres: "deadline_at = now + coalesce(timeout_ms, limit_ms) * interval '1 millisecond',
                 lease_expires_at = least(ends, now + coalesce(timeout_ms, limit_ms) * interval '1 millisecond')" }
            " FROM task, clock WHERE jobs.kind = task.of_kind AND "
            { sqlite: $sqlite, postgres: $postgres }
            " RETURNING id, kind, queue, input, input_ref, context, attempt, max_attempts, lease, timeout_ms, code_version,
                 awaited, created_at, started_at, deadline_at"
        )
    };
}

/// The most urgent $5 without a key, of kinds without a limit, of a queue that is neither limited nor paused, for a
/// worker that is not in quarantine.
const TAKE_FREE: Sql = taking!(
    "concurrency_limit IS NULL AND rate_limit IS NULL
         AND NOT EXISTS (SELECT 1 FROM queues WHERE name = $3
             AND (paused OR concurrency_limit IS NOT NULL OR rate_limit IS NOT NULL))
         AND NOT EXISTS (SELECT 1 FROM workers WHERE id = $2 AND quarantined_until > now)",
    "jobs.id IN (SELECT candidate.id FROM task AS free, jobs AS candidate
         WHERE candidate.id IN (
             SELECT id FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL AND queue = $3
                 AND kind = free.of_kind AND (run_at IS NULL OR run_at <= $1) ORDER BY priority DESC, id LIMIT $5)
         ORDER BY candidate.priority DESC, candidate.id LIMIT $5)",
    "jobs.ctid = ANY(ARRAY(
         SELECT candidate.place FROM task AS free, LATERAL (
             SELECT ctid AS place, id, priority FROM jobs WHERE status = 'pending' AND concurrency_key IS NULL
                 AND queue = $3 AND kind = free.of_kind AND (run_at IS NULL OR run_at <= (SELECT now FROM clock))
             ORDER BY priority DESC, id LIMIT $5 FOR UPDATE SKIP LOCKED) AS candidate
         ORDER BY candidate.priority DESC, candidate.id LIMIT $5))"
);

/// Those that were chosen, as far as they are still there.
const TAKE_CHOSEN: Sql = taking!(
    "true",
    "jobs.id IN (SELECT value FROM json_each($5)) AND status = 'pending' AND queue = $3",
    "jobs.ctid = ANY(ARRAY(SELECT ctid FROM jobs WHERE status = 'pending' AND queue = $3
         AND id IN (SELECT CAST(jsonb_array_elements_text($5) AS BIGINT)) FOR UPDATE SKIP LOCKED))"
);

/// A job that was taken.
#[derive(sqlx::FromRow)]
pub(super) struct Taken {
    #[sqlx(flatten)]
    job: Job,
    started_at: Timestamp,
    deadline_at: Option<Timestamp>,
}

impl Taken {
    pub(super) fn job(self) -> Job {
        let timeout = self.deadline_at.map(|deadline| deadline.since(self.started_at));
        Job { timeout_ms: timeout.map(|timeout| i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)), ..self.job }
    }
}

/// Takes jobs by a statement.
async fn take(query: Query<'_>, now: Option<Timestamp>, claim: &Claim<'_>, chosen: impl Value) -> Result<Vec<Job>> {
    let taken: Vec<Taken> = query
        .bind(now)
        .bind(claim.worker.to_owned())
        .bind(claim.queue.to_owned())
        .bind(Json(claim.kinds))
        .bind(chosen)
        .bind(i64::try_from(claim.lease.as_millis()).unwrap_or(i64::MAX))
        .all()
        .await?;
    let mut jobs: Vec<Job> = taken.into_iter().map(Taken::job).collect();
    jobs.sort_by_key(|job| job.id); // RETURNING has no order
    Ok(jobs)
}

/// Takes up to `claim.limit` jobs that no limit, key, pause or quarantine touches, the most urgent first, by one
/// statement that is its own transaction. All others, what is due and what has lapsed are for [`look`] and [`claim`].
pub async fn claim_at_once(db: &Db, claim: &Claim<'_>) -> Result<Vec<Job>> {
    take(db.write_kept(TAKE_FREE), db.known_now(), claim, claim.limit as i64).await
}

pub(in crate::planes::queue) fn millis(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}
