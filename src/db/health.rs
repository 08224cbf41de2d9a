//! What the database last failed at, and how long anybody waits for a server that has gone silent.
//!
//! Kept in memory and never in the database: it is asked for when the database is away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Error, Result, Timestamp};
use crate::clock::SharedClock;

/// A server that is silent for so long is gone: it would have ended the statement itself after 30 s.
const SILENCE: Duration = Duration::from_secs(35);

/// Milliseconds within which an answer shows that the server is there.
const JUST_NOW: u64 = 100;

/// A failure that was not seen again for so long is no trouble any more, also where nothing was tried since.
const FADES_AFTER: Duration = Duration::from_secs(30);

/// What the database fails at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trouble {
    /// The first failure of those that go on, on this process's clock.
    pub since: Timestamp,
    /// The last one.
    pub last: Timestamp,
    /// What the last one said.
    pub error: String,
}

/// The same for every clone of a database's handle.
#[derive(Clone)]
pub(super) struct Health {
    clock: SharedClock,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Whether `trouble` holds something: nearly always not, and then nobody takes the lock.
    troubled: AtomicBool,
    /// The trouble, and whether writing met it: that reading succeeds says nothing about a full disk.
    trouble: Mutex<Option<(Trouble, bool)>>,
    /// When a connection was last found silent, in milliseconds since the clock was made; 0: never.
    silent_at: AtomicU64,
    /// When something last succeeded, likewise.
    worked_at: AtomicU64,
}

impl Health {
    pub(super) fn new(clock: SharedClock) -> Self {
        Self { clock, state: Arc::default() }
    }

    /// Waits for the server's answer, but not for ever: a connection whose other end has vanished never says so.
    pub(super) async fn patiently<T>(&self, writes: bool, work: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
        self.within(SILENCE, writes, work).await
    }

    /// The same with a patience of the caller's own.
    pub(super) async fn within<T>(
        &self,
        silence: Duration,
        writes: bool,
        work: impl Future<Output = sqlx::Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(silence, work).await {
            Ok(answer) => answer.map_err(Error::from),
            Err(_) => {
                self.falls_silent();
                let words = format!("the server was silent for {} s", silence.as_secs());
                self.noted(writes, Err(Error::Unavailable(words)))
            }
        }
    }

    /// Milliseconds since the clock was made, at least 1.
    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// A connection did not answer in time.
    pub(super) fn falls_silent(&self) {
        self.state.silent_at.store(self.now(), Ordering::Release);
    }

    /// Whether the server answered somebody just now, and no connection was found silent within the last minute.
    pub(super) fn answers(&self) -> bool {
        let worked_at = self.state.worked_at.load(Ordering::Acquire);
        worked_at > 0 && self.now().saturating_sub(worked_at) <= JUST_NOW && !self.fell_silent_lately()
    }

    /// Whether a connection was found silent within the last minute.
    pub(super) fn fell_silent_lately(&self) -> bool {
        match self.state.silent_at.load(Ordering::Acquire) {
            0 => false,
            at => self.clock.elapsed().saturating_sub(Duration::from_millis(at)) <= Duration::from_secs(60),
        }
    }

    /// Remembers the failure of `result`, if it says that the database is away.
    pub(super) fn noted<T>(&self, writes: bool, result: Result<T>) -> Result<T> {
        if let Err(Error::Unavailable(error)) = &result {
            self.fails(writes, error);
        }
        result
    }

    /// Remembers a failure.
    pub(super) fn fails(&self, writes: bool, error: &str) {
        let last = Timestamp::new(self.clock.now());
        let mut trouble = self.lock();
        let (since, wrote) = match trouble.take() {
            Some((trouble, wrote)) if last.since(trouble.last) <= FADES_AFTER => (trouble.since, wrote),
            _ => (last, false),
        };
        *trouble = Some((Trouble { since, last, error: error.to_owned() }, writes || wrote));
        self.state.troubled.store(true, Ordering::Release);
    }

    /// A statement succeeded, or where it wrote, its commit.
    pub(super) fn works(&self, writes: bool) {
        self.state.worked_at.store(self.now(), Ordering::Release);
        if !self.state.troubled.load(Ordering::Acquire) {
            return;
        }
        let mut trouble = self.lock();
        if writes || trouble.as_ref().is_some_and(|(_, wrote)| !wrote) {
            *trouble = None;
            self.state.troubled.store(false, Ordering::Release);
        }
    }

    /// What goes on failing.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let (trouble, _) = self.lock().clone()?;
        let now = Timestamp::new(self.clock.now());
        (now.since(trouble.last) <= FADES_AFTER).then_some(trouble)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Trouble, bool)>> {
        // Nothing in the state is left half-changed by a panic.
        self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn trouble_lasts_until_what_failed_succeeds_or_is_forgotten() {
        let clock = ManualClock::at("2026-11-20T12:00:00Z".parse().expect("a time"));
        let health = Health::new(clock.clone());
        assert_eq!(health.trouble(), None);
        health.fails(true, "the disk is full");
        clock.advance(Duration::from_secs(10));
        health.works(false);
        health.fails(true, "still full");
        let trouble = health.trouble().expect("reading does not free a disk");
        assert_eq!(
            (trouble.last.since(trouble.since), trouble.error.as_str()),
            (Duration::from_secs(10), "still full")
        );
        health.works(true);
        assert_eq!(health.trouble(), None);
        health.fails(false, "gone");
        health.works(false);
        assert_eq!(health.trouble(), None, "what was met by reading is over when reading succeeds");
        health.fails(true, "gone");
        clock.advance(FADES_AFTER + Duration::from_secs(1));
        assert_eq!(health.trouble(), None, "nobody tried since");
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up() {
        let clock = ManualClock::at("2026-11-20T12:00:00Z".parse().expect("a time"));
        let health = Health::new(clock.clone());
        health.patiently(false, async { Ok(()) }).await.expect("an answer");
        assert_eq!(health.trouble(), None);
        let silent = health.within(Duration::from_millis(1), true, std::future::pending::<sqlx::Result<()>>()).await;
        assert!(matches!(silent, Err(Error::Unavailable(words)) if words.contains("silent")));
        assert!(health.trouble().is_some());
        assert!(health.fell_silent_lately(), "the other connections are suspect");
        clock.advance(Duration::from_secs(61));
        assert!(!health.fell_silent_lately(), "by then all were tried");
    }
}
