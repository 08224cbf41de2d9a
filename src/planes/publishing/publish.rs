//! The job that sends one publication.
//!
//! First the attempt is recorded, under the job's lease, and committed; only then the platform is called; then its
//! answer is recorded together with the end of the job. Whatever dies between the first and the last leaves a
//! publication that is `publishing` without a live job: the dispatcher finds it and reconciliation settles it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::Publishing;
use super::connectors::{Answer, PublishRequest, Until};
use super::model::{Clip, Event, PublishLog, Status};
use super::store::{self, Settled};
use crate::actor::Actor;
use crate::backoff;
use crate::db::{Result, Timestamp};
use crate::ledger::{self, Entry, Severity};
use crate::planes::queue::{self, Handler, Job, Outcome};

/// The kind of these jobs.
pub(super) const KIND: &str = "publish";

/// How often an answer is offered to a store that fails; after that reconciliation will find it out.
const RECORD_TRIES: u32 = 6;

/// The longest time that a platform may name for another try.
const LONGEST_THROTTLE: Duration = Duration::from_secs(7 * 86_400);

/// Runs jobs of kind `publish`.
pub(super) struct PublishHandler {
    publishing: Arc<Publishing>,
}

#[async_trait]
impl Handler for PublishHandler {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn run(&self, job: &Job) -> Outcome {
        let Some(log_id) = job.input.0["log_id"].as_i64() else {
            return Outcome::Failed("the job's input has no log_id".to_owned());
        };
        let began = self.time();
        let (log, clip) = match self.record_attempt(job, log_id).await {
            Ok(Some(attempt)) => attempt,
            Ok(None) => {
                return Outcome::Done(json!({ "skipped": "the publication is not pending under this job" }));
            }
            // Whether the attempt is recorded is open, but nothing was sent; the dispatcher takes it from here.
            Err(error) => return Outcome::Failed(format!("the attempt could not be recorded: {error}")),
        };
        let answer = self.call(&log, &clip, began).await;
        self.record_answer(job, &log, &answer).await
    }
}

impl PublishHandler {
    pub(super) fn new(publishing: Arc<Publishing>) -> Self {
        Self { publishing }
    }

    /// Records the attempt; none when the publication has gone on or the lease is lost.
    async fn record_attempt(&self, job: &Job, log_id: i64) -> Result<Option<(PublishLog, Clip)>> {
        let mut tx = self.publishing.db().begin().await?;
        let Some(log) = store::begin_attempt(&mut tx, log_id, job).await? else { return Ok(None) };
        let Some(clip) = store::clip(&mut tx, log.clip_id).await? else { return Ok(None) };
        tx.commit().await?;
        Ok(Some((log, clip)))
    }

    /// The steady clock and the wall clock: of a machine that was suspended only the second has gone on.
    fn time(&self) -> (Duration, DateTime<Utc>) {
        let clock = self.publishing.clock();
        (clock.elapsed(), clock.now())
    }

    /// Calls the platform, for no longer than it may take. A process that stands still anywhere on the way sends
    /// nothing once its time is over: it is looked at before every step of the connector's. What remains is a stop
    /// between that look and the write to the socket; for that the request carries its idempotency key.
    async fn call(&self, log: &PublishLog, clip: &Clip, began: (Duration, DateTime<Utc>)) -> Answer {
        let (clock, timeout) = (self.publishing.clock(), self.publishing.call_timeout());
        if self.publishing.schedule().get(&log.platform).is_none() {
            return Answer::Refused { reason: format!("platform `{}` is not configured", log.platform) };
        }
        // A process that was stopped for long may find that others have settled the publication meanwhile.
        let (steady, wall) = self.time();
        let passed = steady.saturating_sub(began.0).max((wall - began.1).to_std().unwrap_or_default());
        if passed > timeout {
            return Answer::Refused { reason: "the attempt was recorded too long ago to be sent".to_owned() };
        }
        let request = PublishRequest {
            idempotency_key: log.idempotency_key.clone(),
            publication_id: log.id,
            platform: log.platform.clone(),
            campaign_id: log.campaign_id,
            clip_id: clip.id,
            title: clip.title.clone(),
            media_uri: clip.media_uri.clone(),
            duration_ms: clip.duration_ms,
            retry_count: log.retry_count,
        };
        tokio::select! {
            biased; // the time first: see above
            () = clock.sleep(timeout) => {
                Answer::NoAnswer { reason: format!("no answer within {} ms", timeout.as_millis()) }
            }
            answer = self.publishing.connector().publish(&request) => answer,
        }
    }

    /// Records the answer and ends the job, in one transaction; a failing store is offered it again.
    async fn record_answer(&self, job: &Job, log: &PublishLog, answer: &Answer) -> Outcome {
        for attempt in 1..=RECORD_TRIES {
            match self.try_record_answer(job, log, answer).await {
                Ok(true) => return Outcome::Finished,
                Ok(false) => {
                    // Either an earlier try was committed after all, or the lease is gone and others have taken over.
                    tracing::warn!(log_id = log.id, "the job was over already; its answer was not applied");
                    return Outcome::Finished;
                }
                Err(error) if attempt == RECORD_TRIES => {
                    return Outcome::Failed(format!("the platform's answer could not be recorded: {error}"));
                }
                Err(error) => {
                    tracing::warn!(log_id = log.id, %error, "the platform's answer was not recorded; trying again");
                    let (base, cap) = (Duration::from_millis(100), Duration::from_secs(5));
                    let wait = backoff::exponential(base, cap, attempt, self.publishing.random());
                    self.publishing.clock().sleep(wait).await;
                }
            }
        }
        unreachable!("the last try returns")
    }

    async fn try_record_answer(&self, job: &Job, log: &PublishLog, answer: &Answer) -> Result<bool> {
        let mut tx = self.publishing.db().begin().await?;
        let now = tx.now().await?;
        let (event, how, mut entry) = settlement(log, answer, now);
        let result = json!({ "outcome": log.status.on(event).map_or("", Status::as_str) });
        if !queue::complete(&mut tx, job, &result).await? {
            return Ok(false);
        }
        if !store::settle(&mut tx, log, Status::Publishing.as_str(), &how).await? {
            return Ok(false);
        }
        entry.payload["job_id"] = json!(job.id);
        ledger::append(&mut tx, &[entry]).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// What an answer makes of a publication, and what the ledger says of it.
fn settlement<'a>(log: &PublishLog, answer: &'a Answer, now: Timestamp) -> (Event, Settled<'a>, Entry) {
    match answer {
        Answer::Accepted { external_id, external_url } => (
            Event::Accepted,
            Settled::Published { external_id: external_id.as_deref(), external_url: external_url.as_deref() },
            published(log, external_id.as_deref()),
        ),
        Answer::Refused { reason } => (
            Event::Refused,
            Settled::Failed { reason },
            entry("publishing.refused", Severity::Warning, log, json!(reason)),
        ),
        Answer::Throttled { reason, until } => {
            let at = named_time(*until, now);
            let mut entry = entry("publishing.throttled", Severity::Info, log, json!(reason));
            entry.payload["retry_at"] = json!(at);
            (Event::Throttled, Settled::Retry { reason, at }, entry)
        }
        Answer::NoAnswer { reason } => (
            Event::NoAnswer,
            Settled::Unknown { reason },
            entry("publishing.unknown", Severity::Error, log, json!(reason)),
        ),
    }
}

/// The time that the platform named, within reason: it may name the past, or the end of time.
fn named_time(until: Until, now: Timestamp) -> Timestamp {
    let at = match until {
        Until::After(wait) => now.after(wait),
        Until::At(at) => Timestamp::new(at),
    };
    at.clamp(now.after(Duration::from_secs(1)), now.after(LONGEST_THROTTLE))
}

fn published(log: &PublishLog, external_id: Option<&str>) -> Entry {
    let mut entry = entry("publishing.published", Severity::Info, log, Value::Null);
    entry.payload["external_id"] = json!(external_id);
    entry.payload["cost_cents"] = json!(log.cost_cents);
    entry
}

/// A ledger entry of the service about one publication.
pub(super) fn entry(event_type: &'static str, severity: Severity, log: &PublishLog, reason: Value) -> Entry {
    let mut payload = json!({
        "clip_id": log.clip_id, "platform": log.platform, "campaign_id": log.campaign_id,
        "retry_count": log.retry_count,
    });
    if !reason.is_null() {
        payload["reason"] = reason;
    }
    Entry::new(event_type, Actor::System, payload).severity(severity).subject(log.subject())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_time_is_neither_past_nor_beyond_reason() {
        let now: Timestamp = "2026-11-20T18:30:00.000Z".parse().expect("a time");
        let (soonest, latest) = (now.after(Duration::from_secs(1)), now.after(LONGEST_THROTTLE));
        let an_hour = Duration::from_secs(3600);
        for (until, wanted) in [
            (Until::After(an_hour), now.after(an_hour)),
            (Until::After(Duration::ZERO), soonest),
            (Until::After(Duration::from_secs(u64::MAX)), latest),
            (Until::At(DateTime::<Utc>::MIN_UTC), soonest),
            (Until::At(DateTime::<Utc>::MAX_UTC), latest),
        ] {
            assert_eq!(named_time(until, now), wanted);
        }
    }
}
