//! Triggers that are fired from outside, engines that live only as long as a request, and steps that copy.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use showrunner::app::App;
use showrunner::clock::SystemClock;
use showrunner::config::{Mode, Token};

use crate::on_both;
use crate::support::World;
use crate::support::faults::Holding;
use crate::support::process::Process;
use crate::support::s3::S3Server;
use crate::support::worker::{KEY, WorkerProcess, signed};

async fn send(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn put(world: &World, path: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let address = world.app.as_ref().and_then(App::address).expect("a listening service");
    let request = reqwest::Client::new().put(format!("http://{address}{path}"));
    send(request.header("content-type", "application/json").bearer_auth("operator-0123456789").body(body)).await
}

const OPERATOR: &str = "operator-0123456789";

on_both! {
    async fn a_trigger_with_a_key_of_its_own_is_fired_by_whoever_has_it(world) {
        use showrunner::actor::Role;
        let token = |name: &str, role| Token { name: name.to_owned(), role, token: format!("{name}-0123456789").into() };
        world.config.auth.tokens = vec![token("operator", Role::Operator), token("viewer", Role::Viewer)];
        world.start().await;
        put(&world, "/api/pipelines/hook", "steps: [{id: a, eval: input.n + 1}]\noutput: steps.a").await;
        let hash: String = Sha256::digest("open sesame, please").iter().map(|byte| format!("{byte:02x}")).collect();
        let keyed = json!({ "pipeline": "hook", "when": { "kind": "http", "token_sha256": hash } });
        let plain = json!({ "pipeline": "hook", "when": { "kind": "http" } });
        for (id, trigger) in [("keyed", &keyed), ("plain", &plain)] {
            assert_eq!(put(&world, &format!("/api/triggers/{id}"), trigger.to_string()).await.0, 200);
        }
        let address = world.app.as_ref().and_then(App::address).expect("an address");
        let fire = |id: &str| reqwest::Client::new().post(format!("http://{address}/api/triggers/{id}/fire?wait=20s")).json(&json!({ "n": 1 }));
        // A stranger with the token gets in, and waits for the result; without it neither he nor an operator does.
        let (status, run) = send(fire("keyed").header("x-trigger-token", "open sesame, please")).await;
        assert_eq!((status, &run["output"]), (200, &json!(2)), "{run}");
        assert_eq!(send(fire("keyed")).await.0, 403);
        assert_eq!(send(fire("keyed").header("x-trigger-token", "open sesame")).await.0, 403);
        assert_eq!(send(fire("keyed").bearer_auth(OPERATOR)).await.0, 403);
        // One without a key takes an operator.
        assert_eq!(send(fire("plain")).await.0, 401);
        assert_eq!(send(fire("plain").header("x-trigger-token", "open sesame, please")).await.0, 401);
        assert_eq!(send(fire("plain").bearer_auth("viewer-0123456789")).await.0, 403);
        assert_eq!(send(fire("plain").bearer_auth(OPERATOR)).await.0, 200);
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_runs").await, 2);
    }

    async fn a_signed_request_fires_a_trigger_once(world) {
        let secret = "a secret of some length";
        let service = Process::serve(world.url(), &[("TRIGGER_SHOP", secret)]).await;
        service.put("/api/pipelines/hook", "steps: [{id: a, eval: input.n}]".to_owned()).await;
        let trigger = json!({ "pipeline": "hook", "when": { "kind": "http", "secret_variable": "TRIGGER_SHOP" } }).to_string();
        let url = format!("http://{}/api/triggers/shop", service.address());
        let client = reqwest::Client::new();
        let put = client.put(&url).header("content-type", "application/json").body(trigger);
        assert_eq!(send(put).await.0, 200);
        let now = SystemClock::shared().now().timestamp();
        let fire = |id: &str, at: i64, body: &str, signed: &str| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
            mac.update(format!("{id}.{at}.{signed}").as_bytes());
            let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
            let request = client.post(format!("{url}/fire?wait=20s")).body(body.to_owned());
            request.header("webhook-id", id).header("webhook-timestamp", at.to_string()).header("webhook-signature", signature)
        };
        let (status, first) = send(fire("m1", now, "{\"n\": 1}", "{\"n\": 1}")).await;
        assert_eq!(status, 200, "{first}");
        let (_, again) = send(fire("m1", now, "{\"n\": 1}", "{\"n\": 1}")).await;
        assert_eq!(again["runId"], first["runId"], "the same message fires once");
        assert_eq!(send(fire("m2", now, "{\"n\": 2}", "{\"n\": 1}")).await.0, 403, "another body");
        assert_eq!(send(fire("m3", now - 3600, "{}", "{}")).await.0, 403, "an old one");
        assert_eq!(send(client.post(format!("{url}/fire")).body("{}")).await.0, 403, "unsigned");
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_runs").await, 1);
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn of_two_requests_at_once_the_second_finds_the_first_ones_run(world) {
        let holding = Holding::at("INSERT INTO pipeline_runs");
        world.app = Some(world.instance(showrunner::app::Mode::Serve, 1, Some(holding.clone())).await);
        put(&world, "/api/pipelines/nap", "steps: [{id: nap, sleep: 1h}]").await;
        let trigger = json!({ "pipeline": "nap", "when": { "kind": "http" }, "overlap": "skip" });
        assert_eq!(put(&world, "/api/triggers/hook", trigger.to_string()).await.0, 200);
        let address = world.app.as_ref().and_then(App::address).expect("an address");
        let fire = |id: &str| {
            let request = reqwest::Client::new().post(format!("http://{address}/api/triggers/hook/fire"));
            tokio::spawn(send(request.header("webhook-id", id).bearer_auth(OPERATOR).body("{}")))
        };
        holding.arm();
        let first = fire("m1");
        holding.held().await;
        let second = fire("m2");
        // SQLite has one writer; on PostgreSQL it comes as far as the trigger's row, or all the way.
        let waits = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while !world.is_sqlite() && !second.is_finished() && world.number(waits).await == 0 {
            tokio::task::yield_now().await;
        }
        holding.let_go();
        let ((_, first), (_, second)) = (first.await.expect("no panic"), second.await.expect("no panic"));
        assert!(first["runId"].is_i64() && second["skipped"].is_string(), "{first} {second}");
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_runs").await, 1);
    }

    async fn serverless_engines_work_while_they_are_asked_to(world) {
        world.config.mode = Mode::Serverless;
        world.start().await;
        let (status, said) = put(&world, "/api/pipelines/short", "steps: [{id: a, eval: '1'}, {id: b, needs: [a], for_each: '[1, 2]', eval: item}]\noutput: steps.b").await;
        assert_eq!(status, 201, "{said}");
        put(&world, "/api/pipelines/long", "steps: [{id: nap, sleep: 10m}, {id: up, needs: [nap], eval: '1'}]").await;
        put(&world, "/api/triggers/tick", json!({ "pipeline": "short", "when": { "kind": "cron", "schedule": "0 * * * * *" } }).to_string()).await;
        world.poke("/api/pipelines/short/trigger").await;
        world.poke("/api/pipelines/long/trigger").await;
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_runs WHERE status = 'pending'").await, 2, "nothing moves by itself");
        world.clock.advance(std::time::Duration::from_secs(60));
        // The clock of this world stands still while the engines wait: they are asked again.
        let mut runs = 0;
        for _ in 0..40 {
            let (asked, _) = tokio::join!(world.poke("/api/process"), async {
                for _ in 0..20 {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    world.clock.advance(std::time::Duration::from_millis(300));
                }
            });
            assert_eq!((asked.0, &asked.1["status"]), (200, &json!("ok")), "{}", asked.1);
            runs += asked.1["runs"].as_u64().expect("a number");
            if runs >= 2 {
                break;
            }
        }
        assert!(runs >= 2, "the run, and the one that was due");
        assert_eq!(world.number("SELECT COUNT(*) FROM pipeline_runs WHERE pipeline_id = 'short' AND status = 'completed' AND trigger_kind = 'manual'").await, 1);
        assert!(world.number("SELECT COUNT(*) FROM pipeline_runs WHERE trigger_kind = 'cron' AND status = 'completed'").await >= 1);
        assert_eq!(world.text("SELECT status FROM pipeline_runs WHERE pipeline_id = 'long'").await, "waiting");
        assert_eq!(world.get("/api/engines").await.1, json!([]), "none lives on");
    }

    async fn a_step_copies_from_one_back_end_to_another(world) {
        let base = world.folder().to_owned();
        let folder = |name: &str| base.join(name);
        let mut backends = vec![
            json!({ "id": "near", "provider": "local", "path": folder("near"), "isDefault": true }),
            json!({ "id": "archive", "provider": "local", "path": folder("archive") }),
        ];
        let server = S3Server::start();
        if let Some(server) = &server {
            backends.push(json!({ "id": "far", "provider": "minio", "endpoint": server.endpoint, "bucket": "clips", "region": "us-east-1",
                "credentials": { "accessKey": server.access_key, "secretKey": server.secret_key } }));
        }
        world.config.storage.backends = json!(backends).to_string().into();
        world.start().await;
        let film: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::create_dir_all(folder("near").join("in")).expect("a folder");
        std::fs::write(folder("near").join("in/7.mp4"), &film).expect("a file");
        let far = if server.is_some() { "far" } else { "archive" };
        let (status, said) = put(&world, "/api/pipelines/keep", format!("
inputs: {{clip: {{type: integer}}}}
steps:
  - {{id: out, copy: {{from: {{key: 'in/${{input.clip}}.mp4'}}, to: {{backend: {far}, key: 'a/${{input.clip}}.mp4'}}}}}}
  - {{id: back, needs: [out], copy: {{from: {{backend: '${{steps.out.backend}}', key: '${{steps.out.key}}'}}, to: {{backend: archive, key: 'b.mp4'}}}}}}
  - {{id: same, needs: [back], copy: {{from: {{backend: archive, key: b.mp4}}, to: {{backend: archive, key: c.mp4}}}}}}
output: steps.same")).await;
        assert_eq!(status, 201, "{said}");
        let (status, run) = world.post("/api/pipelines/keep/trigger?wait=25s", &json!({ "clip": 7 })).await;
        assert_eq!((status, &run["output"]), (200, &json!({ "backend": "archive", "key": "c.mp4", "size": 20_000_000 })), "{run}");
        assert!(std::fs::read(folder("archive").join("c.mp4")).expect("the copy") == film);
        // What is not there fails the step, and says so.
        let (_, run) = world.post("/api/pipelines/keep/trigger?wait=25s", &json!({ "clip": 8 })).await;
        assert!(run["error"].as_str().is_some_and(|why| why.contains("`near` has nothing at `in/8.mp4`")), "{run}");
        let (status, bad) = put(&world, "/api/pipelines/bad", "steps: [{id: a, copy: {from: {key: '../x'}, to: {key: b.mp4}}}]").await;
        assert_eq!((status, bad["errors"][0]["field"].as_str()), (422, Some("steps[0].copy.from.key")), "{bad}");
        put(&world, "/api/pipelines/lost", "steps: [{id: a, copy: {from: {key: a.mp4}, to: {backend: nowhere, key: b.mp4}}}]").await;
        let (_, plan) = world.post("/api/pipelines/lost/dry-run", &json!({})).await;
        assert_eq!(plan["faults"][0]["path"], "steps[0].copy.to.backend", "{plan}");
    }

    async fn a_run_names_the_steps_whose_tasks_have_other_code(world) {
        let service = Process::serve(world.url(), &[("PIPEWEAVE_SECRET_KEY", KEY)]).await;
        service.put("/api/pipelines/film", "steps: [{id: cut, task: {id: cut}}, {id: mix, task: {id: mix}}]".to_owned()).await;
        let register = async |cut: &str| {
            let body = json!({ "tasks": [{ "id": "cut", "codeHash": cut.repeat(64) }, { "id": "mix", "codeHash": "c".repeat(64) }] });
            service.send("/api/register", &body, &signed("studio")).await
        };
        let carry_out = async || {
            let run = service.poke("/api/pipelines/film/trigger").await["id"].as_i64().expect("a number");
            let mut done = 0;
            while done < 2 {
                let (_, said) = service.send("/api/pull", &json!({ "worker": "w", "waitMs": 2000 }), &signed("studio")).await;
                for task in said["runs"].as_array().expect("runs") {
                    let body = json!({ "lease": task["lease"], "status": "completed", "result": 1 });
                    service.send(&format!("/api/callback/{}", task["runId"]), &body, task["token"].as_str().expect("a token")).await;
                    done += 1;
                }
            }
            world.until(&format!("SELECT status FROM pipeline_runs WHERE id = {run}"), "completed").await;
            service.get(&format!("/api/runs/{run}")).await
        };
        register("a").await;
        assert_eq!(carry_out().await["changedSteps"], json!([]));
        register("b").await;
        let run = carry_out().await;
        assert_eq!(run["changedSteps"], json!(["cut"]), "{run}");
        let versions: Vec<&Value> = run["steps"].as_array().expect("steps").iter().map(|step| &step["codeVersion"]).collect();
        assert!(versions.contains(&&json!(2)) && versions.contains(&&json!(1)), "{run}");
        assert_eq!(carry_out().await["changedSteps"], json!([]));
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn the_longest_wait_between_tries_is_a_setting(world) {
        let service = Process::serve(world.url(), &[("PIPEWEAVE_SECRET_KEY", KEY), ("MAX_RETRY_DELAY_MS", "50")]).await;
        let tasks = json!([{ "id": "free", "retryDelayMs": 60_000 }, { "id": "bound", "retryDelayMs": 60_000, "maxRetryDelayMs": 30_000 }]);
        service.send("/api/register", &json!({ "tasks": tasks }), &signed("waits")).await;
        for task in ["free", "bound"] {
            service.post("/api/queue/task", &json!({ "taskId": task })).await;
            let body = json!({ "worker": "w", "tasks": [task] });
            let (_, said) = service.send("/api/pull", &body, &signed("waits")).await;
            let run = &said["runs"][0];
            let failed = json!({ "lease": run["lease"], "status": "failed" });
            service.send(&format!("/api/callback/{}", run["runId"]), &failed, run["token"].as_str().expect("a token")).await;
        }
        // The one comes back at once, the other is still far away.
        let mut tries = 0;
        while tries < 100 {
            let (_, said) = service.send("/api/pull", &json!({ "worker": "w", "waitMs": 1000 }), &signed("waits")).await;
            if let Some(run) = said["runs"].get(0) {
                assert_eq!((&run["taskId"], &run["attempt"]), (&json!("free"), &json!(2)));
                break;
            }
            tries += 1;
        }
        assert!(tries < 100);
        assert_eq!(world.text("SELECT status FROM jobs WHERE kind = 'bound'").await, "retry");
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn workers_in_other_languages_go_to_storage_by_themselves(world) {
        let Some(server) = S3Server::start() else { return world.end().await };
        let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let backends = json!([{ "id": "far", "provider": "minio", "endpoint": server.endpoint, "bucket": "clips", "region": "us-east-1",
            "credentials": { "accessKey": server.access_key, "secretKey": server.secret_key }, "isDefault": true }]).to_string();
        let service = Process::serve(world.url(), &[("PIPEWEAVE_SECRET_KEY", KEY), ("STORAGE_BACKENDS", &backends)]).await;
        let mut workers = Vec::new();
        let python = target.join("test-python/bin/python").display().to_string();
        workers.push(("reverse", "zyx", WorkerProcess::example(&python, "storage_worker.py", &service, &[]).await));
        if let Some(compiled) = compiled(&world) {
            workers.push(("shout", "XYZ", WorkerProcess::example("node", &compiled, &service, &[]).await));
        }
        for (task, expected, worker) in workers {
            for repeated in [1, 100_000] {
                let (_, made) = service.post("/api/queue/task", &json!({ "taskId": task, "input": { "text": "xyz".repeat(repeated) } })).await;
                let query = format!("SELECT status FROM jobs WHERE id = {}", made["runId"]);
                world.until_within(std::time::Duration::from_secs(40), &query, "completed").await;
                let run = service.get(&format!("/api/task-runs/{}", made["runId"])).await;
                let result = match run["result"]["$storage"]["key"].as_str() {
                    Some(key) => service.get(&format!("/api/storage/{key}")).await,
                    None => run["result"].clone(),
                };
                assert_eq!(run["result"].get("$storage").is_some(), repeated > 1, "{task}");
                assert!(result == json!({ "text": expected.repeat(repeated) }), "{task}, {repeated} times");
            }
            drop(worker);
        }
        assert_eq!(service.end("TERM").await, Some(0));
    }
}

/// The example in TypeScript, compiled where its packages are; none, with a line that says so, where they are not.
fn compiled(world: &World) -> Option<String> {
    let folder = std::env::var_os("SHOWRUNNER_TEST_NODE").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-node"),
        std::path::PathBuf::from,
    );
    let packages = ["typescript", "aws4fetch", "jose", "@types/node"];
    if !packages.iter().all(|name| folder.join("node_modules").join(name).is_dir()) {
        let how = "npm install --prefix target/test-node jose@5 typescript@5 aws4fetch@1 @types/node@20";
        assert!(std::env::var_os("SHOWRUNNER_TEST_REQUIRE_NODE").is_none(), "do `{how}`");
        eprintln!("skipped: no TypeScript; `{how}` installs it");
        return None;
    }
    let name = if world.is_sqlite() { "on-sqlite" } else { "on-postgres" };
    let place = folder.join("compiled").join(name);
    std::fs::create_dir_all(&place).expect("a folder");
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/storage_worker.ts");
    std::fs::copy(source, place.join("storage_worker.mts")).expect("a copy");
    let mut command = Command::new("node");
    command.current_dir(&place).arg(folder.join("node_modules/typescript/bin/tsc"));
    let options = ["--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck", "storage_worker.mts"];
    let output = command.args(options).output().expect("node");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Some(place.join("storage_worker.mjs").display().to_string())
}
