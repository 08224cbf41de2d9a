//! Requests to run one cycle: whoever asks writes a row, the leader takes it, wherever it runs.

use crate::actor::Actor;
use crate::db::{Db, Result, Tx};

/// An answered request: the cycle that ran, or why none did.
pub type Answer = std::result::Result<i64, String>;

/// Writes a request; returns its id.
pub async fn ask(db: &Db, actor: &Actor) -> Result<i64> {
    let mut tx = db.begin().await?;
    let now = tx.now().await?;
    let (id,): (i64,) = tx
        .query("INSERT INTO cycle_requests (requested_by, requested_at) VALUES ($1, $2) RETURNING id")
        .bind(actor.to_string())
        .bind(now)
        .one()
        .await?;
    tx.commit().await?;
    Ok(id)
}

/// Whether any request waits for a leader.
pub async fn any_open(db: &Db) -> Result<bool> {
    let open: Option<(i64,)> = db
        .query("SELECT id FROM cycle_requests WHERE taken_at IS NULL AND cycle_id IS NULL AND error IS NULL LIMIT 1")
        .optional()
        .await?;
    Ok(open.is_some())
}

/// Takes the oldest open request; gives its id and who asked.
pub async fn take(tx: &mut Tx) -> Result<Option<(i64, String)>> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE cycle_requests SET taken_at = $1
             WHERE id = (SELECT MIN(id) FROM cycle_requests
                 WHERE taken_at IS NULL AND cycle_id IS NULL AND error IS NULL) AND taken_at IS NULL
             RETURNING id, requested_by",
    )
    .bind(now)
    .optional()
    .await
}

/// Gives a request its answer.
pub async fn answer(tx: &mut Tx, id: i64, answer: &Answer) -> Result<()> {
    tx.query(
        "UPDATE cycle_requests SET cycle_id = $1, error = $2 WHERE id = $3 AND cycle_id IS NULL AND error IS NULL",
    )
    .bind(answer.as_ref().ok().copied())
    .bind(answer.as_ref().err().cloned())
    .bind(id)
    .execute()
    .await?;
    Ok(())
}

/// Gives back requests that a leader took and never answered, because it died or was deposed.
pub async fn reopen(tx: &mut Tx) -> Result<()> {
    tx.query(
        "UPDATE cycle_requests SET taken_at = NULL WHERE taken_at IS NOT NULL AND cycle_id IS NULL AND error IS NULL",
    )
    .execute()
    .await?;
    Ok(())
}

/// The answer, once it is there.
pub async fn answered(db: &Db, id: i64) -> Result<Option<Answer>> {
    let row: Option<(Option<i64>, Option<String>)> =
        db.query("SELECT cycle_id, error FROM cycle_requests WHERE id = $1").bind(id).optional().await?;
    Ok(match row {
        Some((Some(cycle_id), _)) => Some(Ok(cycle_id)),
        Some((None, Some(error))) => Some(Err(error)),
        Some((None, None)) => None,
        None => Some(Err("the request is gone".to_owned())),
    })
}

/// Withdraws a request that nobody took; `false` where somebody has.
pub async fn withdraw(db: &Db, id: i64) -> Result<bool> {
    let mut tx = db.begin().await?;
    let open = "DELETE FROM cycle_requests WHERE id = $1 AND taken_at IS NULL";
    let withdrawn = tx.query(open).bind(id).execute().await?;
    tx.commit().await?;
    Ok(withdrawn > 0)
}

/// Forgets answered requests that are older than a day.
pub async fn forget(tx: &mut Tx) -> Result<()> {
    let before = tx.now().await?.before(std::time::Duration::from_secs(24 * 3600));
    tx.query("DELETE FROM cycle_requests WHERE requested_at < $1").bind(before).execute().await?;
    Ok(())
}
