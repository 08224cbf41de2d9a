//! UI clients: the state, changes, gaps, filters, tokens.

use serde_json::{Value, json};
use showrunner::actor::Role;
use showrunner::config::Token;

use super::{Socket, address, agent, submit, take, until, update};
use crate::on_both;

/// Everything up to `ui.ready`, and that.
async fn state(ui: &mut Socket) -> (Vec<Value>, Value) {
    let mut told = Vec::new();
    loop {
        let message = ui.next().await.expect("the state");
        if message["type"] == "ui.ready" {
            return (told, message);
        }
        told.push(message);
    }
}

on_both! {
    async fn a_watcher_gets_the_state_then_changes_and_goes_on_after_a_gap(world) {
        world.start().await;
        let mut studio = agent(&world, "studio", 2).await;
        let job = submit(&world, json!({})).await;
        take(&mut studio).await;
        until(&world, &job, "RUNNING").await;
        let mut ui = Socket::open(address(&world), "/ui").await;
        let mut last = 0;
        loop {
            let message = ui.next().await.expect("a message");
            let seq = message["seq"].as_i64().expect("a number");
            assert!(seq >= last, "{seq} after {last}");
            last = seq;
            if message["type"] == "ui.job.update" && message["payload"]["status"] == "RUNNING" {
                assert_eq!((&message["payload"]["id"], &message["payload"]["agentId"]), (&json!(job), &json!("studio")));
                assert!(message["payload"]["startedAt"].is_string() && message["payload"].get("config").is_none(), "{message}");
                break;
            }
        }
        studio.say(update(&job, "STOPPED")).await;
        loop {
            let change = ui.hear("ui.job.update").await;
            last = change["seq"].as_i64().expect("a number");
            if change["payload"]["status"] == "STOPPED" {
                break;
            }
        }
        drop(ui);
        // What happened meanwhile is told, and no more.
        let second = submit(&world, json!({})).await;
        take(&mut studio).await;
        until(&world, &second, "RUNNING").await;
        let mut ui = Socket::open(address(&world), &format!("/ui?since={last}&topics=jobs")).await;
        let (told, ready) = state(&mut ui).await;
        assert_eq!(ready["payload"]["resumed"], true);
        assert!(told.iter().all(|message| message["type"] == "ui.job.update" && message["payload"]["id"] == json!(second)), "{told:?}");
        // One that never was begins anew.
        let mut ui = Socket::open(address(&world), "/ui?since=999999").await;
        let (told, ready) = state(&mut ui).await;
        assert_eq!((&ready["payload"]["resumed"], told.len()), (&json!(false), 3), "an agent and two jobs: {told:?}");
    }

    async fn a_watcher_gets_what_it_asks_for(world) {
        world.start().await;
        let mut studio = agent(&world, "studio", 1).await;
        let _other = agent(&world, "other", 1).await;
        let job = submit(&world, json!({ "prefers": ["studio"] })).await;
        take(&mut studio).await;
        until(&world, &job, "RUNNING").await;
        let mut ui = Socket::open(address(&world), "/ui?agents=studio").await;
        let (told, _) = state(&mut ui).await;
        let mut kinds: Vec<(String, String)> = told.iter().map(|m| (m["type"].to_string(), m["payload"]["id"].to_string())).collect();
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds, [("\"ui.agent.update\"".to_owned(), "\"studio\"".to_owned()), ("\"ui.job.update\"".to_owned(), format!("\"{job}\""))]);
        ui.say(json!({ "type": "ui.subscribe", "msgId": "s-1", "payload": { "topics": ["agents"] } })).await;
        let (told, ready) = state(&mut ui).await;
        assert_eq!(ready["correlationId"], "s-1");
        assert!(told.iter().all(|message| message["type"] == "ui.agent.update"), "{told:?}");
        ui.say(json!({ "type": "ui.subscribe", "payload": { "topics": ["weather"] } })).await;
        assert_eq!(ui.hear("error").await["payload"]["code"], "refused");
        ui.say(json!({ "type": "ui.dance" })).await;
        assert_eq!(ui.hear("error").await["payload"]["code"], "unknown-type");
    }

    async fn who_watches_needs_a_token_where_there_are_some_and_a_viewers_suffices(world) {
        let token = "viewer-0123456789abcdef";
        world.config.auth.tokens = vec![Token { name: "eve".to_owned(), role: Role::Viewer, token: token.into() }];
        world.start().await;
        assert!(Socket::open_with(address(&world), "/ui", "showrunner").await.is_none());
        assert!(Socket::open_with(address(&world), "/ui", "showrunner, bearer.0123456789abcdef0123").await.is_none());
        assert!(Socket::open_with(address(&world), &format!("/ui?access_token={token}"), "showrunner").await.is_none());
        let mut ui = Socket::open_with(address(&world), "/ui", &format!("showrunner, bearer.{token}")).await.expect("it is let in");
        assert_eq!(state(&mut ui).await.1["payload"], json!({ "resumed": false, "agents": 0, "jobs": 0 }));
    }
}
