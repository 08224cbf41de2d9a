//! Reading the configuration: file < environment < flags, with unknown keys and impossible values refused, all of
//! them at once and each with its place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Config;
use super::fault::{ConfigError, Fault};
use super::file::read_file;
use super::shape::{Kind, Shape, defaults, did_you_mean, join};

/// The variables that other documents name, and the keys that they set.
const NAMED_VARIABLES: [(&str, &str); 22] = [
    ("AGENT_TOKEN", "fleet.agent_token"),
    ("DATABASE_URL", "database_url"),
    ("DEFAULT_STORAGE_BACKEND_ID", "storage.default_backend"),
    ("DLQ_RETENTION_DAYS", "retention.dead_letters_days"),
    ("ENGINES", "pipelines.engines"),
    ("HEARTBEAT_INTERVAL_MS", "fleet.heartbeat_interval_ms"),
    ("HEARTBEAT_TIMEOUT_MS", "fleet.heartbeat_timeout_ms"),
    ("HOST", "host"),
    ("IDEMPOTENCY_TTL_SECONDS", "queue.idempotency_ttl_seconds"),
    ("KILL_AFTER_MS", "fleet.kill_after_ms"),
    ("LOG_LEVEL", "log.level"),
    ("MAX_CONCURRENCY", "queue.max_concurrency"),
    ("MAX_RETRY_DELAY_MS", "queue.max_retry_delay_ms"),
    ("MODE", "mode"),
    ("ORCHESTRATOR_ENABLED", "orchestrator.enabled"),
    ("ORCHESTRATOR_INTERVAL_SECONDS", "orchestrator.interval_seconds"),
    ("PIPEWEAVE_SECRET_KEY", "secret_key"),
    ("POLL_INTERVAL_MS", "queue.poll_interval_ms"),
    ("PORT", "port"),
    ("RULES_DIR", "rules_dir"),
    ("STOP_GRACE_MS", "fleet.stop_grace_ms"),
    ("STORAGE_BACKENDS", "storage.backends"),
];

/// Variables of ours that set no key: where the file is, and what the command line talks to.
const OTHER_VARIABLES: [&str; 3] = ["SHOWRUNNER_CONFIG", "SHOWRUNNER_TOKEN", "SHOWRUNNER_URL"];

/// Files that are read from the working directory when none is named.
const FILES: [&str; 3] = ["showrunner.yaml", "showrunner.yml", "showrunner.toml"];

/// What the command line sets over file and environment.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// The file to read (`--config`).
    pub file: Option<PathBuf>,
    /// Flag, key and value, e.g. `("--port", "port", "9000")`.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

/// A configuration, and where each key that is not a default came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// Key to origin, e.g. `port` to `PORT`.
    pub origins: BTreeMap<String, String>,
}

/// The file in the user's data folder, or in the working directory where there is no home.
pub(super) fn default_database_url() -> String {
    format!("sqlite://{}", data_folder().join("showrunner.db").display())
}

/// The user's data folder; empty where there is no home.
pub(super) fn data_folder() -> PathBuf {
    let folder = directories::ProjectDirs::from("", "", "showrunner").map(|dirs| dirs.data_dir().to_path_buf());
    folder.unwrap_or_default()
}

impl Config {
    /// Reads file, environment and flags of this process. `action_kinds` are the names that `governors.budgets` takes.
    pub fn load(overrides: &Overrides, action_kinds: &[&str]) -> Result<Self, ConfigError> {
        Loaded::read(overrides, std::env::vars_os(), Path::new("."), action_kinds).map(|loaded| loaded.config)
    }
}

impl Loaded {
    /// Reads from the given environment, looking for a file in `folder` when none is named.
    pub fn read(
        overrides: &Overrides,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        folder: &Path,
        action_kinds: &[&str],
    ) -> Result<Self, ConfigError> {
        let mut reading = Reading::new();
        let variables = reading.variables(environment);
        if let Some(path) = file_to_read(overrides, &variables, folder) {
            reading.file(&path);
        }
        reading.environment(&variables);
        for (flag, key, text) in &overrides.flags {
            reading.set(flag, key, text);
        }
        reading.finish(action_kinds)
    }
}

fn file_to_read(overrides: &Overrides, variables: &BTreeMap<String, String>, folder: &Path) -> Option<PathBuf> {
    overrides
        .file
        .clone()
        .or_else(|| variables.get("SHOWRUNNER_CONFIG").map(PathBuf::from))
        .or_else(|| FILES.iter().map(|name| folder.join(name)).find(|path| path.is_file()))
}

/// The configuration while it is put together.
struct Reading {
    shape: Shape,
    tree: Value,
    origins: BTreeMap<String, String>,
    faults: Vec<Fault>,
}

impl Reading {
    fn new() -> Self {
        Self { shape: Shape::of_config(), tree: defaults(), origins: BTreeMap::new(), faults: Vec::new() }
    }

    /// The variables that concern us and are not empty.
    fn variables(&mut self, environment: impl IntoIterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        for (name, value) in environment {
            let Some(name) = name.to_str() else { continue };
            if !name.starts_with("SHOWRUNNER_") && !NAMED_VARIABLES.iter().any(|(known, _)| *known == name) {
                continue;
            }
            match value.to_str() {
                Some(value) if value.trim().is_empty() => {}
                Some(value) => _ = variables.insert(name.to_owned(), value.to_owned()),
                None => self.faults.push(Fault::at("", "is not UTF-8 text").from(name)),
            }
        }
        variables
    }

    fn file(&mut self, path: &Path) {
        let origin = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into());
        match read_file(path) {
            Ok(Value::Object(fields)) => {
                self.only_named_platforms(&fields);
                let shape = self.shape.clone();
                for (name, value) in fields {
                    self.merge(&shape, "", &name, value, &origin);
                }
            }
            Ok(_) => self.faults.push(Fault::at("", "is not a list of keys and values").from(&origin)),
            Err(message) => self.faults.push(Fault::at("", message).from(&origin)),
        }
    }

    /// A file that names platforms names all of them; one that is built in keeps what the file leaves out.
    fn only_named_platforms(&mut self, fields: &Map<String, Value>) {
        let named = fields.get("publishing").and_then(|publishing| publishing.get("platforms"));
        let built_in = self.tree.pointer_mut("/publishing/platforms");
        if let (Some(Value::Object(named)), Some(Value::Object(built_in))) = (named, built_in) {
            built_in.retain(|name, _| named.contains_key(name));
        }
    }

    /// Takes one key of a file, in the place whose shape is `within`.
    fn merge(&mut self, within: &Shape, path: &str, name: &str, value: Value, origin: &str) {
        let key = join(path, name);
        let shape = match within {
            Shape::Fields(fields) => match fields.get(name) {
                Some(shape) => shape,
                None => {
                    let hint = did_you_mean(name, fields.keys().map(String::as_str));
                    self.faults.push(Fault::at(key, format!("there is no such key{hint}")).from(origin));
                    return;
                }
            },
            Shape::Named(_) if !is_name(name) => {
                let message = "a name has 1 to 100 letters, digits, _ and -";
                self.faults.push(Fault::at(path, format!("`{}`: {message}", name.escape_debug())).from(origin));
                return;
            }
            Shape::Named(shape) | Shape::List(shape) => shape,
            Shape::Leaf(_) => return,
        };
        match (shape, value) {
            // A key without a value is not set; but not-a-number reads as null too, and is a fault.
            (shape, Value::Null) if !matches!(shape, Shape::Leaf(Kind::Number)) => {}
            (Shape::Fields(_) | Shape::Named(_), Value::Object(fields)) => {
                self.put(&key, None);
                if matches!(within, Shape::Named(_)) {
                    // What it lacks has no place of its own.
                    self.origins.insert(key.clone(), origin.to_owned());
                }
                for (name, value) in fields {
                    self.merge(shape, &key, &name, value, origin);
                }
            }
            (Shape::List(_), Value::Array(items)) => {
                self.put(&key, Some(Value::Array(vec![Value::Object(Map::new()); items.len()])));
                self.origins.insert(key.clone(), origin.to_owned());
                for (index, item) in items.into_iter().enumerate() {
                    self.merge(shape, &key, &index.to_string(), item, origin);
                }
            }
            (Shape::Leaf(kind), value) => match kind.take(&value) {
                Some(value) => {
                    self.put(&key, Some(value));
                    self.origins.insert(key, origin.to_owned());
                }
                None => {
                    let message = format!("{} is not {}", shown(&key, &value), kind.expected());
                    self.faults.push(Fault::at(key, message).from(origin));
                }
            },
            (Shape::List(_), _) => self.faults.push(Fault::at(key, "takes a list").from(origin)),
            (_, _) => self.faults.push(Fault::at(key, "takes keys and values of its own").from(origin)),
        }
    }

    fn environment(&mut self, variables: &BTreeMap<String, String>) {
        for (name, key) in NAMED_VARIABLES {
            if let Some(text) = variables.get(name) {
                self.set(name, key, text);
            }
        }
        for (name, text) in variables {
            let Some(path) = name.strip_prefix("SHOWRUNNER_") else { continue };
            if OTHER_VARIABLES.contains(&name.as_str()) || path.starts_with("TEST_") {
                continue;
            }
            self.set(name, &path.to_lowercase().replace("__", "."), text);
        }
    }

    /// Sets `key` from a variable or flag.
    fn set(&mut self, origin: &str, key: &str, text: &str) {
        if key == "auth.tokens" {
            return self.set_tokens(origin, text);
        }
        let mut shape = &self.shape;
        for name in key.split('.') {
            let next = match shape {
                Shape::Fields(fields) => fields.get(name),
                Shape::Named(shape) if is_name(name) => Some(&**shape),
                Shape::Named(_) | Shape::List(_) | Shape::Leaf(_) => None,
            };
            let Some(next) = next else { return self.unknown(origin, key) };
            shape = next;
        }
        let Shape::Leaf(kind) = *shape else { return self.unknown(origin, key) };
        match kind.read(text) {
            Some(value) => {
                self.put(key, Some(value));
                self.origins.insert(key.to_owned(), origin.to_owned());
            }
            None => {
                let value = shown(key, &Value::String(text.to_owned()));
                self.faults.push(Fault::at("", format!("{value} is not {}", kind.expected())).from(origin));
            }
        }
    }

    /// `name:role:token,name:role:token`; a token may hold colons, a name may not.
    fn set_tokens(&mut self, origin: &str, text: &str) {
        let mut tokens = Vec::new();
        for (index, part) in text.split(',').enumerate() {
            match part.trim().splitn(3, ':').collect::<Vec<_>>()[..] {
                [name, role, token] => tokens.push(serde_json::json!({ "name": name, "role": role, "token": token })),
                _ => {
                    let message = format!("token {} is not written name:role:token", index + 1);
                    return self.faults.push(Fault::at("auth.tokens", message).from(origin));
                }
            }
        }
        self.put("auth.tokens", Some(Value::Array(tokens)));
        self.origins.insert("auth.tokens".to_owned(), origin.to_owned());
    }

    fn unknown(&mut self, origin: &str, key: &str) {
        let variables: Vec<String> = self
            .shape
            .keys()
            .iter()
            .map(|key| format!("SHOWRUNNER_{}", key.to_uppercase().replace('.', "__")))
            .chain(OTHER_VARIABLES.map(str::to_owned))
            .collect();
        let hint = did_you_mean(origin, variables.iter().map(String::as_str));
        let message = format!("sets no key (`{key}` is not one){hint}");
        self.faults.push(Fault::at("", message).from(origin));
    }

    /// Puts a value at `key`, or makes an empty place there.
    fn put(&mut self, key: &str, value: Option<Value>) {
        let mut place = &mut self.tree;
        for name in key.split('.') {
            place = match place {
                Value::Array(items) => match name.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                    Some(item) => item,
                    None => return,
                },
                Value::Object(fields) => fields.entry(name).or_insert(Value::Null),
                other => {
                    *other = Value::Object(Map::new());
                    match other {
                        Value::Object(fields) => fields.entry(name).or_insert(Value::Null),
                        _ => return,
                    }
                }
            };
        }
        match value {
            Some(value) => *place = value,
            None if place.is_object() => {}
            None => *place = Value::Object(Map::new()),
        }
    }

    /// Types and checks the whole; each value that cannot be typed is reported and replaced, so that the rest is
    /// checked too.
    fn finish(mut self, action_kinds: &[&str]) -> Result<Loaded, ConfigError> {
        if self.tree["host"] == "localhost" {
            self.tree["host"] = Value::from("127.0.0.1");
        }
        let config = self.typed();
        if let Some(config) = &config {
            let places: Vec<String> = self.faults.iter().map(|fault| format!("{}.", fault.key)).collect();
            let found = config.check(action_kinds);
            // What was taken out because it could not be typed is not missed a second time.
            let missed = |fault: &Fault| places.iter().any(|place| place.starts_with(&format!("{}.", fault.key)));
            self.faults.extend(found.into_iter().filter(|fault| !missed(fault)));
        }
        for fault in &mut self.faults {
            if fault.origin.is_empty() {
                fault.origin = origin_of(&self.origins, &fault.key);
            }
        }
        match config {
            Some(config) if self.faults.is_empty() => Ok(Loaded { config, origins: self.origins }),
            _ => {
                self.faults.dedup();
                Err(ConfigError { faults: self.faults })
            }
        }
    }

    fn typed(&mut self) -> Option<Config> {
        let good = defaults();
        // Each turn replaces one value, so this ends with the values.
        for _ in 0..1_000 {
            let error = match serde_path_to_error::deserialize::<_, Config>(&self.tree) {
                Ok(config) => return Some(config),
                Err(error) => error,
            };
            let key = dotted(error.path());
            let message = error.inner().to_string();
            self.faults.push(Fault::at(key.clone(), reworded(&key, &message)));
            // What has no default (a platform, a token) leaves with its fault; its name is in the report.
            let pointer = format!("/{}", key.replace('.', "/"));
            match good.pointer(&pointer) {
                Some(value) => self.put(&key, Some(value.clone())),
                None => {
                    let parts: Vec<&str> = key.split('.').take(if key.starts_with("auth") { 2 } else { 3 }).collect();
                    let place = parts.join(".");
                    if place.starts_with("auth") {
                        self.put("auth.tokens", Some(Value::Array(Vec::new())));
                    } else if !remove(&mut self.tree, &place) {
                        return None;
                    }
                }
            }
        }
        None
    }
}

/// Where `key`, or the nearest place above it, was set.
fn origin_of(origins: &BTreeMap<String, String>, key: &str) -> String {
    let mut place = key;
    loop {
        let inside = format!("{place}.");
        if let Some(origin) = origins.get(place) {
            return origin.clone();
        }
        if let Some((_, origin)) = origins.iter().find(|(known, _)| known.starts_with(&inside)) {
            return origin.clone();
        }
        match place.rsplit_once('.') {
            Some((above, _)) => place = above,
            None => return String::new(),
        }
    }
}

fn remove(tree: &mut Value, key: &str) -> bool {
    let (above, name) = key.rsplit_once('.').unwrap_or(("", key));
    let pointer = if above.is_empty() { String::new() } else { format!("/{}", above.replace('.', "/")) };
    match tree.pointer_mut(&pointer) {
        Some(Value::Object(fields)) => fields.remove(name).is_some(),
        _ => false,
    }
}

fn dotted(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let parts: Vec<String> = path
        .iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect();
    parts.join(".")
}

/// serde's words, where ours are plainer.
fn reworded(key: &str, message: &str) -> String {
    if is_secret(key) {
        let expected = message.split_once(", expected ").map(|(_, expected)| format!("; expected {expected}"));
        return format!("the value cannot be taken{}", expected.unwrap_or_default());
    }
    match key {
        "port" => format!("{message}; a port is 0 to 65535"),
        "host" => format!("{message}; an IP address such as 127.0.0.1, ::1 or 0.0.0.0 is taken"),
        _ => message.to_owned(),
    }
}

/// What a platform or a budget may be called.
fn is_name(name: &str) -> bool {
    (1..=100).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// Whether a value may be a secret. A token's name and role are, too: whoever swaps two parts writes it there.
fn is_secret(key: &str) -> bool {
    const SECRETS: [&str; 3] = ["database_url", "secret_key", "storage.backends"];
    let may_hold_one = key.ends_with("secret") || key.ends_with("token") || key.ends_with("url");
    may_hold_one || key.starts_with("auth.") || SECRETS.contains(&key)
}

/// A value as it was written, unless it is a secret.
fn shown(key: &str, value: &Value) -> String {
    if is_secret(key) {
        return "the value".to_owned();
    }
    match value {
        Value::String(text) => format!("`{}`", text.escape_debug()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a set of keys".to_owned(),
        other => format!("`{other}`"),
    }
}

#[cfg(test)]
mod tests;
