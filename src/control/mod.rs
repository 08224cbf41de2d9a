//! The loop.

pub mod action;
pub mod cycles;
pub mod decider;
pub mod orchestrator;
pub mod snapshot;
