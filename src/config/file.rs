//! A configuration file, read into one tree whatever its format.

use std::path::Path;

use serde_json::{Map, Value};

/// A larger file is not a configuration.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// Brackets inside of brackets, and parts of a dotted key; the deepest key has four. Parsers nest their calls for each.
const MAX_DEPTH: usize = 32;
/// Aliases of a YAML file: an alias of an alias of a list makes gigabytes of a few lines.
const MAX_ALIASES: usize = 10;

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
    bounded(text, format)?;
    config::Config::builder()
        .add_source(config::File::from_str(text, format))
        .build()
        .and_then(config::Config::try_deserialize::<Value>)
        .map_err(|cause| format!("cannot be read: {}", without_source(&cause.to_string())))
}

/// A parser's words without the lines of the file that it draws beneath them (`3 | secret = …`): they may hold secrets.
fn without_source(words: &str) -> String {
    let drawn = |line: &str| {
        line.trim_start().trim_start_matches(|letter: char| letter.is_ascii_digit()).trim_start().starts_with('|')
    };
    let lines: Vec<&str> = words.lines().collect();
    let told = match (lines.iter().position(|line| drawn(line)), lines.iter().rposition(|line| drawn(line))) {
        (Some(first), Some(last)) => [&lines[..first], &lines[last + 1..]].concat(),
        _ => lines,
    };
    told.into_iter().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(": ")
}

/// What the parsers would need too long or too much for; looked for in the text, before they see it.
fn bounded(text: &str, format: config::FileFormat) -> Result<(), String> {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    for letter in text.bytes() {
        match letter {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    let leading = |line: &str| line.split_whitespace().take_while(|word| matches!(*word, "-" | "?")).count();
    let parts = |line: &str| line.split('=').next().unwrap_or_default().matches('.').count();
    let nested = text.lines().map(|line| leading(line).max(parts(line))).max().unwrap_or(0);
    if deepest.max(nested) > MAX_DEPTH {
        return Err(format!("nests more than {MAX_DEPTH} deep"));
    }
    let begins = |before: Option<char>| before.is_none_or(|before| before.is_whitespace() || "[{,:-".contains(before));
    let aliases = text
        .match_indices('*')
        .filter(|(at, _)| begins(text[..*at].chars().next_back()) && text[at + 1..].starts_with(char::is_alphanumeric));
    if format == config::FileFormat::Yaml && aliases.count() > MAX_ALIASES {
        return Err(format!("has more than {MAX_ALIASES} aliases (`*name`)"));
    }
    Ok(())
}
