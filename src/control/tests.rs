//! What no door can provoke: faults of ours, and the passing of days.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta};
use serde_json::json;

use super::cycle::CycleError;
use super::decider::RuleBook;
use super::{CycleRunner, Executor, Lead, Mode, Monitor, Occasion, Runner, RunnerParts, Trigger, forget_old, leader};
use crate::actor::Actor;
use crate::clock::{ManualClock, SharedClock};
use crate::config::{Config, Governors, Retention};
use crate::db::{Db, Faults, Options, Point, Result};
use crate::ledger::{self, Entry};
use crate::planes::publishing::Publishing;
use crate::random::Random;

/// Panics once it is armed, at the statement by which the queue is observed.
#[derive(Default)]
struct Panics(AtomicBool);

#[async_trait]
impl Faults for Panics {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        let observes = matches!(point, Point::Statement(text) if text.contains("FROM tallies WHERE name = 'jobs'"));
        assert!(!(observes && self.0.load(Ordering::Relaxed)), "a row that nobody foresaw");
        Ok(())
    }
}

/// A runner that leads.
async fn leading(db: &Db, clock: SharedClock) -> (CycleRunner, Occasion<'static>) {
    let config = Config::default().publishing;
    let publishing = Publishing::new(config, db.clone(), clock.clone(), Random::seeded(1)).expect("a plane");
    let publishing = Arc::new(publishing);
    let executor = Executor::new(db.clone(), publishing.clone(), Governors::default());
    let monitor = Monitor::new(db.clone(), publishing);
    let rules = Arc::new(RuleBook::built_in());
    let settings = Governors::default();
    let runner = CycleRunner::new(db.clone(), clock, "here".to_owned(), rules, monitor, executor, settings);
    let mut tx = db.begin().await.expect("begin");
    let term = leader::acquire(&mut tx, "here").await.expect("acquire").expect("a free lease");
    tx.commit().await.expect("commit");
    (runner, Occasion { trigger: Trigger::Loop, asked_by: None, term, skipped_ticks: 0 })
}

/// Counts statements.
#[derive(Default)]
struct Counts(AtomicUsize);

#[async_trait]
impl Faults for Counts {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        if matches!(point, Point::Statement(_)) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[tokio::test]
async fn an_idle_cycle_is_few_statements() {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let counts = Arc::new(Counts::default());
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    let db = db.with_faults(counts.clone());
    let (mut runner, occasion) = leading(&db, clock).await;
    runner.run(occasion).await.expect("a cycle, which also stores the rules");
    counts.0.store(0, Ordering::Relaxed);
    runner.run(occasion).await.expect("a cycle");
    // All figures; the lease, the cycle's row, the chain's end, two entries.
    assert_eq!(counts.0.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn a_cycle_that_panics_is_written_down_and_the_next_one_runs() {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let panics = Arc::new(Panics::default());
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    let db = db.with_faults(panics.clone());
    let (mut runner, occasion) = leading(&db, clock).await;

    panics.0.store(true, Ordering::Relaxed);
    let broken = runner.run(occasion).await.expect_err("a panic");
    assert!(matches!(broken, CycleError::Panicked(words) if words.contains("a row that nobody foresaw")));
    panics.0.store(false, Ordering::Relaxed);
    runner.run(occasion).await.expect("a cycle");
    let cycles: Vec<(String, Option<String>)> =
        db.query("SELECT status, error FROM cycles ORDER BY id").all().await.expect("cycles");
    assert_eq!(
        cycles,
        [("error".to_owned(), Some("panicked: a row that nobody foresaw".to_owned())), ("idle".to_owned(), None)]
    );
}

#[tokio::test]
async fn retention_takes_idle_cycles_first_and_leaves_the_snapshots_that_others_need() {
    let clock = ManualClock::at("2026-11-20T18:30:00Z".parse().expect("a time"));
    let db = Db::open(&Options::new("sqlite::memory:"), clock).await.expect("open");
    db.migrate().await.expect("migrate");
    let mut tx = db.begin().await.expect("begin");
    // A whole snapshot of an idle cycle, its users, and a thousand and more that need nothing.
    for (id, status, base, day) in [(1, "idle", None, 17), (2, "completed", Some(1), 17), (3, "idle", Some(1), 17)]
        .into_iter()
        .chain((4..1_500).map(|id| (id, "idle", None, 17)))
        .chain([(1_500, "completed", None, 10), (1_501, "idle", None, 19)])
    {
        tx.query(
            "INSERT INTO cycles (id, trigger, status, term, instance, rules_hash, engine_version, started_at,
                 health_status, base_id) VALUES ($1, 'loop', $2, 1, 'a', 'h', '1', $3, 'healthy', $4)",
        )
        .bind(id)
        .bind(status)
        .bind(format!("2026-11-{day}T00:00:00.000Z"))
        .bind(base)
        .execute()
        .await
        .expect("a cycle");
    }
    tx.commit().await.expect("commit");
    let retention = Retention { idle_cycles_days: 2, cycles_days: 7, ..Retention::default() };
    forget_old(&db, &retention).await.expect("forgotten");
    let left: Vec<(i64,)> = db.query("SELECT id FROM cycles ORDER BY id").all().await.expect("cycles");
    assert_eq!(left, [(1,), (2,), (1_501,)], "the first is the snapshot of the second");
}

/// Prunes the ledger once, when a walk over it has read where it begins.
struct Prunes(Db, AtomicBool);

#[async_trait]
impl Faults for Prunes {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        let reads = matches!(point, Point::Statement(text) if text.contains("json_group_array")); // the walk itself
        if reads && !self.1.swap(true, Ordering::Relaxed) {
            ledger::prune(&self.0, Duration::from_secs(60), &Actor::System).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_walk_over_the_ledger_that_is_pruned_meanwhile_finds_it_whole() {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    for _ in 0..5 {
        let mut tx = db.begin().await.expect("begin");
        ledger::append(&mut tx, &[Entry::new("test", Actor::System, json!({}))]).await.expect("append");
        tx.commit().await.expect("commit");
        clock.advance(Duration::from_secs(40));
    }
    let walked = db.clone().with_faults(Arc::new(Prunes(db.clone(), AtomicBool::new(false))));
    let found = ledger::verify(&walked, |_| {}).await.expect("a walk");
    assert_eq!((found.first_bad, found.checkpoint_id, found.entries), (None, Some(4), 2));
}

/// Lets time pass once, while a cycle is written down, as a file that another process locks does.
struct Hangs(Arc<ManualClock>, AtomicBool);

#[async_trait]
impl Faults for Hangs {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        let writes = matches!(point, Point::Statement(text) if text.starts_with("INSERT INTO cycles"));
        if writes && self.1.swap(false, Ordering::Relaxed) {
            self.0.advance(Duration::from_secs(20));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_cycle_that_hangs_leaves_one_gap_from_end_to_end() {
    let clock = ManualClock::at("2026-11-20T12:00:00Z".parse().expect("a time"));
    let hangs = Arc::new(Hangs(clock.clone(), AtomicBool::new(false)));
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    let db = db.with_faults(hangs.clone());
    super::switch::set(&db, true, &Actor::System).await.expect("on");
    let (cycle, _) = leading(&db, clock.clone()).await;
    leader::release(&db, "here", 1).await.expect("released");
    let mut runner = Runner::new(RunnerParts {
        db: db.clone(),
        clock: clock.clone(),
        instance: "here".to_owned(),
        interval: Duration::from_secs(2),
        mode: Mode::Serve,
        cycle,
        lead: Lead::default(),
    });
    for step in 0..10 {
        hangs.1.store(step == 3, Ordering::Relaxed);
        runner.step().await;
        clock.advance(Duration::from_secs(2));
    }
    let gaps: Vec<(String,)> = db
        .query("SELECT payload FROM ledger_entries WHERE event_type = 'orchestrator.gap'")
        .all()
        .await
        .expect("the ledger");
    let gaps: Vec<serde_json::Value> = gaps.iter().map(|(gap,)| serde_json::from_str(gap).expect("JSON")).collect();
    let gap = json!({
        "since": "2026-11-20T12:00:04.000Z", "until": "2026-11-20T12:00:26.000Z", "seconds": 22,
        "because": "one cycle took 20 s",
    });
    assert_eq!(gaps, [gap]);
}

/// Whether `holder` gets the lease now.
async fn takes(db: &Db, holder: &str) -> Option<i64> {
    let mut tx = db.begin().await.expect("begin");
    let term = leader::acquire(&mut tx, holder).await.expect("an answer");
    tx.commit().await.expect("commit");
    term
}

#[tokio::test]
async fn a_leaders_lease_from_before_the_clock_was_set_back_is_free() {
    let clock = ManualClock::at("2026-11-20T12:00:00Z".parse().expect("a time"));
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    assert_eq!(takes(&db, "one").await, Some(1));
    assert_eq!(takes(&db, "two").await, None, "it holds");
    clock.jump(TimeDelta::seconds(-3));
    assert_eq!(takes(&db, "two").await, None, "three seconds back it may still be the lease of one who lives");
    clock.jump(TimeDelta::hours(-3));
    assert_eq!(takes(&db, "two").await, Some(2), "nobody waits three hours for a leader who is dead");
}
