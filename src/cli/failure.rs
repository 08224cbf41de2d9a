//! How a command ends when it does not end well: a sentence, what to do next, and an exit code that programs know.

use std::process::ExitCode;

use crate::app::StartError;
use crate::config::ConfigError;
use crate::control::orchestrator::LoopError;
use crate::db;
use crate::telemetry::{TelemetryError, visible};

/// An address without what may be a secret in it: who logs in, and what is asked.
pub(super) fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = host.split(['?', '#']).next().unwrap_or_default();
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

/// What a command returns.
pub(super) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command did not succeed. Boxed text: it is rare and carried through every `?`.
#[derive(Debug)]
pub(super) struct Failure {
    kind: Kind,
    message: String,
}

/// The exit codes beside 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Whoever read our output has gone: nothing to say, and not a fault.
    Quiet,
    Failed = 1,
    Usage = 2,
    Rejected = 3,
    Unreachable = 4,
}

impl Failure {
    /// Exit code 1.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, message: message.into() }
    }
    /// Exit code 2: wrong usage or configuration.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into() }
    }
    /// Exit code 3: verification failed or rules rejected.
    pub(super) fn rejected(message: impl Into<String>) -> Self {
        Self { kind: Kind::Rejected, message: message.into() }
    }
    /// Exit code 4.
    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self { kind: Kind::Unreachable, message: message.into() }
    }

    /// Says it on standard error and turns it into the exit code.
    pub(super) fn exit(self) -> ExitCode {
        if self.kind == Kind::Quiet {
            return ExitCode::SUCCESS;
        }
        self.say();
        ExitCode::from(self.kind as u8)
    }

    /// Says it on standard error.
    pub(super) fn say(&self) {
        for line in self.message.lines() {
            eprintln!("showrunner: {}", visible(line));
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let next = "`showrunner config show` lists every key once these are mended.";
        Self::usage(format!("the configuration is refused:\n{error}\n{next}"))
    }
}

impl From<db::Error> for Failure {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::Unavailable(_) => Self::unreachable(error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(error) => error.into(),
            StartError::Refused(why) => Self::usage(why),
            StartError::Listen { .. } => Self::failed(error.to_string()),
        }
    }
}

impl From<LoopError> for Failure {
    fn from(error: LoopError) -> Self {
        match error {
            LoopError::Store(error) => error.into(),
            LoopError::TimedOut(_) | LoopError::StillRunning(_) => Self::unreachable(error.to_string()),
            LoopError::Cycle(_) => Self::failed(format!("{error}. `showrunner ledger tail` shows what led to it.")),
        }
    }
}

impl From<TelemetryError> for Failure {
    fn from(error: TelemetryError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    /// Writing the answer failed; a closed pipe is the reader's good right.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self { kind: Kind::Quiet, message: String::new() },
            _ => Self::failed(format!("the answer could not be written: {error}")),
        }
    }
}
