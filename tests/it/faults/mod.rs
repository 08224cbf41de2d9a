//! Real faults against the real program: killed, cut off, out of room, lied to. After each the loop comes back by
//! itself, nothing is lost or doubled, and status, readiness and ledger say what happened.

pub mod cluster;
mod kills;
mod postgres;
mod receiver;
mod rules_folder;
mod sqlite;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::World;
use crate::support::process::Process;
use crate::support::receiver::Receiver;

/// Long enough for a busy machine, short enough to fail.
const PATIENCE: Duration = Duration::from_secs(90);

/// Two rules that make every cycle act, and ask for what became of lost publications at once.
const BUSY: &str = "rule \"order\" priority 5 then rebalance_queue() because \"the story asks\";
rule \"ask\" priority 9 when publish_logs.unknown > 0 then trigger_reconciliation() because \"the story asks\";";

/// What the program is started with: the loop on, every second, publishing to `receiver`, by the rules in `BUSY`.
fn settings(world: &mut World, receiver: &Receiver) -> Vec<(&'static str, String)> {
    world.rules("busy.rhai", BUSY);
    let mut settings = receiver.settings();
    settings.extend([
        ("RULES_DIR", world.folder().join("rules").display().to_string()),
        ("ORCHESTRATOR_ENABLED", "true".to_owned()),
        ("ORCHESTRATOR_INTERVAL_SECONDS", "1".to_owned()),
        ("SHOWRUNNER_GOVERNORS__BUDGETS__REBALANCE_QUEUE", "1000000".to_owned()),
        ("SHOWRUNNER_GOVERNORS__BUDGETS__TRIGGER_RECONCILIATION", "1000000".to_owned()),
        ("SHOWRUNNER_QUEUE__LEASE_SECONDS", "5".to_owned()),
        ("SHOWRUNNER_QUEUE__POLL_INTERVAL_MS", "100".to_owned()),
        ("SHOWRUNNER_PUBLISHING__CALL_TIMEOUT_MS", "2000".to_owned()),
        ("SHOWRUNNER_PUBLISHING__SETTLE_MINUTES", "1".to_owned()),
    ]);
    settings
}

fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

async fn serve(world: &World, settings: &[(&'static str, String)]) -> Process {
    Process::serve(world.url(), &borrowed(settings)).await
}

/// Publications that another program inserts, to go out at once.
async fn load(world: &World, count: usize) {
    let mut text = String::new();
    for _ in 0..count {
        text.push_str(
            "INSERT INTO clips (title, media_uri, visual_score) VALUES ('a clip', 's3://clips/1.mp4', 50);
             INSERT INTO publish_logs (clip_id, platform, status) SELECT MAX(id), 'tiktok', 'pending' FROM clips;
             INSERT INTO jobs (kind, queue) VALUES ('render', 'another');",
        );
    }
    world.sql(&format!("BEGIN; {text} COMMIT")).await;
}

/// Waits until a cycle that is not there yet has ended well; returns how long that took.
async fn cycle_after_now(world: &World) -> Duration {
    let began = tokio::time::Instant::now();
    let ended = "SELECT COALESCE(MAX(id), 0) FROM cycles WHERE status IN ('idle', 'completed')";
    let last = world.number(ended).await;
    let later = format!("SELECT CASE WHEN ({ended}) > {last} THEN 'yes' ELSE 'no' END");
    world.until_within(PATIENCE, &later, "yes").await;
    began.elapsed()
}

/// Lets every publication come to its end, and holds what the rows say against what the receiver was sent.
async fn account(world: &World, receiver: &Receiver, count: usize) {
    let under_way = "SELECT COUNT(*) FROM publish_logs WHERE status IN ('scheduled', 'pending', 'publishing', 'retry')";
    world.until_within(PATIENCE, under_way, "0").await;
    // The time after which a receiver's \"never seen\" counts goes by.
    let before = if world.is_sqlite() { "'2020-01-01T00:00:00.000Z'" } else { "TIMESTAMPTZ '2020-01-01T00:00:00Z'" };
    world.sql(&format!("UPDATE publish_logs SET attempted_at = {before} WHERE status = 'unknown'")).await;
    world.until_within(PATIENCE, "SELECT COUNT(*) FROM publish_logs WHERE status = 'unknown'", "0").await;

    let gather = if world.is_sqlite() { "group_concat" } else { "string_agg" };
    let rows = world
        .text(&format!("SELECT {gather}(id || ':' || idempotency_key || ':' || status, ',') FROM publish_logs"))
        .await;
    let rows: Vec<(i64, String, String)> = rows
        .split(',')
        .map(|row| {
            let mut parts = row.split(':').map(str::to_owned);
            let mut next = || parts.next().expect("three parts");
            (next().parse().expect("an id"), next(), next())
        })
        .collect();
    assert_eq!(rows.len(), count, "no publication is lost");
    let posts = receiver.posts();
    let twice: BTreeMap<_, _> = posts.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "posted more than once: {twice:?}");
    for (id, key, status) in &rows {
        match status.as_str() {
            "published" => assert!(posts.contains_key(key), "publication {id} is published, but was never sent"),
            "failed" => assert!(!posts.contains_key(key), "publication {id} went out and counts as failed"),
            other => panic!("publication {id} is {other}"),
        }
    }
    let told_twice = "SELECT COUNT(*) FROM (SELECT subject FROM ledger_entries
         WHERE event_type IN ('publishing.published', 'publishing.reconciled') GROUP BY subject HAVING COUNT(*) > 1) AS s";
    assert_eq!(world.number(told_twice).await, 0, "each publication is settled once in the ledger");
    let actions = world.number("SELECT COUNT(*) FROM actions WHERE outcome = 'executed'").await;
    let entries = "SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.action_executed'";
    assert!((world.number(entries).await - actions).abs() <= 1, "what was done is in the ledger");
}

/// Every entry of the ledger follows from the one before.
async fn chain_is_whole(process: &Process) {
    assert_eq!(process.get("/v1/ledger/verify").await["whole"], true);
}
