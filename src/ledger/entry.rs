//! An entry of the ledger and its hash.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
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

/// One entry of the ledger: a row of `ledger_entries`, and what the doors show of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
#[schema(as = LedgerEntry)]
pub struct StoredEntry {
    pub id: i64,
    pub cycle_id: Option<i64>,
    /// e.g. `orchestrator.action_executed`
    pub event_type: String,
    pub severity: String,
    /// `loop`, `system` or `operator:<name>`
    pub actor: String,
    /// What it happened to, e.g. `clip:12`.
    pub subject: Option<String>,
    /// The rule that asked for it.
    pub rule: Option<String>,
    /// The rest: JSON, letter for letter as it was hashed.
    #[serde(serialize_with = "as_json", deserialize_with = "from_json")]
    #[schema(value_type = Value)]
    pub payload: String,
    pub created_at: Timestamp,
    pub prev_hash: String,
    pub hash: String,
}

fn as_json<S: Serializer>(payload: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serde_json::from_str::<&RawValue>(payload).map_err(serde::ser::Error::custom)?.serialize(serializer)
}

fn from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Box::<RawValue>::deserialize(deserializer)?.get().to_owned())
}

impl StoredEntry {
    /// SHA-256 over the previous hash and every column of this row, each with its length before it so that no two
    /// different rows read the same; in hexadecimal. Anyone can recompute it: see `docs/OPERATIONS.md`.
    pub fn compute_hash(&self) -> String {
        let fields = Fields {
            cycle_id: self.cycle_id,
            event_type: &self.event_type,
            severity: &self.severity,
            actor: &self.actor,
            subject: self.subject.as_deref(),
            rule: self.rule.as_deref(),
        };
        fields.hash(&self.prev_hash, self.id, &self.payload, &self.created_at.to_string())
    }
}

/// What an entry is about: the columns between its place in the chain and its payload.
pub(super) struct Fields<'a> {
    pub(super) cycle_id: Option<i64>,
    pub(super) event_type: &'a str,
    pub(super) severity: &'a str,
    pub(super) actor: &'a str,
    pub(super) subject: Option<&'a str>,
    pub(super) rule: Option<&'a str>,
}

impl Fields<'_> {
    /// As [`StoredEntry::compute_hash`].
    pub(super) fn hash(&self, prev_hash: &str, id: i64, payload: &str, created_at: &str) -> String {
        let cycle_id = self.cycle_id.map(|id| id.to_string()).unwrap_or_default();
        let id = id.to_string();
        let (subject, rule) = (self.subject.unwrap_or_default(), self.rule.unwrap_or_default());
        let mut bytes = Vec::with_capacity(512);
        for text in
            [prev_hash, &id, &cycle_id, self.event_type, self.severity, self.actor, subject, rule, payload, created_at]
        {
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        hex(&Sha256::digest(bytes))
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}
