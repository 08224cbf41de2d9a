//! Runs the clauses of loaded rules: pure and deterministic, the same rules and snapshot give the same proposals.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rhai::{Array, Caches, Dynamic, Engine, EvalAltResult, EvalContext, Expr, Expression, Position, Scope};

use super::call;
use super::decision::{HEALTH_RULE, HeldRule, Origin, Unreached};
use super::error::{RuleError, RuleFailure, explain};
use super::facts::{self, Sections};
use super::rule_set::{Deduct, File, Rule, RuleSet};
use super::sandbox::{CYCLE_OPERATIONS, CYCLE_TIME, MAX_OPERATIONS, WALL_TIME, Watch};
use crate::clock::SharedClock;
use crate::control::action::Action;
use crate::control::snapshot::Snapshot;

/// Actions that one rule may propose in one cycle; far more than the blast radius lets through.
pub const MAX_PROPOSALS: usize = 1_000;
/// Proposals after which a cycle asks no further rule: each one's fate is recorded, and a record has an end.
const CYCLE_PROPOSALS: usize = 2_000;
/// Names of rules that were not reached; their number stands beside them, and the rest follow in the order of the set.
const MAX_NAMED: usize = 100;
/// Characters of a reason.
const MAX_REASON: usize = 500;

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
    let scope = facts::scope(snapshot, rules.rule_sections);
    let mut evaluation = Evaluation::new(&rules.engine, scope, clock, CYCLE_TIME);
    let mut entered: Option<&File> = None;
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
        if !entered.is_some_and(|entered| std::ptr::eq(entered, file)) {
            evaluation.enter(file);
            entered = Some(file);
        }
        if let Some(because) = unobserved(rule.sections, missing) {
            held.push((index, HeldRule { rule: rule.info.name.clone(), because }));
            continue;
        }
        if let Some(failure) = recorded.timed_out.iter().find(|failure| failure.rule == rule.info.name) {
            failures.push((index, failure.clone()));
            continue;
        }
        match evaluation.rule(rule, false) {
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

/// Why a clause could not be evaluated.
#[derive(Debug)]
pub(super) struct Broken {
    message: String,
    position: Position,
    timed_out: bool,
    /// An index past the end of a list.
    pub(super) out_of_bounds: bool,
}

impl Broken {
    fn new(position: Position, message: impl Into<String>) -> Self {
        Self { message: message.into(), position, timed_out: false, out_of_bounds: false }
    }
    pub(super) fn in_cycle(self, rule: &str, file: &str, line: usize) -> RuleFailure {
        let line = self.position.line().unwrap_or(line);
        let (message, timed_out) = (self.message, self.timed_out);
        RuleFailure { rule: rule.to_owned(), file: file.to_owned(), line, message, timed_out }
    }
    pub(super) fn at_load(self, file: &str, line: usize, what: &str) -> RuleError {
        let mut error = RuleError::at(file, self.position, format!("{what}: {}", self.message));
        if error.line == 0 {
            error.line = line;
        }
        error
    }
}

impl From<Box<EvalAltResult>> for Broken {
    fn from(error: Box<EvalAltResult>) -> Self {
        let (message, position, timed_out) = explain(&error);
        let out_of_bounds = matches!(error.unwrap_inner(), EvalAltResult::ErrorArrayBounds(..));
        Self { message, position, timed_out, out_of_bounds }
    }
}

/// One pass over rules: the engine's state, with the snapshot in scope.
pub(super) struct Evaluation<'a> {
    engine: &'a Engine,
    global: rhai::GlobalRuntimeState,
    caches: Caches,
    /// The file in sight, whose caches these are.
    file: Option<&'a File>,
    scope: Scope<'static>,
    sections: usize,
    watch: Watch,
    /// Operations of the rules so far.
    spent: u64,
    /// Time of all rules together.
    time: Duration,
}

impl Drop for Evaluation<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<'a> Evaluation<'a> {
    /// With a clock, no rule is to begin after `time`; who asks is told by [`Evaluation::exhausted`].
    pub(super) fn new(engine: &'a Engine, scope: Scope<'static>, clock: Option<&SharedClock>, time: Duration) -> Self {
        Self {
            engine,
            global: engine.new_global_runtime_state(),
            caches: Caches::new(),
            file: None,
            sections: scope.len(),
            scope,
            watch: Watch::start(clock),
            spent: 0,
            time,
        }
    }

    /// Why no further rule is asked: what all together may take is used up.
    pub(super) fn exhausted(&self, operations: u64) -> Option<String> {
        if self.spent >= operations {
            Some(format!("the rules before them took the {operations} operations that all have together"))
        } else if self.watch.elapsed() > self.time {
            Some(format!("the rules before them took the {} ms that all have together", self.time.as_millis()))
        } else {
            None
        }
    }

    /// Operations of the rules so far.
    pub(super) fn spent(&self) -> u64 {
        self.spent
    }

    /// Brings a file's constants and functions into sight, and the last one's out of it.
    pub(super) fn enter(&mut self, file: &'a File) {
        self.leave();
        self.scope.rewind(self.sections);
        for (name, value) in &file.constants {
            self.scope.push_constant_dynamic(name.clone(), value.clone());
        }
        self.global = self.engine.new_global_runtime_state();
        self.global.lib.extend(file.functions.clone());
        // Which function each operator and call means follows from the file and the types of the values, so what one
        // cycle looked up serves the next. Whoever evaluates beside finds none and begins anew.
        self.caches = file.caches.lock().map(|mut caches| std::mem::take(&mut *caches)).unwrap_or_default();
        self.file = Some(file);
    }

    /// Keeps what was looked up for the next pass over the file.
    fn leave(&mut self) {
        if let Some(mut kept) = self.file.take().and_then(|file| file.caches.lock().ok()) {
            *kept = std::mem::take(&mut self.caches);
            kept.rewind_fn_resolution_caches(1);
        }
    }

    /// The value of a file's constant.
    pub(super) fn constant(&mut self, expression: &Expr) -> Result<Dynamic, Broken> {
        self.guarded(|evaluation| Ok(evaluation.value(expression)?))
    }

    fn value(&mut self, expression: &Expr) -> Result<Dynamic, Box<EvalAltResult>> {
        let mut context = EvalContext::new(self.engine, &mut self.global, &mut self.caches, &mut self.scope, None);
        context.eval_expression_tree(&Expression::from(expression))
    }

    /// What a rule proposes. With `every_clause` its guard is evaluated and then not heeded.
    pub(super) fn rule(&mut self, rule: &Rule, every_clause: bool) -> Result<Vec<(Action, String)>, Broken> {
        self.guarded(|evaluation| evaluation.proposals(rule, every_clause))
    }

    /// Gives a rule its own budget, and keeps whatever happens in it from the next one: even a panic of the engine.
    fn guarded<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, Broken>) -> Result<T, Broken> {
        self.global.num_operations = 0;
        self.watch.next_rule();
        let depth = self.scope.len();
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut *self)));
        self.scope.rewind(depth);
        self.spent = self.spent.saturating_add(self.global.num_operations);
        result.unwrap_or_else(|_| {
            // What the engine was doing is lost; its state is begun anew, the scope is only what was pushed.
            let functions = std::mem::take(&mut self.global.lib);
            self.global = self.engine.new_global_runtime_state();
            self.global.lib = functions;
            self.caches = Caches::new();
            Err(Broken::new(Position::NONE, "the rule engine panicked; standard error has the cause"))
        })
    }

    fn proposals(&mut self, rule: &Rule, every_clause: bool) -> Result<Vec<(Action, String)>, Broken> {
        let mut found = Vec::new();
        let Some((name, list)) = &rule.each else {
            found.extend(self.proposal(rule, every_clause)?);
            return Ok(found);
        };
        let at = list.start_position();
        let list = self.value(list)?.flatten();
        if !list.is_array() {
            return Err(Broken::new(at, format!("each goes through a list, not {}", call::described(&list))));
        }
        let items = list.cast::<Array>();
        let depth = self.scope.len();
        for item in items {
            self.scope.push_constant_dynamic(name.clone(), item);
            let proposal = self.proposal(rule, every_clause)?;
            self.scope.rewind(depth);
            found.extend(proposal);
            if found.len() > MAX_PROPOSALS {
                return Err(Broken::new(rule.then_at, format!("proposes more than {MAX_PROPOSALS} actions")));
            }
        }
        Ok(found)
    }

    fn proposal(&mut self, rule: &Rule, every_clause: bool) -> Result<Option<(Action, String)>, Broken> {
        if let Some(when) = &rule.when
            && !self.truth(when)?
            && !every_clause
        {
            return Ok(None);
        }
        let mut arguments = Vec::with_capacity(rule.arguments.len());
        for argument in &rule.arguments {
            arguments.push(self.value(argument)?);
        }
        let action = call::build(rule.kind, &arguments).map_err(|message| Broken::new(rule.then_at, message))?;
        Ok(Some((action, self.reason(&rule.because)?)))
    }

    fn truth(&mut self, expression: &Expr) -> Result<bool, Broken> {
        let value = self.value(expression)?;
        value.as_bool().map_err(|_| {
            let got = call::described(&value);
            Broken::new(expression.start_position(), format!("when needs true or false, not {got}"))
        })
    }

    fn reason(&mut self, expression: &Expr) -> Result<String, Broken> {
        let value = self.value(expression)?;
        let Ok(text) = value.into_immutable_string() else {
            return Err(Broken::new(expression.start_position(), "because needs a text"));
        };
        Ok(text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(MAX_REASON).collect())
    }

    /// The points that a deduction takes off, with the reason; nothing when it does not apply.
    pub(super) fn deduct(&mut self, deduct: &Deduct, every_clause: bool) -> Result<Option<(i64, String)>, Broken> {
        self.guarded(|evaluation| evaluation.deduction(deduct, every_clause))
    }

    fn deduction(&mut self, deduct: &Deduct, every_clause: bool) -> Result<Option<(i64, String)>, Broken> {
        let times = if deduct.per_item {
            let value = self.value(&deduct.value)?;
            if value.is_unit() {
                0
            } else {
                value.as_int().map_err(|_| {
                    let got = call::described(&value);
                    Broken::new(deduct.value.start_position(), format!("for each needs a whole number, not {got}"))
                })?
            }
        } else {
            i64::from(self.truth(&deduct.value)?)
        };
        let reason = if times > 0 || every_clause { Some(self.reason(&deduct.because)?) } else { None };
        Ok(reason.filter(|_| times > 0).map(|reason| (deduct.points.saturating_mul(times), reason)))
    }
}

/// What `health.rhai` takes off and why, what failed in it, and the sections that could not be read.
pub(in crate::control) fn deductions(
    rules: &RuleSet,
    snapshot: &Snapshot,
    clock: &SharedClock,
) -> (Vec<(i64, String)>, Vec<RuleFailure>, Vec<String>) {
    let missing = facts::unobserved(snapshot);
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    let scope = facts::scope(snapshot, rules.health_sections);
    let mut evaluation = Evaluation::new(&rules.engine, scope, Some(clock), WALL_TIME);
    for file in rules.files.iter().filter(|file| !file.deductions.is_empty()) {
        evaluation.enter(file);
        for deduct in file.deductions.iter().filter(|deduct| unobserved(deduct.sections, missing).is_none()) {
            // Together they have what one rule has; the score without the rest is said to be one.
            if let Some(because) = evaluation.exhausted(MAX_OPERATIONS) {
                let broken = Broken::new(Position::NONE, format!("not asked, with those below it: {because}"));
                failures.push(broken.in_cycle(HEALTH_RULE, &file.name, deduct.line));
                break;
            }
            match evaluation.deduct(deduct, false) {
                Ok(taken) => found.extend(taken),
                Err(broken) => failures.push(broken.in_cycle(HEALTH_RULE, &file.name, deduct.line)),
            }
        }
    }
    (found, failures, missing.names().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_engine_is_one_rules_failure() {
        let set = RuleSet::built_in();
        let snapshot = super::super::examples::full();
        let mut evaluation = Evaluation::new(&set.engine, facts::scope(&snapshot, set.rule_sections), None, CYCLE_TIME);
        let queue = set.files.iter().find(|file| file.name == "queue.rhai").expect("the queue's rules");
        evaluation.enter(queue);
        let broken = evaluation
            .guarded(|evaluation| -> Result<(), Broken> {
                evaluation.scope.push_constant("left", 1);
                panic!("as an engine does")
            })
            .expect_err("a failure");
        assert!(broken.message.contains("panicked"));
        assert!(evaluation.scope.get("left").is_none());
        assert_eq!(evaluation.rule(&queue.rules[0], false).expect("the next rule").len(), 1);
    }
}
