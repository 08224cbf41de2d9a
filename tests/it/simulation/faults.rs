//! What can go wrong with a process, at a chosen place. The places are all awaits that an instance has: before each
//! statement, begin and commit, after each commit, before each sleep, before a request to a platform goes out, and
//! before its answer comes in. A crash at any other await cannot be told from one at the next of these.

use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use async_trait::async_trait;
use showrunner::db::{Error, Faults, Point, Result};

use super::clock::{Owner, SimClock};

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The statement, begin or commit fails and has no effect.
    Fails,
    /// Every statement, begin and commit fails from here on.
    AllFail,
    /// A commit takes effect, and its answer is lost.
    AnswerLost,
    /// The process dies here.
    Crashes,
    /// The process stands still, while the world goes on.
    Stalls,
}

/// Where an instance awaits something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Begin,
    BeginRead,
    Statement,
    BeforeCommit,
    AfterCommit,
    EndRead,
    Sleep,
    /// Before a request goes out.
    Send,
    /// The platform has done what it does; its answer is not here yet.
    Answer,
}

#[derive(Default)]
struct State {
    plan: Option<(u32, Fault)>,
    passed: u32,
    crashed: bool,
    stalled: bool,
    /// Writing transactions that may be open, one of which holds SQLite's lock. One that is rolled back does not say
    /// so: it counts until the operation ends.
    writing: u32,
    /// Whether somebody who asked for a cycle has begun to wait for it.
    asked: bool,
    driver: Option<Waker>,
    standing: Vec<Waker>,
}

/// The faults of one instance.
pub struct SimFaults {
    state: Mutex<State>,
    /// Whether a process may stand still with a writing transaction open, and others get on.
    stalls_inside: bool,
}

impl SimFaults {
    pub fn new(stalls_inside: bool) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), stalls_inside })
    }

    /// Lets `fault` happen in the operation that begins now, at the first fitting place from the `after`th on; none
    /// where there is none.
    pub fn arm(&self, plan: Option<(u32, Fault)>) {
        let mut state = self.state.lock().expect("faults");
        (state.plan, state.passed, state.asked, state.writing) = (plan, 0, false, 0);
        state.stalled = false; // somebody may have hung up on an operation that stood still
    }

    /// Lets a process that stands still go on, to its next fault.
    pub fn go_on(&self, plan: Option<(u32, Fault)>) {
        let mut state = self.state.lock().expect("faults");
        (state.plan, state.passed, state.asked, state.stalled) = (plan, 0, false, false);
        state.standing.drain(..).for_each(Waker::wake);
    }

    pub fn asked(&self) -> bool {
        self.state.lock().expect("faults").asked
    }

    fn due(&self, place: Place) -> Option<Fault> {
        let mut state = self.state.lock().expect("faults");
        state.passed += 1;
        let fault = state.plan.filter(|(after, fault)| {
            let database = !matches!(place, Place::Sleep | Place::Send | Place::Answer | Place::AfterCommit);
            let fits = match fault {
                Fault::Fails | Fault::AllFail => database,
                Fault::AnswerLost => place == Place::AfterCommit,
                Fault::Crashes => true,
                Fault::Stalls => self.stalls_inside || state.writing == 0,
            };
            state.passed >= *after && fits
        });
        let fails = matches!(fault, Some((_, Fault::Fails | Fault::AllFail)));
        match place {
            Place::Begin if !fails => state.writing += 1,
            Place::AfterCommit => state.writing = state.writing.saturating_sub(1),
            _ => {}
        }
        let (_, fault) = fault?;
        if fault != Fault::AllFail {
            state.plan = None;
        }
        state.crashed |= fault == Fault::Crashes;
        state.stalled |= fault == Fault::Stalls;
        // It may stand in a task of its own, of whose end the driver would not hear.
        if let Some(driver) = &state.driver {
            driver.wake_by_ref();
        }
        Some(fault)
    }

    /// What an instance meets at a place.
    pub async fn pass(&self, place: Place) -> Result<()> {
        match self.due(place) {
            None => Ok(()),
            Some(Fault::Fails | Fault::AllFail) => Err(Error::Unavailable("a simulated fault".to_owned())),
            Some(Fault::AnswerLost) => Err(Error::Unavailable("a simulated lost answer".to_owned())),
            Some(Fault::Crashes) => pending().await,
            Some(Fault::Stalls) => {
                poll_fn(|context| {
                    let mut state = self.state.lock().expect("faults");
                    if !state.stalled {
                        return Poll::Ready(());
                    }
                    state.standing.push(context.waker().clone());
                    Poll::Pending
                })
                .await;
                Ok(())
            }
        }
    }

    fn ended(&self, driver: &Waker) -> (bool, bool) {
        let mut state = self.state.lock().expect("faults");
        state.driver = Some(driver.clone());
        (state.crashed, state.stalled)
    }
}

#[async_trait]
impl Faults for SimFaults {
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        let place = match point {
            Point::Begin => Place::Begin,
            Point::BeginRead => Place::BeginRead,
            Point::BeforeCommit => Place::BeforeCommit,
            Point::AfterCommit => Place::AfterCommit,
            Point::EndRead => Place::EndRead,
            Point::Statement(text) => {
                if text.starts_with("SELECT cycle_id, error FROM cycle_requests") {
                    self.state.lock().expect("faults").asked = true;
                }
                Place::Statement
            }
        };
        self.pass(place).await
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

/// Runs an operation of `owner`; where it waits for time, time passes.
pub async fn drive<T>(operation: Operation<T>, owner: Owner, clock: &SimClock, faults: &Arc<SimFaults>) -> Progress<T> {
    let mut operation = Some(operation);
    poll_fn(|context| {
        loop {
            let running = operation.as_mut().expect("not driven after its end");
            if let Poll::Ready(value) = running.as_mut().poll(context) {
                return Poll::Ready(Progress::Done(value));
            }
            let (crashed, stalled) = faults.ended(context.waker());
            if crashed {
                operation = None;
                return Poll::Ready(Progress::Crashed);
            }
            if stalled {
                return Poll::Ready(Progress::Stalled(operation.take().expect("just polled")));
            }
            if !clock.pass_to_next(owner, context.waker()) {
                return Poll::Pending;
            }
        }
    })
    .await
}
