//! The record: what a day of idle cycles takes on the disk, how fast the chain verifies, and what an append costs
//! beside the bare INSERT of an equal row.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::json;
use showrunner::actor::Actor;
use showrunner::clock::{ManualClock, SharedClock, SystemClock};
use showrunner::control::cycles;
use showrunner::control::decider::{Decision, RuleSet, replay};
use showrunner::control::snapshot::Snapshot;
use showrunner::db::{Db, Dialect, Sql, Timestamp};
use showrunner::ledger::{self, Entry};
use showrunner::sql;

use crate::support::{Goal, Loop, Place, Report, assert_all_idle, percentile, platform};

const DAY: usize = 43_200;
const INTERVAL: Duration = Duration::from_secs(2);

pub async fn measure(report: &mut Report) {
    report.part("The ledger");
    for place in Place::both().await {
        day(report, place).await;
    }
    for place in Place::both().await {
        appends(report, place).await;
    }
}

/// A day of idle cycles, two seconds apart by a clock that is moved; one job ends in each, so that no two see the same.
async fn day(report: &mut Report, place: Place) {
    let name = place.name;
    let now = chrono::Utc::now();
    let manual = ManualClock::at(now);
    let clock: SharedClock = manual.clone();
    let db = place.open(clock.clone()).await.with_clock(clock.clone());
    platform::fill_live(&place.url, db.dialect()).await;
    let mut tx = db.begin().await.expect("begin");
    tx.query("UPDATE clips SET status = 'archived'").execute().await.expect("nothing to publish all day");
    tx.commit().await.expect("commit");
    let mut driven = Loop::over(&db, &clock).await;
    let cycles = report.count(DAY, 500);
    for _ in 0..cycles {
        let mut tx = db.begin().await.expect("begin");
        tx.query("INSERT INTO jobs (kind, status) VALUES ('render', 'completed')").execute().await.expect("a job");
        tx.commit().await.expect("commit");
        driven.cycle().await;
        manual.advance(INTERVAL);
    }
    assert_all_idle(&db).await;
    let share = cycles as f64 / DAY as f64;
    let megabytes = bytes_of_the_record(&db).await as f64 / 1e6 / share;
    report.figure(&format!("{name}: a day of idle cycles (43,200), with indexes"), megabytes, "MB", Goal::AtMost(60.0));

    let began = Instant::now();
    let replayed = replay_all(&db).await;
    assert!(replayed >= cycles);
    let a_second = replayed as f64 / began.elapsed().as_secs_f64();
    report.figure(&format!("{name}: every cycle of that day replayed: all the same"), a_second, "/s", Goal::None);

    let one = verify_rate(&db, report.count(3, 1)).await;
    report.figure(&format!("{name}: verify, that day's entries"), one, "entries/s", Goal::AtLeast(200_000.0));
    lengthen(&db, 9 * 2 * cycles).await;
    let ten = verify_rate(&db, report.count(3, 1)).await;
    report.figure(&format!("{name}: verify, ten times as many ÷ that day's, by rate"), ten / one, "×", Goal::None);
    drop(driven);
    place.close(db).await;
}

/// What `ledger_entries` and `cycles` take with their indexes.
async fn bytes_of_the_record(db: &Db) -> i64 {
    let (bytes,): (i64,) = db
        .query(sql!({
            sqlite: "SELECT SUM(pgsize) FROM dbstat WHERE name IN (
                         SELECT name FROM sqlite_schema WHERE tbl_name IN ('ledger_entries', 'cycles'))",
            postgres: "SELECT CAST(pg_total_relation_size('ledger_entries') + pg_total_relation_size('cycles') AS BIGINT)"
        }))
        .one()
        .await
        .expect("sizes");
    bytes
}

/// Decides every cycle again from what is stored, as `showrunner replay` does; returns how many.
async fn replay_all(db: &Db) -> usize {
    let (last,): (i64,) = db.query("SELECT MAX(id) FROM cycles").one().await.expect("the last cycle");
    let mut sets: HashMap<String, RuleSet> = HashMap::new();
    let mut count = 0;
    for id in 1..=last {
        let cycle = cycles::load(db, id).await.expect("the database").expect("the cycle");
        let snapshot: Snapshot = serde_json::from_value(cycle.snapshot).expect("a snapshot");
        let recorded: Decision = serde_json::from_value(cycle.decision.clone()).expect("a decision");
        if !sets.contains_key(&cycle.row.rules_hash) {
            let sources = cycles::rule_sources(db, &cycle.row.rules_hash).await.expect("the database");
            let set = RuleSet::load(&sources.expect("the rules")).expect("good rules");
            sets.insert(cycle.row.rules_hash.clone(), set);
        }
        let again = replay(&sets[&cycle.row.rules_hash], &snapshot, &recorded);
        assert_eq!(serde_json::to_value(again).expect("JSON"), cycle.decision, "cycle {id}");
        count += 1;
    }
    count
}

/// Entries a second: the median of some walks over the whole chain.
async fn verify_rate(db: &Db, walks: usize) -> f64 {
    let mut times = Vec::new();
    let mut entries = 0;
    for _ in 0..walks {
        let began = Instant::now();
        let found = ledger::verify(db, |_| ()).await.expect("the database");
        times.push(began.elapsed());
        assert_eq!(found.first_bad, None);
        entries = found.entries;
    }
    entries as f64 / percentile(&mut times, 0.5) * 1_000.0
}

/// Appends entries as idle cycles write them, a thousand in a transaction.
async fn lengthen(db: &Db, entries: usize) {
    for _ in 0..entries.div_ceil(1_000) {
        let thousand: Vec<Entry> = (0..1_000).map(|cycle| entry().cycle(cycle)).collect();
        let mut tx = db.begin().await.expect("begin");
        ledger::append(&mut tx, &thousand).await.expect("appended");
        tx.commit().await.expect("commit");
    }
}

fn entry() -> Entry {
    Entry::new("orchestrator.cycle_started", Actor::Loop, json!({ "health": 100, "status": "healthy" }))
}

/// One entry a transaction, beside one bare INSERT a transaction of an equal row into a table with equal indexes but
/// without a chain; in turn, so that both meet the same machine.
async fn appends(report: &mut Report, place: Place) {
    let (name, clock) = (place.name, SystemClock::shared());
    let db = place.open(clock).await;
    let mut tx = db.begin().await.expect("begin");
    tx.query(BARE).execute().await.expect("a table");
    tx.commit().await.expect("commit");
    let (mut chained, mut bare) = (Vec::new(), Vec::new());
    let each = report.count(if db.dialect() == Dialect::Sqlite { 2_000 } else { 500 }, 100);
    for round in 0..6 {
        let began = Instant::now();
        for id in 0..each {
            let mut tx = db.begin().await.expect("begin");
            ledger::append(&mut tx, &[entry().cycle(id as i64)]).await.expect("appended");
            tx.commit().await.expect("commit");
        }
        chained.push(began.elapsed());
        let began = Instant::now();
        for id in 0..each {
            insert_bare(&db, (round * each + id) as i64).await;
        }
        bare.push(began.elapsed());
    }
    let a_second = |mut times: Vec<Duration>| each as f64 / percentile(&mut times, 0.5) * 1_000.0;
    let (chained, bare) = (a_second(chained), a_second(bare));
    report.figure(&format!("{name}: bare INSERTs of an equal row"), bare, "/s", Goal::None);
    report.figure(&format!("{name}: appends"), chained, "/s", Goal::None);
    report.figure(&format!("{name}: appends ÷ bare INSERTs"), chained / bare, "×", Goal::AtLeast(0.7));
    place.close(db).await;
}

const BARE: Sql = sql!({
    sqlite: "CREATE TABLE bare (id INTEGER PRIMARY KEY, cycle_id INTEGER, event_type TEXT NOT NULL,
                 severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'error', 'critical')),
                 actor TEXT NOT NULL, subject TEXT, rule TEXT, payload TEXT NOT NULL CHECK (json_valid(payload)),
                 created_at TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
                 prev_hash TEXT NOT NULL, hash TEXT NOT NULL);
             CREATE INDEX bare_by_time ON bare (created_at);
             CREATE INDEX bare_by_cycle ON bare (cycle_id, id) WHERE cycle_id IS NOT NULL;
             CREATE INDEX bare_by_subject ON bare (subject, id) WHERE subject IS NOT NULL;
             CREATE INDEX bare_errors ON bare (created_at) WHERE severity IN ('error', 'critical');
             CREATE INDEX bare_by_event ON bare (event_type, id);
             CREATE INDEX bare_by_rule ON bare (rule, id) WHERE rule IS NOT NULL;
             CREATE INDEX bare_by_actor ON bare (actor, id) WHERE actor NOT IN ('loop', 'system');
             CREATE INDEX bare_by_severity ON bare (severity, id) WHERE severity <> 'info'",
    postgres: "CREATE TABLE bare (LIKE ledger_entries INCLUDING ALL)"
});

async fn insert_bare(db: &Db, id: i64) {
    let hash = "7d865e959b2466918c9863afca942d0fb89d7c9ac0c99bafc3749504ded97730".to_owned();
    let mut tx = db.begin().await.expect("begin");
    let now: Timestamp = tx.now().await.expect("now");
    tx.query(sql!(
        "INSERT INTO bare (id, cycle_id, event_type, severity, actor, subject, rule, payload, created_at, prev_hash, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, " { sqlite: "$8", postgres: "CAST($8 AS JSON)" } ", $9, $10, $11)"
    ))
    .bind(id)
    .bind(id)
    .bind("orchestrator.cycle_started")
    .bind("info")
    .bind("loop")
    .bind(None::<String>)
    .bind(None::<String>)
    .bind(r#"{"health":100,"status":"healthy"}"#)
    .bind(now)
    .bind(hash.clone())
    .bind(hash)
    .execute()
    .await
    .expect("a row");
    tx.commit().await.expect("commit");
}
