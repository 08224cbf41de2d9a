//! Each action: its effect, and every refusal.

use super::*;
use crate::planes::publishing::act;
use crate::planes::{ActError, Effect};

/// Runs an action in a transaction of its own; a refusal is given as its sentence.
macro_rules! act {
    ($world:ident, |$tx:ident| $action:expr) => {{
        let mut transaction = $world.begin().await;
        let $tx = &mut transaction;
        let done: Result<Effect, ActError> = $action.await;
        match done {
            Ok(effect) => {
                transaction.commit().await.expect("commit");
                Ok(effect)
            }
            Err(ActError::Refused(reason)) => Err(reason),
            Err(ActError::Store(error)) => panic!("{error}"),
        }
    }};
}

async fn schedule(world: &World, clip: i64, platform: Option<&str>) -> Result<PublishLog, String> {
    let effect = act!(world, |tx| act::schedule_clip(tx, &world.publishing, clip, platform))?;
    Ok(world.get(effect.detail["log_id"].as_i64().expect("a log")).await)
}

async fn promote(world: &World, clip: i64) -> Result<PublishLog, String> {
    let effect = act!(world, |tx| act::promote_high_score_clip(tx, &world.publishing, clip))?;
    Ok(world.get(effect.detail["log_id"].as_i64().expect("a log")).await)
}

async fn force(world: &World, log: i64) -> Result<Effect, String> {
    act!(world, |tx| act::force_publish(tx, &world.publishing, log))
}

fn with_cost(cents: i64) -> config::Publishing {
    let mut config = settings();
    for platform in config.platforms.values_mut() {
        platform.cost_cents = cents;
    }
    config
}

#[tokio::test]
async fn schedule_clip_takes_the_first_free_slot() {
    in_each_world(with_cost(5), async |world| {
        let campaign = world.campaign("", "1000").await;
        write(
            &world.db,
            format!("INSERT INTO clips (title, media_uri, visual_score, campaign_id) VALUES ('c', 'u', 9, {campaign})"),
        )
        .await;
        let clip = count(&world.db, "SELECT MAX(id) FROM clips").await;
        let log = schedule(&world, clip, Some("tiktok")).await.expect("scheduled");
        assert_eq!((log.status, log.scheduled_at), (Status::Scheduled, Some(world.at("2026-11-20T18:30:00Z"))));
        assert_eq!((log.campaign_id, log.cost_cents, log.idempotency_key.len()), (Some(campaign), 5, 32));
        let next = world.clip(50.0).await;
        let log = schedule(&world, next, Some("tiktok")).await.expect("scheduled");
        assert_eq!(log.scheduled_at, Some(world.at("2026-11-20T18:45:00Z")), "a spacing later");
        let any = schedule(&world, next, None).await.expect("scheduled");
        assert_eq!((any.platform.as_str(), any.scheduled_at), ("instagram", Some(world.at("2026-11-20T18:30:00Z"))));
    })
    .await;
}

#[tokio::test]
async fn schedule_clip_keeps_to_the_daily_quota() {
    let mut config = settings();
    config.platforms.get_mut("tiktok").expect("a platform").daily_quota = 2;
    in_each_world(config, async |world| {
        let mut days = Vec::new();
        for _ in 0..5 {
            let clip = world.clip(50.0).await;
            let log = schedule(&world, clip, Some("tiktok")).await.expect("scheduled");
            days.push(log.scheduled_at.expect("a time").to_string()[..10].to_owned());
        }
        assert_eq!(days, ["2026-11-20", "2026-11-20", "2026-11-21", "2026-11-21", "2026-11-22"]);
    })
    .await;
}

#[tokio::test]
async fn schedule_clip_refuses_in_a_sentence() {
    in_each_world(with_cost(60), async |world| {
        let clip = world.clip(50.0).await;
        let refused = async |platform: Option<&str>| schedule(&world, clip, platform).await.expect_err("refused");
        assert_eq!(schedule(&world, 999, None).await.expect_err("refused"), "there is no clip 999");
        assert!(refused(Some("myspace")).await.contains("`myspace` is not configured; there are instagram, tiktok"));
        world.log(clip, "tiktok", "", "'failed'").await;
        assert_eq!(refused(Some("tiktok")).await, format!("clip {clip} already has a publication on tiktok"));
        world.log(clip, "youtube", "", "'cancelled'").await;
        schedule(&world, clip, Some("youtube")).await.expect("a cancelled one does not count");
        schedule(&world, clip, Some("instagram")).await.expect("scheduled");
        assert_eq!(refused(None).await, format!("clip {clip} already has a publication on every platform"));
        write(&world.db, format!("UPDATE clips SET status = 'archived' WHERE id = {clip}")).await;
        assert_eq!(refused(None).await, format!("clip {clip} is archived"));
    })
    .await;
}

#[tokio::test]
async fn schedule_clip_respects_the_campaign() {
    in_each_world(with_cost(60), async |world| {
        let campaign = world.campaign("", "100").await;
        for _ in 0..2 {
            write(
                &world.db,
                format!(
                    "INSERT INTO clips (title, media_uri, visual_score, campaign_id) VALUES ('c', 'u', 9, {campaign})"
                ),
            )
            .await;
        }
        let (one, two) =
            (count(&world.db, "SELECT MIN(id) FROM clips").await, count(&world.db, "SELECT MAX(id) FROM clips").await);
        schedule(&world, one, Some("tiktok")).await.expect("60 of 100");
        let poor = schedule(&world, two, Some("tiktok")).await.expect_err("60 of 40");
        assert!(poor.contains("has 40 of 100 cents left; 0 are spent, 60 reserved"), "{poor}");
        for (change, reason) in [
            ("status = 'paused'", "is paused, not active"),
            ("status = 'active', ends_at = '2026-11-20T18:30:00.000Z'", "is over"),
            ("budget_cents = 0, ends_at = NULL", "has -60 of 0 cents left"),
            ("budget_cents = 1000, starts_at = '2027-01-01T00:00:00.000Z'", "no slot is free"),
        ] {
            write(&world.db, format!("UPDATE campaigns SET {change}")).await;
            let refused = schedule(&world, two, None).await.expect_err(change);
            assert!(refused.contains(reason), "{change}: {refused}");
        }
        write(&world.db, "UPDATE campaigns SET starts_at = '2026-11-22T20:00:00.000Z'".to_owned()).await;
        let log = schedule(&world, two, Some("youtube")).await.expect("scheduled");
        assert_eq!(log.scheduled_at, Some(world.at("2026-11-22T20:00:00Z")), "not before the campaign begins");
    })
    .await;
}

#[tokio::test]
async fn retry_failed_log_waits_and_keeps_to_its_bounds() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let log = world.log(clip, "tiktok", ", retry_count", "'failed', 1").await;
        let retry = async |log: i64| act!(world, |tx| act::retry_failed_log(tx, &world.publishing, log));
        let effect = retry(log).await.expect("retried");
        assert_eq!(effect.detail["from"], json!("failed"));
        let again = world.get(log).await;
        assert_eq!((again.status, again.retry_count), (Status::Scheduled, 2));
        let wait = again.scheduled_at.expect("a time").since(world.now().await);
        assert!(
            (Duration::from_secs(300)..=Duration::from_secs(600)).contains(&wait),
            "5 minutes doubled, with jitter"
        );
        assert_eq!(
            retry(log).await.expect_err("refused"),
            format!("publication {log} is scheduled and cannot be retried")
        );
        assert_eq!(retry(999).await.expect_err("refused"), "there is no publication 999");
        let older = world.log(clip, "tiktok", "", "'failed'").await;
        assert!(retry(older).await.expect_err("refused").contains("has another live publication on tiktok"));
        let spent = world.log(clip, "youtube", ", retry_count", "'failed', 3").await;
        assert!(retry(spent).await.expect_err("refused").contains("has used its 3 retries"));
        let archived = world.clip(50.0).await;
        let log = world.log(archived, "tiktok", "", "'failed'").await;
        write(&world.db, format!("UPDATE clips SET status = 'archived' WHERE id = {archived}")).await;
        assert_eq!(retry(log).await.expect_err("refused"), format!("clip {archived} is archived"));
    })
    .await;
}

#[tokio::test]
async fn trigger_reconciliation_runs_one_at_a_time() {
    in_each_world(settings(), async |world| {
        let trigger = async || act!(world, |tx| act::trigger_reconciliation(tx));
        assert!(trigger().await.expect("enqueued").detail["job_id"].is_i64());
        assert_eq!(trigger().await.expect_err("refused"), "a reconciliation is already under way");
        let job = world.claim().await.expect("a job");
        assert_eq!(trigger().await.expect_err("refused"), "a reconciliation is already under way");
        world.run(&job).await;
        trigger().await.expect("the first is done");
    })
    .await;
}

#[tokio::test]
async fn promote_high_score_clip_takes_the_open_window_that_closes_first() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(95.0).await;
        let log = promote(&world, clip).await.expect("promoted");
        assert_eq!((log.platform.as_str(), log.scheduled_at), ("youtube", Some(world.now().await)));
        assert!(log.priority >= 50, "ahead of others");
        assert_eq!(promote(&world, clip).await.expect("promoted").platform, "instagram");
        assert_eq!(promote(&world, clip).await.expect("promoted").platform, "tiktok");
        assert!(promote(&world, clip).await.expect_err("refused").contains("no window is open on a platform where"));
        let crowded = world.clip(95.0).await;
        assert_eq!(
            promote(&world, crowded).await.expect("promoted").scheduled_at,
            Some(world.at("2026-11-20T18:45:00Z"))
        );
        world.advance_minutes(6 * 60);
        let late = world.clip(95.0).await;
        assert!(promote(&world, late).await.expect_err("refused").contains("no window is open"));
    })
    .await;
}

#[tokio::test]
async fn promote_high_score_clip_refuses_when_the_open_windows_are_full() {
    let mut config = settings();
    config.platforms.retain(|name, _| name == "youtube");
    config.platforms.get_mut("youtube").expect("a platform").daily_quota = 1;
    in_each_world(config, async |world| {
        let (first, second) = (world.clip(95.0).await, world.clip(95.0).await);
        promote(&world, first).await.expect("promoted");
        assert!(promote(&world, second).await.expect_err("refused").contains("no slot is free"));
    })
    .await;
}

#[tokio::test]
async fn downgrade_low_score_clip_moves_a_day_later_at_most_three_times() {
    let config = config::Publishing { time_zone: "Europe/Madrid".to_owned(), ..settings() };
    in_each_world(config, async |world| {
        let clip = world.clip(10.0).await;
        // 19:00 in Madrid on the day before the clock goes back.
        let log = world.log(clip, "tiktok", ", scheduled_at", "'scheduled', '2026-10-24T17:00:00.000Z'").await;
        let downgrade = async || act!(world, |tx| act::downgrade_low_score_clip(tx, &world.publishing, clip));
        downgrade().await.expect("moved");
        let moved = world.get(log).await;
        assert_eq!(moved.scheduled_at, Some(world.at("2026-10-25T18:00:00Z")), "the same local time");
        assert_eq!(moved.postponed_count, 1);
        downgrade().await.expect("moved");
        downgrade().await.expect("moved");
        assert_eq!(downgrade().await.expect_err("refused"), format!("clip {clip} has been postponed 3 times already"));
        write(&world.db, format!("UPDATE publish_logs SET status = 'pending' WHERE id = {log}")).await;
        assert_eq!(downgrade().await.expect_err("refused"), format!("clip {clip} has no scheduled publication"));
    })
    .await;
}

#[tokio::test]
async fn force_publish_sends_next_whatever_the_window() {
    in_each_world(settings(), async |world| {
        world.advance_minutes(6 * 60); // no window is open
        let (clip, other) = (world.clip(10.0).await, world.clip(20.0).await);
        world.log(other, "tiktok", ", priority", "'pending', 40").await;
        let log = world.log(clip, "tiktok", ", scheduled_at", "'scheduled', '2026-12-24T17:00:00.000Z'").await;
        world.tick().await;
        force(&world, log).await.expect("forced");
        let forced = world.get(log).await;
        assert_eq!((forced.status, forced.scheduled_at, forced.priority), (Status::Pending, None, 100));
        assert_eq!(forced.pending_at, Some(world.now().await));
        let job = world.claim().await.expect("a job");
        assert_eq!(Some(job.id), forced.job_id, "ahead of the one that waited");
        assert_eq!(force(&world, log).await.expect_err("refused"), format!("publication {log} is going out already"));
        world.run(&job).await;
        let out = force(&world, log).await.expect_err("refused");
        assert_eq!(out, format!("publication {log} is published and cannot be forced out"));
        assert_eq!(force(&world, 999).await.expect_err("refused"), "there is no publication 999");
    })
    .await;
}

#[tokio::test]
async fn force_publish_raises_the_job_that_waits_already() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(10.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        world.tick().await;
        let job = world.get(log).await.job_id;
        // As a rebalanced queue leaves it: due only in some minutes.
        let later = world.at("2026-11-20T18:40:00Z");
        write(&world.db, format!("UPDATE jobs SET status = 'waiting', run_at = '{later}'")).await;
        force(&world, log).await.expect("forced");
        assert_eq!((world.get(log).await.job_id, count(&world.db, "SELECT COUNT(*) FROM jobs").await), (job, 1));
        assert_eq!(count(&world.db, "SELECT priority FROM jobs").await, 110);
        world.work().await;
        assert_eq!(world.posts().await, 1);
        for (status, columns) in [("failed", ""), ("unknown", ""), ("cancelled", "")] {
            let log = world.log(clip, "youtube", columns, &format!("'{status}'")).await;
            let reason = force(&world, log).await.expect_err("refused");
            assert!(reason.contains(&format!("is {status} and cannot be forced out")), "{reason}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_waited_on_a_failed_job_fails_and_can_be_retried() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(10.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        let other = world.log(clip, "youtube", "", "'pending'").await;
        world.tick().await;
        let job = world.get(log).await.job_id.expect("a job");
        write(&world.db, format!("UPDATE jobs SET status = 'failed' WHERE id = {job}")).await;
        let mut tx = world.begin().await;
        assert_eq!(act::fail_waiting_on(&mut tx, &[job, 999]).await.expect("failed"), [log]);
        assert!(act::fail_waiting_on(&mut tx, &[]).await.expect("failed").is_empty());
        tx.commit().await.expect("commit");
        assert_eq!((world.status(log).await, world.status(other).await), (Status::Failed, Status::Pending));
        act!(world, |tx| act::retry_failed_log(tx, &world.publishing, log)).expect("it can be retried");
    })
    .await;
}

#[tokio::test]
async fn cancel_gives_up_what_is_not_out() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(10.0).await;
        let log = world.log(clip, "tiktok", "", "'pending'").await;
        world.tick().await;
        act!(world, |tx| act::cancel(tx, log)).expect("cancelled");
        world.work().await;
        assert_eq!((world.status(log).await, world.posts().await), (Status::Cancelled, 0));
        let (status,): (String,) = world.db.query("SELECT status FROM clips").one().await.expect("clip");
        assert_eq!(status, "ready", "the clip is free again");
        let out = world.log(clip, "tiktok", "", "'published'").await;
        assert!(act!(world, |tx| act::cancel(tx, out)).expect_err("refused").contains("cannot be cancelled"));
    })
    .await;
}

#[tokio::test]
async fn two_cancellations_at_once_free_the_clip() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(10.0).await;
        let logs =
            [world.log(clip, "tiktok", "", "'pending'").await, world.log(clip, "youtube", "", "'pending'").await];
        let mut first = world.begin().await;
        act::cancel(&mut first, logs[0]).await.expect("cancelled");
        let second = tokio::spawn({
            let db = world.db.clone();
            async move {
                let mut tx = db.begin().await.expect("begin");
                act::cancel(&mut tx, logs[1]).await.expect("cancelled");
                tx.commit().await.expect("commit");
            }
        });
        if world.db.dialect() == crate::db::Dialect::Postgres {
            let waiting = "SELECT COUNT(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'";
            while !second.is_finished() && count(&world.db, waiting).await == 0 {
                tokio::task::yield_now().await;
            }
        }
        first.commit().await.expect("commit");
        second.await.expect("the second");
        assert_eq!(count(&world.db, "SELECT COUNT(*) FROM clips WHERE status = 'ready'").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_retry_goes_no_way_that_is_closed_to_a_new_publication() {
    in_each_world(with_cost(1), async |world| {
        let campaign = world.campaign("", "100").await;
        let clip = world.clip(10.0).await;
        let log = world.log(clip, "tiktok", ", campaign_id", &format!("'failed', {campaign}")).await;
        let retry = async || act!(world, |tx| act::retry_failed_log(tx, &world.publishing, log)).map(drop);
        for (change, because) in [
            ("status = 'paused'", "is paused, not active"),
            ("status = 'active', ends_at = '2026-01-01T00:00:00.000Z'", "is over"),
        ] {
            write(&world.db, format!("UPDATE campaigns SET {change}")).await;
            assert!(retry().await.expect_err("refused").contains(because), "{because}");
        }
        write(&world.db, "UPDATE campaigns SET ends_at = NULL".to_owned()).await;
        retry().await.expect("retried");
    })
    .await;
}
