//! An entry of the ledger and its hash.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::actor::Actor;
use crate::db::Timestamp;

/// How bad it is. `error` and `critical` count against health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Error,
    Critical,
}

impl Severity {
    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// Something to be written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The cycle in which it happened.
    pub cycle_id: Option<i64>,
    /// e.g. `orchestrator.action_executed`.
    pub event_type: &'static str,
    pub severity: Severity,
    pub actor: Actor,
    /// What it happened to, e.g. `clip:12`.
    pub subject: Option<String>,
    /// The rule that asked for it.
    pub rule: Option<String>,
    /// The rest, as an auditor would want to read it.
    pub payload: Value,
}

impl Entry {
    /// An entry of severity `info` without cycle, subject or rule.
    pub fn new(event_type: &'static str, actor: Actor, payload: Value) -> Self {
        Self { cycle_id: None, event_type, severity: Severity::Info, actor, subject: None, rule: None, payload }
    }
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }
    pub fn rule(mut self, rule: Option<String>) -> Self {
        self.rule = rule;
        self
    }
    pub fn cycle(mut self, cycle_id: i64) -> Self {
        self.cycle_id = Some(cycle_id);
        self
    }
}

/// A row of `ledger_entries`.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct StoredEntry {
    pub id: i64,
    pub cycle_id: Option<i64>,
    pub event_type: String,
    pub severity: String,
    pub actor: String,
    pub subject: Option<String>,
    pub rule: Option<String>,
    /// JSON text exactly as it was hashed.
    pub payload: String,
    pub created_at: Timestamp,
    pub prev_hash: String,
    pub hash: String,
}

impl StoredEntry {
    /// SHA-256 over the previous hash and every column of this row, each with its length before it so that no two
    /// different rows read the same; in hexadecimal. Anyone can recompute it: see `docs/OPERATIONS.md`.
    pub fn compute_hash(&self) -> String {
        let mut hasher = Sha256::new();
        let mut field = |text: &str| {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text.as_bytes());
        };
        field(&self.prev_hash);
        field(&self.id.to_string());
        field(&self.cycle_id.map(|id| id.to_string()).unwrap_or_default());
        field(&self.event_type);
        field(&self.severity);
        field(&self.actor);
        field(self.subject.as_deref().unwrap_or_default());
        field(self.rule.as_deref().unwrap_or_default());
        field(&self.payload);
        field(&self.created_at.to_string());
        hex(&hasher.finalize())
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
