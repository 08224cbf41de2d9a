//! Two hosts, really apart: network namespaces with a cable between them that the story pulls. Needs root; where a
//! machine lacks them, the proxy of `fleet_model` does the same in the process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::desk::{Agent, PATIENCE, TOKEN};
use crate::support::process::Process;

const OPERATOR: &str = "the-operators-own-token";

fn ip(arguments: &str) -> bool {
    let ended = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    ended.is_ok_and(|ended| ended.success())
}

/// A host of its own at the end of a cable; gone when dropped.
struct Host {
    name: String,
    cable: String,
    here: String,
}

impl Host {
    /// None, with a line that says so, where this machine does not let us.
    fn new(number: u8) -> Option<Self> {
        let process = std::process::id() % 10_000;
        let (name, cable) = (format!("showrunner-{process}-{number}"), format!("sr{process}x{number}"));
        let (here, there) = (format!("10.213.{number}.1"), format!("10.213.{number}.2"));
        if !ip(&format!("netns add {name}")) {
            eprintln!("skipped: no network namespaces; they need root and iproute2");
            return None;
        }
        let host = Self { name: name.clone(), cable: cable.clone(), here: here.clone() };
        let steps = [
            format!("link add {cable} type veth peer name {cable}p netns {name}"),
            format!("addr add {here}/30 dev {cable}"),
            format!("link set {cable} up"),
            format!("-n {name} addr add {there}/30 dev {cable}p"),
            format!("-n {name} link set {cable}p up"),
            format!("-n {name} link set lo up"),
        ];
        if !steps.iter().all(|step| ip(step)) {
            eprintln!("skipped: no virtual cables between network namespaces");
            return None;
        }
        Some(host)
    }

    fn plug(&self, is_in: bool) {
        assert!(ip(&format!("link set {} {}", self.cable, if is_in { "up" } else { "down" })));
    }

    fn agent(&self, id: &str, port: &str, folder: &Path, command: &str) -> Agent {
        let url = format!("ws://{}:{port}/agent", self.here);
        Agent::start_in(&["ip", "netns", "exec", &self.name], id, &url, folder, command, &[])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
        ip(&format!("link del {}", self.cable));
    }
}

async fn ask(method: reqwest::Method, address: &str, path: &str, body: Option<Value>) -> Value {
    let request = reqwest::Client::new().request(method, format!("http://{address}{path}")).bearer_auth(OPERATOR);
    let request = if let Some(body) = body { request.json(&body) } else { request };
    let text = request.send().await.expect("an answer").text().await.expect("a body");
    serde_json::from_str(&text).expect("JSON")
}

async fn until(address: &str, path: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let began = tokio::time::Instant::now();
    loop {
        let answer = ask(reqwest::Method::GET, address, path, None).await;
        if fits(&answer) {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "{path} never fitted: {answer:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// When a program wrote its first and last line, in seconds.
fn lines(file: &Path) -> (f64, f64) {
    let text = std::fs::read_to_string(file).expect("a program wrote it");
    let times: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    (times[0], times[times.len() - 1])
}

crate::on_both! {
    async fn a_stream_cut_off_from_its_orchestrator_runs_elsewhere_and_not_twice_for_longer_than_the_kill_time(world) {
        let (Some(one), Some(two)) = (Host::new(if world.is_sqlite() { 1 } else { 3 }), Host::new(if world.is_sqlite() { 2 } else { 4 })) else {
            return world.end().await;
        };
        let tokens = format!("story:admin:{OPERATOR}");
        let settings = [
            ("HOST", "0.0.0.0"),
            ("SHOWRUNNER_AUTH__TOKENS", tokens.as_str()),
            ("AGENT_TOKEN", TOKEN),
            ("HEARTBEAT_INTERVAL_MS", "300"),
            ("HEARTBEAT_TIMEOUT_MS", "2000"),
            ("SHOWRUNNER_FLEET__RECONNECT_GRACE_MS", "4000"),
            ("STOP_GRACE_MS", "1000"),
            ("KILL_AFTER_MS", "2000"),
        ];
        let server = Process::serve(world.url(), &settings).await;
        let port = server.address().rsplit_once(':').expect("a port").1.to_owned();
        let address = format!("127.0.0.1:{port}");
        // Each program writes the time every 50 ms for as long as it lives.
        let command = "sh -c 'while :; do date +%s.%N >>{jobId}-{agentId}; sleep 0.05; done'";
        let _one = one.agent("one", &port, world.folder(), command);
        until(&address, "/v1/agents", |agents| agents[0]["state"] == "IDLE").await;
        let body = json!({ "inlineConfig": { "n": 1 }, "restartPolicy": "onFailure" });
        let job = ask(reqwest::Method::POST, &address, "/v1/jobs", Some(body)).await;
        let id = job["id"].as_str().expect("an id").to_owned();
        let path = format!("/v1/jobs/{id}");
        until(&address, &path, |job| job["status"] == "RUNNING" && job["agentId"] == "one").await;
        let _two = two.agent("two", &port, world.folder(), command);
        until(&address, "/v1/agents", |agents| agents.as_array().is_some_and(|agents| agents.len() == 2)).await;

        one.plug(false);
        until(&address, &path, |job| job["status"] == "UNKNOWN").await;
        until(&address, &path, |job| job["status"] == "RUNNING" && job["agentId"] == "two").await;
        let first = world.folder().join(format!("{id}-one"));
        let second = world.folder().join(format!("{id}-two"));
        one.plug(true);
        // It comes back, and has nothing of the stream any more.
        until(&address, "/v1/agents", |agents| agents[0]["state"] == "IDLE").await;
        let (_, last_of_one) = lines(&first);
        let (first_of_two, _) = lines(&second);
        let overlap = last_of_one - first_of_two;
        eprintln!("the stream ran on both for {overlap:.3} s");
        assert!(overlap <= 3.0, "{overlap} s is longer than the kill time");

        // A short cut costs nothing: the agent keeps its stream.
        until(&address, &path, |job| job["status"] == "RUNNING" && job["agentId"] == "two").await;
        two.plug(false);
        tokio::time::sleep(Duration::from_secs(1)).await; // the length of the cut is the story
        two.plug(true);
        let before = ask(reqwest::Method::GET, &address, &path, None).await;
        tokio::time::sleep(Duration::from_secs(8)).await; // longer than it would take to be lost
        let after = until(&address, &path, |job| job["status"] == "RUNNING").await;
        assert_eq!(after["lease"], before["lease"]);
    }
}
