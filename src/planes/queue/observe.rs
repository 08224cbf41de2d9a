//! What the loop sees of the queue: the section `jobs`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::{Result, Timestamp, Tx};

/// More pending jobs than this is a saturated queue (seed heuristic: ">50 pending jobs").
const SATURATED_ABOVE: i64 = 50;

/// The queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobsSection {
    /// Ready to run.
    pub pending: i64,
    /// Running.
    pub processing: i64,
    /// Waiting for another try.
    pub retry: i64,
    /// Out of tries.
    pub failed: i64,
    /// Done.
    pub completed: i64,
    /// Not due yet.
    pub waiting: i64,
    /// Age of the oldest pending job, in whole minutes; 0 when there is none.
    pub oldest_pending_minutes: i64,
    /// More than 50 are pending.
    pub queue_saturated: bool,
}

/// Reads the section; the cost does not grow with finished jobs.
pub async fn observe(tx: &mut Tx, now: Timestamp) -> Result<JobsSection> {
    let counts: Vec<(String, i64)> =
        tx.query("SELECT key, CAST(SUM(n) AS BIGINT) FROM tallies WHERE name = 'jobs' GROUP BY key").all().await?;
    let count = |status: &str| counts.iter().find(|(key, _)| key == status).map_or(0, |(_, n)| *n);
    let oldest: (Option<Timestamp>,) =
        tx.query("SELECT MIN(coalesce(run_at, created_at)) FROM jobs WHERE status = 'pending'").one().await?;
    let pending = count("pending");
    Ok(JobsSection {
        pending,
        processing: count("processing"),
        retry: count("retry"),
        failed: count("failed"),
        completed: count("completed"),
        waiting: count("waiting"),
        oldest_pending_minutes: oldest.0.map_or(0, |oldest| (now.since(oldest).as_secs() / 60) as i64),
        queue_saturated: pending > SATURATED_ABOVE,
    })
}
