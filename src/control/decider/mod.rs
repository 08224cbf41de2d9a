//! Rules decide: what a snapshot calls for, and which of it may be done now.
//!
//! Operators write rules in files (`rules/*.rhai`); [`RuleSet::load`] parses them in a sandbox, looks up every name
//! and field, and tries every clause on two example snapshots. In a cycle [`propose`] evaluates the rules against the
//! snapshot and [`plan()`] passes the proposals through the governors. The [`Decision`] records every proposal's fate
//! and what it was measured against, so that [`replay`] gives the same decision again.
//!
//! ```text
//! files ─▶ RuleBook ─▶ RuleSet ─┐
//!                    Snapshot ──┴▶ propose ─▶ Proposals ─┐
//!                                  Memory, Governors ────┴▶ plan ─▶ Decision ─▶ executor
//! ```

mod book;
mod call;
mod check;
mod convert;
mod decision;
mod error;
mod evaluate;
mod examples;
mod facts;
mod grammar;
mod load;
mod machine;
mod mentions;
mod operator;
mod plain;
mod plan;
mod propose;
mod rule_set;
pub mod rules;
mod sandbox;
mod shape;

pub use book::{Refresh, RuleBook};
pub use decision::{
    Breaker, Decision, Fate, HeldRule, Memory, PlannedAction, ProposalFate, Summary, Unreached, replay,
};
pub use error::{RuleError, RuleFailure};
pub use plan::plan;
pub(super) use propose::deductions;
pub use propose::{Proposals, propose};
pub use rule_set::{Mode, RuleInfo, RuleSet};

#[cfg(test)]
mod tests;
