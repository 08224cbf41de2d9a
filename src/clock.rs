//! Time comes in by the door: nothing above the ground floor reads the machine's clock itself.
//!
//! [`Clock`] has three faces in this one file: the machine's own ([`SystemClock`]), one that runs
//! faster ([`AcceleratedClock`], for `showrunner demo`) and one that moves only when told
//! ([`ManualClock`], for tests and simulation).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

/// Where the service takes the time from.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// The wall clock, UTC. It may jump; nothing durable may depend on it alone.
    fn now(&self) -> DateTime<Utc>;
    /// Time since this clock was made. It never goes backwards.
    fn elapsed(&self) -> Duration;
    /// Returns after `duration` of this clock's time.
    async fn sleep(&self, duration: Duration);
}

/// How components hold their clock.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    /// A clock that starts now.
    #[allow(clippy::disallowed_methods)] // the one door by which the machine's time comes in
    pub fn shared() -> SharedClock {
        Arc::new(Self { started: std::time::Instant::now() })
    }
}

#[async_trait]
impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// A clock that starts at a chosen time and runs `factor` times as fast as the machine's.
pub struct AcceleratedClock {
    begins_at: DateTime<Utc>,
    factor: u32,
    machine: SharedClock,
}

impl AcceleratedClock {
    /// `factor` 120 makes two minutes of watching four hours of platform.
    pub fn shared(begins_at: DateTime<Utc>, factor: u32) -> SharedClock {
        Arc::new(Self { begins_at, factor: factor.max(1), machine: SystemClock::shared() })
    }
}

#[async_trait]
impl Clock for AcceleratedClock {
    fn now(&self) -> DateTime<Utc> {
        self.begins_at + self.elapsed()
    }
    fn elapsed(&self) -> Duration {
        self.machine.elapsed() * self.factor
    }
    async fn sleep(&self, duration: Duration) {
        self.machine.sleep(duration / self.factor).await;
    }
}

/// A clock that stands still until [`ManualClock::advance`] or [`ManualClock::jump`] moves it.
pub struct ManualClock {
    state: Mutex<ManualState>,
    moved: tokio::sync::watch::Sender<()>,
}

struct ManualState {
    now: DateTime<Utc>,
    elapsed: Duration,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: DateTime<Utc>) -> Arc<Self> {
        let state = Mutex::new(ManualState { now, elapsed: Duration::ZERO });
        Arc::new(Self { state, moved: tokio::sync::watch::Sender::new(()) })
    }

    /// Lets time pass; sleepers whose time has come wake up.
    pub fn advance(&self, by: Duration) {
        {
            let mut state = self.state.lock().expect("clock lock");
            state.now += by;
            state.elapsed += by;
        }
        self.moved.send_replace(());
    }

    /// Moves the wall clock only, as an operator or a time server would; nobody wakes up.
    pub fn jump(&self, by: TimeDelta) {
        self.state.lock().expect("clock lock").now += by;
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        self.state.lock().expect("clock lock").now
    }
    fn elapsed(&self) -> Duration {
        self.state.lock().expect("clock lock").elapsed
    }
    async fn sleep(&self, duration: Duration) {
        let mut moved = self.moved.subscribe();
        let due = self.elapsed() + duration;
        while self.elapsed() < due {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_clock_wakes_sleepers_only_when_their_time_has_come() {
        let clock = ManualClock::at(DateTime::UNIX_EPOCH);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(2)).await }
        });
        tokio::task::yield_now().await; // the sleeper lies down
        clock.jump(TimeDelta::hours(5));
        clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished(), "a jump of the wall clock is not time passing");
        clock.advance(Duration::from_secs(1));
        sleeper.await.expect("sleeper");
        assert_eq!(clock.now(), DateTime::UNIX_EPOCH + TimeDelta::hours(5) + TimeDelta::seconds(2));
    }
}
