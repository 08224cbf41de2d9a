//! What the governors remember between cycles: when a rule last acted on a target, how often each action kind was
//! used in the last hour, and the breakers. Read only when something was proposed.

use std::time::Duration;

use serde_json::json;

use super::action::Action;
use super::decider::{Breaker, Memory, Proposals};
use crate::actor::Actor;
use crate::config;
use crate::db::{Db, Result, Timestamp, Tx};
use crate::ledger::{Entry, Severity};

/// No cooldown may be longer: older memories are forgotten.
pub const LONGEST_COOLDOWN: Duration = Duration::from_secs(7 * 24 * 3600);

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionOutcome {
    /// Its effect is committed.
    Executed,
    /// What the snapshot showed was no longer so; nothing changed.
    Refused,
    /// The store failed; nothing changed.
    Failed,
}

impl ActionOutcome {
    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Reads what bears on `proposals`, at `now`; nothing where nothing was proposed.
pub async fn recall(db: &Db, proposals: &Proposals, now: Timestamp) -> Result<Memory> {
    if proposals.is_empty() {
        return Ok(Memory::default());
    }
    let (rules, targets): (Vec<String>, Vec<String>) = proposals.rules_and_targets().into_iter().unzip();
    let kinds = proposals.kinds();
    let mut tx = db.begin_read().await?;
    let mut memory = Memory::default();
    let cooldowns: Vec<(String, String, Timestamp)> = tx
        .query(crate::sql!(
            "SELECT rule, target, acted_at FROM rule_cooldowns WHERE target IN ("
            { sqlite: "SELECT value FROM json_each($1)", postgres: "SELECT jsonb_array_elements_text($1)" } ")
                AND rule IN ("
            { sqlite: "SELECT value FROM json_each($2)", postgres: "SELECT jsonb_array_elements_text($2)" } ")"
        ))
        .bind(crate::db::Json(targets))
        .bind(crate::db::Json(rules))
        .all()
        .await?;
    for (rule, target, acted_at) in cooldowns {
        memory.cooldowns.entry(rule).or_default().insert(target, acted_at);
    }
    let used: Vec<(String, i64)> = tx
        .query("SELECT action, COUNT(*) FROM actions WHERE created_at > $1 GROUP BY action")
        .bind(now.before(Duration::from_secs(3600)))
        .all()
        .await?;
    memory.used = used
        .into_iter()
        .filter(|(action, _)| kinds.contains(&action.as_str()))
        .map(|(action, count)| (action, count as u32))
        .collect();
    let breakers: Vec<(String, i64, Option<Timestamp>)> = tx
        .query("SELECT action, consecutive_failures, opened_at FROM breakers WHERE consecutive_failures > 0")
        .all()
        .await?;
    memory.breakers = breakers
        .into_iter()
        .filter(|(action, ..)| kinds.contains(&action.as_str()))
        .map(|(action, failures, opened_at)| (action, Breaker { consecutive_failures: failures as u32, opened_at }))
        .collect();
    Ok(memory)
}

/// The action kinds whose breakers are open.
pub async fn open_breakers(db: &Db) -> Result<Vec<String>> {
    let open: Vec<(String,)> = db.query("SELECT action FROM breakers WHERE opened_at IS NOT NULL").all().await?;
    Ok(open.into_iter().map(|(action,)| action).collect())
}

/// Remembers that `action` was carried out, refused or failed, in the transaction that records it. Returns what the
/// breaker has to say for the ledger.
pub async fn remember(
    tx: &mut Tx,
    cycle_id: i64,
    action: &Action,
    rules: &[String],
    outcome: ActionOutcome,
    settings: &config::Governors,
) -> Result<Vec<Entry>> {
    let now = tx.now().await?;
    let (kind, target) = (action.kind(), action.target());
    tx.query("INSERT INTO actions (cycle_id, action, target, outcome, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(cycle_id)
        .bind(kind)
        .bind(target.clone())
        .bind(outcome.as_str())
        .bind(now)
        .execute()
        .await?;
    for rule in rules {
        tx.query(
            "INSERT INTO rule_cooldowns (rule, target, acted_at) VALUES ($1, $2, $3)
             ON CONFLICT (rule, target) DO UPDATE SET acted_at = excluded.acted_at",
        )
        .bind(rule.clone())
        .bind(target.clone())
        .bind(now)
        .execute()
        .await?;
    }
    move_breaker(tx, kind, outcome, settings, now).await
}

/// A failure in a row more, or none any longer. A refusal is an answer: it closes a breaker like a success.
async fn move_breaker(
    tx: &mut Tx,
    kind: &'static str,
    outcome: ActionOutcome,
    settings: &config::Governors,
    now: Timestamp,
) -> Result<Vec<Entry>> {
    let before: Option<(i64, Option<Timestamp>)> = tx
        .query("SELECT consecutive_failures, opened_at FROM breakers WHERE action = $1")
        .bind(kind)
        .optional()
        .await?;
    let (failures, opened_at) = before.unwrap_or((0, None));
    let entry = |event_type, payload| Entry::new(event_type, Actor::Loop, payload).subject(format!("action:{kind}"));
    if outcome != ActionOutcome::Failed {
        if failures == 0 {
            return Ok(Vec::new());
        }
        tx.query("UPDATE breakers SET consecutive_failures = 0, opened_at = NULL WHERE action = $1")
            .bind(kind)
            .execute()
            .await?;
        let closed = entry("orchestrator.breaker_closed", json!({ "action": kind }));
        return Ok(if opened_at.is_some() { vec![closed] } else { Vec::new() });
    }
    let failures = failures + 1;
    let opens = failures >= i64::from(settings.breaker_failures);
    tx.query(
        "INSERT INTO breakers (action, consecutive_failures, opened_at) VALUES ($1, $2, $3)
         ON CONFLICT (action) DO UPDATE SET consecutive_failures = excluded.consecutive_failures,
             opened_at = excluded.opened_at",
    )
    .bind(kind)
    .bind(failures)
    .bind(opens.then_some(now))
    .execute()
    .await?;
    if !opens || opened_at.is_some() {
        return Ok(Vec::new());
    }
    let payload = json!({ "action": kind, "failures": failures, "seconds": settings.breaker_open_seconds });
    Ok(vec![entry("orchestrator.breaker_opened", payload).severity(Severity::Warning)])
}

/// Forgets what can no longer matter. What lies in the future was written under a clock that has since been set back:
/// it counts as of now, so that a clock that was a year ahead does not hold the loop for a year.
pub async fn forget(tx: &mut Tx) -> Result<()> {
    let now = tx.now().await?;
    tx.query("UPDATE rule_cooldowns SET acted_at = $1 WHERE acted_at > $1").bind(now).execute().await?;
    tx.query("UPDATE actions SET created_at = $1 WHERE created_at > $1").bind(now).execute().await?;
    tx.query("UPDATE breakers SET opened_at = $1 WHERE opened_at > $1").bind(now).execute().await?;
    let before = now.before(LONGEST_COOLDOWN);
    tx.query("DELETE FROM rule_cooldowns WHERE acted_at < $1").bind(before).execute().await?;
    tx.query("DELETE FROM actions WHERE created_at < $1").bind(before).execute().await?;
    Ok(())
}
