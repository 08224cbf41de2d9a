//! Agents and their streams.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::redacted;

/// The token that agents use on loopback where no tokens are set at all.
pub const DEVELOPMENT_TOKEN: &str = "dev-shared-token";

/// Agents and their streams.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fleet {
    /// What agents that have no token of their own prove themselves by. Without it `dev-shared-token` is taken, only on
    /// loopback and where no `auth.tokens` are set.
    #[serde(serialize_with = "redacted")]
    pub agent_token: SecretString,
    /// Milliseconds between an agent's heartbeats.
    pub heartbeat_interval_ms: u64,
    /// Milliseconds without a sign of life after which an agent is offline.
    pub heartbeat_timeout_ms: u64,
    /// Milliseconds that a stream has to end by itself when it is told to.
    pub stop_grace_ms: u64,
    /// Milliseconds after that until a stream that was killed is given up.
    pub kill_after_ms: u64,
    /// Milliseconds that an agent that is offline keeps its jobs; two more for each agent that was lost with it.
    pub reconnect_grace_ms: u64,
    /// `spread` (jobs over all agents) or `pack` (few agents full).
    pub placement: Strategy,
}

/// How jobs are given to agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// To the agent with the most free slots.
    #[default]
    Spread,
    /// To the agent with the fewest free slots.
    Pack,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            agent_token: SecretString::default(),
            heartbeat_interval_ms: 3_000,
            heartbeat_timeout_ms: 10_000,
            stop_grace_ms: 10_000,
            kill_after_ms: 5_000,
            reconnect_grace_ms: 30_000,
            placement: Strategy::default(),
        }
    }
}
