//! Starts, stops and interruptions: what is durable stays, what runs ends in order, what breaks is gone on from.

use std::time::Duration;

use showrunner::app::Mode;

use crate::on_both;
use crate::support::faults::Holding;
use crate::support::postgres;
use crate::support::process::Process;
use crate::support::world::{World, time};

const ORDER: &str = "rule \"order\" priority 5 then rebalance_queue() because \"the story asks\";";
/// A statement of `rebalance_queue` and of nothing else.
const REBALANCING: &str = "SET priority = priority + 1";

async fn running(process: &Process) -> bool {
    let status = process.get("/orchestrator/status").await;
    status["enabled"].as_bool().expect("a switch")
}

/// The times at which the loop's cycles began.
async fn starts(world: &World) -> Vec<chrono::DateTime<chrono::Utc>> {
    let count = world.number("SELECT COUNT(*) FROM cycles").await;
    let mut starts = Vec::new();
    for id in 1..=count {
        starts.push(time(&world.moment(&format!("SELECT started_at FROM cycles WHERE id = {id}")).await));
    }
    starts
}

on_both! {
    async fn the_switch_survives_restarts_and_the_variable_counts_the_first_time_only(world) {
        let on = [("ORCHESTRATOR_ENABLED", "true")];
        let off = [("ORCHESTRATOR_ENABLED", "false")];
        let first = Process::serve(world.url(), &on).await;
        assert!(running(&first).await, "the first time it counts");
        first.poke("/orchestrator/disable").await;
        assert_eq!(first.end("TERM").await, Some(0));
        let second = Process::serve(world.url(), &on).await;
        assert!(!running(&second).await, "switched off is off");
        let cycles = world.number("SELECT COALESCE(MAX(id), 0) FROM cycles").await;
        second.poke("/orchestrator/enable").await;
        second.end("KILL").await;
        let third = Process::serve(world.url(), &off).await;
        assert!(running(&third).await, "switched on is on");
        world.until(&format!("SELECT CASE WHEN MAX(id) > {cycles} + 1 THEN 'running' ELSE 'still' END FROM cycles"), "running").await;
        assert_eq!(third.end("INT").await, Some(0));
    }

    async fn a_stop_lets_the_running_action_finish(world) {
        let holding = Holding::at(REBALANCING);
        world.rules("story.rhai", &format!("{ORDER} rule \"ask\" priority 1 then trigger_reconciliation() because \"x\";"));
        let app = world.instance(Mode::Serve, 1, Some(holding.clone())).await;
        holding.arm();
        app.orchestrator().enable(&showrunner::actor::Actor::System).await.expect("a switch");
        holding.held().await;
        let mut stopping = tokio::spawn(app.stop());
        let too_early = tokio::time::timeout(Duration::from_millis(500), &mut stopping).await;
        assert!(too_early.is_err(), "it stopped with an action under way");
        holding.let_go();
        stopping.await.expect("a clean stop");
        assert_eq!(world.text("SELECT status FROM cycles").await, "completed");
        assert_eq!(world.number("SELECT succeeded FROM cycles").await, 2, "the plan is carried out to its end");
        assert_eq!(world.number("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.leader_lost'").await, 1);
    }

    async fn the_interval_does_not_drift(world) {
        world.start().await;
        world.poke("/orchestrator/enable").await;
        world.until("SELECT COUNT(*) FROM cycles WHERE status <> 'running'", "1").await;
        // The clock moves in steps that never hit a tick, and every cycle begins up to a step late.
        let step = Duration::from_millis(700);
        for steps in 1..=40_u32 {
            world.clock.advance(step);
            let ticks = (step * steps).as_millis() / 2000 + 1;
            world.until("SELECT COUNT(*) FROM cycles WHERE status <> 'running'", &ticks.to_string()).await;
        }
        let starts = starts(&world).await;
        assert_eq!(starts.len(), 15);
        for (tick, start) in starts.iter().enumerate() {
            let late = (*start - starts[0]).num_milliseconds() - 2000 * tick as i64;
            assert!((0..700).contains(&late), "cycle {tick} began {late} ms after its tick");
        }
        assert_eq!(world.number("SELECT SUM(skipped_ticks) FROM cycles").await, 0);
    }

    async fn a_slow_cycle_leaves_ticks_out_and_says_so(world) {
        let holding = Holding::at(REBALANCING);
        world.rules("story.rhai", ORDER);
        world.app = Some(world.instance(Mode::Serve, 1, Some(holding.clone())).await);
        holding.arm();
        world.poke("/orchestrator/enable").await;
        holding.held().await;
        world.clock.advance(Duration::from_secs(5));
        assert_eq!(world.number("SELECT COUNT(*) FROM cycles").await, 1, "no cycle beside a running one");
        holding.let_go();
        world.until("SELECT COUNT(*) FROM cycles WHERE status = 'completed'", "2").await;
        assert_eq!(world.number("SELECT skipped_ticks FROM cycles WHERE id = 2").await, 1, "of the ticks at 2 s and 4 s one");
        world.clock.advance(Duration::from_secs(1));
        world.until("SELECT COUNT(*) FROM cycles WHERE status = 'completed'", "3").await;
        assert_eq!(world.number("SELECT skipped_ticks FROM cycles WHERE id = 3").await, 0);
        let starts = starts(&world).await;
        assert_eq!((starts[2] - starts[0]).num_milliseconds(), 6000, "on the grid again");
    }

    async fn two_processes_that_start_at_once_on_a_fresh_database_both_come_up(world) {
        for round in 0..3 {
            let url = if world.is_sqlite() {
                format!("sqlite://{}", world.folder().join(format!("fresh-{round}.db")).display())
            } else {
                postgres::fresh_database().await.expect("a database")
            };
            let environment = [("ORCHESTRATOR_ENABLED", "true")];
            let (one, two) = tokio::join!(Process::serve(&url, &environment), Process::serve(&url, &environment));
            for process in [&one, &two] {
                assert_eq!(process.get("/orchestrator/status").await["enabled"], true);
                assert_eq!(process.get("/v1/clips").await["items"], serde_json::json!([]));
            }
            let result = one.poke("/orchestrator/run-once").await;
            assert!(result["result"]["cycle_id"].is_i64(), "{result}");
            assert_eq!(one.get("/orchestrator/status").await["term"], 1, "one leader");
            assert_eq!(one.end("TERM").await, Some(0));
            assert_eq!(two.end("TERM").await, Some(0));
            if !world.is_sqlite() {
                postgres::drop_database(&url).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_in_the_middle_of_an_action_ends_with_zero_on_postgres() {
    let Some(mut world) = World::on_postgres().await else { return };
    world.rules("story.rhai", "rule \"plan\" priority 5 then schedule_clip(1) because \"the story asks\";");
    world.clip(50.0, None).await;
    let rules = world.folder().join("rules");
    let process = Process::serve(world.url(), &[("RULES_DIR", rules.to_str().expect("a path"))]).await;
    // Another program holds the clip, so that the action has to wait for it.
    let mut other = <sqlx::PgConnection as sqlx::Connection>::connect(world.url()).await.expect("a connection");
    sqlx::raw_sql("BEGIN; SELECT * FROM clips WHERE id = 1 FOR UPDATE").execute(&mut other).await.expect("a lock");
    process.poke("/orchestrator/enable").await;
    let waiting =
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    world.until(waiting, "1").await;
    process.signal("TERM");
    let still = world.number("SELECT COUNT(*) FROM actions").await;
    assert_eq!(still, 0, "the action is still under way");
    sqlx::raw_sql("COMMIT").execute(&mut other).await.expect("the lock is given back");
    assert_eq!(process.ended().await, Some(0));
    assert_eq!(world.text("SELECT outcome FROM actions").await, "executed");
    assert_eq!(world.text("SELECT status FROM cycles").await, "completed");
    assert_eq!(world.number("SELECT COUNT(*) FROM publish_logs").await, 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_to_postgres_are_gone_on_from() {
    let Some(mut world) = World::on_postgres().await else { return };
    let holding = Holding::at("INSERT INTO cycles");
    world.app = Some(world.instance(Mode::Serve, 1, Some(holding.clone())).await);
    world.poke("/orchestrator/enable").await;
    world
        .until_in_time("SELECT CASE WHEN COUNT(*) >= 2 THEN 'running' ELSE 'starting' END FROM cycles", "running")
        .await;
    for round in 1..=3 {
        holding.arm();
        world.clock.advance(Duration::from_secs(2));
        holding.held().await;
        let before = world.number("SELECT COUNT(*) FROM cycles WHERE status = 'idle'").await;
        world
            .try_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            .await;
        holding.let_go();
        let three_more = format!(
            "SELECT CASE WHEN COUNT(*) >= {before} + 3 THEN 'running' ELSE 'waiting' END FROM cycles WHERE status = 'idle'"
        );
        world.until_in_time(&three_more, "running").await;
        let errors =
            world.number("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.cycle_error'").await;
        assert!(errors >= round, "the error of round {round} is in the ledger: {errors}");
    }
    assert_eq!(world.get("/v1/ledger/verify").await.1["whole"], true);
    world.end().await;
}
