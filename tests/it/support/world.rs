//! A service on a fresh database, with a clock that stands still, and the hands that stories need.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use showrunner::app::{App, Mode, Parts};
use showrunner::clock::ManualClock;
use showrunner::config::Config;
use showrunner::db::{Db, Faults, Options};
use showrunner::random::Random;

use super::postgres;

/// Noon, UTC: every default window is closed and the next ones open at 16, 17 and 18.
pub const NOON: &str = "2026-11-20T12:00:00Z";
/// Half past six in the evening: every default window is open.
pub const EVENING: &str = "2026-11-20T18:30:00Z";

/// A story's world.
pub struct World {
    pub clock: Arc<ManualClock>,
    pub db: Db,
    pub config: Config,
    pub app: Option<App>,
    url: String,
    raw: Raw,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

/// A connection of another program, which knows nothing of ours.
#[derive(Clone)]
enum Raw {
    Sqlite(sqlx::SqlitePool),
    Postgres(sqlx::PgPool),
}

impl World {
    /// On a SQLite file.
    pub async fn on_sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("showrunner.db").display());
        Self::on(url, folder).await
    }

    /// On a PostgreSQL database, where there is a server.
    pub async fn on_postgres() -> Option<Self> {
        let url = postgres::fresh_database().await?;
        Some(Self::on(url, tempfile::tempdir().expect("a folder")).await)
    }

    /// On the empty database at `url`, which is not dropped in the end.
    pub async fn at(url: String) -> Self {
        Self::on(url, tempfile::tempdir().expect("a folder")).await
    }

    async fn on(url: String, folder: tempfile::TempDir) -> Self {
        let clock = ManualClock::at(time(NOON));
        let db = Db::open(&Options::new(&url), clock.clone()).await.expect("a database").with_clock(clock.clone());
        db.migrate().await.expect("the schema");
        let raw = if url.starts_with("sqlite") {
            let options = url.parse::<sqlx::sqlite::SqliteConnectOptions>().expect("a URL");
            let options = options.foreign_keys(true).busy_timeout(Duration::from_secs(30));
            Raw::Sqlite(sqlx::SqlitePool::connect_with(options).await.expect("another program's connection"))
        } else {
            let options = sqlx::postgres::PgPoolOptions::new().max_connections(2);
            Raw::Postgres(options.connect(&url).await.expect("another program's connection"))
        };
        let mut config = Config { database_url: url.clone(), port: 0, ..Config::default() };
        config.storage.folder = folder.path().join("storage");
        config.publishing.sandbox.latency_min_ms = 0;
        config.publishing.sandbox.latency_max_ms = 0;
        let _ = rustls::crypto::ring::default_provider().install_default(); // once a process
        let http = reqwest::Client::new();
        Self { clock, db, config, app: None, url, raw, http, _folder: folder }
    }

    /// Where the database is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A folder of this story's own.
    pub fn folder(&self) -> &std::path::Path {
        self._folder.path()
    }

    /// Starts the whole service on this world's database, clock and configuration.
    pub async fn start(&mut self) -> &App {
        self.start_as(Mode::Serve).await
    }

    /// Starts the doors and the loop only, and the loop only on request: nothing moves unless the story moves it.
    pub async fn start_still(&mut self) -> &App {
        self.start_as(Mode::Command).await
    }

    async fn start_as(&mut self, mode: Mode) -> &App {
        self.app = Some(self.instance(mode, 1, None).await);
        self.app.as_ref().expect("just started")
    }

    /// Another instance on the same database and clock, failing where `faults` says.
    pub async fn instance(&self, mode: Mode, seed: u64, faults: Option<Arc<dyn Faults>>) -> App {
        let opened = Db::open(&Options::new(&self.url), self.clock.clone()).await.expect("the database");
        let mut db = opened.with_clock(self.clock.clone());
        if let Some(faults) = faults {
            db = db.with_faults(faults);
        }
        let (config, random) = (self.config.clone(), Random::seeded(seed));
        let parts = Parts { config, clock: self.clock.clone(), random, db: Some(db), mode, listen: true };
        App::start(parts).await.expect("the service starts")
    }

    /// Stops the service; the database stays.
    pub async fn stop(&mut self) {
        if let Some(app) = self.app.take() {
            app.stop().await;
        }
    }

    /// Ends the story.
    pub async fn end(mut self) {
        self.stop().await;
        if let Raw::Postgres(pool) = &self.raw {
            pool.close().await;
            self.db.close().await;
            postgres::drop_database(&self.url).await;
        }
    }

    /// Sets the clock forward to `at`.
    pub fn set_time(&self, at: &str) {
        use showrunner::clock::Clock;
        let by = (time(at) - self.clock.now()).to_std().expect("time goes forward");
        self.clock.advance(by);
    }

    /// A time in the past of this world's clock, as a literal for SQL.
    pub fn ago(&self, minutes: i64) -> String {
        use showrunner::clock::Clock;
        let at = self.clock.now() - chrono::TimeDelta::minutes(minutes);
        format!("'{}'", at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
    }

    /// Jobs of another program, pending for some minutes.
    pub async fn pending_jobs(&self, count: usize, minutes: i64) {
        for _ in 0..count {
            self.sql(&format!("INSERT INTO jobs (kind, created_at) VALUES ('render', {})", self.ago(minutes))).await;
        }
    }

    /// A clip of another program; returns its id.
    pub async fn clip(&self, visual_score: f64, campaign: Option<i64>) -> i64 {
        let campaign = campaign.map_or("NULL".to_owned(), |id| id.to_string());
        let now = self.ago(0);
        self.sql(&format!(
            "INSERT INTO clips (title, media_uri, visual_score, campaign_id, created_at)
             VALUES ('a clip', 's3://clips/1.mp4', {visual_score}, {campaign}, {now})"
        ))
        .await;
        self.number("SELECT MAX(id) FROM clips").await
    }

    /// An active campaign of another program; returns its id.
    pub async fn campaign(&self, budget_cents: i64) -> i64 {
        self.sql(&format!(
            "INSERT INTO campaigns (name, status, budget_cents, created_at)
             VALUES ('a campaign', 'active', {budget_cents}, {})",
            self.ago(0)
        ))
        .await;
        self.number("SELECT MAX(id) FROM campaigns").await
    }

    /// A publication of another program that failed some minutes ago; returns its id.
    pub async fn failed_log(&self, clip: i64, platform: &str, minutes: i64) -> i64 {
        let at = self.ago(minutes);
        self.sql(&format!(
            "INSERT INTO publish_logs (clip_id, platform, status, last_error, failed_at, created_at, updated_at)
             VALUES ({clip}, '{platform}', 'failed', 'refused', {at}, {at}, {at})"
        ))
        .await;
        self.number("SELECT MAX(id) FROM publish_logs").await
    }

    /// A publication of another program in any state, with further columns as SQL; returns its id.
    pub async fn log(&self, clip: i64, platform: &str, status: &str, more: &[(&str, &str)]) -> i64 {
        let now = self.ago(0);
        let columns: String = more.iter().map(|(column, _)| format!(", {column}")).collect();
        let values: String = more.iter().map(|(_, value)| format!(", {value}")).collect();
        self.sql(&format!(
            "INSERT INTO publish_logs (clip_id, platform, status, created_at, updated_at{columns})
             VALUES ({clip}, '{platform}', '{status}', {now}, {now}{values})"
        ))
        .await;
        self.number("SELECT MAX(id) FROM publish_logs").await
    }

    /// Writes a file into the folder of rules of this story, which the service reads from then on.
    pub fn rules(&mut self, file: &str, text: &str) {
        let folder = self.folder().join("rules");
        std::fs::create_dir_all(&folder).expect("a folder for rules");
        std::fs::write(folder.join(file), text).expect("a file of rules");
        self.config.rules_dir = Some(folder);
    }

    /// Errors in the ledger that have nothing to do with the loop.
    pub async fn ledger_errors(&self, count: usize) {
        use showrunner::actor::Actor;
        use showrunner::ledger::{Entry, Severity, append};
        let mut tx = self.db.begin().await.expect("a transaction");
        let entry = Entry::new("test.error", Actor::System, serde_json::json!({})).severity(Severity::Error);
        append(&mut tx, &vec![entry; count]).await.expect("entries");
        tx.commit().await.expect("a commit");
    }

    /// Runs a statement as another program would.
    pub async fn sql(&self, text: &str) {
        let text = sqlx::AssertSqlSafe(text.to_owned());
        match &self.raw {
            Raw::Sqlite(pool) => drop(sqlx::raw_sql(text).execute(pool).await.expect("SQL")),
            Raw::Postgres(pool) => drop(sqlx::raw_sql(text).execute(pool).await.expect("SQL")),
        }
    }

    /// Runs a statement that the database is to refuse; returns what it says.
    pub async fn sql_error(&self, text: &str) -> String {
        let text = sqlx::AssertSqlSafe(text.to_owned());
        let result = match &self.raw {
            Raw::Sqlite(pool) => sqlx::raw_sql(text).execute(pool).await.map(drop),
            Raw::Postgres(pool) => sqlx::raw_sql(text).execute(pool).await.map(drop),
        };
        result.expect_err("the database refuses this").to_string()
    }

    /// Runs a statement that the database may refuse; says whether it did not.
    pub async fn try_sql(&self, text: &str) -> bool {
        let text = sqlx::AssertSqlSafe(text.to_owned());
        match &self.raw {
            Raw::Sqlite(pool) => sqlx::raw_sql(text).execute(pool).await.is_ok(),
            Raw::Postgres(pool) => sqlx::raw_sql(text).execute(pool).await.is_ok(),
        }
    }

    /// One text from another program's query.
    pub async fn text(&self, query: &str) -> String {
        let text = sqlx::AssertSqlSafe(format!("SELECT CAST(({query}) AS TEXT)"));
        let value: Option<String> = match &self.raw {
            Raw::Sqlite(pool) => sqlx::query_scalar(text).fetch_one(pool).await.expect("SQL"),
            Raw::Postgres(pool) => sqlx::query_scalar(text).fetch_one(pool).await.expect("SQL"),
        };
        value.unwrap_or_default()
    }

    /// One time from another program's query, in RFC 3339 with milliseconds.
    pub async fn moment(&self, query: &str) -> String {
        match &self.raw {
            Raw::Sqlite(_) => self.text(query).await,
            Raw::Postgres(_) => {
                let format = r#"YYYY-MM-DD"T"HH24:MI:SS.MS"Z""#;
                self.text(&format!("SELECT to_char(({query}) AT TIME ZONE 'UTC', '{format}')")).await
            }
        }
    }

    /// Whether this world's database is SQLite.
    pub fn is_sqlite(&self) -> bool {
        matches!(self.raw, Raw::Sqlite(_))
    }

    /// Entries of the ledger whose event begins with `event_type`, newest first, as the door shows them.
    pub async fn ledger(&self, event_type: &str) -> Vec<Value> {
        let (status, page) = self.get(&format!("/v1/ledger?event_type={event_type}&limit=500")).await;
        assert_eq!(status, 200, "{page}");
        list(&page["items"]).to_vec()
    }

    /// The same, as the door of a process shows them.
    pub async fn ledger_of(&self, process: &super::process::Process, event_type: &str) -> Vec<Value> {
        let page = process.get(&format!("/v1/ledger?event_type={event_type}&limit=500")).await;
        list(&page["items"]).to_vec()
    }

    /// One number from another program's query.
    pub async fn number(&self, query: &str) -> i64 {
        let text = self.text(query).await;
        text.parse::<f64>().unwrap_or_else(|_| panic!("`{query}` gave `{text}`")) as i64
    }

    fn address(&self, path: &str) -> String {
        let address = self.app.as_ref().and_then(App::address).expect("a listening service");
        format!("http://{address}{path}")
    }

    /// GETs a path; returns the status and the JSON body.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(self.address(path))).await
    }

    /// POSTs JSON.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.http.post(self.address(path)).json(body)).await
    }

    /// PATCHes JSON.
    pub async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.http.patch(self.address(path)).json(body)).await
    }

    /// POSTs nothing at all, as `curl -X POST` does.
    pub async fn poke(&self, path: &str) -> (u16, Value) {
        answer(self.http.post(self.address(path))).await
    }

    /// `POST /orchestrator/run-once`; returns its `result`.
    pub async fn run_once(&self) -> Value {
        let (status, body) = self.poke("/orchestrator/run-once").await;
        assert_eq!(status, 200, "{body}");
        body["result"].clone()
    }

    /// `GET /orchestrator/snapshot`; returns its `snapshot`.
    pub async fn snapshot(&self) -> Value {
        let (status, body) = self.get("/orchestrator/snapshot").await;
        assert_eq!(status, 200, "{body}");
        body["snapshot"].clone()
    }

    /// Waits until another program's query gives `wanted`, looking again whenever the service could have moved.
    pub async fn until(&self, query: &str, wanted: &str) {
        self.until_within(Duration::from_secs(20), query, wanted).await;
    }

    /// The same with a patience of the story's own.
    pub async fn until_within(&self, patience: Duration, query: &str, wanted: &str) {
        let patience = tokio::time::Instant::now() + patience;
        let mut found = String::new();
        while tokio::time::Instant::now() < patience {
            found = self.text(query).await;
            if found == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("`{query}` is `{found}` and never became `{wanted}`");
    }

    /// As [`World::until`], while time goes on: a second of this world's clock at a time, each followed by a pause in
    /// which the service can do what is due.
    pub async fn until_in_time(&self, query: &str, wanted: &str) {
        let patience = tokio::time::Instant::now() + Duration::from_secs(120);
        let mut found = String::new();
        while tokio::time::Instant::now() < patience {
            for _ in 0..10 {
                found = self.text(query).await;
                if found == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.clock.advance(Duration::from_secs(1));
        }
        let (_, last) = self.get("/v1/ledger?limit=30").await;
        panic!("`{query}` is `{found}` and never became `{wanted}`; the ledger's last entries: {last:#}");
    }

    /// Runs the real program on this world's database; returns its exit code, standard output and standard error.
    pub async fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_showrunner"));
        command.args(arguments).env_clear().env("HOME", self.folder()).env("DATABASE_URL", &self.url);
        let output = command.current_dir(self.folder()).output().await.expect("the program runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Whether a decision holds a proposal of the rule.
pub fn proposed(result: &Value, rule: &str) -> bool {
    list(&result["decision"]["proposals"]).iter().any(|proposal| proposal["rule"] == rule)
}

/// The planned actions of a kind.
pub fn planned<'a>(result: &'a Value, action: &str) -> Vec<&'a Value> {
    list(&result["decision"]["actions"]).iter().filter(|planned| planned["action"] == action).collect()
}

/// The elements of a JSON array.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A time in RFC 3339.
pub fn time(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).expect("a time").with_timezone(&Utc)
}
