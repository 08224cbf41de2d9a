//! Which fields a snapshot has, so that a misspelt one is found at load, also where no evaluation comes by.

use std::collections::BTreeMap;

use serde_json::Value;

use super::error::hint;

/// What can be said of a value before it is there.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    /// Named fields, and nothing beside them.
    Map(BTreeMap<String, Shape>),
    /// Items of one shape.
    List(Box<Shape>),
    /// A text, number, truth value or nothing.
    Plain,
    /// Nothing can be said.
    Any,
}

/// Properties that the engine gives to lists and plain values.
const OF_LISTS: [&str; 2] = ["len", "is_empty"];
const OF_PLAIN: [&str; 13] = [
    "len", "is_empty", "chars", "bytes", "is_zero", "is_odd", "is_even", "is_nan", "floor", "ceiling", "round", "int",
    "fraction",
];

impl Shape {
    /// The shape of an example.
    pub(super) fn of(example: &Value) -> Self {
        match example {
            Value::Object(fields) => {
                Self::Map(fields.iter().map(|(name, value)| (name.clone(), Self::of(value))).collect())
            }
            Value::Array(items) => Self::List(Box::new(items.first().map_or(Self::Any, Self::of))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Self::Plain,
        }
    }

    /// The field `name` of a value that the rule calls `path`, or what is wrong with it.
    pub(super) fn field(&self, path: &str, name: &str) -> Result<Self, String> {
        let known: Vec<&str> = match self {
            Self::Any => return Ok(Self::Any),
            Self::Map(fields) => match fields.get(name) {
                Some(shape) => return Ok(shape.clone()),
                None => fields.keys().map(String::as_str).collect(),
            },
            Self::List(_) => OF_LISTS.to_vec(),
            Self::Plain => OF_PLAIN.to_vec(),
        };
        if !matches!(self, Self::Map(_)) && known.contains(&name) {
            return Ok(Self::Plain);
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        let near = hint(&prefix, name, known);
        Err(format!("unknown field {prefix}{name}{near}"))
    }

    /// The fields of a map.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let fields = match self {
            Self::Map(fields) => Some(fields.keys().map(String::as_str)),
            Self::List(_) | Self::Plain | Self::Any => None,
        };
        fields.into_iter().flatten()
    }

    /// An item of a list.
    pub(super) fn item(&self) -> Self {
        match self {
            Self::List(item) => (**item).clone(),
            Self::Map(_) | Self::Plain | Self::Any => Self::Any,
        }
    }
}
