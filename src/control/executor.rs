//! Carrying out a plan: each action is one transaction with its ledger entry, fenced by the leader's term.
//!
//! What the snapshot showed is already old, so every action checks its preconditions again inside its transaction.
//! One that fails does not stop the others.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::action::Action;
use super::decider::PlannedAction;
use super::governors::{self, ActionOutcome};
use super::leader::{self, TermOver};
use crate::actor::Actor;
use crate::config;
use crate::db::{self, Db, Topic, Tx};
use crate::events::{self, NewEvent};
use crate::ledger::{self, Entry, Severity};
use crate::planes::publishing::{self, Publishing};
use crate::planes::{ActError, Effect, fleet, pipelines, queue};

/// What became of a plan: the `execution` of a cycle's report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Execution {
    /// Actions that were begun.
    pub total: i64,
    /// Executed.
    pub succeeded: i64,
    /// Refused or failed.
    pub failed: i64,
    /// One result an action, in the order of the plan.
    pub results: Vec<ActionResult>,
}

/// What became of one action.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ActionResult {
    /// The kind, e.g. `schedule_clip`.
    pub action: String,
    pub target: String,
    /// `executed`, `refused` or `failed`.
    pub outcome: String,
    /// What changed, or why nothing did.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
}

/// Carries plans out.
#[derive(Clone)]
pub struct Executor {
    db: Db,
    publishing: Arc<Publishing>,
    fleet: Option<fleet::Rules>,
    settings: config::Governors,
}

/// How one try of an action's transaction ended.
enum Attempt {
    Executed(Effect),
    Refused(String),
    Failed(db::Error),
    TermOver(TermOver),
}

impl Executor {
    /// An executor over the given planes.
    pub fn new(db: Db, publishing: Arc<Publishing>, settings: config::Governors) -> Self {
        Self { db, publishing, fleet: None, settings }
    }

    /// Also what is done to the fleet, by its rules; without them it is refused.
    pub fn with_fleet(self, rules: fleet::Rules) -> Self {
        Self { fleet: Some(rules), ..self }
    }

    /// Carries out `plan` in its order under `term`. Breaks off when the term is over: whatever is left is another
    /// leader's to decide.
    pub async fn execute(&self, cycle_id: i64, term: i64, plan: &[PlannedAction]) -> (Execution, Option<TermOver>) {
        let (mut execution, mut ended) = (Execution::default(), None);
        for planned in plan {
            execution.total += 1;
            let (outcome, detail) = match self.attempt(cycle_id, term, planned).await {
                Attempt::Executed(effect) => (ActionOutcome::Executed, effect.detail),
                Attempt::TermOver(over) => {
                    execution.failed += 1;
                    let detail = json!({ "error": over.to_string() });
                    execution.results.push(result(planned, ActionOutcome::Failed, detail));
                    ended = Some(over);
                    break;
                }
                Attempt::Refused(reason) => {
                    let detail = json!({ "refused": reason });
                    self.record_failure(cycle_id, term, planned, ActionOutcome::Refused, &detail).await
                }
                Attempt::Failed(cause) => {
                    let detail = json!({ "error": cause.to_string() });
                    self.record_failure(cycle_id, term, planned, ActionOutcome::Failed, &detail).await
                }
            };
            match outcome {
                ActionOutcome::Executed => execution.succeeded += 1,
                ActionOutcome::Refused | ActionOutcome::Failed => execution.failed += 1,
            }
            metrics::counter!("showrunner_actions_total", "action" => planned.action.kind(), "outcome" => outcome.as_str())
                .increment(1);
            execution.results.push(result(planned, outcome, detail));
        }
        if execution.succeeded > 0 {
            self.db.wake(Topic::Jobs).await;
            self.db.wake(Topic::Publications).await;
            if plan.iter().any(|planned| planned.action.is_of_runs()) {
                self.db.wake(Topic::Runs).await;
            }
            if plan.iter().any(|planned| planned.action.is_of_fleet()) {
                self.db.wake(Topic::Fleet).await;
            }
            if plan.iter().any(|planned| matches!(planned.action, Action::RaiseAlert { .. })) {
                self.db.wake(Topic::Events).await;
            }
        }
        (execution, ended)
    }

    async fn attempt(&self, cycle_id: i64, term: i64, planned: &PlannedAction) -> Attempt {
        let mut tx = match self.db.begin().await {
            Ok(tx) => tx,
            Err(cause) => return Attempt::Failed(cause),
        };
        match leader::fence(&mut tx, term).await {
            Ok(Ok(())) => {}
            Ok(Err(over)) => return Attempt::TermOver(over),
            Err(cause) => return Attempt::Failed(cause),
        }
        let effect = match self.act(&mut tx, planned).await {
            Ok(effect) => effect,
            Err(ActError::Refused(reason)) => return Attempt::Refused(reason),
            Err(ActError::Store(cause)) => return Attempt::Failed(cause),
        };
        let recorded = async {
            let breaker = governors::remember(
                &mut tx,
                cycle_id,
                &planned.action,
                &planned.rules,
                ActionOutcome::Executed,
                &self.settings,
            );
            let mut entries = vec![executed_entry(cycle_id, planned, &effect)];
            entries.extend(breaker.await?);
            ledger::append(&mut tx, &entries).await
        };
        if let Err(cause) = recorded.await {
            return Attempt::Failed(cause);
        }
        match tx.commit().await {
            Ok(()) => Attempt::Executed(effect),
            Err(cause) => Attempt::Failed(cause),
        }
    }

    async fn act(&self, tx: &mut Tx, planned: &PlannedAction) -> Result<Effect, ActError> {
        let publishing = &*self.publishing;
        match &planned.action {
            Action::ScheduleClip { clip_id, platform } => {
                publishing::act::schedule_clip(tx, publishing, *clip_id, platform.as_deref()).await
            }
            Action::RetryFailedLog { log_id } => publishing::act::retry_failed_log(tx, publishing, *log_id).await,
            Action::TriggerReconciliation => publishing::act::trigger_reconciliation(tx).await,
            Action::PromoteHighScoreClip { clip_id } => {
                publishing::act::promote_high_score_clip(tx, publishing, *clip_id).await
            }
            Action::DowngradeLowScoreClip { clip_id } => {
                publishing::act::downgrade_low_score_clip(tx, publishing, *clip_id).await
            }
            Action::ForcePublish { log_id } => publishing::act::force_publish(tx, publishing, *log_id).await,
            Action::RebalanceQueue { emergency } => {
                let rebalanced = queue::act::rebalance(tx, *emergency).await?;
                let failed = publishing::act::fail_waiting_on(tx, &rebalanced.failed_jobs).await?;
                let mut effect = rebalanced.effect;
                if !failed.is_empty() {
                    effect.detail["failed_publications"] = json!(failed);
                }
                Ok(effect)
            }
            Action::RetryDeadLetter { dead_letter_id } => queue::act::retry_dead_letter(tx, *dead_letter_id).await,
            Action::PauseQueue { queue } => queue::act::pause_queue(tx, queue).await,
            Action::ResumeQueue { queue } => queue::act::resume_queue(tx, queue).await,
            Action::QuarantineWorker { worker_id } => queue::act::quarantine_worker(tx, worker_id).await,
            Action::RetryRun { run_id } => pipelines::act::retry_run(tx, *run_id).await,
            Action::CancelRun { run_id } => pipelines::act::cancel_run(tx, *run_id).await,
            Action::PauseTrigger { trigger_id } => pipelines::act::pause_trigger(tx, trigger_id).await,
            Action::DrainAgent { agent_id } => fleet::act::drain_agent(tx, self.fleet()?, agent_id).await,
            Action::UndrainAgent { agent_id } => fleet::act::undrain_agent(tx, self.fleet()?, agent_id).await,
            Action::RestartStream { job_id } => fleet::act::restart_stream(tx, self.fleet()?, job_id).await,
            Action::StopStream { job_id } => fleet::act::stop_stream(tx, self.fleet()?, job_id).await,
            Action::MoveStream { job_id } => fleet::act::move_stream(tx, self.fleet()?, job_id).await,
            Action::RaiseAlert { subject } => raise_alert(tx, subject, planned).await,
        }
    }

    fn fleet(&self) -> Result<&fleet::Rules, ActError> {
        self.fleet.as_ref().ok_or_else(|| ActError::refused("this process has no fleet"))
    }

    /// Records that an action was refused or failed. A commit whose answer was lost may have taken effect: then its
    /// entry is there, and the action counts as executed.
    async fn record_failure(
        &self,
        cycle_id: i64,
        term: i64,
        planned: &PlannedAction,
        outcome: ActionOutcome,
        detail: &serde_json::Value,
    ) -> (ActionOutcome, serde_json::Value) {
        let recorded = async {
            let mut tx = self.db.begin().await?;
            if leader::fence(&mut tx, term).await?.is_err() {
                return Ok(None);
            }
            if outcome == ActionOutcome::Failed
                && let Some(done) = executed_after_all(&mut tx, cycle_id, planned).await?
            {
                return Ok(Some(done));
            }
            let breaker =
                governors::remember(&mut tx, cycle_id, &planned.action, &planned.rules, outcome, &self.settings);
            let mut entries = vec![failed_entry(cycle_id, planned, outcome, detail)];
            entries.extend(breaker.await?);
            ledger::append(&mut tx, &entries).await?;
            tx.commit().await?;
            Ok::<_, db::Error>(None)
        };
        match recorded.await {
            Ok(Some(done)) => (ActionOutcome::Executed, done),
            Ok(None) => (outcome, detail.clone()),
            Err(cause) => {
                tracing::error!(%cause, action = planned.action.kind(), target = planned.target, "a failed action could not be written down");
                (outcome, detail.clone())
            }
        }
    }
}

/// Tells people, through whatever follows the events: logs, metrics, streams.
async fn raise_alert(tx: &mut Tx, subject: &str, planned: &PlannedAction) -> Result<Effect, ActError> {
    let data = json!({ "text": planned.reasons.join("; "), "rules": planned.rules });
    let event = NewEvent::new(events::types::ALERT_RAISED, "loop").severity(Severity::Warning).subject(subject);
    events::record(tx, &[event.data(data.clone())]).await?;
    Ok(Effect { detail: data })
}

fn result(planned: &PlannedAction, outcome: ActionOutcome, detail: serde_json::Value) -> ActionResult {
    ActionResult {
        action: planned.action.kind().to_owned(),
        target: planned.target.clone(),
        outcome: outcome.as_str().to_owned(),
        detail,
    }
}

fn entry(event_type: &'static str, cycle_id: i64, planned: &PlannedAction, detail: &serde_json::Value) -> Entry {
    let payload = json!({
        "action": planned.action,
        "target": planned.target,
        "priority": planned.priority,
        "rules": planned.rules,
        "reasons": planned.reasons,
        "detail": detail,
    });
    Entry::new(event_type, Actor::Loop, payload)
        .cycle(cycle_id)
        .subject(planned.target.clone())
        .rule(planned.rules.first().cloned())
}

fn executed_entry(cycle_id: i64, planned: &PlannedAction, effect: &Effect) -> Entry {
    entry("orchestrator.action_executed", cycle_id, planned, &effect.detail)
}

fn failed_entry(cycle_id: i64, planned: &PlannedAction, outcome: ActionOutcome, detail: &serde_json::Value) -> Entry {
    // A refusal is the plane's answer, not an error: it must not lower health.
    let severity = if outcome == ActionOutcome::Refused { Severity::Warning } else { Severity::Error };
    entry("orchestrator.action_failed", cycle_id, planned, detail).severity(severity)
}

/// The detail of this action's `action_executed` entry, if its lost commit took effect.
async fn executed_after_all(
    tx: &mut Tx,
    cycle_id: i64,
    planned: &PlannedAction,
) -> db::Result<Option<serde_json::Value>> {
    let payloads: Vec<(String,)> = tx
        .query(
            "SELECT CAST(payload AS TEXT) FROM ledger_entries
             WHERE cycle_id = $1 AND subject = $2 AND event_type = 'orchestrator.action_executed'",
        )
        .bind(cycle_id)
        .bind(planned.target.clone())
        .all()
        .await?;
    let done = payloads
        .iter()
        .filter_map(|(text,)| serde_json::from_str::<serde_json::Value>(text).ok())
        .find(|payload| payload["action"]["action"] == planned.action.kind());
    Ok(done.map(|payload| payload["detail"].clone()))
}
