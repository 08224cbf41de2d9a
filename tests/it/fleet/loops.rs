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
        assert_eq!(cycle["execution"]["succeeded"], 1, "{cycle}");
        let stop = studio.hear("agent.job.stop").await;
        assert_eq!(stop["payload"]["jobId"], json!(job));
        studio.say(update(&job, "STOPPED")).await;
        assert_eq!(take(&mut studio).await.0, job, "it is older than the one that waits");
        until(&world, &job, "RUNNING").await;
        until(&world, &waiting, "PENDING").await;
        let entry = &world.ledger("orchestrator.action_executed").await[0];
        assert_eq!((&entry["subject"], &entry["payload"]["action"]["action"]), (&json!(format!("stream:{job}")), &json!("restart_stream")));
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
