//! What the loop can do: the seven actions, typed. Unknown names and bad parameters are refused when rules load.

use serde::{Deserialize, Serialize};

/// One action with its parameters. In JSON: `{"action":"schedule_clip","clip_id":12,"platform":"tiktok"}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Plan a publication in the best slot of the next open window.
    ScheduleClip {
        /// The clip.
        clip_id: i64,
        /// The platform; without one, the unused one whose slot comes first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        platform: Option<String>,
    },
    /// Give a failed publication another try.
    RetryFailedLog {
        /// The publication.
        log_id: i64,
    },
    /// Ask the platforms what became of open publications.
    TriggerReconciliation,
    /// Publish a clip in the window that is open now, ahead of others.
    PromoteHighScoreClip {
        /// The clip.
        clip_id: i64,
    },
    /// Move a clip's scheduled publications a day later.
    DowngradeLowScoreClip {
        /// The clip.
        clip_id: i64,
    },
    /// Send a publication out next, whatever its window.
    ForcePublish {
        /// The publication.
        log_id: i64,
    },
    /// Put the queue in order.
    RebalanceQueue {
        /// Also fail what has been pending for over two hours.
        #[serde(default)]
        emergency: bool,
    },
}

/// The names of all action kinds, as rules, configuration and the ledger write them.
pub const ACTION_KINDS: [&str; 7] = [
    "schedule_clip",
    "retry_failed_log",
    "trigger_reconciliation",
    "promote_high_score_clip",
    "downgrade_low_score_clip",
    "force_publish",
    "rebalance_queue",
];

impl Action {
    /// The kind, one of [`ACTION_KINDS`]: budgets and breakers go by it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ScheduleClip { .. } => "schedule_clip",
            Self::RetryFailedLog { .. } => "retry_failed_log",
            Self::TriggerReconciliation => "trigger_reconciliation",
            Self::PromoteHighScoreClip { .. } => "promote_high_score_clip",
            Self::DowngradeLowScoreClip { .. } => "downgrade_low_score_clip",
            Self::ForcePublish { .. } => "force_publish",
            Self::RebalanceQueue { .. } => "rebalance_queue",
        }
    }

    /// What it is done to: proposals of the same kind and target are one action; cooldowns go by it.
    pub fn target(&self) -> String {
        match self {
            Self::ScheduleClip { clip_id, platform: None }
            | Self::PromoteHighScoreClip { clip_id }
            | Self::DowngradeLowScoreClip { clip_id } => format!("clip:{clip_id}"),
            Self::ScheduleClip { clip_id, platform: Some(platform) } => format!("clip:{clip_id}:{platform}"),
            Self::RetryFailedLog { log_id } | Self::ForcePublish { log_id } => format!("publish_log:{log_id}"),
            Self::TriggerReconciliation => "platforms".to_owned(),
            Self::RebalanceQueue { emergency: false } => "queue".to_owned(),
            Self::RebalanceQueue { emergency: true } => "queue:emergency".to_owned(),
        }
    }
}
