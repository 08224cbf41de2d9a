//! Enqueueing in a transaction of its own, where many callers share one commit.
//!
//! While a commit is under way, those who come wait for the next one, which carries them all. A caller that goes away
//! takes nothing with it: what was handed in is enqueued.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::job::{Enqueued, Job, NewJob};
use super::seats::{Seat, Seats};
use super::store::enqueue::{enqueue, enqueue_at_once, enqueue_taken};
use crate::db::{Db, Error, Result, Topic};

/// Jobs of one commit at most.
const TOGETHER: usize = 1_000;

/// Enqueues jobs one by one for callers that have no transaction; cheap to clone.
#[derive(Clone)]
pub struct Enqueuer {
    db: Db,
    seats: Seats,
    state: Arc<Mutex<State>>,
}

/// Who waits for a job to be enqueued.
type Answer = oneshot::Sender<Result<Enqueued>>;

#[derive(Default)]
struct State {
    waiting: Vec<(NewJob, Answer)>,
    /// A task is at work that will see to whoever waits.
    busy: bool,
}

impl Enqueuer {
    /// One for a process: callers share commits only within one.
    pub fn new(db: Db) -> Self {
        Self { seats: Seats::new(db.clone()), db, state: Arc::default() }
    }

    /// Where workers of this process wait for what is enqueued here.
    pub fn seats(&self) -> &Seats {
        &self.seats
    }

    /// Enqueues a job and wakes the workers; returns once it is durable.
    pub async fn enqueue(&self, job: NewJob) -> Result<Enqueued> {
        let (answer, answered) = oneshot::channel();
        let idle = {
            let mut state = self.state.lock().expect("enqueuer lock");
            state.waiting.push((job, answer));
            !std::mem::replace(&mut state.busy, true)
        };
        if idle {
            tokio::spawn(self.clone().serve());
        }
        answered.await.unwrap_or_else(|_| Err(Error::Unavailable("the process stops".to_owned())))
    }

    /// Enqueues whoever waits, a commit at a time, until nobody does.
    async fn serve(self) {
        loop {
            let batch: Vec<_> = {
                let mut state = self.state.lock().expect("enqueuer lock");
                if state.waiting.is_empty() {
                    state.busy = false;
                    return;
                }
                let count = state.waiting.len().min(TOGETHER);
                state.waiting.drain(..count).collect()
            };
            let (jobs, answers): (Vec<NewJob>, Vec<Answer>) = batch.into_iter().unzip();
            self.serve_batch(jobs, answers).await;
        }
    }

    /// One statement for all. Those whose key is taken are looked after one by one.
    async fn serve_batch(&self, jobs: Vec<NewJob>, answers: Vec<Answer>) {
        let (outcomes, taken) = match self.insert(&jobs).await {
            Ok(inserted) => inserted,
            // Whether it happened is open: nobody may enqueue again on the callers' behalf.
            Err(Error::Unavailable(cause)) => {
                for answer in answers {
                    let _ = answer.send(Err(Error::Unavailable(cause.clone())));
                }
                return;
            }
            // Nothing happened. One bad job must not refuse the others, and each hears its own error.
            Err(_) => (vec![None; jobs.len()], None),
        };
        match taken {
            Some((seat, job)) => self.seats.hand_over(seat, job).await,
            None if outcomes.iter().any(Option::is_some) => self.db.wake(Topic::Jobs).await,
            None => {}
        }
        for ((job, answer), outcome) in jobs.into_iter().zip(answers).zip(outcomes) {
            let _ = answer.send(match outcome {
                Some(enqueued) => Ok(enqueued),
                None => self.enqueue_alone(job).await,
            });
        }
    }

    /// Inserts them by one statement; who waited in a seat for the only one of them, and has it now.
    async fn insert(&self, jobs: &[NewJob]) -> Result<(Vec<Option<Enqueued>>, Option<(Seat, Job)>)> {
        let only = if let [job] = jobs { self.seats.find(job).map(|seat| (job, seat)) } else { None };
        let Some((job, seat)) = only else { return Ok((enqueue_at_once(&self.db, jobs).await?, None)) };
        let Some((enqueued, job)) = enqueue_taken(&self.db, job, &seat).await? else { return Ok((vec![None], None)) };
        Ok((vec![Some(enqueued)], job.map(|job| (seat, job))))
    }

    async fn enqueue_alone(&self, job: NewJob) -> Result<Enqueued> {
        let mut tx = self.db.begin().await?;
        let enqueued = enqueue(&mut tx, job).await?;
        tx.commit().await?;
        self.db.wake(Topic::Jobs).await;
        Ok(enqueued)
    }
}
