//! Jobs come in: one, thousands, twice, later, and from other programs.

use std::time::Duration;

use serde_json::json;

use super::super::store::registry::TaskSettings;
use super::super::*;
use super::in_each_world;

fn keyed(key: &str, ttl: Option<Duration>) -> NewJob {
    NewJob { idempotency_key: Some(key.to_owned()), idempotency_ttl: ttl, ..NewJob::new("work") }
}

#[tokio::test]
async fn thousands_are_enqueued_by_one_statement_in_order() {
    in_each_world(async |world| {
        let jobs: Vec<NewJob> = (0..3_000)
            .map(|number| NewJob {
                input: json!({ "number": number, "text": "ä\"\\{}" }),
                priority: Some(number % 7),
                ..NewJob::new("work")
            })
            .collect();
        let mut tx = world.begin().await;
        let enqueued = enqueue_many(&mut tx, &jobs).await.expect("enqueue");
        tx.commit().await.expect("commit");
        assert!(enqueued.iter().all(|one| one.created));
        for (place, one) in enqueued.iter().enumerate().step_by(499) {
            let job = world.get(one.id).await;
            assert_eq!((job.input.0, job.priority), (jobs[place].input.clone(), place as i64 % 7));
            assert_eq!((job.status, job.queue.as_str(), job.max_attempts), (Status::Pending, "default", 3));
        }
        let first: Vec<i64> = world.claim(3).await.iter().map(|job| job.id).collect();
        assert_eq!(first, [enqueued[6].id, enqueued[13].id, enqueued[20].id], "the most urgent, then the oldest");
        let counts = counts(&world.db).await.expect("counts");
        assert_eq!((counts.pending, counts.processing), (2_997, 3));
    })
    .await;
}

#[tokio::test]
async fn the_same_key_gives_the_same_job_while_it_lives() {
    in_each_world(async |world| {
        let first = world.enqueue(keyed("once", None)).await;
        assert!(first.created);
        assert_eq!(world.enqueue(keyed("once", None)).await, Enqueued { id: first.id, created: false });
        let job = world.claim_one().await;
        assert_eq!(world.enqueue(keyed("once", None)).await, Enqueued { id: first.id, created: false });
        assert!(world.complete(&job).await);
        assert!(world.enqueue(keyed("once", None)).await.created, "the key is free again");

        let mut tx = world.begin().await;
        let several = [keyed("a", None), NewJob::new("work"), keyed("a", None), keyed("b", None), NewJob::new("work")];
        let enqueued = enqueue_many(&mut tx, &several).await.expect("enqueue");
        tx.commit().await.expect("commit");
        assert_eq!(enqueued.iter().map(|one| one.created).collect::<Vec<_>>(), [true, true, false, true, true]);
        assert_eq!(enqueued[0].id, enqueued[2].id);
    })
    .await;
}

#[tokio::test]
async fn a_key_with_a_time_to_live_outlasts_its_job_and_ends() {
    in_each_world(async |world| {
        let hour = Some(Duration::from_secs(3_600));
        let first = world.enqueue(keyed("once", hour)).await;
        let job = world.claim_one().await;
        world.complete(&job).await;
        world.pass(Duration::from_secs(3_599));
        assert_eq!(world.enqueue(keyed("once", hour)).await, Enqueued { id: first.id, created: false });
        world.pass(Duration::from_secs(2));
        let second = world.enqueue(keyed("once", hour)).await;
        assert!(second.created && second.id != first.id);
        assert_eq!(world.enqueue(keyed("once", None)).await, Enqueued { id: second.id, created: false });
    })
    .await;
}

#[tokio::test]
async fn a_delayed_job_waits_for_its_time() {
    in_each_world(async |world| {
        let later = NewJob { run_at: Some(world.now().after(Duration::from_secs(10))), ..NewJob::new("work") };
        let id = world.enqueue(later).await.id;
        assert_eq!(world.status(id).await, Status::Waiting);
        assert!(world.claim(10).await.is_empty());
        let reason = why_waiting(&world.db, &world.get(id).await).await.expect("a reason");
        assert!(reason.expect("waits").starts_with("waits for its time at 2026-11-20T18:30:10"));
        world.pass(Duration::from_secs(10));
        assert_eq!(world.claim(10).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_task_says_what_its_jobs_do_not() {
    in_each_world(async |world| {
        let settings = TaskSettings { priority: 9, max_attempts: 7, queue: "slow".to_owned(), ..Default::default() };
        world.task("work", settings).await;
        let id = world.job().await;
        let job = world.get(id).await;
        assert_eq!((job.priority, job.max_attempts, job.queue.as_str()), (9, 7, "slow"));
        let said =
            NewJob { priority: Some(1), max_attempts: Some(2), queue: Some("fast".into()), ..NewJob::new("work") };
        let job = world.get(world.enqueue(said).await.id).await;
        assert_eq!((job.priority, job.max_attempts, job.queue.as_str()), (1, 2, "fast"));
    })
    .await;
}

#[tokio::test]
async fn a_row_of_another_program_with_only_a_kind_works_and_an_unknown_kind_says_why_it_waits() {
    in_each_world(async |world| {
        world.sql("INSERT INTO jobs (kind) VALUES ('work')".to_owned()).await;
        let job = world.claim_one().await;
        assert!(world.complete(&job).await);
        assert_eq!(world.outcomes(job.id).await, ["completed"]);

        world.sql("INSERT INTO jobs (kind) VALUES ('nobody''s')".to_owned()).await;
        assert!(world.claim(10).await.is_empty());
        let id = world.number("SELECT MAX(id) FROM jobs").await;
        let why = async || why_waiting(&world.db, &world.get(id).await).await.expect("why").unwrap_or_default();
        assert_eq!(why().await, "no worker has registered the task `nobody's`");
        let mut tx = world.begin().await;
        let seen = WorkerSeen {
            id: "w1",
            service: None,
            mode: "pull",
            endpoint: None,
            queue: "default",
            kinds: &["nobody's"],
            capacity: 1,
        };
        worker_seen(&mut tx, &seen).await.expect("seen");
        tx.commit().await.expect("commit");
        assert_eq!(why().await, "");
        world.pass(Duration::from_secs(61));
        assert!(why().await.contains("has been heard of lately"));
    })
    .await;
}

#[tokio::test]
async fn those_who_share_a_commit_each_get_their_own_answer() {
    in_each_world(async |world| {
        let enqueuer = Enqueuer::new(world.db.clone());
        let first = enqueuer.enqueue(keyed("once", None)).await.expect("enqueued");
        let bad = NewJob { priority: Some(100_000), ..NewJob::new("work") };
        let later = NewJob { run_at: Some(world.now().after(Duration::from_secs(9))), ..NewJob::new("work") };
        let (again, plain, refused, delayed) = tokio::join!(
            enqueuer.enqueue(keyed("once", None)),
            enqueuer.enqueue(NewJob::new("work")),
            enqueuer.enqueue(bad),
            enqueuer.enqueue(later),
        );
        assert_eq!(again.expect("the same"), Enqueued { id: first.id, created: false });
        assert!(matches!(refused, Err(crate::db::Error::Refused(_))));
        assert_eq!(world.status(plain.expect("enqueued").id).await, Status::Pending);
        assert_eq!(world.status(delayed.expect("enqueued").id).await, Status::Waiting);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 3);
        let counts = counts(&world.db).await.expect("counts");
        assert_eq!((counts.pending, counts.waiting), (2, 1));
    })
    .await;
}
