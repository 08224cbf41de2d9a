//! A time in which the loop was on and ran no cycle: what the ledger, and so the status, say of it afterwards.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::actor::Actor;
use crate::db::{Db, Result, Timestamp};
use crate::ledger::{Entry, Severity};

/// Longer than so many intervals without a cycle is a gap; the readiness probe has the same measure.
pub const INTERVALS: u32 = 3;

/// What entries of gaps are about; nothing else has this subject.
const SUBJECT: &str = "loop";

/// A time without cycles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// When the last cycle before it ended, or the loop was switched on.
    pub since: Timestamp,
    /// When the next cycle began, or ended where it was what took so long.
    pub until: Timestamp,
    /// Whole seconds.
    pub seconds: u64,
    /// Why, as far as it is known.
    pub because: String,
}

impl Gap {
    /// From when to when there was no cycle, if that is a gap.
    pub async fn ending_now(db: &Db, interval: Duration) -> Result<Option<(Timestamp, Timestamp)>> {
        let now = db.now().await?;
        let ended: Option<(Timestamp,)> = db
            .query(
                "SELECT finished_at FROM cycles WHERE id = (SELECT MAX(id) FROM cycles WHERE status IN ('idle', 'completed'))
                 AND finished_at IS NOT NULL",
            )
            .optional()
            .await?;
        let switched: Option<(Timestamp,)> =
            db.query("SELECT changed_at FROM loop_switch WHERE id = 1").optional().await?;
        let since = ended.into_iter().chain(switched).map(|(at,)| at).max();
        Ok(since.filter(|since| now.since(*since) > interval * INTERVALS).map(|since| (since, now)))
    }

    /// Its entry in the ledger.
    pub fn entry(&self) -> Entry {
        Entry::new("orchestrator.gap", Actor::System, json!(self)).severity(Severity::Warning).subject(SUBJECT)
    }

    /// The last one that the ledger knows.
    pub async fn last(db: &Db) -> Result<Option<Self>> {
        let payload: Option<(String,)> = db
            .query("SELECT CAST(payload AS TEXT) FROM ledger_entries WHERE subject = $1 ORDER BY id DESC LIMIT 1")
            .bind(SUBJECT.to_owned())
            .optional()
            .await?;
        Ok(payload.and_then(|(payload,)| serde_json::from_str(&payload).ok()))
    }
}
