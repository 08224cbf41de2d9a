//! What must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use showrunner::config::Config;
use showrunner::control::cycles;
use showrunner::control::decider::{Decision, RuleSet, replay};
use showrunner::db::{Db, Timestamp};
use showrunner::ledger;

use super::platform::SimPlatform;

type Held = Result<(), String>;

/// The chain is whole, and every action has its entry and every entry its action.
pub async fn ledger(db: &Db) -> Held {
    let verification = ledger::verify(db, |_| {}).await.map_err(|cause| cause.to_string())?;
    if let Some((id, why)) = verification.first_bad {
        return Err(format!("the ledger's entry {id} {why}"));
    }
    let executed = count(db, "SELECT COUNT(*) FROM actions WHERE outcome = 'executed'").await;
    let entered =
        count(db, "SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.action_executed'").await;
    if executed != entered {
        return Err(format!("{executed} actions were executed and {entered} are in the ledger"));
    }
    let failed = count(db, "SELECT COUNT(*) FROM actions WHERE outcome <> 'executed'").await;
    let entered =
        count(db, "SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.action_failed'").await;
    if failed != entered {
        return Err(format!("{failed} actions failed and {entered} are in the ledger"));
    }
    Ok(())
}

/// After a new leader's entry, nothing of an older term's cycles is written by the loop.
pub async fn terms(db: &Db) -> Held {
    let rows: Vec<(i64, String, i64)> = db
        .query(
            "SELECT ledger_entries.id, event_type, coalesce(cycles.term, 0)
             FROM ledger_entries LEFT JOIN cycles ON cycles.id = ledger_entries.cycle_id
             WHERE event_type = 'orchestrator.leader_acquired' OR (actor = 'loop' AND cycle_id IS NOT NULL)
             ORDER BY ledger_entries.id",
        )
        .all()
        .await
        .map_err(|cause| cause.to_string())?;
    let mut current = 0;
    for (id, event, term) in rows {
        if event == "orchestrator.leader_acquired" {
            current += 1;
        } else if term != current {
            return Err(format!("entry {id} ({event}) is of term {term} while term {current} holds"));
        }
    }
    Ok(())
}

/// No action kind goes past its budget in any hour, and no rule acts on a target within its cooldown.
pub async fn governors(db: &Db, config: &Config) -> Held {
    let mut actions: Vec<(String, Timestamp)> = all(db, "SELECT action, created_at FROM actions ORDER BY id").await;
    actions.sort_by_key(|(_, at)| *at);
    let mut recent: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    for (kind, at) in actions {
        let window = recent.entry(kind.clone()).or_default();
        window.retain(|earlier| at.since(*earlier).as_secs() < 3_600);
        window.push(at);
        let budget = config.governors.budgets.get(&kind).copied().unwrap_or(config.governors.budget_per_hour);
        if window.len() > budget as usize {
            return Err(format!("{} times {kind} within an hour of {at}", window.len()));
        }
    }
    let cooldowns: BTreeMap<String, u64> = RuleSet::built_in()
        .rules()
        .iter()
        .filter_map(|rule| Some((rule.name.clone(), rule.cooldown_seconds?)))
        .collect();
    let entries: Vec<(String, Timestamp)> = all(
        db,
        "SELECT CAST(payload AS TEXT), created_at FROM ledger_entries
         WHERE event_type IN ('orchestrator.action_executed', 'orchestrator.action_failed') ORDER BY id",
    )
    .await;
    let mut acted: BTreeMap<(String, String), Timestamp> = BTreeMap::new();
    for (payload, at) in entries {
        let payload: Value = serde_json::from_str(&payload).map_err(|cause| cause.to_string())?;
        let target = payload["target"].as_str().unwrap_or_default().to_owned();
        let rules: Vec<String> = serde_json::from_value(payload["rules"].clone()).unwrap_or_default();
        let free = rules.iter().any(|rule| {
            let cooldown = cooldowns.get(rule).copied().unwrap_or(0);
            acted.get(&(rule.clone(), target.clone())).is_none_or(|last| at.since(*last).as_secs() >= cooldown)
        });
        if !free {
            return Err(format!("{rules:?} acted on {target} at {at}, within their cooldowns"));
        }
        for rule in rules {
            acted.insert((rule, target.clone()), at);
        }
    }
    Ok(())
}

/// Every decision comes out the same again.
pub async fn replays(db: &Db) -> Held {
    let ids: Vec<(i64,)> = all(db, "SELECT id FROM cycles WHERE decision IS NOT NULL ORDER BY id").await;
    let mut sets: BTreeMap<String, RuleSet> = BTreeMap::new();
    for (id,) in ids {
        let cycle = cycles::load(db, id).await.map_err(|cause| cause.to_string())?.ok_or("a cycle is gone")?;
        let hash = cycle.row.rules_hash.clone();
        if !sets.contains_key(&hash) {
            let sources = cycles::rule_sources(db, &hash).await.map_err(|cause| cause.to_string())?;
            let sources = sources.ok_or_else(|| format!("cycle {id}'s rules {hash} are not kept"))?;
            let set = RuleSet::load(&sources).map_err(|_| format!("cycle {id}'s rules no longer load"))?;
            sets.insert(hash.clone(), set);
        }
        let snapshot = serde_json::from_value(cycle.snapshot).map_err(|cause| format!("cycle {id}: {cause}"))?;
        let recorded: Decision =
            serde_json::from_value(cycle.decision.clone()).map_err(|cause| format!("cycle {id}: {cause}"))?;
        let again = serde_json::to_string(&replay(&sets[&hash], &snapshot, &recorded)).expect("JSON");
        let first = serde_json::to_string(&recorded).expect("JSON");
        if again != first {
            return Err(format!("cycle {id} decides otherwise now:\n{first}\n{again}"));
        }
    }
    Ok(())
}

/// After the faults: nothing is forgotten, nothing is out that we do not know of, every job ended, health is back.
pub async fn settled(db: &Db, platform: &SimPlatform, now: Timestamp) -> Held {
    let open: Vec<(i64, String, Option<String>)> = all(
        db,
        "SELECT id, status, last_error FROM publish_logs WHERE status IN ('pending', 'publishing', 'unknown', 'retry')",
    )
    .await;
    if let Some((id, status, error)) = open.first() {
        return Err(format!("publication {id} is still {status} ({error:?})"));
    }
    let rows: Vec<(i64, Timestamp)> =
        all(db, "SELECT id, scheduled_at FROM publish_logs WHERE status = 'scheduled'").await;
    if let Some((id, due)) = rows.iter().find(|(_, due)| now.since(*due).as_secs() > 3_600) {
        return Err(format!("publication {id} was due at {due} and is still scheduled"));
    }
    let known: Vec<(String,)> = all(db, "SELECT idempotency_key FROM publish_logs WHERE status = 'published'").await;
    let known: BTreeSet<String> = known.into_iter().map(|(key,)| key).collect();
    let posted: BTreeSet<String> = platform.posted().into_iter().collect();
    if let Some(key) = posted.symmetric_difference(&known).next() {
        return Err(format!(
            "publication {key} is {}",
            if posted.contains(key) { "out, and we do not know" } else { "not out" }
        ));
    }
    let jobs = count(
        db,
        "SELECT COUNT(*) FROM jobs WHERE kind <> 'render' AND status NOT IN ('completed', 'failed', 'cancelled')",
    )
    .await;
    if jobs > 0 {
        return Err(format!("{jobs} jobs never ended"));
    }
    let running = count(db, "SELECT COUNT(*) FROM cycles WHERE status = 'running'").await;
    if running > 0 {
        return Err(format!("{running} cycles never ended"));
    }
    let requests = count(db, "SELECT COUNT(*) FROM cycle_requests WHERE cycle_id IS NULL AND error IS NULL").await;
    if requests > 0 {
        return Err(format!("{requests} requests for a cycle were never answered"));
    }
    let health = count(db, "SELECT health_score FROM cycles WHERE status <> 'error' ORDER BY id DESC LIMIT 1").await;
    if health < 80 {
        return Err(format!("health is {health}, hours after the last fault"));
    }
    Ok(())
}

async fn count(db: &Db, query: &'static str) -> i64 {
    db.query(query).one::<(i64,)>().await.expect(query).0
}

async fn all<T: showrunner::db::Row>(db: &Db, query: &'static str) -> Vec<T> {
    db.query(query).all().await.expect(query)
}
