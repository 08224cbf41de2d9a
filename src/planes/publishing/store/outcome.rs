//! What the jobs write: an attempt, and how it ended.

use crate::db::{Db, Result, Timestamp, Tx};
use crate::planes::publishing::model::PublishLog;
use crate::planes::queue;

/// Records an attempt: only for the job that carries the publication, and only while that job holds its lease.
pub(in crate::planes::publishing) async fn begin_attempt(
    tx: &mut Tx,
    log_id: i64,
    job: &queue::Job,
) -> Result<Option<PublishLog>> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE publish_logs SET status = 'publishing', attempted_at = $1, updated_at = $1
         WHERE id = $2 AND status = 'pending' AND job_id = $3
           AND EXISTS (SELECT 1 FROM jobs WHERE id = $3 AND lease = $4 AND status = 'processing')
         RETURNING *",
    )
    .bind(now)
    .bind(log_id)
    .bind(job.id)
    .bind(job.lease)
    .optional()
    .await
}

/// How an attempt or a question to the platform ended.
pub(in crate::planes::publishing) enum Settled<'a> {
    Published { external_id: Option<&'a str>, external_url: Option<&'a str> },
    Failed { reason: &'a str },
    Retry { reason: &'a str, at: Timestamp },
    Unknown { reason: &'a str },
}

/// Settles an attempt that is in `from` (`publishing` or `unknown`); `false` when the publication has gone on meanwhile,
/// be it to another attempt in the same state.
pub(in crate::planes::publishing) async fn settle(
    tx: &mut Tx,
    log: &PublishLog,
    from: &'static str,
    how: &Settled<'_>,
) -> Result<bool> {
    let now = tx.now().await?;
    let query = match how {
        Settled::Published { external_id, external_url } => tx
            .query(
                "UPDATE publish_logs SET status = 'published', published_at = $1, updated_at = $1, last_error = NULL,
                     external_id = $5, external_url = $6 WHERE id = $2 AND status = $3 AND retry_count = $4",
            )
            .bind(now)
            .bind(log.id)
            .bind(from)
            .bind(log.retry_count)
            .bind(external_id.map(str::to_owned))
            .bind(external_url.map(str::to_owned)),
        Settled::Failed { reason } => tx
            .query(
                "UPDATE publish_logs SET status = 'failed', failed_at = $1, updated_at = $1, last_error = $5
                 WHERE id = $2 AND status = $3 AND retry_count = $4",
            )
            .bind(now)
            .bind(log.id)
            .bind(from)
            .bind(log.retry_count)
            .bind((*reason).to_owned()),
        Settled::Retry { reason, at } => tx
            .query(
                "UPDATE publish_logs SET status = 'retry', scheduled_at = $6, updated_at = $1, last_error = $5
                 WHERE id = $2 AND status = $3 AND retry_count = $4",
            )
            .bind(now)
            .bind(log.id)
            .bind(from)
            .bind(log.retry_count)
            .bind((*reason).to_owned())
            .bind(*at),
        Settled::Unknown { reason } => tx
            .query(
                "UPDATE publish_logs SET status = 'unknown', updated_at = $1, last_error = $5
                 WHERE id = $2 AND status = $3 AND retry_count = $4",
            )
            .bind(now)
            .bind(log.id)
            .bind(from)
            .bind(log.retry_count)
            .bind((*reason).to_owned()),
    };
    if query.execute().await? == 0 {
        return Ok(false);
    }
    if let (Settled::Published { .. }, Some(campaign_id)) = (how, log.campaign_id) {
        // What is out must be recorded, also where the campaign's sum is at its bound.
        tx.query(
            "UPDATE campaigns SET spent_cents = CASE WHEN spent_cents < 1000000000000000000 - $1 THEN spent_cents + $1
                 ELSE 1000000000000000000 END, updated_at = $2 WHERE id = $3",
        )
        .bind(log.cost_cents)
        .bind(now)
        .bind(campaign_id)
        .execute()
        .await?;
    }
    Ok(true)
}

/// Publications with an unknown outcome, in order of id, after `after`.
pub(in crate::planes::publishing) async fn unknown_after(db: &Db, after: i64, limit: i64) -> Result<Vec<PublishLog>> {
    db.query("SELECT * FROM publish_logs WHERE status = 'unknown' AND id > $1 ORDER BY id LIMIT $2")
        .bind(after)
        .bind(limit)
        .all()
        .await
}

/// Counts the age of an unknown attempt from now on.
pub(in crate::planes::publishing) async fn begin_wait(tx: &mut Tx, log: &PublishLog) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE publish_logs SET attempted_at = $1, updated_at = $1
         WHERE id = $2 AND status = 'unknown' AND retry_count = $3",
    )
    .bind(now)
    .bind(log.id)
    .bind(log.retry_count)
    .execute()
    .await?;
    Ok(())
}
