//! Workers that hang, flood, lie, trickle and repeat themselves: the queue goes on, and every run ends once.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::on_both;
use crate::support::World;
use crate::support::process::Process;
use crate::support::worker::{KEY, WorkerProcess, signed};

async fn serve(world: &World, more: &[(&str, &str)]) -> Process {
    let storage = world.folder().join("storage").display().to_string();
    let environment =
        [("PIPEWEAVE_SECRET_KEY", KEY), ("POLL_INTERVAL_MS", "100"), ("SHOWRUNNER_STORAGE__FOLDER", storage.as_str())];
    Process::serve(world.url(), &[&environment, more].concat()).await
}

async fn register(service: &Process, name: &str, endpoint: Option<&str>, task: Value) {
    let body = json!({ "endpoint": endpoint, "tasks": [task] });
    let (status, said) = service.send("/api/register", &body, &signed(name)).await;
    assert_eq!(status, 200, "{said}");
}

async fn pull(service: &Process, name: &str, more: Value) -> (u16, Value) {
    let mut body = json!({ "worker": "w1" });
    body.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    service.send("/api/pull", &body, &signed(name)).await
}

async fn call_back(service: &Process, run: &Value, body: &Value) -> (u16, Value) {
    let path = format!("/api/callback/{}", run["runId"]);
    service.send(&path, body, run["token"].as_str().expect("a token")).await
}

/// What a message does, its head and body, the pause between its bytes, and the statuses that may come back.
type Case<'a> = (&'a str, String, &'a [u8], Duration, &'a [&'a str]);

/// An endpoint that does with each connection what `answer` says; where it listens.
async fn endpoint<F, A>(answer: F) -> String
where
    F: Fn(TcpStream) -> A + Send + Sync + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    format!("http://{address}/")
}

/// Sends bytes as they are and reads what comes back, for as long as somebody sends.
async fn raw(service: &Process, head: &str, body: &[u8], pause: Duration) -> String {
    let mut stream = TcpStream::connect(service.address()).await.expect("a connection");
    let mut said = Vec::new();
    if stream.write_all(head.as_bytes()).await.is_ok() {
        for piece in body.chunks(if pause.is_zero() { 65_536 } else { 1 }) {
            tokio::time::sleep(pause).await;
            if stream.write_all(piece).await.is_err() {
                break;
            }
        }
    }
    let _ = stream.shutdown().await;
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

on_both! {
    async fn endpoints_that_hang_flood_or_redirect_hold_up_nobody_else(world) {
        let service = serve(&world, &[]).await;
        let hanging = endpoint(|stream| async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(stream);
        }).await;
        let flooding = endpoint(|mut stream| async move {
            let mut head = [0_u8; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n").await;
            while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
        }).await;
        let elsewhere = endpoint(|mut stream| async move {
            let mut head = [0_u8; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n").await;
        }).await;
        for (name, place) in [("hanging", &hanging), ("flooding", &flooding), ("elsewhere", &elsewhere)] {
            register(&service, name, Some(place), json!({ "id": name, "heartbeatIntervalMs": 300, "maxAttempts": 1 })).await;
            service.post("/api/queue/task", &json!({ "taskId": name })).await;
        }
        // The good one's tasks flow meanwhile.
        let worker = WorkerProcess::example("node", "worker.mjs", &service, &[]).await;
        for _ in 0..5 {
            let (_, made) = service.post("/api/queue/task", &json!({ "taskId": "upper", "input": { "text": "a" } })).await;
            world.until(&format!("SELECT status FROM jobs WHERE id = {}", made["runId"]), "completed").await;
        }
        for (name, error) in [("hanging", "no heartbeat for 600 ms"), ("flooding", "no heartbeat for 600 ms"), ("elsewhere", "the worker refused it: 307")] {
            let found = format!("SELECT COUNT(*) FROM dlq WHERE task_id = '{name}' AND error LIKE '{error}%'");
            world.until_within(Duration::from_secs(40), &found, "1").await;
        }
        drop(worker);
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn messages_that_lie_or_trickle_change_nothing(world) {
        let service = serve(&world, &[("SHOWRUNNER_HTTP__REQUEST_TIMEOUT_MS", "2000")]).await;
        register(&service, "liar", None, json!({ "id": "lie", "heartbeatIntervalMs": 60_000 })).await;
        service.post("/api/queue/task", &json!({ "taskId": "lie" })).await;
        let run = pull(&service, "liar", json!({})).await.1["runs"][0].clone();
        let good = json!({ "lease": run["lease"], "status": "completed", "result": { "n": 1 } }).to_string();
        let head = |length: &str, more: &str| format!(
            "POST /api/callback/{} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n{more}{length}\r\n",
            run["runId"], run["token"].as_str().expect("a token"));
        let length = |bytes: usize| format!("content-length: {bytes}\r\n");
        let status_of = |said: &str| said.split(' ').nth(1).unwrap_or("none").to_owned();
        let chunks = format!("{:x}\r\n{}\r\n", 3 << 20, "x".repeat(3 << 20));
        let endless = json!({ "lease": run["lease"], "status": "completed", "result": "x".repeat(2 << 20) }).to_string();
        let now = Duration::ZERO;
        let cases: [Case<'_>; 8] = [
            ("says that it is endless", head(&length(usize::MAX >> 1), ""), good.as_bytes(), now, &["413"]),
            ("is longer than it may be", head(&length(endless.len()), ""), endless.as_bytes(), now, &["413", "none"]),
            ("is longer than it says", head(&length(good.len() - 5), ""), good.as_bytes(), now, &["400"]),
            ("is shorter than it says", head(&length(good.len() + 5), ""), good.as_bytes(), now, &["400", "none"]),
            ("says two lengths", head(&length(good.len()), &length(good.len() - 1)), good.as_bytes(), now, &["400", "none"]),
            ("has a length and chunks", head(&length(good.len()), "transfer-encoding: chunked\r\n"), good.as_bytes(), now, &["400", "none"]),
            ("comes in chunks without an end", head("", "transfer-encoding: chunked\r\n"), chunks.as_bytes(), now, &["413", "none"]),
            ("trickles", head(&length(good.len()), ""), good.as_bytes(), Duration::from_millis(150), &["408", "503", "504", "none"]),
        ];
        for (what, head, body, pause, taken) in cases {
            let status = status_of(&raw(&service, &head, body, pause).await);
            assert!(taken.contains(&status.as_str()), "a callback that {what}: {status}");
            assert_eq!(world.text("SELECT status FROM jobs").await, "processing", "a callback that {what}");
        }
        // Two at once, and then many more: one counts.
        let answers: Vec<Value> = (0..20).map(|n| json!({ "lease": run["lease"], "status": "completed", "result": { "n": n } })).collect();
        let mut statuses: Vec<u16> = futures_util::future::join_all(answers.iter().map(|answer| call_back(&service, &run, answer)))
            .await.into_iter().map(|(status, _)| status).collect();
        statuses.sort_unstable();
        assert_eq!((statuses[0], statuses[1], statuses[19]), (200, 409, 409), "{statuses:?}");
        // What names something in storage that is not the run's own is refused.
        service.post("/api/queue/task", &json!({ "taskId": "lie" })).await;
        let run = pull(&service, "liar", json!({})).await.1["runs"][0].clone();
        let stolen = json!({ "$storage": { "backend": "local", "key": "results/task-run-1/x.json", "size": 1, "sha256": "0".repeat(64) } });
        let (status, problem) = call_back(&service, &run, &json!({ "lease": run["lease"], "status": "completed", "result": stolen })).await;
        assert_eq!((status, problem["errors"][0]["field"].as_str()), (422, Some("result")), "{problem}");
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn a_long_poll_ends_in_time_and_hands_out_what_comes(world) {
        let service = serve(&world, &[("SHOWRUNNER_HTTP__REQUEST_TIMEOUT_MS", "5000")]).await;
        register(&service, "poller", None, json!({ "id": "poll" })).await;
        let clock = showrunner::clock::SystemClock::shared();
        let (status, said) = pull(&service, "poller", json!({ "waitMs": 600_000 })).await;
        assert_eq!((status, &said["runs"]), (200, &json!([])), "before the request would time out");
        assert!(clock.elapsed() < Duration::from_secs(30), "{:?}", clock.elapsed());
        for bad in [json!({ "waitMs": 600_001 }), json!({ "limit": 101 }), json!({ "limit": 0 }), json!({ "waitMs": -1 })] {
            assert_eq!(pull(&service, "poller", bad).await.0, 422);
        }
        let asked = pull(&service, "poller", json!({ "waitMs": 600_000 }));
        let enqueued = async {
            tokio::time::sleep(Duration::from_millis(300)).await; // most likely the poll waits by now; either way it gets the task
            service.post("/api/queue/task", &json!({ "taskId": "poll" })).await
        };
        let ((_, said), _) = tokio::join!(asked, enqueued);
        assert_eq!(said["runs"].as_array().map(Vec::len), Some(1), "{said}");
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn many_who_pull_at_once_get_each_task_once(world) {
        let (one, two) = (serve(&world, &[]).await, serve(&world, &[]).await);
        register(&one, "crowd", None, json!({ "id": "share" })).await;
        let tasks: Vec<Value> = (0..200).map(|n| json!({ "taskId": "share", "input": { "n": n } })).collect();
        one.post("/api/queue/batch", &json!({ "tasks": tasks })).await;
        let pullers = (0..24).map(|puller| {
            let service = if puller % 2 == 0 { &one } else { &two };
            async move {
                let mut got = Vec::new();
                loop {
                    let (status, said) = pull(service, "crowd", json!({ "worker": format!("w{puller}"), "limit": 7 })).await;
                    assert_eq!(status, 200, "{said}");
                    let runs = said["runs"].as_array().expect("runs").clone();
                    if runs.is_empty() {
                        return got;
                    }
                    got.extend(runs.iter().map(|run| run["runId"].as_i64().expect("a number")));
                }
            }
        });
        let got: Vec<i64> = futures_util::future::join_all(pullers).await.into_iter().flatten().collect();
        let different: BTreeSet<i64> = got.iter().copied().collect();
        assert_eq!((got.len(), different.len()), (200, 200));
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE status = 'processing' AND attempt = 1").await, 200);
        assert_eq!((one.end("TERM").await, two.end("TERM").await), (Some(0), Some(0)));
    }

    async fn no_secret_of_a_worker_is_shown_or_kept(world) {
        let folder = world.folder().join("vault");
        let backends = json!([
            { "id": "vault", "provider": "local", "path": folder, "isDefault": true },
            { "id": "far", "provider": "minio", "endpoint": "http://127.0.0.1:9", "bucket": "clips", "credentials": { "accessKey": "AKIA-not-shown", "secretKey": "hush-hush-of-minio" } },
        ]).to_string();
        let service = serve(&world, &[("STORAGE_BACKENDS", &backends), ("LOG_LEVEL", "trace"), ("TRIGGER_SECRET", "hush-hush-of-the-trigger")]).await;
        register(&service, "vaulted", None, json!({ "id": "seal", "maxAttempts": 1, "heartbeatIntervalMs": 60_000 })).await;
        let mut secrets = vec![KEY.to_owned(), "hush-hush-of-minio".to_owned(), "hush-hush-of-the-trigger".to_owned()];
        let bearer = signed("vaulted");
        let (_, said) = service.send("/api/pull", &json!({ "worker": "w1" }), &bearer).await;
        assert_eq!(said["runs"], json!([]));
        secrets.push(bearer);
        let large = "y".repeat(300_000);
        for input in [json!({ "n": 1 }), json!({ "text": large })] {
            service.post("/api/queue/task", &json!({ "taskId": "seal", "input": input })).await;
            let run = pull(&service, "vaulted", json!({})).await.1["runs"][0].clone();
            secrets.extend([run["token"].as_str().expect("a token").to_owned(), run["storage"].as_str().expect("a token").to_owned()]);
            // A worker that throws its own secrets about: what it says is its own, and not ours to hide.
            let failed = json!({ "lease": run["lease"], "status": "failed", "error": "no luck" });
            assert_eq!(call_back(&service, &run, &failed).await.0, 200);
            assert_eq!(call_back(&service, &run, &failed).await.0, 410);
        }
        service.put("/api/pipelines/sealed", "steps: [{id: t, task: {id: seal}}, {id: c, copy: {from: {backend: far, key: a}, to: {key: b}}, continue_on_error: true}]".to_owned()).await;
        let begun = service.poke("/api/pipelines/sealed/trigger").await;
        world.until("SELECT COUNT(*) FROM jobs WHERE status = 'pending'", "1").await;
        let run = pull(&service, "vaulted", json!({})).await.1["runs"][0].clone();
        call_back(&service, &run, &json!({ "lease": run["lease"], "status": "completed", "result": {} })).await;
        world.until_within(Duration::from_secs(40), &format!("SELECT status FROM pipeline_runs WHERE id = {}", begun["id"]), "completed").await;
        secrets.push(run["token"].as_str().expect("a token").to_owned());

        let mut shown = service.log();
        let document = service.get("/openapi.json").await;
        for (path, item) in document["paths"].as_object().expect("paths") {
            if item.get("get").is_none() || path == "/v1/events" {
                continue;
            }
            for id in ["1", "2", "3", "seal", "vaulted", "sealed"] {
                if let Some((_, body)) = service.ask(&path.replace("{id}", id).replace("{*path}", "a?backend=far")).await {
                    shown += &body.to_string();
                }
                if !path.contains('{') {
                    break;
                }
            }
        }
        for arguments in [&["config", "show", "--json"][..], &["status"], &["tasks", "history", "seal"]] {
            let (_, out, errors) = world.command(arguments).await;
            shown += &format!("{out}{errors}");
        }
        assert!(shown.contains("no luck") && shown.contains("sealed"), "the answers are there");
        assert_eq!(service.end("TERM").await, Some(0));
        shown += &rows(&world).await;
        assert!(shown.contains("used_tokens") && shown.contains("vaulted"), "the rows are there");
        for secret in &secrets {
            assert!(!shown.contains(secret.as_str()), "{secret} is shown");
        }
    }
}

/// Every row of every table, as the database writes it.
async fn rows(world: &World) -> String {
    let gather = |table: &str| match world.is_sqlite() {
        true => format!("SELECT group_concat(name) FROM pragma_table_info('{table}')"),
        false => format!("SELECT '{table}' || string_agg(CAST(t AS TEXT), ' ') FROM {table} AS t"),
    };
    let tables = match world.is_sqlite() {
        true => "SELECT group_concat(name) FROM sqlite_master WHERE type = 'table'",
        false => "SELECT string_agg(tablename, ',') FROM pg_tables WHERE schemaname = 'public'",
    };
    let mut all = String::new();
    for table in world.text(tables).await.split(',') {
        let mut query = gather(table);
        if world.is_sqlite() {
            let text = |name: &str| {
                format!("coalesce(CASE WHEN typeof(\"{name}\") = 'blob' THEN hex(\"{name}\") ELSE \"{name}\" END, '')")
            };
            let columns: Vec<String> = world.text(&query).await.split(',').map(text).collect();
            query = format!("SELECT '{table}' || group_concat({}, ' ') FROM {table}", columns.join(" || ' ' || "));
        }
        all += &world.text(&query).await;
        all += table;
    }
    all
}
