//! The loop against faults of ours, which no door can provoke.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use chrono::DateTime;

use super::cycle::CycleError;
use super::decider::RuleBook;
use super::{CycleRunner, Executor, Monitor, Occasion, Trigger, leader};
use crate::clock::ManualClock;
use crate::config::{Config, Governors};
use crate::db::{Db, Faults, Options, Point, Result};
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

#[tokio::test]
async fn a_cycle_that_panics_is_written_down_and_the_next_one_runs() {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let panics = Arc::new(Panics::default());
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    let db = db.with_faults(panics.clone());
    let config = Config::default().publishing;
    let publishing = Publishing::new(config, db.clone(), clock.clone(), Random::seeded(1)).expect("a plane");
    let publishing = Arc::new(publishing);
    let executor = Executor::new(db.clone(), publishing.clone(), Governors::default());
    let monitor = Monitor::new(db.clone(), publishing);
    let rules = Arc::new(RuleBook::built_in());
    let settings = Governors::default();
    let mut runner = CycleRunner::new(db.clone(), clock, "here".to_owned(), rules, monitor, executor, settings);
    let mut tx = db.begin().await.expect("begin");
    let term = leader::acquire(&mut tx, "here").await.expect("acquire").expect("a free lease");
    tx.commit().await.expect("commit");
    let occasion = Occasion { trigger: Trigger::Loop, asked_by: None, term, skipped_ticks: 0 };

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
