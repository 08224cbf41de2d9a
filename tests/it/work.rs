//! The loop and the work: dead letters, queues, workers and runs, each with its entry in the ledger.

use serde_json::{Value, json};

use crate::on_both;
use crate::support::World;
use crate::support::world::{planned, proposed};

/// A worker as it stands in its table, heard of just now, with the ends of its tries in the last minutes.
async fn worker(world: &World, id: &str, queue: &str, completed: i64, failed: i64) {
    let now = world.ago(0);
    world
        .sql(&format!(
            "INSERT INTO workers (id, mode, queue, last_seen_at, recent_completed, recent_failed, recent_since, created_at)
             VALUES ('{id}', 'pull', '{queue}', {now}, {completed}, {failed}, {now}, {now})"
        ))
        .await;
}

/// A job of a task that ran out of tries on some worker; returns its dead letter.
async fn dead_letter(world: &World, outcome: &str, code_version: i64) -> i64 {
    let now = world.ago(0);
    world
        .sql(&format!(
            "INSERT INTO jobs (kind, status, attempt, max_attempts, lease, lease_expires_at, worker, code_version, started_at, created_at)
             VALUES ('render', 'processing', 3, 3, 3, {now}, 'w', {code_version}, {now}, {now})"
        ))
        .await;
    let job = world.number("SELECT MAX(id) FROM jobs").await;
    world
        .sql(&format!(
            "UPDATE jobs SET status = 'failed', outcome = '{outcome}', error = 'no luck', finished_at = {now},
                 updated_at = {now}, lease_expires_at = NULL WHERE id = {job}"
        ))
        .await;
    world.number("SELECT MAX(id) FROM dlq").await
}

/// The one executed action of a kind, as the ledger has it.
async fn entry(world: &World, action: &str) -> Value {
    let entries = world.ledger("orchestrator.action_executed").await;
    let mut of_kind = entries.into_iter().filter(|entry| entry["payload"]["action"]["action"] == action);
    let entry = of_kind.next().unwrap_or_else(|| panic!("no entry of {action}"));
    assert!(of_kind.next().is_none(), "{action} was done once");
    entry
}

on_both! {
    async fn the_loop_tries_a_dead_letter_again_pauses_a_failing_queue_and_quarantines_a_bad_worker(world) {
        world.start_still().await;
        worker(&world, "good-1", "default", 50, 1).await;
        worker(&world, "good-2", "default", 50, 0).await;
        worker(&world, "bad", "default", 0, 9).await;
        worker(&world, "render-1", "render", 9, 9).await;
        let hopeless = dead_letter(&world, "failed", 1).await;
        assert!(planned(&world.run_once().await, "quarantine_worker").is_empty());
        let seen = world.snapshot().await;
        assert_eq!((&seen["workers"]["alive"], &seen["dead_letters"]["open"]), (&json!(4), &json!(1)), "{seen}");

        world.sql("UPDATE workers SET recent_failed = 10 WHERE id IN ('bad', 'render-1')").await;
        let lost = dead_letter(&world, "lapsed", 1).await;
        let cycle = world.run_once().await;
        assert!(["bad_worker", "failing_queue", "revivable_dead_letter"].iter().all(|rule| proposed(&cycle, rule)), "{cycle}");
        assert_eq!((cycle["execution"]["succeeded"].as_i64(), cycle["execution"]["failed"].as_i64()), (Some(3), Some(0)), "{cycle}");
        assert_eq!(world.text("SELECT name FROM queues WHERE paused AND paused_by = 'loop'").await, "render");
        assert_eq!(world.text("SELECT id FROM workers WHERE quarantined_until IS NOT NULL").await, "bad");
        assert_eq!(world.text(&format!("SELECT status FROM dlq WHERE id = {lost}")).await, "retried");
        assert_eq!(world.text(&format!("SELECT status FROM dlq WHERE id = {hopeless}")).await, "open");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE status = 'pending'").await, 1);
        for (action, subject) in [("retry_dead_letter", format!("dead_letter:{lost}")), ("pause_queue", "queue:render".to_owned()),
                                  ("quarantine_worker", "worker:bad".to_owned())] {
            let entry = entry(&world, action).await;
            assert_eq!((entry["actor"].as_str(), entry["subject"].as_str()), (Some("loop"), Some(subject.as_str())));
            assert!(entry["payload"]["reasons"][0].as_str().is_some_and(|reason| !reason.is_empty()), "{entry}");
        }

        // When it has rested, the queue is handed out again; one that a person paused is not.
        let paused = world.ago(0);
        world.sql(&format!("INSERT INTO queues (name, paused, paused_by, paused_at) VALUES ('mine', {}, 'operator:ann', {paused})",
            if world.is_sqlite() { "1" } else { "true" })).await;
        world.clock.advance(std::time::Duration::from_secs(15 * 60));
        let cycle = world.run_once().await;
        assert_eq!(planned(&cycle, "resume_queue").len(), 1, "{cycle}");
        assert_eq!(world.text("SELECT name FROM queues WHERE paused").await, "mine");
    }

    async fn the_planes_errors_count_once_a_kind_of_subject(world) {
        use showrunner::actor::Actor;
        use showrunner::ledger::{Entry, Severity, append};
        world.start_still().await;
        let entry = |subject: String| Entry::new("events.error", Actor::System, json!({})).severity(Severity::Error).subject(subject);
        let mut tx = world.db.begin().await.expect("a transaction");
        let entries: Vec<Entry> = (0..40).map(|n| entry(format!("run:{n}"))).chain([entry("job:1".to_owned())]).collect();
        append(&mut tx, &entries).await.expect("entries");
        tx.commit().await.expect("a commit");
        let cycle = world.run_once().await;
        assert_eq!(cycle["decision"]["proposals"], json!([]), "no emergency, no reconciliation");
        assert_eq!(world.snapshot().await["ledger"]["errors_1h"], 2);
        world.ledger_errors(5).await;
        assert_eq!(world.snapshot().await["ledger"]["errors_1h"], 7, "others count each");
    }
}
