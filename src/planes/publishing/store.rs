//! All of the publishing plane's SQL. Conditional updates follow the table of [`Status::on`](super::model::Status::on):
//! each names the status that it expects, so that of two writers one finds its row gone on.
//!
//! Here is what the actions and routes need; `due` is the dispatcher's part, `outcome` the jobs', `records` the lists'
//! and changes of the routes.

mod due;
mod outcome;
mod records;

use std::time::Duration;

use chrono::TimeDelta;

pub(super) use due::*;
pub(super) use outcome::*;
pub(super) use records::*;

use super::model::{Campaign, Clip, PublishLog};
use super::slots::{HORIZON_DAYS, Taken};
use crate::db::{Json, Result, Timestamp, Tx};
use crate::sql;

/// Times that are read to find a slot; beyond them nothing is known and no slot is given.
const TAKEN_LIMIT: i64 = 5_000;

/// One clip, held against other writers until the transaction ends.
pub(super) async fn lock_clip(tx: &mut Tx, id: i64) -> Result<Option<Clip>> {
    tx.query(sql!("SELECT * FROM clips WHERE id = $1" { sqlite: "", postgres: " FOR UPDATE" }))
        .bind(id)
        .optional()
        .await
}

/// One campaign, held against other writers until the transaction ends.
pub(super) async fn lock_campaign(tx: &mut Tx, id: i64) -> Result<Option<Campaign>> {
    tx.query(sql!("SELECT * FROM campaigns WHERE id = $1" { sqlite: "", postgres: " FOR UPDATE" }))
        .bind(id)
        .optional()
        .await
}

/// One publication, held against other writers until the transaction ends.
pub(super) async fn lock_log(tx: &mut Tx, id: i64) -> Result<Option<PublishLog>> {
    tx.query(sql!("SELECT * FROM publish_logs WHERE id = $1" { sqlite: "", postgres: " FOR UPDATE" }))
        .bind(id)
        .optional()
        .await
}

/// One publication and the status of its job, if it has one, both held against other writers until the transaction
/// ends. The job first: whoever ends a job goes from the job to its publication.
pub(super) async fn lock_log_with_job(tx: &mut Tx, id: i64) -> Result<Option<(PublishLog, Option<String>)>> {
    let mut job = None;
    let found: Option<(Option<i64>,)> =
        tx.query("SELECT job_id FROM publish_logs WHERE id = $1").bind(id).optional().await?;
    let before = found.and_then(|(job_id,)| job_id);
    if let Some(job_id) = before {
        job = lock_job(tx, job_id).await?;
    }
    let Some(log) = lock_log(tx, id).await? else { return Ok(None) };
    if log.job_id != before {
        // It was handed over in between, under a job so new that nobody else wants it.
        job = match log.job_id {
            Some(job_id) => lock_job(tx, job_id).await?,
            None => None,
        };
    }
    Ok(Some((log, job)))
}

/// A clip's scheduled publications, held against other writers until the transaction ends.
pub(super) async fn lock_scheduled_of_clip(tx: &mut Tx, clip_id: i64) -> Result<Vec<PublishLog>> {
    // At most one a platform: the index of live publications sees to it.
    tx.query(sql!(
        "SELECT * FROM publish_logs WHERE clip_id = $1 AND status = 'scheduled' ORDER BY platform"
        { sqlite: "", postgres: " FOR UPDATE" }
    ))
    .bind(clip_id)
    .all()
    .await
}

/// One clip.
pub(super) async fn clip(tx: &mut Tx, id: i64) -> Result<Option<Clip>> {
    tx.query("SELECT * FROM clips WHERE id = $1").bind(id).optional().await
}

/// Platforms on which a clip has a publication that is not cancelled.
pub(super) async fn used_platforms(tx: &mut Tx, clip_id: i64) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = tx
        .query("SELECT DISTINCT platform FROM publish_logs WHERE clip_id = $1 AND status <> 'cancelled'")
        .bind(clip_id)
        .all()
        .await?;
    Ok(rows.into_iter().map(|(platform,)| platform).collect())
}

/// Whether a clip has a live publication on a platform.
pub(super) async fn has_live_log(tx: &mut Tx, clip_id: i64, platform: &str) -> Result<bool> {
    let (n,): (i64,) = tx
        .query(
            "SELECT COUNT(*) FROM publish_logs
             WHERE clip_id = $1 AND platform = $2 AND status NOT IN ('failed', 'cancelled')",
        )
        .bind(clip_id)
        .bind(platform.to_owned())
        .one()
        .await?;
    Ok(n > 0)
}

/// What a campaign's live publications will cost when they are out.
pub(super) async fn reserved_cents(tx: &mut Tx, campaign_id: i64) -> Result<i64> {
    let (cents,): (i64,) = tx
        .query(
            "SELECT CAST(coalesce(SUM(cost_cents), 0) AS BIGINT) FROM publish_logs WHERE campaign_id = $1
             AND status IN ('scheduled', 'pending', 'publishing', 'unknown', 'retry')",
        )
        .bind(campaign_id)
        .one()
        .await?;
    Ok(cents)
}

/// Lets one transaction at a time choose slots of a platform. SQLite has one writer anyway.
pub(super) async fn lock_slots(tx: &mut Tx, platform: &str) -> Result<()> {
    tx.query(sql!(
        { sqlite: "SELECT $1", postgres: "SELECT CAST(pg_advisory_xact_lock(hashtext('publishing.slots:' || $1)) AS TEXT)" }
    ))
    .bind(platform.to_owned())
    .execute()
    .await?;
    Ok(())
}

/// The times of a platform's live and published publications, from two days before `from` (the whole of its local
/// date, however long the clock change made it) to the horizon.
pub(super) async fn taken(tx: &mut Tx, platform: &str, from: Timestamp) -> Result<Taken> {
    let until = from.utc() + TimeDelta::days(HORIZON_DAYS + 2);
    let rows: Vec<(Timestamp,)> = tx
        .query(
            "SELECT coalesce(published_at, scheduled_at, pending_at, created_at) FROM publish_logs
             WHERE platform = $1 AND status NOT IN ('failed', 'cancelled')
               AND coalesce(published_at, scheduled_at, pending_at, created_at) >= $2
               AND coalesce(published_at, scheduled_at, pending_at, created_at) < $3
             ORDER BY coalesce(published_at, scheduled_at, pending_at, created_at) LIMIT $4",
        )
        .bind(platform.to_owned())
        .bind(from.before(Duration::from_secs(2 * 86_400)))
        .bind(Timestamp::new(until))
        .bind(TAKEN_LIMIT)
        .all()
        .await?;
    let times: Vec<_> = rows.into_iter().map(|(at,)| at.utc()).collect();
    let known_until = match times.last() {
        Some(last) if times.len() as i64 == TAKEN_LIMIT => *last,
        _ => until,
    };
    Ok(Taken { times, known_until })
}

/// A publication to be made.
pub(super) struct NewLog {
    pub clip_id: i64,
    pub campaign_id: Option<i64>,
    pub platform: String,
    /// Scheduled for this time, or pending at once.
    pub scheduled_at: Option<Timestamp>,
    pub max_retries: i64,
    pub priority: i64,
    pub cost_cents: i64,
    pub idempotency_key: String,
}

/// Makes a publication.
pub(super) async fn insert_log(tx: &mut Tx, new: NewLog) -> Result<PublishLog> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO publish_logs (clip_id, campaign_id, platform, status, scheduled_at, pending_at, max_retries,
             priority, cost_cents, idempotency_key, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11) RETURNING *",
    )
    .bind(new.clip_id)
    .bind(new.campaign_id)
    .bind(new.platform)
    .bind(if new.scheduled_at.is_some() { "scheduled" } else { "pending" })
    .bind(new.scheduled_at)
    .bind(new.scheduled_at.is_none().then_some(now))
    .bind(new.max_retries)
    .bind(new.priority)
    .bind(new.cost_cents)
    .bind(new.idempotency_key)
    .bind(now)
    .one()
    .await
}

/// Gives a failed publication another try at `at`.
pub(super) async fn reschedule_failed(tx: &mut Tx, id: i64, at: Timestamp) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE publish_logs SET status = 'scheduled', retry_count = retry_count + 1, scheduled_at = $1, job_id = NULL,
             pending_at = NULL, updated_at = $2 WHERE id = $3 AND status = 'failed' AND retry_count < max_retries",
    )
    .bind(at)
    .bind(now)
    .bind(id)
    .execute()
    .await
}

/// Moves a scheduled publication to a later day.
pub(super) async fn postpone(tx: &mut Tx, id: i64, at: Timestamp) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE publish_logs SET scheduled_at = $1, postponed_count = CASE WHEN postponed_count < 1000000 THEN postponed_count + 1 ELSE postponed_count END, updated_at = $2
         WHERE id = $3 AND status = 'scheduled'",
    )
    .bind(at)
    .bind(now)
    .bind(id)
    .execute()
    .await
}

/// Sends a publication out next; the caller holds its row.
pub(super) async fn force(tx: &mut Tx, log: &PublishLog, priority: i64, job_id: i64) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE publish_logs SET status = 'pending', scheduled_at = NULL, pending_at = $1, priority = $2, job_id = $3,
             retry_count = retry_count + CASE WHEN status = 'retry' THEN 1 ELSE 0 END, updated_at = $1
         WHERE id = $4 AND status IN ('scheduled', 'pending', 'retry')",
    )
    .bind(now)
    .bind(priority)
    .bind(job_id)
    .bind(log.id)
    .execute()
    .await?;
    Ok(())
}

/// A job's status, held against workers until the transaction ends; none when there is no such job.
async fn lock_job(tx: &mut Tx, id: i64) -> Result<Option<String>> {
    let row: Option<(String,)> = tx
        .query(sql!("SELECT status FROM jobs WHERE id = $1" { sqlite: "", postgres: " FOR UPDATE" }))
        .bind(id)
        .optional()
        .await?;
    Ok(row.map(|(status,)| status))
}

/// Raises the priority of a job that has not begun.
pub(super) async fn raise_job_priority(tx: &mut Tx, id: i64, priority: i64) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE jobs SET priority = $1, updated_at = $2
         WHERE id = $3 AND status IN ('pending', 'waiting', 'retry') AND priority < $1",
    )
    .bind(priority)
    .bind(now)
    .bind(id)
    .execute()
    .await?;
    Ok(())
}

/// Makes a job that has not begun due at once: the queue may have been spread over the next minutes.
pub(super) async fn make_job_due(tx: &mut Tx, id: i64) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE jobs SET status = 'pending', run_at = $1, updated_at = $1 WHERE id = $2 AND status IN ('waiting', 'retry')",
    )
    .bind(now)
    .bind(id)
    .execute()
    .await?;
    Ok(())
}

/// Fails the publications that wait on these jobs; returns their ids.
pub(super) async fn fail_waiting_on(tx: &mut Tx, job_ids: &[i64], reason: &str) -> Result<Vec<i64>> {
    let now = tx.now().await?;
    let mut failed: Vec<(i64,)> = tx
        .query(sql!(
            "UPDATE publish_logs SET status = 'failed', failed_at = $1, updated_at = $1, last_error = $2, job_id = NULL
             WHERE status = 'pending' AND job_id IN ("
            { sqlite: "SELECT value FROM json_each($3)",
              postgres: "SELECT CAST(value AS BIGINT) FROM jsonb_array_elements_text($3)" }
            ") RETURNING id"
        ))
        .bind(now)
        .bind(reason.to_owned())
        .bind(Json(job_ids.to_vec()))
        .all()
        .await?;
    failed.sort_unstable();
    Ok(failed.into_iter().map(|(id,)| id).collect())
}

/// Gives a publication up; the caller holds its row and knows that its status allows it.
pub(super) async fn cancel(tx: &mut Tx, id: i64) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE publish_logs SET status = 'cancelled', updated_at = $1
         WHERE id = $2 AND status IN ('scheduled', 'pending', 'retry', 'failed')",
    )
    .bind(now)
    .bind(id)
    .execute()
    .await
}
