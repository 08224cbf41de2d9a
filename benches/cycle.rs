//! An idle cycle of the loop over a platform with a history: `cargo bench --bench cycle`.
//!
//! For each database and size it fills a fresh database (jobs, publish logs and ledger entries 10 : 10 : 10, clips 1),
//! nearly all of it finished work of the last thirty days, with the same live work whatever the size; then it runs
//! idle cycles as the leader does (look, decide by the ten default rules, record) and prints how long they took.
//!
//! PostgreSQL is named by `SHOWRUNNER_TEST_POSTGRES_URL`, else looked for on 127.0.0.1:5432.
//! `SHOWRUNNER_BENCH_JOBS=1000,1000000` chooses other sizes (rows of `jobs`).

#![allow(clippy::disallowed_methods)] // a benchmark measures the machine's own time

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Timelike;
use showrunner::clock::SystemClock;
use showrunner::config::Config;
use showrunner::control::decider::RuleBook;
use showrunner::control::{CycleRunner, Executor, Monitor, Occasion, Trigger, acquire_lead, fold_tallies};
use showrunner::db::{Db, Dialect, Options};
use showrunner::planes::publishing::Publishing;
use showrunner::random::Random;
use sqlx::{AssertSqlSafe, Connection};

/// Rows of `jobs`; 3.1 times as many rows in all: 10 thousand, the named million each, 10 million.
const SIZES: [u64; 3] = [3_226, 1_000_000, 3_225_806];
const WARM_UP: usize = 30;
const CYCLES: usize = 400;

#[tokio::main]
async fn main() {
    let sizes = match std::env::var("SHOWRUNNER_BENCH_JOBS") {
        Ok(text) => text.split(',').map(|size| size.trim().parse().expect("a number of rows")).collect(),
        Err(_) => SIZES.to_vec(),
    };
    println!("| database | rows in all | p50 ms | p90 ms | p99 ms | against the smallest | filled in |");
    println!("|---|---|---|---|---|---|---|");
    let folder = tempfile::tempdir().expect("a folder");
    let mut smallest = None;
    for jobs in &sizes {
        let url = format!("sqlite://{}", folder.path().join(format!("{jobs}.db")).display());
        smallest = Some(measure("SQLite", &url, *jobs, smallest).await);
    }
    let server = std::env::var("SHOWRUNNER_TEST_POSTGRES_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    let Ok(mut connection) = sqlx::PgConnection::connect(&server).await else {
        println!("PostgreSQL: skipped, there is no server at {server}");
        return;
    };
    let mut smallest = None;
    for jobs in &sizes {
        let name = format!("showrunner_bench_{jobs}");
        for text in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")] {
            sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("a database");
        }
        let (place, _) = server.rsplit_once('/').expect("a URL with a database");
        smallest = Some(measure("PostgreSQL", &format!("{place}/{name}"), *jobs, smallest).await);
        let drop = format!("DROP DATABASE {name} WITH (FORCE)");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await.expect("the database goes");
    }
}

/// Fills a database and prints its line; returns the median of the smallest size.
async fn measure(name: &str, url: &str, jobs: u64, smallest: Option<f64>) -> f64 {
    let clock = SystemClock::shared();
    let db = Db::open(&Options::new(url), clock.clone()).await.expect("a database");
    db.migrate().await.expect("the schema");
    let began = Instant::now();
    fill(url, db.dialect(), jobs).await;
    fold_tallies(&db).await.expect("tallies fold");
    let filled = began.elapsed();

    let mut config = Config::default();
    for platform in config.publishing.platforms.values_mut() {
        let hour = (clock.now().hour() + 6) % 24; // closed for now, so that no rule has anything to do
        platform.opens = format!("{hour:02}:00");
        platform.closes = format!("{:02}:00", (hour + 1) % 24);
    }
    let publishing = Publishing::new(config.publishing.clone(), db.clone(), clock.clone(), Random::seeded(1));
    let publishing = Arc::new(publishing.expect("a plane"));
    let monitor = Monitor::new(db.clone(), publishing.clone());
    let executor = Executor::new(db.clone(), publishing, config.governors.clone());
    let rules = Arc::new(RuleBook::built_in());
    let mut runner =
        CycleRunner::new(db.clone(), clock, "bench".to_owned(), rules, monitor, executor, config.governors);
    let mut tx = db.begin().await.expect("begin");
    let term = acquire_lead(&mut tx, "bench").await.expect("a lease").expect("a free lease");
    tx.commit().await.expect("commit");
    let occasion = Occasion { trigger: Trigger::Loop, asked_by: None, term, skipped_ticks: 0 };

    let mut times = Vec::with_capacity(CYCLES);
    for round in 0..WARM_UP + CYCLES {
        let began = Instant::now();
        runner.run(occasion).await.expect("a cycle");
        if round >= WARM_UP {
            times.push(began.elapsed());
        }
    }
    let (acted,): (i64,) = db.query("SELECT COUNT(*) FROM cycles WHERE status <> 'idle'").one().await.expect("a count");
    assert_eq!(acted, 0, "the measured cycles must be idle");
    times.sort_unstable();
    let at = |share: f64| milliseconds(times[(times.len() as f64 * share) as usize]);
    let base = smallest.unwrap_or(at(0.5));
    println!(
        "| {name} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} s |",
        jobs * 3 + jobs / 10,
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.5) / base,
        filled.as_secs_f64()
    );
    db.close().await;
    base
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Writes the rows as another program would, by plain SQL.
async fn fill(url: &str, dialect: Dialect, jobs: u64) {
    let clips = jobs / 10 + 1;
    let mut texts = Vec::new();
    for (count, statement) in [(clips, CLIPS), (jobs, JOBS), (jobs, LOGS), (jobs, LEDGER)] {
        // In stretches, so that no single transaction holds everything.
        for from in (0..count).step_by(200_000) {
            let to = (from + 200_000).min(count) - 1;
            let (series, ago) = match dialect {
                Dialect::Sqlite => (
                    format!("WITH RECURSIVE s(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM s WHERE i < {to}) "),
                    "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ((i % 43000) + 90) || ' minutes')",
                ),
                Dialect::Postgres => (
                    format!("WITH s AS (SELECT i FROM generate_series({from}::bigint, {to}::bigint) AS i) "),
                    "(date_trunc('milliseconds', now()) - ((i % 43000) + 90) * interval '1 minute')",
                ),
            };
            let (insert, select) = statement.split_once("SELECT").expect("INSERT … SELECT");
            texts.push(format!("{insert} {series} SELECT {}", select.replace("$ago", ago)));
        }
    }
    let soon = match dialect {
        Dialect::Sqlite => "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 day')",
        Dialect::Postgres => "now() + interval '1 day'",
    };
    for _ in 0..40 {
        texts.push("INSERT INTO jobs (kind) VALUES ('render')".to_owned());
    }
    for clip in 1..=30 {
        texts.push(format!(
            "INSERT INTO publish_logs (clip_id, platform, status, scheduled_at) VALUES ({clip}, 'tiktok', 'scheduled', {soon})"
        ));
        texts.push("INSERT INTO clips (title, media_uri, visual_score) VALUES ('ready', 's3://x', 50)".to_owned());
        texts.push("INSERT INTO campaigns (name, status, budget_cents) VALUES ('small', 'active', 100)".to_owned());
    }
    texts.push("UPDATE ledger_head SET entry_id = (SELECT MAX(id) FROM ledger_entries)".to_owned());
    match dialect {
        Dialect::Sqlite => {
            let mut connection = sqlx::SqliteConnection::connect(url).await.expect("a connection");
            texts.push("ANALYZE".to_owned());
            texts.push("PRAGMA wal_checkpoint(TRUNCATE)".to_owned());
            for text in texts {
                sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("rows");
            }
        }
        Dialect::Postgres => {
            let mut connection = sqlx::PgConnection::connect(url).await.expect("a connection");
            texts.push("VACUUM ANALYZE".to_owned());
            for text in texts {
                sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("rows");
            }
        }
    }
}

const CLIPS: &str = "INSERT INTO clips (title, media_uri, visual_score, status, created_at)
    SELECT 'clip ' || i, 's3://clips/' || i || '.mp4', 41 + (i % 50), 'published', $ago FROM s";
const JOBS: &str = "INSERT INTO jobs (kind, status, attempt, created_at, updated_at, finished_at)
    SELECT 'render', CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'completed' END, 1, $ago, $ago, $ago FROM s";
const LOGS: &str = "INSERT INTO publish_logs
        (clip_id, platform, status, scheduled_at, retry_count, attempted_at, failed_at, published_at, created_at, updated_at)
    SELECT i / 10 + 1, 'p' || (i % 10), CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'published' END, $ago, 3, $ago,
        CASE WHEN i % 50 = 0 THEN $ago END, CASE WHEN i % 50 <> 0 THEN $ago END, $ago, $ago FROM s";
const LEDGER: &str = "INSERT INTO ledger_entries
        (id, cycle_id, event_type, severity, actor, payload, created_at, prev_hash, hash)
    SELECT i + 1, i / 2 + 1, 'orchestrator.cycle_idle', 'info', 'loop', '{\"health\":100}', $ago,
        'b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c',
        '7d865e959b2466918c9863afca942d0fb89d7c9ac0c99bafc3749504ded97730' FROM s";
