//! Reading the configuration: file < environment < flags, with unknown keys and impossible values refused.

use super::Config;

/// Placeholder until loading is written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// What the command line sets over file and environment.
#[derive(Debug, Clone, Default)]
pub struct Overrides {}

/// The file in the user's data folder.
pub(super) fn default_database_url() -> String {
    String::from("sqlite://showrunner.db")
}

impl Config {
    /// Reads everything.
    pub fn load(_overrides: &Overrides) -> Result<Self, ConfigError> {
        Ok(Self::default())
    }
}
