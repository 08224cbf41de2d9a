//! Several instances, and restarts of one.

use serde_json::json;
use showrunner::app::Mode;

use super::{Socket, address, agent, agent_at, creeping, submit, take, until, until_agent, update};
use crate::on_both;

on_both! {
    async fn after_a_restart_agents_come_back_with_their_streams(world) {
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        take(&mut studio).await;
        until(&world, &job, "RUNNING").await;
        world.stop().await;
        assert_eq!(studio.closed().await, 1001);
        assert_eq!(world.text("SELECT state FROM agents").await, "OFFLINE");
        assert_eq!(world.text("SELECT status FROM stream_jobs").await, "UNKNOWN");
        world.start().await;
        let _studio = agent_at(address(&world), "studio", 1, json!([job])).await;
        until(&world, &job, "RUNNING").await;
        assert_eq!(world.number("SELECT lease FROM stream_jobs").await, 1);
    }

    async fn a_crash_leaves_agents_behind_that_are_given_time(world) {
        // As a process that was killed leaves its rows.
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "always" })).await;
        take(&mut studio).await;
        until(&world, &job, "RUNNING").await;
        world.stop().await;
        world.sql("UPDATE stream_jobs SET status = 'RUNNING', due_at = NULL, lease = 1").await;
        world.sql("UPDATE agents SET state = 'RUNNING', instance = 'gone', connection = 7").await;
        world.start().await;
        until_agent(&world, "studio", "OFFLINE").await;
        until(&world, &job, "UNKNOWN").await;
        let _studio = agent_at(address(&world), "studio", 1, json!([{ "jobId": job, "lease": 1 }])).await;
        until(&world, &job, "RUNNING").await;
    }

    async fn a_command_reaches_an_agent_of_another_instance(world) {
        if world.is_sqlite() {
            return world.end().await; // one process serves a file
        }
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let other = world.instance(Mode::Serve, 2, None).await;
        let there = other.address().expect("an address");
        let mut studio = agent_at(there, "studio", 1, json!([])).await;
        let mut ui = Socket::open(address(&world), "/ui?topics=agents").await;
        creeping(&world, ui.hear("ui.agent.update")).await; // of an agent that is connected elsewhere
        let job = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        creeping(&world, take(&mut studio)).await; // whichever instance placed it
        until(&world, &job, "RUNNING").await;
        assert_eq!(world.poke(&format!("/v1/jobs/{job}/mute")).await.0, 202);
        creeping(&world, studio.hear("agent.job.mute")).await;
        // The agent moves to this instance, and the other one closes what it has of it.
        let mut moved = agent_at(address(&world), "studio", 1, json!([job])).await;
        assert_eq!(creeping(&world, studio.closed()).await, 4409);
        until(&world, &job, "RUNNING").await;
        assert_eq!(world.poke(&format!("/v1/jobs/{job}/stop")).await.0, 200);
        creeping(&world, moved.hear("agent.job.stop")).await;
        moved.say(update(&job, "STOPPED")).await;
        until(&world, &job, "STOPPED").await;
        drop(moved);
        other.stop().await;
    }
}
