//! The walk over the chain: does every entry follow from the one before it, and is the last one the head?

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::entry::Fields;
use crate::db::{Db, Error, Result};
use crate::sql;

/// Entries that are read at a time: a megabyte or two.
const CHUNK: i64 = 5_000;

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

/// The columns of an entry as they were hashed, in their order.
#[derive(Deserialize)]
struct Row<'a>(
    i64,
    Option<Cow<'a, str>>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    Option<Cow<'a, str>>,
    Option<Cow<'a, str>>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
);

/// A stretch of the chain in its order, as one JSON text: handing over its rows and columns one by one would take
/// longer than reading and hashing them.
struct Stretch {
    rows: Vec<u8>,
    /// The id of its last entry; None when there is none.
    last_id: Option<i64>,
}

/// Reads the stretch behind `after`.
async fn read(db: &Db, after: i64, through: i64) -> Result<Stretch> {
    let (rows, last_id): (Vec<u8>, Option<i64>) = db
        .query(sql!({
            // Whatever somebody may have put there is text here: what cannot be read must not hide what was changed.
            sqlite: "SELECT CAST(json_group_array(json_array(id, CAST(cycle_id AS TEXT), CAST(event_type AS TEXT),
                                CAST(severity AS TEXT), CAST(actor AS TEXT), CAST(subject AS TEXT), CAST(rule AS TEXT),
                                CAST(payload AS TEXT), CAST(created_at AS TEXT), CAST(prev_hash AS TEXT),
                                CAST(hash AS TEXT))) AS BLOB), MAX(id)
                     FROM (SELECT * FROM ledger_entries WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3)",
            postgres: "SELECT convert_to(COALESCE(CAST(json_agg(json_build_array(id, CAST(cycle_id AS TEXT), event_type,
                                  severity, actor, subject, rule, CAST(payload AS TEXT),
                                  to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'),
                                  prev_hash, hash) ORDER BY id) AS TEXT), '[]'), 'UTF8'), MAX(id)
                       FROM (SELECT * FROM ledger_entries WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3) AS stretch"
        }))
        .bind(after)
        .bind(through)
        .bind(CHUNK)
        .one()
        .await?;
    Ok(Stretch { rows, last_id })
}

/// How far a stretch fits.
struct Checked {
    entries: i64,
    last_id: i64,
    last_hash: String,
    bad: Option<(i64, &'static str)>,
}

fn check(rows: &[u8], last_id: i64, last_hash: String) -> serde_json::Result<Checked> {
    let rows = String::from_utf8_lossy(rows);
    let rows: Vec<Row<'_>> = serde_json::from_str(&rows)?;
    let mut checked = Checked { entries: 0, last_id, last_hash, bad: None };
    for row in rows {
        let Row(id, cycle_id, event_type, severity, actor, subject, rule, payload, created_at, prev_hash, hash) = row;
        let cycle_id = cycle_id.and_then(|id| id.parse().ok());
        let hashed = || {
            let (subject, rule) = (subject.as_deref(), rule.as_deref());
            let fields =
                Fields { cycle_id, event_type: &event_type, severity: &severity, actor: &actor, subject, rule };
            fields.hash(&prev_hash, id, &payload, &created_at)
        };
        let bad = if id != checked.last_id + 1 {
            Some((checked.last_id + 1, "missing"))
        } else if prev_hash != checked.last_hash {
            Some((id, "does not follow from the entry before it"))
        } else if hashed() != hash {
            Some((id, "was changed after it was written"))
        } else {
            None
        };
        if bad.is_some() {
            checked.bad = bad;
            break;
        }
        checked.last_id = id;
        checked.last_hash.clear();
        checked.last_hash.push_str(&hash);
        checked.entries += 1;
    }
    Ok(checked)
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
    let mut stretch = read(db, last_id, head.0).await?;
    while last_id < head.0 {
        let Some(newest) = stretch.last_id else {
            return Ok(bad(last_id + 1, format!("missing: the chain should reach entry {}", head.0), entries));
        };
        // One stretch is hashed while the next one is read.
        let (ahead, checked) = tokio::join!(
            read(db, newest, head.0),
            tokio::task::spawn_blocking(move || check(&stretch.rows, last_id, last_hash))
        );
        let checked = checked
            .map_err(|cause| Error::Unavailable(format!("hashing broke off: {cause}")))?
            .map_err(|cause| Error::Other(sqlx::Error::Decode(cause.into())))?;
        entries += checked.entries;
        (last_id, last_hash) = (checked.last_id, checked.last_hash);
        if let Some((id, why)) = checked.bad {
            return Ok(bad(id, why.to_owned(), entries));
        }
        progress(entries);
        stretch = ahead?;
    }
    if last_hash != head.1 {
        return Ok(bad(head.0, "is not the entry that was written last".to_owned(), entries));
    }
    if let Some(id) = beyond {
        return Ok(bad(id, "lies behind the end of the chain".to_owned(), entries));
    }
    Ok(Verification { entries, checkpoint_id, first_bad: None })
}
