//! `serve`: the service, until it is told to stop.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::Common;
use super::failure::{Failure, Outcome};
use super::output::Output;
use crate::app::{App, Mode, Parts};
use crate::clock::SystemClock;
use crate::random::Random;
use crate::telemetry;

/// Flags lie over the environment, and that over the file.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  showrunner serve\n  showrunner serve --enabled --rules ./rules\n  showrunner serve --database postgres://user@host/showrunner --port 8080"
)]
pub(super) struct Serve {
    /// The address to listen on; anything but loopback needs tokens.
    #[arg(long, value_name = "IP")]
    host: Option<IpAddr>,
    /// The port to listen on; 0 takes a free one.
    #[arg(long)]
    port: Option<u16>,
    /// The folder with the rules; default: the built-in rules.
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// Whether the loop is on at the very first start; after that the stored switch counts.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    enabled: Option<bool>,
}

impl Serve {
    pub(super) async fn run(self, common: &Common, out: &mut Output) -> Outcome {
        let mut flags = Vec::new();
        flags.extend(self.host.map(|host| ("--host", "host", host.to_string())));
        flags.extend(self.port.map(|port| ("--port", "port", port.to_string())));
        flags.extend(self.rules.map(|folder| ("--rules", "rules_dir", folder.to_string_lossy().into_owned())));
        flags.extend(self.enabled.map(|on| ("--enabled", "orchestrator.enabled", on.to_string())));
        let config = common.load_with(flags)?;
        telemetry::start(&config.log)?;
        let open = config.auth.tokens.is_empty();
        // Listening for signals begins before anything that must be stopped in order.
        let mut signals = Signals::listen()?;
        let (clock, random) = (SystemClock::shared(), Random::from_machine());
        let app = tokio::select! {
            app = App::start(Parts { config, clock, random, db: None, mode: Mode::Serve, listen: true }) => app?,
            () = signals.next() => return Ok(()),
        };
        announce(&app, open, out)?;
        signals.next().await;
        tokio::select! {
            () = app.stop() => Ok(()),
            () = signals.next() => Err(Failure::failed("stopped at once by a second signal; the next start tidies up")),
        }
    }
}

fn announce(app: &App, open: bool, out: &mut Output) -> Outcome {
    let Some(address) = app.address() else { return Ok(()) };
    if out.wants_json() {
        return out.json(&serde_json::json!({ "url": format!("http://{address}"), "open": open }));
    }
    out.line(&format!("Showrunner listens on http://{address}"))?;
    if open {
        out.line("The API is open to everyone on this machine: no tokens are configured (auth.tokens).")?;
    }
    Ok(())
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    /// A file may not grow any further. Unless somebody listens it ends the process, which is to report a full disk.
    #[cfg(unix)]
    _file_limit: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub(super) fn listen() -> Outcome<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _file_limit: signal(SignalKind::from_raw(libc::SIGXFSZ))?,
        })
    }

    #[cfg(not(unix))]
    pub(super) fn listen() -> Outcome<Self> {
        Ok(Self {})
    }

    /// Returns when the next one comes.
    #[cfg(unix)]
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    pub(super) async fn next(&mut self) {
        _ = tokio::signal::ctrl_c().await;
    }
}
