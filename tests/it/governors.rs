//! What holds the loop back, seen from outside: cooldown, budget, blast radius, breaker, merge.

use std::time::Duration;

use serde_json::{Value, json};
use showrunner::app::Mode;

use crate::on_both;
use crate::support::World;
use crate::support::faults::Failing;
use crate::support::process::Process;
use crate::support::world::{list, planned};

/// A rule that always proposes `action`.
fn rule(name: &str, clauses: &str, action: &str) -> String {
    format!("rule \"{name}\"\n {clauses}\n then {action}\n because \"{name} says so\";\n")
}

/// The fates of a cycle's proposals with their reasons, in order.
fn fates(cycle: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    list(&cycle["decision"]["proposals"])
        .iter()
        .map(|proposal| (text(&proposal["fate"]), text(&proposal["because"])))
        .collect()
}

/// Asserts that the cycle's one proposal was held, for a reason that contains `because`.
fn held(cycle: &Value, because: &str) {
    let fates = fates(cycle);
    assert!(
        fates.len() == 1 && fates[0].0 == "held" && fates[0].1.contains(because),
        "{fates:?} is not held for `{because}`"
    );
    assert_eq!(cycle["decision"]["actions"], json!([]));
    assert_eq!(cycle["execution"]["total"], 0);
    assert_eq!(cycle["decision"]["summary"]["held"], 1);
}

fn outcomes(cycle: &Value) -> Vec<&str> {
    list(&cycle["execution"]["results"]).iter().map(|result| result["outcome"].as_str().expect("an outcome")).collect()
}

/// Starts the service on this world with `faults` in its database.
async fn start_with(world: &mut World, faults: &std::sync::Arc<Failing>) {
    world.app = Some(world.instance(Mode::Command, 1, Some(faults.clone())).await);
}

/// A statement of `rebalance_queue` and of nothing else.
const REBALANCING: &str = "SET priority = priority + 1";

on_both! {
    async fn a_cooldown_holds_the_same_rule_and_target_only(world) {
        let (one, two) = (world.clip(20.0, None).await, world.clip(20.0, None).await);
        world.rules("story.rhai", &rule("poor", "priority 5 cooldown \"10m\"", &format!("downgrade_low_score_clip({one})")));
        world.start_still().await;
        assert_eq!(outcomes(&world.run_once().await), ["refused"], "a refusal starts the cooldown too");
        world.clock.advance(Duration::from_secs(599));
        held(&world.run_once().await, "cooldown ends at 2026-11-20T12:10:00.000Z");
        world.rules("story.rhai", &rule("poor", "priority 5 cooldown \"10m\"", &format!("downgrade_low_score_clip({two})")));
        assert_eq!(outcomes(&world.run_once().await), ["refused"], "another target");
        world.rules("story.rhai", &rule("other", "priority 5 cooldown \"10m\"", &format!("downgrade_low_score_clip({one})")));
        assert_eq!(outcomes(&world.run_once().await), ["refused"], "another rule");
        world.rules("story.rhai", &rule("poor", "priority 5 cooldown \"10m\"", &format!("downgrade_low_score_clip({one})")));
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(outcomes(&world.run_once().await), ["refused"], "ten minutes are over");
    }

    async fn a_cooldown_survives_a_restart(world) {
        world.rules("story.rhai", &rule("order", "priority 5 cooldown \"10m\"", "rebalance_queue()"));
        world.start_still().await;
        assert_eq!(outcomes(&world.run_once().await), ["executed"]);
        world.stop().await;
        world.clock.advance(Duration::from_secs(60)); // the lease of the stopped instance is over
        world.start_still().await;
        held(&world.run_once().await, "cooldown");
    }

    async fn a_budget_of_an_hour_holds_its_kind_only(world) {
        world.config.governors.budgets.insert("rebalance_queue".to_owned(), 2);
        world.rules("story.rhai", &rule("order", "priority 5", "rebalance_queue()"));
        world.start_still().await;
        assert_eq!(outcomes(&world.run_once().await), ["executed"]);
        world.clock.advance(Duration::from_secs(60));
        assert_eq!(outcomes(&world.run_once().await), ["executed"]);
        held(&world.run_once().await, "the budget of 2 rebalance_queue an hour is used up");
        world.rules("other.rhai", &rule("ask", "priority 5", "trigger_reconciliation()"));
        let cycle = world.run_once().await;
        assert_eq!(outcomes(&cycle), ["executed"]);
        assert_eq!(planned(&cycle, "trigger_reconciliation").len(), 1);
        std::fs::remove_file(world.folder().join("rules/other.rhai")).expect("its rules go");
        world.clock.advance(Duration::from_secs(3541));
        assert_eq!(outcomes(&world.run_once().await), ["executed"], "the first one is over an hour old");
        held(&world.run_once().await, "budget");
    }

    async fn a_budget_counts_what_one_plan_begins(world) {
        world.config.governors.budgets.insert("schedule_clip".to_owned(), 2);
        for _ in 0..3 {
            world.clip(90.0, None).await;
        }
        world.rules("story.rhai", &rule("all", "priority 5 each clip in clips.high_score", "schedule_clip(clip.id)"));
        world.start_still().await;
        let cycle = world.run_once().await;
        assert_eq!(outcomes(&cycle), ["executed", "executed"]);
        assert_eq!(fates(&cycle).iter().filter(|(fate, because)| fate == "held" && because.contains("budget of 2")).count(), 1);
    }

    async fn a_budget_of_nothing_forbids_a_kind(world) {
        world.config.governors.budgets.insert("rebalance_queue".to_owned(), 0);
        world.rules("story.rhai", &rule("order", "priority 5", "rebalance_queue()"));
        world.start_still().await;
        held(&world.run_once().await, "budget of 0");
    }

    async fn a_rule_that_wants_too_much_gets_nothing_and_others_go_on(world) {
        world.config.governors.rule_blast_radius = 3;
        for _ in 0..3 {
            world.clip(90.0, None).await;
        }
        let all = rule("all", "priority 5 each clip in clips.high_score", "schedule_clip(clip.id)");
        world.rules("story.rhai", &[all, rule("order", "priority 1", "rebalance_queue()")].concat());
        world.start_still().await;
        assert_eq!(planned(&world.run_once().await, "schedule_clip").len(), 3, "three are not too many");
        world.sql("DELETE FROM publish_logs").await;
        world.sql("UPDATE clips SET status = 'ready'").await;
        world.clip(90.0, None).await;
        let cycle = world.run_once().await;
        assert_eq!(planned(&cycle, "schedule_clip").len(), 0);
        assert_eq!(planned(&cycle, "rebalance_queue").len(), 1);
        let held = fates(&cycle).into_iter().filter(|(fate, because)| fate == "held" && because.contains("proposes 4 actions in one cycle, more than 3"));
        assert_eq!(held.count(), 4);
    }

    async fn a_plan_that_is_too_large_is_not_begun_and_the_ledger_says_so(world) {
        world.config.governors.plan_blast_radius = 3;
        for _ in 0..3 {
            world.clip(90.0, None).await;
        }
        let all = rule("all", "priority 5 each clip in clips.high_score", "schedule_clip(clip.id)");
        world.rules("story.rhai", &[all, rule("order", "priority 9", "rebalance_queue()")].concat());
        world.start_still().await;
        let cycle = world.run_once().await;
        assert_eq!(cycle["decision"]["blast_radius_exceeded"], true);
        assert_eq!((&cycle["decision"]["actions"], &cycle["execution"]["total"]), (&json!([]), &json!(0)));
        assert!(fates(&cycle).iter().all(|(fate, because)| fate == "held" && because.contains("the plan has 4 actions, more than 3")));
        assert_eq!(world.number("SELECT COUNT(*) FROM publish_logs").await, 0);
        let entries = world.ledger("orchestrator.blast_radius_exceeded").await;
        assert_eq!((entries.len(), &entries[0]["severity"], &entries[0]["cycle_id"]), (1, &json!("warning"), &cycle["cycle_id"]));
    }

    async fn rules_that_want_the_same_are_merged_with_all_their_reasons(world) {
        let clip = world.clip(50.0, None).await;
        let schedule = format!("schedule_clip({clip}, \"tiktok\")");
        let quiet = rule("quiet", "priority 2", &schedule);
        world.rules("story.rhai", &[quiet, rule("loud", "priority 8", &schedule), rule("elsewhere", "priority 5", &format!("schedule_clip({clip}, \"youtube\")"))].concat());
        world.start_still().await;
        let cycle = world.run_once().await;
        let actions = list(&cycle["decision"]["actions"]);
        assert_eq!(actions.len(), 2, "{actions:?}");
        let merged = &actions[0];
        assert_eq!((&merged["rules"], &merged["priority"]), (&json!(["loud", "quiet"]), &json!(8)));
        assert_eq!((&merged["reasons"], &merged["reason"]), (&json!(["loud says so", "quiet says so"]), &json!("loud says so")));
        assert_eq!(actions[1]["rules"], json!(["elsewhere"]), "another platform is another target");
        let mut all: Vec<_> = list(&cycle["decision"]["proposals"]).iter().map(|one| (one["rule"].as_str(), one["fate"].as_str())).collect();
        all.sort_unstable();
        assert_eq!(all, [(Some("elsewhere"), Some("planned")), (Some("loud"), Some("planned")), (Some("quiet"), Some("merged"))]);
        assert_eq!(outcomes(&cycle), ["executed", "executed"]);
        let entries = world.ledger("orchestrator.action_executed").await;
        let entry = entries.iter().find(|entry| entry["subject"] == format!("clip:{clip}:tiktok")).expect("its entry");
        assert_eq!((&entry["rule"], &entry["payload"]["reasons"]), (&json!("loud"), &json!(["loud says so", "quiet says so"])));
    }

    async fn a_plain_rebalance_and_an_emergency_are_two_targets(world) {
        let plain = rule("plain", "priority 9", "rebalance_queue()");
        world.rules("story.rhai", &[plain, rule("emergency", "priority 10", "rebalance_queue(#{ emergency: true })")].concat());
        world.start_still().await;
        let cycle = world.run_once().await;
        let emergencies: Vec<_> = planned(&cycle, "rebalance_queue").iter().map(|action| action["emergency"].clone()).collect();
        assert_eq!(emergencies, [true, false]);
    }

    async fn a_rule_that_only_observes_is_written_down_and_not_obeyed(world) {
        world.rules("story.rhai", &rule("watch", "priority 5 mode \"observe\"", "rebalance_queue()"));
        world.start_still().await;
        let cycle = world.run_once().await;
        assert_eq!(fates(&cycle)[0].0, "observed");
        assert_eq!(cycle["execution"]["total"], 0);
    }

    async fn a_breaker_opens_tries_once_and_closes(world) {
        let faults = Failing::none();
        faults.set(Some(REBALANCING));
        world.rules("story.rhai", &rule("order", "priority 5", "rebalance_queue()"));
        start_with(&mut world, &faults).await;
        for failure in 1..=5 {
            let cycle = world.run_once().await;
            assert_eq!(outcomes(&cycle), ["failed"], "failure {failure}");
            assert_eq!((&cycle["execution"]["succeeded"], &cycle["execution"]["failed"]), (&json!(0), &json!(1)));
            let opened = world.ledger("orchestrator.breaker_opened").await.len();
            assert_eq!(opened, usize::from(failure == 5), "after failure {failure}");
        }
        let opened = world.ledger("orchestrator.breaker_opened").await;
        assert_eq!((&opened[0]["subject"], &opened[0]["actor"]), (&json!("action:rebalance_queue"), &json!("loop")));
        assert_eq!((&opened[0]["payload"]["failures"], &opened[0]["payload"]["seconds"]), (&json!(5), &json!(300)));
        let failed = world.ledger("orchestrator.action_failed").await;
        assert_eq!((failed.len(), &failed[0]["severity"]), (5, &json!("error")));
        assert!(failed[0]["payload"]["detail"]["error"].as_str().expect("why").contains("the story struck it"));
        assert_eq!(world.snapshot().await["ledger"]["errors_1h"], 1, "one action failing again and again counts once");

        let struck = faults.struck();
        world.clock.advance(Duration::from_secs(299));
        held(&world.run_once().await, "the breaker of rebalance_queue is open until 2026-11-20T12:05:00.000Z: 5 failures in a row");
        assert_eq!(faults.struck(), struck, "nothing was tried");
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(outcomes(&world.run_once().await), ["failed"], "half open: one is let through");
        held(&world.run_once().await, "is open until 2026-11-20T12:10:00.000Z: 6 failures");
        assert_eq!(world.ledger("orchestrator.breaker_opened").await.len(), 1, "it never closed");

        faults.set(None);
        held(&world.run_once().await, "is open until");
        world.clock.advance(Duration::from_secs(300));
        assert_eq!(outcomes(&world.run_once().await), ["executed"]);
        let closed = world.ledger("orchestrator.breaker_closed").await;
        assert_eq!((closed.len(), &closed[0]["subject"]), (1, &json!("action:rebalance_queue")));
        assert_eq!(outcomes(&world.run_once().await), ["executed"], "closed");
    }

    async fn rejected_rules_and_open_breakers_are_told_to_prometheus(world) {
        let rules = world.folder().join("rules");
        std::fs::create_dir(&rules).expect("a folder");
        std::fs::write(rules.join("story.rhai"), "nonsense").expect("a file");
        // A process of its own: metrics are one for a whole process, and stories share one.
        let process = Process::serve(world.url(), &[("RULES_DIR", rules.to_str().expect("a path"))]).await;
        let figures = async || {
            let answer = reqwest::get(format!("http://{}/metrics", process.address())).await.expect("an answer");
            answer.text().await.expect("figures")
        };
        let said = figures().await;
        assert!(said.contains("\nshowrunner_rules_rejected 1\n"), "{said}");
        assert!(said.contains("\nshowrunner_breaker_open{action=\"force_publish\"} 0\n"), "{said}");

        process.poke("/orchestrator/run-once").await; // the first cycle tells what the start found
        std::fs::write(rules.join("story.rhai"), rule("ask", "priority 1", "trigger_reconciliation()")).expect("a file");
        let now = world.text(if world.is_sqlite() { "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')" } else { "clock_timestamp()" }).await;
        world.sql(&format!("INSERT INTO breakers (action, consecutive_failures, opened_at) VALUES ('force_publish', 5, '{now}')")).await;
        process.poke("/orchestrator/run-once").await; // a cycle looks at the folder
        let said = figures().await;
        assert!(said.contains("\nshowrunner_rules_rejected 0\n"), "{said}");
        assert!(said.contains("\nshowrunner_breaker_open{action=\"force_publish\"} 1\n"), "{said}");
        assert!(said.contains("\nshowrunner_breaker_open{action=\"rebalance_queue\"} 0\n"), "{said}");
        process.end("TERM").await;
    }

    async fn what_was_seen_is_told_to_prometheus(world) {
        world.pending_jobs(3, 90).await;
        let clip = world.clip(50.0, None).await;
        world.failed_log(clip, "tiktok", 10).await;
        let process = Process::serve(world.url(), &[]).await;
        let figures = async || {
            let answer = reqwest::get(format!("http://{}/metrics", process.address())).await.expect("an answer");
            answer.text().await.expect("figures")
        };
        let said = figures().await;
        let snapshot = process.get("/orchestrator/snapshot").await["snapshot"].clone();
        let health = format!("\nshowrunner_health_score {}\n", snapshot["system"]["health_score"]);
        for figure in [
            health.as_str(),
            "\nshowrunner_unobserved_sections 0\n",
            "\nshowrunner_jobs{status=\"pending\"} 3\n",
            "\nshowrunner_jobs{status=\"failed\"} 0\n",
            "\nshowrunner_publish_logs{status=\"failed\"} 1\n",
            "\nshowrunner_publish_logs{status=\"scheduled\"} 0\n",
            "\nshowrunner_loop_running 0\n",
        ] {
            assert!(said.contains(figure), "{figure:?} in {said}");
        }
        assert!(!said.contains("\nshowrunner_oldest_pending_job_minutes 0\n"), "{said}");
        process.poke("/orchestrator/enable").await;
        process.until("/orchestrator/status", 200, "\"running\":true", Duration::from_secs(60)).await;
        assert!(figures().await.contains("\nshowrunner_loop_running 1\n"));
        process.end("TERM").await;
    }

    async fn a_half_open_breaker_lets_one_action_through(world) {
        let faults = Failing::none();
        faults.set(Some(REBALANCING));
        world.rules("story.rhai", &rule("order", "priority 5", "rebalance_queue()"));
        start_with(&mut world, &faults).await;
        for _ in 0..5 {
            world.run_once().await;
        }
        world.clock.advance(Duration::from_secs(300));
        world.rules("more.rhai", &rule("emergency", "priority 10", "rebalance_queue(#{ emergency: true })"));
        let cycle = world.run_once().await;
        assert_eq!(list(&cycle["decision"]["actions"]).len(), 1, "{cycle}");
        assert!(fates(&cycle).iter().any(|(fate, because)| fate == "held" && because.contains("lets one action through to try")));
    }

    async fn an_action_that_fails_stops_no_other_and_leaves_nothing_behind(world) {
        let faults = Failing::none();
        faults.set(Some(REBALANCING));
        world.pending_jobs(60, 1).await;
        world.rules("story.rhai", &[rule("order", "priority 9", "rebalance_queue()"), rule("ask", "priority 1", "trigger_reconciliation()")].concat());
        start_with(&mut world, &faults).await;
        let lapsed = world.ago(1);
        world.sql(&format!("INSERT INTO jobs (kind, status, attempt, lease, lease_expires_at) VALUES ('lapsed', 'processing', 1, 1, {lapsed})")).await;
        let cycle = world.run_once().await;
        assert_eq!(outcomes(&cycle), ["failed", "executed"]);
        assert_eq!(world.text("SELECT status FROM jobs WHERE kind = 'lapsed'").await, "processing", "its rescue was rolled back");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE kind = 'reconcile'").await, 1);
        let cycle_id = &cycle["cycle_id"];
        assert_eq!(world.text(&format!("SELECT status FROM cycles WHERE id = {cycle_id}")).await, "completed");
    }

    async fn a_plan_goes_by_priority(world) {
        let clip = world.clip(50.0, None).await;
        world.rules("story.rhai", &[
            rule("low", "priority 1", "trigger_reconciliation()"),
            rule("high", "priority 10", "rebalance_queue()"),
            rule("middle", "priority 5", &format!("schedule_clip({clip})")),
        ].concat());
        world.start_still().await;
        let cycle = world.run_once().await;
        let order: Vec<_> = list(&cycle["execution"]["results"]).iter().map(|result| result["action"].as_str().expect("a kind")).collect();
        assert_eq!(order, ["rebalance_queue", "schedule_clip", "trigger_reconciliation"]);
    }
}
