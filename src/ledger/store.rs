//! The ledger's SQL, but for reading by filters and the walk over the chain: append, prune.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::entry::{Entry, StoredEntry};
use crate::actor::Actor;
use crate::db::{Db, Dialect, Result, Sql, Timestamp, Tx};
use crate::sql;

/// Entries that one transaction of retention takes away: others write to the ledger in between.
const PRUNED_AT_ONCE: i64 = 10_000;

/// Appends `entries` to the chain, in order. Call it last in a transaction: from here to the commit, every other
/// writer of the ledger waits.
pub async fn append(tx: &mut Tx, entries: &[Entry]) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    // A row that somebody else wrote behind the end is stepped over; `verify` names it.
    let (mut id, mut hash): (i64, String) = match tx.dialect() {
        Dialect::Sqlite => {
            tx.query(
                "SELECT MAX(entry_id, coalesce((SELECT MAX(id) FROM ledger_entries), 0)), hash
                 FROM ledger_head WHERE id = 1",
            )
            .one()
            .await?
        }
        // Two statements: the second one sees what was committed while the first waited for the row.
        Dialect::Postgres => {
            let (id, hash, now): (i64, String, Timestamp) = tx
                .query("SELECT entry_id, hash, clock_timestamp() FROM ledger_head WHERE id = 1 FOR UPDATE")
                .one()
                .await?;
            tx.learn_now(now);
            let (last,): (i64,) = tx.query("SELECT coalesce(MAX(id), 0) FROM ledger_entries").one().await?;
            (id.max(last), hash)
        }
    };
    let now = tx.now().await?;
    for pair in entries.chunks(2) {
        let mut chained = Vec::with_capacity(pair.len());
        for entry in pair {
            id += 1;
            let mut stored = StoredEntry {
                id,
                cycle_id: entry.cycle_id,
                event_type: entry.event_type.to_owned(),
                severity: entry.severity.as_str().to_owned(),
                actor: entry.actor.to_string(),
                subject: entry.subject.clone(),
                rule: entry.rule.clone(),
                payload: entry.payload.to_string(),
                created_at: now,
                prev_hash: hash,
                hash: String::new(),
            };
            stored.hash = stored.compute_hash();
            hash = stored.hash.clone();
            chained.push(stored);
        }
        insert(tx, chained).await?;
    }
    Ok(())
}

/// The statement that writes entries and makes the last one the chain's end, in one round trip.
macro_rules! written {
    ($sqlite:literal, $postgres:literal, $head:literal) => {
        sql!(
            { sqlite: "", postgres: "WITH written AS (" }
            "INSERT INTO ledger_entries
                 (id, cycle_id, event_type, severity, actor, subject, rule, payload, created_at, prev_hash, hash)
             VALUES "
            { sqlite: $sqlite, postgres: $postgres }
            " UPDATE ledger_head SET " $head " WHERE id = 1"
        )
    };
}

const ONE: Sql = written!(
    "($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);",
    "($1, $2, $3, $4, $5, $6, $7, CAST($8 AS JSON), $9, $10, $11))",
    "entry_id = $1, hash = $11"
);

/// Two at once: so many an idle cycle has.
const TWO: Sql = written!(
    "($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11), ($12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22);",
    "($1, $2, $3, $4, $5, $6, $7, CAST($8 AS JSON), $9, $10, $11),
     ($12, $13, $14, $15, $16, $17, $18, CAST($19 AS JSON), $20, $21, $22))",
    "entry_id = $12, hash = $22"
);

/// Writes one entry or two.
async fn insert(tx: &mut Tx, entries: Vec<StoredEntry>) -> Result<()> {
    let mut query = tx.query(if entries.len() == 1 { ONE } else { TWO });
    for entry in entries {
        query = query
            .bind(entry.id)
            .bind(entry.cycle_id)
            .bind(entry.event_type)
            .bind(entry.severity)
            .bind(entry.actor)
            .bind(entry.subject)
            .bind(entry.rule)
            .bind(entry.payload)
            .bind(entry.created_at)
            .bind(entry.prev_hash)
            .bind(entry.hash);
    }
    query.execute().await?;
    Ok(())
}

/// What pruning took away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pruned {
    /// Entries that are gone.
    pub entries: i64,
    /// The last of them; 0 when nothing was old enough.
    pub through_id: i64,
}

/// Takes away entries older than `keep`, behind a checkpoint from which the chain still verifies, and says so in
/// the ledger, in transactions of [`PRUNED_AT_ONCE`]. The newest entry always stays.
pub async fn prune(db: &Db, keep: Duration, actor: &Actor) -> Result<Pruned> {
    let mut pruned = Pruned { entries: 0, through_id: 0 };
    loop {
        let stretch = prune_stretch(db, keep, actor).await?;
        pruned.entries += stretch.entries;
        pruned.through_id = pruned.through_id.max(stretch.through_id);
        if stretch.entries < PRUNED_AT_ONCE {
            return Ok(pruned);
        }
    }
}

async fn prune_stretch(db: &Db, keep: Duration, actor: &Actor) -> Result<Pruned> {
    let mut tx = db.begin().await?;
    let now = tx.now().await?;
    // Every entry up to the first young one goes: the chain has no holes, even if a clock once jumped.
    let through: Option<(i64, String)> = tx
        .query(
            "SELECT id, hash FROM ledger_entries
             WHERE id < coalesce((SELECT MIN(id) FROM ledger_entries WHERE created_at >= $1),
                                 (SELECT MAX(id) FROM ledger_entries))
               AND id < (SELECT MIN(id) FROM ledger_entries) + $2
             ORDER BY id DESC LIMIT 1",
        )
        .bind(now.before(keep))
        .bind(PRUNED_AT_ONCE)
        .optional()
        .await?;
    let Some((through_id, hash)) = through else { return Ok(Pruned { entries: 0, through_id: 0 }) };
    let (entries,): (i64,) =
        tx.query("SELECT COUNT(*) FROM ledger_entries WHERE id <= $1").bind(through_id).one().await?;
    tx.query(
        "INSERT INTO ledger_checkpoints (through_id, entries, hash, actor, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(through_id)
    .bind(entries)
    .bind(hash.clone())
    .bind(actor.to_string())
    .bind(now)
    .execute()
    .await?;
    tx.query("DELETE FROM ledger_entries WHERE id <= $1").bind(through_id).execute().await?;
    let payload = serde_json::json!({ "through_id": through_id, "entries": entries, "hash": hash });
    append(&mut tx, &[Entry::new("ledger.pruned", actor.clone(), payload)]).await?;
    tx.commit().await?;
    Ok(Pruned { entries, through_id })
}
