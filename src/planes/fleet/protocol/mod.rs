//! What agents and UI clients say, and what is said to them: one JSON object a WebSocket text message.
//!
//! ```json
//! {"type": "agent.job.update", "msgId": "7", "ts": "…", "correlationId": "…", "payload": {"jobId": "job-4", "status": "RUNNING"}}
//! ```
//!
//! Only `type`, and in `payload` what a message is about, is needed. `msgId` (text or number) makes a repetition
//! recognisable; an answer carries it as `correlationId`. An agent's `ts` is not looked at: clocks differ. Unknown
//! fields are ignored; an unknown type is [`FromAgent::Unknown`], so that it can be answered.
//!
//! An agent connects to `/agent` and says `agent.hello`; everything before `agent.hello.ack` is refused. A job that it
//! names there as running and that is still its own goes on; any other is answered by `agent.job.kill`. `lease` grows
//! with every assignment of a job: who has it sends it back with what he says about the job, and obeys a stop or kill
//! only if its lease is not older than what runs. Both may be left out. A second `agent.hello` on the same connection
//! renews what it said of itself, its token too.
//!
//! | closing code | why | what an agent does |
//! |---|---|---|
//! | 1001 | this instance goes away | connects again after a random moment |
//! | 1008 | it broke a bound: size, rate, or an outbox that it does not empty | connects again with backoff |
//! | [`close::NO_HELLO`] | it did not say hello in time | connects again with backoff |
//! | [`close::UNAUTHORIZED`] | its token is wrong or was revoked | stops, and says so |
//! | [`close::REPLACED`] | another connection said hello as the same agent | stops: two run under one id |
//! | [`close::SILENT`] | no sign of life within the time-out, no answer to an order to kill, or taken for lost by another instance | connects again with backoff |

//!
//! The messages are here; `frame` reads and writes them.

mod frame;

pub use frame::{Ids, Malformed, Received, encode, from_agent, from_ui, to_agent};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::model::JobStatus;

/// Slots of one agent: beyond it a mistake.
pub const MOST_SLOTS: i64 = 1_000;

/// WebSocket closing codes of ours.
pub mod close {
    pub const NO_HELLO: u16 = 4408;
    pub const UNAUTHORIZED: u16 = 4401;
    pub const REPLACED: u16 = 4409;
    pub const SILENT: u16 = 4410;
}

/// A message from an agent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", content = "payload")]
pub enum FromAgent {
    #[serde(rename = "agent.hello")]
    Hello(Box<Hello>),
    #[serde(rename = "agent.assign.ack")]
    AssignAck(AssignAck),
    #[serde(rename = "agent.job.update")]
    JobUpdate(Box<JobUpdate>),
    /// How a mute command went.
    #[serde(rename = "agent.job.mute")]
    Mute(AudioAck),
    /// How an unmute command went.
    #[serde(rename = "agent.job.unmute")]
    Unmute(AudioAck),
    #[serde(rename = "agent.heartbeat")]
    Heartbeat(Heartbeat),
    /// What the agent could not make sense of.
    #[serde(rename = "error")]
    Error(Complaint),
    /// A type that this version does not know.
    #[serde(skip)]
    Unknown(String),
}

/// A message to an agent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", content = "payload")]
pub enum ToAgent {
    #[serde(rename = "agent.hello.ack")]
    HelloAck(HelloAck),
    #[serde(rename = "agent.assign")]
    Assign(Box<Assign>),
    #[serde(rename = "agent.job.stop")]
    Stop(Stop),
    #[serde(rename = "agent.job.kill")]
    Kill(OfJob),
    #[serde(rename = "agent.job.mute")]
    Mute(OfJob),
    #[serde(rename = "agent.job.unmute")]
    Unmute(OfJob),
    #[serde(rename = "agent.drain")]
    Drain(Drain),
    #[serde(rename = "error")]
    Error(Complaint),
    #[serde(skip)]
    Unknown(String),
}

/// The first message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub agent_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `slots` (1 to 1,000; 1 if it is left out), `maxResolution`, and whatever else jobs may ask for.
    #[serde(default, deserialize_with = "capabilities")]
    pub capabilities: Map<String, Value>,
    /// It wants to finish what it has and be given nothing new.
    #[serde(default, deserialize_with = "or_default")]
    pub drain: bool,
    /// What it runs; [`Hello::jobs`] reads both fields.
    #[serde(default)]
    pub active_job: Option<ActiveJob>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub active_jobs: Vec<ActiveJob>,
    #[serde(default, deserialize_with = "or_default")]
    pub auth: Credentials,
}

impl Hello {
    /// How many jobs it takes at once.
    pub fn slots(&self) -> i64 {
        self.capabilities.get("slots").and_then(Value::as_i64).unwrap_or(1)
    }

    /// All jobs that the agent says it runs, each once.
    pub fn jobs(&self) -> Vec<&ActiveJob> {
        let mut jobs: Vec<&ActiveJob> = self.active_jobs.iter().collect();
        if let Some(job) = &self.active_job
            && !jobs.iter().any(|known| known.job_id == job.job_id)
        {
            jobs.push(job);
        }
        jobs
    }
}

/// What an agent proves itself by.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Credentials {
    #[serde(default)]
    pub token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// A job that an agent runs: its id alone, or with the lease under which it was assigned and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveJob {
    pub job_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<JobStatus>,
}

impl<'de> Deserialize<'de> for ActiveJob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Named {
            #[serde(alias = "id")]
            job_id: String,
            #[serde(default)]
            lease: Option<i64>,
            #[serde(default)]
            status: Option<String>,
        }
        match Value::deserialize(deserializer)? {
            Value::String(job_id) => Ok(Self { job_id, ..Self::default() }),
            named @ Value::Object(_) => {
                let Named { job_id, lease, status } = serde_json::from_value(named).map_err(D::Error::custom)?;
                Ok(Self { job_id, lease, status: status.and_then(|status| status.parse().ok()) })
            }
            other => Err(D::Error::custom(format_args!("takes a job's id, or an object with `jobId`, not {other}"))),
        }
    }
}

/// Whether an offered job is taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignAck {
    pub job_id: String,
    pub accepted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<i64>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a job stands. Without `status` only progress and metadata are told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobUpdate {
    pub job_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<JobStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<i64>,
    /// Why it failed; the last lines that its process said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Stream metadata, merged into what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// How far a stream has come. It makes progress while `positionMs` or `frames` grows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[schema(as = StreamProgress)]
pub struct Progress {
    /// Of the output, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitrate_kbps: Option<f64>,
    /// 1 is real time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_frames: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
}

/// How a mute or unmute went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AudioAck {
    pub job_id: String,
    pub success: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A sign of life; with `activeJobs` also all that the agent runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Heartbeat {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_jobs: Option<Vec<ActiveJob>>,
}

/// The agent is taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HelloAck {
    pub heartbeat_interval_ms: u64,
    /// Silent for longer, it is offline.
    pub heartbeat_timeout_ms: u64,
    /// Offline for longer, its jobs are given to others: an agent that has heard nothing for the time-out and this
    /// together ends what it runs.
    pub grace_ms: u64,
    /// Which instance it is connected to.
    pub instance: String,
}

/// A job is offered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assign {
    pub job_id: String,
    /// Grows with every assignment of this job, and only grows.
    pub lease: i64,
    /// The job's `inlineConfig`, or its template's as it was when the job was submitted.
    #[serde(default)]
    pub config: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
}

/// A job is to end by itself, and is killed when it has not after `graceMs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    pub job_id: String,
    #[serde(default)]
    pub grace_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<i64>,
}

/// A command about a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfJob {
    pub job_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<i64>,
}

/// Whether the agent is given nothing new.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    pub drain: bool,
    /// What runs then is stopped by the orchestrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// Something was not understood or not taken; `correlationId` says what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Complaint {
    /// For programs, e.g. `unknown-type`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What a UI client may say.
#[derive(Debug, Clone, PartialEq)]
pub enum FromUi {
    Subscribe(Subscribe),
    Unknown(String),
}

/// What the client wants from now on; it is answered by the state as it is and [`UiReady`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subscribe {
    /// Only what changed behind this place of an earlier message.
    pub since: Option<String>,
    /// `agents`, `jobs`; empty takes both.
    pub topics: Vec<String>,
    /// Only these agents, and the jobs on them.
    pub agent_ids: Vec<String>,
    /// Only these jobs.
    pub job_ids: Vec<String>,
}

/// The state has been told; changes follow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UiReady {
    /// Only what changed behind `since` was told; else the whole state.
    pub resumed: bool,
    pub agents: usize,
    pub jobs: usize,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn capabilities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    let capabilities: Map<String, Value> = or_default(deserializer)?;
    let is_fit = |slots: &Value| slots.as_i64().is_some_and(|slots| (1..=MOST_SLOTS).contains(&slots));
    match capabilities.get("slots").filter(|slots| !is_fit(slots)) {
        Some(slots) => {
            Err(D::Error::custom(format_args!("`slots` takes a whole number from 1 to {MOST_SLOTS}, not {slots}")))
        }
        None => Ok(capabilities),
    }
}
