//! The queue against both databases.

mod bounds;
mod ending;
mod enqueueing;
mod letters;
mod limiting;
mod seating;
mod sending;
mod working;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::store::finish::LONGEST_WAIT;
use super::store::registry::TaskSettings;
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::db::{Db, Options, Tx};
use crate::random::Random;
use crate::test_postgres;

/// The queue over an empty, migrated database.
pub(super) struct World {
    pub db: Db,
    pub clock: Arc<ManualClock>,
    pub random: Random,
}

/// Runs `test` on every database that is there.
pub(super) async fn in_each_world<F: AsyncFn(World)>(test: F) {
    let start: DateTime<Utc> = "2026-11-20T18:30:00Z".parse().expect("a time");
    let clock = ManualClock::at(start);
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    test(World { db, clock, random: Random::seeded(1) }).await;
    let Some(url) = test_postgres::fresh_database().await else { return };
    let clock = ManualClock::at(start);
    let options = Options { max_connections: 4, ..Options::new(&url) };
    let db = Db::open(&options, clock.clone()).await.expect("open").with_clock(clock.clone());
    db.migrate().await.expect("migrate");
    test(World { db: db.clone(), clock, random: Random::seeded(1) }).await;
    db.close().await;
    test_postgres::drop_database(&url).await;
}

impl World {
    pub(super) async fn begin(&self) -> Tx {
        self.db.begin().await.expect("begin")
    }

    /// One statement that changes something, as another program would.
    pub(super) async fn sql(&self, sql: String) {
        let mut tx = self.begin().await;
        let sql: &'static str = sql.leak(); // statements are static outside tests
        tx.query(sql).execute().await.expect(sql);
        tx.commit().await.expect("commit");
    }

    pub(super) async fn number(&self, sql: &'static str) -> i64 {
        self.db.query(sql).one::<(i64,)>().await.expect(sql).0
    }

    pub(super) fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    pub(super) fn now(&self) -> crate::db::Timestamp {
        self.clock.now().into()
    }

    pub(super) async fn enqueue(&self, job: NewJob) -> Enqueued {
        let mut tx = self.begin().await;
        let enqueued = enqueue(&mut tx, job).await.expect("enqueue");
        tx.commit().await.expect("commit");
        enqueued
    }

    /// A job of kind `work` with nothing said.
    pub(super) async fn job(&self) -> i64 {
        self.enqueue(NewJob::new("work")).await.id
    }

    pub(super) async fn task(&self, id: &str, settings: TaskSettings) {
        let mut tx = self.begin().await;
        set_task(&mut tx, None, id, &settings).await.expect("a task");
        tx.commit().await.expect("commit");
    }

    /// Looks and claims as a worker with this name does.
    pub(super) async fn claim_as(&self, worker: &str, kinds: &[&str], limit: usize) -> Vec<Job> {
        let wanted = Claim {
            queue: "default",
            kinds,
            worker,
            lease: Duration::from_secs(60),
            longest_wait: LONGEST_WAIT,
            limit,
        };
        let outlook = look(&self.db, &wanted).await.expect("look");
        if !outlook.has_work() {
            return Vec::new();
        }
        let mut tx = self.begin().await;
        let jobs = claim(&mut tx, &outlook, &wanted).await.expect("claim");
        tx.commit().await.expect("commit");
        jobs
    }

    pub(super) async fn claim(&self, limit: usize) -> Vec<Job> {
        self.claim_as("me", &["work"], limit).await
    }

    pub(super) async fn claim_one(&self) -> Job {
        self.claim(1).await.pop().expect("a job")
    }

    pub(super) async fn complete(&self, job: &Job) -> bool {
        let mut tx = self.begin().await;
        let held = complete(&mut tx, job, &json!({ "ok": true })).await.expect("complete");
        tx.commit().await.expect("commit");
        held
    }

    pub(super) async fn fail(&self, job: &Job, error: &str) -> Option<Status> {
        let mut tx = self.begin().await;
        let status = fail(&mut tx, job, error, Again::ByPolicy(&self.random, LONGEST_WAIT)).await.expect("fail");
        tx.commit().await.expect("commit");
        status
    }

    pub(super) async fn get(&self, id: i64) -> JobRecord {
        get(&self.db, id).await.expect("get").expect("a job")
    }

    pub(super) async fn status(&self, id: i64) -> Status {
        self.get(id).await.status
    }

    /// How each try of a job ended, oldest first.
    pub(super) async fn outcomes(&self, id: i64) -> Vec<String> {
        attempts(&self.db, id).await.expect("attempts").into_iter().map(|attempt| attempt.outcome).collect()
    }
}
