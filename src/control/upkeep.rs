//! Upkeep, on the leader only and in UTC: roll-ups, retention, periodic reconciliation.

use std::sync::Arc;
use std::time::Duration;

use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::runner::Lead;
use super::{cycles, governors, requests};
use crate::actor::Actor;
use crate::config::Retention;
use crate::db::{Db, Dialect, Result, Timestamp};
use crate::events;
use crate::ledger;
use crate::planes::fleet;
use crate::planes::pipelines;
use crate::planes::publishing;
use crate::planes::queue;
use crate::storage::SecretKey;
use crate::web::idempotency;

/// Six fields, seconds first.
const FOLD_TALLIES: &str = "*/10 * * * * *";
const FORGET_OLD: &str = "20 * * * * *";
const PRUNE_LEDGER: &str = "50 7 * * * *";
const RECONCILE: &str = "40 */5 * * * *";

/// The scheduler while it runs.
pub struct Upkeep {
    scheduler: JobScheduler,
}

/// Rows beyond one a tally, below which adding them up costs less than folding them.
const FOLD_ABOVE: i64 = 500;

/// Batches of one round of retention: 20,000 rows a minute of each kind, and none holds its locks for long.
const BATCHES: usize = 20;

/// What a full batch takes away.
const FULL_BATCH: u64 = 1_000;

/// What every piece of upkeep needs.
#[derive(Clone)]
struct Context {
    db: Db,
    lead: Lead,
    retention: Arc<Retention>,
}

impl Upkeep {
    /// Starts the schedule; each piece looks whether this process leads before it does anything.
    pub async fn start(db: Db, lead: Lead, retention: Retention) -> std::result::Result<Self, JobSchedulerError> {
        let context = Context { db, lead, retention: Arc::new(retention) };
        let scheduler = JobScheduler::new().await?;
        scheduler
            .add(job(
                FOLD_TALLIES,
                "roll-up",
                context.clone(),
                |context| async move { fold_tallies(&context.db).await },
            )?)
            .await?;
        scheduler
            .add(job(FORGET_OLD, "retention", context.clone(), |context| async move {
                forget_old(&context.db, &context.retention).await
            })?)
            .await?;
        scheduler
            .add(job(PRUNE_LEDGER, "ledger retention", context.clone(), |context| async move {
                let kept = context.retention.ledger_days;
                if kept > 0 {
                    let kept = Duration::from_secs(u64::from(kept) * 24 * 3600);
                    ledger::prune(&context.db, kept, &Actor::System).await?;
                }
                Ok(())
            })?)
            .await?;
        scheduler
            .add(job(RECONCILE, "reconciliation", context, |context| async move {
                publishing::reconcile_if_needed(&context.db).await
            })?)
            .await?;
        scheduler.start().await?;
        Ok(Self { scheduler })
    }

    /// Stops the schedule.
    pub async fn stop(mut self) {
        if let Err(cause) = self.scheduler.shutdown().await {
            tracing::warn!(%cause, "the upkeep's schedule did not stop cleanly");
        }
    }
}

fn job<F, Work>(
    schedule: &str,
    name: &'static str,
    context: Context,
    work: F,
) -> std::result::Result<Job, JobSchedulerError>
where
    F: Fn(Context) -> Work + Send + Sync + Copy + 'static,
    Work: Future<Output = Result<()>> + Send + 'static,
{
    Job::new_async(schedule, move |_, _| {
        let context = context.clone();
        Box::pin(async move {
            if context.lead.term().is_none() {
                return;
            }
            if let Err(cause) = work(context).await {
                tracing::warn!(%cause, upkeep = name, "upkeep failed; it is tried again at its next time");
            }
        })
    })
}

/// Folds PostgreSQL's appended tallies into one row each. SQLite counts in place and needs none.
pub async fn fold_tallies(db: &Db) -> Result<()> {
    if db.dialect() == Dialect::Sqlite {
        return Ok(());
    }
    let (surplus,): (i64,) = db
        .query(
            "SELECT CAST(coalesce(SUM(n - 1), 0) AS BIGINT) FROM
                 (SELECT COUNT(*) AS n FROM tallies GROUP BY name, key) AS rows",
        )
        .one()
        .await?;
    if surplus < FOLD_ABOVE {
        return Ok(());
    }
    let mut tx = db.begin().await?;
    tx.query(
        "WITH several AS (SELECT name, key FROM tallies GROUP BY name, key HAVING COUNT(*) > 1),
              gone AS (DELETE FROM tallies USING several
                       WHERE tallies.name = several.name AND tallies.key = several.key
                       RETURNING tallies.name, tallies.key, n, total)
         INSERT INTO tallies (name, key, n, total)
         SELECT name, key, SUM(n), SUM(total) FROM gone GROUP BY name, key HAVING SUM(n) <> 0 OR SUM(total) <> 0",
    )
    .execute()
    .await?;
    tx.commit().await
}

/// Takes away what is older than its retention, a batch at a time.
pub async fn forget_old(db: &Db, retention: &Retention) -> Result<()> {
    let days = |days: u32| Duration::from_secs(u64::from(days) * 24 * 3600);
    let now = db.now().await?;
    let before =
        |kept: u32| if kept == 0 { Timestamp::new(chrono::DateTime::UNIX_EPOCH) } else { now.before(days(kept)) };
    for _ in 0..BATCHES {
        let mut tx = db.begin().await?;
        let cycles = cycles::forget(&mut tx, before(retention.idle_cycles_days), before(retention.cycles_days)).await?;
        let jobs = queue::forget_finished(&mut tx, before(retention.jobs_days)).await?;
        let runs = pipelines::forget_finished(&mut tx, before(retention.jobs_days)).await?;
        let events = events::forget(&mut tx, before(retention.events_days)).await?;
        let streams = fleet::forget(&mut tx, before(retention.jobs_days)).await?;
        let letters = queue::forget_dead_letters(&mut tx, before(retention.dead_letters_days)).await?;
        // No period of a rate limit is longer than a day.
        let windows = queue::forget_rate_windows(&mut tx, now.before(days(1))).await?;
        tx.commit().await?;
        if cycles.max(jobs).max(runs).max(streams).max(events).max(letters).max(windows) < FULL_BATCH {
            break;
        }
    }
    let mut tx = db.begin().await?;
    governors::forget(&mut tx).await?;
    requests::forget(&mut tx).await?;
    // Workers that stopped cleanly are gone already; a day tells an operator of those that did not.
    queue::forget_workers(&mut tx, now.before(days(1))).await?;
    SecretKey::forget_used(&mut tx, now).await?;
    // Ten-minute tallies of clips matter for a day.
    tx.query("DELETE FROM tallies WHERE name = 'clips.recent' AND key < $1")
        .bind(now.before(days(2)).to_string())
        .execute()
        .await?;
    tx.commit().await?;
    idempotency::expire(db, days(1)).await?;
    Ok(())
}
