//! The loop: every interval, one leader looks, decides, acts and writes down.
//!
//! ```text
//! runner ── tick or request ──▶ cycle: monitor ──▶ decider ──▶ executor ──▶ ledger, cycles
//!    │                                  │             │            │
//!  leader (lease, term), switch    planes' observe  rules/*.rhai  planes' act, one transaction each
//! ```
//!
//! | room | holds |
//! |---|---|
//! | `snapshot` | what one look saw, section by section |
//! | `monitor` | the look |
//! | `health` | the score, by `health.rhai` |
//! | `decider` | the rule language, its sandbox, proposals and the plan |
//! | `action` | what can be done |
//! | `executor` | doing it, fenced by the term |
//! | `governors` | what cooldowns, budgets and breakers remember |
//! | `cycle`, `cycles` | one cycle from end to end; its record |
//! | `runner` | when a cycle runs |
//! | `gap` | a time without cycles, and what is said of it |
//! | `leader`, `switch`, `requests` | who runs it; whether; who asked for one |
//! | `upkeep` | roll-ups, retention, periodic reconciliation |
//! | `orchestrator` | the public face |

pub mod action;
mod cycle;
pub mod cycles;
pub mod decider;
mod executor;
mod gap;
mod governors;
pub mod health;
mod leader;
mod monitor;
pub mod orchestrator;
mod requests;
mod runner;
pub mod snapshot;
mod switch;
#[cfg(test)]
mod tests;
mod upkeep;

pub use cycle::{CycleError, CycleRunner, ENGINE_VERSION, Occasion};
pub use cycles::Trigger;
pub use executor::{ActionResult, Execution, Executor};
pub use governors::{ActionOutcome, open_breakers};
pub use leader::acquire as acquire_lead;
pub use monitor::Monitor;
pub use runner::{Lead, Mode, Runner, RunnerParts};
pub use switch::initialise as initialise_switch;
pub use upkeep::{Upkeep, fold_tallies, forget_old};
