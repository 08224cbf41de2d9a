//! Expressions and templates of a step, filled in for one of its tries.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::{CopyCall, Key, Request, Running};
use crate::planes::pipelines::compile::{Call, Copy, Pause};
use crate::planes::pipelines::expression::{Expression, Local, Template};

impl Running {
    /// The key under which a try goes out: the same after a crash, another for the next try.
    pub(super) fn key(&self, key: Key, attempt: i64) -> String {
        let step = &self.pipeline.steps[key.step].id;
        let (kind, item) = (if key.undo { "undo" } else { "step" }, key.item);
        format!("run-{}-{}-{kind}-{step}-{item}-{attempt}", self.id, self.retries)
    }

    pub(super) fn with_item<T>(&self, key: Key, evaluate: impl FnOnce(&Self, Local<'_>) -> T) -> T {
        let progress = &self.progress[key.step];
        let item = progress.fan_out.as_ref().and_then(|fan_out| fan_out.list.get(usize::try_from(key.item).ok()?));
        let result = progress.outcome.as_ref().filter(|_| key.undo).map(|(_, result)| result);
        evaluate(self, Local { item: item.map(|item| (key.item, item)), result })
    }

    pub(super) fn truth(&self, when: &Expression, local: Local<'_>) -> Result<bool, String> {
        match when.value(self, local)? {
            Value::Bool(truth) => Ok(truth),
            other => Err(format!("gave {}, not true or false", kind_of(&other))),
        }
    }

    pub(super) fn request(&self, call: &Call, local: Local<'_>, key: String) -> Result<Request, String> {
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let mut headers = BTreeMap::new();
        for (name, template) in &call.headers {
            headers.insert(name.clone(), text(template.value(self, local)?));
        }
        let body = call.body.as_ref().map(|body| body.value(self, local)).transpose()?;
        let url = text(call.url.value(self, local)?);
        Ok(Request { method: call.method.clone(), url, headers, body, timeout: call.timeout, key })
    }

    pub(super) fn copy(&self, copy: &Copy, local: Local<'_>) -> Result<CopyCall, String> {
        let text = |template: &Template| match template.value(self, local)? {
            Value::String(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(format!("copy: {} is no text", kind_of(&other))),
        };
        let place = |(backend, key): &(Option<Template>, Template)| {
            Ok::<_, String>((backend.as_ref().map(text).transpose()?, text(key)?))
        };
        Ok(CopyCall { from: place(&copy.from)?, to: place(&copy.to)?, timeout: copy.timeout })
    }

    pub(super) fn pause(&self, pause: &Pause, local: Local<'_>) -> Result<Duration, String> {
        let template = match pause {
            Pause::For(duration) => return Ok(*duration),
            Pause::Worked(template) => template,
        };
        let value = template.value(self, local)?;
        let duration = match &value {
            Value::Number(seconds) => seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            Value::String(text) => humantime::parse_duration(text).ok(),
            _ => None,
        };
        duration.ok_or_else(|| format!("sleep: {value} is neither seconds nor a length of time"))
    }
}

pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}
