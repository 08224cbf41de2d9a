//! `graphile_worker` on PostgreSQL: for a full queue four local queues of 1,250 and batched completion, as the
//! documentation of `LocalQueueConfig` and of `complete_job_batch_delay` (1 to 5 ms) has it for many small jobs; for an
//! idle one what it does by default.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, WorkerContext, WorkerOptions, WorkerUtils,
};
use sqlx::PgPool;

use crate::measure::{For, Noop, Queue, Stop};

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";
    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        Noop::begins();
        Ok::<(), String>(())
    }
}

pub struct Peer {
    pool: PgPool,
    utils: WorkerUtils,
}

impl Peer {
    pub async fn open(url: &str) -> Self {
        let pool = PgPool::connect(url).await.expect("PostgreSQL");
        let utils = options(&pool).init().await.expect("the schema").create_utils();
        Self { pool, utils }
    }
}

fn options(pool: &PgPool) -> WorkerOptions {
    WorkerOptions::default()
        .pg_pool(pool.clone())
        .schema("graphile_worker")
        .concurrency(24)
        .listen_os_shutdown_signals(false)
        .define_job::<Noop>()
}

impl Queue for Peer {
    async fn clear(&mut self) {
        sqlx::query("TRUNCATE graphile_worker._private_jobs CASCADE").execute(&self.pool).await.expect("empty");
    }

    async fn settle(&mut self) {
        for text in ["VACUUM ANALYZE graphile_worker._private_jobs", "CHECKPOINT"] {
            sqlx::query(text).execute(&self.pool).await.expect("settled");
        }
    }

    async fn one(&mut self, n: u64) {
        self.utils.add_job(Noop { n }, JobSpec::default()).await.expect("enqueued");
    }

    async fn batch(&mut self, numbers: Range<u64>) {
        let spec = JobSpec::default();
        let jobs: Vec<_> = numbers.map(|n| (Noop { n }, &spec)).collect();
        self.utils.add_jobs(&jobs).await.expect("enqueued");
    }

    async fn open_jobs(&mut self) -> i64 {
        let text = "SELECT count(*) FROM graphile_worker._private_jobs";
        sqlx::query_scalar(text).fetch_one(&self.pool).await.expect("a count")
    }

    async fn work(&mut self, what: For) -> Stop {
        let options = match what {
            For::IdleQueue => options(&self.pool),
            For::FullQueue => options(&self.pool)
                .local_queue(LocalQueueConfig::default().with_size(1_250).with_queue_count(4))
                .complete_job_batch_delay(Duration::from_millis(1))
                .fail_job_batch_delay(Duration::from_millis(1)),
        };
        let worker = Arc::new(options.init().await.expect("a worker"));
        let running = tokio::spawn({
            let worker = worker.clone();
            async move { worker.run().await.expect("it runs") }
        });
        Box::pin(async move {
            worker.request_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(10), running).await;
        })
    }
}
