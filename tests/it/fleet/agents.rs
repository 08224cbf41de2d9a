//! Agents come, go, flap, are drained, and have to be who they say.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use showrunner::actor::Role;
use showrunner::clock::Clock;
use showrunner::config::Token;
use showrunner::db::{Db, Options, Timestamp};
use showrunner::planes::fleet;

use super::{Socket, TOKEN, address, agent, agent_at, creeping, hello, pass, submit, take, until, until_agent, update};
use crate::on_both;

on_both! {
    async fn an_agent_that_comes_back_in_time_keeps_its_stream(world) {
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        take(&mut studio).await;
        until_agent(&world, "studio", "RUNNING").await;
        drop(studio);
        until(&world, &job, "UNKNOWN").await;
        until_agent(&world, "studio", "OFFLINE").await;
        assert_eq!(world.poke(&format!("/v1/jobs/{job}/mute")).await.0, 409, "nobody can be told");
        pass(&world, 20).await;
        let mut studio = agent_at(address(&world), "studio", 1, json!([{ "jobId": job, "lease": 1, "status": "RUNNING" }])).await;
        until(&world, &job, "RUNNING").await;
        pass(&world, 2).await;
        studio.say(json!({ "type": "agent.heartbeat", "payload": { "activeJobs": [job] } })).await;
        pass(&world, 9).await;
        assert_eq!(world.number("SELECT lease FROM stream_jobs").await, 1, "nobody else was given it");
        until(&world, &job, "RUNNING").await;
    }

    async fn one_that_comes_back_late_finds_its_stream_elsewhere_and_ends_its_own(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut first = agent(&world, "first", 1).await;
        let job = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        take(&mut first).await;
        until(&world, &job, "RUNNING").await;
        let mut second = agent(&world, "second", 1).await;
        drop(first);
        until(&world, &job, "UNKNOWN").await;
        pass(&world, 29).await;
        until(&world, &job, "UNKNOWN").await;
        pass(&world, 2).await;
        assert_eq!(take(&mut second).await, (job.clone(), 2));
        until(&world, &job, "RUNNING").await;
        // What the first one still says, changes nothing, whether it knows its lease or not.
        for active in [json!([{ "jobId": job, "lease": 1 }]), json!([job])] {
            let mut late = agent_at(address(&world), "first", 1, active).await;
            assert_eq!(late.hear("agent.job.kill").await["payload"]["jobId"], json!(job));
            late.say(update(&job, "FAILED")).await;
            late.say(json!({ "type": "agent.job.update", "payload": { "jobId": job, "status": "STOPPED", "lease": 1 } })).await;
        }
        until(&world, &job, "RUNNING").await;
        assert_eq!(world.text("SELECT agent_id FROM stream_jobs").await, "second");
    }

    async fn a_stream_that_nobody_restarts_ends_with_its_agent_and_one_that_was_to_stop_is_canceled(world) {
        world.start().await;
        let mut studio = agent(&world, "studio", 2).await;
        let (lost, unwanted) = (submit(&world, json!({})).await, submit(&world, json!({})).await);
        take(&mut studio).await;
        take(&mut studio).await;
        until(&world, &unwanted, "RUNNING").await;
        drop(studio);
        until(&world, &unwanted, "UNKNOWN").await;
        assert_eq!(world.poke(&format!("/v1/jobs/{unwanted}/stop")).await.0, 200);
        pass(&world, 31).await;
        until(&world, &lost, "FAILED").await;
        until(&world, &unwanted, "CANCELED").await;
        assert!(world.text("SELECT error FROM stream_jobs WHERE id = 1").await.contains("studio was lost"));
    }

    async fn what_was_only_offered_to_an_agent_that_is_lost_goes_to_another_whatever_its_policy(world) {
        world.start().await;
        let mut lost = agent(&world, "lost", 2).await;
        let (kept, unwanted) = (submit(&world, json!({ "restartPolicy": "never" })).await, submit(&world, json!({})).await);
        lost.hear("agent.assign").await;
        lost.hear("agent.assign").await;
        drop(lost);
        until_agent(&world, "lost", "OFFLINE").await;
        // It may have begun them: nobody else has them until it would have ended them.
        until(&world, &kept, "ASSIGNED").await;
        assert_eq!(world.poke(&format!("/v1/jobs/{unwanted}/stop")).await.0, 200);
        pass(&world, 28).await;
        until(&world, &kept, "ASSIGNED").await;
        until(&world, &unwanted, "ASSIGNED").await;
        pass(&world, 3).await;
        until(&world, &kept, "PENDING").await;
        until(&world, &unwanted, "CANCELED").await;
        assert_eq!(world.text("SELECT reason FROM stream_jobs WHERE id = 1").await, "agent lost was lost before it took it");
        let mut other = agent(&world, "other", 1).await;
        assert_eq!(take(&mut other).await, (kept.clone(), 2));
        until(&world, &kept, "RUNNING").await;
        // One that comes back in time is offered what is still its own again, under the same lease, and no more.
        let (still, gone) = (submit(&world, json!({ "prefers": ["lost"] })).await, submit(&world, json!({ "prefers": ["lost"] })).await);
        let mut lost = agent(&world, "lost", 2).await;
        lost.hear("agent.assign").await;
        lost.hear("agent.assign").await;
        drop(lost);
        until_agent(&world, "lost", "OFFLINE").await;
        assert_eq!(world.poke(&format!("/v1/jobs/{gone}/stop")).await.0, 200);
        let mut lost = agent(&world, "lost", 2).await;
        assert_eq!(take(&mut lost).await, (still.clone(), 1));
        until(&world, &still, "RUNNING").await;
        until(&world, &gone, "CANCELED").await;
    }

    async fn a_silent_agent_is_pinged_then_lost(world) {
        world.start().await;
        let mut quiet = agent(&world, "quiet", 1).await;
        // It answers pings while it is read from, and is alive by that alone.
        let reading = tokio::spawn(async move { quiet.closed().await });
        pass(&world, 15).await;
        until_agent(&world, "quiet", "IDLE").await;
        reading.abort();
        let mut mute = agent(&world, "mute", 1).await; // nobody reads from it, so nothing answers
        pass(&world, 14).await;
        until_agent(&world, "mute", "OFFLINE").await;
        let code = mute.closed().await;
        assert!([4410, 0].contains(&code), "{code}");
    }

    async fn a_drained_agent_gets_nothing_new_and_at_the_deadline_its_stream_moves(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut old = agent(&world, "old", 2).await;
        let job = submit(&world, json!({})).await;
        take(&mut old).await;
        until(&world, &job, "RUNNING").await;
        let (status, drained) = world.post("/v1/agents/old/drain", &json!({ "drain": true, "deadlineSeconds": 60 })).await;
        assert_eq!((status, &drained["drain"], &drained["state"]), (200, &json!(true), &json!("DRAINING")), "{drained}");
        assert_eq!(old.hear("agent.drain").await["payload"], json!({ "drain": true, "deadlineMs": 60_000 }));
        let second = submit(&world, json!({})).await;
        world.until("SELECT reason FROM stream_jobs WHERE id = 2", "no agent is connected and free to take jobs").await;
        let mut new = agent(&world, "new", 2).await;
        assert_eq!(take(&mut new).await.0, second);
        pass(&world, 59).await;
        until(&world, &job, "RUNNING").await;
        pass(&world, 2).await;
        old.hear("agent.job.stop").await;
        old.say(update(&job, "STOPPED")).await;
        pass(&world, 1).await;
        assert_eq!(take(&mut new).await, (job.clone(), 2), "also where its policy is never: somebody wanted it to go on");
        until_agent(&world, "old", "DRAINING").await;
        // What a person decided, the agent does not undo by coming back.
        drop(old);
        until_agent(&world, "old", "OFFLINE").await;
        let mut old = agent(&world, "old", 2).await;
        assert_eq!(old.hear("agent.drain").await["payload"]["drain"], true);
        until_agent(&world, "old", "DRAINING").await;
        // Somebody lets it work again while it is away: it would refuse everything if it were not told.
        drop(old);
        until_agent(&world, "old", "OFFLINE").await;
        assert_eq!(world.post("/v1/agents/old/drain", &json!({ "drain": false })).await.1["state"], "OFFLINE");
        let mut old = agent(&world, "old", 2).await;
        assert_eq!(old.hear("agent.drain").await["payload"]["drain"], false);
        until_agent(&world, "old", "IDLE").await;
        assert_eq!(world.ledger("fleet.agent_").await.len(), 2);
    }

    async fn what_comes_to_run_only_after_the_deadline_of_a_drain_moves_too(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut old = agent(&world, "old", 1).await;
        let job = submit(&world, json!({})).await;
        let offer = old.hear("agent.assign").await;
        let drain = json!({ "drain": true, "deadlineSeconds": 1 });
        assert_eq!(world.post("/v1/agents/old/drain", &drain).await.0, 200);
        pass(&world, 3).await;
        until(&world, &job, "ASSIGNED").await;
        old.say(json!({ "type": "agent.assign.ack", "correlationId": offer["msgId"], "payload": { "jobId": job, "accepted": true } })).await;
        old.say(update(&job, "RUNNING")).await;
        creeping(&world, old.hear("agent.job.stop")).await;
        assert_eq!(world.number("SELECT COUNT(*) FROM agents WHERE drain_deadline_at IS NOT NULL").await, 0);
    }

    async fn an_agent_on_which_nothing_starts_rests(world) {
        world.config.fleet.heartbeat_timeout_ms = 600_000;
        world.start().await;
        let mut broken = agent(&world, "broken", 1).await;
        let fail = async |broken: &mut Socket| {
            let offer = broken.hear("agent.assign").await["payload"].clone();
            broken.say(json!({ "type": "agent.assign.ack", "payload": { "jobId": offer["jobId"], "accepted": true } })).await;
            broken.say(json!({ "type": "agent.job.update", "payload": { "jobId": offer["jobId"], "lease": offer["lease"], "status": "FAILED" } })).await;
        };
        // One job that fails again and again may itself be at fault.
        let again = submit(&world, json!({ "restartPolicy": "onFailure" })).await;
        for lease in 1..=4 {
            fail(&mut broken).await;
            world.until("SELECT restarts FROM stream_jobs", &lease.to_string()).await;
            until_agent(&world, "broken", "IDLE").await;
            pass(&world, 10).await;
        }
        fail(&mut broken).await;
        world.until("SELECT restarts FROM stream_jobs", "5").await;
        assert_eq!(world.poke(&format!("/v1/jobs/{again}/stop")).await.0, 200);
        for _ in 0..2 {
            submit(&world, json!({})).await;
            fail(&mut broken).await;
        }
        until_agent(&world, "broken", "ERROR").await;
        submit(&world, json!({})).await;
        world.until("SELECT reason FROM stream_jobs WHERE id = 4", "no agent is connected and free to take jobs").await;
        pass(&world, 60).await;
        until_agent(&world, "broken", "RESERVED").await;
        broken.hear("agent.assign").await;
    }

    async fn nobody_comes_in_without_a_token_and_a_revoked_one_is_cut_off_at_once(world) {
        world.start().await;
        let stranger = async |message: Value| {
            let mut socket = Socket::open(address(&world), "/agent").await;
            socket.say(message).await;
            socket.closed().await
        };
        assert_eq!(stranger(hello("studio", 1, json!([]), "wrong")).await, 4401);
        assert_eq!(stranger(json!({ "type": "agent.heartbeat" })).await, 1008);
        assert_eq!(stranger(hello("", 1, json!([]), TOKEN)).await, 1008);
        assert_eq!(world.number("SELECT COUNT(*) FROM agents").await, 0);

        let make = async || {
            let (status, made) = world.post("/v1/agents/studio/tokens", &json!({})).await;
            assert_eq!(status, 201, "{made}");
            (made["id"].as_i64().expect("an id"), made["token"].as_str().expect("a token").to_owned())
        };
        let (first_id, first) = make().await;
        assert_eq!(world.number("SELECT COUNT(*) FROM agent_tokens WHERE hash LIKE 'sra_%'").await, 0, "only hashes are kept");
        assert_eq!(stranger(hello("studio", 1, json!([]), TOKEN)).await, 4401, "it has a token of its own now");
        assert_eq!(stranger(hello("other", 1, json!([]), &first)).await, 4401, "and that is only its own");
        let mut studio = Socket::open(address(&world), "/agent").await;
        studio.say(hello("studio", 1, json!([]), &first)).await;
        studio.hear("agent.hello.ack").await;
        // Rotation: a new token on the open connection, and the old one may go.
        let (second_id, second) = make().await;
        let mut again = hello("studio", 1, json!([]), &second);
        again["msgId"] = json!("rotated");
        studio.say(again).await;
        assert_eq!(studio.hear("agent.hello.ack").await["correlationId"], "rotated");
        let revoke = async |id: i64| {
            let url = format!("http://{}/v1/agents/studio/tokens/{id}", address(&world));
            reqwest::Client::new().delete(url).send().await.expect("an answer").status().as_u16()
        };
        assert_eq!(revoke(first_id).await, 200);
        studio.say(json!({ "type": "agent.sing" })).await;
        studio.hear("error").await; // it is still there
        assert_eq!(revoke(second_id).await, 200);
        assert_eq!(studio.closed().await, 4401);
        until_agent(&world, "studio", "OFFLINE").await;
        assert_eq!(stranger(hello("studio", 1, json!([]), &second)).await, 4401);
        assert_eq!(revoke(77).await, 404);
    }

    async fn the_token_that_everybody_knows_opens_nothing_where_tokens_are_set(world) {
        // On loopback all the same: a proxy on this machine would bring strangers in.
        world.config.auth.tokens = vec![Token { name: "ann".to_owned(), role: Role::Admin, token: "admin-0123456789abcdef".into() }];
        world.start().await;
        let mut stranger = Socket::open(address(&world), "/agent").await;
        stranger.say(hello("studio", 1, json!([]), TOKEN)).await;
        let (code, reason) = stranger.closed_because().await;
        assert_eq!(code, 4401);
        assert!(reason.contains("no AGENT_TOKEN is set"), "{reason}");
        assert_eq!(world.number("SELECT COUNT(*) FROM agents").await, 0);
        world.stop().await;
        world.config.fleet.agent_token = "the-agents-own-token".into();
        world.start().await;
        let mut studio = Socket::open(address(&world), "/agent").await;
        studio.say(hello("studio", 1, json!([]), "the-agents-own-token")).await;
        studio.hear("agent.hello.ack").await;
    }

    async fn an_agent_that_was_forgotten_and_comes_back_is_given_jobs(world) {
        world.start().await;
        for _ in 0..3 { // its row has a past
            drop(agent(&world, "studio", 1).await);
            until_agent(&world, "studio", "OFFLINE").await;
        }
        let db = Db::open(&Options::new(world.url()), world.clock.clone()).await.expect("the database");
        let forget = async |before: DateTime<Utc>| {
            let mut tx = db.begin().await.expect("a transaction");
            let gone = fleet::forget(&mut tx, Timestamp::new(before)).await.expect("it is forgotten");
            tx.commit().await.expect("a commit");
            gone
        };
        let now = world.clock.now();
        assert_eq!(forget(now - TimeDelta::days(1)).await, 0, "it was there today");
        let there = agent(&world, "there", 1).await;
        assert_eq!(forget(now + TimeDelta::days(1)).await, 1);
        assert_eq!(world.text("SELECT id FROM agents").await, "there", "who is connected is never forgotten");
        db.close().await;
        drop(there);
        until_agent(&world, "there", "OFFLINE").await;
        let mut studio = agent(&world, "studio", 1).await;
        let job = submit(&world, json!({})).await;
        assert_eq!(take(&mut studio).await, (job.clone(), 1));
        until(&world, &job, "RUNNING").await;
    }

    async fn two_agents_of_one_name_are_survived(world) {
        world.start().await;
        let mut old = agent(&world, "twin", 1).await;
        let job = submit(&world, json!({})).await;
        take(&mut old).await;
        until(&world, &job, "RUNNING").await;
        let mut new = agent_at(address(&world), "twin", 1, json!([job])).await;
        assert_eq!(old.closed().await, 4409);
        until(&world, &job, "RUNNING").await;
        assert_eq!(world.text("SELECT state FROM agents").await, "RUNNING", "the end of the old connection is not the agent's");
        drop(new);
        until_agent(&world, "twin", "OFFLINE").await;
        let mut large = agent(&world, "large", 1).await;
        large.say_text(&format!(r#"{{"type":"agent.heartbeat","x":"{}"}}"#, "x".repeat(70_000))).await;
        let code = large.closed().await;
        assert!([1008, 1009, 0].contains(&code), "{code}");
        until_agent(&world, "large", "OFFLINE").await;
    }
}
