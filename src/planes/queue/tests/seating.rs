//! A job that is enqueued while a worker of this process idles is claimed by the same commit.

use std::time::Duration;

use super::super::seats::Sitting;
use super::super::store::registry::TaskSettings;
use super::super::*;
use super::{World, in_each_world};
use crate::actor::Actor;

fn sit(enqueuer: &Enqueuer) -> Sitting {
    enqueuer.seats().sit("default", &["work"], "me", Duration::from_secs(60))
}

/// The row without what tells one job from another.
fn claimed(job: JobRecord) -> JobRecord {
    JobRecord { id: 0, ..job }
}

async fn put_queue(world: &World, queue: &str, work: impl AsyncFnOnce(&mut crate::db::Tx)) {
    let mut tx = world.begin().await;
    tx.query("DELETE FROM queues WHERE name = $1").bind(queue.to_owned()).execute().await.expect("none");
    work(&mut tx).await;
    tx.commit().await.expect("commit");
}

#[tokio::test]
async fn it_is_claimed_as_by_any_other_claim() {
    in_each_world(async |world| {
        let enqueuer = Enqueuer::new(world.db.clone());
        let tasks = [
            None,
            Some(TaskSettings { timeout_ms: Some(5_000), priority: 7, ..TaskSettings::default() }),
            Some(TaskSettings { heartbeat_interval_ms: Some(2_000), ..TaskSettings::default() }),
            Some(TaskSettings {
                heartbeat_interval_ms: Some(9_000),
                timeout_ms: Some(900_000),
                max_attempts: 9,
                ..TaskSettings::default()
            }),
        ];
        for task in tasks {
            if let Some(task) = task {
                world.task("work", task).await;
            }
            for timeout in [None, Some(Duration::from_secs(3)), Some(Duration::from_secs(3_000))] {
                let new = NewJob { timeout, awaited: true, ..NewJob::new("work") };
                world.enqueue(new.clone()).await;
                let plain = world.claim_one().await;
                let mut sitting = sit(&enqueuer);
                let enqueued = enqueuer.enqueue(new).await.expect("enqueued");
                let job = sitting.job().await.expect("the job");
                assert_eq!((job.id, job.timeout_ms, job.lease), (enqueued.id, plain.timeout_ms, plain.lease));
                let (seated, plain) = (world.get(job.id).await, world.get(plain.id).await);
                assert_eq!(format!("{:?}", claimed(seated)), format!("{:?}", claimed(plain)));
                assert!(world.complete(&job).await);
            }
        }
        let counts = counts(&world.db).await.expect("counts");
        assert_eq!((counts.pending, counts.processing, counts.completed), (0, 12, 12));
    })
    .await;
}

#[tokio::test]
async fn it_waits_where_something_stands_against_it() {
    in_each_world(async |world| {
        let enqueuer = Enqueuer::new(world.db.clone());
        let waits = async |why: &str, job: NewJob| {
            let mut sitting = sit(&enqueuer);
            let enqueued = enqueuer.enqueue(job).await.expect("enqueued");
            let row = world.get(enqueued.id).await;
            assert!(matches!(row.status, Status::Pending | Status::Waiting), "{why}");
            assert_eq!((row.attempt, row.lease, row.worker, row.started_at), (0, 0, None, None), "{why}");
            assert_eq!((row.deadline_at, row.lease_expires_at), (None, None), "{why}");
            // It is told to look, or goes on waiting for a job that it can take.
            tokio::select! {
                biased;
                job = sitting.job() => assert!(job.is_none(), "{why}"),
                () = std::future::ready(()) => {}
            }
        };
        waits("of another kind", NewJob::new("else")).await;
        waits("in another queue", NewJob { queue: Some("other".into()), ..NewJob::new("work") }).await;
        waits("with a key", NewJob { concurrency_key: Some("k".to_owned()), ..NewJob::new("work") }).await;
        let later = world.now().after(Duration::from_secs(9));
        waits("later", NewJob { run_at: Some(later), ..NewJob::new("work") }).await;

        put_queue(&world, "default", async |tx| _ = pause(tx, "default", &Actor::Loop).await.expect("paused")).await;
        waits("paused", NewJob::new("work")).await;
        put_queue(&world, "default", async |tx| limit_queue(tx, "default", Some(5), None).await.expect("limited"))
            .await;
        waits("a limited queue", NewJob::new("work")).await;
        put_queue(&world, "default", async |_| ()).await;

        world.task("work", TaskSettings { concurrency_limit: Some(5), ..TaskSettings::default() }).await;
        waits("a limited task", NewJob::new("work")).await;
        world.task("work", TaskSettings { queue: "other".to_owned(), ..TaskSettings::default() }).await;
        waits("whose task has another queue", NewJob::new("work")).await;
        world.task("work", TaskSettings::default()).await;

        let mut tx = world.begin().await;
        let seen = WorkerSeen {
            id: "me",
            service: None,
            mode: "local",
            endpoint: None,
            queue: "default",
            kinds: &["work"],
            capacity: 1,
        };
        worker_seen(&mut tx, &seen).await.expect("seen");
        quarantine(&mut tx, "me", world.now().after(Duration::from_secs(9))).await.expect("quarantine");
        tx.commit().await.expect("commit");
        waits("for a worker in quarantine", NewJob::new("work")).await;
        world.pass(Duration::from_secs(10));
        let mut sitting = sit(&enqueuer);
        enqueuer.enqueue(NewJob::new("work")).await.expect("enqueued");
        assert!(sitting.job().await.is_some(), "nothing stands against it any more");
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_taken_gives_the_job_that_has_it() {
    in_each_world(async |world| {
        let enqueuer = Enqueuer::new(world.db.clone());
        let keyed = NewJob { idempotency_key: Some("once".to_owned()), ..NewJob::new("work") };
        let mut sitting = sit(&enqueuer);
        let first = enqueuer.enqueue(keyed.clone()).await.expect("enqueued");
        assert_eq!(sitting.job().await.map(|job| job.id), Some(first.id));
        let mut sitting = sit(&enqueuer);
        let again = enqueuer.enqueue(keyed).await.expect("the same");
        assert_eq!(again, Enqueued { id: first.id, created: false });
        assert!(sitting.job().await.is_none(), "it is to look");
        assert_eq!(world.get(first.id).await.lease, 1);
    })
    .await;
}

#[tokio::test]
async fn whoever_leaves_takes_no_job_with_it() {
    in_each_world(async |world| {
        let enqueuer = Enqueuer::new(world.db.clone());
        let sitting = sit(&enqueuer);
        let mut hint = world.db.listen(crate::db::Topic::Jobs);
        let enqueued = enqueuer.enqueue(NewJob::new("work")).await.expect("enqueued");
        drop(sitting); // with the job in it
        hint.woken().await;
        let job = world.claim_one().await;
        assert_eq!((job.id, job.attempt, job.lease), (enqueued.id, 1, 3), "the try that never began does not count");

        drop(sit(&enqueuer));
        let enqueued = enqueuer.enqueue(NewJob::new("work")).await.expect("enqueued");
        assert_eq!(world.status(enqueued.id).await, Status::Pending);
    })
    .await;
}
