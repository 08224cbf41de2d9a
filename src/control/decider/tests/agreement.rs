//! What is evaluated plainly, and over no more of the snapshot than is mentioned, is what the engine makes of all of it.

use std::sync::LazyLock;

use proptest::prelude::*;
use rhai::{Dynamic, Engine, Map, Scope};

use super::super::facts::{Fact, Facts, SECTIONS};
use super::super::load::Loader;
use super::super::machine::Machine;
use super::super::plain::{Item, Reading};
use super::super::sandbox;
use super::*;
use crate::planes::publishing::ClipView;

static ENGINE: LazyLock<Engine> = LazyLock::new(sandbox::engine);

/// The whole snapshot for the engine, as serde gives it.
fn everything(snapshot: &Snapshot) -> Scope<'static> {
    let sections = rhai::serde::to_dynamic(snapshot).expect("data").cast::<Map>();
    let mut scope = Scope::new();
    for name in SECTIONS {
        scope.push_constant_dynamic(name, sections[name].clone());
    }
    scope
}

/// Values that are alike to the last bit; that a number is none is one value.
fn alike(one: &Dynamic, other: &Dynamic) -> bool {
    match (one.as_float(), other.as_float()) {
        (Ok(one), Ok(other)) => one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan(),
        _ => one.type_name() == other.type_name() && format!("{one:?}") == format!("{other:?}"),
    }
}

/// Evaluates a condition for each good clip in all ways. Answers for how many it could be done plainly.
fn compared(condition: &str, snapshot: &Snapshot) -> Result<usize, TestCaseError> {
    let source = format!(
        "const NUMBER = 3; const HALF = 0.5; const TEXT = \"tiktok\"; const LIST = [1, 2];\n\
         fn score(map) {{ map.visual_score }}\n\
         rule \"r\" priority 1 each clip in clips.high_score when {condition} then schedule_clip(clip.id) because \"x\";"
    );
    let mut loader = Loader::new(&ENGINE);
    let file = loader.file("test.rhai", &source);
    if !loader.errors.is_empty() {
        return Err(TestCaseError::reject(format!("{condition}\n{}", lines(&loader.errors))));
    }
    let rule = &file.rules[0];
    let (each, when) = (rule.each.as_ref().expect("each"), rule.when.as_ref().expect("when"));
    let facts = Facts::of(snapshot, &loader.mentions, rule.sections);
    let all = everything(snapshot);
    let listed = Machine::new(&ENGINE, all.clone()).value(&each.list.written).expect("a list").into_array();
    let items: Vec<Item<'_>> = match &facts.values[5] {
        Fact::Map { .. } => {
            let mut reading = Reading { facts: &facts, item: None, operations: 0 };
            match reading.value(each.list.plain.as_ref().expect("a path")) {
                Some(super::super::plain::Value::List { first, count }) => {
                    facts.values[first..first + count].iter().map(Item::Fact).collect()
                }
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    };
    let mut plainly = 0;
    for (index, whole) in listed.expect("a list").into_iter().enumerate() {
        let evaluated = |scope: Scope<'static>, item: Dynamic| {
            let mut machine = Machine::new(&ENGINE, scope);
            machine.enter(&file);
            machine.scope.push_constant_dynamic("clip", item);
            let value = machine.value(&when.written);
            (value.map_err(|error| error.to_string()), machine.global.num_operations)
        };
        let item = items.get(index).copied();
        let mentioned = match item {
            Some(Item::Fact(fact)) => facts.dynamic(fact, each.items).unwrap_or(Dynamic::UNIT),
            _ => whole.clone(),
        };
        let (expected, operations) = evaluated(all.clone(), whole.clone());
        let (found, _) = evaluated(facts.scope(), mentioned);
        match (&expected, &found) {
            (Ok(expected), Ok(found)) => prop_assert!(alike(expected, found), "{condition}: {expected:?}, {found:?}"),
            _ => prop_assert_eq!(
                expected.as_ref().err(),
                found.as_ref().err(),
                "{}: {:?}, {:?}",
                condition,
                expected,
                found
            ),
        }
        // Over an item of the facts, and over one that the engine holds.
        for item in item.into_iter().chain([Item::Held(&whole)]) {
            let mut reading = Reading { facts: &facts, item: Some(item), operations: 0 };
            let Some(value) = when.plain.as_ref().and_then(|plain| reading.value(plain)) else { continue };
            let Some(value) = value.into_dynamic() else { continue };
            let alike = expected.as_ref().is_ok_and(|expected| alike(expected, &value));
            prop_assert!(alike, "{condition}: the engine gives {expected:?}, plainly it is {value:?}");
            let counted = reading.operations;
            prop_assert!(counted * 3 >= operations, "{condition}: {operations} operations, {counted} counted");
            plainly += 1;
        }
    }
    Ok(plainly)
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![-3..60_i64, Just(0), Just(i64::MAX), Just(i64::MIN), Just(1 << 53), any::<i64>()]
}

fn score() -> impl Strategy<Value = f64> {
    let edge =
        [0.0, -0.0, 0.5, 1.0, 1.0 + f64::EPSILON, 50.0, 1e-300, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    prop_oneof![proptest::sample::select(edge.to_vec()), 0.0..100.0_f64, any::<f64>()]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just("tiktok".to_owned()), Just("x".to_owned()), Just(String::new()), "\\PC{0,4}"]
}

prop_compose! {
    fn clip()(
        id in number(), title in text(), visual_score in score(), campaign_id in proptest::option::of(number()),
        unused_platforms in proptest::collection::vec(text(), 0..3),
    ) -> ClipView {
        ClipView { id, title, visual_score, campaign_id, unused_platforms }
    }
}

prop_compose! {
    fn snapshots()(
        (pending, processing, saturated) in (number(), number(), any::<bool>()),
        mean in proptest::option::of(score()),
        best in proptest::option::of(clip()),
        high in proptest::collection::vec(clip(), 1..3),
        low in proptest::collection::vec(clip(), 0..2),
    ) -> Snapshot {
        let mut snapshot = quiet();
        let jobs = snapshot.jobs.as_mut().expect("jobs");
        (jobs.pending, jobs.processing, jobs.queue_saturated) = (pending, processing, saturated);
        let clips = snapshot.clips.as_mut().expect("clips");
        (clips.avg_visual_score, clips.best_ready, clips.high_score, clips.low_score) = (mean, best, high, low);
        snapshot
    }
}

/// Expressions of the plain kind, with operands of every type wherever one may stand.
fn expressions() -> impl Strategy<Value = String> {
    let leaf = proptest::sample::select(vec![
        "0",
        "1",
        "2",
        "3",
        "0.5",
        "1.0",
        "50",
        "true",
        "false",
        "()",
        "\"tiktok\"",
        "\"\"",
        "\"a\\n\"",
        "NUMBER",
        "HALF",
        "TEXT",
        "LIST",
        "[1]",
        "#{ a: 1 }",
        "jobs.pending",
        "jobs.processing",
        "jobs.queue_saturated",
        "clips.avg_visual_score",
        "clips.best_ready",
        "clips.best_ready.id",
        "clips.best_ready.title",
        "clips.best_ready.unused_platforms",
        "clip.id",
        "clip.title",
        "clip.visual_score",
        "clip.campaign_id",
        "clips.low_score",
        "clips.low_score.len()",
        "clips.high_score.len",
        "clips.low_score.is_empty()",
        "clip.title.len()",
        "clip.title.is_empty",
        "system.status",
        "at",
        "LIST.len()",
        "clip.unused_platforms.contains(TEXT)",
        "clip.unused_platforms.contains(clip.title)",
        "clip.title.contains(\"x\")",
        "clip.unused_platforms.contains(1)",
        "clip.unused_platforms.contains(())",
        "clip.unused_platforms.len()",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(4, 16, 3, |inner| {
        let operator = proptest::sample::select(vec![
            "==", "!=", "<", "<=", ">", ">=", "==", "<", "&&", "||", "&&", "||", "+", "-", "*", "/", "%",
        ]);
        prop_oneof![
            6 => (inner.clone(), operator, inner.clone()).prop_map(|(left, sign, right)| format!("({left} {sign} {right})")),
            1 => inner.clone().prop_map(|operand| format!("!{operand}")),
            2 => (inner.clone(), inner).prop_map(|(one, other)| format!("`a${{{one}}}b${{{other}}}`")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_global_rejects: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_plain_way_and_the_engine_agree(condition in expressions(), snapshot in snapshots()) {
        compared(&condition, &snapshot)?;
    }
}

#[test]
fn what_is_left_to_the_engine_sees_all_that_it_mentions() {
    let mut snapshot = super::super::examples::full();
    let clips = snapshot.clips.as_mut().expect("clips");
    let other = ClipView { id: 2, title: "other".to_owned(), ..clips.high_score[0].clone() };
    clips.high_score.push(other);
    for condition in [
        "jobs",
        "clips",
        "clip",
        "system",
        "`${clips} ${clip}`",
        "jobs[\"pending\"]",
        "clips[\"best_ready\"].title",
        "clips.best_ready[\"title\"]",
        "clips.high_score[0].title + clips.low_score[0].id",
        "clips.high_score[0][\"unused_platforms\"][0]",
        "clips?.best_ready?.title",
        "clips.best_ready ?? clip",
        "clips.best_ready == clip",
        "clips.best_ready == () || clips.best_ready.title == clip.title",
        "clips.high_score == clips.low_score",
        "clips.high_score.filter(|c| c.visual_score > 1.0)",
        "clips.high_score.filter(|c| c.title != clip.title).len()",
        "clips.high_score.some(|c| c.visual_score > jobs.pending && clip.id == 1)",
        "clips.high_score.map(|c| c.unused_platforms)",
        "clips.high_score.find(|c| c.id == clip.id).title",
        "clips.high_score.contains(clip)",
        "clip.unused_platforms.contains(\"tiktok\")",
        "clip in clips.high_score",
        "\"title\" in clip",
        "jobs.contains(\"retry\")",
        "jobs.keys()",
        "jobs.len()",
        "clip.title.len + clips.high_score.len",
        "clip.title.to_upper()",
        "clip.visual_score.floor()",
        "score(clip) + score(clips.best_ready)",
        "clip.score()",
        "Fn(\"score\").call(clip)",
        "{ let mine = clips; mine.best_ready.title }",
        "{ let n = 0; for c in clips.low_score { n += c.id; } n }",
        "{ let all = || clips.best_ready.title + clip.title; all.call() }",
        "if clip.id == 1 { clip } else { clips.best_ready }",
        "switch clip.id { 1 => clip.title, _ => clips.best_ready.title }",
        "[clips.low_score, clip.unused_platforms][0][0].title",
        "#{ a: clip, b: clips.best_ready }.a.title",
        "max(clip.id, clips.best_ready.id)",
        "type_of(clip)",
    ] {
        compared(condition, &snapshot).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_built_in_rules_are_plain() {
    let set = RuleSet::built_in();
    let rules = set.files.iter().flat_map(|file| &file.rules);
    let formulas = rules.flat_map(|rule| {
        let clauses = rule.each.iter().map(|each| &each.list).chain(&rule.when).chain(&rule.arguments);
        clauses.chain([&rule.because]).map(|formula| (rule.info.name.as_str(), formula))
    });
    let deductions = set.files.iter().flat_map(|file| &file.deductions);
    let deductions = deductions.flat_map(|it| [("health", &it.value), ("health", &it.because)]);
    let asking = formulas.chain(deductions).filter(|(_, formula)| formula.plain.is_none());
    let asking: Vec<&str> = asking.map(|(rule, _)| rule).collect();
    assert_eq!(asking, ["revivable_dead_letter"], "its reason has an `if` in it");
    let (mut full, mut values) = (super::super::examples::full(), Vec::new());
    full.jobs.as_mut().expect("jobs").pending = 3;
    for condition in ["jobs.pending > NUMBER", "clip.visual_score < HALF", "`${jobs.pending} of ${clip.title}`"] {
        values.push(compared(condition, &full).expect("they agree"));
    }
    assert_eq!(values, [2, 2, 2], "an item of the facts, and one of the engine's");
}
