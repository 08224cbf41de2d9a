//! Pipelines and their engines.

use serde::{Deserialize, Serialize};

/// Pipelines and their engines.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pipelines {
    /// Engines of this process; each carries out one run at a time.
    pub engines: usize,
    /// Seconds that a run is leased to an engine; a running one is renewed.
    pub lease_seconds: u64,
}

impl Default for Pipelines {
    fn default() -> Self {
        Self { engines: 4, lease_seconds: 10 }
    }
}
