//! What is asked of a run, whenever it is asked.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Engine, Worker};
use crate::clock::SystemClock;
use crate::config;
use crate::planes::pipelines::message::{Asked, Inbound};
use crate::planes::pipelines::store::{self, Hold, NewRun, Taker};
use crate::planes::pipelines::tests::still_plane;
use crate::planes::pipelines::{PipelineBuilder, Pipelines, Run, RunStatus, StepBuilder, steer};

/// A plane in which nothing moves yet, and a run that one of its engines has as far as the database knows.
async fn with_run() -> (Arc<Pipelines>, Hold) {
    let plane = still_plane(config::Pipelines::default(), SystemClock::shared()).await;
    let definition = PipelineBuilder::new("Nap").step(StepBuilder::sleep("nap", Duration::from_secs(3600))).build();
    plane.register_workflow("nap", definition).await.expect("registered");
    let taker = Taker { owner: &plane.instance, engine: "engine-1", lease: Duration::from_secs(60) };
    let input = json!({});
    let new =
        NewRun { pipeline: "nap", version: 1, input: &input, trigger_kind: "manual", trigger_id: None, parent: None };
    let run = store::begin_run(&plane.db, new, Some(taker), plane.now()).await.expect("a run");
    (plane, Hold { run, lease: 1 })
}

async fn ask(plane: &Pipelines, run: i64, what: &'static str) {
    let mut tx = plane.db.begin().await.expect("a transaction");
    store::request(&mut tx, run, what).await.expect("asked");
    tx.commit().await.expect("a commit");
}

async fn row(plane: &Pipelines, run: i64) -> Run {
    store::run(&plane.db, run).await.expect("an answer").expect("the run")
}

#[tokio::test]
async fn a_cancel_outlives_every_pause_and_comes_before_the_first_step() {
    let (plane, hold) = with_run().await;
    for what in ["pause", "cancel", "pause"] {
        ask(&plane, hold.run, what).await;
    }
    assert_eq!(row(&plane, hold.run).await.requested.as_deref(), Some("cancel"));
    // The engine heard of the pause only.
    assert!(store::release(&plane.db, hold, "paused", None).await.expect("released"));
    let mut tx = plane.db.begin().await.expect("a transaction");
    steer::pause(&mut tx, hold.run).await.expect("taken, and changes nothing");
    tx.commit().await.expect("a commit");
    let found = row(&plane, hold.run).await;
    assert_eq!((found.status.as_str(), found.requested.as_deref()), ("pending", Some("cancel")));
    let ended = plane.expect(hold.run);
    plane.start();
    let end = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("an engine takes it").expect("an end");
    assert_eq!(end.status, RunStatus::Cancelled);
    assert!(plane.steps(hold.run).await.expect("steps").is_empty(), "nothing was begun");
    plane.stop().await;
}

#[tokio::test]
async fn a_pause_that_was_asked_of_a_run_on_no_engine_comes_before_the_first_step() {
    let (plane, hold) = with_run().await;
    ask(&plane, hold.run, "pause").await;
    assert!(store::release(&plane.db, hold, "pending", None).await.expect("released"));
    assert_eq!(row(&plane, hold.run).await.requested.as_deref(), Some("pause"));
    plane.start();
    let held = async {
        while row(&plane, hold.run).await.status != "paused" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), held).await.expect("an engine hears it");
    assert_eq!(row(&plane, hold.run).await.requested, None, "it is done");
    assert!(plane.steps(hold.run).await.expect("steps").is_empty(), "nothing was begun");
    plane.stop().await;
}

#[tokio::test]
async fn an_engine_takes_no_cancel_back() {
    let (plane, hold) = with_run().await;
    let (engine, inbound) = Engine::new("engine-7".to_owned());
    let mut worker = Worker::new(engine, inbound, plane, CancellationToken::new());
    let (mut asked, mut stopping) = (None, None);
    let mut hear = |of: i64, what: Asked| {
        worker.hear(Inbound::Asked { run: of, what }, hold.run, &mut asked, &mut stopping);
        asked
    };
    assert_eq!(hear(hold.run + 1, Asked::Cancel), None, "that is another run");
    assert_eq!(hear(hold.run, Asked::Pause), Some(Asked::Pause));
    assert_eq!(hear(hold.run, Asked::Cancel), Some(Asked::Cancel));
    assert_eq!(hear(hold.run, Asked::Pause), Some(Asked::Cancel));
}
