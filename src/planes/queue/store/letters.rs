//! Dead letters: jobs that ran out of tries. The trigger `jobs_ended` writes them.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::actor::Actor;
use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::sql;

/// A job that ran out of tries, with all that is needed to understand it and to try again.
#[derive(Debug, Clone, Serialize, ToSchema, sqlx::FromRow)]
pub struct DeadLetter {
    pub id: i64,
    pub job_id: i64,
    pub task_id: String,
    pub queue: String,
    /// `open`, or `retried`.
    pub status: String,
    #[schema(value_type = Value)]
    pub input: Json<Value>,
    pub input_ref: Option<String>,
    #[schema(value_type = Option<Value>)]
    pub context: Option<Json<Value>>,
    pub error: Option<String>,
    /// The last hundred tries, oldest first.
    #[schema(value_type = Value)]
    pub attempts: Json<Value>,
    pub attempt: i64,
    pub max_attempts: i64,
    /// The version of the task's code when it failed.
    pub code_version: Option<i64>,
    pub created_at: Timestamp,
    pub retried_at: Option<Timestamp>,
    pub retried_by: Option<String>,
}

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    pub task: Option<String>,
    pub queue: Option<String>,
    /// `open` or `retried`.
    pub status: Option<String>,
    /// Only those with a smaller id: the last one seen.
    pub after: Option<i64>,
}

/// What retrying a dead letter did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum RetryLetter {
    /// Its job is pending again.
    Retried { job_id: i64 },
    /// It was retried before.
    Already,
    /// Its job is gone, or lives already.
    JobGone,
    /// There is no such letter.
    Unknown,
}

/// Dead letters, newest first.
pub async fn dead_letters(db: &Db, filter: &DeadLetterFilter, limit: i64) -> Result<Vec<DeadLetter>> {
    db.query(
        "SELECT * FROM dlq WHERE id < $1 AND ($2 IS NULL OR task_id = $2) AND ($3 IS NULL OR queue = $3)
             AND ($4 IS NULL OR status = $4) ORDER BY id DESC LIMIT $5",
    )
    .bind(filter.after.unwrap_or(i64::MAX))
    .bind(filter.task.clone())
    .bind(filter.queue.clone())
    .bind(filter.status.clone())
    .bind(limit)
    .all()
    .await
}

/// One dead letter.
pub async fn dead_letter(db: &Db, id: i64) -> Result<Option<DeadLetter>> {
    db.query("SELECT * FROM dlq WHERE id = $1").bind(id).optional().await
}

/// Gives a dead letter's job another round of as many tries as its task gives now, three without one; its history
/// stays. Wake [`Topic::Jobs`](crate::db::Topic) after the commit.
pub async fn retry_dead_letter(tx: &mut Tx, id: i64, actor: &Actor) -> Result<RetryLetter> {
    let letter: Option<(i64, String)> = tx
        .query(sql!("SELECT job_id, status FROM dlq WHERE id = $1" { sqlite: "", postgres: " FOR UPDATE" }))
        .bind(id)
        .optional()
        .await?;
    match letter {
        None => Ok(RetryLetter::Unknown),
        Some((_, status)) if status != "open" => Ok(RetryLetter::Already),
        Some((job_id, _)) => match revive(tx, &[id], actor).await?.is_empty() {
            true => Ok(RetryLetter::JobGone),
            false => Ok(RetryLetter::Retried { job_id }),
        },
    }
}

/// Retries open dead letters, oldest first, up to `limit`; returns their jobs. Of jobs with one idempotency key only one
/// may live: the newest.
pub async fn retry_dead_letters(tx: &mut Tx, filter: &DeadLetterFilter, limit: i64, actor: &Actor) -> Result<Vec<i64>> {
    let letters: Vec<(i64, i64, Option<String>, bool)> = tx
        .query(sql!(
            "SELECT dlq.id, jobs.id, idempotency_key, idempotency_until IS NOT NULL FROM dlq CROSS JOIN jobs
             WHERE dlq.status = 'open' AND ($1 IS NULL OR task_id = $1) AND ($2 IS NULL OR dlq.queue = $2)
               AND jobs.id = dlq.job_id AND jobs.status = 'failed' AND jobs.attempt < 1000
             ORDER BY dlq.id LIMIT $3" { sqlite: "", postgres: " FOR UPDATE OF dlq SKIP LOCKED" }
        ))
        .bind(filter.task.clone())
        .bind(filter.queue.clone())
        .bind(limit)
        .all()
        .await?;
    let mut ids = Vec::with_capacity(letters.len());
    let mut of_keys: HashMap<String, (bool, i64, i64)> = HashMap::new();
    for (id, job, key, remembered) in letters {
        match key {
            None => ids.push(id),
            Some(key) => {
                // A key that is remembered is its job's, whichever job is newer.
                let newest = of_keys.entry(key).or_insert((remembered, job, id));
                *newest = (*newest).max((remembered, job, id));
            }
        }
    }
    ids.extend(of_keys.into_values().map(|(_, _, id)| id));
    if ids.is_empty() { Ok(Vec::new()) } else { revive(tx, &ids, actor).await }
}

/// Makes the letters' jobs pending again, and marks the letters of those that could be; returns the jobs. A job whose
/// idempotency key another live job holds stays as it is.
async fn revive(tx: &mut Tx, letters: &[i64], actor: &Actor) -> Result<Vec<i64>> {
    let now = tx.now().await?;
    let revived: Vec<(i64,)> = tx
        .query(sql!(
            "UPDATE jobs SET status = 'pending',
                 max_attempts = CASE WHEN attempt + coalesce((SELECT max_attempts FROM tasks WHERE tasks.id = jobs.kind), 3) > 1000
                     THEN 1000 ELSE attempt + coalesce((SELECT max_attempts FROM tasks WHERE tasks.id = jobs.kind), 3) END,
                 run_at = $1, finished_at = NULL, cancel_requested_at = NULL, updated_at = $1
             WHERE status = 'failed' AND attempt < 1000
               AND id IN (SELECT job_id FROM dlq WHERE status = 'open' AND id IN ("
            { sqlite: "SELECT value FROM json_each($2)", postgres: "SELECT CAST(jsonb_array_elements_text($2) AS BIGINT)" }
            ")) AND (idempotency_key IS NULL OR idempotency_until IS NOT NULL OR NOT EXISTS (
                   SELECT 1 FROM jobs AS other WHERE other.idempotency_key = jobs.idempotency_key AND other.id <> jobs.id
                   AND (other.status IN ('waiting', 'pending', 'processing', 'retry') OR other.idempotency_until IS NOT NULL)))
             RETURNING id"
        ))
        .bind(now)
        .bind(Json(letters))
        .all()
        .await?;
    let jobs: Vec<i64> = revived.into_iter().map(|(id,)| id).collect();
    tx.query(sql!(
        "UPDATE dlq SET status = 'retried', retried_at = $1, retried_by = $2 WHERE status = 'open' AND job_id IN ("
        { sqlite: "SELECT value FROM json_each($3)", postgres: "SELECT CAST(jsonb_array_elements_text($3) AS BIGINT)" }
        ")"
    ))
    .bind(now)
    .bind(actor.to_string())
    .bind(Json(&jobs))
    .execute()
    .await?;
    Ok(jobs)
}

/// Takes dead letters away, oldest first, up to `limit`; their jobs stay. Returns how many.
pub async fn purge_dead_letters(tx: &mut Tx, filter: &DeadLetterFilter, limit: i64) -> Result<u64> {
    tx.query(
        "DELETE FROM dlq WHERE id IN (SELECT id FROM dlq
             WHERE ($1 IS NULL OR task_id = $1) AND ($2 IS NULL OR queue = $2) AND ($3 IS NULL OR status = $3)
             ORDER BY id LIMIT $4)",
    )
    .bind(filter.task.clone())
    .bind(filter.queue.clone())
    .bind(filter.status.clone())
    .bind(limit)
    .execute()
    .await
}

/// Takes one dead letter away; `false` when there is none.
pub async fn purge_dead_letter(tx: &mut Tx, id: i64) -> Result<bool> {
    Ok(tx.query("DELETE FROM dlq WHERE id = $1").bind(id).execute().await? > 0)
}

/// Takes away dead letters older than `before`, up to a batch; returns how many.
pub async fn forget_dead_letters(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    tx.query("DELETE FROM dlq WHERE id IN (SELECT id FROM dlq WHERE created_at < $1 ORDER BY created_at LIMIT $2)")
        .bind(before)
        .bind(super::BATCH)
        .execute()
        .await
}
