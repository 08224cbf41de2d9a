//! Workers of this process that idle, and wait for one job each: a job that is enqueued by itself is claimed for one of
//! them by the statement that inserts it, so that one commit lies between enqueueing and start instead of two.
//!
//! A seat is a hint like any other: whoever waits in one looks all the same. A job whose worker has left its seat
//! meanwhile is given back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::job::{Hold, Job, NewJob};
use super::store::finish;
use crate::db::{Db, Topic};

/// The seats of one process; cheap to clone.
#[derive(Clone)]
pub struct Seats {
    db: Db,
    waiting: Arc<Mutex<VecDeque<Seat>>>,
}

/// Who waits, and how its job is claimed: as by [`claim_at_once`](super::claim_at_once).
pub(super) struct Seat {
    pub queue: String,
    pub kinds: Vec<String>,
    pub worker: String,
    pub lease: Duration,
    taken: oneshot::Sender<Job>,
}

/// A worker in its seat; it leaves when this is dropped.
pub(super) struct Sitting {
    seats: Seats,
    taken: oneshot::Receiver<Job>,
}

impl Seats {
    pub fn new(db: Db) -> Self {
        Self { db, waiting: Arc::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Seat>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat.
    pub(super) fn sit(&self, queue: &str, kinds: &[&str], worker: &str, lease: Duration) -> Sitting {
        let (taken, receiver) = oneshot::channel();
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        self.waiting().push_back(Seat { queue: queue.to_owned(), kinds, worker: worker.to_owned(), lease, taken });
        Sitting { seats: self.clone(), taken: receiver }
    }

    /// Who waits longest for such a job, if the job asks no question that only a look answers.
    pub(super) fn find(&self, job: &NewJob) -> Option<Seat> {
        if job.run_at.is_some() || job.concurrency_key.is_some() {
            return None;
        }
        let mut waiting = self.waiting();
        let fits = |seat: &Seat| {
            job.queue.as_ref().is_none_or(|queue| *queue == seat.queue)
                && seat.kinds.iter().any(|kind| *kind == job.kind)
        };
        let place = waiting.iter().position(fits)?;
        waiting.remove(place)
    }

    /// Hands over the job that was claimed for a seat.
    pub(super) async fn hand_over(&self, seat: Seat, job: Job) {
        if let Err(job) = seat.taken.send(job) {
            give_back(&self.db, &[Hold::from(&job)]).await;
        }
    }
}

/// Jobs that were claimed and are on their way to whoever is to run them: what is still in it when it is dropped, because
/// the way broke off, goes back.
pub(super) struct Claimed {
    db: Db,
    jobs: Vec<Job>,
}

impl Claimed {
    pub(super) fn new(db: &Db, jobs: Vec<Job>) -> Self {
        Self { db: db.clone(), jobs }
    }

    pub(super) fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    pub(super) fn add(&mut self, mut more: Self) {
        self.jobs.append(&mut more.jobs);
    }

    /// They have arrived.
    pub(super) fn arrived(mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if !self.jobs.is_empty() {
            let (db, held) = (self.db.clone(), self.jobs.iter().map(Hold::from).collect::<Vec<_>>());
            tokio::spawn(async move { give_back(&db, &held).await });
        }
    }
}

/// Gives jobs back that were claimed and never began, and tells whoever waits for work. Where that fails their leases
/// lapse.
pub(super) async fn give_back(db: &Db, held: &[Hold]) {
    let given = async {
        let mut tx = db.begin().await?;
        finish::give_back(&mut tx, held).await?;
        tx.commit().await
    };
    match given.await {
        Ok(()) => db.wake(Topic::Jobs).await,
        Err(cause) => {
            tracing::warn!(%cause, jobs = held.len(), "jobs could not be given back; their leases will lapse")
        }
    }
}

impl Sitting {
    /// Waits for the job; None where there is none for this seat, and the worker is to look.
    pub(super) async fn job(&mut self) -> Option<Job> {
        (&mut self.taken).await.ok()
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        self.taken.close();
        if let Ok(job) = self.taken.try_recv() {
            drop(Claimed::new(&self.seats.db, vec![job]));
        }
        self.seats.waiting().retain(|seat| !seat.taken.is_closed());
    }
}
