//! Hints that something changed, so that nobody has to poll fast.
//!
//! A hint may be lost; whoever listens keeps a slow poll underneath. Within the process a hint is a broadcast,
//! between instances it is PostgreSQL's `NOTIFY`, sent after the commit by [`Db::wake`] and never by a trigger
//! (it takes a lock on the whole server at commit).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::{Db, Pools, PostgresPools};
use crate::clock::SharedClock;
use crate::random::Random;

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Jobs were enqueued.
    Jobs,
    /// Jobs ended that somebody waits for.
    JobsEnded,
    /// Publications may be due.
    Publications,
    /// The loop's switch, lease or requests changed.
    Loop,
    /// Runs of pipelines are to begin, go on or stop.
    Runs,
    /// Events were recorded.
    Events,
    /// Agents or their jobs changed, or commands wait for them.
    Fleet,
}

impl Topic {
    const ALL: [Self; 7] =
        [Self::Jobs, Self::JobsEnded, Self::Publications, Self::Loop, Self::Runs, Self::Events, Self::Fleet];

    fn name(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::JobsEnded => "jobs_ended",
            Self::Publications => "publications",
            Self::Loop => "loop",
            Self::Runs => "runs",
            Self::Events => "events",
            Self::Fleet => "fleet",
        }
    }
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }
}

/// Sends a hint. It may be lost, so its commit waits for no disk.
const NOTIFY: &str = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)";

/// Between two hints of one topic to other instances: the first goes out at once, and what comes within it is told by one.
const TOGETHER: Duration = Duration::from_millis(5);

/// PostgreSQL's channel; the payload is the topic, and behind a space which process says so.
const CHANNEL: &str = "showrunner";

/// A listener that heard nothing for so long asks whether the server is still there: a connection whose other end has
/// vanished never says so.
const QUIET: Duration = Duration::from_secs(60);

/// How long the server may take to answer that, or to take a hint.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// The hints of this process.
#[derive(Clone)]
pub struct Waker {
    sender: broadcast::Sender<Topic>,
    /// Topics whose hint is being sent to other instances, and whether another is to follow.
    telling: Arc<Mutex<Vec<(Topic, bool)>>>,
    /// Tells this process's own hints apart when they come back from PostgreSQL.
    origin: Arc<str>,
}

impl Default for Waker {
    fn default() -> Self {
        // A listener that falls 64 hints behind looks anyway: nothing is lost but the hint.
        let origin = Random::from_machine().token().into();
        Self { sender: broadcast::channel(64).0, telling: Arc::default(), origin }
    }
}

impl Waker {
    /// Whether the caller is to tell the others; else somebody does already, and does it once more.
    fn begins(&self, topic: Topic) -> bool {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        match telling.iter_mut().find(|(told, _)| *told == topic) {
            Some((_, again)) => {
                *again = true;
                false
            }
            None => {
                telling.push((topic, false));
                true
            }
        }
    }

    /// Whether it is to be told once more.
    fn goes_on(&self, topic: Topic) -> bool {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = telling.iter().position(|(told, _)| *told == topic) else { return false };
        if std::mem::take(&mut telling[place].1) {
            return true;
        }
        telling.remove(place);
        false
    }
}

/// Somebody who waits for one topic.
pub struct Listener {
    receiver: broadcast::Receiver<Topic>,
    topic: Topic,
}

impl Listener {
    /// Returns at the next hint of its topic.
    pub async fn woken(&mut self) {
        loop {
            match self.receiver.recv().await {
                Ok(topic) if topic == self.topic => return,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Db {
    /// Says that `topic` changed; call it after the commit. This process hears it at once; other instances are told
    /// meanwhile, and however many hints come while one is on its way, one more follows.
    pub async fn wake(&self, topic: Topic) {
        let _ = self.waker.sender.send(topic);
        self.wake_others(topic);
    }

    /// The same for other processes alone, where this one knows already.
    pub fn wake_others(&self, topic: Topic) {
        if matches!(self.pools, Pools::Postgres(_)) && self.waker.begins(topic) {
            tokio::spawn(self.clone().tell_others(topic));
        }
    }

    async fn tell_others(self, topic: Topic) {
        let Pools::Postgres(PostgresPools { kept, .. }) = &self.pools else { return };
        let hint = format!("{} {}", topic.name(), self.waker.origin);
        loop {
            let sent = sqlx::query(NOTIFY).bind(CHANNEL).bind(&hint).execute(kept);
            // No hint is worth a longer wait.
            if let Err(cause) = self.health.within(ANSWER_PATIENCE, false, sent).await {
                tracing::debug!(%cause, "a wake-up was not sent; polling will see the change");
            }
            tokio::time::sleep(TOGETHER).await;
            if !self.waker.goes_on(topic) {
                return;
            }
        }
    }

    /// Hints of `topic` from here on. Take it before looking, so that nothing falls between.
    pub fn listen(&self, topic: Topic) -> Listener {
        Listener { receiver: self.waker.sender.subscribe(), topic }
    }

    /// Whatever was said while this process did not hear others is looked for now.
    fn wake_for_all(&self) {
        for topic in Topic::ALL {
            let _ = self.waker.sender.send(topic);
        }
    }

    /// Passes other instances' hints on to this process until `stop`. Returns at once on SQLite.
    pub async fn relay_wakeups(&self, clock: SharedClock, stop: CancellationToken) {
        let Pools::Postgres(PostgresPools { fresh, .. }) = &self.pools else { return };
        while !stop.is_cancelled() {
            let heard = async {
                // A listener that hangs keeps its place in its pool for good, so it has a pool of its own.
                let options = (*fresh.connect_options()).clone();
                let own =
                    PgPoolOptions::new().max_connections(1).acquire_timeout(ANSWER_PATIENCE).connect_with(options);
                let mut listener = PgListener::connect_with(&own.await?).await?;
                listener.listen(CHANNEL).await?;
                self.wake_for_all();
                loop {
                    let Ok(notification) = tokio::time::timeout(QUIET, listener.try_recv()).await else {
                        let asked = sqlx::query("SELECT 1").execute(&mut listener);
                        tokio::time::timeout(ANSWER_PATIENCE, asked).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
                        continue;
                    };
                    let Some(notification) = notification? else {
                        self.wake_for_all(); // it was cut off, and listens again
                        continue;
                    };
                    let (topic, origin) =
                        notification.payload().split_once(' ').unwrap_or((notification.payload(), ""));
                    if let Some(topic) = Topic::from_name(topic).filter(|_| origin != &*self.waker.origin) {
                        let _ = self.waker.sender.send(topic);
                    }
                }
            };
            let result: Result<(), sqlx::Error> = tokio::select! {
                () = stop.cancelled() => return,
                result = heard => result,
            };
            if let Err(cause) = result {
                tracing::debug!(%cause, "wake-ups are cut; polling until they are back");
            }
            clock.sleep(Duration::from_secs(1)).await;
        }
    }
}
