//! `showrunner worker`, and what the command line knows of tasks: real processes on both sides.

use serde_json::{Value, json};

use crate::on_both;
use crate::support::World;
use crate::support::process::{Process, group_lives};
use crate::support::worker::{KEY, WorkerProcess};

const MANIFEST: &str = r#"
service: shell
version: "1"
tasks:
  upper:
    command: [sh, upper.sh]
    env: {GREETING: hello}
  fails:
    command: [sh, -c, "echo only this is heard >&2; exit 7"]
    maxAttempts: 1
  hangs:
    command: [sh, -c, "trap '' TERM; sleep 600 & echo $$ > pid; echo '{\"progress\": 10, \"message\": \"asleep\"}'; wait; sleep 600"]
    heartbeatIntervalMs: 1000
  slow:
    command: [sh, -c, "echo '{\"progress\": 10, \"message\": \"asleep\"}'; sleep 3; echo done"]
    heartbeatIntervalMs: 2000
  late:
    command: [sleep, "600"]
    timeoutMs: 300
    maxAttempts: 1
  floods:
    command: [sh, -c, "yes | head -c 3000000; sleep 600"]
    maxAttempts: 1
  leaves:
    command: [sh, -c, "setsid sh -c 'echo $$ > left; exec sleep 600' & until [ -s left ]; do sleep 0.01; done; echo '{\"ok\": true}'"]
    maxAttempts: 1
  counts:
    command: [wc, -c]
  missing:
    command: [./no-such-program]
    maxAttempts: 1
"#;

const UPPER: &str = "read given
echo '{\"progress\": 50, \"message\": \"half\"}'
echo \"{\\\"greeting\\\": \\\"$GREETING\\\", \\\"given\\\": $given, \\\"key\\\": \\\"$PIPEWEAVE_SECRET_KEY\\\", \\\"try\\\": $SHOWRUNNER_ATTEMPT}\"
";

async fn serve(world: &World) -> Process {
    let storage = world.folder().join("storage").display().to_string();
    let environment =
        [("PIPEWEAVE_SECRET_KEY", KEY), ("POLL_INTERVAL_MS", "100"), ("SHOWRUNNER_STORAGE__FOLDER", storage.as_str())];
    Process::serve(world.url(), &environment).await
}

/// The reference worker with the manifest above.
async fn work(world: &World, service: &Process, arguments: &[&str]) -> WorkerProcess {
    std::fs::write(world.folder().join("upper.sh"), UPPER).expect("a script");
    let manifest = world.folder().join("tasks.yaml");
    std::fs::write(&manifest, MANIFEST).expect("a manifest");
    let manifest = manifest.display().to_string();
    WorkerProcess::reference(service, &[&[manifest.as_str()], arguments].concat()).await
}

/// Enqueues a task; returns its run's number.
async fn enqueue(service: &Process, task: &str, input: Value) -> i64 {
    let (status, made) = service.post("/api/queue/task", &json!({ "taskId": task, "input": input })).await;
    assert_eq!(status, 201, "{made}");
    made["runId"].as_i64().expect("a number")
}

/// Waits until a run has a status; returns it as its door shows it.
async fn run_is(world: &World, service: &Process, run: i64, status: &str) -> Value {
    world.until(&format!("SELECT status FROM jobs WHERE id = {run}"), status).await;
    service.get(&format!("/api/task-runs/{run}")).await
}

/// The process group of the command that sleeps, once it has told its progress.
async fn sleeping_group(world: &World, service: &Process, run: i64) -> String {
    world.until(&format!("SELECT progress_message FROM jobs WHERE id = {run}"), "asleep").await;
    let group = std::fs::read_to_string(world.folder().join("pid")).expect("its number").trim().to_owned();
    assert!(group_lives(&group), "{}", service.get(&format!("/api/task-runs/{run}")).await);
    group
}

on_both! {
    async fn a_run_that_is_given_up_ends_with_all_that_it_started(world) {
        let service = serve(&world).await;
        let worker = work(&world, &service, &["--pull"]).await;
        let cancelled = enqueue(&service, "hangs", json!({})).await;
        let group = sleeping_group(&world, &service, cancelled).await;
        service.poke(&format!("/api/task-runs/{cancelled}/cancel")).await;
        worker.says("(hangs, try 1) cancelled").await;
        assert!(!group_lives(&group), "a command that hears no SIGTERM is killed, with its children");
        assert_eq!(run_is(&world, &service, cancelled, "cancelled").await["attempts"][0]["outcome"], "cancelled");

        // The lease is lost: somebody else has ended the run meanwhile.
        let lost = enqueue(&service, "hangs", json!({})).await;
        let group = sleeping_group(&world, &service, lost).await;
        world.sql(&format!("UPDATE jobs SET status = 'cancelled', finished_at = created_at, lease_expires_at = NULL WHERE id = {lost}")).await;
        worker.says("(hangs, try 1) lost").await;
        assert!(!group_lives(&group), "nor does it go on when its lease is gone");

        // A worker that is killed says nothing more; its watchdog ends the command, and the lease lapses.
        let orphaned = enqueue(&service, "hangs", json!({})).await;
        let group = sleeping_group(&world, &service, orphaned).await;
        worker.signal("KILL");
        assert_eq!(worker.ended().await, None);
        let ended = async {
            while group_lives(&group) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await; // nobody tells of a stranger's end
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), ended).await.expect("nothing is left behind");
        world.until(&format!("SELECT outcome FROM job_attempts WHERE job_id = {orphaned}"), "lapsed").await;
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn a_command_of_the_manifest_is_a_task(world) {
        let service = serve(&world).await;
        let worker = work(&world, &service, &[]).await;
        let run = enqueue(&service, "upper", json!({ "clip": 7 })).await;
        let run = run_is(&world, &service, run, "completed").await;
        let result = json!({ "greeting": "hello", "given": { "clip": 7 }, "key": "", "try": 1 });
        assert_eq!((&run["result"], &run["codeVersion"]), (&result, &json!(1)), "{run}");
        for (task, error) in [
            ("fails", "exit status: 7: only this is heard"),
            ("late", "it took longer than 300 ms"),
            ("floods", "it printed more than 1 MiB"),
            ("missing", "no-such-program` cannot be started"),
        ] {
            let run = enqueue(&service, task, json!({})).await;
            let run = run_is(&world, &service, run, "failed").await;
            let timed_out = run["error"].as_str().is_some_and(|said| task == "late" && said.contains("timed out"));
            assert!(timed_out || run["error"].as_str().is_some_and(|said| said.contains(error)), "{task}: {run}");
        }
        // What is too large for a row is fetched by the worker itself.
        let run = enqueue(&service, "counts", json!("x".repeat(300_000))).await;
        assert_eq!(run_is(&world, &service, run, "completed").await["result"], 300_002);
        worker.says("(upper, try 1) completed").await;
        worker.signal("TERM");
        assert_eq!(worker.ended().await, Some(0));

        // The same manifest is the same code; another command is another version.
        let worker = work(&world, &service, &[]).await;
        drop(worker);
        std::fs::write(world.folder().join("other.yaml"), MANIFEST.replace("hello", "good day")).expect("a manifest");
        let other = world.folder().join("other.yaml").display().to_string();
        drop(WorkerProcess::reference(&service, &[&other, "--pull"]).await);
        let (code, out, errors) = world.command(&["tasks", "history", "upper", "--json"]).await;
        assert_eq!(code, 0, "{errors}");
        let history: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(history.as_array().map(Vec::len), Some(2), "{history}");
        assert_eq!((&history[0]["codeVersion"], &history[0]["previousHash"]), (&json!(2), &history[1]["codeHash"]));
        let address = format!("http://{}", service.address());
        let (code, table, _) = world.command(&["tasks", "history", "upper", "--url", &address]).await;
        assert!(code == 0 && table.contains("shell") && table.contains(history[0]["codeHash"].as_str().expect("a hash")), "{table}");
        let (code, _, errors) = world.command(&["tasks", "history", "nobody-knows"]).await;
        assert!(code == 1 && errors.contains("nobody-knows"), "{errors}");
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn a_command_that_leaves_somebody_behind_has_ended(world) {
        let service = serve(&world).await;
        let worker = work(&world, &service, &["--pull", "--concurrency", "1"]).await;
        // A session of its own, which nobody ends, holds the command's output open.
        let run = enqueue(&service, "leaves", json!({})).await;
        assert_eq!(run_is(&world, &service, run, "completed").await["result"], json!({ "ok": true }));
        worker.says("(leaves, try 1) completed").await;
        // Its place is free again.
        let next = enqueue(&service, "counts", json!("x")).await;
        assert_eq!(run_is(&world, &service, next, "completed").await["result"], 3);
        let left = std::fs::read_to_string(world.folder().join("left")).expect("its number").trim().to_owned();
        assert!(group_lives(&left), "who leaves the group is not the worker's to end");
        let killed = std::process::Command::new("kill").args(["-KILL", &left]).status();
        assert!(killed.expect("kill").success(), "nothing of it stays");
        worker.signal("TERM");
        assert_eq!(worker.ended().await, Some(0));
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn a_worker_that_is_told_to_stop_ends_what_it_has_and_takes_no_more(world) {
        let service = serve(&world).await;
        for (mode, drain) in [("--pull", "30s"), ("--listen=127.0.0.1:0", "30s"), ("--pull", "0s")] {
            let worker = work(&world, &service, &[mode, "--concurrency", "1", "--drain", drain]).await;
            let first = enqueue(&service, "slow", json!({})).await;
            // Not only handed out: a worker that stops before it has begun leaves it to its lease.
            world.until(&format!("SELECT progress_message FROM jobs WHERE id = {first}"), "asleep").await;
            let second = enqueue(&service, "slow", json!({})).await;
            worker.signal("TERM");
            assert_eq!(worker.ended().await, Some(0), "{mode} {drain}");
            let run = service.get(&format!("/api/task-runs/{first}")).await;
            let (status, outcome) = if drain == "0s" { ("retry", "failed") } else { ("completed", "completed") };
            assert_eq!((&run["status"], &run["attempts"][0]["outcome"]), (&json!(status), &json!(outcome)), "{run}");
            // What it had no place for cost no try, also when it could not be reached any more.
            world.until(&format!("SELECT COUNT(*) FROM jobs WHERE id = {second} AND status = 'processing'"), "0").await;
            let run = service.get(&format!("/api/task-runs/{second}")).await;
            assert!(run["attempts"].as_array().expect("tries").iter().all(|one| one["outcome"] == "lapsed"), "{run}");
            for run in [first, second] {
                service.poke(&format!("/api/task-runs/{run}/cancel")).await;
            }
        }
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn a_worker_outlives_its_service(world) {
        let service = serve(&world).await;
        let address = service.address().to_owned();
        let worker = work(&world, &service, &["--pull"]).await;
        let run = enqueue(&service, "slow", json!({})).await;
        world.until(&format!("SELECT status FROM jobs WHERE id = {run}"), "processing").await;
        assert_eq!(service.end("KILL").await, None);
        // Its callback finds nobody; the service is back at the same address before the lease has lapsed, or after.
        let port = address.rsplit_once(':').expect("a port").1;
        let environment = [("PIPEWEAVE_SECRET_KEY", KEY), ("POLL_INTERVAL_MS", "100"), ("PORT", port)];
        let service = Process::serve_at(world.url(), &environment).await;
        run_is(&world, &service, run, "completed").await;
        let next = enqueue(&service, "upper", json!({})).await;
        run_is(&world, &service, next, "completed").await;
        drop(worker);
        assert_eq!(service.end("TERM").await, Some(0));
    }

    async fn a_database_is_made_ready_by_db_init(world) {
        let (code, out, errors) = world.command(&["db", "init", "--url", world.url(), "--json"]).await;
        assert_eq!(code, 0, "{errors}");
        let state: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(state["pending"], json!([]));
        let fresh = format!("sqlite://{}", world.folder().join("fresh.db").display());
        assert_eq!(world.command(&["db", "init", "--url", &fresh]).await.0, 0);
        assert!(world.folder().join("fresh.db").exists());
    }
}

#[test]
fn a_worker_says_what_it_needs() {
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command.arg("worker").args(arguments).env_clear().env("HOME", "/nowhere").envs(environment.iter().copied());
        let output = command.output().expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = run(&["no-such-file.yaml"], &[]);
    assert!(code == Some(2) && said.contains("no-such-file.yaml cannot be read"), "{said}");
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = folder.path().join("tasks.yaml");
    std::fs::write(&manifest, MANIFEST).expect("a manifest");
    let manifest = manifest.display().to_string();
    let (code, said) = run(&[&manifest], &[]);
    assert!(code == Some(2) && said.contains("PIPEWEAVE_SECRET_KEY"), "{said}");
    let (code, said) = run(&[&manifest, "--pull", "--listen", "127.0.0.1:0"], &[("PIPEWEAVE_SECRET_KEY", KEY)]);
    assert!(code == Some(2) && said.contains("cannot be used with"), "{said}");
}
