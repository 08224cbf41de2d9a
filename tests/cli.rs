//! The command line as people and programs meet it: the real binary, its words, its exit codes.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The binary in an empty folder, with an environment of its own.
struct Cli {
    folder: tempfile::TempDir,
}

/// What a run said and how it ended.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Cli {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("TMPDIR", self.folder.path())
            .env("DATABASE_URL", format!("sqlite://{}", self.path("showrunner.db").display()))
            .stdin(Stdio::null());
        command
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Run {
        finished(self.command(arguments).output().expect("the binary runs"))
    }

    fn run_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Run {
        finished(self.command(arguments).envs(variables.iter().copied()).output().expect("the binary runs"))
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let run = self.run(arguments);
        assert_eq!(run.code, 0, "{arguments:?}: {}", run.err);
        serde_json::from_str(&run.out).unwrap_or_else(|cause| panic!("{arguments:?}: {cause}: {}", run.out))
    }
}

fn finished(output: Output) -> Run {
    Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let cli = Cli::new();
    let commands: &[&[&str]] = &[
        &[],
        &["serve"],
        &["demo"],
        &["run-once"],
        &["snapshot"],
        &["status"],
        &["enable"],
        &["disable"],
        &["rules", "check"],
        &["rules", "list"],
        &["rules", "init"],
        &["ledger", "tail"],
        &["ledger", "query"],
        &["ledger", "verify"],
        &["ledger", "export"],
        &["ledger", "prune"],
        &["tasks", "history"],
        &["worker"],
        &["replay"],
        &["db", "init"],
        &["migrate"],
        &["config", "show"],
        &["completions"],
    ];
    for command in commands {
        let run = cli.run(&[command, &["--help"][..]].concat());
        assert_eq!(run.code, 0, "{command:?}");
        assert!(run.out.contains("Example"), "{command:?} shows no example:\n{}", run.out);
        assert!(run.err.is_empty(), "{command:?}: {}", run.err);
    }
}

#[test]
fn completions_come_for_every_shell() {
    let cli = Cli::new();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let run = cli.run(&["completions", shell]);
        assert_eq!(run.code, 0);
        assert!(run.out.contains("showrunner") && run.out.contains("run-once"), "{shell}");
    }
    assert_eq!(cli.run(&["completions", "tcsh"]).code, 2);
}

#[test]
fn wrong_usage_and_configuration_end_in_2_with_what_would_be_taken() {
    let cli = Cli::new();
    assert_eq!(cli.run(&["stauts"]).code, 2);
    assert!(cli.run(&["stauts"]).err.contains("status"), "the nearest command is named");
    let run = cli.run_with(&[("PORT", "http")], &["config", "show"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("PORT: `http` is not a whole number"), "{}", run.err);
    let run = cli.run_with(&[("SHOWRUNNER_QUEUE__MAX_CONCURENCY", "3")], &["status"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("SHOWRUNNER_QUEUE__MAX_CONCURRENCY"), "{}", run.err);
    write(&cli.path("showrunner.yaml"), "orchestrator:\n  interval: 3\n");
    let run = cli.run(&["config", "show"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("showrunner.yaml: orchestrator.interval: there is no such key"), "{}", run.err);
    assert!(run.out.is_empty());
}

#[test]
fn config_show_names_each_values_origin_and_hides_secrets() {
    let cli = Cli::new();
    write(&cli.path("showrunner.toml"), "port = 9001\n");
    let variables =
        [("SHOWRUNNER_AUTH__TOKENS", "ann:admin:very-secret-token-1"), ("ORCHESTRATOR_INTERVAL_SECONDS", "5")];
    let run = cli.run_with(&variables, &["config", "show"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let line = |key: &str| run.out.lines().find(|line| line.contains(key)).unwrap_or_default().to_owned();
    assert!(line("│ port ").contains("9001") && line("│ port ").contains("showrunner.toml"), "{}", run.out);
    assert!(line("orchestrator.interval_seconds").contains("ORCHESTRATOR_INTERVAL_SECONDS"), "{}", run.out);
    assert!(line("log.level").contains("default"), "{}", run.out);
    assert!(!run.out.contains("very-secret"), "a secret is never shown");
    let run = cli.run_with(&[("DATABASE_URL", "postgres://user:hunter2secret@host/x")], &["config", "show", "--json"]);
    assert!(run.out.contains("host/x") && !run.out.contains("hunter2secret"), "{}", run.out);
}

#[test]
fn a_missing_server_or_database_ends_in_4_and_says_what_to_do() {
    let cli = Cli::new();
    let run = cli.run(&["status", "--url", "http://127.0.0.1:9"]);
    assert_eq!(run.code, 4);
    assert!(run.err.contains("showrunner serve"), "{}", run.err);
    let run = cli.run(&["ledger", "tail"]);
    assert_eq!(run.code, 4);
    assert!(run.err.contains("there is no database"), "{}", run.err);
    assert!(!cli.path("showrunner.db").exists(), "reading makes no database");
    assert_eq!(cli.run(&["status", "--url", "ftp://x"]).code, 2);
    for (code, command) in
        [(2, ["prune", "--keep", "1d"].as_slice()), (4, &["verify"]), (4, &["export", "--format", "csv"])]
    {
        let run = cli.run_with(&[("SHOWRUNNER_URL", "http://127.0.0.1:9")], &[&["ledger"], command].concat());
        assert_eq!(run.code, code, "a server's database is not mistaken for the local one: {}", run.err);
    }
}

#[test]
fn migrate_checks_first_and_then_migrates() {
    let cli = Cli::new();
    let run = cli.run(&["migrate", "--check"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert_eq!(cli.run(&["ledger", "tail"]).code, 4, "looking made no database");
    assert_eq!(cli.run(&["migrate"]).code, 0);
    assert_eq!(cli.run(&["migrate", "--check"]).code, 0);
    assert_eq!(cli.json(&["migrate", "--json"])["pending"], serde_json::json!([]));
}

#[test]
fn the_loop_is_steered_straight_on_the_database() {
    let cli = Cli::new();
    assert_eq!(cli.run(&["status"]).code, 4, "there is no database yet, and looking makes none");
    assert_eq!(cli.run(&["migrate"]).code, 0);
    assert_eq!(cli.json(&["status", "--json"])["enabled"], false);
    let run = cli.run(&["enable"]);
    assert!(run.code == 0 && run.out.contains("The loop is on"), "{}{}", run.out, run.err);
    assert_eq!(cli.json(&["status", "--json"])["enabled"], true);
    assert_eq!(cli.json(&["disable", "--json"])["enabled"], false);
    let report = cli.json(&["run-once", "--json"]);
    let cycle = report["cycle_id"].as_i64().expect("a cycle");
    assert_eq!(report["snapshot"]["system"]["health_score"], 100);
    assert_eq!(cli.json(&["snapshot", "--json"])["jobs"]["pending"], 0);
    let run = cli.run(&["replay", &cycle.to_string()]);
    assert!(run.code == 0 && run.out.contains("the same decision"), "{}{}", run.out, run.err);
    assert_eq!(cli.run(&["replay", "4711"]).code, 1);
}

#[test]
fn the_ledger_is_read_verified_and_exported() {
    let cli = Cli::new();
    assert_eq!(cli.run(&["enable"]).code, 0);
    assert_eq!(cli.run(&["run-once"]).code, 0);
    let tail = cli.run(&["ledger", "tail"]);
    assert!(tail.out.contains("orchestrator.enabled by operator:"), "{}", tail.out);
    let ids = |arguments: &[&str]| -> Vec<i64> {
        let entries = cli.json(&[&["ledger", "query", "--json"], arguments].concat());
        entries.as_array().expect("a list").iter().map(|entry| entry["id"].as_i64().expect("an id")).collect()
    };
    let all = ids(&[]);
    assert!(all.len() >= 3 && all.is_sorted_by(|newer, older| newer > older), "newest first: {all:?}");
    assert_eq!(ids(&["--event", "orchestrator.enabled"]).len(), 1);
    assert_eq!(ids(&["--limit", "2"]), all[..2]);
    assert!(ids(&["--severity", "critical"]).is_empty() && ids(&["--until", "1h"]).is_empty());
    assert_eq!(ids(&["--since", "1h"]), all);
    assert_eq!(cli.run(&["ledger", "query", "--since", "yesterday"]).code, 2);
    assert!(cli.run(&["ledger", "verify"]).out.contains("The chain is whole"));

    let lines = cli.run(&["ledger", "export", "--format", "jsonl"]).out;
    assert_eq!(lines.lines().count(), all.len());
    let file = cli.path("ledger.csv");
    let run = cli.run(&["ledger", "export", "--format", "csv", "-o", file.to_str().expect("a path")]);
    assert_eq!(run.code, 0, "{}", run.err);
    let csv = std::fs::read_to_string(file).expect("the file");
    assert!(csv.starts_with("id,created_at,event_type,"), "{csv}");
    assert_eq!(csv.lines().count(), all.len() + 1);

    let pruned = cli.json(&["ledger", "prune", "--keep", "0s", "--json"]);
    assert_eq!(pruned["entries"].as_i64(), Some(all.len() as i64 - 1), "the newest stays");
    assert!(cli.run(&["ledger", "verify"]).out.contains("since the checkpoint"));
}

#[test]
fn a_changed_entry_ends_verification_in_3_and_is_named() {
    let cli = Cli::new();
    assert_eq!(cli.run(&["enable"]).code, 0);
    assert_eq!(cli.run(&["disable"]).code, 0);
    let file = cli.path("showrunner.db");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        use sqlx::Connection;
        let url = format!("sqlite://{}", file.display());
        let mut database = sqlx::SqliteConnection::connect(&url).await.expect("the database");
        for statement in [
            "DROP TRIGGER ledger_entries_are_not_changed",
            "UPDATE ledger_entries SET actor = 'operator:nobody' WHERE id = 2",
        ] {
            sqlx::raw_sql(statement).execute(&mut database).await.expect("the forgery");
        }
        database.close().await.expect("closed");
    });
    let run = cli.run(&["ledger", "verify"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("entry 2 was changed after it was written"), "{}", run.err);
}

#[test]
fn rules_are_written_out_checked_and_listed() {
    let cli = Cli::new();
    assert_eq!(cli.run(&["rules", "check"]).code, 0, "the built-in ones are good");
    assert_eq!(cli.run(&["rules", "init", "rules"]).code, 0);
    assert_eq!(cli.run(&["rules", "init", "rules"]).code, 1, "nothing is overwritten");
    assert_eq!(cli.run(&["rules", "check", "rules"]).code, 0);
    let listed = cli.run_with(&[("RULES_DIR", "rules")], &["rules", "list"]);
    assert!(listed.out.contains("queue_saturated") && listed.out.contains("rebalance_queue"), "{}", listed.out);
    assert_eq!(cli.json(&["rules", "list", "--json"])["rules"].as_array().map(Vec::len), Some(20));
    write(
        &cli.path("rules/extra.rhai"),
        "rule \"broken\"\n    priority 5\n    when jobs.pendng > 1\n    then rebalance_queue()\n    because \"x\";\n",
    );
    let run = cli.run(&["rules", "check", "rules"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("extra.rhai:3:") && run.err.contains("pending"), "{}", run.err);
    let run = cli.run(&["rules", "check", "rules", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&run.out).expect("json");
    assert_eq!((run.code, &report["ok"], &report["errors"][0]["line"]), (3, &false.into(), &3.into()));
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let cli = Cli::new();
    let mut child = cli
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let run = finished(child.wait_with_output().expect("it ends"));
    assert_eq!((run.code, run.err.as_str()), (0, ""));
}

#[cfg(unix)]
mod serving {
    use std::io::{BufRead, BufReader};
    use std::process::Child;

    use super::*;

    /// A served instance; stopped when dropped, so that a failing test leaves nothing behind.
    struct Served(Child);

    impl Served {
        fn start(cli: &Cli, variables: &[(&str, &str)], arguments: &[&str]) -> (Self, String) {
            let mut child = cli
                .command(&[&["serve", "--port", "0", "--json"], arguments].concat())
                .envs(variables.iter().copied())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the binary runs");
            let mut line = String::new();
            BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
            let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            let url = said["url"].as_str().unwrap_or_default().to_owned();
            (Self(child), url)
        }

        fn terminate(mut self) -> Run {
            let sent = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().expect("kill");
            assert!(sent.success());
            let code = self.0.wait().expect("it ends").code().unwrap_or(-1);
            let mut err = String::new();
            std::io::Read::read_to_string(&mut self.0.stderr.take().expect("a pipe"), &mut err).expect("text");
            Run { code, out: String::new(), err }
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            _ = self.0.kill();
            _ = self.0.wait();
        }
    }

    #[test]
    fn a_server_is_steered_by_its_url_and_stops_in_order_when_told() {
        let cli = Cli::new();
        let (server, url) = Served::start(&cli, &[], &[]);
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        let at = |arguments: &[&str]| cli.json(&[arguments, &["--json", "--url", &url]].concat());
        assert_eq!(at(&["enable"])["enabled"], true);
        assert_eq!(at(&["status"])["enabled"], true);
        assert!(at(&["run-once"])["cycle_id"].as_i64().is_some());
        assert_eq!(at(&["snapshot"])["system"]["status"], "healthy");
        assert_eq!(at(&["ledger", "query", "--event", "orchestrator.enabled"]).as_array().map(Vec::len), Some(1));
        assert!(cli.run(&["ledger", "verify", "--url", &url]).out.contains("The chain is whole"));
        let export =
            |more: &[&str]| cli.run(&[&["ledger", "export", "--format", "jsonl", "--until", "1s"], more].concat()).out;
        assert_eq!(export(&["--url", &url]), export(&[]), "letter for letter the same");
        let tail = cli.run(&["ledger", "tail", "--url", &url]);
        assert!(tail.out.contains("orchestrator.enabled by operator:local"), "{}{}", tail.out, tail.err);
        assert_eq!(at(&["disable"])["enabled"], false);
        let run = server.terminate();
        assert_eq!(run.code, 0, "{}", run.err);
        assert!(run.err.contains("Orchestrator stopped"), "{}", run.err);
        assert!(run.err.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{}", run.err);
    }

    #[test]
    fn a_server_with_tokens_asks_for_one() {
        let cli = Cli::new();
        let tokens = [("SHOWRUNNER_AUTH__TOKENS", "ann:operator:0123456789abcdef")];
        let (_server, url) = Served::start(&cli, &tokens, &[]);
        let run = cli.run(&["status", "--url", &url]);
        assert_eq!(run.code, 1);
        assert!(run.err.contains("SHOWRUNNER_TOKEN"), "{}", run.err);
        let run = cli.run_with(&[("SHOWRUNNER_TOKEN", "0123456789abcdef")], &["status", "--url", &url]);
        assert_eq!(run.code, 0, "{}", run.err);
    }

    #[test]
    fn a_taken_port_and_an_open_address_are_refused() {
        let cli = Cli::new();
        let (_server, url) = Served::start(&cli, &[], &[]);
        let port = url.rsplit(':').next().expect("a port");
        let run = cli.run(&["serve", "--port", port]);
        assert_eq!(run.code, 1);
        assert!(run.err.contains("cannot listen"), "{}", run.err);
        let run = cli.run(&["serve", "--host", "0.0.0.0", "--port", "0"]);
        assert_eq!(run.code, 2, "{}", run.err);
    }
}

#[test]
fn the_demo_ends_by_itself_and_its_worlds_differ() {
    let cli = Cli::new();
    let run = cli.run(&["demo", "--for", "5s", "--plain"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("Its status page: http://127.0.0.1:"), "{}", run.out);
    assert!(run.out.contains("with the loop") && run.out.contains("clips published"), "{}", run.out);
    assert!(!run.out.contains('\u{1b}'), "plain lines move no cursor");
    let left: Vec<_> = std::fs::read_dir(cli.folder.path()).expect("the folder").collect();
    assert!(left.is_empty(), "nothing is kept: {left:?}");

    let compared = cli.json(&["demo", "--for", "5s", "--json", "--seed", "2"]);
    let (with_loop, without) = (&compared["with_loop"], &compared["without_loop"]);
    assert!(with_loop["actions"].as_f64() > Some(0.0), "{compared}");
    assert_eq!(without["actions"].as_f64(), Some(0.0), "{compared}");
    assert!(with_loop["published"].as_f64() > without["published"].as_f64(), "{compared}");
    for world in [with_loop, without] {
        assert_eq!(world["posted_twice"].as_f64(), Some(0.0), "{compared}");
    }
}

#[test]
fn what_was_typed_cannot_move_the_cursor_when_it_is_repeated() {
    let cli = Cli::new();
    for arguments in [
        ["status", "--\u{1b}[2Jclear"],
        ["st\ratus", "x"],
        ["rules", "\u{1b}]0;title\u{7}"],
        ["status", "--url=\r\u{9b}2J"],
    ] {
        let run = cli.run(&arguments);
        assert_ne!(run.code, 0, "{arguments:?}");
        assert!(!run.err.is_empty() && run.out.is_empty(), "{arguments:?}");
        assert!(
            !run.err.contains(|letter: char| letter.is_control() && letter != '\n'),
            "{arguments:?}: {:?}",
            run.err
        );
    }
}

#[test]
fn the_server_is_named_without_what_may_be_a_secret() {
    let cli = Cli::new();
    const URL: &str = "http://u:SLIPPEDpw@127.0.0.1:1/?token=SLIPPEDtoken";
    for arguments in [&["status"] as &[&str], &["status", "--json"], &["ledger", "tail"], &["tasks", "history", "x"]] {
        for run in
            [cli.run_with(&[("SHOWRUNNER_URL", URL)], arguments), cli.run(&[arguments, &["--url", URL]].concat())]
        {
            assert_eq!(run.code, 4, "{arguments:?}: {}", run.err);
            assert!(run.err.contains("http://127.0.0.1:1/ does not answer"), "{}", run.err);
            assert!(!format!("{}{}", run.out, run.err).contains("SLIPPED"), "{arguments:?}: {}{}", run.out, run.err);
        }
    }
    for url in [
        "htp://u:SLIPPEDpw@host",
        "u:SLIPPEDpw@host",
        "http://u:SLIPPED?pw#SLIPPED@ho st/?q=SLIPPED",
        "http://u:SLIPPEDpw@host:nothing",
    ] {
        for arguments in [&["status"] as &[&str], &["worker", "--command", "true"], &["agent", "--command", "true"]] {
            let run = cli.run(&[arguments, &["--url", url]].concat());
            assert_eq!(run.code, 2, "{arguments:?} {url}: {}", run.err);
            assert!(!format!("{}{}", run.out, run.err).contains("SLIPPED"), "{arguments:?} {url}: {}", run.err);
        }
    }
    for arguments in [&["status", "--help"] as &[&str], &["worker", "--help"], &["agent", "--help"]] {
        let run = cli.run_with(&[("SHOWRUNNER_URL", URL), ("SHOWRUNNER_AGENT_URL", URL)], arguments);
        assert!(!run.out.contains("SLIPPED"), "{}", run.out);
    }
}

#[cfg(unix)]
#[test]
fn an_agents_file_that_cannot_be_read_is_told_without_its_text() {
    let cli = Cli::new();
    write(&cli.path("agent.yaml"), "url: ws://127.0.0.1:1\ntoken: \"SLIPPEDtoken\nslots: 1\n");
    let run = cli.run(&["agent", "--file", "agent.yaml", "--command", "true"]);
    assert_eq!(run.code, 2, "{}", run.err);
    assert!(run.err.contains("agent.yaml is refused") && !run.err.contains("SLIPPED"), "{}", run.err);
}
