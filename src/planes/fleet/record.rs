//! The rows of jobs, agents and templates, and what clients see of them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::model::{AgentState, JobId, JobStatus, RestartPolicy};
use super::protocol::Progress;
use crate::db::{Json, Timestamp};

/// A stream job as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Job {
    pub id: i64,
    pub template_id: Option<String>,
    pub config: Json<Value>,
    pub requires: Json<Map<String, Value>>,
    pub prefers: Json<Vec<String>>,
    pub group_name: Option<String>,
    pub priority: i64,
    #[sqlx(try_from = "String")]
    pub restart_policy: RestartPolicy,
    pub idempotency_key: Option<String>,
    #[sqlx(try_from = "String")]
    pub status: JobStatus,
    pub reason: Option<String>,
    #[sqlx(try_from = "String")]
    pub wanted: Wanted,
    pub agent_id: Option<String>,
    pub avoid: Json<Vec<String>>,
    pub lease: i64,
    pub due_at: Option<Timestamp>,
    pub killed: bool,
    pub offers: i64,
    pub restarts: i64,
    pub metadata: Json<Map<String, Value>>,
    pub progress: Option<Json<Progress>>,
    pub progressed_at: Option<Timestamp>,
    pub error: Option<String>,
    pub exit_code: Option<i64>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub assigned_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub version: i64,
    pub revision: i64,
}

/// What somebody wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    Run,
    Stop,
    /// That it begins again, perhaps elsewhere.
    Restart,
}

impl TryFrom<String> for Wanted {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "run" => Ok(Self::Run),
            "stop" => Ok(Self::Stop),
            "restart" => Ok(Self::Restart),
            _ => Err(format!("`{text}` is nothing that is wanted of a job")),
        }
    }
}

/// An agent as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Agent {
    pub id: String,
    pub name: String,
    pub software_version: Option<String>,
    #[sqlx(try_from = "String")]
    pub state: AgentState,
    pub capabilities: Json<Map<String, Value>>,
    pub slots: i64,
    pub drain: bool,
    pub drained_by: Option<String>,
    pub drain_deadline_at: Option<Timestamp>,
    pub instance: Option<String>,
    pub connection: i64,
    pub token_id: Option<i64>,
    pub current_job_id: Option<i64>,
    pub busy: i64,
    pub failed_starts: i64,
    pub faulted_until: Option<Timestamp>,
    pub drops: i64,
    pub drops_since: Option<Timestamp>,
    pub last_seen_at: Timestamp,
    pub connected_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub version: i64,
    pub revision: i64,
}

impl Agent {
    /// An agent that was never seen before.
    pub fn unknown(id: &str, now: Timestamp) -> Self {
        Self {
            id: id.to_owned(),
            name: id.to_owned(),
            software_version: None,
            state: AgentState::Offline,
            capabilities: Json(Map::new()),
            slots: 1,
            drain: false,
            drained_by: None,
            drain_deadline_at: None,
            instance: None,
            connection: 0,
            token_id: None,
            current_job_id: None,
            busy: 0,
            failed_starts: 0,
            faulted_until: None,
            drops: 0,
            drops_since: None,
            last_seen_at: now,
            connected_at: None,
            created_at: now,
            updated_at: now,
            version: 0,
            revision: 0,
        }
    }
}

impl Agent {
    /// Whether it may be given jobs, as far as its state goes.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, AgentState::Offline | AgentState::Error | AgentState::Draining)
    }
}

/// What jobs are made from by name.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    pub id: String,
    pub description: Option<String>,
    #[schema(value_type = Object)]
    pub config: Json<Map<String, Value>>,
    /// What an agent must have, as in a job.
    #[schema(value_type = Object)]
    pub requires: Json<Map<String, Value>>,
    #[sqlx(try_from = "String")]
    #[schema(inline)]
    pub restart_policy: RestartPolicy,
    pub priority: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A stream job.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    pub id: JobId,
    pub template_id: Option<String>,
    pub status: JobStatus,
    /// Why it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who runs it, or ran it last.
    pub agent_id: Option<String>,
    pub restart_policy: RestartPolicy,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    pub priority: i64,
    /// Grows with every assignment.
    pub lease: i64,
    /// After errors, in a row.
    pub restarts: i64,
    /// Why it failed the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Only where one job is shown, and only to operators: it may hold stream keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        Self {
            id: JobId(job.id),
            template_id: job.template_id,
            status: job.status,
            reason: job.reason,
            agent_id: job.agent_id,
            restart_policy: job.restart_policy,
            idempotency_key: job.idempotency_key,
            priority: job.priority,
            lease: job.lease,
            restarts: job.restarts,
            error: job.error,
            exit_code: job.exit_code,
            metadata: job.metadata.0,
            progress: job.progress.map(|progress| progress.0),
            config: None,
            created_at: job.created_at,
            updated_at: job.updated_at,
            started_at: job.started_at,
            ended_at: job.ended_at,
        }
    }
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    pub id: String,
    pub name: String,
    pub version: Option<String>,
    pub state: AgentState,
    /// Its oldest job.
    pub current_job_id: Option<JobId>,
    /// How many jobs it has.
    pub jobs: i64,
    pub last_seen_at: Timestamp,
    pub drain: bool,
    /// `agent`, `loop`, or `operator:<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained_by: Option<String>,
    /// What still runs then is begun elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_deadline_at: Option<Timestamp>,
    #[schema(value_type = Object)]
    pub capabilities: Map<String, Value>,
    /// Of the service, to which it is connected.
    pub instance: Option<String>,
    pub connected_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl From<Agent> for AgentView {
    fn from(agent: Agent) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            version: agent.software_version,
            state: agent.state,
            current_job_id: agent.current_job_id.map(JobId),
            jobs: agent.busy,
            last_seen_at: agent.last_seen_at,
            drain: agent.drain,
            drained_by: agent.drained_by,
            drain_deadline_at: agent.drain_deadline_at,
            capabilities: agent.capabilities.0,
            instance: agent.instance,
            connected_at: agent.connected_at,
            created_at: agent.created_at,
        }
    }
}
