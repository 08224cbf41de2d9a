//! Rules that mean harm, or whose author slipped: each is stopped, and its neighbours go on.

use std::collections::BTreeSet;

use super::*;

/// A rule whose harm is behind `jobs.pending == 7`, which neither example has: it passes the load, and strikes later.
fn strikes(functions: &str, harm: &str) -> (Decision, Snapshot) {
    let set = good(&format!(
        "{functions}\nrule \"bad\" priority 9 when jobs.pending == 7 && {harm} then rebalance_queue() because \"x\";\n\
         rule \"neighbour\" priority 1 then trigger_reconciliation() because \"x\";"
    ));
    let mut snapshot = quiet();
    snapshot.jobs.as_mut().expect("jobs").pending = 7;
    (decide(&set, &mut snapshot), snapshot)
}

fn stopped(functions: &str, harm: &str, wanted: &str) {
    let (decision, _) = strikes(functions, harm);
    assert_eq!(planned(&decision), ["trigger_reconciliation platforms"], "{harm}");
    assert_eq!(decision.failures.len(), 1, "{harm}");
    let failure = &decision.failures[0];
    assert_eq!(failure.rule, "bad");
    assert!(failure.message.contains(wanted), "{harm}\nwanted: {wanted}\nfound:  {}", failure.message);
}

#[test]
fn endless_work_ends() {
    stopped("", "{ while true { } true }", "more than 200000 operations");
    stopped("", "{ let n = 0; loop { n += 1; } true }", "more than 200000 operations");
    stopped("", "{ for n in range(0, 9000000000) { } true }", "more than 200000 operations");
    stopped("fn f(n) { f(n + 1) }", "f(0)", "calls functions too deeply");
    stopped("fn f(n) { f(n - 1) + f(n - 1) }", "f(12) > 0", "calls functions too deeply");
}

#[test]
fn values_do_not_grow_without_bound() {
    stopped("", "{ let s = \"x\"; loop { s += s; } true }", "too large");
    stopped("", "{ let s = \"x\"; loop { s = `${s}${s}`; } true }", "too large");
    stopped("", "{ let a = [0]; loop { a += a; } true }", "too large");
    stopped("", "{ let a = []; loop { a.push(a); } true }", "too large");
    stopped("", "{ let s = \"x\"; s.pad(1000000000, \"y\"); true }", "too large");
    stopped("", "{ let a = []; a.pad(1000000000, 0); true }", "too large");
    stopped("", "{ let s = \"xx\"; loop { s.replace(\"x\", \"xx\"); } true }", "too large");
    stopped("", "{ let m = #{}; let n = 0; loop { m[`${n}`] = n; n += 1; } true }", "more than 200000 operations");
    stopped("", "{ let m = #{}; let n = 0; loop { m.set(`${n}`, n); n += 1; } true }", "too large");
}

#[test]
fn nothing_leaves_the_sandbox() {
    for (source, wanted) in [
        ("rule \"a\" priority 1 when sleep(10) then rebalance_queue() because \"x\";", "unknown function sleep"),
        (
            "rule \"a\" priority 1 when timestamp().elapsed > 1 then rebalance_queue() because \"x\";",
            "unknown function timestamp",
        ),
        ("rule \"a\" priority 1 when eval(\"true\") then rebalance_queue() because \"x\";", "eval"),
        ("rule \"a\" priority 1 when { print(\"x\"); true } then rebalance_queue() because \"x\";", "print"),
        ("rule \"a\" priority 1 when { debug(\"x\"); true } then rebalance_queue() because \"x\";", "debug"),
        ("rule \"a\" priority 1 when exit(1) then rebalance_queue() because \"x\";", "unknown function exit"),
        ("rule \"a\" priority 1 when { throw \"x\" } then rebalance_queue() because \"x\";", "return and throw"),
        (
            "rule \"a\" priority 1 when { try { f() } catch { } true } then rebalance_queue() because \"x\";",
            "try is not available",
        ),
        (
            "rule \"a\" priority 1 when open_file(\"/etc/passwd\") then rebalance_queue() because \"x\";",
            "unknown function open_file",
        ),
        ("import \"queue\" as queue;", "import"),
        ("export const X = 1;", "export"),
        ("rule \"a\" priority 1 when x::y > 1 then rebalance_queue() because \"x\";", "modules are not available"),
        (
            "rule \"a\" priority 1 when fs::read(\"x\") then rebalance_queue() because \"x\";",
            "modules are not available",
        ),
    ] {
        let found = refused(source);
        assert!(found.contains(wanted), "{source}\n{found}");
    }
    for name in ["sleep", "exit", "eval", "print", "timestamp", "rebalance_queue", "import"] {
        let (decision, _) = strikes("", &format!("{{ let name = \"{name}\"; Fn(name).call(1) == () }}"));
        assert_eq!(decision.failures.len(), 1, "{name} through a pointer: {decision:?}");
        assert_eq!(planned(&decision), ["trigger_reconciliation platforms"]);
    }
}

#[test]
fn nothing_is_hidden() {
    for (source, wanted) in [
        ("const jobs = 5;", "jobs is a section of the snapshot"),
        ("const X = 1; const X = 2;", "X is already defined"),
        (
            "rule \"a\" priority 1 each clips in clips.high_score then schedule_clip(clips.id) because \"x\";",
            "clips is a section of the snapshot",
        ),
        (
            "rule \"a\" priority 1 when { let jobs = 1; jobs > 0 } then rebalance_queue() because \"x\";",
            "jobs is a section",
        ),
        ("fn rebalance_queue() { 1 }", "fn rebalance_queue hides what comes with the language"),
        ("fn len(x) { 1 }", "fn len hides what comes with the language"),
        ("fn f(jobs) { jobs.pending }", "jobs is a section of the snapshot"),
        (
            "rule \"a\" priority 1 when { rule \"b\" priority 1 then rebalance_queue() because \"x\"; true } then rebalance_queue() because \"x\";",
            "inside another statement",
        ),
        // the `о` of `jоbs` and the `е` of `quеue` are Cyrillic
        (
            "rule \"a\" priority 1 when j\u{43e}bs.pending > 1 then rebalance_queue() because \"x\";",
            "did you mean jobs?",
        ),
        ("rule \"qu\u{435}ue\" priority 1 then rebalance_queue() because \"x\";", "a rule's name has 1 to 64 of a-z"),
        ("rule \"health\" priority 1 then rebalance_queue() because \"x\";", "health is the name"),
    ] {
        let found = refused(source);
        assert!(found.contains(wanted), "{source}\n{found}");
    }
}

#[test]
fn no_rule_changes_what_the_next_one_sees() {
    for harm in [
        "{ jobs.pending = 0; true }",
        "{ jobs.remove(\"pending\"); true }",
        "{ clips.high_score.clear(); true }",
        "{ clips.high_score.push(1); true }",
        "empty(clips.high_score)",
        "lower(clips.high_score[0])",
        "lower(jobs)",
        "{ let mine = jobs; mine.pending = 0; mine.clear(); true }",
        "{ let mine = clips.high_score; mine.clear(); true }",
        "{ let mine = [jobs]; mine.push(jobs); mine[0].clear(); mine.len() == 2 }",
        "{ let mine = []; [1].for_each(|| mine.push(clips)); mine.push(clips); true }",
        "{ let mine = || { clips.high_score.clear(); jobs.pending = 0; }; mine.call(); true }",
    ] {
        let functions = "fn empty(list) { list.clear(); true }\nfn lower(map) { map.id = 0; map.clear(); true }";
        let set = good(&format!(
            "{functions}\nrule \"bad\" priority 9 when jobs.pending == 7 && {harm} then rebalance_queue() because \"x\";\n\
             rule \"neighbour\" priority 1 each clip in clips.high_score when jobs.pending == 7 then schedule_clip(clip.id) because `${{clip.title}}`;"
        ));
        let mut snapshot = super::super::examples::full();
        snapshot.jobs.as_mut().expect("jobs").pending = 7;
        let decision = decide(&set, &mut snapshot);
        let seen: BTreeSet<String> = planned(&decision).into_iter().collect();
        assert!(seen.contains("schedule_clip clip:1"), "{harm}: {seen:?} {:?}", decision.failures);
        assert!(decision.failures.iter().all(|failure| failure.rule == "bad"), "{harm}: {:?}", decision.failures);
    }
}

#[test]
fn a_rule_may_not_propose_without_end() {
    let rule = |count: &str| {
        format!(
            "rule \"bad\" priority 9 each n in range(0, if jobs.pending == 7 {{ {count} }} else {{ 1 }}).filter(|n| true) \
             then schedule_clip(n + 1) because \"x\";\nrule \"neighbour\" priority 1 then rebalance_queue() because \"x\";"
        )
    };
    let decided = |count| {
        let mut snapshot = quiet();
        snapshot.jobs.as_mut().expect("jobs").pending = 7;
        // `range` is no list; a closure over a list makes one.
        let source = rule(count).replace("range(0, ", "(upto(").replace(").filter", ")).filter");
        let set = good(&format!(
            "fn upto(n) {{ let a = []; a.pad(n, 0); let i = 0; while i < n {{ a[i] = i; i += 1; }} a }}\n{source}"
        ));
        decide(&set, &mut snapshot)
    };
    let decision = decided("5000");
    assert_eq!(decision.failures[0].message, "proposes more than 1000 actions");
    assert_eq!(planned(&decision), ["rebalance_queue queue"]);
    let decision = decided("1000");
    assert_eq!(decision.failures, []);
    assert_eq!(decision.summary.held, 1000, "a rule's blast radius");
    assert_eq!(planned(&decision), ["rebalance_queue queue"]);
}

#[test]
fn reasons_are_bounded_and_one_line() {
    let set =
        good("rule \"a\" priority 1 then rebalance_queue() because { let s = \"a\\nb\"; s.pad(9000, \"x\"); s };");
    let decision = decide(&set, &mut quiet());
    assert_eq!(decision.actions[0].reason.chars().count(), 500);
    assert!(decision.actions[0].reason.starts_with("a bx"));
}

#[test]
fn a_stalled_machine_costs_one_rule_and_is_replayed_as_it_was() {
    /// Every look at it is a second later.
    struct Racing(std::sync::atomic::AtomicU64);
    #[async_trait::async_trait]
    impl crate::clock::Clock for Racing {
        fn now(&self) -> DateTime<chrono::Utc> {
            DateTime::UNIX_EPOCH
        }
        fn elapsed(&self) -> Duration {
            Duration::from_secs(2 * self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        }
        async fn sleep(&self, _: Duration) {}
    }
    let set = good(
        "rule \"slow\" priority 9 when { let n = 0; while n < 2000 { n += 1; } true } then rebalance_queue() because \"x\";\n\
         rule \"quick\" priority 1 then trigger_reconciliation() because \"x\";",
    );
    let clock: SharedClock = std::sync::Arc::new(Racing(Default::default()));
    let snapshot = quiet();
    let decision = plan(propose(&set, &snapshot, &clock, None), &Memory::default(), &Default::default(), snapshot.at);
    assert!(decision.failures[0].timed_out);
    assert_eq!(decision.failures[0].message, "took longer than 500 ms");
    let unreached = decision.unreached.as_ref().expect("the rest has no time left");
    assert_eq!((unreached.count, &*unreached.rules), (1, &["quick".to_owned()][..]));
    assert_eq!(unreached.because, "the rules before them took the 500 ms that all have together");
    let next = propose(&set, &snapshot, &clock, Some("quick"));
    let next = plan(next, &Memory::default(), &Default::default(), snapshot.at);
    assert_eq!(planned(&next), ["trigger_reconciliation platforms"], "its turn comes");
    let again = replay(&set, &snapshot, &decision);
    assert_eq!(serde_json::to_string(&again).expect("json"), serde_json::to_string(&decision).expect("json"));
}

#[test]
fn deep_nesting_is_refused_before_the_stack_ends() {
    let rule =
        |condition: &str| format!("rule \"a\" priority 1 when {condition} then rebalance_queue() because \"x\";");
    for (open, middle, close) in [
        ("(", "true", ")"),
        ("!", "true", ""),
        ("-", "1", ""),
        ("[", "1", "]"),
        ("#{a:", "1", "}"),
        ("{", "true", "}"),
        ("if true {", "true", "} else { false }"),
        ("`${", "1", "}`"),
        ("1 + (", "1", ")"),
        ("max(1, ", "1", ")"),
        ("|x| ", "1", ""),
        ("jobs.", "pending", ""),
        ("jobs[", "0", "]"),
        ("true && ", "true", ""),
        ("2 ** ", "2", ""),
    ] {
        for depth in [100, 10_000] {
            let source = rule(&format!("{}{middle}{}", open.repeat(depth), close.repeat(depth)));
            let loaded = load(&source);
            assert!(loaded.is_err() || open == "true && ", "{open}: {depth}");
        }
    }
}

/// The deepest nesting that loads, in every call of the deepest recursion, on half of a worker thread's stack.
#[test]
fn deep_calls_of_deep_expressions_fit_the_stack() {
    let recursion = || {
        let mut tried = 0;
        for (open, close) in
            [("if true { (1 + ", ") } else { 0 }"), ("(1 + ", ")"), ("max(1, ", ")"), ("[1].find(|x| true) + {", "}")]
        {
            let body = |depth: usize| format!("fn f(n) {{ {}f(n + 1){} }}", open.repeat(depth), close.repeat(depth));
            let deepest = (1..50).take_while(|depth| load(&body(*depth)).is_ok()).last().expect("one");
            stopped(
                &body(deepest),
                &format!("{}f(0){} > 1", "(1 + ".repeat(9), ")".repeat(9)),
                "calls functions too deeply",
            );
            tried += 1;
        }
        tried
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(recursion).expect("a thread");
    assert_eq!(thread.join().expect("no harm"), 4);
}
