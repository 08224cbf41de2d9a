//! Dead letters, and code versions.

use std::time::Duration;

use serde_json::json;

use super::super::store::registry::TaskSettings;
use super::super::*;
use super::{World, in_each_world};
use crate::actor::Actor;

fn operator() -> Actor {
    Actor::Operator("ann".to_owned())
}

/// A job that fails for good at its first try.
async fn dead(world: &World, kind: &'static str) -> i64 {
    let job = NewJob {
        input: json!({ "a": 1 }),
        context: Some(json!({ "run": 7 })),
        max_attempts: Some(1),
        ..NewJob::new(kind)
    };
    let id = world.enqueue(job).await.id;
    let job = world.claim_as("me", &[kind], 1).await.pop().expect("a job");
    assert_eq!(world.fail(&job, "broken").await, Some(Status::Failed));
    id
}

async fn letter_of(world: &World, job: i64) -> DeadLetter {
    let letters = dead_letters(&world.db, &DeadLetterFilter::default(), 100).await.expect("letters");
    letters.into_iter().find(|letter| letter.job_id == job).expect("a letter")
}

#[tokio::test]
async fn a_retried_letter_gives_its_job_another_round_and_keeps_the_history() {
    in_each_world(async |world| {
        let id = dead(&world, "work").await;
        let letter = letter_of(&world, id).await;
        assert_eq!(
            (letter.input.0.clone(), letter.context.clone().map(|context| context.0)),
            (json!({ "a": 1 }), Some(json!({ "run": 7 })))
        );
        let mut tx = world.begin().await;
        let retried = retry_dead_letter(&mut tx, letter.id, &operator()).await.expect("retry");
        assert_eq!(retried, RetryLetter::Retried { job_id: id });
        assert_eq!(retry_dead_letter(&mut tx, letter.id, &operator()).await.expect("again"), RetryLetter::Already);
        assert_eq!(retry_dead_letter(&mut tx, 999, &operator()).await.expect("again"), RetryLetter::Unknown);
        tx.commit().await.expect("commit");
        assert_eq!(counts(&world.db).await.expect("counts").dead_letters, 0);
        let job = world.claim_one().await;
        assert_eq!((job.id, job.attempt, job.max_attempts), (id, 2, 4));
        assert_eq!(world.fail(&job, "again").await, Some(Status::Retry));
        world.pass(Duration::from_secs(60));
        let job = world.claim_one().await;
        world.complete(&job).await;
        assert_eq!(world.outcomes(id).await, ["failed", "failed", "completed"]);
        let letter = letter_of(&world, id).await;
        assert_eq!((letter.status.as_str(), letter.retried_by.as_deref()), ("retried", Some("operator:ann")));
    })
    .await;
}

#[tokio::test]
async fn letters_are_retried_and_purged_in_bulk() {
    in_each_world(async |world| {
        for _ in 0..3 {
            dead(&world, "work").await;
        }
        dead(&world, "other").await;
        let work = DeadLetterFilter { task: Some("work".to_owned()), ..Default::default() };
        let mut tx = world.begin().await;
        assert_eq!(retry_dead_letters(&mut tx, &work, 2, &operator()).await.expect("retry").len(), 2);
        assert_eq!(retry_dead_letters(&mut tx, &work, 10, &operator()).await.expect("retry").len(), 1);
        assert_eq!(retry_dead_letters(&mut tx, &work, 10, &operator()).await.expect("retry").len(), 0);
        tx.commit().await.expect("commit");
        assert_eq!(world.claim(10).await.len(), 3);
        let mut tx = world.begin().await;
        assert_eq!(purge_dead_letters(&mut tx, &DeadLetterFilter::default(), 100).await.expect("purge"), 4);
        tx.commit().await.expect("commit");
        assert_eq!(counts(&world.db).await.expect("counts").dead_letters, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 4, "jobs stay");
    })
    .await;
}

#[tokio::test]
async fn a_letter_whose_job_is_gone_or_whose_key_is_taken_is_not_retried() {
    in_each_world(async |world| {
        let gone = dead(&world, "work").await;
        world.sql(format!("DELETE FROM jobs WHERE id = {gone}")).await;
        let keyed = || NewJob { idempotency_key: Some("k".to_owned()), max_attempts: Some(1), ..NewJob::new("work") };
        let replaced = world.enqueue(keyed()).await.id;
        let job = world.claim_one().await;
        world.fail(&job, "broken").await;
        world.enqueue(keyed()).await;
        for job in [gone, replaced] {
            let letter = letter_of(&world, job).await.id;
            let mut tx = world.begin().await;
            assert_eq!(retry_dead_letter(&mut tx, letter, &operator()).await.expect("retry"), RetryLetter::JobGone);
            tx.commit().await.expect("commit");
        }
    })
    .await;
}

#[tokio::test]
async fn of_letters_whose_jobs_have_one_key_the_newest_lives_again() {
    in_each_world(async |world| {
        let mut ids = Vec::new();
        for key in ["k", "k", "other"] {
            let job = NewJob { idempotency_key: Some(key.to_owned()), max_attempts: Some(1), ..NewJob::new("work") };
            ids.push(world.enqueue(job).await.id);
            let job = world.claim_one().await;
            assert_eq!(world.fail(&job, "broken").await, Some(Status::Failed));
        }
        let mut tx = world.begin().await;
        let all = DeadLetterFilter::default();
        let mut retried = retry_dead_letters(&mut tx, &all, 10, &operator()).await.expect("retry");
        tx.commit().await.expect("commit");
        retried.sort_unstable();
        assert_eq!(retried, ids[1..]);
        assert_eq!(letter_of(&world, ids[0]).await.status, "open");
    })
    .await;
}

#[tokio::test]
async fn code_versions_grow_with_the_hash_and_stand_at_every_try() {
    in_each_world(async |world| {
        let register = async |version: &str, hash: char| {
            let registration = Registration {
                service: "media".to_owned(),
                name: "Media".to_owned(),
                version: Some(version.to_owned()),
                endpoint: None,
                tasks: vec![TaskRegistration {
                    id: "work".to_owned(),
                    code_hash: Some(hash.to_string().repeat(64)),
                    settings: TaskSettings { max_attempts: 2, retry_delay_ms: 0, ..Default::default() },
                }],
            };
            let mut tx = world.begin().await;
            let versions = super::super::register(&mut tx, &registration).await.expect("register");
            tx.commit().await.expect("commit");
            (versions[0].code_version, versions[0].changed)
        };
        assert_eq!(register("1.0", 'a').await, (Some(1), true));
        assert_eq!(register("1.1", 'a').await, (Some(1), false));
        let id = world.job().await;
        let job = world.claim_one().await;
        assert_eq!(job.code_version, Some(1));
        world.fail(&job, "old code").await;
        assert_eq!(register("2.0", 'b').await, (Some(2), true));
        let job = world.claim_one().await;
        world.fail(&job, "new code").await;
        let versions: Vec<_> =
            attempts(&world.db, id).await.expect("tries").into_iter().map(|try_| try_.code_version).collect();
        assert_eq!(versions, [Some(1), Some(2)]);
        assert_eq!(letter_of(&world, id).await.code_version, Some(2));
        let history = task_history(&world.db, "work", None, 10).await.expect("history");
        assert_eq!(history.len(), 2);
        assert_eq!((history[0].code_version, history[0].service_version.as_deref()), (2, Some("2.0")));
        assert_eq!(history[0].previous_hash, Some("a".repeat(64)));
        assert_eq!(tasks(&world.db, Some("media")).await.expect("tasks").len(), 1);
    })
    .await;
}
