//! Severe events into the ledger: each once, whatever the number of instances, and at a bounded rate.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::bus::{Received, Subscription};
use super::event::{Event, Position};
use super::store;
use crate::actor::Actor;
use crate::clock::SharedClock;
use crate::db::{Db, Result, Timestamp, Tx};
use crate::ledger::{self, Entry, Severity};

/// Entries a window; what goes beyond is counted and told in one entry when the window is over. Errors in the ledger
/// count against health: a plane in trouble shall be seen there, and not fill the chain.
const MOST_ENTRIES: i64 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// Events that one transaction looks at: others write to the ledger in between.
const BATCH: i64 = 100;

/// Copies severe events until the monitor ends.
pub(super) async fn copy(db: Db, clock: SharedClock, mut subscription: Subscription) {
    loop {
        if let Err(cause) = catch_up(&db).await {
            tracing::warn!(%cause, "severe events did not reach the ledger; they are tried again");
        }
        tokio::select! {
            more = severe(&mut subscription) => if !more { return },
            () = clock.sleep(WINDOW) => {}
        }
    }
}

/// Waits for a stored severe event, or a gap in which one may have been; false once the monitor has ended.
async fn severe(subscription: &mut Subscription) -> bool {
    let is_severe =
        |event: &Arc<Event>| event.id.is_some() && matches!(event.severity, Severity::Error | Severity::Critical);
    loop {
        match subscription.recv().await {
            None => return false,
            Some(Received::Missed { .. }) => return true,
            Some(Received::Event(event)) if is_severe(&event) => return true,
            Some(Received::Event(_)) => {}
        }
    }
}

/// How far the ledger has come, and what the running window holds.
#[derive(sqlx::FromRow)]
struct Mark {
    transaction_id: i64,
    event_id: i64,
    window_began_at: Option<Timestamp>,
    written: i64,
    left_out: i64,
}

async fn catch_up(db: &Db) -> Result<()> {
    loop {
        let mut tx = db.begin().await?;
        let seen = copy_batch(&mut tx).await?;
        tx.commit().await?;
        if seen < BATCH as usize {
            return Ok(());
        }
    }
}

async fn copy_batch(tx: &mut Tx) -> Result<usize> {
    let mut mark: Mark = tx
        .query(crate::sql!(
            "SELECT transaction_id, event_id, window_began_at, written, left_out FROM event_marks WHERE name = 'ledger'"
            { sqlite: "", postgres: " FOR UPDATE" }
        ))
        .one()
        .await?;
    let now = tx.now().await?;
    let position = Position { transaction_id: mark.transaction_id, event_id: mark.event_id };
    let events = store::severe_behind(tx, position, BATCH).await?.events;
    let mut entries = Vec::new();
    if mark.window_began_at.is_none_or(|began| now.since(began) >= WINDOW) {
        if mark.left_out > 0 {
            let payload = json!({ "count": mark.left_out, "since": mark.window_began_at });
            entries.push(Entry::new("events.left_out", Actor::System, payload).severity(Severity::Warning));
        } else if events.is_empty() {
            return Ok(0);
        }
        (mark.window_began_at, mark.written, mark.left_out) = (Some(now), 0, 0);
    }
    if events.is_empty() && entries.is_empty() {
        return Ok(0);
    }
    for event in &events {
        if mark.written < MOST_ENTRIES {
            mark.written += 1;
            entries.push(entry(event));
        } else {
            mark.left_out += 1;
        }
    }
    let end = events.last().and_then(Event::position).unwrap_or(position);
    tx.query(
        "UPDATE event_marks SET transaction_id = $1, event_id = $2, window_began_at = $3, written = $4, left_out = $5
         WHERE name = 'ledger'",
    )
    .bind(end.transaction_id)
    .bind(end.event_id)
    .bind(mark.window_began_at)
    .bind(mark.written)
    .bind(mark.left_out)
    .execute()
    .await?;
    ledger::append(tx, &entries).await?;
    Ok(events.len())
}

fn entry(event: &Event) -> Entry {
    let event_type = if event.severity == Severity::Critical { "events.critical" } else { "events.error" };
    let payload = json!({
        "event_id": event.id,
        "event_type": event.event_type,
        "source": event.source,
        "data": event.data,
        "happened_at": event.created_at,
    });
    let entry = Entry::new(event_type, Actor::System, payload).severity(event.severity);
    match &event.subject {
        Some(subject) => entry.subject(subject.clone()),
        None => entry,
    }
}
