//! Stories of the fleet: agents and watchers over real WebSockets, jobs over HTTP, on both databases.

mod agents;
mod closing;
mod instances;
mod loops;
mod streams;
mod watching;

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::support::World;

const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "dev-shared-token";

/// One end of a WebSocket.
pub struct Socket {
    inner: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    pub async fn open(address: std::net::SocketAddr, path: &str) -> Self {
        let (inner, _) = tokio_tungstenite::connect_async(format!("ws://{address}{path}")).await.expect("a WebSocket");
        Self { inner }
    }

    /// With a subprotocol list, as a browser sends it.
    pub async fn open_with(address: std::net::SocketAddr, path: &str, protocols: &str) -> Option<Self> {
        let mut request = format!("ws://{address}{path}").into_client_request().expect("a request");
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().expect("a header"));
        tokio_tungstenite::connect_async(request).await.ok().map(|(inner, _)| Self { inner })
    }

    pub async fn say(&mut self, message: Value) {
        self.inner.send(Message::text(message.to_string())).await.expect("it is written");
    }

    pub async fn say_text(&mut self, text: &str) -> bool {
        self.inner.send(Message::text(text.to_owned())).await.is_ok()
    }

    /// The next message, or the code with which the connection was closed.
    pub async fn next(&mut self) -> Result<Value, u16> {
        self.next_or_end().await.map_err(|(code, _)| code)
    }

    /// The next message, or the code and reason with which the connection was closed.
    async fn next_or_end(&mut self) -> Result<Value, (u16, String)> {
        let next = async {
            loop {
                match self.inner.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("JSON")),
                    Some(Ok(Message::Close(Some(frame)))) => return Err((frame.code.into(), frame.reason.to_string())),
                    Some(Ok(Message::Close(None))) | None | Some(Err(_)) => return Err((0, String::new())),
                    Some(Ok(_)) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a message in time")
    }

    /// The next message of this type; others are passed over.
    pub async fn hear(&mut self, kind: &str) -> Value {
        loop {
            let message =
                self.next().await.unwrap_or_else(|code| panic!("closed with {code} while waiting for {kind}"));
            if message["type"] == kind {
                return message;
            }
        }
    }

    /// Reads to the end; the code with which it was closed.
    pub async fn closed(&mut self) -> u16 {
        self.closed_because().await.0
    }

    /// The same, with the reason.
    pub async fn closed_because(&mut self) -> (u16, String) {
        loop {
            if let Err(end) = self.next_or_end().await {
                return end;
            }
        }
    }
}

pub fn address(world: &World) -> std::net::SocketAddr {
    world.app.as_ref().and_then(|app| app.address()).expect("a listening service")
}

/// A hello as the document shows it.
pub fn hello(id: &str, slots: i64, active: Value, token: &str) -> Value {
    json!({
        "type": "agent.hello", "msgId": format!("hello-{id}"), "ts": "2024-01-01T00:00:00.000Z",
        "payload": { "agentId": id, "name": format!("Agent {id}"), "version": "1.0.0",
            "capabilities": { "slots": slots, "maxResolution": "1080p" }, "drain": false, "activeJob": null,
            "activeJobs": active, "auth": { "token": token } }
    })
}

/// An agent that is connected and taken.
pub async fn agent(world: &World, id: &str, slots: i64) -> Socket {
    agent_at(address(world), id, slots, json!([])).await
}

pub async fn agent_at(address: std::net::SocketAddr, id: &str, slots: i64, active: Value) -> Socket {
    let mut socket = Socket::open(address, "/agent").await;
    socket.say(hello(id, slots, active, TOKEN)).await;
    let ack = socket.hear("agent.hello.ack").await;
    assert_eq!(ack["correlationId"], format!("hello-{id}"));
    socket
}

/// What an agent says of a job.
pub fn update(job: &str, status: &str) -> Value {
    json!({ "type": "agent.job.update", "payload": { "jobId": job, "status": status } })
}

/// Takes the next offer and says that it runs; the job's id and lease.
pub async fn take(agent: &mut Socket) -> (String, i64) {
    let offer = agent.hear("agent.assign").await;
    let job = offer["payload"]["jobId"].as_str().expect("an id").to_owned();
    let lease = offer["payload"]["lease"].as_i64().expect("a lease");
    agent.say(json!({ "type": "agent.assign.ack", "correlationId": offer["msgId"], "payload": { "jobId": job, "accepted": true } })).await;
    agent.say(update(&job, "STARTING")).await;
    agent.say(update(&job, "RUNNING")).await;
    (job, lease)
}

/// Submits a job; its id.
pub async fn submit(world: &World, more: Value) -> String {
    let mut body =
        json!({ "inlineConfig": { "streamUrl": "rtmp://example.com/live", "outputPath": "/tmp/output.mp4" } });
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    let (status, job) = world.post("/v1/jobs", &body).await;
    assert_eq!(status, 201, "{job}");
    job["id"].as_str().expect("an id").to_owned()
}

/// Waits until the job is in this status.
pub async fn until(world: &World, job: &str, status: &str) {
    let id = job.strip_prefix("job-").expect("an id");
    until_slowly(world, &format!("SELECT status FROM stream_jobs WHERE id = {id}"), status).await;
}

/// As [`World::until`], while time creeps on: whatever looks four times a second looks again.
async fn until_slowly(world: &World, query: &str, wanted: &str) {
    let mut found = String::new();
    for _ in 0..40 {
        for _ in 0..25 {
            found = world.text(query).await;
            if found == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.clock.advance(Duration::from_millis(250));
    }
    panic!("`{query}` is `{found}` and never became `{wanted}`");
}

/// Waits until the agent is in this state.
pub async fn until_agent(world: &World, agent: &str, state: &str) {
    until_slowly(world, &format!("SELECT state FROM agents WHERE id = '{agent}'"), state).await;
}

/// What comes of `work`, while time creeps on: instances look for what others left for them once a second.
pub async fn creeping<T>(world: &World, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(300)) => world.clock.advance(Duration::from_millis(250)),
        }
    }
}

/// Time goes on, a second at a time, each with a moment in which what is due can be done.
pub async fn pass(world: &World, seconds: u64) {
    for _ in 0..seconds {
        world.clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What looked just before the end looks once more.
    for _ in 0..3 {
        world.clock.advance(Duration::from_millis(250));
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}
