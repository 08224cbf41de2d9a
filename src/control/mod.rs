//! The loop.

pub mod action;
pub mod decider;
pub mod orchestrator;
pub mod snapshot;
