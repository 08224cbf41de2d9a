//! Agents as they should not be, each from its seed: slow, repeating, out of order, flapping, half open, with a clock
//! of its own, forgetful of leases, refusing, and lying.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use showrunner::clock::SharedClock;
use showrunner::random::Random;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::truth::Truth;

/// Between an agent's looks at its clock and its chances, of the story's time.
const TICK: Duration = Duration::from_millis(100);

/// What an agent is like.
#[derive(Debug, Clone)]
pub struct Nature {
    pub slots: usize,
    /// Its messages wait for up to so long before they leave; so they also overtake each other.
    slow_ms: u64,
    /// Chances in a thousand, for each message or each tick.
    repeats: u64,
    flaps: u64,
    freezes: u64,
    refuses: u64,
    fails: u64,
    lies: u64,
    /// It leaves leases out where it may.
    forgets_leases: bool,
    /// Its clock is off by years.
    skewed: bool,
}

impl Nature {
    /// Drawn; the last agent of a story lies.
    pub fn draw(random: &Random, liar: bool) -> Self {
        let some = |most: u64| if random.between(0, 1) == 0 { 0 } else { random.between(1, most) };
        Self {
            slots: random.between(1, 3) as usize,
            slow_ms: some(1_500),
            repeats: some(400),
            flaps: some(12),
            freezes: some(6),
            refuses: some(300),
            fails: random.between(100, 500),
            lies: if liar { 300 } else { 0 },
            forgets_leases: liar || random.between(0, 3) == 0,
            skewed: random.between(0, 2) == 0,
        }
    }

    /// As it should be.
    fn good(&self) -> Self {
        let Self { slots, .. } = *self;
        let (slow_ms, repeats, flaps, freezes, refuses, fails, lies) = (0, 0, 0, 0, 0, 0, 0);
        let (forgets_leases, skewed) = (false, false);
        Self { slots, slow_ms, repeats, flaps, freezes, refuses, fails, lies, forgets_leases, skewed }
    }
}

/// The times that the story's service goes by.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub interval: Duration,
    /// Silent for longer, an agent ends what it runs.
    pub fence: Duration,
    pub stop_takes_ms: u64,
}

struct Program {
    lease: i64,
    ends_at: Duration,
    ends_well: bool,
    told_to_end: bool,
}

type Socket = WebSocketStream<TcpStream>;

pub struct Agent {
    pub id: String,
    pub nature: Nature,
    pub server: SocketAddr,
    pub clock: SharedClock,
    pub random: Random,
    pub truth: Truth,
    pub terms: Terms,
    /// From then on it is as it should be.
    pub reform: Arc<AtomicBool>,
    programs: BTreeMap<String, Program>,
    /// How programs ended, to be told again after a reconnect.
    ends: Vec<Value>,
    /// Messages with the time at which they leave.
    outbox: Vec<(Duration, String)>,
    heard_at: Duration,
    beat_at: Duration,
}

impl Agent {
    #[allow(clippy::too_many_arguments)] // each is one thing of the story
    pub fn new(
        id: String,
        nature: Nature,
        server: SocketAddr,
        clock: SharedClock,
        random: Random,
        truth: Truth,
        terms: Terms,
        reform: Arc<AtomicBool>,
    ) -> Self {
        let (programs, ends, outbox) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (heard_at, beat_at) = (clock.elapsed(), Duration::ZERO);
        Self { id, nature, server, clock, random, truth, terms, reform, programs, ends, outbox, heard_at, beat_at }
    }

    /// Lives until the story drops it.
    pub async fn live(mut self) {
        let mut socket: Option<Socket> = None;
        let mut frozen_until = Duration::ZERO;
        loop {
            let clock = self.clock.clone();
            let heard = tokio::select! {
                heard = next(socket.as_mut()), if clock.elapsed() >= frozen_until => Some(heard),
                () = clock.sleep(TICK) => None,
            };
            let now = self.clock.elapsed();
            if self.reform.load(Ordering::Relaxed) {
                if self.nature.lies > 0 {
                    self.programs.clear(); // a liar leaves for good
                    return;
                }
                self.nature = self.nature.good();
                frozen_until = Duration::ZERO;
            }
            match heard {
                Some(Some(Ok(Message::Text(text)))) => {
                    self.heard_at = now;
                    self.hear(&text);
                }
                Some(Some(Ok(Message::Close(_)) | Err(_)) | None) => socket = None,
                Some(Some(Ok(_))) => self.heard_at = now,
                None => {}
            }
            self.look(now);
            if now < frozen_until {
                continue;
            }
            if socket.is_some() && self.chance(self.nature.flaps) {
                socket = None;
            }
            if self.chance(self.nature.freezes) {
                frozen_until = now + Duration::from_millis(self.random.between(500, 12_000));
                continue;
            }
            if socket.is_none() && self.random.between(0, 3) == 0 {
                socket = self.connect().await;
            }
            if let Some(connected) = socket.as_mut()
                && !self.send(connected, now).await
            {
                socket = None;
            }
        }
    }

    fn chance(&self, of_thousand: u64) -> bool {
        of_thousand > 0 && self.random.between(1, 1_000) <= of_thousand
    }

    async fn connect(&mut self) -> Option<Socket> {
        let stream = TcpStream::connect(self.server).await.ok()?;
        let url = format!("ws://{}/agent", self.server);
        // A partition may swallow the handshake.
        let clock = self.clock.clone();
        let (mut socket, _) = tokio::select! {
            opened = tokio_tungstenite::client_async(url, stream) => opened.ok()?,
            () = clock.sleep(Duration::from_secs(2)) => return None,
        };
        self.outbox.clear(); // what was on its way is lost
        let hello = json!({ "agentId": self.id, "name": "a model", "capabilities": { "slots": self.nature.slots },
            "activeJobs": self.active(), "drain": false, "auth": { "token": "dev-shared-token" } });
        let text = self.message("agent.hello", hello);
        socket.send(Message::text(text)).await.ok()?;
        self.beat_at = self.clock.elapsed() + self.terms.interval;
        for end in self.ends.clone() {
            self.say("agent.job.update", end);
        }
        for (job, program) in &self.programs {
            let payload = self.of(job, program.lease, "RUNNING");
            let text = self.message("agent.job.update", payload);
            self.outbox.push((self.clock.elapsed(), text));
        }
        Some(socket)
    }

    /// Sends what is to leave now; false where the connection is gone or takes nothing.
    async fn send(&mut self, socket: &mut Socket, now: Duration) -> bool {
        let (due, later): (Vec<_>, Vec<_>) = self.outbox.drain(..).partition(|(at, _)| *at <= now);
        self.outbox = later;
        let clock = self.clock.clone();
        for (_, text) in due {
            let sent = tokio::select! {
                sent = socket.send(Message::text(text)) => sent.is_ok(),
                () = clock.sleep(Duration::from_secs(2)) => false,
            };
            if !sent {
                return false;
            }
        }
        true
    }

    fn message(&self, kind: &str, payload: Value) -> String {
        let year = if self.nature.skewed { self.random.between(1_970, 2_090) } else { 2_026 };
        let ts = format!("{year}-11-20T12:00:00.000Z");
        json!({ "type": kind, "msgId": self.random.token(), "ts": ts, "payload": payload }).to_string()
    }

    /// Puts a message into the outbox, perhaps more than once.
    fn say(&mut self, kind: &str, payload: Value) {
        let now = self.clock.elapsed();
        let mut times = 1;
        while times < 4 && self.chance(self.nature.repeats) {
            times += 1;
        }
        let text = self.message(kind, payload.clone());
        for _ in 0..times {
            let at = now + Duration::from_millis(self.random.between(0, self.nature.slow_ms));
            // The same message again, or the same words in another one.
            let again = if self.random.between(0, 1) == 0 { text.clone() } else { self.message(kind, payload.clone()) };
            self.outbox.push((at, again));
        }
    }

    fn of(&self, job: &str, lease: i64, status: &str) -> Value {
        if self.nature.forgets_leases {
            json!({ "jobId": job, "status": status })
        } else {
            json!({ "jobId": job, "status": status, "lease": lease })
        }
    }

    fn active(&self) -> Vec<Value> {
        let mut active: Vec<Value> = self
            .programs
            .iter()
            .map(|(job, program)| match self.nature.forgets_leases {
                true => json!(job),
                false => json!({ "jobId": job, "lease": program.lease, "status": "RUNNING" }),
            })
            .collect();
        if self.chance(self.nature.lies) {
            active.push(json!(self.some_job()));
        }
        active
    }

    fn some_job(&self) -> String {
        format!("job-{}", self.random.between(1, 30))
    }

    fn hear(&mut self, text: &str) {
        let message: Value = serde_json::from_str(text).expect("the service speaks JSON");
        let payload = &message["payload"];
        let job = payload["jobId"].as_str().unwrap_or_default().to_owned();
        let lease = payload["lease"].as_i64();
        match message["type"].as_str().expect("a type") {
            "agent.assign" => self.on_offer(&job, lease.expect("an offer has a lease")),
            "agent.job.stop" | "agent.job.kill" => {
                let at = self.clock.elapsed() + Duration::from_millis(self.random.between(0, self.terms.stop_takes_ms));
                let held = self.programs.get_mut(&job).filter(|held| lease.is_none_or(|lease| lease >= held.lease));
                match held {
                    Some(_) if message["type"] == "agent.job.kill" => self.end(&job, "STOPPED", None),
                    Some(held) => {
                        (held.told_to_end, held.ends_at) = (true, held.ends_at.min(at));
                        let lease = held.lease;
                        let stopping = self.of(&job, lease, "STOPPING");
                        self.say("agent.job.update", stopping);
                    }
                    None if lease.is_some() => {
                        let stopped = json!({ "jobId": job, "lease": lease, "status": "STOPPED" });
                        self.say("agent.job.update", stopped);
                    }
                    None => {}
                }
            }
            kind @ ("agent.job.mute" | "agent.job.unmute") => {
                let success = self.programs.contains_key(&job);
                self.say(kind, json!({ "jobId": job, "success": success }));
            }
            _ => {}
        }
    }

    fn on_offer(&mut self, job: &str, lease: i64) {
        let ended = self.ends.iter().any(|end| end["jobId"] == job && end["lease"] == lease);
        let held = self.programs.get(job).map(|program| program.lease);
        let accepted = match held {
            Some(held) => held == lease,
            None => ended || self.programs.len() < self.nature.slots && !self.chance(self.nature.refuses),
        };
        self.say("agent.assign.ack", json!({ "jobId": job, "accepted": accepted, "lease": lease }));
        if held.is_some_and(|held| held < lease) {
            self.end(job, "STOPPED", None);
        }
        if !accepted || held.is_some() || ended {
            return;
        }
        if self.nature.lies > 0 {
            // It takes the job and says that it runs; nothing does.
            let running = self.of(job, lease, "RUNNING");
            return self.say("agent.job.update", running);
        }
        let lives = Duration::from_millis(self.random.between(500, 9_000));
        let ends_well = !self.chance(self.nature.fails);
        let program = Program { lease, ends_at: self.clock.elapsed() + lives, ends_well, told_to_end: false };
        self.programs.insert(job.to_owned(), program);
        self.truth.begins(job, &self.id, lease);
        for status in ["STARTING", "RUNNING"] {
            let update = self.of(job, lease, status);
            self.say("agent.job.update", update);
        }
    }

    /// `by_itself`: nobody told it to end; whether it ended well.
    fn end(&mut self, job: &str, status: &str, by_itself: Option<bool>) {
        let Some(program) = self.programs.remove(job) else { return };
        self.truth.ends(job, &self.id, program.lease, by_itself);
        // An end always names its lease: told late, it may otherwise be taken for that of a later run.
        let update = json!({ "jobId": job, "lease": program.lease, "status": status, "error": "so it ended" });
        self.ends.push(update.clone());
        self.say("agent.job.update", update);
    }

    fn look(&mut self, now: Duration) {
        let due: Vec<(String, bool, bool)> = self
            .programs
            .iter()
            .filter(|(_, program)| program.ends_at <= now)
            .map(|(job, program)| (job.clone(), program.told_to_end, program.ends_well))
            .collect();
        for (job, told, well) in due {
            let status = if told || well { "STOPPED" } else { "FAILED" };
            self.end(&job, status, (!told).then_some(well));
        }
        if now.saturating_sub(self.heard_at) > self.terms.fence {
            for job in self.programs.keys().cloned().collect::<Vec<_>>() {
                self.end(&job, "FAILED", None);
            }
        }
        if now >= self.beat_at {
            self.beat_at = now + self.terms.interval;
            let active = self.active();
            self.say("agent.heartbeat", json!({ "activeJobs": active }));
        }
        if self.chance(self.nature.lies) {
            self.lie();
        }
    }

    /// Something that is not so, or makes no sense.
    fn lie(&mut self) {
        let job = self.some_job();
        let lease = self.random.between(0, 3);
        let statuses =
            ["ACCEPTED", "STARTING", "RUNNING", "STOPPING", "STOPPED", "FAILED", "CANCELED", "UNKNOWN", "PENDING"];
        let status = statuses[self.random.between(0, statuses.len() as u64 - 1) as usize];
        match self.random.between(0, 6) {
            0 => self.say("agent.job.update", json!({ "jobId": job, "status": status })),
            1 => self.say("agent.job.update", json!({ "jobId": job, "status": status, "lease": lease })),
            2 => self.say("agent.assign.ack", json!({ "jobId": job, "accepted": true })),
            3 => self.say("agent.assign.ack", json!({ "jobId": job, "accepted": false, "lease": lease })),
            4 => self.say("agent.job.mute", json!({ "jobId": job, "success": true })),
            5 => self.say("agent.sing", json!({ "jobId": [1, { "a": null }] })),
            _ => self.outbox.push((self.clock.elapsed(), "{\"type\":\"agent.job.update\",\"payload\":7}".to_owned())),
        }
    }
}

async fn next(socket: Option<&mut Socket>) -> Option<Result<Message, tokio_tungstenite::tungstenite::Error>> {
    match socket {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}
