//! The decider through its public face.

mod agreement;
mod governing;
mod heuristics;
mod hostile;
mod loading;
mod mutations;
mod pace;
mod reloading;
mod replaying;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::DateTime;

use super::*;
use crate::clock::{ManualClock, SharedClock};
use crate::control::health::assess_health;
use crate::control::snapshot::Snapshot;

/// An empty platform, everything observed.
fn quiet() -> Snapshot {
    super::examples::empty()
}

/// A clock that stands still: no rule runs out of time.
fn still() -> SharedClock {
    ManualClock::at(DateTime::UNIX_EPOCH)
}

/// A set of one file, `test.rhai`.
fn load(source: &str) -> Result<RuleSet, Vec<RuleError>> {
    RuleSet::load(&BTreeMap::from([("test.rhai".to_owned(), source.to_owned())]))
}

/// The same, and it must be good.
fn good(source: &str) -> RuleSet {
    load(source).unwrap_or_else(|errors| panic!("{}", lines(&errors)))
}

/// Errors as an operator reads them.
fn lines(errors: &[RuleError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What is wrong with a file.
fn refused(source: &str) -> String {
    match load(source) {
        Ok(_) => panic!("it was taken:\n{source}"),
        Err(errors) => lines(&errors),
    }
}

/// Health, then proposals, then a plan without memory under the default governors.
fn decide(rules: &RuleSet, snapshot: &mut Snapshot) -> Decision {
    let failures = assess_health(rules, snapshot, &still());
    assert_eq!(failures, [], "health.rhai");
    plan(propose(rules, snapshot, &still(), None), &Memory::default(), &Default::default(), snapshot.at)
}

/// `kind target` of each planned action, in the order of the plan.
fn planned(decision: &Decision) -> Vec<String> {
    decision.actions.iter().map(|action| format!("{} {}", action.action.kind(), action.target)).collect()
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}
