//! What is refused at load, where, and with which suggestion.

use super::*;

const GOOD: &str = r#"rule "ok" priority 1 when jobs.pending > 1 then rebalance_queue() because "x";"#;

#[test]
fn positions_and_suggestions() {
    let cases = [
        // sections and fields, also where no evaluation comes by
        (
            "rule \"a\"\n  priority 9\n  when jobs.pendng > 5 then rebalance_queue() because \"x\";",
            "test.rhai:3:13: unknown field jobs.pendng; did you mean jobs.pending?",
        ),
        (
            "rule \"a\" priority 9 when quue.pending > 5 then rebalance_queue() because \"x\";",
            "test.rhai:1:26: unknown name quue",
        ),
        (
            "rule \"a\" priority 9 when job.pending > 5 then rebalance_queue() because \"x\";",
            "test.rhai:1:26: unknown name job; did you mean jobs?",
        ),
        (
            "rule \"a\" priority 9 when false && jobs.faild > 5 then rebalance_queue() because \"x\";",
            "test.rhai:1:40: unknown field jobs.faild; did you mean jobs.failed?",
        ),
        (
            "rule \"a\" priority 9 when true || (false && clips.high_score[0].titel == \"\") then rebalance_queue() because \"x\";",
            "test.rhai:1:64: unknown field clips.high_score.titel; did you mean clips.high_score.title?",
        ),
        (
            "rule \"a\" priority 9 each clip in clips.high_score when false && clip.scor > 1 then schedule_clip(clip.id) because \"x\";",
            "test.rhai:1:70: unknown field clip.scor",
        ),
        (
            "rule \"a\" priority 9 each log in publish_logs.stuck then force_publish(log.idd) because \"x\";",
            "test.rhai:1:75: unknown field log.idd; did you mean log.id?",
        ),
        (
            "rule \"a\" priority 9 when false then rebalance_queue() because `${jobs.pending} ${jobs.waitin}`;",
            "test.rhai:1:87: unknown field jobs.waitin; did you mean jobs.waiting?",
        ),
        (
            "rule \"a\" priority 9 when jobs[\"pendin\"] > 1 then rebalance_queue() because \"x\";",
            "test.rhai:1:31: unknown field jobs.pendin; did you mean jobs.pending?",
        ),
        // actions
        (
            "rule \"a\" priority 9 then rebalance_que() because \"x\";",
            "test.rhai:1:26: unknown action rebalance_que; did you mean rebalance_queue?",
        ),
        (
            "rule \"a\" priority 9 then schedule_clip(\"7\") because \"x\";",
            "test.rhai:1:26: schedule_clip takes clip_id, a positive whole number, not a text",
        ),
        (
            "rule \"a\" priority 9 then raise_alert(\"s\\x1b[31m\") because \"x\";",
            "test.rhai:1:26: raise_alert takes subject, a text, not one with control characters",
        ),
        (
            "rule \"a\" priority 9 then raise_alert(\"\") because \"x\";",
            "test.rhai:1:26: raise_alert takes subject, a text, not an empty text",
        ),
        (
            "rule \"a\" priority 9 then raise_alert(7) because \"x\";",
            "test.rhai:1:26: raise_alert takes subject, a text, not 7",
        ),
        (
            "rule \"a\" priority 9 then retry_failed_log() because \"x\";",
            "test.rhai:1:26: retry_failed_log is written retry_failed_log(log_id)",
        ),
        (
            "rule \"a\" priority 9 then rebalance_queue(#{ emergancy: true }) because \"x\";",
            "test.rhai:1:26: rebalance_queue has no option emergancy; did you mean emergency?",
        ),
        (
            "rule \"a\" priority 9 then 5 because \"x\";",
            "test.rhai:1:26: after `then` stands one action, e.g. retry_failed_log(log.id)",
        ),
        (
            "rule \"a\" priority 9 when rebalance_queue() then rebalance_queue() because \"x\";",
            "test.rhai:1:26: rebalance_queue is an action: it stands right after `then` and nowhere else",
        ),
        (
            "rule \"a\" priority 9 each clip in clips.high_score then schedule_clip(clip.title) because \"x\";",
            "test.rhai:1:56: rule a: schedule_clip takes clip_id, a positive whole number, not a text",
        ),
        // clauses
        (
            "rule \"a\" prioritty 9 then rebalance_queue() because \"x\";",
            "test.rhai:1:10: expected priority, cooldown, mode, each, when, then, found prioritty; did you mean priority?",
        ),
        ("rule \"a\" then rebalance_queue() because \"x\";", "test.rhai:1:1: a rule needs a priority from 1 to 10"),
        (
            "rule \"a\" priority 11 then rebalance_queue() because \"x\";",
            "test.rhai:1:19: priority is a whole number from 1 to 10",
        ),
        (
            "rule \"a\" priority 1 priority 2 then rebalance_queue() because \"x\";",
            "test.rhai:1:30: priority is written twice",
        ),
        (
            "rule \"a\" priority 1 cooldown \"5 parsecs\" then rebalance_queue() because \"x\";",
            "test.rhai:1:30: cooldown is a time such as \"30s\" or \"5m\": unknown time unit",
        ),
        (
            "rule \"a\" priority 1 mode \"observ\" then rebalance_queue() because \"x\";",
            "test.rhai:1:26: the only mode is \"observe\"; without it the rule acts; did you mean observe?",
        ),
        ("rule \"A b\" priority 1 then rebalance_queue() because \"x\";", "test.rhai:1:6: a rule's name has"),
        ("rule \"a\" priority 1 then rebalance_queue();", "test.rhai:1:43: expected because, found ;"),
        ("rule \"a\" priority 1 when jobs.pending >", "test.rhai:1:40: Script is incomplete"),
        (
            "rule \"a\" priority 1 each x in jobs then rebalance_queue() because \"x\";",
            "test.rhai:1:31: each goes through a list",
        ),
        // types, found by trying
        (
            "rule \"a\" priority 1 when jobs.pending > \"50\" then rebalance_queue() because \"x\";",
            "test.rhai:1:39: rule a: cannot compare a number with a text by >",
        ),
        (
            "rule \"a\" priority 1 each p in scheduler.active when p == 5 then rebalance_queue() because \"x\";",
            "test.rhai:1:55: rule a: cannot compare a text with a number by ==",
        ),
        (
            "rule \"a\" priority 1 when clips.high_score > 3 then rebalance_queue() because \"x\";",
            "test.rhai:1:43: rule a: cannot compare a list with a number by >",
        ),
        (
            "rule \"a\" priority 1 when jobs.pending then rebalance_queue() because \"x\";",
            "test.rhai:1:26: rule a: when needs true or false, not ",
        ),
        (
            "rule \"a\" priority 1 then rebalance_queue() because jobs.pending;",
            "test.rhai:1:52: rule a: because needs a text",
        ),
        (
            "rule \"a\" priority 1 cooldown \"500ms\" then rebalance_queue() because \"x\";",
            "test.rhai:1:30: a cooldown is between 1s and 7days",
        ),
        // functions
        (
            "const LIMIT = 5;\nfn more(n) { n > LIMIT }",
            "test.rhai:2:18: unknown name LIMIT; a function sees only its parameters",
        ),
        ("fn f(n) { jobs.pending > n }", "test.rhai:1:11: unknown name jobs; a function sees only its parameters"),
        // files
        ("let x = 1;", "test.rhai:1:1: write `const x = …;`: rules keep nothing between cycles"),
        ("const X = jobs.pending;", "a constant cannot depend on jobs, which changes"),
        ("const X = Y + 1;", "test.rhai:1:11: unknown name Y"),
        ("5 + 5;", "only const, fn, rule and deduct may stand at the top of a file"),
        ("deduct 5 when true because \"x\";", "test.rhai:1:1: deductions stand in health.rhai"),
        (
            "rule \"a\" priority 1 when sqare(2) == 4 then rebalance_queue() because \"x\";",
            "test.rhai:1:26: unknown function sqare",
        ),
        (
            "fn square(x) { x * x }\nrule \"a\" priority 1 when sqare(2) == 4 then rebalance_queue() because \"x\";",
            "test.rhai:2:26: unknown function sqare; did you mean square?",
        ),
    ];
    for (source, wanted) in cases {
        let found = refused(source);
        assert!(found.contains(wanted), "\n{source}\nwanted: {wanted}\nfound:  {found}");
        assert_eq!(found.lines().count(), 1, "one mistake, one message:\n{source}\n{found}");
    }
}

#[test]
fn every_mistake_of_every_file_is_told_at_once() {
    let bad = "rule \"a\" priority 1 when jobs.pendng > 1 then rebalance_que() because `${clips.recent}`;";
    let sources = BTreeMap::from([("one.rhai".to_owned(), bad.to_owned()), ("two.rhai".to_owned(), "rule".to_owned())]);
    let errors = RuleSet::load(&sources).expect_err("bad");
    let files: Vec<&str> = errors.iter().map(|error| error.file.as_str()).collect();
    assert_eq!(files, ["one.rhai", "one.rhai", "one.rhai", "two.rhai"], "{}", lines(&errors));
}

#[test]
fn names_are_unique_over_all_files() {
    let sources = BTreeMap::from([("one.rhai".to_owned(), GOOD.to_owned()), ("two.rhai".to_owned(), GOOD.to_owned())]);
    let errors = RuleSet::load(&sources).expect_err("the same name twice");
    assert_eq!(lines(&errors), "two.rhai:1:1: rule ok is already defined in one.rhai:1");
}

#[test]
fn clauses_come_in_any_order_and_keywords_are_good_names() {
    let set = good(
        "// a comment\nconst LIMIT = 50; /* another */\nfn more(a, b) { a > b }\n\
         rule \"when\" each clip in clips.high_score when more(clip.visual_score, LIMIT) mode \"observe\" cooldown \"90s\" priority 3\n\
         then schedule_clip(clip.id, \"tiktok\") because `score ${clip.visual_score}, more than ${LIMIT}`;\n\
         rule \"then\" priority 1 then rebalance_queue(#{ emergency: false }) because \"always\";",
    );
    let rule = &set.rules()[0];
    assert_eq!(
        (rule.name.as_str(), rule.priority, rule.cooldown_seconds, rule.mode),
        ("when", 3, Some(90), Mode::Observe)
    );
    assert_eq!((rule.file.as_str(), rule.line, rule.action.as_str()), ("test.rhai", 4, "schedule_clip"));
    assert_eq!(set.rules()[1].name, "then");
}

#[test]
fn a_guarded_index_is_a_good_rule_and_an_unguarded_one_is_not() {
    good(
        "rule \"a\" priority 1 when publish_logs.stuck.len() > 3 then force_publish(publish_logs.stuck[3].id) \
         because `${publish_logs.stuck[3].minutes}`;",
    );
    let found = refused("rule \"a\" priority 1 then force_publish(publish_logs.stuck[0].id) because \"x\";");
    assert!(found.starts_with("test.rhai:1:"), "{found}");
}

#[test]
fn variables_of_one_function_do_not_disturb_another() {
    good(
        "fn sum(list) { let n = 0; for x in list { n += x; } n }\nfn twice(n) { let x = n; let x = x * 2; x }\n\
         rule \"a\" priority 1 when sum([1, 2]) > twice(1) then rebalance_queue() because { let x = \"y\"; x };",
    );
}

#[test]
fn lists_are_asked_with_closures() {
    let set = good(
        "const GOOD = 85;\nrule \"a\" priority 1 when clips.high_score.filter(|clip| clip.visual_score > GOOD).len() >= 1 \
         && clips.high_score.some(|clip| clip.visual_score > jobs.pending)\n\
         then rebalance_queue() because \"x\";",
    );
    let mut snapshot = super::super::examples::full();
    assert_eq!(planned(&decide(&set, &mut snapshot)), ["rebalance_queue queue"]);
    let bad = "rule \"a\" priority 1 when clips.high_score.some(|clip| clip.id > jobs.pendng) then rebalance_queue() because \"x\";";
    assert!(refused(bad).contains("unknown field jobs.pendng"), "{}", refused(bad));
}

#[test]
fn the_hash_tells_sets_apart_and_sources_load_again() {
    let set = good(GOOD);
    let again = RuleSet::load(set.sources()).expect("its own sources");
    assert_eq!(set.hash(), again.hash());
    assert_eq!(set.hash().len(), 64);
    assert_ne!(set.hash(), good(&format!("{GOOD} ")).hash());
    assert_ne!(set.hash(), RuleSet::built_in().hash());
    assert!(set.sources().contains_key("health.rhai"), "the built-in health rules complete the set");
}

#[test]
fn sizes_are_bounded() {
    let one = |name: &str, source: String| RuleSet::load(&BTreeMap::from([(name.to_owned(), source)]));
    let found = lines(&one("a\nb.rhai", GOOD.to_owned()).expect_err("a control character"));
    assert_eq!(found, "a\\nb.rhai: a file's name may hold no control characters");
    let found = lines(&one("a.rhai", " ".repeat(256 * 1024 + 1)).expect_err("too large"));
    assert!(found.contains("at most 262144 are taken"), "{found}");
    assert!(one("a.rhai", " ".repeat(256 * 1024)).is_ok());
    let many = (0..200).map(|n| (format!("{n}.rhai"), String::new())).collect();
    let found = lines(&RuleSet::load(&many).expect_err("200 and health.rhai"));
    assert_eq!(found, "rules: 201 files; at most 200 are taken");
    let rules = |count: usize| {
        (0..count)
            .map(|n| {
                format!("rule \"r{n}\" priority 1 when jobs.pending > {n} then rebalance_queue() because \"x\";\n")
            })
            .collect::<String>()
    };
    assert!(lines(&one("a.rhai", rules(2001)).expect_err("too many rules")).contains("at most 2000 are taken"));
    assert_eq!(one("a.rhai", rules(2000)).expect("the most").rules().len(), 2000);
}

#[test]
fn the_unknown_is_neither_less_nor_greater() {
    let fires = |condition: &str, score: Option<f64>| {
        let set = good(&format!("rule \"a\" priority 1 when {condition} then rebalance_queue() because \"x\";"));
        let mut snapshot = quiet();
        snapshot.clips.as_mut().expect("clips").avg_visual_score = score;
        let decision = decide(&set, &mut snapshot);
        assert_eq!(decision.failures, [], "{condition}");
        !decision.actions.is_empty()
    };
    for condition in ["<", "<=", ">", ">="] {
        assert!(!fires(&format!("clips.avg_visual_score {condition} 40"), None), "{condition}");
        assert!(!fires(&format!("40.5 {condition} clips.avg_visual_score"), None), "{condition}");
    }
    assert!(fires("clips.avg_visual_score == ()", None));
    assert!(!fires("clips.avg_visual_score != ()", None));
    assert!(fires("clips.avg_visual_score != ()", Some(1.0)));
    assert!(fires("clips.avg_visual_score < 40", Some(39.5)));
    assert!(!fires("clips.avg_visual_score < 40", Some(40.0)));
}

#[test]
fn text_against_number_fails_the_rule_and_not_its_neighbours() {
    // At load the list is empty in one example and holds a text in the other only behind the guard.
    let set = good(
        "rule \"a\" priority 1 each e in ledger.recent_errors when ledger.errors_1h > 50 && e.subject.len() > 99 && e.subject < 5 \
         then rebalance_queue() because \"x\";\n\
         rule \"b\" priority 1 then trigger_reconciliation() because \"x\";",
    );
    let mut snapshot = super::super::examples::full();
    let ledger = snapshot.ledger.as_mut().expect("ledger");
    ledger.errors_1h = 51;
    ledger.recent_errors[0].subject = Some("s".repeat(100));
    let decision = decide(&set, &mut snapshot);
    assert_eq!(planned(&decision), ["trigger_reconciliation platforms"]);
    let failure = &decision.failures[0];
    assert_eq!((failure.rule.as_str(), failure.file.as_str(), failure.line), ("a", "test.rhai", 1));
    assert_eq!(failure.message, "cannot compare a text with a number by <");
}
