//! apalis on PostgreSQL. For a full queue: batches of 1,000, without a lock for each task (`lock_tasks`), looking every
//! 50 ms. For an idle one: NOTIFY (`with_pubsub`).

use std::ops::Range;
use std::time::Duration;

use apalis::prelude::*;
use apalis_postgres::{Config, PgPool, PostgresStorage};
use tokio::task::spawn_local;

use crate::measure::{For, Noop, Queue, Stop};

pub struct Peer {
    pool: PgPool,
    storage: PostgresStorage<Noop>,
    workers: u64,
}

impl Peer {
    pub async fn open(url: &str) -> Self {
        let pool = PgPool::connect(url).await.expect("PostgreSQL");
        PostgresStorage::setup(&pool).await.expect("the schema");
        Self { storage: storage(&pool, 10), pool, workers: 0 }
    }
}

fn storage(pool: &PgPool, batch: usize) -> PostgresStorage<Noop> {
    PostgresStorage::new(pool).with_config(Config::default().queue("queue").batch_size(batch).lock_tasks(false))
}

async fn noop(_: Noop) -> Result<(), BoxDynError> {
    Noop::begins();
    Ok(())
}

impl Queue for Peer {
    async fn clear(&mut self) {
        sqlx::query("TRUNCATE apalis.jobs").execute(&self.pool).await.expect("empty");
    }

    async fn settle(&mut self) {
        for text in ["VACUUM ANALYZE apalis.jobs", "CHECKPOINT"] {
            sqlx::query(text).execute(&self.pool).await.expect("settled");
        }
    }

    async fn one(&mut self, n: u64) {
        self.storage.push(Noop { n }).await.expect("enqueued");
    }

    async fn batch(&mut self, numbers: Range<u64>) {
        self.storage.push_bulk(numbers.map(|n| Noop { n }).collect()).await.expect("enqueued");
    }

    async fn open_jobs(&mut self) -> i64 {
        let text = "SELECT count(*) FROM apalis.jobs WHERE status <> 'Done'";
        sqlx::query_scalar(text).fetch_one(&self.pool).await.expect("a count")
    }

    async fn work(&mut self, what: For) -> Stop {
        self.workers += 1;
        let name = format!("worker-{}", self.workers);
        let pool = self.pool.clone();
        let worker = spawn_local(async move {
            let builder = WorkerBuilder::new(name);
            let ended = match what {
                For::FullQueue => {
                    let backend = storage(&pool, 1_000).poll_with_interval(Duration::from_millis(50));
                    builder.backend(backend).concurrency(200).parallelize(tokio::spawn).build(noop).run().await
                }
                For::IdleQueue => {
                    let backend = storage(&pool, 10).with_pubsub();
                    builder.backend(backend).concurrency(24).parallelize(tokio::spawn).build(noop).run().await
                }
            };
            ended.expect("it runs until it is aborted");
        });
        Box::pin(async move {
            worker.abort();
            let _ = worker.await;
        })
    }
}
