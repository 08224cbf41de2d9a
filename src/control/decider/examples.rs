//! The two snapshots that every rule is tried on when it loads: an empty platform and one with a row of everything.

use chrono::{DateTime, Utc};

use crate::control::snapshot::{Deduction, HealthStatus, Snapshot, SystemSection};
use crate::db::Timestamp;
use crate::ledger::{ErrorView, LedgerSection};
use crate::planes::fleet::{AgentsSection, DrainedAgent, FlappingAgent, StillStream, StreamsSection};
use crate::planes::pipelines::{EnginesSection, FailedRun, FailingTrigger, PipelinesSection};
use crate::planes::publishing::{
    CampaignView, CampaignsSection, ClipView, ClipsSection, PublishLogsSection, RetryableLog, SchedulerSection,
    StuckLog, WindowView,
};
use crate::planes::queue::{DeadLetterView, DeadLettersSection, JobsSection, QueueView, WorkerView, WorkersSection};

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
        workers: Some(WorkersSection::default()),
        dead_letters: Some(DeadLettersSection::default()),
        pipelines: Some(PipelinesSection::default()),
        engines: Some(EnginesSection::default()),
        agents: Some(AgentsSection::default()),
        streams: Some(StreamsSection::default()),
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
        workers: Some(WorkersSection {
            total: 3,
            alive: 2,
            quarantined: 1,
            capacity: 20,
            failing: vec![WorkerView {
                id: "worker-1".to_owned(),
                queue: "default".to_owned(),
                completed: 1,
                failed: 9,
                failed_percent: 90,
                others_failed_percent: Some(1),
            }],
            paused_queues: 1,
            queues: vec![QueueView {
                name: "default".to_owned(),
                paused: true,
                paused_by: Some("loop".to_owned()),
                paused_minutes: 20,
                completed: 5,
                failed: 45,
                failed_percent: 90,
            }],
        }),
        dead_letters: Some(DeadLettersSection {
            open: 1,
            recent_1h: 1,
            retryable: vec![DeadLetterView {
                id: 1,
                job_id: 1,
                task: "render".to_owned(),
                queue: "default".to_owned(),
                error: Some("failed".to_owned()),
                outcome: Some("lapsed".to_owned()),
                rounds: 1,
                code_changed: true,
                minutes: 5,
            }],
        }),
        pipelines: Some(PipelinesSection {
            pending: 1,
            running: 2,
            waiting: 3,
            paused: 4,
            failed_1h: 6,
            oldest_pending_minutes: 7,
            failed: vec![FailedRun {
                id: 1,
                pipeline_id: "render".to_owned(),
                trigger_id: Some("nightly".to_owned()),
                retries: 0,
                error: Some("step `a`: failed".to_owned()),
                failed_at: moment(),
                minutes: 7,
            }],
            failing_triggers: vec![FailingTrigger { id: "nightly".to_owned(), failed: 6, completed: 0 }],
        }),
        engines: Some(EnginesSection { total: 5, idle: 1, running: 1, paused: 1, error: 1, stopped: 1 }),
        agents: Some(AgentsSection {
            online: 4,
            offline: 1,
            idle: 1,
            draining: 1,
            error: 1,
            slots: 4,
            free_slots: 2,
            flapping: vec![FlappingAgent { id: "agent-1".to_owned(), drops: 6, drain: false }],
            drained: vec![DrainedAgent { id: "agent-2".to_owned(), online: true, calm_minutes: 40 }],
        }),
        streams: Some(StreamsSection {
            waiting: 1,
            starting: 2,
            running: 3,
            stopping: 4,
            unknown: 5,
            failed_1h: 6,
            oldest_waiting_minutes: 7,
            still: vec![StillStream { id: "job-1".to_owned(), agent_id: "agent-1".to_owned(), still_seconds: 90 }],
        }),
        system: SystemSection {
            health_score: 45,
            status: HealthStatus::Critical,
            deductions: vec![Deduction { points: 20, reason: "queue saturated".to_owned() }],
            unobserved: vec!["jobs".to_owned()],
        },
    }
}
