//! The runner: leads if it can, runs a cycle at each tick while the loop is switched on, and whenever somebody asks.
//!
//! One task, so that no two cycles run beside each other. Ticks lie on a grid that does not drift; a slow cycle
//! leaves ticks out and says so. Everything durable (switch, lease, requests) is read again on every look, once a
//! second at least; a wake-up only makes the look come sooner.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::cycle::{CycleError, CycleRunner, Occasion};
use super::cycles::{self, Trigger};
use super::gap::{self, Gap};
use super::{leader, requests, switch};
use crate::actor::Actor;
use crate::clock::SharedClock;
use crate::db::{Db, Result, Timestamp, Topic};
use crate::ledger::{self, Entry, Severity};

/// Between looks at lease, switch and requests when nothing wakes the runner.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a cycle has no end that a leader left behind.
const INTERRUPTED: &str = "interrupted: the instance died or lost the lead";

/// What a process runs the loop for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Runs cycles at each tick while the loop is on, and leads whenever it can.
    Serve,
    /// Leads only to answer a request, and runs no cycle of its own.
    Command,
}

/// The term that this process leads under; 0 while it does not.
#[derive(Clone, Default)]
pub struct Lead(Arc<AtomicI64>);

impl Lead {
    /// The term, if this process leads.
    pub fn term(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Acquire)).filter(|term| *term > 0)
    }
    fn set(&self, term: Option<i64>) {
        self.0.store(term.unwrap_or(0), Ordering::Release);
    }
}

/// What a [`Runner`] is made of.
pub struct RunnerParts {
    pub db: Db,
    pub clock: SharedClock,
    pub instance: String,
    pub interval: Duration,
    pub mode: Mode,
    pub cycle: CycleRunner,
    pub lead: Lead,
}

/// The loop's task.
pub struct Runner {
    parts: RunnerParts,
    /// Whether the last look found the loop running here.
    on: bool,
    /// The next place on the grid of ticks, on the clock's elapsed time.
    next_tick: Duration,
    /// When the lease was last known to be renewed, on the same time.
    renewed_at: Duration,
    /// Whether a request may be taken that was never answered, because the database failed in between.
    may_owe: bool,
    /// When a cycle of this process last ended well, on the clock's elapsed time.
    ran_at: Option<Duration>,
    /// The leader before this one, if it left its lease behind.
    left_by: Option<String>,
}

impl Runner {
    /// A runner that has not looked yet.
    pub fn new(parts: RunnerParts) -> Self {
        let next_tick = parts.clock.elapsed();
        Self { parts, on: false, next_tick, renewed_at: Duration::ZERO, may_owe: false, ran_at: None, left_by: None }
    }

    /// Runs until `stop`; a running cycle ends first, then the lease is given back.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let mut hint = self.parts.db.listen(Topic::Loop);
            let wait = AssertUnwindSafe(self.step()).catch_unwind().await.unwrap_or_else(|_| {
                // The panic itself is in the log; whatever it interrupted rolled back, and the next step looks anew.
                tracing::error!("a step of the loop panicked; the loop goes on");
                LOOK_EVERY
            });
            if wait.is_zero() {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = hint.woken() => {}
                () = self.parts.clock.sleep(wait) => {}
            }
        }
        self.resign().await;
    }

    /// One look at lease, requests and switch, the cycle of a tick that is due, and that of one request; returns how
    /// long nothing needs to be looked at.
    pub async fn step(&mut self) -> Duration {
        let (enabled, asked) = match self.look().await {
            Ok(found) => found,
            Err(cause) => {
                tracing::warn!(%cause, "the loop cannot see its switch and lease");
                if self.on && self.parts.clock.elapsed() >= self.next_tick {
                    self.next_tick += self.parts.interval;
                    let at = Timestamp::new(self.parts.clock.now());
                    self.parts.cycle.missed(at, cause.to_string());
                }
                return LOOK_EVERY;
            }
        };
        let leads = self.parts.lead.term().is_some();
        self.turn(enabled && leads && self.parts.mode == Mode::Serve);
        // The tick and one request in turn: neither a flood of requests nor slow cycles hold the other up.
        let due = self.on && self.parts.clock.elapsed() >= self.next_tick;
        if due {
            self.tick().await;
        }
        if leads && asked {
            return self.answer_one().await;
        }
        match (due, self.on) {
            (true, _) => Duration::ZERO,
            (false, true) => self.next_tick.saturating_sub(self.parts.clock.elapsed()).min(LOOK_EVERY),
            (false, false) => LOOK_EVERY,
        }
    }

    /// Gives the lease back, so that another instance can lead at once.
    pub async fn resign(&mut self) {
        self.turn(false);
        let Some(term) = self.parts.lead.term() else { return };
        self.parts.lead.set(None);
        if let Err(cause) = leader::release(&self.parts.db, &self.parts.instance, term).await {
            tracing::warn!(%cause, "the lease could not be given back; it lapses by itself");
        }
        self.parts.db.wake(Topic::Loop).await;
    }

    fn turn(&mut self, on: bool) {
        if on == self.on {
            return;
        }
        match on {
            true => tracing::info!("Orchestrator started - running every {}s", self.parts.interval.as_secs_f64()),
            false => tracing::info!("Orchestrator stopped"),
        }
        self.next_tick = self.parts.clock.elapsed();
        self.on = on;
    }

    /// Whether the loop is switched on, and whether anybody asked for a cycle; takes or renews the lease on the way.
    async fn look(&mut self) -> Result<(bool, bool)> {
        if self.may_owe
            && let Some(term) = self.parts.lead.term()
        {
            let mut tx = self.parts.db.begin().await?;
            // Another leader may have taken them meanwhile.
            if leader::fence(&mut tx, term).await?.is_ok() {
                requests::reopen(&mut tx).await?;
                tx.commit().await?;
            }
            self.may_owe = false;
        }
        let asked = requests::any_open(&self.parts.db).await?;
        let wanted = self.parts.mode == Mode::Serve || asked;
        let elapsed = self.parts.clock.elapsed();
        match self.parts.lead.term() {
            None if wanted => self.try_to_lead().await?,
            Some(term) if elapsed - self.renewed_at >= leader::LEASE / 3 => {
                if leader::renew(&self.parts.db, &self.parts.instance, term).await? {
                    self.renewed_at = elapsed;
                } else {
                    self.lose(term).await?;
                }
            }
            _ => {}
        }
        Ok((switch::is_on(&self.parts.db).await?, asked))
    }

    async fn try_to_lead(&mut self) -> Result<()> {
        let elapsed = self.parts.clock.elapsed();
        // Looking first keeps those who do not lead from writing every second.
        let before = leader::current(&self.parts.db).await?;
        let free = match &before {
            Some(lease) => {
                let now = self.parts.db.now().await?;
                lease.expires_at <= now || lease.expires_at > now.after(leader::LEASE * 2)
            }
            None => true,
        };
        if !free {
            return Ok(());
        }
        // One transaction: who leads has also taken over what the leader before left behind.
        let mut tx = self.parts.db.begin().await?;
        let Some(term) = leader::acquire(&mut tx, &self.parts.instance).await? else { return Ok(()) };
        requests::reopen(&mut tx).await?;
        let interrupted = cycles::close_broken(&mut tx, INTERRUPTED).await?;
        self.left_by = before.map(|lease| lease.holder).filter(|holder| !holder.is_empty());
        let mut acquired = json!({ "term": term, "instance": self.parts.instance });
        if let Some(holder) = &self.left_by {
            acquired["left_by"] = json!(holder);
        }
        let mut entries = vec![Entry::new("orchestrator.leader_acquired", Actor::System, acquired)];
        entries.extend(interrupted.into_iter().map(|id| {
            Entry::new("orchestrator.cycle_error", Actor::System, json!({ "error": INTERRUPTED }))
                .severity(Severity::Warning)
                .subject("cycle")
                .cycle(id)
        }));
        ledger::append(&mut tx, &entries).await?;
        tx.commit().await?;
        tracing::info!(term, instance = self.parts.instance, "this instance leads");
        self.parts.lead.set(Some(term));
        self.renewed_at = elapsed;
        self.ran_at = None; // others may have led meanwhile
        self.parts.cycle.begin_term();
        Ok(())
    }

    async fn lose(&mut self, term: i64) -> Result<()> {
        tracing::warn!(term, "another instance leads now");
        self.parts.lead.set(None);
        let mut tx = self.parts.db.begin().await?;
        let payload = json!({ "term": term, "instance": self.parts.instance, "because": "the lease had lapsed" });
        let entry = Entry::new("orchestrator.leader_lost", Actor::System, payload).severity(Severity::Warning);
        ledger::append(&mut tx, &[entry]).await?;
        tx.commit().await
    }

    /// Runs the cycle of this tick and moves to the next one on the grid.
    async fn tick(&mut self) {
        let late = self.parts.clock.elapsed().saturating_sub(self.next_tick);
        let skipped = (late.as_nanos() / self.parts.interval.as_nanos()) as u32;
        if skipped > 0 {
            metrics::counter!("showrunner_skipped_ticks_total").increment(u64::from(skipped));
            tracing::warn!(skipped, "ticks were left out: the cycle before took longer than the interval");
        }
        self.next_tick += self.parts.interval * (skipped + 1);
        self.notice_gap().await;
        let (began, ran_at) = (self.parts.clock.elapsed(), self.ran_at);
        if self.run_cycle(None, i64::from(skipped)).await.is_ok() {
            self.notice_long_cycle(ran_at, began).await;
        }
    }

    /// Looks whether the cycle that has just ended was itself what kept cycles from ending; the next one tells of it.
    async fn notice_long_cycle(&mut self, ran_at: Option<Duration>, began: Duration) {
        let longest = self.parts.interval * gap::INTERVALS;
        let now = self.parts.clock.elapsed();
        // A gap before the cycle was told by the cycle; another one begins where that ended.
        let since = ran_at.filter(|ran_at| began.saturating_sub(*ran_at) <= longest).unwrap_or(began);
        let lasted = now.saturating_sub(since);
        if lasted <= longest {
            return;
        }
        match self.parts.db.now().await {
            Ok(until) => {
                let because = format!("one cycle took {} s", now.saturating_sub(began).as_secs());
                self.parts.cycle.ends_gap(until.before(lasted), until, because);
            }
            Err(cause) => tracing::warn!(%cause, "a cycle took long, and the ledger cannot be told"),
        }
    }

    /// Looks whether the coming cycle ends a time without cycles; the database is only asked where that can be.
    async fn notice_gap(&mut self) {
        let longest = self.parts.interval * gap::INTERVALS;
        if self.ran_at.is_some_and(|ran_at| self.parts.clock.elapsed().saturating_sub(ran_at) <= longest) {
            return;
        }
        let because = match (&self.left_by, self.ran_at) {
            (_, Some(_)) => "this instance stood still, or a cycle took so long".to_owned(),
            (Some(holder), None) => format!("instance {holder} led before and did not stop cleanly"),
            (None, None) => "no instance was running".to_owned(),
        };
        match Gap::ending_now(&self.parts.db, self.parts.interval).await {
            Ok(Some((since, until))) => self.parts.cycle.ends_gap(since, until, because),
            Ok(None) => {}
            Err(cause) => {
                tracing::warn!(%cause, "whether cycles are missing cannot be seen; the next cycle looks again")
            }
        }
    }

    /// Runs a cycle for whoever asked, or for the interval where nobody did.
    async fn run_cycle(&mut self, asked_by: Option<&str>, skipped_ticks: i64) -> std::result::Result<i64, CycleError> {
        let Some(term) = self.parts.lead.term() else { return Err(leader::TermOver(0).into()) };
        let began = self.parts.clock.elapsed();
        let trigger = if asked_by.is_some() { Trigger::Manual } else { Trigger::Loop };
        let result = self.parts.cycle.run(Occasion { trigger, asked_by, term, skipped_ticks }).await;
        match &result {
            Ok(_) => {
                self.renewed_at = began;
                self.ran_at = Some(self.parts.clock.elapsed());
            }
            Err(CycleError::TermOver(_)) => {
                if let Err(cause) = self.lose(term).await {
                    tracing::warn!(%cause, "losing the lead could not be written down");
                }
            }
            Err(CycleError::Store(_) | CycleError::Panicked(_)) => {}
        }
        self.parts.db.wake(Topic::Loop).await;
        result
    }

    async fn answer_one(&mut self) -> Duration {
        let answered = async {
            let Some(term) = self.parts.lead.term() else { return Ok(()) };
            let mut tx = self.parts.db.begin().await?;
            if leader::fence(&mut tx, term).await?.is_err() {
                drop(tx);
                return self.lose(term).await;
            }
            let Some((request, asked_by)) = requests::take(&mut tx).await? else { return Ok(()) };
            tx.commit().await?;
            let ran = self.run_cycle(Some(&asked_by), 0).await;
            let mut tx = self.parts.db.begin().await?;
            match ran {
                Ok(cycle) => requests::answer(&mut tx, request, &Ok(cycle)).await?,
                Err(CycleError::TermOver(_)) => return Ok(()), // the new leader has reopened it and answers it
                Err(cause) => requests::answer(&mut tx, request, &Err(cause.to_string())).await?,
            }
            tx.commit().await?;
            self.parts.db.wake(Topic::Loop).await;
            Ok::<_, crate::db::Error>(())
        };
        if let Err(cause) = answered.await {
            tracing::warn!(%cause, "a request for a cycle could not be answered; it is taken again");
            self.may_owe = true;
            return LOOK_EVERY;
        }
        Duration::ZERO
    }
}
