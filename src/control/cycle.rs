//! One cycle: look, decide, act, write down.
//!
//! A cycle with nothing to do is one transaction. One with actions is a transaction that records what was seen and
//! decided, one for each action, and one that records how it ended; whatever dies in between is closed as
//! interrupted by the next leader.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::cycles::{self, Ending, NewCycle, SnapshotWriter, Trigger};
use super::decider::{self, Decision, Refresh, RuleBook, RuleFailure, RuleSet, Unreached};
use super::executor::{Execution, Executor};
use super::gap::Gap;
use super::governors;
use super::health::assess_health;
use super::leader::{self, TermOver};
use super::monitor::Monitor;
use super::snapshot::{HealthStatus, Snapshot};
use crate::actor::Actor;
use crate::clock::SharedClock;
use crate::config;
use crate::db::{self, Db, Timestamp, Tx};
use crate::ledger::{self, Entry, Severity};
use crate::panic::caught;

/// What decided: written into every cycle, because a replay is only good with the same engine.
pub const ENGINE_VERSION: &str = concat!("showrunner ", env!("CARGO_PKG_VERSION"), ", rhai 1.27");

/// News of edited rules that are kept for the ledger while it cannot be written, so that a night of edits fits.
const MOST_UNTOLD: usize = 100;

/// A rule that keeps failing is written down once in this time, not every cycle.
const FAILURE_REPEATS_AFTER: Duration = Duration::from_secs(3600);

/// Why a cycle came to no end.
#[derive(Debug, thiserror::Error)]
pub enum CycleError {
    #[error(transparent)]
    Store(#[from] db::Error),
    #[error(transparent)]
    TermOver(#[from] TermOver),
    /// A fault of ours; the next cycle runs.
    #[error("{0}")]
    Panicked(String),
}

/// Runs cycles, one at a time; what it remembers between them is only what makes the next one cheaper.
pub struct CycleRunner {
    db: Db,
    clock: SharedClock,
    instance: String,
    rules: Arc<RuleBook>,
    monitor: Monitor,
    executor: Executor,
    settings: config::Governors,
    snapshots: SnapshotWriter,
    /// The rule set that is known to be stored.
    stored_rules: Option<String>,
    reported_failures: HashMap<(String, String), Duration>,
    /// The rule that the last cycle did not reach: the next one begins with it.
    first_rule: Option<String>,
    /// Cycles that failed without the database to write it to: how many, since when, and the first error.
    unrecorded: Option<(u64, Timestamp, String)>,
    /// A time without cycles that the next one ends.
    gap: Option<Gap>,
    /// What became of edited rules, until a cycle tells of it in the ledger.
    untold: Vec<Entry>,
}

/// A cycle's look and decision, before anything is written.
struct Decided {
    started_at: Timestamp,
    snapshot: Snapshot,
    decision: Decision,
    rules: Arc<RuleSet>,
    observe: Duration,
    decide: Duration,
}

/// What began a cycle, and under what.
#[derive(Clone, Copy)]
pub struct Occasion<'a> {
    pub trigger: Trigger,
    /// Who asked for it, if somebody did.
    pub asked_by: Option<&'a str>,
    pub term: i64,
    /// Ticks of the interval that were left out before this cycle.
    pub skipped_ticks: i64,
}

impl CycleRunner {
    /// A runner that has not run yet.
    pub fn new(
        db: Db,
        clock: SharedClock,
        instance: String,
        rules: Arc<RuleBook>,
        monitor: Monitor,
        executor: Executor,
        settings: config::Governors,
    ) -> Self {
        Self {
            db,
            clock,
            instance,
            rules,
            monitor,
            executor,
            settings,
            snapshots: SnapshotWriter::default(),
            stored_rules: None,
            reported_failures: HashMap::new(),
            first_rule: None,
            unrecorded: None,
            gap: None,
            untold: Vec::new(),
        }
    }

    /// Forgets what only holds within one term: another leader may have written meanwhile.
    pub fn begin_term(&mut self) {
        self.snapshots = SnapshotWriter::default();
        self.stored_rules = None;
    }

    /// Runs one cycle; returns its row's id. A failure is recorded, and the next cycle can run.
    pub async fn run(&mut self, occasion: Occasion<'_>) -> Result<i64, CycleError> {
        let began = self.clock.elapsed();
        let result = caught(self.try_run(occasion)).await.unwrap_or_else(|words| Err(CycleError::Panicked(words)));
        metrics::histogram!("showrunner_cycle_seconds").record((self.clock.elapsed() - began).as_secs_f64());
        if let Err(cause) = &result {
            self.reported_failures.clear(); // whether they are in the ledger is not known
            tracing::error!(%cause, "the cycle failed; the next one runs");
            count(occasion.trigger, "error");
            if !matches!(cause, CycleError::TermOver(_)) {
                self.record_error(occasion, cause.to_string()).await;
            }
        }
        result
    }

    async fn try_run(&mut self, occasion: Occasion<'_>) -> Result<i64, CycleError> {
        self.refresh_rules();
        let mut entries = self.untold.clone();
        let decided = self.decide().await?;
        entries.extend(self.gap.as_ref().map(Gap::entry));
        entries.extend(self.recount_unrecorded());
        entries.extend(self.report_failures(&decided.decision.failures));
        entries.extend(self.report_unreached(decided.decision.unreached.as_ref()));
        if decided.decision.blast_radius_exceeded {
            let payload = json!({ "summary": decided.decision.summary });
            entries.push(
                Entry::new("orchestrator.blast_radius_exceeded", Actor::Loop, payload).severity(Severity::Warning),
            );
        }
        if decided.decision.actions.is_empty() {
            self.record_idle(occasion, decided, entries).await
        } else {
            self.act(occasion, decided, entries).await
        }
    }

    async fn decide(&self) -> Result<Decided, db::Error> {
        let began = self.clock.elapsed();
        let rules = self.rules.current();
        let mut snapshot = self.monitor.look().await?;
        let health_failures = assess_health(&rules, &mut snapshot, &self.clock);
        let observed = self.clock.elapsed();
        let mut proposals = decider::propose(&rules, &snapshot, &self.clock, self.first_rule.as_deref());
        proposals.add_failures(health_failures);
        let memory = governors::recall(&self.db, &proposals, snapshot.at).await?;
        let decision = decider::plan(proposals, &memory, &self.settings, snapshot.at);
        let decide = self.clock.elapsed() - observed;
        metrics::gauge!("showrunner_health_score").set(snapshot.system.health_score as f64);
        Ok(Decided { started_at: snapshot.at, snapshot, decision, rules, observe: observed - began, decide })
    }

    async fn record_idle(
        &mut self,
        occasion: Occasion<'_>,
        decided: Decided,
        entries: Vec<Entry>,
    ) -> Result<i64, CycleError> {
        let snapshot = to_json(&decided.snapshot);
        let stored = self.snapshots.encode(&snapshot, decided.started_at);
        let mut tx = self.begin_fenced(occasion.term).await?;
        let now = tx.now().await?;
        let row = NewCycle {
            status: "idle",
            finished_at: Some(now),
            snapshot: stored.clone(),
            ..self.new_cycle(occasion, &decided)
        };
        let mut all = self.close_unrecorded(&mut tx).await?;
        let id = cycles::insert(&mut tx, &row).await?;
        self.store_rules(&mut tx, &decided.rules).await?;
        let system = &decided.snapshot.system;
        all.push(started(id, occasion, &decided));
        all.extend(entries.into_iter().map(|entry| entry.cycle(id)));
        let payload = json!({ "health": system.health_score });
        all.push(Entry::new("orchestrator.cycle_idle", Actor::Loop, payload).cycle(id));
        ledger::append(&mut tx, &all).await?;
        tx.commit().await?;
        self.remember_stored(id, &stored, snapshot, &decided);
        match system.status {
            HealthStatus::Healthy => tracing::info!("Cycle {id}: No actions needed, system healthy"),
            status => {
                tracing::info!("Cycle {id}: No actions needed, system {} ({})", status.as_str(), system.health_score);
            }
        }
        count(occasion.trigger, "idle");
        Ok(id)
    }

    async fn act(&mut self, occasion: Occasion<'_>, decided: Decided, entries: Vec<Entry>) -> Result<i64, CycleError> {
        let snapshot = to_json(&decided.snapshot);
        let stored = self.snapshots.encode(&snapshot, decided.started_at);
        let mut tx = self.begin_fenced(occasion.term).await?;
        let row = NewCycle { status: "running", snapshot: stored.clone(), ..self.new_cycle(occasion, &decided) };
        let mut all = self.close_unrecorded(&mut tx).await?;
        let id = cycles::insert(&mut tx, &row).await?;
        self.store_rules(&mut tx, &decided.rules).await?;
        all.push(started(id, occasion, &decided));
        all.extend(entries.into_iter().map(|entry| entry.cycle(id)));
        ledger::append(&mut tx, &all).await?;
        tx.commit().await?;
        self.remember_stored(id, &stored, snapshot, &decided);

        let plan = &decided.decision.actions;
        tracing::info!("Cycle {id}: {} {} to execute", plan.len(), if plan.len() == 1 { "action" } else { "actions" });
        let began = self.clock.elapsed();
        let (execution, over) = self.executor.execute(id, occasion.term, plan).await;
        let execute = self.clock.elapsed() - began;
        tracing::info!("Cycle {id}: {} succeeded, {} failed", execution.succeeded, execution.failed);
        if let Some(over) = over {
            return Err(over.into());
        }
        self.close(id, occasion.term, &execution, execute).await?;
        count(occasion.trigger, "completed");
        Ok(id)
    }

    async fn close(&self, id: i64, term: i64, execution: &Execution, took: Duration) -> Result<(), CycleError> {
        let mut tx = self.begin_fenced(term).await?;
        let ending = Ending {
            execute_us: took.as_micros() as i64,
            succeeded: execution.succeeded,
            failed: execution.failed,
            result: to_json(execution).to_string(),
        };
        cycles::finish(&mut tx, id, &ending).await?;
        let payload = json!({
            "actions": execution.total, "succeeded": execution.succeeded, "failed": execution.failed,
            "milliseconds": took.as_millis() as u64,
        });
        ledger::append(&mut tx, &[Entry::new("orchestrator.cycle_completed", Actor::Loop, payload).cycle(id)]).await?;
        Ok(tx.commit().await?)
    }

    /// A writing transaction in which the term is still ours; it also holds the lease for another stretch.
    async fn begin_fenced(&self, term: i64) -> Result<Tx, CycleError> {
        let mut tx = self.db.begin_kept().await?;
        if !leader::extend(&mut tx, &self.instance, term).await? {
            return Err(TermOver(term).into());
        }
        Ok(tx)
    }

    fn new_cycle<'a>(&'a self, occasion: Occasion<'_>, decided: &'a Decided) -> NewCycle<'a> {
        let system = &decided.snapshot.system;
        let decision = to_json(&decided.decision);
        let empty = decision.as_object().is_some_and(|fields| fields.is_empty());
        NewCycle {
            trigger: occasion.trigger,
            status: "running",
            term: occasion.term,
            instance: &self.instance,
            rules_hash: decided.rules.hash(),
            engine_version: ENGINE_VERSION,
            started_at: decided.started_at,
            finished_at: None,
            observe_us: decided.observe.as_micros() as i64,
            decide_us: decided.decide.as_micros() as i64,
            skipped_ticks: occasion.skipped_ticks,
            health_score: Some(system.health_score),
            health_status: system.status.as_str(),
            actions: decided.decision.actions.len() as i64,
            snapshot: cycles::StoredSnapshot::default(),
            decision: (!empty).then(|| decision.to_string()),
            error: None,
        }
    }

    /// The cycle and all that was to tell beside it are committed.
    fn remember_stored(&mut self, id: i64, stored: &cycles::StoredSnapshot, snapshot: Value, decided: &Decided) {
        self.snapshots.stored(id, stored, snapshot, decided.started_at);
        self.stored_rules = Some(decided.rules.hash().to_owned());
        self.unrecorded = None;
        self.gap = None;
        self.untold.clear();
    }

    /// Keeps the sources of the rules in force, so that their cycles can be replayed.
    async fn store_rules(&self, tx: &mut Tx, rules: &RuleSet) -> Result<(), db::Error> {
        if self.stored_rules.as_deref() == Some(rules.hash()) {
            return Ok(());
        }
        let now = tx.now().await?;
        tx.query(crate::sql!(
            "INSERT INTO rule_sets (hash, sources, created_at) VALUES ($1, "
            { sqlite: "$2", postgres: "CAST($2 AS JSON)" } ", $3) ON CONFLICT (hash) DO NOTHING"
        ))
        .bind(rules.hash().to_owned())
        .bind(to_json(rules.sources()).to_string())
        .bind(now)
        .execute()
        .await?;
        Ok(())
    }

    /// Looks whether operators changed the rules; the next cycle that can be written says so in the ledger.
    fn refresh_rules(&mut self) {
        let entry = match self.rules.refresh() {
            Refresh::Unchanged => return,
            Refresh::Loaded { hash, previous } => {
                tracing::info!(%hash, "rules loaded");
                let payload = json!({ "hash": hash, "previous": previous });
                Entry::new("orchestrator.rules_loaded", Actor::System, payload)
            }
            Refresh::Rejected { hash, errors } => {
                let active = self.rules.current().hash().to_owned();
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                tracing::warn!(?errors, "the new rules were rejected; the last good ones stay in force");
                let payload = json!({ "hash": hash, "active": active, "errors": errors });
                Entry::new("orchestrator.rules_rejected", Actor::System, payload).severity(Severity::Warning)
            }
        };
        if self.untold.len() < MOST_UNTOLD {
            self.untold.push(entry);
        }
    }

    /// Failed rules, those left out that were reported within the hour.
    fn report_failures(&mut self, failures: &[RuleFailure]) -> Vec<Entry> {
        let now = self.clock.elapsed();
        self.reported_failures.retain(|_, reported| now - *reported < FAILURE_REPEATS_AFTER);
        let mut entries = Vec::new();
        for failure in failures {
            let key = (failure.rule.clone(), failure.message.clone());
            if self.reported_failures.contains_key(&key) {
                continue;
            }
            tracing::warn!(rule = failure.rule, message = failure.message, "a rule failed; the others went on");
            self.reported_failures.insert(key, now);
            entries.push(
                Entry::new("orchestrator.rule_failed", Actor::Loop, to_json(failure))
                    .severity(Severity::Error)
                    .subject(format!("rule:{}", failure.rule))
                    .rule(Some(failure.rule.clone())),
            );
        }
        entries
    }

    /// Remembers where the next cycle begins; rules that were not reached are told of once in an hour.
    fn report_unreached(&mut self, unreached: Option<&Unreached>) -> Option<Entry> {
        self.first_rule = unreached.and_then(|unreached| unreached.rules.first().cloned());
        let unreached = unreached?;
        let now = self.clock.elapsed();
        let key = (String::new(), "unreached".to_owned());
        if self.reported_failures.contains_key(&key) {
            return None;
        }
        self.reported_failures.insert(key, now);
        let (count, because) = (unreached.count, &unreached.because);
        tracing::warn!(count, because, "rules were not reached; the next cycle begins with them");
        Some(
            Entry::new("orchestrator.rules_unreached", Actor::Loop, to_json(unreached))
                .severity(Severity::Warning)
                .subject("rules"),
        )
    }

    /// Remembers a cycle that could neither run nor be written down; the next one that can be written tells of it.
    pub fn missed(&mut self, at: Timestamp, error: String) {
        let (count, since, first) = self.unrecorded.take().unwrap_or((0, at, error));
        self.unrecorded = Some((count + 1, since, first));
    }

    /// Closes a cycle of this leader's that broke off after it was written down, while its end could not be; gives its
    /// entry.
    async fn close_unrecorded(&self, tx: &mut Tx) -> Result<Vec<Entry>, db::Error> {
        let Some((_, _, error)) = &self.unrecorded else { return Ok(Vec::new()) };
        let closed = cycles::close_broken(tx, error).await?;
        Ok(closed.into_iter().map(|id| broken(id, error)).collect())
    }

    /// Remembers that the next cycle ends a time without cycles: because of what could not be written down, or else
    /// because of `otherwise`.
    pub(super) fn ends_gap(&mut self, since: Timestamp, until: Timestamp, otherwise: String) {
        let because = match &self.unrecorded {
            Some((_, _, error)) => format!("cycles failed and could not be written down: {error}"),
            None => otherwise,
        };
        self.gap = Some(Gap { since, until, seconds: until.since(since).as_secs(), because });
    }

    /// What could not be written down while the database was away.
    fn recount_unrecorded(&self) -> Option<Entry> {
        let (count, since, error) = self.unrecorded.as_ref()?;
        let payload = json!({ "cycles": count, "since": since, "error": error });
        Some(Entry::new("orchestrator.cycle_error", Actor::Loop, payload).severity(Severity::Error).subject("cycle"))
    }

    async fn record_error(&mut self, occasion: Occasion<'_>, error: String) {
        let at = Timestamp::new(self.clock.now());
        let recorded = async {
            let mut tx = self.begin_fenced(occasion.term).await?;
            // A cycle that broke off after it was written down is closed; one that saw nothing gets a row.
            let id = match cycles::close_broken(&mut tx, &error).await?.first() {
                Some(id) => *id,
                None => self.insert_failed(&mut tx, occasion, &error).await?,
            };
            ledger::append(&mut tx, &[broken(id, &error)]).await?;
            Ok::<_, CycleError>(tx.commit().await?)
        };
        if recorded.await.is_err() {
            self.missed(at, error);
        }
    }

    async fn insert_failed(&self, tx: &mut Tx, occasion: Occasion<'_>, error: &str) -> Result<i64, db::Error> {
        let now = tx.now().await?;
        let rules = self.rules.current();
        let row = NewCycle {
            trigger: occasion.trigger,
            status: "error",
            term: occasion.term,
            instance: &self.instance,
            rules_hash: rules.hash(),
            engine_version: ENGINE_VERSION,
            started_at: now,
            finished_at: Some(now),
            observe_us: 0,
            decide_us: 0,
            skipped_ticks: occasion.skipped_ticks,
            health_score: None,
            health_status: HealthStatus::Unknown.as_str(),
            actions: 0,
            snapshot: cycles::StoredSnapshot::default(),
            decision: None,
            error: Some(error.to_owned()),
        };
        cycles::insert(tx, &row).await
    }
}

fn count(trigger: Trigger, status: &'static str) {
    metrics::counter!("showrunner_cycles_total", "trigger" => trigger.as_str(), "status" => status).increment(1);
}

/// The entry of a cycle that came to no end.
fn broken(id: i64, error: &str) -> Entry {
    Entry::new("orchestrator.cycle_error", Actor::Loop, json!({ "error": error }))
        .severity(Severity::Error)
        .subject("cycle")
        .cycle(id)
}

fn started(id: i64, occasion: Occasion<'_>, decided: &Decided) -> Entry {
    let system = &decided.snapshot.system;
    let mut payload = json!({ "health": system.health_score, "status": system.status });
    if let Some(jobs) = decided.snapshot.jobs.as_ref().filter(|jobs| jobs.pending > 0) {
        payload["jobs_pending"] = jobs.pending.into();
    }
    if !decided.decision.actions.is_empty() {
        payload["actions"] = decided.decision.actions.len().into();
    }
    if occasion.skipped_ticks > 0 {
        payload["skipped_ticks"] = occasion.skipped_ticks.into();
    }
    if let Some(asked_by) = occasion.asked_by {
        payload["asked_by"] = asked_by.into();
    }
    Entry::new("orchestrator.cycle_started", Actor::Loop, payload).cycle(id)
}

fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("our own records are JSON")
}
