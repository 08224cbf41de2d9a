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
        Self::serve_at(database_url, &[&[("PORT", "0")], environment].concat()).await
    }

    /// The same at a port that the environment names.
    pub async fn serve_at(database_url: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command.arg("serve").env("DATABASE_URL", database_url).env("LOG_LEVEL", "warn");
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

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// GETs a path; returns the status and the body as JSON, or nothing where no answer came in time.
    pub async fn ask(&self, path: &str) -> Option<(u16, Value)> {
        let patience = std::time::Duration::from_secs(15);
        let response = self.http.get(format!("http://{}{path}", self.address)).timeout(patience).send().await.ok()?;
        let status = response.status().as_u16();
        Some((status, serde_json::from_str(&response.text().await.ok()?).ok()?))
    }

    /// Asks a path until its status is `status` and its body says `words`; returns the body.
    pub async fn until(&self, path: &str, status: u16, words: &str, patience: std::time::Duration) -> Value {
        let patience = tokio::time::Instant::now() + patience;
        let mut last = None;
        while tokio::time::Instant::now() < patience {
            last = self.ask(path).await;
            match &last {
                Some((said, body)) if *said == status && body.to_string().contains(words) => return body.clone(),
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
        panic!("{path} never said {status} with `{words}`; last: {last:?}");
    }

    /// Where it listens, e.g. `127.0.0.1:40000`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
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

    /// PUTs a text to a path.
    pub async fn put(&self, path: &str, body: String) -> Value {
        let request = self.http.put(format!("http://{}{path}", self.address)).body(body);
        let response = request.send().await.expect("an answer");
        serde_json::from_str(&response.text().await.expect("a body")).expect("JSON")
    }

    /// POSTs JSON with a bearer token; returns the status and the body.
    pub async fn send(&self, path: &str, body: &Value, bearer: &str) -> (u16, Value) {
        let request = self.http.post(format!("http://{}{path}", self.address)).json(body).bearer_auth(bearer);
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.expect("a body")).expect("JSON"))
    }

    /// POSTs JSON; returns the status and the body.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.http.post(format!("http://{}{path}", self.address)).json(body);
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.expect("a body")).expect("JSON"))
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

/// Whether any process of a group is there and not just waiting to be reaped.
pub fn group_lives(group: &str) -> bool {
    let stats = std::fs::read_dir("/proc").expect("/proc").flatten();
    stats.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok()).any(|stat| {
        // pid (name) state parent group …; the name may hold anything.
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        !matches!(fields.next(), Some("Z" | "X")) && fields.nth(1) == Some(group)
    })
}
