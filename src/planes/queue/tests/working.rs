//! The worker of this process: it runs, batches, stops, times out and hears of cancellations.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::super::*;
use super::{World, in_each_world};
use crate::clock::SystemClock;
use crate::db::Topic;

/// Does as its input says: ends, fails, panics, or never ends.
#[derive(Default)]
struct Obedient {
    begun: Notify,
    running: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl Handler for Obedient {
    fn kind(&self) -> &'static str {
        "work"
    }
    async fn run(&self, job: &Job) -> Outcome {
        let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.begun.notify_one();
        let what = job.input.0["do"].as_str().unwrap_or("end").to_owned();
        tokio::task::yield_now().await;
        if what == "hang" {
            std::future::pending::<()>().await;
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        match what.as_str() {
            "fail" => Outcome::Failed("as told".to_owned()),
            "panic" => panic!("as told"),
            _ => Outcome::Done(json!({ "attempt": job.attempt })),
        }
    }
}

struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn options() -> WorkerOptions {
    WorkerOptions {
        queue: "default",
        name: "worker".to_owned(),
        max_concurrency: 4,
        prefetch: 8,
        poll_interval: Duration::from_secs(5),
        lease: Duration::from_secs(60),
        drain: Duration::from_millis(200),
    }
}

/// The worker runs on the machine's clock: the manual one of the database stands still.
fn start(world: &World, handler: &Arc<Obedient>, options: WorkerOptions) -> Running {
    let worker =
        Worker::new(world.db.clone(), SystemClock::shared(), world.random.clone(), options, vec![handler.clone()]);
    let stop = CancellationToken::new();
    let task = tokio::spawn(worker.run(stop.clone()));
    Running { stop, task }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.expect("it stops").expect("no panic");
    }
}

async fn told(world: &World, what: &str) -> i64 {
    let job = NewJob { input: json!({ "do": what }), awaited: true, max_attempts: Some(1), ..NewJob::new("work") };
    let id = world.enqueue(job).await.id;
    world.db.wake(Topic::Jobs).await;
    id
}

/// Waits for the ends of jobs by their hint.
async fn until_ended(world: &World, ids: &[i64]) -> Vec<JobRecord> {
    let waited = async {
        loop {
            let mut hint = world.db.listen(Topic::JobsEnded);
            let rows = ended(&world.db, ids).await.expect("ended");
            if rows.len() == ids.len() {
                return rows;
            }
            hint.woken().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("they end")
}

/// SQLite has one writer: whoever waits for it while something of his own holds it and stands still waits in vain.
#[tokio::test]
async fn it_renews_leases_while_it_claims_and_writes_down() {
    in_each_world(async |world| {
        let handler = Arc::new(Obedient::default());
        let jobs: Vec<NewJob> = (0..500).map(|_| NewJob { awaited: true, ..NewJob::new("work") }).collect();
        let mut tx = world.begin().await;
        let ids: Vec<i64> = enqueue_many(&mut tx, &jobs).await.expect("enqueue").iter().map(|one| one.id).collect();
        tx.commit().await.expect("commit");
        let running = start(&world, &handler, WorkerOptions { lease: Duration::from_millis(3), ..options() });
        let rows = until_ended(&world, &ids).await;
        assert!(rows.iter().all(|row| row.status == Status::Completed && row.attempt == 1));
        running.end().await;
    })
    .await;
}

#[tokio::test]
async fn it_runs_many_with_prefetch_and_never_more_at_once_than_it_may() {
    in_each_world(async |world| {
        let handler = Arc::new(Obedient::default());
        let jobs: Vec<NewJob> = (0..300).map(|_| NewJob { awaited: true, ..NewJob::new("work") }).collect();
        let mut tx = world.begin().await;
        let ids: Vec<i64> = enqueue_many(&mut tx, &jobs).await.expect("enqueue").iter().map(|one| one.id).collect();
        tx.commit().await.expect("commit");
        let running = start(&world, &handler, options());
        let rows = until_ended(&world, &ids).await;
        assert!(rows.iter().all(|row| row.status == Status::Completed && row.attempt == 1));
        assert_eq!(rows[0].result.as_ref().map(|result| result.0.clone()), Some(json!({ "attempt": 1 })));
        assert!(handler.most.load(Ordering::SeqCst) <= 4);
        running.end().await;
        assert_eq!(world.number("SELECT COUNT(*) FROM workers").await, 0, "it says good-bye");
    })
    .await;
}

#[tokio::test]
async fn failures_and_panics_become_dead_letters_and_the_worker_goes_on() {
    in_each_world(async |world| {
        let handler = Arc::new(Obedient::default());
        let running = start(&world, &handler, options());
        let ids = [told(&world, "fail").await, told(&world, "panic").await, told(&world, "end").await];
        let rows = until_ended(&world, &ids).await;
        let errors: Vec<Option<&str>> = rows.iter().map(|row| row.error.as_deref()).collect();
        assert_eq!(errors, [Some("as told"), Some("the job's handler panicked; the log has the place"), None]);
        assert_eq!(world.number("SELECT COUNT(*) FROM dlq").await, 2);
        running.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_job_past_its_time_limit_is_dropped_and_a_cancelled_one_too() {
    in_each_world(async |world| {
        let handler = Arc::new(Obedient::default());
        let running = start(&world, &handler, options());
        let job = NewJob {
            input: json!({ "do": "hang" }),
            awaited: true,
            max_attempts: Some(1),
            timeout: Some(Duration::from_millis(30)),
            ..NewJob::new("work")
        };
        let id = world.enqueue(job).await.id;
        world.db.wake(Topic::Jobs).await;
        let rows = until_ended(&world, &[id]).await;
        assert_eq!((rows[0].status, rows[0].outcome.as_deref()), (Status::Failed, Some("timed_out")));

        let id = told(&world, "hang").await;
        handler.begun.notified().await;
        while world.status(id).await != Status::Processing {
            handler.begun.notified().await;
        }
        let mut tx = world.begin().await;
        assert_eq!(cancel(&mut tx, id).await.expect("cancel"), Cancelled::Requested);
        tx.commit().await.expect("commit");
        world.db.wake(Topic::Jobs).await;
        let rows = until_ended(&world, &[id]).await;
        assert_eq!(rows[0].status, Status::Cancelled);
        running.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_stopping_worker_gives_back_what_has_not_begun() {
    in_each_world(async |world| {
        let handler = Arc::new(Obedient::default());
        let options = WorkerOptions { max_concurrency: 1, ..options() };
        let mut jobs = vec![NewJob { input: json!({ "do": "hang" }), ..NewJob::new("work") }];
        jobs.extend((0..5).map(|_| NewJob::new("work")));
        let mut tx = world.begin().await;
        enqueue_many(&mut tx, &jobs).await.expect("enqueue");
        tx.commit().await.expect("commit");
        let running = start(&world, &handler, options);
        handler.begun.notified().await;
        running.end().await;
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE status = 'pending' AND attempt = 0").await, 5);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE status = 'processing'").await, 1, "its lease lapses");
    })
    .await;
}

#[tokio::test]
async fn one_bad_result_does_not_hold_up_the_others() {
    in_each_world(async |world| {
        for _ in 0..2 {
            world.job().await;
        }
        let jobs = world.claim(2).await;
        let (bad, good) = (json!("a \u{0} in a text"), Value::Null);
        let mut tx = world.begin().await;
        let held = complete_many(&mut tx, &[((&jobs[0]).into(), &bad), ((&jobs[1]).into(), &good)]).await;
        assert_eq!(held.expect("both").len(), 2);
        tx.commit().await.expect("commit");
        assert_eq!(world.get(1).await.result.map(|result| result.0), Some(json!("a  in a text")));
    })
    .await;
}
