//! An idle cycle over a history that grows a thousandfold, beside the plain way of looking: one COUNT or GROUP BY a
//! figure, over the same rows in the same file, with the indexes that one would give it.

use std::time::{Duration, Instant};

use showrunner::clock::{Clock, SystemClock};
use showrunner::control::fold_tallies;
use showrunner::db::{Db, Sql, Timestamp};
use showrunner::sql;

use crate::support::{Goal, Loop, Place, Report, assert_all_idle, percentile, platform};

/// Rows of `jobs`; in all 3.1 times as many: 10 thousand, 100 thousand, 1 million, 10 million.
const SIZES: [u64; 4] = [3_226, 32_258, 322_581, 3_225_806];
const MILLION: u64 = SIZES[2];

pub async fn measure(report: &mut Report) {
    report.part("An idle cycle over a history, and the plain way");
    let sizes = if report.quick { &SIZES[..2] } else { &SIZES[..] };
    for name in ["SQLite", "PostgreSQL"] {
        let mut smallest = 0.0;
        for jobs in sizes {
            let place = if name == "SQLite" { Some(Place::sqlite()) } else { Place::postgres().await };
            let Some(place) = place else { break };
            smallest = one_size(report, place, *jobs, smallest).await;
        }
    }
}

/// Returns the median of the smallest size.
async fn one_size(report: &mut Report, place: Place, jobs: u64, smallest: f64) -> f64 {
    let clock = SystemClock::shared();
    let db = place.open(clock.clone()).await;
    platform::fill(&place.url, db.dialect(), jobs).await;
    fold_tallies(&db).await.expect("tallies fold");

    let mut driven = Loop::over(&db, &clock).await;
    let mut times = Vec::new();
    for round in 0..report.count(430, 40) {
        let took = driven.cycle().await;
        if round >= 30 {
            times.push(took);
        }
    }
    assert_all_idle(&db).await;
    let p50 = percentile(&mut times, 0.5);
    let label = format!("{}, {} rows", place.name, thousands(platform::rows(jobs)));
    report.figure(&format!("{label}: cycle, p50"), p50, "ms", Goal::None);
    report.figure(&format!("{label}: cycle, p99"), percentile(&mut times, 0.99), "ms", Goal::None);
    let base = if smallest == 0.0 { p50 } else { smallest };
    if smallest > 0.0 {
        let goal = if jobs == SIZES[3] { Goal::AtMost(1.5) } else { Goal::None };
        report.figure(&format!("{label}: cycle ÷ cycle at 10 k rows"), p50 / base, "×", goal);
    }

    for text in NAIVE_INDEXES {
        let mut tx = db.begin().await.expect("begin");
        tx.query(Sql::from(text)).execute().await.expect("an index");
        tx.commit().await.expect("commit");
    }
    let mut times = Vec::new();
    for round in 0..if jobs > MILLION { 6 } else { report.count(41, 6) } {
        let began = Instant::now();
        naive_cycle(&db, &*clock).await;
        if round > 0 {
            times.push(began.elapsed());
        }
    }
    let naive = percentile(&mut times, 0.5);
    report.figure(&format!("{label}: the plain way, p50"), naive, "ms", Goal::None);
    let goal = if jobs == MILLION { Goal::AtLeast(50.0) } else { Goal::None };
    report.figure(&format!("{label}: the plain way ÷ cycle"), naive / p50, "×", goal);
    place.close(db).await;
    base
}

fn thousands(rows: u64) -> String {
    if rows >= 999_000 { format!("{} M", (rows + 500_000) / 1_000_000) } else { format!("{} k", (rows + 500) / 1_000) }
}

/// What somebody would index who counts by status and by time; made after the cycle was measured.
const NAIVE_INDEXES: [&str; 8] = [
    "CREATE INDEX naive_jobs_status ON jobs (status)",
    "CREATE INDEX naive_jobs_created ON jobs (created_at)",
    "CREATE INDEX naive_logs_status ON publish_logs (status)",
    "CREATE INDEX naive_logs_failed ON publish_logs (failed_at)",
    "CREATE INDEX naive_clips_status ON clips (status)",
    "CREATE INDEX naive_clips_created ON clips (created_at)",
    "CREATE INDEX naive_campaigns_status ON campaigns (status)",
    "CREATE TABLE naive_cycles (created_at TEXT NOT NULL, health BIGINT NOT NULL)",
];

/// The same figures, counted; then one row that says that nothing was needed.
async fn naive_cycle(db: &Db, clock: &dyn Clock) {
    let now = Timestamp::new(clock.now());
    let hour_ago = now.before(Duration::from_secs(3_600));
    let day_ago = now.before(Duration::from_secs(86_400));
    type Count = (i64,);
    let mut tx = db.begin_read().await.expect("begin");
    let by_status: Vec<(String, i64)> =
        tx.query("SELECT status, COUNT(*) FROM jobs GROUP BY status").all().await.expect("jobs");
    let pending = by_status.iter().find(|(status, _)| status == "pending").map_or(0, |(_, count)| *count);
    let _: Option<(Option<Timestamp>,)> = tx
        .query("SELECT MIN(coalesce(run_at, created_at)) FROM jobs WHERE status = 'pending'")
        .optional()
        .await
        .expect("the oldest job");
    let _: Vec<(String, i64)> =
        tx.query("SELECT status, COUNT(*) FROM publish_logs GROUP BY status").all().await.expect("publish logs");
    let (failures,): Count = tx
        .query("SELECT COUNT(*) FROM publish_logs WHERE status = 'failed' AND failed_at > $1")
        .bind(hour_ago)
        .one()
        .await
        .expect("failures");
    let _: Option<(Option<Timestamp>,)> = tx
        .query("SELECT MIN(coalesce(pending_at, created_at)) FROM publish_logs WHERE status = 'pending'")
        .optional()
        .await
        .expect("the oldest publication");
    for text in [
        "SELECT COUNT(*) FROM publish_logs WHERE status = 'failed' AND retry_count < max_retries",
        "SELECT COUNT(*) FROM campaigns WHERE status = 'active'",
        "SELECT COUNT(*) FROM clips WHERE status = 'ready' AND visual_score > 80",
    ] {
        let _: Count = tx.query(Sql::from(text)).one().await.expect("a count");
    }
    for (text, since) in [
        (
            "SELECT COUNT(*) FROM publish_logs WHERE status = 'pending' AND coalesce(pending_at, created_at) < $1",
            hour_ago,
        ),
        ("SELECT COUNT(*) FROM publish_logs WHERE status = 'scheduled' AND scheduled_at < $1", now),
        ("SELECT COUNT(*) FROM clips WHERE created_at > $1", day_ago),
    ] {
        let _: Count = tx.query(Sql::from(text)).bind(since).one().await.expect("a count");
    }
    let _: Vec<(i64, String, i64)> = tx
        .query(
            "SELECT id, name, budget_cents FROM campaigns WHERE status = 'active' ORDER BY priority DESC, budget_cents DESC LIMIT 10",
        )
        .all()
        .await
        .expect("campaigns");
    let _: (Option<f64>,) = tx
        .query("SELECT AVG(visual_score) FROM clips WHERE created_at > $1")
        .bind(day_ago)
        .one()
        .await
        .expect("scores");
    let _: Vec<(i64, f64)> = tx
        .query("SELECT id, visual_score FROM clips WHERE status = 'ready' ORDER BY visual_score DESC LIMIT 10")
        .all()
        .await
        .expect("clips");
    let (errors,): Count = tx
        .query("SELECT COUNT(*) FROM ledger_entries WHERE severity IN ('error', 'critical') AND created_at > $1")
        .bind(hour_ago)
        .one()
        .await
        .expect("errors");
    drop(tx);
    let health = 100 - 10 * failures.min(1) - 5 * errors - if pending > 50 { 20 } else { 0 };
    let mut tx = db.begin().await.expect("begin");
    tx.query(sql!("INSERT INTO naive_cycles VALUES (" { sqlite: "$1", postgres: "CAST($1 AS TEXT)" } ", $2)"))
        .bind(now)
        .bind(health)
        .execute()
        .await
        .expect("a row");
    tx.commit().await.expect("commit");
}
