//! Several instances, and restarts of one.

use serde_json::json;
use showrunner::app::Mode;

use super::{Socket, address, agent, agent_at, creeping, pass, submit, take, until, until_agent, update};
use crate::on_both;
use crate::support::World;
use crate::support::faults::Failing;

/// Until this instance has watched the others for longer than they may be silent, and gives up the agents of those that
/// are; time moves as for agents whose instances give signs of life.
async fn watch(world: &World) {
    if !world.is_sqlite() {
        pass(world, 34).await; // on a file nobody else can be there
    }
}

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
        world.config.fleet.heartbeat_timeout_ms = 30_000;
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "always" })).await;
        take(&mut studio).await;
        until(&world, &job, "RUNNING").await;
        world.stop().await;
        world.sql("UPDATE stream_jobs SET status = 'RUNNING', due_at = NULL, lease = 1").await;
        world.sql("UPDATE agents SET state = 'RUNNING', instance = 'gone', connection = 7").await;
        world.start().await;
        watch(&world).await;
        until_agent(&world, "studio", "OFFLINE").await;
        until(&world, &job, "UNKNOWN").await;
        let _studio = agent_at(address(&world), "studio", 1, json!([{ "jobId": job, "lease": 1 }])).await;
        until(&world, &job, "RUNNING").await;
    }

    async fn the_first_agent_of_an_instance_is_never_taken_for_lost(world) {
        if world.is_sqlite() {
            return world.end().await; // one process serves a file
        }
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let other = world.instance(Mode::Serve, 2, None).await;
        // Time stands still: neither gives another sign of life by itself.
        world.until("SELECT COUNT(*) FROM fleet_instances", "2").await;
        world.sql("DELETE FROM fleet_instances").await;
        let mut studio = agent_at(other.address().expect("an address"), "studio", 1, json!([])).await;
        let alive = "SELECT COUNT(*) FROM agents JOIN fleet_instances ON fleet_instances.id = agents.instance";
        assert_eq!(world.number(alive).await, 1, "its instance is known to live no later than the agent");
        let job = submit(&world, json!({})).await;
        creeping(&world, take(&mut studio)).await;
        pass(&world, 10).await;
        until(&world, &job, "RUNNING").await;
        assert_eq!(world.number("SELECT drops FROM agents").await, 0);
        other.stop().await;
    }

    async fn an_agent_that_was_wrongly_given_up_is_sent_back_and_keeps_its_stream(world) {
        world.config.fleet.heartbeat_timeout_ms = 30_000;
        world.start().await;
        watch(&world).await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        take(&mut studio).await;
        until_agent(&world, "studio", "RUNNING").await;
        // As if its instance had given no sign of life: somebody takes it for lost, and its connection stands.
        world.sql("UPDATE agents SET instance = 'stalled'").await;
        until_agent(&world, "studio", "OFFLINE").await;
        until(&world, &job, "UNKNOWN").await;
        // What it says meanwhile does not have its stream run on an agent that is away.
        studio.say(update(&job, "RUNNING")).await;
        studio.say(json!({ "type": "agent.heartbeat", "payload": { "activeJobs": [job] } })).await;
        studio.say(json!({ "type": "agent.sing" })).await;
        studio.hear("error").await; // all of that has been passed on by now, and is written down before the next hello
        let _later = agent(&world, "later", 1).await;
        assert_eq!(world.text("SELECT status FROM stream_jobs WHERE due_at IS NOT NULL").await, "UNKNOWN");
        assert_eq!(creeping(&world, studio.closed()).await, 4410);
        let _studio = agent_at(address(&world), "studio", 1, json!([{ "jobId": job, "lease": 1 }])).await;
        until(&world, &job, "RUNNING").await;
        until_agent(&world, "studio", "RUNNING").await;
        assert_eq!(world.number("SELECT lease FROM stream_jobs").await, 1);
    }

    async fn an_instance_that_cannot_say_that_it_lives_lets_its_agents_go(world) {
        if world.is_sqlite() {
            return world.end().await; // one process serves a file
        }
        world.config.fleet.heartbeat_timeout_ms = 30_000;
        world.start().await;
        let database = Failing::none();
        let other = world.instance(Mode::Serve, 2, Some(database.clone())).await;
        let mut studio = agent_at(other.address().expect("an address"), "studio", 1, json!([])).await;
        // They know of each other; what is answered meanwhile keeps the agent heard.
        let apart = async {
            pass(&world, 5).await;
            database.set(Some("INSERT INTO fleet_instances"));
            pass(&world, 36).await;
        };
        let (told, ()) = tokio::join!(studio.closed_because(), apart);
        assert_eq!(told, (4410, "this instance cannot reach its database".to_owned()));
        database.set(None);
        until_agent(&world, "studio", "OFFLINE").await;
        other.stop().await;
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
