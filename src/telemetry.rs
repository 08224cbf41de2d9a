//! What the service tells the people and programs that run it: text on a terminal, JSON lines elsewhere.
//!
//! Logs go to standard error; standard output belongs to the answers of the command line.

use std::fmt::{self, Write};
use std::io::IsTerminal;

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use crate::config::{Log, LogFormat};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is no filter.
    #[error("log.level is no filter such as `info,showrunner=debug`: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody else in this process already logs.
    #[error("logging is already set up in this process: {0}")]
    Twice(Box<dyn std::error::Error + Send + Sync>),
}

/// Starts logging to standard error, for the whole process and once.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter(&log.level)?).with_writer(std::io::stderr);
    let started = match (log.format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => {
            builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
        }
        (LogFormat::Text, _) | (LogFormat::Auto, true) => builder
            .with_ansi(terminal && colour_is_wanted())
            .with_target(false)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .try_init(),
    };
    started.map_err(TelemetryError::Twice)
}

/// What is logged. The scheduler of the upkeep tells of its own inner life at `info`, which says nothing to anybody.
fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let quiet = if level.contains("tokio_cron_scheduler") { "" } else { ",tokio_cron_scheduler=warn" };
    EnvFilter::try_new(format!("{level}{quiet}"))
}

/// Whether colour is welcome: not where `NO_COLOR` is set to anything (<https://no-color.org>).
pub fn colour_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `text` with its control characters made visible, so that what somebody else wrote can move no cursor, forge no
/// line and turn no text around.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || turns_text(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Marks that change the direction of the text after them, and the two separators that some terminals break lines at.
pub fn turns_text(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let mut text = String::new();
    write!(text, "{value:?}")?;
    let text = visible(&text);
    if field.name() == "message" { write!(writer, "{text}") } else { write!(writer, "{}={text}", field.name()) }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("kept").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_logged_field_cannot_forge_a_line_or_move_the_cursor() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(title = %"clip\n2026 ERROR forged\u{1b}[2J", "made {}", "a\rb");
        });
        let text = String::from_utf8(kept.0.lock().expect("kept").clone()).expect("text");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(r"made a\rb title=clip\n2026 ERROR forged\u{1b}[2J"), "{text}");
    }

    #[test]
    fn visible_leaves_letters_of_every_script_alone() {
        assert_eq!(visible("señal 🤖 日本"), "señal 🤖 日本");
        assert_eq!(visible("a\u{202e}b\u{7}"), r"a\u{202e}b\u{7}");
    }
}
