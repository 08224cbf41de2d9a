//! A definition made ready to run: every expression read, every name looked up, every fault named with its place.
//!
//! Here is what comes of it; `check` looks through the definition, `inputs` checks what a run is given.

mod check;
mod inputs;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::definition::{Definition, Fault, Retry, Step, Task};
use super::expression::{Expression, Template};
use super::graph::Graph;
use check::{Compiler, Seen};
use inputs::{check_inputs, take_input};

/// Steps of one pipeline.
pub const MAX_STEPS: usize = 10_000;
/// Letters of an id.
const MAX_ID: usize = 200;

/// A definition that was found good.
#[derive(Debug)]
pub struct Pipeline {
    pub id: String,
    pub version: i64,
    pub definition: Definition,
    pub graph: Graph,
    /// Positions of the steps by level.
    pub levels: Vec<Vec<usize>>,
    pub(super) steps: Vec<Ready>,
    pub(super) output: Option<Expression>,
    pub(super) positions: HashMap<String, usize>,
}

/// One step made ready.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) id: String,
    pub(super) dependents: Vec<usize>,
    pub(super) when: Option<Expression>,
    pub(super) for_each: Option<Expression>,
    pub(super) parallel: usize,
    pub(super) retry: Retry,
    pub(super) timeout: Option<Duration>,
    pub(super) continue_on_error: bool,
    pub(super) action: Action,
    pub(super) undo: Option<Undo>,
}

/// What a step does.
#[derive(Debug)]
pub(super) enum Action {
    Eval(Expression),
    Http(Call),
    Sleep(Pause),
    Copy(Box<Copy>),
    Task { task: Task, input: Template },
    Pipeline { id: String, input: Template },
}

/// How long a step sleeps.
#[derive(Debug)]
pub(super) enum Pause {
    For(Duration),
    /// Gives seconds.
    Worked(Template),
}

/// An HTTP call with its places to fill in.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: reqwest::Method,
    pub(super) url: Template,
    pub(super) headers: BTreeMap<String, Template>,
    pub(super) body: Option<Template>,
    pub(super) timeout: Duration,
}

/// A copy with its places to fill in: back end, which may be the default one, and key.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) from: (Option<Template>, Template),
    pub(super) to: (Option<Template>, Template),
    pub(super) timeout: Duration,
}

/// What undoes a step.
#[derive(Debug)]
pub(super) struct Undo {
    pub(super) action: Action,
    pub(super) retry: Retry,
    pub(super) timeout: Option<Duration>,
}

impl Pipeline {
    /// Makes a definition ready; the faults are all that were found.
    pub fn compile(id: &str, version: i64, definition: Definition) -> Result<Arc<Self>, Vec<Fault>> {
        let mut compiler = Compiler { definition: &definition, faults: Vec::new() };
        check_inputs(&definition.inputs, &mut compiler.faults);
        let positions = compiler.ids();
        let graph = compiler.graph(&positions);
        let levels = match graph.levels() {
            Ok(levels) => levels,
            Err(cycle) => {
                let names: Vec<&str> = cycle.iter().map(|step| definition.steps[*step].id.as_str()).collect();
                let first = cycle.first().copied().unwrap_or_default();
                let circle = format!("{} → {}", names.join(" → "), names.first().unwrap_or(&""));
                compiler.fault(format!("steps[{first}].needs"), format!("the steps wait for each other: {circle}"));
                Vec::new()
            }
        };
        let mut dependents = graph.dependents().into_iter();
        let mut steps = Vec::with_capacity(definition.steps.len());
        for (at, step) in definition.steps.iter().enumerate() {
            let seen = Seen { graph: &graph, positions: &positions, from: Some(at), itself: false };
            let path = format!("steps[{at}]");
            if let Some(ready) = compiler.step(&path, step, seen, dependents.next().unwrap_or_default()) {
                steps.push(ready);
            }
        }
        let all = Seen { graph: &graph, positions: &positions, from: None, itself: false };
        let output = definition.output.as_ref().and_then(|source| compiler.expression("output", source, all));
        if !compiler.faults.is_empty() {
            return Err(compiler.faults);
        }
        Ok(Arc::new(Self { id: id.to_owned(), version, graph, levels, steps, output, positions, definition }))
    }

    /// Takes a run's input: types checked, defaults filled in, unknown names refused. Without declared inputs it takes
    /// any object.
    pub fn take_input(&self, given: Value) -> Result<Value, Vec<Fault>> {
        take_input(&self.definition.inputs, given)
    }

    /// Whether a step has items.
    pub(super) fn is_fan_out(&self, step: &str) -> bool {
        self.positions.get(step).is_some_and(|step| self.steps[*step].for_each.is_some())
    }

    /// SHA-256 of what a step does, by which two versions are compared.
    pub fn code_version(step: &Step) -> String {
        let bytes = serde_json::to_vec(step).unwrap_or_default();
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A letter, then letters, digits, `_` and `-`.
pub fn is_id(text: &str) -> bool {
    text.len() <= MAX_ID
        && text.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(yaml: &str) -> Vec<(String, String)> {
        let definition = Definition::parse(yaml).expect("readable");
        let faults = Pipeline::compile("p", 1, definition).map(|_| Vec::new()).unwrap_or_else(|faults| faults);
        faults.into_iter().map(|fault| (fault.path, fault.message)).collect()
    }

    #[test]
    fn every_fault_is_found_at_its_place() {
        let found = faults(
            "inputs: {n: {type: integer, default: x}, tag: {type: string}}
steps:
  - {id: a, eval: '1'}
  - {id: a, eval: '1'}
  - {id: b, needs: [c], eval: input.m}
  - {id: d, eval: steps.a}
  - {id: e, needs: [a], eval: steps.aa}
  - {id: f, eval: '1 +'}
  - {id: g}
  - {id: h, eval: '1', sleep: 1s}
  - {id: i, for_each: '3', eval: item}
  - {id: j, when: input.tag, eval: '1'}
  - {id: k, http: {url: 'ftp://x', method: YELL}}
  - {id: l, http: {url: 'http://h', body: {x: ['${ steps.zz }']}}}
  - {id: m, eval: '1', parallel: 3}
  - {id: item, eval: '1'}
  - {id: '9', eval: '1'}
  - {id: o, eval: '1', retry: {attempts: 0}, compensate: {}}
",
        );
        let expected = [
            ("inputs.n.default", "an integer"),
            ("steps[1].id", "already"),
            ("steps[2].needs[0]", "no step `c`"),
            ("steps[2].eval", "no input `m`"),
            ("steps[3].eval", "without waiting for it"),
            ("steps[4].eval", "did you mean `a`?"),
            ("steps[5].eval", "line 1"),
            ("steps[6]", "it has none"),
            ("steps[7]", "eval and sleep"),
            ("steps[8].for_each", "takes a list, and this gives 3"),
            ("steps[9].when", "declared otherwise"),
            ("steps[10].http.method", "GET"),
            ("steps[10].http.url", "takes a URL"),
            ("steps[11].http.body", "no step `zz`"),
            ("steps[12].parallel", "for_each"),
            ("steps[13].id", "means something else"),
            ("steps[14].id", "is no id"),
            ("steps[15].retry.attempts", "1 to 100"),
            ("steps[15].compensate", "it has none"),
        ];
        for (path, message) in expected {
            assert!(
                found.iter().any(|(at, text)| at == path && text.contains(message)),
                "{path} {message}: {found:#?}"
            );
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
    }

    #[test]
    fn a_cycle_is_named() {
        let found = faults(
            "steps:\n  - {id: a, needs: [c], eval: '1'}\n  - {id: b, needs: [a], eval: '1'}\n  - {id: c, needs: [b], eval: '1'}",
        );
        assert_eq!(found.len(), 1);
        assert!(found[0].1.contains("a → b → c → a") || found[0].1.contains("→ a →"), "{found:?}");
    }

    #[test]
    fn inputs_are_checked_and_filled_in() {
        let yaml =
            "inputs: {url: {type: string}, deep: {type: boolean, default: false}, note: {type: string, optional: true}}
steps: [{id: a, eval: input.url}]";
        let pipeline = Pipeline::compile("p", 1, Definition::parse(yaml).expect("readable")).expect("good");
        let taken = pipeline.take_input(json!({ "url": "x" })).expect("taken");
        assert_eq!(taken, json!({ "url": "x", "deep": false, "note": null }));
        let faults = pipeline.take_input(json!({ "ulr": "x", "deep": 1 })).expect_err("refused");
        let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["ulr", "deep", "url"]);
        assert!(faults[0].message.contains("did you mean `url`?"));
        assert!(pipeline.take_input(json!([1])).is_err());
    }
}
