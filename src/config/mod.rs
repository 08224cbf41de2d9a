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
mod publishing;
mod secrets;
mod shape;
mod storage;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub use fault::{ConfigError, Fault};
pub use fleet::{DEVELOPMENT_TOKEN, Fleet, Strategy};
pub use load::{Loaded, Overrides};
pub use pipelines::Pipelines;
pub use publishing::{ConnectorKind, Platform, Publishing, Sandbox, Webhook};
pub use secrets::{check_secret_key, hide_password};
pub use storage::{Backend, Backends, Place, Storage};

use secrets::{redacted, without_password};

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
