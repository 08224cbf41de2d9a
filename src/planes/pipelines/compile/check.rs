//! Looks through a definition step by step: whatever is wrong is noted with its place.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::Value;

use super::{Action, Call, Copy, MAX_ID, MAX_STEPS, Pause, Ready, Undo, is_id};
use crate::planes::pipelines::definition::{Copying, Definition, Fault, Http, InputType, Retry, Step, Stored, Task};
use crate::planes::pipelines::expression::{Expression, Facts, Local, Template, did_you_mean, is_reserved};
use crate::planes::pipelines::graph::Graph;
use crate::storage::key_of;

/// Items that run at once where the step says nothing.
const PARALLEL: u32 = 100;

/// How long a try may take where the step says nothing: a call, and a task or another run.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The same of a copy: a film on a slow line.
const COPY_TIMEOUT: Duration = Duration::from_secs(3600);

/// Methods that a call may use.
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];

/// The steps whose results an expression may use: those behind which a step stands, or all of them.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) graph: &'a Graph,
    pub(super) positions: &'a HashMap<String, usize>,
    pub(super) from: Option<usize>,
    /// And the step's own: what undoes it may use it.
    pub(super) itself: bool,
}

impl Seen<'_> {
    fn contains(&self, name: &str) -> bool {
        let Some(wanted) = self.positions.get(name) else { return false };
        let Some(from) = self.from else { return true };
        (self.itself && *wanted == from) || self.graph.stands_behind(from, *wanted)
    }
}

/// What is being looked through, and what was found.
pub(super) struct Compiler<'a> {
    pub(super) definition: &'a Definition,
    pub(super) faults: Vec<Fault>,
}

impl Compiler<'_> {
    pub(super) fn fault(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault::at(path, message));
    }

    pub(super) fn ids(&mut self) -> HashMap<String, usize> {
        let mut positions = HashMap::new();
        if self.definition.steps.is_empty() || self.definition.steps.len() > MAX_STEPS {
            self.fault("steps", format!("takes 1 to {MAX_STEPS} steps"));
        }
        for (at, step) in self.definition.steps.iter().enumerate() {
            let path = format!("steps[{at}].id");
            if !is_id(&step.id) {
                self.fault(
                    &path,
                    format!("`{}` is no id: a letter, then letters, digits, `_` and `-`", step.id.escape_debug()),
                );
            } else if is_reserved(&step.id) {
                self.fault(&path, format!("`{}` means something else in expressions; take another id", step.id));
            }
            if let Some(other) = positions.insert(step.id.clone(), at) {
                self.fault(&path, format!("`{}` is the id of steps[{other}] already", step.id));
            }
        }
        positions
    }

    pub(super) fn graph(&mut self, positions: &HashMap<String, usize>) -> Graph {
        let mut needs = Vec::with_capacity(self.definition.steps.len());
        for (at, step) in self.definition.steps.iter().enumerate() {
            let mut mine: Vec<usize> = Vec::with_capacity(step.needs.len());
            for (index, need) in step.needs.iter().enumerate() {
                let path = format!("steps[{at}].needs[{index}]");
                match positions.get(need) {
                    None => {
                        let hint = did_you_mean(need, positions.keys().map(String::as_str));
                        self.fault(path, format!("there is no step `{need}`{hint}"));
                    }
                    Some(other) if mine.contains(other) => self.fault(path, format!("`{need}` stands there twice")),
                    Some(other) => mine.push(*other),
                }
            }
            needs.push(mine);
        }
        Graph { needs }
    }

    pub(super) fn step(&mut self, path: &str, step: &Step, seen: Seen<'_>, dependents: Vec<usize>) -> Option<Ready> {
        let when = step.when.as_ref().and_then(|source| self.typed(&format!("{path}.when"), source, seen, Kind::Truth));
        let for_each =
            step.for_each.as_ref().and_then(|source| self.typed(&format!("{path}.for_each"), source, seen, Kind::List));
        if step.parallel.is_some_and(|parallel| !(1..=1000).contains(&parallel)) {
            self.fault(format!("{path}.parallel"), "takes 1 to 1000");
        }
        if step.parallel.is_some() && step.for_each.is_none() {
            self.fault(format!("{path}.parallel"), "only a step with `for_each` has items to run at once");
        }
        self.retry(path, step.retry.as_ref());
        let timeout = step.timeout.map(|span| span.0);
        let named = [
            ("eval", step.eval.is_some()),
            ("http", step.http.is_some()),
            ("sleep", step.sleep.is_some()),
            ("copy", step.copy.is_some()),
            ("task", step.task.is_some()),
            ("pipeline", step.pipeline.is_some()),
        ];
        let action = self.action(path, &named, |this| {
            if let Some(source) = &step.eval {
                return this.expression(&format!("{path}.eval"), source, seen).map(Action::Eval);
            }
            if let Some(http) = &step.http {
                return this.http(&format!("{path}.http"), http, timeout, seen).map(Action::Http);
            }
            if let Some(text) = &step.sleep {
                return this.pause(&format!("{path}.sleep"), text, seen).map(Action::Sleep);
            }
            if let Some(copy) = &step.copy {
                return this
                    .copy(&format!("{path}.copy"), copy, timeout, seen)
                    .map(|copy| Action::Copy(Box::new(copy)));
            }
            if let Some(task) = &step.task {
                return this.task(&format!("{path}.task"), task, seen);
            }
            let call = step.pipeline.as_ref()?;
            let path = format!("{path}.pipeline");
            if !is_id(&call.id) {
                this.fault(format!("{path}.id"), format!("`{}` is no id of a pipeline", call.id.escape_debug()));
            }
            let input = this.template(&format!("{path}.input"), call.input.as_ref(), seen)?;
            Some(Action::Pipeline { id: call.id.clone(), input })
        });
        let undo = step.compensate.as_ref().map(|undo| {
            let path = format!("{path}.compensate");
            let seen = Seen { itself: true, ..seen };
            self.retry(&path, undo.retry.as_ref());
            let timeout = undo.timeout.map(|span| span.0);
            let named = [("eval", undo.eval.is_some()), ("http", undo.http.is_some()), ("task", undo.task.is_some())];
            let action = self.action(&path, &named, |this| {
                if let Some(source) = &undo.eval {
                    return this.expression(&format!("{path}.eval"), source, seen).map(Action::Eval);
                }
                if let Some(http) = &undo.http {
                    return this.http(&format!("{path}.http"), http, timeout, seen).map(Action::Http);
                }
                this.task(&format!("{path}.task"), undo.task.as_ref()?, seen)
            });
            let retry = undo.retry.clone().unwrap_or_else(|| Retry::times(1));
            action.map(|action| Undo { action, retry, timeout })
        });
        Some(Ready {
            id: step.id.clone(),
            dependents,
            when,
            for_each,
            parallel: step.parallel.unwrap_or(PARALLEL) as usize,
            retry: step.retry.clone().unwrap_or_else(|| Retry::times(1)),
            timeout,
            continue_on_error: step.continue_on_error,
            action: action?,
            undo: undo.flatten(),
        })
    }

    /// Exactly one of the named must be there.
    fn action(
        &mut self,
        path: &str,
        named: &[(&str, bool)],
        read: impl FnOnce(&mut Self) -> Option<Action>,
    ) -> Option<Action> {
        let there: Vec<&str> = named.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
        if there.len() == 1 {
            return read(self);
        }
        let all = named.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let found = if there.is_empty() { "none".to_owned() } else { there.join(" and ") };
        self.fault(path, format!("takes exactly one of {all}; it has {found}"));
        None
    }

    fn retry(&mut self, path: &str, retry: Option<&Retry>) {
        if retry.is_some_and(|retry| !(1..=100).contains(&retry.attempts)) {
            self.fault(format!("{path}.retry.attempts"), "takes 1 to 100");
        }
    }

    fn http(&mut self, path: &str, http: &Http, timeout: Option<Duration>, seen: Seen<'_>) -> Option<Call> {
        let method = http.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
        if !METHODS.contains(&method.as_str()) {
            self.fault(format!("{path}.method"), format!("takes one of {}", METHODS.join(", ")));
        }
        let text = |text: &str| Value::String(text.to_owned());
        let url = self.template(&format!("{path}.url"), Some(&text(&http.url)), seen);
        if let Some(Template::Literal(Value::String(literal))) = &url
            && !reqwest::Url::parse(literal).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
        {
            self.fault(format!("{path}.url"), "takes a URL such as https://host/path");
        }
        let mut headers = BTreeMap::new();
        for (name, value) in &http.headers {
            let path = format!("{path}.headers.{name}");
            if reqwest::header::HeaderName::try_from(name).is_err() {
                self.fault(&path, "is no name of a header");
            }
            headers.insert(name.clone(), self.template(&path, Some(&text(value)), seen)?);
        }
        let body = match &http.body {
            Some(body) => Some(self.template(&format!("{path}.body"), Some(body), seen)?),
            None => None,
        };
        let method = reqwest::Method::try_from(method.as_str()).ok()?;
        Some(Call { method, url: url?, headers, body, timeout: timeout.unwrap_or(CALL_TIMEOUT) })
    }

    fn copy(&mut self, path: &str, copy: &Copying, timeout: Option<Duration>, seen: Seen<'_>) -> Option<Copy> {
        let mut place = |side: &str, stored: &Stored| {
            let text = |text: &String| Value::String(text.clone());
            let backend = match &stored.backend {
                Some(id) => Some(self.template(&format!("{path}.{side}.backend"), Some(&text(id)), seen)?),
                None => None,
            };
            let key = self.template(&format!("{path}.{side}.key"), Some(&text(&stored.key)), seen)?;
            if let Template::Literal(Value::String(literal)) = &key
                && let Err(bad) = key_of(literal)
            {
                self.fault(format!("{path}.{side}.key"), bad.to_string());
            }
            Some((backend, key))
        };
        let (from, to) = (place("from", &copy.from), place("to", &copy.to));
        Some(Copy { from: from?, to: to?, timeout: timeout.unwrap_or(COPY_TIMEOUT) })
    }

    fn pause(&mut self, path: &str, text: &str, seen: Seen<'_>) -> Option<Pause> {
        if text.contains("${") {
            return self.template(path, Some(&Value::String(text.to_owned())), seen).map(Pause::Worked);
        }
        match humantime::parse_duration(text) {
            Ok(duration) => Some(Pause::For(duration)),
            Err(_) => {
                self.fault(path, format!("`{text}` is no length of time such as 30s, nor an expression in ${{ }}"));
                None
            }
        }
    }

    fn task(&mut self, path: &str, task: &Task, seen: Seen<'_>) -> Option<Action> {
        for (field, text) in [("id", Some(&task.id)), ("queue", task.queue.as_ref())] {
            if text.is_some_and(|text| text.is_empty() || text.chars().count() > MAX_ID || text.contains('\0')) {
                self.fault(format!("{path}.{field}"), format!("takes 1 to {MAX_ID} characters"));
            }
        }
        if task.priority.is_some_and(|priority| !(-1000..=1000).contains(&priority)) {
            self.fault(format!("{path}.priority"), "takes -1000 to 1000");
        }
        let input = self.template(&format!("{path}.input"), task.input.as_ref(), seen)?;
        Some(Action::Task { task: task.clone(), input })
    }

    fn template(&mut self, path: &str, value: Option<&Value>, seen: Seen<'_>) -> Option<Template> {
        let Some(value) = value else { return Some(Template::Literal(Value::Object(serde_json::Map::new()))) };
        let mut found = Vec::new();
        match Template::read(value, &mut |expression, _| found.push(expression.clone())) {
            Ok(template) => {
                found.iter().for_each(|expression| self.names(path, expression, seen));
                Some(template)
            }
            Err((below, message)) => {
                self.fault(format!("{path}{below}"), message);
                None
            }
        }
    }

    pub(super) fn expression(&mut self, path: &str, source: &str, seen: Seen<'_>) -> Option<Expression> {
        match Expression::read(source) {
            Ok(expression) => {
                self.names(path, &expression, seen);
                Some(expression)
            }
            Err(message) => {
                self.fault(path, message);
                None
            }
        }
    }

    /// Looks up what an expression mentions.
    fn names(&mut self, path: &str, expression: &Expression, seen: Seen<'_>) {
        for name in expression.steps.names.union(&expression.status.names) {
            if seen.contains(name) {
                continue;
            }
            let message = match self.definition.steps.iter().any(|step| step.id == *name) {
                true => format!("mentions the step `{name}` without waiting for it; add it to `needs`"),
                // A method of the whole, such as `steps.keys()`, is no name; only names come here.
                false => {
                    let known = self.definition.steps.iter().map(|step| step.id.as_str());
                    format!("there is no step `{name}`{}", did_you_mean(name, known))
                }
            };
            self.fault(path, message);
        }
        let declared = &self.definition.inputs;
        for name in expression.input.names.iter().filter(|name| !declared.is_empty() && !declared.contains_key(*name)) {
            let hint = did_you_mean(name, declared.keys().map(String::as_str));
            self.fault(path, format!("there is no input `{name}`{hint}"));
        }
    }

    /// An expression whose type is known where it always gives the same, or is an input.
    fn typed(&mut self, path: &str, source: &str, seen: Seen<'_>, kind: Kind) -> Option<Expression> {
        let expression = self.expression(path, source, seen)?;
        if let Some(input) = expression.plain_input(source).and_then(|name| self.definition.inputs.get(&name)) {
            let fits = match kind {
                Kind::Truth => matches!(input.kind, InputType::Boolean | InputType::Any),
                Kind::List => matches!(input.kind, InputType::Array | InputType::Any),
            };
            if !fits {
                self.fault(path, format!("takes {}, and `{}` is declared otherwise", kind.expected(), source.trim()));
            }
        }
        if expression.is_constant() {
            match expression.value(&Nothing, Local::default()) {
                Ok(value) if kind.fits(&value) => {}
                Ok(value) => self.fault(path, format!("takes {}, and this gives {value}", kind.expected())),
                Err(message) => self.fault(path, message),
            }
        }
        Some(expression)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Truth,
    List,
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Self::Truth => "true or false",
            Self::List => "a list",
        }
    }
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Truth => value.is_boolean(),
            Self::List => value.is_array(),
        }
    }
}

struct Nothing;

impl Facts for Nothing {
    fn input(&self) -> &Value {
        &Value::Null
    }
    fn step(&self, _: &str) -> Option<(&'static str, &Value)> {
        None
    }
    fn ids(&self) -> Vec<&str> {
        Vec::new()
    }
}
