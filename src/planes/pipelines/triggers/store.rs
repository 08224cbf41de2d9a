//! The triggers' SQL.

use serde_json::Value;

use super::{NewTrigger, Settings};
use crate::db::{Db, Json, Result, Timestamp, Tx};
use crate::events::Position;
use crate::sql;

/// A trigger as its row.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Row {
    pub id: String,
    pub pipeline_id: String,
    pub kind: String,
    pub settings: Json<Settings>,
    pub input: Json<Option<Value>>,
    pub overlap: String,
    pub is_active: bool,
    pub due_at: Option<Timestamp>,
    pub last_fired_at: Option<Timestamp>,
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Makes a trigger, or changes it.
pub async fn put(tx: &mut Tx, id: &str, new: &NewTrigger, due_at: Option<Timestamp>) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "INSERT INTO triggers (id, pipeline_id, kind, settings, input, overlap, is_active, due_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
         ON CONFLICT (id) DO UPDATE SET pipeline_id = excluded.pipeline_id, kind = excluded.kind,
             settings = excluded.settings, input = excluded.input, overlap = excluded.overlap,
             is_active = excluded.is_active, due_at = excluded.due_at, error = NULL, updated_at = excluded.updated_at",
    )
    .bind(id.to_owned())
    .bind(new.pipeline.clone())
    .bind(new.when.trigger().kind())
    .bind(Json(new.when.clone()))
    .bind(Json(new.input.clone()))
    .bind(new.overlap.as_str())
    .bind(new.is_active)
    .bind(due_at)
    .bind(now)
    .execute()
    .await?;
    Ok(())
}

/// One trigger.
pub async fn get(db: &Db, id: &str) -> Result<Option<Row>> {
    db.query(
        "SELECT id, pipeline_id, kind, settings, input, overlap, is_active, due_at, last_fired_at, error, created_at,
             updated_at FROM triggers WHERE id = $1",
    )
    .bind(id.to_owned())
    .optional()
    .await
}

/// Locks a trigger for a change.
pub async fn lock(tx: &mut Tx, id: &str) -> Result<Option<Row>> {
    tx.query(sql!(
        "SELECT id, pipeline_id, kind, settings, input, overlap, is_active, due_at, last_fired_at, error, created_at,
             updated_at FROM triggers WHERE id = $1 " { sqlite: "", postgres: "FOR UPDATE" }
    ))
    .bind(id.to_owned())
    .optional()
    .await
}

/// The same, unless it is stopped: whoever fires a trigger holds it, so that one at a time counts its open runs.
pub async fn lock_active(tx: &mut Tx, id: &str) -> Result<Option<Row>> {
    Ok(lock(tx, id).await?.filter(|row| row.is_active))
}

/// Triggers by id, behind `after`.
pub async fn list(db: &Db, after: &str, limit: i64) -> Result<Vec<Row>> {
    db.query(
        "SELECT id, pipeline_id, kind, settings, input, overlap, is_active, due_at, last_fired_at, error, created_at,
             updated_at FROM triggers WHERE id > $1 ORDER BY id LIMIT $2",
    )
    .bind(after.to_owned())
    .bind(limit)
    .all()
    .await
}

/// Active triggers of a kind.
pub async fn active(db: &Db, kind: &'static str, limit: i64) -> Result<Vec<Row>> {
    db.query(
        "SELECT id, pipeline_id, kind, settings, input, overlap, is_active, due_at, last_fired_at, error, created_at,
             updated_at FROM triggers WHERE is_active AND kind = $1 ORDER BY id LIMIT $2",
    )
    .bind(kind)
    .bind(limit)
    .all()
    .await
}

/// Those whose time has come.
pub async fn due(db: &Db, now: Timestamp, limit: i64) -> Result<Vec<(String,)>> {
    db.query("SELECT id FROM triggers WHERE is_active AND due_at IS NOT NULL AND due_at <= $1 ORDER BY due_at LIMIT $2")
        .bind(now)
        .bind(limit)
        .all()
        .await
}

/// Starts or stops a trigger.
pub async fn set_active(tx: &mut Tx, id: &str, is_active: bool, due_at: Option<Timestamp>) -> Result<bool> {
    let now = tx.now().await?;
    let changed = tx
        .query("UPDATE triggers SET is_active = $1, due_at = $2, error = NULL, updated_at = $3 WHERE id = $4")
        .bind(is_active)
        .bind(due_at)
        .bind(now)
        .bind(id.to_owned())
        .execute()
        .await?;
    Ok(changed > 0)
}

/// Writes a firing down; false where this occasion was written down before, by any instance.
pub async fn fire(tx: &mut Tx, id: &str, occasion: &str, outcome: &'static str) -> Result<bool> {
    let now = tx.now().await?;
    let written = tx
        .query(
            "INSERT INTO trigger_firings (trigger_id, occasion, outcome, fired_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING",
        )
        .bind(id.to_owned())
        .bind(occasion.to_owned())
        .bind(outcome)
        .bind(now)
        .execute()
        .await?;
    Ok(written > 0)
}

/// What came of a firing.
pub async fn note(
    tx: &mut Tx,
    id: &str,
    occasion: &str,
    outcome: &'static str,
    run: Option<i64>,
    error: Option<&str>,
) -> Result<()> {
    let now = tx.now().await?;
    tx.query(
        "UPDATE trigger_firings SET outcome = $1, run_id = $2, error = $3, fired_at = $6
         WHERE trigger_id = $4 AND occasion = $5",
    )
    .bind(outcome)
    .bind(run)
    .bind(error.map(str::to_owned))
    .bind(id.to_owned())
    .bind(occasion.to_owned())
    .bind(now)
    .execute()
    .await?;
    tx.query("UPDATE triggers SET last_fired_at = $1, error = $2 WHERE id = $3")
        .bind(now)
        .bind(error.map(str::to_owned))
        .bind(id.to_owned())
        .execute()
        .await?;
    Ok(())
}

/// A firing's outcome and run.
pub async fn fired(tx: &mut Tx, id: &str, occasion: &str) -> Result<(String, Option<i64>)> {
    tx.query("SELECT outcome, run_id FROM trigger_firings WHERE trigger_id = $1 AND occasion = $2")
        .bind(id.to_owned())
        .bind(occasion.to_owned())
        .one()
        .await
}

/// Has a trigger show why it did not fire.
pub async fn complain(tx: &mut Tx, id: &str, error: String) -> Result<()> {
    tx.query("UPDATE triggers SET error = $1 WHERE id = $2").bind(error).bind(id.to_owned()).execute().await?;
    Ok(())
}

/// When a cron trigger comes next.
pub async fn set_due(tx: &mut Tx, id: &str, due_at: Option<Timestamp>) -> Result<()> {
    tx.query("UPDATE triggers SET due_at = $1 WHERE id = $2").bind(due_at).bind(id.to_owned()).execute().await?;
    Ok(())
}

/// Runs of a trigger that are still open.
pub async fn open_runs(tx: &mut Tx, id: &str) -> Result<Vec<(i64,)>> {
    tx.query(
        "SELECT id FROM pipeline_runs WHERE trigger_id = $1 AND status IN ('pending', 'running', 'waiting', 'paused')
         ORDER BY id LIMIT 1000",
    )
    .bind(id.to_owned())
    .all()
    .await
}

/// Takes away firings before a time, up to a batch; what is due is far newer.
pub async fn forget(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    tx.query("DELETE FROM trigger_firings WHERE fired_at < $1").bind(before).execute().await
}

/// How far events have been heeded.
pub async fn mark(db: &Db) -> Result<Option<Position>> {
    let row: Option<(i64, i64)> =
        db.query("SELECT transaction_id, event_id FROM event_marks WHERE name = 'triggers'").optional().await?;
    Ok(row.map(|(transaction_id, event_id)| Position { transaction_id, event_id }))
}

/// Has events be heeded that happened since a time.
pub async fn begin_mark(db: &Db, since: Timestamp) -> Result<()> {
    let last: Option<(i64, i64)> = db
        .query("SELECT transaction_id, id FROM events WHERE created_at < $1 ORDER BY created_at DESC, id DESC LIMIT 1")
        .bind(since)
        .optional()
        .await?;
    let (transaction_id, event_id) = last.unwrap_or_default();
    db.write(
        "INSERT INTO event_marks (name, transaction_id, event_id) VALUES ('triggers', $1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(transaction_id)
    .bind(event_id)
    .execute()
    .await?;
    Ok(())
}

/// Moves the mark on, never back: another instance may be further.
pub async fn move_mark(db: &Db, to: Position) -> Result<()> {
    db.write(
        "UPDATE event_marks SET transaction_id = $1, event_id = $2
         WHERE name = 'triggers' AND (transaction_id, event_id) < ($1, $2)",
    )
    .bind(to.transaction_id)
    .bind(to.event_id)
    .execute()
    .await?;
    Ok(())
}

/// Forgets the mark.
pub async fn forget_mark(db: &Db) -> Result<()> {
    db.write("DELETE FROM event_marks WHERE name = 'triggers'").execute().await?;
    Ok(())
}
