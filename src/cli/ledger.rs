//! `ledger`: reading, verifying, exporting and pruning the audit chain.

mod export;
mod source;

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use self::export::Format;
use self::source::Source;
use super::failure::{Failure, Outcome};
use super::output::{Output, escaped, or_dash};
use super::way_in::{open_database, operator};
use super::{Common, Server};
use crate::clock::SystemClock;
use crate::db::Timestamp;
use crate::ledger::{self, Filter, Severity, StoredEntry};

/// How often `tail --follow` looks for new entries.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// Characters of a payload that a line for people shows; `--json` shows all.
const PAYLOAD_CHARS: usize = 240;

#[derive(Debug, Subcommand)]
pub(super) enum Ledger {
    /// The newest entries, oldest of them first.
    #[command(
        after_help = "Examples:\n  showrunner ledger tail\n  showrunner ledger tail -f --event orchestrator.action"
    )]
    Tail {
        /// Go on with new entries as they come.
        #[arg(short, long)]
        follow: bool,
        /// How many entries.
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(0..=100_000))]
        lines: i64,
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        server: Server,
    },
    /// Entries that fit, newest first.
    #[command(
        after_help = "Examples:\n  showrunner ledger query --subject clip:12\n  showrunner ledger query --event orchestrator. --severity error --since 2h\n  showrunner ledger query --cycle 812 --json"
    )]
    Query {
        /// How many entries at most.
        #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=100_000))]
        limit: i64,
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        server: Server,
    },
    /// Walk the chain; exit code 3 and the first bad entry if it is broken.
    #[command(after_help = "Example:\n  showrunner ledger verify")]
    Verify {
        #[command(flatten)]
        server: Server,
    },
    /// Write entries to a file or standard output, oldest first.
    #[command(
        after_help = "Examples:\n  showrunner ledger export --format csv -o ledger.csv\n  showrunner ledger export --format jsonl --since 30d | gzip > ledger.jsonl.gz"
    )]
    Export {
        /// One JSON object a line, or CSV with a header.
        #[arg(long, value_enum)]
        format: Format,
        /// The file; default: standard output.
        #[arg(short, long, value_name = "FILE")]
        output: Option<std::path::PathBuf>,
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        server: Server,
    },
    /// Take away old entries, behind a checkpoint from which the chain still verifies.
    #[command(after_help = "Example:\n  showrunner ledger prune --keep 90d")]
    Prune {
        /// How far back entries are kept, e.g. 90d or 12h.
        #[arg(long, value_parser = humantime::parse_duration)]
        keep: Duration,
        #[command(flatten)]
        server: Server,
    },
}

/// Which entries.
#[derive(Debug, Clone, Args)]
pub(super) struct Wanted {
    /// The event begins with this, e.g. orchestrator.action.
    #[arg(long, value_name = "PREFIX")]
    event: Option<String>,
    /// How bad it is.
    #[arg(long, value_enum)]
    severity: Option<Level>,
    /// Who: loop, system or operator:NAME.
    #[arg(long)]
    actor: Option<String>,
    /// What it happened to, e.g. clip:12.
    #[arg(long)]
    subject: Option<String>,
    /// The rule that asked for it.
    #[arg(long)]
    rule: Option<String>,
    /// The cycle in which it happened.
    #[arg(long)]
    cycle: Option<i64>,
    /// From this time on: 2026-11-20T18:30:00Z, or so long ago: 2h.
    #[arg(long, value_parser = moment)]
    since: Option<Timestamp>,
    /// Before this time: 2026-11-20T18:30:00Z, or so long ago: 2h.
    #[arg(long, value_parser = moment)]
    until: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Info,
    Warning,
    Error,
    Critical,
}

impl Wanted {
    fn filter(self) -> Filter {
        let severity = self.severity.map(|level| match level {
            Level::Info => Severity::Info,
            Level::Warning => Severity::Warning,
            Level::Error => Severity::Error,
            Level::Critical => Severity::Critical,
        });
        Filter {
            event_type: self.event,
            severity: severity.map(|severity| severity.as_str().to_owned()),
            actor: self.actor,
            subject: self.subject,
            rule: self.rule,
            cycle_id: self.cycle,
            since: self.since,
            until: self.until,
            before_id: None,
            after_id: None,
        }
    }
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    match humantime::parse_duration(text) {
        Ok(ago) => Ok(Timestamp::new(SystemClock::shared().now()).before(ago)),
        Err(_) => Err("a time such as 2026-11-20T18:30:00Z or a duration such as 2h is taken".to_owned()),
    }
}

impl Ledger {
    pub(super) async fn run(self, common: &Common, out: &mut Output) -> Outcome {
        match self {
            Self::Tail { follow, lines, wanted, server } => {
                let source = Source::open(common, &server).await?;
                tail(&source, wanted.filter(), lines, follow, out).await
            }
            Self::Query { limit, wanted, server } => {
                let source = Source::open(common, &server).await?;
                let entries = source.newest(&wanted.filter(), limit).await?;
                if out.wants_json() {
                    return out.json(&entries);
                }
                out.table(
                    &["id", "at", "event", "severity", "actor", "subject", "rule", "payload"],
                    entries.iter().map(|entry| {
                        vec![
                            entry.id.to_string(),
                            entry.created_at.to_string(),
                            entry.event_type.clone(),
                            entry.severity.clone(),
                            entry.actor.clone(),
                            or_dash(entry.subject.as_ref()),
                            or_dash(entry.rule.as_ref()),
                            shortened(&entry.payload),
                        ]
                    }),
                )
            }
            Self::Verify { server } => verify(common, &server, out).await,
            Self::Export { format, output, wanted, server } => {
                let source = Source::open(common, &server).await?;
                let outcome = export::run(&source, wanted.filter(), format, output.as_deref(), out).await;
                source.close().await;
                outcome
            }
            Self::Prune { keep, server } => {
                only_here(&server)?;
                let db = open_database(&common.load()?).await?;
                let pruned = ledger::prune(&db, keep, &operator()).await;
                db.close().await;
                let pruned = pruned?;
                if out.wants_json() {
                    return out.json(&pruned);
                }
                match pruned.entries {
                    0 => out.line("Nothing is old enough; the ledger stays as it is."),
                    count => out.line(&format!("{count} entries are gone, through {}.", pruned.through_id)),
                }
            }
        }
    }
}

/// What cannot be undone is done where the database is, by who may touch it.
fn only_here(server: &Server) -> Outcome {
    match server.url.as_deref().filter(|url| !url.is_empty()) {
        None => Ok(()),
        Some(_) => Err(Failure::usage(
            "`ledger prune` takes entries away for good, so no server does it for you: leave out --url (or \
             SHOWRUNNER_URL) and name the database with --database",
        )),
    }
}

async fn tail(source: &Source, filter: Filter, lines: i64, follow: bool, out: &mut Output) -> Outcome {
    let clock = SystemClock::shared();
    // Where to go on is taken first, so that nothing between falls through.
    let mut last_id = source.newest(&Filter::default(), 1).await?.first().map_or(0, |entry| entry.id);
    let mut entries = source.newest(&Filter { before_id: Some(last_id + 1), ..filter.clone() }, lines).await?;
    loop {
        for entry in entries.iter().rev() {
            if out.wants_json() {
                out.bytes(format!("{}\n", escaped(&export::line(entry)?)).as_bytes())?;
            } else {
                out.line(&shown(entry))?;
            }
            last_id = last_id.max(entry.id);
        }
        if !follow {
            return Ok(());
        }
        clock.sleep(FOLLOW_EVERY).await;
        entries = source.oldest(&Filter { after_id: Some(last_id), ..filter.clone() }).await?;
        entries.reverse();
    }
}

async fn verify(common: &Common, server: &Server, out: &mut Output) -> Outcome {
    let source = Source::open(common, server).await?;
    let watched = std::io::stderr().is_terminal();
    let verification = source
        .verify(|entries| {
            if watched {
                eprint!("\r{entries} entries");
            }
        })
        .await;
    if watched {
        eprint!("\r\u{1b}[K");
    }
    source.close().await;
    let found = verification?;
    if out.wants_json() {
        out.json(&found)?;
    } else if found.first_bad.is_none() {
        let since = found.checkpoint_id.map(|id| format!(" since the checkpoint at {id}")).unwrap_or_default();
        out.line(&format!("The chain is whole: {} entries{since}.", found.entries))?;
    }
    match found.first_bad {
        None => Ok(()),
        Some((id, why)) => Err(Failure::rejected(format!(
            "the chain is broken: entry {id} {why}. {} entries before it fit; compare with a backup or an export.",
            found.entries
        ))),
    }
}

/// One entry on one line.
fn shown(entry: &StoredEntry) -> String {
    let mut line = format!("{} {} {} {}", entry.created_at, entry.id, entry.severity, entry.event_type);
    for part in entry.subject.iter().chain(&entry.rule) {
        line.push(' ');
        line.push_str(part);
    }
    format!("{line} by {} {}", entry.actor, shortened(&entry.payload))
}

fn shortened(payload: &str) -> String {
    match payload.char_indices().nth(PAYLOAD_CHARS) {
        None => payload.to_owned(),
        Some((end, _)) => format!("{}…", &payload[..end]),
    }
}
