//! What all rules may take together: in a cycle, with a turn for each, and at load.

use std::collections::BTreeSet;

use super::super::rule_set::{MAX_CONSTANTS, MAX_ERRORS, MAX_RULES};
use super::*;

/// Rules behind `jobs.pending == 7`, which neither example has; `harm` is each one's work.
fn waiting(count: usize, harm: &str) -> String {
    (0..count)
        .map(|n| {
            format!(
                "rule \"heavy_{n}\" priority 5 when jobs.pending == 7 && {harm} then schedule_clip({}) because \"x\";\n",
                n + 1
            )
        })
        .collect()
}

fn striking() -> Snapshot {
    let mut snapshot = quiet();
    snapshot.jobs.as_mut().expect("jobs").pending = 7;
    snapshot
}

/// Cycles one after the other, each beginning where the last one stopped; every one is replayed.
fn cycles(set: &RuleSet, count: usize) -> Vec<Decision> {
    let snapshot = striking();
    let mut first: Option<String> = None;
    let mut decisions = Vec::new();
    for _ in 0..count {
        let proposals = propose(set, &snapshot, &still(), first.as_deref());
        let decision = plan(proposals, &Memory::default(), &Default::default(), snapshot.at);
        let written = serde_json::to_string(&decision).expect("json");
        let recorded: Decision = serde_json::from_str(&written).expect("a decision");
        let again = serde_json::to_string(&replay(set, &snapshot, &recorded)).expect("json");
        assert_eq!(again, written);
        first = decision.unreached.as_ref().map(|unreached| unreached.rules[0].clone());
        decisions.push(decision);
    }
    decisions
}

#[test]
fn endless_rules_share_a_cycle_and_every_rule_has_its_turn() {
    let set = good(&format!(
        "{}rule \"light\" priority 1 then rebalance_queue() because \"x\";",
        waiting(15, "{ while true { } true }")
    ));
    let decisions = cycles(&set, 2);
    // Ten use up what all have together; six wait.
    assert_eq!(decisions[0].failures.len(), 10);
    let unreached = decisions[0].unreached.as_ref().expect("some wait");
    assert_eq!((unreached.count, unreached.rules.len()), (6, 6));
    assert_eq!((unreached.rules[0].as_str(), unreached.rules[5].as_str()), ("heavy_10", "light"));
    assert_eq!(unreached.because, "the rules before them took the 2000000 operations that all have together");
    // They come first in the next cycle, and what it does not reach are those that had their turn.
    assert_eq!(decisions[1].began_with.as_deref(), Some("heavy_10"));
    assert_eq!(planned(&decisions[1]), ["rebalance_queue queue"]);
    assert_eq!(
        decisions[1].unreached.as_ref().map(|it| (it.count, it.rules[0].clone())),
        Some((5, "heavy_5".to_owned()))
    );
}

#[test]
fn rules_that_propose_too_much_together_take_turns() {
    let clips = "const MANY = { let a = []; a.pad(900, 1); a };";
    let rules: String = (0..5)
        .map(|n| format!("rule \"many_{n}\" priority 5 each n in MANY when jobs.pending == 7 then schedule_clip(n) because \"x\";\n"))
        .collect();
    let decisions = cycles(&good(&format!("{clips}\n{rules}")), 4);
    let mut asked = BTreeSet::new();
    for decision in &decisions {
        assert_eq!(decision.summary.proposed, 2_700, "no cycle records more");
        asked.extend(decision.proposals.iter().map(|proposal| proposal.rule.clone()));
    }
    assert_eq!(asked.len(), 5);
    assert_eq!(decisions[1].began_with.as_deref(), Some("many_3"));
}

#[test]
fn where_a_cycle_begins_does_not_change_what_it_decides() {
    let set = RuleSet::built_in();
    let snapshot = super::super::examples::full();
    let decided = |first| {
        let proposals = propose(&set, &snapshot, &still(), first);
        let mut decision = plan(proposals, &Memory::default(), &Default::default(), snapshot.at);
        decision.began_with = None;
        serde_json::to_string(&decision).expect("json")
    };
    assert_eq!(decided(Some("recent_failures")), decided(None));
    assert_eq!(decided(Some("no_such_rule")), decided(None), "a rule that is gone");
}

#[test]
fn deductions_have_together_what_one_rule_has() {
    let long = "deduct 1 when jobs.pending == 7 && { let n = 0; while n < 9000 { n += 1; } true } because \"x\";\n";
    let sources = BTreeMap::from([("health.rhai".to_owned(), long.repeat(50))]);
    let set = RuleSet::load(&sources).expect("they pass the examples");
    let mut snapshot = striking();
    let failures = assess_health(&set, &mut snapshot, &still());
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].message.contains("not asked, with those below it"), "{failures:?}");
}

#[test]
fn a_set_that_takes_too_much_is_refused_soon() {
    let clock = crate::clock::SystemClock::shared();
    let rule = "rule \"r\" priority 1 then rebalance_queue() because \"x\";\n";
    let numbered = |count: usize| (0..count).map(|n| rule.replace("\"r\"", &format!("\"r{n}\""))).collect::<String>();
    for (what, source, wanted) in [
        ("ten megabytes", rule.repeat(200_000), "at most 262144 are taken".to_owned()),
        ("too many rules", numbered(MAX_RULES + 1), format!("too many rules: at most {MAX_RULES} are taken")),
        ("one name a thousand times", rule.repeat(1_000), "rule r is already defined in test.rhai:1".to_owned()),
        (
            "endless at load",
            numbered(1_000).replace(" then", " when { while true { } true } then"),
            "more than 200000 operations".to_owned(),
        ),
        (
            "long at load",
            numbered(40).replace(" then", " when { let n = 0; while n < 20000 { n += 1; } true } then"),
            "that all have together".to_owned(),
        ),
        (
            "constants",
            (0..=MAX_CONSTANTS).map(|n| format!("const C{n} = {n};\n")).collect(),
            format!("too many constants: at most {MAX_CONSTANTS} are taken"),
        ),
        (
            "long constants",
            (0..100).map(|n| format!("const C{n} = {{ let n = 0; while n < 20000 {{ n += 1; }} n }};\n")).collect(),
            "write plain values".to_owned(),
        ),
        (
            "closures",
            format!(
                "rule \"a\" priority 1 when [{}].len() > 0 then rebalance_queue() because \"x\";",
                "|x| 1, ".repeat(2_000)
            ),
            "at most 1000 are taken".to_owned(),
        ),
        (
            "unknown names without end",
            numbered(1_500).replace(" then", " when a + b + c + d + e > rebalance then"),
            "unknown name a".to_owned(),
        ),
        (
            "a name without end",
            format!("rule \"a\" priority 1 when {} then rebalance_queue() because \"x\";", "a".repeat(200_000)),
            "unknown name aaa".to_owned(),
        ),
        ("a text without end", format!("const A = \"{}\";", "a".repeat(200_000)), "test.rhai:1:".to_owned()),
    ] {
        let errors = load(&source).expect_err(what);
        let found = lines(&errors);
        assert!(found.contains(&wanted), "{what}: {}", found.chars().take(500).collect::<String>());
        assert!(errors.len() <= MAX_ERRORS && found.len() < 200_000, "{what}: {} errors", errors.len());
    }
    let many: BTreeMap<String, String> =
        (0..20).map(|n| (format!("f{n}.rhai"), format!("//{}", "x".repeat(200_000)))).collect();
    assert!(lines(&RuleSet::load(&many).expect_err("four megabytes")).contains("bytes in all files; at most 2097152"));
    // Far above what it takes, far below what it would take without the bounds.
    assert!(clock.elapsed() < Duration::from_secs(120), "{:?}", clock.elapsed());
}

#[test]
fn flat_chains_do_not_end_the_stack() {
    for link in [
        "1 + ",
        "1 - ",
        "\"a\" + ",
        "1 * ",
        "1 < ",
        "true && ",
        "true || ",
        "1 ?? ",
        "1 | ",
        "jobs.pending in [1] == ",
        "!",
        "-",
    ] {
        for length in [1_000, 20_000] {
            let condition = format!("{}1", link.repeat(length));
            let _ = load(&format!("rule \"a\" priority 1 when {condition} then rebalance_queue() because \"x\";"));
            let _ = load(&format!("const A = {condition};"));
            let _ = load(&format!("fn f(a) {{ {condition} }}"));
        }
    }
    for (open, link, close) in [
        ("if true { 1 } ", "else if true { 2 } ", "else { 3 }"),
        ("jobs", ".len()", ""),
        ("[1]", "[0]", ""),
        ("jobs", "?.a", ""),
        ("", "let a = 1; ", "a"),
        ("`", "${1}", "`"),
        ("switch 1 { ", "1 => 2, ", "_ => 3 }"),
    ] {
        for length in [1_000, 20_000] {
            let body = format!("{open}{}{close}", link.repeat(length));
            let _ = load(&format!("rule \"a\" priority 1 when {{ {body} }} then rebalance_queue() because \"x\";"));
            let _ = load(&format!("fn f(jobs) {{ {body} }}"));
        }
    }
}

#[test]
fn letters_that_look_like_ours_are_named() {
    let with =
        |name: &str| refused(&format!("rule \"a\" priority 1 when {name} > 1 then rebalance_queue() because \"x\";"));
    for (name, wanted) in [
        ("j\u{43e}bs.pending", "`о` (U+043E) may stand only in a text or comment; did you mean jobs?"),
        ("\u{458}\u{43e}\u{44c}\u{455}.pending", "did you mean jobs?"),
        ("jobs.p\u{435}nding", "(U+0435) may stand only in a text or comment; did you mean pending?"),
        ("jo\u{200b}bs.pending", "(U+200B) may stand only in a text or comment; did you mean jobs?"),
        ("\u{202e}jobs.pending", "(U+202E) may stand only in a text or comment; did you mean jobs?"),
        ("\u{feff}jobs.pending", "did you mean jobs?"),
        ("\u{1d423}obs.pending", "did you mean jobs?"),
    ] {
        let found = with(name);
        assert!(found.starts_with("test.rhai:1:") && found.contains(wanted), "{name:?}: {found}");
    }
}
