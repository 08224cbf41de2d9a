//! What can be set, with its defaults: a file under the environment under the flags.
//!
//! Each field's comment is its documentation in `showrunner config show` and the README. Values are checked by
//! [`Config::check`]; reading them from file, environment and flags is `load`'s work.

mod check;
mod fault;
mod file;
mod fleet;
mod load;
mod pipelines;
mod shape;
mod storage;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize, Serializer};

pub use fault::{ConfigError, Fault};
pub use fleet::{DEVELOPMENT_TOKEN, Fleet, Strategy};
pub use load::{Loaded, Overrides};
pub use pipelines::Pipelines;
pub use storage::{Backend, Backends, Place, Storage};

use crate::actor::Role;

/// Everything that can be set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `sqlite://path/to/file.db` or `postgres://user@host/database`. Default: a file in the user's data folder.
    #[serde(serialize_with = "without_password")]
    pub database_url: String,
    /// SQLite only: `normal` (a power cut may take the newest commits) or `full`.
    pub durability: Durability,
    /// The address to listen on. Anything but loopback needs tokens.
    pub host: IpAddr,
    /// The port to listen on; 0 takes a free one.
    pub port: u16,
    /// `standalone` works by itself; `serverless` only when `POST /api/process` is called.
    pub mode: Mode,
    /// The folder with the rules. Default: the rules that are built in.
    pub rules_dir: Option<PathBuf>,
    /// The loop.
    pub orchestrator: Orchestrator,
    /// What holds the loop back.
    pub governors: Governors,
    /// The queue's workers in this process.
    pub queue: Queue,
    /// Pipelines and their engines.
    pub pipelines: Pipelines,
    /// Agents and their streams.
    pub fleet: Fleet,
    /// Platforms, windows and connectors.
    pub publishing: Publishing,
    /// Where large values are kept.
    pub storage: Storage,
    /// What the service shares with its workers: 64 hexadecimal digits. Without it remote workers are refused.
    #[serde(serialize_with = "redacted")]
    pub secret_key: SecretString,
    /// How long finished work is kept.
    pub retention: Retention,
    /// Who may come in.
    pub auth: Auth,
    /// Bounds of the HTTP door.
    pub http: Http,
    /// What is logged and how.
    pub log: Log,
}

/// Whether the service works by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It looks for work all the time.
    #[default]
    Standalone,
    /// It works only while `POST /api/process` is answered: for platforms that stop a program between requests.
    Serverless,
}

/// How much of the newest work a power cut may take with it on SQLite. A crash of the process loses nothing either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Commits are handed to the operating system (`synchronous=NORMAL`).
    #[default]
    Normal,
    /// Commits are on the disk (`synchronous=FULL`).
    Full,
}

/// The loop.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orchestrator {
    /// Whether the loop is on at the very first start; after that the stored switch counts.
    pub enabled: bool,
    /// Seconds between cycles, 1 to 3600.
    pub interval_seconds: u64,
}

/// What holds the loop back, so that it never feeds on itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Governors {
    /// A rule that proposes more than this in one cycle gets none of it.
    pub rule_blast_radius: usize,
    /// A plan of more actions than this is not begun.
    pub plan_blast_radius: usize,
    /// Actions of one kind an hour, unless `budgets` names the kind.
    pub budget_per_hour: u32,
    /// Actions an hour by kind, e.g. `force_publish: 20`; 0 forbids the kind.
    pub budgets: BTreeMap<String, u32>,
    /// Failures in a row that open an action kind's breaker.
    pub breaker_failures: u32,
    /// Seconds until an open breaker lets one action through to try.
    pub breaker_open_seconds: u64,
}

/// The queue's workers in this process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Jobs that run at once here, and runs that an endpoint is given at once; who pulls takes what it asks for.
    pub max_concurrency: usize,
    /// Milliseconds between looks at the queue when nothing wakes it.
    pub poll_interval_ms: u64,
    /// Seconds that a claimed job is leased; a running one is renewed.
    pub lease_seconds: u64,
    /// Seconds that a client's idempotency key holds unless it says so.
    pub idempotency_ttl_seconds: u64,
    /// Milliseconds before another try at most, for tasks that name no bound.
    pub max_retry_delay_ms: u64,
}

/// Platforms, windows and connectors.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Publishing {
    /// `sandbox` (a simulated platform) or `webhook`.
    pub connector: ConnectorKind,
    /// The IANA zone of the windows, e.g. `Europe/Madrid`.
    pub time_zone: String,
    /// The platforms by name.
    pub platforms: BTreeMap<String, Platform>,
    /// Milliseconds that a platform may take to answer; after that the outcome is unknown.
    pub call_timeout_ms: u64,
    /// Publications overdue by more than these minutes go out one by one, a platform's spacing apart.
    pub catch_up_after_minutes: u64,
    /// Minutes after which a platform's "never heard of it" settles an unknown publication as failed.
    pub settle_minutes: u64,
    /// How often a scheduled publication may be moved a day later.
    pub max_postponements: u32,
    /// Minutes before the first retry of a failed publication; doubled for each further one.
    pub retry_backoff_minutes: u64,
    /// The simulated platform.
    pub sandbox: Sandbox,
    /// The HTTP receiver.
    pub webhook: Webhook,
}

/// Which connector publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectorKind {
    /// The simulated platform.
    Sandbox,
    /// A configured URL.
    Webhook,
}

/// One platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// Local time at which the window opens, `HH:MM`.
    pub opens: String,
    /// Local time at which it closes, `HH:MM`; `24:00` is midnight, and earlier than `opens` is the next day.
    pub closes: String,
    /// This platform's own IANA zone, if it is not the common one.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// Minutes between two publications.
    #[serde(default = "Platform::default_spacing")]
    pub spacing_minutes: u64,
    /// Publications a local day.
    #[serde(default = "Platform::default_quota")]
    pub daily_quota: u32,
    /// What one publication takes from its campaign's budget.
    #[serde(default)]
    pub cost_cents: i64,
}

/// The simulated platform. Probabilities are 0 to 1; what happens to a publication follows from `seed` alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// Seed of everything that it does.
    pub seed: u64,
    /// Milliseconds that an answer takes at least.
    pub latency_min_ms: u64,
    /// Milliseconds that an answer takes at most.
    pub latency_max_ms: u64,
    /// How often it refuses.
    pub refuse: f64,
    /// How often it refuses for now and names a time.
    pub throttle: f64,
    /// How often it accepts nothing and never answers.
    pub lose_request: f64,
    /// How often it accepts and never answers.
    pub lose_answer: f64,
    /// Publications a day and platform before it throttles; 0 is no limit.
    pub quota_per_day: u32,
}

/// The HTTP receiver of publications (Standard Webhooks).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhook {
    /// Where publications are posted, e.g. `https://publisher.example/publish`.
    #[serde(serialize_with = "without_secrets")]
    pub url: String,
    /// Where their state is asked, with `{key}` in place of the idempotency key.
    #[serde(serialize_with = "without_secrets")]
    pub status_url: String,
    /// The signing secret, `whsec_…` (base64).
    #[serde(serialize_with = "redacted")]
    pub secret: SecretString,
}

/// How long finished work is kept, in days; 0 keeps it for ever.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Cycles in which nothing was done.
    pub idle_cycles_days: u32,
    /// All other cycles.
    pub cycles_days: u32,
    /// Finished jobs and runs.
    pub jobs_days: u32,
    /// Ledger entries; a checkpoint stays.
    pub ledger_days: u32,
    /// Events.
    pub events_days: u32,
    /// Dead letters, retried or not.
    pub dead_letters_days: u32,
}

/// Who may come in.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The tokens. With none, the API is open on loopback and refuses to listen elsewhere.
    pub tokens: Vec<Token>,
}

/// One token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The name that the ledger shows.
    pub name: String,
    /// `viewer`, `operator` or `admin`.
    pub role: Role,
    /// The token itself, at least 16 characters.
    #[serde(serialize_with = "redacted")]
    pub token: SecretString,
}

/// Bounds of the HTTP door.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Bytes of a request body.
    pub body_limit_bytes: usize,
    /// Requests a second and client address; bursts of ten times that.
    pub requests_per_second: u32,
    /// Milliseconds that a request may take.
    pub request_timeout_ms: u64,
    /// Milliseconds that a stopping server waits for running requests.
    pub drain_timeout_ms: u64,
}

/// What is logged and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,showrunner=debug`.
    pub level: String,
    /// `auto` (text on a terminal, else JSON), `text` or `json`.
    pub format: LogFormat,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Token {
    /// Its keys, as a file writes them.
    const FIELDS: [&str; 3] = ["name", "role", "token"];
}

impl Platform {
    fn default_spacing() -> u64 {
        15
    }
    fn default_quota() -> u32 {
        25
    }
    fn between(opens: &str, closes: &str) -> Self {
        Self {
            opens: opens.to_owned(),
            closes: closes.to_owned(),
            time_zone: None,
            spacing_minutes: Self::default_spacing(),
            daily_quota: Self::default_quota(),
            cost_cents: 0,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database_url: load::default_database_url(),
            durability: Durability::default(),
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8000,
            mode: Mode::default(),
            rules_dir: None,
            orchestrator: Orchestrator::default(),
            governors: Governors::default(),
            queue: Queue::default(),
            pipelines: Pipelines::default(),
            fleet: Fleet::default(),
            publishing: Publishing::default(),
            storage: Storage::default(),
            secret_key: SecretString::default(),
            retention: Retention::default(),
            auth: Auth::default(),
            http: Http::default(),
            log: Log::default(),
        }
    }
}

impl Default for Orchestrator {
    fn default() -> Self {
        Self { enabled: false, interval_seconds: 2 }
    }
}

impl Default for Governors {
    fn default() -> Self {
        Self {
            rule_blast_radius: 25,
            plan_blast_radius: 50,
            budget_per_hour: 120,
            budgets: [
                ("trigger_reconciliation", 30),
                ("rebalance_queue", 30),
                ("pause_queue", 10),
                ("quarantine_worker", 10),
                ("pause_trigger", 10),
                ("cancel_run", 10),
                ("drain_agent", 10),
                ("restart_stream", 30),
            ]
            .map(|(kind, budget)| (kind.to_owned(), budget))
            .into(),
            breaker_failures: 5,
            breaker_open_seconds: 300,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_concurrency: 10,
            poll_interval_ms: 1000,
            lease_seconds: 60,
            idempotency_ttl_seconds: 86_400,
            max_retry_delay_ms: 86_400_000,
        }
    }
}

impl Default for Publishing {
    fn default() -> Self {
        let platforms = [("instagram", "18:00", "23:00"), ("tiktok", "16:00", "24:00"), ("youtube", "17:00", "22:00")];
        Self {
            connector: ConnectorKind::Sandbox,
            time_zone: "UTC".to_owned(),
            platforms: platforms
                .iter()
                .map(|(name, opens, closes)| ((*name).to_owned(), Platform::between(opens, closes)))
                .collect(),
            call_timeout_ms: 30_000,
            catch_up_after_minutes: 10,
            settle_minutes: 10,
            max_postponements: 3,
            retry_backoff_minutes: 5,
            sandbox: Sandbox::default(),
            webhook: Webhook::default(),
        }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            seed: 1,
            latency_min_ms: 20,
            latency_max_ms: 120,
            refuse: 0.0,
            throttle: 0.0,
            lose_request: 0.0,
            lose_answer: 0.0,
            quota_per_day: 0,
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            idle_cycles_days: 2,
            cycles_days: 30,
            jobs_days: 14,
            ledger_days: 0,
            events_days: 14,
            dead_letters_days: 30,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            body_limit_bytes: 1 << 20,
            requests_per_second: 200,
            request_timeout_ms: 30_000,
            drain_timeout_ms: 10_000,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

/// Whether the key shared with workers is one; no key is one too. The error says how to make one.
pub fn check_secret_key(key: &str) -> Result<(), String> {
    let digits = key.bytes().all(|byte| byte.is_ascii_hexdigit());
    let distinct: std::collections::BTreeSet<u8> = key.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    // 64 random digits hold fewer than 8 different ones less than once in 10^15.
    if key.is_empty() || digits && key.len() == 64 && distinct.len() >= 8 {
        return Ok(());
    }
    let fault = if digits && key.len() == 64 { "can be guessed" } else { "is not 64 hexadecimal digits (32 bytes)" };
    Err(format!("{fault}; `openssl rand -hex 32` makes one, and the workers need the same"))
}

fn redacted<S: Serializer>(_: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("[hidden]")
}

/// Shows a receiver's URL with its password and its parameters' values hidden: any of them may be a token.
fn without_secrets<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let (place, parameters) = url.split_once('?').map_or((url, ""), |(place, rest)| (place, rest));
    let shown = parameters.split('&').filter(|parameter| !parameter.is_empty()).map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if value == "{key}" { parameter.to_owned() } else { format!("{name}=[hidden]") }
    });
    let shown = shown.collect::<Vec<_>>().join("&");
    let question = if shown.is_empty() { "" } else { "?" };
    serializer.serialize_str(&format!("{}{question}{shown}", hide_password(place)))
}

/// Shows a database URL with its password hidden.
fn without_password<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hide_password(url))
}

/// `postgres://user:secret@host/db` as `postgres://user:[hidden]@host/db`, and the same for a parameter `password`.
pub fn hide_password(url: &str) -> String {
    let (place, parameters) = url.split_once('?').map_or((url, None), |(place, rest)| (place, Some(rest)));
    let credentials = place.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)));
    let place = match credentials.and_then(|(scheme, (login, host))| Some((scheme, login.split_once(':')?.0, host))) {
        Some((scheme, user, host)) => format!("{scheme}://{user}:[hidden]@{host}"),
        None => place.to_owned(),
    };
    let Some(parameters) = parameters else { return place };
    let shown = parameters.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=[hidden]"),
        _ => parameter.to_owned(),
    });
    format!("{place}?{}", shown.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::hide_password;

    #[test]
    fn no_secret_of_a_receivers_url_is_shown() {
        let url = "http://ann:secret@host/x?token=secret&id={key}".to_owned();
        let shown = serde_json::to_string(&super::Webhook { url, ..super::Webhook::default() }).expect("JSON");
        assert!(shown.contains("http://ann:[hidden]@host/x?token=[hidden]&id={key}"), "{shown}");
        assert!(!shown.contains("secret@") && !shown.contains("=secret"), "{shown}");
    }

    #[test]
    fn no_password_of_a_database_url_is_shown() {
        for (url, shown) in [
            ("postgres://ann:s:e@c@host/db", "postgres://ann:[hidden]@host/db"),
            ("postgres://ann@host/db?password=s&sslmode=off", "postgres://ann@host/db?password=[hidden]&sslmode=off"),
            ("postgres://host/db", "postgres://host/db"),
            ("sqlite::memory:", "sqlite::memory:"),
        ] {
            assert_eq!(hide_password(url), shown);
        }
    }
}
