//! The real server, real agents and real programs, with a network between them that fails in every way that a proxy can
//! bring about: delay, loss, trickle, silence in one direction or both, connections that are half open, dead, or cut.
//!
//! In the random story every agent has weather of its own, from a seed that is printed:
//! `NETWORK_SEED=17 cargo test --locked --test it fleet_agent::network`; `NETWORK_STORM=600` is so many seconds of it.
//! What really runs is seen at the programs themselves: each says when it begins, and holds a pipe open until it ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use showrunner::clock::SystemClock;
use showrunner::random::Random;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::desk::{Agent, TOKEN};
use crate::fleet_model::truth::Truth;
use crate::support::World;
use crate::support::network::{Proxy, Weather};
use crate::support::process::Process;

/// The server's settings, in milliseconds.
struct Terms {
    timeout: u64,
    grace: u64,
    stop: u64,
    kill: u64,
}

/// As by default, the time-out is shorter than the kill time: an agent that is not told that its connection was closed
/// runs on for that much longer.
const USUAL: Terms = Terms { timeout: 2_000, grace: 5_000, stop: 1_000, kill: 2_000 };
/// The other way round, so that agents have to end in time what nobody can tell them to end.
const QUICK_KILL: Terms = Terms { timeout: 3_000, grace: 5_000, stop: 500, kill: 1_000 };
/// How long the network fails, where nobody asks for more.
const TROUBLE: Duration = Duration::from_secs(12);
/// An agent's longest wait before it connects again is 30 s, and this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(180);
const SLOTS: usize = 3;
/// Streams that run until they are stopped: all of them find a slot, also where one agent is away.
const MOST_LONG: usize = 8;

/// Holds a pipe, says who began, and runs for a while.
const COMMAND: &str =
    "sh -c 'mkfifo $$; exec 3<>$$; echo {jobId} {agentId} $$ >programs; sleep {seconds}; exit {code}'";

const WEATHERS: [Weather; 9] = [
    Weather::Slow(300),
    Weather::Trickle,
    Weather::Lossy,
    Weather::Partition,
    Weather::Deaf,
    Weather::Mute,
    Weather::Swallow,
    Weather::HalfOpen,
    Weather::Reset,
];

struct Stage {
    server: Process,
    agents: Vec<(&'static str, Arc<Proxy>, Agent)>,
    truth: Truth,
    kill_time: Duration,
    witness: JoinHandle<()>,
}

impl Stage {
    async fn set(world: &World, terms: &Terms, names: &[&'static str], random: &Random) -> Self {
        let numbers = [terms.timeout, terms.grace, terms.stop, terms.kill].map(|number| number.to_string());
        let settings = [
            ("AGENT_TOKEN", TOKEN),
            ("HEARTBEAT_INTERVAL_MS", "300"),
            ("HEARTBEAT_TIMEOUT_MS", &numbers[0]),
            ("SHOWRUNNER_FLEET__RECONNECT_GRACE_MS", &numbers[1]),
            ("STOP_GRACE_MS", &numbers[2]),
            ("KILL_AFTER_MS", &numbers[3]),
        ];
        let server = Process::serve(world.url(), &settings).await;
        let address: SocketAddr = server.address().parse().expect("an address");
        let truth = Truth::new(SystemClock::shared());
        let witness = tokio::spawn(watch(world.folder().to_owned(), truth.clone()));
        let slots = SLOTS.to_string();
        let mut agents = Vec::new();
        for &name in names {
            let proxy = Proxy::before(address, random.clone()).await;
            let url = format!("ws://{}/agent", proxy.address);
            let agent = Agent::start_in(&[], name, &url, world.folder(), COMMAND, &["--slots", &slots]);
            agents.push((name, Arc::new(proxy), agent));
        }
        let kill_time = Duration::from_millis(terms.stop + terms.kill);
        let stage = Self { server, agents, truth, kill_time, witness };
        stage.until("all agents are there", |stage, _| stage.running().is_empty()).await;
        stage
    }

    fn weather(&self, agent: &str, weather: Weather) {
        let (_, proxy, _) = self.agents.iter().find(|(name, ..)| *name == agent).expect("an agent");
        proxy.set(weather);
    }

    async fn submit(&self, seconds: u64, code: u8, policy: &str, prefers: &[&str]) -> String {
        let body = json!({ "inlineConfig": { "seconds": seconds, "code": code }, "restartPolicy": policy,
            "prefers": prefers });
        let (status, job) = self.server.post("/v1/jobs", &body).await;
        assert_eq!(status, 201, "{job}");
        job["id"].as_str().expect("an id").to_owned()
    }

    async fn drain(&self, agent: &str, drain: bool) {
        let body = json!({ "drain": drain, "deadlineSeconds": 0 });
        let (status, answer) = self.server.post(&format!("/v1/agents/{agent}/drain"), &body).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Which agents really run a job.
    fn running(&self) -> BTreeMap<String, Vec<String>> {
        let running = self.truth.running().into_iter();
        running.map(|(job, programs)| (job, programs.into_iter().map(|(agent, _)| agent).collect())).collect()
    }

    /// What holds at any time.
    fn hold(&self) {
        assert!(!self.witness.is_finished(), "no agent ran a job twice at once");
        let overlap = self.truth.longest_overlap();
        assert!(overlap <= self.kill_time, "a stream ran on two agents for {overlap:?}, longer than the kill time");
    }

    /// Waits until every agent is connected and `fits` holds of all jobs.
    async fn until(&self, what: &str, fits: impl Fn(&Self, &[Value]) -> bool) {
        self.until_seen(what, |stage, jobs, agents| {
            let online = agents.iter().filter(|agent| agent["state"] != "OFFLINE").count();
            online == stage.agents.len() && fits(stage, jobs)
        })
        .await;
    }

    async fn until_seen(&self, what: &str, fits: impl Fn(&Self, &[Value], &[Value]) -> bool) {
        let began = tokio::time::Instant::now();
        loop {
            let (jobs, agents) = (self.server.get("/v1/jobs").await, self.server.get("/v1/agents").await);
            self.hold();
            if fits(self, jobs.as_array().expect("a list"), agents.as_array().expect("a list")) {
                return;
            }
            let running = self.running();
            assert!(began.elapsed() < PATIENCE, "not in time: {what}: {running:?}, {agents:#}, {jobs:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Notes each program's beginning, which it says, and its end, with which its pipe is let go.
async fn watch(folder: PathBuf, truth: Truth) {
    let path = folder.join("programs");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
    assert!(made.success());
    // Open for writing too, so that it does not end where nobody writes.
    let fifo = pipe::OpenOptions::new().read_write(true).open_receiver(&path).expect("a pipe");
    let mut lines = BufReader::new(fifo).lines();
    while let Some(line) = lines.next_line().await.expect("a line") {
        let words: Vec<&str> = line.split(' ').collect();
        let [job, agent, id] = words[..] else { panic!("{line}") };
        let (job, agent, id) = (job.to_owned(), agent.to_owned(), id.parse::<i64>().expect("a number"));
        let mut leash = pipe::OpenOptions::new().open_receiver(folder.join(id.to_string())).expect("its pipe");
        truth.begins(&job, &agent, id);
        let truth = truth.clone();
        tokio::spawn(async move {
            while leash.read(&mut [0; 16]).await.expect("its end") > 0 {}
            truth.ends(&job, &agent, id, None);
        });
    }
}

/// One agent's weather, until it clears up for good.
async fn storm(proxy: Arc<Proxy>, random: Random, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.between(100, 3_000))).await;
        proxy.set(WEATHERS[random.between(0, WEATHERS.len() as u64 - 1) as usize]);
        tokio::time::sleep(Duration::from_millis(random.between(200, 10_000))).await;
        proxy.set(Weather::Fine);
    }
}

fn is_final(job: &Value) -> bool {
    !job["endedAt"].is_null()
}

/// Whether the job has ended and nothing of it runs, or runs where its lease says and nowhere else.
fn is_settled(stage: &Stage, job: &Value) -> bool {
    let running = stage.running().remove(job["id"].as_str().expect("an id")).unwrap_or_default();
    if is_final(job) {
        running.is_empty()
    } else {
        job["status"] == "RUNNING" && json!(running) == json!([job["agentId"]])
    }
}

crate::on_both! {
    async fn whatever_the_network_does_no_stream_runs_twice_for_long_and_none_is_lost(world) {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
        let seed = number("NETWORK_SEED").unwrap_or_else(|| Random::from_machine().seed());
        let trouble = number("NETWORK_STORM").map_or(TROUBLE, Duration::from_secs);
        eprintln!("NETWORK_SEED={seed}");
        let random = Random::seeded(seed);
        let names = ["one", "two", "three", "four"];
        let stage = Stage::set(&world, &USUAL, &names, &random).await;
        let over = Arc::new(AtomicBool::new(false));
        let own = |_: &_| Random::seeded(random.between(0, u64::MAX - 1));
        let storms: Vec<_> =
            stage.agents.iter().map(|agent| tokio::spawn(storm(agent.1.clone(), own(agent), over.clone()))).collect();

        let (mut jobs, mut long) = (Vec::new(), 0);
        let began = tokio::time::Instant::now();
        while began.elapsed() < trouble {
            match random.between(0, 9) {
                0..=2 if long < MOST_LONG => {
                    long += 1;
                    jobs.push(stage.submit(3_600, 0, ["onFailure", "always"][long % 2], &[]).await);
                }
                0..=4 => {
                    let code = if random.between(0, 3) == 0 { 7 } else { 0 };
                    jobs.push(stage.submit(random.between(1, 6), code, "never", &[]).await);
                }
                5 if !jobs.is_empty() => {
                    let job = &jobs[random.between(0, jobs.len() as u64 - 1) as usize];
                    stage.server.poke(&format!("/v1/jobs/{job}/stop")).await;
                }
                6 => stage.drain(names[random.between(0, 3) as usize], true).await,
                7 | 8 => stage.drain(names[random.between(0, 3) as usize], false).await,
                _ => {}
            }
            stage.hold();
            tokio::time::sleep(Duration::from_millis(random.between(100, 1_000))).await; // the pace of the story
        }
        over.store(true, Ordering::Relaxed);
        storms.iter().for_each(JoinHandle::abort);
        for name in names {
            stage.weather(name, Weather::Fine);
            stage.drain(name, false).await;
        }
        stage.until("every job is over or runs under its lease", |stage, all| {
            all.len() == jobs.len() && all.iter().all(|job| is_settled(stage, job))
        }).await;
        for job in &jobs {
            stage.server.poke(&format!("/v1/jobs/{job}/stop")).await;
        }
        stage.until("every job is over, and nothing runs", |stage, all| {
            all.iter().all(is_final) && stage.running().is_empty()
        }).await;
        let overlap = stage.truth.longest_overlap();
        eprintln!("  {} jobs, {} programs; the longest on two agents: {overlap:?}", jobs.len(), stage.truth.begun());
        assert!(stage.truth.begun() > 3, "the story was about something");
    }

    /// One agent can be told and not heard, the other heard and not told, and its stream is to begin elsewhere. Neither
    /// learns of that: each ends its stream by itself, before it runs elsewhere for longer than the kill time.
    async fn a_network_that_carries_one_way_only_does_not_double_a_stream(world) {
        let stage = Stage::set(&world, &QUICK_KILL, &["one", "two", "three"], &Random::seeded(1)).await;
        let unheard = stage.submit(3_600, 0, "onFailure", &["one"]).await;
        let untold = stage.submit(3_600, 0, "onFailure", &["two"]).await;
        let on = |agents: [&str; 2]| [(unheard.clone(), vec![agents[0].to_owned()]), (untold.clone(), vec![agents[1].to_owned()])];
        stage.until("both run", |stage, jobs| {
            stage.running() == on(["one", "two"]).into() && jobs.iter().all(|job| is_settled(stage, job))
        }).await;
        stage.weather("one", Weather::Deaf);
        stage.weather("two", Weather::Mute);
        stage.drain("two", true).await;
        stage.until_seen("both run elsewhere, and only there", |stage, jobs, _| {
            stage.running() == on(["three", "three"]).into() && jobs.iter().all(|job| is_settled(stage, job))
        }).await;
        eprintln!("  the longest on two agents: {:?}", stage.truth.longest_overlap());
        stage.weather("one", Weather::Fine);
        stage.weather("two", Weather::Fine);
        stage.until("all agents are back", |stage, jobs| jobs.iter().all(|job| is_settled(stage, job))).await;
        assert_eq!(stage.running(), on(["three", "three"]).into());
    }
}
