//! What begins runs by itself: a time, a request, an event. One trait, one file a kind.
//!
//! A trigger is a row. Every instance looks at those that are due; the first one to write the firing down begins the
//! run in the same transaction, so that a due time fires once over all instances.

mod cron;
mod event;
mod heeder;
mod http;
mod scheduler;
mod store;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

pub use cron::Cron;
pub use event::{Event, Happened};
pub(super) use heeder::{all as heed_all, run as heed};
pub use http::{Http, Knock};
pub use scheduler::Fired;
pub(super) use scheduler::run as schedule;
pub use store::{Row as TriggerRow, get, list, lock, put, set_active};

use super::definition::Fault;
use super::expression::Template;
use crate::db::Timestamp;

/// A kind of trigger, with its settings.
pub trait Trigger: Send + Sync {
    /// `cron`, `http`, `event` or `manual`.
    fn kind(&self) -> &'static str;
    /// What is wrong with the settings.
    fn check(&self) -> Vec<Fault>;
    /// The next time at which it fires by itself, if it does.
    fn due_after(&self, at: Timestamp) -> Option<Timestamp> {
        let _ = at;
        None
    }
    /// How many due times that were missed are made up for, the newest first.
    fn catch_up(&self) -> usize {
        0
    }
    /// Whether an event fires it.
    fn heeds(&self, event: &Happened) -> bool {
        let _ = event;
        false
    }
    /// Whether it knows by itself who may fire it.
    fn has_key(&self) -> bool {
        false
    }
    /// Whether a request may fire it.
    fn opens(&self, knock: &Knock<'_>) -> Result<(), String> {
        let _ = knock;
        Err("this trigger is not fired by a request".to_owned())
    }
}

/// The settings of a trigger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Settings {
    Cron(Cron),
    Http(Http),
    Event(Event),
    /// Fired by `POST /api/pipelines/{id}/trigger` or by hand only.
    Manual,
}

/// Fired by nobody but a person.
struct Manual;
impl Trigger for Manual {
    fn kind(&self) -> &'static str {
        "manual"
    }
    fn check(&self) -> Vec<Fault> {
        Vec::new()
    }
    fn opens(&self, _: &Knock<'_>) -> Result<(), String> {
        Ok(())
    }
}

impl Settings {
    /// As what they do.
    pub fn trigger(&self) -> &dyn Trigger {
        match self {
            Self::Cron(cron) => cron,
            Self::Http(http) => http,
            Self::Event(event) => event,
            Self::Manual => &Manual,
        }
    }
}

/// What a trigger does while a run that it began is still open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Begins no other.
    Skip,
    /// Begins another beside it.
    #[default]
    Queue,
    /// Gives the open ones up and begins another.
    Cancel,
}

impl Overlap {
    /// As in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Queue => "queue",
            Self::Cancel => "cancel",
        }
    }
}

/// A trigger that is to be made or changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTrigger {
    /// The pipeline of which it begins runs.
    pub pipeline: String,
    pub when: Settings,
    /// The run's input. Texts may hold `${ expression }` over `input.due_at`, `input.fired_at`, `input.body` and
    /// `input.event`. Where it is left out, a request's body is the input.
    #[serde(default)]
    pub input: Option<Value>,
    #[serde(default)]
    pub overlap: Overlap,
    #[serde(default = "yes")]
    pub is_active: bool,
}

fn yes() -> bool {
    true
}

/// What is wrong with a trigger's template of the input.
pub(super) fn fault_of_input(input: &Value) -> Option<Fault> {
    Template::read(input, &mut |_, _| {}).err().map(|(path, message)| Fault::at(format!("input{path}"), message))
}
