//! All of the plane's SQL. Statements follow the tables of [`RunStatus::on`](super::RunStatus::on) and
//! [`StepStatus::on`](super::StepStatus::on).
//!
//! | room | holds |
//! |---|---|
//! | here | what engines write: claiming, a batch of steps, parking, the end of a run |
//! | `records` | definitions, and what clients read and ask for |

mod records;

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Value, json};

pub use records::forget_finished;
pub(super) use records::*;

use super::model::{Run, StepRow};
use super::run::{End, TaskCall, Waits};
use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::planes::queue::{self, NewJob};
use crate::sql;
use crate::storage::is_reference;

/// Runs that one statement of upkeep touches at most.
const BATCH: i64 = 1_000;

/// Who has a run, so that nobody else writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) run: i64,
    pub(super) lease: i64,
}

/// A run that is to be made.
#[derive(Debug, Clone)]
pub(super) struct NewRun<'a> {
    pub(super) pipeline: &'a str,
    pub(super) version: i64,
    pub(super) input: &'a Value,
    pub(super) trigger_kind: &'static str,
    pub(super) trigger_id: Option<&'a str>,
    pub(super) parent: Option<i64>,
}

/// The engine to which a new run is handed at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taker<'a> {
    pub(super) owner: &'a str,
    pub(super) engine: &'a str,
    pub(super) lease: Duration,
}

macro_rules! insert_run {
    ($target:expr, $new:expr, $taker:expr, $now:expr) => {
        $target
            .statement(
                "INSERT INTO pipeline_runs (pipeline_id, version, status, trigger_kind, trigger_id, parent_run_id, depth,
                     input, lease, lease_expires_at, owner, engine, created_at, started_at)
                 SELECT $1, $2, $3, $4, $5, $6,
                     coalesce((SELECT depth + 1 FROM pipeline_runs WHERE id = $6), 0), $7, $8, $9, $10, $11, $12, $13
                 RETURNING id",
            )
            .bind($new.pipeline.to_owned())
            .bind($new.version)
            .bind(if $taker.is_some() { "running" } else { "pending" })
            .bind($new.trigger_kind)
            .bind($new.trigger_id.map(str::to_owned))
            .bind($new.parent)
            .bind(Json($new.input.clone()))
            .bind(i64::from($taker.is_some()))
            .bind($taker.map(|taker| $now.after(taker.lease)))
            .bind($taker.map(|taker| taker.owner.to_owned()))
            .bind($taker.map(|taker| taker.engine.to_owned()))
            .bind($now)
            .bind($taker.map(|_| $now))
    };
}

trait Target {
    fn statement(&mut self, sql: &'static str) -> crate::db::Query<'_>;
}
impl Target for Tx {
    fn statement(&mut self, sql: &'static str) -> crate::db::Query<'_> {
        self.query(sql)
    }
}
impl Target for &Db {
    fn statement(&mut self, sql: &'static str) -> crate::db::Query<'_> {
        self.write_kept(sql)
    }
}

/// Makes a run in a statement of its own: with a taker it is on that engine from the start, under lease 1.
pub(super) async fn begin_run(mut db: &Db, new: NewRun<'_>, taker: Option<Taker<'_>>, now: Timestamp) -> Result<i64> {
    let (id,): (i64,) = insert_run!(db, new, taker, now).one().await?;
    Ok(id)
}

/// Makes a run that waits for an engine.
pub(super) async fn insert_run(tx: &mut Tx, new: NewRun<'_>) -> Result<i64> {
    let now = tx.now().await?;
    let nobody: Option<Taker<'_>> = None;
    let (id,): (i64,) = insert_run!(tx, new, nobody, now).one().await?;
    Ok(id)
}

const UPSERT_STEPS: crate::db::Sql = sql!(
    "INSERT INTO pipeline_steps (run_id, step, item, status, attempt, result, error, wake_at, job_id, child_run_id,
         started_at, finished_at) "
    { sqlite: "SELECT $1, value ->> 'step', value ->> 'item', value ->> 'status', value ->> 'attempt',
         value -> 'result', value ->> 'error', value ->> 'wake_at', value ->> 'job_id', value ->> 'child_run_id',
         value ->> 'started_at', value ->> 'finished_at' FROM json_each($3)",
      postgres: "SELECT $1, r.step, r.item, r.status, r.attempt, r.result, r.error, r.wake_at, r.job_id, r.child_run_id,
         r.started_at, r.finished_at FROM jsonb_to_recordset($3) AS r(step text, item bigint, status text,
         attempt bigint, result jsonb, error text, wake_at timestamptz, job_id bigint, child_run_id bigint,
         started_at timestamptz, finished_at timestamptz)" }
    " WHERE EXISTS (SELECT 1 FROM pipeline_runs WHERE id = $1 AND lease = $2 AND status = 'running' "
    { sqlite: "", postgres: "FOR SHARE" } ")
     ON CONFLICT (run_id, step, item) DO UPDATE SET status = excluded.status, attempt = excluded.attempt,
         result = excluded.result, error = excluded.error, wake_at = excluded.wake_at,
         job_id = CASE WHEN excluded.finished_at IS NULL THEN excluded.job_id ELSE pipeline_steps.job_id END,
         child_run_id = CASE WHEN excluded.finished_at IS NULL THEN excluded.child_run_id ELSE pipeline_steps.child_run_id END,
         finished_at = excluded.finished_at"
);

/// Writes steps down in a statement of its own; false when the lease is lost. No step may stand there twice.
pub(super) async fn write_steps(db: &Db, hold: Hold, rows: &[StepRow]) -> Result<bool> {
    let written = db.write_kept(UPSERT_STEPS).bind(hold.run).bind(hold.lease).bind(Json(rows)).execute().await?;
    Ok(written > 0)
}

/// The same inside a transaction.
pub(super) async fn put_steps(tx: &mut Tx, hold: Hold, rows: &[StepRow]) -> Result<bool> {
    let written = tx.query(UPSERT_STEPS).bind(hold.run).bind(hold.lease).bind(Json(rows)).execute().await?;
    Ok(written > 0)
}

/// Ends a run together with its last steps, in one transaction; false when the lease is lost.
pub(super) async fn end_run(tx: &mut Tx, hold: Hold, rows: &[StepRow], end: &End, now: Timestamp) -> Result<bool> {
    if !rows.is_empty() && !put_steps(tx, hold, rows).await? {
        return Ok(false);
    }
    let ended = tx
        .query(
            "UPDATE pipeline_runs SET status = $1, output = $2, error = $3, lease_expires_at = NULL, engine = NULL,
                 owner = NULL, wake_at = NULL, requested = NULL, finished_at = $4
             WHERE id = $5 AND lease = $6 AND status = 'running'",
        )
        .bind(end.status.as_str())
        .bind(Json(end.output.clone()))
        .bind(end.error.clone())
        .bind(now)
        .bind(hold.run)
        .bind(hold.lease)
        .execute()
        .await?;
    Ok(ended > 0)
}

/// Takes a run off its engine: to `waiting` until `wake_at`, to `paused`, or back to `pending`. What was asked
/// meanwhile and is not done by this brings it back to an engine.
pub(super) async fn release(db: &Db, hold: Hold, status: &'static str, wake_at: Option<Timestamp>) -> Result<bool> {
    let released = db
        .write(
            "UPDATE pipeline_runs SET wake_at = $2, lease_expires_at = NULL, engine = NULL, owner = NULL,
                 status = CASE WHEN $1 = 'waiting' AND requested IS NOT NULL THEN 'pending'
                     WHEN $1 = 'paused' AND requested = 'cancel' THEN 'pending' ELSE $1 END,
                 requested = CASE WHEN $1 = 'paused' AND requested = 'pause' THEN NULL ELSE requested END
             WHERE id = $3 AND lease = $4 AND status = 'running'",
        )
        .bind(status)
        .bind(wake_at)
        .bind(hold.run)
        .bind(hold.lease)
        .execute()
        .await?;
    Ok(released > 0)
}

/// Whether any run could be taken. Only reads.
pub(super) async fn has_work(db: &Db, now: Timestamp) -> Result<bool> {
    let (work,): (i64,) = db
        .query(
            "SELECT CASE WHEN EXISTS (SELECT 1 FROM pipeline_runs WHERE status = 'pending')
                 OR EXISTS (SELECT 1 FROM pipeline_runs WHERE status = 'waiting' AND wake_at <= $1)
                 OR EXISTS (SELECT 1 FROM pipeline_runs WHERE status = 'running' AND lease_expires_at < $1)
                 OR EXISTS (SELECT 1 FROM pipeline_steps s LEFT JOIN jobs j ON j.id = s.job_id
                     JOIN pipeline_runs r ON r.id = s.run_id AND r.status = 'waiting'
                     WHERE s.status = 'waiting' AND s.job_id IS NOT NULL
                     AND (j.id IS NULL OR j.status IN ('completed', 'failed', 'cancelled')))
                 OR EXISTS (SELECT 1 FROM pipeline_steps s JOIN pipeline_runs c ON c.id = s.child_run_id
                     JOIN pipeline_runs r ON r.id = s.run_id AND r.status = 'waiting'
                     WHERE s.status = 'waiting' AND s.child_run_id IS NOT NULL
                     AND c.status IN ('completed', 'failed', 'cancelled'))
             THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END",
        )
        .bind(now)
        .one()
        .await?;
    Ok(work > 0)
}

/// Makes pending what has waited long enough, what waits for something that has ended, and what an instance let lapse.
pub(super) async fn wake_runs(tx: &mut Tx) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(sql!(
        "UPDATE pipeline_runs SET status = 'pending', wake_at = NULL, lease = lease + 1, lease_expires_at = NULL,
             engine = NULL, owner = NULL
         WHERE id IN (SELECT id FROM pipeline_runs WHERE (status = 'waiting' AND wake_at <= $1)
                 OR (status = 'running' AND lease_expires_at < $1)
                 OR (status = 'waiting' AND id IN (
                     SELECT s.run_id FROM pipeline_steps s LEFT JOIN jobs j ON j.id = s.job_id
                     WHERE s.status = 'waiting' AND s.job_id IS NOT NULL
                     AND (j.id IS NULL OR j.status IN ('completed', 'failed', 'cancelled'))))
                 OR (status = 'waiting' AND id IN (
                     SELECT s.run_id FROM pipeline_steps s JOIN pipeline_runs c ON c.id = s.child_run_id
                     WHERE s.status = 'waiting' AND s.child_run_id IS NOT NULL
                     AND c.status IN ('completed', 'failed', 'cancelled')))
             ORDER BY id LIMIT $2 " { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" } ")"
    ))
    .bind(now)
    .bind(BATCH)
    .execute()
    .await
}

/// Takes pending runs, oldest first, under a lease; `engines` are the idle ones, one run each.
pub(super) async fn claim(tx: &mut Tx, owner: &str, engines: &[&str], lease: Duration) -> Result<Vec<Run>> {
    let now = tx.now().await?;
    let mut claimed: Vec<(i64,)> = tx
        .query(sql!(
            "UPDATE pipeline_runs SET status = 'running', lease = lease + 1, lease_expires_at = $1, owner = $2,
                 started_at = coalesce(started_at, $3)
             WHERE id IN (SELECT id FROM pipeline_runs WHERE status = 'pending' ORDER BY id LIMIT $4 "
            { sqlite: "", postgres: "FOR UPDATE SKIP LOCKED" } ") RETURNING id"
        ))
        .bind(now.after(lease))
        .bind(owner.to_owned())
        .bind(now)
        .bind(engines.len() as i64)
        .all()
        .await?;
    claimed.sort_unstable();
    let mut runs = Vec::with_capacity(claimed.len());
    for ((id,), engine) in claimed.into_iter().zip(engines) {
        let run = tx
            .query(
                "UPDATE pipeline_runs SET engine = $1 WHERE id = $2
                 RETURNING id, pipeline_id, version, status, trigger_kind, trigger_id, parent_run_id, depth, input, output,
                     error, retries, lease, engine, wake_at, requested, created_at, started_at, finished_at",
            )
            .bind((*engine).to_owned())
            .bind(id)
            .one()
            .await?;
        runs.push(run);
    }
    Ok(runs)
}

/// Renews the leases of the runs that an instance's engines have. Not of all that are its own by name: a claim whose
/// answer was lost is in nobody's hands, and has to lapse.
pub(super) async fn renew(db: &Db, owner: &str, runs: &[i64], expires_at: Timestamp) -> Result<()> {
    db.write(sql!(
        "UPDATE pipeline_runs SET lease_expires_at = $1 WHERE status = 'running' AND owner = $2 AND id IN ("
        { sqlite: "SELECT value FROM json_each($3)", postgres: "SELECT CAST(value AS BIGINT) FROM jsonb_array_elements_text($3)" } ")"
    ))
    .bind(expires_at)
    .bind(owner.to_owned())
    .bind(Json(json!(runs)))
    .execute()
    .await?;
    Ok(())
}

/// What is asked of runs on this instance's engines.
pub(super) async fn requested(db: &Db, owner: &str) -> Result<Vec<(i64, String)>> {
    db.query(
        "SELECT id, requested FROM pipeline_runs WHERE status = 'running' AND owner = $1 AND requested IS NOT NULL",
    )
    .bind(owner.to_owned())
    .all()
    .await
}

const STEPS: &str = "SELECT step, item, status, attempt, result, error, wake_at, job_id, child_run_id, started_at,
         finished_at
     FROM pipeline_steps WHERE run_id = $1 ORDER BY started_at, step, item";

/// The rows of a run's steps.
pub(super) async fn steps_of(db: &Db, run: i64) -> Result<Vec<StepRow>> {
    db.query(STEPS).bind(run).all().await
}

/// How long a task's key holds: a commit whose answer was lost is repeated at once, and a crashed engine's step is taken
/// up within its lease, or by the next start of a service that stood still over a weekend.
const KEY_HOLDS: Duration = Duration::from_secs(7 * 24 * 3600);

/// Enqueues a task for a step; the same key is the same task, also when it has ended. Its failure is the run's: it leaves
/// no dead letter, and the run is what is tried again.
pub(super) async fn enqueue_task(tx: &mut Tx, run: i64, task: &TaskCall) -> Result<i64> {
    let mut job = NewJob::new(task.task.id.clone());
    job.queue = task.task.queue.clone().map(Cow::Owned);
    job.priority = task.task.priority;
    job.input_ref = is_reference(&task.input).then(|| task.input["$storage"].to_string());
    job.input = task.input.clone();
    job.context = Some(json!({ "run": run, "step": task.step }));
    job.idempotency_key = Some(queue::own_key(&task.key));
    job.idempotency_ttl = Some(KEY_HOLDS);
    job.max_attempts = task.max_attempts;
    job.dead_letter = false;
    job.awaited = true;
    Ok(queue::enqueue(tx, job).await?.id)
}

/// Gives a task up; one that runs is told with its next sign of life.
pub(super) async fn cancel_task(tx: &mut Tx, job: i64) -> Result<()> {
    queue::cancel(tx, job).await?;
    Ok(())
}

/// Those of the tasks that have no row any more: they ended so long ago that it was taken away.
async fn gone(db: &Db, tasks: &[i64]) -> Result<Vec<(i64,)>> {
    db.query(sql!(
        "SELECT id FROM (SELECT CAST(value AS BIGINT) AS id FROM "
        { sqlite: "json_each($1)", postgres: "jsonb_array_elements_text($1)" }
        ") AS awaited WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = awaited.id)"
    ))
    .bind(Json(tasks))
    .all()
    .await
}

/// What has come of the tasks and runs that a run waits for.
pub(super) async fn ended(db: &Db, waits: &[Waits]) -> Result<Vec<(Waits, Result<Value, String>)>> {
    let (mut tasks, mut children) = (Vec::new(), Vec::new());
    for wait in waits {
        match wait {
            Waits::Task(id) => tasks.push(*id),
            Waits::Child(id) => children.push(*id),
            Waits::Call | Waits::Time | Waits::Retry => {}
        }
    }
    let mut ended = Vec::new();
    if !tasks.is_empty() {
        let jobs = queue::ended(db, &tasks).await?;
        if jobs.len() < tasks.len() {
            let lost = |id: i64| Err(format!("task {id} is gone: its record was kept no longer"));
            ended.extend(gone(db, &tasks).await?.into_iter().map(|(id,)| (Waits::Task(id), lost(id))));
        }
        ended.extend(jobs.into_iter().map(|job| {
            // What lies in storage is named, for whoever needs it to fetch it.
            let result = match job.result_ref {
                Some(reference) => Some(Json(json!({ "resultRef": reference }))),
                None => job.result,
            };
            let outcome = outcome("task", (job.id, job.status.to_string(), result, job.error));
            (Waits::Task(job.id), outcome)
        }));
    }
    type Row = (i64, String, Option<Json<Value>>, Option<String>);
    if !children.is_empty() {
        let rows: Vec<Row> = db
            .query(sql!(
                "SELECT id, status, output, error FROM pipeline_runs WHERE status IN ('completed', 'failed', 'cancelled') AND id IN ("
                { sqlite: "SELECT value FROM json_each($1)", postgres: "SELECT CAST(value AS BIGINT) FROM jsonb_array_elements_text($1)" } ")"
            ))
            .bind(Json(children))
            .all()
            .await?;
        ended.extend(rows.into_iter().map(|row| (Waits::Child(row.0), outcome("run", row))));
    }
    Ok(ended)
}

fn outcome(
    what: &str,
    (id, status, result, error): (i64, String, Option<Json<Value>>, Option<String>),
) -> Result<Value, String> {
    match status.as_str() {
        "completed" => Ok(result.map_or(Value::Null, |Json(value)| value)),
        _ => Err(format!("{what} {id} {}", error.unwrap_or(status))),
    }
}

/// Whether the lease is still held; until the transaction ends nobody else takes it.
pub(super) async fn holds(tx: &mut Tx, hold: Hold) -> Result<bool> {
    let held: Option<(i64,)> = tx
        .query(sql!(
            "SELECT id FROM pipeline_runs WHERE id = $1 AND lease = $2 AND status = 'running' "
            { sqlite: "", postgres: "FOR UPDATE" }
        ))
        .bind(hold.run)
        .bind(hold.lease)
        .optional()
        .await?;
    Ok(held.is_some())
}

/// The run that a step's try has begun already.
pub(super) async fn child_of(tx: &mut Tx, run: i64, step: &str, item: i64, attempt: i64) -> Result<Option<i64>> {
    let child: Option<(Option<i64>,)> = tx
        .query(
            "SELECT child_run_id FROM pipeline_steps WHERE run_id = $1 AND step = $2 AND item = $3 AND attempt = $4
             AND status = 'waiting'",
        )
        .bind(run)
        .bind(step.to_owned())
        .bind(item)
        .bind(attempt)
        .optional()
        .await?;
    Ok(child.and_then(|(child,)| child))
}

/// A run that could not begin, kept so that the step that wanted it learns why.
pub(super) async fn insert_refused(
    tx: &mut Tx,
    parent: i64,
    pipeline: &str,
    input: &Value,
    error: &str,
) -> Result<i64> {
    let now = tx.now().await?;
    let (id,): (i64,) = tx
        .query(
            "INSERT INTO pipeline_runs (pipeline_id, version, status, trigger_kind, parent_run_id, input, error, created_at,
                 finished_at)
             VALUES ($1, 0, 'failed', 'pipeline', $2, $3, $4, $5, $5) RETURNING id",
        )
        .bind(pipeline.to_owned())
        .bind(parent)
        .bind(Json(input.clone()))
        .bind(error.to_owned())
        .bind(now)
        .one()
        .await?;
    Ok(id)
}

/// The rows of a run's steps, inside a transaction.
pub(super) async fn steps_in(tx: &mut Tx, run: i64) -> Result<Vec<StepRow>> {
    tx.query(STEPS).bind(run).all().await
}
