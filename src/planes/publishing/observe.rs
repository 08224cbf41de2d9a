//! What the loop sees of publishing: the sections `publish_logs`, `scheduler`, `campaigns` and `clips`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Publishing;
use crate::db::{Json, Result, Timestamp, Tx};
use crate::sql;

/// Rows of each list in a section; the most important come first and the true count stands beside the list.
pub const LIST_LIMIT: i64 = 10;

/// Publications.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PublishLogsSection {
    /// Waiting for their worker.
    pub pending: i64,
    /// Planned for later.
    pub scheduled: i64,
    /// Being sent.
    pub publishing: i64,
    /// Sent without an answer; only reconciliation settles these.
    pub unknown: i64,
    /// Refused for now, with a time named by the platform.
    pub retry: i64,
    /// Refused.
    pub failed: i64,
    /// Out.
    pub published: i64,
    /// Failed in the last hour (counted up to 1,000); times that lie ahead, after a clock was set back, are left out.
    pub recent_failures_1h: i64,
    /// Age of the oldest pending one, in whole minutes; 0 when there is none.
    pub oldest_pending_minutes: i64,
    /// Failed and allowed another try, newest failure first.
    pub retryable: Vec<RetryableLog>,
    /// How many those are (counted up to 1,000).
    pub retryable_count: i64,
    /// Pending for over 60 minutes, oldest first.
    pub stuck: Vec<StuckLog>,
    /// How many those are (counted up to 1,000).
    pub stuck_count: i64,
    /// Scheduled for a time that is past (counted up to 1,000).
    pub overdue: i64,
}

/// A failed publication that may be tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct RetryableLog {
    pub id: i64,
    pub clip_id: i64,
    pub platform: String,
    pub retry_count: i64,
    pub max_retries: i64,
    /// Its first 500 characters.
    pub last_error: Option<String>,
    pub failed_at: Timestamp,
}

/// A publication that has been pending for too long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StuckLog {
    pub id: i64,
    pub clip_id: i64,
    pub platform: String,
    /// How long it has been pending.
    pub minutes: i64,
}

/// Publishing windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SchedulerSection {
    /// Every platform's window: the one that is open, else the next.
    pub windows: Vec<WindowView>,
    /// Platforms whose window is open.
    pub active: Vec<String>,
    /// Platforms whose window closes within an hour.
    pub closing_soon: Vec<String>,
    /// Whether any window is open.
    pub any_active: bool,
}

/// One platform's window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WindowView {
    pub platform: String,
    /// IANA name.
    pub time_zone: String,
    pub opens_at: Timestamp,
    pub closes_at: Timestamp,
    pub active: bool,
    /// Whole minutes until it closes; 0 when it is not open.
    pub minutes_left: i64,
}

/// Campaigns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CampaignsSection {
    /// How many are active.
    pub active: i64,
    /// Budgets of the active ones together.
    pub budget_total_cents: i64,
    /// Active ones that are not over, highest priority first, then largest budget.
    pub top: Vec<CampaignView>,
}

/// One active campaign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct CampaignView {
    pub id: i64,
    pub name: String,
    pub priority: i64,
    pub budget_cents: i64,
    pub spent_cents: i64,
    /// Its clips that have no publication yet.
    pub ready_clips: i64,
    /// Its highest-scored ready clip.
    pub best_clip_id: Option<i64>,
}

/// Clips.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClipsSection {
    /// Made in the last 24 hours (to ten minutes).
    pub recent_24h: i64,
    /// Their mean visual score; null when there are none.
    pub avg_visual_score: Option<f64>,
    /// Ready clips that score above 80.
    pub high_score_count: i64,
    /// Those, best first.
    pub high_score: Vec<ClipView>,
    /// Scheduled clips that score below 40 and can still be postponed, worst first.
    pub low_score: Vec<ClipView>,
    /// The highest-scored ready clip, whatever it scores.
    pub best_ready: Option<ClipView>,
}

/// One clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClipView {
    pub id: i64,
    pub title: String,
    pub visual_score: f64,
    pub campaign_id: Option<i64>,
    /// Configured platforms on which it has no publication (a cancelled one does not count).
    pub unused_platforms: Vec<String>,
}

/// A retryable publication that was superseded by another is left out of the list; so many are looked at: as many as
/// are counted.
const RETRYABLE_LOOK: i64 = 1_000;

/// Scheduled clips of the lowest scores that are looked at for one that can be postponed.
const LOW_SCORE_LOOK: i64 = 200;

/// Active campaigns that are looked at for ones that are not over: other programs may leave them active for ever.
const CAMPAIGNS_LOOK: i64 = 200;

/// A pending publication is stuck after this many minutes.
const STUCK_MINUTES: u64 = 60;

/// A clip above this has a high score (seed heuristic: "visual_score > 80"); the tally has the same number.
const HIGH_SCORE: f64 = 80.0;

#[derive(sqlx::FromRow)]
struct Counts {
    recent_failures_1h: i64,
    retryable: i64,
    stuck: i64,
    overdue: i64,
    oldest_pending: Option<Timestamp>,
}

/// Reads the section `publish_logs`; the cost does not grow with what is out.
pub async fn observe_publish_logs(tx: &mut Tx, now: Timestamp) -> Result<PublishLogsSection> {
    let tallies: Vec<(String, i64)> = tx
        .query("SELECT key, CAST(SUM(n) AS BIGINT) FROM tallies WHERE name = 'publish_logs' GROUP BY key")
        .all()
        .await?;
    let tally = |status: &str| tallies.iter().find(|(key, _)| key == status).map_or(0, |(_, n)| *n);
    let stuck_since = now.before(Duration::from_secs(STUCK_MINUTES * 60));
    let counts: Counts = tx
        .query(
            "SELECT
                 (SELECT COUNT(*) FROM (SELECT 1 FROM publish_logs WHERE status = 'failed'
                      AND coalesce(failed_at, updated_at) > $1 AND coalesce(failed_at, updated_at) <= $3
                      LIMIT 1000) AS a) AS recent_failures_1h,
                 (SELECT COUNT(*) FROM (SELECT 1 FROM publish_logs WHERE status = 'failed'
                      AND retry_count < max_retries LIMIT 1000) AS b) AS retryable,
                 (SELECT COUNT(*) FROM (SELECT 1 FROM publish_logs WHERE status = 'pending'
                      AND coalesce(pending_at, created_at) < $2 LIMIT 1000) AS c) AS stuck,
                 (SELECT COUNT(*) FROM (SELECT 1 FROM publish_logs WHERE status IN ('scheduled', 'retry')
                      AND scheduled_at < $3 LIMIT 1000) AS d) AS overdue,
                 (SELECT MIN(coalesce(pending_at, created_at)) FROM publish_logs WHERE status = 'pending')
                     AS oldest_pending",
        )
        .bind(now.before(Duration::from_secs(3600)))
        .bind(stuck_since)
        .bind(now)
        .one()
        .await?;
    let retryable = if counts.retryable == 0 { Vec::new() } else { retryable(tx).await? };
    let stuck = if counts.stuck == 0 { Vec::new() } else { stuck(tx, now, stuck_since).await? };
    Ok(PublishLogsSection {
        pending: tally("pending"),
        scheduled: tally("scheduled"),
        publishing: tally("publishing"),
        unknown: tally("unknown"),
        retry: tally("retry"),
        failed: tally("failed"),
        published: tally("published"),
        recent_failures_1h: counts.recent_failures_1h,
        oldest_pending_minutes: counts.oldest_pending.map_or(0, |oldest| minutes(now.since(oldest))),
        retryable,
        retryable_count: counts.retryable,
        stuck,
        stuck_count: counts.stuck,
        overdue: counts.overdue,
    })
}

fn minutes(duration: Duration) -> i64 {
    (duration.as_secs() / 60) as i64
}

async fn retryable(tx: &mut Tx) -> Result<Vec<RetryableLog>> {
    tx.query(
        "SELECT id, clip_id, platform, retry_count, max_retries, substr(last_error, 1, 500) AS last_error,
                coalesce(failed_at, updated_at) AS failed_at
         FROM (SELECT * FROM publish_logs WHERE status = 'failed' AND retry_count < max_retries
               ORDER BY coalesce(failed_at, updated_at) DESC LIMIT $1) AS log
         WHERE NOT EXISTS (SELECT 1 FROM publish_logs AS other WHERE other.clip_id = log.clip_id
                           AND other.platform = log.platform AND other.status NOT IN ('failed', 'cancelled'))
         ORDER BY coalesce(failed_at, updated_at) DESC, id LIMIT $2",
    )
    .bind(RETRYABLE_LOOK)
    .bind(LIST_LIMIT)
    .all()
    .await
}

async fn stuck(tx: &mut Tx, now: Timestamp, since: Timestamp) -> Result<Vec<StuckLog>> {
    let rows: Vec<(i64, i64, String, Timestamp)> = tx
        .query(
            "SELECT id, clip_id, platform, coalesce(pending_at, created_at) FROM publish_logs
             WHERE status = 'pending' AND coalesce(pending_at, created_at) < $1
             ORDER BY coalesce(pending_at, created_at), id LIMIT $2",
        )
        .bind(since)
        .bind(LIST_LIMIT)
        .all()
        .await?;
    let stuck = rows.into_iter().map(|(id, clip_id, platform, pending_at)| StuckLog {
        id,
        clip_id,
        platform,
        minutes: minutes(now.since(pending_at)),
    });
    Ok(stuck.collect())
}

/// Reads the section `campaigns`.
pub async fn observe_campaigns(tx: &mut Tx) -> Result<CampaignsSection> {
    let now = tx.now().await?;
    let (active, budget): (i64, f64) = tx
        .query(
            "SELECT CAST(coalesce(SUM(n), 0) AS BIGINT), CAST(coalesce(SUM(total), 0) AS DOUBLE PRECISION)
             FROM tallies WHERE name = 'campaigns' AND key = 'active'",
        )
        .one()
        .await?;
    let top = if active == 0 {
        Vec::new()
    } else {
        tx.query(
            "SELECT id, name, priority, budget_cents, spent_cents,
                    (SELECT CAST(coalesce(SUM(n), 0) AS BIGINT) FROM tallies
                     WHERE tallies.name = 'clips.ready' AND key = CAST(top.id AS TEXT)) AS ready_clips,
                    (SELECT clips.id FROM clips WHERE clips.campaign_id = top.id AND clips.status = 'ready'
                     ORDER BY clips.visual_score DESC, clips.id LIMIT 1) AS best_clip_id
             FROM (SELECT * FROM campaigns WHERE status = 'active'
                   ORDER BY priority DESC, budget_cents DESC, id LIMIT $1) AS top
             WHERE ends_at IS NULL OR ends_at > $2
             ORDER BY priority DESC, budget_cents DESC, id LIMIT $3",
        )
        .bind(CAMPAIGNS_LOOK)
        .bind(now)
        .bind(LIST_LIMIT)
        .all()
        .await?
    };
    Ok(CampaignsSection { active, budget_total_cents: budget as i64, top })
}

#[derive(Clone, sqlx::FromRow)]
struct ClipRow {
    id: i64,
    title: String,
    visual_score: f64,
    campaign_id: Option<i64>,
}

/// Reads the section `clips`.
pub async fn observe_clips(tx: &mut Tx, publishing: &Publishing, now: Timestamp) -> Result<ClipsSection> {
    let max_postponements = publishing.config().max_postponements;
    // The tally's key is ten minutes of RFC 3339 text: `2026-11-20T18:3`.
    let since = now.before(Duration::from_secs(86_400)).to_string()[..15].to_owned();
    let tallies: Vec<(String, i64, f64)> = tx
        .query(
            "SELECT name, CAST(SUM(n) AS BIGINT), CAST(SUM(total) AS DOUBLE PRECISION) FROM tallies
             WHERE (name = 'clips.recent' AND key >= $1) OR (name = 'clips.ready_high' AND key = '') GROUP BY name",
        )
        .bind(since)
        .all()
        .await?;
    let tally =
        |name: &str| tallies.iter().find(|(key, _, _)| key == name).map_or((0, 0.0), |(_, n, total)| (*n, *total));
    let ready: Vec<ClipRow> = tx
        .query(
            "SELECT id, title, visual_score, campaign_id FROM clips WHERE status = 'ready'
             ORDER BY visual_score DESC, id LIMIT $1",
        )
        .bind(LIST_LIMIT)
        .all()
        .await?;
    let low: Vec<ClipRow> = tx
        .query(
            "SELECT id, title, visual_score, campaign_id FROM
                 (SELECT id, title, visual_score, campaign_id FROM clips WHERE status = 'scheduled' AND visual_score < 40
                  ORDER BY visual_score, id LIMIT $1) AS lowest
             WHERE EXISTS (SELECT 1 FROM publish_logs WHERE clip_id = lowest.id AND publish_logs.status = 'scheduled'
                           AND postponed_count < $2)
             ORDER BY visual_score, id LIMIT $3",
        )
        .bind(LOW_SCORE_LOOK)
        .bind(i64::from(max_postponements))
        .bind(LIST_LIMIT)
        .all()
        .await?;
    let used = used_platforms(tx, ready.iter().chain(&low).map(|clip| clip.id).collect()).await?;
    let view = |clip: ClipRow| ClipView {
        unused_platforms: publishing
            .schedule()
            .names()
            .filter(|platform| !used.iter().any(|(id, used)| *id == clip.id && used == platform))
            .map(str::to_owned)
            .collect(),
        id: clip.id,
        title: clip.title,
        visual_score: clip.visual_score,
        campaign_id: clip.campaign_id,
    };
    let (recent_24h, total) = tally("clips.recent");
    Ok(ClipsSection {
        recent_24h,
        avg_visual_score: (recent_24h > 0).then(|| total / recent_24h as f64),
        high_score_count: tally("clips.ready_high").0,
        best_ready: ready.first().cloned().map(view),
        high_score: ready.into_iter().filter(|clip| clip.visual_score > HIGH_SCORE).map(view).collect(),
        low_score: low.into_iter().map(view).collect(),
    })
}

/// Which of these clips has a publication, not cancelled, on which platform.
async fn used_platforms(tx: &mut Tx, clip_ids: Vec<i64>) -> Result<Vec<(i64, String)>> {
    if clip_ids.is_empty() {
        return Ok(Vec::new());
    }
    tx.query(sql!(
        "SELECT DISTINCT clip_id, platform FROM publish_logs WHERE status <> 'cancelled' AND clip_id "
        { sqlite: "IN (SELECT value FROM json_each($1))",
          postgres: "= ANY(ARRAY(SELECT CAST(value AS BIGINT) FROM jsonb_array_elements_text($1)))" }
    ))
    .bind(Json(clip_ids))
    .all()
    .await
}
