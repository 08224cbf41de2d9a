//! What the benchmarks share: the report, databases, a loop without a service around it.

pub mod platform;
pub mod report;
pub mod snapshots;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Timelike;
use showrunner::clock::SharedClock;
use showrunner::config::Config;
use showrunner::control::decider::RuleBook;
use showrunner::control::{CycleRunner, Executor, Monitor, Occasion, Trigger, acquire_lead};
use showrunner::db::{Db, Options};
use showrunner::planes::publishing::Publishing;
use showrunner::random::Random;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

pub use report::{Goal, Report};

/// A database of its own for one measurement; gone when dropped (SQLite) or closed (PostgreSQL).
pub struct Place {
    pub name: &'static str,
    pub url: String,
    server: Option<(PgConnection, String)>,
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("bench.db").display());
        Self { name: "SQLite", url, server: None, _folder: Some(folder) }
    }

    /// None where no server answers.
    pub async fn postgres() -> Option<Self> {
        let server = std::env::var("SHOWRUNNER_TEST_POSTGRES_URL")
            .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        let mut connection = PgConnection::connect(&server).await.ok()?;
        let name = format!("showrunner_bench_{}", std::process::id());
        for text in [format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"), format!("CREATE DATABASE {name}")] {
            sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("a database");
        }
        let (host, _) = server.rsplit_once('/').expect("a URL with a database");
        Some(Self {
            name: "PostgreSQL",
            url: format!("{host}/{name}"),
            server: Some((connection, name)),
            _folder: None,
        })
    }

    /// SQLite, and PostgreSQL where there is one.
    pub async fn both() -> Vec<Self> {
        [Some(Self::sqlite()), Self::postgres().await].into_iter().flatten().collect()
    }

    /// An open, migrated database.
    pub async fn open(&self, clock: SharedClock) -> Db {
        let db = Db::open(&Options::new(&self.url), clock).await.expect("a database");
        db.migrate().await.expect("the schema");
        db
    }

    pub async fn close(self, db: Db) {
        db.close().await;
        if let Some((mut connection, name)) = self.server {
            let text = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("the database goes");
        }
    }
}

/// A loop that is driven by hand, as the leader drives it. The platforms' windows are closed for hours, so that the
/// ten built-in rules have nothing to do.
pub struct Loop {
    runner: CycleRunner,
    term: i64,
}

impl Loop {
    pub async fn over(db: &Db, clock: &SharedClock) -> Self {
        let mut config = Config::default();
        for platform in config.publishing.platforms.values_mut() {
            let hour = (clock.now().hour() + 6) % 24;
            platform.opens = format!("{hour:02}:00");
            platform.closes = format!("{:02}:00", (hour + 1) % 24);
        }
        let publishing = Publishing::new(config.publishing, db.clone(), clock.clone(), Random::seeded(1));
        let publishing = Arc::new(publishing.expect("a plane"));
        let monitor = Monitor::new(db.clone(), publishing.clone());
        let executor = Executor::new(db.clone(), publishing, config.governors.clone());
        let rules = Arc::new(RuleBook::built_in());
        let (name, governors) = ("bench".to_owned(), config.governors);
        let runner = CycleRunner::new(db.clone(), clock.clone(), name, rules, monitor, executor, governors);
        let mut tx = db.begin().await.expect("begin");
        let term = acquire_lead(&mut tx, "bench").await.expect("a lease").expect("a free lease");
        tx.commit().await.expect("commit");
        Self { runner, term }
    }

    /// One cycle: look, decide, write down, commit.
    pub async fn cycle(&mut self) -> Duration {
        let occasion = Occasion { trigger: Trigger::Loop, asked_by: None, term: self.term, skipped_ticks: 0 };
        let began = Instant::now();
        self.runner.run(occasion).await.expect("a cycle");
        began.elapsed()
    }
}

/// Panics if a cycle did something: then something else was measured than was meant.
pub async fn assert_all_idle(db: &Db) {
    let (acted,): (i64,) = db.query("SELECT COUNT(*) FROM cycles WHERE status <> 'idle'").one().await.expect("a count");
    assert_eq!(acted, 0, "the measured cycles must be idle");
}

/// The value below which `share` of the times lie, in milliseconds.
pub fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    milliseconds(times[((times.len() - 1) as f64 * share).round() as usize])
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// How often `work` runs in a second: the median of five stretches of `stretch`.
pub fn rate(stretch: Duration, mut work: impl FnMut()) -> f64 {
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let (began, mut count) = (Instant::now(), 0_u32);
            while began.elapsed() < stretch {
                for _ in 0..20 {
                    work();
                }
                count += 20;
            }
            f64::from(count) / began.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[2]
}

/// What a process holds in memory (Linux).
pub fn resident_mebibytes(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|kibibytes| kibibytes.parse::<f64>().ok()).expect("a number") / 1024.0
}
