//! Messages as texts: reading them, with refusals in the words of who wrote them, and writing them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{FromAgent, FromUi, ToAgent};
use crate::db::Timestamp;
use crate::problem::FieldError;

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
    use serde_json::json;

    use super::super::*;
    use super::*;

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
