//! Jobs, tries and counts as people and programs ask for them.

use serde::Serialize;
use utoipa::ToSchema;

use super::claim::millis;
use super::registry;
use crate::db::{Db, Json, Result, Timestamp};
use crate::planes::queue::job::{Attempt, JobRecord};
use crate::planes::queue::model::Status;
use crate::sql;

/// Which jobs.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    pub status: Option<Status>,
    pub kind: Option<String>,
    pub queue: Option<String>,
    /// Only those with a smaller id: the last one seen.
    pub after: Option<i64>,
}

/// How many jobs are where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct QueueCounts {
    pub pending: i64,
    pub processing: i64,
    pub waiting: i64,
    pub retry: i64,
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
    /// Dead letters that nobody has retried.
    pub dead_letters: i64,
    pub oldest_pending: Option<Timestamp>,
}

/// One job.
pub async fn get(db: &Db, id: i64) -> Result<Option<JobRecord>> {
    db.query("SELECT * FROM jobs WHERE id = $1").bind(id).optional().await
}

/// Jobs, newest first.
pub async fn list(db: &Db, filter: &JobFilter, limit: i64) -> Result<Vec<JobRecord>> {
    db.query(
        "SELECT * FROM jobs WHERE id < $1 AND ($2 IS NULL OR status = $2) AND ($3 IS NULL OR kind = $3)
             AND ($4 IS NULL OR queue = $4) ORDER BY id DESC LIMIT $5",
    )
    .bind(filter.after.unwrap_or(i64::MAX))
    .bind(filter.status.map(Status::as_str))
    .bind(filter.kind.clone())
    .bind(filter.queue.clone())
    .bind(limit)
    .all()
    .await
}

/// Those of `ids` that have ended.
pub async fn ended(db: &Db, ids: &[i64]) -> Result<Vec<JobRecord>> {
    db.query(sql!(
        "SELECT * FROM jobs WHERE status IN ('completed', 'failed', 'cancelled') AND id IN ("
        { sqlite: "SELECT value FROM json_each($1)", postgres: "SELECT CAST(jsonb_array_elements_text($1) AS BIGINT)" }
        ") ORDER BY id"
    ))
    .bind(Json(ids))
    .all()
    .await
}

/// A job's tries, oldest first.
pub async fn attempts(db: &Db, job_id: i64) -> Result<Vec<Attempt>> {
    db.query("SELECT * FROM job_attempts WHERE job_id = $1 ORDER BY attempt, lease LIMIT 1000").bind(job_id).all().await
}

/// How many jobs are where; the cost does not grow with history.
pub async fn counts(db: &Db) -> Result<QueueCounts> {
    let rows: Vec<(String, String, i64)> = db
        .query("SELECT name, key, CAST(SUM(n) AS BIGINT) FROM tallies WHERE name IN ('jobs', 'dlq') GROUP BY name, key")
        .all()
        .await?;
    let of = |name: &str, key: &str| rows.iter().find(|row| row.0 == name && row.1 == key).map_or(0, |row| row.2);
    let oldest: (Option<Timestamp>,) =
        db.query("SELECT MIN(coalesce(run_at, created_at)) FROM jobs WHERE status = 'pending'").one().await?;
    Ok(QueueCounts {
        pending: of("jobs", "pending"),
        processing: of("jobs", "processing"),
        waiting: of("jobs", "waiting"),
        retry: of("jobs", "retry"),
        completed: of("jobs", "completed"),
        failed: of("jobs", "failed"),
        cancelled: of("jobs", "cancelled"),
        dead_letters: of("dlq", "open"),
        oldest_pending: oldest.0,
    })
}

/// Why a job does not run yet, in a sentence; none when it runs, has ended, or may begin at any moment.
pub async fn why_waiting(db: &Db, job: &JobRecord) -> Result<Option<String>> {
    let now = db.now().await?;
    if !matches!(job.status, Status::Waiting | Status::Pending | Status::Retry) {
        return Ok(None);
    }
    if let Some(run_at) = job.run_at.filter(|run_at| *run_at > now) {
        let again = if job.status == Status::Retry { "another try" } else { "its time" };
        return Ok(Some(format!("waits for {again} at {run_at}")));
    }
    let queue: Option<(bool, Option<i64>)> = db
        .query("SELECT paused, concurrency_limit FROM queues WHERE name = $1")
        .bind(job.queue.clone())
        .optional()
        .await?;
    if queue.is_some_and(|(paused, _)| paused) {
        return Ok(Some(format!("the queue `{}` is paused", job.queue)));
    }
    if let Some(reason) = no_worker(db, job, now).await? {
        return Ok(Some(reason));
    }
    if let Some((_, Some(limit))) = queue
        && running(db, "queue", &job.queue, None).await? >= limit
    {
        return Ok(Some(format!("the queue `{}` runs {limit} jobs, as many as it may", job.queue)));
    }
    let task = registry::task(db, &job.kind).await?;
    if let Some(limit) = task.as_ref().and_then(|task| task.concurrency_limit)
        && running(db, "kind", &job.kind, None).await? >= limit
    {
        return Ok(Some(format!("{limit} jobs of `{}` run, as many as may", job.kind)));
    }
    if let Some(key) = &job.concurrency_key {
        let limit = task.as_ref().and_then(|task| task.key_concurrency_limit).unwrap_or(1);
        if running(db, "kind", &job.kind, Some(key)).await? >= limit {
            return Ok(Some(format!("{limit} jobs of `{}` with the key `{key}` run, as many as may", job.kind)));
        }
    }
    let full: Vec<(String, Timestamp, i64)> = db
        .query(
            "SELECT 'the queue', began_at, rate_period_ms
                 FROM rate_windows JOIN queues ON queues.name = rate_windows.name
                 WHERE scope = 'queue' AND rate_windows.name = $1 AND used >= rate_limit
             UNION ALL SELECT 'the task', began_at, rate_period_ms
                 FROM rate_windows JOIN tasks ON tasks.id = rate_windows.name
                 WHERE scope = 'task' AND rate_windows.name = $2 AND used >= tasks.rate_limit
             UNION ALL SELECT 'its key', began_at, rate_period_ms
                 FROM rate_windows JOIN tasks ON tasks.id = rate_windows.name
                 WHERE scope = 'key' AND rate_windows.name = $2 AND key = $3 AND used >= key_rate_limit",
        )
        .bind(job.queue.clone())
        .bind(job.kind.clone())
        .bind(job.concurrency_key.clone())
        .all()
        .await?;
    let runs = |began_at: Timestamp, period: i64| began_at <= now && began_at.after(millis(period)) > now;
    let spent = full.into_iter().find(|(_, began_at, period)| runs(*began_at, *period));
    Ok(spent.map(|(what, ..)| format!("the rate limit of {what} is used up for now")))
}

/// Why no worker would take the job.
async fn no_worker(db: &Db, job: &JobRecord, now: Timestamp) -> Result<Option<String>> {
    let (able, alive, free): (i64, i64, i64) = db
        .query(sql!(
            "SELECT COUNT(*), CAST(coalesce(SUM(CASE WHEN last_seen_at >= $3 THEN 1 ELSE 0 END), 0) AS BIGINT),
                 CAST(coalesce(SUM(CASE WHEN last_seen_at >= $3 AND (quarantined_until IS NULL OR quarantined_until <= $4)
                                   THEN 1 ELSE 0 END), 0) AS BIGINT)
             FROM workers WHERE (queue = $1 OR service_id IS NOT NULL) AND "
            { sqlite: "EXISTS (SELECT 1 FROM json_each(kinds) WHERE value = $2)", postgres: "kinds @> to_jsonb(CAST($2 AS TEXT))" }
        ))
        .bind(job.queue.clone())
        .bind(job.kind.clone())
        .bind(now.before(registry::GONE_AFTER))
        .bind(now)
        .one()
        .await?;
    Ok(if able == 0 {
        Some(match registry::task(db, &job.kind).await? {
            None => format!("no worker has registered the task `{}`", job.kind),
            Some(_) => format!("no worker of the task `{}` works the queue `{}`", job.kind, job.queue),
        })
    } else if alive == 0 {
        Some(format!("no worker of the task `{}` has been heard of lately", job.kind))
    } else if free == 0 {
        Some(format!("every worker of the task `{}` is in quarantine", job.kind))
    } else {
        None
    })
}

async fn running(db: &Db, scope: &str, name: &str, key: Option<&str>) -> Result<i64> {
    let (running,): (i64,) = db
        .query(
            "SELECT COUNT(*) FROM jobs WHERE status = 'processing'
                 AND CASE WHEN $1 = 'queue' THEN queue ELSE kind END = $2 AND ($3 IS NULL OR concurrency_key = $3)",
        )
        .bind(scope.to_owned())
        .bind(name.to_owned())
        .bind(key.map(str::to_owned))
        .one()
        .await?;
    Ok(running)
}
