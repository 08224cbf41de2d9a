//! The real program as a process of its own, on a free port.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// A running `showrunner serve`; killed when dropped.
pub struct Process {
    child: Child,
    address: String,
    http: reqwest::Client,
    log: tokio::sync::watch::Receiver<String>,
}

impl Process {
    /// Starts the program on a database and waits until it says where it listens.
    pub async fn serve(database_url: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command.arg("serve").env("DATABASE_URL", database_url).env("PORT", "0").env("LOG_LEVEL", "warn");
        command.envs(environment.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stdout = child.stdout.take().expect("its standard output");
        let stderr = child.stderr.take().expect("its standard error");
        let (written, log) = tokio::sync::watch::channel(String::new());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
                written.send_modify(|log| log.extend([line.as_str(), "\n"]));
            }
        });
        let address = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let address = lines.find_map(|line| Some(line.split_once("http://")?.1.trim().to_owned()));
            // Whatever else it says is read, so that it never blocks on a full pipe.
            std::thread::spawn(move || lines.for_each(drop));
            address.expect("the program says where it listens")
        })
        .await
        .expect("a reader");
        let _ = rustls::crypto::ring::default_provider().install_default(); // once a process
        Self { child, address, http: reqwest::Client::new(), log }
    }

    /// Sends a signal by name, e.g. `KILL`, `STOP`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success(), "the process takes SIG{name}");
    }

    /// Sends a signal that ends it, and waits for the end; returns its exit code.
    pub async fn end(self, signal: &str) -> Option<i32> {
        self.signal(signal);
        self.ended().await
    }

    /// Waits for its end, which somebody has brought about; returns its exit code.
    pub async fn ended(mut self) -> Option<i32> {
        tokio::task::spawn_blocking(move || self.child.wait().expect("its end").code()).await.expect("a waiter")
    }

    /// Waits until it has logged a line that contains `text`; returns that line.
    pub async fn log_with(&self, text: &str) -> String {
        let mut log = self.log.clone();
        let said = log.wait_for(|log| log.contains(text));
        let patience = std::time::Duration::from_secs(20);
        let log = tokio::time::timeout(patience, said).await.expect("it says so in time").expect("it still runs");
        log.lines().find(|line| line.contains(text)).expect("the line").to_owned()
    }

    /// GETs a path as JSON.
    pub async fn get(&self, path: &str) -> Value {
        let response = self.http.get(format!("http://{}{path}", self.address)).send().await.expect("an answer");
        serde_json::from_str(&response.text().await.expect("a body")).expect("JSON")
    }

    /// POSTs nothing to a path, as `curl -X POST` does.
    pub async fn poke(&self, path: &str) -> Value {
        let response = self.http.post(format!("http://{}{path}", self.address)).send().await.expect("an answer");
        serde_json::from_str(&response.text().await.expect("a body")).expect("JSON")
    }

    /// Its name as leaders write it.
    pub async fn instance(&self) -> String {
        self.get("/orchestrator/status").await["instance"].as_str().expect("a name").to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
