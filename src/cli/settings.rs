//! `config show`: every key, its value, and where it was set.

use clap::Subcommand;
use serde_json::Value;

use super::Common;
use super::failure::{Failure, Outcome};
use super::output::Output;

#[derive(Debug, Subcommand)]
pub(super) enum Settings {
    /// Every key, its value and where it was set; secrets stay hidden.
    #[command(after_help = "Examples:\n  showrunner config show\n  PORT=9000 showrunner config show --json | jq .port")]
    Show,
}

impl Settings {
    pub(super) fn run(self, common: &Common, out: &mut Output) -> Outcome {
        let Self::Show = self;
        let loaded = common.loaded()?;
        let tree = serde_json::to_value(&loaded.config).map_err(|cause| Failure::failed(cause.to_string()))?;
        if out.wants_json() {
            return out.json(&tree);
        }
        let mut rows = Vec::new();
        collect(&tree, "", &mut rows);
        let rows = rows.into_iter().map(|(key, value)| {
            let origin = loaded.origins.iter().find(|(set, _)| **set == key || key.starts_with(&format!("{set}.")));
            let origin = origin.map_or("default", |(_, origin)| origin);
            vec![key, value, origin.to_owned()]
        });
        out.table(&["key", "value", "from"], rows)
    }
}

fn collect(value: &Value, path: &str, rows: &mut Vec<(String, String)>) {
    let inside = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| collect(value, &inside(name), rows)),
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(index, item)| collect(item, &inside(&index.to_string()), rows));
        }
        Value::Array(_) | Value::Null => rows.push((path.to_owned(), "–".to_owned())),
        Value::String(text) => rows.push((path.to_owned(), text.clone())),
        other => rows.push((path.to_owned(), other.to_string())),
    }
}
