//! The plane against both databases.

mod actions;
mod dispatching;
mod life;
mod observing;
mod routing;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{PublishLog, Publishing, Status};
use crate::clock::{Clock, ManualClock};
use crate::config;
use crate::db::{Db, Options, Timestamp, Tx};
use crate::planes::queue::{self, Job, Outcome};
use crate::random::Random;
use crate::test_postgres;

/// A manual clock that says when somebody waits for a platform that stays silent.
pub(super) struct TestClock {
    manual: Arc<ManualClock>,
    silent: Notify,
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        self.manual.now()
    }
    fn elapsed(&self) -> Duration {
        self.manual.elapsed()
    }
    async fn sleep(&self, duration: Duration) {
        if duration >= Duration::from_secs(3600) {
            self.silent.notify_one();
        }
        self.manual.sleep(duration).await;
    }
}

/// The plane over an empty, migrated database at 18:30 UTC, when all three default windows are open.
pub(super) struct World {
    pub db: Db,
    pub clock: Arc<TestClock>,
    pub publishing: Arc<Publishing>,
}

/// Runs `test` on every database that is there.
pub(super) async fn on_each_database<F: AsyncFn(Db, Arc<TestClock>)>(test: F) {
    let start = "2026-11-20T18:30:00Z".parse().expect("a time");
    let clock = || Arc::new(TestClock { manual: ManualClock::at(start), silent: Notify::new() });
    let here = clock();
    let db = Db::open(&Options::new("sqlite::memory:"), here.clone()).await.expect("open");
    db.migrate().await.expect("migrate");
    test(db, here).await;
    let Some(url) = test_postgres::fresh_database().await else { return };
    let here = clock();
    let options = Options { max_connections: 4, ..Options::new(&url) };
    let db = Db::open(&options, here.clone()).await.expect("open").with_clock(here.clone());
    db.migrate().await.expect("migrate");
    test(db.clone(), here).await;
    db.close().await;
    test_postgres::drop_database(&url).await;
}

/// The plane over a fresh database, for each database.
pub(super) async fn in_each_world<F: AsyncFn(World)>(config: config::Publishing, test: F) {
    on_each_database(async |db, clock| test(World::over(db, clock, config.clone())).await).await;
}

/// The defaults with a platform that answers at once.
pub(super) fn settings() -> config::Publishing {
    let sandbox = config::Sandbox { latency_min_ms: 0, latency_max_ms: 0, ..config::Sandbox::default() };
    config::Publishing { sandbox, ..config::Publishing::default() }
}

/// One statement that changes something.
pub(super) async fn write(db: &Db, sql: String) {
    let mut tx = db.begin().await.expect("begin");
    let sql: &'static str = sql.leak(); // statements are static outside tests
    tx.query(sql).execute().await.expect(sql);
    tx.commit().await.expect("commit");
}

pub(super) async fn count(db: &Db, sql: &'static str) -> i64 {
    db.query(sql).one::<(i64,)>().await.expect(sql).0
}

impl World {
    pub(super) fn over(db: Db, clock: Arc<TestClock>, config: config::Publishing) -> Self {
        let publishing = Publishing::new(config, db.clone(), clock.clone(), Random::seeded(1)).expect("a plane");
        Self { db, clock, publishing: Arc::new(publishing) }
    }

    pub(super) fn at(&self, text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    pub(super) async fn now(&self) -> Timestamp {
        self.db.now().await.expect("now")
    }

    pub(super) fn advance_minutes(&self, minutes: u64) {
        self.clock.manual.advance(Duration::from_secs(minutes * 60));
    }

    /// A clip as another program would insert it.
    pub(super) async fn clip(&self, score: f64) -> i64 {
        write(
            &self.db,
            format!("INSERT INTO clips (title, media_uri, visual_score) VALUES ('A clip', 's3://clips/1', {score})"),
        )
        .await;
        count(&self.db, "SELECT MAX(id) FROM clips").await
    }

    pub(super) async fn campaign(&self, columns: &str, values: &str) -> i64 {
        write(
            &self.db,
            format!("INSERT INTO campaigns (name, status, budget_cents{columns}) VALUES ('C', 'active', {values})"),
        )
        .await;
        count(&self.db, "SELECT MAX(id) FROM campaigns").await
    }

    /// A publication as another program would insert it; `values` begins with the status.
    pub(super) async fn log(&self, clip: i64, platform: &str, columns: &str, values: &str) -> i64 {
        write(
            &self.db,
            format!(
                "INSERT INTO publish_logs (clip_id, platform, status{columns}) VALUES ({clip}, '{platform}', {values})"
            ),
        )
        .await;
        count(&self.db, "SELECT MAX(id) FROM publish_logs").await
    }

    pub(super) async fn get(&self, id: i64) -> PublishLog {
        self.db.query("SELECT * FROM publish_logs WHERE id = $1").bind(id).one().await.expect("a publication")
    }

    pub(super) async fn status(&self, id: i64) -> Status {
        self.get(id).await.status
    }

    pub(super) async fn tick(&self) -> super::Dispatched {
        super::Dispatcher::new(self.publishing.clone(), Duration::from_secs(1)).tick().await.expect("tick")
    }

    /// Claims the most urgent job, as the queue does.
    pub(super) async fn claim(&self) -> Option<Job> {
        claim(&self.db).await
    }

    /// Runs a job to its end, letting the call's time-out pass whenever the platform is silent.
    pub(super) async fn run(&self, job: &Job) {
        let handlers = self.publishing.handlers();
        let handler = handlers.iter().find(|handler| handler.kind() == job.kind).expect("a handler");
        let run = handler.run(job);
        tokio::pin!(run);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut run => break outcome,
                () = self.clock.silent.notified() => self.clock.manual.advance(self.publishing.call_timeout()),
            }
        };
        let mut tx = self.db.begin().await.expect("begin");
        match outcome {
            Outcome::Finished => {}
            Outcome::Done(result) => assert!(queue::complete(&mut tx, job, &result).await.expect("complete")),
            Outcome::Failed(error) => {
                assert!(queue::fail(&mut tx, job, &error, queue::Again::Never).await.expect("fail").is_some())
            }
        }
        tx.commit().await.expect("commit");
    }

    /// Hands over what is due and runs every job; returns how many ran.
    pub(super) async fn work(&self) -> usize {
        let mut ran = 0;
        loop {
            self.tick().await;
            let Some(job) = self.claim().await else { return ran };
            self.run(&job).await;
            ran += 1;
        }
    }

    /// Asks the platforms about everything unknown.
    pub(super) async fn reconcile(&self) {
        super::reconcile_if_needed(&self.db).await.expect("enqueue");
        self.work().await;
    }

    /// Posts on the simulated platform.
    pub(super) async fn posts(&self) -> i64 {
        count(&self.db, "SELECT COUNT(*) FROM sandbox_posts").await
    }

    /// The ledger's event types so far, oldest first.
    pub(super) async fn ledger(&self) -> Vec<String> {
        let rows: Vec<(String,)> =
            self.db.query("SELECT event_type FROM ledger_entries ORDER BY id").all().await.expect("ledger");
        rows.into_iter().map(|(event_type,)| event_type).collect()
    }

    pub(super) async fn begin(&self) -> Tx {
        self.db.begin().await.expect("begin")
    }
}

pub(super) async fn claim(db: &Db) -> Option<Job> {
    let mut tx = db.begin().await.expect("begin");
    let now = tx.now().await.expect("now");
    let job: Option<Job> = tx
        .query(
            "UPDATE jobs SET status = 'processing', attempt = attempt + 1, lease = lease + 1, lease_expires_at = $1
             WHERE id = (SELECT id FROM jobs WHERE status = 'pending' ORDER BY priority DESC, id LIMIT 1) RETURNING *",
        )
        .bind(now.after(Duration::from_secs(60)))
        .optional()
        .await
        .expect("claim");
    tx.commit().await.expect("commit");
    job
}

/// Takes every running job back, as the queue does when leases lapse.
pub(super) async fn rescue(db: &Db) {
    write(
        db,
        "UPDATE jobs SET status = 'failed', lease = lease + 1, lease_expires_at = NULL WHERE status = 'processing'"
            .to_owned(),
    )
    .await;
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let clock = ManualClock::at(DateTime::UNIX_EPOCH);
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
    let refused = |change: fn(&mut config::Publishing)| {
        let mut config = settings();
        change(&mut config);
        Publishing::new(config, db.clone(), clock.clone(), Random::seeded(1)).err().expect("refused")
    };
    assert!(refused(|config| config.call_timeout_ms = 0).contains("call_timeout_ms"));
    assert!(refused(|config| config.settle_minutes = 0).contains("settle_minutes"));
    assert!(refused(|config| config.platforms.clear()).contains("platforms"));
    assert!(refused(|config| config.connector = config::ConnectorKind::Webhook).contains("publishing.webhook.url"));
}

/// A job's input, for tests that make jobs themselves.
pub(super) fn input_of(log_id: i64) -> Value {
    json!({ "log_id": log_id })
}
