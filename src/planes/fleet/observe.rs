//! What the loop sees of the fleet: the sections `agents` and `streams`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::JobId;
use crate::db::{AGO, Result, Sql, Timestamp, Tx};
use crate::sql;

/// Rows that a list shows at most.
const SHOWN: i64 = 20;
/// How long lost connections count; from three on an agent is shown as one that flaps.
const DROPS_COUNT: Duration = AGO[1];
/// A running stream is shown as one that stands still from here on.
const STILL: Duration = Duration::from_secs(30);

/// Agents; those that are offline are counted up to 1,000.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentsSection {
    /// Connected.
    pub online: i64,
    pub offline: i64,
    /// With a free slot.
    pub idle: i64,
    pub draining: i64,
    pub error: i64,
    /// Of all that take jobs.
    pub slots: i64,
    pub free_slots: i64,
    /// Agents that lost at least three connections in the running ten minutes, most first, at most 20.
    pub flapping: Vec<FlappingAgent>,
    /// Agents that the loop has drained, those that have been calm for longest first, at most 20.
    pub drained: Vec<DrainedAgent>,
}

/// An agent that comes and goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct FlappingAgent {
    pub id: String,
    pub drops: i64,
    pub drain: bool,
}

/// An agent that the loop has drained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrainedAgent {
    pub id: String,
    pub online: bool,
    /// Whole minutes since it began to lose connections.
    pub calm_minutes: i64,
}

/// Streams.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StreamsSection {
    /// For an agent.
    pub waiting: i64,
    /// Offered, taken or beginning.
    pub starting: i64,
    pub running: i64,
    pub stopping: i64,
    /// On agents that are out of reach.
    pub unknown: i64,
    /// Within the last hour, counted up to 1,000.
    pub failed_1h: i64,
    /// Age of the oldest stream that waits, in whole minutes.
    pub oldest_waiting_minutes: i64,
    /// Running streams that report progress and have made none for at least 30 seconds, longest first, at most 20.
    pub still: Vec<StillStream>,
}

/// A running stream without progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StillStream {
    /// e.g. `job-12`
    pub id: String,
    pub agent_id: String,
    pub still_seconds: i64,
}

/// What is read of agents by one statement, with the figures of others.
#[derive(Clone, Copy, sqlx::FromRow)]
pub struct AgentFigures {
    pub agents_online: i64,
    pub agents_offline: i64,
    pub agents_idle: i64,
    pub agents_draining: i64,
    pub agents_error: i64,
    pub agents_slots: i64,
    pub agents_free_slots: i64,
    /// 1 where any agent flaps.
    pub agents_flapping: i64,
    /// 1 where the loop has drained any.
    pub agents_drained: i64,
}

/// The row of [`AgentFigures`]: the connected ones are counted, those of the past are not.
pub const AGENT_FIGURES: Sql = sql!(
    "SELECT states.*,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM agents WHERE state = 'OFFLINE' LIMIT 1000) AS away) AS agents_offline,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM agents WHERE drops >= 3 AND drops_since >= $3 LIMIT 1) AS any_one)
             AS agents_flapping,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM agents WHERE drained_by = 'loop' LIMIT 1) AS any_one)
             AS agents_drained
     FROM (SELECT CAST(coalesce(SUM(agents), 0) AS BIGINT) AS agents_online,
             CAST(coalesce(SUM(agents) FILTER (WHERE state = 'IDLE'), 0) AS BIGINT) AS agents_idle,
             CAST(coalesce(SUM(agents) FILTER (WHERE state = 'DRAINING'), 0) AS BIGINT) AS agents_draining,
             CAST(coalesce(SUM(agents) FILTER (WHERE state = 'ERROR'), 0) AS BIGINT) AS agents_error,
             CAST(coalesce(SUM(slots) FILTER (WHERE state NOT IN ('DRAINING', 'ERROR')), 0) AS BIGINT) AS agents_slots,
             CAST(coalesce(SUM(slots - busy) FILTER (WHERE state NOT IN ('DRAINING', 'ERROR') AND slots > busy), 0)
                 AS BIGINT) AS agents_free_slots
         FROM (SELECT state, COUNT(*) AS agents, SUM(slots) AS slots, SUM(busy) AS busy
               FROM agents WHERE instance IS NOT NULL GROUP BY state) AS connected) AS states"
);

/// Reads `agents`: its figures where they are not `seen` yet, and lists only where there is something to show.
pub async fn observe_agents(tx: &mut Tx, now: Timestamp, seen: Option<AgentFigures>) -> Result<AgentsSection> {
    let seen: AgentFigures = match seen {
        Some(seen) => seen,
        None => tx.figures(AGENT_FIGURES, now).await?,
    };
    let mut section = AgentsSection {
        online: seen.agents_online,
        offline: seen.agents_offline,
        idle: seen.agents_idle,
        draining: seen.agents_draining,
        error: seen.agents_error,
        slots: seen.agents_slots,
        free_slots: seen.agents_free_slots,
        ..AgentsSection::default()
    };
    if seen.agents_flapping > 0 {
        section.flapping = tx
            .query(
                "SELECT id, drops, drain FROM agents WHERE drops >= 3 AND drops_since >= $1
                 ORDER BY drops DESC, id LIMIT $2",
            )
            .bind(now.before(DROPS_COUNT))
            .bind(SHOWN)
            .all()
            .await?;
    }
    if seen.agents_drained > 0 {
        section.drained = drained(tx, now).await?;
    }
    Ok(section)
}

async fn drained(tx: &mut Tx, now: Timestamp) -> Result<Vec<DrainedAgent>> {
    let drained: Vec<(String, bool, Timestamp)> = tx
        .query(
            "SELECT id, instance IS NOT NULL, coalesce(drops_since, updated_at) AS since FROM agents
             WHERE drained_by = 'loop' ORDER BY since, id LIMIT $1",
        )
        .bind(SHOWN)
        .all()
        .await?;
    let view =
        |(id, online, since)| DrainedAgent { id, online, calm_minutes: (now.since(since).as_secs() / 60) as i64 };
    Ok(drained.into_iter().map(view).collect())
}

/// What is read of streams by one statement, with the figures of others.
#[derive(Clone, Copy, sqlx::FromRow)]
pub struct StreamFigures {
    pub streams_waiting: i64,
    pub streams_starting: i64,
    pub streams_running: i64,
    pub streams_stopping: i64,
    pub streams_unknown: i64,
    pub streams_failed_1h: i64,
    pub streams_oldest_waiting: Option<Timestamp>,
}

/// The row of [`StreamFigures`]: the living are counted by their index.
pub const STREAM_FIGURES: Sql = sql!(
    "SELECT living.*,
         (SELECT COUNT(*) FROM (SELECT 1 AS one FROM stream_jobs WHERE status = 'FAILED' AND ended_at BETWEEN $4 AND $1
              LIMIT 1000) AS failed) AS streams_failed_1h
     FROM (SELECT COUNT(*) FILTER (WHERE status IN ('CREATED', 'PENDING')) AS streams_waiting,
             MIN(created_at) FILTER (WHERE status IN ('CREATED', 'PENDING')) AS streams_oldest_waiting,
             COUNT(*) FILTER (WHERE status IN ('ASSIGNED', 'ACCEPTED', 'STARTING')) AS streams_starting,
             COUNT(*) FILTER (WHERE status = 'RUNNING') AS streams_running,
             COUNT(*) FILTER (WHERE status = 'STOPPING') AS streams_stopping,
             COUNT(*) FILTER (WHERE status = 'UNKNOWN') AS streams_unknown
         FROM stream_jobs WHERE ended_at IS NULL) AS living"
);

/// Reads `streams`: its figures where they are not `seen` yet, and lists only where there is something to show.
pub async fn observe_streams(tx: &mut Tx, now: Timestamp, seen: Option<StreamFigures>) -> Result<StreamsSection> {
    let seen: StreamFigures = match seen {
        Some(seen) => seen,
        None => tx.figures(STREAM_FIGURES, now).await?,
    };
    let oldest = seen.streams_oldest_waiting;
    let mut section = StreamsSection {
        waiting: seen.streams_waiting,
        starting: seen.streams_starting,
        running: seen.streams_running,
        stopping: seen.streams_stopping,
        unknown: seen.streams_unknown,
        failed_1h: seen.streams_failed_1h,
        oldest_waiting_minutes: oldest.map_or(0, |oldest| (now.since(oldest).as_secs() / 60) as i64),
        still: Vec::new(),
    };
    if section.running == 0 {
        return Ok(section);
    }
    let still: Vec<(i64, String, Timestamp)> = tx
        .query(
            "SELECT id, agent_id, progressed_at FROM stream_jobs
             WHERE status = 'RUNNING' AND progressed_at <= $1 ORDER BY progressed_at, id LIMIT $2",
        )
        .bind(now.before(STILL))
        .bind(SHOWN)
        .all()
        .await?;
    section.still = still
        .into_iter()
        .map(|(id, agent_id, since)| StillStream {
            id: JobId(id).to_string(),
            agent_id,
            still_seconds: now.since(since).as_secs() as i64,
        })
        .collect();
    Ok(section)
}
