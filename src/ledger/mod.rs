//! The audit chain: what the loop and operators did, saw and why, append-only.
//!
//! An [`Entry`] is appended inside the transaction whose effect it records, so that both commit or neither. Each
//! stored row carries the hash of the one before it; [`verify`](store::verify) walks the chain. `ledger_head` holds
//! the chain's end: writers queue on that row, which also makes a cut-off tail visible.
//!
//! | room | holds |
//! |---|---|
//! | `entry` | an entry and its hash |
//! | `store` | all of the ledger's SQL: append, read, verify, prune |
//! | `observe` | the section `ledger` of the snapshot |

mod entry;
mod observe;
mod store;

pub use entry::{Entry, Severity, StoredEntry};
pub use observe::{ErrorView, LedgerSection, observe};
pub use store::{Filter, Pruned, Verification, append, prune, query, verify};
