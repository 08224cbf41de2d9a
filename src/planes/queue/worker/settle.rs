//! Writing down how jobs ended. What ends while a commit is under way goes with the next one, so that many share one.

use std::time::Duration;

use serde_json::Value;

use super::{Outcome, Worker};
use crate::backoff;
use crate::db::{Result, Topic};
use crate::planes::queue::job::{Hold, Job};
use crate::planes::queue::store::finish::{self, Again};

/// How often the end of a job is offered to a store that fails, and the waits between: seconds at most, after that its
/// lease lapses, and whoever rescues it decides by the tries that are left.
const SETTLE_TRIES: u32 = 5;
const SETTLE_BASE: Duration = Duration::from_millis(100);
const SETTLE_CAP: Duration = Duration::from_secs(1);

/// A job that ran to its end in this process.
#[derive(Debug)]
pub(super) struct Ended {
    pub job: Job,
    pub end: End,
}

/// How it ended, as far as the worker has to write it down.
#[derive(Debug)]
pub(super) enum End {
    /// Its handler has written it down.
    Written,
    Done(Value),
    Failed(String),
    TimedOut,
    /// Somebody gave it up.
    Stopped,
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Finished => Self::Written,
            Outcome::Done(result) => Self::Done(result),
            Outcome::Failed(error) => Self::Failed(error),
        }
    }
}

impl Worker {
    /// Writes ends down, again and again for a while. A batch that cannot be written is tried one by one at last: one
    /// bad result must not hold up the others.
    pub(super) async fn settle_patiently(&self, ended: &[Ended]) {
        for attempt in 1..=SETTLE_TRIES {
            match self.settle(ended).await {
                Ok(()) => return self.tell(ended).await,
                Err(cause) => {
                    tracing::warn!(%cause, jobs = ended.len(), attempt, "finished jobs could not be written down");
                }
            }
            if attempt < SETTLE_TRIES {
                self.clock.sleep(backoff::exponential(SETTLE_BASE, SETTLE_CAP, attempt, &self.random)).await;
            }
        }
        if ended.len() > 1 {
            for one in ended.chunks(1) {
                if let Err(cause) = self.settle(one).await {
                    tracing::warn!(%cause, job = one[0].job.id, "a finished job could not be written down");
                }
            }
            self.tell(ended).await;
        }
    }

    async fn settle(&self, ended: &[Ended]) -> Result<()> {
        let done: Vec<(Hold, &Value)> = ended
            .iter()
            .filter_map(|entry| match &entry.end {
                End::Done(result) => Some((Hold::from(&entry.job), result)),
                _ => None,
            })
            .collect();
        let others: Vec<&Ended> =
            ended.iter().filter(|entry| !matches!(entry.end, End::Done(_) | End::Written)).collect();
        if others.is_empty() {
            if !done.is_empty() {
                let held = finish::complete_at_once(&self.db, &done).await?;
                warn_of_late(done.len(), usize::try_from(held).unwrap_or(usize::MAX));
            }
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        if !done.is_empty() {
            let held = finish::complete_many(&mut tx, &done).await?;
            warn_of_late(done.len(), held.len());
        }
        for entry in others {
            let held = match &entry.end {
                End::Done(_) | End::Written => true,
                End::Failed(error) => {
                    finish::fail(&mut tx, &entry.job, error, Again::ByPolicy(&self.random, self.longest_wait))
                        .await?
                        .is_some()
                }
                End::TimedOut => {
                    finish::time_out(&mut tx, &entry.job, Again::ByPolicy(&self.random, self.longest_wait))
                        .await?
                        .is_some()
                }
                End::Stopped => finish::acknowledge_cancel(&mut tx, &entry.job).await?,
            };
            if !held {
                tracing::warn!(job = entry.job.id, "the answer came after the lease had lapsed and changes nothing");
            }
        }
        tx.commit().await
    }

    /// Wakes who waits for the end of one of these jobs.
    async fn tell(&self, ended: &[Ended]) {
        if ended.iter().any(|entry| entry.job.awaited) {
            self.db.wake(Topic::JobsEnded).await;
        }
    }
}

fn warn_of_late(done: usize, held: usize) {
    if held < done {
        tracing::warn!(late = done - held, "answers came after their leases had lapsed and change nothing");
    }
}
