//! The record of cycles: what was seen, under which rules, what was decided and what came of it.
//!
//! A snapshot is stored whole now and then, and between as the fields that differ from the last whole one, so that a
//! day of idle cycles stays small and every cycle can still be replayed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::sql;

/// Cycles between two whole snapshots: a reader needs two rows at most, and a whole one costs a few kilobytes.
const WHOLE_EVERY: u32 = 100;

/// Cycles that one statement of retention takes away at most.
const BATCH: i64 = 1_000;

/// What began a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The interval.
    Loop,
    /// Somebody asked for it.
    Manual,
}

impl Trigger {
    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Manual => "manual",
        }
    }
}

/// A row of `cycles`, with the snapshot as stored.
#[derive(Debug, Clone, Serialize, ToSchema, sqlx::FromRow)]
pub struct CycleRow {
    pub id: i64,
    /// `loop` or `manual`.
    pub trigger: String,
    /// `running`, `completed`, `idle` or `error`.
    pub status: String,
    pub term: i64,
    pub instance: String,
    pub rules_hash: String,
    pub engine_version: String,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub observe_us: i64,
    pub decide_us: i64,
    pub execute_us: i64,
    pub skipped_ticks: i64,
    pub health_score: Option<i64>,
    pub health_status: String,
    pub actions: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub error: Option<String>,
    #[serde(skip)]
    pub base_id: Option<i64>,
    #[serde(skip)]
    pub snapshot: Option<String>,
    #[serde(skip)]
    pub decision: Option<String>,
    #[serde(skip)]
    pub result: Option<String>,
}

/// The columns of a [`CycleRow`], for a SELECT.
macro_rules! columns {
    () => {
        "id, trigger, status, term, instance, rules_hash, engine_version, started_at, finished_at, observe_us,
         decide_us, execute_us, skipped_ticks, health_score, health_status, actions, succeeded, failed, error, base_id,
         CAST(snapshot AS TEXT) AS snapshot, CAST(decision AS TEXT) AS decision, CAST(result AS TEXT) AS result"
    };
}

/// One cycle, whole again.
#[derive(Debug, Clone)]
pub struct Cycle {
    pub row: CycleRow,
    /// What was seen; null for a cycle that failed before it saw anything.
    pub snapshot: Value,
    /// What was decided; an empty object when nothing was proposed.
    pub decision: Value,
    /// What was done; an empty object when nothing was.
    pub result: Value,
}

/// What is written when a cycle has decided.
pub struct NewCycle<'a> {
    pub trigger: Trigger,
    pub status: &'a str,
    pub term: i64,
    pub instance: &'a str,
    pub rules_hash: &'a str,
    pub engine_version: &'a str,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub observe_us: i64,
    pub decide_us: i64,
    pub skipped_ticks: i64,
    pub health_score: Option<i64>,
    pub health_status: &'a str,
    pub actions: i64,
    pub snapshot: StoredSnapshot,
    pub decision: Option<String>,
    pub error: Option<String>,
}

/// A snapshot in the form in which it is stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredSnapshot {
    /// The cycle whose whole snapshot this one is relative to.
    pub base_id: Option<i64>,
    /// JSON text; none for a cycle that saw nothing.
    pub text: Option<String>,
}

/// No snapshot is relative to an older one: retention takes a whole one away after a day at the earliest, where no cycle
/// needs it while the loop is off.
const BASE_SERVES: Duration = Duration::from_secs(3_600);

/// Remembers the last whole snapshot that this leader wrote.
#[derive(Default)]
pub struct SnapshotWriter {
    base: Option<(i64, Timestamp, Value)>,
    since_whole: u32,
}

impl SnapshotWriter {
    /// The form in which to store a `snapshot` of this time; call [`SnapshotWriter::stored`] once its row is committed.
    pub fn encode(&self, snapshot: &Value, at: Timestamp) -> StoredSnapshot {
        if let Some((base_id, taken_at, base)) = &self.base
            && self.since_whole < WHOLE_EVERY
            && at.since(*taken_at) < BASE_SERVES
        {
            let mut changes = Map::new();
            difference(base, snapshot, &mut String::new(), &mut changes);
            let text = Value::Object(changes).to_string();
            let whole = snapshot.to_string();
            if text.len() * 2 < whole.len() {
                return StoredSnapshot { base_id: Some(*base_id), text: Some(text) };
            }
        }
        StoredSnapshot { base_id: None, text: Some(snapshot.to_string()) }
    }

    /// Says that a snapshot was committed as the row `id`.
    pub fn stored(&mut self, id: i64, stored: &StoredSnapshot, snapshot: Value, at: Timestamp) {
        if stored.base_id.is_none() {
            self.base = Some((id, at, snapshot));
            self.since_whole = 0;
        } else {
            self.since_whole += 1;
        }
    }
}

/// Collects what differs, by JSON pointer (RFC 6901). A change of shape is written whole at its place.
fn difference(base: &Value, now: &Value, at: &mut String, changes: &mut Map<String, Value>) {
    if base == now {
        return;
    }
    let length = at.len();
    match (base, now) {
        (Value::Object(old), Value::Object(new))
            if old.len() == new.len() && new.keys().all(|k| old.contains_key(k)) =>
        {
            for (key, value) in new {
                at.push('/');
                at.push_str(&key.replace('~', "~0").replace('/', "~1"));
                difference(&old[key], value, at, changes);
                at.truncate(length);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, value) in new.iter().enumerate() {
                at.push_str(&format!("/{index}"));
                difference(&old[index], value, at, changes);
                at.truncate(length);
            }
        }
        _ => {
            changes.insert(at.clone(), now.clone());
        }
    }
}

/// The whole snapshot again, from the base and what differs.
fn restore(mut base: Value, changes: &Value) -> Value {
    for (pointer, value) in changes.as_object().into_iter().flatten() {
        if let Some(place) = base.pointer_mut(pointer) {
            *place = value.clone();
        }
    }
    base
}

/// Inserts a cycle's row; returns its id.
pub async fn insert(tx: &mut Tx, cycle: &NewCycle<'_>) -> Result<i64> {
    let (id,): (i64,) = tx
        .query(sql!(
            "INSERT INTO cycles (trigger, status, term, instance, rules_hash, engine_version, started_at,
                 finished_at, observe_us, decide_us, skipped_ticks, health_score, health_status, actions, base_id,
                 snapshot, decision, error)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, "
            { sqlite: "$16, $17", postgres: "CAST($16 AS JSON), CAST($17 AS JSON)" } ", $18) RETURNING id"
        ))
        .bind(cycle.trigger.as_str())
        .bind(cycle.status.to_owned())
        .bind(cycle.term)
        .bind(cycle.instance.to_owned())
        .bind(cycle.rules_hash.to_owned())
        .bind(cycle.engine_version.to_owned())
        .bind(cycle.started_at)
        .bind(cycle.finished_at)
        .bind(cycle.observe_us)
        .bind(cycle.decide_us)
        .bind(cycle.skipped_ticks)
        .bind(cycle.health_score)
        .bind(cycle.health_status.to_owned())
        .bind(cycle.actions)
        .bind(cycle.snapshot.base_id)
        .bind(cycle.snapshot.text.clone())
        .bind(cycle.decision.clone())
        .bind(cycle.error.clone())
        .one()
        .await?;
    Ok(id)
}

/// How a cycle with actions ended.
pub struct Ending {
    pub execute_us: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub result: String,
}

/// Closes a cycle that was `running`: all of its plan was tried.
pub async fn finish(tx: &mut Tx, id: i64, ending: &Ending) -> Result<()> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE cycles SET status = 'completed', finished_at = $1, execute_us = $2, succeeded = $3, failed = $4, result = "
        { sqlite: "$5", postgres: "CAST($5 AS JSON)" } " WHERE id = $6 AND status = 'running'"
    ))
    .bind(now)
    .bind(ending.execute_us)
    .bind(ending.succeeded)
    .bind(ending.failed)
    .bind(ending.result.clone())
    .bind(id)
    .execute()
    .await?;
    Ok(())
}

/// Closes cycles that were left `running`, with the reason; returns their ids. Only the leader may call it: its own
/// cycle is then the only one that could be under way.
pub async fn close_broken(tx: &mut Tx, error: &str) -> Result<Vec<i64>> {
    let now = tx.now().await?;
    let mut closed: Vec<(i64,)> = tx
        .query("UPDATE cycles SET status = 'error', finished_at = $1, error = $2 WHERE status = 'running' RETURNING id")
        .bind(now)
        .bind(error.to_owned())
        .all()
        .await?;
    closed.sort_unstable();
    Ok(closed.into_iter().map(|(id,)| id).collect())
}

/// Which cycles to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// `running`, `completed`, `idle` or `error`.
    pub status: Option<String>,
    /// `loop` or `manual`.
    pub trigger: Option<String>,
    /// Leaves idle cycles out.
    pub eventful: bool,
    pub since: Option<Timestamp>,
    /// Only ids below this one.
    pub before_id: Option<i64>,
}

/// Reads up to `limit` cycles, newest first, without their snapshots.
pub async fn list(db: &Db, filter: &Filter, limit: i64) -> Result<Vec<CycleRow>> {
    db.query(sql!(
        "SELECT id, trigger, status, term, instance, rules_hash, engine_version, started_at, finished_at,
             observe_us, decide_us, execute_us, skipped_ticks, health_score, health_status, actions, succeeded, failed,
             error, base_id, CAST(NULL AS TEXT) AS snapshot, CAST(decision AS TEXT) AS decision,
             CAST(result AS TEXT) AS result
         FROM cycles
         WHERE id < $1 AND (CAST($2 AS TEXT) IS NULL OR status = $2) AND (CAST($3 AS TEXT) IS NULL OR trigger = $3)
           AND ($4 = 0 OR status <> 'idle')
           AND (" { sqlite: "$5 IS NULL", postgres: "CAST($5 AS TIMESTAMPTZ) IS NULL" } " OR started_at >= $5)
         ORDER BY id DESC LIMIT $6"
    ))
    .bind(filter.before_id.unwrap_or(i64::MAX))
    .bind(filter.status.clone())
    .bind(filter.trigger.clone())
    .bind(i64::from(filter.eventful))
    .bind(filter.since)
    .bind(limit)
    .all()
    .await
}

/// One cycle with everything that was recorded.
pub async fn load(db: &Db, id: i64) -> Result<Option<Cycle>> {
    const BY_ID: &str = concat!("SELECT ", columns!(), " FROM cycles WHERE id = $1");
    let row: Option<CycleRow> = db.query(BY_ID).bind(id).optional().await?;
    let Some(row) = row else { return Ok(None) };
    let parse = |text: &Option<String>, missing: Value| match text {
        Some(text) => serde_json::from_str(text).unwrap_or(missing),
        None => missing,
    };
    let mut snapshot = parse(&row.snapshot, Value::Null);
    if let Some(base_id) = row.base_id {
        let base: Option<CycleRow> = db.query(BY_ID).bind(base_id).optional().await?;
        snapshot = restore(parse(&base.and_then(|base| base.snapshot), Value::Null), &snapshot);
    }
    let empty = || Value::Object(Map::new());
    let (decision, result) = (parse(&row.decision, empty()), parse(&row.result, empty()));
    Ok(Some(Cycle { row, snapshot, decision, result }))
}

/// The sources of a rule set that cycles ran under, by file name.
pub async fn rule_sources(db: &Db, hash: &str) -> Result<Option<BTreeMap<String, String>>> {
    let found: Option<(Json<BTreeMap<String, String>>,)> =
        db.query("SELECT sources FROM rule_sets WHERE hash = $1").bind(hash.to_owned()).optional().await?;
    Ok(found.map(|(sources,)| sources.0))
}

/// The files of the rules that the last cycle ran under.
pub async fn last_rule_sources(db: &Db) -> Result<Option<BTreeMap<String, String>>> {
    let last: Option<(String,)> = db.query("SELECT rules_hash FROM cycles ORDER BY id DESC LIMIT 1").optional().await?;
    match last {
        Some((hash,)) => rule_sources(db, &hash).await,
        None => Ok(None),
    }
}

/// Takes away idle cycles that began before `idle_before` and all that began before `all_before`, up to [`BATCH`] of
/// each; returns how many. A whole snapshot stays as long as a cycle that is kept needs it.
pub async fn forget(tx: &mut Tx, idle_before: Timestamp, all_before: Timestamp) -> Result<u64> {
    // Two statements, each along an index of its own: one for both would walk every eventful cycle that is kept.
    let idle = tx
        .query(
            "DELETE FROM cycles WHERE id IN (
                 SELECT id FROM cycles AS old WHERE status = 'idle' AND started_at < $1
                   AND NOT EXISTS (SELECT 1 FROM cycles AS user_of WHERE user_of.base_id = old.id)
                 ORDER BY started_at LIMIT $2)",
        )
        .bind(idle_before)
        .bind(BATCH)
        .execute()
        .await?;
    let others = tx
        .query(
            "DELETE FROM cycles WHERE id IN (
                 SELECT id FROM cycles AS old WHERE status <> 'running' AND started_at < $1
                   AND NOT EXISTS (SELECT 1 FROM cycles AS user_of WHERE user_of.base_id = old.id)
                 ORDER BY started_at LIMIT $2)",
        )
        .bind(all_before)
        .bind(BATCH)
        .execute()
        .await?;
    Ok(idle.max(others))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c/~]{0,3}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c/~]{1,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_snapshot_comes_back_from_its_base_and_what_differs(base in any_json(), now in any_json()) {
            let mut changes = Map::new();
            difference(&base, &now, &mut String::new(), &mut changes);
            prop_assert_eq!(restore(base, &Value::Object(changes)), now);
        }
    }

    #[test]
    fn a_small_change_is_stored_small_and_a_whole_snapshot_comes_back_now_and_then() {
        let mut writer = SnapshotWriter::default();
        let whole = |n: i64| serde_json::json!({ "at": n, "jobs": { "pending": 1, "text": "x".repeat(200) } });
        let at = Timestamp::new(chrono::DateTime::UNIX_EPOCH);
        let first = writer.encode(&whole(0), at);
        assert_eq!(first.base_id, None);
        writer.stored(7, &first, whole(0), at);
        let later = |minutes: u64| writer.encode(&whole(1), at.after(Duration::from_secs(minutes * 60))).base_id;
        assert_eq!((later(59), later(60)), (Some(7), None), "what it is relative to may be gone by then");
        for n in 1..=i64::from(WHOLE_EVERY) {
            let stored = writer.encode(&whole(n), at);
            assert_eq!((stored.base_id, stored.text.clone()), (Some(7), Some(format!("{{\"/at\":{n}}}"))));
            writer.stored(7 + n, &stored, whole(n), at);
        }
        assert_eq!(writer.encode(&whole(1000), at).base_id, None);
    }
}
