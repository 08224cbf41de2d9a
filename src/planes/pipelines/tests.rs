//! A run in memory, crashed and loaded at every point; and engines on a database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::definition::Definition;
use super::model::{RunStatus, StepRow};
use super::run::{Effect, End, Key, Running, Waits};
use super::store;
use super::{EngineStatus, Outbound, Pipeline, PipelineBuilder, Pipelines, StartError, StepBuilder};
use crate::clock::{SharedClock, SystemClock};
use crate::config;
use crate::db::{Db, Options, Timestamp};
use crate::events;
use crate::random::Random;

fn pipeline(yaml: &str) -> Arc<Pipeline> {
    Pipeline::compile("p", 1, Definition::parse(yaml).expect("readable")).expect("good")
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::new(chrono::DateTime::UNIX_EPOCH).after(Duration::from_secs(seconds))
}

/// An engine and a database of wood: commits into a map, answers calls as told, and may crash before any commit.
struct Wooden {
    pipeline: Arc<Pipeline>,
    input: Value,
    rows: BTreeMap<(String, i64), StepRow>,
    /// In the order of their commits.
    completed: Vec<(String, i64)>,
    calls: Vec<(String, String)>,
    begun: i64,
    seconds: u64,
    most_out: usize,
}

impl Wooden {
    fn new(pipeline: Arc<Pipeline>, input: Value) -> Self {
        Self {
            pipeline,
            input,
            rows: BTreeMap::new(),
            completed: Vec::new(),
            calls: Vec::new(),
            begun: 0,
            seconds: 0,
            most_out: 0,
        }
    }

    fn load(&self) -> Running {
        let rows = self.rows.values().cloned().collect();
        Running::load(1, self.pipeline.clone(), self.input.clone(), 0, rows)
    }

    fn commit(&mut self, rows: Vec<StepRow>) {
        for row in rows {
            let key = (row.step.clone(), row.item);
            let before = self.rows.insert(key.clone(), row.clone());
            assert!(before.is_none_or(|before| before.finished_at.is_none()), "{key:?} was over and is written again");
            if row.status == "completed" {
                self.completed.push(key);
            }
        }
    }

    /// Runs to the end; `crash` is asked before and after every commit, `answer` for every call.
    fn run(&mut self, mut crash: impl FnMut() -> bool, answer: impl Fn(&str) -> Result<Value, String>) -> End {
        let random = Random::seeded(1);
        let mut run = self.load();
        let mut out: Vec<(Key, String)> = Vec::new();
        for _ in 0..100_000 {
            let now = at(self.seconds);
            run.tick(now, &random);
            run.start(now, &random);
            let end = run.over();
            let mut batch = run.take_batch();
            let mut ids = Vec::new();
            let mut sent = Vec::new();
            for (place, key, effect) in batch.effects {
                self.begun += 1;
                match effect {
                    Effect::Call(request) => sent.push((key, request.url, request.key)),
                    Effect::Copy(_) => unreachable!("these flows copy nothing"),
                    Effect::Task(_) => {
                        batch.rows[place].job_id = Some(self.begun);
                        ids.push((key, Waits::Task(self.begun)));
                    }
                    Effect::Child { .. } => {
                        batch.rows[place].child_run_id = Some(self.begun);
                        ids.push((key, Waits::Child(self.begun)));
                    }
                    Effect::CancelTask(_) | Effect::CancelChild(_) => {}
                }
            }
            if crash() {
                run = self.load();
                out.clear();
                continue;
            }
            let quiet = batch.rows.is_empty();
            self.commit(batch.rows);
            if let Some(end) = end {
                return end;
            }
            if crash() {
                run = self.load();
                out.clear();
                continue;
            }
            run.committed(&ids);
            for (key, url, idempotency) in sent {
                self.calls.push((url.clone(), idempotency));
                out.push((key, url));
            }
            self.most_out = self.most_out.max(out.len());
            if !quiet {
                continue;
            }
            if let Some((key, url)) = out.pop() {
                run.answer(key, answer(&url), now, &random);
                continue;
            }
            let awaited = run.awaited();
            for (key, waits) in &awaited {
                run.answer(*key, Ok(json!(format!("{waits:?}"))), now, &random);
            }
            if awaited.is_empty() {
                self.seconds += 1;
            }
        }
        panic!("the run does not end: {:#?}", self.rows);
    }

    fn order(&self, step: &str) -> usize {
        self.completed.iter().position(|(name, item)| name == step && *item == -1).expect(step)
    }
}

fn never() -> bool {
    false
}

#[test]
fn results_flow_between_steps_and_conditions_skip() {
    let pipeline = pipeline(
        "inputs: {n: {type: integer}}
steps:
  - {id: double, eval: input.n * 2}
  - {id: big, needs: [double], when: steps.double > 100, eval: '1'}
  - {id: join, needs: [double, big], eval: '#{ double: steps.double, big: steps.big, was: status.big }'}
output: steps.join",
    );
    let end = Wooden::new(pipeline, json!({ "n": 3 })).run(never, |_| Ok(Value::Null));
    assert_eq!(end.output, json!({ "double": 6, "big": null, "was": "skipped" }));
}

#[test]
fn a_fan_out_keeps_its_bound_and_its_order() {
    let pipeline = pipeline(
        "steps:
  - {id: list, eval: '[1, 2, 3, 4, 5, 6, 7]'}
  - {id: each, needs: [list], for_each: steps.list, parallel: 3, when: item != 4, http: {url: 'http://h/${item}'}}
  - {id: sum, needs: [each], eval: steps.each.len()}
output: steps.each",
    );
    let mut wooden = Wooden::new(pipeline, json!({}));
    let end = wooden.run(never, |url| Ok(json!(url)));
    assert_eq!(wooden.most_out, 3);
    let expected: Vec<Value> =
        (1..=7).map(|item| if item == 4 { Value::Null } else { json!(format!("http://h/{item}")) }).collect();
    assert_eq!(end.output, json!(expected));
}

#[test]
fn the_results_of_a_fan_out_have_a_bound() {
    let list: Vec<usize> = (0..70).collect();
    let pipeline = pipeline(&format!(
        "steps: [{{id: each, for_each: '{list:?}', parallel: 4, http: {{url: 'http://h/${{item}}'}}}}]"
    ));
    let mut wooden = Wooden::new(pipeline, json!({}));
    // As large as one result may be: with its quotes a MiB.
    let result = json!("x".repeat((1 << 20) - 2));
    let end = wooden.run(never, |_| Ok(result.clone()));
    assert_eq!(end.status, RunStatus::Failed);
    assert!(
        end.error.as_ref().is_some_and(|error| error.contains("more than 64 MiB; keep them in storage")),
        "{end:?}"
    );
    assert_eq!(wooden.completed.len(), 64, "what is kept keeps the bound");
    assert_eq!(wooden.load().over(), Some(end), "and so does what is read again");
}

#[test]
fn an_input_that_no_database_takes_fails_its_step_before_it_goes_out() {
    for action in ["task", "pipeline"] {
        let pipeline = pipeline(&format!("steps: [{{id: a, {action}: {{id: t, input: {{x: '${{input.text}}'}}}}}}]"));
        let mut wooden = Wooden::new(pipeline, json!({ "text": "a\0b" }));
        let end = wooden.run(never, |_| Ok(Value::Null));
        assert_eq!((end.status, wooden.begun), (RunStatus::Failed, 0));
        assert!(end.error.is_some_and(|error| error.contains("a NUL character")), "{action}");
    }
}

#[test]
fn a_failed_run_undoes_the_newest_first_and_gives_up_what_waits() {
    let pipeline = pipeline(
        "steps:
  - {id: a, eval: '7', compensate: {http: {url: 'http://undo/a/${result}'}}}
  - {id: b, needs: [a], http: {url: 'http://do/b'}, compensate: {http: {url: 'http://undo/b'}, retry: {attempts: 3}}}
  - {id: slow, sleep: 9h}
  - {id: c, needs: [b], http: {url: 'http://do/c'}, retry: {attempts: 2, delay: 0s}}
  - {id: d, needs: [c], eval: '1'}",
    );
    let mut wooden = Wooden::new(pipeline, json!({}));
    let end = wooden.run(never, |url| if url.ends_with("do/c") { Err("no".to_owned()) } else { Ok(json!(1)) });
    assert_eq!((end.status, end.error.as_deref()), (RunStatus::Failed, Some("step `c`: no")));
    let urls: Vec<&str> = wooden.calls.iter().map(|(url, _)| url.as_str()).collect();
    assert_eq!(urls, ["http://do/b", "http://do/c", "http://do/c", "http://undo/b", "http://undo/a/7"]);
    let keys: BTreeSet<&str> = wooden.calls.iter().map(|(_, key)| key.as_str()).collect();
    assert_eq!(keys.len(), 5, "each try has a key of its own");
    assert_eq!(wooden.rows[&("slow".to_owned(), -1)].status, "cancelled");
    assert!(!wooden.rows.contains_key(&("d".to_owned(), -1)));
}

#[test]
fn continue_on_error_goes_on_with_null() {
    let pipeline = pipeline(
        "steps:
  - {id: a, http: {url: 'http://a'}, continue_on_error: true}
  - {id: each, for_each: '[1, 2]', http: {url: 'http://h/${item}'}, continue_on_error: true}
  - {id: b, needs: [a, each], eval: '[status.a, steps.a, status.each, steps.each]'}
output: steps.b",
    );
    let end = Wooden::new(pipeline, json!({}))
        .run(never, |url| if url.ends_with("/2") { Ok(json!(2)) } else { Err("no".to_owned()) });
    assert_eq!((end.status, end.output), (RunStatus::Completed, json!(["failed", null, "failed", [null, 2]])));
}

#[test]
fn a_task_that_takes_too_long_fails_and_is_given_up() {
    let pipeline = pipeline("steps: [{id: t, task: {id: render}, timeout: 5s}]");
    let random = Random::seeded(1);
    let mut run = Running::new(1, pipeline, json!({}), 0);
    run.start(at(0), &random);
    let key = run.take_batch().effects[0].1;
    run.committed(&[(key, Waits::Task(7))]);
    run.tick(at(4), &random);
    assert!(run.over().is_none());
    run.tick(at(5), &random);
    let batch = run.take_batch();
    assert!(matches!(batch.effects[0].2, Effect::CancelTask(7)));
    assert!(run.over().expect("over").error.expect("an error").contains("timeout"));
}

/// A graph of steps of every kind with edges that go up only.
fn random_pipeline(edges: &[(usize, usize)], kinds: &[u8]) -> Arc<Pipeline> {
    let steps: Vec<Value> = kinds
        .iter()
        .enumerate()
        .map(|(at, kind)| {
            let needs: BTreeSet<String> = edges
                .iter()
                .map(|(one, other)| ((*one).min(*other), (*one).max(*other)))
                .filter(|(from, to)| from < to && *to == at && *from < kinds.len())
                .map(|(from, _)| format!("s{from}"))
                .collect();
            let mut step = json!({ "id": format!("s{at}"), "needs": needs });
            let body = match kind {
                0 => json!({ "eval": format!("{at}") }),
                1 => json!({ "http": { "url": format!("http://h/{at}") }, "retry": { "attempts": 2 } }),
                2 => json!({ "sleep": "2s" }),
                3 => json!({ "task": { "id": "t" } }),
                4 => json!({ "for_each": "[1, 2, 3]", "parallel": 2, "eval": "item * 2" }),
                5 => json!({ "for_each": "[1, 2, 3]", "parallel": 2, "http": { "url": format!("http://h/{at}") } }),
                7 => json!({ "for_each": "[]", "eval": "item" }),
                _ => json!({ "pipeline": { "id": "q" } }),
            };
            let (Value::Object(step), Value::Object(body)) = (&mut step, body) else { unreachable!() };
            step.extend(body);
            Value::Object(step.clone())
        })
        .collect();
    Pipeline::compile("p", 1, Definition::from_value(json!({ "steps": steps })).expect("readable")).expect("good")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_run_that_crashes_anywhere_ends_as_one_that_does_not(
        edges in prop::collection::vec((0_usize..14, 0_usize..14), 0..40),
        kinds in prop::collection::vec(0_u8..8, 1..14),
        crashes in prop::collection::vec(0_u8..4, 0..60),
    ) {
        let pipeline = random_pipeline(&edges, &kinds);
        let answer = |url: &str| Ok(json!(url));
        let whole = Wooden::new(pipeline.clone(), json!({})).run(never, answer);
        prop_assert_eq!(whole.status, RunStatus::Completed);
        let mut left = crashes.into_iter();
        let mut wooden = Wooden::new(pipeline.clone(), json!({}));
        let end = wooden.run(|| left.next() == Some(0), answer);
        prop_assert_eq!(end.status, RunStatus::Completed);
        // Ids of tasks and runs differ where one was begun anew; all else is the same.
        for (step, kind) in kinds.iter().enumerate().filter(|(_, kind)| ![3, 6].contains(*kind)) {
            let id = format!("s{step}");
            if let Some(output) = whole.output.get(&id) {
                prop_assert_eq!(Some(output), end.output.get(&id), "{} of kind {}", id, kind);
            }
        }
        for (step, needs) in pipeline.graph.needs.iter().enumerate() {
            for need in needs {
                let (before, after) = (wooden.order(&format!("s{need}")), wooden.order(&format!("s{step}")));
                prop_assert!(before < after);
            }
        }
    }
}

async fn plane() -> Arc<Pipelines> {
    plane_of(config::Pipelines::default()).await
}

async fn plane_of(config: config::Pipelines) -> Arc<Pipelines> {
    let plane = still_plane(config, SystemClock::shared()).await;
    plane.start();
    plane
}

/// A plane on an empty database in which nothing moves by itself.
pub(super) async fn still_plane(config: config::Pipelines, clock: SharedClock) -> Arc<Pipelines> {
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    let monitor = events::Monitor::new(db.clone(), clock.clone());
    Pipelines::new(config, db, monitor, clock, Random::seeded(1), "test").await.expect("a plane")
}

#[tokio::test]
async fn engines_carry_runs_out_and_say_so() {
    let plane = plane().await;
    let definition = PipelineBuilder::new("Sum")
        .step(StepBuilder::eval("a", "input.x + 1"))
        .step(StepBuilder::sleep("b", Duration::from_millis(5)).needs(["a"]))
        .step(StepBuilder::eval("c", "steps.a * 10").needs(["b"]))
        .build();
    assert_eq!(plane.register_workflow("sum", definition.clone()).await.expect("registered"), (1, true));
    assert_eq!(plane.register_workflow("sum", definition).await.expect("the same"), (1, false));
    let mut heard = plane.engine_outbound_channel("engine-1").expect("an engine");
    let (run, end) = plane.execute_workflow("sum", json!({ "x": 4 })).await.expect("a run");
    assert_eq!((end.status, end.output), (RunStatus::Completed, json!({ "c": 50 })));
    let first = heard.recv().await.expect("a message");
    let engine = "engine-1".to_owned();
    assert_eq!(first, Outbound::StatusUpdate { engine, status: EngineStatus::Running, run: Some(run) });
    assert!(matches!(heard.recv().await, Ok(Outbound::WorkflowResponse { run: of, .. }) if of == run));
    assert!(matches!(
        plane.trigger("nosuch", json!({}), super::Origin::MANUAL).await,
        Err(StartError::NoSuchPipeline(_))
    ));
    plane.stop().await;
    assert!(plane.engines().iter().all(|engine| engine.health().status == EngineStatus::Stopped));
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_lapses() {
    let plane = plane_of(config::Pipelines { lease_seconds: 1, ..config::Pipelines::default() }).await;
    let definition = PipelineBuilder::new("One").step(StepBuilder::eval("a", "1")).output("steps.a").build();
    plane.register_workflow("one", definition).await.expect("registered");
    // As the database has it where the claim was committed and nobody heard of it.
    let nobody = store::Taker { owner: &plane.instance, engine: "engine-1", lease: Duration::from_secs(1) };
    let new = store::NewRun {
        pipeline: "one",
        version: 1,
        input: &json!({}),
        trigger_kind: "manual",
        trigger_id: None,
        parent: None,
    };
    let run = store::begin_run(&plane.db, new, Some(nobody), plane.now()).await.expect("a run");
    let end = tokio::time::timeout(Duration::from_secs(60), plane.expect(run)).await.expect("somebody takes it up");
    assert_eq!(end.expect("an end").output, json!(1));
    plane.stop().await;
}

#[tokio::test]
async fn more_runs_than_engines_wait_and_all_end() {
    let plane = plane().await;
    let inner = PipelineBuilder::new("Inner").step(StepBuilder::eval("x", "input.n * 2")).output("steps.x").build();
    plane.register_workflow("inner", inner).await.expect("registered");
    let outer = PipelineBuilder::new("Outer")
        .step(StepBuilder::pipeline("double", "inner", json!({ "n": "${input.n}" })))
        .output("steps.double + 1")
        .build();
    plane.register_workflow("outer", outer).await.expect("registered");
    let runs: Vec<_> = (0..12)
        .map(|n| {
            let plane = plane.clone();
            tokio::spawn(async move { plane.execute_workflow("outer", json!({ "n": n })).await.expect("a run").1 })
        })
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        let end = tokio::time::timeout(Duration::from_secs(60), run).await.expect("in time").expect("no panic");
        assert_eq!((end.status, end.output), (RunStatus::Completed, json!(n * 2 + 1)));
    }
    plane.stop().await;
}

#[tokio::test]
async fn the_loop_sees_failed_runs_and_has_them_tried_again_within_a_bound() {
    let plane = plane().await;
    let definition = PipelineBuilder::new("Fails").step(StepBuilder::eval("a", "input.nothing")).build();
    plane.register_workflow("fails", definition).await.expect("registered");
    let (run, end) = plane.execute_workflow("fails", json!({})).await.expect("a run");
    assert_eq!(end.status, RunStatus::Failed);
    let mut tx = plane.db.begin().await.expect("a transaction");
    let now = tx.now().await.expect("a time");
    let seen = super::observe(&mut tx, now, None).await.expect("the section");
    assert_eq!((seen.failed_1h, seen.running, seen.failed[0].id), (1, 0, run));
    assert_eq!(plane.observe_engines().total, 4);
    for retries in 0..4 {
        let tried = super::act::retry_run(&mut tx, run).await;
        assert_eq!(tried.is_ok(), retries < 3, "{tried:?}");
        tx.query("UPDATE pipeline_runs SET status = 'failed'").execute().await.expect("it failed again");
    }
    tx.query("UPDATE pipeline_runs SET status = 'cancelled'").execute().await.expect("given up");
    assert!(super::act::retry_run(&mut tx, run).await.is_err(), "what somebody gave up stays so");
    assert!(super::act::cancel_run(&mut tx, run).await.is_err());
    assert!(super::act::pause_trigger(&mut tx, "nosuch").await.is_err());
    drop(tx);
    plane.stop().await;
}
