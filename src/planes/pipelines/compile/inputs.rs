//! The inputs that a pipeline declares: checked, and filled in for a run.

use std::collections::BTreeMap;

use serde_json::Value;

use super::is_id;
use crate::planes::pipelines::definition::{Fault, Input, InputType};
use crate::planes::pipelines::expression::did_you_mean;

impl InputType {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::String => value.is_string(),
            Self::Number => value.is_number(),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Boolean => value.is_boolean(),
            Self::Array => value.is_array(),
            Self::Object => value.is_object(),
            Self::Any => true,
        }
    }
    fn expected(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Number => "a number",
            Self::Integer => "an integer",
            Self::Boolean => "true or false",
            Self::Array => "an array",
            Self::Object => "an object",
            Self::Any => "anything",
        }
    }
}

pub(super) fn check_inputs(inputs: &BTreeMap<String, Input>, faults: &mut Vec<Fault>) {
    for (name, input) in inputs {
        if !is_id(name) {
            faults.push(Fault::at(format!("inputs.{name}"), "is no name: a letter, then letters, digits, `_` and `-`"));
        }
        if input.default.as_ref().is_some_and(|default| !input.kind.fits(default)) {
            faults.push(Fault::at(format!("inputs.{name}.default"), format!("takes {}", input.kind.expected())));
        }
    }
}

pub(super) fn take_input(inputs: &BTreeMap<String, Input>, given: Value) -> Result<Value, Vec<Fault>> {
    let mut given = match given {
        Value::Object(fields) => fields,
        Value::Null => serde_json::Map::new(),
        _ => return Err(vec![Fault::at("", "the input is an object with named values")]),
    };
    if inputs.is_empty() {
        return Ok(Value::Object(given));
    }
    let mut faults = Vec::new();
    for name in given.keys().filter(|name| !inputs.contains_key(*name)) {
        let hint = did_you_mean(name, inputs.keys().map(String::as_str));
        faults.push(Fault::at(name, format!("there is no such input{hint}")));
    }
    for (name, input) in inputs {
        match (given.get(name), &input.default) {
            (Some(value), _) if input.kind.fits(value) || (input.optional && value.is_null()) => {}
            (Some(_), _) => faults.push(Fault::at(name, format!("takes {}", input.kind.expected()))),
            (None, Some(default)) => drop(given.insert(name.clone(), default.clone())),
            (None, None) if input.optional => drop(given.insert(name.clone(), Value::Null)),
            (None, None) => faults.push(Fault::at(name, format!("is required: {}", input.kind.expected()))),
        }
    }
    if faults.is_empty() { Ok(Value::Object(given)) } else { Err(faults) }
}
