//! What may be taken where a queue, a task or a key has a limit.
//!
//! Claims that meet a limit go one after the other, under one lock, and count what runs; all others never come here.
//! A rate is counted in periods that begin with the first start after the last period's end.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::BATCH;
use super::claim::{Claim, QueueLimits, TaskLimits, millis};
use crate::db::{Dialect, Json, Result, Timestamp, Tx};
use crate::sql;

/// Candidates that one claim looks at: those of keys that are at their limit are not among them.
const LOOKED_AT: i64 = 1_000;

/// The limits that touch a claim.
pub(super) struct Limits<'a> {
    queue: Option<&'a QueueLimits>,
    tasks: HashMap<&'a str, &'a TaskLimits>,
}

impl<'a> Limits<'a> {
    pub(super) fn of(queue: Option<&'a QueueLimits>, tasks: &'a [TaskLimits]) -> Self {
        Self { queue, tasks: tasks.iter().map(|task| (task.id.as_str(), task)).collect() }
    }

    /// The kinds of which any number may be taken.
    pub(super) fn unlimited<'k>(&self, kinds: &[&'k str]) -> Vec<&'k str> {
        if self.queue.is_some() {
            return Vec::new();
        }
        let limited = |kind: &str| {
            self.tasks.get(kind).is_some_and(|task| task.concurrency_limit.is_some() || task.rate_limit.is_some())
        };
        kinds.iter().copied().filter(|kind| !limited(kind)).collect()
    }
}

/// How many of something may still be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left(i64);

impl Left {
    const ANY: Self = Self(i64::MAX);
    fn of(limit: Option<i64>, used: i64) -> Self {
        limit.map_or(Self::ANY, |limit| Self((limit - used).max(0)))
    }
    fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
    fn take(&mut self) -> bool {
        if self.0 == 0 {
            return false;
        }
        if *self != Self::ANY {
            self.0 -= 1;
        }
        true
    }
}

/// A job that could be taken.
#[derive(sqlx::FromRow)]
struct Candidate {
    id: i64,
    kind: String,
    concurrency_key: Option<String>,
    priority: i64,
}

/// Chooses up to `room` jobs that no limit forbids, the most urgent first, and counts their starts. `free` are the kinds
/// whose jobs without a key have been taken already.
pub(super) async fn choose(
    tx: &mut Tx,
    claim: &Claim<'_>,
    limits: &Limits<'_>,
    free: &[&str],
    room: usize,
) -> Result<Vec<i64>> {
    if tx.dialect() == Dialect::Postgres {
        // Counting and taking must not interleave with another instance's; the lock goes with the transaction.
        tx.query("SELECT CAST(pg_advisory_xact_lock(7386491001) AS TEXT)").one::<(Option<String>,)>().await?;
        tx.later().await?; // what others began meanwhile lies before it, and counts
    }
    let running = running(tx, claim).await?;
    let mut rates = Rates::read(tx, limits, claim.queue).await?;
    let mut queue_left = match limits.queue {
        Some(queue) => {
            let used = running.iter().filter(|row| row.0 == claim.queue).map(|row| row.3).sum();
            Left::of(queue.concurrency_limit, used).min(rates.left("queue", claim.queue, "", queue.rate_limit))
        }
        None => Left::ANY,
    };
    let mut task_left: BTreeMap<&str, Left> = BTreeMap::new();
    for kind in claim.kinds {
        let left = limits.tasks.get(kind).map_or(Left::ANY, |task| {
            let used = running.iter().filter(|row| row.1 == *kind).map(|row| row.3).sum();
            Left::of(task.concurrency_limit, used).min(rates.left("task", kind, "", task.rate_limit))
        });
        task_left.insert(kind, left);
    }
    let key_limit = |kind: &str| limits.tasks.get(kind).and_then(|task| task.key_concurrency_limit).unwrap_or(1);
    let mut key_left: HashMap<(String, String), Left> = HashMap::new();
    for (_, kind, key, used) in &running {
        if let Some(key) = key {
            let left = key_left.entry((kind.clone(), key.clone())).or_insert(Left(key_limit(kind)));
            left.0 = (left.0 - used).max(0);
        }
    }
    for (kind, key) in rates.keys() {
        let limit = limits.tasks.get(kind.as_str()).and_then(|task| task.key_rate_limit);
        let rate = rates.left("key", &kind, &key, limit);
        let left = key_left.entry((kind.clone(), key)).or_insert(Left(key_limit(&kind)));
        *left = left.min(rate);
    }
    let open: Vec<&str> = task_left.iter().filter(|(_, left)| left.0 > 0).map(|(kind, _)| *kind).collect();
    if queue_left.0 == 0 || open.is_empty() {
        return Ok(Vec::new());
    }
    let busy: Vec<(&str, &str)> =
        key_left.iter().filter(|(_, left)| left.0 == 0).map(|((kind, key), _)| (kind.as_str(), key.as_str())).collect();
    let plain: Vec<&str> = open.iter().copied().filter(|kind| !free.contains(kind)).collect();
    let mut candidates = candidates(tx, claim, &plain, &open, &busy).await?;
    candidates.sort_by_key(|job| (-job.priority, job.id));
    let mut chosen = Vec::new();
    for job in candidates {
        if chosen.len() == room || queue_left.0 == 0 {
            break;
        }
        let Some(task) = task_left.get_mut(job.kind.as_str()) else { continue };
        if task.0 == 0 {
            continue;
        }
        if let Some(key) = &job.concurrency_key {
            let place = (job.kind.clone(), key.clone());
            let rate = limits.tasks.get(job.kind.as_str()).and_then(|task| task.key_rate_limit);
            let fresh = Left(key_limit(&job.kind)).min(Left::of(rate, 0));
            if !key_left.entry(place).or_insert(fresh).take() {
                continue;
            }
            if rate.is_some() {
                rates.count("key", &job.kind, key);
            }
        }
        task.take();
        queue_left.take();
        if limits.tasks.get(job.kind.as_str()).is_some_and(|task| task.rate_limit.is_some()) {
            rates.count("task", &job.kind, "");
        }
        if limits.queue.is_some_and(|queue| queue.rate_limit.is_some()) {
            rates.count("queue", claim.queue, "");
        }
        chosen.push(job.id);
    }
    rates.write(tx).await?;
    Ok(chosen)
}

/// What runs of the queue, or of the kinds in any queue: queue, kind, key, how many.
async fn running(tx: &mut Tx, claim: &Claim<'_>) -> Result<Vec<(String, String, Option<String>, i64)>> {
    tx.query(sql!(
        "SELECT queue, kind, concurrency_key, COUNT(*) FROM jobs
         WHERE status = 'processing' AND (queue = $1 OR kind IN ("
        { sqlite: "SELECT value FROM json_each($2)", postgres: "SELECT jsonb_array_elements_text($2)" }
        ")) GROUP BY queue, kind, concurrency_key"
    ))
    .bind(claim.queue.to_owned())
    .bind(Json(claim.kinds))
    .all()
    .await
}

/// Pending jobs of `plain` kinds without a key, and of `keyed` kinds with a key that is not `busy`.
async fn candidates(
    tx: &mut Tx,
    claim: &Claim<'_>,
    plain: &[&str],
    keyed: &[&str],
    busy: &[(&str, &str)],
) -> Result<Vec<Candidate>> {
    let now = tx.now().await?;
    let mut found = Vec::new();
    for kind in plain {
        let some: Vec<Candidate> = tx
            .query(
                "SELECT id, kind, concurrency_key, priority FROM jobs
                 WHERE status = 'pending' AND concurrency_key IS NULL AND queue = $1 AND kind = $2
                   AND (run_at IS NULL OR run_at <= $3) ORDER BY priority DESC, id LIMIT $4",
            )
            .bind(claim.queue.to_owned())
            .bind((*kind).to_owned())
            .bind(now)
            .bind(LOOKED_AT)
            .all()
            .await?;
        found.extend(some);
    }
    for kind in keyed {
        let busy: Vec<&str> = busy.iter().filter(|(busy, _)| busy == kind).map(|(_, key)| *key).collect();
        let some: Vec<Candidate> = tx
            .query(sql!(
                "SELECT id, kind, concurrency_key, priority FROM jobs
                 WHERE status = 'pending' AND concurrency_key IS NOT NULL AND queue = $1 AND kind = $2
                   AND (run_at IS NULL OR run_at <= $3) AND concurrency_key NOT IN ("
                { sqlite: "SELECT value FROM json_each($5)", postgres: "SELECT jsonb_array_elements_text($5)" }
                ") ORDER BY priority DESC, id LIMIT $4"
            ))
            .bind(claim.queue.to_owned())
            .bind((*kind).to_owned())
            .bind(now)
            .bind(LOOKED_AT)
            .bind(Json(busy))
            .all()
            .await?;
        found.extend(some);
    }
    Ok(found)
}

/// Takes away periods that began before `before`, up to a batch; returns how many. None is longer than a day.
pub async fn forget_rate_windows(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    // Of a row that changed meanwhile PostgreSQL checks the outer conditions only: the period may have begun anew.
    tx.query(
        "DELETE FROM rate_windows WHERE began_at < $1 AND (scope, name, key) IN (
             SELECT scope, name, key FROM rate_windows WHERE began_at < $1 ORDER BY began_at LIMIT $2)",
    )
    .bind(before)
    .bind(BATCH)
    .execute()
    .await
}

/// Starts of what has a rate limit, in its running period.
struct Rates {
    now: Timestamp,
    /// scope, name, key → when the period began, starts in it, and whether that is new.
    windows: BTreeMap<(String, String, String), (Timestamp, i64, bool)>,
}

impl Rates {
    /// Reads the periods of everything that touches the claim; those that are over count nothing.
    async fn read(tx: &mut Tx, limits: &Limits<'_>, queue: &str) -> Result<Self> {
        let now = tx.now().await?;
        let task_names: Vec<&str> = limits
            .tasks
            .values()
            .filter(|task| task.rate_limit.is_some() || task.key_rate_limit.is_some())
            .map(|task| task.id.as_str())
            .collect();
        let queue_period = limits.queue.filter(|queue| queue.rate_limit.is_some()).map(|queue| queue.rate_period_ms);
        let mut windows = BTreeMap::new();
        let task_periods = task_names.iter().filter_map(|name| limits.tasks.get(name)).map(|task| task.rate_period_ms);
        let Some(longest) = task_periods.chain(queue_period).max() else { return Ok(Self { now, windows }) };
        let rows: Vec<(String, String, String, Timestamp, i64)> = tx
            .query(sql!(
                "SELECT scope, name, key, began_at, used FROM rate_windows "
                // SQLite would read every period of a task, for want of knowing how few of them are recent.
                { sqlite: "INDEXED BY rate_windows_by_time", postgres: "" }
                " WHERE began_at > $3 AND ((scope = 'queue' AND name = $1) OR (scope IN ('task', 'key') AND name IN ("
                { sqlite: "SELECT value FROM json_each($2)", postgres: "SELECT jsonb_array_elements_text($2)" } ")))"
            ))
            .bind(queue.to_owned())
            .bind(Json(&task_names))
            .bind(now.before(millis(longest)))
            .all()
            .await?;
        for (scope, name, key, began_at, used) in rows {
            let period = match scope.as_str() {
                "queue" => queue_period,
                _ => limits.tasks.get(name.as_str()).map(|task| task.rate_period_ms),
            };
            let period = period.map_or(Duration::ZERO, millis);
            if began_at.after(period) > now && began_at <= now {
                windows.insert((scope, name, key), (began_at, used, false));
            }
        }
        Ok(Self { now, windows })
    }

    fn left(&self, scope: &str, name: &str, key: &str, limit: Option<i64>) -> Left {
        let place = (scope.to_owned(), name.to_owned(), key.to_owned());
        Left::of(limit, self.windows.get(&place).map_or(0, |window| window.1))
    }

    fn keys(&self) -> Vec<(String, String)> {
        self.windows
            .keys()
            .filter(|(scope, ..)| scope == "key")
            .map(|(_, name, key)| (name.clone(), key.clone()))
            .collect()
    }

    fn count(&mut self, scope: &str, name: &str, key: &str) {
        let place = (scope.to_owned(), name.to_owned(), key.to_owned());
        let window = self.windows.entry(place).or_insert((self.now, 0, true));
        window.1 += 1;
        window.2 = true;
    }

    async fn write(&self, tx: &mut Tx) -> Result<()> {
        for ((scope, name, key), (began_at, used, changed)) in &self.windows {
            if !changed {
                continue;
            }
            tx.query(
                "INSERT INTO rate_windows (scope, name, key, began_at, used) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (scope, name, key) DO UPDATE SET began_at = excluded.began_at, used = excluded.used",
            )
            .bind(scope.clone())
            .bind(name.clone())
            .bind(key.clone())
            .bind(*began_at)
            .bind(*used)
            .execute()
            .await?;
        }
        Ok(())
    }
}
