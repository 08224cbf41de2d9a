//! `rules`: checking rules before they are saved, listing them, writing out the built-in ones.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;

use super::Common;
use super::failure::{Failure, Outcome};
use super::output::{Output, or_dash};
use crate::config::Config;
use crate::control::decider::{Mode, Refresh, RuleBook, RuleError, RuleSet, rules};

#[derive(Debug, Subcommand)]
pub(super) enum Rules {
    /// Load the rules as the service would; exit code 3 and every error if they are rejected.
    #[command(
        after_help = "Examples:\n  showrunner rules check ./rules\n  showrunner rules check ./rules --json | jq .errors"
    )]
    Check {
        /// The folder; default: the configured one, else the built-in rules.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// The rules by urgency, each with its action and place.
    #[command(after_help = "Examples:\n  showrunner rules list\n  showrunner rules list ./rules")]
    List {
        /// The folder; default: the configured one, else the built-in rules.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Write the built-in rules into a folder, to be changed there.
    #[command(after_help = "Example:\n  showrunner rules init ./rules && showrunner serve --rules ./rules")]
    Init {
        /// The folder; it is made if it is missing, and no file in it is overwritten.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

impl Rules {
    pub(super) fn run(self, common: &Common, out: &mut Output) -> Outcome {
        match self {
            Self::Check { folder } => check(load(folder, common)?, out),
            Self::List { folder } => match load(folder, common)? {
                Ok(set) => list(&set, out),
                Err(errors) => Err(rejected(&errors)),
            },
            Self::Init { folder } => init(&folder, out),
        }
    }
}

/// Loads the folder, or what is configured, as the service would.
fn load(folder: Option<PathBuf>, common: &Common) -> Outcome<Result<Arc<RuleSet>, Vec<RuleError>>> {
    let book = match (folder, common.load()) {
        (Some(folder), Ok(config)) => RuleBook::folder_for(folder, config.publishing.platforms.into_keys().collect()),
        // A folder can be checked where no service is configured.
        (Some(folder), Err(_)) => RuleBook::folder(folder),
        (None, config) => match config? {
            Config { rules_dir: Some(folder), publishing, .. } => {
                RuleBook::folder_for(folder, publishing.platforms.into_keys().collect())
            }
            _ => RuleBook::built_in(),
        },
    };
    Ok(match book.refresh() {
        Refresh::Rejected { errors, .. } => Err(errors),
        Refresh::Unchanged | Refresh::Loaded { .. } => Ok(book.current()),
    })
}

fn check(loaded: Result<Arc<RuleSet>, Vec<RuleError>>, out: &mut Output) -> Outcome {
    match loaded {
        Ok(set) if out.wants_json() => {
            out.json(&json!({ "ok": true, "rules": set.rules().len(), "hash": set.hash(), "errors": [] }))
        }
        Ok(set) => out.line(&format!("{} rules are good ({}).", set.rules().len(), set.hash())),
        Err(errors) => {
            if out.wants_json() {
                out.json(&json!({ "ok": false, "errors": errors }))?;
            }
            Err(rejected(&errors))
        }
    }
}

fn rejected(errors: &[RuleError]) -> Failure {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Failure::rejected(format!(
        "the rules are rejected; a running service keeps its last good ones:\n{}",
        lines.join("\n")
    ))
}

fn list(set: &RuleSet, out: &mut Output) -> Outcome {
    let mut rules: Vec<_> = set.rules().iter().collect();
    rules.sort_by(|one, other| other.priority.cmp(&one.priority).then_with(|| one.name.cmp(&other.name)));
    if out.wants_json() {
        return out.json(&json!({ "hash": set.hash(), "rules": rules }));
    }
    out.table(
        &["priority", "rule", "action", "cooldown", "mode", "place"],
        rules.iter().map(|rule| {
            let cooldown = rule.cooldown_seconds.map(|seconds| format!("{seconds} s"));
            let mode = if rule.mode == Mode::Act { "act" } else { "observe" };
            vec![
                rule.priority.to_string(),
                rule.name.clone(),
                rule.action.clone(),
                or_dash(cooldown),
                mode.to_owned(),
                format!("{}:{}", rule.file, rule.line),
            ]
        }),
    )
}

fn init(folder: &std::path::Path, out: &mut Output) -> Outcome {
    let files = rules::init(folder).map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => Failure::failed(format!("{cause}. Choose an empty folder.")),
        _ => Failure::failed(format!("the rules could not be written: {cause}")),
    })?;
    if out.wants_json() {
        return out.json(&files);
    }
    for file in &files {
        out.line(&file.display().to_string())?;
    }
    out.line(&format!(
        "`showrunner serve --rules {}` runs by them; a saved change is obeyed at once.",
        folder.display()
    ))
}
