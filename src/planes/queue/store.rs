//! All of the queue's SQL. Statements follow the table of [`Status::on`](super::Status::on).

use std::time::Duration;

use serde_json::Value;

use super::model::{Job, NewJob};
use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::sql;

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

/// When the next job of a queue falls due, if any waits.
pub(super) async fn next_due(db: &Db) -> Result<Option<Timestamp>> {
    let (due,): (Option<Timestamp>,) =
        db.query("SELECT MIN(run_at) FROM jobs WHERE status IN ('waiting', 'retry')").one().await?;
    Ok(due)
}
