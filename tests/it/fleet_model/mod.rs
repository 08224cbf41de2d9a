//! Random agents on a bad network against the real service, from a seed: whatever they say, the invariants hold.
//!
//! Time is the story's: a clock that goes on in small steps while agents and service work, so that minutes of time-outs
//! pass in seconds. What agents do follows from the seed; in which order messages arrive does not quite, so that a seed
//! that fails may need a few runs to fail again.
//!
//! ```sh
//! FLEET_SEEDS=50 cargo test --locked --test it fleet_model -- --nocapture
//! FLEET_SEED=17 cargo test --locked --test it fleet_model -- --nocapture
//! ```

mod agent;
pub mod truth;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use showrunner::clock::SharedClock;
use showrunner::random::Random;

use crate::support::World;
use crate::support::network::{Proxy, Weather};
use crate::support::world::time;
use agent::{Agent, Nature, Terms};
use truth::Truth;

/// Each step of the story's clock, and the real pause after it, in which the service works.
const STEP: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_millis(10);
/// How long things go wrong, and how long they may take to settle, of the story's time.
const TROUBLE: Duration = Duration::from_secs(60);
const SETTLING: Duration = Duration::from_secs(240);
const AGENTS: usize = 5;

const INTERVAL_MS: u64 = 1_000;
const TIMEOUT_MS: u64 = 3_000;
const GRACE_MS: u64 = 4_000;
const STOP_GRACE_MS: u64 = 2_000;
const KILL_AFTER_MS: u64 = 1_500;

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("FLEET_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("FLEET_SEEDS").unwrap_or(2)).collect(),
    }
}

crate::on_both! {
    async fn whatever_agents_say_and_networks_do_the_invariants_hold(world) {
        world.config.fleet.heartbeat_interval_ms = INTERVAL_MS;
        world.config.fleet.heartbeat_timeout_ms = TIMEOUT_MS;
        world.config.fleet.reconnect_grace_ms = GRACE_MS;
        world.config.fleet.stop_grace_ms = STOP_GRACE_MS;
        world.config.fleet.kill_after_ms = KILL_AFTER_MS;
        world.start().await;
        for seed in seeds() {
            eprintln!("fleet_model: seed {seed}");
            let story = Story::begin(&world, seed).await;
            story.trouble().await;
            story.settle().await;
            story.account().await;
        }
    }
}

struct Story<'a> {
    world: &'a World,
    seed: u64,
    random: Random,
    clock: SharedClock,
    truth: Truth,
    agents: Vec<(String, Proxy)>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    reform: Arc<AtomicBool>,
    /// Jobs of earlier seeds are none of this story's.
    first_job: i64,
}

impl<'a> Story<'a> {
    async fn begin(world: &'a World, seed: u64) -> Self {
        let random = Random::seeded(seed);
        let clock: SharedClock = world.clock.clone();
        let truth = Truth::new(clock.clone());
        let server = world.app.as_ref().and_then(|app| app.address()).expect("a listening service");
        let reform = Arc::new(AtomicBool::new(false));
        let first_job = world.number("SELECT COALESCE(MAX(id), 0) + 1 FROM stream_jobs").await;
        let fence = Duration::from_millis(TIMEOUT_MS + GRACE_MS);
        let terms = Terms { interval: Duration::from_millis(INTERVAL_MS), fence, stop_takes_ms: STOP_GRACE_MS * 2 };
        let (mut agents, mut tasks) = (Vec::new(), Vec::new());
        for number in 0..AGENTS {
            let id = format!("model-{seed}-{number}");
            let own = Random::seeded(random.between(0, u64::MAX - 1));
            let nature = Nature::draw(&own, number == AGENTS - 1);
            eprintln!("  {id}: {nature:?}");
            let proxy = Proxy::before(server, own.clone()).await;
            let (clock, truth, reform) = (clock.clone(), truth.clone(), reform.clone());
            let agent = Agent::new(id.clone(), nature, proxy.address, clock, own, truth, terms, reform);
            tasks.push(tokio::spawn(agent.live()));
            agents.push((id, proxy));
        }
        Self { world, seed, random, clock, truth, agents, tasks, reform, first_job }
    }

    /// Lets the story's time go on by one step.
    async fn step(&self) {
        self.world.clock.advance(STEP);
        tokio::time::sleep(PAUSE).await;
    }

    async fn trouble(&self) {
        let until = self.clock.elapsed() + TROUBLE;
        let mut steps = 0_u64;
        while self.clock.elapsed() < until {
            self.step().await;
            steps += 1;
            if steps.is_multiple_of(6) {
                self.meddle().await;
            }
            if steps.is_multiple_of(10) {
                self.hold("while things go wrong").await;
            }
        }
    }

    /// Something that a person, a program or the network does.
    async fn meddle(&self) {
        let world = self.world;
        let job = || format!("/v1/jobs/job-{}", self.first_job as u64 + self.random.between(0, 40));
        let (agent, proxy) = &self.agents[self.random.between(0, AGENTS as u64 - 1) as usize];
        match self.random.between(0, 15) {
            0..=5 => {
                let policy = ["never", "onFailure", "always"][self.random.between(0, 2) as usize];
                let body = json!({ "inlineConfig": { "n": 1 }, "restartPolicy": policy });
                let (status, answer) = world.post("/v1/jobs", &body).await;
                assert_eq!(status, 201, "{answer}");
            }
            6 => _ = world.poke(&format!("{}/stop", job())).await,
            7 => _ = world.poke(&format!("{}/mute", job())).await,
            8 | 9 => {
                let body = json!({ "drain": self.random.between(0, 2) == 0 });
                _ = world.post(&format!("/v1/agents/{agent}/drain"), &body).await;
            }
            10 => proxy.set(Weather::Slow(30)),
            11 => proxy.set(Weather::Partition),
            12 => proxy.set(Weather::Deaf),
            13 => proxy.set(Weather::Reset),
            _ => self.agents.iter().for_each(|(_, proxy)| proxy.set(Weather::Fine)),
        }
    }

    /// What holds at any time.
    async fn hold(&self, when: &str) {
        let held = "'ASSIGNED', 'ACCEPTED', 'STARTING', 'RUNNING', 'STOPPING', 'UNKNOWN'";
        let overrun = self
            .world
            .number(&format!(
                "SELECT COUNT(*) FROM (SELECT agents.id FROM agents JOIN stream_jobs ON agent_id = agents.id
                 AND status IN ({held}) GROUP BY agents.id, slots HAVING COUNT(*) > slots) AS overrun"
            ))
            .await;
        assert_eq!(overrun, 0, "seed {}: slots are overrun {when}", self.seed);
        let kill_time = Duration::from_millis(STOP_GRACE_MS + KILL_AFTER_MS);
        let overlap = self.truth.longest_overlap();
        assert!(overlap <= kill_time, "seed {}: a job ran on two agents for {overlap:?} {when}", self.seed);
    }

    /// The network clears up, agents are as they should be, nobody is drained: everything that waits is placed, and
    /// comes to its end.
    async fn settle(&self) {
        self.reform.store(true, Ordering::Relaxed);
        for (agent, proxy) in &self.agents {
            proxy.set(Weather::Fine);
            let (status, _) = self.world.post(&format!("/v1/agents/{agent}/drain"), &json!({ "drain": false })).await;
            assert!(status == 200 || status == 404, "{status}");
        }
        let until = self.clock.elapsed() + SETTLING;
        let mut steps = 0_u64;
        let mut ended_always = false;
        loop {
            self.step().await;
            steps += 1;
            if !steps.is_multiple_of(10) {
                continue;
            }
            self.hold("while things settle").await;
            let waits = self.count("status IN ('CREATED', 'PENDING', 'ASSIGNED', 'UNKNOWN')").await;
            let waits_always = self.count("restart_policy = 'always' AND ended_at IS NULL").await;
            let open = self.count("ended_at IS NULL").await;
            if open == 0 {
                return;
            }
            // What is begun again for ever is ended by somebody, once everything had its turn.
            if (waits == 0 || open == waits_always) && !ended_always {
                ended_always = true;
                self.end_always().await;
            }
            if ended_always && steps.is_multiple_of(100) {
                self.end_always().await; // one that was ending just then has begun again
            }
            assert!(
                self.clock.elapsed() < until,
                "seed {}: {open} jobs never came to an end: {}; running: {:?}",
                self.seed,
                self.rows().await,
                self.truth.running()
            );
        }
    }

    async fn end_always(&self) {
        let (_, jobs) = self.world.get("/v1/jobs").await;
        for job in jobs.as_array().expect("a list") {
            if job["restartPolicy"] == "always" && job["endedAt"].is_null() {
                _ = self.world.poke(&format!("/v1/jobs/{}/stop", job["id"].as_str().expect("an id"))).await;
            }
        }
    }

    async fn count(&self, which: &str) -> i64 {
        let query = format!("SELECT COUNT(*) FROM stream_jobs WHERE id >= {} AND {which}", self.first_job);
        self.world.number(&query).await
    }

    async fn rows(&self) -> String {
        let gather = if self.world.is_sqlite() { "group_concat" } else { "string_agg" };
        let row = "id || ' ' || status || ' ' || COALESCE(agent_id, '') || ' ' || COALESCE(reason, '')";
        self.world.text(&format!("SELECT {gather}({row}, '; ') FROM stream_jobs WHERE ended_at IS NULL")).await
    }

    /// Every job's life, as its events tell it, is one that the document allows, and has one end.
    async fn account(&self) {
        let (_, jobs) = self.world.get("/v1/jobs").await;
        let jobs: Vec<&Value> =
            jobs.as_array().expect("a list").iter().filter(|job| number(job) >= self.first_job).collect();
        assert!(jobs.len() > 10, "seed {}: the story was about something: {} jobs", self.seed, jobs.len());
        assert!(self.truth.begun() > 10, "seed {}: programs ran", self.seed);
        let mut ends = BTreeMap::<String, usize>::new();
        for job in &jobs {
            let id = job["id"].as_str().expect("an id");
            let end = self.life(id).await;
            assert_eq!(end, job["status"].as_str().expect("a status"), "seed {}: {id}", self.seed);
            *ends.entry(end).or_default() += 1;
            let lease = job["lease"].as_i64().expect("a lease");
            let liar = job["agentId"].as_str().is_some_and(|agent| agent.ends_with(&format!("-{}", AGENTS - 1)));
            // Who was not told to stop has stopped because its program did: nobody else's word counts.
            if job["status"] == "STOPPED" && !liar && !self.was_told_to_stop(id).await {
                assert!(self.truth.ended_well(id, lease), "seed {}: {id} stopped without its program", self.seed);
            }
        }
        eprintln!("  {} jobs, {} programs: {ends:?}", jobs.len(), self.truth.begun());
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }

    async fn was_told_to_stop(&self, id: &str) -> bool {
        let asked = format!("SELECT COUNT(*) FROM ledger_entries WHERE subject = 'stream:{id}'");
        self.world.number(&asked).await > 0
    }

    /// Walks through the events of a job; gives its last status.
    async fn life(&self, id: &str) -> String {
        let mut events = Vec::new();
        let mut path = format!("/v1/jobs/{id}/events?limit=500");
        loop {
            let (status, page) = self.world.get(&path).await;
            assert_eq!(status, 200, "{page}");
            events.extend(page["items"].as_array().expect("a page").iter().cloned());
            match page["next_cursor"].as_str() {
                Some(cursor) => path = format!("/v1/jobs/{id}/events?limit=500&cursor={cursor}"),
                None => break,
            }
        }
        events.reverse(); // oldest first
        let (mut status, mut lease, mut holder) = ("NEW".to_owned(), 0, String::new());
        for event in &events {
            let told = &event["data"];
            let next = told["status"].as_str().expect("a status");
            let was = told["was"].as_str().unwrap_or("NEW");
            assert_eq!(was, status, "seed {}: {id} has a gap in its life: {events:#?}", self.seed);
            assert!(may_follow(was, next), "seed {}: {id} went from {was} to {next}: {events:#?}", self.seed);
            let now = told["lease"].as_i64().expect("a lease");
            let grown = if next == "ASSIGNED" { lease + 1 } else { lease };
            assert_eq!(now, grown, "seed {}: {id}: a lease is for one assignment: {events:#?}", self.seed);
            if next == "ASSIGNED" {
                holder = told["agentId"].as_str().expect("an agent").to_owned();
            }
            // From these a job comes away only by its agent's word about this very lease, and then it is so.
            let by_word = matches!(was, "ACCEPTED" | "STARTING" | "RUNNING")
                && matches!(next, "PENDING" | "STOPPED" | "FAILED" | "CANCELED");
            if by_word && !holder.ends_with(&format!("-{}", AGENTS - 1)) {
                let at = time(event["created_at"].as_str().or(event["createdAt"].as_str()).expect("a time"));
                assert!(
                    self.truth.was_over(id, now, at),
                    "seed {}: {id} was {next} while its program ran under lease {now}: {events:#?}",
                    self.seed
                );
            }
            (status, lease) = (next.to_owned(), now);
        }
        status
    }
}

fn number(job: &Value) -> i64 {
    let id = job["id"].as_str().and_then(|id| id.strip_prefix("job-")).expect("an id");
    id.parse().expect("a number")
}

/// Which status may follow which, of those that are committed one after the other. Several steps may be one commit.
fn may_follow(was: &str, next: &str) -> bool {
    match was {
        "NEW" => next == "CREATED",
        "CREATED" => matches!(next, "PENDING" | "ASSIGNED" | "CANCELED"),
        "PENDING" => matches!(next, "ASSIGNED" | "CANCELED"),
        // Held: anything but what only waiting jobs become. An agent that comes back tells where the job is now.
        "ASSIGNED" | "ACCEPTED" | "STARTING" | "RUNNING" | "STOPPING" | "UNKNOWN" => {
            !matches!(next, "CREATED" | "ASSIGNED")
        }
        // The end is the end.
        _ => false,
    }
}
