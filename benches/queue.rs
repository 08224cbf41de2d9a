//! The queue alone: `cargo bench --bench queue`.
//!
//! For each database: enqueueing one by one as `POST /api/queue/task` does, the same from many producers that share
//! commits, and in batches of 1,000; draining 20,000 jobs that do nothing, with none and with many finished jobs kept; and
//! the time from enqueueing a job, again as the route does, to its start in an idle queue. Every commit is on disk: SQLite
//! with synchronous FULL, PostgreSQL as it is installed. Each line is the median of three runs, with the least and the
//! most; every run begins on tables that are vacuumed and a checkpoint that is made.
//!
//! PostgreSQL is named by `SHOWRUNNER_TEST_POSTGRES_URL`, else looked for on 127.0.0.1:5432.
//! `SHOWRUNNER_BENCH_KEPT=10000000` chooses how many finished jobs are kept (1,000,000), 0 leaves that line out.

#![allow(clippy::disallowed_methods)] // a benchmark measures the machine's own time

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::{Value, json};
use showrunner::clock::SystemClock;
use showrunner::config::Durability;
use showrunner::db::{Db, Dialect, Options};
use showrunner::planes::queue::{Enqueuer, Handler, Job, NewJob, Outcome, Worker, WorkerOptions, enqueue_many};
use showrunner::random::Random;
use sqlx::{AssertSqlSafe, Connection};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const JOBS: u64 = 20_000;
const BATCH: usize = 1_000;
const RUNS: usize = 3;
const SINGLES: usize = 1_000;
const LATENCIES: usize = 200;
/// Kept jobs that are written at once.
const STRETCH: i64 = 500_000;

#[tokio::main]
async fn main() {
    let kept = match std::env::var("SHOWRUNNER_BENCH_KEPT") {
        Ok(text) => text.parse().expect("a number of jobs"),
        Err(_) => 1_000_000,
    };
    println!("| database | work | median | least | most | unit |");
    println!("|---|---|---|---|---|---|");
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("queue.db").display());
    measure("SQLite", &url, 1, kept).await;

    let server = std::env::var("SHOWRUNNER_TEST_POSTGRES_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    let Ok(mut connection) = sqlx::PgConnection::connect(&server).await else {
        println!("PostgreSQL: skipped, there is no server at {server}");
        return;
    };
    let name = "showrunner_bench_queue";
    for text in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")] {
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("a database");
    }
    let (place, _) = server.rsplit_once('/').expect("a URL with a database");
    measure("PostgreSQL", &format!("{place}/{name}"), 4, kept).await;
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await.expect("the database goes");
}

async fn measure(name: &str, url: &str, workers: usize, kept: u64) {
    let options = Options { durability: Durability::Full, max_connections: 20, ..Options::new(url) };
    let db = Db::open(&options, SystemClock::shared()).await.expect("a database");
    db.migrate().await.expect("the schema");
    let chosen = std::env::var("SHOWRUNNER_BENCH_ONLY").unwrap_or_default();
    let wanted = |work: &str| chosen.is_empty() || work.contains(&chosen);
    if wanted("enqueue") {
        line(name, "enqueue one by one", "jobs/s", runs(&db, async || one_by_one(&db).await).await);
        let many = "enqueue one by one, 64 producers";
        line(name, many, "jobs/s", runs(&db, async || producers(&db, 64).await).await);
        line(name, "enqueue in batches of 1,000", "jobs/s", runs(&db, async || batches(&db).await).await);
    }
    if wanted("drain") {
        let drained = runs(&db, async || drain(&db, workers).await).await;
        line(name, "drain of 20,000", "jobs/s", drained.clone());
        if kept > 0 {
            keep(&db, kept).await;
            let beside = runs_beside(&db, async || drain(&db, workers).await).await;
            line(name, &format!("drain of 20,000 beside {kept} finished"), "jobs/s", beside.clone());
            line(name, "beside finished ÷ alone", "", vec![median(&beside) / median(&drained)]);
        }
        clear(&db).await;
    }
    if wanted("latency") {
        // In a task of its own, as a request is.
        let latencies = tokio::spawn(latencies(db.clone())).await.expect("it ends");
        println!(
            "| {name} | from enqueueing to start, idle: p50, p90, p99 | {:.2} | {:.2} | {:.2} | ms |",
            latencies[LATENCIES / 2],
            latencies[LATENCIES * 9 / 10],
            latencies[LATENCIES * 99 / 100]
        );
    }
    db.close().await;
}

async fn runs<F: AsyncFn() -> f64>(db: &Db, work: F) -> Vec<f64> {
    let mut figures = Vec::new();
    for _ in 0..RUNS {
        clear(db).await;
        figures.push(work().await);
    }
    figures
}

/// The same beside what is kept.
async fn runs_beside<F: AsyncFn() -> f64>(db: &Db, work: F) -> Vec<f64> {
    let mut figures = Vec::new();
    for _ in 0..RUNS {
        settle(db).await;
        figures.push(work().await);
    }
    figures
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn line(name: &str, work: &str, unit: &str, mut figures: Vec<f64>) {
    figures.sort_by(f64::total_cmp);
    let digits = if unit.is_empty() { 2 } else { 0 };
    println!(
        "| {name} | {work} | {:.digits$} | {:.digits$} | {:.digits$} | {unit} |",
        median(&figures),
        figures[0],
        figures[figures.len() - 1]
    );
}

async fn clear(db: &Db) {
    let mut tx = db.begin().await.expect("begin");
    let jobs = match db.dialect() {
        Dialect::Sqlite => "DELETE FROM jobs",
        Dialect::Postgres => "TRUNCATE jobs CASCADE", // ten million rows go in no time
    };
    for text in [jobs, "DELETE FROM tallies WHERE name = 'jobs'"] {
        tx.query(text).execute().await.expect("empty");
    }
    tx.commit().await.expect("commit");
    settle(db).await;
}

/// `count` finished jobs of the last days, written in stretches: no statement may take longer than 30 s.
async fn keep(db: &Db, count: u64) {
    let insert = match db.dialect() {
        Dialect::Sqlite => {
            "WITH RECURSIVE n (n) AS (SELECT $1 UNION ALL SELECT n + 1 FROM n WHERE n < $2)
             INSERT INTO jobs (kind, status, attempt, lease, result, started_at, finished_at)
             SELECT 'noop', 'completed', 1, 1, 'null', strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || (n % 1000000) || ' seconds'),
                 strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || (n % 1000000) || ' seconds') FROM n"
        }
        Dialect::Postgres => {
            "INSERT INTO jobs (kind, status, attempt, lease, result, started_at, finished_at)
             SELECT 'noop', 'completed', 1, 1, 'null', now() - (n % 1000000) * interval '1 second',
                 now() - (n % 1000000) * interval '1 second' FROM generate_series($1, $2) AS n"
        }
    };
    let count = i64::try_from(count).expect("a count");
    for first in (1..=count).step_by(STRETCH as usize) {
        let mut tx = db.begin().await.expect("begin");
        let last = count.min(first + STRETCH - 1);
        tx.query(insert).bind(first).bind(last).execute().await.expect("finished jobs");
        tx.commit().await.expect("commit");
    }
}

/// Ends what earlier runs have left behind: PostgreSQL learns what is in the table, as by its autovacuum, and both
/// databases write down what they hold back.
async fn settle(db: &Db) {
    match db.dialect() {
        Dialect::Postgres => {
            db.query("VACUUM ANALYZE jobs").execute().await.expect("vacuum");
            db.query("CHECKPOINT").execute().await.expect("a checkpoint");
        }
        Dialect::Sqlite => _ = db.write("PRAGMA wal_checkpoint(TRUNCATE)").execute().await.expect("a checkpoint"),
    }
}

fn noop() -> NewJob {
    NewJob { input: json!({ "n": 1 }), ..NewJob::new("noop") }
}

async fn one_by_one(db: &Db) -> f64 {
    let enqueuer = Enqueuer::new(db.clone());
    let began = Instant::now();
    for _ in 0..SINGLES {
        enqueuer.enqueue(noop()).await.expect("enqueue");
    }
    SINGLES as f64 / began.elapsed().as_secs_f64()
}

async fn producers(db: &Db, producers: usize) -> f64 {
    let enqueuer = Enqueuer::new(db.clone());
    let began = Instant::now();
    let each = 4 * SINGLES / producers;
    let tasks: Vec<_> = (0..producers)
        .map(|_| {
            let enqueuer = enqueuer.clone();
            tokio::spawn(async move {
                for _ in 0..each {
                    enqueuer.enqueue(noop()).await.expect("enqueue");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a producer");
    }
    (each * producers) as f64 / began.elapsed().as_secs_f64()
}

async fn batches(db: &Db) -> f64 {
    let began = Instant::now();
    for _ in 0..JOBS as usize / BATCH {
        let jobs: Vec<NewJob> = (0..BATCH).map(|_| noop()).collect();
        let mut tx = db.begin().await.expect("begin");
        enqueue_many(&mut tx, &jobs).await.expect("enqueue");
        tx.commit().await.expect("commit");
    }
    JOBS as f64 / began.elapsed().as_secs_f64()
}

/// Does nothing, and counts.
struct Noop {
    done: Arc<AtomicU64>,
}

#[async_trait]
impl Handler for Noop {
    fn kind(&self) -> &'static str {
        "noop"
    }
    async fn run(&self, _: &Job) -> Outcome {
        self.done.fetch_add(1, Ordering::Relaxed);
        Outcome::Done(Value::Null)
    }
}

fn options(name: String, prefetch: usize) -> WorkerOptions {
    WorkerOptions {
        queue: "default",
        name,
        max_concurrency: 24,
        prefetch,
        poll_interval: Duration::from_secs(1),
        lease: Duration::from_secs(60),
        drain: Duration::from_secs(10),
    }
}

/// Jobs a second until the last completion is committed.
async fn drain(db: &Db, workers: usize) -> f64 {
    batches(db).await;
    settle(db).await;
    let done = Arc::new(AtomicU64::new(0));
    let stop = CancellationToken::new();
    let began = Instant::now();
    let tasks: Vec<_> = (0..workers)
        .map(|number| {
            let handlers: Vec<Arc<dyn Handler>> = vec![Arc::new(Noop { done: done.clone() })];
            let options = options(format!("bench-{number}"), BATCH);
            let worker = Worker::new(db.clone(), SystemClock::shared(), Random::seeded(1), options, handlers);
            tokio::spawn(worker.run(stop.clone()))
        })
        .collect();
    while done.load(Ordering::Relaxed) < JOBS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    loop {
        // Not by the table: counting there would walk over what is kept.
        let open = "SELECT CAST(coalesce(SUM(n), 0) AS BIGINT) FROM tallies
             WHERE name = 'jobs' AND key IN ('pending', 'processing')";
        if db.query(open).one::<(i64,)>().await.expect("count").0 == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let rate = JOBS as f64 / began.elapsed().as_secs_f64();
    stop.cancel();
    for task in tasks {
        task.await.expect("a worker");
    }
    rate
}

/// Says when it begins.
struct Stamp {
    begun: mpsc::UnboundedSender<Instant>,
}

#[async_trait]
impl Handler for Stamp {
    fn kind(&self) -> &'static str {
        "stamp"
    }
    async fn run(&self, _: &Job) -> Outcome {
        let _ = self.begun.send(Instant::now());
        Outcome::Done(Value::Null)
    }
}

/// Milliseconds from before a job is enqueued to its start, ascending.
async fn latencies(db: Db) -> Vec<f64> {
    let (begun, mut begins) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let handlers: Vec<Arc<dyn Handler>> = vec![Arc::new(Stamp { begun })];
    let enqueuer = Enqueuer::new(db.clone());
    let worker =
        Worker::new(db.clone(), SystemClock::shared(), Random::seeded(1), options("idle".to_owned(), 0), handlers)
            .with_seats(enqueuer.seats().clone());
    let worker = tokio::spawn(worker.run(stop.clone()));
    let mut figures = Vec::new();
    for _ in 0..LATENCIES + 20 {
        tokio::time::sleep(Duration::from_millis(15)).await;
        let sent = Instant::now();
        enqueuer.enqueue(NewJob::new("stamp")).await.expect("enqueue");
        figures.push((begins.recv().await.expect("it begins") - sent).as_secs_f64() * 1_000.0);
    }
    stop.cancel();
    worker.await.expect("the worker");
    let mut figures = figures.split_off(20);
    figures.sort_by(f64::total_cmp);
    figures
}
