//! The audit chain: what the loop and operators did, saw and why, append-only.
//!
//! An [`Entry`] is appended inside the transaction whose effect it records, so that both commit or neither. Each
//! stored row carries the hash of the one before it; [`verify`](verify::verify) walks the chain. `ledger_head` holds
//! the chain's end: writers queue on that row, which also makes a cut-off tail visible.
//!
//! | room | holds |
//! |---|---|
//! | `entry` | an entry and its hash |
//! | `change` | a change by a person: rows, entry and kept answer in one transaction |
//! | `store` | append, prune |
//! | `verify` | the walk over the chain |
//! | `query` | reading what fits a filter |
//! | `observe` | the section `ledger` of the snapshot |

mod change;
mod entry;
mod observe;
mod query;
mod store;
mod verify;

pub use change::{Change, Stop};
pub use entry::{Entry, Severity, StoredEntry};
pub use observe::{ErrorView, FIGURES, Figures, LedgerSection, observe};
pub use query::{Filter, query};
pub use store::{Pruned, append, prune};
pub use verify::{Verification, verify};
