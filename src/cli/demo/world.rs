//! One of the two worlds: a whole service on a database of its own, and the platform that it runs.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Demo;
use super::scenario::{CAMPAIGNS, Happenings, NewClip};
use crate::app::{App, Mode, Parts};
use crate::cli::failure::Outcome;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::control::snapshot::{HealthStatus, Snapshot};
use crate::db::{Timestamp, Tx};
use crate::ledger::{self, Filter};
use crate::planes::publishing;
use crate::random::Random;

/// New decisions that one step reads at most.
const DECISIONS: i64 = 200;
/// Between two periodic reconciliations: the service's own schedule goes by the machine's clock, too slowly for this one.
const RECONCILE_EVERY: Duration = Duration::from_secs(300);

/// A service and its platform.
pub(super) struct World {
    app: App,
    last_entry: i64,
    reconcile_at: Option<Timestamp>,
}

/// A world at one moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) snapshot: Snapshot,
}

/// What the loop did and why.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    pub(super) at: Timestamp,
    pub(super) action: String,
    pub(super) target: String,
    pub(super) reason: String,
    pub(super) executed: bool,
}

/// How it stands at the end.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) published: i64,
    pub(super) published_high: i64,
    pub(super) failed_never_retried: i64,
    pub(super) failed: i64,
    pub(super) unknown: i64,
    pub(super) overdue: i64,
    pub(super) posted_twice: i64,
    pub(super) jobs_waiting: i64,
    pub(super) actions: i64,
}

impl Sample {
    pub(super) fn health(&self) -> i64 {
        self.snapshot.system.health_score
    }
    pub(super) fn status(&self) -> HealthStatus {
        self.snapshot.system.status
    }
    /// Jobs that wait for somebody to work them off.
    pub(super) fn backlog(&self) -> i64 {
        self.snapshot.jobs.as_ref().map_or(0, |jobs| jobs.pending)
    }
    pub(super) fn published(&self) -> i64 {
        self.snapshot.publish_logs.as_ref().map_or(0, |logs| logs.published)
    }
}

impl World {
    pub(super) async fn start(file: &Path, clock: &SharedClock, demo: &Demo, enabled: bool) -> Outcome<Self> {
        let config = configuration(file, demo, enabled);
        let (clock, random) = (clock.clone(), Random::seeded(demo.seed));
        let parts = Parts { config, clock, random, db: None, mode: Mode::Serve, listen: enabled };
        Ok(Self { app: App::start(parts).await?, last_entry: 0, reconcile_at: None })
    }

    /// The status page.
    pub(super) fn url(&self) -> Option<String> {
        self.app.address().map(|address| format!("http://{address}"))
    }

    pub(super) async fn stop(self) {
        self.app.stop().await;
    }

    /// Lets happen what happens, written with plain SQL as other programs would.
    pub(super) async fn live_through(&mut self, happenings: &Happenings) -> Outcome {
        if let Some(platforms) = self.app.publishing().sandbox() {
            platforms.set_outage(happenings.outage);
        }
        let mut tx = self.app.db().begin().await?;
        let now = tx.now().await?;
        if happenings.first {
            begin_campaigns(&mut tx, now).await?;
        }
        for clip in &happenings.clips {
            add_clip(&mut tx, now, clip).await?;
        }
        for _ in 0..happenings.jobs {
            tx.query("INSERT INTO jobs (kind, queue, created_at, updated_at) VALUES ('transcode', 'media', $1, $1)")
                .bind(now)
                .execute()
                .await?;
        }
        tx.query(
            "UPDATE jobs SET status = 'completed', finished_at = $1, updated_at = $1 WHERE id IN (
                 SELECT id FROM jobs WHERE status = 'pending' AND queue = 'media' ORDER BY priority DESC, id LIMIT $2)",
        )
        .bind(now)
        .bind(happenings.worked_off as i64)
        .execute()
        .await?;
        tx.commit().await?;
        if now >= *self.reconcile_at.get_or_insert(now.after(RECONCILE_EVERY)) {
            publishing::reconcile_if_needed(self.app.db()).await?;
            self.reconcile_at = Some(now.after(RECONCILE_EVERY));
        }
        Ok(())
    }

    pub(super) async fn look(&self) -> Outcome<Sample> {
        Ok(Sample { snapshot: self.app.orchestrator().snapshot().await? })
    }

    /// What the loop did since the last call, oldest first.
    pub(super) async fn decisions(&mut self) -> Outcome<Vec<Decision>> {
        let filter = Filter {
            event_type: Some("orchestrator.action_".to_owned()),
            after_id: Some(self.last_entry),
            ..Filter::default()
        };
        let entries = ledger::query(self.app.db(), &filter, true, DECISIONS).await?;
        self.last_entry = entries.last().map_or(self.last_entry, |entry| entry.id);
        let decisions = entries.into_iter().map(|entry| {
            let payload: Value = serde_json::from_str(&entry.payload).unwrap_or_default();
            let reasons = payload["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
            let refused = payload["detail"]["refused"].as_str().or(payload["detail"]["error"].as_str());
            let because = reasons.first().and_then(Value::as_str).unwrap_or_default();
            Decision {
                at: entry.created_at,
                action: payload["action"]["action"].as_str().unwrap_or_default().to_owned(),
                target: entry.subject.unwrap_or_default(),
                reason: refused.unwrap_or(because).to_owned(),
                executed: entry.event_type == "orchestrator.action_executed",
            }
        });
        Ok(decisions.collect())
    }

    /// How it stands now.
    pub(super) async fn tally(&self) -> Outcome<Tally> {
        let mut tx = self.app.db().begin_read().await?;
        let now = tx.now().await?;
        let (published, failed, unknown, failed_never_retried, overdue): (i64, i64, i64, i64, i64) = tx
            .query(
                "SELECT COUNT(*) FILTER (WHERE status = 'published'), COUNT(*) FILTER (WHERE status = 'failed'),
                        COUNT(*) FILTER (WHERE status IN ('unknown', 'publishing')),
                        COUNT(*) FILTER (WHERE status = 'failed' AND retry_count = 0),
                        COUNT(*) FILTER (WHERE status IN ('scheduled', 'pending') AND scheduled_at < $1)
                 FROM publish_logs",
            )
            .bind(now)
            .one()
            .await?;
        let (published_high,): (i64,) = tx
            .query(
                "SELECT COUNT(DISTINCT clips.id) FROM clips JOIN publish_logs ON publish_logs.clip_id = clips.id
                 WHERE visual_score > 80 AND publish_logs.status = 'published'",
            )
            .one()
            .await?;
        let (posted_twice,): (i64,) = tx
            .query(
                "SELECT COUNT(*) FROM (SELECT clip_id, platform FROM sandbox_posts
                 GROUP BY clip_id, platform HAVING COUNT(*) > 1) AS twice",
            )
            .one()
            .await?;
        let (jobs_waiting,): (i64,) = tx
            .query("SELECT COUNT(*) FROM jobs WHERE queue = 'media' AND status IN ('pending', 'waiting')")
            .one()
            .await?;
        let (actions,): (i64,) = tx.query("SELECT COUNT(*) FROM actions WHERE outcome = 'executed'").one().await?;
        Ok(Tally {
            published,
            published_high,
            failed_never_retried,
            failed,
            unknown,
            overdue,
            posted_twice,
            jobs_waiting,
            actions,
        })
    }
}

/// The service's own defaults, with a platform that has bad days, and waits that fit the fast clock.
fn configuration(file: &Path, demo: &Demo, enabled: bool) -> Config {
    let mut config =
        Config { database_url: format!("sqlite://{}", file.display()), port: demo.port, ..Config::default() };
    config.storage.folder = file.with_extension("storage");
    config.orchestrator.enabled = enabled;
    // A quarter of a second to watch, whatever the speed.
    config.orchestrator.interval_seconds = u64::from(demo.speed / 4).max(1);
    config.queue.poll_interval_ms = (u64::from(demo.speed) * 125).min(60_000);
    config.queue.lease_seconds = 3_600;
    let publishing = &mut config.publishing;
    publishing.call_timeout_ms = (u64::from(demo.speed) * 1_000).min(600_000);
    // More than twice the call's time: nothing that is still running may be settled.
    publishing.settle_minutes = (publishing.call_timeout_ms / 20_000).max(5);
    for platform in publishing.platforms.values_mut() {
        platform.spacing_minutes = 3;
        platform.daily_quota = 60;
        platform.cost_cents = 500;
    }
    let sandbox = &mut publishing.sandbox;
    sandbox.seed = demo.seed;
    (sandbox.latency_min_ms, sandbox.latency_max_ms) = (2_000, 20_000);
    (sandbox.refuse, sandbox.throttle, sandbox.lose_request, sandbox.lose_answer) = (0.15, 0.05, 0.03, 0.06);
    config
}

async fn begin_campaigns(tx: &mut Tx, now: Timestamp) -> Outcome {
    for (name, budget, priority) in CAMPAIGNS {
        tx.query(
            "INSERT INTO campaigns (name, status, budget_cents, priority, created_at, updated_at)
             VALUES ($1, 'active', $2, $3, $4, $4)",
        )
        .bind(name.to_owned())
        .bind(budget)
        .bind(priority)
        .bind(now)
        .execute()
        .await?;
    }
    Ok(())
}

async fn add_clip(tx: &mut Tx, now: Timestamp, clip: &NewClip) -> Outcome {
    // The campaigns are the first rows of their table.
    let campaign = clip.campaign.map(|index| index as i64 + 1);
    let (clip_id,): (i64,) = tx
        .query(
            "INSERT INTO clips (title, media_uri, campaign_id, visual_score, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $5) RETURNING id",
        )
        .bind(clip.title.clone())
        .bind(format!("demo://clips/{}.mp4", clip.number))
        .bind(campaign)
        .bind(clip.score)
        .bind(now)
        .one()
        .await?;
    let Some(plan) = &clip.plan else { return Ok(()) };
    let (status, scheduled_at) =
        if plan.failed { ("failed", None) } else { ("scheduled", Some(now.after(plan.after))) };
    let failed_at = plan.failed.then(|| now.before(Duration::from_secs(600)));
    tx.query(
        "INSERT INTO publish_logs (clip_id, campaign_id, platform, status, scheduled_at, idempotency_key, failed_at,
             attempted_at, last_error, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9, $9)",
    )
    .bind(clip_id)
    .bind(campaign)
    .bind(plan.platform.to_owned())
    .bind(status.to_owned())
    .bind(scheduled_at)
    .bind(format!("demo-{}", clip.number))
    .bind(failed_at)
    .bind(plan.failed.then(|| "the platform refused the clip".to_owned()))
    .bind(now)
    .execute()
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::action::ACTION_KINDS;

    #[test]
    fn the_configuration_is_possible_at_every_speed() {
        for speed in [1, 2, 30, 120, 600, 1_200] {
            let demo = Demo { running_time: None, seed: 1, speed, plain: true, port: 0 };
            let faults = configuration(Path::new("demo.db"), &demo, true).check(&ACTION_KINDS);
            assert!(faults.is_empty(), "at speed {speed}: {faults:?}");
        }
    }
}
