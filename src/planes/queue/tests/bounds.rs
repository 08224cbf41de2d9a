//! Rows of other programs whose counters stand at their bounds: they are worked off like others, and hold nothing up.

use std::time::Duration;

use super::super::*;
use super::in_each_world;

const AT_THE_BOUNDS: &str = "INSERT INTO jobs (kind, attempt, lease) VALUES ('work', 1000000, 1000000000000000)";

#[tokio::test]
async fn a_job_at_its_bounds_is_claimed_beside_the_others_and_still_fenced() {
    in_each_world(async |world| {
        world.sql(AT_THE_BOUNDS.to_owned()).await;
        let usual = world.job().await;
        let jobs = world.claim(2).await;
        assert_eq!(jobs.iter().map(|job| (job.attempt, job.lease)).collect::<Vec<_>>(), [(1_000_000, 1), (1, 1)]);
        let mut tx = world.begin().await;
        assert_eq!(give_back(&mut tx, &[(&jobs[0]).into()]).await.expect("back"), 1);
        tx.commit().await.expect("commit");
        let again = world.claim_one().await;
        assert_eq!((again.id, again.attempt, again.lease), (jobs[0].id, 1_000_000, 3));
        assert!(!world.complete(&jobs[0]).await, "a late answer");
        assert_eq!(world.fail(&again, "it broke").await, Some(Status::Failed), "its tries are used");
        assert!(world.complete(&jobs[1]).await);
        assert_eq!(world.status(usual).await, Status::Completed);
    })
    .await;
}

#[tokio::test]
async fn a_job_at_its_bounds_is_claimed_by_the_short_way_too() {
    in_each_world(async |world| {
        world.sql(AT_THE_BOUNDS.to_owned()).await;
        world.job().await;
        let wanted = Claim {
            queue: "default",
            kinds: &["work"],
            worker: "me",
            lease: Duration::from_secs(60),
            longest_wait: Duration::from_secs(60),
            limit: 10,
        };
        assert_eq!(claim_at_once(&world.db, &wanted).await.expect("claim").len(), 2);
    })
    .await;
}

#[tokio::test]
async fn lapsed_leases_are_taken_back_beside_one_at_its_bounds() {
    in_each_world(async |world| {
        for counters in ["0, 0", "0, 1000000000000000", "1000000, 5"] {
            world
                .sql(format!(
                    "INSERT INTO jobs (kind, status, attempt, lease, lease_expires_at)
                     VALUES ('work', 'processing', {counters}, '2026-11-20T18:00:00.000Z')"
                ))
                .await;
        }
        assert_eq!(world.claim(5).await.iter().map(|job| job.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(world.status(3).await, Status::Failed, "its tries are used");
        // Whoever sets a running try back to none changes nothing for those that are given back with it.
        world.sql("UPDATE jobs SET attempt = 0 WHERE id = 1".to_owned()).await;
        let held = [1, 2].map(|id| Hold { id, lease: 2 });
        let mut tx = world.begin().await;
        assert_eq!(give_back(&mut tx, &held).await.expect("back"), 2);
        tx.commit().await.expect("commit");
    })
    .await;
}
