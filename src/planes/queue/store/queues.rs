//! Queues that were paused or given a limit.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::actor::Actor;
use crate::db::{Db, Result, Timestamp, Tx};

/// A queue's row; a queue without one runs without limits.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
pub struct QueueState {
    pub name: String,
    pub paused: bool,
    pub paused_by: Option<String>,
    pub paused_at: Option<Timestamp>,
    /// Jobs of the queue that run at once.
    pub concurrency_limit: Option<i64>,
    /// Starts in `rate_period_ms`.
    pub rate_limit: Option<i64>,
    pub rate_period_ms: i64,
}

/// Stops handing out a queue's jobs; running ones go on. `false` when it was paused already.
pub async fn pause(tx: &mut Tx, queue: &str, actor: &Actor) -> Result<bool> {
    let now = tx.now().await?;
    let paused = tx
        .query(
            "INSERT INTO queues (name, paused, paused_by, paused_at, updated_at) VALUES ($1, true, $2, $3, $3)
             ON CONFLICT (name) DO UPDATE SET paused = true, paused_by = $2, paused_at = $3, updated_at = $3
                 WHERE NOT queues.paused",
        )
        .bind(queue.to_owned())
        .bind(actor.to_string())
        .bind(now)
        .execute()
        .await?;
    Ok(paused > 0)
}

/// Hands a queue's jobs out again; `false` when it was not paused. Wake [`Topic::Jobs`](crate::db::Topic) after the
/// commit.
pub async fn resume(tx: &mut Tx, queue: &str) -> Result<bool> {
    let now = tx.now().await?;
    let resumed = tx
        .query(
            "UPDATE queues SET paused = false, paused_by = NULL, paused_at = NULL, updated_at = $1
             WHERE name = $2 AND paused",
        )
        .bind(now)
        .bind(queue.to_owned())
        .execute()
        .await?;
    Ok(resumed > 0)
}

/// Limits a queue; `None` takes a limit away. `rate_limit`: so many starts in such a time, to the millisecond.
pub async fn limit_queue(
    tx: &mut Tx,
    queue: &str,
    concurrency_limit: Option<i64>,
    rate_limit: Option<(i64, Duration)>,
) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO queues (name, concurrency_limit, rate_limit, rate_period_ms, updated_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name) DO UPDATE SET concurrency_limit = $2, rate_limit = $3, rate_period_ms = $4, updated_at = $5",
    )
    .bind(queue.to_owned())
    .bind(concurrency_limit)
    .bind(rate_limit.map(|(starts, _)| starts))
    .bind(rate_limit.map_or(1_000, |(_, period)| i64::try_from(period.as_millis()).unwrap_or(i64::MAX)))
    .bind(now)
    .execute()
    .await?;
    Ok(())
}

/// Queues with a row, by name.
pub async fn queues(db: &Db) -> Result<Vec<QueueState>> {
    db.query("SELECT * FROM queues ORDER BY name LIMIT 1000").all().await
}
