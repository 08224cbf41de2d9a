//! The runner: leads if it can, runs a cycle at each tick while the loop is switched on, and whenever somebody asks.
//!
//! One task, so that no two cycles run beside each other. Ticks lie on a grid that does not drift; a slow cycle
//! leaves ticks out and says so. Everything durable (switch, lease, requests) is read again on every look, once a
//! second at least; a wake-up only makes the look come sooner.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::cycle::{CycleError, CycleRunner, Occasion};
use super::cycles::{self, Trigger};
use super::{leader, requests, switch};
use crate::actor::Actor;
use crate::clock::SharedClock;
use crate::db::{Db, Result, Topic};
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

/// The loop's task.
pub struct Runner {
    pub db: Db,
    pub clock: SharedClock,
    pub instance: String,
    pub interval: Duration,
    pub mode: Mode,
    pub cycle: CycleRunner,
    pub lead: Lead,
}

/// What one look found.
struct Look {
    on: bool,
    asked: bool,
}

impl Runner {
    /// Runs until `stop`; a running cycle ends first, then the lease is given back.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut was_on = false;
        let mut next_tick = self.clock.elapsed();
        let mut renewed_at = Duration::ZERO;
        while !stop.is_cancelled() {
            let mut hint = self.db.listen(Topic::Loop);
            let look = self.look(&mut renewed_at).await.unwrap_or_else(|cause| {
                tracing::warn!(%cause, "the loop cannot see its switch and lease");
                Look { on: was_on, asked: false }
            });
            let leads = self.lead.term().is_some();
            let on = look.on && leads && self.mode == Mode::Serve;
            if on != was_on {
                match on {
                    true => tracing::info!("Orchestrator started - running every {}s", self.interval.as_secs_f64()),
                    false => tracing::info!("Orchestrator stopped"),
                }
                next_tick = self.clock.elapsed();
                was_on = on;
            }
            if leads && look.asked {
                self.answer_one(&mut renewed_at).await;
                continue;
            }
            if on && self.clock.elapsed() >= next_tick {
                self.tick(&mut next_tick, &mut renewed_at).await;
                continue;
            }
            let until_tick = next_tick.saturating_sub(self.clock.elapsed());
            let wait = if on { until_tick.min(LOOK_EVERY) } else { LOOK_EVERY };
            tokio::select! {
                () = stop.cancelled() => break,
                () = hint.woken() => {}
                () = self.clock.sleep(wait) => {}
            }
        }
        if was_on {
            tracing::info!("Orchestrator stopped");
        }
        if let Some(term) = self.lead.term() {
            self.lead.set(None);
            if let Err(cause) = leader::release(&self.db, &self.instance, term).await {
                tracing::warn!(%cause, "the lease could not be given back; it lapses by itself");
            }
            self.db.wake(Topic::Loop).await;
        }
    }

    async fn look(&mut self, renewed_at: &mut Duration) -> Result<Look> {
        let asked = requests::any_open(&self.db).await?;
        let wanted = self.mode == Mode::Serve || asked;
        let elapsed = self.clock.elapsed();
        match self.lead.term() {
            None if wanted => self.try_to_lead(renewed_at).await?,
            Some(term) if elapsed - *renewed_at >= leader::LEASE / 3 => {
                if leader::renew(&self.db, &self.instance, term).await? {
                    *renewed_at = elapsed;
                } else {
                    self.lose(term).await?;
                }
            }
            _ => {}
        }
        Ok(Look { on: switch::is_on(&self.db).await?, asked })
    }

    async fn try_to_lead(&mut self, renewed_at: &mut Duration) -> Result<()> {
        let elapsed = self.clock.elapsed();
        // Looking first keeps those who do not lead from writing every second.
        let free = match leader::current(&self.db).await? {
            Some(lease) => {
                let now = self.db.now().await?;
                lease.expires_at <= now || lease.expires_at > now.after(leader::LEASE * 2)
            }
            None => true,
        };
        if !free {
            return Ok(());
        }
        // One transaction: who leads has also taken over what the leader before left behind.
        let mut tx = self.db.begin().await?;
        let Some(term) = leader::acquire(&mut tx, &self.instance).await? else { return Ok(()) };
        requests::reopen(&mut tx).await?;
        let interrupted = cycles::close_broken(&mut tx, INTERRUPTED).await?;
        let acquired = json!({ "term": term, "instance": self.instance });
        let mut entries = vec![Entry::new("orchestrator.leader_acquired", Actor::System, acquired)];
        entries.extend(interrupted.into_iter().map(|id| {
            Entry::new("orchestrator.cycle_error", Actor::System, json!({ "error": INTERRUPTED }))
                .severity(Severity::Warning)
                .subject("cycle")
                .cycle(id)
        }));
        ledger::append(&mut tx, &entries).await?;
        tx.commit().await?;
        tracing::info!(term, instance = self.instance, "this instance leads");
        self.lead.set(Some(term));
        *renewed_at = elapsed;
        self.cycle.begin_term();
        Ok(())
    }

    async fn lose(&mut self, term: i64) -> Result<()> {
        tracing::warn!(term, "another instance leads now");
        self.lead.set(None);
        let mut tx = self.db.begin().await?;
        let payload = json!({ "term": term, "instance": self.instance, "because": "the lease had lapsed" });
        let entry = Entry::new("orchestrator.leader_lost", Actor::System, payload).severity(Severity::Warning);
        ledger::append(&mut tx, &[entry]).await?;
        tx.commit().await
    }

    /// Runs the cycle of this tick and moves to the next one on the grid.
    async fn tick(&mut self, next_tick: &mut Duration, renewed_at: &mut Duration) {
        let late = self.clock.elapsed().saturating_sub(*next_tick);
        let skipped = (late.as_nanos() / self.interval.as_nanos()) as u32;
        if skipped > 0 {
            metrics::counter!("showrunner_skipped_ticks_total").increment(u64::from(skipped));
            tracing::warn!(skipped, "ticks were left out: the cycle before took longer than the interval");
        }
        *next_tick += self.interval * (skipped + 1);
        self.run_cycle(Trigger::Loop, i64::from(skipped), renewed_at).await.ok();
    }

    async fn run_cycle(
        &mut self,
        trigger: Trigger,
        skipped_ticks: i64,
        renewed_at: &mut Duration,
    ) -> std::result::Result<i64, CycleError> {
        let Some(term) = self.lead.term() else { return Err(leader::TermOver(0).into()) };
        let began = self.clock.elapsed();
        let result = self.cycle.run(Occasion { trigger, term, skipped_ticks }).await;
        match &result {
            Ok(_) => *renewed_at = began,
            Err(CycleError::TermOver(_)) => {
                if let Err(cause) = self.lose(term).await {
                    tracing::warn!(%cause, "losing the lead could not be written down");
                }
            }
            Err(CycleError::Store(_) | CycleError::Panicked(_)) => {}
        }
        self.db.wake(Topic::Loop).await;
        result
    }

    async fn answer_one(&mut self, renewed_at: &mut Duration) {
        let answered = async {
            let Some(term) = self.lead.term() else { return Ok(()) };
            let mut tx = self.db.begin().await?;
            if leader::fence(&mut tx, term).await?.is_err() {
                drop(tx);
                return self.lose(term).await;
            }
            let Some(request) = requests::take(&mut tx).await? else { return Ok(()) };
            tx.commit().await?;
            let ran = self.run_cycle(Trigger::Manual, 0, renewed_at).await;
            let mut tx = self.db.begin().await?;
            match ran {
                Ok(cycle) => requests::answer(&mut tx, request, &Ok(cycle)).await?,
                Err(CycleError::TermOver(_)) => return Ok(()), // the new leader has reopened it and answers it
                Err(cause) => requests::answer(&mut tx, request, &Err(cause.to_string())).await?,
            }
            tx.commit().await?;
            self.db.wake(Topic::Loop).await;
            Ok::<_, crate::db::Error>(())
        };
        if let Err(cause) = answered.await {
            tracing::warn!(%cause, "a request for a cycle could not be answered");
            self.clock.sleep(LOOK_EVERY).await;
        }
    }
}
