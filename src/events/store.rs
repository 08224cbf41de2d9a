//! All SQL of the events.

use serde_json::{Value, json};

use super::event::{Event, Filter, NewEvent, Position};
use crate::db::{Db, Dialect, Result, Timestamp, Tx};
use crate::ledger::Severity;
use crate::sql;

/// Stores `events` in order, with one statement, inside the transaction of what they tell. Wake
/// [`Topic::Events`](crate::db::Topic::Events) after the commit.
pub async fn record(tx: &mut Tx, events: &[NewEvent]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let now = tx.now().await?;
    let rows: Vec<Value> = events
        .iter()
        .map(|event| {
            json!({
                "event_type": event.event_type,
                "severity": event.severity.as_str(),
                "source": event.source,
                "subject": event.subject,
                "data": event.data.to_string(),
            })
        })
        .collect();
    tx.query(sql!(
        "INSERT INTO events (event_type, severity, source, subject, data, created_at) "
        {
            sqlite: "SELECT value ->> 'event_type', value ->> 'severity', value ->> 'source', value ->> 'subject',
                            value ->> 'data', $2
                     FROM json_each($1) ORDER BY key",
            postgres: "SELECT value ->> 'event_type', value ->> 'severity', value ->> 'source', value ->> 'subject',
                              CAST(value ->> 'data' AS JSON), $2
                       FROM json_array_elements(CAST($1 AS JSON)) WITH ORDINALITY AS e (value, n) ORDER BY n"
        }
    ))
    .bind(Value::Array(rows).to_string())
    .bind(now)
    .execute()
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct StoredEvent {
    id: i64,
    transaction_id: i64,
    event_type: String,
    severity: String,
    source: String,
    subject: Option<String>,
    data: String,
    created_at: Timestamp,
    /// Whether every transaction up to this one has ended.
    settled: bool,
}

impl From<StoredEvent> for Event {
    fn from(row: StoredEvent) -> Self {
        let severity = match row.severity.as_str() {
            "critical" => Severity::Critical,
            "error" => Severity::Error,
            "warning" => Severity::Warning,
            _ => Severity::Info,
        };
        Self {
            id: Some(row.id),
            position: Some(Position { transaction_id: row.transaction_id, event_id: row.id }),
            event_type: row.event_type,
            severity,
            source: row.source,
            subject: row.subject,
            data: serde_json::from_str(&row.data).unwrap_or(Value::String(row.data)),
            created_at: row.created_at,
        }
    }
}

/// Events behind a place.
#[derive(Debug, Clone, Default)]
pub struct Behind {
    /// In order; all that may be told yet, up to the limit.
    pub events: Vec<Event>,
    /// Whether a further one is there but has to wait: a transaction that began before it may still bring others that
    /// stand before it. PostgreSQL counts the transactions of the whole server, so that a long one in another database
    /// delays events, and loses none.
    pub held: bool,
}

impl Behind {
    fn of(rows: Vec<StoredEvent>) -> Self {
        let held = rows.iter().any(|row| !row.settled);
        Self { events: rows.into_iter().take_while(|row| row.settled).map(Event::from).collect(), held }
    }
}

/// One statement, so one view of the database: what it holds back and what it shows cannot part.
macro_rules! behind_text {
    ($and:literal) => {
        sql!(
            "SELECT id, transaction_id, event_type, severity, source, subject, CAST(data AS TEXT) AS data, created_at, "
            { sqlite: "TRUE", postgres: "transaction_id < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT)" }
            " AS settled
             FROM events WHERE (transaction_id, id) > ($1, $2) " $and
            " ORDER BY transaction_id, id LIMIT $3"
        )
    };
}

/// Up to `limit` events behind `position`, in order, without those that another could still come to stand before.
pub async fn behind(db: &Db, position: Position, limit: i64) -> Result<Behind> {
    let rows = db
        .query(behind_text!(""))
        .bind(position.transaction_id)
        .bind(position.event_id)
        .bind(limit)
        .all::<StoredEvent>()
        .await?;
    Ok(Behind::of(rows))
}

/// As [`behind`], of the severe ones only.
pub(super) async fn severe_behind(tx: &mut Tx, position: Position, limit: i64) -> Result<Behind> {
    let rows = tx
        .query(behind_text!("AND severity IN ('error', 'critical')"))
        .bind(position.transaction_id)
        .bind(position.event_id)
        .bind(limit)
        .all::<StoredEvent>()
        .await?;
    Ok(Behind::of(rows))
}

/// The place of the last event that may be told.
pub async fn end(db: &Db) -> Result<Position> {
    let last: Option<(i64, i64)> = db
        .query(sql!(
            "SELECT transaction_id, id FROM events "
            { sqlite: "", postgres: "WHERE transaction_id < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT)" }
            " ORDER BY transaction_id DESC, id DESC LIMIT 1"
        ))
        .optional()
        .await?;
    Ok(last.map(|(transaction_id, event_id)| Position { transaction_id, event_id }).unwrap_or_default())
}

/// Events and marks that a dump brought along from another server carry that server's transactions; those that this
/// one has not come to yet are put before all others, else they would be held back for ever.
pub(super) async fn adopt(db: &Db) -> Result<()> {
    if db.dialect() == Dialect::Sqlite {
        return Ok(());
    }
    let mut tx = db.begin().await?;
    for statement in [
        "UPDATE events SET transaction_id = 0
         WHERE transaction_id >= CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT)",
        "UPDATE event_marks SET transaction_id = 0
         WHERE transaction_id >= CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT)",
    ] {
        tx.query(statement).execute().await?;
    }
    tx.commit().await
}

/// Up to `limit` events, newest first, before the id `before`.
pub async fn list(db: &Db, filter: &Filter, before: Option<i64>, limit: i64) -> Result<Vec<Event>> {
    let severities: Vec<&str> = filter.severities().iter().map(|severity| severity.as_str()).collect();
    let rows = db
        .query(sql!(
            "SELECT id, transaction_id, event_type, severity, source, subject, CAST(data AS TEXT) AS data, created_at,
                    TRUE AS settled
             FROM events
             WHERE id < $1
               AND ($2 = '[]' OR EXISTS
                    (SELECT 1 FROM " { sqlite: "json_each($2) AS t", postgres: "json_array_elements_text(CAST($2 AS JSON)) AS t (value)" }
            "        WHERE event_type = t.value OR substr(t.value, length(t.value)) = '*'
                       AND substr(event_type, 1, length(t.value) - 1) = substr(t.value, 1, length(t.value) - 1)))
               AND severity IN (SELECT value FROM "
            { sqlite: "json_each($3)", postgres: "json_array_elements_text(CAST($3 AS JSON)) AS s (value)" } ")
               AND (CAST($4 AS TEXT) IS NULL OR substr(subject, 1, length($4)) = $4)
             ORDER BY id DESC LIMIT $5"
        ))
        .bind(before.unwrap_or(i64::MAX))
        .bind(json!(filter.types).to_string())
        .bind(json!(severities).to_string())
        .bind(filter.subject.clone())
        .bind(limit)
        .all::<StoredEvent>()
        .await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// Up to `limit` events of exactly this subject, newest first, before the id `before`.
pub async fn of_subject(db: &Db, subject: &str, before: Option<i64>, limit: i64) -> Result<Vec<Event>> {
    let rows = db
        .query(
            "SELECT id, transaction_id, event_type, severity, source, subject, CAST(data AS TEXT) AS data, created_at,
                    TRUE AS settled
             FROM events WHERE subject = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        )
        .bind(subject.to_owned())
        .bind(before.unwrap_or(i64::MAX))
        .bind(limit)
        .all::<StoredEvent>()
        .await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// The place of the event with this id, or of one that is not there (any more), of which only the id is known.
pub async fn place_of(db: &Db, event_id: i64) -> Result<Position> {
    let found: Option<(i64,)> =
        db.query("SELECT transaction_id FROM events WHERE id = $1").bind(event_id).optional().await?;
    Ok(Position { transaction_id: found.map_or(0, |(transaction_id,)| transaction_id), event_id })
}

/// The last place that retention took away; nothing up to there is promised to be there still.
pub async fn forgotten(db: &Db) -> Result<Position> {
    let (transaction_id, event_id): (i64, i64) =
        db.query("SELECT transaction_id, event_id FROM event_marks WHERE name = 'forgotten'").one().await?;
    Ok(Position { transaction_id, event_id })
}

/// Takes away up to 1,000 events from before `before`; returns how many.
pub async fn forget(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    let gone: Vec<(i64, i64)> = tx
        .query(
            "DELETE FROM events WHERE id IN
                 (SELECT id FROM events WHERE created_at < $1 ORDER BY created_at LIMIT 1000)
             RETURNING transaction_id, id",
        )
        .bind(before)
        .all()
        .await?;
    let count = gone.len() as u64;
    if let Some((transaction_id, id)) = gone.into_iter().max() {
        tx.query(
            "UPDATE event_marks SET transaction_id = $1, event_id = $2
             WHERE name = 'forgotten' AND (transaction_id, event_id) < ($1, $2)",
        )
        .bind(transaction_id)
        .bind(id)
        .execute()
        .await?;
    }
    Ok(count)
}
