//! `/agent`: one connection of one agent, from its hello to its end.
//!
//! Until the hello is taken the connection counts as one of HTTP and holds its place there; what a stranger can open is
//! bounded by that, and by the time that a hello may take.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use futures_util::SinkExt;
use tokio::sync::oneshot;

use super::Fleet;
use super::hub::{Connection, Out};
use super::intake::{Arrival, Refusal, Report, Said};
use super::protocol::{self, Complaint, FromAgent, Hello, Ids, Received, ToAgent, close};
use crate::db::{Timestamp, has_nul};
use crate::web::Place;

/// A message: a hello that names hundreds of jobs, or the last lines of a process.
pub const LONGEST_MESSAGE: usize = 64 * 1024;
/// What a connection keeps for reading; the library's own default is 128 KiB.
const READ_BUFFER: usize = 4 * 1024;
/// What may wait to be written: the longest configuration, and some.
const WRITE_BUFFER: usize = 4 * 1024;
const MOST_UNWRITTEN: usize = 2 << 20;
/// How long a stranger may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How long an end may take, with all that is still read before it.
const FAREWELL: Duration = Duration::from_secs(2);
/// Who has nothing more to say for so long has nothing on its way that would reset the connection.
const SILENCE: Duration = Duration::from_millis(250);
/// Messages a second: far more than heartbeats and progress of a hundred jobs.
const RATE: f64 = 50.0;
/// In a burst: an agent that comes back tells how its last jobs ended, and where each of up to a thousand is.
const BURST: f64 = 1_500.0;
/// Ids of messages that are remembered: repetitions come soon.
const REMEMBERED: usize = 64;
/// Characters of an agent's id, as the table holds it.
const LONGEST_ID: usize = 150;
/// A heartbeat that says the same as the last one is looked at again only after this.
const SAME_JOBS: Duration = Duration::from_secs(30);
/// Progress alone is written down so often.
const PROGRESS: Duration = Duration::from_secs(5);
/// Jobs whose last progress is remembered.
const MOST_PROGRESSING: usize = 1_000;

/// How the socket is to be set up: small buffers, one connection of ten thousand.
pub fn sized(upgrade: WebSocketUpgrade, longest: usize) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MOST_UNWRITTEN)
        .max_message_size(longest)
        .max_frame_size(longest)
}

/// Allows so many messages a second.
pub struct Rate {
    left: f64,
    at: Duration,
    per_second: f64,
    burst: f64,
}

impl Rate {
    pub fn new(per_second: f64, burst: f64, at: Duration) -> Self {
        Self { left: burst, at, per_second, burst }
    }
    /// Whether one more is within the rate.
    pub fn allows(&mut self, at: Duration) -> bool {
        let passed = at.saturating_sub(self.at).as_secs_f64();
        self.at = at;
        self.left = (self.left + passed * self.per_second).min(self.burst);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// Why a connection is closed by us.
struct Goodbye {
    code: u16,
    reason: String,
}

fn goodbye(code: u16, reason: impl Into<String>) -> Goodbye {
    Goodbye { code, reason: reason.into() }
}

/// A closing frame holds 123 bytes of reason.
pub async fn farewell(socket: &mut WebSocket, code: u16, reason: &str) {
    let mut end = reason.len().min(120);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let frame = CloseFrame { code, reason: Utf8Bytes::from(&reason[..end]) };
    let part = async {
        if socket.send(Message::Close(Some(frame))).await.is_err() {
            return;
        }
        // The kernel resets a connection that is dropped with something unread, and the frame may be lost with it.
        while let Ok(Some(Ok(message))) = tokio::time::timeout(SILENCE, socket.recv()).await {
            if matches!(message, Message::Close(_)) {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(FAREWELL, part).await;
}

/// The other side has closed: the answer, which the library has ready, goes out.
pub async fn answer_close(socket: &mut WebSocket) {
    let _ = tokio::time::timeout(FAREWELL, socket.flush()).await;
}

/// Serves one connection until it ends.
pub async fn serve(fleet: Arc<Fleet>, mut socket: WebSocket, from_loopback: bool, place: Option<Place>) {
    let said = tokio::select! {
        () = fleet.stop.cancelled() => {
            Err(Some(goodbye(1001, "this instance goes away; connect again after a random moment")))
        }
        // A door waits by the machine's time, whatever clock the platform runs on.
        hello = tokio::time::timeout(HELLO_PATIENCE, first(&mut socket)) => match hello {
            Ok(hello) => hello,
            Err(_) => Err(Some(goodbye(close::NO_HELLO, "say agent.hello within 10 seconds"))),
        },
    };
    let mut session = match said {
        Ok(hello) => match Session::open(&fleet, hello, from_loopback).await {
            Ok(session) => session,
            Err(end) => return refuse(&mut socket, &fleet, Some(end)).await,
        },
        Err(end) => return refuse(&mut socket, &fleet, end).await,
    };
    drop(place); // it is an agent now, and counts as one
    let end = session.run(&mut socket).await;
    let connection = session.connection.clone();
    drop(session);
    let _ = fleet.intake.send(Report::Lost(connection)).await;
    match end {
        Some(Goodbye { code, reason }) => farewell(&mut socket, code, &reason).await,
        None => answer_close(&mut socket).await,
    }
}

async fn refuse(socket: &mut WebSocket, fleet: &Fleet, end: Option<Goodbye>) {
    let Some(Goodbye { code, reason }) = end else { return answer_close(socket).await };
    let kind = match code {
        close::UNAUTHORIZED => "unauthorized",
        close::NO_HELLO => "no-hello",
        _ => "refused",
    };
    let text = complaint(fleet, kind, &reason, None);
    let _ = tokio::time::timeout(FAREWELL, socket.send(Message::Text(text))).await;
    farewell(socket, code, &reason).await;
}

fn complaint(fleet: &Fleet, code: &str, message: &str, about: Option<String>) -> Utf8Bytes {
    let complaint = ToAgent::Error(Complaint { code: code.to_owned(), message: message.to_owned() });
    let ids = Ids { msg_id: None, correlation_id: about, ts: Some(Timestamp::new(fleet.clock.now())) };
    protocol::encode(&complaint, &ids).into()
}

/// The first message, which has to be a hello; no reason where the other side has left.
async fn first(socket: &mut WebSocket) -> Result<Received<FromAgent>, Option<Goodbye>> {
    loop {
        let text = match socket.recv().await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Binary(_))) => return Err(Some(goodbye(1003, "messages are text"))),
            Some(Ok(Message::Close(_))) | None => return Err(None),
            Some(Err(cause)) => return Err(Some(goodbye(1008, format!("broke a bound or the protocol: {cause}")))),
        };
        if brings_nul(&text) {
            return Err(Some(goodbye(1008, "a NUL character cannot be stored")));
        }
        let received = protocol::from_agent(&text).map_err(|broken| Some(goodbye(1008, broken.to_string())))?;
        if !matches!(received.message, FromAgent::Hello(_)) {
            return Err(Some(goodbye(1008, "say agent.hello first")));
        }
        return Ok(received);
    }
}

/// JSON can only bring a NUL in as this escape; where it stands behind a backslash it is six letters.
fn brings_nul(text: &str) -> bool {
    text.contains(r"\u0000") && serde_json::from_str(text).is_ok_and(|value| has_nul(&value))
}

fn check(hello: &Hello) -> Result<(), Goodbye> {
    let id = &hello.agent_id;
    let fits = (1..=LONGEST_ID).contains(&id.chars().count()) && !id.chars().any(char::is_control) && id.trim() == id;
    if !fits {
        return Err(goodbye(1008, format!("agentId takes 1 to {LONGEST_ID} printable characters")));
    }
    Ok(())
}

/// A connection whose agent is known.
struct Session<'a> {
    fleet: &'a Arc<Fleet>,
    connection: Arc<Connection>,
    outbox: tokio::sync::mpsc::Receiver<Out>,
    from_loopback: bool,
    rate: Rate,
    remembered: VecDeque<u64>,
    /// What the last heartbeat said, and when it was passed on.
    jobs: Option<(u64, Duration)>,
    progress: Vec<(u64, Duration)>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl<'a> Session<'a> {
    async fn open(fleet: &'a Arc<Fleet>, hello: Received<FromAgent>, from_loopback: bool) -> Result<Self, Goodbye> {
        let Received { msg_id, message: FromAgent::Hello(hello), .. } = hello else {
            return Err(goodbye(1008, "say agent.hello first"));
        };
        check(&hello)?;
        let permit = fleet.hub.agents.clone().try_acquire_owned();
        let permit = permit.map_err(|_| goodbye(1013, "too many agents are connected here; try another instance"))?;
        let at = fleet.clock.elapsed();
        let (connection, outbox) = Connection::new(hello.agent_id.clone(), at, fleet.stop.child_token());
        let session = Self {
            fleet,
            connection,
            outbox,
            from_loopback,
            rate: Rate::new(RATE, BURST, at),
            remembered: VecDeque::new(),
            jobs: None,
            progress: Vec::new(),
            _permit: permit,
        };
        session.greet(*hello, msg_id).await?;
        Ok(session)
    }

    /// Has a hello taken, the first or another one.
    async fn greet(&self, hello: Hello, msg_id: Option<String>) -> Result<(), Goodbye> {
        let (answer, answered) = oneshot::channel();
        let arrival =
            Arrival { hello, msg_id, connection: self.connection.clone(), from_loopback: self.from_loopback, answer };
        self.report(Report::Hello(Box::new(arrival))).await?;
        self.connection.blocked.store(true, Ordering::Relaxed);
        let answer = answered.await;
        self.connection.blocked.store(false, Ordering::Relaxed);
        match answer {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Refusal { code, reason })) => Err(goodbye(code, reason)),
            Err(_) => Err(goodbye(1001, "this instance goes away; connect again after a random moment")),
        }
    }

    /// Passes something on; where the intake is full, the agent waits.
    async fn report(&self, report: Report) -> Result<(), Goodbye> {
        self.connection.blocked.store(true, Ordering::Relaxed);
        let sent = self.fleet.intake.send(report).await;
        self.connection.blocked.store(false, Ordering::Relaxed);
        self.connection.hear(self.fleet.clock.elapsed());
        sent.map_err(|_| goodbye(1001, "this instance goes away; connect again after a random moment"))
    }

    /// Writes a message, unless the connection is cut meanwhile: who does not read holds nobody up.
    async fn write(&self, socket: &mut WebSocket, message: Message) -> Result<(), Option<Goodbye>> {
        tokio::select! {
            written = socket.send(message) => written.map_err(|_| None),
            () = self.connection.cut.cancelled() => Err(Some(self.cut_off())),
        }
    }

    /// Why the connection was cut.
    fn cut_off(&self) -> Goodbye {
        match self.fleet.stop.is_cancelled() {
            true => goodbye(1001, "this instance goes away; connect again after a random moment"),
            false => goodbye(1008, "messages pile up that this agent does not read"),
        }
    }

    /// Until the end; why, where it is ours.
    async fn run(&mut self, socket: &mut WebSocket) -> Option<Goodbye> {
        let cut = self.connection.cut.clone();
        loop {
            let step = tokio::select! {
                () = cut.cancelled() => return Some(self.cut_off()),
                out = self.outbox.recv() => match out {
                    Some(Out::Text(text)) => self.write(socket, Message::Text(text)).await,
                    Some(Out::Ping) => self.write(socket, Message::Ping(Vec::new().into())).await,
                    Some(Out::Close { code, reason }) => Err(Some(goodbye(code, reason))),
                    None => Err(None),
                },
                received = socket.recv() => match received {
                    Some(Ok(message)) => self.receive(socket, message).await,
                    Some(Err(cause)) => Err(Some(goodbye(1008, format!("broke a bound or the protocol: {cause}")))),
                    None => Err(None),
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn receive(&mut self, socket: &mut WebSocket, message: Message) -> Result<(), Option<Goodbye>> {
        let at = self.fleet.clock.elapsed();
        self.connection.hear(at);
        if !self.rate.allows(at) {
            return Err(Some(goodbye(1008, format!("more than {RATE} messages a second"))));
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Ping(_) | Message::Pong(_) => return Ok(()),
            Message::Close(_) => return Err(None),
            Message::Binary(_) => return self.complain(socket, "malformed", "messages are text", None).await,
        };
        if brings_nul(&text) {
            return self.complain(socket, "malformed", "a NUL character cannot be stored", None).await;
        }
        let Received { msg_id, correlation_id, message } = match protocol::from_agent(&text) {
            Ok(received) => received,
            Err(broken) => return self.complain(socket, "malformed", &broken.cause, broken.msg_id).await,
        };
        if msg_id.as_ref().is_some_and(|id| self.is_repeated(id)) {
            return Ok(());
        }
        let said = match message {
            FromAgent::Hello(hello) if hello.agent_id == self.connection.agent_id => {
                self.jobs = None;
                return self.greet(*hello, msg_id).await.map_err(Some);
            }
            FromAgent::Hello(_) => {
                return self.complain(socket, "another-agent", "a connection belongs to one agentId", msg_id).await;
            }
            FromAgent::Unknown(kind) => {
                let message = format!("`{}` is no message that is known here", kind.escape_debug());
                return self.complain(socket, "unknown-type", &message, msg_id).await;
            }
            FromAgent::Error(complaint) => {
                tracing::debug!(agent = self.connection.agent_id, code = complaint.code, "an agent complains");
                return Ok(());
            }
            FromAgent::Heartbeat(beat) => {
                if beat.active_jobs.is_none() || !self.is_news(&beat, at) {
                    return Ok(());
                }
                Said::Alive(beat)
            }
            FromAgent::AssignAck(ack) => Said::Answer(ack),
            FromAgent::JobUpdate(update) => {
                if update.status.is_none() && update.metadata.is_none() && !self.is_time(&update.job_id, at) {
                    return Ok(());
                }
                Said::Update(update)
            }
            FromAgent::Mute(ack) => Said::Muted(ack, true),
            FromAgent::Unmute(ack) => Said::Muted(ack, false),
        };
        let report = Report::Said { connection: self.connection.clone(), said, correlation: correlation_id };
        self.report(report).await.map_err(Some)
    }

    async fn complain(
        &self,
        socket: &mut WebSocket,
        code: &str,
        message: &str,
        about: Option<String>,
    ) -> Result<(), Option<Goodbye>> {
        self.write(socket, Message::Text(complaint(self.fleet, code, message, about))).await
    }

    /// Whether a message of this id came before, not long ago.
    fn is_repeated(&mut self, id: &str) -> bool {
        let id = hash_of(&id);
        if self.remembered.contains(&id) {
            return true;
        }
        if self.remembered.len() == REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(id);
        false
    }

    /// Whether a heartbeat says something else than the one before, or the same after a while.
    fn is_news(&mut self, beat: &protocol::Heartbeat, at: Duration) -> bool {
        let jobs: Vec<(&str, Option<i64>)> =
            beat.active_jobs.iter().flatten().map(|job| (job.job_id.as_str(), job.lease)).collect();
        let jobs = hash_of(&jobs);
        if self.jobs.is_some_and(|(known, since)| known == jobs && at.saturating_sub(since) < SAME_JOBS) {
            return false;
        }
        self.jobs = Some((jobs, at));
        true
    }

    /// Whether the job's progress is to be written down again.
    fn is_time(&mut self, job: &str, at: Duration) -> bool {
        let job = hash_of(&job);
        if let Some((_, since)) = self.progress.iter_mut().find(|(known, _)| *known == job) {
            let due = at.saturating_sub(*since) >= PROGRESS;
            if due {
                *since = at;
            }
            return due;
        }
        if self.progress.len() == MOST_PROGRESSING {
            self.progress.remove(0);
        }
        self.progress.push((job, at));
        true
    }
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::brings_nul;

    #[test]
    fn a_nul_is_told_from_six_letters() {
        assert!(brings_nul(r#"{"error":"a\u0000b"}"#));
        assert!(!brings_nul(r#"{"error":"a\\u0000b"}"#), "a program printed a backslash, a u and four digits");
        assert!(!brings_nul(r#"{"error":"plain"}"#));
    }
}
