//! What can go wrong between a process and its database, at a chosen statement, begin or commit.

use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use async_trait::async_trait;
use showrunner::db::{Error, Faults, Point, Result};

use super::clock::SimClock;

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The statement, begin or commit fails and has no effect.
    Fails,
    /// A commit takes effect, and its answer is lost.
    AnswerLost,
    /// The process dies here.
    Crashes,
    /// The process stands still before a transaction, while the world goes on.
    Stalls,
}

#[derive(Default)]
struct State {
    plan: Option<(u32, Fault)>,
    strikes: u32,
    crashed: bool,
    stalled: bool,
}

/// The faults of one instance.
#[derive(Default)]
pub struct SimFaults(Mutex<State>);

impl SimFaults {
    /// Lets `fault` happen at the first fitting place from the `after`th on.
    pub fn arm(&self, after: u32, fault: Fault) {
        *self.0.lock().expect("faults") = State { plan: Some((after, fault)), ..State::default() };
    }
    pub fn disarm(&self) {
        self.0.lock().expect("faults").plan = None;
    }
    pub fn go_on(&self) {
        self.0.lock().expect("faults").stalled = false;
    }
    fn crashed(&self) -> bool {
        self.0.lock().expect("faults").crashed
    }
    fn stalled(&self) -> bool {
        self.0.lock().expect("faults").stalled
    }

    fn due(&self, point: Point<'_>) -> Option<Fault> {
        let mut state = self.0.lock().expect("faults");
        state.strikes += 1;
        let (after, fault) = state.plan?;
        let fits = match fault {
            Fault::Fails => point != Point::AfterCommit,
            Fault::AnswerLost => point == Point::AfterCommit,
            Fault::Crashes => true,
            Fault::Stalls => point == Point::Begin,
        };
        if state.strikes < after || !fits {
            return None;
        }
        state.plan = None;
        state.crashed = fault == Fault::Crashes;
        state.stalled = fault == Fault::Stalls;
        Some(fault)
    }
}

#[async_trait]
impl Faults for SimFaults {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        match self.due(point) {
            None => Ok(()),
            Some(Fault::Fails) => Err(Error::Unavailable("a simulated fault".to_owned())),
            Some(Fault::AnswerLost) => Err(Error::Unavailable("a simulated lost answer".to_owned())),
            Some(Fault::Crashes) => pending().await,
            Some(Fault::Stalls) => {
                poll_fn(|_| if self.stalled() { Poll::Pending } else { Poll::Ready(()) }).await;
                Ok(())
            }
        }
    }
}

/// Something an instance does.
pub type Operation<T> = Pin<Box<dyn Future<Output = T>>>;

/// How far an operation came.
pub enum Progress<T> {
    Done(T),
    /// It stands still; it can be driven on later.
    Stalled(Operation<T>),
    /// Its process is dead.
    Crashed,
}

/// Runs an operation; where it waits for time, time passes.
pub async fn drive<T>(operation: Operation<T>, clock: &SimClock, faults: &Arc<SimFaults>) -> Progress<T> {
    let mut operation = Some(operation);
    poll_fn(|context| {
        loop {
            let running = operation.as_mut().expect("not driven after its end");
            if let Poll::Ready(value) = running.as_mut().poll(context) {
                return Poll::Ready(Progress::Done(value));
            }
            if faults.crashed() {
                operation = None;
                return Poll::Ready(Progress::Crashed);
            }
            if faults.stalled() {
                return Poll::Ready(Progress::Stalled(operation.take().expect("just polled")));
            }
            if !clock.pass_to_next(context.waker()) {
                return Poll::Pending;
            }
        }
    })
    .await
}
