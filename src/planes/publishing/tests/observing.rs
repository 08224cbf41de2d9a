//! The sections of the snapshot, and that each is read by its indexes.

use super::*;
use crate::planes::publishing::{observe_campaigns, observe_clips, observe_publish_logs};

#[tokio::test]
async fn an_empty_platform_is_all_zeros() {
    in_each_world(settings(), async |world| {
        let mut tx = world.db.begin_read().await.expect("begin");
        let now = tx.now().await.expect("now");
        assert_eq!(observe_publish_logs(&mut tx, now, None).await.expect("section"), Default::default());
        assert_eq!(observe_campaigns(&mut tx, now, None).await.expect("section"), Default::default());
        assert_eq!(observe_clips(&mut tx, &world.publishing, now, None).await.expect("section"), Default::default());
    })
    .await;
}

#[tokio::test]
async fn publications_are_counted_and_listed() {
    in_each_world(settings(), async |world| {
        let mut clips = Vec::new();
        for _ in 0..4 {
            clips.push(world.clip(50.0).await);
        }
        let old = world.log(clips[0], "tiktok", ", pending_at", "'pending', '2026-11-20T17:29:00.000Z'").await;
        world.log(clips[1], "tiktok", ", pending_at", "'pending', '2026-11-20T17:31:00.000Z'").await;
        let failed = world
            .log(clips[2], "tiktok", ", failed_at, last_error", "'failed', '2026-11-20T18:00:00.000Z', 'no'")
            .await;
        world.log(clips[3], "tiktok", ", failed_at, retry_count", "'failed', '2026-11-20T17:00:00.000Z', 3").await;
        world.log(clips[0], "youtube", ", scheduled_at", "'scheduled', '2026-11-20T18:29:00.000Z'").await;
        world.log(clips[1], "youtube", ", scheduled_at", "'retry', '2026-11-20T18:31:00.000Z'").await;
        world.log(clips[2], "youtube", "", "'published'").await;
        // Written before the clock was set back.
        let ahead = "'failed', '2026-11-20T19:00:00.000Z', 3";
        world.log(clips[0], "instagram", ", failed_at, retry_count", ahead).await;
        // Superseded by the next, and failed by a program that left failed_at out.
        world.log(clips[3], "youtube", ", updated_at", "'failed', '2026-11-20T18:10:00.000Z'").await;
        world.log(clips[3], "youtube", "", "'unknown'").await;
        let mut tx = world.db.begin_read().await.expect("begin");
        let now = tx.now().await.expect("now");
        let section = observe_publish_logs(&mut tx, now, None).await.expect("section");
        let counts = (section.pending, section.scheduled, section.retry, section.published, section.unknown);
        assert_eq!(counts, (2, 1, 1, 1, 1));
        assert_eq!((section.failed, section.overdue, section.oldest_pending_minutes), (4, 1, 61));
        assert_eq!((section.stuck_count, section.stuck.len(), section.stuck[0].id), (1, 1, old));
        assert_eq!(section.stuck[0].minutes, 61);
        assert_eq!(section.recent_failures_1h, 2);
        let retryable: Vec<i64> = section.retryable.iter().map(|log| log.id).collect();
        assert_eq!(retryable, [failed]);
        assert_eq!(section.retryable[0].last_error.as_deref(), Some("no"));
    })
    .await;
}

#[tokio::test]
async fn what_was_superseded_hides_nothing_that_can_be_retried() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        let failed = world.log(clip, "tiktok", ", failed_at", "'failed', '2026-11-20T18:00:00.000Z'").await;
        for _ in 0..12 {
            let clip = world.clip(50.0).await;
            world.log(clip, "tiktok", ", failed_at", "'failed', '2026-11-20T18:20:00.000Z'").await;
            world.log(clip, "tiktok", "", "'published'").await;
        }
        let mut tx = world.db.begin_read().await.expect("begin");
        let now = tx.now().await.expect("now");
        let section = observe_publish_logs(&mut tx, now, None).await.expect("section");
        let retryable: Vec<i64> = section.retryable.iter().map(|log| log.id).collect();
        assert_eq!(retryable, [failed], "behind a list's length of newer ones that are out by now");
    })
    .await;
}

#[tokio::test]
async fn campaigns_show_the_most_important_active_ones() {
    in_each_world(settings(), async |world| {
        let small = world.campaign(", priority", "5000, 1").await;
        let large = world.campaign(", priority", "20000, 1").await;
        let first = world.campaign(", priority", "0, 9").await;
        write(&world.db, "INSERT INTO campaigns (name, budget_cents) VALUES ('draft', 7)".to_owned()).await;
        for score in [10, 30, 20] {
            write(&world.db, format!("INSERT INTO clips (title, media_uri, visual_score, campaign_id) VALUES ('c', 'u', {score}, {large})")).await;
        }
        let mut tx = world.db.begin_read().await.expect("begin");
        let now = tx.now().await.expect("now");
        let section = observe_campaigns(&mut tx, now, None).await.expect("section");
        assert_eq!((section.active, section.budget_total_cents), (3, 25_000));
        assert_eq!(section.top.iter().map(|campaign| campaign.id).collect::<Vec<_>>(), [first, large, small]);
        assert_eq!((section.top[1].ready_clips, section.top[0].best_clip_id), (3, None));
        let (best,): (i64,) = tx.query("SELECT id FROM clips WHERE visual_score = 30").one().await.expect("clip");
        assert_eq!(section.top[1].best_clip_id, Some(best));
    })
    .await;
}

#[tokio::test]
async fn clips_show_the_best_and_the_worst() {
    in_each_world(settings(), async |world| {
        write(
            &world.db,
            "INSERT INTO clips (title, media_uri, visual_score, created_at) VALUES ('old', 'u', 99, '2026-11-19T18:29:00.000Z')"
                .to_owned(),
        )
        .await;
        let created = "2026-11-20T18:00:00.000Z";
        for score in [90, 80, 39, 20, 10] {
            write(&world.db, format!("INSERT INTO clips (title, media_uri, visual_score, created_at) VALUES ('c', 'u', {score}, '{created}')")).await;
        }
        let id = async |score: f64| {
            let row: (i64,) =
                world.db.query("SELECT id FROM clips WHERE visual_score = $1").bind(score).one().await.expect("clip");
            row.0
        };
        let best = id(99.0).await;
        world.log(best, "youtube", "", "'cancelled'").await;
        for (score, postponed) in [(39.0, 0), (20.0, 3), (10.0, 2)] {
            let values = format!("'scheduled', '2026-11-21T18:00:00.000Z', {postponed}");
            world.log(id(score).await, "tiktok", ", scheduled_at, postponed_count", &values).await;
        }
        let mut tx = world.db.begin_read().await.expect("begin");
        let now = tx.now().await.expect("now");
        let section = observe_clips(&mut tx, &world.publishing, now, None).await.expect("section");
        drop(tx);
        assert_eq!((section.recent_24h, section.avg_visual_score), (5, Some(47.8)));
        assert_eq!(section.high_score_count, 2);
        assert_eq!(section.high_score.iter().map(|clip| clip.visual_score).collect::<Vec<_>>(), [99.0, 90.0]);
        assert_eq!(section.best_ready.as_ref().map(|clip| clip.id), Some(best));
        assert_eq!(section.high_score[0].unused_platforms, ["instagram", "tiktok", "youtube"]);
        assert_eq!(section.low_score.iter().map(|clip| clip.visual_score).collect::<Vec<_>>(), [10.0, 39.0]);
        assert_eq!(section.low_score[0].unused_platforms, ["instagram", "youtube"]);
    })
    .await;
}

#[tokio::test]
async fn rows_of_other_programs_that_nobody_could_read_are_refused() {
    in_each_world(settings(), async |world| {
        let clip = world.clip(50.0).await;
        for sql in [
            "INSERT INTO campaigns (name, budget_cents) VALUES ('c', 9000000000000000000)".to_owned(),
            "INSERT INTO campaigns (name, budget_cents) VALUES ('c', 'lots')".to_owned(),
            "INSERT INTO jobs (kind, attempt) VALUES ('k', 9223372036854775807)".to_owned(),
            "INSERT INTO jobs (kind, lease) VALUES ('k', 9223372036854775807)".to_owned(),
            format!("INSERT INTO publish_logs (clip_id, platform, cost_cents) VALUES ({clip}, 'tiktok', 9000000000000000000)"),
            format!("INSERT INTO publish_logs (clip_id, platform, retry_count) VALUES ({clip}, 'tiktok', 9223372036854775807)"),
        ] {
            let mut tx = world.begin().await;
            let sql: &'static str = sql.leak();
            assert!(tx.query(sql).execute().await.is_err(), "{sql}");
        }
        if world.db.dialect() == crate::db::Dialect::Sqlite {
            // PostgreSQL has these rounded or refused by the columns' types.
            for sql in [
                "INSERT INTO campaigns (name, budget_cents) VALUES ('c', 10.5)",
                "INSERT INTO clips (title, media_uri, visual_score, priority) VALUES ('c', 'u', 5, 1.5)",
                "INSERT INTO clips (title, media_uri, visual_score) VALUES (x'ff', 'u', 5)",
                "UPDATE clips SET duration_ms = 'long'",
                "INSERT INTO jobs (kind, error) VALUES ('k', x'ff')",
            ] {
                assert!(world.begin().await.query(sql).execute().await.is_err(), "{sql}");
            }
        }
    })
    .await;
}
