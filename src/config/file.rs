//! A configuration file, read into one tree whatever its format.

use std::path::Path;

use serde_json::{Map, Value};

/// A larger file is not a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads a YAML or TOML file as one tree; the error is what is wrong, without the file's name.
pub(super) fn read_file(path: &Path) -> Result<Value, String> {
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("yaml" | "yml") => config::FileFormat::Yaml,
        Some("toml") => config::FileFormat::Toml,
        _ => return Err("the name must end in .yaml, .yml or .toml".to_owned()),
    };
    let size = std::fs::metadata(path).map_err(|cause| format!("cannot be read ({}): {cause}", path.display()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("has {size} bytes; a configuration has at most {MAX_FILE_BYTES}"));
    }
    let text = std::fs::read_to_string(path).map_err(|cause| format!("cannot be read: {cause}"))?;
    parse(&text, format)
}

fn parse(text: &str, format: config::FileFormat) -> Result<Value, String> {
    if text.lines().all(|line| matches!(line.trim().as_bytes().first(), None | Some(b'#'))) {
        return Ok(Value::Object(Map::new())); // an empty file sets nothing
    }
    config::Config::builder()
        .add_source(config::File::from_str(text, format))
        .build()
        .and_then(config::Config::try_deserialize::<Value>)
        .map_err(|cause| format!("cannot be read: {cause}"))
}
