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

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::model::JobStatus;
use crate::db::Timestamp;
use crate::problem::FieldError;

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

/// A received message with its ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Received<M> {
    pub msg_id: Option<String>,
    pub correlation_id: Option<String>,
    pub message: M,
}

/// A text that is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Malformed {
    /// Of the message, where it could be read.
    pub msg_id: Option<String>,
    pub cause: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "text_or_number")]
    msg_id: Option<String>,
    #[serde(default, deserialize_with = "text_or_number")]
    correlation_id: Option<String>,
    #[serde(default, borrow)]
    payload: Option<&'a RawValue>,
}

impl Frame<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, Malformed> {
        let payload = self.payload.map_or("{}", RawValue::get);
        let payload = if payload == "null" { "{}" } else { payload };
        object(payload).map_err(|cause| Malformed {
            msg_id: self.msg_id.clone(),
            cause: format!("the payload of `{}` does not fit: {cause}", self.kind),
        })
    }
}

fn frame(text: &str) -> Result<Frame<'_>, Malformed> {
    object(text).map_err(|cause| Malformed {
        msg_id: None,
        cause: format!("a message is a JSON object with `type` and `payload`: {cause}"),
    })
}

/// Reads an object; the refusal is in words that whoever wrote it can act on.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    // serde would also take the fields' values in a row, which nobody means.
    if text.trim_start().starts_with('[') {
        return Err("it is a list".to_owned());
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, &error.into_inner())
    })?;
    reader.end().map_err(|cause| explain(".", &cause))?;
    Ok(read)
}

fn explain(path: &str, cause: &serde_json::Error) -> String {
    if !cause.is_data() {
        return format!("it is not valid JSON, {cause}");
    }
    let FieldError { field, message } = crate::web::explain(path, &cause.to_string());
    if field == "body" { format!("it {message}") } else { format!("`{field}` {message}") }
}

fn with_ids<M>(frame: Frame<'_>, message: M) -> Received<M> {
    Received { msg_id: frame.msg_id, correlation_id: frame.correlation_id, message }
}

/// Reads what an agent says.
pub fn from_agent(text: &str) -> Result<Received<FromAgent>, Malformed> {
    let frame = frame(text)?;
    let message = match frame.kind.as_str() {
        "agent.hello" => FromAgent::Hello(frame.read()?),
        "agent.assign.ack" => FromAgent::AssignAck(frame.read()?),
        "agent.job.update" => FromAgent::JobUpdate(frame.read()?),
        "agent.job.mute" => FromAgent::Mute(frame.read()?),
        "agent.job.unmute" => FromAgent::Unmute(frame.read()?),
        "agent.heartbeat" => FromAgent::Heartbeat(frame.read()?),
        "error" => FromAgent::Error(frame.read()?),
        _ => FromAgent::Unknown(frame.kind.clone()),
    };
    Ok(with_ids(frame, message))
}

/// Reads what is said to an agent.
pub fn to_agent(text: &str) -> Result<Received<ToAgent>, Malformed> {
    let frame = frame(text)?;
    let message = match frame.kind.as_str() {
        "agent.hello.ack" => ToAgent::HelloAck(frame.read()?),
        "agent.assign" => ToAgent::Assign(frame.read()?),
        "agent.job.stop" => ToAgent::Stop(frame.read()?),
        "agent.job.kill" => ToAgent::Kill(frame.read()?),
        "agent.job.mute" => ToAgent::Mute(frame.read()?),
        "agent.job.unmute" => ToAgent::Unmute(frame.read()?),
        "agent.drain" => ToAgent::Drain(frame.read()?),
        "error" => ToAgent::Error(frame.read()?),
        _ => ToAgent::Unknown(frame.kind.clone()),
    };
    Ok(with_ids(frame, message))
}

/// Reads what a UI client says.
pub fn from_ui(text: &str) -> Result<Received<FromUi>, Malformed> {
    let frame = frame(text)?;
    let message = match frame.kind.as_str() {
        "ui.subscribe" => FromUi::Subscribe(frame.read()?),
        _ => FromUi::Unknown(frame.kind.clone()),
    };
    Ok(with_ids(frame, message))
}

/// What a message carries beside its type and payload.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ids {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ts: Option<Timestamp>,
}

/// Writes a [`FromAgent`] or [`ToAgent`] as it goes over the wire. An `Unknown` is never written.
pub fn encode<M: Serialize>(message: &M, ids: &Ids) -> String {
    #[derive(Serialize)]
    struct Envelope<'a, M> {
        #[serde(flatten)]
        message: &'a M,
        #[serde(flatten)]
        ids: &'a Ids,
    }
    serde_json::to_string(&Envelope { message, ids }).expect("messages have text keys and no failing parts")
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

/// Anything else counts as left out.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hello(payload: &Value) -> Hello {
        let text = json!({ "type": "agent.hello", "payload": payload }).to_string();
        match from_agent(&text).expect("a message").message {
            FromAgent::Hello(hello) => *hello,
            other => panic!("no hello: {other:?}"),
        }
    }

    #[test]
    fn the_documented_hello_is_read() {
        let text = r#"{"type":"agent.hello","msgId":"uuid","ts":"2024-01-01T00:00:00.000Z","payload":{
            "agentId":"agent-123","name":"Streaming Agent v1.0","version":"1.0.0",
            "capabilities":{"slots":2,"maxResolution":"1080p"},"drain":false,"activeJob":null,
            "auth":{"token":"your-agent-token"}}}"#;
        let Received { msg_id, message, .. } = from_agent(text).expect("read");
        assert_eq!(msg_id.as_deref(), Some("uuid"));
        let FromAgent::Hello(hello) = message else { panic!("{message:?}") };
        assert_eq!((hello.agent_id.as_str(), &hello.capabilities["slots"]), ("agent-123", &json!(2)));
        assert!(hello.jobs().is_empty());
        assert!(!format!("{hello:?}").contains("your-agent-token"));
    }

    #[test]
    fn active_jobs_come_in_every_form() {
        let job = |id: &str| ActiveJob { job_id: id.to_owned(), ..ActiveJob::default() };
        assert_eq!(hello(&json!({ "agentId": "a", "activeJob": "job-1" })).jobs(), [&job("job-1")]);
        assert_eq!(hello(&json!({ "agentId": "a", "activeJob": { "id": "job-1" } })).jobs(), [&job("job-1")]);
        let both = hello(&json!({ "agentId": "a", "activeJob": "job-1", "activeJobs": ["job-2", "job-1"] }));
        assert_eq!(both.jobs(), [&job("job-2"), &job("job-1")]);
        let full =
            hello(&json!({ "agentId": "a", "activeJobs": [{ "jobId": "job-1", "lease": 3, "status": "RUNNING" }],
            "capabilities": null, "auth": null, "drain": null }));
        assert_eq!(full.jobs()[0].lease, Some(3));
        assert_eq!(full.jobs()[0].status, Some(JobStatus::Running));
    }

    #[test]
    fn what_is_not_known_is_told_apart_from_what_is_broken() {
        let received = from_agent(r#"{"type":"agent.sing","msgId":7,"more":{}}"#).expect("read");
        assert_eq!(received.message, FromAgent::Unknown("agent.sing".to_owned()));
        assert_eq!(received.msg_id.as_deref(), Some("7"));
        for text in ["", "[]", "7", "{}", "{\"type\":1}", "{\"type\":\"agent.job.update\"", "\u{0}"] {
            assert!(from_agent(text).is_err(), "{text:?}");
        }
        let broken = from_agent(r#"{"type":"agent.job.update","msgId":"m","payload":{"status":"RUNNING"}}"#);
        let broken = broken.expect_err("no jobId");
        assert_eq!(broken.msg_id.as_deref(), Some("m"));
        assert_eq!(broken.cause, "the payload of `agent.job.update` does not fit: `jobId` is required");
    }

    #[test]
    fn what_does_not_fit_is_refused_in_the_words_of_who_wrote_it() {
        let hello = |payload: Value| json!({ "type": "agent.hello", "payload": payload }).to_string();
        let slots = |slots: Value| hello(json!({ "agentId": "a", "capabilities": { "slots": slots } }));
        let whole = "`capabilities` `slots` takes a whole number from 1 to 1000, not ";
        for (text, words) in [
            ("[]".to_owned(), "it is a list"),
            (r#"["agent.heartbeat"]"#.to_owned(), "it is a list"),
            ("null".to_owned(), "it takes an object, not null"),
            ("{".to_owned(), "it is not valid JSON"),
            (r#"{"type":7}"#.to_owned(), "`type` takes a text, not the number 7"),
            (hello(json!([])), "it is a list"),
            (hello(json!({})), "`agentId` is required"),
            (hello(json!({ "agentId": "a", "drain": "yes" })), "`drain` takes true or false, not the text \"yes\""),
            (
                hello(json!({ "agentId": "a", "activeJobs": [["job-1"]] })),
                r#"`activeJobs[0]` takes a job's id, or an object with `jobId`, not ["job-1"]"#,
            ),
            (
                hello(json!({ "agentId": "a", "activeJobs": "job-1" })),
                "`activeJobs` takes a list, not the text \"job-1\"",
            ),
            (hello(json!({ "agentId": "a", "activeJobs": [{ "lease": 1 }] })), "`activeJobs[0].jobId` is required"),
            (slots(json!(0)), whole),
            (slots(json!(-1)), whole),
            (slots(json!("2")), whole),
            (slots(json!(1.5)), whole),
            (slots(json!(1_000_000_000)), whole),
            (slots(json!(null)), whole),
            (slots(json!(true)), whole),
        ] {
            let refused = from_agent(&text).expect_err(&text).cause;
            assert!(refused.contains(words), "{text}: {refused}");
        }
        assert!(from_agent(&slots(json!(1_000))).is_ok());
        let update = r#"{"type":"agent.job.update","payload":{"jobId":"job-1","status":"SINGING"}}"#;
        let refused = from_agent(update).expect_err("no status").cause;
        assert!(refused.contains("`status` takes CREATED, PENDING,"), "{refused}");
    }

    #[test]
    fn every_message_reads_back() {
        let job_id = || "job-4".to_owned();
        let ids = Ids { msg_id: Some("m1".to_owned()), correlation_id: Some("m0".to_owned()), ts: None };
        let said = [
            FromAgent::Hello(Box::new(Hello { agent_id: "a".to_owned(), ..Hello::default() })),
            FromAgent::AssignAck(AssignAck { job_id: job_id(), accepted: false, lease: Some(1), reason: None }),
            FromAgent::JobUpdate(Box::new(JobUpdate { job_id: job_id(), exit_code: Some(1), ..JobUpdate::default() })),
            FromAgent::Mute(AudioAck { job_id: job_id(), success: true, error: None }),
            FromAgent::Unmute(AudioAck { job_id: job_id(), success: false, error: Some("no".to_owned()) }),
            FromAgent::Heartbeat(Heartbeat { active_jobs: Some(vec![ActiveJob::default()]) }),
            FromAgent::Error(Complaint::default()),
        ];
        for message in said {
            let read = from_agent(&encode(&message, &ids)).expect("read");
            assert_eq!((read.msg_id.as_deref(), read.correlation_id.as_deref()), (Some("m1"), Some("m0")));
            assert_eq!(read.message, message);
        }
        let heard = [
            ToAgent::HelloAck(HelloAck { grace_ms: 5, ..HelloAck::default() }),
            ToAgent::Assign(Box::new(Assign {
                job_id: job_id(),
                lease: 2,
                config: json!({ "a": 1 }),
                template_id: None,
            })),
            ToAgent::Stop(Stop { job_id: job_id(), grace_ms: 10_000, lease: Some(2) }),
            ToAgent::Kill(OfJob { job_id: job_id(), lease: Some(2) }),
            ToAgent::Mute(OfJob { job_id: job_id(), lease: None }),
            ToAgent::Unmute(OfJob { job_id: job_id(), lease: None }),
            ToAgent::Drain(Drain { drain: true, deadline_ms: None }),
            ToAgent::Error(Complaint { code: "unknown-type".to_owned(), message: "what?".to_owned() }),
        ];
        for message in heard {
            assert_eq!(to_agent(&encode(&message, &ids)).expect("read").message, message);
        }
    }
}
