//! Enqueueing in a transaction of its own, where many callers share one commit.
//!
//! While a commit is under way, those who come wait for the next one, which carries them all. A caller that goes away
//! takes nothing with it: what was handed in is enqueued.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::job::{Enqueued, NewJob};
use super::store::enqueue::{enqueue, enqueue_at_once};
use crate::db::{Db, Error, Result, Topic};

/// Jobs of one commit at most.
const TOGETHER: usize = 1_000;

/// Enqueues jobs one by one for callers that have no transaction; cheap to clone.
#[derive(Clone)]
pub struct Enqueuer {
    db: Db,
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
        Self { db, state: Arc::default() }
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
        let outcomes = match enqueue_at_once(&self.db, &jobs).await {
            Ok(outcomes) => outcomes,
            // Whether it happened is open: nobody may enqueue again on the callers' behalf.
            Err(Error::Unavailable(cause)) => {
                for answer in answers {
                    let _ = answer.send(Err(Error::Unavailable(cause.clone())));
                }
                return;
            }
            // Nothing happened. One bad job must not refuse the others, and each hears its own error.
            Err(_) => vec![None; jobs.len()],
        };
        if outcomes.iter().any(Option::is_some) {
            self.db.wake(Topic::Jobs).await;
        }
        for ((job, answer), outcome) in jobs.into_iter().zip(answers).zip(outcomes) {
            let _ = answer.send(match outcome {
                Some(enqueued) => Ok(enqueued),
                None => self.enqueue_alone(job).await,
            });
        }
    }

    async fn enqueue_alone(&self, job: NewJob) -> Result<Enqueued> {
        let mut tx = self.db.begin().await?;
        let enqueued = enqueue(&mut tx, job).await?;
        tx.commit().await?;
        self.db.wake(Topic::Jobs).await;
        Ok(enqueued)
    }
}
