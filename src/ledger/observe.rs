//! What the loop sees of the ledger: recent errors.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::{Result, Sql, Timestamp, Tx};
use crate::sql;

/// Errors of the last hour.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LedgerSection {
    /// Errors in the last hour (counted up to 1,000). The loop's own failures of one action on one subject count
    /// once, and so do all severe events of the planes on one kind of subject, such as runs; all others each. Else the
    /// loop would drive itself, or a plane would drive it, into an emergency that is none of its own.
    pub errors_1h: i64,
    /// The newest of them.
    pub recent_errors: Vec<ErrorView>,
}

/// One error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct ErrorView {
    pub id: i64,
    pub event_type: String,
    pub severity: String,
    pub subject: Option<String>,
    pub created_at: Timestamp,
}

/// What is read by one statement, with the figures of others.
#[derive(Clone, Copy, sqlx::FromRow)]
pub struct Figures {
    pub ledger_errors_1h: i64,
}

/// The row of [`Figures`]; the cost is bounded whatever the ledger's length. What was written under a clock that has
/// since been set back lies ahead: it would be recent for as long as the clock was wrong, and is left out until its time.
pub const FIGURES: Sql = sql!(
    "SELECT (SELECT COUNT(*) FROM (SELECT DISTINCT
         CASE WHEN actor = 'loop' OR event_type IN ('events.error', 'events.critical') THEN event_type
              ELSE CAST(id AS TEXT) END AS kind,
         CASE WHEN actor = 'loop' THEN coalesce(subject, '')
              WHEN event_type IN ('events.error', 'events.critical') THEN "
    { sqlite: "substr(subject, 1, instr(subject, ':'))", postgres: "split_part(subject, ':', 1)" }
    "         ELSE '' END AS target
     FROM (SELECT id, actor, event_type, subject FROM ledger_entries
           WHERE severity IN ('error', 'critical') AND created_at > $4 AND created_at <= $1
           ORDER BY created_at DESC LIMIT 1000) AS newest) AS distinct_errors) AS ledger_errors_1h"
);

/// Reads the section: its figures where they are not `seen` yet, and the list where there is something to show.
pub async fn observe(tx: &mut Tx, now: Timestamp, seen: Option<Figures>) -> Result<LedgerSection> {
    let since = now.before(Duration::from_secs(3600));
    let Figures { ledger_errors_1h: errors_1h } = match seen {
        Some(seen) => seen,
        None => tx.figures(FIGURES, now).await?,
    };
    let recent_errors = if errors_1h == 0 {
        Vec::new()
    } else {
        tx.query(
            "SELECT id, event_type, severity, subject, created_at FROM ledger_entries
             WHERE severity IN ('error', 'critical') AND created_at > $1 AND created_at <= $2
             ORDER BY created_at DESC, id DESC LIMIT 10",
        )
        .bind(since)
        .bind(now)
        .all()
        .await?
    };
    Ok(LedgerSection { errors_1h, recent_errors })
}
