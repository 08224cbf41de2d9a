//! apalis on SQLite (WAL). Its `setup` turns `synchronous` off on the connection that it is given; here that connection
//! is closed, and all others have FULL. A full queue is taken in batches of 100 and looked at every 20 ms, an idle one
//! in batches of 10.

use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use apalis::prelude::*;
use apalis_sqlite::{Config, SqlitePool, SqliteStorage};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::task::spawn_local;

use crate::measure::{For, Noop, Queue, Stop};

pub struct Peer {
    pool: SqlitePool,
    storage: SqliteStorage<Noop>,
    workers: u64,
}

impl Peer {
    pub async fn open(path: &str) -> Self {
        let options = SqliteConnectOptions::from_str(path)
            .expect("a path")
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePool::connect_with(options.clone()).await.expect("SQLite");
        SqliteStorage::setup(&pool).await.expect("the schema");
        pool.close().await;
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.expect("SQLite");
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&pool).await.expect("a pragma");
        assert_eq!(synchronous, 2, "FULL");
        Self { storage: storage(&pool, 10), pool, workers: 0 }
    }
}

fn storage(pool: &SqlitePool, batch: usize) -> SqliteStorage<Noop> {
    SqliteStorage::new(pool).with_config(Config::default().queue("queue").batch_size(batch))
}

async fn noop(_: Noop) -> Result<(), BoxDynError> {
    Noop::begins();
    Ok(())
}

impl Queue for Peer {
    async fn clear(&mut self) {
        sqlx::query("DELETE FROM Jobs").execute(&self.pool).await.expect("empty");
    }

    async fn settle(&mut self) {
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.pool).await.expect("settled");
    }

    async fn one(&mut self, n: u64) {
        self.storage.push(Noop { n }).await.expect("enqueued");
    }

    async fn batch(&mut self, numbers: Range<u64>) {
        self.storage.push_bulk(numbers.map(|n| Noop { n }).collect()).await.expect("enqueued");
    }

    async fn open_jobs(&mut self) -> i64 {
        let text = "SELECT count(*) FROM Jobs WHERE status <> 'Done'";
        sqlx::query_scalar(text).fetch_one(&self.pool).await.expect("a count")
    }

    async fn work(&mut self, what: For) -> Stop {
        self.workers += 1;
        let name = format!("worker-{}", self.workers);
        let (batch, concurrency) = if what == For::FullQueue { (100, 50) } else { (10, 24) };
        let backend = storage(&self.pool, batch).poll_with_interval(Duration::from_millis(20));
        let worker = spawn_local(async move {
            let builder = WorkerBuilder::new(name).backend(backend).concurrency(concurrency);
            builder.parallelize(tokio::spawn).build(noop).run().await.expect("it runs until it is aborted");
        });
        Box::pin(async move {
            worker.abort();
            let _ = worker.await;
        })
    }
}
