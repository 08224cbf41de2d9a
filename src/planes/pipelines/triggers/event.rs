//! By an event on the bus.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Trigger;
use crate::planes::pipelines::definition::Fault;

/// Families of what pipelines tell of themselves: a run that one of these began would begin the next, without end.
const OWN: [&str; 3] = ["workflow_", "run.", "engine_"];

/// An event fires it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EventTrigger)]
pub struct Event {
    /// The event's type, e.g. `job.failed`; `job.*` are all of a family.
    pub event_type: String,
    /// Only events whose subject begins so, e.g. `clip:`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    /// What tells it from every other event.
    pub id: String,
    pub event_type: String,
    pub subject: String,
    pub data: Value,
}

impl Trigger for Event {
    fn kind(&self) -> &'static str {
        "event"
    }
    fn check(&self) -> Vec<Fault> {
        let own = OWN.iter().any(|own| match self.event_type.strip_suffix('*') {
            Some(family) => own.starts_with(family) || family.starts_with(own),
            None => self.event_type.starts_with(own),
        });
        match self.event_type.len() {
            _ if own => vec![Fault::at("when.event_type", "an event of runs would begin runs for ever")],
            3..=100 => Vec::new(),
            _ => vec![Fault::at("when.event_type", "takes a type such as `job.failed`, or a family such as `job.*`")],
        }
    }
    fn heeds(&self, event: &Happened) -> bool {
        // Triggers that were kept before such families were refused may fit.
        if OWN.iter().any(|own| event.event_type.starts_with(own)) {
            return false;
        }
        let fits = match self.event_type.strip_suffix('*') {
            Some(family) => event.event_type.starts_with(family),
            None => event.event_type == self.event_type,
        };
        fits && self.subject.as_ref().is_none_or(|subject| event.subject.starts_with(subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_matched_by_type_family_and_subject() {
        let event = |event_type: &str, subject: Option<&str>| Event {
            event_type: event_type.to_owned(),
            subject: subject.map(str::to_owned),
        };
        let happened = Happened {
            id: "1".to_owned(),
            event_type: "job.failed".to_owned(),
            subject: "job:7".to_owned(),
            data: Value::Null,
        };
        assert!(event("job.failed", None).heeds(&happened) && event("job.*", Some("job:")).heeds(&happened));
        assert!(!event("job.completed", None).heeds(&happened) && !event("job.*", Some("clip:")).heeds(&happened));
        assert!(!event("run.failed", None).check().is_empty() && !event("*", None).check().is_empty());
    }

    #[test]
    fn what_runs_tell_of_themselves_begins_no_run() {
        let event = |event_type: &str| Event { event_type: event_type.to_owned(), subject: None };
        for family in ["work*", "workflow*", "workflow_*", "workflow_started", "run*", "run.*", "run.x*", "engi*"] {
            assert_eq!(event(family).check().len(), 1, "{family}");
        }
        for family in ["job.*", "runner.*", "worker.*", "clip.ready", "fleet.*", "eng"] {
            assert!(event(family).check().is_empty(), "{family}");
        }
        for told in ["workflow_completed", "run.cancelled", "engine_status"] {
            let (id, subject) = ("1".to_owned(), "run:7".to_owned());
            let happened = Happened { id, event_type: told.to_owned(), subject, data: Value::Null };
            for family in ["*", "work*", "run*", "eng*", told] {
                assert!(!event(family).heeds(&happened), "{family} and {told}");
            }
        }
    }
}
