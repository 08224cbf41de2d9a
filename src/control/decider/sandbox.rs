//! The engine that rules run in: no files, no clock, no output, no `eval`, no imports, and a bound on everything.

use std::any::TypeId;
use std::cell::RefCell;
use std::time::Duration;

use rhai::module_resolvers::DummyModuleResolver;
use rhai::packages::{
    BasicArrayPackage, BasicMapPackage, BasicMathPackage, CorePackage, LogicPackage, MoreStringPackage, Package,
};
use rhai::{Array, Dynamic, Engine, EvalAltResult, ImmutableString, Map, OptimizationLevel};

use super::grammar;
use crate::clock::SharedClock;

/// Operations of one rule in one cycle: a rule over ten rows takes about a hundred.
pub const MAX_OPERATIONS: u64 = 200_000;
/// Time of one rule in one cycle: far beyond what the operations take, for costly ones and a machine that stalls.
pub const WALL_TIME: Duration = Duration::from_millis(500);
/// Operations of all rules in one cycle: ten times one rule's, and some tenths of a second of the default interval.
pub const CYCLE_OPERATIONS: u64 = 2_000_000;
/// Time after which a cycle begins no further rule. With the last rule's time and that of `health.rhai` it stays within
/// three quarters of the default interval of two seconds.
pub const CYCLE_TIME: Duration = Duration::from_millis(500);
/// Time after which the trying out of a set is given up: a set that is loaded holds its cycle up.
pub const LOAD_TIME: Duration = Duration::from_millis(1_000);
/// Bytes of a text, or of all texts in one list or map; a section's texts fit in it several times.
pub(super) const MAX_STRING: usize = 64 * 1024;
/// Items of a list, with those of the lists in it.
const MAX_ARRAY: usize = 10_000;
/// Entries of a map, with those of the maps in it.
const MAX_MAP: usize = 1_000;
/// Functions that call each other. Times the nesting in each, this fits twice into a worker thread's stack of 2 MiB
/// even in a debug build; a test holds that.
const MAX_CALLS: usize = 4;
/// Nesting of one expression in a rule.
const MAX_DEPTH: usize = 32;
/// Nesting of one expression in a function or closure.
const MAX_FUNCTION_DEPTH: usize = 16;
/// The clock is read every so many operations.
const OPERATIONS_BETWEEN_LOOKS: u64 = 32;

/// Functions that rules may call, beside those that their own file defines.
#[rustfmt::skip]
pub(super) const FUNCTIONS: &[&str] = &[
    // any value
    "to_string", "to_debug", "type_of", "call", "Fn", "curry",
    // numbers
    "abs", "sign", "is_zero", "is_odd", "is_even", "min", "max", "floor", "ceiling", "round", "int", "fraction",
    "sqrt", "exp", "ln", "log", "to_int", "to_float", "parse_int", "parse_float", "is_nan", "is_finite",
    "is_infinite",
    // texts
    "len", "is_empty", "contains", "starts_with", "ends_with", "to_upper", "to_lower", "trim", "sub_string", "split",
    "index_of", "replace", "chars", "pad", "crop", "append",
    // lists and maps
    "push", "pop", "shift", "insert", "remove", "get", "set", "filter", "map", "reduce", "reduce_rev", "some", "all",
    "find", "find_map", "sort", "sort_desc", "order", "order_desc", "reverse", "extract", "dedup", "keys", "values",
    "range", "for_each", "drain", "retain", "clear", "truncate",
];

thread_local! {
    /// When the rule that this thread evaluates has to be done. Evaluation is synchronous, so one is enough.
    static DEADLINE: RefCell<Option<Deadline>> = const { RefCell::new(None) };
}

struct Deadline {
    clock: SharedClock,
    began: Duration,
    /// The last look between rules.
    looked: Duration,
    at: Duration,
}

/// While it lives, rules on this thread are watched by the clock.
pub(super) struct Watch {
    before: Option<Deadline>,
}

impl Watch {
    /// Without a clock (in a replay) only the operations are bounded.
    pub(super) fn start(clock: Option<&SharedClock>) -> Self {
        let deadline = clock.map(|clock| {
            let now = clock.elapsed();
            Deadline { clock: clock.clone(), began: now, looked: now, at: Duration::MAX }
        });
        Self { before: DEADLINE.replace(deadline) }
    }

    /// Looks at the clock: how long it has lived; nothing without a clock.
    pub(super) fn look(&self) -> Duration {
        DEADLINE.with_borrow_mut(|deadline| {
            deadline.as_mut().map_or(Duration::ZERO, |it| {
                it.looked = it.clock.elapsed();
                it.looked.saturating_sub(it.began)
            })
        })
    }

    /// The next rule begins, right after the last look.
    pub(super) fn next_rule(&self) {
        DEADLINE.with_borrow_mut(|deadline| {
            if let Some(deadline) = deadline {
                deadline.at = deadline.looked.saturating_add(WALL_TIME);
            }
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        DEADLINE.set(self.before.take());
    }
}

/// Whether a rule that went from `before` to `after` operations without the engine is out of time. It is looked at as
/// often as the engine looks.
pub(super) fn is_late(before: u64, after: u64) -> bool {
    before / OPERATIONS_BETWEEN_LOOKS != after / OPERATIONS_BETWEEN_LOOKS && past_deadline()
}

fn past_deadline() -> bool {
    DEADLINE.with_borrow(|deadline| deadline.as_ref().is_some_and(|it| it.clock.elapsed() > it.at))
}

/// An engine that knows the rule language and nothing of the machine.
pub(super) fn engine() -> Engine {
    let mut engine = Engine::new_raw();
    for package in [
        CorePackage::new().as_shared_module(),
        LogicPackage::new().as_shared_module(),
        BasicMathPackage::new().as_shared_module(),
        BasicArrayPackage::new().as_shared_module(),
        BasicMapPackage::new().as_shared_module(),
        MoreStringPackage::new().as_shared_module(),
    ] {
        engine.register_global_module(package);
    }
    // The optimizer would drop clauses that look constant, and with them the errors in them. Fast operators would
    // bypass the comparisons below.
    engine
        .set_optimization_level(OptimizationLevel::None)
        .set_fast_operators(false)
        .set_fail_on_invalid_map_property(true)
        .set_max_operations(MAX_OPERATIONS)
        .set_max_call_levels(MAX_CALLS)
        .set_max_expr_depths(MAX_DEPTH, MAX_FUNCTION_DEPTH)
        .set_max_string_size(MAX_STRING)
        .set_max_array_size(MAX_ARRAY)
        .set_max_map_size(MAX_MAP)
        .set_max_modules(0)
        .set_module_resolver(DummyModuleResolver::new())
        .on_print(|_| {})
        .on_debug(|_, _, _| {})
        .on_progress(|operations| {
            let late = operations.is_multiple_of(OPERATIONS_BETWEEN_LOOKS) && past_deadline();
            late.then_some(Dynamic::UNIT)
        });
    for symbol in ["eval", "import", "export", "print", "debug"] {
        engine.disable_symbol(symbol);
    }
    // `disable_symbol` does not reach a function that a package brings; a function pointer could still call it.
    engine.register_fn("sleep", |_: i64| refuse("sleep")).register_fn("sleep", |_: f64| refuse("sleep"));
    engine.register_fn("exit", || refuse("exit")).register_fn("exit", |_: Dynamic| refuse("exit"));
    refuse_mixed_comparisons(&mut engine);
    grammar::register(&mut engine);
    engine
}

fn refuse(name: &str) -> Result<(), Box<EvalAltResult>> {
    Err(format!("{name} is not available in rules").into())
}

/// Comparing a text with a number (or a list with a truth value, …) is a mistake in the rule, not `false`. Comparing
/// with `()`, the unknown, stays as in SQL: never less, never greater.
fn refuse_mixed_comparisons(engine: &mut Engine) {
    let kinds = [
        ("a text", TypeId::of::<ImmutableString>()),
        ("a number", TypeId::of::<i64>()),
        ("a number", TypeId::of::<f64>()),
        ("true or false", TypeId::of::<bool>()),
        ("a list", TypeId::of::<Array>()),
        ("a map", TypeId::of::<Map>()),
    ];
    for operator in ["==", "!=", "<", "<=", ">", ">="] {
        for (left, left_type) in kinds {
            for (right, right_type) in kinds.into_iter().filter(|(right, _)| *right != left) {
                engine.register_raw_fn(operator, [left_type, right_type], move |_, _| -> Result<bool, _> {
                    Err(format!("cannot compare {left} with {right} by {operator}").into())
                });
            }
        }
    }
}
