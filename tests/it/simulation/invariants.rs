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

/// What was seen before, to tell what has changed that must not.
#[derive(Default)]
pub struct Memory {
    term: i64,
    /// Jobs that have ended: status, lease number and when.
    ended: BTreeMap<i64, (String, i64, Option<Timestamp>)>,
    /// Publications that are out, by key.
    published: BTreeSet<String>,
}

/// Cheap enough for every step: terms only grow, nobody has more tries than allowed, health is a score.
pub async fn always(db: &Db, memory: &mut Memory) -> Held {
    let (term, too_often, unhealthy): (i64, i64, i64) = db
        .query(
            "SELECT (SELECT coalesce(MAX(term), 0) FROM leases),
                 (SELECT COUNT(*) FROM publish_logs WHERE retry_count > max_retries),
                 (SELECT COUNT(*) FROM cycles WHERE id > (SELECT coalesce(MAX(id), 0) - 3 FROM cycles)
                      AND (health_score < 0 OR health_score > 100))",
        )
        .one()
        .await
        .map_err(|cause| cause.to_string())?;
    if term < memory.term {
        return Err(format!("the term went back from {} to {term}", memory.term));
    }
    memory.term = term;
    if too_often > 0 {
        return Err(format!("{too_often} publications are past their retries"));
    }
    if unhealthy > 0 {
        return Err("health is below 0 or above 100".to_owned());
    }
    Ok(())
}

/// The chain is whole; actions and entries, publications and entries stand for each other; what has ended stays so.
pub async fn deep(db: &Db, memory: &mut Memory) -> Held {
    let verification = ledger::verify(db, |_| {}).await.map_err(|cause| cause.to_string())?;
    if let Some((id, why)) = verification.first_bad {
        return Err(format!("the ledger's entry {id} {why}"));
    }
    actions_and_entries(db).await?;
    publications_and_entries(db).await?;
    switch_and_entries(db).await?;
    money(db).await?;
    endings(db, memory).await
}

/// Every action has its entry, every entry its action, every executed one its effect.
async fn actions_and_entries(db: &Db) -> Held {
    let mut acted: Vec<(i64, String, String, String)> = all(
        db,
        "SELECT cycle_id, action, target, CASE outcome WHEN 'executed' THEN outcome ELSE 'failed' END FROM actions",
    )
    .await;
    let entries: Vec<(i64, i64, String, String)> = all(
        db,
        "SELECT id, coalesce(cycle_id, 0), event_type, CAST(payload AS TEXT) FROM ledger_entries
         WHERE event_type IN ('orchestrator.action_executed', 'orchestrator.action_failed') ORDER BY id",
    )
    .await;
    let mut entered = Vec::new();
    let mut planned = BTreeSet::new();
    for (id, cycle_id, event, payload) in entries {
        let payload: Value = serde_json::from_str(&payload).map_err(|cause| cause.to_string())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let outcome = event.trim_start_matches("orchestrator.action_").to_owned();
        let detail = &payload["detail"];
        if outcome == "executed" {
            let (log_id, job_id) = (detail["log_id"].as_i64(), detail["job_id"].as_i64());
            planned.extend(log_id);
            let effects = [("publish_logs", log_id), ("jobs", job_id)];
            for (table, id_of) in effects.into_iter().filter_map(|(table, id)| Some((table, id?))) {
                let there = match table {
                    "jobs" => db.query("SELECT COUNT(*) FROM jobs WHERE id = $1"),
                    _ => db.query("SELECT COUNT(*) FROM publish_logs WHERE id = $1"),
                };
                let (there,): (i64,) = there.bind(id_of).one().await.map_err(|cause| cause.to_string())?;
                if there == 0 {
                    return Err(format!("entry {id} tells of row {id_of} of {table}, which is not there"));
                }
            }
        }
        entered.push((cycle_id, text(&payload["action"]["action"]), text(&payload["target"]), outcome));
    }
    acted.sort();
    entered.sort();
    if let Some((one, _)) = acted.iter().zip(&entered).find(|(one, other)| one != other) {
        return Err(format!("action {one:?} and the ledger do not agree"));
    }
    if acted.len() != entered.len() {
        return Err(format!("{} actions were begun and {} are in the ledger", acted.len(), entered.len()));
    }
    let ours: Vec<(i64,)> = all(db, "SELECT id FROM publish_logs WHERE idempotency_key NOT LIKE 'sql-%'").await;
    match ours.iter().find(|(id,)| !planned.contains(id)) {
        Some((id,)) => Err(format!("publication {id} was planned, and no entry tells of it")),
        None => Ok(()),
    }
}

/// What is out has one entry that says so, and no more.
async fn publications_and_entries(db: &Db) -> Held {
    let entries: Vec<(String, String, String)> = all(
        db,
        "SELECT coalesce(subject, ''), event_type, CAST(payload AS TEXT) FROM ledger_entries
         WHERE event_type IN ('publishing.published', 'publishing.reconciled')",
    )
    .await;
    let mut told: BTreeMap<String, u32> = BTreeMap::new();
    for (subject, event, payload) in entries {
        let payload: Value = serde_json::from_str(&payload).map_err(|cause| cause.to_string())?;
        if event == "publishing.published" || payload["outcome"] == "published" {
            *told.entry(subject).or_default() += 1;
        }
    }
    if let Some((subject, times)) = told.iter().find(|(_, times)| **times > 1) {
        return Err(format!("{subject} was published {times} times, says the ledger"));
    }
    let out: Vec<(i64,)> = all(db, "SELECT id FROM publish_logs WHERE status = 'published'").await;
    let out: BTreeSet<String> = out.into_iter().map(|(id,)| format!("publish_log:{id}")).collect();
    match out.iter().find(|subject| !told.contains_key(*subject)) {
        Some(subject) => return Err(format!("{subject} is published, and no entry tells of it")),
        None if told.len() != out.len() => {}
        None => return Ok(()),
    }
    Err(format!("{} publications are out, and {} by the ledger", out.len(), told.len()))
}

/// The loop's switch is what the last entry says, and each entry changed it.
async fn switch_and_entries(db: &Db) -> Held {
    let events: Vec<(String,)> = all(
        db,
        "SELECT event_type FROM ledger_entries
         WHERE event_type IN ('orchestrator.enabled', 'orchestrator.disabled') ORDER BY id",
    )
    .await;
    if events.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("the loop was switched the same way twice in a row".to_owned());
    }
    let on = count(db, "SELECT COUNT(*) FROM loop_switch WHERE enabled").await > 0;
    match events.last().is_some_and(|(event,)| event == "orchestrator.enabled") == on {
        true => Ok(()),
        false => Err(format!("the loop's switch is {on}, and the ledger says otherwise")),
    }
}

/// What campaigns have spent is what is out, and never more than they have.
async fn money(db: &Db) -> Held {
    let wrong: Vec<(i64, i64, i64, i64)> = all(
        db,
        "SELECT id, budget_cents, spent_cents, cost FROM (
             SELECT id, budget_cents, spent_cents,
                 (SELECT CAST(coalesce(SUM(cost_cents), 0) AS BIGINT) FROM publish_logs
                  WHERE campaign_id = campaigns.id AND publish_logs.status = 'published') AS cost
             FROM campaigns) AS accounts
         WHERE spent_cents <> cost OR (budget_cents > 0 AND spent_cents > budget_cents)",
    )
    .await;
    match wrong.first() {
        Some((id, budget, spent, cost)) => {
            Err(format!("campaign {id} has spent {spent} of {budget} cents, and what is out cost {cost}"))
        }
        None => Ok(()),
    }
}

/// Every job ends once, and what is out stays out.
async fn endings(db: &Db, memory: &mut Memory) -> Held {
    let ended: Vec<(i64, String, i64, Option<Timestamp>)> = all(
        db,
        "SELECT id, status, lease, finished_at FROM jobs
         WHERE kind <> 'render' AND status IN ('completed', 'failed', 'cancelled')",
    )
    .await;
    let ended: BTreeMap<_, _> = ended.into_iter().map(|(id, status, lease, at)| (id, (status, lease, at))).collect();
    for (id, before) in &memory.ended {
        if ended.get(id) != Some(before) {
            return Err(format!("job {id} ended as {before:?}, and then as {:?}", ended.get(id)));
        }
    }
    memory.ended = ended;
    let published: Vec<(String,)> =
        all(db, "SELECT idempotency_key FROM publish_logs WHERE status = 'published'").await;
    let published: BTreeSet<String> = published.into_iter().map(|(key,)| key).collect();
    if let Some(key) = memory.published.difference(&published).next() {
        return Err(format!("publication {key} was out, and is so no longer"));
    }
    memory.published = published;
    Ok(())
}

/// After a new leader's entry, nothing of an older term's cycles is written by the loop.
pub async fn terms(db: &Db) -> Held {
    let rows: Vec<(i64, String, i64)> = all(
        db,
        "SELECT ledger_entries.id, event_type, coalesce(cycles.term, 0)
         FROM ledger_entries LEFT JOIN cycles ON cycles.id = ledger_entries.cycle_id
         WHERE event_type = 'orchestrator.leader_acquired' OR (actor = 'loop' AND cycle_id IS NOT NULL)
         ORDER BY ledger_entries.id",
    )
    .await;
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

/// No action kind goes past its budget in any hour, and no rule acts on a target within its cooldown: by the database's
/// clock, anew from each entry after which it was set back.
pub async fn governors(db: &Db, config: &Config, set_back_after: &[i64]) -> Held {
    let cooldowns: BTreeMap<String, u64> = RuleSet::built_in()
        .rules()
        .iter()
        .filter_map(|rule| Some((rule.name.clone(), rule.cooldown_seconds?)))
        .collect();
    let entries: Vec<(i64, String, Timestamp)> = all(
        db,
        "SELECT id, CAST(payload AS TEXT), created_at FROM ledger_entries
         WHERE event_type IN ('orchestrator.action_executed', 'orchestrator.action_failed') ORDER BY id",
    )
    .await;
    let mut recent: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    let mut acted: BTreeMap<(String, String), Timestamp> = BTreeMap::new();
    let mut set_back_after = set_back_after.iter().peekable();
    for (id, payload, at) in entries {
        while set_back_after.next_if(|before| **before < id).is_some() {
            recent.clear();
            acted.clear();
        }
        let payload: Value = serde_json::from_str(&payload).map_err(|cause| cause.to_string())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, target) = (text(&payload["action"]["action"]), text(&payload["target"]));
        let window = recent.entry(kind.clone()).or_default();
        window.retain(|earlier| at.since(*earlier).as_secs() < 3_600);
        window.push(at);
        let budget = config.governors.budgets.get(&kind).copied().unwrap_or(config.governors.budget_per_hour);
        if window.len() > budget as usize {
            return Err(format!("{} times {kind} within an hour of {at}", window.len()));
        }
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

/// After the faults: nothing is forgotten, nothing is out that we do not know of, every job ended, health is back. With
/// no `platform`, what is out is not compared.
pub async fn settled(db: &Db, platform: Option<&SimPlatform>, now: Timestamp) -> Held {
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
    if let Some(platform) = platform {
        let known: Vec<(String,)> =
            all(db, "SELECT idempotency_key FROM publish_logs WHERE status = 'published'").await;
        let known: BTreeSet<String> = known.into_iter().map(|(key,)| key).collect();
        let posted: BTreeSet<String> = platform.posted().into_iter().collect();
        if let Some(key) = posted.symmetric_difference(&known).next() {
            let how = if posted.contains(key) { "out, and we do not know" } else { "not out" };
            return Err(format!("publication {key} is {how}"));
        }
    }
    for (what, query) in [
        (
            "jobs never ended",
            "SELECT COUNT(*) FROM jobs WHERE kind <> 'render' AND status NOT IN ('completed', 'failed', 'cancelled')",
        ),
        ("cycles never ended", "SELECT COUNT(*) FROM cycles WHERE status = 'running'"),
        (
            "requests for a cycle were never answered",
            "SELECT COUNT(*) FROM cycle_requests WHERE cycle_id IS NULL AND error IS NULL",
        ),
    ] {
        let open = count(db, query).await;
        if open > 0 {
            return Err(format!("{open} {what}"));
        }
    }
    let health = health(db).await;
    if health < 80 { Err(format!("health is {health}")) } else { Ok(()) }
}

/// The health of the last cycle.
pub async fn health(db: &Db) -> i64 {
    count(db, "SELECT health_score FROM cycles WHERE status <> 'error' ORDER BY id DESC LIMIT 1").await
}

pub async fn count(db: &Db, query: &'static str) -> i64 {
    db.query(query).one::<(i64,)>().await.expect(query).0
}

pub async fn all<T: showrunner::db::Row>(db: &Db, query: &'static str) -> Vec<T> {
    db.query(query).all().await.expect(query)
}
