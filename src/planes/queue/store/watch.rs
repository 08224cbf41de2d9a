//! What the loop reads of workers, queues and dead letters, and checks before it acts on them.

use crate::db::{AGO, Result, Sql, Timestamp, Tx};
use crate::planes::queue::store::registry::{GONE_AFTER, RECENT};
use crate::sql;

/// Workers that one look reads at most.
const WORKERS: i64 = 1_000;
/// Paused queues that one look reads at most.
const QUEUES: i64 = 100;
/// Open dead letters among which those worth another try are looked for, newest first.
const LETTERS: i64 = 200;
/// Dead letters of the last hour are counted up to here.
const COUNTED: i64 = 1_000;

/// The whole work at one look. Only small tables, tallies and the end of an index: the cost does not grow with history.
#[derive(Clone, Copy, sqlx::FromRow)]
pub struct Figures {
    pub jobs_pending: i64,
    pub jobs_processing: i64,
    pub jobs_retry: i64,
    pub jobs_failed: i64,
    pub jobs_completed: i64,
    pub jobs_waiting: i64,
    pub jobs_oldest_pending: Option<Timestamp>,
    pub workers: i64,
    pub workers_alive: i64,
    pub workers_quarantined: i64,
    pub workers_capacity: i64,
    /// Workers with a failed try in the running ten minutes.
    pub workers_failing: i64,
    pub queues_paused: i64,
    pub dead_letters: i64,
}

/// The row of [`Figures`].
pub const FIGURES: Sql = sql!(
    "SELECT counted.*, heard.*,
         (SELECT MIN(coalesce(run_at, created_at)) FROM jobs WHERE status = 'pending') AS jobs_oldest_pending,
         (SELECT COUNT(*) FROM queues WHERE paused) AS queues_paused,
         (SELECT CAST(coalesce(SUM(n), 0) AS BIGINT) FROM tallies WHERE name = 'dlq' AND key = 'open') AS dead_letters
     FROM (SELECT CAST(coalesce(SUM(n) FILTER (WHERE key = 'pending'), 0) AS BIGINT) AS jobs_pending,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'processing'), 0) AS BIGINT) AS jobs_processing,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'retry'), 0) AS BIGINT) AS jobs_retry,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'failed'), 0) AS BIGINT) AS jobs_failed,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'completed'), 0) AS BIGINT) AS jobs_completed,
             CAST(coalesce(SUM(n) FILTER (WHERE key = 'waiting'), 0) AS BIGINT) AS jobs_waiting
         FROM tallies WHERE name = 'jobs') AS counted
     CROSS JOIN (SELECT COUNT(*) AS workers,
             CAST(coalesce(SUM(CASE WHEN last_seen_at >= $2 THEN 1 ELSE 0 END), 0) AS BIGINT) AS workers_alive,
             CAST(coalesce(SUM(CASE WHEN quarantined_until > $1 THEN 1 ELSE 0 END), 0) AS BIGINT)
                 AS workers_quarantined,
             CAST(coalesce(SUM(CASE WHEN last_seen_at >= $2 THEN capacity ELSE 0 END), 0) AS BIGINT)
                 AS workers_capacity,
             CAST(coalesce(SUM(CASE WHEN recent_failed > 0 AND recent_since >= $3 THEN 1 ELSE 0 END), 0) AS BIGINT)
                 AS workers_failing
         FROM workers) AS heard"
);

/// The moments that the figures are given.
const _: () = assert!(GONE_AFTER.as_secs() == AGO[0].as_secs() && RECENT.as_secs() == AGO[1].as_secs());

/// How a worker's tries ended in the running ten minutes.
#[derive(sqlx::FromRow)]
pub(in crate::planes::queue) struct Recent {
    pub id: String,
    pub queue: String,
    pub completed: i64,
    pub failed: i64,
    pub quarantined: bool,
}

/// Of the workers that ended a try in the running ten minutes, those with the most failures first.
pub(in crate::planes::queue) async fn recent(tx: &mut Tx, now: Timestamp) -> Result<Vec<Recent>> {
    tx.query(
        "SELECT id, queue, recent_completed AS completed, recent_failed AS failed,
             (quarantined_until IS NOT NULL AND quarantined_until > $1) AS quarantined
         FROM workers WHERE recent_since >= $2 AND recent_completed + recent_failed > 0
         ORDER BY recent_failed DESC, id LIMIT $3",
    )
    .bind(now)
    .bind(now.before(RECENT))
    .bind(WORKERS)
    .all()
    .await
}

/// Paused queues: name, by whom, since when.
pub(in crate::planes::queue) async fn paused(tx: &mut Tx) -> Result<Vec<(String, Option<String>, Option<Timestamp>)>> {
    tx.query("SELECT name, paused_by, paused_at FROM queues WHERE paused ORDER BY name LIMIT $1")
        .bind(QUEUES)
        .all()
        .await
}

/// Who paused a queue; none where it is not paused.
pub(in crate::planes::queue) async fn paused_by(tx: &mut Tx, queue: &str) -> Result<Option<String>> {
    let row: Option<(Option<String>,)> =
        tx.query("SELECT paused_by FROM queues WHERE name = $1 AND paused").bind(queue.to_owned()).optional().await?;
    Ok(row.map(|(by,)| by.unwrap_or_default()))
}

/// An open dead letter.
#[derive(sqlx::FromRow)]
pub(in crate::planes::queue) struct Letter {
    pub id: i64,
    pub job_id: i64,
    pub task_id: String,
    pub queue: String,
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub outcome: Option<String>,
    /// Letters that its job has left, this one with them.
    pub rounds: i64,
    pub code_changed: i64,
}

/// Of the newest open dead letters those first whose task's code has changed since.
pub(in crate::planes::queue) async fn letters(tx: &mut Tx, shown: i64) -> Result<Vec<Letter>> {
    tx.query(
        "SELECT letter.id, job_id, task_id, letter.queue, letter.error, letter.created_at, jobs.outcome,
             (SELECT COUNT(*) FROM dlq WHERE dlq.job_id = letter.job_id) AS rounds,
             CAST(CASE WHEN tasks.code_version > letter.code_version THEN 1 ELSE 0 END AS BIGINT) AS code_changed
         FROM (SELECT id, job_id, task_id, queue, error, code_version, created_at FROM dlq WHERE status = 'open'
               ORDER BY id DESC LIMIT $1) AS letter
         JOIN jobs ON jobs.id = letter.job_id AND jobs.status = 'failed'
         LEFT JOIN tasks ON tasks.id = letter.task_id
         ORDER BY CASE WHEN tasks.code_version > letter.code_version THEN 0 ELSE 1 END, letter.id DESC LIMIT $2",
    )
    .bind(LETTERS)
    .bind(shown)
    .all()
    .await
}

/// Dead letters of the last hour.
pub(in crate::planes::queue) async fn letters_since(tx: &mut Tx, since: Timestamp) -> Result<i64> {
    let (count,): (i64,) = tx
        .query("SELECT COUNT(*) FROM (SELECT 1 AS one FROM dlq WHERE created_at > $1 LIMIT $2) AS newest")
        .bind(since)
        .bind(COUNTED)
        .one()
        .await?;
    Ok(count)
}

/// How often a dead letter's job has run out of tries.
pub(in crate::planes::queue) async fn rounds(tx: &mut Tx, letter: i64) -> Result<i64> {
    let (rounds,): (i64,) = tx
        .query("SELECT COUNT(*) FROM dlq WHERE job_id = (SELECT job_id FROM dlq WHERE id = $1)")
        .bind(letter)
        .one()
        .await?;
    Ok(rounds)
}

/// Whether a worker is in quarantine, and how many others work its queue; none where there is no such worker.
pub(in crate::planes::queue) async fn worker_and_peers(tx: &mut Tx, id: &str) -> Result<Option<(bool, i64)>> {
    let now = tx.now().await?;
    tx.query(
        "SELECT (quarantined_until IS NOT NULL AND quarantined_until > $2),
             (SELECT COUNT(*) FROM workers AS peer WHERE peer.queue = workers.queue AND peer.id <> workers.id
                 AND peer.last_seen_at >= $3 AND (peer.quarantined_until IS NULL OR peer.quarantined_until <= $2))
         FROM workers WHERE id = $1",
    )
    .bind(id.to_owned())
    .bind(now)
    .bind(now.before(GONE_AFTER))
    .optional()
    .await
}
