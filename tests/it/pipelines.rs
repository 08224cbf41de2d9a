//! Pipelines, runs, engines and triggers, through the doors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use showrunner::app::{App, Mode};

use crate::on_both;
use crate::support::World;
use crate::support::faults::Holding;
use crate::support::process::Process;

/// A server that writes down who called it with which key, and fails the first calls of paths that say so.
#[derive(Clone, Default)]
struct Receiver {
    calls: Arc<Mutex<Vec<(String, String)>>>,
}

impl Receiver {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let receiver = self.clone();
        let answer = move |request: axum::extract::Request| {
            let receiver = receiver.clone();
            async move {
                let path = request.uri().path().to_owned();
                let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
                let before = {
                    let mut calls = receiver.calls.lock().expect("calls");
                    let before = calls.iter().filter(|(other, _)| *other == path).count();
                    calls.push((path.clone(), key.unwrap_or_default().to_owned()));
                    before
                };
                let status = if path.starts_with("/fails-once") && before == 0 { 500 } else { 200 };
                (axum::http::StatusCode::from_u16(status).expect("a status"), axum::Json(json!({ "path": path })))
            }
        };
        let router = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    fn count(&self) -> usize {
        self.calls.lock().expect("calls").len()
    }

    /// The keys that each path was called with.
    fn keys(&self) -> BTreeMap<String, Vec<String>> {
        let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (path, key) in self.calls.lock().expect("calls").iter() {
            keys.entry(path.clone()).or_default().push(key.clone());
        }
        keys
    }
}

async fn put(world: &World, id: &str, definition: &str) -> (u16, Value) {
    let address = world.app.as_ref().and_then(App::address).expect("a listening service");
    send(reqwest::Client::new().put(format!("http://{address}/api/pipelines/{id}")).body(definition.to_owned())).await
}

async fn put_trigger(world: &World, id: &str, trigger: &Value) -> (u16, Value) {
    let address = world.app.as_ref().and_then(App::address).expect("a listening service");
    send(reqwest::Client::new().put(format!("http://{address}/api/triggers/{id}")).json(trigger)).await
}

async fn send(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

fn status_of(run: &Value) -> String {
    format!("SELECT status FROM pipeline_runs WHERE id = {run}")
}

const PDF: &str = "
name: Documents
inputs:
  pdfUrl: {type: string}
  extractTables: {type: boolean, default: false}
steps:
  - {id: name, eval: 'input.pdfUrl.split(\"/\").pop()'}
  - {id: pages, needs: [name], eval: '[1, 2, 3]'}
  - {id: page, needs: [pages], for_each: steps.pages, eval: '`${steps.name}:${item}`'}
  - {id: tables, needs: [page], when: input.extractTables, eval: steps.page.len()}
output: '#{ pages: steps.page, tables: steps.tables }'
";

on_both! {
    async fn a_pipeline_is_put_and_triggered_with_its_bare_input(world) {
        world.start().await;
        let (status, made) = put(&world, "pdf-processor", PDF).await;
        assert_eq!((status, made["version"].as_i64()), (201, Some(1)), "{made}");
        let input = json!({ "pdfUrl": "https://example.com/doc.pdf", "extractTables": true });
        let (status, run) = world.post("/api/pipelines/pdf-processor/trigger?wait=20s", &input).await;
        assert_eq!(status, 200, "{run}");
        let pages = json!(["doc.pdf:1", "doc.pdf:2", "doc.pdf:3"]);
        assert_eq!(run["output"], json!({ "pages": pages, "tables": 3 }));
        let (_, detail) = world.get(&format!("/api/runs/{}", run["runId"])).await;
        let steps: Vec<&str> = detail["steps"].as_array().expect("steps").iter()
            .filter(|step| step["item"].is_null()).filter_map(|step| step["id"].as_str()).collect();
        assert_eq!(steps.len(), 4, "{detail}");
        let page = detail["steps"].as_array().expect("steps").iter().find(|step| step["id"] == "page" && step["item"].is_null());
        assert_eq!(page.expect("the fan-out")["result"], pages);

        let (status, problem) = world.post("/api/pipelines/pdf-processor/trigger", &json!({ "pdfurl": 1 })).await;
        assert_eq!((status, problem["errors"][0]["field"].as_str()), (422, Some("pdfurl")), "{problem}");
        let (_, again) = put(&world, "pdf-processor", PDF).await;
        assert_eq!(again["changed"], false);
        let (_, changed) = put(&world, "pdf-processor", &PDF.replace("[1, 2, 3]", "[1]")).await;
        assert_eq!(changed["version"], 2);
        let (_, run) = world.post("/api/pipelines/pdf-processor/trigger?wait=20s", &input).await;
        let (_, detail) = world.get(&format!("/api/runs/{}", run["runId"])).await;
        assert_eq!(detail["changedSteps"], json!(["pages"]));
        let (_, plan) = world.post("/api/pipelines/pdf-processor/dry-run", &input).await;
        assert_eq!((&plan["valid"], plan["plan"]["levels"].as_array().map(Vec::len)), (&json!(true), Some(4)));
        let (status, broken) = put(&world, "broken", "steps: [{id: a, needs: [b], eval: '1'}]").await;
        assert_eq!((status, broken["errors"][0]["field"].as_str()), (422, Some("steps[0].needs[0]")));
    }

    async fn a_sleep_outlives_a_restart_and_holds_no_engine(world) {
        world.start().await;
        put(&world, "nap", "steps: [{id: nap, sleep: 1h}, {id: up, needs: [nap], eval: '1'}]").await;
        let (status, run) = world.poke("/api/pipelines/nap/trigger").await;
        assert_eq!(status, 202, "{run}");
        world.until_in_time(&status_of(&run["id"]), "waiting").await;
        world.stop().await;
        world.start().await;
        world.clock.advance(Duration::from_secs(3000));
        assert_eq!(world.text(&status_of(&run["id"])).await, "waiting");
        world.clock.advance(Duration::from_secs(600));
        world.until_in_time(&status_of(&run["id"]), "completed").await;
    }

    async fn a_step_is_a_task_on_the_queue(world) {
        world.start().await;
        put(&world, "render", "
inputs: {clip: {type: integer}}
steps:
  - {id: render, task: {id: render, queue: gpu, priority: 5, input: {clip: '${input.clip}'}}}
  - {id: done, needs: [render], eval: steps.render.file}
output: steps.done").await;
        let (_, run) = world.post("/api/pipelines/render/trigger", &json!({ "clip": 7 })).await;
        world.until("SELECT COUNT(*) FROM jobs WHERE kind = 'render' AND queue = 'gpu' AND priority = 5 AND awaited AND NOT dead_letter", "1").await;
        assert!(world.text("SELECT input FROM jobs").await.contains("7"));
        world.until_in_time(&status_of(&run["id"]), "waiting").await;
        let now = world.ago(0);
        world.sql(&format!("UPDATE jobs SET status = 'completed', result = '{{\"file\": \"a.mp4\"}}', finished_at = {now}")).await;
        world.until_in_time(&status_of(&run["id"]), "completed").await;
        let (_, detail) = world.get(&format!("/api/runs/{}", run["id"])).await;
        assert_eq!(detail["output"], "a.mp4");
    }

    async fn a_failed_run_goes_on_from_the_step_that_failed(world) {
        let receiver = Receiver::default();
        let url = receiver.start().await;
        world.start().await;
        put(&world, "chain", &format!("
steps:
  - {{id: a, http: {{method: POST, url: '{url}/a'}}}}
  - {{id: b, needs: [a], http: {{method: POST, url: '{url}/fails-once', body: {{seen: '${{steps.a.body.path}}'}}}}}}
output: steps.b.status")).await;
        let (_, run) = world.poke("/api/pipelines/chain/trigger?wait=20s").await;
        assert_eq!(run["status"], "failed", "{run}");
        assert!(run["error"].as_str().expect("an error").contains("step `b`: answered 500"), "{run}");
        let (status, _) = world.poke(&format!("/api/runs/{}/retry", run["id"])).await;
        assert_eq!(status, 202);
        world.until(&status_of(&run["id"]), "completed").await;
        let keys = receiver.keys();
        assert_eq!((keys["/a"].len(), keys["/fails-once"].len()), (1, 2), "what is done is not done again");
        assert_ne!(keys["/fails-once"][0], keys["/fails-once"][1], "another try has another key");
        let (status, problem) = world.poke(&format!("/api/runs/{}/retry", run["id"])).await;
        assert_eq!(status, 409, "{problem}");
        assert_eq!(world.ledger("pipelines.run_retried").await.len(), 1);
    }

    async fn runs_are_paused_resumed_and_cancelled(world) {
        world.start().await;
        put(&world, "nap", "steps: [{id: nap, sleep: 1h}, {id: task, task: {id: t}}]").await;
        let (_, run) = world.poke("/api/pipelines/nap/trigger").await;
        let nap = "SELECT status FROM pipeline_steps WHERE step = 'nap'";
        world.until_in_time(nap, "waiting").await;
        let at = |word: &str| format!("/api/runs/{}/{word}", run["id"]);
        assert_eq!(world.poke(&at("pause")).await.0, 202);
        world.until_in_time(&status_of(&run["id"]), "paused").await;
        world.clock.advance(Duration::from_secs(4000));
        assert_eq!(world.poke(&at("resume")).await.0, 202);
        world.until_in_time(nap, "completed").await;
        assert_eq!(world.poke(&at("cancel")).await.0, 202);
        world.until_in_time(&status_of(&run["id"]), "cancelled").await;
        assert_eq!(world.text("SELECT status FROM jobs").await, "cancelled", "nobody waits for the task any more");
        assert_eq!(world.number("SELECT COUNT(*) FROM events WHERE event_type = 'run.cancelled'").await, 1);
        assert_eq!(world.poke(&at("pause")).await.0, 409);
    }

    async fn an_acknowledged_cancel_outlives_a_pause(world) {
        let holding = Holding::at("UPDATE pipeline_runs SET wake_at");
        world.app = Some(world.instance(Mode::Serve, 1, Some(holding.clone())).await);
        put(&world, "nap", "steps: [{id: nap, sleep: 1h}]").await;
        let (_, run) = world.poke("/api/pipelines/nap/trigger").await;
        world.until("SELECT status FROM pipeline_steps", "waiting").await;
        let at = |word: &str| format!("/api/runs/{}/{word}", run["id"]);
        holding.arm();
        assert_eq!(world.poke(&at("pause")).await.0, 202);
        // The engine is about to hold the run when somebody gives it up.
        holding.held().await;
        assert_eq!(world.poke(&at("cancel")).await.0, 202);
        holding.let_go();
        world.until(&status_of(&run["id"]), "cancelled").await;
    }

    async fn a_step_whose_task_is_gone_fails(world) {
        world.start().await;
        put(&world, "render", "steps: [{id: cut, task: {id: cut}}]").await;
        let (_, run) = world.poke("/api/pipelines/render/trigger").await;
        world.until_in_time(&status_of(&run["id"]), "waiting").await;
        let job = world.number("SELECT id FROM jobs").await;
        world.sql("DELETE FROM jobs").await;
        world.until_in_time(&status_of(&run["id"]), "failed").await;
        let (_, detail) = world.get(&format!("/api/runs/{}", run["id"])).await;
        assert_eq!(detail["error"], format!("step `cut`: task {job} is gone: its record was kept no longer"));
    }

    async fn a_fan_out_over_nothing_gives_an_empty_list(world) {
        world.start().await;
        put(&world, "none", "
steps:
  - {id: none, for_each: '[]', eval: item}
  - {id: nap, needs: [none], sleep: 1h}
  - {id: count, needs: [none, nap], eval: steps.none.len()}
output: steps.count").await;
        let (_, run) = world.poke("/api/pipelines/none/trigger").await;
        world.until_in_time(&status_of(&run["id"]), "waiting").await;
        // Another engine reads it from its rows.
        world.clock.advance(Duration::from_secs(3600));
        world.until_in_time(&status_of(&run["id"]), "completed").await;
        let (_, detail) = world.get(&format!("/api/runs/{}", run["id"])).await;
        let step = detail["steps"].as_array().expect("steps").iter().find(|step| step["id"] == "none");
        assert_eq!((&detail["output"], &step.expect("the fan-out")["result"]), (&json!(0), &json!([])), "{detail}");
    }

    async fn retention_takes_no_run_that_goes_on_meanwhile(world) {
        let long_ago = world.ago(60);
        world.sql(&format!("INSERT INTO pipeline_runs (pipeline_id, version, status, trigger_kind, input, created_at, finished_at)
            VALUES ('p', 1, 'failed', 'manual', '{{}}', {long_ago}, {long_ago})")).await;
        let mut tx = world.db.begin().await.expect("a transaction");
        let now = tx.now().await.expect("a time");
        // Somebody has it tried again, and has not committed yet.
        let again = tx.query("UPDATE pipeline_runs SET status = 'pending', finished_at = NULL").execute().await;
        assert_eq!(again.expect("the run"), 1);
        let db = world.db.clone();
        let forgotten = tokio::spawn(async move {
            let mut tx = db.begin().await.expect("a transaction");
            let forgotten = showrunner::planes::pipelines::forget_finished(&mut tx, now).await.expect("looked");
            tx.commit().await.expect("a commit");
            forgotten
        });
        if !world.is_sqlite() {
            let waits = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            world.until(waits, "1").await;
        }
        tx.commit().await.expect("a commit");
        assert_eq!(forgotten.await.expect("no panic"), 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_runs").await, 1);
    }

    async fn who_lost_the_lease_writes_nothing_more(world) {
        let holding = Holding::at("INSERT INTO pipeline_steps");
        world.app = Some(world.instance(Mode::Serve, 1, Some(holding.clone())).await);
        put(&world, "two", "steps: [{id: a, eval: '1'}, {id: b, needs: [a], eval: '2'}]").await;
        holding.arm();
        let (_, run) = world.poke("/api/pipelines/two/trigger").await;
        holding.held().await;
        // As another instance would, whose clock says that the lease has lapsed.
        world.sql("UPDATE pipeline_runs SET lease = lease + 1, owner = 'another', engine = 'engine-1'").await;
        holding.let_go();
        let free = "SELECT COUNT(*) FROM pipeline_runs WHERE owner = 'another' AND status = 'running'";
        world.until(free, "1").await;
        for _ in 0..50 {
            let (_, engines) = world.get("/api/engines").await;
            if engines[0]["status"] == "idle" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_steps").await, 0, "its batch was refused");
        // The other one never comes back: when its lease has lapsed the run goes on here.
        world.until_in_time(&status_of(&run["id"]), "completed").await;
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_steps WHERE status = 'completed'").await, 2);
    }

    async fn a_cron_trigger_fires_once_over_two_instances(world) {
        world.start().await;
        let second = world.instance(Mode::Serve, 2, None).await;
        put(&world, "tick", "steps: [{id: nap, sleep: 90s}]\ninputs: {due: {type: string}}").await;
        let trigger = json!({ "pipeline": "tick", "when": { "kind": "cron", "schedule": "0 * * * * *", "time_zone": "Europe/Madrid" },
            "input": { "due": "${input.due_at}" }, "overlap": "skip" });
        let (status, made) = put_trigger(&world, "every-minute", &trigger).await;
        assert_eq!(status, 200, "{made}");
        world.until_in_time("SELECT COUNT(*) FROM trigger_firings", "3").await;
        // The second firing finds the first one's run still open.
        let outcomes = "SELECT COUNT(*) FROM trigger_firings WHERE outcome = ";
        assert_eq!(world.number(&format!("{outcomes}'started'")).await, 2);
        assert_eq!(world.number(&format!("{outcomes}'skipped'")).await, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_runs").await, 2);
        let (_, stopped) = world.poke("/api/triggers/every-minute/stop").await;
        assert_eq!((&stopped["isActive"], &stopped["dueAt"]), (&json!(false), &Value::Null));
        second.stop().await;
    }

    async fn an_http_trigger_takes_its_token_and_repeats_nothing(world) {
        world.start().await;
        put(&world, "hook", "steps: [{id: a, eval: input.n}]").await;
        // SHA-256 of "open sesame, please".
        let hash = "9e0c2f5c9d0e5d5d";
        let (status, _) = put_trigger(&world, "hook", &json!({ "pipeline": "hook", "when": { "kind": "http", "token_sha256": hash } })).await;
        assert_eq!(status, 422, "no hash");
        let (status, _) = put_trigger(&world, "hook", &json!({ "pipeline": "hook", "when": { "kind": "http" } })).await;
        assert_eq!(status, 200);
        let address = world.app.as_ref().and_then(App::address).expect("an address");
        let mut runs = Vec::new();
        for _ in 0..2 {
            let fire = reqwest::Client::new().post(format!("http://{address}/api/triggers/hook/fire"));
            let (status, fired) = send(fire.header("webhook-id", "m1").json(&json!({ "n": 1 }))).await;
            assert_eq!(status, 202, "{fired}");
            runs.push(fired["runId"].clone());
        }
        assert_eq!(runs[0], runs[1]);
        world.until(&status_of(&runs[0]), "completed").await;
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_runs").await, 1);
    }

    async fn an_event_fires_a_trigger_once_and_a_request_may_wait_for_its_run(world) {
        world.start().await;
        let second = world.instance(Mode::Serve, 2, None).await;
        put(&world, "react", "steps: [{id: a, eval: input.subject}]\noutput: steps.a").await;
        let event = json!({ "kind": "event", "event_type": "clip.*", "subject": "clip:" });
        let trigger = json!({ "pipeline": "react", "when": event, "input": { "subject": "${input.event.subject}" } });
        assert_eq!(put_trigger(&world, "on-clip", &trigger).await.0, 200);
        let now = world.ago(0);
        for (kind, subject) in [("clip.ready", "clip:7"), ("job.failed", "clip:8"), ("clip.ready", "job:9")] {
            world.sql(&format!("INSERT INTO events (event_type, source, subject, created_at) VALUES ('{kind}', 'test', '{subject}', {now})")).await;
        }
        world.until_in_time("SELECT COUNT(*) FROM pipeline_runs WHERE status = 'completed' AND trigger_kind = 'event'", "1").await;
        assert!(world.text("SELECT output FROM pipeline_runs").await.contains("clip:7"));
        for told in ["workflow_started", "workflow_completed"] {
            let told = format!("SELECT COUNT(*) FROM events WHERE event_type = '{told}' AND subject = 'run:1'");
            world.until(&told, "1").await;
        }

        put(&world, "add", "steps: [{id: a, eval: input.n + 1}]\noutput: steps.a").await;
        put_trigger(&world, "add", &json!({ "pipeline": "add", "when": { "kind": "manual" } })).await;
        // The other instance may carry it out, and then this one may only see its end when it looks: time goes on.
        let time = async {
            loop {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                world.clock.advance(std::time::Duration::from_millis(100));
            }
        };
        let body = json!({ "n": 1 });
        let (status, ended) = tokio::select! {
            answer = world.post("/api/triggers/add/fire?wait=20s", &body) => answer,
            () = time => unreachable!("it does not end"),
        };
        assert_eq!((status, ended["output"].as_i64()), (200, Some(2)), "{ended}");
        let runs = world.number("SELECT COUNT(*) FROM pipeline_runs").await;
        assert_eq!(world.number("SELECT COUNT(*) FROM trigger_firings WHERE outcome = 'started'").await, runs);
        second.stop().await;
    }

    async fn a_run_goes_on_after_every_kill(world) {
        let receiver = Receiver::default();
        let url = receiver.start().await;
        let environment = [("SHOWRUNNER_PIPELINES__LEASE_SECONDS", "2")];
        let mut steps = String::new();
        for step in 0..12 {
            let needs = if step == 0 { String::new() } else { format!("needs: [s{}], ", step - 1) };
            let action = match step % 3 {
                0 => format!("http: {{method: POST, url: '{url}/s{step}'}}"),
                1 => format!("for_each: '[1, 2, 3]', parallel: 2, http: {{url: '{url}/s{step}/${{item}}'}}"),
                _ => "sleep: 20ms".to_owned(),
            };
            steps += &format!("  - {{id: s{step}, {needs}{action}}}\n");
        }
        let definition = format!("steps:\n{steps}");
        let mut process = Process::serve(world.url(), &environment).await;
        process.put("/api/pipelines/long", definition).await;
        let run = process.poke("/api/pipelines/long/trigger").await["id"].clone();
        for kill_after in [1, 3, 6, 9] {
            while receiver.count() < kill_after {
                tokio::task::yield_now().await;
            }
            process.end("KILL").await;
            process = Process::serve(world.url(), &environment).await;
        }
        world.until(&status_of(&run), "completed").await;
        let keys = receiver.keys();
        assert_eq!(keys.len(), 4 + 4 * 3, "every call went out: {keys:?}");
        for (path, keys) in &keys {
            assert!(keys.iter().all(|key| key == &keys[0]), "{path}: a repeated call has the same key: {keys:?}");
        }
        // At most what was out at a kill goes out again: one call, or two of a fan-out.
        assert!(receiver.count() <= 16 + 4 * 2, "{} calls", receiver.count());
        assert_eq!(process.end("TERM").await, Some(0));
    }
}
