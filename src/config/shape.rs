//! Which keys there are and what each takes, drawn from the defaults, so that file and environment are read by one map.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Config, Platform, Token};

/// What may stand at one place of the configuration.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    /// Known keys.
    Fields(BTreeMap<String, Shape>),
    /// Keys that the operator chooses, all of one shape.
    Named(Box<Shape>),
    /// A list, all of one shape.
    List(Box<Shape>),
    /// A value.
    Leaf(Kind),
}

/// The kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Switch,
    Whole,
    Number,
    Text,
}

impl Shape {
    /// The shape of the whole configuration.
    pub(super) fn of_config() -> Self {
        Self::of(&defaults(), "")
    }

    /// Three places are open and cannot be seen in the defaults: platforms and budgets by name, and the tokens.
    fn of(value: &Value, path: &str) -> Self {
        match (path, value) {
            ("publishing.platforms", _) => {
                let platform = tree(&Platform::between("00:00", "24:00"));
                Self::Named(Box::new(Self::of(&platform, "")))
            }
            ("governors.budgets", _) => Self::Named(Box::new(Self::Leaf(Kind::Whole))),
            ("auth.tokens", _) => {
                let text = || Self::Leaf(Kind::Text);
                let fields = Token::FIELDS.iter().map(|name| ((*name).to_owned(), text()));
                Self::List(Box::new(Self::Fields(fields.collect())))
            }
            (_, Value::Object(fields)) => Self::Fields(
                fields.iter().map(|(name, value)| (name.clone(), Self::of(value, &join(path, name)))).collect(),
            ),
            (_, Value::Bool(_)) => Self::Leaf(Kind::Switch),
            (_, Value::Number(number)) if number.is_f64() => Self::Leaf(Kind::Number),
            (_, Value::Number(_)) => Self::Leaf(Kind::Whole),
            _ => Self::Leaf(Kind::Text),
        }
    }

    /// Every key that has a name of its own, as `publishing.sandbox.refuse`.
    pub(super) fn keys(&self) -> Vec<String> {
        fn walk(shape: &Shape, path: &str, keys: &mut Vec<String>) {
            match shape {
                Shape::Fields(fields) => fields.iter().for_each(|(name, shape)| walk(shape, &join(path, name), keys)),
                _ => keys.push(path.to_owned()),
            }
        }
        let mut keys = Vec::new();
        walk(self, "", &mut keys);
        keys
    }
}

impl Kind {
    /// Reads `text`, as the environment and the flags give it.
    pub(super) fn read(self, text: &str) -> Option<Value> {
        let text = text.trim();
        match self {
            Self::Switch => switch(text).map(Value::Bool),
            Self::Whole => text.parse::<u64>().map(Value::from).or_else(|_| text.parse::<i64>().map(Value::from)).ok(),
            Self::Number => text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number),
            Self::Text => Some(Value::String(text.to_owned())),
        }
    }

    /// Takes a file's value as this kind: a number is also a text, and `"yes"` is also a switch.
    pub(super) fn take(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (Self::Text, Value::String(_)) | (Self::Switch, Value::Bool(_)) => Some(value.clone()),
            (Self::Text, Value::Number(number)) => Some(Value::String(number.to_string())),
            (Self::Whole, Value::Number(number)) if !number.is_f64() => Some(value.clone()),
            (Self::Number, Value::Number(_)) => Some(value.clone()),
            (_, Value::String(text)) => self.read(text),
            _ => None,
        }
    }

    /// What is taken, in words.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Switch => "true or false (1, 0, yes and no are taken too)",
            Self::Whole => "a whole number",
            Self::Number => "a number",
            Self::Text => "a text",
        }
    }
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Some(true),
        "false" | "0" | "no" => Some(false),
        _ => None,
    }
}

/// The defaults as a tree, secrets empty.
pub(super) fn defaults() -> Value {
    let mut tree = tree(&Config::default());
    // Serialising hides secrets; the default is none.
    for secret in ["/publishing/webhook/secret", "/secret_key", "/fleet/agent_token", "/storage/backends"] {
        if let Some(place) = tree.pointer_mut(secret) {
            *place = Value::String(String::new());
        }
    }
    tree
}

fn tree<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_else(|_| Value::Object(Map::new()))
}

/// `publishing` and `sandbox` as `publishing.sandbox`.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The candidate that `name` was probably meant to be, if one is near enough.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&name, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

/// `; did you mean …?`, or nothing.
pub(super) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map(|candidate| format!("; did you mean `{candidate}`?")).unwrap_or_default()
}
