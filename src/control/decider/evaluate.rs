//! Runs the clauses of loaded rules: plainly where that can be, else by the engine.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rhai::{Array, Dynamic, Engine, EvalAltResult, Expr, Position};

use super::call;
use super::error::{RuleError, RuleFailure, explain};
use super::facts::Facts;
use super::machine::Machine;
use super::plain::{Formula, Item, Reading, Value};
use super::rule_set::{Deduct, Each, File, Rule};
use super::sandbox::{self, MAX_OPERATIONS, Watch};
use crate::clock::SharedClock;
use crate::control::action::Action;

/// Actions that one rule may propose in one cycle; far more than the blast radius lets through.
pub const MAX_PROPOSALS: usize = 1_000;
/// Characters of a reason.
const MAX_REASON: usize = 500;

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
    pub(super) fn new(position: Position, message: impl Into<String>) -> Self {
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

/// One pass over rules, with the snapshot in sight.
pub(super) struct Evaluation<'a> {
    engine: &'a Engine,
    facts: &'a Facts<'a>,
    /// What is not evaluated plainly; most passes need none of it.
    machine: Option<Machine<'a>>,
    /// The item of the rule's `each` is in the machine's scope.
    pushed: bool,
    watch: Watch,
    /// Operations of the rule that is asked.
    operations: u64,
    /// Operations of the rules so far.
    spent: u64,
    /// Time of all rules together.
    time: Duration,
}

/// Where a clause stands: its file, and the item that the rule's `each` is at.
#[derive(Clone, Copy)]
struct Sight<'a, 'i> {
    file: &'a File,
    item: Option<(&'a Each, Item<'i>)>,
}

impl<'a> Evaluation<'a> {
    /// With a clock, no rule is to begin after `time`; who asks is told by [`Evaluation::exhausted`].
    pub(super) fn new(engine: &'a Engine, facts: &'a Facts<'a>, clock: Option<&SharedClock>, time: Duration) -> Self {
        let watch = Watch::start(clock);
        Self { engine, facts, machine: None, pushed: false, watch, operations: 0, spent: 0, time }
    }

    /// Why no further rule is asked: what all together may take is used up.
    pub(super) fn exhausted(&self, operations: u64) -> Option<String> {
        if self.spent >= operations {
            Some(format!("the rules before them took the {operations} operations that all have together"))
        } else if self.watch.look() > self.time {
            Some(format!("the rules before them took the {} ms that all have together", self.time.as_millis()))
        } else {
            None
        }
    }

    /// Operations of the rules so far.
    pub(super) fn spent(&self) -> u64 {
        self.spent
    }

    /// The value of a file's constant.
    pub(super) fn constant(&mut self, file: &'a File, expression: &Expr) -> Result<Dynamic, Broken> {
        self.guarded(|evaluation| evaluation.asked(expression, Sight { file, item: None }))
    }

    /// What a rule proposes. With `every_clause` its guard is evaluated and then not heeded.
    pub(super) fn rule(
        &mut self,
        file: &'a File,
        rule: &'a Rule,
        every_clause: bool,
    ) -> Result<Vec<(Action, String)>, Broken> {
        self.guarded(|evaluation| evaluation.proposals(file, rule, every_clause))
    }

    /// The points that a deduction takes off, with the reason; nothing when it does not apply.
    pub(super) fn deduct(
        &mut self,
        file: &'a File,
        deduct: &'a Deduct,
        every_clause: bool,
    ) -> Result<Option<(i64, String)>, Broken> {
        self.guarded(|evaluation| evaluation.deduction(file, deduct, every_clause))
    }

    /// Gives a rule its own budget, and keeps whatever happens in it from the next one: even a panic of the engine.
    fn guarded<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, Broken>) -> Result<T, Broken> {
        self.operations = 0;
        self.watch.next_rule();
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut *self)));
        self.forget_item();
        self.spent = self.spent.saturating_add(self.operations);
        result.unwrap_or_else(|_| {
            if let Some(machine) = self.machine.take() {
                machine.abandon();
            }
            Err(Broken::new(Position::NONE, "the rule engine panicked; standard error has the cause"))
        })
    }

    /// The value of a clause, if it can be had plainly.
    fn plainly<'i>(&mut self, formula: &'i Formula, sight: Sight<'a, 'i>) -> Result<Option<Value<'i>>, Broken>
    where
        'a: 'i,
    {
        let Some(plain) = &formula.plain else { return Ok(None) };
        let mut reading = Reading { facts: self.facts, item: sight.item.map(|(_, item)| item), operations: 0 };
        let found = reading.value(plain);
        let before = self.operations;
        self.operations += reading.operations;
        let at = || formula.written.start_position();
        if self.operations > MAX_OPERATIONS {
            return Err(Box::new(EvalAltResult::ErrorTooManyOperations(at())).into());
        }
        if sandbox::is_late(before, self.operations) {
            return Err(Box::new(EvalAltResult::ErrorTerminated(Dynamic::UNIT, at())).into());
        }
        Ok(found)
    }

    /// The value of an expression, from the engine.
    fn asked(&mut self, expression: &Expr, sight: Sight<'a, '_>) -> Result<Dynamic, Broken> {
        let machine = self.machine.get_or_insert_with(|| Machine::new(self.engine, self.facts.scope()));
        machine.enter(sight.file);
        if let Some((each, item)) = sight.item.filter(|_| !self.pushed) {
            let value = match item {
                Item::Fact(fact) => self.facts.dynamic(fact, each.items).unwrap_or(Dynamic::UNIT),
                Item::Held(value) => value.clone(),
            };
            machine.scope.push_constant_dynamic(each.name.clone(), value);
            self.pushed = true;
        }
        machine.global.num_operations = self.operations;
        let depth = machine.scope.len();
        let result = machine.value(expression);
        machine.scope.rewind(depth);
        self.operations = machine.global.num_operations;
        Ok(result?)
    }

    fn forget_item(&mut self) {
        if let Some(machine) = self.machine.as_mut().filter(|_| self.pushed) {
            machine.scope.rewind(machine.scope.len() - 1);
        }
        self.pushed = false;
    }

    fn proposals(
        &mut self,
        file: &'a File,
        rule: &'a Rule,
        every_clause: bool,
    ) -> Result<Vec<(Action, String)>, Broken> {
        let mut found = Vec::new();
        let Some(each) = &rule.each else {
            found.extend(self.proposal(rule, Sight { file, item: None }, every_clause)?);
            return Ok(found);
        };
        let sight = Sight { file, item: None };
        if let Some(Value::List { first, count }) = self.plainly(&each.list, sight)? {
            for fact in &self.facts.values[first..first + count] {
                self.item(rule, Sight { file, item: Some((each, Item::Fact(fact))) }, every_clause, &mut found)?;
            }
            return Ok(found);
        }
        let list = self.asked(&each.list.written, sight)?.flatten();
        if !list.is_array() {
            let at = each.list.written.start_position();
            return Err(Broken::new(at, format!("each goes through a list, not {}", call::described(&list))));
        }
        for value in &list.cast::<Array>() {
            self.item(rule, Sight { file, item: Some((each, Item::Held(value))) }, every_clause, &mut found)?;
        }
        Ok(found)
    }

    fn item(
        &mut self,
        rule: &'a Rule,
        sight: Sight<'a, '_>,
        every_clause: bool,
        found: &mut Vec<(Action, String)>,
    ) -> Result<(), Broken> {
        let proposal = self.proposal(rule, sight, every_clause);
        self.forget_item();
        found.extend(proposal?);
        if found.len() > MAX_PROPOSALS {
            return Err(Broken::new(rule.then_at, format!("proposes more than {MAX_PROPOSALS} actions")));
        }
        Ok(())
    }

    fn proposal(
        &mut self,
        rule: &'a Rule,
        sight: Sight<'a, '_>,
        every_clause: bool,
    ) -> Result<Option<(Action, String)>, Broken> {
        if let Some(when) = &rule.when
            && !self.truth(when, sight)?
            && !every_clause
        {
            return Ok(None);
        }
        let mut arguments = Vec::with_capacity(rule.arguments.len());
        for argument in &rule.arguments {
            arguments.push(self.value(argument, sight)?);
        }
        let action = call::build(rule.kind, &arguments).map_err(|message| Broken::new(rule.then_at, message))?;
        Ok(Some((action, self.reason(&rule.because, sight)?)))
    }

    fn deduction(
        &mut self,
        file: &'a File,
        deduct: &'a Deduct,
        every_clause: bool,
    ) -> Result<Option<(i64, String)>, Broken> {
        let sight = Sight { file, item: None };
        let times = if deduct.per_item {
            let value = self.value(&deduct.value, sight)?;
            if value.is_unit() {
                0
            } else {
                value.as_int().map_err(|_| {
                    let at = deduct.value.written.start_position();
                    Broken::new(at, format!("for each needs a whole number, not {}", call::described(&value)))
                })?
            }
        } else {
            i64::from(self.truth(&deduct.value, sight)?)
        };
        let reason = if times > 0 || every_clause { Some(self.reason(&deduct.because, sight)?) } else { None };
        Ok(reason.filter(|_| times > 0).map(|reason| (deduct.points.saturating_mul(times), reason)))
    }

    fn value(&mut self, formula: &Formula, sight: Sight<'a, '_>) -> Result<Dynamic, Broken> {
        match self.plainly(formula, sight)?.and_then(Value::into_dynamic) {
            Some(value) => Ok(value),
            None => self.asked(&formula.written, sight),
        }
    }

    fn truth(&mut self, formula: &Formula, sight: Sight<'a, '_>) -> Result<bool, Broken> {
        if let Some(Value::Truth(truth)) = self.plainly(formula, sight)? {
            return Ok(truth);
        }
        let value = self.asked(&formula.written, sight)?;
        value.as_bool().map_err(|_| {
            let got = call::described(&value);
            Broken::new(formula.written.start_position(), format!("when needs true or false, not {got}"))
        })
    }

    fn reason(&mut self, formula: &Formula, sight: Sight<'a, '_>) -> Result<String, Broken> {
        if let Some(Value::Text(text)) = self.plainly(formula, sight)? {
            return Ok(in_one_line(text));
        }
        let value = self.asked(&formula.written, sight)?;
        let Ok(text) = value.into_immutable_string() else {
            return Err(Broken::new(formula.written.start_position(), "because needs a text"));
        };
        Ok(in_one_line(Cow::Borrowed(&text)))
    }
}

/// A reason without line breaks, and not longer than a reason may be.
fn in_one_line(text: Cow<'_, str>) -> String {
    // Control characters lie below the space, at 0x7f, and behind 0xc2: what has none of these bytes is taken as it is.
    if text.len() <= MAX_REASON && !text.bytes().any(|byte| byte < b' ' || matches!(byte, 0x7f | 0xc2)) {
        return text.into_owned();
    }
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rule_set::RuleSet;
    use super::super::sandbox::CYCLE_TIME;
    use super::*;

    #[test]
    fn a_panic_of_the_engine_is_one_rules_failure() {
        let set = RuleSet::built_in();
        let snapshot = super::super::examples::full();
        let facts = Facts::of(&snapshot, &set.mentions, set.sections);
        let mut evaluation = Evaluation::new(&set.engine, &facts, None, CYCLE_TIME);
        let queue = set.files.iter().find(|file| file.name == "queue.rhai").expect("the queue's rules");
        let broken = evaluation
            .guarded(|evaluation| -> Result<(), Broken> {
                let mut machine = Machine::new(&set.engine, facts.scope());
                machine.enter(queue);
                machine.scope.push_constant("left", 1);
                evaluation.machine = Some(machine);
                panic!("as an engine does")
            })
            .expect_err("a failure");
        assert!(broken.message.contains("panicked"));
        let sight = Sight { file: queue, item: None };
        assert!(evaluation.asked(&queue.rules[0].because.written, sight).is_ok(), "the engine goes on");
        assert!(evaluation.machine.as_ref().expect("another one").scope.get("left").is_none());
        assert_eq!(evaluation.rule(queue, &queue.rules[0], false).expect("the next rule").len(), 1);
    }
}
