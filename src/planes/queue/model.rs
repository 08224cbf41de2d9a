//! A job's state machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = JobStatus)]
pub enum Status {
    /// Not due yet.
    Waiting,
    /// Ready to run.
    Pending,
    /// Leased by a worker.
    Processing,
    /// Failed, and due for another try at `run_at`.
    Retry,
    /// Done.
    Completed,
    /// Out of tries.
    Failed,
    /// Given up by somebody.
    Cancelled,
}

/// What can happen to a job. `again`: whether a try is left, and wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its time has come.
    Due,
    /// The queue is full: it is put off.
    PutOff,
    /// A worker took it.
    Claimed,
    /// The worker gives it back without having begun.
    GivenBack,
    /// The worker finished it.
    Completed,
    /// The try failed.
    Failed { again: bool },
    /// Nobody renewed its lease: no sign of life came.
    LeaseLapsed { again: bool },
    /// The try took longer than it may.
    TimedOut { again: bool },
    /// Somebody gives it up.
    CancelRequested,
    /// Whoever ran it stopped because somebody gave it up.
    CancelAcknowledged,
    /// It waited too long, and an emergency fails it.
    GivenUp,
    /// Somebody gives a dead letter another round of tries.
    Retried,
}

/// A pair of status and event that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {status} cannot take {event:?}")]
pub struct IllegalTransition {
    pub status: Status,
    pub event: Event,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] =
        [Self::Waiting, Self::Pending, Self::Processing, Self::Retry, Self::Completed, Self::Failed, Self::Cancelled];

    /// The next status; the store's SQL follows this table, and a test holds it to that.
    pub fn on(self, event: Event) -> Result<Self, IllegalTransition> {
        match (self, event) {
            (Self::Waiting | Self::Retry, Event::Due) => Ok(Self::Pending),
            (Self::Pending, Event::PutOff) => Ok(Self::Waiting),
            (Self::Pending, Event::Claimed) => Ok(Self::Processing),
            (Self::Processing, Event::GivenBack) => Ok(Self::Pending),
            (Self::Processing, Event::Completed) => Ok(Self::Completed),
            (Self::Processing, Event::Failed { again } | Event::LeaseLapsed { again } | Event::TimedOut { again }) => {
                Ok(if again { Self::Retry } else { Self::Failed })
            }
            (Self::Waiting | Self::Pending | Self::Retry, Event::CancelRequested) => Ok(Self::Cancelled),
            (Self::Processing, Event::CancelRequested) => Ok(Self::Processing),
            (Self::Processing, Event::CancelAcknowledged) => Ok(Self::Cancelled),
            (Self::Pending, Event::GivenUp) => Ok(Self::Failed),
            (Self::Failed, Event::Retried) => Ok(Self::Pending),
            (status, event) => Err(IllegalTransition { status, event }),
        }
    }

    /// Whether nothing happens to it any more, unless somebody retries its dead letter.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Retry => "retry",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_value(Value::String(text.to_owned())).map_err(|_| format!("`{text}` is no job status"))
    }
}

impl TryFrom<String> for Status {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Due),
            Just(Event::PutOff),
            Just(Event::Claimed),
            Just(Event::GivenBack),
            Just(Event::Completed),
            any::<bool>().prop_map(|again| Event::Failed { again }),
            any::<bool>().prop_map(|again| Event::LeaseLapsed { again }),
            any::<bool>().prop_map(|again| Event::TimedOut { again }),
            Just(Event::CancelRequested),
            Just(Event::CancelAcknowledged),
            Just(Event::GivenUp),
            Just(Event::Retried),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_a_job_runs_only_after_a_claim_and_ends_once(
            events in prop::collection::vec(any_event(), 0..60)
        ) {
            let mut status = Status::Pending;
            for event in events {
                let before = status;
                match status.on(event) {
                    Ok(next) => status = next,
                    Err(illegal) => prop_assert_eq!(illegal, IllegalTransition { status, event }),
                }
                if status == Status::Processing && before != Status::Processing {
                    prop_assert_eq!((before, event), (Status::Pending, Event::Claimed));
                }
                if status == Status::Completed && before != Status::Completed {
                    prop_assert_eq!((before, event), (Status::Processing, Event::Completed));
                }
                if before.is_final() && status != before {
                    prop_assert_eq!((before, event, status), (Status::Failed, Event::Retried, Status::Pending));
                }
                if status == Status::Cancelled && before == Status::Processing {
                    prop_assert_eq!(event, Event::CancelAcknowledged, "a running job is never cancelled under its worker");
                }
            }
        }

        #[test]
        fn every_job_can_still_end(status in prop::sample::select(Status::ALL.to_vec())) {
            let road = [Event::Due, Event::Claimed, Event::Completed];
            let end = road.iter().fold(status, |status, event| status.on(*event).unwrap_or(status));
            prop_assert!(end.is_final());
        }
    }

    #[test]
    fn names_read_back() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert!("done".parse::<Status>().is_err());
    }
}
