//! Publications from due to accepted, through the whole service: ten thousand become due at one moment while the
//! loop runs. The simulated platform answers at once, so that the service is what is measured.

use std::time::Duration;

use showrunner::app::{App, Mode, Parts};
use showrunner::clock::SystemClock;
use showrunner::config::Config;
use showrunner::db::{Db, Timestamp};
use showrunner::random::Random;
use showrunner::sql;

use crate::support::{Goal, Place, Report, percentile};

/// Between the last inserted row and the moment at which all are due.
const AHEAD: Duration = Duration::from_secs(4);
/// A run that takes longer has lost something.
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn measure(report: &mut Report) {
    report.part("Publications, all due at one moment");
    for place in Place::both().await {
        for count in if report.quick { [10, 100] } else { [1_000, 10_000] } {
            run(report, &place, count).await;
        }
        let db = place.open(SystemClock::shared()).await;
        place.close(db).await;
    }
}

async fn run(report: &mut Report, place: &Place, count: usize) {
    let clock = SystemClock::shared();
    let mut config = Config { database_url: place.url.clone(), port: 0, ..Config::default() };
    config.orchestrator.enabled = true;
    (config.publishing.sandbox.latency_min_ms, config.publishing.sandbox.latency_max_ms) = (0, 0);
    let interval = config.orchestrator.interval_seconds as f64;
    let parts = Parts { config, clock, random: Random::seeded(1), db: None, mode: Mode::Serve, listen: true };
    let app = App::start(parts).await.expect("the service");
    let db = app.db().clone();
    let began = db.now().await.expect("the time");
    let (before,): (i64,) = db.query("SELECT COUNT(*) FROM sandbox_posts").one().await.expect("a count");
    insert(&db, count as i64).await;

    let deadline = tokio::time::Instant::now() + AHEAD + PATIENCE;
    loop {
        let (open,): (i64,) = db
            .query("SELECT COUNT(*) FROM publish_logs WHERE status NOT IN ('published', 'failed', 'cancelled')")
            .one()
            .await
            .expect("a count");
        if open == 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{open} publications are still open");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let accepted: Vec<(Timestamp, Timestamp)> = db
        .query(
            "SELECT log.scheduled_at, post.created_at FROM sandbox_posts AS post
             JOIN publish_logs AS log ON log.idempotency_key = post.idempotency_key WHERE log.created_at >= $1",
        )
        .bind(began)
        .all()
        .await
        .expect("posts");
    let (posts,): (i64,) = db.query("SELECT COUNT(*) FROM sandbox_posts").one().await.expect("a count");
    assert_eq!((accepted.len(), posts - before), (count, count as i64), "each is accepted exactly once");
    let mut waits: Vec<Duration> = accepted.iter().map(|(due, accepted)| accepted.since(*due)).collect();
    let all = percentile(&mut waits, 1.0);
    let label = format!("{}, {count} due at once", place.name);
    report.figure(&format!("{label}: accepted"), count as f64 / all * 1_000.0, "/s", Goal::None);
    report.figure(&format!("{label}: due to accepted, p50"), percentile(&mut waits, 0.5), "ms", Goal::None);
    report.figure(&format!("{label}: due to accepted, p99"), percentile(&mut waits, 0.99), "ms", Goal::None);

    let cycles: Vec<(Timestamp,)> = db
        .query("SELECT started_at FROM cycles WHERE started_at >= $1 ORDER BY id")
        .bind(began)
        .all()
        .await
        .expect("cycles");
    let gap = cycles.windows(2).map(|pair| pair[1].0.since(pair[0].0).as_secs_f64()).fold(0.0, f64::max);
    report.figure(&format!("{label}: longest from cycle to cycle"), gap, "s", Goal::AtMost(interval * 1.25));
    app.stop().await;
}

/// A clip and a publication each, spread over the three platforms, as another program would insert them.
async fn insert(db: &Db, count: i64) {
    let now = db.now().await.expect("the time");
    let mut tx = db.begin().await.expect("begin");
    let (last,): (i64,) = tx.query("SELECT coalesce(MAX(id), 0) FROM clips").one().await.expect("the last clip");
    for text in [
        sql!("INSERT INTO clips (title, media_uri, visual_score) SELECT 'clip ' || i, 's3://clips/' || i, 50 FROM "
             { sqlite: "(WITH RECURSIVE s (i) AS (SELECT $1 + 1 UNION ALL SELECT i + 1 FROM s WHERE i < $1 + $2) SELECT i FROM s) AS s",
               postgres: "generate_series($1 + 1, $1 + $2) AS s (i)" } " WHERE $3 = $3"),
        sql!(
            "INSERT INTO publish_logs (clip_id, platform, status, scheduled_at)
              SELECT id, CASE id % 3 WHEN 0 THEN 'tiktok' WHEN 1 THEN 'youtube' ELSE 'instagram' END, 'scheduled', $3
              FROM clips WHERE id > $1 AND id <= $1 + $2"
        ),
    ] {
        tx.query(text).bind(last).bind(count).bind(now.after(AHEAD)).execute().await.expect("rows");
    }
    tx.commit().await.expect("commit");
}
