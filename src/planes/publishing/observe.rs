//! What the loop sees of publishing: the sections `publish_logs`, `scheduler`, `campaigns` and `clips`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Publishing;
use crate::db::{AGO, Json, Result, Sql, Timestamp, Tx};
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

/// A pending publication is stuck after an hour.
const STUCK_AFTER: Duration = AGO[2];

/// A clip above this has a high score (seed heuristic: "visual_score > 80"); the tally has the same number.
const HIGH_SCORE: f64 = 80.0;

/// What is read of publications by one statement, with the figures of others.
#[derive(Clone, Copy, sqlx::FromRow)]
pub struct LogFigures {
    pub logs_pending: i64,
    pub logs_scheduled: i64,
    pub logs_publishing: i64,
    pub logs_unknown: i64,
    pub logs_retry: i64,
    pub logs_failed: i64,
    pub logs_published: i64,
    pub logs_failed_1h: i64,
    pub logs_retryable: i64,
    pub logs_stuck: i64,
    pub logs_overdue: i64,
    pub logs_oldest_pending: Option<Timestamp>,
}

/// The row of [`LogFigures`]; the cost does not grow with what is out.
pub const LOG_FIGURES: Sql = sql!(
    "SELECT counted.*,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM publish_logs WHERE status = 'failed'
              AND coalesce(failed_at, updated_at) > $4 AND coalesce(failed_at, updated_at) <= $1
              LIMIT 1000) AS a) AS logs_failed_1h,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM publish_logs WHERE status = 'failed'
              AND retry_count < max_retries LIMIT 1000) AS b) AS logs_retryable,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM publish_logs WHERE status = 'pending'
              AND coalesce(pending_at, created_at) < $4 LIMIT 1000) AS c) AS logs_stuck,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM publish_logs WHERE status IN ('scheduled', 'retry')
              AND scheduled_at < $1 LIMIT 1000) AS d) AS logs_overdue,
         (SELECT MIN(coalesce(pending_at, created_at)) FROM publish_logs WHERE status = 'pending') AS logs_oldest_pending
     FROM (SELECT CAST(coalesce(SUM(n) FILTER (WHERE key = 'pending'), 0) AS BIGINT) AS logs_pending,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'scheduled'), 0) AS BIGINT) AS logs_scheduled,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'publishing'), 0) AS BIGINT) AS logs_publishing,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'unknown'), 0) AS BIGINT) AS logs_unknown,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'retry'), 0) AS BIGINT) AS logs_retry,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'failed'), 0) AS BIGINT) AS logs_failed,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'published'), 0) AS BIGINT) AS logs_published
         FROM tallies WHERE name = 'publish_logs') AS counted"
);

/// Reads the section `publish_logs`: its figures where they are not `seen` yet, and lists only where there is something
/// to show.
pub async fn observe_publish_logs(tx: &mut Tx, now: Timestamp, seen: Option<LogFigures>) -> Result<PublishLogsSection> {
    let seen: LogFigures = match seen {
        Some(seen) => seen,
        None => tx.figures(LOG_FIGURES, now).await?,
    };
    Ok(PublishLogsSection {
        pending: seen.logs_pending,
        scheduled: seen.logs_scheduled,
        publishing: seen.logs_publishing,
        unknown: seen.logs_unknown,
        retry: seen.logs_retry,
        failed: seen.logs_failed,
        published: seen.logs_published,
        recent_failures_1h: seen.logs_failed_1h,
        oldest_pending_minutes: seen.logs_oldest_pending.map_or(0, |oldest| minutes(now.since(oldest))),
        retryable: if seen.logs_retryable == 0 { Vec::new() } else { retryable(tx).await? },
        retryable_count: seen.logs_retryable,
        stuck: if seen.logs_stuck == 0 { Vec::new() } else { stuck(tx, now).await? },
        stuck_count: seen.logs_stuck,
        overdue: seen.logs_overdue,
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

async fn stuck(tx: &mut Tx, now: Timestamp) -> Result<Vec<StuckLog>> {
    let rows: Vec<(i64, i64, String, Timestamp)> = tx
        .query(
            "SELECT id, clip_id, platform, coalesce(pending_at, created_at) FROM publish_logs
             WHERE status = 'pending' AND coalesce(pending_at, created_at) < $1
             ORDER BY coalesce(pending_at, created_at), id LIMIT $2",
        )
        .bind(now.before(STUCK_AFTER))
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

/// What is read of campaigns by one statement, with the figures of others.
#[derive(Clone, Copy, sqlx::FromRow)]
pub struct CampaignFigures {
    pub campaigns_active: i64,
    pub campaigns_budget: f64,
}

/// The row of [`CampaignFigures`].
pub const CAMPAIGN_FIGURES: Sql = sql!(
    "SELECT CAST(coalesce(SUM(n), 0) AS BIGINT) AS campaigns_active,
         CAST(coalesce(SUM(total), 0) AS DOUBLE PRECISION) AS campaigns_budget
     FROM tallies WHERE name = 'campaigns' AND key = 'active'"
);

/// Reads the section `campaigns`: its figures where they are not `seen` yet, and the list where there is one.
pub async fn observe_campaigns(tx: &mut Tx, now: Timestamp, seen: Option<CampaignFigures>) -> Result<CampaignsSection> {
    let CampaignFigures { campaigns_active: active, campaigns_budget: budget } = match seen {
        Some(seen) => seen,
        None => tx.figures(CAMPAIGN_FIGURES, now).await?,
    };
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

/// What is read of clips by one statement, with the figures of others.
#[derive(Clone, Copy, sqlx::FromRow)]
pub struct ClipFigures {
    pub clips_recent: i64,
    pub clips_recent_score: f64,
    pub clips_high: i64,
    /// 1 where any clip is ready, or scheduled with a low score.
    pub clips_shown: i64,
}

/// The row of [`ClipFigures`]. The key of recent clips is ten minutes of RFC 3339 text: `2026-11-20T18:3`.
pub const CLIP_FIGURES: Sql = sql!(
    "SELECT recent.*,
         (SELECT CAST(coalesce(SUM(n), 0) AS BIGINT) FROM tallies WHERE name = 'clips.ready_high' AND key = '')
             AS clips_high,
         CAST(CASE WHEN EXISTS (SELECT 1 FROM clips WHERE status = 'ready')
                OR EXISTS (SELECT 1 FROM clips WHERE status = 'scheduled' AND visual_score < 40) THEN 1 ELSE 0 END
             AS BIGINT) AS clips_shown
     FROM (SELECT CAST(coalesce(SUM(n), 0) AS BIGINT) AS clips_recent,
             CAST(coalesce(SUM(total), 0) AS DOUBLE PRECISION) AS clips_recent_score
         FROM tallies WHERE name = 'clips.recent' AND key >= "
    { sqlite: "substr($5, 1, 15)", postgres: "showrunner_ten_minutes($5)" } ") AS recent"
);

/// A clip that is shown.
#[derive(sqlx::FromRow)]
struct ClipRow {
    low: bool,
    id: i64,
    title: String,
    visual_score: f64,
    campaign_id: Option<i64>,
    /// The platforms on which it has a publication that is not cancelled.
    used_platforms: Json<Vec<String>>,
}

/// Reads the section `clips`: its figures where they are not `seen` yet, and the lists where there is one.
pub async fn observe_clips(
    tx: &mut Tx,
    publishing: &Publishing,
    now: Timestamp,
    seen: Option<ClipFigures>,
) -> Result<ClipsSection> {
    let seen: ClipFigures = match seen {
        Some(seen) => seen,
        None => tx.figures(CLIP_FIGURES, now).await?,
    };
    let rows = if seen.clips_shown == 0 { Vec::new() } else { shown(tx, publishing).await? };
    let view = |row: ClipRow| ClipView {
        id: row.id,
        title: row.title,
        visual_score: row.visual_score,
        campaign_id: row.campaign_id,
        unused_platforms: publishing
            .schedule()
            .names()
            .filter(|platform| !row.used_platforms.0.iter().any(|used| used == platform))
            .map(str::to_owned)
            .collect(),
    };
    let (low, ready): (Vec<ClipRow>, Vec<ClipRow>) = rows.into_iter().partition(|row| row.low);
    let ready: Vec<ClipView> = ready.into_iter().map(view).collect();
    Ok(ClipsSection {
        recent_24h: seen.clips_recent,
        avg_visual_score: (seen.clips_recent > 0).then(|| seen.clips_recent_score / seen.clips_recent as f64),
        high_score_count: seen.clips_high,
        best_ready: ready.first().cloned(),
        high_score: ready.into_iter().filter(|clip| clip.visual_score > HIGH_SCORE).collect(),
        low_score: low.into_iter().map(view).collect(),
    })
}

/// The best ready clips, and the worst of those that are scheduled and can be postponed.
async fn shown(tx: &mut Tx, publishing: &Publishing) -> Result<Vec<ClipRow>> {
    tx.query(sql!(
        "SELECT shown.*, "
        { sqlite: "(SELECT json_group_array(DISTINCT platform) FROM publish_logs",
          postgres: "(SELECT coalesce(jsonb_agg(DISTINCT platform), '[]') FROM publish_logs" }
        "     WHERE clip_id = shown.id AND status <> 'cancelled') AS used_platforms
         FROM (SELECT FALSE AS low, ready.* FROM
                   (SELECT id, title, visual_score, campaign_id FROM clips WHERE status = 'ready'
                    ORDER BY visual_score DESC, id LIMIT $1) AS ready
               UNION ALL
               SELECT TRUE AS low, lowest.* FROM
                   (SELECT id, title, visual_score, campaign_id FROM
                        (SELECT id, title, visual_score, campaign_id FROM clips
                         WHERE status = 'scheduled' AND visual_score < 40
                         ORDER BY visual_score, id LIMIT $2) AS candidates
                    WHERE EXISTS (SELECT 1 FROM publish_logs WHERE clip_id = candidates.id
                                  AND publish_logs.status = 'scheduled' AND postponed_count < $3)
                    ORDER BY visual_score, id LIMIT $1) AS lowest) AS shown
         ORDER BY low, CASE WHEN low THEN visual_score ELSE -visual_score END, shown.id"
    ))
    .bind(LIST_LIMIT)
    .bind(LOW_SCORE_LOOK)
    .bind(i64::from(publishing.config().max_postponements))
    .all()
    .await
}
