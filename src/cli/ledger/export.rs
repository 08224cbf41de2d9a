//! `ledger export`: every entry, oldest first, as JSON lines or CSV.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use clap::ValueEnum;

use super::source::Source;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output::Output;
use crate::ledger::{Filter, StoredEntry};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Format {
    Jsonl,
    Csv,
}

/// An entry as one line of JSON.
pub(super) fn line(entry: &StoredEntry) -> Outcome<String> {
    serde_json::to_string(entry).map_err(|cause| Failure::failed(cause.to_string()))
}

/// Writes to `path`, or to standard output. A file appears under its name only when it is whole.
pub(super) async fn run(
    source: &Source,
    filter: Filter,
    format: Format,
    path: Option<&Path>,
    out: &mut Output,
) -> Outcome {
    let Some(path) = path else {
        write_all(source, filter, format, io::stdout().lock()).await?;
        return Ok(());
    };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let unwritable = |cause: io::Error| Failure::failed(format!("{} cannot be written: {cause}", path.display()));
    let file = BufWriter::new(File::create(&partial).map_err(unwritable)?);
    let count = write_all(source, filter, format, file).await?;
    std::fs::rename(&partial, path).map_err(unwritable)?;
    if out.wants_json() {
        return out.json(&serde_json::json!({ "entries": count, "file": path }));
    }
    out.line(&format!("{count} entries are in {}.", path.display()))
}

async fn write_all(source: &Source, mut filter: Filter, format: Format, stream: impl Write) -> Outcome<u64> {
    let mut sink = Sink::begin(format, stream)?;
    let mut count = 0;
    loop {
        let entries = source.oldest(&filter).await?;
        let Some(last) = entries.last() else { break };
        filter.after_id = Some(last.id);
        count += entries.len() as u64;
        for entry in &entries {
            sink.write(entry)?;
        }
    }
    sink.end()?;
    Ok(count)
}

enum Sink<W: Write> {
    Lines(W),
    Table(Box<csv::Writer<W>>),
}

impl<W: Write> Sink<W> {
    fn begin(format: Format, stream: W) -> Outcome<Self> {
        if format == Format::Jsonl {
            return Ok(Self::Lines(stream));
        }
        let mut table = csv::Writer::from_writer(stream);
        let header = [
            "id",
            "created_at",
            "event_type",
            "severity",
            "actor",
            "subject",
            "rule",
            "cycle_id",
            "payload",
            "prev_hash",
            "hash",
        ];
        table.write_record(header).map_err(csv_failed)?;
        Ok(Self::Table(Box::new(table)))
    }

    fn write(&mut self, entry: &StoredEntry) -> Outcome {
        match self {
            Self::Lines(stream) => Ok(writeln!(stream, "{}", line(entry)?)?),
            Self::Table(table) => {
                let cells = [
                    entry.id.to_string(),
                    entry.created_at.to_string(),
                    guarded(&entry.event_type),
                    guarded(&entry.severity),
                    guarded(&entry.actor),
                    guarded(entry.subject.as_deref().unwrap_or_default()),
                    guarded(entry.rule.as_deref().unwrap_or_default()),
                    entry.cycle_id.map(|id| id.to_string()).unwrap_or_default(),
                    guarded(&entry.payload),
                    entry.prev_hash.clone(),
                    entry.hash.clone(),
                ];
                table.write_record(cells).map_err(csv_failed)
            }
        }
    }

    fn end(self) -> Outcome {
        match self {
            Self::Lines(mut stream) => Ok(stream.flush()?),
            Self::Table(mut table) => Ok(table.flush()?),
        }
    }
}

fn csv_failed(error: csv::Error) -> Failure {
    match error.into_kind() {
        csv::ErrorKind::Io(cause) => cause.into(),
        other => Failure::failed(format!("the CSV could not be written: {other:?}")),
    }
}

/// A spreadsheet runs a cell that begins like a formula; an apostrophe before it makes it text.
fn guarded(cell: &str) -> String {
    match cell.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n') => format!("'{cell}"),
        _ => cell.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(subject: &str, payload: &str) -> StoredEntry {
        StoredEntry {
            id: 1,
            cycle_id: None,
            event_type: "orchestrator.enabled".to_owned(),
            severity: "info".to_owned(),
            actor: "operator:=cmd()".to_owned(),
            subject: Some(subject.to_owned()),
            rule: None,
            payload: payload.to_owned(),
            created_at: "2026-11-20T18:30:00Z".parse().expect("a time"),
            prev_hash: String::new(),
            hash: "ab".to_owned(),
        }
    }

    fn written(format: Format, entry: &StoredEntry) -> String {
        let mut bytes = Vec::new();
        let mut sink = Sink::begin(format, &mut bytes).expect("a sink");
        sink.write(entry).expect("written");
        sink.end().expect("flushed");
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn csv_guards_formulas_and_quotes_what_csv_would_break_at() {
        let text = written(Format::Csv, &entry("=HYPERLINK(\"x\")", "{\"a\":\"1,2\"}"));
        let mut lines = text.lines();
        assert!(lines.next().expect("a header").starts_with("id,created_at,event_type,"));
        let row = lines.next().expect("a row");
        assert!(row.contains("\"'=HYPERLINK(\"\"x\"\")\""), "{row}");
        assert!(row.contains("\"{\"\"a\"\":\"\"1,2\"\"}\""), "{row}");
        for begins in ["+1", "-1", "@x", "\tx", "\rx"] {
            assert_eq!(guarded(begins), format!("'{begins}"));
        }
        assert_eq!(guarded("a=1"), "a=1");
    }

    #[test]
    fn json_lines_keep_the_payload_as_it_was_hashed() {
        let text = written(Format::Jsonl, &entry("clip:1", "{\"b\": 1.0,\"a\":2}"));
        assert!(text.contains("\"payload\":{\"b\": 1.0,\"a\":2}"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
