//! Ten thousand agents and a thousand watchers in one process, each as small as it can be.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use showrunner::backoff::exponential;
use showrunner::random::Random;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Before the time in an update that watchers measure.
pub const MARK: &str = "sent-at-";
const HEARTBEAT: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(300);

type Socket = WebSocketStream<TcpStream>;

#[derive(Debug, Deserialize)]
pub struct Job {
    pub status: String,
}

/// Waits until it is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Connects from one of 250 addresses of this machine: one address has not enough ports for them all twice.
async fn connect(server: &str, path: &str, number: usize) -> Option<Socket> {
    let address: SocketAddr = server.parse().expect("an address");
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 1, (number % 250) as u8 + 1), 0))).ok()?;
    let stream = socket.connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let mut config = WebSocketConfig::default();
    (config.read_buffer_size, config.write_buffer_size) = (2 * 1024, 0);
    let url = format!("ws://{server}{path}");
    let opened = tokio_tungstenite::client_async_with_config(url, stream, Some(config));
    Some(tokio::time::timeout(Duration::from_secs(30), opened).await.ok()?.ok()?.0)
}

#[derive(Default)]
struct Counts {
    welcome: AtomicUsize,
    offers: AtomicUsize,
    answered: AtomicUsize,
    /// Nanoseconds since the crowd began.
    first_offer: AtomicU64,
    last_offer: AtomicU64,
}

/// Many agents.
pub struct Crowd {
    counts: Arc<Counts>,
    size: usize,
    began: Instant,
    /// How often all have been cut off.
    cuts: watch::Sender<u64>,
    /// What agents are to say, by their number.
    words: Vec<mpsc::UnboundedSender<String>>,
    jobs: Arc<Mutex<Vec<(usize, String, i64)>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Crowd {
    /// Agents that connect all at once, each again and again with the reference agent's waits.
    pub async fn connect(server: &str, name: &str, size: usize, slots: usize) -> Self {
        let (counts, began) = (Arc::new(Counts::default()), Instant::now());
        let (cuts, jobs) = (watch::Sender::new(0), Arc::default());
        let (mut words, mut tasks) = (Vec::new(), Vec::new());
        for number in 0..size {
            let (say, said) = mpsc::unbounded_channel();
            words.push(say);
            let agent = Agent {
                server: server.to_owned(),
                id: format!("{name}-{number}"),
                number,
                slots,
                taker: name == "taker",
                counts: counts.clone(),
                jobs: Arc::clone(&jobs),
                began,
                random: Random::seeded(number as u64),
                own: Vec::new(),
                said: 0,
            };
            tasks.push(tokio::spawn(agent.live(said, cuts.subscribe())));
        }
        Self { counts, size, began, cuts, words, jobs, tasks }
    }

    pub async fn all_welcome(&self) {
        until("all agents are welcome", || self.counts.welcome.load(Ordering::Relaxed) >= self.size).await;
    }

    /// Cuts every connection off.
    pub fn drop_all(&self) {
        self.counts.welcome.store(0, Ordering::Relaxed);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub fn offers(&self) -> usize {
        self.counts.offers.load(Ordering::Relaxed)
    }

    pub fn answered(&self) -> usize {
        self.counts.answered.load(Ordering::Relaxed)
    }

    pub fn offering(&self) -> Duration {
        let at = |at: &AtomicU64| at.load(Ordering::Relaxed);
        Duration::from_nanos(at(&self.counts.last_offer).saturating_sub(at(&self.counts.first_offer)).max(1))
    }

    pub fn since_first_offer(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_nanos(self.counts.first_offer.load(Ordering::Relaxed)))
    }

    /// Has some agents run jobs: submitted ones where the server takes them, else only said to run.
    pub async fn jobs(&self, server: &str, count: usize) -> Vec<(usize, String, i64)> {
        let http = reqwest::Client::new();
        let body = json!({ "inlineConfig": { "streamUrl": "rtmp://example.com/live" } });
        for _ in 0..count {
            let answer = http.post(format!("http://{server}/v1/jobs")).json(&body).send().await.expect("an answer");
            if answer.status() != 201 {
                return (0..count).map(|number| (number, format!("job-{number}"), 1)).collect();
            }
        }
        until("the jobs run", || self.jobs.lock().expect("a lock").len() >= count).await;
        self.jobs.lock().expect("a lock").clone()
    }

    /// Has the agent of a job say something of it.
    pub fn update(&self, (agent, job, lease): &(usize, String, i64), title: &str) {
        let payload = json!({ "jobId": job, "lease": lease, "status": "RUNNING", "metadata": { "title": title } });
        let text = json!({ "type": "agent.job.update", "msgId": title, "payload": payload }).to_string();
        let _ = self.words[*agent].send(text);
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

struct Agent {
    server: String,
    id: String,
    number: usize,
    slots: usize,
    taker: bool,
    counts: Arc<Counts>,
    jobs: Arc<Mutex<Vec<(usize, String, i64)>>>,
    began: Instant,
    random: Random,
    /// What it runs.
    own: Vec<(String, i64)>,
    said: u64,
}

impl Agent {
    async fn live(mut self, mut words: mpsc::UnboundedReceiver<String>, mut cuts: watch::Receiver<u64>) {
        let mut attempt = 0;
        loop {
            if attempt > 0 {
                let wait = exponential(Duration::from_millis(500), Duration::from_secs(30), attempt, &self.random);
                tokio::time::sleep(wait).await;
            }
            attempt += 1;
            cuts.mark_unchanged();
            let Some(mut socket) = connect(&self.server, "/agent", self.number).await else { continue };
            if self.converse(&mut socket, &mut words, &mut cuts).await {
                attempt = 1;
            }
        }
    }

    /// Until the connection ends; whether it was welcome.
    async fn converse(
        &mut self,
        socket: &mut Socket,
        words: &mut mpsc::UnboundedReceiver<String>,
        cuts: &mut watch::Receiver<u64>,
    ) -> bool {
        let capabilities = if self.taker {
            json!({ "slots": self.slots, "maxResolution": "1080p", "taker": true })
        } else {
            json!({ "slots": self.slots, "maxResolution": "1080p" })
        };
        let active: Vec<Value> = self.active();
        let hello = json!({ "agentId": self.id, "name": self.id, "version": "1.0.0", "capabilities": capabilities,
            "activeJobs": active, "drain": false, "auth": { "token": "dev-shared-token" } });
        let mut welcome = false;
        let hello = self.message("agent.hello", &hello);
        if socket.send(Message::text(hello)).await.is_err() {
            return false;
        }
        // Spread over the interval, as agents are that came one by one.
        let offset = Duration::from_millis(self.random.between(0, HEARTBEAT.as_millis() as u64));
        let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + offset, HEARTBEAT);
        loop {
            tokio::select! {
                _ = beats.tick(), if welcome => {
                    let active = self.active();
                    let beat = self.message("agent.heartbeat", &json!({ "activeJobs": active }));
                    if socket.send(Message::text(beat)).await.is_err() {
                        return welcome;
                    }
                }
                Some(text) = words.recv() => if socket.send(Message::text(text)).await.is_err() { return welcome },
                _ = cuts.changed() => return welcome,
                heard = socket.next() => match heard {
                    Some(Ok(Message::Text(text))) => {
                        if !welcome && text.contains("agent.hello.ack") {
                            welcome = true;
                            self.counts.welcome.fetch_add(1, Ordering::Relaxed);
                        } else if text.contains("\"agent.assign\"") && !self.take(socket, &text).await {
                            return welcome;
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return welcome,
                    Some(Ok(_)) => {}
                },
            }
        }
    }

    fn active(&self) -> Vec<Value> {
        let active = |(job, lease): &(String, i64)| json!({ "jobId": job, "lease": lease, "status": "RUNNING" });
        self.own.iter().map(active).collect()
    }

    /// Takes an offer and says that it runs.
    async fn take(&mut self, socket: &mut Socket, text: &str) -> bool {
        let now = self.began.elapsed().as_nanos() as u64;
        let _ = self.counts.first_offer.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        self.counts.last_offer.fetch_max(now, Ordering::Relaxed);
        self.counts.offers.fetch_add(1, Ordering::Relaxed);
        let offer: Value = serde_json::from_str(text).expect("JSON");
        let (job, lease) = (&offer["payload"]["jobId"], &offer["payload"]["lease"]);
        let ack = self.message("agent.assign.ack", &json!({ "jobId": job, "lease": lease, "accepted": true }));
        let runs = self.message("agent.job.update", &json!({ "jobId": job, "lease": lease, "status": "RUNNING" }));
        for text in [ack, runs] {
            if socket.send(Message::text(text)).await.is_err() {
                return false;
            }
        }
        let (job, lease) = (job.as_str().unwrap_or_default().to_owned(), lease.as_i64().unwrap_or_default());
        self.own.push((job.clone(), lease));
        self.jobs.lock().expect("a lock").push((self.number, job, lease));
        self.counts.answered.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn message(&mut self, kind: &str, payload: &Value) -> String {
        self.said += 1;
        format!(
            r#"{{"type":"{kind}","msgId":"{}-{}","ts":"2026-11-20T12:00:00.000Z","payload":{payload}}}"#,
            self.number, self.said
        )
    }
}

/// UI clients, which watch jobs.
pub struct Watchers {
    began: Instant,
    latencies: Vec<Arc<Mutex<Vec<Duration>>>>,
    heard: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Watchers {
    pub async fn connect(server: &str, size: usize) -> Self {
        let (began, heard) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let (mut latencies, mut tasks) = (Vec::new(), Vec::new());
        let ready = Arc::new(AtomicUsize::new(0));
        for number in 0..size {
            let own = Arc::new(Mutex::new(Vec::new()));
            latencies.push(own.clone());
            let (server, heard, ready) = (server.to_owned(), heard.clone(), ready.clone());
            tasks.push(tokio::spawn(async move {
                let is_ready = AtomicBool::new(false);
                loop {
                    let Some(mut socket) = connect(&server, "/ui?topics=jobs", number).await else {
                        tokio::time::sleep(Duration::from_millis(200 + number as u64 % 500)).await;
                        continue;
                    };
                    while let Some(Ok(message)) = socket.next().await {
                        let Message::Text(text) = message else { continue };
                        if let Some((_, rest)) = text.split_once(MARK) {
                            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                            let sent = Duration::from_nanos(digits.parse().unwrap_or_default());
                            own.lock().expect("a lock").push(began.elapsed().saturating_sub(sent));
                            heard.fetch_add(1, Ordering::Relaxed);
                        } else if text.contains("ui.ready") && !is_ready.swap(true, Ordering::Relaxed) {
                            ready.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }));
        }
        until("all watchers are ready", || ready.load(Ordering::Relaxed) >= size).await;
        Self { began, latencies, heard, tasks }
    }

    /// The time that updates carry.
    pub fn now(&self) -> u128 {
        self.began.elapsed().as_nanos()
    }

    pub fn heard(&self) -> usize {
        self.heard.load(Ordering::Relaxed)
    }

    /// What was heard so far does not count.
    pub fn forget(&self) {
        self.heard.store(0, Ordering::Relaxed);
        self.latencies.iter().for_each(|own| own.lock().expect("a lock").clear());
    }

    pub fn latencies(&self) -> Vec<Duration> {
        self.latencies.iter().flat_map(|own| own.lock().expect("a lock").clone()).collect()
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
