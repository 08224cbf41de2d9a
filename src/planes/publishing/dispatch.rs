//! Handing due publications to the queue, and finding those whose job died.
//!
//! Level-based: every tick reads what there is and trusts no event, so it also carries what other programs inserted
//! and what a crash left behind. Every instance runs one; rows are taken by conditional updates.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::model::{PublishLog, Status};
use super::{Publishing, QUEUE, publish, store};
use crate::actor::Actor;
use crate::db::{Result, Timestamp, Topic, Tx};
use crate::ledger::{self, Entry, Severity};
use crate::panic::caught;
use crate::planes::queue::{self, NewJob};

/// Publications that one transaction hands over; the rest follow in the next.
const BATCH: i64 = 250;

/// Pending publications whose jobs are checked in one tick.
const SWEEP: i64 = 500;

/// What one tick did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dispatched {
    /// Publications that were given a job.
    pub handed_over: usize,
    /// Publications that were failed because they had no try left.
    pub spent: usize,
    /// Publications whose outcome is unknown because their job died.
    pub lost: usize,
    /// Whether a batch was full, so that there is more to do at once.
    pub more: bool,
}

/// The priority of a publication's job. What is due is no low-priority work: a rebalance of the queue must not put it
/// off, so it stands above the jobs that say nothing of their priority.
pub(super) fn job_priority(log_priority: i64) -> i64 {
    (log_priority + 10).min(1_000)
}

/// Hands due publications to the queue.
pub struct Dispatcher {
    publishing: Arc<Publishing>,
    poll_interval: Duration,
}

impl Dispatcher {
    /// A dispatcher that looks every `poll_interval` when nothing wakes it.
    pub fn new(publishing: Arc<Publishing>, poll_interval: Duration) -> Self {
        Self { publishing, poll_interval }
    }

    /// Ticks until `stop`, at each hint of [`Topic::Publications`] and every poll interval.
    pub async fn run(self, stop: CancellationToken) {
        let db = self.publishing.db().clone();
        let clock = self.publishing.clock().clone();
        let mut hints = db.listen(Topic::Publications); // before the first look, so that nothing falls between
        while !stop.is_cancelled() {
            match caught(self.tick()).await {
                Ok(Ok(done)) if done.more => continue,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "due publications were not handed over; trying again"),
                Err(error) => tracing::error!(error, "due publications were not handed over; trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = hints.woken() => {}
                () = clock.sleep(self.poll_interval) => {}
            }
        }
    }

    /// One look at everything that is due, without a job, or lost.
    pub async fn tick(&self) -> Result<Dispatched> {
        let db = self.publishing.db();
        let now = db.now().await?;
        if store::work(db, now).await?.is_none() {
            return Ok(Dispatched::default());
        }
        let mut tx = db.begin().await?;
        let mut done = Dispatched::default();
        let mut entries = sweep(&mut tx).await?;
        done.lost = entries.len();
        let due = self.due(&mut tx).await?;
        let without_job = store::lock_without_job(&mut tx, BATCH).await?;
        done.more = [due.len(), without_job.len()].contains(&(BATCH as usize));
        let orphaned = store::lock_pending_without_live_job(&mut tx, SWEEP).await?;
        for log in due.iter().chain(&without_job).chain(&orphaned) {
            if log.status == Status::Retry && log.retry_count >= log.max_retries {
                if store::fail_spent(&mut tx, log.id).await? > 0 {
                    done.spent += 1;
                    entries.push(spent(log));
                }
                continue;
            }
            let job_id = enqueue_publish(&mut tx, log, job_priority(log.priority)).await?;
            if store::hand_over(&mut tx, log, job_id).await? {
                done.handed_over += 1;
            }
        }
        if done.handed_over + done.spent + done.lost == 0 {
            return Ok(done); // the transaction changed nothing
        }
        ledger::append(&mut tx, &entries).await?;
        tx.commit().await?;
        if done.handed_over > 0 {
            db.wake(Topic::Jobs).await;
        }
        Ok(done)
    }

    /// Publications whose time has come. After downtime what is long overdue is not sent all at once: of each
    /// platform only the oldest goes, and only a spacing after the late one before it. What is on time goes beside it:
    /// neither waits for the other.
    async fn due(&self, tx: &mut Tx) -> Result<Vec<PublishLog>> {
        let now = tx.now().await?;
        let minutes = self.publishing.config().catch_up_after_minutes;
        let overdue_before = now.before(Duration::from_secs(minutes.saturating_mul(60)));
        let mut due = store::lock_due(tx, overdue_before, BATCH).await?;
        for platform in store::overdue_platforms(tx, overdue_before).await? {
            let quiet_since = self.quiet_since(&platform, now);
            due.extend(store::lock_oldest_overdue(tx, &platform, overdue_before, quiet_since).await?);
        }
        Ok(due)
    }

    /// An attempt after this is too near for a publication that is late anyway.
    fn quiet_since(&self, platform: &str, now: Timestamp) -> Timestamp {
        let spacing = self.publishing.schedule().get(platform).map(|schedule| schedule.spacing);
        now.before(spacing.and_then(|spacing| spacing.to_std().ok()).unwrap_or(Duration::from_secs(60)))
    }
}

/// Enqueues the job of a publication. The key is unique to this handing over: a job that died never shares its
/// successor's.
pub(super) async fn enqueue_publish(tx: &mut Tx, log: &PublishLog, priority: i64) -> Result<i64> {
    let key = format!("publish:{}:{}:{}", log.id, log.retry_count, log.job_id.unwrap_or(0));
    let job = NewJob {
        queue: Some(QUEUE.into()),
        priority: Some(priority),
        input: json!({ "log_id": log.id }),
        idempotency_key: Some(queue::own_key(key)),
        max_attempts: Some(1),
        dead_letter: false, // its publication is tried again, never its job
        ..NewJob::new(publish::KIND)
    };
    Ok(queue::enqueue(tx, job).await?.id)
}

/// Marks publications unknown whose job died between the attempt and its answer; gives their ledger entries.
pub(super) async fn sweep(tx: &mut Tx) -> Result<Vec<Entry>> {
    let lost = store::sweep_lost(tx, BATCH).await?;
    Ok(lost
        .iter()
        .map(|log| publish::entry("publishing.unknown", Severity::Error, log, json!(log.last_error)))
        .collect())
}

fn spent(log: &PublishLog) -> Entry {
    let reason = format!("it was refused for now {} times; its retries are used", log.retry_count + 1);
    Entry::new(
        "publishing.refused",
        Actor::System,
        json!({ "clip_id": log.clip_id, "platform": log.platform, "retry_count": log.retry_count, "reason": reason,
                "last_error": log.last_error }),
    )
    .severity(Severity::Warning)
    .subject(log.subject())
}
