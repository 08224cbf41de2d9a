//! The planes: the work that the loop watches and steers. Each knows its own tables, what the loop sees of them
//! (`observe`) and what the loop may do to them (`act`); none knows another, but all may use [`queue`].

pub mod fleet;
pub mod pipelines;
pub mod publishing;
pub mod queue;

use serde_json::Value;

use crate::db;
use crate::ledger::Stop;
use crate::problem::Problem;

/// What an action did, for the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// What changed, as an auditor would want to read it.
    pub detail: Value,
}

/// Why an action did nothing. Its transaction is rolled back either way.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// What the snapshot showed is no longer so, or a bound forbids it. Said in a sentence.
    #[error("{0}")]
    Refused(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] db::Error),
}

impl ActError {
    /// A refusal with its reason.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into())
    }
}

impl From<ActError> for Stop {
    fn from(error: ActError) -> Self {
        Self::Problem(match error {
            ActError::Refused(reason) => Problem::conflict(sentence(&reason)),
            ActError::Store(error) => error.into(),
        })
    }
}

/// The reason as a sentence: capital and full stop.
fn sentence(reason: &str) -> String {
    let mut letters = reason.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}
