//! An orchestrator of the story's own, and a real agent that connects to it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// Long enough for a busy machine, short enough to fail.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What agents prove themselves by.
pub const TOKEN: &str = "the-agents-own-token";

/// Where agents connect.
pub struct Desk {
    listener: TcpListener,
}

impl Desk {
    pub async fn open() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.expect("a port") }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/agent", self.listener.local_addr().expect("an address"))
    }

    /// The next agent that connects, with its hello; not welcomed yet.
    pub async fn next(&self) -> Call {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("in time").expect("a connection");
        let socket = tokio_tungstenite::accept_async(stream).await.expect("a WebSocket");
        let mut call = Call { socket, hello: Value::Null };
        call.hello = call.hear("agent.hello", |_| true).await;
        call
    }

    /// The next agent, welcomed with a heartbeat of 200 ms and a time-out of 2 s.
    pub async fn welcome(&self, grace_ms: u64) -> Call {
        let mut call = self.next().await;
        let terms = json!({ "heartbeatIntervalMs": 200, "heartbeatTimeoutMs": 2_000, "graceMs": grace_ms,
            "instance": "the desk" });
        call.say("agent.hello.ack", terms).await;
        call
    }
}

/// One agent's connection.
pub struct Call {
    socket: WebSocketStream<TcpStream>,
    pub hello: Value,
}

impl Call {
    pub async fn say(&mut self, kind: &str, payload: Value) {
        let text = json!({ "type": kind, "msgId": "desk", "payload": payload }).to_string();
        self.socket.send(Message::text(text)).await.expect("the agent takes it");
    }

    pub async fn assign(&mut self, job: &str, lease: i64, config: Value) {
        self.say("agent.assign", json!({ "jobId": job, "lease": lease, "config": config })).await;
    }

    /// The payload of the next message of that kind for which `wanted` holds; others are passed over.
    pub async fn hear(&mut self, kind: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut passed = Vec::new();
        let hearing = async {
            loop {
                let message = self.socket.next().await.expect("the agent goes on").expect("a message");
                let Message::Text(text) = message else { continue };
                let message: Value = serde_json::from_str(&text).expect("JSON");
                if message["type"] == kind && wanted(&message["payload"]) {
                    return message["payload"].clone();
                }
                if message["type"] != "agent.heartbeat" {
                    passed.push(message);
                }
            }
        };
        let heard = timeout(PATIENCE, hearing).await;
        heard.unwrap_or_else(|_| panic!("no {kind} in time, but {passed:#?}"))
    }

    /// The job's next update to this status.
    pub async fn status(&mut self, job: &str, status: &str) -> Value {
        self.hear("agent.job.update", |told| told["jobId"] == job && told["status"] == status).await
    }

    /// The answer to an offer.
    pub async fn ack(&mut self, job: &str) -> Value {
        self.hear("agent.assign.ack", |told| told["jobId"] == job).await
    }

    /// The next heartbeat's jobs.
    pub async fn beat(&mut self) -> Value {
        self.hear("agent.heartbeat", |_| true).await["activeJobs"].clone()
    }

    /// Ends the connection by a closing code.
    pub async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "the story says so".into() };
        let _ = self.socket.close(Some(frame)).await;
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    /// Reads until the agent has ended the connection.
    pub async fn ended(mut self) {
        let ending = async { while let Some(Ok(_)) = self.socket.next().await {} };
        timeout(PATIENCE, ending).await.expect("the agent ends it in time");
    }
}

/// A running `showrunner agent`; killed when dropped.
pub struct Agent {
    child: Child,
}

impl Agent {
    /// Starts it with the id `agent-1` in `folder`, where its own files would be.
    pub fn start(url: &str, folder: &Path, command: &str, more: &[&str]) -> Self {
        Self::start_in(&[], "agent-1", url, folder, command, more)
    }

    /// The same under another id, by the program and arguments in `prefix`.
    pub fn start_in(prefix: &[&str], id: &str, url: &str, folder: &Path, command: &str, more: &[&str]) -> Self {
        let mut words = prefix.to_vec();
        words.extend([env!("CARGO_BIN_EXE_showrunner"), "agent", "--url", url, "--id", id, "--command", command]);
        let mut agent = Command::new(words[0]);
        agent.args(&words[1..]).args(more);
        agent.current_dir(folder).env("AGENT_TOKEN", TOKEN).env_remove("RUST_LOG").stdin(Stdio::null());
        Self { child: agent.spawn().expect("the agent starts") }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success(), "the agent takes SIG{name}");
    }

    /// Waits for its end, which somebody has brought about; returns its exit code.
    pub async fn ended(mut self) -> Option<i32> {
        let waiting = tokio::task::spawn_blocking(move || self.child.wait().expect("its end").code());
        timeout(PATIENCE, waiting).await.expect("it ends in time").expect("a waiter")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Something that processes hold open and write to, so that their beginning and the end of the last of them are felt
/// and need not be looked for.
pub struct Leash {
    pub path: String,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Leash {
    pub fn new(folder: &Path, name: &str) -> Self {
        let path = folder.join(name).display().to_string();
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(made.success());
        let (heard, lines) = mpsc::unbounded_channel();
        let fifo = path.clone();
        std::thread::spawn(move || {
            let fifo = std::fs::File::open(fifo).expect("somebody holds it");
            BufReader::new(fifo).lines().map_while(Result::ok).all(|line| heard.send(line).is_ok());
        });
        Self { path, lines }
    }

    /// Waits until somebody who holds it has written this line.
    pub async fn says(&mut self, line: &str) {
        let said = timeout(PATIENCE, self.lines.recv()).await.expect("in time");
        assert_eq!(said.as_deref(), Some(line));
    }

    /// Waits until nobody holds it any more; gives the lines that were written and not waited for.
    pub async fn gone(&mut self) -> Vec<String> {
        let reading = async {
            let mut lines = Vec::new();
            while let Some(line) = self.lines.recv().await {
                lines.push(line);
            }
            lines
        };
        timeout(PATIENCE, reading).await.expect("they are gone in time")
    }
}
