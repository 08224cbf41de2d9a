//! Simulated time: it passes only when everything waits for it, or when the seed says so.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use showrunner::clock::Clock;

/// The time of the whole simulation, and the database's.
pub struct SimClock(Mutex<State>);

struct State {
    began: DateTime<Utc>,
    elapsed: Duration,
    sleepers: BTreeMap<(Duration, u64), Waker>,
    next: u64,
    driver: Option<Waker>,
}

impl SimClock {
    pub fn at(began: DateTime<Utc>) -> Arc<Self> {
        let state = State { began, elapsed: Duration::ZERO, sleepers: BTreeMap::new(), next: 0, driver: None };
        Arc::new(Self(Mutex::new(state)))
    }

    pub fn advance(&self, by: Duration) {
        let mut state = self.0.lock().expect("clock");
        state.elapsed += by;
        let now = state.elapsed;
        for ((due, _), waker) in &state.sleepers {
            if *due <= now {
                waker.wake_by_ref();
            }
        }
    }

    /// Lets the time of the next sleeper come; `false` when nobody sleeps, or somebody woken has not stirred yet.
    pub fn pass_to_next(&self, driver: &Waker) -> bool {
        let next = {
            let mut state = self.0.lock().expect("clock");
            state.driver = Some(driver.clone());
            match state.sleepers.keys().next() {
                Some((due, _)) if *due > state.elapsed => *due - state.elapsed,
                _ => return false,
            }
        };
        self.advance(next);
        true
    }
}

struct Asleep<'a>(&'a SimClock, (Duration, u64));

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.0.lock().expect("clock").sleepers.remove(&self.1);
    }
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> DateTime<Utc> {
        let state = self.0.lock().expect("clock");
        state.began + state.elapsed
    }
    fn elapsed(&self) -> Duration {
        self.0.lock().expect("clock").elapsed
    }
    async fn sleep(&self, duration: Duration) {
        let key = {
            let mut state = self.0.lock().expect("clock");
            state.next += 1;
            (state.elapsed.saturating_add(duration), state.next)
        };
        let asleep = Asleep(self, key);
        poll_fn(|context| {
            let mut state = self.0.lock().expect("clock");
            if state.elapsed >= key.0 {
                return Poll::Ready(());
            }
            state.sleepers.insert(key, context.waker().clone());
            if let Some(driver) = &state.driver {
                driver.wake_by_ref();
            }
            Poll::Pending
        })
        .await;
        drop(asleep);
    }
}

/// One instance's own clock: it shows another wall time, and may jump.
pub struct Skewed {
    pub base: Arc<SimClock>,
    pub offset: Mutex<TimeDelta>,
}

#[async_trait]
impl Clock for Skewed {
    fn now(&self) -> DateTime<Utc> {
        self.base.now() + *self.offset.lock().expect("offset")
    }
    fn elapsed(&self) -> Duration {
        self.base.elapsed()
    }
    async fn sleep(&self, duration: Duration) {
        self.base.sleep(duration).await;
    }
}
