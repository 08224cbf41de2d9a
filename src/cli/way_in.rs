//! The two ways to the loop: a running server's HTTP, or straight onto the database.

use std::time::Duration;

use reqwest::{Client, Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::failure::{Failure, Outcome, without_secrets};
use super::{Common, Server};
use crate::actor::Actor;
use crate::app::{App, Mode, Parts};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::control::orchestrator::{CycleReport, LoopStatus};
use crate::control::snapshot::Snapshot;
use crate::db::{Db, Options};
use crate::random::Random;

/// A cycle that waits for another one may take a while; nothing takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest piece of a foreign answer that is shown.
const SHOWN_CHARS: usize = 300;

/// The loop, wherever it is.
pub(super) enum WayIn {
    Server(Remote),
    Database(Box<App>),
}

impl WayIn {
    /// By `--url` if it is given, else onto the configured database.
    pub(super) async fn open(common: &Common, server: &Server) -> Outcome<Self> {
        match Remote::from(server)? {
            Some(remote) => Ok(Self::Server(remote)),
            None => {
                let config = common.load()?;
                let (clock, random) = (SystemClock::shared(), Random::from_machine());
                let app =
                    App::start(Parts { config, clock, random, db: None, mode: Mode::Command, listen: false }).await?;
                Ok(Self::Database(Box::new(app)))
            }
        }
    }

    /// The same for a command that only reads: it makes no database and changes no schema.
    pub(super) async fn open_to_read(common: &Common, server: &Server) -> Outcome<Self> {
        if Remote::from(server)?.is_none() {
            open_database(&common.load()?).await?.close().await;
        }
        Self::open(common, server).await
    }

    pub(super) async fn snapshot(&self) -> Outcome<Snapshot> {
        match self {
            Self::Server(remote) => remote.ask(Method::GET, "orchestrator/snapshot", &[], Some("snapshot")).await,
            Self::Database(app) => Ok(app.orchestrator().snapshot().await?),
        }
    }

    pub(super) async fn run_once(&self) -> Outcome<CycleReport> {
        match self {
            Self::Server(remote) => remote.ask(Method::POST, "orchestrator/run-once", &[], Some("result")).await,
            Self::Database(app) => Ok(app.orchestrator().run_once(&operator()).await?),
        }
    }

    pub(super) async fn switch(&self, on: bool) -> Outcome {
        match self {
            Self::Server(remote) => {
                let path = if on { "orchestrator/enable" } else { "orchestrator/disable" };
                remote.ask::<Value>(Method::POST, path, &[], None).await.map(drop)
            }
            Self::Database(app) if on => Ok(app.orchestrator().enable(&operator()).await?),
            Self::Database(app) => Ok(app.orchestrator().disable(&operator()).await?),
        }
    }

    pub(super) async fn status(&self) -> Outcome<LoopStatus> {
        match self {
            Self::Server(remote) => remote.ask(Method::GET, "orchestrator/status", &[], None).await,
            Self::Database(app) => Ok(app.orchestrator().status().await?),
        }
    }

    /// Leaves as one should.
    pub(super) async fn close(self) {
        if let Self::Database(app) = self {
            app.stop().await;
        }
    }
}

/// Who the ledger names when somebody comes straight to the database: whoever is logged in here.
pub(super) fn operator() -> Actor {
    let name = std::env::var("USER").or_else(|_| std::env::var("USERNAME")).unwrap_or_default();
    let name: String = name.chars().filter(|character| !character.is_control()).take(100).collect();
    Actor::Operator(if name.is_empty() { "cli".to_owned() } else { name })
}

/// Opens the configured database for a command that needs no loop. Its schema must be this program's.
pub(super) async fn open_database(config: &Config) -> Outcome<Db> {
    let db = connect(config).await?;
    let state = db.migration_state().await?;
    if let Some(drift) = state.drift.first() {
        return Err(Failure::failed(drift));
    }
    if !state.pending.is_empty() {
        return Err(Failure::failed(
            "the database's schema is older than this program; run `showrunner migrate` first",
        ));
    }
    Ok(db)
}

/// Connects to a database that is there; a missing SQLite file is not made just to be read.
async fn connect(config: &Config) -> Outcome<Db> {
    match missing_file(config) {
        Some(file) => Err(Failure::unreachable(format!(
            "there is no database {file} yet; `showrunner serve` or `showrunner migrate` makes it"
        ))),
        None => connect_or_make(config).await,
    }
}

/// Connects to look at the schema only: a SQLite file that is missing counts as an empty database, and stays missing.
pub(super) async fn connect_to_check(config: &Config) -> Outcome<Db> {
    match missing_file(config) {
        Some(_) => Ok(Db::open(&Options::new("sqlite::memory:"), SystemClock::shared()).await?),
        None => connect_or_make(config).await,
    }
}

/// The SQLite file that the configuration names, if it is not there.
fn missing_file(config: &Config) -> Option<&str> {
    let file = config.database_url.strip_prefix("sqlite:")?.trim_start_matches("//").split('?').next()?;
    (!file.contains(":memory:") && !std::path::Path::new(file).exists()).then_some(file)
}

/// Connects to the database; a missing SQLite file is made.
pub(super) async fn connect_or_make(config: &Config) -> Outcome<Db> {
    let options = Options { durability: config.durability, ..Options::new(config.database_url.clone()) };
    Ok(Db::open(&options, SystemClock::shared()).await?)
}

/// A running server.
pub(super) struct Remote {
    client: Client,
    base: Url,
    token: Option<String>,
}

impl Remote {
    /// None without `--url`.
    pub(super) fn from(server: &Server) -> Outcome<Option<Self>> {
        let Some(text) = server.url.as_deref().filter(|url| !url.is_empty()) else { return Ok(None) };
        let with_slash = format!("{}/", text.trim_end_matches('/'));
        let base = Url::parse(&with_slash)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| {
                Failure::usage(format!("`{}` is no server; --url takes http://host:port", without_secrets(text)))
            })?;
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(PATIENCE)
            .build()
            .map_err(|cause| Failure::failed(format!("the HTTP client did not start: {cause}")))?;
        Ok(Some(Self { client, base, token: server.token.clone().filter(|token| !token.is_empty()) }))
    }

    /// Asks for `path` and reads the answer, or its member `part`.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        part: Option<&str>,
    ) -> Outcome<T> {
        let url = self.base.join(path).map_err(|cause| Failure::usage(format!("--url: {cause}")))?;
        let mut request = self.client.request(method, url).query(query);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|cause| self.not_reached(&cause))?;
        let status = response.status();
        let text = response.text().await.map_err(|cause| self.not_reached(&cause))?;
        if !status.is_success() {
            return Err(self.refused(status, &text));
        }
        let not_ours = |cause: String| {
            let start: String = text.chars().take(SHOWN_CHARS).collect();
            Failure::failed(format!("{} answers as no showrunner does ({cause}): {start}", self.shown()))
        };
        let Some(part) = part else {
            return serde_json::from_str(&text).map_err(|cause| not_ours(cause.to_string()));
        };
        let mut value: Value = serde_json::from_str(&text).map_err(|cause| not_ours(cause.to_string()))?;
        let value = value.get_mut(part).map(Value::take).ok_or_else(|| not_ours(format!("no `{part}`")))?;
        serde_json::from_value(value).map_err(|cause| not_ours(cause.to_string()))
    }

    fn not_reached(&self, cause: &reqwest::Error) -> Failure {
        let mut root: &dyn std::error::Error = cause;
        while let Some(source) = root.source() {
            root = source;
        }
        Failure::unreachable(format!(
            "{} does not answer ({root}). Is the server running? `showrunner serve` starts one; without --url this \
             command goes straight to the database.",
            self.shown()
        ))
    }

    fn shown(&self) -> String {
        without_secrets(self.base.as_str())
    }

    /// The server's own words, and what to do where that is ours to know.
    fn refused(&self, status: StatusCode, text: &str) -> Failure {
        let problem: Value = serde_json::from_str(text).unwrap_or_default();
        let detail = problem["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        match status {
            StatusCode::UNAUTHORIZED => {
                Failure::failed(format!("{detail} Give a token with --token or SHOWRUNNER_TOKEN."))
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
                Failure::unreachable(detail)
            }
            _ => Failure::failed(detail),
        }
    }
}
