//! Handing over: what is due, what is long overdue, and what a crash left.

use super::*;

#[tokio::test]
async fn only_what_is_due_is_handed_over_and_only_once() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let due = world.log(clip, "tiktok", ", scheduled_at", "'scheduled', '2026-11-20T18:30:00.000Z'").await;
        let later = world.log(clip, "youtube", ", scheduled_at", "'scheduled', '2026-11-20T18:30:00.001Z'").await;
        assert_eq!(world.tick().await.handed_over, 1);
        assert_eq!(world.tick().await.handed_over, 0);
        let handed = world.get(due).await;
        assert_eq!((handed.status, handed.pending_at), (Status::Pending, Some(world.now().await)));
        assert!(handed.job_id.is_some());
        assert_eq!(world.status(later).await, Status::Scheduled);
        assert_eq!(count(&world.db, "SELECT COUNT(*) FROM jobs").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_publication_that_another_program_inserted_gets_its_job() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", ", priority", "'pending', 7").await;
        assert_eq!(world.tick().await.handed_over, 1);
        let job = world.claim().await.expect("a job");
        assert_eq!((Some(job.id), job.max_attempts), (world.get(log).await.job_id, 1));
        assert_eq!(count(&world.db, "SELECT priority FROM jobs").await, 17);
    })
    .await;
}

#[tokio::test]
async fn a_pending_publication_whose_job_died_gets_another() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        world.tick().await;
        let first = world.get(log).await.job_id;
        world.claim().await.expect("a job");
        assert_eq!(world.tick().await.handed_over, 0, "its job lives");
        rescue(&world.db).await;
        assert_eq!(world.tick().await.handed_over, 1);
        assert_ne!(world.get(log).await.job_id, first);
        world.work().await;
        assert_eq!((world.status(log).await, world.posts().await), (Status::Published, 1));
    })
    .await;
}

#[tokio::test]
async fn a_publication_that_was_being_sent_by_nobody_is_unknown() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", "", "'publishing'").await;
        assert_eq!(world.tick().await.lost, 1);
        assert_eq!(world.status(log).await, Status::Unknown);
        assert_eq!(world.ledger().await, ["publishing.unknown"]);
        assert_eq!(count(&world.db, "SELECT COUNT(*) FROM jobs").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_publication_for_an_unknown_platform_fails_with_that_reason() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "myspace", "", "'pending'").await;
        world.work().await;
        let failed = world.get(log).await;
        assert_eq!(failed.status, Status::Failed);
        assert_eq!(failed.last_error.as_deref(), Some("platform `myspace` is not configured"));
    })
    .await;
}

#[tokio::test]
async fn after_downtime_the_overdue_go_out_one_by_one() {
    in_each_world(settings(), async |world| {
        let mut logs = Vec::new();
        for hour in 10..16 {
            let clip = world.clip(50.0).await;
            let values = format!("'scheduled', '2026-11-20T{hour}:00:00.000Z'");
            logs.push(world.log(clip, "tiktok", ", scheduled_at", &values).await);
        }
        let other = world.clip(50.0).await;
        let late = "'scheduled', '2026-11-20T09:00:00.000Z'";
        let elsewhere = world.log(other, "youtube", ", scheduled_at", late).await;
        assert_eq!(world.tick().await.handed_over, 2, "one a platform");
        assert_eq!(world.tick().await.handed_over, 0, "the first is still on its way");
        assert_eq!(world.work().await, 2);
        assert_eq!(world.status(elsewhere).await, Status::Published);
        for (sent, log) in logs.iter().enumerate() {
            assert_eq!(world.status(*log).await, Status::Published, "oldest first");
            assert_eq!(
                count(&world.db, "SELECT COUNT(*) FROM sandbox_posts WHERE platform = 'tiktok'").await,
                sent as i64 + 1
            );
            world.advance_minutes(14);
            assert_eq!(world.work().await, 0, "nearer than the spacing of 15 minutes");
            world.advance_minutes(1);
            world.work().await;
        }
        assert_eq!(world.posts().await, 7);
    })
    .await;
}

#[tokio::test]
async fn a_time_at_the_end_of_time_holds_no_other_publication_up() {
    in_each_world(settings(), async |world| {
        let (early, pending) = match world.db.dialect() {
            crate::db::Dialect::Sqlite => ("0000-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"),
            crate::db::Dialect::Postgres => ("-infinity", "infinity"),
        };
        let clip = world.clip(50.0).await;
        world.log(clip, "youtube", ", scheduled_at", &format!("'scheduled', '{early}'")).await;
        let other = world.clip(50.0).await;
        let values = format!("'pending', '2026-11-20T10:00:00.000Z', '{pending}'");
        world.log(other, "tiktok", ", scheduled_at, pending_at", &values).await;
        let last = world.clip(50.0).await;
        world.log(last, "tiktok", ", scheduled_at", "'scheduled', '2026-11-20T10:00:00.000Z'").await;
        for _ in 0..3 {
            world.work().await;
            world.advance_minutes(15);
        }
        assert_eq!(count(&world.db, "SELECT COUNT(*) FROM publish_logs WHERE status = 'published'").await, 3);
    })
    .await;
}

#[tokio::test]
async fn what_is_due_on_time_does_not_wait_for_the_overdue() {
    in_each_world(settings(), async |world| {
        for hour in 10..14 {
            let clip = world.clip(50.0).await;
            let values = format!("'scheduled', '2026-11-20T{hour}:00:00.000Z'");
            world.log(clip, "tiktok", ", scheduled_at", &values).await;
        }
        let clip = world.clip(50.0).await;
        let on_time = world.log(clip, "tiktok", ", scheduled_at", "'scheduled', '2026-11-20T18:25:00.000Z'").await;
        assert_eq!(world.tick().await.handed_over, 2, "beside one late one");
        assert_eq!(world.status(on_time).await, Status::Pending);
    })
    .await;
}

#[tokio::test]
async fn the_overdue_do_not_wait_for_a_platform_that_is_always_busy() {
    in_each_world(settings(), async |world| {
        let mut late = Vec::new();
        for hour in 10..13 {
            let clip = world.clip(50.0).await;
            let values = format!("'scheduled', '2026-11-20T{hour}:00:00.000Z'");
            late.push(world.log(clip, "tiktok", ", scheduled_at", &values).await);
        }
        for minute in 30..60 {
            let clip = world.clip(50.0).await;
            let values = format!("'scheduled', '2026-11-20T18:{minute}:00.000Z'");
            world.log(clip, "tiktok", ", scheduled_at", &values).await;
        }
        for _ in 30..60 {
            world.work().await;
            world.advance_minutes(1);
        }
        assert_eq!(world.status(late[0]).await, Status::Published);
        assert_eq!(world.status(late[1]).await, Status::Published, "a spacing of 15 minutes later");
        assert_eq!(world.status(late[2]).await, Status::Scheduled, "and no sooner");
    })
    .await;
}

#[tokio::test]
async fn it_works_when_woken_and_stops_when_told() {
    in_each_world(settings(), async |world| {
        let stop = tokio_util::sync::CancellationToken::new();
        let mut jobs = world.db.listen(crate::db::Topic::Jobs);
        let dispatcher = super::super::Dispatcher::new(world.publishing.clone(), Duration::from_secs(3600));
        let running = tokio::spawn(dispatcher.run(stop.clone()));
        world.clock.silent.notified().await; // it has looked, and waits
        let clip = world.clip(50.0).await;
        world.log(clip, "tiktok", "", "'pending'").await;
        world.db.wake(crate::db::Topic::Publications).await;
        jobs.woken().await;
        assert_eq!(count(&world.db, "SELECT COUNT(*) FROM jobs").await, 1);
        stop.cancel();
        running.await.expect("it stops");
    })
    .await;
}

#[tokio::test]
async fn instances_that_look_at_once_hand_over_once() {
    in_each_world(settings(), async |world| {
        for _ in 0..20 {
            let clip = world.clip(50.0).await;
            world.log(clip, "youtube", "", "'pending'").await;
            world.log(clip, "tiktok", ", scheduled_at", "'scheduled', '2026-11-20T10:00:00.000Z'").await;
        }
        let (one, two, three) = tokio::join!(world.tick(), world.tick(), world.tick());
        assert_eq!(one.handed_over + two.handed_over + three.handed_over, 21, "each waiting one, and one overdue one");
        let jobs = count(&world.db, "SELECT COUNT(DISTINCT job_id) FROM publish_logs WHERE job_id IS NOT NULL").await;
        assert_eq!((jobs, count(&world.db, "SELECT COUNT(*) FROM jobs").await), (21, 21));
    })
    .await;
}
