//! Claiming, running, renewing and rescuing jobs in this process.
//!
//! | room | holds |
//! |---|---|
//! | `mod` | what a worker is made of, and one batch after the other for a simulation |
//! | `shift` | the running worker: one task that looks, claims, starts, renews and settles side by side |
//! | `settle` | writing down how jobs ended, many by one commit |

mod settle;
mod shift;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::job::Job;
use super::seats::Seats;
use super::store::claim::{self, Claim, Outlook};
use super::store::finish::LONGEST_WAIT;
use crate::clock::SharedClock;
use crate::db::{Db, Result};
use crate::random::Random;
use settle::Ended;
use shift::Shift;

/// Runs jobs of one kind.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The kind that it runs.
    fn kind(&self) -> &'static str;
    /// Runs one try. What leaves the process must be recorded before it goes out. Past the job's time limit, or when
    /// somebody gives the job up, the future is dropped.
    async fn run(&self, job: &Job) -> Outcome;
}

/// How a try ended.
#[derive(Debug)]
pub enum Outcome {
    /// The handler finished the job in a transaction of its own, by `complete` or `fail`.
    Finished,
    /// The worker is to complete it with this result.
    Done(Value),
    /// The worker is to fail it; it is tried again while a try is left.
    Failed(String),
}

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The queue that it works.
    pub queue: &'static str,
    /// The name under which it holds leases.
    pub name: String,
    /// Jobs that run at once.
    pub max_concurrency: usize,
    /// Jobs that are claimed ahead of those that run: a larger claim costs less, but what one process holds the others
    /// cannot run.
    pub prefetch: usize,
    /// Between looks when nothing wakes it.
    pub poll_interval: Duration,
    /// How long a claim holds; renewed at a third of it.
    pub lease: Duration,
    /// How long a stopping worker waits for running jobs; what still runs then is rescued by its lease.
    pub drain: Duration,
}

/// Works one queue with the given handlers.
pub struct Worker {
    db: Db,
    clock: SharedClock,
    random: Random,
    options: WorkerOptions,
    handlers: HashMap<&'static str, Arc<dyn Handler>>,
    kinds: Vec<&'static str>,
    longest_wait: Duration,
    seats: Option<Seats>,
}

impl Worker {
    /// A worker that is not running yet.
    pub fn new(
        db: Db,
        clock: SharedClock,
        random: Random,
        options: WorkerOptions,
        handlers: Vec<Arc<dyn Handler>>,
    ) -> Self {
        let handlers: HashMap<_, _> = handlers.into_iter().map(|handler| (handler.kind(), handler)).collect();
        let mut kinds: Vec<&'static str> = handlers.keys().copied().collect();
        kinds.sort_unstable();
        Self { db, clock, random, options, handlers, kinds, longest_wait: LONGEST_WAIT, seats: None }
    }

    /// The same, which takes a seat where it idles: what is enqueued beside these seats begins sooner.
    pub fn with_seats(self, seats: Seats) -> Self {
        Self { seats: Some(seats), ..self }
    }

    /// The same with another bound for the wait between tries, where a task names none.
    pub fn with_longest_wait(self, longest_wait: Duration) -> Self {
        Self { longest_wait, ..self }
    }

    /// Works until `stop`, then lets running jobs finish.
    pub async fn run(self, stop: CancellationToken) {
        Shift::begin(Arc::new(self)).work(stop).await;
    }

    /// Claims one batch and runs it job by job to its end; returns how many. For a simulation, which wants one thing
    /// to happen at a time.
    pub async fn run_batch(&self) -> Result<usize> {
        let mut jobs = self.claim_at_once(self.options.max_concurrency).await?;
        let (_, more) = self.claim(self.options.max_concurrency - jobs.len()).await?;
        jobs.extend(more);
        let count = jobs.len();
        for job in jobs {
            let Some(handler) = self.handlers.get(job.kind.as_str()) else { continue };
            let outcome = handler.run(&job).await;
            self.settle_patiently(&[Ended { job, end: outcome.into() }]).await;
        }
        Ok(count)
    }

    /// Claims up to `room` of the jobs that ask no question, by one statement.
    async fn claim_at_once(&self, room: usize) -> Result<Vec<Job>> {
        claim::claim_at_once(&self.db, &self.wanted(room)).await
    }

    /// Looks; takes lapsed leases back, lets due jobs in, and claims up to `room` jobs that are ready.
    async fn claim(&self, room: usize) -> Result<(Outlook, Vec<Job>)> {
        let wanted = self.wanted(room);
        let outlook = claim::look(&self.db, &wanted).await?;
        if !outlook.has_work() || (room == 0 && !outlook.has_upkeep()) {
            return Ok((outlook, Vec::new()));
        }
        let mut tx = self.db.begin().await?;
        let jobs = claim::claim(&mut tx, &outlook, &wanted).await?;
        tx.commit().await?;
        Ok((outlook, jobs))
    }

    fn wanted(&self, room: usize) -> Claim<'_> {
        Claim {
            queue: self.options.queue,
            kinds: &self.kinds,
            worker: &self.options.name,
            lease: self.options.lease,
            longest_wait: self.longest_wait,
            limit: room,
        }
    }
}
