//! Enqueueing: one job or thousands by one statement.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use super::claim::Taken;
use crate::db::{Db, Error, Json, Query, Result, Sql, Timestamp, Tx};
use crate::planes::queue::job::{Enqueued, Job, NewJob};
use crate::planes::queue::seats::Seat;
use crate::sql;

/// Inserts jobs ($1) at a time ($2, or when the statement runs). `conflict` says what becomes of one whose key is taken;
/// `columns` are given `values`, and a status other than that of the job, by what `from` joins.
macro_rules! inserting {
    ($conflict:literal) => {
        inserting!("", "new.status", "", "", "", $conflict, "id, idempotency_key")
    };
    ($columns:literal, $status:literal, $sqlite_values:literal, $postgres_values:literal, $from:literal,
     $conflict:literal, $returning:literal) => {
        sql!(
            "INSERT INTO jobs (kind, queue, priority, status, input, input_ref, context, idempotency_key,
                 idempotency_until, concurrency_key, run_at, max_attempts, timeout_ms, dead_letter, awaited, created_at,
                 updated_at" $columns ")
             SELECT new.kind, coalesce(new.queue, tasks.queue, 'default'), coalesce(new.priority, tasks.priority, 0), "
            $status ", coalesce(new.input, 'null'), new.input_ref, new.context, new.idempotency_key,
                 new.idempotency_until, new.concurrency_key, new.run_at,
                 coalesce(new.max_attempts, tasks.max_attempts, 3), new.timeout_ms, new.dead_letter, new.awaited,
                 clock.now, clock.now"
            { sqlite: $sqlite_values, postgres: $postgres_values }
            " FROM "
            { sqlite: "(SELECT $2 AS now) AS clock CROSS JOIN (SELECT key AS place, value ->> 'kind' AS kind,
                 value ->> 'queue' AS queue, value ->> 'priority' AS priority, value ->> 'status' AS status,
                 value -> 'input' AS input, value ->> 'input_ref' AS input_ref, value -> 'context' AS context,
                 value ->> 'idempotency_key' AS idempotency_key, value ->> 'idempotency_until' AS idempotency_until,
                 value ->> 'concurrency_key' AS concurrency_key, value ->> 'run_at' AS run_at,
                 value ->> 'max_attempts' AS max_attempts, value ->> 'timeout_ms' AS timeout_ms,
                 value ->> 'dead_letter' AS dead_letter, value ->> 'awaited' AS awaited
                 FROM json_each($1)) AS new",
              postgres: "(SELECT coalesce($2, date_trunc('milliseconds', clock_timestamp())) AS now) AS clock CROSS JOIN
                 ROWS FROM (jsonb_to_recordset($1) AS (kind TEXT, queue TEXT, priority BIGINT, status TEXT,
                 input JSONB, input_ref TEXT, context JSONB, idempotency_key TEXT, idempotency_until TIMESTAMPTZ,
                 concurrency_key TEXT, run_at TIMESTAMPTZ, max_attempts BIGINT, timeout_ms BIGINT, dead_letter BOOLEAN,
                 awaited BOOLEAN)) WITH ORDINALITY AS new (kind, queue, priority, status, input, input_ref, context,
                 idempotency_key, idempotency_until, concurrency_key, run_at, max_attempts, timeout_ms, dead_letter,
                 awaited, place)" }
            " LEFT JOIN tasks ON tasks.id = new.kind " $from " WHERE true ORDER BY place " $conflict " RETURNING " $returning
        )
    };
}

const INSERT: Sql = inserting!("");

/// PostgreSQL looks into every unique index twice for this, so it is only asked where there is a key.
const INSERT_UNLESS_THERE: Sql = inserting!("ON CONFLICT DO NOTHING");

/// The same for a job that is claimed at once for a worker ($3) of a queue ($4), for so many milliseconds ($5), where no
/// limit, pause or quarantine stands against it: as `TAKE_FREE` would do.
const INSERT_TAKEN: Sql = inserting!(
    ", attempt, lease, worker, started_at, code_version, deadline_at, lease_expires_at",
    "CASE WHEN seat.taken = 1 THEN 'processing' ELSE new.status END",
    ", coalesce(seat.taken, 0), coalesce(seat.taken, 0), CASE WHEN seat.taken = 1 THEN $3 END,
         CASE WHEN seat.taken = 1 THEN now END, CASE WHEN seat.taken = 1 THEN tasks.code_version END,
         CASE WHEN seat.taken = 1 THEN strftime('%Y-%m-%dT%H:%M:%fZ', now,
             '+' || (coalesce(new.timeout_ms, tasks.timeout_ms) / 1000.0) || ' seconds') END,
         CASE WHEN seat.taken = 1 THEN strftime('%Y-%m-%dT%H:%M:%fZ', now, '+' || (min(
             coalesce(tasks.heartbeat_interval_ms * 2, $5),
             coalesce(new.timeout_ms, tasks.timeout_ms, tasks.heartbeat_interval_ms * 2, $5)) / 1000.0) || ' seconds')
         END",
    ", coalesce(seat.taken, 0), coalesce(seat.taken, 0), CASE WHEN seat.taken = 1 THEN $3 END,
         CASE WHEN seat.taken = 1 THEN now END, CASE WHEN seat.taken = 1 THEN tasks.code_version END,
         CASE WHEN seat.taken = 1 THEN now + coalesce(new.timeout_ms, tasks.timeout_ms) * interval '1 millisecond' END,
         CASE WHEN seat.taken = 1 THEN now + least(coalesce(tasks.heartbeat_interval_ms * 2, $5),
             coalesce(new.timeout_ms, tasks.timeout_ms)) * interval '1 millisecond' END",
    "LEFT JOIN (SELECT 1 AS taken) AS seat ON coalesce(new.queue, tasks.queue, 'default') = $4
         AND tasks.concurrency_limit IS NULL AND tasks.rate_limit IS NULL
         AND NOT EXISTS (SELECT 1 FROM queues WHERE name = $4
             AND (paused OR concurrency_limit IS NOT NULL OR rate_limit IS NOT NULL))
         AND NOT EXISTS (SELECT 1 FROM workers WHERE id = $3 AND quarantined_until > clock.now)",
    "ON CONFLICT DO NOTHING",
    "id, kind, queue, input, input_ref, context, attempt, max_attempts, lease, timeout_ms, code_version, awaited,
     created_at, coalesce(started_at, created_at) AS started_at, deadline_at"
);

/// A job as the statement reads it.
#[derive(Serialize)]
struct NewRow<'a> {
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i64>,
    status: &'static str,
    input: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_ref: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<i64>,
    dead_letter: bool,
    awaited: bool,
}

impl<'a> NewRow<'a> {
    /// `now` may be missing where neither the status nor a key's end depends on it.
    fn of(job: &'a NewJob, now: Option<Timestamp>) -> Self {
        Self {
            kind: &job.kind,
            queue: job.queue.as_deref(),
            priority: job.priority,
            status: if job.run_at.zip(now).is_some_and(|(at, now)| at > now) { "waiting" } else { "pending" },
            input: &job.input,
            input_ref: job.input_ref.as_deref(),
            context: job.context.as_ref(),
            idempotency_key: job.idempotency_key.as_deref(),
            idempotency_until: job.idempotency_ttl.zip(now).map(|(ttl, now)| now.after(ttl)),
            concurrency_key: job.concurrency_key.as_deref(),
            run_at: job.run_at,
            max_attempts: job.max_attempts,
            timeout_ms: job.timeout.map(|timeout| i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)),
            dead_letter: job.dead_letter,
            awaited: job.awaited,
        }
    }
}

/// Enqueues a job inside the caller's transaction; wake [`Topic::Jobs`](crate::db::Topic) after the commit.
pub async fn enqueue(tx: &mut Tx, job: NewJob) -> Result<Enqueued> {
    let enqueued = enqueue_many(tx, &[job]).await?;
    Ok(enqueued[0])
}

/// Enqueues jobs in order, thousands by one statement; what became of each stands at its place.
pub async fn enqueue_many(tx: &mut Tx, jobs: &[NewJob]) -> Result<Vec<Enqueued>> {
    let mut outcomes: Vec<Option<Enqueued>> = vec![None; jobs.len()];
    let now = if needs_time(jobs) { Some(tx.now().await?) } else { tx.known_now() };
    insert(|sql| tx.query(sql), jobs, now, &mut outcomes).await?;
    if outcomes.iter().any(Option::is_none) {
        let now = tx.now().await?;
        find_by_key(tx, jobs, now, &mut outcomes).await?;
        if outcomes.iter().any(Option::is_none) {
            // Keys that were remembered past their time are free again; what they held is enqueued now.
            insert(|sql| tx.query(sql), jobs, Some(now), &mut outcomes).await?;
            find_by_key(tx, jobs, now, &mut outcomes).await?;
        }
    }
    outcomes.into_iter().map(|outcome| outcome.ok_or_else(|| lost_key().into())).collect()
}

/// Enqueues jobs by one statement that is its own transaction. Those whose key is taken are left out, and have no
/// outcome: [`enqueue_many`] finds what holds it.
pub(in crate::planes::queue) async fn enqueue_at_once(db: &Db, jobs: &[NewJob]) -> Result<Vec<Option<Enqueued>>> {
    let mut outcomes: Vec<Option<Enqueued>> = vec![None; jobs.len()];
    let now = if needs_time(jobs) { Some(db.now().await?) } else { db.known_now() };
    insert(|sql| db.write_kept(sql), jobs, now, &mut outcomes).await?;
    Ok(outcomes)
}

/// Whether a job's row depends on the time before it is written.
fn needs_time(jobs: &[NewJob]) -> bool {
    jobs.iter().any(|job| job.run_at.is_some() || job.idempotency_ttl.is_some())
}

/// Enqueues a job by one statement that is its own transaction, and claims it by the same for who waits in a seat, if it
/// may. None where its key is taken.
pub(in crate::planes::queue) async fn enqueue_taken(
    db: &Db,
    job: &NewJob,
    seat: &Seat,
) -> Result<Option<(Enqueued, Option<Job>)>> {
    let now = if needs_time(std::slice::from_ref(job)) { Some(db.now().await?) } else { db.known_now() };
    let inserted: Option<Taken> = db
        .write_kept(INSERT_TAKEN)
        .bind(Json([NewRow::of(job, now)]))
        .bind(now)
        .bind(seat.worker.clone())
        .bind(seat.queue.clone())
        .bind(i64::try_from(seat.lease.as_millis()).unwrap_or(i64::MAX))
        .optional()
        .await?;
    Ok(inserted.map(|inserted| {
        let job = inserted.job();
        (Enqueued { id: job.id, created: true }, (job.lease > 0).then_some(job))
    }))
}

/// The key was held by a job that ended while this transaction looked: a matter of trying again.
fn lost_key() -> sqlx::Error {
    sqlx::Error::RowNotFound
}

/// Inserts the jobs that have no outcome yet, by a statement that `query` begins; those whose key is taken keep none.
async fn insert<'q>(
    query: impl FnOnce(Sql) -> Query<'q>,
    jobs: &[NewJob],
    now: Option<Timestamp>,
    outcomes: &mut [Option<Enqueued>],
) -> Result<()> {
    let open: Vec<usize> = (0..jobs.len()).filter(|place| outcomes[*place].is_none()).collect();
    let rows: Vec<NewRow<'_>> = open.iter().map(|place| NewRow::of(&jobs[*place], now)).collect();
    let is_keyed = open.iter().any(|place| jobs[*place].idempotency_key.is_some());
    let mut inserted: Vec<(i64, Option<String>)> =
        query(if is_keyed { INSERT_UNLESS_THERE } else { INSERT }).bind(Json(rows)).bind(now).all().await?;
    inserted.sort_unstable_by_key(|(id, _)| *id); // ids are given in the order of the statement; RETURNING has none
    let mut keyed: HashMap<String, i64> = HashMap::new();
    let mut plain = Vec::with_capacity(inserted.len());
    for (id, key) in inserted {
        match key {
            Some(key) => drop(keyed.insert(key, id)),
            None => plain.push(id),
        }
    }
    let mut plain = plain.into_iter();
    for place in open {
        let id = match &jobs[place].idempotency_key {
            Some(key) => keyed.remove(key), // the first of several with the same key is the one that was inserted
            None => plain.next(),
        };
        outcomes[place] = id.map(|id| Enqueued { id, created: true });
    }
    Ok(())
}

/// Finds the jobs that hold the keys of those without an outcome; a job of another kind is an error. A key that is only remembered, past its time, is
/// let go.
async fn find_by_key(tx: &mut Tx, jobs: &[NewJob], now: Timestamp, outcomes: &mut [Option<Enqueued>]) -> Result<()> {
    let open: Vec<usize> = (0..jobs.len()).filter(|place| outcomes[*place].is_none()).collect();
    let keys: Vec<&str> = open.iter().filter_map(|place| jobs[*place].idempotency_key.as_deref()).collect();
    tx.query(sql!(
        "UPDATE jobs SET idempotency_until = NULL
         WHERE status IN ('completed', 'failed', 'cancelled') AND idempotency_until <= $2 AND idempotency_key IN ("
        { sqlite: "SELECT value FROM json_each($1)", postgres: "SELECT jsonb_array_elements_text($1)" } ")"
    ))
    .bind(Json(&keys))
    .bind(now)
    .execute()
    .await?;
    let found: Vec<(i64, String, String)> = tx
        .query(sql!(
            "SELECT id, idempotency_key, kind FROM jobs
             WHERE idempotency_key IS NOT NULL
               AND (status IN ('waiting', 'pending', 'processing', 'retry') OR idempotency_until IS NOT NULL)
               AND idempotency_key IN ("
            { sqlite: "SELECT value FROM json_each($1)", postgres: "SELECT jsonb_array_elements_text($1)" } ")"
        ))
        .bind(Json(&keys))
        .all()
        .await?;
    let found: HashMap<String, (i64, String)> = found.into_iter().map(|(id, key, kind)| (key, (id, kind))).collect();
    for place in open {
        let Some((id, kind)) = jobs[place].idempotency_key.as_ref().and_then(|key| found.get(key)) else { continue };
        if *kind != jobs[place].kind {
            return Err(Error::Refused(format!(
                "its idempotency key was used for job {id} of the task `{kind}`; take another key"
            )));
        }
        outcomes[place] = Some(Enqueued { id: *id, created: false });
    }
    Ok(())
}
