//! Rules of operators: obeyed as soon as they are saved, refused as a whole, never able to stop the loop; and replay.

use std::time::Duration;

use serde_json::{Value, json};
use showrunner::app::Mode;
use showrunner::control::cycles;
use showrunner::control::decider::{Decision, RuleSet, replay};
use showrunner::control::snapshot::Snapshot;

use crate::on_both;
use crate::support::World;
use crate::support::faults::{Counting, Failing};
use crate::support::process::Process;
use crate::support::world::{EVENING, list, planned, proposed};

const ORDER: &str = "rule \"order\"\n    priority 5\n    when jobs.pending > 2\n    then rebalance_queue()\n    because `${jobs.pending} jobs`;\n";

async fn rules_status(world: &World) -> Value {
    world.get("/orchestrator/status").await.1["rules"].clone()
}

/// Runs a cycle; asserts that the rule in force is still `order`, which acts on three jobs.
async fn order_is_obeyed(world: &World) {
    let cycle = world.run_once().await;
    assert!(proposed(&cycle, "order"), "{}", cycle["decision"]);
    assert_eq!(cycle["execution"]["succeeded"], 1);
}

/// Decides every recorded cycle again; returns how many there were. Each decision comes out byte for byte.
async fn replay_all(world: &World) -> usize {
    let count = world.number("SELECT MAX(id) FROM cycles").await;
    let mut replayed = 0;
    for id in 1..=count {
        let cycle = cycles::load(&world.db, id).await.expect("a read").expect("a cycle");
        if cycle.snapshot.is_null() {
            continue;
        }
        let snapshot: Snapshot = serde_json::from_value(cycle.snapshot).expect("a snapshot");
        let recorded: Decision = serde_json::from_value(cycle.decision).expect("a decision");
        let sources = cycles::rule_sources(&world.db, &cycle.row.rules_hash).await.expect("a read").expect("the rules");
        let rules = RuleSet::load(&sources).expect("rules that were once in force");
        assert_eq!(rules.hash(), cycle.row.rules_hash);
        let again = serde_json::to_value(replay(&rules, &snapshot, &recorded)).expect("JSON").to_string();
        assert_eq!(again, cycle.row.decision.unwrap_or("{}".to_owned()), "cycle {id}");
        replayed += 1;
    }
    replayed
}

on_both! {
    async fn a_saved_rule_is_obeyed_by_the_next_cycle(world) {
        world.pending_jobs(3, 1).await;
        world.rules("story.rhai", &ORDER.replace("> 2", "> 3"));
        world.start_still().await;
        let before = rules_status(&world).await;
        assert!(!proposed(&world.run_once().await, "order"));
        world.rules("story.rhai", ORDER);
        let cycle = world.run_once().await;
        assert!(proposed(&cycle, "order"));
        assert_eq!(cycle["decision"]["actions"][0]["reason"], "3 jobs");
        let loaded = world.ledger("orchestrator.rules_loaded").await;
        assert_eq!((loaded.len(), &loaded[0]["actor"], &loaded[0]["cycle_id"]), (1, &json!("system"), &cycle["cycle_id"]));
        let after = rules_status(&world).await;
        assert_eq!((&loaded[0]["payload"]["hash"], &loaded[0]["payload"]["previous"]), (&after["hash"], &before["hash"]));
        assert_ne!(after["hash"], before["hash"]);
        assert_eq!(world.text(&format!("SELECT rules_hash FROM cycles WHERE id = {}", cycle["cycle_id"])).await, after["hash"].as_str().expect("a hash"));
        world.run_once().await;
        assert_eq!(world.ledger("orchestrator.rules_loaded").await.len(), 1, "told once");
    }

    async fn a_bad_file_leaves_the_old_set_and_is_named_everywhere(world) {
        world.pending_jobs(3, 1).await;
        world.rules("story.rhai", ORDER);
        world.start_still().await;
        order_is_obeyed(&world).await;
        let good = rules_status(&world).await;
        // A good change beside a bad one: the set changes as a whole or not at all.
        world.rules("story.rhai", &ORDER.replace("\"order\"", "\"renamed\""));
        for (text, place, suggestion) in [
            ("rule \"bad\" priority 5\n    when jobs.pendign > 1\n    then rebalance_queue() because \"x\";", "bad.rhai:2:", "pending"),
            ("rule \"bad\" priority 5\n    when job.pending > 1\n    then rebalance_queue() because \"x\";", "bad.rhai:2:", "jobs"),
            ("rule \"bad\" priority 5\n\n    then rebalence_queue()\n because \"x\";", "bad.rhai:3:", "rebalance_queue"),
            ("rule \"bad\" prioritty 5\n    then rebalance_queue() because \"x\";", "bad.rhai:1:", "priority"),
        ] {
            world.rules("bad.rhai", text);
            order_is_obeyed(&world).await;
            let rejected = world.ledger("orchestrator.rules_rejected").await;
            let (entry, status) = (&rejected[0], rules_status(&world).await);
            assert_eq!((&entry["actor"], &entry["severity"]), (&json!("system"), &json!("warning")));
            assert_eq!(status["hash"], good["hash"], "the old set is in force");
            assert_eq!((&entry["payload"]["active"], &entry["payload"]["hash"]), (&good["hash"], &status["rejected_hash"]));
            assert_ne!(status["rejected_hash"], Value::Null);
            for errors in [&entry["payload"]["errors"], &status["rejected_because"]] {
                let error = errors[0].as_str().expect("an error");
                assert!(error.starts_with(place), "{error} does not begin with {place}");
                let column = error[place.len()..].split(':').next().expect("a column").parse::<u32>();
                assert!(column.is_ok_and(|column| column > 0), "{error} names no column");
                assert!(error.contains(&format!("did you mean {suggestion}")) || error.contains(&format!("did you mean jobs.{suggestion}")), "{error}");
            }
        }
        assert_eq!(world.ledger("orchestrator.rules_rejected").await.len(), 4);
        order_is_obeyed(&world).await;
        assert_eq!(world.ledger("orchestrator.rules_rejected").await.len(), 4, "told once a change");
    }

    async fn names_are_unique_and_priorities_bounded(world) {
        world.pending_jobs(3, 1).await;
        world.rules("story.rhai", ORDER);
        world.start_still().await;
        for bad in [
            ORDER.to_owned(),
            ORDER.replace("\"order\"", "\"x\"").replace("priority 5", "priority 11"),
            ORDER.replace("\"order\"", "\"x\"").replace("priority 5", "priority 0"),
            ORDER.replace("\"order\"", "\"x\"").replace("jobs.pending > 2", "jobs.pending > \"2\""),
            ORDER.replace("\"order\"", "\"x\"").replace("rebalance_queue()", "schedule_clip(\"one\")"),
            ORDER.replace("\"order\"", "\"x\"").replace("jobs.pending > 2", "eval(\"true\")"),
            "import \"story\" as story;".to_owned(),
        ] {
            let known = world.ledger("orchestrator.rules_rejected").await.len();
            world.rules("bad.rhai", &bad);
            order_is_obeyed(&world).await;
            assert_eq!(world.ledger("orchestrator.rules_rejected").await.len(), known + 1, "taken: {bad}");
            world.clock.advance(Duration::from_secs(120));
        }
    }

    async fn a_half_saved_file_is_refused_until_the_rest_comes(world) {
        world.pending_jobs(3, 1).await;
        world.rules("story.rhai", ORDER);
        world.start_still().await;
        order_is_obeyed(&world).await;
        let other = ORDER.replace("\"order\"", "\"other\"");
        for cut in [10, 30, other.len() - 5] {
            world.rules("story.rhai", &other[..cut]);
            order_is_obeyed(&world).await;
        }
        assert_eq!(world.ledger("orchestrator.rules_rejected").await.len(), 3);
        world.rules("story.rhai", &other);
        assert!(proposed(&world.run_once().await, "other"));
        assert_eq!(rules_status(&world).await["rejected_hash"], Value::Null);
        assert_eq!(rules_status(&world).await["rejected_because"], json!([]));
    }

    async fn a_deleted_folder_leaves_the_rules_in_force_until_it_is_back(world) {
        world.pending_jobs(3, 1).await;
        world.rules("story.rhai", ORDER);
        world.start_still().await;
        order_is_obeyed(&world).await;
        let folder = world.folder().join("rules");
        std::fs::remove_dir_all(&folder).expect("the folder is gone");
        order_is_obeyed(&world).await;
        let because = rules_status(&world).await["rejected_because"].clone();
        assert!(because[0].as_str().expect("why").contains("cannot be read"), "{because}");
        std::fs::create_dir(&folder).expect("a folder");
        order_is_obeyed(&world).await;
        let because = rules_status(&world).await["rejected_because"].clone();
        assert!(because[0].as_str().expect("why").contains("no .rhai file"), "an empty folder is not an empty set: {because}");
        world.rules("story.rhai", ORDER);
        order_is_obeyed(&world).await;
        let restored = world.ledger("orchestrator.rules_loaded").await;
        assert_eq!((restored.len(), &restored[0]["payload"]["hash"]), (1, &restored[0]["payload"]["previous"]));
        assert_eq!(rules_status(&world).await["rejected_because"], json!([]));
    }

    async fn a_folder_that_is_bad_at_the_start_is_told_and_the_built_in_rules_act(world) {
        world.rules("story.rhai", "rule \"x\" priority");
        world.pending_jobs(51, 1).await;
        world.start_still().await;
        assert!(proposed(&world.run_once().await, "queue_saturated"));
        assert_eq!(world.ledger("orchestrator.rules_rejected").await.len(), 1);
    }

    async fn a_restart_on_a_folder_that_went_bad_goes_on_with_the_last_good_rules(world) {
        world.rules("story.rhai", ORDER);
        world.start_still().await;
        world.pending_jobs(3, 1).await;
        let before = world.run_once().await["cycle_id"].clone();
        world.stop().await;
        world.rules("story.rhai", "rule \"x\" priority");
        world.start_still().await;
        let after = world.run_once().await["cycle_id"].clone();
        let rules = async |world: &World, id: &Value| world.text(&format!("SELECT rules_hash FROM cycles WHERE id = {id}")).await;
        assert_eq!(rules(&world, &after).await, rules(&world, &before).await);
        assert_eq!(world.ledger("orchestrator.rules_rejected").await.len(), 1);
    }

    async fn a_rule_that_loops_for_ever_is_skipped_and_the_others_act(world) {
        // It ends on the example platforms of the load, and not on this one.
        let spin = "fn spin(n) { while n == 3 { } n > 100 }\n";
        let bad = ORDER.replace("\"order\"", "\"endless\"").replace("jobs.pending > 2", "spin(jobs.pending)");
        let typed = ORDER.replace("\"order\"", "\"typed\"").replace("jobs.pending > 2", "mistyped(jobs.pending)");
        let behind = ORDER.replace("\"order\"", "\"behind\"");
        world.rules("bad.rhai", &format!("{spin}{bad}{behind}"));
        world.rules("story.rhai", ORDER);
        world.rules("typed.rhai", &format!("fn mistyped(n) {{ n == 3 && n < \"4\" }}\n{typed}"));
        world.pending_jobs(3, 1).await;
        world.start_still().await;
        assert_eq!(rules_status(&world).await["rejected_because"], json!([]));
        for _ in 0..3 {
            let cycle = world.run_once().await;
            let failures = list(&cycle["decision"]["failures"]);
            let endless = failures.iter().find(|failure| failure["rule"] == "endless").expect("its failure");
            assert_eq!(endless["file"], "bad.rhai");
            assert!(endless["message"].as_str().expect("why").contains("operations"), "{endless}");
            assert_eq!(cycle["execution"]["succeeded"], 1, "the others act");
            assert!(proposed(&cycle, "order"));
            assert!(proposed(&cycle, "behind"), "so does the one behind it in its file");
        }
        let entries = world.ledger("orchestrator.rule_failed").await;
        let endless: Vec<_> = entries.iter().filter(|entry| entry["rule"] == "endless").collect();
        assert_eq!(endless.len(), 1, "told once an hour");
        assert_eq!((&endless[0]["severity"], &endless[0]["subject"], &endless[0]["actor"]), (&json!("error"), &json!("rule:endless"), &json!("loop")));
        assert_eq!(world.snapshot().await["ledger"]["errors_1h"], entries.len(), "each rule's failure counts once");
        world.clock.advance(Duration::from_secs(3601));
        world.run_once().await;
        assert_eq!(world.ledger("orchestrator.rule_failed").await.iter().filter(|entry| entry["rule"] == "endless").count(), 2);
        assert_eq!(replay_all(&world).await, 4);
    }

    async fn no_expression_brings_the_loop_down(world) {
        world.pending_jobs(3, 1).await;
        world.clip(90.0, None).await;
        world.rules("story.rhai", ORDER);
        world.start_still().await;
        for condition in [
            "jobs.to_string() != \"\"",
            "clips.keys().len() > 0",
            "clips.high_score.filter(|clip| clip.id > 0).len() > 0",
            "clips.high_score[0].title.len() > 0",
            "(clips.high_score + clips.high_score).len() > 0",
            "[clips, clips].len() > 0",
            "#{ a: clips }.a.high_score.len() > 0",
            "system.deductions.to_debug() != \"\"",
            "jobs == jobs",
            "1 / (jobs.pending - 3) > 0",
            "[1][jobs.pending] > 0",
            "clips.high_score.map(|clip| clip).len() > 0",
        ] {
            world.rules("odd.rhai", &ORDER.replace("\"order\"", "\"odd\"").replace("jobs.pending > 2", condition));
            world.clock.advance(Duration::from_secs(61));
            order_is_obeyed(&world).await;
        }
    }

    async fn every_cycle_of_a_busy_story_replays_to_the_same_decision(world) {
        let faults = Failing::none();
        world.rules("default.rhai", ORDER);
        for (file, text) in showrunner::control::decider::rules::BUILT_IN {
            world.rules(file, text);
        }
        world.app = Some(world.instance(Mode::Command, 1, Some(faults.clone())).await);
        let campaign = world.campaign(20_000).await;
        for n in 0..12 {
            world.clip(f64::from(n * 8), (n % 3 == 0).then_some(campaign)).await;
        }
        world.pending_jobs(60, 40).await;
        let failing = world.clip(55.0, None).await;
        world.failed_log(failing, "tiktok", 5).await;
        world.run_once().await;
        world.run_once().await; // everything is in its cooldown
        world.set_time(EVENING);
        world.run_once().await;
        world.ledger_errors(12).await;
        world.run_once().await;
        faults.set(Some("name = 'jobs'"));
        world.run_once().await; // without one section
        faults.set(Some("SET priority = priority + 1"));
        world.rules("default.rhai", &ORDER.replace("> 2", "> 0"));
        for _ in 0..7 {
            world.run_once().await; // failing, then with an open breaker
        }
        faults.set(None);
        world.rules("default.rhai", "rule");
        world.run_once().await;
        world.clock.advance(Duration::from_secs(1800));
        world.run_once().await;
        assert_eq!(replay_all(&world).await, 14);
        assert!(world.number("SELECT COUNT(DISTINCT rules_hash) FROM cycles").await == 2);
        for fate in ["planned", "merged", "held"] {
            assert!(world.number(&format!("SELECT COUNT(*) FROM cycles WHERE CAST(decision AS TEXT) LIKE '%\"fate\":\"{fate}\"%'")).await > 0, "no proposal was {fate}");
        }
    }

    async fn a_section_that_cannot_be_read_is_unobserved_and_the_cycle_goes_on(world) {
        let faults = Failing::none();
        world.pending_jobs(60, 1).await;
        let clip = world.clip(50.0, None).await;
        world.failed_log(clip, "tiktok", 5).await;
        let campaign = world.campaign(20_000).await;
        world.clip(60.0, Some(campaign)).await;
        world.ledger_errors(6).await;
        let mut needing = String::new();
        for condition in [
            "jobs.pending >= 0",
            "publish_logs.failed >= 0",
            "campaigns.active >= 0",
            "clips.recent_24h >= 0",
            "ledger.errors_1h >= 0",
            "scheduler.windows.len() >= 0",
        ] {
            let section = condition.split('.').next().expect("a section");
            needing += &format!(
                "rule \"needs_{section}\"\n priority 5\n when {condition}\n then trigger_reconciliation()\n because \"x\";\n"
            );
        }
        world.rules("story.rhai", &needing);
        world.app = Some(world.instance(Mode::Command, 1, Some(faults.clone())).await);
        for (section, statement) in [
            ("jobs", "name = 'jobs'"),
            ("publish_logs", "name = 'publish_logs'"),
            ("campaigns", "name = 'campaigns'"),
            ("clips", "SELECT id, title, visual_score, campaign_id FROM clips"),
            ("ledger", "SELECT COUNT(*) FROM (SELECT DISTINCT"),
        ] {
            faults.set(Some(statement));
            let cycle = world.run_once().await;
            let snapshot = &cycle["snapshot"];
            // The queue's three sections are read together.
            let together = if section == "jobs" { json!(["jobs", "workers", "dead_letters"]) } else { json!([section]) };
            assert_eq!((&snapshot["system"]["unobserved"], &snapshot[section]), (&together, &Value::Null), "{section}");
            let status = snapshot["system"]["status"].as_str().expect("a status");
            assert!(status == "unknown" || status == "critical", "{section}: {status}");
            let held = list(&cycle["decision"]["held_rules"]);
            assert_eq!((held.len(), &held[0]["rule"]), (1, &json!(format!("needs_{section}"))));
            assert!(held[0]["because"].as_str().expect("why").contains(section));
            assert_eq!(list(&cycle["decision"]["proposals"]).len(), 5, "the others are asked");
            assert_eq!(planned(&cycle, "trigger_reconciliation").len(), 1);
            assert_ne!(world.text(&format!("SELECT status FROM cycles WHERE id = {}", cycle["cycle_id"])).await, "error");
            assert_eq!(world.text(&format!("SELECT health_status FROM cycles WHERE id = {}", cycle["cycle_id"])).await, status);
        }
        faults.set(None);
        assert_eq!(world.run_once().await["snapshot"]["system"]["unobserved"], json!([]));
        assert_eq!(replay_all(&world).await, 6);
    }

    async fn the_figures_of_all_sections_are_read_together(world) {
        let together = Counting::of("name = 'jobs'");
        world.app = Some(world.instance(Mode::Command, 1, Some(together.clone())).await);
        together.met();
        world.snapshot().await;
        assert_eq!(together.met(), 1, "each section would read its own where that failed");
    }

    async fn a_platform_that_looks_fine_is_not_called_healthy_with_a_section_missing(world) {
        let faults = Failing::none();
        world.app = Some(world.instance(Mode::Command, 1, Some(faults.clone())).await);
        assert_eq!(world.snapshot().await["system"]["status"], "healthy");
        faults.set(Some("name = 'jobs'"));
        let system = world.snapshot().await["system"].clone();
        assert_eq!((&system["status"], &system["unobserved"]), (&json!("unknown"), &json!(["jobs", "workers", "dead_letters"])));
    }

    async fn the_real_program_logs_why_it_refused_rules(world) {
        world.rules("story.rhai", ORDER);
        let folder = world.folder().join("rules");
        let process = Process::serve(world.url(), &[("RULES_DIR", folder.to_str().expect("a path"))]).await;
        world.rules("bad.rhai", "rule \"bad\" priority 5\n when jobs.pendign > 1\n then rebalance_queue() because \"x\";");
        process.poke("/orchestrator/run-once").await;
        let log = process.log_with("rejected").await;
        assert!(log.contains("bad.rhai:2:") && log.contains("did you mean"), "{log}");
        assert_eq!(process.end("TERM").await, Some(0));
    }
}
