//! A platform with a history, written by plain SQL as another program would write it.

use showrunner::db::Dialect;
use sqlx::{AssertSqlSafe, Connection};

/// Rows in all that [`fill`] writes for `jobs` jobs: as many publish logs and ledger entries, a tenth as many clips.
pub fn rows(jobs: u64) -> u64 {
    jobs * 3 + jobs / 10
}

/// Finished work of the last thirty days, `jobs` rows of it, and the same live work whatever the size: 40 pending
/// jobs, 30 scheduled publications, 30 ready clips, 30 active campaigns.
pub async fn fill(url: &str, dialect: Dialect, jobs: u64) {
    let clips = jobs / 10 + 1;
    let mut texts = Vec::new();
    for (count, statement) in [(clips, CLIPS), (jobs, JOBS), (jobs, LOGS), (jobs, LEDGER)] {
        // In stretches, so that no single transaction holds everything.
        for from in (0..count).step_by(200_000) {
            let to = (from + 200_000).min(count) - 1;
            let (series, ago) = match dialect {
                Dialect::Sqlite => (
                    format!("WITH RECURSIVE s(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM s WHERE i < {to}) "),
                    "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ((i % 43000) + 90) || ' minutes')",
                ),
                Dialect::Postgres => (
                    format!("WITH s AS (SELECT i FROM generate_series({from}::bigint, {to}::bigint) AS i) "),
                    "(date_trunc('milliseconds', now()) - ((i % 43000) + 90) * interval '1 minute')",
                ),
            };
            let (insert, select) = statement.split_once("SELECT").expect("INSERT … SELECT");
            texts.push(format!("{insert} {series} SELECT {}", select.replace("$ago", ago)));
        }
    }
    texts.push("UPDATE ledger_head SET entry_id = (SELECT MAX(id) FROM ledger_entries)".to_owned());
    texts.extend(live(dialect));
    write(url, dialect, texts).await;
}

/// The live work alone, on a platform without a history.
pub async fn fill_live(url: &str, dialect: Dialect) {
    write(url, dialect, live(dialect)).await;
}

fn live(dialect: Dialect) -> Vec<String> {
    let mut texts = Vec::new();
    let soon = match dialect {
        Dialect::Sqlite => "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 day')",
        Dialect::Postgres => "now() + interval '1 day'",
    };
    for _ in 0..40 {
        texts.push("INSERT INTO jobs (kind) VALUES ('render')".to_owned());
    }
    for clip in 1..=30 {
        texts.push("INSERT INTO clips (title, media_uri, visual_score) VALUES ('ready', 's3://x', 50)".to_owned());
        texts.push(format!(
            "INSERT INTO publish_logs (clip_id, platform, status, scheduled_at) VALUES ({clip}, 'tiktok', 'scheduled', {soon})"
        ));
        texts.push("INSERT INTO campaigns (name, status, budget_cents) VALUES ('small', 'active', 100)".to_owned());
    }
    texts
}

async fn write(url: &str, dialect: Dialect, mut texts: Vec<String>) {
    match dialect {
        Dialect::Sqlite => {
            let mut connection = sqlx::SqliteConnection::connect(url).await.expect("a connection");
            // For this connection only: the filling is not what is measured.
            texts.insert(0, "PRAGMA synchronous = OFF; PRAGMA cache_size = -262144".to_owned());
            texts.push("ANALYZE".to_owned());
            texts.push("PRAGMA wal_checkpoint(TRUNCATE)".to_owned());
            for text in texts {
                sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("rows");
            }
        }
        Dialect::Postgres => {
            let mut connection = sqlx::PgConnection::connect(url).await.expect("a connection");
            texts.push("VACUUM ANALYZE".to_owned());
            for text in texts {
                sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("rows");
            }
        }
    }
}

const CLIPS: &str = "INSERT INTO clips (title, media_uri, visual_score, status, created_at)
    SELECT 'clip ' || i, 's3://clips/' || i || '.mp4', 41 + (i % 50), 'published', $ago FROM s";
const JOBS: &str = "INSERT INTO jobs (kind, status, attempt, created_at, updated_at, finished_at)
    SELECT 'render', CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'completed' END, 1, $ago, $ago, $ago FROM s";
const LOGS: &str = "INSERT INTO publish_logs
        (clip_id, platform, status, scheduled_at, retry_count, attempted_at, failed_at, published_at, created_at, updated_at)
    SELECT i / 10 + 1, 'p' || (i % 10), CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'published' END, $ago, 3, $ago,
        CASE WHEN i % 50 = 0 THEN $ago END, CASE WHEN i % 50 <> 0 THEN $ago END, $ago, $ago FROM s";
const LEDGER: &str = "INSERT INTO ledger_entries
        (id, cycle_id, event_type, severity, actor, payload, created_at, prev_hash, hash)
    SELECT i + 1, i / 2 + 1, 'orchestrator.cycle_idle', 'info', 'loop', '{\"health\":100}', $ago,
        'b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c',
        '7d865e959b2466918c9863afca942d0fb89d7c9ac0c99bafc3749504ded97730' FROM s";
