//! The two snapshots that every rule is tried on when it loads: an empty platform and one with a row of everything.

use chrono::{DateTime, Utc};

use crate::control::snapshot::{Deduction, HealthStatus, Snapshot, SystemSection};
use crate::db::Timestamp;
use crate::ledger::{ErrorView, LedgerSection};
use crate::planes::publishing::{
    CampaignView, CampaignsSection, ClipView, ClipsSection, PublishLogsSection, RetryableLog, SchedulerSection,
    StuckLog, WindowView,
};
use crate::planes::queue::JobsSection;

fn moment() -> Timestamp {
    Timestamp::new(DateTime::<Utc>::from_timestamp(1_700_000_000, 0).unwrap_or_default())
}

/// Everything observed, nothing there.
pub(super) fn empty() -> Snapshot {
    Snapshot {
        at: moment(),
        jobs: Some(JobsSection::default()),
        publish_logs: Some(PublishLogsSection::default()),
        scheduler: Some(SchedulerSection::default()),
        campaigns: Some(CampaignsSection::default()),
        clips: Some(ClipsSection::default()),
        ledger: Some(LedgerSection::default()),
        system: SystemSection { status: HealthStatus::Healthy, ..SystemSection::default() },
    }
}

/// A row in every list and a value in every field.
pub(super) fn full() -> Snapshot {
    let clip = ClipView {
        id: 1,
        title: "clip".to_owned(),
        visual_score: 91.5,
        campaign_id: Some(1),
        unused_platforms: vec!["tiktok".to_owned()],
    };
    Snapshot {
        at: moment(),
        jobs: Some(JobsSection {
            pending: 60,
            processing: 2,
            retry: 3,
            failed: 4,
            completed: 5,
            waiting: 6,
            oldest_pending_minutes: 45,
            queue_saturated: true,
        }),
        publish_logs: Some(PublishLogsSection {
            pending: 1,
            scheduled: 2,
            publishing: 3,
            unknown: 4,
            retry: 5,
            failed: 6,
            published: 7,
            recent_failures_1h: 2,
            oldest_pending_minutes: 90,
            retryable: vec![RetryableLog {
                id: 1,
                clip_id: 1,
                platform: "tiktok".to_owned(),
                retry_count: 1,
                max_retries: 3,
                last_error: Some("refused".to_owned()),
                failed_at: moment(),
            }],
            retryable_count: 1,
            stuck: vec![StuckLog { id: 2, clip_id: 1, platform: "tiktok".to_owned(), minutes: 90 }],
            stuck_count: 1,
            overdue: 1,
        }),
        scheduler: Some(SchedulerSection {
            windows: vec![WindowView {
                platform: "tiktok".to_owned(),
                time_zone: "UTC".to_owned(),
                opens_at: moment(),
                closes_at: moment(),
                active: true,
                minutes_left: 30,
            }],
            active: vec!["tiktok".to_owned()],
            closing_soon: vec!["tiktok".to_owned()],
            any_active: true,
        }),
        campaigns: Some(CampaignsSection {
            active: 1,
            budget_total_cents: 20_000,
            top: vec![CampaignView {
                id: 1,
                name: "campaign".to_owned(),
                priority: 5,
                budget_cents: 20_000,
                spent_cents: 500,
                ready_clips: 1,
                best_clip_id: Some(1),
            }],
        }),
        clips: Some(ClipsSection {
            recent_24h: 4,
            avg_visual_score: Some(39.5),
            high_score_count: 4,
            high_score: vec![clip.clone()],
            low_score: vec![clip.clone()],
            best_ready: Some(clip),
        }),
        ledger: Some(LedgerSection {
            errors_1h: 6,
            recent_errors: vec![ErrorView {
                id: 1,
                event_type: "orchestrator.action_failed".to_owned(),
                severity: "error".to_owned(),
                subject: Some("clip:1".to_owned()),
                created_at: moment(),
            }],
        }),
        system: SystemSection {
            health_score: 45,
            status: HealthStatus::Critical,
            deductions: vec![Deduction { points: 20, reason: "queue saturated".to_owned() }],
            unobserved: vec!["jobs".to_owned()],
        },
    }
}
