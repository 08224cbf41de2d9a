//! Pauses, concurrency, rates, and who comes first.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::store::finish::LONGEST_WAIT;
use super::super::store::registry::TaskSettings;
use super::super::*;
use super::{World, in_each_world};
use crate::actor::Actor;
use crate::db::Dialect;

async fn many(world: &World, kind: &'static str, key: Option<&str>, count: usize) {
    let jobs: Vec<NewJob> =
        (0..count).map(|_| NewJob { concurrency_key: key.map(str::to_owned), ..NewJob::new(kind) }).collect();
    let mut tx = world.begin().await;
    enqueue_many(&mut tx, &jobs).await.expect("enqueue");
    tx.commit().await.expect("commit");
}

async fn reason(world: &World, id: i64) -> String {
    why_waiting(&world.db, &world.get(id).await).await.expect("why").unwrap_or_default()
}

async fn seen(world: &World) {
    let mut tx = world.begin().await;
    let seen = WorkerSeen {
        id: "me",
        service: None,
        mode: "local",
        endpoint: None,
        queue: "default",
        kinds: &["work", "other"],
        capacity: 10,
    };
    worker_seen(&mut tx, &seen).await.expect("seen");
    tx.commit().await.expect("commit");
}

#[tokio::test]
async fn a_paused_queue_hands_nothing_out_until_it_is_resumed() {
    in_each_world(async |world| {
        let id = world.job().await;
        let mut tx = world.begin().await;
        assert!(pause(&mut tx, "default", &Actor::Loop).await.expect("pause"));
        assert!(!pause(&mut tx, "default", &Actor::Loop).await.expect("pause"), "it was paused");
        tx.commit().await.expect("commit");
        assert!(world.claim(1).await.is_empty());
        assert_eq!(reason(&world, id).await, "the queue `default` is paused");
        let mut tx = world.begin().await;
        assert!(resume(&mut tx, "default").await.expect("resume"));
        assert!(!resume(&mut tx, "default").await.expect("resume"));
        tx.commit().await.expect("commit");
        assert_eq!(world.claim(1).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_task_runs_as_many_jobs_at_once_as_it_may() {
    in_each_world(async |world| {
        seen(&world).await;
        world.task("work", TaskSettings { concurrency_limit: Some(2), ..Default::default() }).await;
        many(&world, "work", None, 5).await;
        many(&world, "other", None, 3).await;
        let both = ["work", "other"];
        let jobs = world.claim_as("me", &both, 10).await;
        let of = |kind: &str| jobs.iter().filter(|job| job.kind == kind).count();
        assert_eq!((of("work"), of("other")), (2, 3));
        assert!(world.claim_as("you", &both, 10).await.is_empty());
        assert_eq!(reason(&world, 5).await, "2 jobs of `work` run, as many as may");
        let done = jobs.iter().find(|job| job.kind == "work").expect("one");
        world.complete(done).await;
        assert_eq!(world.claim_as("you", &both, 10).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn jobs_with_one_key_run_one_after_the_other_and_do_not_hold_up_other_keys() {
    in_each_world(async |world| {
        seen(&world).await;
        many(&world, "work", Some("a"), 50).await;
        many(&world, "work", Some("b"), 2).await;
        many(&world, "work", None, 1).await;
        let jobs = world.claim(10).await;
        assert_eq!(jobs.len(), 3, "one of each key, and the one without");
        assert!(world.claim(10).await.is_empty());
        assert_eq!(reason(&world, 2).await, "1 jobs of `work` with the key `a` run, as many as may");
        world.complete(&jobs[0]).await;
        let next = world.claim(10).await;
        assert_eq!(next.iter().map(|job| job.id).collect::<Vec<_>>(), [2], "the next of its key");

        world.task("work", TaskSettings { key_concurrency_limit: Some(3), ..Default::default() }).await;
        assert_eq!(world.claim(10).await.len(), 3, "two more of a, one more of b");
    })
    .await;
}

#[tokio::test]
async fn a_queue_has_limits_over_all_its_kinds() {
    in_each_world(async |world| {
        seen(&world).await;
        let mut tx = world.begin().await;
        limit_queue(&mut tx, "default", Some(4), None).await.expect("limit");
        tx.commit().await.expect("commit");
        many(&world, "work", None, 5).await;
        many(&world, "other", Some("k"), 5).await;
        assert_eq!(world.claim_as("me", &["work", "other"], 10).await.len(), 4);
        assert!(world.claim_as("me", &["other"], 10).await.is_empty());
        assert_eq!(reason(&world, 5).await, "the queue `default` runs 4 jobs, as many as it may");
        let mut tx = world.begin().await;
        limit_queue(&mut tx, "default", None, None).await.expect("no limit");
        tx.commit().await.expect("commit");
        assert_eq!(world.claim_as("me", &["work", "other"], 10).await.len(), 2, "the last, and one of the key");
    })
    .await;
}

#[tokio::test]
async fn a_rate_limits_starts_in_a_period() {
    in_each_world(async |world| {
        seen(&world).await;
        let settings = TaskSettings {
            rate_limit: Some(3),
            key_rate_limit: Some(1),
            key_concurrency_limit: Some(100),
            rate_period_ms: 10_000,
            ..Default::default()
        };
        world.task("work", settings).await;
        many(&world, "work", Some("a"), 3).await;
        many(&world, "work", None, 4).await;
        let mut started = 0;
        let take = async || {
            let jobs = world.claim(100).await;
            for job in &jobs {
                world.complete(job).await;
            }
            jobs.len()
        };
        started += take().await;
        assert_eq!(started, 3, "one with the key, two without");
        world.pass(Duration::from_millis(9_999));
        assert_eq!(take().await, 0);
        assert_eq!(reason(&world, 2).await, "the rate limit of the task is used up for now");
        world.pass(Duration::from_millis(1));
        assert_eq!(reason(&world, 2).await, "", "the period is over");
        assert_eq!(take().await, 3);
        world.pass(Duration::from_secs(10));
        assert_eq!(take().await, 1, "the last with the key");
    })
    .await;
}

/// Claims of limited tasks go one after the other: who waited for another has an older time than what it finds.
#[tokio::test]
async fn a_start_that_was_counted_after_a_claim_began_counts_for_it() {
    in_each_world(async |world| {
        if world.db.dialect() == Dialect::Sqlite {
            return; // its writers wait before they ask for the time
        }
        let settings = TaskSettings { rate_limit: Some(2), rate_period_ms: 10_000, ..Default::default() };
        world.task("work", settings).await;
        many(&world, "work", None, 5).await;
        let (lease, longest_wait) = (Duration::from_secs(60), LONGEST_WAIT);
        let wanted = Claim { queue: "default", kinds: &["work"], worker: "late", lease, longest_wait, limit: 10 };
        let outlook = look(&world.db, &wanted).await.expect("look");
        let mut late = world.begin().await;
        late.now().await.expect("the time");
        world.pass(Duration::from_millis(5));
        assert_eq!(world.claim(10).await.len(), 2);
        assert!(claim(&mut late, &outlook, &wanted).await.expect("claim").is_empty(), "two in a period");
        late.commit().await.expect("commit");
    })
    .await;
}

#[tokio::test]
async fn periods_of_rates_that_are_long_over_are_forgotten() {
    in_each_world(async |world| {
        let settings = TaskSettings { rate_limit: Some(1), rate_period_ms: 86_400_000, ..Default::default() };
        world.task("work", settings).await;
        many(&world, "work", None, 3).await;
        let forget = async || {
            let mut tx = world.begin().await;
            let before = world.now().before(Duration::from_millis(86_400_000));
            let gone = forget_rate_windows(&mut tx, before).await.expect("forget");
            tx.commit().await.expect("commit");
            gone
        };
        world.complete(&world.claim_one().await).await;
        world.pass(Duration::from_millis(86_399_999));
        assert_eq!((world.claim(3).await.len(), forget().await), (0, 0), "it still counts");
        world.pass(Duration::from_millis(2));
        assert_eq!((forget().await, world.claim(3).await.len(), forget().await), (1, 1, 0));
    })
    .await;
}

#[tokio::test]
async fn whoever_claims_at_once_takes_no_job_twice_and_never_passes_a_limit() {
    in_each_world(async |world| {
        world.task("work", TaskSettings { concurrency_limit: Some(5), ..Default::default() }).await;
        many(&world, "work", None, 40).await;
        many(&world, "other", None, 40).await;
        let kinds = ["work", "other"];
        let (one, two, three, four) = tokio::join!(
            world.claim_as("1", &kinds, 9),
            world.claim_as("2", &kinds, 9),
            world.claim_as("3", &kinds, 9),
            world.claim_as("4", &kinds, 9),
        );
        let mut taken: BTreeMap<i64, usize> = BTreeMap::new();
        for job in one.iter().chain(&two).chain(&three).chain(&four) {
            *taken.entry(job.id).or_default() += 1;
        }
        assert!(taken.values().all(|times| *times == 1), "{taken:?}");
        let running = world.number("SELECT COUNT(*) FROM jobs WHERE status = 'processing' AND kind = 'work'").await;
        assert!(running <= 5, "{running} of a limited task run");
    })
    .await;
}

#[tokio::test]
async fn the_urgent_come_first_whatever_their_kind_and_the_old_grow_urgent() {
    in_each_world(async |world| {
        let job = |kind: &'static str, priority| NewJob { priority: Some(priority), ..NewJob::new(kind) };
        for (kind, priority) in [("work", 0), ("other", 5), ("work", 9), ("other", 0)] {
            world.enqueue(job(kind, priority)).await;
        }
        let first = world.claim_as("me", &["work", "other"], 2).await;
        assert_eq!(first.iter().map(|job| job.id).collect::<Vec<_>>(), [2, 3]);
        for job in &first {
            world.complete(job).await;
        }
        world.pass(Duration::from_secs(31 * 60));
        let young = world.enqueue(job("work", 1)).await.id;
        for _ in 0..2 {
            let mut tx = world.begin().await;
            super::super::store::order::age_priorities(&mut tx).await.expect("age");
            tx.commit().await.expect("commit");
        }
        let next = world.claim(1).await;
        assert_eq!(next[0].id, 1, "it waited for half an hour");
        assert_eq!(world.claim(1).await[0].id, young);
    })
    .await;
}

#[tokio::test]
async fn those_that_are_as_urgent_as_can_be_keep_no_other_from_growing_urgent() {
    in_each_world(async |world| {
        let urgent: Vec<NewJob> = (0..1_000).map(|_| NewJob { priority: Some(1_000), ..NewJob::new("work") }).collect();
        let mut tx = world.begin().await;
        enqueue_many(&mut tx, &urgent).await.expect("enqueue");
        tx.commit().await.expect("commit");
        world.pass(Duration::from_millis(1));
        let id = world.job().await;
        world.pass(Duration::from_secs(31 * 60));
        let mut tx = world.begin().await;
        assert_eq!(super::super::store::order::age_priorities(&mut tx).await.expect("age"), 1);
        tx.commit().await.expect("commit");
        assert_eq!(world.get(id).await.priority, 1);
    })
    .await;
}

#[tokio::test]
async fn a_worker_in_quarantine_gets_nothing() {
    in_each_world(async |world| {
        seen(&world).await;
        let id = world.job().await;
        let mut tx = world.begin().await;
        let until = world.now().after(Duration::from_secs(600));
        assert!(quarantine(&mut tx, "me", until).await.expect("quarantine"));
        assert!(!quarantine(&mut tx, "nobody", until).await.expect("quarantine"));
        tx.commit().await.expect("commit");
        assert!(world.claim(1).await.is_empty());
        assert_eq!(reason(&world, id).await, "every worker of the task `work` is in quarantine");
        assert_eq!(world.claim_as("you", &["work"], 1).await.len(), 1);
        world.job().await;
        world.pass(Duration::from_secs(601));
        assert_eq!(world.claim(1).await.len(), 1);
    })
    .await;
}

/// Claims as a worker does that was hinted, before it looks.
async fn at_once(world: &World, kinds: &[&str], limit: usize) -> Vec<Job> {
    let (lease, longest_wait) = (Duration::from_secs(60), LONGEST_WAIT);
    let wanted = Claim { queue: "default", kinds, worker: "me", lease, longest_wait, limit };
    claim_at_once(&world.db, &wanted).await.expect("claim")
}

#[tokio::test]
async fn what_asks_a_question_is_not_claimed_at_once() {
    in_each_world(async |world| {
        seen(&world).await;
        let kinds = ["work", "limited", "timed"];
        world.task("limited", TaskSettings { concurrency_limit: Some(9), ..Default::default() }).await;
        let timed = TaskSettings { timeout_ms: Some(1_500), heartbeat_interval_ms: Some(250), ..Default::default() };
        world.task("timed", timed).await;
        many(&world, "limited", None, 1).await;
        many(&world, "work", Some("key"), 1).await;
        world.enqueue(NewJob { run_at: Some(world.now().after(Duration::from_secs(9))), ..NewJob::new("work") }).await;
        assert!(at_once(&world, &kinds, 9).await.is_empty(), "limited, keyed, not due");

        many(&world, "work", None, 3).await;
        let urgent = world.enqueue(NewJob { priority: Some(5), ..NewJob::new("timed") }).await.id;
        let taken = at_once(&world, &kinds, 2).await;
        assert_eq!(taken.len(), 2);
        let job = taken.iter().find(|job| job.id == urgent).expect("the most urgent comes first");
        assert_eq!((job.attempt, job.lease, job.timeout_ms), (1, 1, Some(1_500)));
        let kept = world.get(urgent).await;
        assert_eq!(kept.deadline_at, Some(world.now().after(Duration::from_millis(1_500))));
        assert_eq!(kept.lease_expires_at, Some(world.now().after(Duration::from_millis(500))), "twice its heartbeat");

        let mut tx = world.begin().await;
        pause(&mut tx, "default", &Actor::Loop).await.expect("pause");
        tx.commit().await.expect("commit");
        assert!(at_once(&world, &kinds, 9).await.is_empty(), "paused");
        let mut tx = world.begin().await;
        resume(&mut tx, "default").await.expect("resume");
        limit_queue(&mut tx, "default", Some(9), None).await.expect("limit");
        tx.commit().await.expect("commit");
        assert!(at_once(&world, &kinds, 9).await.is_empty(), "its queue is limited");
        let mut tx = world.begin().await;
        limit_queue(&mut tx, "default", None, None).await.expect("limit");
        quarantine(&mut tx, "me", world.now().after(Duration::from_secs(1))).await.expect("quarantine");
        tx.commit().await.expect("commit");
        assert!(at_once(&world, &kinds, 9).await.is_empty(), "in quarantine");
        world.pass(Duration::from_secs(2));
        assert_eq!(at_once(&world, &kinds, 9).await.len(), 2);
    })
    .await;
}
