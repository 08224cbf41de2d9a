//! What is wrong with a configuration, and where.

use std::fmt;

use crate::telemetry::visible;

/// Why the configuration was refused: one line for each fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub faults: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it was read: a file's name, a variable, a flag, or `default`. Empty until that is known.
    pub origin: String,
    /// The key, e.g. `publishing.sandbox.refuse`; empty for a whole file.
    pub key: String,
    /// What is wrong and what would be taken.
    pub message: String,
}

impl Fault {
    /// A fault whose place is not known yet. Keys and messages quote what was written: it shall not turn a terminal.
    pub(super) fn at(key: impl Into<String>, message: impl Into<String>) -> Self {
        let message: Vec<String> = message.into().lines().map(visible).collect();
        Self { origin: String::new(), key: visible(&key.into()), message: message.join("\n") }
    }
    pub(super) fn from(mut self, origin: &str) -> Self {
        origin.clone_into(&mut self.origin);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.origin, &self.key] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}
