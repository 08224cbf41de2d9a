//! What the loop sees of pipelines: the sections `pipelines` and `engines`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{EngineStatus, Pipelines};
use crate::db::{Result, Sql, Timestamp, Tx};
use crate::sql;

/// Failed runs that the section shows, newest first.
const SHOWN: i64 = 20;

/// The newest runs among which those of triggers are judged.
const JUDGED: i64 = 1_000;

/// Runs; each count goes up to 1,000.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PipelinesSection {
    /// Runs that wait for an engine.
    pub pending: i64,
    pub running: i64,
    /// Runs that wait for a time, a task or another run.
    pub waiting: i64,
    pub paused: i64,
    /// Runs that failed within the last hour.
    pub failed_1h: i64,
    /// Age of the oldest run that waits for an engine, in whole minutes.
    pub oldest_pending_minutes: i64,
    /// The newest of the runs that failed within the last hour and that no other run began, at most 20.
    pub failed: Vec<FailedRun>,
    /// Triggers whose runs failed within the last hour, most failures first, at most 20.
    pub failing_triggers: Vec<FailingTrigger>,
}

/// A trigger whose runs fail: how those of its runs ended that are among the newest 1,000 and ended within the last hour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct FailingTrigger {
    pub id: String,
    pub failed: i64,
    pub completed: i64,
}

/// A run that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct FailedRun {
    pub id: i64,
    pub pipeline_id: String,
    pub trigger_id: Option<String>,
    pub retries: i64,
    pub error: Option<String>,
    pub failed_at: Timestamp,
    /// Whole minutes since.
    #[sqlx(default)]
    pub minutes: i64,
}

/// The engines of the instance that looks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnginesSection {
    pub total: i64,
    pub idle: i64,
    pub running: i64,
    pub paused: i64,
    pub error: i64,
    pub stopped: i64,
}

/// What is read by one statement, with the figures of others.
#[derive(Clone, Copy, sqlx::FromRow)]
pub struct Figures {
    pub runs_pending: i64,
    pub runs_running: i64,
    pub runs_waiting: i64,
    pub runs_paused: i64,
    pub runs_failed_1h: i64,
    pub runs_oldest_pending: Option<Timestamp>,
}

/// The row of [`Figures`]. Runs of each kind are counted up to 1,000, so that a look costs the same however many there
/// are.
pub const FIGURES: Sql = sql!(
    "SELECT (SELECT COUNT(*) FROM (SELECT 1 AS one FROM pipeline_runs WHERE status = 'pending' LIMIT 1000) AS runs)
             AS runs_pending,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM pipeline_runs WHERE status = 'running' LIMIT 1000) AS runs)
             AS runs_running,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM pipeline_runs WHERE status = 'waiting' LIMIT 1000) AS runs)
             AS runs_waiting,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM pipeline_runs WHERE status = 'paused' LIMIT 1000) AS runs)
             AS runs_paused,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM pipeline_runs WHERE status = 'failed' AND finished_at BETWEEN $4 AND $1
                                LIMIT 1000) AS runs) AS runs_failed_1h,
         (SELECT created_at FROM pipeline_runs WHERE status = 'pending' ORDER BY id LIMIT 1) AS runs_oldest_pending"
);

/// Reads the section: its figures where they are not `seen` yet, and lists only where something failed. The cost does
/// not grow with runs, over or not.
pub async fn observe(tx: &mut Tx, now: Timestamp, seen: Option<Figures>) -> Result<PipelinesSection> {
    let hour_ago = now.before(Duration::from_secs(3600));
    let seen = match seen {
        Some(seen) => seen,
        None => tx.figures(FIGURES, now).await?,
    };
    let minutes = |since: Timestamp| (now.since(since).as_secs() / 60) as i64;
    let mut section = PipelinesSection {
        pending: seen.runs_pending,
        running: seen.runs_running,
        waiting: seen.runs_waiting,
        paused: seen.runs_paused,
        failed_1h: seen.runs_failed_1h,
        oldest_pending_minutes: seen.runs_oldest_pending.map_or(0, minutes),
        ..PipelinesSection::default()
    };
    if seen.runs_failed_1h == 0 {
        return Ok(section);
    }
    section.failed = tx
        .query(
            "SELECT id, pipeline_id, trigger_id, retries, error, finished_at AS failed_at FROM pipeline_runs
             WHERE status = 'failed' AND finished_at BETWEEN $1 AND $2 AND parent_run_id IS NULL
             ORDER BY finished_at DESC, id DESC LIMIT $3",
        )
        .bind(hour_ago)
        .bind(now)
        .bind(SHOWN)
        .all::<FailedRun>()
        .await?
        .into_iter()
        .map(|run| FailedRun { minutes: minutes(run.failed_at), ..run })
        .collect();
    section.failing_triggers = tx
        .query(
            "SELECT trigger_id AS id, CAST(SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) AS BIGINT) AS failed,
                 CAST(SUM(CASE WHEN status = 'completed' THEN 1 ELSE 0 END) AS BIGINT) AS completed
             FROM (SELECT trigger_id, status, finished_at FROM pipeline_runs ORDER BY id DESC LIMIT $2) AS newest
             WHERE trigger_id IS NOT NULL AND finished_at >= $1
             GROUP BY trigger_id HAVING SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END) > 0
             ORDER BY failed DESC, trigger_id LIMIT $3",
        )
        .bind(hour_ago)
        .bind(JUDGED)
        .bind(SHOWN)
        .all()
        .await?;
    Ok(section)
}

impl Pipelines {
    /// What the loop sees of this instance's engines.
    pub fn observe_engines(&self) -> EnginesSection {
        let mut section = EnginesSection::default();
        for engine in self.engines() {
            section.total += 1;
            *match engine.health().status {
                EngineStatus::Idle => &mut section.idle,
                EngineStatus::Running => &mut section.running,
                EngineStatus::Paused => &mut section.paused,
                EngineStatus::Error => &mut section.error,
                EngineStatus::Stopped => &mut section.stopped,
            } += 1;
        }
        section
    }
}
