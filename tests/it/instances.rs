//! Several instances on one database: one leads, another takes over, and who was deposed commits nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use showrunner::actor::Actor;
use showrunner::app::Mode;
use showrunner::db::{self, Faults, Point};
use tokio::sync::Notify;

use crate::on_both;
use crate::support::World;
use crate::support::process::Process;

/// Two processes on the world's database, the loop on, and the first one leading.
async fn two(world: &World) -> (Process, Process) {
    let first = Process::serve(world.url(), &[]).await;
    world.until("SELECT COUNT(*) FROM leases", "1").await;
    let second = Process::serve(world.url(), &[]).await;
    second.poke("/orchestrator/enable").await;
    let leader = first.instance().await;
    world.until(&format!("SELECT COUNT(*) FROM cycles WHERE instance = '{leader}' AND id >= 2 AND id < 3"), "1").await;
    (first, second)
}

/// Waits until another instance than `old` runs cycles; returns how long that took.
async fn takeover(world: &World, old: &str) -> Duration {
    let began = tokio::time::Instant::now();
    let by_another =
        format!("SELECT CASE WHEN COUNT(*) > 0 THEN 'yes' ELSE 'no' END FROM cycles WHERE instance <> '{old}'");
    world.until(&by_another, "yes").await;
    began.elapsed()
}

/// Holds the first action of a cycle back, just before its transaction begins, until it is let go.
#[derive(Default)]
struct Gate {
    cycle_is_written: AtomicBool,
    opened: AtomicBool,
    arrived: Notify,
    go: Notify,
}

#[async_trait]
impl Faults for Gate {
    async fn strike(&self, point: Point<'_>) -> db::Result<()> {
        match point {
            Point::Statement(text) if text.starts_with("INSERT INTO cycles") => {
                self.cycle_is_written.store(true, Ordering::SeqCst);
            }
            Point::Begin
                if self.cycle_is_written.load(Ordering::SeqCst) && !self.opened.swap(true, Ordering::SeqCst) =>
            {
                self.arrived.notify_one();
                self.go.notified().await;
            }
            _ => {}
        }
        Ok(())
    }
}

on_both! {
    async fn exactly_one_of_two_instances_loops(world) {
        let (first, second) = two(&world).await;
        let (one, two) = (first.get("/orchestrator/status").await, second.get("/orchestrator/status").await);
        assert_eq!((&one["running"], &two["running"]), (&true.into(), &true.into()));
        assert_eq!((&one["leader"], &two["leader"]), (&one["instance"], &one["instance"]));
        assert_eq!(one["term"], 1);
        world.until("SELECT CASE WHEN COUNT(*) >= 4 THEN 'enough' ELSE 'few' END FROM cycles", "enough").await;
        assert_eq!(world.number("SELECT COUNT(DISTINCT instance) FROM cycles").await, 1);
    }

    async fn run_once_on_the_instance_that_does_not_lead_runs_under_the_leader(world) {
        let (first, second) = two(&world).await;
        second.poke("/orchestrator/disable").await;
        let result = &second.poke("/orchestrator/run-once").await["result"];
        let cycle = result["cycle_id"].as_i64().expect("a cycle");
        let row = format!("SELECT instance FROM cycles WHERE id = {cycle} AND trigger = 'manual' AND term = 1");
        assert_eq!(world.text(&row).await, first.instance().await);
    }

    async fn another_instance_takes_over_within_ten_seconds_of_a_kill(world) {
        let (first, _second) = two(&world).await;
        let old = first.instance().await;
        first.end("KILL").await;
        let took = takeover(&world, &old).await;
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!(world.number("SELECT term FROM leases").await, 2);
    }

    async fn another_instance_takes_over_at_once_after_a_clean_stop(world) {
        let (first, _second) = two(&world).await;
        let old = first.instance().await;
        assert_eq!(first.end("TERM").await, Some(0));
        let took = takeover(&world, &old).await;
        assert!(took < Duration::from_secs(4), "{took:?}");
        assert_eq!(world.number("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.leader_lost'").await, 1);
    }

    async fn a_leader_that_was_paused_past_its_lease_commits_nothing_more(world) {
        let (first, second) = two(&world).await;
        let old = first.instance().await;
        first.signal("STOP");
        let took = takeover(&world, &old).await;
        assert!(took < Duration::from_secs(16), "{took:?}");
        first.signal("CONT");
        let lost = "SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.leader_lost'";
        world.until(lost, "1").await;
        let acquired = "SELECT MAX(id) FROM ledger_entries WHERE event_type = 'orchestrator.leader_acquired'";
        let late = format!(
            "SELECT COUNT(*) FROM ledger_entries JOIN cycles ON cycles.id = ledger_entries.cycle_id
             WHERE cycles.term = 1 AND ledger_entries.actor = 'loop' AND ledger_entries.id > ({acquired})"
        );
        assert_eq!(world.number(&late).await, 0);
        assert_eq!(second.get("/orchestrator/status").await["leader"], second.instance().await);
    }

    async fn an_action_that_was_decided_under_an_old_term_cannot_commit(world) {
        let gate = Arc::new(Gate::default());
        let old = world.instance(Mode::Command, 1, Some(gate.clone())).await;
        world.pending_jobs(51, 1).await;
        let asked = tokio::spawn({
            let orchestrator = old.orchestrator().clone();
            async move { orchestrator.run_once(&Actor::System).await }
        });
        gate.arrived.notified().await; // the old leader has decided to rebalance, and stands still before doing it
        world.clock.advance(Duration::from_secs(30));
        let new = world.instance(Mode::Serve, 2, None).await;
        world.until("SELECT term FROM leases", "2").await;
        gate.go.notify_one();
        // The old leader's request goes to the new leader: its answer is a cycle of the new term.
        while !asked.is_finished() {
            world.clock.advance(Duration::from_millis(500)); // instances on one SQLite file look, nobody wakes them
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let report = asked.await.expect("a task").expect("a cycle in the end");
        assert_eq!(world.number(&format!("SELECT term FROM cycles WHERE id = {}", report.cycle_id)).await, 2);
        let by_old = "SELECT COUNT(*) FROM ledger_entries JOIN cycles ON cycles.id = ledger_entries.cycle_id
                      WHERE cycles.term = 1 AND event_type = 'orchestrator.action_executed'";
        assert_eq!(world.number(by_old).await, 0);
        assert_eq!(world.text("SELECT status FROM cycles WHERE term = 1").await, "error", "closed as interrupted");
        new.stop().await;
        old.stop().await;
    }
}
