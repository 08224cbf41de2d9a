//! What the loop did: its cycles, and health minute by minute.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use crate::control::cycles::{self, CycleRow, Filter};
use crate::db::{self, Db, Timestamp};
use crate::problem::Problem;
use crate::sql;
use crate::web::{Cursor, Limit, Page, Params, Path};

/// One cycle in a list.
#[derive(Serialize, ToSchema)]
pub struct CycleView {
    #[serde(flatten)]
    row: CycleRow,
    /// Every proposal's fate, and the plan; null if nothing was proposed.
    #[schema(value_type = Option<Object>)]
    decision: Value,
    /// What was done: totals and one result an action; null if nothing was.
    #[schema(value_type = Option<Object>)]
    result: Value,
}

/// One cycle with everything that was recorded.
#[derive(Serialize, ToSchema)]
pub struct CycleDetail {
    #[serde(flatten)]
    row: CycleRow,
    /// What was seen; null if the cycle failed before it saw anything.
    #[schema(value_type = Option<Object>)]
    snapshot: Value,
    /// Every proposal's fate, and the plan; null if nothing was proposed.
    #[schema(value_type = Option<Object>)]
    decision: Value,
    /// What was done: totals and one result an action; null if nothing was.
    #[schema(value_type = Option<Object>)]
    result: Value,
}

#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CycleStatus {
    Running,
    Completed,
    Idle,
    Error,
}

#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TriggerKind {
    Loop,
    Manual,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CyclesQuery {
    /// Only cycles of this status.
    #[param(inline)]
    status: Option<CycleStatus>,
    /// Only cycles begun this way.
    #[param(inline)]
    trigger: Option<TriggerKind>,
    /// Only cycles begun at this time or later.
    since: Option<Timestamp>,
    #[serde(default)]
    #[param(required = false)]
    limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor<i64>>,
}

/// Cycles, newest first, without their snapshots.
#[utoipa::path(get, path = "/v1/cycles", operation_id = "listCycles", tag = "record", params(CyclesQuery),
    responses((status = 200, description = "A page of cycles", body = Page<CycleView>)))]
pub async fn list(
    State(state): State<AppState>,
    Params(query): Params<CyclesQuery>,
) -> Result<Json<Page<CycleView>>, Problem> {
    let filter = Filter {
        status: query.status.map(name),
        trigger: query.trigger.map(name),
        since: query.since,
        before_id: query.cursor.map(|Cursor(id)| id),
        ..Filter::default()
    };
    let rows = cycles::list(&state.db, &filter, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |row| row.id).map(CycleView::from)))
}

impl From<CycleRow> for CycleView {
    fn from(row: CycleRow) -> Self {
        let read = |text: &Option<String>| {
            text.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
        };
        Self { decision: read(&row.decision), result: read(&row.result), row }
    }
}

/// As in SQL and JSON.
fn name(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// One cycle with what it saw, decided and did.
#[utoipa::path(get, path = "/v1/cycles/{id}", operation_id = "getCycle", tag = "record",
    params(("id" = i64, Path, description = "The cycle")),
    responses((status = 200, description = "The cycle", body = CycleDetail)))]
pub async fn get(State(state): State<AppState>, Path(id): Path<i64>) -> Result<Json<CycleDetail>, Problem> {
    let cycle = cycles::load(&state.db, id).await?;
    let cycle = cycle.ok_or_else(|| {
        Problem::not_found(format!("There is no cycle {id}; old cycles are forgotten as `retention` says."))
    })?;
    let cycles::Cycle { row, snapshot, decision, result } = cycle;
    Ok(Json(CycleDetail { row, snapshot, decision, result }))
}

/// Health in one minute.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
pub struct HealthMinute {
    /// When the minute began.
    minute: Timestamp,
    /// The lowest score.
    min: i64,
    /// The last score.
    last: i64,
}

#[derive(Serialize, ToSchema)]
pub struct HealthHistory {
    /// Minutes with at least one finished look at the platform, oldest first.
    minutes: Vec<HealthMinute>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// How far back, 1 to 1440 minutes; 60 if not given.
    #[param(minimum = 1, maximum = 1440)]
    minutes: Option<u64>,
}

/// A day: beyond it, Prometheus is the better memory.
const MOST_MINUTES: u64 = 1440;

/// Health minute by minute, up to a day back.
#[utoipa::path(get, path = "/v1/health-history", operation_id = "getHealthHistory", tag = "record",
    params(HistoryQuery), responses((status = 200, description = "The minutes", body = HealthHistory)))]
pub async fn health_history(
    State(state): State<AppState>,
    Params(query): Params<HistoryQuery>,
) -> Result<Json<HealthHistory>, Problem> {
    let minutes = query.minutes.unwrap_or(60);
    if !(1..=MOST_MINUTES).contains(&minutes) {
        let message = format!("takes a whole number from 1 to {MOST_MINUTES}");
        return Err(Problem::refused("minutes", message));
    }
    let since = state.db.now().await?.before(Duration::from_secs(minutes * 60));
    Ok(Json(HealthHistory { minutes: minutes_since(&state.db, since).await? }))
}

/// The last score of a minute is that of its highest id: a score has at most three digits, so the two ride in one
/// number through MAX.
async fn minutes_since(db: &Db, since: Timestamp) -> db::Result<Vec<HealthMinute>> {
    db.query(sql!(
        "SELECT " { sqlite: "substr(started_at, 1, 16) || ':00.000Z'", postgres: "date_trunc('minute', started_at)" }
        " AS minute, CAST(MIN(health_score) AS BIGINT) AS min, CAST(MAX(id * 1000 + health_score) % 1000 AS BIGINT) AS last
         FROM cycles WHERE started_at >= $1 AND health_score IS NOT NULL GROUP BY 1 ORDER BY 1"
    ))
    .bind(since)
    .all()
    .await
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Writes a finished idle cycle as the loop does.
    pub async fn insert_cycle(db: &Db, id: i64, started_at: &str, score: i64) {
        let mut tx = db.begin().await.expect("begin");
        let at: Timestamp = started_at.parse().expect("time");
        tx.query(sql!(
            "INSERT INTO cycles (id, trigger, status, term, instance, rules_hash, engine_version, started_at,
                 finished_at, health_score, health_status, snapshot)
             VALUES ($1, 'loop', 'idle', 1, 'a', 'h', '1', $2, $2, $3, 'healthy', " 
             { sqlite: "$4", postgres: "CAST($4 AS JSON)" } ")"
        ))
        .bind(id)
        .bind(at)
        .bind(score)
        .bind(r#"{"at":"x"}"#.to_owned())
        .execute()
        .await
        .expect("insert");
        tx.commit().await.expect("commit");
    }

    #[tokio::test]
    async fn a_minute_has_its_lowest_and_its_last_score() {
        let clock = crate::clock::ManualClock::at(chrono::DateTime::UNIX_EPOCH);
        let db = Db::open(&db::Options::new("sqlite::memory:"), clock).await.expect("open");
        db.migrate().await.expect("migrate");
        for (id, at, score) in [
            (1, "2026-11-20T10:00:59.999Z", 40),
            (2, "2026-11-20T10:01:00.000Z", 100),
            (3, "2026-11-20T10:01:30.000Z", 0),
            (4, "2026-11-20T10:01:58.000Z", 80),
            (5, "2026-11-20T10:03:00.000Z", 100),
        ] {
            insert_cycle(&db, id, at, score).await;
        }
        let since: Timestamp = "2026-11-20T10:01:00Z".parse().expect("time");
        let minutes = minutes_since(&db, since).await.expect("read");
        let at = |text: &str| text.parse::<Timestamp>().expect("time");
        assert_eq!(
            minutes,
            [
                HealthMinute { minute: at("2026-11-20T10:01:00Z"), min: 0, last: 80 },
                HealthMinute { minute: at("2026-11-20T10:03:00Z"), min: 100, last: 100 },
            ]
        );
    }
}
