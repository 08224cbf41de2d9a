//! Where a simulation lets the database fail, stall, or do its work and lose the answer.

use async_trait::async_trait;

use super::Result;

/// A place in the life of a statement or transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point<'a> {
    /// Before a writing transaction begins.
    Begin,
    /// Before a reading transaction begins.
    BeginRead,
    /// Before the statement with this text runs.
    Statement(&'a str),
    /// Before a writing transaction's commit is sent.
    BeforeCommit,
    /// After a writing transaction's commit took effect, before its answer arrives.
    AfterCommit,
    /// Before a reading transaction ends.
    EndRead,
}

/// Decides at every [`Point`] whether to go on (`Ok`), to fail (`Err`), or, by awaiting, to stall.
#[async_trait]
pub trait Faults: Send + Sync + 'static {
    /// Called at each point; an error is what the caller sees.
    async fn strike(&self, point: Point<'_>) -> Result<()>;
}
