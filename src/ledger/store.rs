//! All of the ledger's SQL.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::entry::{Entry, StoredEntry};
use crate::actor::Actor;
use crate::db::{Db, Result, Timestamp, Tx};
use crate::sql;

/// Rows that verification and export read at a time.
const CHUNK: i64 = 5_000;

/// Entries that one transaction of retention takes away: others write to the ledger in between.
const PRUNED_AT_ONCE: i64 = 10_000;

/// Appends `entries` to the chain, in order. Call it last in a transaction: from here to the commit, every other
/// writer of the ledger waits.
pub async fn append(tx: &mut Tx, entries: &[Entry]) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let now = tx.now().await?;
    let (mut id, mut hash): (i64, String) = tx
        .query(sql!("SELECT entry_id, hash FROM ledger_head WHERE id = 1" { sqlite: "", postgres: " FOR UPDATE" }))
        .one()
        .await?;
    // A row that somebody else wrote behind the end is stepped over; `verify` names it.
    let (last,): (i64,) = tx.query("SELECT coalesce(MAX(id), 0) FROM ledger_entries").one().await?;
    id = id.max(last);
    for entry in entries {
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
        hash = insert(tx, stored).await?;
    }
    tx.query("UPDATE ledger_head SET entry_id = $1, hash = $2 WHERE id = 1").bind(id).bind(hash).execute().await?;
    Ok(())
}

async fn insert(tx: &mut Tx, entry: StoredEntry) -> Result<String> {
    let hash = entry.hash.clone();
    tx.query(sql!(
        "INSERT INTO ledger_entries
             (id, cycle_id, event_type, severity, actor, subject, rule, payload, created_at, prev_hash, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, " { sqlite: "$8", postgres: "CAST($8 AS JSON)" } ", $9, $10, $11)"
    ))
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
    .bind(entry.hash)
    .execute()
    .await?;
    Ok(hash)
}

/// Which entries to read.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Begins with this, e.g. `orchestrator.`.
    pub event_type: Option<String>,
    pub severity: Option<String>,
    pub actor: Option<String>,
    pub subject: Option<String>,
    pub rule: Option<String>,
    pub cycle_id: Option<i64>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Only ids below this one, when reading newest first.
    pub before_id: Option<i64>,
    /// Only ids above this one, when reading oldest first.
    pub after_id: Option<i64>,
}

/// Reads up to `limit` entries, newest first unless `oldest_first`.
pub async fn query(db: &Db, filter: &Filter, oldest_first: bool, limit: i64) -> Result<Vec<StoredEntry>> {
    macro_rules! text {
        ($order:literal) => {
            concat!(
                "SELECT id, cycle_id, event_type, severity, actor, subject, rule, CAST(payload AS TEXT) AS payload,
                        created_at, prev_hash, hash
                 FROM ledger_entries
                 WHERE (CAST($1 AS TEXT) IS NULL OR substr(event_type, 1, length($1)) = $1)
                   AND (CAST($2 AS TEXT) IS NULL OR severity = $2)
                   AND (CAST($3 AS TEXT) IS NULL OR actor = $3)
                   AND (CAST($4 AS TEXT) IS NULL OR subject = $4)
                   AND (CAST($5 AS TEXT) IS NULL OR rule = $5)
                   AND (CAST($6 AS BIGINT) IS NULL OR cycle_id = $6)
                   AND ($7 IS NULL OR created_at >= $7)
                   AND ($8 IS NULL OR created_at < $8)
                   AND id < $9 AND id > $10
                 ORDER BY id ",
                $order,
                " LIMIT $11"
            )
        };
    }
    db.query(if oldest_first { text!("ASC") } else { text!("DESC") })
        .bind(filter.event_type.clone())
        .bind(filter.severity.clone())
        .bind(filter.actor.clone())
        .bind(filter.subject.clone())
        .bind(filter.rule.clone())
        .bind(filter.cycle_id)
        .bind(filter.since)
        .bind(filter.until)
        .bind(filter.before_id.unwrap_or(i64::MAX))
        .bind(filter.after_id.unwrap_or(i64::MIN))
        .bind(limit)
        .all()
        .await
}

/// What a walk over the chain found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Verification {
    /// Entries that fit.
    pub entries: i64,
    /// The checkpoint from which the chain goes on, if retention took entries away.
    pub checkpoint_id: Option<i64>,
    /// The first entry that does not fit, and why. None when the chain is whole.
    pub first_bad: Option<(i64, String)>,
}

/// Walks the chain from its beginning or last checkpoint to its head; names the first entry that does not fit.
/// `progress` hears after each stretch how many entries were read.
pub async fn verify(db: &Db, mut progress: impl FnMut(i64)) -> Result<Verification> {
    loop {
        let found = walk(db, &mut progress).await?;
        // Where retention took entries away under the walk's feet, it begins again from the new checkpoint.
        let checkpoint_id = newest_checkpoint(db).await?.map(|(id, _)| id);
        if found.first_bad.is_none() || found.checkpoint_id == checkpoint_id {
            return Ok(found);
        }
    }
}

async fn newest_checkpoint(db: &Db) -> Result<Option<(i64, String)>> {
    db.query("SELECT through_id, hash FROM ledger_checkpoints ORDER BY through_id DESC LIMIT 1").optional().await
}

async fn walk(db: &Db, progress: &mut impl FnMut(i64)) -> Result<Verification> {
    // The head is read first: entries that are appended meanwhile lie behind it, but those that lie behind it at this
    // moment were not appended by us.
    let mut tx = db.begin_read().await?;
    let head: (i64, String) = tx.query("SELECT entry_id, hash FROM ledger_head WHERE id = 1").one().await?;
    let (beyond,): (Option<i64>,) =
        tx.query("SELECT MIN(id) FROM ledger_entries WHERE id > $1").bind(head.0).one().await?;
    drop(tx);
    let checkpoint = newest_checkpoint(db).await?;
    let checkpoint_id = checkpoint.as_ref().map(|(id, _)| *id);
    let (mut last_id, mut last_hash) = checkpoint.unwrap_or((0, String::new()));
    let mut entries = 0;
    let bad = |id: i64, why: String, entries: i64| Verification { entries, checkpoint_id, first_bad: Some((id, why)) };
    while last_id < head.0 {
        let filter = Filter { after_id: Some(last_id), ..Filter::default() };
        let chunk = query(db, &filter, true, CHUNK).await?;
        if chunk.is_empty() {
            return Ok(bad(last_id + 1, format!("missing: the chain should reach entry {}", head.0), entries));
        }
        for entry in chunk {
            if entry.id > head.0 {
                break;
            }
            if entry.id != last_id + 1 {
                return Ok(bad(last_id + 1, "missing".to_owned(), entries));
            }
            if entry.prev_hash != last_hash {
                return Ok(bad(entry.id, "does not follow from the entry before it".to_owned(), entries));
            }
            if entry.compute_hash() != entry.hash {
                return Ok(bad(entry.id, "was changed after it was written".to_owned(), entries));
            }
            (last_id, last_hash) = (entry.id, entry.hash);
            entries += 1;
        }
        progress(entries);
    }
    if last_hash != head.1 {
        return Ok(bad(head.0, "is not the entry that was written last".to_owned(), entries));
    }
    if let Some(id) = beyond {
        return Ok(bad(id, "lies behind the end of the chain".to_owned(), entries));
    }
    Ok(Verification { entries, checkpoint_id, first_bad: None })
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
