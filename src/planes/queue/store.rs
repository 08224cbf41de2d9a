//! All of the queue's SQL. Statements follow the table of [`Status::on`](super::Status::on).

use std::time::Duration;

use serde_json::Value;

use super::model::{Job, NewJob};
use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::sql;

/// Rows that one statement of upkeep touches at most, so that it never holds its locks for long.
pub(super) const BATCH: i64 = 1_000;

/// A pending job older than this gains priority and is no longer put off, so that none starves.
const OLD_AFTER: Duration = Duration::from_secs(30 * 60);

/// An emergency fails jobs that have been pending for longer than this.
const TOO_OLD_AFTER: Duration = Duration::from_secs(2 * 3600);

/// How many pending jobs are left alone when the rest is spread: the bound of a saturated queue.
const KEPT_PENDING: i64 = 50;

/// What enqueueing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The job, new or already there under the same key.
    pub id: i64,
    /// Whether it is new.
    pub created: bool,
}

/// Enqueues a job inside the caller's transaction; wake [`Topic::Jobs`](crate::db::Topic) after the commit.
pub async fn enqueue(tx: &mut Tx, job: NewJob) -> Result<Enqueued> {
    let now = tx.now().await?;
    let status = if job.run_at.is_some_and(|at| at > now) { "waiting" } else { "pending" };
    let inserted: Option<(i64,)> = tx
        .query(
            "INSERT INTO jobs (kind, queue, priority, status, input, idempotency_key, run_at, max_attempts, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
             ON CONFLICT (idempotency_key)
                 WHERE status IN ('waiting', 'pending', 'processing', 'retry') AND idempotency_key IS NOT NULL
                 DO NOTHING
             RETURNING id",
        )
        .bind(job.kind)
        .bind(job.queue)
        .bind(job.priority)
        .bind(status)
        .bind(Json(job.input))
        .bind(job.idempotency_key.clone())
        .bind(job.run_at)
        .bind(job.max_attempts)
        .bind(now)
        .optional()
        .await?;
    if let Some((id,)) = inserted {
        return Ok(Enqueued { id, created: true });
    }
    let (id,): (i64,) = tx
        .query(
            "SELECT id FROM jobs WHERE idempotency_key = $1
             AND status IN ('waiting', 'pending', 'processing', 'retry')",
        )
        .bind(job.idempotency_key)
        .one()
        .await?;
    Ok(Enqueued { id, created: false })
}

/// Moves jobs whose time has come to `pending`, up to `limit`; returns how many.
pub(super) async fn promote_due(tx: &mut Tx, limit: i64) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE jobs SET status = 'pending', updated_at = $1 WHERE id IN (
             SELECT id FROM jobs WHERE status IN ('waiting', 'retry') AND run_at <= $1 ORDER BY run_at LIMIT $2 "
        { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" } ")"
    ))
    .bind(now)
    .bind(limit)
    .execute()
    .await
}

/// Takes up to `limit` pending jobs of a queue and kinds, most urgent first, under a lease.
pub(super) async fn claim(
    tx: &mut Tx,
    queue: &str,
    kinds: &[&str],
    worker: &str,
    lease: Duration,
    limit: i64,
) -> Result<Vec<Job>> {
    let now = tx.now().await?;
    let mut jobs: Vec<Job> = tx
        .query(sql!(
            "UPDATE jobs SET status = 'processing', attempt = attempt + 1, lease = lease + 1,
                 lease_expires_at = $1, worker = $2, started_at = $3, updated_at = $3
             WHERE id " { sqlite: "IN (", postgres: "= ANY(ARRAY(" }
            "SELECT id FROM jobs WHERE status = 'pending' AND queue = $4 AND (run_at IS NULL OR run_at <= $3)
                 AND kind IN (" { sqlite: "SELECT value FROM json_each($5)", postgres: "SELECT jsonb_array_elements_text($5)" } ")
             ORDER BY priority DESC, id LIMIT $6 " { sqlite: ")", postgres: "FOR UPDATE SKIP LOCKED))" }
            " RETURNING id, kind, queue, input, attempt, max_attempts, lease, created_at"
        ))
        .bind(now.after(lease))
        .bind(worker.to_owned())
        .bind(now)
        .bind(queue.to_owned())
        .bind(Json(kinds.to_vec()))
        .bind(limit)
        .all()
        .await?;
    jobs.sort_by_key(|job| job.id); // RETURNING has no order
    Ok(jobs)
}

/// Renews the leases of running jobs; returns the ids of those still held.
pub(super) async fn renew(tx: &mut Tx, held: &[(i64, i64)], lease: Duration) -> Result<Vec<i64>> {
    let now = tx.now().await?;
    let mut kept = Vec::with_capacity(held.len());
    for (id, number) in held {
        let renewed = tx
            .query("UPDATE jobs SET lease_expires_at = $1 WHERE id = $2 AND lease = $3 AND status = 'processing'")
            .bind(now.after(lease))
            .bind(*id)
            .bind(*number)
            .execute()
            .await?;
        if renewed > 0 {
            kept.push(*id);
        }
    }
    Ok(kept)
}

/// Finishes a job that `job.lease` still holds; `false` when somebody else has it or it is finished.
pub async fn complete(tx: &mut Tx, job: &Job, result: &Value) -> Result<bool> {
    let now = tx.now().await?;
    let done = tx
        .query(
            "UPDATE jobs SET status = 'completed', result = $1, error = NULL, lease_expires_at = NULL,
                 finished_at = $2, updated_at = $2
             WHERE id = $3 AND lease = $4 AND status = 'processing'",
        )
        .bind(Json(result))
        .bind(now)
        .bind(job.id)
        .bind(job.lease)
        .execute()
        .await?;
    Ok(done > 0)
}

/// Ends a try that failed: another one after `again_in`, or none. `false` when the lease is no longer held.
pub async fn fail(tx: &mut Tx, job: &Job, error: &str, again_in: Option<Duration>) -> Result<bool> {
    let now = tx.now().await?;
    let again_in = again_in.filter(|_| job.attempt < job.max_attempts);
    let done = tx
        .query(
            "UPDATE jobs SET status = $1, error = $2, run_at = coalesce($3, run_at), lease_expires_at = NULL,
                 finished_at = $4, updated_at = $5
             WHERE id = $6 AND lease = $7 AND status = 'processing'",
        )
        .bind(if again_in.is_some() { "retry" } else { "failed" })
        .bind(error.to_owned())
        .bind(again_in.map(|wait| now.after(wait)))
        .bind(again_in.is_none().then_some(now))
        .bind(now)
        .bind(job.id)
        .bind(job.lease)
        .execute()
        .await?;
    Ok(done > 0)
}

/// Takes jobs back whose lease lapsed: tried again while a try is left, else failed. Returns how many.
pub(super) async fn rescue(tx: &mut Tx, limit: i64) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE jobs SET status = CASE WHEN attempt < max_attempts THEN 'retry' ELSE 'failed' END,
             error = 'the lease lapsed: the worker died or hung', lease = lease + 1, lease_expires_at = NULL,
             run_at = CASE WHEN attempt < max_attempts THEN $1 ELSE run_at END,
             finished_at = CASE WHEN attempt < max_attempts THEN NULL ELSE $1 END, updated_at = $1
         WHERE id IN (SELECT id FROM jobs WHERE status = 'processing' AND lease_expires_at < $1
                      ORDER BY lease_expires_at LIMIT $2 " { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" } ")"
    ))
    .bind(now)
    .bind(limit)
    .execute()
    .await
}

/// A job's status, result and error.
pub async fn get(db: &Db, id: i64) -> Result<Option<(String, Option<Json<Value>>, Option<String>)>> {
    db.query("SELECT status, result, error FROM jobs WHERE id = $1").bind(id).optional().await
}

/// Whether there is anything to do in a queue: a pending job, one that falls due, or a lapsed lease. Only reads.
pub(super) async fn has_work(db: &Db, queue: &str) -> Result<bool> {
    let now = db.now().await?;
    let (work,): (i64,) = db
        .query(
            "SELECT CASE WHEN EXISTS (SELECT 1 FROM jobs WHERE status = 'pending' AND queue = $1)
                 OR EXISTS (SELECT 1 FROM jobs WHERE status IN ('waiting', 'retry') AND run_at <= $2)
                 OR EXISTS (SELECT 1 FROM jobs WHERE status = 'processing' AND lease_expires_at < $2)
             THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END",
        )
        .bind(queue.to_owned())
        .bind(now)
        .one()
        .await?;
    Ok(work > 0)
}

/// Raises the priority of pending jobs that are old, by one each time; returns how many.
pub(super) async fn age_priorities(tx: &mut Tx) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE jobs SET priority = priority + 1, updated_at = $1 WHERE priority < 1000 AND id IN (
             SELECT id FROM jobs WHERE status = 'pending' AND coalesce(run_at, created_at) < $2
             ORDER BY coalesce(run_at, created_at) LIMIT $3 " { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" } ")"
    ))
    .bind(now)
    .bind(now.before(OLD_AFTER))
    .bind(BATCH)
    .execute()
    .await
}

/// Puts young pending jobs of the lowest priorities off, evenly over ten minutes; the most urgent stay. Returns how many.
pub(super) async fn spread_low_priority(tx: &mut Tx) -> Result<u64> {
    let now = tx.now().await?;
    let mut candidates: Vec<(i64,)> = tx
        .query(sql!(
            "SELECT id FROM jobs WHERE status = 'pending' AND priority <= 0 AND created_at >= $1
             AND id NOT IN (SELECT id FROM jobs WHERE status = 'pending' ORDER BY priority DESC, id LIMIT $2)
             ORDER BY priority, id DESC LIMIT $3 " { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" }
        ))
        .bind(now.before(OLD_AFTER))
        .bind(KEPT_PENDING)
        .bind(BATCH)
        .all()
        .await?;
    candidates.sort_unstable(); // the oldest come back first
    let step = Duration::from_secs(600) / candidates.len().max(1) as u32;
    for (position, (id,)) in candidates.iter().enumerate() {
        tx.query(
            "UPDATE jobs SET status = 'waiting', run_at = $1, updated_at = $2 WHERE id = $3 AND status = 'pending'",
        )
        .bind(now.after(step * (position as u32 + 1)))
        .bind(now)
        .bind(*id)
        .execute()
        .await?;
    }
    Ok(candidates.len() as u64)
}

/// Fails jobs that have been pending for over two hours, oldest first; returns them. They are kept and can be retried.
pub(super) async fn fail_long_pending(tx: &mut Tx) -> Result<Vec<i64>> {
    let now = tx.now().await?;
    let mut failed: Vec<(i64,)> = tx
        .query(sql!(
            "UPDATE jobs SET status = 'failed', error = 'pending for over 2 h: failed by an emergency rebalance',
                 finished_at = $1, updated_at = $1
             WHERE id IN (SELECT id FROM jobs WHERE status = 'pending' AND coalesce(run_at, created_at) < $2
                          ORDER BY coalesce(run_at, created_at) LIMIT $3 "
            { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" } ") RETURNING id"
        ))
        .bind(now)
        .bind(now.before(TOO_OLD_AFTER))
        .bind(BATCH)
        .all()
        .await?;
    failed.sort_unstable();
    Ok(failed.into_iter().map(|(id,)| id).collect())
}

/// Takes away jobs that finished before `before`, up to a batch; returns how many.
pub async fn forget_finished(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    tx.query(
        "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs
             WHERE status IN ('completed', 'failed', 'cancelled') AND finished_at < $1 ORDER BY finished_at LIMIT $2)",
    )
    .bind(before)
    .bind(BATCH)
    .execute()
    .await
}
