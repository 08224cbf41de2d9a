//! Enqueueing in a transaction of its own, where many callers share one commit.
//!
//! While a commit is under way, those who come wait for the next one, which carries them all. A caller that goes away
//! takes nothing with it: what was handed in is enqueued.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::job::{Enqueued, NewJob};
use super::store::enqueue::enqueue_many;
use crate::db::{Db, Error, Result, Topic};

/// Jobs of one commit at most.
const TOGETHER: usize = 1_000;

/// Enqueues jobs one by one for callers that have no transaction; cheap to clone.
#[derive(Clone)]
pub struct Enqueuer {
    db: Db,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: Vec<(NewJob, oneshot::Sender<Result<Enqueued>>)>,
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
            let (jobs, answers): (Vec<NewJob>, Vec<_>) = batch.into_iter().unzip();
            if let Ok(enqueued) = self.commit(&jobs).await {
                for (answer, enqueued) in answers.into_iter().zip(enqueued) {
                    let _ = answer.send(Ok(enqueued));
                }
            } else {
                // One bad job must not refuse the others, and each hears its own error.
                for (job, answer) in jobs.iter().zip(answers) {
                    let _ = answer.send(self.commit(std::slice::from_ref(job)).await.map(|enqueued| enqueued[0]));
                }
            }
            self.db.wake(Topic::Jobs).await;
        }
    }

    async fn commit(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>> {
        let mut tx = self.db.begin().await?;
        let enqueued = enqueue_many(&mut tx, jobs).await?;
        tx.commit().await?;
        Ok(enqueued)
    }
}
