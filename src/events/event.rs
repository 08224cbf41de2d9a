//! An event, before and after it is stored, and its place in the order.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::db::Timestamp;
use crate::ledger::Severity;

/// The monitor's and the loop's own event types; each plane has a family of its own beside them, e.g. `job.failed`.
pub mod types {
    pub const WORKFLOW_STARTED: &str = "workflow_started";
    pub const WORKFLOW_COMPLETED: &str = "workflow_completed";
    pub const WORKFLOW_FAILED: &str = "workflow_failed";
    pub const ENGINE_STATUS: &str = "engine_status";
    pub const STATUS_UPDATE: &str = "status_update";
    pub const HEALTH_CHECK_RESPONSE: &str = "health_check_response";
    /// The loop tells people something; `data.text` says what.
    pub const ALERT_RAISED: &str = "alert.raised";
}

/// `data` beyond this is left out: an event says that something happened, its subject's row holds the rest.
const MOST_DATA_BYTES: usize = 16 * 1024;

/// Characters of `source` and `subject`, as the table holds them.
const LONGEST_NAME: usize = 200;

/// An event that is to be recorded or published.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// One of [`types`], or of a plane's family: lower-case letters, digits, `_` and `.`.
    pub event_type: &'static str,
    pub severity: Severity,
    /// The plane or engine that says so.
    pub source: String,
    /// What it happened to, e.g. `run:12`.
    pub subject: Option<String>,
    /// The rest.
    pub data: Value,
}

impl NewEvent {
    /// An event of severity `info` without subject and data.
    pub fn new(event_type: &'static str, source: impl Into<String>) -> Self {
        let source = clean(source.into());
        Self { event_type, severity: Severity::Info, source, subject: None, data: json!({}) }
    }
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(clean(subject.into()));
        self
    }
    /// What is larger than 16 KiB is replaced by `{"omitted_bytes": n}`.
    pub fn data(mut self, data: Value) -> Self {
        let bytes = data.to_string().len();
        self.data = if bytes > MOST_DATA_BYTES { json!({ "omitted_bytes": bytes }) } else { data };
        self
    }

    /// As subscribers see it when it is not stored.
    pub(super) fn transient(self, at: Timestamp) -> Event {
        Event {
            id: None,
            position: None,
            event_type: self.event_type.to_owned(),
            severity: self.severity,
            source: self.source,
            subject: self.subject,
            data: self.data,
            created_at: at,
        }
    }
}

/// Without what PostgreSQL cannot hold, and no longer than the table takes.
fn clean(text: String) -> String {
    if text.chars().count() <= LONGEST_NAME && !text.contains('\0') {
        return text;
    }
    text.chars().filter(|c| *c != '\0').take(LONGEST_NAME).collect()
}

/// An event as subscribers and clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// `null` for a transient event, which is not stored.
    pub id: Option<i64>,
    #[serde(skip)]
    pub(super) position: Option<Position>,
    /// e.g. `workflow_completed`, `job.failed`
    pub event_type: String,
    pub severity: Severity,
    /// The plane or engine that said so.
    pub source: String,
    /// What it happened to, e.g. `run:12`.
    pub subject: Option<String>,
    /// The rest.
    #[schema(value_type = Object)]
    pub data: Value,
    pub created_at: Timestamp,
}

impl Event {
    /// Its place in the order; none for a transient event.
    pub fn position(&self) -> Option<Position> {
        self.position
    }
}

/// A place in the order in which stored events are told: by transaction, then by id. The same on every instance.
/// Written `<transaction>-<id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    pub transaction_id: i64,
    pub event_id: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.transaction_id, self.event_id)
    }
}

/// A text that is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a place in the events; take the `id` of an event of the stream")]
pub struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;
    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let (transaction, id) = text.split_once('-').ok_or(NotAPosition)?;
        let number = |digits: &str| {
            let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            digits.and_then(|digits| digits.parse().ok()).ok_or(NotAPosition)
        };
        Ok(Self { transaction_id: number(transaction)?, event_id: number(id)? })
    }
}

/// Which events to tell; the default takes all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Types, exact or as `job.*`; empty takes all.
    pub types: Vec<String>,
    /// This severity and worse.
    pub severity: Option<Severity>,
    /// Subjects that begin so.
    pub subject: Option<String>,
}

impl Filter {
    /// Whether `event` is wanted.
    pub fn takes(&self, event: &Event) -> bool {
        let of_type = |wanted: &String| match wanted.strip_suffix('*') {
            Some(family) => event.event_type.starts_with(family),
            None => event.event_type == *wanted,
        };
        (self.types.is_empty() || self.types.iter().any(of_type))
            && self.severities().contains(&event.severity)
            && self.subject.as_ref().is_none_or(|prefix| event.subject.as_deref().unwrap_or("").starts_with(prefix))
    }

    /// The severities that are wanted.
    pub(super) fn severities(&self) -> &'static [Severity] {
        const ALL: [Severity; 4] = [Severity::Info, Severity::Warning, Severity::Error, Severity::Critical];
        let least = self.severity.and_then(|severity| ALL.iter().position(|known| *known == severity));
        &ALL[least.unwrap_or(0)..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_and_nothing_else_does() {
        let position = Position { transaction_id: 900, event_id: 7 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in ["", "7", "-", "1-", "-1", "1-x", "1-2-3", "+1-2", "99999999999999999999-1"] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text}");
        }
    }

    #[test]
    fn what_a_table_could_not_hold_is_cut_and_said() {
        let event = NewEvent::new("job.failed", "a\0b").subject("x".repeat(500)).data(json!("y".repeat(20_000)));
        assert_eq!((event.source.as_str(), event.subject.expect("one").len()), ("ab", 200));
        assert_eq!(event.data, json!({ "omitted_bytes": 20_002 }));
    }

    #[test]
    fn a_filter_takes_families_worse_severities_and_subjects_that_begin_so() {
        let at: Timestamp = "2026-11-20T12:00:00Z".parse().expect("a time");
        let event = NewEvent::new("job.failed", "queue").severity(Severity::Error).subject("job:12").transient(at);
        let filter = |types: &[&str], severity, subject: Option<&str>| Filter {
            types: types.iter().map(|text| (*text).to_owned()).collect(),
            severity,
            subject: subject.map(str::to_owned),
        };
        assert!(filter(&[], None, None).takes(&event));
        assert!(filter(&["run.*", "job.*"], Some(Severity::Warning), Some("job:")).takes(&event));
        assert!(!filter(&["job"], None, None).takes(&event));
        assert!(!filter(&[], Some(Severity::Critical), None).takes(&event));
        assert!(!filter(&[], None, Some("run:")).takes(&event));
    }
}
