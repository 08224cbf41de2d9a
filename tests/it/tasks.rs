//! The task queue through its doors: clients that enqueue, workers on other machines, dead letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use showrunner::app::App;
use showrunner::config::Mode;
use showrunner::db::{Error, Faults, Point, Result};
use showrunner::storage::{Registration, SecretKey};

use crate::on_both;
use crate::support::World;
use crate::support::process::Process;
use crate::support::worker::{KEY, WorkerProcess};

async fn send(world: &World, path: &str, body: &Value, bearer: &str) -> (u16, Value) {
    let address = world.app.as_ref().and_then(App::address).expect("a listening service");
    let request = reqwest::Client::new().post(format!("http://{address}{path}")).json(body).bearer_auth(bearer);
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

/// A fresh token of a worker of the service `renderer`.
async fn signed(world: &World, jti: &str) -> String {
    let key = SecretKey::parse(&KEY.into()).expect("a good key").expect("a key");
    let at = world.db.now().await.expect("a time").utc().timestamp();
    key.sign(&Registration { iss: "renderer".to_owned(), iat: at, exp: at + 60, jti: jti.to_owned() })
}

async fn register(world: &World, jti: &str, body: &Value) -> (u16, Value) {
    send(world, "/api/register", body, &signed(world, jti).await).await
}

/// Pulls one run; `jti` is different in each.
async fn pull(world: &World, jti: &str) -> Value {
    let (status, said) = send(world, "/api/pull", &json!({ "worker": "w1" }), &signed(world, jti).await).await;
    assert_eq!(status, 200, "{said}");
    said["runs"][0].clone()
}

async fn call_back(world: &World, run: &Value, body: &Value) -> (u16, Value) {
    let path = format!("/api/callback/{}", run["runId"]);
    send(world, &path, body, run["token"].as_str().expect("a token")).await
}

/// The first read of a task fails, the second one never ends.
#[derive(Default)]
struct Unwell(AtomicU32);

#[async_trait]
impl Faults for Unwell {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        if matches!(point, Point::Statement(text) if text == "SELECT * FROM tasks WHERE id = $1") {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => return Err(Error::Unavailable("the story struck it".to_owned())),
                1 => std::future::pending::<()>().await,
                _ => {}
            }
        }
        Ok(())
    }
}

fn render() -> Value {
    json!({ "tasks": [{ "id": "render", "codeHash": "a".repeat(64), "heartbeatIntervalMs": 5000, "maxAttempts": 2, "retryDelayMs": 0 }] })
}

on_both! {
    async fn a_task_is_queued_as_the_curl_line_says_and_seen_in_the_status(world) {
        world.start_still().await;
        let task = json!({ "taskId": "process-document", "input": { "documentUrl": "https://..." }, "priority": 50 });
        let (status, made) = world.post("/api/queue/task", &task).await;
        assert_eq!((status, &made["created"]), (201, &json!(true)), "{made}");
        let (_, run) = world.get(&format!("/api/task-runs/{}", made["runId"])).await;
        assert_eq!((&run["status"], &run["priority"], &run["input"]), (&json!("pending"), &json!(50), &task["input"]));
        assert!(run["waitsBecause"].as_str().is_some_and(|why| why.contains("no worker has registered")), "{run}");
        let batch: Vec<Value> = (0..3000).map(|n| json!({ "taskId": "thumb", "input": { "n": n } })).collect();
        let (status, made) = world.post("/api/queue/batch", &json!({ "tasks": batch })).await;
        assert_eq!((status, &made["created"]), (201, &json!(3000)));
        let (_, counts) = world.get("/api/queue/status").await;
        let keys: Vec<&str> = counts.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 7, "{counts}");
        assert_eq!((&counts["pending"], &counts["dlq"]), (&json!(3001), &json!(0)));
        assert_eq!(counts["oldestPending"], "2026-11-20T12:00:00.000Z");
        let (_, page) = world.get("/api/queue/items?taskId=process-document&status=pending").await;
        assert_eq!(page["items"].as_array().map(Vec::len), Some(1));
        let bad = json!({ "tasks": [{ "taskId": "a" }, { "taskId": "b", "priority": 5000 }] });
        let (status, problem) = world.post("/api/queue/batch", &bad).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("tasks[1].priority")));
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE kind IN ('a', 'b')").await, 0, "all or none");
        assert_eq!(world.get("/health").await.0, 200);
    }

    async fn a_key_gives_the_same_run_until_its_time_is_over(world) {
        world.start_still().await;
        let task = json!({ "taskId": "mail", "idempotencyKey": "order-7", "idempotencyTtlSeconds": 60 });
        let (_, first) = world.post("/api/queue/task", &task).await;
        let (status, again) = world.post("/api/queue/task", &task).await;
        assert_eq!((status, &again["created"], &again["runId"]), (200, &json!(false), &first["runId"]));
        let now = world.ago(0);
        world.sql(&format!("UPDATE jobs SET status = 'completed', finished_at = {now}")).await;
        let (_, ended) = world.post("/api/queue/task", &task).await;
        assert_eq!(ended["runId"], first["runId"], "also after its end");
        world.clock.advance(Duration::from_secs(61));
        let (status, fresh) = world.post("/api/queue/task", &task).await;
        assert_eq!((status, &fresh["created"]), (201, &json!(true)), "{fresh}");
        // The service's own keys are nobody else's, in the body, in a batch or in the header.
        let own = json!({ "taskId": "mail", "idempotencyKey": "showrunner:publish:7" });
        let (status, problem) = world.post("/api/queue/task", &own).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("idempotencyKey")), "{problem}");
        assert_eq!(world.post("/api/queue/batch", &json!({ "tasks": [own] })).await.0, 422);
        let address = world.app.as_ref().and_then(App::address).expect("a listening service");
        let request = reqwest::Client::new().post(format!("http://{address}/api/queue/task"));
        let request = request.header("idempotency-key", "showrunner:publish:7").json(&json!({ "taskId": "mail" }));
        assert_eq!(request.send().await.expect("an answer").status(), 422);
    }

    async fn without_a_shared_key_workers_are_refused_and_told_why(world) {
        world.start_still().await;
        let (status, problem) = register(&world, "1", &render()).await;
        assert_eq!(status, 503);
        assert!(problem["detail"].as_str().is_some_and(|why| why.contains("PIPEWEAVE_SECRET_KEY")), "{problem}");
    }

    async fn late_doubled_and_forged_callbacks_change_nothing(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        let (status, said) = register(&world, "1", &render()).await;
        assert_eq!((status, &said["tasks"][0]["codeVersion"]), (200, &json!(1)), "{said}");
        world.post("/api/queue/task", &json!({ "taskId": "render" })).await;
        let run = pull(&world, "2").await;
        assert_eq!(run["attempt"], 1);
        let done = json!({ "lease": run["lease"], "status": "completed", "result": { "by": "first" } });
        // Forged: no token, another's, and the right one for another lease.
        let path = format!("/api/callback/{}", run["runId"]);
        assert_eq!(send(&world, &path, &done, "nonsense").await.0, 401);
        let other = json!({ "lease": 99, "status": "completed" });
        assert_eq!(call_back(&world, &run, &other).await.0, 401);
        // The worker is silent: after twice the interval the lease lapses, and somebody else gets the run.
        world.clock.advance(Duration::from_secs(11));
        let second = pull(&world, "3").await;
        assert_eq!((&second["attempt"], &second["runId"]), (&json!(2), &run["runId"]), "{second}");
        let (status, problem) = call_back(&world, &run, &done).await;
        assert_eq!((status, &problem["type"]), (410, &json!("/problems/lease-gone")), "{problem}");
        let beat = json!({ "runId": run["runId"], "lease": run["lease"] });
        assert_eq!(send(&world, "/api/heartbeat", &beat, run["token"].as_str().expect("a token")).await.0, 410);
        let good = json!({ "lease": second["lease"], "status": "completed", "result": { "by": "second" } });
        assert_eq!(call_back(&world, &second, &good).await.0, 200);
        assert_eq!(call_back(&world, &second, &good).await.0, 409, "it counts once");
        let (_, detail) = world.get(&format!("/api/task-runs/{}", run["runId"])).await;
        assert_eq!((&detail["status"], &detail["result"]), (&json!("completed"), &json!({ "by": "second" })));
        let outcomes: Vec<&str> = detail["attempts"].as_array().expect("tries").iter().filter_map(|one| one["outcome"].as_str()).collect();
        assert_eq!(outcomes, ["lapsed", "completed"]);
        // A registration's token is taken once.
        assert_eq!(register(&world, "1", &render()).await.0, 401);
        // A stranger learns that it is one, and a worker what is wrong with its request, for the same token again.
        for path in ["/api/register", "/api/pull"] {
            assert_eq!(send(&world, path, &json!({}), "nonsense").await.0, 401, "{path}");
            assert_eq!(send(&world, path, &json!({}), &signed(&world, "again").await).await.0, 422, "{path}");
        }
        assert_eq!(register(&world, "again", &render()).await.0, 200);
    }

    async fn a_cancelled_run_is_stopped_by_its_worker(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        register(&world, "1", &render()).await;
        world.post("/api/queue/task", &json!({ "taskId": "render" })).await;
        let run = pull(&world, "2").await;
        let token = run["token"].as_str().expect("a token");
        let report = json!({ "runId": run["runId"], "lease": run["lease"], "percent": 40, "message": "frame 4" });
        let (status, said) = send(&world, "/api/progress", &report, token).await;
        assert_eq!((status, &said["cancelRequested"]), (200, &json!(false)), "{said}");
        let gone = json!({ "lease": run["lease"], "status": "cancelled" });
        assert_eq!(call_back(&world, &run, &gone).await.0, 409, "nobody gives it up yet");
        let (status, _) = world.poke(&format!("/api/task-runs/{}/cancel", run["runId"])).await;
        assert_eq!(status, 200);
        let beat = json!({ "runId": run["runId"], "lease": run["lease"] });
        let (_, said) = send(&world, "/api/heartbeat", &beat, token).await;
        assert_eq!(said["cancelRequested"], true);
        assert_eq!(call_back(&world, &run, &gone).await.1["status"], "cancelled");
        assert_eq!(world.poke(&format!("/api/task-runs/{}/cancel", run["runId"])).await.0, 409);
    }

    async fn a_dead_letter_keeps_every_error_and_lives_again(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        register(&world, "1", &render()).await;
        world.post("/api/queue/task", &json!({ "taskId": "render", "input": { "clip": 7 }, "context": { "order": 9 } })).await;
        for (jti, error) in [("2", "no disk"), ("3", "no memory")] {
            let run = pull(&world, jti).await;
            let failed = json!({ "lease": run["lease"], "status": "failed", "error": error });
            assert_eq!(call_back(&world, &run, &failed).await.0, 200);
        }
        let (_, page) = world.get("/api/dlq").await;
        let letter = &page["items"][0];
        let errors: Vec<&str> = letter["attempts"].as_array().expect("tries").iter().filter_map(|one| one["error"].as_str()).collect();
        for time in ["startedAt", "finishedAt"] {
            let time = letter["attempts"][0][time].as_str().expect("a time");
            assert!(time.len() == 24 && time.ends_with('Z'), "written as all times are: {time}");
        }
        assert_eq!(errors, ["no disk", "no memory"]);
        assert_eq!((&letter["input"], &letter["context"], &letter["codeVersion"]), (&json!({ "clip": 7 }), &json!({ "order": 9 }), &json!(1)));
        let (status, said) = world.poke(&format!("/api/dlq/{}/retry", letter["id"])).await;
        assert_eq!((status, &said["runId"]), (200, &letter["runId"]));
        assert_eq!(world.poke(&format!("/api/dlq/{}/retry", letter["id"])).await.0, 409);
        let run = pull(&world, "4").await;
        assert_eq!(run["attempt"], 3, "its history stays");
        assert_eq!(call_back(&world, &run, &json!({ "lease": run["lease"], "status": "completed" })).await.0, 200);
        let changed = json!({ "version": "2", "tasks": [{ "id": "render", "codeHash": "b".repeat(64) }] });
        assert_eq!(register(&world, "5", &changed).await.1["tasks"][0]["codeVersion"], 2);
        let (_, history) = world.get("/api/tasks/render/history").await;
        assert_eq!(history["items"][0]["previousHash"], "a".repeat(64));
        assert_eq!(world.get("/api/services/renderer/tasks").await.1[0]["id"], "render");
        world.clock.advance(Duration::from_secs(31 * 24 * 3600));
        showrunner::control::forget_old(&world.db, &world.config.retention).await.expect("retention");
        assert_eq!(world.number("SELECT COUNT(*) FROM dlq").await, 0, "kept for thirty days");
    }

    async fn a_paused_queue_hands_nothing_out(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        register(&world, "1", &render()).await;
        world.post("/api/queue/task", &json!({ "taskId": "render" })).await;
        assert_eq!(world.poke("/api/queues/default/pause").await.1["paused"], true);
        assert_eq!(pull(&world, "2").await, Value::Null);
        assert_eq!(world.poke("/api/queues/default/resume").await.1["paused"], false);
        assert_ne!(pull(&world, "3").await, Value::Null);
    }

    async fn limits_of_tasks_keys_and_queues_hold(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        let tasks = json!({ "tasks": [
            { "id": "rated", "rateLimit": 2, "ratePeriodMs": 60_000, "heartbeatIntervalMs": 600_000 },
            { "id": "keyed", "heartbeatIntervalMs": 600_000, "keyRateLimit": 2, "ratePeriodMs": 60_000 },
            { "id": "queued", "queue": "narrow", "heartbeatIntervalMs": 600_000 },
        ] });
        register(&world, "1", &tasks).await;
        let limits = json!({ "concurrencyLimit": 1 });
        let address = world.app.as_ref().and_then(App::address).expect("a listening service");
        let put = reqwest::Client::new().put(format!("http://{address}/api/queues/narrow/limits")).json(&limits);
        assert_eq!(put.send().await.expect("an answer").status(), 200);
        let batch: Vec<Value> = (0..5).flat_map(|n| {
            let key = format!("customer-{}", n % 2);
            [json!({ "taskId": "rated" }), json!({ "taskId": "keyed", "concurrencyKey": key }), json!({ "taskId": "queued" })]
        }).collect();
        world.post("/api/queue/batch", &json!({ "tasks": batch })).await;
        let got = async |task: &str, jti: &str| {
            let body = json!({ "worker": "w1", "tasks": [task], "limit": 10 });
            let (_, said) = send(&world, "/api/pull", &body, &signed(&world, jti).await).await;
            said["runs"].as_array().expect("runs").clone()
        };
        assert_eq!(got("rated", "2").await.len(), 2, "two a minute");
        assert_eq!(got("rated", "3").await.len(), 0);
        let keyed = got("keyed", "4").await;
        assert_eq!(keyed.len(), 2, "one for each customer");
        assert_eq!(got("queued", "5").await.len(), 1, "one in the queue");
        assert_eq!(got("queued", "6").await.len(), 0);
        assert_eq!(call_back(&world, &keyed[0], &json!({ "lease": keyed[0]["lease"], "status": "completed" })).await.0, 200);
        let next = got("keyed", "7").await;
        assert_eq!(next.len(), 1, "the next one of that customer");
        for run in [&keyed[1], &next[0]] {
            assert_eq!(call_back(&world, run, &json!({ "lease": run["lease"], "status": "completed" })).await.0, 200);
        }
        assert_eq!(got("keyed", "9").await.len(), 1, "two a minute for each of them: the other has had his");
        world.clock.advance(Duration::from_secs(61));
        assert_eq!(got("rated", "8").await.len(), 2);
    }

    async fn a_large_input_and_result_lie_in_storage(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        register(&world, "1", &render()).await;
        let large = "x".repeat(300_000);
        world.post("/api/queue/task", &json!({ "taskId": "render", "input": { "text": large } })).await;
        let run = pull(&world, "2").await;
        assert_eq!(run["input"]["$storage"]["backend"], "local", "{run}");
        let done = json!({ "lease": run["lease"], "status": "completed", "result": { "text": large } });
        assert_eq!(call_back(&world, &run, &done).await.0, 200);
        let (_, detail) = world.get(&format!("/api/task-runs/{}", run["runId"])).await;
        let stored = detail["result"]["$storage"]["key"].as_str().expect("a key").to_owned();
        assert_eq!(world.get(&format!("/api/storage/{stored}")).await.1["text"], large);
        let stolen = json!({ "taskId": "render", "input": detail["result"] });
        assert_eq!(world.post("/api/queue/task", &stolen).await.0, 422, "nobody reads what another put there");
    }

    async fn a_task_is_taken_from_whichever_queue_it_lies_in(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        world.post("/api/queue/task", &json!({ "taskId": "render", "input": 1 })).await; // before anybody said where
        let docs = json!({ "tasks": [{ "id": "render", "queue": "docs" }] });
        assert_eq!(register(&world, "1", &docs).await.0, 200);
        world.post("/api/queue/task", &json!({ "taskId": "render", "input": 2 })).await;
        world.post("/api/queue/task", &json!({ "taskId": "render", "input": 3, "queue": "night", "concurrencyKey": "k" })).await;
        register(&world, "2", &json!({ "tasks": [{ "id": "render", "queue": "elsewhere" }] })).await;
        let mut inputs = Vec::new();
        for jti in ["3", "4", "5"] {
            inputs.push(pull(&world, jti).await["input"].clone());
        }
        inputs.sort_by_key(Value::to_string);
        assert_eq!(inputs, [1, 2, 3]);
        world.post("/api/queue/task", &json!({ "taskId": "other", "queue": "night" })).await;
        assert_eq!(pull(&world, "6").await, Value::Null, "it is nobody else's task");
    }

    async fn a_pull_that_breaks_off_gives_its_runs_back(world) {
        world.config.secret_key = KEY.into();
        world.config.http.request_timeout_ms = 1_000;
        world.app = Some(world.instance(showrunner::app::Mode::Command, 1, Some(Arc::new(Unwell::default()))).await);
        register(&world, "1", &render()).await;
        world.post("/api/queue/task", &json!({ "taskId": "render", "maxAttempts": 1 })).await;
        for (jti, broken) in [("2", 503), ("3", 504)] {
            let (status, said) = send(&world, "/api/pull", &json!({ "worker": "w1" }), &signed(&world, jti).await).await;
            assert_eq!(status, broken, "{said}");
            world.until("SELECT COUNT(*) FROM jobs WHERE status = 'pending' AND attempt = 0", "1").await;
        }
        assert_eq!(pull(&world, "4").await["attempt"], 1, "it costs no try");
    }

    async fn a_try_that_fell_silent_costs_the_task_its_wait(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        let task = json!({ "id": "render", "heartbeatIntervalMs": 500, "retryBackoff": "fixed", "retryDelayMs": 3000 });
        register(&world, "1", &json!({ "tasks": [task] })).await;
        world.post("/api/queue/task", &json!({ "taskId": "render" })).await;
        assert_eq!(pull(&world, "2").await["attempt"], 1);
        world.clock.advance(Duration::from_secs(2));
        assert_eq!(pull(&world, "3").await, Value::Null, "it has lapsed, and waits");
        world.clock.advance(Duration::from_millis(2_900));
        assert_eq!(pull(&world, "4").await, Value::Null);
        world.clock.advance(Duration::from_millis(200));
        let second = pull(&world, "5").await;
        assert_eq!(second["attempt"], 2);
        assert_eq!(call_back(&world, &second, &json!({ "lease": second["lease"], "status": "failed" })).await.0, 200);
        world.clock.advance(Duration::from_millis(2_999));
        assert_eq!(pull(&world, "6").await, Value::Null, "chance takes nothing off a fixed wait");
        world.clock.advance(Duration::from_millis(1));
        assert_eq!(pull(&world, "7").await["attempt"], 3);
    }

    async fn a_request_that_contradicts_itself_is_refused(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        let twice = json!({ "tasks": [{ "id": "render" }, { "id": "render" }] });
        let (status, problem) = register(&world, "1", &twice).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("tasks[1].id")), "{problem}");

        assert_eq!(world.post("/api/queue/task", &json!({ "taskId": "render", "idempotencyKey": "once" })).await.0, 201);
        let (status, problem) = world.post("/api/queue/task", &json!({ "taskId": "mail", "idempotencyKey": "once" })).await;
        assert_eq!(status, 409, "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|why| why.contains("of the task `render`")), "{problem}");
        let batch = json!({ "tasks": [{ "taskId": "mail" }, { "taskId": "mail", "idempotencyKey": "once" }] });
        assert_eq!(world.post("/api/queue/batch", &batch).await.0, 409);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 1, "all or none");
    }

    async fn a_result_in_storage_must_be_there(world) {
        world.config.secret_key = KEY.into();
        world.start_still().await;
        register(&world, "1", &render()).await;
        world.post("/api/queue/task", &json!({ "taskId": "render" })).await;
        let run = pull(&world, "2").await;
        let key = format!("results/task-run-{}/r.json", run["runId"]);
        let named = json!({ "$storage": { "backend": "local", "key": key, "size": 1, "sha256": "a".repeat(64) } });
        let said = json!({ "lease": run["lease"], "status": "completed", "result": named });
        let (status, problem) = call_back(&world, &run, &said).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("result")), "{problem}");
        let good = json!({ "lease": run["lease"], "status": "completed", "result": 1 });
        assert_eq!(call_back(&world, &run, &good).await.0, 200, "nothing was changed");
    }

    async fn serverless_work_is_done_when_it_is_asked_for(world) {
        world.config.mode = Mode::Serverless;
        world.start().await;
        let now = world.ago(1);
        let clip = world.clip(50.0, None).await;
        world.log(clip, "tiktok", "scheduled", &[("scheduled_at", &now)]).await;
        let (status, said) = world.poke("/api/process").await;
        assert_eq!((status, &said["status"], &said["ran"]), (200, &json!("ok"), &json!(1)), "{said}");
        assert_eq!(world.text("SELECT status FROM publish_logs").await, "published");
        assert_eq!(world.poke("/api/process").await.1["ran"], 0);
    }
}

on_both! {
    async fn a_worker_killed_in_the_middle_of_a_task_loses_nothing(world) {
        let service = Process::serve(world.url(), &[("PIPEWEAVE_SECRET_KEY", KEY), ("POLL_INTERVAL_MS", "100")]).await;
        let environment = [("WORKER_HEARTBEAT_MS", "500")];
        let first = WorkerProcess::example("python3", "worker.py", &service, &environment).await;
        let (_, made) = service.post("/api/queue/task", &json!({ "taskId": "nap", "input": { "seconds": 2 } })).await;
        world.until("SELECT COUNT(*) FROM jobs WHERE status = 'processing' AND attempt = 1", "1").await;
        drop(first); // kill -9
        let _second = WorkerProcess::example("python3", "worker.py", &service, &environment).await;
        world.until("SELECT COUNT(*) FROM jobs WHERE status = 'completed' AND attempt = 2", "1").await;
        let run = service.get(&format!("/api/task-runs/{}", made["runId"])).await;
        let outcomes: Vec<&str> = run["attempts"].as_array().expect("tries").iter().filter_map(|one| one["outcome"].as_str()).collect();
        assert_eq!((outcomes, &run["result"]), (vec!["lapsed", "completed"], &json!({ "slept": 2 })), "{run}");
        service.end("TERM").await;
    }

    async fn a_worker_with_an_endpoint_is_called(world) {
        let service = Process::serve(world.url(), &[("PIPEWEAVE_SECRET_KEY", KEY), ("POLL_INTERVAL_MS", "100")]).await;
        let worker = WorkerProcess::example("node", "worker.mjs", &service, &[]).await;
        let (_, made) = service.post("/api/queue/task", &json!({ "taskId": "upper", "input": { "text": "harbour" } })).await;
        world.until("SELECT COUNT(*) FROM jobs WHERE status = 'completed'", "1").await;
        let run = service.get(&format!("/api/task-runs/{}", made["runId"])).await;
        assert_eq!(run["result"], json!({ "text": "HARBOUR" }));
        drop(worker);
        // Nobody is there to accept it: it waits, and costs no try.
        let (_, made) = service.post("/api/queue/task", &json!({ "taskId": "upper", "input": { "text": "quay" }, "maxAttempts": 1 })).await;
        service.log_with("cannot be reached").await;
        let worker = WorkerProcess::example("node", "worker.mjs", &service, &[]).await;
        world.until("SELECT COUNT(*) FROM jobs WHERE status = 'completed' AND attempt = 1", "2").await;
        assert_eq!(service.get(&format!("/api/task-runs/{}", made["runId"])).await["result"], json!({ "text": "QUAY" }));
        drop(worker);
        service.end("TERM").await;
    }
}
