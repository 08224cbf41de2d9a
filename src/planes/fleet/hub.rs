//! The agents that are connected to this instance, in memory: where commands go, and who was heard of when.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::Utf8Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::protocol::close;
use super::store::{Command, Order};

/// Agents of one instance: at 32 KiB each, 640 MiB.
pub const MOST_AGENTS: usize = 20_000;
/// UI clients of one instance.
pub const MOST_UI_CLIENTS: usize = 4_000;
/// Messages that wait for one agent. Who lets more pile up does not read, and is cut off.
pub const OUTBOX: usize = 128;

/// What goes to a connection's own task.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    Text(Utf8Bytes),
    Ping,
    Close { code: u16, reason: String },
}

/// A connected agent.
pub struct Connection {
    pub agent_id: String,
    /// Counts the agent's connections; 0 before its hello is written down.
    number: AtomicI64,
    outbox: mpsc::Sender<Out>,
    /// Ends it where it does not read.
    pub cut: CancellationToken,
    /// By the instance's clock, in milliseconds since its start.
    heard: AtomicU64,
    pinged: AtomicU64,
    noted: AtomicU64,
    /// What it said waits to be taken: it cannot be heard meanwhile.
    pub blocked: AtomicBool,
}

impl Connection {
    pub fn new(agent_id: String, at: Duration, cut: CancellationToken) -> (Arc<Self>, mpsc::Receiver<Out>) {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let at = at.as_millis() as u64;
        let connection = Self {
            agent_id,
            number: AtomicI64::new(0),
            outbox,
            cut,
            heard: AtomicU64::new(at),
            pinged: AtomicU64::new(at),
            noted: AtomicU64::new(at),
            blocked: AtomicBool::new(false),
        };
        (Arc::new(connection), messages)
    }

    pub fn number(&self) -> i64 {
        self.number.load(Ordering::Acquire)
    }

    /// A sign of life.
    pub fn hear(&self, at: Duration) {
        self.heard.store(at.as_millis() as u64, Ordering::Relaxed);
    }

    /// How long ago the last one was.
    pub fn silent_for(&self, at: Duration) -> Duration {
        at.saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }

    /// Never waits: at the bound the connection is cut.
    pub fn send(&self, out: Out) {
        if self.outbox.try_send(out).is_err() {
            self.cut.cancel();
        }
    }
}

/// All of them.
pub struct Hub {
    connections: Mutex<HashMap<String, Arc<Connection>>>,
    pub agents: Arc<Semaphore>,
    pub ui_clients: Arc<Semaphore>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            connections: Mutex::default(),
            agents: Arc::new(Semaphore::new(MOST_AGENTS)),
            ui_clients: Arc::new(Semaphore::new(MOST_UI_CLIENTS)),
        }
    }
}

impl Hub {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent is reached by this connection from now on; an older one of it is closed.
    pub fn register(&self, connection: &Arc<Connection>, number: i64) {
        connection.number.store(number, Ordering::Release);
        let old = self.all().insert(connection.agent_id.clone(), connection.clone());
        if let Some(old) = old.filter(|old| !Arc::ptr_eq(old, connection)) {
            let reason = "another connection said hello as this agent".to_owned();
            old.send(Out::Close { code: close::REPLACED, reason });
        }
    }

    /// The connection has ended.
    pub fn unregister(&self, connection: &Arc<Connection>) {
        let mut all = self.all();
        if all.get(&connection.agent_id).is_some_and(|known| Arc::ptr_eq(known, connection)) {
            all.remove(&connection.agent_id);
        }
    }

    /// Hands commands to the connections that they are for; those of connections that are gone are gone too.
    pub fn deliver(&self, commands: Vec<Command>) {
        for command in commands {
            let connection = self.all().get(&command.agent_id).cloned();
            let Some(connection) = connection.filter(|known| known.number() == command.connection) else { continue };
            connection.send(match command.order {
                Order::Send(text) => Out::Text(text.into()),
                Order::Close { code, reason } => Out::Close { code, reason },
            });
        }
    }

    pub fn connected(&self) -> Vec<Arc<Connection>> {
        self.all().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// When the agent was last heard of, if it is connected here: how long ago.
    pub fn silent_for(&self, agent: &str, at: Duration) -> Option<Duration> {
        self.all().get(agent).map(|connection| connection.silent_for(at))
    }

    /// Looks at everybody: who was silent for an interval is pinged, who was silent too long is closed.
    pub fn sweep(&self, at: Duration, interval: Duration, timeout: Duration) {
        let now = at.as_millis() as u64;
        let mut quiet = Vec::new();
        for connection in self.all().values() {
            if connection.silent_for(at) >= interval && !connection.blocked.load(Ordering::Relaxed) {
                quiet.push(connection.clone());
            }
        }
        for connection in quiet {
            if connection.silent_for(at) > timeout {
                self.silence(&connection, format!("no sign of life for {} ms", timeout.as_millis()));
            } else if now.saturating_sub(connection.pinged.load(Ordering::Relaxed)) >= interval.as_millis() as u64 {
                connection.pinged.store(now, Ordering::Relaxed);
                connection.send(Out::Ping);
            }
        }
    }

    /// Closes a connection that counts no more.
    fn silence(&self, connection: &Arc<Connection>, reason: String) {
        connection.send(Out::Close { code: close::SILENT, reason });
        // A connection that cannot be written to would not come to that.
        let cut = connection.cut.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cut.cancel();
        });
        self.unregister(connection);
    }

    /// Closes every connection; how many that were.
    pub fn silence_all(&self, reason: &str) -> usize {
        let connections = self.connected();
        connections.iter().for_each(|connection| self.silence(connection, reason.to_owned()));
        connections.len()
    }

    /// Agents whose last sign of life was not written down for `every`, at most `most`: id, connection, and how long
    /// ago it was.
    pub fn to_note(&self, at: Duration, every: Duration, most: usize) -> Vec<(String, i64, Duration)> {
        let now = at.as_millis() as u64;
        let all = self.all();
        let due = all.values().filter(|connection| {
            now.saturating_sub(connection.noted.load(Ordering::Relaxed)) >= every.as_millis() as u64
        });
        let due = due.take(most).map(|connection| {
            connection.noted.store(now, Ordering::Relaxed);
            (connection.agent_id.clone(), connection.number(), connection.silent_for(at))
        });
        due.collect()
    }

    /// Tells everybody to connect elsewhere: this instance goes away.
    pub fn close_all(&self) {
        for connection in self.all().values() {
            let reason = "this instance goes away; connect again after a random moment".to_owned();
            connection.send(Out::Close { code: 1001, reason });
        }
    }
}
