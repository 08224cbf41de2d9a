//! The fleet's door under load: `cargo bench --bench fleet`, and the same fan-out by Node's `ws` in the same run.
//!
//! A server process of its own; all agents and watchers in this one, on the same machine, so that both share its cores.
//! `-- --quick` takes a tenth of everything; `FLEET_AGENTS` and `FLEET_WATCHERS` set the numbers. The server is started
//! with a high `http.requests_per_second`: here ten thousand agents come from one machine, which else is one client.
//! Node's server needs `ws`: `npm install --prefix target/test-node ws@8`; without it those lines are left out.

#![allow(clippy::disallowed_methods)] // a benchmark measures the machine's own time

mod clients;
#[allow(dead_code)] // shared with the other benchmarks, which need other parts of it
#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use showrunner::clock::SystemClock;

use clients::{Crowd, Job, MARK, Watchers, until};
use support::{Goal, Place, Report, percentile, resident_mebibytes};

/// Agents that take the jobs whose assignment is measured: more than 500 messages at once of one agent would break its
/// rate.
const TAKERS: usize = 100;

struct Size {
    agents: usize,
    watchers: usize,
    steady: Duration,
    updates: usize,
    jobs: usize,
}

#[tokio::main]
async fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let number = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let tenth = if quick { 10 } else { 1 };
    let size = Size {
        agents: number("FLEET_AGENTS", 10_000 / tenth),
        watchers: number("FLEET_WATCHERS", 1_000 / tenth),
        steady: Duration::from_secs(if quick { 6 } else { 30 }),
        updates: 300 / tenth,
        jobs: 5_000 / tenth,
    };
    raise_the_bound_on_files();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut report = Report::begin(quick);
    let mut ours = None;
    for place in Place::both().await {
        let db = place.open(SystemClock::shared()).await;
        let server = Server::ours(&place.url);
        report.part(&format!("Showrunner on {}: {} agents, {} watchers", place.name, size.agents, size.watchers));
        assignments(&mut report, &server, size.jobs).await;
        drop(server);
        let server = Server::ours(&place.url); // as it is after a start, so that memory is the connections'
        ours = Some(connections(&mut report, &server, &size).await);
        drop(server);
        place.close(db).await;
    }
    if let Some(server) = Server::node() {
        report.part(&format!("Node's ws alone: {} agents, {} watchers", size.agents, size.watchers));
        let theirs = connections(&mut report, &server, &size).await;
        if let Some(ours) = ours {
            report.part("Showrunner (the last database above) ÷ Node's ws alone");
            report.figure("CPU seconds for heartbeats", ours.beating / theirs.beating, "×", Goal::None);
            report.figure("CPU seconds for updates to all watchers", ours.updating / theirs.updating, "×", Goal::None);
            report.figure("update latency p50", ours.p50 / theirs.p50, "×", Goal::None);
            report.figure("update latency p99", ours.p99 / theirs.p99, "×", Goal::None);
            report.figure("memory of a connection", ours.kibibytes / theirs.kibibytes, "×", Goal::None);
        }
    }
    report.end();
}

/// Each connection is a file; so many as the machine allows.
fn raise_the_bound_on_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// A server process; killed when dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn ours(url: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command.arg("serve").env("DATABASE_URL", url).env("PORT", "0").env("LOG_LEVEL", "error");
        command.env("SHOWRUNNER_HTTP__REQUESTS_PER_SECOND", "100000").env_remove("AGENT_TOKEN");
        Self::start(command)
    }

    /// None where `ws` is not installed.
    fn node() -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("target/test-node");
        if !folder.join("node_modules/ws").is_dir() {
            println!("\nNode's ws: left out; `npm install --prefix target/test-node ws@8` installs it");
            return None;
        }
        // A module finds its packages by where it lies.
        let copy = folder.join("ws-fanout.mjs");
        std::fs::copy(root.join("benches/peers/ws-fanout/server.mjs"), &copy).expect("a copy");
        let mut command = Command::new("node");
        command.arg(copy);
        Some(Self::start(command))
    }

    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the server starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split_once("http://")?.1.trim().to_owned()));
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("it says where it listens") }
    }

    /// Seconds of processor time that it has used.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("Linux");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        let ticks = |place: usize| fields[place].parse::<f64>().expect("ticks");
        (ticks(11) + ticks(12)) / 100.0 // USER_HZ is 100 wherever Linux runs
    }

    fn kibibytes(&self) -> f64 {
        resident_mebibytes(self.child.id()) * 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Figures {
    beating: f64,
    updating: f64,
    p50: f64,
    p99: f64,
    kibibytes: f64,
}

/// Heartbeats, updates to watchers, and a reconnect of all at once.
async fn connections(report: &mut Report, server: &Server, size: &Size) -> Figures {
    let empty = server.kibibytes();
    let began = Instant::now();
    let crowd = Crowd::connect(&server.address, "agent", size.agents, 1).await;
    crowd.all_welcome().await;
    report.figure("all agents connected, from nothing", began.elapsed().as_secs_f64(), "s", Goal::None);
    // Buffers of the crowd's arrival are given back or not; what it takes to hold the connections is what counts.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let kibibytes = (server.kibibytes() - empty) / size.agents as f64;
    report.figure("memory of a connected agent", kibibytes, "KiB", Goal::AtMost(32.0));

    let (began, used) = (Instant::now(), server.cpu());
    tokio::time::sleep(size.steady).await;
    let beating = (server.cpu() - used) / began.elapsed().as_secs_f64();
    report.figure("heartbeats of all every 3 s: one core's share", beating * 100.0, "%", Goal::None);

    let watchers = Watchers::connect(&server.address, size.watchers).await;
    let jobs = crowd.jobs(&server.address, 20).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    watchers.forget();
    let (began, used) = (Instant::now(), server.cpu());
    for update in 0..size.updates {
        let job = &jobs[update % jobs.len()];
        crowd.update(job, &format!("{MARK}{}", watchers.now()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wanted = size.updates * size.watchers;
    until("every watcher has heard every update", || watchers.heard() >= wanted || began.elapsed().as_secs() > 60)
        .await;
    let updating = server.cpu() - used - beating * began.elapsed().as_secs_f64();
    let mut latencies = watchers.latencies();
    report.figure("updates that arrived", latencies.len() as f64 * 100.0 / wanted as f64, "%", Goal::None);
    let (p50, p99) = (percentile(&mut latencies, 0.5), percentile(&mut latencies, 0.99));
    report.figure("agent's message to a watcher, p50", p50, "ms", Goal::None);
    report.figure("agent's message to a watcher, p99", p99, "ms", Goal::AtMost(50.0));
    let each = updating.max(0.01) * 1e6 / wanted as f64;
    report.figure("processor time of an update to one watcher", each, "µs", Goal::None);
    drop(watchers);

    let began = Instant::now();
    crowd.drop_all();
    crowd.all_welcome().await;
    let settled = began.elapsed().as_secs_f64();
    report.figure("all cut off at once, and welcome again", settled, "s", Goal::AtMost(30.0));
    Figures { beating, updating: updating.max(0.01), p50, p99, kibibytes }
}

/// Jobs that wait, and then agents with slots for all of them: how many offers are made a second.
async fn assignments(report: &mut Report, server: &Server, jobs: usize) {
    let http = reqwest::Client::new();
    let began = Instant::now();
    let body = json!({ "inlineConfig": { "streamUrl": "rtmp://example.com/live" }, "requires": { "taker": true } });
    let submitters: Vec<_> = (0..50)
        .map(|_| {
            let (http, body, url) = (http.clone(), body.clone(), format!("http://{}/v1/jobs", server.address));
            tokio::spawn(async move {
                for _ in 0..jobs / 50 {
                    let answer = http.post(&url).json(&body).send().await.expect("an answer");
                    assert_eq!(answer.status(), 201);
                }
            })
        })
        .collect();
    for submitter in submitters {
        submitter.await.expect("a submitter");
    }
    let rate = jobs as f64 / began.elapsed().as_secs_f64();
    report.figure("submitted by 50 clients", rate, "jobs/s", Goal::None);
    let takers = Crowd::connect(&server.address, "taker", TAKERS, jobs.div_ceil(TAKERS)).await;
    takers.all_welcome().await;
    until("every job is offered", || takers.offers() >= jobs).await;
    let took = takers.offering().as_secs_f64();
    report.figure("assigned, from the first offer to the last", jobs as f64 / took, "jobs/s", Goal::AtLeast(2_000.0));
    until("every job runs", || takers.answered() >= jobs).await;
    let url = format!("http://{}/v1/jobs?limit=1000", server.address);
    let asking = async {
        loop {
            let answer = http.get(&url).send().await.expect("an answer").text().await.expect("a body");
            let listed: Vec<Job> = serde_json::from_str(&answer).expect("a list");
            if listed.iter().all(|job| job.status == "RUNNING") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.expect("they run");
    let ran = takers.since_first_offer().as_secs_f64();
    report.figure("first offer to all on the air, as the list tells", ran, "s", Goal::None);
}
