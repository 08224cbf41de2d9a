//! Clients from outside, in Node.js and Python, against the real server with the real agent running real ffmpeg.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::desk::{Agent, PATIENCE, TOKEN};
use super::media::{RECORD, has_ffmpeg};
use crate::support::World;
use crate::support::process::Process;

/// Set where a skipped test is a failure.
const REQUIRE_NODE: &str = "SHOWRUNNER_TEST_REQUIRE_NODE";
const REQUIRE_PYTHON: &str = "SHOWRUNNER_TEST_REQUIRE_PYTHON";

/// A language with what its clients import.
#[derive(Clone, Copy)]
enum Language {
    Node,
    Python,
}

impl Language {
    /// A command that reads a program from a file; none, with a line that says so, where it is not installed.
    fn command(self) -> Option<Command> {
        let at = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let (mut command, check, require, how) = match self {
            Self::Node => {
                let check = at("target/test-node/node_modules/ws").is_dir();
                (Command::new("node"), check, REQUIRE_NODE, "npm install --prefix target/test-node ws@8")
            }
            Self::Python => {
                let python = at("target/test-python/bin/python");
                let mut imports = Command::new(&python);
                imports.args(["-c", "import websocket, requests"]).stderr(Stdio::null());
                let check = imports.status().is_ok_and(|ended| ended.success());
                (
                    Command::new(python),
                    check,
                    REQUIRE_PYTHON,
                    "target/test-python/bin/pip install websocket-client==1.9.0 requests",
                )
            }
        };
        if !check || command.arg("--version").output().is_err() {
            assert!(std::env::var_os(require).is_none(), "{require} is set; do `{how}`");
            eprintln!("skipped: `{how}` is to be done first");
            return None;
        }
        Some(Command::new(command.get_program()))
    }

    fn ending(self) -> &'static str {
        match self {
            Self::Node => "mjs",
            Self::Python => "py",
        }
    }
}

/// A client that runs; killed when dropped.
struct Client {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Client {
    /// Runs `tests/clients/<name>` against the server at `address`. The document's port is changed to the server's.
    fn run(language: Language, name: &str, address: &str) -> Option<Self> {
        let mut command = language.command()?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = format!("{name}.{}", language.ending());
        let text = std::fs::read_to_string(root.join("tests/clients").join(&file)).expect("a client");
        let (_, port) = address.rsplit_once(':').expect("a port");
        let text = text.replace("localhost:8080", &format!("localhost:{port}"));
        // A module finds its packages by where it lies.
        let path: PathBuf = root.join("target/test-node").join(format!("{port}-{file}"));
        std::fs::write(&path, text).expect("a copy");
        command.arg(&path).env("PORT", port).env("AGENT_ID", "agent-1").env("PYTHONUNBUFFERED", "1");
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the client starts");
        let output = child.stdout.take().expect("its output");
        let (said, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            // Node prints an object over several lines: lines that belong together come as one.
            let mut whole = String::new();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                eprintln!("{line}");
                if !line.starts_with([' ', '}']) && !whole.is_empty() {
                    let _ = said.send(std::mem::take(&mut whole));
                }
                whole.push_str(&line);
                if line == "}" || !line.ends_with(['{', ',', '[']) && !line.starts_with(' ') {
                    let _ = said.send(std::mem::take(&mut whole));
                }
            }
            let _ = said.send(whole);
            let _ = std::fs::remove_file(path);
        });
        Some(Self { child, lines })
    }

    /// Waits until it prints something that holds all these words.
    async fn says(&mut self, words: &[&str]) -> String {
        let mut passed = Vec::new();
        let hearing = async {
            while let Some(line) = self.lines.recv().await {
                if words.iter().all(|word| line.contains(word)) {
                    return line;
                }
                passed.push(line);
            }
            panic!("it ended and never said {words:?}, but {passed:#?}");
        };
        timeout(PATIENCE, hearing).await.unwrap_or_else(|_| panic!("it never said {words:?}"))
    }

    /// Waits for its end.
    async fn ends_well(mut self) {
        let mut child = self.child;
        self.lines.close();
        let waiting = tokio::task::spawn_blocking(move || child.wait().expect("its end"));
        let ended = timeout(PATIENCE * 3, waiting).await.expect("it ends in time").expect("a waiter");
        assert!(ended.success(), "the client found something that is not as the document says");
    }
}

/// The server and an agent on a world's database.
struct Stage {
    server: Process,
    agent: Agent,
}

impl Stage {
    async fn set(world: &World, command: &str, settings: &[(&str, &str)]) -> Self {
        let settings = [&[("AGENT_TOKEN", TOKEN), ("HEARTBEAT_INTERVAL_MS", "500")], settings].concat();
        let server = Process::serve(world.url(), &settings).await;
        let url = format!("ws://{}/agent", server.address());
        let agent = Agent::start(&url, world.folder(), command, &[]);
        let stage = Self { server, agent };
        stage.until("/v1/agents", |agents| agents[0]["state"] == "IDLE").await;
        stage
    }

    /// Asks a path until its answer fits.
    async fn until(&self, path: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let began = tokio::time::Instant::now();
        loop {
            let answer = self.server.get(path).await;
            if fits(&answer) {
                return answer;
            }
            assert!(began.elapsed() < PATIENCE, "{path} never fitted: {answer:#}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    async fn submit(&self, body: Value) -> String {
        let (status, job) = self.server.post("/v1/jobs", &body).await;
        assert!((200..300).contains(&status), "{status}: {job}");
        format!("/v1/jobs/{}", job["id"].as_str().expect("an id"))
    }

    async fn status(&self, job: &str, status: &str) -> Value {
        self.until(job, |answer| answer["status"] == status).await
    }
}

/// The recording, under the name of its job: the document's configs name no file.
fn recording() -> String {
    RECORD.replace("{file}", "{jobId}.mkv")
}

async fn the_documents_client(world: &World, language: Language, title: &str) {
    if !has_ffmpeg() || language.command().is_none() {
        return;
    }
    let stage = Stage::set(world, &recording(), &[]).await;
    let mut client = Client::run(language, "document", stage.server.address()).expect("it is installed");
    let created = client.says(&["Job created:"]).await;
    let id = created.rsplit(' ').next().expect("an id");
    client.says(&["Update:", "ui.job.update", id, "RUNNING"]).await;
    client.child.kill().expect("it runs until it is ended");
    let job = stage.status(&format!("/v1/jobs/{id}"), "RUNNING").await;
    assert_eq!(job["agentId"], "agent-1");
    let metadata = stage.server.get(&format!("/v1/jobs/{id}/metadata")).await;
    assert_eq!(metadata["title"], title);
}

async fn the_story(world: &World, language: Language) {
    if !has_ffmpeg() || language.command().is_none() {
        return;
    }
    let stage = Stage::set(world, RECORD, &[]).await;
    let client = Client::run(language, "story", stage.server.address()).expect("it is installed");
    client.ends_well().await;
    let silent = super::media::silence(&world.folder().join(match language {
        Language::Node => "node-1.mkv",
        Language::Python => "python-1.mkv",
    }));
    assert!(silent > 0.0, "the sound was off for a while");
}

crate::on_both! {
    async fn the_documents_node_client_works_unchanged(world) {
        the_documents_client(&world, Language::Node, "My Awesome Stream").await;
    }

    async fn the_documents_python_client_works_unchanged(world) {
        the_documents_client(&world, Language::Python, "Python Stream").await;
    }

    async fn a_node_client_lives_through_the_whole_document(world) {
        the_story(&world, Language::Node).await;
    }

    async fn a_python_client_lives_through_the_whole_document(world) {
        the_story(&world, Language::Python).await;
    }

    async fn a_program_that_dies_is_begun_again_by_its_policy_and_one_that_will_not_stop_is_killed(world) {
        // What it is told is that it dies when a file says so, and that TERM means nothing to it.
        let command = "sh -c 'trap \"\" TERM; until test -e {die}; do sleep 0.05; done; rm {die}; exit 7'";
        let settings = [("STOP_GRACE_MS", "1000"), ("KILL_AFTER_MS", "2000")];
        let stage = Stage::set(&world, command, &settings).await;
        let die = world.folder().join("die").display().to_string();
        let body = json!({ "inlineConfig": { "die": die }, "restartPolicy": "onFailure" });
        let job = stage.submit(body).await;
        let first = stage.status(&job, "RUNNING").await;
        std::fs::write(&die, "").expect("a file");
        let again = |answer: &Value| answer["status"] == "RUNNING" && answer["startedAt"] != first["startedAt"];
        stage.until(&job, again).await;
        assert!(!Path::new(&die).exists(), "the first program has died");
        let began = tokio::time::Instant::now();
        stage.server.poke(&format!("{job}/stop")).await;
        stage.status(&job, "STOPPED").await;
        assert!(began.elapsed() >= std::time::Duration::from_millis(900), "it had its grace: {:?}", began.elapsed());

        // Never: its end is the end, and says what the program said.
        let body = json!({ "inlineConfig": { "die": die }, "restartPolicy": "never" });
        let job = stage.submit(body).await;
        stage.status(&job, "RUNNING").await;
        std::fs::write(&die, "").expect("a file");
        let failed = stage.status(&job, "FAILED").await;
        assert!(failed.to_string().contains("exit code 7"), "{failed:#}");
    }

    async fn a_killed_agent_and_a_killed_server_are_got_over(world) {
        let command = "sh -c 'echo $$ >>{log}; while :; do sleep 0.05; done'";
        let settings = [("HEARTBEAT_TIMEOUT_MS", "2000")];
        let stage = Stage::set(&world, command, &settings).await;
        let log = world.folder().join("log").display().to_string();
        let job = stage.submit(json!({ "inlineConfig": { "log": log }, "restartPolicy": "onFailure" })).await;
        stage.status(&job, "RUNNING").await;
        // The server dies and comes back on the same port: the program runs on.
        let port = stage.server.address().rsplit_once(':').expect("a port").1.to_owned();
        let Stage { server, agent } = stage;
        server.end("KILL").await;
        let settings = [
            ("AGENT_TOKEN", TOKEN),
            ("PORT", port.as_str()),
            ("HEARTBEAT_INTERVAL_MS", "500"),
            ("HEARTBEAT_TIMEOUT_MS", "2000"),
        ];
        let stage = Stage { server: Process::serve(world.url(), &settings).await, agent };
        stage.until("/v1/agents", |agents| agents[0]["state"] == "RUNNING").await;
        stage.status(&job, "RUNNING").await;
        let programs = || std::fs::read_to_string(&log).expect("a log").lines().count();
        assert_eq!(programs(), 1, "the same program ran on");
        // The agent is told to end: its job is not done, and is begun on the next one.
        let Stage { server, agent } = stage;
        agent.signal("TERM");
        assert_eq!(agent.ended().await, Some(0));
        let url = format!("ws://{}/agent", server.address());
        let agent = Agent::start(&url, world.folder(), command, &["--name", "another"]);
        let stage = Stage { server, agent };
        stage.status(&job, "RUNNING").await;
        let begun = async {
            while programs() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(90), begun).await.expect("the program begins again");
        assert_eq!(programs(), 2);
        stage.server.poke(&format!("{job}/stop")).await;
        stage.status(&job, "STOPPED").await;
        stage.agent.signal("TERM");
        assert_eq!(stage.agent.ended().await, Some(0));
    }
}
