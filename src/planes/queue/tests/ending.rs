//! How tries end: well, badly, too late, by time-out, by silence, by somebody's will.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::store::{
    BATCH,
    finish::{LONGEST_WAIT, rescue},
    registry::TaskSettings,
};
use super::super::*;
use super::in_each_world;
use crate::backoff::Growth;

#[tokio::test]
async fn a_failed_job_is_tried_again_as_its_task_says_and_then_is_a_dead_letter() {
    in_each_world(async |world| {
        let settings = TaskSettings {
            retry_backoff: Growth::Linear,
            retry_delay_ms: 2_000,
            retry_jitter: 0.0,
            max_retry_delay_ms: Some(3_000),
            ..Default::default()
        };
        world.task("work", settings).await;
        let id = world.job().await;
        for (error, wait) in [("first", 2_000), ("second", 3_000)] {
            let job = world.claim_one().await;
            assert_eq!(world.fail(&job, error).await, Some(Status::Retry));
            let row = world.get(id).await;
            assert_eq!(row.run_at, Some(world.now().after(Duration::from_millis(wait))));
            assert!(world.claim(1).await.is_empty(), "not before its time");
            world.pass(Duration::from_millis(wait));
        }
        let job = world.claim_one().await;
        assert_eq!(world.fail(&job, "third").await, Some(Status::Failed));
        assert_eq!(world.outcomes(id).await, ["failed", "failed", "failed"]);
        let letters = dead_letters(&world.db, &DeadLetterFilter::default(), 10).await.expect("letters");
        assert_eq!(letters.len(), 1);
        assert_eq!((letters[0].job_id, letters[0].error.as_deref()), (id, Some("third")));
        let errors: Vec<&str> =
            letters[0].attempts.0.as_array().expect("tries").iter().filter_map(|try_| try_["error"].as_str()).collect();
        assert_eq!(errors, ["first", "second", "third"]);
        assert_eq!(counts(&world.db).await.expect("counts").dead_letters, 1);
    })
    .await;
}

#[tokio::test]
async fn a_late_answer_changes_nothing() {
    in_each_world(async |world| {
        let id = world.job().await;
        let late = world.claim_one().await;
        world.pass(Duration::from_secs(61));
        let job = world.claim_one().await;
        assert_eq!((job.id, job.attempt), (id, 2));
        assert!(!world.complete(&late).await);
        assert_eq!(world.fail(&late, "late").await, None);
        let mut tx = world.begin().await;
        assert_eq!(heartbeat(&mut tx, (&late).into(), Duration::from_secs(60)).await.expect("beat"), Beat::Gone);
        assert_eq!(give_back(&mut tx, &[(&late).into()]).await.expect("back"), 0);
        tx.commit().await.expect("commit");
        assert!(world.complete(&job).await);
        assert!(!world.complete(&job).await, "twice is once");
        assert_eq!(world.outcomes(id).await, ["lapsed", "completed"]);
    })
    .await;
}

#[tokio::test]
async fn many_are_completed_by_one_statement_and_only_those_that_are_held() {
    in_each_world(async |world| {
        for _ in 0..5 {
            world.job().await;
        }
        let jobs = world.claim(5).await;
        assert!(world.complete(&jobs[1]).await);
        let results: Vec<Value> = (0..5).map(|number| json!({ "n": number })).collect();
        let done: Vec<(Hold, &Value)> = jobs.iter().map(Hold::from).zip(&results).collect();
        let mut tx = world.begin().await;
        let mut held = complete_many(&mut tx, &done).await.expect("complete");
        tx.commit().await.expect("commit");
        held.sort_unstable();
        assert_eq!(held, [jobs[0].id, jobs[2].id, jobs[3].id, jobs[4].id]);
        assert_eq!(world.get(jobs[3].id).await.result.expect("a result").0, json!({ "n": 3 }));
        assert_eq!(world.number("SELECT COUNT(*) FROM job_attempts WHERE outcome = 'completed'").await, 5);
    })
    .await;
}

#[tokio::test]
async fn heartbeats_hold_a_job_and_silence_for_two_intervals_loses_it() {
    in_each_world(async |world| {
        world.task("work", TaskSettings { heartbeat_interval_ms: Some(5_000), ..Default::default() }).await;
        let id = world.job().await;
        let job = world.claim_one().await;
        for _ in 0..5 {
            world.pass(Duration::from_millis(9_000));
            let mut tx = world.begin().await;
            let beat =
                progress(&mut tx, (&job).into(), Duration::from_secs(60), 12.5, Some("half")).await.expect("beat");
            tx.commit().await.expect("commit");
            assert!(matches!(beat, Beat::Held { cancel_requested: false, .. }));
            assert!(world.claim(1).await.is_empty(), "held");
        }
        let row = world.get(id).await;
        assert_eq!((row.progress, row.progress_message.as_deref()), (Some(12.5), Some("half")));
        world.pass(Duration::from_millis(10_001));
        assert!(world.claim(1).await.is_empty(), "it waits, as after any failed try");
        world.pass(Duration::from_secs(1));
        let again = world.claim_one().await;
        assert_eq!(again.attempt, 2);
        assert_eq!(
            attempts(&world.db, id).await.expect("tries")[0].error.as_deref(),
            Some("no heartbeat for 10000 ms")
        );
    })
    .await;
}

#[tokio::test]
async fn no_heartbeat_carries_a_try_past_its_time_limit() {
    in_each_world(async |world| {
        let job = NewJob { timeout: Some(Duration::from_secs(90)), ..NewJob::new("work") };
        let id = world.enqueue(job).await.id;
        let job = world.claim_one().await;
        assert_eq!(job.timeout_ms, Some(90_000));
        world.pass(Duration::from_secs(50));
        let mut tx = world.begin().await;
        let kept = renew(&mut tx, &[(&job).into()], Duration::from_secs(60)).await.expect("renew");
        tx.commit().await.expect("commit");
        assert_eq!(kept, [id]);
        world.pass(Duration::from_secs(41));
        assert!(world.claim(1).await.is_empty(), "its next try has a wait");
        assert_eq!(world.status(id).await, Status::Retry);
        let tries = attempts(&world.db, id).await.expect("tries");
        assert_eq!(
            (tries[0].outcome.as_str(), tries[0].error.as_deref()),
            ("timed_out", Some("timed out after 90000 ms"))
        );
        assert_eq!(tries[0].duration_ms, Some(91_000));
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_job_never_begins_and_a_running_one_is_stopped_by_its_holder() {
    in_each_world(async |world| {
        let cancelled = async |id| {
            let mut tx = world.begin().await;
            let done = cancel(&mut tx, id).await.expect("cancel");
            tx.commit().await.expect("commit");
            done
        };
        let waiting = world.job().await;
        assert_eq!(cancelled(waiting).await, Cancelled::AtOnce);
        assert_eq!(cancelled(waiting).await, Cancelled::NotLive);
        assert!(world.claim(1).await.is_empty());

        let id = world.job().await;
        let job = world.claim_one().await;
        assert_eq!(cancelled(id).await, Cancelled::Requested);
        let mut tx = world.begin().await;
        let beat = heartbeat(&mut tx, (&job).into(), Duration::from_secs(60)).await.expect("beat");
        assert!(matches!(beat, Beat::Held { cancel_requested: true, .. }));
        assert!(acknowledge_cancel(&mut tx, &job).await.expect("acknowledged"));
        tx.commit().await.expect("commit");
        assert_eq!(world.status(id).await, Status::Cancelled);
        assert_eq!(world.outcomes(id).await, ["cancelled"]);

        let silent = world.job().await;
        let job = world.claim_one().await;
        cancelled(silent).await;
        world.pass(Duration::from_secs(61));
        assert!(world.claim(1).await.is_empty());
        assert_eq!(world.status(silent).await, Status::Cancelled, "given up with its lease, not tried again");
        assert!(!world.complete(&job).await);
        assert_eq!(counts(&world.db).await.expect("counts").dead_letters, 0);
    })
    .await;
}

#[tokio::test]
async fn what_never_began_is_given_back_and_the_try_does_not_count() {
    in_each_world(async |world| {
        let id = world.job().await;
        let job = world.claim_one().await;
        let mut tx = world.begin().await;
        assert_eq!(give_back(&mut tx, &[(&job).into()]).await.expect("back"), 1);
        tx.commit().await.expect("commit");
        let row = world.get(id).await;
        assert_eq!((row.status, row.attempt), (Status::Pending, 0));
        assert!(world.outcomes(id).await.is_empty());
        assert_eq!(world.claim_one().await.attempt, 1);
    })
    .await;
}

#[tokio::test]
async fn retention_takes_jobs_with_their_tries() {
    in_each_world(async |world| {
        for _ in 0..3 {
            world.job().await;
        }
        let jobs = world.claim(3).await;
        world.complete(&jobs[0]).await;
        world.fail(&jobs[1], "once").await;
        let mut tx = world.begin().await;
        fail(&mut tx, &jobs[2], "for good", Again::Never).await.expect("fail");
        tx.commit().await.expect("commit");
        world.pass(Duration::from_secs(3_600));
        let forget = async || {
            let mut tx = world.begin().await;
            let gone = forget_finished(&mut tx, world.now()).await.expect("forget");
            tx.commit().await.expect("commit");
            gone
        };
        assert_eq!(forget().await, 1);
        assert_eq!(world.status(jobs[2].id).await, Status::Failed, "its dead letter is open: it can be retried");
        let mut tx = world.begin().await;
        assert_eq!(forget_dead_letters(&mut tx, world.now()).await.expect("forget"), 1);
        tx.commit().await.expect("commit");
        assert_eq!(forget().await, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM ended_attempts").await, 1, "that of the job that lives");
    })
    .await;
}

/// On PostgreSQL whoever takes jobs away waits for those that others hold, and then finds them living again.
#[tokio::test]
async fn a_job_that_is_retried_while_it_is_forgotten_stays() {
    in_each_world(async |world| {
        let id = world.job().await;
        let job = world.claim_one().await;
        let mut tx = world.begin().await;
        fail(&mut tx, &job, "for good", Again::Never).await.expect("fail");
        tx.commit().await.expect("commit");
        world.sql("DELETE FROM dlq".to_owned()).await;
        world.pass(Duration::from_secs(3_600));
        let mut retrying = world.begin().await;
        retrying.query("UPDATE jobs SET status = 'pending', finished_at = NULL").execute().await.expect("retried");
        let forget = async {
            let mut tx = world.begin().await; // on SQLite it waits here
            let gone = forget_finished(&mut tx, world.now()).await.expect("forget");
            tx.commit().await.expect("commit");
            gone
        };
        let retry = async {
            if world.db.dialect() == crate::db::Dialect::Postgres {
                while world.number(WAITING_FOR_A_LOCK).await == 0 {
                    tokio::task::yield_now().await;
                }
            }
            retrying.commit().await.expect("commit");
        };
        let (gone, ()) = tokio::join!(forget, retry);
        assert_eq!((gone, world.status(id).await), (0, Status::Pending));
    })
    .await;
}

const WAITING_FOR_A_LOCK: &str =
    "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// A process that was suspended between asking for the time and looking for lapsed leases sees those that others took
/// meanwhile as reaching further than any may; so it does leases of a clock that has since been set back.
#[tokio::test]
async fn whoever_stood_still_takes_no_lease_back_that_others_took_meanwhile() {
    in_each_world(async |world| {
        let mut suspended = world.begin().await;
        suspended.now().await.expect("the time");
        world.pass(Duration::from_secs(3_000));
        for lease_ends in ["2026-11-20T19:21:00.000Z", "2026-11-21T18:00:00.000Z"] {
            let taken = format!(
                "INSERT INTO jobs (kind, status, attempt, lease, max_attempts, lease_expires_at)
                 VALUES ('work', 'processing', 1, 1, 1, '{lease_ends}')"
            );
            suspended.query(&*taken.leak()).execute().await.expect("a job");
        }
        let rescued = rescue(&mut suspended, Duration::from_secs(120), LONGEST_WAIT, BATCH).await.expect("a look");
        suspended.commit().await.expect("commit");
        assert_eq!(rescued, 1);
        assert_eq!((world.status(1).await, world.status(2).await), (Status::Processing, Status::Failed));
    })
    .await;
}
