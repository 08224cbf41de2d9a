//! The ten default rules: each fires at its threshold and not just below it.

use crate::on_both;
use crate::support::World;
use crate::support::world::{EVENING, planned, proposed};

/// Whether `rule` proposes something in a cycle run now.
async fn fires(world: &World, rule: &str) -> bool {
    proposed(&world.run_once().await, rule)
}

on_both! {
    async fn a_saturated_queue_is_rebalanced(world) {
        world.start_still().await;
        world.pending_jobs(50, 1).await;
        assert!(!fires(&world, "queue_saturated").await);
        world.pending_jobs(1, 1).await;
        assert!(fires(&world, "queue_saturated").await);
    }

    async fn a_publication_that_is_stuck_is_forced_out(world) {
        world.start_still().await;
        let clip = world.clip(50.0, None).await;
        let at = world.ago(60);
        world.sql(&format!("INSERT INTO publish_logs (clip_id, platform, created_at) VALUES ({clip}, 'tiktok', {at})")).await;
        assert!(!fires(&world, "stuck_publications").await);
        world.clock.advance(std::time::Duration::from_secs(60));
        let result = world.run_once().await;
        assert_eq!(planned(&result, "force_publish").len(), 1);
        assert_eq!(result["execution"]["succeeded"], 1);
        assert_eq!(world.number("SELECT priority FROM publish_logs").await, 100);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE kind = 'publish' AND status = 'pending'").await, 1);
    }

    async fn recent_failures_are_retried(world) {
        world.start_still().await;
        let clip = world.clip(50.0, None).await;
        world.failed_log(clip, "tiktok", 61).await;
        assert!(!fires(&world, "recent_failures").await);
        world.failed_log(clip, "youtube", 59).await;
        assert!(fires(&world, "recent_failures").await);
    }

    async fn a_high_score_is_promoted_while_a_window_is_open(world) {
        world.start_still().await;
        world.clip(81.0, None).await;
        assert!(!fires(&world, "promote_high_score").await, "every window is closed at noon");
        world.set_time(EVENING);
        world.sql("UPDATE clips SET visual_score = 80").await;
        assert!(!fires(&world, "promote_high_score").await, "80 is not above 80");
        world.sql("UPDATE clips SET visual_score = 80.5").await;
        let result = world.run_once().await;
        assert!(proposed(&result, "promote_high_score"));
        assert_eq!(result["execution"]["succeeded"], 1);
        assert_eq!(world.text("SELECT status FROM clips").await, "scheduled");
        assert_eq!(world.text("SELECT platform FROM publish_logs").await, "youtube", "its window closes first");
    }

    async fn accumulated_high_scores_are_scheduled(world) {
        world.start_still().await;
        for _ in 0..3 {
            world.clip(90.0, None).await;
        }
        assert!(!fires(&world, "schedule_accumulated_clips").await);
        world.clip(85.0, None).await;
        let result = world.run_once().await;
        assert!(proposed(&result, "schedule_accumulated_clips"));
        assert!(!planned(&result, "schedule_clip").is_empty());
        assert_eq!(world.text("SELECT MIN(platform) FROM publish_logs").await, "tiktok", "its window opens first");
        assert_eq!(world.number("SELECT COUNT(*) FROM publish_logs WHERE status = 'scheduled'").await, planned(&result, "schedule_clip").len() as i64);
    }

    async fn many_ledger_errors_start_a_reconciliation(world) {
        world.start_still().await;
        world.ledger_errors(5).await;
        assert!(!fires(&world, "high_error_rate").await);
        world.ledger_errors(1).await;
        assert!(fires(&world, "high_error_rate").await);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE kind = 'reconcile' AND status = 'pending'").await, 1);
    }

    async fn critical_health_is_an_emergency(world) {
        world.start_still().await;
        world.ledger_errors(10).await;
        assert!(!fires(&world, "critical_health").await, "50 is degraded");
        world.pending_jobs(1, 121).await;
        let result = world.run_once().await;
        assert!(proposed(&result, "critical_health"), "35 is critical");
        let emergency = planned(&result, "rebalance_queue");
        assert_eq!((emergency[0]["emergency"].as_bool(), emergency[0]["priority"].as_i64()), (Some(true), Some(10)));
        assert_eq!(world.text("SELECT status FROM jobs WHERE kind = 'render'").await, "failed");
    }

    async fn a_funded_campaign_comes_first(world) {
        world.start_still().await;
        let campaign = world.campaign(10_000).await;
        world.clip(50.0, Some(campaign)).await;
        assert!(!fires(&world, "funded_campaign").await, "$100 is not more than $100");
        world.sql("UPDATE campaigns SET budget_cents = 10001").await;
        let result = world.run_once().await;
        assert!(proposed(&result, "funded_campaign"));
        assert_eq!(planned(&result, "schedule_clip")[0]["priority"], 9);
    }

    async fn a_closing_window_is_used(world) {
        world.set_time("2026-11-20T20:59:00Z");
        world.start_still().await;
        world.clip(50.0, None).await;
        assert!(!fires(&world, "window_closing").await, "youtube closes in 61 minutes");
        world.set_time("2026-11-20T21:01:00Z");
        let result = world.run_once().await;
        assert!(proposed(&result, "window_closing"), "youtube closes in 59 minutes");
        assert_eq!(result["execution"]["succeeded"], 1);
        assert_eq!(world.text("SELECT platform FROM publish_logs").await, "youtube");
    }

    async fn a_trend_of_low_quality_is_put_off(world) {
        world.start_still().await;
        let clip = world.clip(39.0, None).await;
        let at = world.ago(-60);
        world.sql(&format!(
            "INSERT INTO publish_logs (clip_id, platform, status, scheduled_at) VALUES ({clip}, 'tiktok', 'scheduled', {at})"
        )).await;
        world.clip(41.0, None).await;
        assert!(!fires(&world, "low_quality_trend").await, "a mean of 40 is not below 40");
        world.sql("UPDATE clips SET visual_score = 40 WHERE visual_score = 41").await;
        let before = world.text("SELECT scheduled_at FROM publish_logs").await;
        let result = world.run_once().await;
        assert!(proposed(&result, "low_quality_trend"));
        assert_eq!(planned(&result, "downgrade_low_score_clip")[0]["priority"], 3);
        assert_ne!(world.text("SELECT scheduled_at FROM publish_logs").await, before);
        assert_eq!(world.number("SELECT postponed_count FROM publish_logs").await, 1);
    }
}
