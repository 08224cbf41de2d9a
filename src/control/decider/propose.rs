//! Asks the rules in order: pure and deterministic, the same rules and snapshot give the same proposals.

use rhai::Position;

use super::decision::{HEALTH_RULE, HeldRule, Origin, Unreached};
use super::error::RuleFailure;
use super::evaluate::{Broken, Evaluation};
use super::facts::{self, Facts, Sections};
use super::rule_set::{File, Rule, RuleSet};
use super::sandbox::{CYCLE_OPERATIONS, CYCLE_TIME, MAX_OPERATIONS, WALL_TIME};
use crate::clock::SharedClock;
use crate::control::action::Action;
use crate::control::snapshot::Snapshot;

/// Proposals after which a cycle asks no further rule: each one's fate is recorded, and a record has an end.
const CYCLE_PROPOSALS: usize = 2_000;
/// Names of rules that were not reached; their number stands beside them, and the rest follow in the order of the set.
const MAX_NAMED: usize = 100;

/// What a rule wants done and why, before the governors.
#[derive(Debug, Clone)]
pub struct Proposal {
    pub(super) origin: Origin,
    pub(super) action: Action,
    pub(super) reason: String,
    /// How long the target has waited, in seconds, where the snapshot tells.
    pub(super) age_seconds: u64,
}

/// What all rules want, with the rules that could not be asked.
#[derive(Debug, Clone, Default)]
pub struct Proposals {
    pub(super) items: Vec<Proposal>,
    pub(super) held_rules: Vec<HeldRule>,
    pub(super) failures: Vec<RuleFailure>,
    pub(super) began_with: Option<String>,
    pub(super) unreached: Option<Unreached>,
    pub(super) rules_hash: String,
}

impl Proposals {
    /// No rule proposed anything: the governors need no memory.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
    /// The pairs of rule and target whose cooldown matters now.
    pub fn rules_and_targets(&self) -> Vec<(String, String)> {
        self.items.iter().map(|item| (item.origin.rule.clone(), item.action.target())).collect()
    }
    /// The kinds of action proposed, each once, in order of appearance.
    pub fn kinds(&self) -> Vec<&'static str> {
        let mut kinds = Vec::new();
        for item in &self.items {
            if !kinds.contains(&item.action.kind()) {
                kinds.push(item.action.kind());
            }
        }
        kinds
    }
    /// Rules that failed, in order.
    pub fn failures(&self) -> &[RuleFailure] {
        &self.failures
    }
    /// Adds what failed elsewhere in the same cycle, e.g. in `health.rhai`.
    pub fn add_failures(&mut self, failures: Vec<RuleFailure>) {
        self.failures.splice(0..0, failures);
    }
}

/// Asks every rule, beginning with the one named `first`: the one that the last cycle did not reach. Rules that mention
/// an unobserved section are held, failing ones reported; neither stops others. What all rules may take together has
/// bounds; rules that are not reached within them are named, and wait for the next cycle.
pub fn propose(rules: &RuleSet, snapshot: &Snapshot, clock: &SharedClock, first: Option<&str>) -> Proposals {
    propose_with(rules, snapshot, Some(clock), first, &Recorded::default())
}

/// What a cycle recorded of its own pace, which a replay takes over.
#[derive(Debug, Default)]
pub(super) struct Recorded<'a> {
    /// Rules that ran out of time.
    pub(super) timed_out: Vec<RuleFailure>,
    /// Where the cycle stopped.
    pub(super) unreached: Option<&'a Unreached>,
}

/// As [`propose`]; rules fail and wait as they did then.
pub(super) fn propose_with(
    rules: &RuleSet,
    snapshot: &Snapshot,
    clock: Option<&SharedClock>,
    first: Option<&str>,
    recorded: &Recorded<'_>,
) -> Proposals {
    let missing = facts::unobserved(snapshot);
    let all: Vec<(&File, &Rule)> =
        rules.files.iter().flat_map(|file| file.rules.iter().map(move |rule| (file, rule))).collect();
    let begin = first.and_then(|name| all.iter().position(|(_, rule)| rule.info.name == name)).unwrap_or(0);
    let mut proposals = Proposals {
        rules_hash: rules.hash().to_owned(),
        began_with: (begin > 0).then(|| all[begin].1.info.name.clone()),
        ..Proposals::default()
    };
    let (mut items, mut held, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    let facts = Facts::of(snapshot, &rules.mentions, rules.sections);
    let mut evaluation = Evaluation::new(&rules.engine, &facts, clock, CYCLE_TIME);
    let order = (begin..all.len()).chain(0..begin);
    for (place, index) in order.clone().enumerate() {
        let (file, rule) = all[index];
        let stop = match recorded.unreached {
            Some(then) if then.rules.first() == Some(&rule.info.name) => Some(then.because.clone()),
            _ if items.len() >= CYCLE_PROPOSALS => {
                Some(format!("the rules before them propose {} actions", items.len()))
            }
            _ => evaluation.exhausted(CYCLE_OPERATIONS),
        };
        // The first one is always asked, so that every rule has its turn.
        if let Some(because) = stop.filter(|_| place > 0) {
            let names = order.skip(place).take(MAX_NAMED).map(|index| all[index].1.info.name.clone());
            proposals.unreached = Some(Unreached { count: all.len() - place, because, rules: names.collect() });
            break;
        }
        if let Some(because) = unobserved(rule.sections, missing) {
            held.push((index, HeldRule { rule: rule.info.name.clone(), because }));
            continue;
        }
        if let Some(failure) = recorded.timed_out.iter().find(|failure| failure.rule == rule.info.name) {
            failures.push((index, failure.clone()));
            continue;
        }
        match evaluation.rule(file, rule, false) {
            Ok(found) => items.extend(found.into_iter().map(|(action, reason)| {
                let age_seconds = age(&action, snapshot);
                (index, Proposal { origin: Origin::from(&rule.info), age_seconds, action, reason })
            })),
            Err(broken) => failures.push((index, broken.in_cycle(&rule.info.name, &file.name, rule.info.line))),
        }
    }
    proposals.items = in_order(items);
    proposals.held_rules = in_order(held);
    proposals.failures = in_order(failures);
    proposals
}

/// As the set has them, whichever rule came first: where a cycle begins changes nothing but who is reached.
fn in_order<T>(mut found: Vec<(usize, T)>) -> Vec<T> {
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, item)| item).collect()
}

pub(super) fn unobserved(needed: Sections, missing: Sections) -> Option<String> {
    let missing = needed.common(missing);
    (!missing.is_empty()).then(|| {
        let names: Vec<&str> = missing.names().collect();
        match names.as_slice() {
            [one] => format!("section {one} was not observed"),
            several => format!("sections {} were not observed", several.join(", ")),
        }
    })
}

/// How long the publication that the action is about has waited; 0 where the snapshot does not tell.
fn age(action: &Action, snapshot: &Snapshot) -> u64 {
    let (Action::RetryFailedLog { log_id } | Action::ForcePublish { log_id }) = action else { return 0 };
    let Some(logs) = &snapshot.publish_logs else { return 0 };
    let stuck =
        logs.stuck.iter().find(|log| log.id == *log_id).map(|log| log.minutes.unsigned_abs().saturating_mul(60));
    let failed = || logs.retryable.iter().find(|log| log.id == *log_id);
    stuck.or_else(|| failed().map(|log| snapshot.at.since(log.failed_at).as_secs())).unwrap_or(0)
}

/// What `health.rhai` takes off and why, what failed in it, and the sections that could not be read.
pub(in crate::control) fn deductions(
    rules: &RuleSet,
    snapshot: &Snapshot,
    clock: &SharedClock,
) -> (Vec<(i64, String)>, Vec<RuleFailure>, Vec<String>) {
    let missing = facts::unobserved(snapshot);
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    let facts = Facts::of(snapshot, &rules.mentions, rules.sections);
    let mut evaluation = Evaluation::new(&rules.engine, &facts, Some(clock), WALL_TIME);
    for file in rules.files.iter().filter(|file| !file.deductions.is_empty()) {
        for deduct in file.deductions.iter().filter(|deduct| unobserved(deduct.sections, missing).is_none()) {
            // Together they have what one rule has; the score without the rest is said to be one.
            if let Some(because) = evaluation.exhausted(MAX_OPERATIONS) {
                let broken = Broken::new(Position::NONE, format!("not asked, with those below it: {because}"));
                failures.push(broken.in_cycle(HEALTH_RULE, &file.name, deduct.line));
                break;
            }
            match evaluation.deduct(file, deduct, false) {
                Ok(taken) => found.extend(taken),
                Err(broken) => failures.push(broken.in_cycle(HEALTH_RULE, &file.name, deduct.line)),
            }
        }
    }
    (found, failures, missing.names().map(str::to_owned).collect())
}
