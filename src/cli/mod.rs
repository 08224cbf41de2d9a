//! The command line: a way in for people and for programs.
//!
//! Every command ends in an [`Outcome`](failure::Outcome): 0 done, 1 failed, 2 wrong usage or configuration,
//! 3 verification failed or rules rejected, 4 not reachable. Answers go to standard output, as tables or with `--json`
//! as JSON; everything else goes to standard error.
//!
//! | room | holds |
//! |---|---|
//! | `failure`, `output` | how a command ends, and what it prints |
//! | `way_in` | the loop behind `--url`, or straight on the database |
//! | `serve`, `steer`, `rules`, `ledger`, `pipelines`, `tasks`, `replay`, `migrate`, `settings` | the commands |
//! | `worker` | a reference worker that runs commands |
//! | `demo` | a simulated platform to watch |
//! | `agent` | the fleet's other end: runs stream jobs on this machine |
//! | `watchdog` | a process that outlives a worker or agent and ends its programs |

#[cfg(unix)]
mod agent;
mod demo;
mod failure;
mod ledger;
mod migrate;
mod output;
mod pipelines;
mod replay;
mod rules;
mod serve;
mod settings;
mod steer;
mod tasks;
#[cfg(unix)]
mod watchdog;
mod way_in;
#[cfg(unix)]
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{Config, Loaded, Overrides};
use crate::control::action::ACTION_KINDS;
use crate::telemetry::visible;
use failure::Outcome;
use output::Output;

/// Runs a media platform by itself: looks at everything, decides by rules, acts, and writes down why.
#[derive(Debug, Parser)]
#[command(
    name = "showrunner",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  showrunner demo                 watch a simulated platform being run\n  showrunner serve --enabled      run the service with the loop on\n  showrunner status               ask how it is\n\nExit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 verification failed or\nrules rejected, 4 not reachable."
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
struct Common {
    /// The configuration file (.yaml or .toml); default: showrunner.yaml or showrunner.toml here, if there is one.
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// The database: sqlite://path/to/file.db or postgres://user@host/database.
    #[arg(long, global = true, value_name = "URL")]
    database: Option<String>,
    /// Answer in JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
}

/// Where the service is; without `--url`, commands go straight to the database.
#[derive(Debug, Clone, Args)]
struct Server {
    /// A running server, e.g. http://127.0.0.1:8000; without it, straight to the database.
    #[arg(long, env = "SHOWRUNNER_URL", value_name = "URL", hide_env_values = true)]
    url: Option<String>,
    /// The server's token.
    #[arg(long, env = "SHOWRUNNER_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service: loop, queue and HTTP.
    Serve(serve::Serve),
    /// Watch a simulated platform being run, with and without the loop.
    Demo(demo::Demo),
    /// Run stream jobs on this machine, one command each, as the orchestrator assigns them.
    #[cfg(unix)]
    Agent(agent::Agent),
    /// Ends what a worker or agent leaves behind; started by it.
    #[cfg(unix)]
    #[command(name = watchdog::COMMAND, hide = true)]
    Watchdog,
    /// Run one cycle now, whether the loop is on or off.
    #[command(after_help = "Examples:\n  showrunner run-once\n  showrunner run-once --json | jq .execution")]
    RunOnce(Server),
    /// Look at the whole platform without deciding anything.
    #[command(after_help = "Examples:\n  showrunner snapshot\n  showrunner snapshot --json | jq .jobs")]
    Snapshot(Server),
    /// Whether and where the loop runs, its last cycle and its rules.
    #[command(after_help = "Examples:\n  showrunner status\n  showrunner status --url http://127.0.0.1:8000")]
    Status(Server),
    /// Switch the loop on, for every instance and across restarts.
    #[command(after_help = "Example:\n  showrunner enable")]
    Enable(Server),
    /// Switch the loop off; a running cycle ends first.
    #[command(after_help = "Example:\n  showrunner disable")]
    Disable(Server),
    /// Check, list or write out rules.
    #[command(subcommand)]
    Rules(rules::Rules),
    /// Read, verify, export or prune the ledger.
    #[command(subcommand)]
    Ledger(ledger::Ledger),
    /// Run, check, draw or import pipelines.
    #[command(subcommand)]
    Pipelines(pipelines::Command),
    /// What is known of tasks.
    #[command(subcommand)]
    Tasks(tasks::Tasks),
    /// Run commands for the queue's tasks, as a worker of the service.
    #[cfg(unix)]
    Worker(worker::Worker),
    /// Decide a recorded cycle again and say whether the same comes out.
    Replay(replay::Replay),
    /// Bring the database's schema up to this program's.
    Migrate(migrate::Migrate),
    /// Make the database ready.
    #[command(subcommand)]
    Db(migrate::Database),
    /// Show the configuration.
    #[command(subcommand)]
    Config(settings::Settings),
    /// Print completions for a shell.
    #[command(
        after_help = "Example:\n  showrunner completions bash > ~/.local/share/bash-completion/completions/showrunner"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Common {
    fn overrides(&self) -> Overrides {
        let flags = self.database.iter().map(|url| ("--database", "database_url", url.clone())).collect();
        Overrides { file: self.config.clone(), flags }
    }

    fn load(&self) -> Result<Config, failure::Failure> {
        self.load_with(Vec::new())
    }

    /// With more flags than the common ones.
    fn load_with(&self, flags: Vec<(&'static str, &'static str, String)>) -> Result<Config, failure::Failure> {
        let mut overrides = self.overrides();
        overrides.flags.extend(flags);
        Ok(Config::load(&overrides, &ACTION_KINDS)?)
    }

    fn loaded(&self) -> Result<Loaded, failure::Failure> {
        let here = std::path::Path::new(".");
        Ok(Loaded::read(&self.overrides(), std::env::vars_os(), here, &ACTION_KINDS)?)
    }
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|refused| {
        // What clap repeats of an argument must not move the cursor: the same again, with such characters as escapes.
        let arguments = std::env::args_os().map(|argument| visible(&argument.to_string_lossy()));
        Cli::try_parse_from(arguments).err().unwrap_or(refused).exit()
    });
    // Whoever opens a TLS connection finds the one provider that is built in; set twice is set.
    _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return failure::Failure::failed(format!("The runtime did not start: {cause}.")).exit(),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

async fn run(cli: Cli) -> Outcome {
    let Cli { common, command } = cli;
    let mut out = Output::new(common.json);
    match command {
        Command::Serve(serve) => serve.run(&common, &mut out).await,
        Command::Demo(demo) => demo.run(&mut out).await,
        #[cfg(unix)]
        Command::Agent(agent) => agent.run(&out).await,
        #[cfg(unix)]
        Command::Watchdog => {
            watchdog::watch().await;
            Ok(())
        }
        Command::RunOnce(server) => steer::run_once(&common, &server, &mut out).await,
        Command::Snapshot(server) => steer::snapshot(&common, &server, &mut out).await,
        Command::Status(server) => steer::status(&common, &server, &mut out).await,
        Command::Enable(server) => steer::switch(&common, &server, true, &mut out).await,
        Command::Disable(server) => steer::switch(&common, &server, false, &mut out).await,
        Command::Rules(rules) => rules.run(&common, &mut out),
        Command::Ledger(ledger) => ledger.run(&common, &mut out).await,
        Command::Pipelines(pipelines) => pipelines.run(&common, &mut out).await,
        Command::Tasks(tasks) => tasks.run(&common, &mut out).await,
        #[cfg(unix)]
        Command::Worker(worker) => worker.run(&common, &mut out).await,
        Command::Db(database) => database.run(&common, &mut out).await,
        Command::Replay(replay) => replay.run(&common, &mut out).await,
        Command::Migrate(migrate) => migrate.run(&common, &mut out).await,
        Command::Config(settings) => settings.run(&common, &mut out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "showrunner", &mut script);
            out.bytes(&script)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_fit_together() {
        Cli::command().debug_assert();
    }
}
