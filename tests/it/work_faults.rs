//! The work plane under real faults: instances and workers killed, PostgreSQL restarted, callbacks lost, late, doubled
//! and forged, clocks that jump. Every task ends once, with a result or in the dead letters, and every run with its
//! output; the counts are exact.
//!
//! `WORK_FAULTS_TASKS=50000 WORK_FAULTS_RUNS=1000` is a night's dose; `WORK_FAULTS_SEED` replays choices and waits.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};
use showrunner::app::App;
use showrunner::clock::{SharedClock, SystemClock};
use showrunner::random::Random;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::faults::cluster::Cluster;
use crate::on_both;
use crate::support::World;
use crate::support::worker::{KEY, signed};

/// Tasks of one fault.
const TASKS_PER_ROUND: u64 = 250;
/// Every such task fails however often it is tried.
const HOPELESS: i64 = 50;
/// Long enough for a busy machine to come back from a fault.
const PATIENCE: Duration = Duration::from_secs(90);
/// Runs that one simulated worker has at once.
const AT_ONCE: usize = 100;

const FLOW: &str = "
inputs: {n: {type: integer}}
steps:
  - {id: a, eval: input.n + 1}
  - {id: t, needs: [a], task: {id: step, input: {n: '${input.n}'}}}
  - {id: f, needs: [a], for_each: '[1, 2, 3]', eval: item * steps.a}
  - {id: h, needs: [t], http: {method: POST, url: 'RECEIVER/h/${input.n}'}, timeout: 20s}
  - {id: nap, needs: [f], sleep: 50ms}
  - {id: e, needs: [h, nap], eval: 'steps.f[2] + steps.t.n'}
output: steps.e
";

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// A process that is started again whenever it is gone.
struct Kept {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    child: Child,
}

impl Kept {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let environment: Vec<(String, String)> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let child = Self::launch(&arguments, &environment);
        Self { arguments, environment, child }
    }

    fn launch(arguments: &[String], environment: &[(String, String)]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the program starts")
    }

    /// SIGKILL, and up again.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = Self::launch(&self.arguments, &self.environment);
    }

    /// Up again, if it has ended: it may have found no database.
    fn keep(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            self.child = Self::launch(&self.arguments, &self.environment);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What everybody in the story knows.
struct Stage {
    ports: [u16; 2],
    http: reqwest::Client,
    random: Random,
    clock: SharedClock,
    /// How often a completion was taken, by run.
    completions: Mutex<BTreeMap<i64, u32>>,
    /// Runs whose worker was told that they have ended.
    over: Mutex<BTreeSet<i64>>,
    stop: CancellationToken,
}

impl Stage {
    /// POSTs to either instance; nothing where no answer came.
    async fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Option<(u16, Value)> {
        let port = self.ports[self.random.between(0, 1) as usize];
        let mut request = self.http.post(format!("http://127.0.0.1:{port}{path}")).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        Some((status, serde_json::from_str(&response.text().await.ok()?).ok()?))
    }

    /// The same until somebody has done it.
    async fn insist(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Value {
        let give_up = self.clock.elapsed() + PATIENCE * 2;
        loop {
            let said = self.post(path, body, headers).await;
            match said {
                Some((200..=299, said)) => return said,
                Some((status @ 400..=428, said)) => panic!("{path}: {status} {said}"),
                other => assert!(self.clock.elapsed() < give_up, "{path} never worked: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn register(&self) {
        let task = |id: &str, tries: u32| json!({ "id": id, "heartbeatIntervalMs": 1000, "maxAttempts": tries, "retryBackoff": "fixed", "retryDelayMs": 50 });
        let body =
            json!({ "tasks": [task("work", 1000), task("hopeless", 3), task("step", 1000), task("probe", 1000)] });
        loop {
            let bearer = format!("Bearer {}", signed("troupe"));
            if let Some((200, _)) = self.post("/api/register", &body, &[("authorization", &bearer)]).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A worker that pulls, and does with its runs what chance wants.
    async fn work(self: Arc<Self>, name: String) {
        let runs = TaskTracker::new();
        while !self.stop.is_cancelled() {
            let room = AT_ONCE.saturating_sub(runs.len());
            if room == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            let bearer = format!("Bearer {}", signed("troupe"));
            let body = json!({ "worker": name, "limit": room, "waitMs": 500 });
            match self.post("/api/pull", &body, &[("authorization", &bearer)]).await {
                Some((200, said)) => {
                    for run in said["runs"].as_array().cloned().unwrap_or_default() {
                        let this = self.clone();
                        runs.spawn(async move { this.carry_out(run).await });
                    }
                }
                Some((409, _)) => self.register().await,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        runs.close();
        runs.wait().await;
    }

    async fn carry_out(&self, run: Value) {
        let done = json!({ "lease": run["lease"], "status": "completed", "result": { "n": run["input"]["n"] } });
        let failed = json!({ "lease": run["lease"], "status": "failed", "error": "no luck" });
        if run["taskId"] == "hopeless" {
            return self.call_back(&run, &failed).await;
        }
        let fate = if run["taskId"] == "probe" { 99 } else { self.random.between(0, 99) };
        match fate {
            0..=2 => {} // the callback is lost
            3..=5 => {
                tokio::time::sleep(Duration::from_millis(2_300)).await; // and this one late
                self.call_back(&run, &done).await;
            }
            6..=15 => {
                tokio::join!(self.call_back(&run, &done), self.call_back(&run, &done));
            }
            16..=19 => self.call_back(&run, &failed).await,
            20..=22 => {
                let mut forged = done.clone();
                forged["lease"] = json!(run["lease"].as_i64().unwrap_or_default() + 1);
                self.call_back(&run, &forged).await;
                self.call_back(&run, &done).await;
            }
            _ => self.call_back(&run, &done).await,
        }
    }

    /// Calls back until somebody has answered, for a while.
    async fn call_back(&self, run: &Value, body: &Value) {
        let path = format!("/api/callback/{}", run["runId"]);
        let bearer = format!("Bearer {}", run["token"].as_str().expect("a token"));
        for _ in 0..20 {
            match self.post(&path, body, &[("authorization", &bearer)]).await {
                Some((status @ (200 | 409), _)) => {
                    let id = run["runId"].as_i64().expect("a number");
                    self.over.lock().expect("a lock").insert(id);
                    if status == 200 && body["status"] == "completed" {
                        *self.completions.lock().expect("a lock").entry(id).or_default() += 1;
                    }
                    return;
                }
                Some((400..=428, _)) => return,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Tasks `from..to`, in batches; a batch whose answer was lost comes again under the same keys.
    async fn enqueue(&self, from: u64, to: u64) {
        let numbers: Vec<u64> = (from..to).collect();
        for batch in numbers.chunks(500) {
            let task = |n: &u64| {
                let kind = if (*n as i64) % HOPELESS == 0 { "hopeless" } else { "work" };
                json!({ "taskId": kind, "input": { "n": n }, "idempotencyKey": format!("task-{n}") })
            };
            let body = json!({ "tasks": batch.iter().map(task).collect::<Vec<_>>() });
            self.insist("/api/queue/batch", &body, &[]).await;
        }
    }

    async fn trigger(&self, from: u64, to: u64) {
        for n in from..to {
            let key = format!("run-{n}");
            self.insist("/api/pipelines/flow/trigger", &json!({ "n": n }), &[("idempotency-key", &key)]).await;
        }
    }

    /// Queues one more task and waits until its end is taken; how long that took.
    async fn recovered(&self, round: u64, kept: &mut [Kept]) -> Duration {
        let began = self.clock.elapsed();
        let task = json!({ "taskId": "probe", "priority": 1000, "idempotencyKey": format!("probe-{round}") });
        let queued = self.insist("/api/queue/task", &task, &[]);
        let keeping = async {
            loop {
                kept.iter_mut().for_each(Kept::keep);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let done = async {
            let run = queued.await["runId"].as_i64().expect("a number");
            while !self.over.lock().expect("a lock").contains(&run) {
                assert!(self.clock.elapsed() < began + PATIENCE, "nothing was carried out within {PATIENCE:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = done => {}
            () = keeping => {}
        }
        self.clock.elapsed() - began
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Writes down which idempotency keys each path was called with.
async fn receiver() -> (String, Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>) {
    let calls: Arc<Mutex<BTreeMap<String, BTreeSet<String>>>> = Arc::default();
    let noted = calls.clone();
    let answer = move |request: axum::extract::Request| {
        let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
        noted.lock().expect("calls").entry(request.uri().path().to_owned()).or_default().insert(key.to_owned());
        async { axum::Json(json!({ "status": "thanks" })) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    (base, calls)
}

async fn story(world: World, cluster: Option<Arc<Cluster>>) {
    let tasks = number_from("WORK_FAULTS_TASKS").unwrap_or(1_000);
    let runs = number_from("WORK_FAULTS_RUNS").unwrap_or(24);
    let seed = number_from("WORK_FAULTS_SEED").unwrap_or_else(|| Random::from_machine().seed());
    eprintln!("WORK_FAULTS_TASKS={tasks} WORK_FAULTS_RUNS={runs} WORK_FAULTS_SEED={seed}");
    let ports = [free_port(), free_port()];
    let serve = |port: u16| {
        let port = port.to_string();
        let storage = world.folder().join("storage").display().to_string();
        Kept::start(
            &["serve"],
            &[
                ("DATABASE_URL", world.url()),
                ("PORT", &port),
                ("PIPEWEAVE_SECRET_KEY", KEY),
                ("LOG_LEVEL", "off"),
                ("SHOWRUNNER_STORAGE__FOLDER", &storage),
                ("SHOWRUNNER_QUEUE__LEASE_SECONDS", "5"),
                ("SHOWRUNNER_QUEUE__POLL_INTERVAL_MS", "100"),
                ("SHOWRUNNER_PIPELINES__LEASE_SECONDS", "3"),
                ("SHOWRUNNER_HTTP__REQUESTS_PER_SECOND", "100000"),
            ],
        )
    };
    let manifest = world.folder().join("real.yaml");
    let real = "service: real\ntasks:\n  real: {command: [sh, -c, 'read given; echo \"$given\"'], heartbeatIntervalMs: 1000, maxAttempts: 1000, retryDelayMs: 50}\n";
    std::fs::write(&manifest, real).expect("a manifest");
    let mut kept = vec![serve(ports[0]), serve(ports[1])];
    for port in ports {
        let (manifest, url) = (manifest.display().to_string(), format!("http://127.0.0.1:{port}"));
        kept.push(Kept::start(&["worker", &manifest, "--pull", "--url", &url], &[("PIPEWEAVE_SECRET_KEY", KEY)]));
    }
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().expect("a client");
    let stage = Arc::new(Stage {
        ports,
        http,
        random: Random::seeded(seed),
        clock: SystemClock::shared(),
        completions: Mutex::default(),
        over: Mutex::default(),
        stop: CancellationToken::new(),
    });
    stage.register().await;
    let (base, calls) = receiver().await;
    let definition = FLOW.replace("RECEIVER", &base);
    let put = stage.http.put(format!("http://127.0.0.1:{}/api/pipelines/flow", ports[0])).body(definition);
    assert!(put.send().await.expect("an answer").status().is_success());
    let workers = TaskTracker::new();
    for worker in 0..3 {
        workers.spawn(stage.clone().work(format!("w{worker}")));
    }

    let began = stage.clock.elapsed();
    let rounds = tasks.div_ceil(TASKS_PER_ROUND).max(4);
    let mut recovered = Vec::new();
    for round in 0..rounds {
        let part = |all: u64| (all * round / rounds, all * (round + 1) / rounds);
        let ((first, last), (from, to)) = (part(tasks), part(runs));
        let load = {
            let stage = stage.clone();
            tokio::spawn(async move {
                stage
                    .insist(
                        "/api/queue/task",
                        &json!({ "taskId": "real", "input": round, "idempotencyKey": format!("real-{round}") }),
                        &[],
                    )
                    .await;
                tokio::join!(stage.enqueue(first, last), stage.trigger(from, to));
            })
        };
        tokio::time::sleep(Duration::from_millis(stage.random.between(20, 600))).await; // a fault may come anywhere
        let victim = stage.random.between(0, 3) as usize;
        match (&cluster, round % 3) {
            (Some(cluster), 0) => {
                let how = if stage.random.between(0, 1) == 0 { "restart -m immediate" } else { "restart -m fast" };
                let cluster = cluster.clone();
                let done = tokio::task::spawn_blocking(move || cluster.control(how)).await.expect("pg_ctl");
                assert!(done, "pg_ctl {how}");
            }
            (_, 1) => {
                kept[0].kill();
                kept[victim.max(1)].kill();
            }
            _ => kept[victim].kill(),
        }
        recovered.push(stage.recovered(round, &mut kept).await);
        load.await.expect("everything is enqueued");
    }

    // No more faults: everything comes to its end.
    let settled = stage.clock.elapsed();
    let patience = PATIENCE + Duration::from_millis(20 * tasks);
    for (table, ended) in
        [("jobs", "'completed', 'failed', 'cancelled'"), ("pipeline_runs", "'completed', 'failed', 'cancelled'")]
    {
        let open = format!("SELECT COUNT(*) FROM {table} WHERE status NOT IN ({ended})");
        while world.number(&open).await > 0 {
            assert!(
                stage.clock.elapsed() < settled + patience,
                "{} of {table} are still open",
                world.number(&open).await
            );
            kept.iter_mut().for_each(Kept::keep);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let ended = stage.clock.elapsed();
    recovered.sort_unstable();
    eprintln!(
        "{tasks} tasks and {runs} runs in {:?} with {rounds} faults; after a fault a new task was done within {:?} (median), {:?} (longest); the last {:?} without faults",
        ended - began,
        recovered[recovered.len() / 2],
        recovered[recovered.len() - 1],
        ended - settled
    );
    stage.stop.cancel();
    workers.close();
    workers.wait().await;
    account(&world, &stage, tasks, runs, rounds).await;

    let calls = calls.lock().expect("calls").clone();
    assert_eq!(calls.len() as u64, runs, "every run made its call");
    for (path, keys) in &calls {
        assert_eq!(keys.len(), 1, "{path}: a call that is repeated has the same key: {keys:?}");
    }
    drop(kept);
    world.end().await;
}

/// What the rows say, held against what was asked for and what was answered.
async fn account(world: &World, stage: &Stage, tasks: u64, runs: u64, rounds: u64) {
    let count = async |what: &str| world.number(&format!("SELECT COUNT(*) FROM {what}")).await as u64;
    let hopeless = (0..tasks).filter(|n| (*n as i64) % HOPELESS == 0).count() as u64;
    assert_eq!(count("jobs WHERE kind IN ('work', 'hopeless')").await, tasks, "every task is there once");
    assert_eq!(count("jobs WHERE kind = 'work' AND status = 'completed'").await, tasks - hopeless, "with a result");
    assert_eq!(count("jobs WHERE kind = 'hopeless' AND status = 'failed'").await, hopeless);
    assert_eq!(count("dlq WHERE status = 'open'").await, hopeless, "or in the dead letters");
    assert_eq!(count("dlq WHERE task_id <> 'hopeless'").await, 0);
    assert_eq!(count("jobs WHERE kind = 'real' AND status = 'completed'").await, rounds);
    let n = |column: &str| match world.is_sqlite() {
        true => format!("{column} ->> 'n'"),
        false => format!("CAST({column} ->> 'n' AS BIGINT)"),
    };
    let wrong =
        format!("jobs WHERE kind IN ('work', 'step') AND ({} <> {} OR result IS NULL)", n("input"), n("result"));
    assert_eq!(count(&wrong).await, 0, "each with its own result");
    let different = format!("(SELECT DISTINCT {} FROM jobs WHERE kind IN ('work', 'hopeless')) AS numbers", n("input"));
    assert_eq!(count(&different).await, tasks);
    let twice: Vec<(i64, u32)> = stage
        .completions
        .lock()
        .expect("a lock")
        .iter()
        .filter(|(_, times)| **times > 1)
        .map(|(run, times)| (*run, *times))
        .collect();
    assert!(twice.is_empty(), "a completion is taken once: {twice:?}");
    // A try that ended is written down once, and none is missing.
    assert_eq!(
        count("(SELECT job_id, attempt FROM job_attempts GROUP BY job_id, attempt HAVING COUNT(*) > 1) AS doubled")
            .await,
        0
    );
    assert_eq!(count("jobs WHERE attempt <> (SELECT COUNT(*) FROM job_attempts WHERE job_id = jobs.id)").await, 0);
    assert_eq!(
        world.number("SELECT coalesce(SUM(n), 0) FROM tallies WHERE name = 'jobs' AND key = 'completed'").await as u64,
        count("jobs WHERE status = 'completed'").await
    );

    assert_eq!(count("pipeline_runs").await, runs, "every run is there once");
    assert_eq!(count("pipeline_runs WHERE status = 'completed'").await, runs);
    let input = match world.is_sqlite() {
        true => "input ->> 'n'".to_owned(),
        false => "CAST(input ->> 'n' AS BIGINT)".to_owned(),
    };
    let output = if world.is_sqlite() { "CAST(output AS INTEGER)" } else { "CAST(output #>> '{}' AS BIGINT)" };
    assert_eq!(
        count(&format!("pipeline_runs WHERE {output} <> 4 * ({input}) + 3")).await,
        0,
        "each with its own output"
    );
    assert_eq!(count("pipeline_steps WHERE status = 'completed'").await, runs * 9, "six steps, and three items");
    assert_eq!(count("jobs WHERE kind = 'step'").await, runs, "each run enqueued its task once");
    assert_eq!(count("jobs WHERE kind = 'step' AND status = 'completed'").await, runs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_and_run_ends_once_on_sqlite() {
    story(World::on_sqlite().await, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_and_run_ends_once_while_postgres_is_restarted() {
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.expect("a start").map(Arc::new);
    let Some(cluster) = cluster else { return };
    story(World::at(cluster.url()).await, Some(cluster)).await;
}

on_both! {
    async fn clocks_that_jump_lose_and_double_nothing(world) {
        world.config.secret_key = KEY.into();
        world.start().await;
        let address = world.app.as_ref().and_then(App::address).expect("an address");
        let http = reqwest::Client::new();
        let random = Random::seeded(7);
        let key = showrunner::storage::SecretKey::parse(&KEY.into()).expect("good").expect("a key");
        let bearer = async || {
            let at = world.db.now().await.expect("a time").utc().timestamp();
            key.sign(&showrunner::storage::Registration { iss: "troupe".to_owned(), iat: at, exp: at + 60, jti: random.token() })
        };
        let post = async |path: String, body: Value, bearer: &str| {
            let response = http.post(format!("http://{address}{path}")).json(&body).bearer_auth(bearer).send().await.expect("an answer");
            (response.status().as_u16(), response.json::<Value>().await.expect("JSON"))
        };
        let tasks = json!({ "tasks": [{ "id": "work", "heartbeatIntervalMs": 1000, "maxAttempts": 1000, "retryDelayMs": 0 }] });
        assert_eq!(post("/api/register".to_owned(), tasks, &bearer().await).await.0, 200);
        let batch: Vec<Value> = (0..40).map(|n| json!({ "taskId": "work", "input": { "n": n } })).collect();
        world.post("/api/queue/batch", &json!({ "tasks": batch })).await;
        let mut held: Vec<Value> = Vec::new();
        let mut taken: BTreeMap<i64, u32> = BTreeMap::new();
        let mut round = 0;
        loop {
            round += 1;
            assert!(round < 1_000, "{} are done", taken.len());
            if world.number("SELECT COUNT(*) FROM jobs WHERE status = 'completed'").await == 40 {
                break;
            }
            // What waits for a time that a jump has moved away comes when the clock has come to rest.
            match if round < 150 { random.between(0, 5) } else { 6 } {
                0 => world.clock.jump(TimeDelta::hours(3)),
                1 => world.clock.jump(TimeDelta::hours(-3)),
                2 => world.clock.jump(TimeDelta::seconds(-3)),
                6 => world.clock.advance(Duration::from_secs(600)),
                _ => world.clock.advance(Duration::from_millis(700)),
            }
            let (status, said) = post("/api/pull".to_owned(), json!({ "worker": "w", "limit": 5 }), &bearer().await).await;
            assert_eq!(status, 200, "round {round}: {said}");
            held.extend(said["runs"].as_array().cloned().unwrap_or_default());
            // Some call back now, some much later, under leases that are gone by then.
            for _ in 0..random.between(0, 4).min(held.len() as u64) {
                let run = held.swap_remove(random.between(0, held.len() as u64 - 1) as usize);
                let body = json!({ "lease": run["lease"], "status": "completed", "result": run["input"] });
                let (status, _) = post(format!("/api/callback/{}", run["runId"]), body, run["token"].as_str().expect("a token")).await;
                if status == 200 {
                    *taken.entry(run["runId"].as_i64().expect("a number")).or_default() += 1;
                }
            }
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE status = 'completed' AND kind = 'work'").await, 40);
        assert!(taken.len() == 40 && taken.values().all(|times| *times == 1), "{taken:?}");
        assert_eq!(world.number("SELECT COUNT(*) FROM dlq").await, 0);
    }
}
