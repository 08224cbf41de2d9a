//! What the loop sees of the fleet: the sections `agents` and `streams`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::JobId;
use crate::db::{Result, Timestamp, Tx};

/// Rows that a list shows at most.
const SHOWN: i64 = 20;
/// What is over is counted up to here.
const COUNTED: i64 = 1_000;
/// Lost connections in ten minutes from which on an agent is shown as one that flaps.
const DROPS: i64 = 3;
/// How long those count.
const DROPS_COUNT: Duration = Duration::from_secs(10 * 60);
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

#[derive(sqlx::FromRow)]
struct Counts {
    state: String,
    agents: i64,
    slots: i64,
    busy: i64,
}

/// Reads `agents`: the connected ones are counted, those of the past are not.
pub async fn observe_agents(tx: &mut Tx, now: Timestamp) -> Result<AgentsSection> {
    let counts: Vec<Counts> = tx
        .query(
            "SELECT state, COUNT(*) AS agents, CAST(SUM(slots) AS BIGINT) AS slots, CAST(SUM(busy) AS BIGINT) AS busy
             FROM agents WHERE instance IS NOT NULL GROUP BY state
             UNION ALL
             SELECT 'OFFLINE', COUNT(*), 0, 0
             FROM (SELECT 1 AS one FROM agents WHERE state = 'OFFLINE' LIMIT $1) AS away",
        )
        .bind(COUNTED)
        .all()
        .await?;
    let mut section = AgentsSection::default();
    for Counts { state, agents, slots, busy } in counts {
        match state.as_str() {
            "OFFLINE" => section.offline = agents,
            "DRAINING" => section.draining = agents,
            "ERROR" => section.error = agents,
            _ => {
                section.idle += if state == "IDLE" { agents } else { 0 };
                section.slots += slots;
                section.free_slots += (slots - busy).max(0);
            }
        }
        section.online += if state == "OFFLINE" { 0 } else { agents };
    }
    if section.online + section.offline == 0 {
        return Ok(section);
    }
    section.flapping = tx
        .query(
            "SELECT id, drops, drain FROM agents WHERE drops >= $1 AND drops_since >= $2
             ORDER BY drops DESC, id LIMIT $3",
        )
        .bind(DROPS)
        .bind(now.before(DROPS_COUNT))
        .bind(SHOWN)
        .all()
        .await?;
    let drained: Vec<(String, bool, Timestamp)> = tx
        .query(
            "SELECT id, instance IS NOT NULL, coalesce(drops_since, updated_at) AS since FROM agents
             WHERE drained_by = 'loop' ORDER BY since, id LIMIT $1",
        )
        .bind(SHOWN)
        .all()
        .await?;
    section.drained = drained
        .into_iter()
        .map(|(id, online, since)| DrainedAgent { id, online, calm_minutes: (now.since(since).as_secs() / 60) as i64 })
        .collect();
    Ok(section)
}

/// Reads `streams`: the living are counted by their index, and lists are read only where there is something to show.
pub async fn observe_streams(tx: &mut Tx, now: Timestamp) -> Result<StreamsSection> {
    let counts: Vec<(String, i64, Option<Timestamp>)> = tx
        .query(
            "SELECT status, COUNT(*), MIN(created_at) FROM stream_jobs WHERE ended_at IS NULL GROUP BY status
             UNION ALL
             SELECT 'FAILED', COUNT(*), NULL FROM (SELECT 1 AS one FROM stream_jobs
                 WHERE status = 'FAILED' AND ended_at BETWEEN $1 AND $2 LIMIT $3) AS failed",
        )
        .bind(now.before(Duration::from_secs(3600)))
        .bind(now)
        .bind(COUNTED)
        .all()
        .await?;
    let mut section = StreamsSection::default();
    let mut oldest: Option<Timestamp> = None;
    for (status, count, since) in counts {
        match status.as_str() {
            "CREATED" | "PENDING" => {
                section.waiting += count;
                oldest = oldest.into_iter().chain(since).min();
            }
            "ASSIGNED" | "ACCEPTED" | "STARTING" => section.starting += count,
            "RUNNING" => section.running = count,
            "STOPPING" => section.stopping = count,
            "UNKNOWN" => section.unknown = count,
            "FAILED" => section.failed_1h = count,
            _ => {}
        }
    }
    section.oldest_waiting_minutes = oldest.map_or(0, |oldest| (now.since(oldest).as_secs() / 60) as i64);
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
