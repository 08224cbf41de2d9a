//! The loop's switch: one row, the same for every instance, kept across restarts.

use serde_json::json;

use crate::actor::Actor;
use crate::db::{Db, Result};
use crate::ledger::{self, Entry};
use crate::sql;

/// Whether the loop is switched on.
pub async fn is_on(db: &Db) -> Result<bool> {
    Ok(read(db).await? == Some(true))
}

/// How the switch stands; none where it was never set.
async fn read(db: &Db) -> Result<Option<bool>> {
    let on: Option<(i64,)> = db
        .query("SELECT CAST(CASE WHEN enabled THEN 1 ELSE 0 END AS BIGINT) FROM loop_switch WHERE id = 1")
        .optional()
        .await?;
    Ok(on.map(|(on,)| on == 1))
}

/// Sets the switch if it was never set: what the configuration says counts the first time only.
pub async fn initialise(db: &Db, on: bool) -> Result<()> {
    let set = read(db).await?;
    if set.is_none() {
        let mut tx = db.begin().await?;
        let now = tx.now().await?;
        tx.query(
            "INSERT INTO loop_switch (id, enabled, changed_by, changed_at) VALUES (1, $1, 'system', $2) ON CONFLICT DO NOTHING",
        )
        .bind(on)
        .bind(now)
        .execute()
        .await?;
        tx.commit().await?;
    }
    if on && set == Some(false) {
        tracing::warn!(
            "ORCHESTRATOR_ENABLED is set, but the loop was switched off and stays off; POST /orchestrator/enable turns it on"
        );
    }
    Ok(())
}

/// Turns the loop on or off, with a ledger entry when that changes anything.
pub async fn set(db: &Db, on: bool, actor: &Actor) -> Result<()> {
    let mut tx = db.begin().await?;
    let now = tx.now().await?;
    let changed = tx
        .query(sql!(
            "INSERT INTO loop_switch (id, enabled, changed_by, changed_at) VALUES (1, $1, $2, $3)
             ON CONFLICT (id) DO UPDATE
                 SET enabled = excluded.enabled, changed_by = excluded.changed_by, changed_at = excluded.changed_at
                 WHERE loop_switch.enabled <> excluded.enabled"
        ))
        .bind(on)
        .bind(actor.to_string())
        .bind(now)
        .execute()
        .await?;
    if changed > 0 {
        let event = if on { "orchestrator.enabled" } else { "orchestrator.disabled" };
        ledger::append(&mut tx, &[Entry::new(event, actor.clone(), json!({}))]).await?;
    }
    tx.commit().await
}
