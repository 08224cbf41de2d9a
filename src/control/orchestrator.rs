//! The loop's public face: what the doors, the command line and the demo hold.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::decider::RuleBook;
use super::executor::Execution;
use super::gap::Gap;
use super::health::assess_health;
use super::monitor::Monitor;
use super::snapshot::Snapshot;
use super::{cycles, leader, requests, switch};
use crate::actor::Actor;
use crate::clock::SharedClock;
use crate::db::{self, Db, Timestamp, Topic, Trouble};

/// Why the loop could not do what a door asked.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] db::Error),
    /// The cycle was begun and failed; the ledger has the same words.
    #[error("the cycle failed: {0}")]
    Cycle(String),
    /// No instance took the request in time.
    #[error("no instance ran the cycle within {0} s; is a server running on this database?")]
    TimedOut(u64),
    /// An instance took the request, and its cycle goes on.
    #[error("the cycle was begun and has not ended within {0} s; GET /orchestrator/status tells when it has")]
    StillRunning(u64),
}

/// What one cycle saw, decided and did: the `result` of `POST /orchestrator/run-once`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CycleReport {
    /// The row of `cycles`.
    pub cycle_id: i64,
    /// What was seen.
    pub snapshot: Snapshot,
    /// Every proposal's fate, and the plan.
    #[schema(value_type = Object)]
    pub decision: Value,
    /// What was done: totals and one result an action.
    #[schema(value_type = Object)]
    pub execution: Value,
    /// When it began.
    pub timestamp: Timestamp,
}

/// `GET /orchestrator/status`, beside the seed's `status` and `running`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LoopStatus {
    /// Switched on, with a live leader on whichever instance.
    pub running: bool,
    /// The stored switch.
    pub enabled: bool,
    /// Seconds between cycles.
    pub interval_seconds: u64,
    /// The leader's lease number; 0 before the first leader.
    pub term: i64,
    /// The instance that holds the lease, if it is alive.
    pub leader: Option<String>,
    /// This instance.
    pub instance: String,
    /// The last finished cycle.
    pub last_cycle: Option<LastCycle>,
    /// When the next cycle is due, if the loop is running.
    pub next_due: Option<Timestamp>,
    /// The last time in which the loop was on and ran no cycle for more than three intervals.
    pub last_gap: Option<Gap>,
    /// What the database fails at now, as this instance sees it; `null` while all is well.
    pub database: Option<Trouble>,
    /// The rules in force on this instance.
    pub rules: RulesStatus,
}

/// The last finished cycle in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct LastCycle {
    pub id: i64,
    pub status: String,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub health_score: Option<i64>,
    pub health_status: String,
    pub actions: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub error: Option<String>,
}

/// The rules in force, and what is wrong with newer ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RulesStatus {
    /// Hash of the set in force.
    pub hash: String,
    /// How many rules it has.
    pub count: usize,
    /// The folder; `null` for the built-in rules.
    pub folder: Option<String>,
    /// Hash of a newer set that was refused.
    pub rejected_hash: Option<String>,
    /// Why it was refused.
    pub rejected_because: Vec<String>,
}

/// How long a request for a cycle waits for a leader to answer it.
const REQUEST_PATIENCE: Duration = Duration::from_secs(25); // less than a door waits for its answer

/// Between looks for the answer when nothing wakes the asker.
const ANSWER_POLL: Duration = Duration::from_millis(200);

/// The loop's handle; cheap to clone.
#[derive(Clone)]
pub struct Orchestrator {
    db: Db,
    clock: SharedClock,
    monitor: Monitor,
    rules: Arc<RuleBook>,
    instance: Arc<str>,
    interval: Duration,
}

impl Orchestrator {
    /// A handle of the instance named `instance`.
    pub fn new(
        db: Db,
        clock: SharedClock,
        monitor: Monitor,
        rules: Arc<RuleBook>,
        instance: &str,
        interval: Duration,
    ) -> Self {
        Self { db, clock, monitor, rules, instance: instance.into(), interval }
    }

    /// The rules in force on this instance.
    pub fn rules(&self) -> &RuleBook {
        &self.rules
    }

    /// Looks at the platform without deciding anything.
    pub async fn snapshot(&self) -> Result<Snapshot, LoopError> {
        let mut snapshot = self.monitor.look().await?;
        assess_health(&self.rules.current(), &mut snapshot, &self.clock);
        Ok(snapshot)
    }

    /// Runs one cycle now, under the leader's term and never beside another, whether the loop is on or off. The
    /// leader may be another instance: the request goes through the database.
    pub async fn run_once(&self, actor: &Actor) -> Result<CycleReport, LoopError> {
        let request = requests::ask(&self.db, actor).await?;
        let mut hint = self.db.listen(Topic::Loop);
        self.db.wake(Topic::Loop).await;
        // Patience is measured on the machine's own pace of waiting, so that an accelerated clock does not shorten it.
        let deadline = tokio::time::sleep(REQUEST_PATIENCE);
        tokio::pin!(deadline);
        let cycle_id = loop {
            match requests::answered(&self.db, request).await? {
                Some(Ok(cycle_id)) => break cycle_id,
                Some(Err(error)) => return Err(LoopError::Cycle(error)),
                None => {}
            }
            tokio::select! {
                () = &mut deadline => {
                    let withdrawn = requests::withdraw(&self.db, request).await?;
                    let seconds = REQUEST_PATIENCE.as_secs();
                    return Err(if withdrawn { LoopError::TimedOut(seconds) } else { LoopError::StillRunning(seconds) });
                }
                () = hint.woken() => {}
                () = tokio::time::sleep(ANSWER_POLL) => {}
            }
        };
        self.report(cycle_id).await
    }

    async fn report(&self, cycle_id: i64) -> Result<CycleReport, LoopError> {
        let missing = || LoopError::Cycle(format!("cycle {cycle_id} ran, but its record is gone"));
        let cycle = cycles::load(&self.db, cycle_id).await?.ok_or_else(missing)?;
        let snapshot = serde_json::from_value(cycle.snapshot).map_err(|_| missing())?;
        let execution = match cycle.row.result {
            Some(_) => cycle.result,
            None => serde_json::to_value(Execution::default()).unwrap_or_default(),
        };
        let mut decision = cycle.decision;
        // An idle decision is stored empty; its readers still find the lists.
        for list in ["actions", "proposals"] {
            if let Some(fields) = decision.as_object_mut() {
                fields.entry(list).or_insert_with(|| Value::Array(Vec::new()));
            }
        }
        Ok(CycleReport { cycle_id, snapshot, decision, execution, timestamp: cycle.row.started_at })
    }

    /// Switches the loop on, for every instance and across restarts.
    pub async fn enable(&self, actor: &Actor) -> Result<(), LoopError> {
        self.switch(true, actor).await
    }

    /// Switches the loop off; a running cycle ends first.
    pub async fn disable(&self, actor: &Actor) -> Result<(), LoopError> {
        self.switch(false, actor).await
    }

    async fn switch(&self, on: bool, actor: &Actor) -> Result<(), LoopError> {
        switch::set(&self.db, on, actor).await?;
        self.db.wake(Topic::Loop).await;
        Ok(())
    }

    /// Seconds between cycles.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether and where it runs.
    pub async fn status(&self) -> Result<LoopStatus, LoopError> {
        let now = self.db.now().await?;
        let enabled = switch::is_on(&self.db).await?;
        let lease = leader::current(&self.db).await?;
        let alive = lease.as_ref().filter(|lease| lease.expires_at > now);
        let last_cycle: Option<LastCycle> = self
            .db
            .query(
                "SELECT id, status, started_at, finished_at, health_score, health_status, actions, succeeded, failed,
                     error
                 FROM cycles WHERE id = (SELECT MAX(id) FROM cycles WHERE status <> 'running')",
            )
            .optional()
            .await?;
        let running = enabled && alive.is_some();
        let next_due = match &last_cycle {
            Some(last) if running => Some(last.started_at.after(self.interval).max(now)),
            _ => running.then_some(now),
        };
        Ok(LoopStatus {
            running,
            enabled,
            interval_seconds: self.interval.as_secs(),
            term: lease.as_ref().map_or(0, |lease| lease.term),
            leader: alive.map(|lease| lease.holder.clone()),
            instance: self.instance.to_string(),
            last_cycle,
            next_due,
            last_gap: Gap::last(&self.db).await?,
            database: self.db.trouble(),
            rules: self.rules.status(),
        })
    }
}
