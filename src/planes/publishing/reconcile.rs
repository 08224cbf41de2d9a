//! The job that asks the platforms what became of publications without an answer.
//!
//! A platform's "it is out" settles one as published, its "it failed" as failed; its "never heard of it" settles one
//! as failed only when the attempt is so old that nothing of it can still be on its way. Anything else changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use super::connectors::StatusAnswer;
use super::model::{Event, PublishLog, Status};
use super::store::{self, Settled};
use super::{Publishing, QUEUE, dispatch, publish};
use crate::db::{self, Db, Result, Timestamp, Topic, Tx};
use crate::ledger::{self, Severity};
use crate::planes::queue::{self, Enqueued, Handler, Job, NewJob, Outcome};

/// The kind of these jobs, and the key under which one is live at a time.
pub(super) const KIND: &str = "reconcile";

/// Publications that are asked about at once: a platform is not to be flooded with questions.
const BATCH: i64 = 8;

/// One job asks for no longer, then the next one goes on where it ended: silent platforms hold nobody else up for hours.
const LONGEST: Duration = Duration::from_secs(600);

/// Asking goes before sending: what is settled frees its clip for another try.
const PRIORITY: i64 = 100;

/// Enqueues the job; `created` is false when one is live already.
pub(super) async fn enqueue(tx: &mut Tx) -> Result<Enqueued> {
    let job = NewJob {
        queue: Some(QUEUE.into()),
        priority: Some(PRIORITY),
        idempotency_key: Some(queue::own_key(KIND)),
        dead_letter: false, // upkeep asks again
        ..NewJob::new(KIND)
    };
    queue::enqueue(tx, job).await
}

/// Enqueues the job if there is a publication without an answer; upkeep calls it from time to time.
pub async fn reconcile_if_needed(db: &Db) -> Result<()> {
    if store::unknown_after(db, 0, 1).await?.is_empty() {
        return Ok(());
    }
    let mut tx = db.begin().await?;
    let enqueued = enqueue(&mut tx).await?;
    tx.commit().await?;
    if enqueued.created {
        db.wake(Topic::Jobs).await;
    }
    Ok(())
}

/// Runs jobs of kind `reconcile`.
pub(super) struct ReconcileHandler {
    publishing: Arc<Publishing>,
    /// The publication behind which the next job begins, where the last one's time was over; else 0.
    goes_on_after: AtomicI64,
}

/// What a reconciliation found.
#[derive(Debug, Default, Serialize)]
struct Found {
    published: u32,
    failed: u32,
    still_unknown: u32,
}

#[async_trait]
impl Handler for ReconcileHandler {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn run(&self, _job: &Job) -> Outcome {
        match self.reconcile().await {
            Ok(found) => Outcome::Done(json!(found)),
            Err(error) => Outcome::Failed(format!("the reconciliation was cut short: {error}")),
        }
    }
}

impl ReconcileHandler {
    pub(super) fn new(publishing: Arc<Publishing>) -> Self {
        Self { publishing, goes_on_after: AtomicI64::new(0) }
    }

    async fn reconcile(&self) -> Result<Found> {
        self.sweep().await?;
        let mut found = Found::default();
        let began = self.publishing.clock().elapsed();
        let mut last = self.goes_on_after.swap(0, Ordering::Relaxed);
        let mut broken = None;
        loop {
            if self.publishing.clock().elapsed() - began > LONGEST {
                self.goes_on_after.store(last, Ordering::Relaxed);
                return broken.map_or(Ok(found), Err);
            }
            let batch = store::unknown_after(self.publishing.db(), last, BATCH).await?;
            let Some(end) = batch.last() else { return broken.map_or(Ok(found), Err) };
            last = end.id;
            // How old an attempt was when the platform was asked decides: this process may stand still before it goes on.
            let asked_at = self.publishing.db().now().await?;
            let mut questions = JoinSet::new();
            for log in batch {
                let publishing = self.publishing.clone();
                questions.spawn(async move {
                    let answer = ask(&publishing, &log).await;
                    (log, answer)
                });
            }
            for (log, answer) in questions.join_all().await {
                match self.settle(&log, &answer, asked_at).await {
                    Ok(Some(Status::Published)) => found.published += 1,
                    Ok(Some(_)) => found.failed += 1,
                    Ok(None) => found.still_unknown += 1,
                    Err(error @ db::Error::Unavailable(_)) => return Err(error),
                    // One that cannot be written down must not keep those behind it from being settled.
                    Err(error) => {
                        tracing::error!(log_id = log.id, %error, "a settled publication could not be written down");
                        broken.get_or_insert(error);
                    }
                }
            }
        }
    }

    /// Publications whose worker was lost are unknown too.
    async fn sweep(&self) -> Result<()> {
        let mut tx = self.publishing.db().begin().await?;
        let entries = dispatch::sweep(&mut tx).await?;
        ledger::append(&mut tx, &entries).await?;
        tx.commit().await
    }

    /// Records what a platform said; gives the new status if that settles the publication.
    async fn settle(&self, log: &PublishLog, answer: &StatusAnswer, asked_at: Timestamp) -> Result<Option<Status>> {
        let mut tx = self.publishing.db().begin().await?;
        let now = tx.now().await?;
        let attempted_at = log.attempted_at.unwrap_or(log.updated_at);
        if attempted_at > now {
            // Recorded under a clock that has since been set back: how old it is nobody knows, so the wait begins now.
            store::begin_wait(&mut tx, log).await?;
            tx.commit().await?;
            return Ok(None);
        }
        let settled_after = Duration::from_secs(self.publishing.config().settle_minutes.saturating_mul(60));
        let (event, how, outcome) = match answer {
            StatusAnswer::Published { external_id, external_url } => (
                Event::FoundPublished,
                Settled::Published { external_id: external_id.as_deref(), external_url: external_url.as_deref() },
                "the platform has published it".to_owned(),
            ),
            StatusAnswer::Failed { reason } => {
                (Event::FoundMissing, Settled::Failed { reason }, format!("the platform has given it up: {reason}"))
            }
            StatusAnswer::NeverSeen if asked_at.since(attempted_at) >= settled_after => {
                let reason = "the platform never received it";
                (Event::FoundMissing, Settled::Failed { reason }, reason.to_owned())
            }
            StatusAnswer::NeverSeen | StatusAnswer::Processing | StatusAnswer::NoAnswer { .. } => return Ok(None),
        };
        let Ok(status) = log.status.on(event) else { return Ok(None) };
        if !store::settle(&mut tx, log, Status::Unknown.as_str(), &how).await? {
            return Ok(None);
        }
        let mut entry = publish::entry("publishing.reconciled", Severity::Info, log, json!(outcome));
        entry.payload["outcome"] = json!(status);
        ledger::append(&mut tx, &[entry]).await?;
        tx.commit().await?;
        Ok(Some(status))
    }
}

/// Asks the platform, for no longer than it may take.
async fn ask(publishing: &Publishing, log: &PublishLog) -> StatusAnswer {
    let timeout = publishing.call_timeout();
    tokio::select! {
        biased;
        answer = publishing.connector().status(&log.platform, &log.idempotency_key) => answer,
        () = publishing.clock().sleep(timeout) => {
            StatusAnswer::NoAnswer { reason: format!("no answer within {} ms", timeout.as_millis()) }
        }
    }
}
