//! What the loop can do: the actions, typed. Unknown names and bad parameters are refused when rules load.

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
    /// Give a job that ran out of tries another round of them.
    RetryDeadLetter {
        /// The dead letter.
        dead_letter_id: i64,
    },
    /// Hand out no more of a queue's jobs.
    PauseQueue {
        /// The queue's name.
        queue: String,
    },
    /// Hand a queue's jobs out again that the loop has paused.
    ResumeQueue {
        /// The queue's name.
        queue: String,
    },
    /// Have a failed run go on from the step that failed.
    RetryRun {
        /// The run.
        run_id: i64,
    },
    /// Give a run up.
    CancelRun {
        /// The run.
        run_id: i64,
    },
    /// Stop a trigger.
    PauseTrigger {
        /// The trigger.
        trigger_id: String,
    },
    /// Give a worker no jobs for a while.
    QuarantineWorker {
        /// The worker.
        worker_id: String,
    },
    /// Give an agent nothing new.
    DrainAgent {
        /// The agent.
        agent_id: String,
    },
    /// Let an agent work again that the loop has drained.
    UndrainAgent {
        /// The agent.
        agent_id: String,
    },
    /// End a stream and begin it again.
    RestartStream {
        /// The stream job.
        job_id: String,
    },
    /// End a stream for good.
    StopStream {
        /// The stream job.
        job_id: String,
    },
    /// Begin a stream on another agent.
    MoveStream {
        /// The stream job.
        job_id: String,
    },
    /// Tell people what they alone can mend; the reasons are the text.
    RaiseAlert {
        /// What it is about, e.g. `streams` or `agent:studio`.
        subject: String,
    },
}

/// The names of all action kinds, as rules, configuration and the ledger write them.
pub const ACTION_KINDS: [&str; 20] = [
    "schedule_clip",
    "retry_failed_log",
    "trigger_reconciliation",
    "promote_high_score_clip",
    "downgrade_low_score_clip",
    "force_publish",
    "rebalance_queue",
    "retry_dead_letter",
    "pause_queue",
    "resume_queue",
    "retry_run",
    "cancel_run",
    "pause_trigger",
    "quarantine_worker",
    "drain_agent",
    "undrain_agent",
    "restart_stream",
    "stop_stream",
    "move_stream",
    "raise_alert",
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
            Self::RetryDeadLetter { .. } => "retry_dead_letter",
            Self::PauseQueue { .. } => "pause_queue",
            Self::ResumeQueue { .. } => "resume_queue",
            Self::RetryRun { .. } => "retry_run",
            Self::CancelRun { .. } => "cancel_run",
            Self::PauseTrigger { .. } => "pause_trigger",
            Self::QuarantineWorker { .. } => "quarantine_worker",
            Self::DrainAgent { .. } => "drain_agent",
            Self::UndrainAgent { .. } => "undrain_agent",
            Self::RestartStream { .. } => "restart_stream",
            Self::StopStream { .. } => "stop_stream",
            Self::MoveStream { .. } => "move_stream",
            Self::RaiseAlert { .. } => "raise_alert",
        }
    }

    /// Whether it is done to the fleet, whose instances must hear of it.
    pub fn is_of_fleet(&self) -> bool {
        matches!(
            self,
            Self::DrainAgent { .. }
                | Self::UndrainAgent { .. }
                | Self::RestartStream { .. }
                | Self::StopStream { .. }
                | Self::MoveStream { .. }
        )
    }

    /// Whether it is done to a run of a pipeline, of which an engine must hear.
    pub fn is_of_runs(&self) -> bool {
        matches!(self, Self::RetryRun { .. } | Self::CancelRun { .. })
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
            Self::RetryDeadLetter { dead_letter_id } => format!("dead_letter:{dead_letter_id}"),
            Self::PauseQueue { queue } | Self::ResumeQueue { queue } => format!("queue:{queue}"),
            Self::RetryRun { run_id } | Self::CancelRun { run_id } => format!("run:{run_id}"),
            Self::PauseTrigger { trigger_id } => format!("trigger:{trigger_id}"),
            Self::QuarantineWorker { worker_id } => format!("worker:{worker_id}"),
            Self::DrainAgent { agent_id } | Self::UndrainAgent { agent_id } => format!("agent:{agent_id}"),
            Self::RestartStream { job_id } | Self::StopStream { job_id } | Self::MoveStream { job_id } => {
                format!("stream:{job_id}")
            }
            Self::RaiseAlert { subject } => format!("alert:{subject}"),
        }
    }
}
