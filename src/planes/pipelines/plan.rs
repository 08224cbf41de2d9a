//! What a run would do, before it does it: order, critical path, and what would run where. Pure.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::compile::Pipeline;
use super::definition::{Span, Step};

/// The plan of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Plan {
    /// Steps that may run at the same time, level by level.
    pub levels: Vec<Vec<String>>,
    /// The chain that takes longest; no run is shorter than it.
    pub critical_path: Vec<String>,
    /// How long it is expected to take, in milliseconds.
    pub critical_path_ms: u64,
    pub steps: Vec<PlannedStep>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PlannedStep {
    pub id: String,
    /// From 0.
    pub level: usize,
    /// `eval`, `http`, `sleep`, `copy`, `task` or `pipeline`.
    pub kind: &'static str,
    /// What would run it.
    pub runs_on: String,
    pub needs: Vec<String>,
    /// Whether it runs once for each item of a list.
    pub fans_out: bool,
    pub expected_ms: u64,
    /// `past` runs, `declared` by the definition, or `unknown`.
    pub expected_from: &'static str,
}

impl Pipeline {
    /// The plan; `past` are the usual durations of steps in past runs.
    pub fn plan(&self, past: &HashMap<String, Duration>) -> Plan {
        let mut levels_of = vec![0; self.definition.steps.len()];
        for (level, steps) in self.levels.iter().enumerate() {
            steps.iter().for_each(|step| levels_of[*step] = level);
        }
        let expected: Vec<(Duration, &'static str)> =
            self.definition.steps.iter().map(|step| expected(step, past)).collect();
        let durations: Vec<Duration> = expected.iter().map(|(duration, _)| *duration).collect();
        let (path, length) = self.graph.critical_path(&self.levels, &durations);
        let name = |step: &usize| self.definition.steps[*step].id.clone();
        let steps = self.definition.steps.iter().enumerate().map(|(at, step)| PlannedStep {
            id: step.id.clone(),
            level: levels_of[at],
            kind: step.kind(),
            runs_on: runs_on(step),
            needs: step.needs.clone(),
            fans_out: step.for_each.is_some(),
            expected_ms: durations[at].as_millis() as u64,
            expected_from: expected[at].1,
        });
        Plan {
            levels: self.levels.iter().map(|level| level.iter().map(name).collect()).collect(),
            critical_path: path.iter().map(name).collect(),
            critical_path_ms: length.as_millis() as u64,
            steps: steps.collect(),
        }
    }
}

fn expected(step: &Step, past: &HashMap<String, Duration>) -> (Duration, &'static str) {
    if let Some(past) = past.get(&step.id) {
        return (*past, "past");
    }
    let pause = step.sleep.as_ref().and_then(|text| humantime::parse_duration(text).ok());
    match step.expected.map(|Span(duration)| duration).or(pause) {
        Some(declared) => (declared, "declared"),
        None => (Duration::ZERO, "unknown"),
    }
}

fn runs_on(step: &Step) -> String {
    match (&step.task, &step.pipeline) {
        (Some(task), _) => format!("a worker of queue `{}`", task.queue.as_deref().unwrap_or("default")),
        (_, Some(call)) => format!("a run of pipeline `{}`", call.id),
        _ => "the engine".to_owned(),
    }
}

impl Step {
    /// What the step does, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self { http: Some(_), .. } => "http",
            Self { sleep: Some(_), .. } => "sleep",
            Self { copy: Some(_), .. } => "copy",
            Self { task: Some(_), .. } => "task",
            Self { pipeline: Some(_), .. } => "pipeline",
            _ => "eval",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::definition::Definition;
    use super::*;

    #[test]
    fn the_critical_path_goes_by_past_durations_where_there_are_some() {
        let yaml = "steps:
  - {id: a, eval: '1', expected: 1s}
  - {id: b, needs: [a], sleep: 4s}
  - {id: c, needs: [a], task: {id: t, queue: gpu}, expected: 1s}
  - {id: d, needs: [b, c], for_each: '[1]', pipeline: {id: q}}";
        let pipeline = Pipeline::compile("p", 1, Definition::parse(yaml).expect("readable")).expect("good");
        let plan = pipeline.plan(&HashMap::new());
        assert_eq!((plan.critical_path, plan.critical_path_ms), (vec!["a".into(), "b".into(), "d".into()], 5_000));
        let past = HashMap::from([("c".to_owned(), Duration::from_secs(9))]);
        let plan = pipeline.plan(&past);
        assert_eq!((plan.critical_path[1].as_str(), plan.critical_path_ms), ("c", 10_000));
        assert_eq!(plan.steps[2].runs_on, "a worker of queue `gpu`");
        assert_eq!((plan.steps[3].level, plan.steps[3].kind, plan.steps[3].fans_out), (2, "pipeline", true));
    }
}
