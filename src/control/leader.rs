//! One leader: a lease row on the database's clock, with a term that only grows.
//!
//! Whoever holds the lease may run cycles. Every transaction of a cycle checks the term by [`fence`]: a leader that
//! was paused past its lease finds another term there and cannot commit.

use std::time::Duration;

use serde_json::json;

use crate::actor::Actor;
use crate::db::{Db, Result, Timestamp, Tx};
use crate::ledger::{self, Entry};

/// How long a lease holds. A leader that dies is replaced within this and one look of the others (a second).
pub const LEASE: Duration = Duration::from_secs(6);

/// The lease as the database has it.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Lease {
    /// Empty once it was given back: a lapsed lease that still names its holder was left behind.
    pub holder: String,
    pub term: i64,
    pub acquired_at: Timestamp,
    pub expires_at: Timestamp,
}

/// The term is no longer ours: another instance leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("term {0} is over: another instance leads now")]
pub struct TermOver(pub i64);

/// Takes the lease if it is free, under a new term. A lease that claims to hold for longer than any lease can was
/// written under a clock that has since been set back, and is free.
pub async fn acquire(tx: &mut Tx, holder: &str) -> Result<Option<i64>> {
    let now = tx.now().await?;
    let taken: Option<(i64,)> = tx
        .query(
            "INSERT INTO leases (name, holder, term, acquired_at, expires_at) VALUES ('loop', $1, 1, $2, $3)
             ON CONFLICT (name) DO UPDATE
                 SET holder = excluded.holder, term = leases.term + 1,
                     acquired_at = excluded.acquired_at, expires_at = excluded.expires_at
                 WHERE leases.expires_at <= excluded.acquired_at OR leases.expires_at > $4
             RETURNING term",
        )
        .bind(holder.to_owned())
        .bind(now)
        .bind(now.after(LEASE))
        .bind(now.after(LEASE * 2))
        .optional()
        .await?;
    Ok(taken.map(|(term,)| term))
}

/// Holds the lease for another stretch; `false` when the term is over.
pub async fn renew(db: &Db, holder: &str, term: i64) -> Result<bool> {
    let mut tx = db.begin().await?;
    let renewed = extend(&mut tx, holder, term).await?;
    tx.commit().await?;
    Ok(renewed)
}

/// [`renew`] inside a transaction that is under way: fence and renewal in one statement.
pub async fn extend(tx: &mut Tx, holder: &str, term: i64) -> Result<bool> {
    let now = tx.now().await?;
    let renewed = tx
        .query("UPDATE leases SET expires_at = $1 WHERE name = 'loop' AND term = $2 AND holder = $3")
        .bind(now.after(LEASE))
        .bind(term)
        .bind(holder.to_owned())
        .execute()
        .await?;
    Ok(renewed > 0)
}

/// Gives the lease back, so that another instance can lead at once.
pub async fn release(db: &Db, holder: &str, term: i64) -> Result<()> {
    let mut tx = db.begin().await?;
    let now = tx.now().await?;
    let released = tx
        .query("UPDATE leases SET expires_at = $1, holder = '' WHERE name = 'loop' AND term = $2 AND holder = $3")
        .bind(now)
        .bind(term)
        .bind(holder.to_owned())
        .execute()
        .await?;
    if released > 0 {
        let payload = json!({ "term": term, "instance": holder, "because": "clean stop" });
        ledger::append(&mut tx, &[Entry::new("orchestrator.leader_lost", Actor::System, payload)]).await?;
    }
    tx.commit().await
}

/// Whether `term` is still the term, in this transaction and until it ends: the row is locked against a new leader. It
/// also waits for an earlier transaction of the same leader whose commit got no answer, so that what that one did is
/// to be seen. The lease is held for another stretch: a plan of many actions may take longer than one.
pub async fn fence(tx: &mut Tx, term: i64) -> Result<Result<(), TermOver>> {
    let now = tx.now().await?;
    let held = tx
        .query("UPDATE leases SET expires_at = $1 WHERE name = 'loop' AND term = $2")
        .bind(now.after(LEASE))
        .bind(term)
        .execute()
        .await?;
    Ok(if held > 0 { Ok(()) } else { Err(TermOver(term)) })
}

/// The lease as it stands, whoever holds it.
pub async fn current(db: &Db) -> Result<Option<Lease>> {
    db.query("SELECT holder, term, acquired_at, expires_at FROM leases WHERE name = 'loop'").optional().await
}
