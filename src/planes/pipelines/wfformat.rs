//! Executions of real workflows as pipelines: WfFormat 1.5, the JSON of the WfCommons collection.
//!
//! Every task becomes a step that sleeps as long as the task ran, scaled; the order is the workflow's own. Real files are
//! taken as they come: what is not needed here is not read, `null` counts as left out, a task without a run time takes
//! none, and of one that ran several times the longest counts.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::compile::MAX_STEPS;
use super::definition::{Definition, Fault, Span, Step};
use super::expression::is_reserved;
use super::graph::Graph;

/// No task runs longer, scaled.
const LONGEST_RUN: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    description: Option<String>,
    workflow: Workflow,
}

#[derive(Deserialize)]
struct Workflow {
    specification: Specification,
    /// A workflow that was never run has none.
    #[serde(default)]
    execution: Option<Execution>,
}

#[derive(Deserialize)]
struct Specification {
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    id: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    parents: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    children: Vec<String>,
}

#[derive(Deserialize)]
struct Execution {
    #[serde(default, deserialize_with = "nullable")]
    tasks: Vec<Executed>,
}

#[derive(Deserialize)]
struct Executed {
    id: String,
    #[serde(default, rename = "runtimeInSeconds")]
    runtime: Option<f64>,
}

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Definition {
    /// Reads a WfFormat document; a task's run time times `scale` is how long its step sleeps.
    pub fn from_wfformat(document: Value, scale: f64) -> Result<Self, Vec<Fault>> {
        // First, because another version's document looks different throughout.
        let version = document.get("schemaVersion").map(|version| match version {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        match version.as_deref() {
            Some("1.5") => {}
            Some(other) => {
                let message = format!("`{}` is not taken; 1.5 is", other.escape_debug());
                return Err(vec![Fault::at("schemaVersion", message)]);
            }
            None => return Err(vec![Fault::at("schemaVersion", "is missing: a WfFormat document says 1.5 here")]),
        }
        let document: Document = serde_path_to_error::deserialize(document)
            .map_err(|error| vec![Fault::at(error.path().to_string(), error.into_inner().to_string())])?;
        let mut faults = Vec::new();
        if !(scale.is_finite() && scale >= 0.0) {
            faults.push(Fault::at("scale", "takes a number of 0 or more"));
        }
        let tasks = document.workflow.specification.tasks;
        if tasks.is_empty() || tasks.len() > MAX_STEPS {
            faults.push(Fault::at("workflow.specification.tasks", format!("takes 1 to {MAX_STEPS} tasks")));
        }
        let mut positions = HashMap::new();
        for (at, task) in tasks.iter().enumerate() {
            if positions.insert(task.id.as_str(), at).is_some() {
                let message = format!("`{}` is there twice", task.id.escape_debug());
                faults.push(Fault::at(format!("workflow.specification.tasks[{at}].id"), message));
            }
        }
        // Some writers name a parent by its task's name, where that is unique.
        let mut names: HashMap<&str, Option<usize>> = HashMap::new();
        for (at, task) in tasks.iter().enumerate() {
            let name = task.name.as_deref().unwrap_or_default();
            names.entry(name).and_modify(|place| *place = None).or_insert(Some(at));
        }
        let find = |text: &str| positions.get(text).copied().or_else(|| names.get(text).copied().flatten());
        // Who comes before whom is said twice, by parents and by children; either is enough.
        let mut needs = vec![BTreeSet::new(); tasks.len()];
        for (at, task) in tasks.iter().enumerate() {
            for (field, others) in [("parents", &task.parents), ("children", &task.children)] {
                // The schema lets an empty text stand for nobody.
                for (index, other) in others.iter().enumerate().filter(|(_, other)| !other.is_empty()) {
                    match find(other) {
                        Some(other) if field == "parents" => drop(needs[at].insert(other)),
                        Some(other) => drop(needs[other].insert(at)),
                        None => {
                            let path = format!("workflow.specification.tasks[{at}].{field}[{index}]");
                            faults.push(Fault::at(path, format!("there is no task `{}`", other.escape_debug())));
                        }
                    }
                }
            }
        }
        let graph = Graph { needs: needs.iter().map(|needs| needs.iter().copied().collect()).collect() };
        if let Err(cycle) = graph.levels() {
            let circle: Vec<String> =
                cycle.iter().chain(cycle.first()).map(|at| tasks[*at].id.escape_debug().to_string()).collect();
            let first = cycle.first().copied().unwrap_or_default();
            let message = format!("the tasks wait for each other: {}", circle.join(" → "));
            faults.push(Fault::at(format!("workflow.specification.tasks[{first}].parents"), message));
        }
        let execution = document.workflow.execution.map(|execution| execution.tasks).unwrap_or_default();
        let mut runtimes: HashMap<String, f64> = HashMap::new();
        for (at, task) in execution.into_iter().enumerate() {
            let seconds = task.runtime.unwrap_or_default().max(0.0); // some logs have clocks that went backwards
            if seconds * scale > LONGEST_RUN.as_secs_f64() {
                let path = format!("workflow.execution.tasks[{at}].runtimeInSeconds");
                faults.push(Fault::at(path, format!("{seconds} s, scaled, are more than a year")));
            }
            let longest = runtimes.entry(task.id).or_default();
            *longest = longest.max(seconds);
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let ids = ids(&tasks);
        let steps = tasks.iter().enumerate().map(|(at, task)| {
            let seconds = runtimes.get(&task.id).copied().unwrap_or_default() * scale;
            let slept = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            // The store counts milliseconds.
            let slept = Span(Duration::from_millis(slept.as_millis() as u64));
            Step {
                id: ids[at].clone(),
                needs: needs[at].iter().map(|need| ids[*need].clone()).collect(),
                sleep: Some(slept.to_string()),
                ..Step::default()
            }
        });
        let (name, description) = (document.name, document.description);
        Ok(Self { name, description, steps: steps.collect(), ..Self::default() })
    }
}

/// The tasks' ids as steps may be called, each once.
fn ids(tasks: &[Task]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut ids = Vec::with_capacity(tasks.len());
    for task in tasks {
        let letters = task.id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' });
        let mut id: String = letters.take(180).collect();
        if !id.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_') || is_reserved(&id) {
            id.insert_str(0, "t_");
        }
        let mut number = 1;
        let mut unique = id.clone();
        while !taken.insert(unique.clone()) {
            number += 1;
            unique = format!("{id}_{number}");
        }
        ids.push(unique);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::super::Pipeline;
    use super::*;
    use serde_json::json;

    fn small() -> Value {
        serde_json::from_str(include_str!("../../../tests/data/wfformat/small.json")).expect("JSON")
    }

    #[test]
    fn tasks_become_steps_in_the_workflows_own_order() {
        let definition = Definition::from_wfformat(small(), 0.001).expect("a pipeline");
        let pipeline = Pipeline::compile("small", 1, definition).expect("good");
        let levels: Vec<Vec<&str>> = pipeline
            .levels
            .iter()
            .map(|level| level.iter().map(|step| pipeline.definition.steps[*step].id.as_str()).collect())
            .collect();
        assert_eq!(levels, [vec!["split_1"], vec!["t_2nd", "align_a"], vec!["merge"]]);
        assert_eq!(pipeline.definition.steps[1].sleep.as_deref(), Some("20ms"));
        assert_eq!(pipeline.plan(&HashMap::new()).critical_path_ms, 12 + 31 + 5);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut broken = small();
        broken["workflow"]["specification"]["tasks"][0]["children"] = json!(["nobody"]);
        let faults = Definition::from_wfformat(broken, 1.0).expect_err("refused");
        assert_eq!(faults[0].path, "workflow.specification.tasks[0].children[0]");
        let mut old = small();
        old["schemaVersion"] = json!("1.3");
        assert_eq!(Definition::from_wfformat(old, 1.0).expect_err("refused")[0].path, "schemaVersion");
        let mut unknown = small();
        unknown.as_object_mut().expect("an object").remove("schemaVersion");
        assert!(Definition::from_wfformat(unknown, 1.0).expect_err("refused")[0].message.contains("is missing"));
        let earlier =
            json!({ "name": "x", "schemaVersion": "1.4", "workflow": { "makespanInSeconds": 3, "tasks": [] } });
        assert_eq!(Definition::from_wfformat(earlier, 1.0).expect_err("refused")[0].path, "schemaVersion");
        assert!(Definition::from_wfformat(json!({ "schemaVersion": "1.5", "workflow": {} }), 1.0).is_err());
        let tasks = |tasks: Value| json!({ "name": "x", "schemaVersion": "1.5", "workflow": { "specification": { "tasks": tasks } } });
        let circle = tasks(json!([
            { "name": "a", "id": "a", "parents": ["b"], "children": [] }, { "name": "b", "id": "b", "parents": [], "children": ["a"] },
            { "name": "c", "id": "c", "parents": [], "children": ["b"] }, { "name": "d", "id": "d", "parents": ["a"], "children": ["b"] },
        ]));
        let faults = Definition::from_wfformat(circle, 1.0).expect_err("refused");
        assert!(faults.len() == 1 && faults[0].message.contains(" → "), "{faults:?}");
        let twice = tasks(
            json!([{ "name": "a", "id": "a", "parents": [], "children": [] }, { "name": "b", "id": "a", "parents": [], "children": [] }]),
        );
        let faults = Definition::from_wfformat(twice, 1.0).expect_err("refused");
        assert!(faults[0].path.ends_with("tasks[1].id") && faults[0].message.contains("twice"), "{faults:?}");
        for (scale, path) in
            [(f64::NAN, "scale"), (-1.0, "scale"), (1e12, "workflow.execution.tasks[0].runtimeInSeconds")]
        {
            assert_eq!(Definition::from_wfformat(small(), scale).expect_err("refused")[0].path, path, "{scale}");
        }
    }

    #[test]
    fn real_files_are_taken_as_they_come() {
        let document = json!({ "name": "x", "description": null, "createdAt": "2026-01-01T00:00:00Z", "schemaVersion": "1.5",
            "author": { "name": "n", "email": "e" }, "runtimeSystem": { "name": "r", "version": "1" },
            "workflow": {
                "specification": {
                    "tasks": [
                        { "name": "first", "id": "a/b:1", "parents": [""], "children": [], "inputFiles": ["f"], "outputFiles": [] },
                        { "name": "second", "id": "a.b:1", "parents": ["first"], "children": null },
                        { "name": "many", "id": "id 3", "parents": [], "children": [], "unheard": { "of": [] } },
                        { "name": "many", "id": "4", "parents": ["a.b:1", "a.b:1", "id 3"], "children": [] },
                    ],
                    "files": [{ "id": "f" }, { "id": "g", "sizeInBytes": 0 }],
                },
                "execution": { "makespanInSeconds": 3, "executedAt": "x", "machines": [{ "nodeName": "m" }], "tasks": [
                    { "id": "a/b:1", "runtimeInSeconds": 0.5, "coreCount": 1, "machines": ["m"] },
                    { "id": "a/b:1", "runtimeInSeconds": 2 }, { "id": "a/b:1", "runtimeInSeconds": 1 },
                    { "id": "id 3", "runtimeInSeconds": null }, { "id": "4", "runtimeInSeconds": -3.5 }, { "id": "nobody", "runtimeInSeconds": 1 },
                ] },
            } });
        let definition = Definition::from_wfformat(document, 1.0).expect("a pipeline");
        let steps: Vec<(&str, Vec<&str>, Option<&str>)> = definition
            .steps
            .iter()
            .map(|step| (step.id.as_str(), step.needs.iter().map(String::as_str).collect(), step.sleep.as_deref()))
            .collect();
        assert_eq!(
            steps,
            [
                ("a_b_1", vec![], Some("2s")),
                ("a_b_1_2", vec!["a_b_1"], Some("0s")),
                ("id_3", vec![], Some("0s")),
                ("t_4", vec!["a_b_1_2", "id_3"], Some("0s")),
            ]
        );
        Pipeline::compile("real", 1, definition).expect("good");
    }

    /// A step is looked up among those before it only where an expression names it: thousands in a row cost little.
    #[test]
    fn a_long_chain_is_no_burden() {
        let tasks: Vec<Value> = (0..MAX_STEPS)
            .map(|n| {
                let parents = if n == 0 { vec![] } else { vec![format!("t{}", n - 1)] };
                json!({ "name": "n", "id": format!("t{n}"), "parents": parents, "children": [] })
            })
            .collect();
        let document =
            json!({ "name": "x", "schemaVersion": "1.5", "workflow": { "specification": { "tasks": tasks } } });
        let definition = Definition::from_wfformat(document, 1.0).expect("a pipeline");
        assert_eq!(Pipeline::compile("chain", 1, definition).expect("good").levels.len(), MAX_STEPS);
    }
}
