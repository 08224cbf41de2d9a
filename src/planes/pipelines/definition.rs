//! A pipeline as its author writes it, in YAML or JSON: inputs, steps, and what comes out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A pipeline: steps that wait for each other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What a run is given. Without any, a run takes what comes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Input>,
    /// The steps, in any order.
    pub steps: Vec<Step>,
    /// The run's result, an expression. Without one: the results of the steps that no other waits for, by id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// One input of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// What is taken.
    #[serde(rename = "type")]
    pub kind: InputType,
    /// Taken where the run gives none. An input without a default must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Whether it may be left out without a default; it is null then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The types of JSON, as JSON Schema names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputType {
    String,
    Number,
    Integer,
    Boolean,
    Array,
    Object,
    Any,
}

/// One step. Exactly one of `eval`, `http`, `sleep`, `copy`, `task` and `pipeline` says what it
/// does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name in expressions: a letter, then letters, digits, `_` and `-`.
    pub id: String,
    /// The steps that must be done before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// An expression: where it is false the step is skipped, and counts as done with the result null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// An expression that gives a list: the step runs once for each `item`, and its result is the list of results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_each: Option<String>,
    /// How many items run at once, 1 to 1000; 100 where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    /// How often a failed try is repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How long one try may take, e.g. `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Whether the run goes on when this step has failed; its result is null then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub continue_on_error: bool,
    /// How long it is expected to take, for the plan; past runs know better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Span>,
    /// An expression; what it gives is the step's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<String>,
    /// An HTTP call; its result is `status`, `headers` and `body`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// A durable pause such as `5m`, or an expression in `${ }` that gives seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<String>,
    /// A copy of what a storage back end holds; its result is `backend`, `key` and `size` of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copying>,
    /// A task on the queue; its result is the task's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// A run of another pipeline; its result is that run's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<Call>,
    /// What undoes the step when a later one fails the run; the newest done step is undone first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensate: Option<Compensation>,
}

/// What undoes a step. Exactly one of `eval`, `http` and `task`; `result` is the step's result there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compensation {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

/// An HTTP call. Texts may hold `${ expression }`. It carries an `Idempotency-Key`, the same for a try that is
/// repeated after a crash.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// `GET` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    pub url: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Sent as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
}

/// A copy within a storage back end, or from one to another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Copying {
    pub from: Stored,
    /// What is there already is replaced.
    pub to: Stored,
}

/// A place in a storage back end. Texts may hold `${ expression }`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// The id of the back end; the default one where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    pub key: String,
}

/// A task on the queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The task's id, which its workers know.
    pub id: String,
    /// The queue; `default` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// A larger one runs first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Texts may hold `${ expression }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
}

/// A run of another pipeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Call {
    pub id: String,
    /// Texts may hold `${ expression }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
}

/// How often a failed try is repeated, and the wait before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Tries in all, 1 to 100.
    pub attempts: u32,
    #[serde(default)]
    pub backoff: Backoff,
    /// The first wait; 1s where nothing is said.
    #[serde(default = "Retry::default_delay")]
    pub delay: Span,
    /// The longest wait; 1h where nothing is said.
    #[serde(default = "Retry::default_max_delay")]
    pub max_delay: Span,
}

/// How the wait grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    /// Always the same.
    Fixed,
    /// One delay more each time.
    Linear,
    /// Doubled each time, with jitter.
    #[default]
    Exponential,
}

impl Retry {
    fn default_delay() -> Span {
        Span(Duration::from_secs(1))
    }
    fn default_max_delay() -> Span {
        Span(Duration::from_secs(3600))
    }
    /// So many tries with the default waits.
    pub fn times(attempts: u32) -> Self {
        Self {
            attempts,
            backoff: Backoff::default(),
            delay: Self::default_delay(),
            max_delay: Self::default_max_delay(),
        }
    }
}

/// A length of time, written `1h 30m`, `5s` or `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map(Self)
            .map_err(|_| serde::de::Error::custom(format!("`{text}` is no length of time such as 30s, 5m or 1h 30m")))
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A length of time such as 250ms, 5s or 1h 30m",
            "examples": ["5s"]
        })
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Something wrong with a definition or an input, at a place such as `steps[2].needs[0]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Fault {
    /// Where; empty for the whole.
    pub path: String,
    /// What is wrong and what would be taken.
    pub message: String,
}

impl Fault {
    /// A fault at `path`.
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

impl Definition {
    /// Reads YAML or JSON (which is YAML). The fault names the field, or the line where the text is neither.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let value: Value = serde_saphyr::from_str(text).map_err(|cause| Fault::at("", cause.to_string()))?;
        Self::from_value(value)
    }

    /// The same from JSON that was read already.
    pub fn from_value(value: Value) -> Result<Self, Fault> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            Fault::at(if path == "." { String::new() } else { path }, error.into_inner().to_string())
        })
    }

    /// The published JSON Schema.
    pub fn schema() -> Value {
        schemars::schema_for!(Self).to_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_read_alike() {
        let yaml = "steps:\n  - id: a\n    eval: 1 + 1\n  - id: b\n    needs: [a]\n    sleep: 5s\n    timeout: 1m\n";
        let json = r#"{"steps":[{"id":"a","eval":"1 + 1"},{"id":"b","needs":["a"],"sleep":"5s","timeout":"1m"}]}"#;
        let read = Definition::parse(yaml).expect("YAML");
        assert_eq!(read, Definition::parse(json).expect("JSON"));
        let written = serde_json::to_value(&read).expect("JSON");
        assert_eq!(Definition::from_value(written).expect("our own"), read);
    }

    #[test]
    fn faults_name_the_place() {
        let cases = [
            ("steps: [{id: a, evl: '1'}]", "steps[0].evl", "unknown field `evl`"),
            ("steps: [{id: a, timeout: soon}]", "steps[0].timeout", "no length of time"),
            ("steps: [{id: a, needs: b}]", "steps[0].needs", "expected a sequence"),
            ("stepps: []", "stepps", "unknown field"),
            ("inputs: {n: {type: text}}\nsteps: []", "inputs.n.type", "unknown variant"),
            ("a: [", "", ""),
        ];
        for (text, path, message) in cases {
            let fault = Definition::parse(text).expect_err(text);
            assert_eq!(fault.path, path, "{text}: {fault}");
            assert!(fault.message.contains(message), "{text}: {fault}");
        }
    }

    #[test]
    fn the_schema_knows_every_field() {
        let schema = Definition::schema();
        assert_eq!(schema["properties"]["steps"]["type"], "array");
        assert!(schema["$defs"]["Step"]["properties"].get("continue_on_error").is_some());
        assert_eq!(schema["additionalProperties"], false);
    }
}
