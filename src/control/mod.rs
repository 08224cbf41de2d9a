//! The loop.

pub mod action;
pub mod decider;
pub mod health;
pub mod orchestrator;
pub mod snapshot;
