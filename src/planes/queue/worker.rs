//! Claiming, running, renewing and rescuing jobs in this process.
//!
//! One task looks, claims and renews; each job runs in a task of its own. A wake-up is only a hint: the listener is
//! armed before the look, and a slow poll runs underneath.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::model::Job;
use super::store;
use crate::backoff;
use crate::clock::SharedClock;
use crate::db::{Db, Result, Topic};
use crate::random::Random;

/// The first wait after a failed try; doubled for each further one, up to a day.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(24 * 3600);

/// How often the end of a job is offered to a store that fails, and the waits between: seconds at most, for the leases
/// of the other jobs are not renewed meanwhile.
const SETTLE_TRIES: u32 = 5;
const SETTLE_BASE: Duration = Duration::from_millis(100);
const SETTLE_CAP: Duration = Duration::from_secs(1);

/// Runs jobs of one kind.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The kind that it runs.
    fn kind(&self) -> &'static str;
    /// Runs one try. What leaves the process must be recorded before it goes out.
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
}

/// A job that is running, as the worker must remember it.
struct Running {
    job: Job,
    task: Id,
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
        let handlers = handlers.into_iter().map(|handler| (handler.kind(), handler)).collect();
        Self { db, clock, random, options, handlers }
    }

    /// Works until `stop`, then lets running jobs finish.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks: JoinSet<Outcome> = JoinSet::new();
        let mut running: Vec<Running> = Vec::new();
        let mut renew_at = self.clock.elapsed() + self.options.lease / 3;
        while !stop.is_cancelled() {
            let mut hint = self.db.listen(Topic::Jobs);
            if let Err(cause) = self.claim_into(&mut tasks, &mut running).await {
                tracing::warn!(%cause, queue = self.options.queue, "the queue could not be looked at");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = tasks.join_next_with_id() => self.finish(ended, &mut running).await,
                () = hint.woken() => {}
                () = self.clock.sleep(self.options.poll_interval), if running.len() < self.options.max_concurrency => {}
                () = self.clock.sleep(renew_at.saturating_sub(self.clock.elapsed())) => {}
            }
            self.renew_if_due(&running, &mut renew_at).await;
        }
        let drained_by = self.clock.elapsed() + self.options.drain;
        while !running.is_empty() && self.clock.elapsed() < drained_by {
            tokio::select! {
                Some(ended) = tasks.join_next_with_id() => self.finish(ended, &mut running).await,
                () = self.clock.sleep(drained_by.min(renew_at).saturating_sub(self.clock.elapsed())) => {}
            }
            self.renew_if_due(&running, &mut renew_at).await;
        }
        if !running.is_empty() {
            tracing::warn!(
                queue = self.options.queue,
                "jobs still run at the end of the drain; their leases will lapse"
            );
        }
    }

    /// Claims one batch and runs it job by job to its end; returns how many. For a simulation, which wants one thing
    /// to happen at a time.
    pub async fn run_batch(&self) -> Result<usize> {
        let jobs = self.claim(self.options.max_concurrency).await?;
        for job in &jobs {
            let Some(handler) = self.handlers.get(job.kind.as_str()) else { continue };
            let outcome = handler.run(job).await;
            self.settle_patiently(job, &outcome).await;
        }
        Ok(jobs.len())
    }

    /// Takes lapsed leases back, and claims up to `room` jobs that are ready.
    async fn claim(&self, room: usize) -> Result<Vec<Job>> {
        if room == 0 || !store::has_work(&self.db, self.options.queue).await? {
            return Ok(Vec::new());
        }
        let kinds: Vec<&str> = self.handlers.keys().copied().collect();
        let mut tx = self.db.begin().await?;
        store::rescue(&mut tx, store::BATCH).await?;
        store::promote_due(&mut tx, store::BATCH).await?;
        let options = &self.options;
        let jobs = store::claim(&mut tx, options.queue, &kinds, &options.name, options.lease, room as i64).await?;
        tx.commit().await?;
        Ok(jobs)
    }

    /// Claims what there is room for and starts it. A batch fills every free place, so the next look comes when one ends.
    async fn claim_into(&self, tasks: &mut JoinSet<Outcome>, running: &mut Vec<Running>) -> Result<()> {
        let room = self.options.max_concurrency.saturating_sub(running.len());
        let jobs = self.claim(room).await?;
        for job in jobs {
            let Some(handler) = self.handlers.get(job.kind.as_str()).cloned() else { continue };
            let handed = job.clone();
            let task = tasks.spawn(async move { handler.run(&handed).await });
            running.push(Running { job, task: task.id() });
        }
        Ok(())
    }

    async fn finish(
        &self,
        ended: std::result::Result<(Id, Outcome), tokio::task::JoinError>,
        running: &mut Vec<Running>,
    ) {
        let (task, outcome) = match ended {
            Ok((task, outcome)) => (task, outcome),
            Err(panic) => (panic.id(), Outcome::Failed("the job's handler panicked; the log has the place".to_owned())),
        };
        let Some(position) = running.iter().position(|entry| entry.task == task) else { return };
        let job = running.swap_remove(position).job;
        self.settle_patiently(&job, &outcome).await;
    }

    /// Writes a job's end down, again and again for a while; after that its lease lapses, and whoever rescues it
    /// decides by the tries that are left.
    async fn settle_patiently(&self, job: &Job, outcome: &Outcome) {
        for attempt in 1..=SETTLE_TRIES {
            match self.settle(job, outcome).await {
                Ok(()) => return,
                Err(cause) => {
                    tracing::warn!(%cause, job = job.id, attempt, "a finished job could not be written down");
                }
            }
            if attempt < SETTLE_TRIES {
                self.clock.sleep(backoff::exponential(SETTLE_BASE, SETTLE_CAP, attempt, &self.random)).await;
            }
        }
    }

    async fn settle(&self, job: &Job, outcome: &Outcome) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let held = match outcome {
            Outcome::Finished => return Ok(()),
            Outcome::Done(result) => store::complete(&mut tx, job, result).await?,
            Outcome::Failed(error) => {
                let wait = backoff::exponential(RETRY_BASE, RETRY_CAP, job.attempt as u32, &self.random);
                store::fail(&mut tx, job, error, Some(wait)).await?
            }
        };
        if !held {
            tracing::warn!(job = job.id, "the answer came after the lease had lapsed and changes nothing");
        }
        tx.commit().await
    }

    async fn renew_if_due(&self, running: &[Running], renew_at: &mut Duration) {
        if self.clock.elapsed() < *renew_at {
            return;
        }
        self.renew(running).await;
        *renew_at = self.clock.elapsed() + self.options.lease / 3;
    }

    async fn renew(&self, running: &[Running]) {
        if running.is_empty() {
            return;
        }
        let held: Vec<(i64, i64)> = running.iter().map(|entry| (entry.job.id, entry.job.lease)).collect();
        let renewed = async {
            let mut tx = self.db.begin().await?;
            let kept = store::renew(&mut tx, &held, self.options.lease).await?;
            tx.commit().await?;
            Ok::<_, crate::db::Error>(kept)
        };
        match renewed.await {
            Ok(kept) if kept.len() < held.len() => {
                tracing::debug!(held = held.len(), kept = kept.len(), "some leases were no longer ours");
            }
            Ok(_) => {}
            Err(cause) => tracing::warn!(%cause, "leases could not be renewed"),
        }
    }
}
