//! The audit chain, attacked: what was written stays written, and who changes it is found out.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use showrunner::actor::Actor;
use showrunner::ledger;

use crate::on_both;
use crate::support::World;
use crate::support::world::{EVENING, list};

/// The query that auditors were promised, word for word.
const AUDIT: &str =
    "SELECT * FROM ledger_entries WHERE event_type LIKE 'orchestrator%' ORDER BY created_at DESC LIMIT 100;";

/// Cycles with and without actions, operators at the switch, publications.
async fn busy(world: &mut World) {
    world.config.publishing.call_timeout_ms = 300_000; // time goes fast here
    world.start().await;
    let campaign = world.campaign(20_000).await;
    for score in [20.0, 60.0, 85.0, 90.0, 95.0, 99.0] {
        world.clip(score, Some(campaign)).await;
    }
    world.pending_jobs(51, 1).await;
    world.run_once().await;
    world.run_once().await;
    world.set_time(EVENING);
    for clip in 1..=3 {
        world.log(clip, "instagram", "pending", &[]).await;
    }
    world.poke("/orchestrator/enable").await;
    world
        .until_in_time(
            "SELECT CASE WHEN COUNT(*) >= 3 THEN 'some' ELSE 'few' END FROM publish_logs WHERE status = 'published'",
            "some",
        )
        .await;
    world.poke("/orchestrator/disable").await;
    world.run_once().await;
}

/// What `showrunner ledger verify` and `/v1/ledger/verify` say: the first bad entry, if there is one.
async fn first_bad(world: &World) -> Option<i64> {
    let (status, door) = world.get("/v1/ledger/verify").await;
    assert_eq!(status, 200, "{door}");
    let (code, said, error) = world.command(&["ledger", "verify", "--json"]).await;
    let command: Value = serde_json::from_str(&said).expect("JSON");
    let found = door["first_bad"]["id"].as_i64();
    assert_eq!(door["whole"], found.is_none());
    assert_eq!(command["first_bad"][0].as_i64(), found, "{command}");
    assert_eq!(code, if found.is_some() { 3 } else { 0 }, "{error}");
    if let Some(id) = found {
        assert!(error.contains(&format!("entry {id} ")), "{error}");
    }
    found
}

/// Takes the triggers away, as only the database's owner can.
async fn disarm(world: &World) {
    if world.is_sqlite() {
        world.sql("DROP TRIGGER ledger_entries_are_not_changed; DROP TRIGGER ledger_entries_are_not_deleted").await;
    } else {
        world.sql("ALTER TABLE ledger_entries DISABLE TRIGGER USER").await;
    }
}

/// The entries of an export, each checked against the one before it as OPERATIONS.md says that anyone can.
fn recomputed(lines: &str) -> usize {
    #[derive(serde::Deserialize)]
    struct Line {
        id: i64,
        cycle_id: Option<i64>,
        event_type: String,
        severity: String,
        actor: String,
        subject: Option<String>,
        rule: Option<String>,
        payload: Box<RawValue>,
        created_at: String,
        prev_hash: String,
        hash: String,
    }
    let mut before = String::new();
    let mut count = 0;
    for line in lines.lines() {
        let line: Line = serde_json::from_str(line).expect("JSON");
        assert_eq!(line.prev_hash, before, "entry {}", line.id);
        let mut digest = Sha256::new();
        for field in [
            line.prev_hash,
            line.id.to_string(),
            line.cycle_id.map(|id| id.to_string()).unwrap_or_default(),
            line.event_type,
            line.severity,
            line.actor,
            line.subject.unwrap_or_default(),
            line.rule.unwrap_or_default(),
            line.payload.get().to_owned(),
            line.created_at,
        ] {
            digest.update((field.len() as u64).to_be_bytes());
            digest.update(field.as_bytes());
        }
        let hash: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, line.hash, "entry {}", line.id);
        before = line.hash;
        count += 1;
    }
    count
}

on_both! {
    async fn every_change_of_a_busy_ledger_is_found_and_the_first_bad_entry_named(world) {
        busy(&mut world).await;
        world.stop().await;
        world.start_still().await;
        assert_eq!(first_bad(&world).await, None);
        let last = world.number("SELECT MAX(id) FROM ledger_entries").await;
        assert!(last > 20, "{last}");
        let (_, answer) = world.get("/v1/ledger/verify").await;
        assert_eq!(answer["entries"], last);
        disarm(&world).await;
        world.sql("CREATE TABLE a_copy AS SELECT * FROM ledger_entries").await;
        let minute_later = if world.is_sqlite() { "strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+1 minute')" } else { "created_at + interval '1 minute'" };
        let k = last / 2;
        let set = |change: &str| format!("UPDATE ledger_entries SET {change} WHERE id = {k}");
        for (what, statements, bad) in [
            ("payload", set("payload = '{}'"), k),
            ("actor", set("actor = 'operator:somebody-else'"), k),
            ("event type", set("event_type = 'orchestrator.nothing'"), k),
            ("severity", set("severity = 'critical'"), k),
            ("subject", set("subject = 'clip:0'"), k),
            ("rule", set("rule = 'another'"), k),
            ("cycle", set("cycle_id = 77777"), k),
            ("time", set(&format!("created_at = {minute_later}")), k),
            ("hash", set(&format!("hash = '{}'", "0".repeat(64))), k),
            ("link", set(&format!("prev_hash = '{}'", "0".repeat(64))), k),
            ("last entry", format!("UPDATE ledger_entries SET payload = '{{\"a\":1}}' WHERE id = {last}"), last),
            ("removed", format!("DELETE FROM ledger_entries WHERE id = {k}"), k),
            ("two removed", format!("DELETE FROM ledger_entries WHERE id IN ({k}, {k} + 4)"), k),
            ("first removed", "DELETE FROM ledger_entries WHERE id <= 3".to_owned(), 1),
            ("tail cut", format!("DELETE FROM ledger_entries WHERE id > {last} - 3"), last - 2),
            ("emptied", "DELETE FROM ledger_entries".to_owned(), 1),
            ("reordered", format!(
                "UPDATE ledger_entries SET id = -1 WHERE id = {k}; UPDATE ledger_entries SET id = {k} WHERE id = {k} + 1;
                 UPDATE ledger_entries SET id = {k} + 1 WHERE id = -1"), k),
            ("inserted", format!(
                "UPDATE ledger_entries SET id = -id WHERE id > {k}; UPDATE ledger_entries SET id = 1 - id WHERE id < 0;
                 INSERT INTO ledger_entries SELECT {k} + 1, cycle_id, event_type, severity, actor, subject, rule, payload, created_at, prev_hash, hash
                 FROM a_copy WHERE id = {k}"), k + 1),
            ("replaced by an older one", format!(
                "DELETE FROM ledger_entries WHERE id = {k};
                 INSERT INTO ledger_entries SELECT {k}, cycle_id, event_type, severity, actor, subject, rule, payload, created_at, prev_hash, hash
                 FROM a_copy WHERE id = {k} - 5"), k),
            ("added at the end", format!(
                "INSERT INTO ledger_entries SELECT {last} + 1, cycle_id, event_type, severity, actor, subject, rule, payload, created_at, prev_hash, hash
                 FROM a_copy WHERE id = {last}"), last + 1),
        ] {
            world.sql(&statements).await;
            assert_eq!(first_bad(&world).await, Some(bad), "{what}");
            world.sql("DELETE FROM ledger_entries; INSERT INTO ledger_entries SELECT * FROM a_copy").await;
        }
        assert_eq!(first_bad(&world).await, None);
    }

    async fn the_database_itself_refuses_changes(world) {
        world.start_still().await;
        world.run_once().await;
        for statement in [
            "UPDATE ledger_entries SET payload = '{}'",
            "UPDATE ledger_entries SET id = id + 100",
            "DELETE FROM ledger_entries",
            "DELETE FROM ledger_entries WHERE id = 1",
        ] {
            let error = world.sql_error(statement).await;
            assert!(error.contains("append-only"), "{statement}: {error}");
        }
        if world.is_sqlite() {
            // The deletion that comes with a replacement fires no trigger of its own.
            let replace = "REPLACE INTO ledger_entries SELECT id, cycle_id, event_type, severity, 'operator:x', subject, rule, payload, created_at, prev_hash, hash FROM ledger_entries WHERE id = 1";
            assert!(world.sql_error(replace).await.contains("append-only"));
        } else {
            assert!(world.sql_error("TRUNCATE ledger_entries").await.contains("append-only"));
        }
        assert_eq!(first_bad(&world).await, None);
    }

    async fn errors_from_before_the_clock_was_set_back_count_at_their_time(world) {
        world.start_still().await;
        world.ledger_errors(3).await;
        assert_eq!(world.snapshot().await["ledger"]["errors_1h"], 3);
        world.clock.jump(chrono::TimeDelta::hours(-2));
        let ledger = world.snapshot().await["ledger"].clone();
        assert_eq!((&ledger["errors_1h"], &ledger["recent_errors"]), (&json!(0), &json!([])), "they lie ahead");
        world.ledger_errors(1).await;
        assert_eq!(world.snapshot().await["ledger"]["errors_1h"], 1, "what happens now counts now");
        world.clock.advance(Duration::from_secs(2 * 3600));
        assert_eq!(world.snapshot().await["ledger"]["errors_1h"], 3);
    }

    async fn pruning_leaves_a_checkpoint_from_which_the_chain_verifies(world) {
        busy(&mut world).await;
        world.stop().await;
        world.start_still().await;
        let old = world.number("SELECT MAX(id) FROM ledger_entries").await;
        world.clock.advance(Duration::from_secs(48 * 3600));
        world.run_once().await;
        let keep = Duration::from_secs(24 * 3600);
        let pruned = ledger::prune(&world.db, keep, &Actor::System).await.expect("a prune");
        assert_eq!((pruned.entries, pruned.through_id), (old, old));
        assert_eq!(world.number("SELECT MIN(id) FROM ledger_entries").await, old + 1);
        let said = world.ledger("ledger.pruned").await;
        assert_eq!((said.len(), &said[0]["actor"], &said[0]["payload"]["entries"]), (1, &json!("system"), &json!(old)));
        let (_, answer) = world.get("/v1/ledger/verify").await;
        assert_eq!((&answer["whole"], &answer["checkpoint_id"]), (&json!(true), &json!(old)));
        assert_eq!(first_bad(&world).await, None);
        // The checkpoint itself holds, and so does what stands behind it.
        for statement in ["UPDATE ledger_checkpoints SET through_id = through_id + 1", "DELETE FROM ledger_checkpoints", "DELETE FROM ledger_entries", "UPDATE ledger_entries SET rule = 'x'"] {
            world.sql_error(statement).await;
        }
        world.run_once().await;
        let again = ledger::prune(&world.db, keep, &Actor::System).await.expect("a prune");
        assert_eq!(again.entries, 0, "nothing is old enough");
        disarm(&world).await;
        world.sql(&format!("DELETE FROM ledger_entries WHERE id = {old} + 1")).await;
        assert_eq!(first_bad(&world).await, Some(old + 1));
    }

    async fn pruning_by_the_command_names_the_operator(world) {
        world.start_still().await;
        world.run_once().await;
        world.run_once().await;
        let (code, said, error) = world.command(&["ledger", "prune", "--keep", "0s"]).await;
        assert_eq!(code, 0, "{said}{error}");
        let entries = world.ledger("ledger.pruned").await;
        assert!(entries[0]["actor"].as_str().expect("who").starts_with("operator:"), "{entries:?}");
        assert_eq!(first_bad(&world).await, None);
    }

    async fn an_export_reads_again_and_anyone_can_recompute_the_chain(world) {
        busy(&mut world).await;
        world.stop().await;
        use showrunner::ledger::Entry;
        let mut tx = world.db.begin().await.expect("a transaction");
        let odd = [
            ("=HYPERLINK(\"http://x\")", json!({ "text": "a,\"b\"\nc" })),
            ("+1", json!({ "text": "é🎬\u{1}" })),
            ("-1", json!([1.5, -0.0, 1e300])),
            ("@SUM(A1)", json!({})),
            ("a, \"quoted\"\r\nsubject", json!("text")),
        ];
        let entries: Vec<_> = odd.iter().map(|(subject, payload)| Entry::new("test.odd", Actor::System, payload.clone()).subject(*subject).rule(Some((*subject).to_owned()))).collect();
        ledger::append(&mut tx, &entries).await.expect("entries");
        tx.commit().await.expect("a commit");
        let count = world.number("SELECT COUNT(*) FROM ledger_entries").await;

        let (code, _, error) = world.command(&["ledger", "export", "--format", "jsonl", "-o", "ledger.jsonl"]).await;
        assert_eq!(code, 0, "{error}");
        let lines = std::fs::read_to_string(world.folder().join("ledger.jsonl")).expect("the export");
        assert_eq!(recomputed(&lines) as i64, count);
        let (code, lines, error) = world.command(&["ledger", "export", "--format", "jsonl"]).await;
        assert_eq!((code, recomputed(&lines) as i64), (0, count), "{error}");

        let (code, _, error) = world.command(&["ledger", "export", "--format", "csv", "-o", "ledger.csv"]).await;
        assert_eq!(code, 0, "{error}");
        let mut table = csv::Reader::from_path(world.folder().join("ledger.csv")).expect("the export");
        let header = table.headers().expect("a header").clone();
        let column = |name: &str| header.iter().position(|cell| cell == name).expect("a column");
        let rows: Vec<csv::StringRecord> = table.records().map(|row| row.expect("a row")).collect();
        assert_eq!(rows.len() as i64, count);
        for (row, line) in rows.iter().zip(lines.lines()) {
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!((&row[column("id")], &row[column("hash")]), (line["id"].to_string().as_str(), line["hash"].as_str().expect("a hash")));
            let payload: Value = serde_json::from_str(&row[column("payload")]).expect("its payload");
            assert_eq!(payload, line["payload"]);
            for cell in row {
                assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "a spreadsheet would run {cell:?}");
            }
        }
        for ((subject, _), row) in odd.iter().zip(&rows[rows.len() - odd.len()..]) {
            let cell = &row[column("subject")];
            assert_eq!(cell.strip_prefix('\'').unwrap_or(cell), *subject);
            assert_eq!(&row[column("rule")], cell);
        }
    }

    async fn the_audit_query_works_as_written(world) {
        busy(&mut world).await;
        for _ in 0..60 {
            world.clock.advance(Duration::from_secs(2));
            world.run_once().await;
        }
        world.sql(AUDIT).await;
        let query = AUDIT.trim_end_matches(';');
        assert_eq!(world.number(&format!("SELECT COUNT(*) FROM ({query}) AS audit")).await, 100);
        let others = format!("SELECT COUNT(*) FROM ({query}) AS audit WHERE event_type NOT LIKE 'orchestrator.%'");
        assert_eq!(world.number(&others).await, 0);
        let oldest = world.moment(&format!("SELECT MIN(created_at) FROM ({query}) AS audit")).await;
        let newer = world.number(&format!("SELECT COUNT(*) FROM ledger_entries WHERE event_type LIKE 'orchestrator%' AND created_at > '{oldest}'")).await;
        assert!(newer <= 100, "the newest are shown");
    }

    async fn idle_cycles_stay_small(world) {
        world.pending_jobs(3, 5).await;
        world.clip(50.0, None).await;
        world.start_still().await;
        world.run_once().await;
        let bytes = async |table: &str| {
            let query = if world.is_sqlite() {
                let columns = world.text(&format!("SELECT group_concat('coalesce(length(CAST(' || name || ' AS BLOB)), 0)', ' + ') FROM pragma_table_info('{table}')")).await;
                format!("SELECT SUM({columns}) FROM {table}")
            } else {
                format!("SELECT SUM(pg_column_size(t.*)) FROM {table} AS t")
            };
            world.number(&query).await
        };
        let before = bytes("cycles").await + bytes("ledger_entries").await;
        for _ in 0..200 {
            world.clock.advance(Duration::from_secs(2));
            let cycle = world.run_once().await;
            assert_eq!(cycle["execution"]["total"], 0);
        }
        let average = (bytes("cycles").await + bytes("ledger_entries").await - before) / 200;
        assert!(average < 1_390, "{average} bytes a cycle");
        assert!(average > 200, "{average} bytes hold no cycle");
        assert_eq!(world.number("SELECT COUNT(*) FROM cycles WHERE status = 'idle'").await, 201);
    }

    async fn what_operators_do_is_written_down_with_their_name(world) {
        use showrunner::actor::Role;
        use showrunner::config::Token;
        let token = "a-token-of-sixteen-and-more";
        world.config.auth.tokens = vec![Token { name: "ada".to_owned(), role: Role::Operator, token: token.into() }];
        world.start_still().await;
        let address = world.app.as_ref().and_then(showrunner::app::App::address).expect("an address");
        let http = reqwest::Client::new();
        for path in ["enable", "enable", "run-once", "disable"] {
            let request = http.post(format!("http://{address}/orchestrator/{path}")).bearer_auth(token);
            assert_eq!(request.send().await.expect("an answer").status(), 200);
        }
        assert_eq!(http.post(format!("http://{address}/orchestrator/enable")).send().await.expect("an answer").status(), 401);
        let actor = async |event: &str| world.text(&format!("SELECT MIN(actor) || ' ' || CAST(COUNT(*) AS TEXT) FROM ledger_entries WHERE event_type = '{event}'")).await;
        assert_eq!(actor("orchestrator.enabled").await, "operator:ada 1", "a second enable changes nothing");
        assert_eq!(actor("orchestrator.disabled").await, "operator:ada 1");
        let asked = "SELECT COUNT(*) FROM ledger_entries JOIN cycles ON cycles.id = cycle_id WHERE trigger = 'manual' AND CAST(payload AS TEXT) LIKE '%operator:ada%'";
        assert!(world.number(asked).await > 0, "who asked for the cycle is in the ledger");
        let http = http.get(format!("http://{address}/v1/ledger?actor=operator:ada")).bearer_auth(token);
        let page: Value = serde_json::from_str(&http.send().await.expect("an answer").text().await.expect("a body")).expect("JSON");
        assert_eq!(list(&page["items"]).len(), 2);
    }
}
