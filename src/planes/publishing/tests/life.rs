//! The life of a publication against the simulated platform, with every outcome and a crash at every step.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::db::{Error, Faults, Point, Result};
use crate::planes::ActError;
use crate::planes::publishing::act;
use crate::planes::publishing::store::{self, Settled};

fn sandbox(change: impl Fn(&mut config::Sandbox)) -> config::Publishing {
    let mut config = settings();
    change(&mut config.sandbox);
    config
}

async fn retry(world: &World, log: i64) -> Result<(), ActError> {
    let mut tx = world.begin().await;
    act::retry_failed_log(&mut tx, &world.publishing, log).await?;
    tx.commit().await?;
    Ok(())
}

#[tokio::test]
async fn an_accepted_publication_is_published_once_and_paid() {
    in_each_world(settings(), async |world| {
        let campaign = world.campaign(", spent_cents", "1000, 100").await;
        let clip = world.clip(90.0).await;
        let values = format!("'pending', {campaign}, 250");
        let log = world.log(clip, "tiktok", ", campaign_id, cost_cents", &values).await;
        assert_eq!(world.work().await, 1);
        let published = world.get(log).await;
        assert_eq!(published.status, Status::Published);
        assert!(published.external_id.is_some() && published.published_at.is_some() && published.last_error.is_none());
        assert_eq!(count(&world.db, "SELECT spent_cents FROM campaigns").await, 350);
        assert_eq!(world.ledger().await, ["publishing.published"]);
        world.advance_minutes(600);
        assert_eq!((world.work().await, world.posts().await), (0, 1), "nothing is left to do");
        assert!(matches!(retry(&world, log).await, Err(ActError::Refused(_))));
        let (status,): (String,) = world.db.query("SELECT status FROM clips").one().await.expect("clip");
        assert_eq!(status, "published");
    })
    .await;
}

#[tokio::test]
async fn a_campaign_whose_sum_is_at_its_bound_keeps_no_answer_from_being_recorded() {
    in_each_world(settings(), async |world| {
        let most = 1_000_000_000_000_000_000_i64;
        let campaign = world.campaign(", spent_cents", &format!("1000, {}", most - 3)).await;
        for platform in ["tiktok", "youtube"] {
            let clip = world.clip(90.0).await;
            world.log(clip, platform, ", campaign_id, cost_cents", &format!("'pending', {campaign}, 2")).await;
        }
        assert_eq!(world.work().await, 2);
        assert_eq!(count(&world.db, "SELECT COUNT(*) FROM publish_logs WHERE status = 'published'").await, 2);
        assert_eq!(count(&world.db, "SELECT spent_cents FROM campaigns").await, most);
    })
    .await;
}

#[tokio::test]
async fn a_refused_publication_fails_and_can_be_retried_until_its_retries_are_used() {
    in_each_world(sandbox(|sandbox| sandbox.refuse = 1.0), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", ", max_retries", "'pending', 2").await;
        for retries in 0..=2 {
            assert_eq!(world.work().await, 1);
            let failed = world.get(log).await;
            assert_eq!((failed.status, failed.retry_count), (Status::Failed, retries));
            if retries < 2 {
                retry(&world, log).await.expect("retry");
                assert_eq!(world.work().await, 0, "not before its backoff");
                world.advance_minutes(60);
            }
        }
        let error = retry(&world, log).await.expect_err("no retries left").to_string();
        assert_eq!(error, format!("publication {log} has used its 2 retries"));
        assert_eq!((world.posts().await, world.ledger().await.len()), (0, 3));
    })
    .await;
}

#[tokio::test]
async fn a_throttled_publication_goes_out_at_the_named_time() {
    in_each_world(sandbox(|sandbox| sandbox.quota_per_day = 1), async |world| {
        let (one, two) = (world.clip(50.0).await, world.clip(60.0).await);
        let first = world.log(one, "tiktok", "", "'pending'").await;
        let second = world.log(two, "tiktok", "", "'pending'").await;
        world.work().await;
        assert_eq!(world.status(first).await, Status::Published);
        let waiting = world.get(second).await;
        assert_eq!(waiting.status, Status::Retry);
        assert_eq!(waiting.scheduled_at, Some(world.at("2026-11-21T00:00:00Z")), "the quota's next day");
        world.advance_minutes(5 * 60 + 30);
        world.work().await;
        let out = world.get(second).await;
        assert_eq!((out.status, out.retry_count), (Status::Published, 1));
        assert_eq!(world.ledger().await, ["publishing.published", "publishing.throttled", "publishing.published"]);
    })
    .await;
}

#[tokio::test]
async fn throttling_ends_when_the_retries_are_used() {
    in_each_world(sandbox(|sandbox| sandbox.throttle = 1.0), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", ", max_retries", "'pending', 2").await;
        for _ in 0..5 {
            world.work().await;
            world.advance_minutes(9);
        }
        let spent = world.get(log).await;
        assert_eq!((spent.status, spent.retry_count), (Status::Failed, 2));
        assert_eq!(world.ledger().await.last().map(String::as_str), Some("publishing.refused"));
        assert!(retry(&world, log).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn an_answer_lost_after_acceptance_is_found_and_never_sent_again() {
    in_each_world(sandbox(|sandbox| sandbox.lose_answer = 1.0), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        world.work().await;
        assert_eq!(world.status(log).await, Status::Unknown);
        let error = retry(&world, log).await.expect_err("unknown").to_string();
        assert!(error.contains("only reconciliation"), "{error}");
        world.advance_minutes(600);
        assert_eq!(world.work().await, 0, "an unknown publication is not sent again");
        world.reconcile().await;
        let found = world.get(log).await;
        assert_eq!((found.status, world.posts().await), (Status::Published, 1));
        assert!(found.external_id.is_some());
        assert_eq!(world.ledger().await, ["publishing.unknown", "publishing.reconciled"]);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_never_arrived_fails_only_when_nothing_can_be_on_its_way() {
    in_each_world(sandbox(|sandbox| sandbox.lose_request = 1.0), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        world.work().await;
        world.advance_minutes(5);
        world.reconcile().await;
        assert_eq!(world.status(log).await, Status::Unknown, "too early to tell");
        world.advance_minutes(5);
        world.reconcile().await;
        assert_eq!((world.status(log).await, world.posts().await), (Status::Failed, 0));
        retry(&world, log).await.expect("a failed publication can be retried");
    })
    .await;
}

#[tokio::test]
async fn an_outage_refuses_and_leaves_the_unknown_unknown() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        let values = "'unknown', '2026-11-19T00:00:00.000Z'";
        let lost = world.log(clip, "youtube", ", attempted_at", values).await;
        world.publishing.sandbox().expect("the sandbox").set_outage(true);
        world.work().await;
        world.reconcile().await;
        assert_eq!((world.status(log).await, world.status(lost).await), (Status::Failed, Status::Unknown));
        world.publishing.sandbox().expect("the sandbox").set_outage(false);
        world.reconcile().await;
        assert_eq!(world.status(lost).await, Status::Failed);
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_does_not_apply_its_answer() {
    in_each_world(sandbox(|sandbox| sandbox.lose_answer = 1.0), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        world.tick().await;
        let job = world.claim().await.expect("a job");
        let handlers = world.publishing.handlers();
        let run = handlers[0].run(&job);
        tokio::pin!(run);
        let outcome = tokio::select! {
            outcome = &mut run => panic!("it hangs: {outcome:?}"),
            () = world.clock.silent.notified() => {
                rescue(&world.db).await;
                world.tick().await;
                assert_eq!(world.status(log).await, Status::Unknown, "its job is dead");
                world.reconcile().await;
                assert_eq!(world.status(log).await, Status::Published);
                world.clock.manual.advance(Duration::from_secs(60));
                run.await
            }
        };
        assert!(matches!(outcome, Outcome::Finished));
        assert_eq!((world.status(log).await, world.posts().await), (Status::Published, 1));
    })
    .await;
}

#[tokio::test]
async fn a_job_that_does_not_carry_the_publication_sends_nothing() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        world.tick().await;
        let mut job = world.claim().await.expect("a job");
        job.lease += 1;
        let stale = world.publishing.handlers()[0].run(&job).await;
        assert!(matches!(stale, Outcome::Done(_)), "another lease");
        job.lease -= 1;
        job.id += 1;
        job.input.0 = input_of(log);
        assert!(matches!(world.publishing.handlers()[0].run(&job).await, Outcome::Done(_)), "another job");
        job.input.0 = json!({});
        assert!(matches!(world.publishing.handlers()[0].run(&job).await, Outcome::Failed(_)));
        assert_eq!((world.status(log).await, world.posts().await), (Status::Pending, 0));
    })
    .await;
}

/// What happens at the chosen point.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Blow {
    /// The process dies: nothing after this runs.
    Crash,
    /// The statement or commit reports a failure; after a commit, one that took effect.
    Error,
}

/// Strikes once, at the `at`th point.
struct StrikeAt {
    at: usize,
    blow: Blow,
    passed: AtomicUsize,
    crashed: Notify,
}

#[async_trait]
impl Faults for StrikeAt {
    async fn strike(&self, _: Point<'_>) -> Result<()> {
        if self.passed.fetch_add(1, Ordering::SeqCst) != self.at {
            return Ok(());
        }
        match self.blow {
            Blow::Error => Err(Error::Unavailable("the connection was cut".to_owned())),
            Blow::Crash => {
                self.crashed.notify_one();
                std::future::pending().await
            }
        }
    }
}

/// Hands over and sends one publication with a blow at the `at`th point of everything that touches the database, then
/// recovers with a sound process. Returns whether the blow fell.
async fn survive(world: &World, blow: Blow, at: usize) -> bool {
    let case = format!("{blow:?} at {at} on {:?}", world.db.dialect());
    let faults = Arc::new(StrikeAt { at, blow, passed: AtomicUsize::new(0), crashed: Notify::new() });
    let clip = world.clip(50.0).await;
    let log = world.log(clip, "tiktok", ", scheduled_at", "'scheduled', '2026-11-20T18:30:00.000Z'").await;
    let posts_before = world.posts().await;
    let struck = World::over(
        world.db.clone().with_faults(faults.clone()),
        world.clock.clone(),
        world.publishing.config().clone(),
    );
    let first_life = async {
        let dispatcher = super::super::Dispatcher::new(struck.publishing.clone(), Duration::from_secs(1));
        let _ = dispatcher.tick().await;
        let Some(job) = claim(&world.db).await else { return };
        let handlers = struck.publishing.handlers();
        let run = handlers[0].run(&job);
        tokio::pin!(run);
        loop {
            tokio::select! {
                biased;
                outcome = &mut run => {
                    // A worker would fail the job; a process that dies here leaves that to the rescue.
                    assert!(!matches!(outcome, Outcome::Done(_)), "{case}: it was carried by its job");
                    return;
                }
                () = world.clock.silent.notified() => world.clock.manual.advance(Duration::from_secs(30)),
                // Time passes while the answer is offered again to a store that failed.
                () = tokio::task::yield_now(), if blow == Blow::Error => {
                    world.clock.manual.advance(Duration::from_millis(1));
                }
            }
        }
    };
    tokio::select! {
        () = first_life => {}
        () = faults.crashed.notified() => {}
    }
    let fell = faults.passed.load(Ordering::SeqCst) > at;

    // A second life: leases lapse, publications are handed over again, and whatever is open is asked about.
    rescue(&world.db).await;
    for _ in 0..4 {
        world.work().await;
        world.advance_minutes(11);
        world.reconcile().await;
        if world.status(log).await == Status::Failed {
            assert_eq!(world.posts().await, posts_before, "{case}: failed, and yet it is out");
            retry(world, log).await.expect("a failed publication can be retried");
            world.advance_minutes(60);
        }
    }
    assert_eq!(world.status(log).await, Status::Published, "{case}: forgotten");
    assert_eq!(world.posts().await - posts_before, 1, "{case}: posts");
    world.advance_minutes(60);
    fell
}

#[tokio::test]
async fn a_crash_between_any_two_steps_neither_posts_twice_nor_forgets() {
    for lose_answer in [0.0, 1.0] {
        in_each_world(sandbox(|sandbox| sandbox.lose_answer = lose_answer), async |world| {
            for blow in [Blow::Crash, Blow::Error] {
                let mut at = 0;
                while survive(&world, blow, at).await {
                    at += 1;
                }
                assert!(at > 15, "only {at} points were struck");
            }
            let verified = crate::ledger::verify(&world.db, |_| {}).await.expect("verify");
            assert_eq!(verified.first_bad, None);
        })
        .await;
    }
}

/// Whoever asked, stood still and comes back, finds the publication out again in another attempt.
#[tokio::test]
async fn an_answer_about_one_attempt_settles_no_other() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(10.0).await;
        let log = world.log(clip, "tiktok", ", attempted_at", "'unknown', '2026-11-19T00:00:00.000Z'").await;
        let asked_about = world.get(log).await;
        write(
            &world.db,
            "UPDATE publish_logs SET retry_count = 1, attempted_at = '2026-11-20T00:00:00.000Z'".to_owned(),
        )
        .await;
        let mut tx = world.begin().await;
        for how in [Settled::Failed { reason: "x" }, Settled::Published { external_id: None, external_url: None }] {
            assert!(!store::settle(&mut tx, &asked_about, "unknown", &how).await.expect("a look"));
        }
        store::begin_wait(&mut tx, &asked_about).await.expect("a look");
        tx.commit().await.expect("commit");
        let now = world.get(log).await;
        assert_eq!((now.status, now.attempted_at), (Status::Unknown, Some(world.at("2026-11-20T00:00:00Z"))));
    })
    .await;
}
