//! The loop and the fleet: what it sees, and what its rules do.

use std::time::Duration;

use serde_json::json;

use super::{agent, submit, take, until, until_agent, update};
use crate::on_both;
use crate::support::world::planned;

on_both! {
    async fn the_loop_begins_a_stream_again_that_stands_still(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({})).await;
        let waiting = submit(&world, json!({})).await;
        take(&mut studio).await;
        studio.say(json!({ "type": "agent.job.update", "payload": { "jobId": job, "progress": { "frames": 100, "positionMs": 4000 } } })).await;
        world.until("SELECT COUNT(*) FROM stream_jobs WHERE progressed_at IS NOT NULL", "1").await;
        let seen = world.snapshot().await;
        assert_eq!((&seen["agents"]["online"], &seen["agents"]["free_slots"], &seen["streams"]["running"], &seen["streams"]["waiting"]),
            (&json!(1), &json!(0), &json!(1), &json!(1)), "{seen}");
        assert_eq!(seen["system"]["health_score"], 95, "streams wait and no slot is free");
        world.clock.advance(Duration::from_secs(59));
        assert!(planned(&world.run_once().await, "restart_stream").is_empty());
        world.clock.advance(Duration::from_secs(1));
        let cycle = world.run_once().await;
        assert_eq!((planned(&cycle, "restart_stream").len(), &cycle["execution"]["failed"]), (1, &json!(0)), "{cycle}");
        let stop = studio.hear("agent.job.stop").await;
        assert_eq!(stop["payload"]["jobId"], json!(job));
        studio.say(update(&job, "STOPPED")).await;
        assert_eq!(take(&mut studio).await.0, job, "it is older than the one that waits");
        until(&world, &job, "RUNNING").await;
        until(&world, &waiting, "PENDING").await;
        let entries = world.ledger("orchestrator.action_executed").await;
        let entry = entries.iter().find(|entry| entry["payload"]["action"]["action"] == "restart_stream").expect("an entry");
        assert_eq!(entry["subject"], json!(format!("stream:{job}")));
    }

    async fn the_loop_tells_people_that_streams_wait_and_no_slot_is_free(world) {
        world.config.fleet.heartbeat_timeout_ms = 3_600_000;
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({})).await;
        take(&mut studio).await;
        until(&world, &job, "RUNNING").await;
        let waiting = submit(&world, json!({})).await;
        until(&world, &waiting, "PENDING").await;
        world.clock.advance(Duration::from_secs(59));
        assert!(planned(&world.run_once().await, "raise_alert").is_empty());
        world.clock.advance(Duration::from_secs(1));
        let cycle = world.run_once().await;
        assert_eq!((planned(&cycle, "raise_alert").len(), &cycle["execution"]["succeeded"]), (1, &json!(1)), "{cycle}");
        let text = "streams wait and no agent has a free slot: 1, the oldest for 1 minutes";
        let (_, told) = world.get("/v1/events?type=alert.raised").await;
        let told = &told["items"][0];
        assert_eq!((&told["severity"], &told["source"], &told["subject"]), (&json!("warning"), &json!("loop"), &json!("streams")), "{told}");
        assert_eq!(told["data"], json!({ "text": text, "rules": ["no_free_slot"] }));
        let entry = &world.ledger("orchestrator.action_executed").await[0];
        assert_eq!((&entry["subject"], &entry["payload"]["detail"]["text"]), (&json!("alert:streams"), &json!(text)));
        // The same again is not told before a while.
        world.clock.advance(Duration::from_secs(14 * 60));
        assert!(planned(&world.run_once().await, "raise_alert").is_empty());
        world.clock.advance(Duration::from_secs(61));
        assert_eq!(planned(&world.run_once().await, "raise_alert").len(), 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM events WHERE event_type = 'alert.raised'").await, 2);
    }

    async fn an_alert_that_names_nothing_is_refused_when_rules_load(world) {
        world.rules("story.rhai", "rule \"story\"\n priority 5\n then raise_alert()\n because \"the story asks\";\n");
        world.start_still().await;
        let (_, status) = world.get("/orchestrator/status").await;
        let rejected = status["rules"]["rejected_because"].to_string();
        assert!(rejected.contains("raise_alert is written raise_alert(subject)"), "{status}");
    }

    async fn the_loop_drains_an_agent_that_flaps_and_lets_it_work_again_when_it_is_calm(world) {
        world.config.fleet.heartbeat_timeout_ms = 3_600_000;
        world.start().await;
        let _steady = agent(&world, "steady", 1).await;
        for _ in 0..5 {
            drop(agent(&world, "flapper", 1).await);
            until_agent(&world, "flapper", "OFFLINE").await;
        }
        let _flapper = agent(&world, "flapper", 1).await;
        let cycle = world.run_once().await;
        assert_eq!(planned(&cycle, "drain_agent").len(), 1, "{cycle}");
        until_agent(&world, "flapper", "DRAINING").await;
        assert_eq!(world.text("SELECT drained_by FROM agents WHERE id = 'flapper'").await, "loop");
        world.clock.advance(Duration::from_secs(29 * 60));
        assert!(planned(&world.run_once().await, "undrain_agent").is_empty());
        world.clock.advance(Duration::from_secs(60));
        let cycle = world.run_once().await;
        assert_eq!(cycle["execution"]["succeeded"], 1, "{cycle}");
        until_agent(&world, "flapper", "IDLE").await;
    }

    async fn the_last_agent_is_not_drained(world) {
        world.start().await;
        for _ in 0..5 {
            drop(agent(&world, "only", 1).await);
            until_agent(&world, "only", "OFFLINE").await;
        }
        let _only = agent(&world, "only", 1).await;
        let cycle = world.run_once().await;
        assert_eq!((&cycle["execution"]["failed"], planned(&cycle, "drain_agent").len()), (&json!(1), 1), "{cycle}");
        until_agent(&world, "only", "IDLE").await;
    }
}
