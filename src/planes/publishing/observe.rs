//! What the loop sees of publishing: the sections `publish_logs`, `scheduler`, `campaigns` and `clips`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::Timestamp;

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
    /// Failed in the last hour (counted up to 1,000).
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RetryableLog {
    pub id: i64,
    pub clip_id: i64,
    pub platform: String,
    pub retry_count: i64,
    pub max_retries: i64,
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
    /// Active ones, highest priority first, then largest budget.
    pub top: Vec<CampaignView>,
}

/// One active campaign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
