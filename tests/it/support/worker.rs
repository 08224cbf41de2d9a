//! Workers as processes of their own: the reference worker, and those of other languages.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use showrunner::clock::SystemClock;
use showrunner::random::Random;
use showrunner::storage::{Registration, SecretKey};

use super::process::Process;

/// A fresh token of a worker of `service`, by the machine's clock.
pub fn signed(service: &str) -> String {
    let key = SecretKey::parse(&KEY.into()).expect("a good key").expect("a key");
    let iat = SystemClock::shared().now().timestamp();
    let jti = Random::from_machine().token();
    key.sign(&Registration { iss: service.to_owned(), iat, exp: iat + 60, jti })
}

/// What service and workers share in stories.
pub const KEY: &str = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

/// A worker; killed by SIGKILL when dropped.
pub struct WorkerProcess {
    child: Child,
    said: tokio::sync::watch::Receiver<String>,
}

impl WorkerProcess {
    /// `showrunner worker` with these arguments.
    pub async fn reference(service: &Process, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command.arg("worker").args(arguments).args(["--url", &format!("http://{}", service.address())]);
        Self::start(command, "Worker ").await
    }

    /// An example of `examples/`, run by `program`; it says `registered`.
    pub async fn example(program: &str, example: &str, service: &Process, environment: &[(&str, &str)]) -> Self {
        let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example);
        let mut command = Command::new(program);
        command.arg(example).arg(format!("http://{}", service.address())).envs(environment.iter().copied());
        Self::start(command, "registered").await
    }

    async fn start(mut command: Command, ready: &str) -> Self {
        command.env("PIPEWEAVE_SECRET_KEY", KEY).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the worker starts");
        let (written, said) = tokio::sync::watch::channel(String::new());
        let written = std::sync::Arc::new(written);
        let (out, errors) = (child.stdout.take().expect("its output"), child.stderr.take().expect("its errors"));
        let listen = |stream: Box<dyn std::io::Read + Send>| {
            let written = written.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    eprintln!("worker: {line}");
                    written.send_modify(|said| said.extend([line.as_str(), "\n"]));
                }
            });
        };
        listen(Box::new(out));
        listen(Box::new(errors));
        let worker = Self { child, said };
        worker.says(ready).await;
        worker
    }

    /// Waits until it has said a line that contains `text`; returns that line.
    pub async fn says(&self, text: &str) -> String {
        let mut said = self.said.clone();
        let waited = tokio::time::timeout(Duration::from_secs(30), said.wait_for(|said| said.contains(text)));
        let said = waited.await.unwrap_or_else(|_| panic!("it never said `{text}`: {}", self.said())).expect("it runs");
        said.lines().find(|line| line.contains(text)).expect("the line").to_owned()
    }

    /// Everything that it has said.
    pub fn said(&self) -> String {
        self.said.borrow().clone()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success(), "the worker takes SIG{name}");
    }

    /// Waits for its end; returns its exit code.
    pub async fn ended(mut self) -> Option<i32> {
        tokio::task::spawn_blocking(move || self.child.wait().expect("its end").code()).await.expect("a waiter")
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
