//! The monitor: the tail of the table, transient events, and what engines say, all to every subscriber.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::bus::{Bus, Subscription};
use super::event::{Event, NewEvent, Position};
use super::{backends, severe, store};
use crate::clock::SharedClock;
use crate::db::{Db, Result, Timestamp, Topic};

/// Events between the tail and the engines on one side and the subscribers on the other.
const CHANNEL: usize = 1000;

/// Events that one look at the table reads.
const BATCH: i64 = 500;

/// Between looks at the table when nothing wakes the tail.
const POLL: Duration = Duration::from_secs(1);

/// Until the next look while an event waits for an older transaction to end. By the machine's time: the database's
/// transactions know no other.
const HELD: Duration = Duration::from_millis(20);

/// One a process; cheap to clone.
#[derive(Clone)]
pub struct Monitor {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    clock: SharedClock,
    bus: Bus,
    channel: mpsc::Sender<Event>,
    /// The channel's other end, until the monitor starts.
    waiting: Mutex<Option<mpsc::Receiver<Event>>>,
    /// Transient events that found the channel full.
    lost: AtomicU64,
    /// How far the tail has come.
    position: watch::Sender<Position>,
    ended: CancellationToken,
}

/// Which back ends this process runs beside log and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backends {
    /// Log and metrics.
    Watch,
    /// Also severe events into the ledger.
    Record,
}

impl Monitor {
    /// A monitor that has not started: what is published waits.
    pub fn new(db: Db, clock: SharedClock) -> Self {
        let (channel, waiting) = mpsc::channel(CHANNEL);
        let inner = Inner {
            db,
            clock,
            bus: Bus::default(),
            channel,
            waiting: Mutex::new(Some(waiting)),
            lost: AtomicU64::new(0),
            position: watch::Sender::new(Position::default()),
            ended: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins to tell what is stored from here on, until `stop`. Returns once nothing that is committed from now on
    /// can be missed. A second call does nothing.
    pub async fn start(&self, stop: CancellationToken, backends: Backends) -> Result<JoinHandle<()>> {
        let waiting = self.inner.waiting.lock().expect("the monitor's lock").take();
        let Some(waiting) = waiting else { return Ok(tokio::spawn(async {})) };
        store::adopt(&self.inner.db).await?;
        self.inner.position.send_replace(store::end(&self.inner.db).await?);
        let inner = self.inner.clone();
        let log = backends::log(inner.bus.subscribe());
        let count = backends::count(inner.bus.subscribe());
        let ledger = (backends == Backends::Record)
            .then(|| severe::copy(inner.db.clone(), inner.clock.clone(), inner.bus.subscribe()));
        Ok(tokio::spawn(async move {
            let tail = async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = inner.tail() => {}
                }
                inner.ended.cancel();
            };
            let ledger = async {
                if let Some(copy) = ledger {
                    copy.await;
                }
            };
            tokio::join!(tail, inner.tell(waiting), log, count, ledger);
        }))
    }

    /// Everything from here on.
    pub fn subscribe(&self) -> Subscription {
        self.inner.bus.subscribe()
    }

    /// How far the table has been told; [`Monitor::subscribe`] tells what lies behind.
    pub fn position(&self) -> Position {
        *self.inner.position.borrow()
    }

    /// Tells subscribers something that is not stored. Never waits: where the channel is full the event is lost, and
    /// subscribers are told that one was.
    pub fn publish(&self, event: NewEvent) {
        let event = event.transient(Timestamp::new(self.inner.clock.now()));
        if self.inner.channel.try_send(event).is_err() {
            self.inner.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Publishes what an engine says, as it comes, until the engine or the monitor ends.
    pub fn attach_to_engine<M>(&self, engine: &str, mut outbound: broadcast::Receiver<M>)
    where
        M: Into<NewEvent> + Clone + Send + 'static,
    {
        let (monitor, engine) = (self.clone(), engine.to_owned());
        self.spawn(async move {
            loop {
                match outbound.recv().await {
                    Ok(message) => monitor.publish_of(&engine, message),
                    Err(broadcast::error::RecvError::Lagged(count)) => {
                        monitor.inner.lost.fetch_add(count, Ordering::Relaxed);
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    /// As [`Monitor::attach_to_engine`], of a channel that has this one reader.
    pub fn attach_to_engine_queue<M>(&self, engine: &str, mut outbound: mpsc::Receiver<M>)
    where
        M: Into<NewEvent> + Send + 'static,
    {
        let (monitor, engine) = (self.clone(), engine.to_owned());
        self.spawn(async move {
            while let Some(message) = outbound.recv().await {
                monitor.publish_of(&engine, message);
            }
        });
    }

    /// Publishes the engines' states now and every `interval`, until the monitor ends.
    pub fn watch_engines(&self, interval: Duration, states: impl Fn() -> Vec<NewEvent> + Send + 'static) {
        let monitor = self.clone();
        self.spawn(async move {
            loop {
                states().into_iter().for_each(|state| monitor.publish(state));
                monitor.inner.clock.sleep(interval).await;
            }
        });
    }

    fn publish_of(&self, engine: &str, message: impl Into<NewEvent>) {
        let mut event = message.into();
        engine.clone_into(&mut event.source);
        self.publish(event);
    }

    /// Runs `task` until the monitor ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.inner.ended.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = task => {}
            }
        });
    }
}

impl Inner {
    /// Reads the table's end for ever.
    async fn tail(&self) {
        let mut wakes = self.db.listen(Topic::Events);
        let mut position = *self.position.borrow();
        loop {
            let held = match store::behind(&self.db, position, BATCH).await {
                Ok(behind) => {
                    let full = behind.events.len() as i64 == BATCH;
                    for event in behind.events {
                        position = event.position().unwrap_or(position);
                        // It ends only with the monitor.
                        let _ = self.channel.send(event).await;
                        self.position.send_replace(position);
                    }
                    if full {
                        continue;
                    }
                    behind.held
                }
                Err(cause) => {
                    tracing::debug!(%cause, "events cannot be read; they are told once they can");
                    tokio::time::sleep(POLL).await;
                    continue;
                }
            };
            if held {
                tokio::time::sleep(HELD).await;
            } else {
                tokio::select! {
                    () = wakes.woken() => {}
                    () = self.clock.sleep(POLL) => {}
                }
            }
        }
    }

    /// Hands everything to the subscribers, until the monitor ends and nothing waits any more.
    async fn tell(&self, mut waiting: mpsc::Receiver<Event>) {
        loop {
            let event = tokio::select! {
                biased;
                event = waiting.recv() => event,
                () = self.ended.cancelled() => None,
            };
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                self.bus.lost(lost);
            }
            let Some(event) = event else { break };
            self.bus.publish(&Arc::new(event));
        }
        self.bus.close();
    }
}
