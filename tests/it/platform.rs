//! The fourteen points that the autonomous loop was first specified by, one story each.

use serde_json::json;

use crate::on_both;
use crate::support::world::{EVENING, list, planned, proposed};

on_both! {
    async fn monitor_detects_pending_jobs(world) {
        world.start_still().await;
        world.pending_jobs(3, 7).await;
        let snapshot = world.snapshot().await;
        assert_eq!(snapshot["jobs"]["pending"], 3);
        assert_eq!(snapshot["jobs"]["oldest_pending_minutes"], 7);
        assert_eq!(snapshot["jobs"]["queue_saturated"], false);
    }

    async fn monitor_detects_publishing_failures(world) {
        world.start_still().await;
        let clip = world.clip(50.0, None).await;
        let log = world.failed_log(clip, "tiktok", 5).await;
        let logs = &world.snapshot().await["publish_logs"];
        assert_eq!((&logs["failed"], &logs["recent_failures_1h"]), (&json!(1), &json!(1)));
        assert_eq!((&logs["retryable"][0]["id"], &logs["retryable_count"]), (&json!(log), &json!(1)));
        assert_eq!(logs["retryable"][0]["last_error"], "refused");
    }

    async fn monitor_detects_high_score_clips(world) {
        world.start_still().await;
        let best = world.clip(95.0, None).await;
        let good = world.clip(81.0, None).await;
        world.clip(80.0, None).await;
        let clips = &world.snapshot().await["clips"];
        assert_eq!((&clips["recent_24h"], &clips["high_score_count"]), (&json!(3), &json!(2)));
        let ids: Vec<_> = list(&clips["high_score"]).iter().map(|clip| clip["id"].clone()).collect();
        assert_eq!(ids, [json!(best), json!(good)]);
        assert_eq!(clips["high_score"][0]["unused_platforms"], json!(["instagram", "tiktok", "youtube"]));
        assert!((clips["avg_visual_score"].as_f64().expect("a mean") - 256.0 / 3.0).abs() < 0.01);
    }

    async fn monitor_detects_active_campaigns(world) {
        world.start_still().await;
        let campaign = world.campaign(25_000).await;
        world.sql("INSERT INTO campaigns (name, budget_cents) VALUES ('a draft', 99)").await;
        let clip = world.clip(60.0, Some(campaign)).await;
        let campaigns = &world.snapshot().await["campaigns"];
        assert_eq!((&campaigns["active"], &campaigns["budget_total_cents"]), (&json!(1), &json!(25_000)));
        let top = &campaigns["top"][0];
        assert_eq!((&top["id"], &top["ready_clips"], &top["best_clip_id"]), (&json!(campaign), &json!(1), &json!(clip)));
    }

    async fn monitor_detects_ledger_errors(world) {
        world.start_still().await;
        world.ledger_errors(2).await;
        let ledger = &world.snapshot().await["ledger"];
        assert_eq!(ledger["errors_1h"], 2);
        assert_eq!(ledger["recent_errors"][0]["event_type"], "test.error");
    }

    async fn decider_suggests_retry_for_failures(world) {
        world.start_still().await;
        let clip = world.clip(50.0, None).await;
        let log = world.failed_log(clip, "tiktok", 5).await;
        let result = world.run_once().await;
        let retry = planned(&result, "retry_failed_log");
        assert_eq!((retry.len(), &retry[0]["log_id"], &retry[0]["priority"]), (1, &json!(log), &json!(8)));
    }

    async fn decider_suggests_promoting_high_score_clips(world) {
        world.set_time(EVENING);
        world.start_still().await;
        let clip = world.clip(91.0, None).await;
        let result = world.run_once().await;
        let promote = planned(&result, "promote_high_score_clip");
        assert_eq!((promote.len(), &promote[0]["clip_id"], &promote[0]["priority"]), (1, &json!(clip), &json!(7)));
    }

    async fn decider_suggests_rebalance_for_saturation(world) {
        world.start_still().await;
        world.pending_jobs(51, 1).await;
        let result = world.run_once().await;
        let rebalance = planned(&result, "rebalance_queue");
        assert_eq!((rebalance.len(), &rebalance[0]["priority"]), (1, &json!(9)));
        assert_eq!(rebalance[0]["emergency"], false);
    }

    async fn executor_retries_failed_logs(world) {
        world.start_still().await;
        let clip = world.clip(50.0, None).await;
        let log = world.failed_log(clip, "tiktok", 5).await;
        let result = world.run_once().await;
        assert_eq!(result["execution"]["results"][0]["outcome"], "executed");
        assert_eq!(world.text(&format!("SELECT status FROM publish_logs WHERE id = {log}")).await, "scheduled");
        assert_eq!(world.number(&format!("SELECT retry_count FROM publish_logs WHERE id = {log}")).await, 1);
        let executed = format!(
            "SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.action_executed' AND subject = 'publish_log:{log}'"
        );
        assert_eq!(world.number(&executed).await, 1);
    }

    async fn decision_summary_generation(world) {
        world.start_still().await;
        world.pending_jobs(51, 1).await;
        let decision = &world.run_once().await["decision"];
        assert_eq!((&decision["summary"]["proposed"], &decision["summary"]["planned"]), (&json!(1), &json!(1)));
        assert_eq!(decision["actions"][0]["rules"], json!(["queue_saturated"]));
        assert_eq!(decision["proposals"][0]["fate"], "planned");
        assert!(decision["actions"][0]["reason"].as_str().expect("a reason").contains("51"));
    }

    async fn full_orchestrator_cycle_integration(world) {
        world.start_still().await;
        world.pending_jobs(51, 1).await;
        let result = world.run_once().await;
        assert_eq!((&result["execution"]["total"], &result["execution"]["succeeded"]), (&json!(1), &json!(1)));
        let audit = "SELECT * FROM ledger_entries WHERE event_type LIKE 'orchestrator%' ORDER BY created_at DESC LIMIT 100";
        assert!(world.number(&format!("SELECT COUNT(*) FROM ({audit}) AS audit")).await >= 3);
        let cycle = result["cycle_id"].as_i64().expect("a cycle");
        let (_, entries) = world.get(&format!("/v1/ledger?cycle_id={cycle}")).await;
        let mut events: Vec<_> = list(&entries["items"]).iter().map(|entry| entry["event_type"].as_str().expect("a type")).collect();
        events.retain(|event| event.starts_with("orchestrator.cycle") || event.starts_with("orchestrator.action"));
        assert_eq!(events, ["orchestrator.cycle_completed", "orchestrator.action_executed", "orchestrator.cycle_started"]);
        assert_eq!(world.text(&format!("SELECT status FROM cycles WHERE id = {cycle}")).await, "completed");
    }

    async fn health_score_calculation(world) {
        world.start_still().await;
        let health = async |world: &crate::support::World| world.snapshot().await["system"]["health_score"].clone();
        assert_eq!(health(&world).await, 100);
        world.pending_jobs(50, 30).await;
        assert_eq!(health(&world).await, 100, "50 pending and 30 minutes are still fine");
        world.pending_jobs(1, 0).await;
        assert_eq!(health(&world).await, 80, "more than 50 pending");
        world.pending_jobs(1, 31).await;
        assert_eq!(health(&world).await, 65, "and one of them for over 30 minutes");
        let clip = world.clip(50.0, None).await;
        world.failed_log(clip, "tiktok", 5).await;
        assert_eq!(health(&world).await, 55, "and a publication failed");
        world.ledger_errors(2).await;
        let system = &world.snapshot().await["system"];
        assert_eq!((&system["health_score"], &system["status"]), (&json!(45), &json!("critical")));
        assert_eq!(list(&system["deductions"]).iter().map(|d| d["points"].as_i64().expect("points")).sum::<i64>(), 55);
    }

    async fn campaign_prioritization(world) {
        world.set_time(EVENING);
        world.start_still().await;
        let campaign = world.campaign(10_001).await;
        let funded = world.clip(60.0, Some(campaign)).await;
        let better = world.clip(95.0, None).await;
        let result = world.run_once().await;
        assert!(proposed(&result, "promote_high_score"));
        let first = &result["decision"]["actions"][0];
        assert_eq!((&first["action"], &first["clip_id"], &first["priority"]), (&json!("schedule_clip"), &json!(funded), &json!(9)));
        assert_eq!(planned(&result, "promote_high_score_clip")[0]["clip_id"], json!(better));
    }

    async fn empty_database_handling(world) {
        world.start_still().await;
        let result = world.run_once().await;
        assert_eq!((&result["snapshot"]["system"]["health_score"], &result["snapshot"]["system"]["status"]), (&json!(100), &json!("healthy")));
        assert_eq!((&result["decision"]["actions"], &result["execution"]["total"]), (&json!([]), &json!(0)));
        assert_eq!(world.number("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.cycle_idle'").await, 1);
    }
}
