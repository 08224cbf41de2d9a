//! What a command prints: a table or lines for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::failure::Outcome;
use crate::telemetry::{turns_text, visible};

/// Standard output, and whether it is a program that reads it.
pub(super) struct Output {
    json: bool,
    stream: io::Stdout,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json, stream: io::stdout() }
    }

    /// Whether `--json` was given.
    pub(super) fn wants_json(&self) -> bool {
        self.json
    }

    /// One value as JSON: indented on a terminal, one line elsewhere.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Outcome {
        let text =
            if self.stream.is_terminal() { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        let text = text.map_err(|cause| super::failure::Failure::failed(cause.to_string()))?;
        self.bytes(format!("{}\n", escaped(&text)).as_bytes())
    }

    /// One line; what others wrote into it can do nothing to a terminal.
    pub(super) fn line(&mut self, text: &str) -> Outcome {
        self.bytes(format!("{}\n", visible(text)).as_bytes())
    }

    /// A table with a header, as wide as the terminal.
    pub(super) fn table(&mut self, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Outcome {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(header);
        for row in rows {
            table.add_row(row.iter().map(|cell| visible(cell)));
        }
        self.bytes(format!("{table}\n").as_bytes())
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Outcome {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }
}

/// The same JSON with what could move a cursor or turn text around as escapes: outside of its strings JSON has none of
/// that, but for the ends of lines.
pub(super) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character != '\n' && (character.is_control() || turns_text(character)) {
            text.push_str(&format!("\\u{:04x}", character as u32));
        } else {
            text.push(character);
        }
    }
    text
}

/// A value that may be missing.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}
