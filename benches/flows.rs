//! Flows: how long 40 sequential and 100 parallel no-op steps and a one-step flow take, from the trigger to the result,
//! every step durable on disk (`synchronous=FULL`; PostgreSQL as it comes): `cargo bench --bench flows`.
//!
//! PostgreSQL is named by `SHOWRUNNER_TEST_POSTGRES_URL`, else looked for on 127.0.0.1:5432.

#![allow(clippy::disallowed_methods)] // a benchmark measures the machine's own time

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use showrunner::clock::SystemClock;
use showrunner::config::{self, Durability};
use showrunner::db::{Db, Options};
use showrunner::events::Monitor;
use showrunner::planes::pipelines::{Definition, PipelineBuilder, Pipelines, RunStatus, StepBuilder};
use showrunner::random::Random;
use sqlx::{AssertSqlSafe, Connection};

const WARM_UP: usize = 5;
const ROUNDS: usize = 50;

#[tokio::main]
async fn main() {
    println!("| database | flow | p50 ms | p90 ms | p99 ms |");
    println!("|---|---|---|---|---|");
    let folder = tempfile::tempdir().expect("a folder");
    measure("SQLite", &format!("sqlite://{}", folder.path().join("flows.db").display())).await;
    let server = std::env::var("SHOWRUNNER_TEST_POSTGRES_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    let Ok(mut connection) = sqlx::PgConnection::connect(&server).await else {
        println!("PostgreSQL: skipped, there is no server at {server}");
        return;
    };
    let name = format!("showrunner_flows_{}", std::process::id());
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.expect("a database");
    let (place, _) = server.rsplit_once('/').expect("a URL with a database");
    measure("PostgreSQL", &format!("{place}/{name}")).await;
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await.expect("the database goes");
}

fn flows() -> Vec<(&'static str, Definition)> {
    let id = |step: usize| format!("s{step}");
    let mut sequential = PipelineBuilder::new("sequential");
    for step in 0..40_usize {
        let needs = step.checked_sub(1).map(id);
        sequential = sequential.step(StepBuilder::eval(&id(step), "1").needs(needs.as_deref()));
    }
    let mut parallel = PipelineBuilder::new("parallel");
    for step in 0..100 {
        parallel = parallel.step(StepBuilder::eval(&id(step), "1"));
    }
    let one = PipelineBuilder::new("one").step(StepBuilder::eval("s", "1"));
    vec![("sequential40", sequential.build()), ("parallel100", parallel.build()), ("one", one.build())]
}

async fn measure(database: &str, url: &str) {
    let clock = SystemClock::shared();
    let options = Options { durability: Durability::Full, ..Options::new(url) };
    let db = Db::open(&options, clock.clone()).await.expect("the database");
    db.migrate().await.expect("the schema");
    let events = Monitor::new(db.clone(), clock.clone());
    let random = Random::seeded(1);
    let plane: Arc<Pipelines> =
        Pipelines::new(config::Pipelines::default(), db.clone(), events, clock, random, "bench")
            .await
            .expect("the plane");
    plane.start();
    for (flow, definition) in flows() {
        let steps = definition.steps.len();
        plane.register_workflow(flow, definition).await.expect("a good definition");
        let mut took = Vec::with_capacity(ROUNDS);
        for round in 0..WARM_UP + ROUNDS {
            let begun = Instant::now();
            let (run, end) = plane.execute_workflow(flow, json!({})).await.expect("a run");
            if round >= WARM_UP {
                took.push(begun.elapsed());
            }
            assert_eq!(end.status, RunStatus::Completed);
            let (written,): (i64,) = db
                .query("SELECT COUNT(*) FROM pipeline_steps WHERE run_id = $1 AND status = 'completed'")
                .bind(run)
                .one()
                .await
                .expect("a count");
            assert_eq!(written as usize, steps, "every step is in the database");
        }
        took.sort_unstable();
        let at = |share: f64| milliseconds(took[((took.len() - 1) as f64 * share) as usize]);
        println!("| {database} | {flow} | {} | {} | {} |", at(0.5), at(0.9), at(0.99));
    }
    plane.stop().await;
    db.close().await;
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1_000.0)
}
