//! No secret is in a log, the ledger, an answer, a metric or `config show`, whatever fails.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine;

use crate::on_both;
use crate::support::process::Process;

const OPERATOR: &str = "TOKEN-of-the-operator-4711";
const VIEWER: &str = "TOKEN-of-the-viewer-0815";
const STRANGER: &str = "TOKEN-that-nobody-knows-9";
/// Each is in one setting, and in no text of ours.
const HIDDEN: [&str; 9] = [
    OPERATOR,
    VIEWER,
    STRANGER,
    "PASSWORD-of-the-database",
    "PASSWORD-of-the-receiver",
    "QUERY-secret-of-the-receiver",
    "PASSWORD-of-the-status",
    "QUERY-secret-of-the-status",
    "d2ViaG9vay1zaWduaW5nLXNlY3JldC1vZi0zMi1ieXRlcw",
];

fn assert_clean(what: &str, text: &str) {
    for secret in HIDDEN {
        let at = text.find(secret).map(|at| &text[text.floor_char_boundary(at.saturating_sub(200))..at]);
        assert_eq!(at, None, "{what} tells {secret}");
    }
}

on_both! {
    async fn no_secret_gets_out(world) {
        let signing = base64::engine::general_purpose::STANDARD.encode("webhook-signing-secret-of-32-bytes");
        assert!(signing.starts_with(HIDDEN[8].trim_end_matches('=')), "{signing}");
        let database = match world.url().split_once("postgres://") {
            Some((_, rest)) => {
                let (user, host) = rest.split_once('@').unwrap_or(("postgres", rest));
                let user = user.split(':').next().unwrap_or_default();
                format!("postgres://{user}:PASSWORD-of-the-database@{host}")
            }
            None => world.url().to_owned(),
        };
        let tokens = format!("ann:operator:{OPERATOR},bob:viewer:{VIEWER}");
        let secret = format!("whsec_{signing}");
        let environment = [
            ("SHOWRUNNER_AUTH__TOKENS", tokens.as_str()),
            ("SHOWRUNNER_PUBLISHING__CONNECTOR", "webhook"),
            ("SHOWRUNNER_PUBLISHING__WEBHOOK__URL", "http://x:PASSWORD-of-the-receiver@127.0.0.1:9/publish?token=QUERY-secret-of-the-receiver"),
            ("SHOWRUNNER_PUBLISHING__WEBHOOK__STATUS_URL", "http://x:PASSWORD-of-the-status@127.0.0.1:9/{key}?token=QUERY-secret-of-the-status"),
            ("SHOWRUNNER_PUBLISHING__WEBHOOK__SECRET", secret.as_str()),
            ("LOG_LEVEL", "trace"),
            ("RUST_BACKTRACE", "1"),
        ];
        let process = Process::serve(&database, &environment).await;
        let http = reqwest::Client::new();
        let base = format!("http://{}", process.address());
        let get = async |path: &str, token: &str| {
            let answer = http.get(format!("{base}{path}")).bearer_auth(token).send().await.expect("an answer");
            let headers = format!("{:?}", answer.headers());
            let body: String = answer.text().await.expect("a body");
            format!("{headers}{body}")
        };
        let post = async |path: &str, body: &'static str| {
            let request = http.post(format!("{base}{path}")).bearer_auth(OPERATOR).header("content-type", "application/json");
            let answer = request.body(body).send().await.expect("an answer");
            assert!(answer.status().is_success(), "{path}: {}", answer.text().await.expect("a body"));
        };
        post("/orchestrator/enable", "").await;
        post("/v1/clips", r#"{"title":"a","media_uri":"x","visual_score":90}"#).await;
        post("/v1/publish-logs", r#"{"clip_id":1,"platform":"youtube"}"#).await;
        let attempted = async {
            while !get("/v1/publish-logs", VIEWER).await.contains("\"last_error\":\"") {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), attempted).await.expect("the receiver's failure is told");
        post("/orchestrator/run-once", "").await;

        assert_clean("a refusal", &get("/v1/clips", STRANGER).await);
        assert_clean("a refusal", &get(&format!("/v1/clips?token={STRANGER}"), "").await);
        for path in ["/", "/openapi.json", "/metrics", "/readyz", "/orchestrator/status", "/orchestrator/snapshot", "/v1/ledger?limit=500", "/v1/cycles?limit=500", "/v1/rules", "/v1/publish-logs", "/v1/clips/0"] {
            assert_clean(path, &get(path, VIEWER).await);
        }
        for table in ["ledger_entries", "cycles", "jobs", "publish_logs", "idempotency_keys"] {
            let text = if world.is_sqlite() {
                let columns = world.text(&format!("SELECT group_concat('coalesce(' || name || ', '''')', ' || ' ) FROM pragma_table_info('{table}')")).await;
                world.text(&format!("SELECT group_concat({columns}) FROM {table}")).await
            } else {
                world.text(&format!("SELECT string_agg(CAST(t AS TEXT), ' ') FROM {table} AS t")).await
            };
            assert!(!text.is_empty() || table == "idempotency_keys", "{table} is read");
            assert_clean(table, &text);
        }
        let log = process.log();
        assert!(log.contains("TRACE"), "it logs everything");
        let command = async |database: &str, arguments: &[&str]| {
            let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_showrunner"));
            command.args(arguments).envs(environment).env("DATABASE_URL", database).current_dir(world.folder());
            let output = command.stdin(Stdio::null()).output().await.expect("the program runs");
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        };
        let shown = command(&database, &["config", "show"]).await;
        assert!(shown.contains("hidden"), "{shown}");
        assert_clean("config show", &shown);
        for arguments in [&["config", "show", "--json"] as &[&str], &["status"], &["snapshot"], &["ledger", "tail"], &["ledger", "export", "--format", "csv"], &["ledger", "verify"], &["migrate", "--check"]] {
            assert_clean(&arguments.join(" "), &command(&database, arguments).await);
        }
        for away in [
            "postgres://x:PASSWORD-of-the-database@127.0.0.1:1/nowhere",
            "postgres://x:PASSWORD-of-the-database@127.0.0.1:nothing/nowhere",
            "postgres://x:PASSWORD-of-the-database@/%zz?sslmode=nothing",
            "mysql://x:PASSWORD-of-the-database@127.0.0.1/nowhere",
        ] {
            for arguments in [&["status"] as &[&str], &["config", "show"], &["serve", "--port", "0"]] {
                let said = tokio::time::timeout(Duration::from_secs(60), command(away, arguments)).await.expect("it gives up");
                assert_clean(&format!("{away} {arguments:?}"), &said);
            }
        }
        assert_clean("the log", &process.log());
    }
}
