//! Hostile rules and rows against the running service: the loop keeps its interval, the doors answer, the chain holds.

use std::time::Duration;

use serde_json::{Value, json};

use crate::on_both;
use crate::support::World;
use crate::support::process::Process;
use crate::support::world::{list, planned};

/// Columns of the open tables, with what each takes: a text, a number, a time, or JSON.
const TABLES: [(&str, &[(&str, char)]); 4] = [
    (
        "campaigns",
        &[
            ("name", 't'),
            ("status", 's'),
            ("budget_cents", 'n'),
            ("spent_cents", 'n'),
            ("priority", 'n'),
            ("starts_at", 'd'),
            ("ends_at", 'd'),
            ("created_at", 'd'),
            ("updated_at", 'd'),
        ],
    ),
    (
        "clips",
        &[
            ("title", 't'),
            ("media_uri", 't'),
            ("campaign_id", 'i'),
            ("visual_score", 'f'),
            ("status", 's'),
            ("priority", 'n'),
            ("duration_ms", 'n'),
            ("created_at", 'd'),
            ("updated_at", 'd'),
        ],
    ),
    (
        "jobs",
        &[
            ("kind", 't'),
            ("queue", 't'),
            ("priority", 'n'),
            ("status", 's'),
            ("input", 'j'),
            ("result", 'j'),
            ("idempotency_key", 't'),
            ("run_at", 'd'),
            ("attempt", 'n'),
            ("max_attempts", 'n'),
            ("lease", 'n'),
            ("lease_expires_at", 'd'),
            ("worker", 't'),
            ("error", 't'),
            ("created_at", 'd'),
            ("updated_at", 'd'),
            ("started_at", 'd'),
            ("finished_at", 'd'),
        ],
    ),
    (
        "publish_logs",
        &[
            ("clip_id", 'i'),
            ("campaign_id", 'i'),
            ("platform", 't'),
            ("status", 's'),
            ("scheduled_at", 'd'),
            ("retry_count", 'n'),
            ("max_retries", 'n'),
            ("postponed_count", 'n'),
            ("priority", 'n'),
            ("cost_cents", 'n'),
            ("idempotency_key", 't'),
            ("job_id", 'i'),
            ("external_id", 't'),
            ("external_url", 't'),
            ("last_error", 't'),
            ("pending_at", 'd'),
            ("attempted_at", 'd'),
            ("failed_at", 'd'),
            ("published_at", 'd'),
            ("created_at", 'd'),
            ("updated_at", 'd'),
        ],
    ),
];

/// A generator of choices; the same seed chooses the same.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// A value as SQL: mostly of the kind that the column takes, at its edges; sometimes of any other.
fn value(choices: &mut Choices, kind: char, sqlite: bool) -> String {
    let kind = if choices.below(8) == 0 { ['t', 'n', 'd', 'j', 'f', 'b'][choices.below(6)] } else { kind };
    match kind {
        's' => choices.of(&[
            "'draft'",
            "'active'",
            "'paused'",
            "'ready'",
            "'archived'",
            "'waiting'",
            "'pending'",
            "'processing'",
            "'retry'",
            "'completed'",
            "'failed'",
            "'cancelled'",
            "'scheduled'",
            "'publishing'",
            "'unknown'",
            "'published'",
            "'PENDING'",
            "NULL",
        ]),
        'i' => choices.of(&["1", "2", "3", "4", "99", "0", "-1", "9223372036854775807", "NULL", "NULL"]),
        'n' => choices.of(&[
            "0",
            "1",
            "-1",
            "100",
            "1000",
            "1001",
            "1000000000000000",
            "9223372036854775807",
            "-9223372036854775808",
            "99999999999999999999",
            "1.5",
            "NULL",
            "1e300",
        ]),
        'f' => choices.of(&[
            "0",
            "100",
            "50.5",
            "99.99999999999999",
            "100.0000000001",
            "-0.0",
            "1e-320",
            "1e308",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "NULL",
        ]),
        'd' if sqlite => choices.of(&[
            "'2026-11-20T12:00:00.000Z'",
            "'0000-01-01T00:00:00.000Z'",
            "'9999-12-31T23:59:59.999Z'",
            "'2026-02-29T00:00:00.000Z'",
            "'1969-12-31T23:59:59.999Z'",
            "'2024-02-29T23:59:59.999Z'",
            "'-001-01-01T00:00:00.000Z'",
            "'now'",
            "'2026-11-20'",
            "NULL",
            "NULL",
        ]),
        'd' => choices.of(&[
            "'2026-11-20T12:00:00.000Z'",
            "'0001-01-01T00:00:00Z'",
            "'9999-12-31T23:59:59.999Z'",
            "'294276-12-31T23:59:59Z'",
            "'4713-01-01 00:00:00 BC'",
            "'infinity'",
            "'-infinity'",
            "'2024-02-29T23:59:59.999999Z'",
            "'2026-11-20'",
            "NULL",
            "NULL",
        ]),
        'j' if sqlite => choices.of(&[
            "'{}'",
            "'null'",
            "'[]'",
            "'{\"a\":1e999}'",
            "'\"' || char(0) || '\"'",
            "'{\"a\":\"\\u0000\"}'",
            "'{\"a\":\"\\ud800\"}'",
            "'[' || replace(hex(zeroblob(400)), '0', '[') || replace(hex(zeroblob(400)), '0', ']') || ']'",
            "'\"' || hex(zeroblob(500000)) || '\"'",
            "'{a:1}'",
            "x'22ff22'",
            "jsonb('{}')",
            "'{\"a\":1,\"a\":2}'",
            "NULL",
        ]),
        'j' => choices.of(&[
            "'{}'",
            "'null'",
            "'[]'",
            "'{\"a\":1e999}'",
            "'{\"a\":\"\\u0000\"}'",
            "'{\"a\":\"\\ud800\"}'",
            "CAST(repeat('[', 800) || repeat(']', 800) AS JSONB)",
            "to_jsonb(repeat('0', 1000000))",
            "'{\"a\":1,\"a\":2}'",
            "'{\"n\":123456789012345678901234567890.5}'",
            "NULL",
        ]),
        'b' if sqlite => choices.of(&["x''", "x'00'", "zeroblob(10)"]),
        't' if sqlite => choices.of(&[
            "'tiktok'",
            "'x'",
            "''",
            "'a' || char(0) || 'b'",
            "char(0x202e) || 'txt'",
            "'🦀'",
            "hex(zeroblob(200))",
            "hex(zeroblob(300000))",
            "x'6162'",
            "char(65534)",
            "'<script>'",
            "'\"\\'",
            "NULL",
        ]),
        _ => choices.of(&[
            "'tiktok'",
            "'x'",
            "''",
            "chr(8238) || 'txt'",
            "'🦀'",
            "repeat('é', 200)",
            "repeat('x', 600000)",
            "E'\\x01\\x7f'",
            "chr(65534)",
            "'<script>'",
            "'\"\\'",
            "NULL",
        ]),
    }
    .to_owned()
}

/// A row of some table: what must be there, and a handful of columns with whatever comes.
fn statement(choices: &mut Choices, sqlite: bool) -> String {
    let (table, columns) = TABLES[choices.below(4)];
    let mut row: Vec<(&str, String)> = match table {
        "campaigns" => vec![("name", "'c'".to_owned()), ("budget_cents", "5".to_owned())],
        "clips" => {
            vec![("title", "'c'".to_owned()), ("media_uri", "'m'".to_owned()), ("visual_score", "90".to_owned())]
        }
        "jobs" => vec![("kind", "'publish'".to_owned())],
        _ => vec![
            ("clip_id", (choices.below(8) + 1).to_string()),
            ("platform", choices.of(&["'tiktok'", "'youtube'", "'myspace'"]).to_owned()),
        ],
    };
    for _ in 0..choices.below(4) + 1 {
        let (column, kind) = columns[choices.below(columns.len())];
        let value = value(choices, kind, sqlite);
        row.retain(|(known, _)| *known != column);
        row.push((column, value));
    }
    if choices.below(6) == 0 {
        let sets: Vec<String> = row.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        let verb = if sqlite { choices.of(&["UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"]) } else { "UPDATE" };
        return format!("{verb} {table} SET {} WHERE id % 7 = {}", sets.join(", "), choices.below(7));
    }
    let verb = if sqlite {
        choices.of(&["INSERT", "INSERT", "INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"])
    } else {
        "INSERT"
    };
    let (names, values): (Vec<&str>, Vec<String>) = row.into_iter().unzip();
    format!("{verb} INTO {table} ({}) VALUES ({})", names.join(", "), values.join(", "))
}

/// Everything is seen, the doors show what there is, a cycle runs, and the chain holds.
async fn runs_on(world: &World, when: &str) {
    let snapshot = world.snapshot().await;
    assert_eq!(snapshot["system"]["unobserved"], json!([]), "{when}");
    for path in ["/v1/clips", "/v1/campaigns", "/v1/publish-logs"] {
        let mut next = format!("{path}?limit=200");
        for _ in 0..20 {
            let (status, page) = world.get(&next).await;
            assert_eq!(status, 200, "{path}: {page} {when}");
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            next = format!("{path}?limit=200&cursor={cursor}");
        }
    }
    let cycle = world.run_once().await;
    for result in list(&cycle["execution"]["results"]) {
        assert_ne!(result["outcome"], "failed", "{result} {when}");
    }
    for state in ["pending", "waiting", "processing", "retry", "completed", "failed"] {
        let there = world.number(&format!("SELECT COUNT(*) FROM jobs WHERE status = '{state}'")).await;
        assert_eq!(world.snapshot().await["jobs"][state], json!(there), "{state} jobs {when}");
    }
}

async fn chain_holds(world: &World) {
    let (code, said, error) = world.command(&["ledger", "verify"]).await;
    assert_eq!(code, 0, "{said}{error}");
}

on_both! {
    async fn no_row_of_another_program_stops_the_service(world) {
        world.start_still().await;
        world.clip(90.0, None).await;
        let mut choices = Choices(0x5eed_0002);
        let (mut taken, mut refused, mut last) = (0, 0, Vec::new());
        for step in 1..=1_200 {
            let text = statement(&mut choices, world.is_sqlite());
            if world.try_sql(&text).await {
                taken += 1;
                last.push(text);
            } else {
                refused += 1;
            }
            if step % 100 == 0 {
                runs_on(&world, &format!("after {}", last.join("\n"))).await;
                last.clear();
            }
        }
        assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
        chain_holds(&world).await;
    }

    async fn a_replaced_job_is_counted_once(world) {
        if world.is_sqlite() {
            world.start_still().await;
            world.sql("INSERT INTO jobs (kind, idempotency_key) VALUES ('x', 'key'), ('y', 'other')").await;
            world.sql("INSERT OR REPLACE INTO jobs (kind, status, run_at, idempotency_key) VALUES ('x', 'waiting', '2026-11-20T12:00:00.000Z', 'key')").await;
            world.sql("INSERT OR IGNORE INTO jobs (kind, idempotency_key) VALUES ('x', 'key')").await;
            world.sql("DELETE FROM jobs WHERE idempotency_key = 'key'").await;
            world.sql("INSERT INTO jobs (kind, idempotency_key) VALUES ('x', 'key')").await;
            let jobs = world.snapshot().await["jobs"].clone();
            assert_eq!((&jobs["pending"], &jobs["waiting"]), (&json!(2), &json!(0)));
            // A change that would put a row in another's place is refused: nothing is deleted behind the tallies.
            let clip = world.clip(90.0, None).await;
            world.log(clip, "tiktok", "pending", &[]).await;
            world.log(clip, "youtube", "cancelled", &[]).await;
            for change in [
                "jobs SET idempotency_key = 'key' WHERE kind = 'y'",
                "jobs SET id = 1 WHERE kind = 'y'",
                "publish_logs SET platform = 'tiktok', status = 'pending' WHERE id = 2",
                "publish_logs SET idempotency_key = (SELECT idempotency_key FROM publish_logs WHERE id = 1) WHERE id = 2",
                "publish_logs SET id = 1 WHERE id = 2",
                "clips SET id = id + 1",
            ] {
                assert!(!world.try_sql(&format!("UPDATE OR REPLACE {change}")).await, "{change}");
            }
            let snapshot = world.snapshot().await;
            assert_eq!((&snapshot["jobs"]["pending"], &snapshot["publish_logs"]["pending"]), (&json!(2), &json!(1)));
        }
    }

    async fn a_lease_from_before_the_clock_was_set_back_is_taken_back(world) {
        world.rules("order.rhai", "rule \"order\" priority 5 then rebalance_queue() because \"always\";\n");
        world.start_still().await;
        for (kind, minutes) in [("before", 120), ("held", 0)] {
            let expires = world.ago(-minutes - 1);
            world.sql(&format!("INSERT INTO jobs (kind, status, attempt, lease, lease_expires_at) VALUES ('{kind}', 'processing', 1, 1, {expires})")).await;
        }
        world.run_once().await;
        assert_eq!(world.text("SELECT status FROM jobs WHERE kind = 'before'").await, "retry", "no lease is so long");
        assert_eq!(world.text("SELECT status FROM jobs WHERE kind = 'held'").await, "processing");
    }

    async fn a_job_that_ended_without_a_time_is_forgotten_in_time(world) {
        let (old, young) = (world.ago(20 * 24 * 60), world.ago(60));
        for (at, status) in [(&old, "completed"), (&old, "failed"), (&young, "completed"), (&old, "pending")] {
            world.sql(&format!("INSERT INTO jobs (kind, status, created_at, updated_at) VALUES ('x', '{status}', {at}, {at})")).await;
        }
        let mut tx = world.db.begin().await.expect("a transaction");
        let before = tx.now().await.expect("now").before(Duration::from_secs(14 * 24 * 3600));
        assert_eq!(showrunner::planes::queue::forget_finished(&mut tx, before).await.expect("a batch"), 2);
        tx.commit().await.expect("a commit");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 2);
    }

    async fn a_campaign_that_is_over_is_not_shown_to_the_rules(world) {
        for (name, ends) in [("over", world.ago(1)), ("ends now", world.ago(0)), ("goes on", world.ago(-1))] {
            world.sql(&format!("INSERT INTO campaigns (name, status, budget_cents, ends_at) VALUES ('{name}', 'active', 50000, {ends})")).await;
        }
        world.start_still().await;
        let campaigns = world.snapshot().await["campaigns"].clone();
        let names: Vec<&Value> = list(&campaigns["top"]).iter().map(|campaign| &campaign["name"]).collect();
        assert_eq!((names, &campaigns["active"]), (vec![&json!("goes on")], &json!(3)));
    }

    async fn rules_that_fight_are_held_by_the_governors(world) {
        let clip = world.clip(20.0, None).await;
        let log = world.log(clip, "tiktok", "scheduled", &[("scheduled_at", &world.ago(-600))]).await;
        let fight = |cooldown: &str| format!(
            "rule \"sooner\" priority 5 {cooldown} then force_publish({log}) because \"sooner\";
             rule \"later\" priority 6 {cooldown} then downgrade_low_score_clip({clip}) because \"later\";
             rule \"in_turn\" priority 4 {cooldown} when jobs.pending % 2 == 0 then rebalance_queue() because \"even\";
             rule \"in_turn_too\" priority 4 {cooldown} when jobs.pending % 2 == 1 then rebalance_queue(#{{ emergency: true }}) because \"odd\";"
        );
        world.rules("story.rhai", &fight("cooldown \"10m\""));
        world.start_still().await;
        let mut begun = 0;
        for _ in 0..20 {
            begun += world.run_once().await["execution"]["total"].as_i64().expect("a number");
            world.clock.advance(Duration::from_secs(2));
        }
        assert!((3..=4).contains(&begun), "each rule acts on its target once in its cooldown: {begun}");
        // Without a cooldown the budget ends it.
        world.config.governors.budgets.insert("force_publish".to_owned(), 3);
        world.config.governors.budgets.insert("downgrade_low_score_clip".to_owned(), 3);
        world.config.governors.budgets.insert("rebalance_queue".to_owned(), 3);
        world.rules("story.rhai", &fight(""));
        world.stop().await;
        world.start_still().await;
        for _ in 0..20 {
            world.run_once().await;
            world.clock.advance(Duration::from_secs(2));
        }
        for kind in ["force_publish", "downgrade_low_score_clip", "rebalance_queue"] {
            let times = world.number(&format!("SELECT COUNT(*) FROM actions WHERE action = '{kind}'")).await;
            assert!((1..=3).contains(&times), "{kind}: {times}");
        }
        assert!(world.number("SELECT COUNT(*) FROM publish_logs WHERE postponed_count > 3").await == 0);
        chain_holds(&world).await;
    }

    async fn a_rule_that_proposes_ten_thousand_actions_gets_none(world) {
        world.pending_jobs(1, 1).await;
        let many = |count: usize| format!(
            "fn upto(n) {{ let a = []; a.pad(n, 1); a }}
             rule \"many\" priority 9 each n in upto(if jobs.pending > 0 && jobs.pending < 9 {{ {count} }} else {{ 1 }}) then schedule_clip(n) because \"x\";
             rule \"neighbour\" priority 1 then trigger_reconciliation() because \"x\";"
        );
        world.rules("story.rhai", &many(10_000));
        world.start_still().await;
        let cycle = world.run_once().await;
        assert_eq!(cycle["decision"]["failures"][0]["message"], "proposes more than 1000 actions");
        assert_eq!(planned(&cycle, "trigger_reconciliation").len(), 1);
        world.rules("story.rhai", &many(26));
        let cycle = world.run_once().await;
        assert_eq!((cycle["decision"]["summary"]["held"].as_i64(), planned(&cycle, "schedule_clip").len()), (Some(26), 0));
    }

    async fn a_thousand_heavy_rules_leave_the_loop_its_interval(world) {
        let harms = [
            "{ while true { } true }",
            "{ let s = \"x\"; s.pad(60000, \"y\"); let n = 0; while n < 1000000 { let t = s.to_upper(); n += 1; } true }",
            "{ let a = []; a.pad(9999, 7); while true { a.sort(); } true }",
            "{ let m = #{}; let n = 0; while n < 900 { m[`k${n}`] = [n]; n += 1; } while true { let c = m; c.k1 = 2; } true }",
        ];
        let rules: String = (0..1_000)
            .map(|n| format!("rule \"heavy_{n}\" priority 5 when jobs.pending == 7 && {} then rebalance_queue() because \"x\";\n", harms[n % 4]))
            .collect();
        world.rules("a.rhai", &rules);
        world.rules("b.rhai", "rule \"light\" priority 5 when jobs.pending == 7 then trigger_reconciliation() because \"x\";");
        world.pending_jobs(7, 1).await;
        let folder = world.folder().join("rules");
        let environment = [("RULES_DIR", folder.to_str().expect("a path")), ("ORCHESTRATOR_ENABLED", "true"), ("MAX_CONCURRENCY", "1")];
        let process = Process::serve(world.url(), &environment).await;
        world.until("SELECT COUNT(*) >= 5 FROM cycles WHERE status <> 'running'", if world.is_sqlite() { "1" } else { "true" }).await;
        assert_eq!(world.number("SELECT SUM(skipped_ticks) FROM cycles").await, 0, "no tick is left out");
        assert!(world.number("SELECT MAX(decide_us) FROM cycles").await < 1_900_000);
        let told = world.number("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.rules_unreached'").await;
        assert_eq!(told, 1, "once, not every cycle");
        assert_eq!(world.number("SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.rules_rejected'").await, 0);
        assert_eq!(process.end("TERM").await, Some(0));
        let (code, said, error) = world.command(&["replay", "3"]).await;
        assert_eq!(code, 0, "{said}{error}");
    }
}
