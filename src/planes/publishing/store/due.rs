//! What the dispatcher asks of the tables: what is due, overdue, without a job, or lost.

use crate::db::{Db, Result, Timestamp, Tx};
use crate::planes::publishing::model::PublishLog;
use crate::sql;

/// How much each kind of dispatching there is to do; a cheap look before a writing transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub(in crate::planes::publishing) struct Work {
    pub due: i64,
    pub without_job: i64,
    pub in_flight: i64,
}

impl Work {
    /// Whether there is none.
    pub(in crate::planes::publishing) fn is_none(&self) -> bool {
        self.due + self.without_job + self.in_flight == 0
    }
}

/// Looks for work of the dispatcher.
pub(in crate::planes::publishing) async fn work(db: &Db, now: Timestamp) -> Result<Work> {
    db.query(
        "SELECT (SELECT COUNT(*) FROM (SELECT id FROM publish_logs
                     WHERE status IN ('scheduled', 'retry') AND scheduled_at <= $1 LIMIT 1) AS a) AS due,
                (SELECT COUNT(*) FROM (SELECT id FROM publish_logs
                     WHERE status = 'pending' AND job_id IS NULL LIMIT 1) AS b) AS without_job,
                (SELECT COUNT(*) FROM (SELECT id FROM publish_logs
                     WHERE status IN ('pending', 'publishing') AND job_id IS NOT NULL LIMIT 1) AS c)
              + (SELECT COUNT(*) FROM (SELECT id FROM publish_logs
                     WHERE status = 'publishing' AND job_id IS NULL LIMIT 1) AS d) AS in_flight",
    )
    .bind(now)
    .one()
    .await
}

/// Publications whose time came after `overdue_before`, oldest first, held until the transaction ends.
pub(in crate::planes::publishing) async fn lock_due(
    tx: &mut Tx,
    overdue_before: Timestamp,
    limit: i64,
) -> Result<Vec<PublishLog>> {
    let now = tx.now().await?;
    tx.query(sql!(
        "SELECT * FROM publish_logs WHERE status IN ('scheduled', 'retry') AND scheduled_at <= $1 AND scheduled_at >= $2
         ORDER BY scheduled_at, priority DESC, id LIMIT $3" { sqlite: "", postgres: " FOR UPDATE SKIP LOCKED" }
    ))
    .bind(now)
    .bind(overdue_before)
    .bind(limit)
    .all()
    .await
}

/// Platforms with publications overdue since before `overdue_before`. Steps from platform to platform along the index,
/// so that the cost is by platforms, not by rows.
pub(in crate::planes::publishing) async fn overdue_platforms(
    tx: &mut Tx,
    overdue_before: Timestamp,
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = tx
        .query(
            "WITH RECURSIVE found (platform) AS (
                 SELECT MIN(platform) FROM publish_logs WHERE status IN ('scheduled', 'retry')
                 UNION ALL
                 SELECT (SELECT MIN(platform) FROM publish_logs
                         WHERE status IN ('scheduled', 'retry') AND platform > found.platform)
                 FROM found WHERE found.platform IS NOT NULL
             )
             SELECT platform FROM found WHERE platform IS NOT NULL
               AND (SELECT MIN(scheduled_at) FROM publish_logs AS log
                    WHERE log.status IN ('scheduled', 'retry') AND log.platform = found.platform) < $1
             LIMIT 1000",
        )
        .bind(overdue_before)
        .all()
        .await?;
    Ok(rows.into_iter().map(|(platform,)| platform).collect())
}

/// The oldest overdue publication of a platform, unless a late one is in flight, or was attempted after `quiet_since`,
/// or any other was attempted since then and is not out: a platform that refuses is left alone. What goes out on time
/// does not count, however much of it there is. One statement, so that of two instances only one finds it.
pub(in crate::planes::publishing) async fn lock_oldest_overdue(
    tx: &mut Tx,
    platform: &str,
    overdue_before: Timestamp,
    quiet_since: Timestamp,
) -> Result<Option<PublishLog>> {
    let now = tx.now().await?;
    // A late one was handed over more than `$5` seconds after its time. PostgreSQL cannot subtract an infinite time.
    tx.query(sql!(
        "SELECT * FROM publish_logs WHERE id = (
             SELECT id FROM publish_logs
             WHERE status IN ('scheduled', 'retry') AND platform = $1 AND scheduled_at < $2
             ORDER BY scheduled_at, id LIMIT 1)
           AND status IN ('scheduled', 'retry')
           AND NOT EXISTS (SELECT 1 FROM publish_logs WHERE platform = $1 AND attempted_at > $3 AND attempted_at <= $4
                           AND (status <> 'published' OR "
        { sqlite: "(julianday(pending_at) - julianday(scheduled_at)) * 86400.0",
          postgres: "CAST(extract(epoch FROM pending_at) - extract(epoch FROM scheduled_at) AS DOUBLE PRECISION)" } " > $5))
           AND NOT EXISTS (SELECT 1 FROM publish_logs WHERE platform = $1 AND status IN ('pending', 'publishing') AND "
        { sqlite: "(julianday(pending_at) - julianday(scheduled_at)) * 86400.0",
          postgres: "CAST(extract(epoch FROM pending_at) - extract(epoch FROM scheduled_at) AS DOUBLE PRECISION)" } " > $5)"
        { sqlite: "", postgres: " FOR UPDATE" }
    ))
    .bind(platform.to_owned())
    .bind(overdue_before)
    .bind(quiet_since)
    .bind(now)
    .bind(now.since(overdue_before).as_secs_f64())
    .optional()
    .await
}

/// Fails a publication whose named time has come but which has no try left.
pub(in crate::planes::publishing) async fn fail_spent(tx: &mut Tx, id: i64) -> Result<u64> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE publish_logs SET status = 'failed', failed_at = $1, updated_at = $1
         WHERE id = $2 AND status = 'retry'",
    )
    .bind(now)
    .bind(id)
    .execute()
    .await
}

/// Pending publications that have no job, most urgent first, held until the transaction ends.
pub(in crate::planes::publishing) async fn lock_without_job(tx: &mut Tx, limit: i64) -> Result<Vec<PublishLog>> {
    tx.query(sql!(
        "SELECT * FROM publish_logs WHERE status = 'pending' AND job_id IS NULL ORDER BY priority DESC, id LIMIT $1"
        { sqlite: "", postgres: " FOR UPDATE SKIP LOCKED" }
    ))
    .bind(limit)
    .all()
    .await
}

/// Pending publications whose job died before the attempt, held until the transaction ends. Looks at the `limit`
/// longest-waiting ones: the others come to the front as those go out.
pub(in crate::planes::publishing) async fn lock_pending_without_live_job(
    tx: &mut Tx,
    limit: i64,
) -> Result<Vec<PublishLog>> {
    tx.query(sql!(
        "SELECT * FROM publish_logs WHERE status = 'pending' AND id IN (
             SELECT log.id FROM (SELECT id, job_id FROM publish_logs WHERE status = 'pending' AND job_id IS NOT NULL
                                 ORDER BY coalesce(pending_at, created_at) LIMIT $1) AS log
             LEFT JOIN jobs ON jobs.id = log.job_id
             WHERE jobs.id IS NULL OR jobs.status IN ('completed', 'failed', 'cancelled')) "
        { sqlite: "", postgres: " FOR UPDATE SKIP LOCKED" }
    ))
    .bind(limit)
    .all()
    .await
}

/// Hands a publication to the queue under the job that was enqueued for it; `false` when it has gone on meanwhile.
pub(in crate::planes::publishing) async fn hand_over(tx: &mut Tx, log: &PublishLog, job_id: i64) -> Result<bool> {
    let now = tx.now().await?;
    let moved = tx
        .query(
            "UPDATE publish_logs SET retry_count = retry_count + CASE WHEN status = 'retry' THEN 1 ELSE 0 END,
                 pending_at = CASE WHEN status = 'pending' THEN coalesce(pending_at, created_at) ELSE $1 END,
                 status = 'pending', job_id = $2, updated_at = $1
             WHERE id = $3 AND status IN ('scheduled', 'retry', 'pending')",
        )
        .bind(now)
        .bind(job_id)
        .bind(log.id)
        .execute()
        .await?;
    Ok(moved > 0)
}

/// Marks publications `unknown` whose job died after the attempt was recorded; returns those that were.
pub(in crate::planes::publishing) async fn sweep_lost(tx: &mut Tx, limit: i64) -> Result<Vec<PublishLog>> {
    let now = tx.now().await?;
    let mut lost: Vec<PublishLog> = tx
        .query(sql!(
            "UPDATE publish_logs SET status = 'unknown', updated_at = $1,
                 last_error = 'the worker was lost between the call and its answer'
             WHERE status = 'publishing' AND id IN (
                 SELECT log.id FROM publish_logs AS log LEFT JOIN jobs ON jobs.id = log.job_id
                 WHERE log.status = 'publishing'
                   AND (jobs.id IS NULL OR jobs.status IN ('completed', 'failed', 'cancelled'))
                 ORDER BY log.id LIMIT $2 " { sqlite: "", postgres: "FOR UPDATE OF log SKIP LOCKED" } ")
             RETURNING *"
        ))
        .bind(now)
        .bind(limit)
        .all()
        .await?;
    lost.sort_by_key(|log| log.id); // RETURNING has no order
    Ok(lost)
}
