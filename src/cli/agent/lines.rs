//! What people and programs see of an agent: one line for each thing that happens.

use std::io::{IsTerminal, Write};

use serde_json::json;

use crate::cli::output::escaped;
use crate::telemetry::{colour_is_wanted, visible};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Begins,
    Good,
    Waits,
    Bad,
}

/// Standard error for people, or JSON lines on standard output for programs.
pub(super) struct Lines {
    json: bool,
    colours: bool,
}

impl Lines {
    pub(super) fn new(json: bool) -> Self {
        Self { json, colours: std::io::stderr().is_terminal() && colour_is_wanted() }
    }

    /// `event` is for programs, such as `job.running`; `text` for people. What others wrote moves no cursor.
    pub(super) fn say(&self, mark: Mark, event: &str, job: Option<&str>, text: &str) {
        // Whoever reads may have gone; the jobs go on.
        if self.json {
            let line = json!({ "event": event, "jobId": job, "message": text }).to_string();
            let _ = writeln!(std::io::stdout(), "{}", escaped(&line));
            return;
        }
        let (sign, colour) = match mark {
            Mark::Begins => ("▶", "36"),
            Mark::Good => ("✓", "32"),
            Mark::Waits => ("…", "33"),
            Mark::Bad => ("✗", "31"),
        };
        for (number, line) in text.lines().enumerate() {
            let line = visible(line);
            let _ = match (number, self.colours) {
                (0, true) => writeln!(std::io::stderr(), "\u{1b}[{colour}m{sign}\u{1b}[0m {line}"),
                (0, false) => writeln!(std::io::stderr(), "{sign} {line}"),
                _ => writeln!(std::io::stderr(), "  {line}"),
            };
        }
    }
}
