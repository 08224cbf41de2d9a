//! Simulated time: it passes only when everything waits for it, or when the seed says so.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use showrunner::clock::Clock;

use super::faults::{Place, SimFaults};

/// Who sleeps: the number of an instance.
pub type Owner = u64;

/// The true time of the whole simulation.
pub struct SimClock(Mutex<State>);

struct State {
    began: DateTime<Utc>,
    elapsed: Duration,
    /// By owner, time and number.
    sleepers: BTreeMap<(Owner, Duration, u64), Waker>,
    next: u64,
    drivers: BTreeMap<Owner, Waker>,
}

impl SimClock {
    pub fn at(began: DateTime<Utc>) -> Arc<Self> {
        let (sleepers, drivers) = (BTreeMap::new(), BTreeMap::new());
        Arc::new(Self(Mutex::new(State { began, elapsed: Duration::ZERO, sleepers, next: 0, drivers })))
    }

    pub fn advance(&self, by: Duration) {
        let mut state = self.0.lock().expect("clock");
        state.elapsed += by;
        let now = state.elapsed;
        for ((_, due, _), waker) in &state.sleepers {
            if *due <= now {
                waker.wake_by_ref();
            }
        }
    }

    /// Lets the time come for which `owner` waits; `false` when it does not, or was woken and has not stirred yet.
    pub fn pass_to_next(&self, owner: Owner, driver: &Waker) -> bool {
        let next = {
            let mut state = self.0.lock().expect("clock");
            state.drivers.insert(owner, driver.clone());
            match state.sleepers.range((owner, Duration::ZERO, 0)..(owner + 1, Duration::ZERO, 0)).next() {
                Some(((_, due, _), _)) if *due > state.elapsed => *due - state.elapsed,
                _ => return false,
            }
        };
        self.advance(next);
        true
    }

    pub fn elapsed(&self) -> Duration {
        self.0.lock().expect("clock").elapsed
    }

    async fn sleep(&self, owner: Owner, duration: Duration) {
        let key = {
            let mut state = self.0.lock().expect("clock");
            state.next += 1;
            (owner, state.elapsed.saturating_add(duration), state.next)
        };
        let asleep = Asleep(self, key);
        poll_fn(|context| {
            let mut state = self.0.lock().expect("clock");
            if state.elapsed >= key.1 {
                return Poll::Ready(());
            }
            state.sleepers.insert(key, context.waker().clone());
            if let Some(driver) = state.drivers.get(&owner) {
                driver.wake_by_ref();
            }
            Poll::Pending
        })
        .await;
        drop(asleep);
    }
}

struct Asleep<'a>(&'a SimClock, (Owner, Duration, u64));

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.0.lock().expect("clock").sleepers.remove(&self.1);
    }
}

/// A clock as an instance or the database has it: it shows another wall time, drifts, and may jump.
pub struct Skewed {
    base: Arc<SimClock>,
    owner: Owner,
    /// Parts in a million that it runs too fast.
    drift: i64,
    offset: Mutex<TimeDelta>,
    faults: Option<Arc<SimFaults>>,
}

impl Skewed {
    pub fn new(base: &Arc<SimClock>, owner: Owner, drift: i64, faults: Option<Arc<SimFaults>>) -> Arc<Self> {
        Arc::new(Self { base: base.clone(), owner, drift, offset: Mutex::default(), faults })
    }

    /// Shows the wall time of `by` later, or earlier.
    pub fn jump(&self, by: TimeDelta) {
        *self.offset.lock().expect("offset") += by;
    }
}

#[async_trait]
impl Clock for Skewed {
    fn now(&self) -> DateTime<Utc> {
        let (began, elapsed) = {
            let state = self.base.0.lock().expect("clock");
            (state.began, state.elapsed)
        };
        let drifted = TimeDelta::microseconds(elapsed.as_secs() as i64 * self.drift);
        began + elapsed + drifted + *self.offset.lock().expect("offset")
    }
    fn elapsed(&self) -> Duration {
        self.base.elapsed()
    }
    async fn sleep(&self, duration: Duration) {
        if let Some(faults) = &self.faults {
            faults.pass(Place::Sleep).await.ok();
        }
        self.base.sleep(self.owner, duration).await;
    }
}
