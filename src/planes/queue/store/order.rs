//! What is due, old, too much, or past its retention.

use std::time::Duration;

use super::BATCH;
use crate::db::{Json, Result, Timestamp, Tx};
use crate::sql;

/// A pending job older than this gains priority and is no longer put off, so that none starves.
const OLD_AFTER: Duration = Duration::from_secs(30 * 60);

/// An emergency fails jobs that have been pending for longer than this.
const TOO_OLD_AFTER: Duration = Duration::from_secs(2 * 3600);

/// How many pending jobs are left alone when the rest is spread: the bound of a saturated queue.
const KEPT_PENDING: i64 = 50;

/// Moves jobs whose time has come to `pending`, up to `limit`; returns how many.
pub(in crate::planes::queue) async fn promote_due(tx: &mut Tx, limit: i64) -> Result<u64> {
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

/// Raises the priority of pending jobs that are old, by one each time; returns how many.
pub(in crate::planes::queue) async fn age_priorities(tx: &mut Tx) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE jobs SET priority = priority + 1, updated_at = $1 WHERE id IN (
             SELECT id FROM jobs WHERE status = 'pending' AND priority < 1000 AND coalesce(run_at, created_at) < $2
             ORDER BY coalesce(run_at, created_at) LIMIT $3 " { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" } ")"
    ))
    .bind(now)
    .bind(now.before(OLD_AFTER))
    .bind(BATCH)
    .execute()
    .await
}

/// Puts young pending jobs of the lowest priorities off, evenly over ten minutes; the most urgent stay. Returns how many.
pub(in crate::planes::queue) async fn spread_low_priority(tx: &mut Tx) -> Result<u64> {
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
pub(in crate::planes::queue) async fn fail_long_pending(tx: &mut Tx) -> Result<Vec<i64>> {
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

/// Takes away jobs that finished before `before`, with their tries, up to a batch; returns how many. One whose dead
/// letter is open can still be retried, and stays as long as the letter.
pub async fn forget_finished(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    let gone: Vec<(i64,)> = tx
        .query(
            // Of a row that changed meanwhile PostgreSQL checks the outer conditions only: the job may live again.
            "DELETE FROM jobs WHERE status IN ('completed', 'failed', 'cancelled') AND id IN (SELECT id FROM jobs
                 WHERE status IN ('completed', 'failed', 'cancelled') AND coalesce(finished_at, updated_at) < $1
                   AND NOT EXISTS (SELECT 1 FROM dlq WHERE dlq.job_id = jobs.id AND dlq.status = 'open')
                 ORDER BY coalesce(finished_at, updated_at) LIMIT $2)
             RETURNING id",
        )
        .bind(before)
        .bind(BATCH)
        .all()
        .await?;
    if !gone.is_empty() {
        let ids: Vec<i64> = gone.iter().map(|(id,)| *id).collect();
        tx.query(sql!(
            "DELETE FROM ended_attempts WHERE job_id IN ("
            { sqlite: "SELECT value FROM json_each($1)", postgres: "SELECT CAST(jsonb_array_elements_text($1) AS BIGINT)" }
            ")"
        ))
        .bind(Json(ids))
        .execute()
        .await?;
    }
    Ok(gone.len() as u64)
}
