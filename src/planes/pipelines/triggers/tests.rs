//! Firing on a database: what was missed, stopped, refused or sent again, and what fails beside others.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Fired, Happened, NewTrigger, TriggerRow, get, put, set_active, store};
use crate::clock::ManualClock;
use crate::config;
use crate::planes::pipelines::tests::still_plane;
use crate::planes::pipelines::{Definition, Pipelines};

/// A plane at noon in which nothing moves by itself, with a pipeline that the database takes and one that it does not.
async fn plane() -> (Arc<Pipelines>, Arc<ManualClock>) {
    let clock = ManualClock::at("2026-11-20T12:00:00Z".parse().expect("a time"));
    let plane = still_plane(config::Pipelines::default(), clock.clone()).await;
    for id in ["good", "bad"] {
        let definition = Definition::parse("steps: [{id: a, eval: '1'}]").expect("readable");
        plane.register_workflow(id, definition).await.expect("registered");
    }
    let refuses = "CREATE TRIGGER refuses BEFORE INSERT ON pipeline_runs WHEN NEW.pipeline_id = 'bad'
         BEGIN SELECT RAISE(ABORT, 'the story refuses it'); END";
    plane.db.write(refuses).execute().await.expect("a trigger");
    (plane, clock)
}

async fn trigger(plane: &Pipelines, id: &str, new: Value) -> TriggerRow {
    let new: NewTrigger = serde_json::from_value(new).expect("a trigger");
    let mut tx = plane.db.begin().await.expect("a transaction");
    let due_at = new.when.trigger().due_after(tx.now().await.expect("a time"));
    put(&mut tx, id, &new, due_at).await.expect("put");
    tx.commit().await.expect("a commit");
    row(plane, id).await
}

async fn row(plane: &Pipelines, id: &str) -> TriggerRow {
    get(&plane.db, id).await.expect("an answer").expect("the trigger")
}

async fn runs(plane: &Pipelines) -> i64 {
    let (count,): (i64,) = plane.db.query("SELECT COUNT(*) FROM pipeline_runs").one().await.expect("an answer");
    count
}

fn happened(data: Value) -> Happened {
    let (event_type, subject) = ("clip.ready".to_owned(), "clip:7".to_owned());
    Happened { id: "event-1".to_owned(), event_type, subject, data }
}

#[tokio::test]
async fn of_what_was_missed_the_newest_is_made_up_for() {
    let (plane, clock) = plane().await;
    let when = json!({ "kind": "cron", "schedule": "*/30 * * * * *", "catch_up": 3 });
    trigger(&plane, "often", json!({ "pipeline": "good", "when": when })).await;
    clock.advance(Duration::from_secs(3 * 86_400 + 10));
    assert_eq!(plane.fire_due().await.expect("fired"), 3);
    let query = plane.db.query("SELECT occasion FROM trigger_firings ORDER BY occasion");
    let fired: Vec<(String,)> = query.all().await.expect("firings");
    let fired: Vec<&str> = fired.iter().map(|(at,)| at.as_str()).collect();
    assert_eq!(fired, ["2026-11-23T11:59:00.000Z", "2026-11-23T11:59:30.000Z", "2026-11-23T12:00:00.000Z"]);
    let next = row(&plane, "often").await.due_at.expect("a time");
    assert_eq!(next.to_string(), "2026-11-23T12:00:30.000Z");
    assert_eq!(plane.fire_due().await.expect("nothing is due"), 0);
}

#[tokio::test]
async fn a_schedule_that_cannot_be_fired_keeps_no_other() {
    let (plane, clock) = plane().await;
    let at = |pipeline: &str, second: u32| {
        let schedule = format!("{second} * * * * *");
        json!({ "pipeline": pipeline, "when": { "kind": "cron", "schedule": schedule } })
    };
    trigger(&plane, "broken", at("bad", 10)).await;
    trigger(&plane, "whole", at("good", 20)).await;
    clock.advance(Duration::from_secs(30));
    assert_eq!(plane.fire_due().await.expect("the other one"), 1);
    let broken = row(&plane, "broken").await;
    assert!(broken.error.is_some_and(|error| error.contains("the story refuses it")));
    assert_eq!(broken.due_at.expect("a time").to_string(), "2026-11-20T12:01:10.000Z");
    assert_eq!(row(&plane, "whole").await.error, None);
}

#[tokio::test]
async fn an_event_that_one_trigger_cannot_heed_fires_the_others() {
    let (plane, _clock) = plane().await;
    let on = |pipeline: &str, input: Value| {
        let when = json!({ "kind": "event", "event_type": "clip.*" });
        json!({ "pipeline": pipeline, "when": when, "input": input })
    };
    trigger(&plane, "a", on("bad", json!({}))).await;
    trigger(&plane, "b", on("good", json!({ "title": "${input.event.data.title}" }))).await;
    trigger(&plane, "c", on("good", json!({ "subject": "${input.event.subject}" }))).await;
    let rows = store::active(&plane.db, "event", 10).await.expect("triggers");
    let event = happened(json!({ "title": "a\0b" }));
    assert_eq!(plane.happened(rows.iter(), &event).await.expect("heeded"), 1);
    for (id, why) in [("a", "the story refuses it"), ("b", "NUL character")] {
        assert!(row(&plane, id).await.error.is_some_and(|error| error.contains(why)), "{id}");
    }
    assert_eq!((row(&plane, "c").await.error, runs(&plane).await), (None, 1));
}

#[tokio::test]
async fn a_trigger_that_was_stopped_meanwhile_does_not_fire() {
    let (plane, _clock) = plane().await;
    let seen = trigger(&plane, "hook", json!({ "pipeline": "good", "when": { "kind": "http" } })).await;
    let mut tx = plane.db.begin().await.expect("a transaction");
    set_active(&mut tx, "hook", false, None).await.expect("stopped");
    tx.commit().await.expect("a commit");
    assert_eq!(plane.fire(&seen, "m1", json!({})).await.expect("an answer"), Fired::Skipped);
    assert_eq!(runs(&plane).await, 0);
}

#[tokio::test]
async fn what_was_refused_may_be_sent_again() {
    let (plane, _clock) = plane().await;
    let strict = "inputs: {n: {type: integer}}\nsteps: [{id: a, eval: input.n}]";
    let strict = Definition::parse(strict).expect("readable");
    plane.register_workflow("strict", strict).await.expect("registered");
    let hook = json!({ "pipeline": "strict", "when": { "kind": "http" }, "overlap": "skip" });
    let hook = trigger(&plane, "hook", hook).await;
    let fire = async |occasion: &str, body: Value| plane.fire(&hook, occasion, body).await.expect("an answer");
    assert!(matches!(fire("m1", json!({ "n": "one" })).await, Fired::Refused(_)));
    let begun = fire("m1", json!({ "n": 1 })).await;
    assert!(matches!(begun, Fired::Run(_)), "{begun:?}");
    assert_eq!(fire("m1", json!({ "n": 1 })).await, begun, "the same message fires once");
    // What found a run open was heard, and stays skipped.
    assert_eq!(fire("m2", json!({ "n": 2 })).await, Fired::Skipped);
    assert_eq!(fire("m2", json!({ "n": 2 })).await, Fired::Skipped);
    assert_eq!((row(&plane, "hook").await.error, runs(&plane).await), (None, 1));
}
