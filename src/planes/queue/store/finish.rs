//! Signs of life, and every way in which a try ends. Whatever a holder says counts only while it holds the lease.
//!
//! The trigger `jobs_ended` writes the ended try and the dead letter, in the same transaction.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::claim::millis;
use super::registry;
use crate::backoff::{Backoff, Growth};
use crate::db::{Db, Json, Result, Sql, Timestamp, Tx, has_nul};
use crate::planes::queue::job::Hold;
use crate::planes::queue::model::{Event, Status};
use crate::random::Random;
use crate::sql;

/// The waits of a kind without a row in `tasks`.
pub(super) const RETRY_BASE: Duration = Duration::from_secs(1);
/// The longest wait where neither the task nor the service (`MAX_RETRY_DELAY_MS`) names another.
pub(in crate::planes::queue) const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Characters of an error that are kept: enough for a stack trace, and a thousand tries still fit.
const ERROR_LENGTH: usize = 8_000;

/// Whether and when a failed job is tried again.
#[derive(Clone, Copy)]
pub enum Again<'a> {
    /// As the task says, while a try is left; no later than after this wait, unless the task names another bound.
    ByPolicy(&'a Random, Duration),
    /// After this wait, while a try is left.
    In(Duration),
    /// Not at all.
    Never,
}

/// What a sign of life was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Beat {
    /// The lease is held on.
    Held {
        /// Somebody gives the job up: stop, and acknowledge.
        cancel_requested: bool,
        lease_expires_at: Timestamp,
    },
    /// The lease is somebody else's, or the job has ended.
    Gone,
}

/// What asking for a cancellation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Cancelled {
    /// It had not begun, and never will.
    AtOnce,
    /// It is running; whoever runs it is told.
    Requested,
    /// It had ended before, or there is no such job.
    NotLive,
}

/// A try that is over, as the statement reads it.
#[derive(Serialize)]
struct Ended<'a> {
    id: i64,
    lease: i64,
    status: &'static str,
    outcome: &'static str,
    error: &'a str,
    run_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
}

/// A running try, as far as its end depends on it.
#[derive(sqlx::FromRow)]
struct Trying {
    id: i64,
    lease: i64,
    attempt: i64,
    max_attempts: i64,
    worker: Option<String>,
    deadline_at: Option<Timestamp>,
    lease_expires_at: Option<Timestamp>,
    timeout_ms: Option<i64>,
    cancel_requested_at: Option<Timestamp>,
    heartbeat_interval_ms: Option<i64>,
    task_timeout_ms: Option<i64>,
    retry_backoff: Option<String>,
    retry_delay_ms: Option<i64>,
    retry_jitter: Option<f64>,
    max_retry_delay_ms: Option<i64>,
}

impl Trying {
    fn backoff(&self, longest: Duration) -> Backoff {
        let growth = match self.retry_backoff.as_deref() {
            Some("fixed") => Growth::Fixed,
            Some("linear") => Growth::Linear,
            _ => Growth::Exponential,
        };
        Backoff {
            growth,
            base: self.retry_delay_ms.map_or(RETRY_BASE, millis),
            cap: self.max_retry_delay_ms.map_or(longest, millis),
            jitter: self.retry_jitter.unwrap_or(0.5),
        }
    }

    fn tries(&self) -> u32 {
        u32::try_from(self.attempt).unwrap_or(u32::MAX)
    }

    /// The row after `event`; one that somebody gives up meanwhile is not tried again.
    fn ends<'a>(&self, event: fn(bool) -> Event, wait: Option<Duration>, error: &'a str, now: Timestamp) -> Ended<'a> {
        let again = wait.is_some() && self.attempt < self.max_attempts;
        let event = if self.cancel_requested_at.is_some() { Event::CancelAcknowledged } else { event(again) };
        let status = Status::Processing.on(event).unwrap_or(Status::Failed); // every one of these events ends a try
        let outcome = match event {
            Event::LeaseLapsed { .. } => "lapsed",
            Event::TimedOut { .. } => "timed_out",
            Event::CancelAcknowledged => "cancelled",
            _ => "failed",
        };
        Ended {
            id: self.id,
            lease: self.lease,
            status: status.as_str(),
            outcome,
            error,
            run_at: wait.filter(|_| status == Status::Retry).map(|wait| now.after(wait)),
            finished_at: status.is_final().then_some(now),
        }
    }
}

/// Renews a lease. One of a task with a heartbeat interval holds for twice that.
pub async fn heartbeat(tx: &mut Tx, hold: Hold, lease: Duration) -> Result<Beat> {
    let now = tx.now().await?;
    let row: Option<(Option<Timestamp>, Option<Timestamp>, Option<i64>)> = tx
        .query(sql!(
            "SELECT deadline_at, cancel_requested_at, (SELECT heartbeat_interval_ms FROM tasks WHERE tasks.id = jobs.kind)
             FROM jobs WHERE id = $1 AND lease = $2 AND status = 'processing'"
            { sqlite: "", postgres: " FOR UPDATE" }
        ))
        .bind(hold.id)
        .bind(hold.lease)
        .optional()
        .await?;
    let Some((deadline_at, cancel_requested_at, interval)) = row else { return Ok(Beat::Gone) };
    let ends = now.after(interval.map_or(lease, |interval| millis(interval) * 2));
    let lease_expires_at = deadline_at.map_or(ends, |deadline| ends.min(deadline));
    tx.query("UPDATE jobs SET lease_expires_at = $1, heartbeat_at = $2 WHERE id = $3")
        .bind(lease_expires_at)
        .bind(now)
        .bind(hold.id)
        .execute()
        .await?;
    Ok(Beat::Held { cancel_requested: cancel_requested_at.is_some(), lease_expires_at })
}

/// Notes how far a job is, in percent, and renews its lease.
pub async fn progress(tx: &mut Tx, hold: Hold, lease: Duration, percent: f64, message: Option<&str>) -> Result<Beat> {
    let beat = heartbeat(tx, hold, lease).await?;
    if beat != Beat::Gone {
        tx.query("UPDATE jobs SET progress = $1, progress_message = coalesce($2, progress_message) WHERE id = $3")
            .bind(if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 })
            .bind(message.map(shortened))
            .bind(hold.id)
            .execute()
            .await?;
    }
    Ok(beat)
}

/// Renews the leases of running jobs of this process; returns the ids of those still held.
pub async fn renew(tx: &mut Tx, held: &[Hold], lease: Duration) -> Result<Vec<i64>> {
    let now = tx.now().await?;
    let kept: Vec<(i64,)> = tx
        .query(sql!(
            "UPDATE jobs SET lease_expires_at = CASE WHEN deadline_at < $1 THEN deadline_at ELSE $1 END, heartbeat_at = $2
             FROM " { sqlite: "(SELECT value ->> 'id' AS id, value ->> 'lease' AS lease FROM json_each($3)) AS held",
                      postgres: "jsonb_to_recordset($3) AS held (id BIGINT, lease BIGINT)" }
            " WHERE jobs.id = held.id AND jobs.lease = held.lease AND status = 'processing' RETURNING jobs.id"
        ))
        .bind(now.after(lease))
        .bind(now)
        .bind(Json(held))
        .all()
        .await?;
    Ok(kept.into_iter().map(|(id,)| id).collect())
}

/// Finishes a job whose lease is held; `false` when somebody else has it or it is finished.
pub async fn complete(tx: &mut Tx, hold: impl Into<Hold>, result: &Value) -> Result<bool> {
    Ok(!complete_many(tx, &[(hold.into(), result)]).await?.is_empty())
}

/// Finishes jobs by one statement; returns the ids of those whose lease was held.
pub async fn complete_many(tx: &mut Tx, done: &[(Hold, &Value)]) -> Result<Vec<i64>> {
    let now = tx.known_now();
    let held: Vec<(i64,)> = tx.query(COMPLETE_AND_TELL).bind(Json(completed(done))).bind(now).all().await?;
    Ok(held.into_iter().map(|(id,)| id).collect())
}

/// The same where the statement is its own transaction; returns how many leases were held.
pub(in crate::planes::queue) async fn complete_at_once(db: &Db, done: &[(Hold, &Value)]) -> Result<u64> {
    db.write(COMPLETE).bind(Json(completed(done))).bind(db.known_now()).execute().await
}

/// Completes jobs ($1) whose lease is held, at a time ($2, or when the statement runs).
macro_rules! completing {
    ($returning:literal) => {
        sql!(
            "UPDATE jobs SET status = 'completed', result = done.result, outcome = NULL, error = NULL,
                 lease_expires_at = NULL, deadline_at = NULL, finished_at = clock.now, updated_at = clock.now
             FROM "
            { sqlite: "(SELECT $2 AS now) AS clock,
                 (SELECT value ->> 0 AS id, value ->> 1 AS lease, value -> 2 AS result FROM json_each($1)) AS done",
              postgres: "(SELECT coalesce($2, date_trunc('milliseconds', clock_timestamp())) AS now) AS clock,
                 (SELECT CAST(value ->> 0 AS BIGINT) AS id, CAST(value ->> 1 AS BIGINT) AS lease,
                      value -> 2 AS result FROM jsonb_array_elements($1)) AS done" }
            " WHERE jobs.id = done.id AND jobs.lease = done.lease AND status = 'processing'"
            $returning
        )
    };
}

const COMPLETE: Sql = completing!("");
const COMPLETE_AND_TELL: Sql = completing!(" RETURNING jobs.id");

/// Jobs as the statement reads them.
fn completed<'a>(done: &[(Hold, &'a Value)]) -> Vec<(i64, i64, Cow<'a, Value>)> {
    done.iter().map(|(hold, result)| (hold.id, hold.lease, storable(result))).collect()
}

/// Ends a try that failed; the job's next status, or none when the lease is no longer held.
pub async fn fail(tx: &mut Tx, hold: impl Into<Hold>, error: &str, again: Again<'_>) -> Result<Option<Status>> {
    end(tx, hold.into(), |again| Event::Failed { again }, error, again).await
}

/// Ends a try that took too long.
pub async fn time_out(tx: &mut Tx, hold: impl Into<Hold>, again: Again<'_>) -> Result<Option<Status>> {
    end(tx, hold.into(), |again| Event::TimedOut { again }, "the try took longer than it may", again).await
}

/// Ends a try because somebody gives the job up; `false` when nobody does, or the lease is no longer held.
pub async fn acknowledge_cancel(tx: &mut Tx, hold: impl Into<Hold>) -> Result<bool> {
    let hold = hold.into();
    let Some(trying) = trying(tx, hold).await?.filter(|trying| trying.cancel_requested_at.is_some()) else {
        return Ok(false);
    };
    let now = tx.now().await?;
    let ended = trying.ends(|again| Event::Failed { again }, None, "cancelled while it ran", now);
    Ok(!write_ends(tx, &[ended]).await?.is_empty())
}

async fn end(
    tx: &mut Tx,
    hold: Hold,
    event: fn(bool) -> Event,
    error: &str,
    again: Again<'_>,
) -> Result<Option<Status>> {
    let Some(trying) = trying(tx, hold).await? else { return Ok(None) };
    let now = tx.now().await?;
    let wait = match again {
        Again::ByPolicy(random, longest) => Some(trying.backoff(longest).wait(trying.tries(), random)),
        Again::In(wait) => Some(wait),
        Again::Never => None,
    };
    let error = shortened(error);
    let ended = trying.ends(event, wait, &error, now);
    let status = ended.status.parse().ok();
    let written = write_ends(tx, &[ended]).await?;
    Ok(if written.is_empty() { None } else { status })
}

/// A claimed job that never began goes back to the others; the try does not count.
pub async fn give_back(tx: &mut Tx, held: &[Hold]) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE jobs SET status = CASE WHEN cancel_requested_at IS NULL THEN 'pending' ELSE 'cancelled' END,
             finished_at = CASE WHEN cancel_requested_at IS NULL THEN NULL ELSE $1 END,
             attempt = CASE WHEN jobs.attempt > 0 THEN jobs.attempt - 1 ELSE 0 END,
             lease = CASE WHEN jobs.lease < 1000000000000000 THEN jobs.lease + 1 ELSE 1 END,
             lease_expires_at = NULL, deadline_at = NULL, worker = NULL, started_at = NULL, updated_at = $1
         FROM " { sqlite: "(SELECT value ->> 'id' AS id, value ->> 'lease' AS lease FROM json_each($2)) AS held",
                  postgres: "jsonb_to_recordset($2) AS held (id BIGINT, lease BIGINT)" }
        " WHERE jobs.id = held.id AND jobs.lease = held.lease AND status = 'processing'"
    ))
    .bind(now)
    .bind(Json(held))
    .execute()
    .await
}

/// Gives a job up: at once where it has not begun, else whoever runs it is told.
pub async fn cancel(tx: &mut Tx, id: i64) -> Result<Cancelled> {
    let now = tx.now().await?;
    let changed: Option<(String,)> = tx
        .query(
            "UPDATE jobs SET status = CASE WHEN status = 'processing' THEN status ELSE 'cancelled' END,
                 cancel_requested_at = coalesce(cancel_requested_at, $1),
                 finished_at = CASE WHEN status = 'processing' THEN NULL ELSE $1 END, updated_at = $1
             WHERE id = $2 AND status IN ('waiting', 'pending', 'processing', 'retry') RETURNING status",
        )
        .bind(now)
        .bind(id)
        .optional()
        .await?;
    Ok(match changed {
        None => Cancelled::NotLive,
        Some((status,)) if status == "processing" => Cancelled::Requested,
        Some(_) => Cancelled::AtOnce,
    })
}

/// No lease is longer: the bound of `queue.lease_seconds`, and of twice a task's heartbeat interval.
pub const LONGEST_LEASE: Duration = Duration::from_secs(3_600);

/// Takes jobs back whose lease lapsed or whose time is over: tried again while a try is left. A lease that claims to
/// hold for longer than `longest` (or than any may, where the task has a heartbeat interval) was written under a clock
/// that has since been set back, and has lapsed too. Who ran out of time waits `longest_wait` at most, unless its task
/// names another bound. Returns how many.
pub async fn rescue(tx: &mut Tx, longest: Duration, longest_wait: Duration, limit: i64) -> Result<u64> {
    let now = tx.now().await?;
    let mut lapsed: Vec<Trying> = tx
        .query(sql!(
            "SELECT jobs.id, lease, attempt, jobs.max_attempts, worker, deadline_at, lease_expires_at, jobs.timeout_ms,
                 cancel_requested_at, heartbeat_interval_ms, tasks.timeout_ms AS task_timeout_ms, retry_backoff, retry_delay_ms, retry_jitter,
                 max_retry_delay_ms
             FROM jobs LEFT JOIN tasks ON tasks.id = jobs.kind
             WHERE status = 'processing' AND (lease_expires_at < $1 OR lease_expires_at > $4
                 OR (lease_expires_at > $3 AND heartbeat_interval_ms IS NULL))
             ORDER BY lease_expires_at LIMIT $2 "
            { sqlite: "", postgres: "FOR UPDATE OF jobs SKIP LOCKED" }
        ))
        .bind(now)
        .bind(limit)
        .bind(now.after(longest))
        .bind(now.after(LONGEST_LEASE))
        .all()
        .await?;
    if lapsed.iter().any(|job| job.lease_expires_at >= Some(now)) {
        // A process that stood still since it asked for the time sees leases that others took meanwhile as too long.
        let later = tx.later().await?;
        lapsed.retain(|job| job.lease_expires_at < Some(now) || job.leased_beyond(longest, later));
    }
    let mut lost: BTreeMap<&str, i64> = BTreeMap::new();
    let errors: Vec<String> = lapsed.iter().map(|job| job.why_lapsed(now)).collect();
    let mut ends = Vec::with_capacity(lapsed.len());
    for (job, error) in lapsed.iter().zip(&errors) {
        if job.is_out_of_time(now) {
            ends.push(job.ends(
                |again| Event::TimedOut { again },
                Some(job.backoff(longest_wait).full(job.tries())),
                error,
                now,
            ));
        } else {
            // Silence of a task with heartbeats is a failed try, and waits like one: what kills its worker shall not kill
            // the next at once. Else a dead worker says nothing about the job: it is tried again at once.
            let wait =
                job.heartbeat_interval_ms.map_or(Duration::ZERO, |_| job.backoff(longest_wait).full(job.tries()));
            ends.push(job.ends(|again| Event::LeaseLapsed { again }, Some(wait), error, now));
        }
        if let Some(worker) = &job.worker {
            *lost.entry(worker).or_default() += 1;
        }
    }
    let written = write_ends(tx, &ends).await?;
    for (worker, lost) in lost {
        registry::note_outcomes(tx, worker, registry::Outcomes { lost, ..Default::default() }).await?;
    }
    Ok(written.len() as u64)
}

impl Trying {
    /// Whether the lease claims to hold for longer than any may, at this time; a heartbeat interval may ask for more
    /// than `longest`.
    fn leased_beyond(&self, longest: Duration, now: Timestamp) -> bool {
        let longest = if self.heartbeat_interval_ms.is_some() { LONGEST_LEASE } else { longest.min(LONGEST_LEASE) };
        self.lease_expires_at > Some(now.after(longest))
    }

    fn is_out_of_time(&self, now: Timestamp) -> bool {
        self.deadline_at.is_some_and(|deadline| deadline < now)
    }

    fn why_lapsed(&self, now: Timestamp) -> String {
        if self.is_out_of_time(now) {
            let limit = self.timeout_ms.or(self.task_timeout_ms).unwrap_or_default();
            return format!("timed out after {limit} ms");
        }
        match self.heartbeat_interval_ms {
            Some(interval) => format!("no heartbeat for {} ms", interval * 2),
            None => "the lease lapsed: the worker died or hung".to_owned(),
        }
    }
}

async fn trying(tx: &mut Tx, hold: Hold) -> Result<Option<Trying>> {
    tx.query(sql!(
        "SELECT jobs.id, lease, attempt, jobs.max_attempts, worker, deadline_at, lease_expires_at, jobs.timeout_ms,
             cancel_requested_at, heartbeat_interval_ms, tasks.timeout_ms AS task_timeout_ms, retry_backoff, retry_delay_ms, retry_jitter, max_retry_delay_ms
         FROM jobs LEFT JOIN tasks ON tasks.id = jobs.kind
         WHERE jobs.id = $1 AND lease = $2 AND status = 'processing'"
        { sqlite: "", postgres: " FOR UPDATE OF jobs" }
    ))
    .bind(hold.id)
    .bind(hold.lease)
    .optional()
    .await
}

/// Writes ends of tries; returns the ids of those that were still held. The lease grows, so that a late answer of the
/// same holder changes nothing.
async fn write_ends(tx: &mut Tx, ends: &[Ended<'_>]) -> Result<Vec<i64>> {
    if ends.is_empty() {
        return Ok(Vec::new());
    }
    let now = tx.now().await?;
    let written: Vec<(i64,)> = tx
        .query(sql!(
            "UPDATE jobs SET status = ended.status, outcome = ended.outcome, error = ended.error,
                 run_at = coalesce(ended.run_at, jobs.run_at), finished_at = ended.finished_at,
                 lease = CASE WHEN jobs.lease < 1000000000000000 THEN jobs.lease + 1 ELSE 1 END,
                 lease_expires_at = NULL, deadline_at = NULL, updated_at = $2
             FROM " { sqlite: "(SELECT value ->> 'id' AS id, value ->> 'lease' AS lease, value ->> 'status' AS status,
                                    value ->> 'outcome' AS outcome, value ->> 'error' AS error,
                                    value ->> 'run_at' AS run_at, value ->> 'finished_at' AS finished_at
                                FROM json_each($1)) AS ended",
                      postgres: "jsonb_to_recordset($1) AS ended (id BIGINT, lease BIGINT, status TEXT, outcome TEXT,
                                    error TEXT, run_at TIMESTAMPTZ, finished_at TIMESTAMPTZ)" }
            " WHERE jobs.id = ended.id AND jobs.lease = ended.lease AND jobs.status = 'processing' RETURNING jobs.id"
        ))
        .bind(Json(ends))
        .bind(now)
        .all()
        .await?;
    Ok(written.into_iter().map(|(id,)| id).collect())
}

/// A result without the character that PostgreSQL cannot store: one bad text must not hold up a whole batch.
fn storable(result: &Value) -> Cow<'_, Value> {
    fn without(value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(text.replace('\0', "")),
            Value::Array(items) => items.iter().map(without).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, value)| (name.replace('\0', ""), without(value))).collect()
            }
            other => other.clone(),
        }
    }
    if has_nul(result) { Cow::Owned(without(result)) } else { Cow::Borrowed(result) }
}

/// The beginning of a text, without what PostgreSQL cannot store.
fn shortened(text: &str) -> String {
    text.chars().filter(|letter| *letter != '\0').take(ERROR_LENGTH).collect()
}
