//! The health score: 100, less what `health.rhai` takes off.

use super::decider::{RuleFailure, RuleSet, deductions};
use super::snapshot::{Deduction, HealthStatus, Snapshot};
use crate::clock::SharedClock;

/// From this score on the platform is healthy.
const HEALTHY: i64 = 80;
/// Below this score it is critical.
const CRITICAL: i64 = 50;

/// Works out `snapshot.system` from the other sections. Deductions that need an unobserved section are skipped, and
/// then nothing better than `unknown` is claimed. Answers the deductions that failed.
pub fn assess_health(rules: &RuleSet, snapshot: &mut Snapshot, clock: &SharedClock) -> Vec<RuleFailure> {
    let (found, failures, unobserved) = deductions(rules, snapshot, clock);
    let taken = found.iter().fold(0_i64, |sum, (points, _)| sum.saturating_add(*points));
    let score = 100_i64.saturating_sub(taken).clamp(0, 100);
    snapshot.system.health_score = score;
    snapshot.system.status = status(score, unobserved.is_empty());
    snapshot.system.deductions = found.into_iter().map(|(points, reason)| Deduction { points, reason }).collect();
    snapshot.system.unobserved = unobserved;
    failures
}

fn status(score: i64, everything_observed: bool) -> HealthStatus {
    match score {
        ..CRITICAL => HealthStatus::Critical,
        _ if !everything_observed => HealthStatus::Unknown,
        HEALTHY.. => HealthStatus::Healthy,
        _ => HealthStatus::Degraded,
    }
}
