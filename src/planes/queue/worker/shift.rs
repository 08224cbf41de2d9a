//! The running worker. One task holds all its state; a look, a commit of ends and the jobs run beside it.
//!
//! ```text
//! hint ──▶ claim at once ──┐
//! poll ──▶ look and claim ─┴▶ buffer ──▶ running ──▶ ended ──▶ commit of all that ended meanwhile
//! ```
//!
//! A wake-up is only a hint: the listener is armed before the claim, and a slow poll runs underneath. A hint is most
//! often a job that asks no question, so one statement takes those at once; the look that answers all questions (what is
//! due, lapsed, limited or given up) follows.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::settle::{End, Ended};
use crate::db::{Listener, Result, Topic};
use crate::planes::queue::job::{Hold, Job};
use crate::planes::queue::seats::{Sitting, give_back};
use crate::planes::queue::store::claim::{Outlook, millis};
use crate::planes::queue::store::finish;
use crate::planes::queue::store::registry::{self, Outcomes, WorkerSeen};

/// Ends that one commit writes down at most.
const SETTLED_AT_ONCE: usize = 1_000;

/// The next look where a limit held jobs back: a period of a rate may end at any time.
const LIMITED_PAUSE: Duration = Duration::from_millis(50);

/// Claims at once may follow each other for so long without a look between them: while jobs come without end, those that
/// are due or limited are to have their turn.
const UNLOOKED: Duration = Duration::from_millis(20);

/// Between two tellings of how tries ended, while any do: rules judge workers by them.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// What goes on beside. It may hold SQLite's one writer, so the shift never waits for anything of the database without
/// letting all of these go on.
type Beside<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// What a look saw, if there was one, and what was taken.
type Claimed = Result<(Option<Outlook>, Vec<Job>)>;

/// A job that runs.
struct Running {
    job: Job,
    abort: AbortHandle,
    /// Somebody gives it up.
    stopped: bool,
}

pub(super) struct Shift {
    worker: Arc<Worker>,
    tasks: JoinSet<End>,
    running: HashMap<Id, Running>,
    /// Claimed, and waiting for a free place.
    buffer: VecDeque<Job>,
    ended: Vec<Ended>,
    claiming: Beside<(usize, Claimed)>,
    /// Where it idles, it waits in a seat too.
    sitting: Option<Sitting>,
    settling: Beside<()>,
    /// Leases are renewed, and it is told how tries ended; what could not be told comes back.
    duty: Beside<Outcomes>,
    /// Jobs whose end is being written: their leases are renewed until it is.
    settling_holds: Vec<Hold>,
    /// Something may be there to claim.
    look: bool,
    /// Jobs that ask no question may be there: they are claimed at once, before the look.
    hinted: bool,
    /// When the last look began.
    looked_at: Duration,
    /// When to look without being woken.
    look_at: Duration,
    renew_at: Duration,
    /// Not told yet.
    outcomes: Outcomes,
    tell_at: Duration,
}

impl Shift {
    pub(super) fn begin(worker: Arc<Worker>) -> Self {
        let now = worker.clock.elapsed();
        Self {
            tasks: JoinSet::new(),
            running: HashMap::new(),
            buffer: VecDeque::new(),
            ended: Vec::new(),
            claiming: None,
            sitting: None,
            settling: None,
            duty: None,
            settling_holds: Vec::new(),
            look: true,
            hinted: false,
            looked_at: now,
            look_at: now + worker.options.poll_interval,
            renew_at: now + worker.options.lease / 3,
            outcomes: Outcomes::default(),
            tell_at: now,
            worker,
        }
    }

    /// Works until `stop`; then gives back what has not begun, and lets what runs come to its end.
    pub(super) async fn work(mut self, stop: CancellationToken) {
        let clock = self.worker.clock.clone();
        let mut hint = self.worker.db.listen(Topic::Jobs);
        self.outcomes = be_seen(&self.worker, Outcomes::default()).await;
        while !stop.is_cancelled() {
            if self.start_buffered() {
                tokio::task::yield_now().await; // what was started goes first, then the search for more
            }
            self.start_settling();
            self.start_claiming(&mut hint);
            self.sit_or_leave();
            let next_duty = self.next_duty();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.note_ended(ended),
                () = beside(&mut self.settling) => self.settled(),
                (room, claimed) = beside(&mut self.claiming) => self.take(room, claimed),
                job = seated(&mut self.sitting) => {
                    self.sitting = None;
                    self.look |= job.is_none();
                    self.buffer.extend(job);
                }
                // One that is wanted already waits for a place or for the last one to end, not for time.
                () = hint.woken(), if !self.hinted => (self.look, self.hinted) = (true, true),
                () = clock.sleep(self.look_at.saturating_sub(clock.elapsed())), if !self.look => self.look = true,
                untold = beside(&mut self.duty) => self.done_duty(untold),
                () = clock.sleep(next_duty.saturating_sub(clock.elapsed())), if self.duty.is_none() => {}
            }
            self.do_what_is_due();
        }
        self.drain().await;
    }

    async fn drain(&mut self) {
        let clock = self.worker.clock.clone();
        self.sitting = None;
        while self.claiming.is_some() || self.settling.is_some() || self.duty.is_some() {
            tokio::select! {
                (_, claimed) = beside(&mut self.claiming) => {
                    self.claiming = None;
                    self.buffer.extend(claimed.map(|(_, jobs)| jobs).unwrap_or_default());
                }
                () = beside(&mut self.settling) => self.settled(),
                untold = beside(&mut self.duty) => self.done_duty(untold),
            }
        }
        self.give_back().await;
        let drained_by = clock.elapsed() + self.worker.options.drain;
        while !self.is_idle() && clock.elapsed() < drained_by {
            self.start_settling();
            let next_duty = self.next_duty();
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.note_ended(ended),
                () = beside(&mut self.settling) => self.settled(),
                untold = beside(&mut self.duty) => self.done_duty(untold),
                () = clock.sleep(next_duty.saturating_sub(clock.elapsed())), if self.duty.is_none() => {}
                () = clock.sleep(drained_by.saturating_sub(clock.elapsed())) => {}
            }
            self.do_what_is_due();
        }
        if !self.is_idle() {
            tracing::warn!(
                queue = self.worker.options.queue,
                "jobs still run at the end of the drain; their leases will lapse"
            );
        }
        (self.settling, self.duty) = (None, None);
        self.be_gone().await;
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.ended.is_empty() && self.settling.is_none()
    }

    /// Starts claimed jobs as far as there is room; whether there were any.
    fn start_buffered(&mut self) -> bool {
        let before = self.running.len();
        while self.running.len() < self.worker.options.max_concurrency {
            let Some(job) = self.buffer.pop_front() else { break };
            let Some(handler) = self.worker.handlers.get(job.kind.as_str()).cloned() else { continue };
            let (handed, clock) = (job.clone(), self.worker.clock.clone());
            let abort = self.tasks.spawn(async move {
                match handed.timeout_ms {
                    None => End::from(handler.run(&handed).await),
                    Some(timeout) => tokio::select! {
                        outcome = handler.run(&handed) => End::from(outcome),
                        () = clock.sleep(millis(timeout)) => End::TimedOut,
                    },
                }
            });
            self.running.insert(abort.id(), Running { job, abort, stopped: false });
        }
        self.running.len() > before
    }

    /// Looks for more when something may be there and there is room for it, or when its time has come.
    fn start_claiming(&mut self, hint: &mut Listener) {
        let options = &self.worker.options;
        let held = self.running.len() + self.buffer.len();
        let room = (options.max_concurrency + options.prefetch).saturating_sub(held);
        // A claim is worth its while once half of what was claimed ahead is used up.
        let wanted = self.buffer.len() <= options.prefetch / 2;
        if !self.look || self.claiming.is_some() || (!wanted && !self.buffer.is_empty()) {
            return;
        }
        let worker = self.worker.clone();
        if std::mem::take(&mut self.hinted) {
            *hint = self.worker.db.listen(Topic::Jobs); // armed before the claim
            if room > 0 {
                let claim = async move { (room, worker.claim_at_once(room).await.map(|jobs| (None, jobs))) };
                self.claiming = Some(Box::pin(claim));
                return;
            }
        }
        self.look = false;
        self.looked_at = self.worker.clock.elapsed();
        self.look_at = self.looked_at + options.poll_interval;
        let look = async move { (room, worker.claim(room).await.map(|(outlook, jobs)| (Some(outlook), jobs))) };
        self.claiming = Some(Box::pin(look));
    }

    /// Takes a seat while there is nothing to claim and room for a job; else it would be given what others wait for.
    fn sit_or_leave(&mut self) {
        let Worker { options, kinds, seats: Some(seats), .. } = &*self.worker else { return };
        let room = self.running.len() < options.max_concurrency;
        if self.look || self.claiming.is_some() || !self.buffer.is_empty() || !room {
            self.sitting = None;
        } else if self.sitting.is_none() {
            self.sitting = Some(seats.sit(options.queue, kinds, &options.name, options.lease));
        }
    }

    fn take(&mut self, room: usize, claimed: Claimed) {
        self.claiming = None;
        let (outlook, jobs) = match claimed {
            Ok(claimed) => claimed,
            Err(cause) => {
                tracing::warn!(%cause, queue = self.worker.options.queue, "the queue could not be looked at");
                return;
            }
        };
        let now = self.worker.clock.elapsed();
        let is_full = room > 0 && jobs.len() == room;
        self.buffer.extend(jobs);
        let Some(outlook) = outlook else {
            self.hinted |= is_full && now < self.looked_at + UNLOOKED; // the look follows, now or then
            return;
        };
        for (id, lease) in &outlook.cancelling {
            self.stop_job(Hold { id: *id, lease: *lease });
        }
        if outlook.has_work() {
            if is_full {
                (self.look, self.hinted) = (true, true); // there may be more; without room, the next end looks
            } else if outlook.is_limited() {
                self.look_at = self.look_at.min(now + LIMITED_PAUSE);
            }
        }
    }

    /// Stops a job that somebody gives up.
    fn stop_job(&mut self, hold: Hold) {
        if let Some(place) = self.buffer.iter().position(|job| Hold::from(job) == hold) {
            if let Some(job) = self.buffer.remove(place) {
                self.ended.push(Ended { job, end: End::Stopped });
            }
        } else if let Some(running) = self.running.values_mut().find(|running| Hold::from(&running.job) == hold) {
            running.stopped = true;
            running.abort.abort();
        }
    }

    fn note_ended(&mut self, ended: std::result::Result<(Id, End), JoinError>) {
        let mut next = Some(ended);
        while let Some(ended) = next {
            let (task, end) = match ended {
                Ok((task, end)) => (task, Some(end)),
                Err(broken) => (broken.id(), None),
            };
            if let Some(Running { job, stopped, .. }) = self.running.remove(&task) {
                let end = end.unwrap_or_else(|| match stopped {
                    true => End::Stopped,
                    false => End::Failed("the job's handler panicked; the log has the place".to_owned()),
                });
                match end {
                    End::Done(_) | End::Written => self.outcomes.completed += 1,
                    End::Failed(_) | End::TimedOut => self.outcomes.failed += 1,
                    End::Stopped => {}
                }
                self.ended.push(Ended { job, end });
            }
            next = self.tasks.try_join_next_with_id();
        }
    }

    /// Begins to write down what has ended, if nothing is being written.
    fn start_settling(&mut self) {
        if self.settling.is_some() || self.ended.is_empty() {
            return;
        }
        let batch: Vec<Ended> = self.ended.drain(..self.ended.len().min(SETTLED_AT_ONCE)).collect();
        self.settling_holds = batch.iter().map(|entry| Hold::from(&entry.job)).collect();
        let worker = self.worker.clone();
        self.settling = Some(Box::pin(async move { worker.settle_patiently(&batch).await }));
    }

    fn settled(&mut self) {
        self.settling = None;
        self.settling_holds.clear();
        self.look = true; // a place is free, and a limit may be
    }

    fn next_duty(&self) -> Duration {
        if self.outcomes == Outcomes::default() { self.renew_at } else { self.renew_at.min(self.tell_at) }
    }

    fn do_what_is_due(&mut self) {
        let now = self.worker.clock.elapsed();
        if self.duty.is_some() || now < self.next_duty() {
            return;
        }
        let held = if now >= self.renew_at { self.held() } else { Vec::new() };
        if now >= self.renew_at {
            self.renew_at = now + self.worker.options.lease / 3;
        }
        self.tell_at = now + TOLD_EVERY;
        let (worker, outcomes) = (self.worker.clone(), std::mem::take(&mut self.outcomes));
        self.duty = Some(Box::pin(async move {
            if !held.is_empty() {
                renew(&worker, &held).await;
            }
            be_seen(&worker, outcomes).await
        }));
    }

    fn done_duty(&mut self, untold: Outcomes) {
        self.duty = None;
        self.outcomes.completed += untold.completed;
        self.outcomes.failed += untold.failed;
    }

    /// All that this worker has a lease of.
    fn held(&self) -> Vec<Hold> {
        let running = self.running.values().map(|running| Hold::from(&running.job));
        let waiting = self.buffer.iter().chain(self.ended.iter().map(|entry| &entry.job)).map(Hold::from);
        running.chain(waiting).chain(self.settling_holds.iter().copied()).collect()
    }

    async fn be_gone(&mut self) {
        let written = async {
            let mut tx = self.worker.db.begin().await?;
            registry::worker_gone(&mut tx, &self.worker.options.name).await?;
            tx.commit().await
        };
        if let Err(cause) = written.await {
            tracing::debug!(%cause, "the worker's end could not be written down");
        }
    }

    /// Gives back what was claimed and never began.
    async fn give_back(&mut self) {
        let held: Vec<Hold> = self.buffer.drain(..).map(|job| Hold::from(&job)).collect();
        if !held.is_empty() {
            give_back(&self.worker.db, &held).await;
        }
    }
}

/// Waits for the job of a seat; for ever where nobody sits.
async fn seated(sitting: &mut Option<Sitting>) -> Option<Job> {
    match sitting {
        Some(sitting) => sitting.job().await,
        None => std::future::pending().await,
    }
}

/// Waits for what goes on beside; for ever where nothing does.
async fn beside<T>(future: &mut Beside<T>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn renew(worker: &Worker, held: &[Hold]) {
    let renewed = async {
        let mut tx = worker.db.begin().await?;
        let kept = finish::renew(&mut tx, held, worker.options.lease).await?;
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

/// Says that this worker lives, what it can do, and how its jobs ended; what could not be told comes back.
async fn be_seen(worker: &Worker, outcomes: Outcomes) -> Outcomes {
    let seen = WorkerSeen {
        id: &worker.options.name,
        service: None,
        mode: "local",
        endpoint: None,
        queue: worker.options.queue,
        kinds: &worker.kinds,
        capacity: i64::try_from(worker.options.max_concurrency).unwrap_or(i64::MAX),
    };
    let written = async {
        let mut tx = worker.db.begin().await?;
        registry::worker_seen(&mut tx, &seen).await?;
        registry::note_outcomes(&mut tx, seen.id, outcomes).await?;
        tx.commit().await
    };
    match written.await {
        Ok(()) => Outcomes::default(),
        Err(cause) => {
            tracing::debug!(%cause, "the worker's sign of life could not be written down");
            outcomes
        }
    }
}
