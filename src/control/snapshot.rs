//! What one look at the platform saw. The sections' shapes belong to the planes; here they stand together, under
//! the names that rules use.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::Timestamp;
use crate::ledger::LedgerSection;
use crate::planes::fleet::{AgentsSection, StreamsSection};
use crate::planes::pipelines::{EnginesSection, PipelinesSection};
use crate::planes::publishing::{CampaignsSection, ClipsSection, PublishLogsSection, SchedulerSection};
use crate::planes::queue::{DeadLettersSection, JobsSection, WorkersSection};

/// The whole platform at one moment. A section that could not be read is `null` and named in `system.unobserved`; so is
/// one that a record of an older program does not have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// When, by the database's clock.
    pub at: Timestamp,
    /// The queue.
    pub jobs: Option<JobsSection>,
    /// Publications.
    pub publish_logs: Option<PublishLogsSection>,
    /// Publishing windows.
    pub scheduler: Option<SchedulerSection>,
    /// Campaigns.
    pub campaigns: Option<CampaignsSection>,
    /// Clips.
    pub clips: Option<ClipsSection>,
    /// Recent errors.
    pub ledger: Option<LedgerSection>,
    /// Workers, and queues in trouble.
    pub workers: Option<WorkersSection>,
    /// Jobs that ran out of tries.
    pub dead_letters: Option<DeadLettersSection>,
    /// Runs of pipelines.
    pub pipelines: Option<PipelinesSection>,
    /// The engines of the instance that looks.
    pub engines: Option<EnginesSection>,
    /// Agents.
    pub agents: Option<AgentsSection>,
    /// Streams on agents.
    pub streams: Option<StreamsSection>,
    /// Health, worked out from the rest by `health.rhai`.
    pub system: SystemSection,
}

/// Health, and how far it can be trusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SystemSection {
    /// 0 to 100.
    pub health_score: i64,
    /// What the score means.
    pub status: HealthStatus,
    /// What was taken off and why.
    pub deductions: Vec<Deduction>,
    /// Sections that could not be read.
    pub unobserved: Vec<String>,
}

/// What a health score means: healthy from 80, degraded from 50, critical below; unknown where too little was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// 80 and above.
    Healthy,
    /// 50 to 79.
    Degraded,
    /// Below 50.
    Critical,
    /// Sections are missing and nothing that was seen is critical.
    Unknown,
}

impl HealthStatus {
    /// As in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Critical => "critical",
            Self::Unknown => "unknown",
        }
    }
}

/// One reason why the score is not 100.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Deduction {
    /// Points taken off.
    pub points: i64,
    /// Why.
    pub reason: String,
}

impl Default for SystemSection {
    /// Nothing known yet, nothing wrong yet: the state before `health.rhai` has run.
    fn default() -> Self {
        Self { health_score: 100, status: HealthStatus::Unknown, deductions: Vec::new(), unobserved: Vec::new() }
    }
}
