//! Engines and workflows as a library: `cargo run --example engines`.
//!
//! Two engines, a workflow that is registered once and executed many times, and somebody who listens to an engine.

use std::time::Duration;

use serde_json::json;
use showrunner::clock::SystemClock;
use showrunner::config;
use showrunner::db::{Db, Options};
use showrunner::events::Monitor;
use showrunner::planes::pipelines::definition::InputType;
use showrunner::planes::pipelines::{PipelineBuilder, Pipelines, StepBuilder};
use showrunner::random::Random;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let clock = SystemClock::shared();
    let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await?;
    db.migrate().await?;
    let none = config::Pipelines { engines: 0, ..config::Pipelines::default() };
    let events = Monitor::new(db.clone(), clock.clone());
    let orchestrator = Pipelines::new(none, db, events, clock, Random::from_machine(), "example").await?;
    orchestrator.start();
    orchestrator.register_engine("engine-1");
    orchestrator.register_engine("engine-2");

    let workflow = PipelineBuilder::new("Greeting")
        .input("names", InputType::Array)
        .step(StepBuilder::eval("greet", "`Good day, ${item}`").for_each("input.names", 10))
        .step(StepBuilder::sleep("breathe", Duration::from_millis(50)).needs(["greet"]))
        .step(StepBuilder::eval("text", "steps.greet").needs(["greet", "breathe"]))
        .output("steps.text")
        .build();
    orchestrator.register_workflow("greeting", workflow).await?;

    let mut heard = orchestrator.engine_outbound_channel("engine-1").ok_or("engine-1 is registered")?;
    let listener = tokio::spawn(async move {
        while let Ok(message) = heard.recv().await {
            println!("engine-1 says {message:?}");
        }
    });
    for names in [json!(["Ada", "Grace"]), json!(["Edsger"])] {
        let (run, end) = orchestrator.execute_workflow("greeting", json!({ "names": names })).await?;
        println!("run {run} is {}: {}", end.status, end.output);
    }
    orchestrator.stop().await;
    listener.abort();
    Ok(())
}
