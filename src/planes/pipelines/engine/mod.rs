//! An engine: one task that carries out one run at a time, told and heard over bounded channels.
//!
//! ```text
//! Inbound (100) ──▶ idle ──WorkflowRequest──▶ start steps ─▶ commit the batch ─▶ send what goes out ─▶ wait ─┐
//!                    ▲                            ▲                                                         │
//!                    └── end, park, give back ────┴─────────────── an answer, a time, a hint ◀──────────────┘
//!                                  ╰──▶ Outbound (100): status, response, health, error
//! ```
//!
//! Every batch is committed under the run's lease: an engine that lost it finds out there and lets go.
//!
//! Here is an engine as others hold it; `worker` is its task, `commit` what that writes.

mod commit;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{broadcast, mpsc};

use super::message::{CHANNEL, EngineStatus, Health, Inbound, Outbound};
pub(super) use worker::Worker;

/// An engine as others hold it.
pub struct Engine {
    pub id: String,
    pub(super) inbound: mpsc::Sender<Inbound>,
    pub(super) outbound: broadcast::Sender<Outbound>,
    state: Mutex<Health>,
}

impl Engine {
    pub(super) fn new(id: String) -> (Arc<Self>, mpsc::Receiver<Inbound>) {
        let (inbound, receiver) = mpsc::channel(CHANNEL);
        let health = Health { status: EngineStatus::Idle, run: None, runs_ended: 0, last_error: None };
        let engine = Self { id, inbound, outbound: broadcast::channel(CHANNEL).0, state: Mutex::new(health) };
        (Arc::new(engine), receiver)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Health> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is.
    pub fn health(&self) -> Health {
        self.state().clone()
    }

    /// Takes the engine for a run, if it is idle.
    pub(super) fn reserve(&self) -> bool {
        let mut state = self.state();
        let free = matches!(state.status, EngineStatus::Idle | EngineStatus::Error) && state.run.is_none();
        if free {
            state.status = EngineStatus::Running;
        }
        free
    }

    /// Gives a reservation back.
    pub(super) fn unreserve(&self) {
        let mut state = self.state();
        if state.status == EngineStatus::Running && state.run.is_none() {
            state.status = EngineStatus::Idle;
        }
    }

    fn say(&self, message: Outbound) {
        let _ = self.outbound.send(message); // nobody need listen
    }

    fn becomes(&self, status: EngineStatus, run: Option<i64>) {
        {
            let mut state = self.state();
            state.status = status;
            state.run = run;
        }
        self.say(Outbound::StatusUpdate { engine: self.id.clone(), status, run });
    }

    fn complain(&self, run: Option<i64>, error: String) {
        tracing::warn!(engine = self.id, run, error, "an engine met an error");
        self.state().last_error = Some(error.clone());
        self.say(Outbound::Error { engine: self.id.clone(), run, error });
    }
}
