//! A pipeline written in Rust.

use std::time::Duration;

use serde_json::Value;

use super::definition::{
    Call, Compensation, Copying, Definition, Http, Input, InputType, Retry, Span, Step, Stored, Task,
};

/// Builds a [`Definition`]; what it builds is checked when it is registered.
#[derive(Debug, Clone, Default)]
pub struct PipelineBuilder(Definition);

/// Builds one step.
#[derive(Debug, Clone, Default)]
pub struct StepBuilder(Step);

impl PipelineBuilder {
    /// A pipeline that people call `name`.
    pub fn new(name: &str) -> Self {
        Self(Definition { name: Some(name.to_owned()), ..Definition::default() })
    }
    /// An input that must be given.
    pub fn input(mut self, name: &str, kind: InputType) -> Self {
        let input = Input { kind, default: None, optional: false, description: None };
        self.0.inputs.insert(name.to_owned(), input);
        self
    }
    /// An input that has a default.
    pub fn input_or(mut self, name: &str, kind: InputType, default: Value) -> Self {
        let input = Input { kind, default: Some(default), optional: false, description: None };
        self.0.inputs.insert(name.to_owned(), input);
        self
    }
    /// One more step.
    pub fn step(mut self, step: StepBuilder) -> Self {
        self.0.steps.push(step.0);
        self
    }
    /// The run's result.
    pub fn output(mut self, expression: &str) -> Self {
        self.0.output = Some(expression.to_owned());
        self
    }
    /// The definition.
    pub fn build(self) -> Definition {
        self.0
    }
}

impl StepBuilder {
    fn named(id: &str) -> Step {
        Step { id: id.to_owned(), ..Step::default() }
    }
    /// A step that evaluates an expression.
    pub fn eval(id: &str, expression: &str) -> Self {
        Self(Step { eval: Some(expression.to_owned()), ..Self::named(id) })
    }
    /// A step that makes an HTTP call.
    pub fn http(id: &str, http: Http) -> Self {
        Self(Step { http: Some(http), ..Self::named(id) })
    }
    /// A step that pauses.
    pub fn sleep(id: &str, duration: Duration) -> Self {
        Self(Step { sleep: Some(Span(duration).to_string()), ..Self::named(id) })
    }
    /// A step that copies what a storage back end holds; each place is a back end, the default one without, and a key.
    pub fn copy(id: &str, from: (Option<&str>, &str), to: (Option<&str>, &str)) -> Self {
        let stored =
            |(backend, key): (Option<&str>, &str)| Stored { backend: backend.map(str::to_owned), key: key.to_owned() };
        Self(Step { copy: Some(Copying { from: stored(from), to: stored(to) }), ..Self::named(id) })
    }
    /// A step that is a task on the queue.
    pub fn task(id: &str, task: &str, input: Value) -> Self {
        let task = Task { id: task.to_owned(), input: Some(input), ..Task::default() };
        Self(Step { task: Some(task), ..Self::named(id) })
    }
    /// A step that runs another pipeline.
    pub fn pipeline(id: &str, pipeline: &str, input: Value) -> Self {
        Self(Step { pipeline: Some(Call { id: pipeline.to_owned(), input: Some(input) }), ..Self::named(id) })
    }
    /// Steps that must be done before.
    pub fn needs<'a>(mut self, needs: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.needs.extend(needs.into_iter().map(str::to_owned));
        self
    }
    /// Skipped where the expression is false.
    pub fn when(mut self, expression: &str) -> Self {
        self.0.when = Some(expression.to_owned());
        self
    }
    /// Once for each item of a list, so many at once.
    pub fn for_each(mut self, expression: &str, parallel: u32) -> Self {
        self.0.for_each = Some(expression.to_owned());
        self.0.parallel = Some(parallel);
        self
    }
    /// How often a failed try is repeated.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.0.retry = Some(retry);
        self
    }
    /// How long one try may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.0.timeout = Some(Span(timeout));
        self
    }
    /// The run goes on when this step has failed.
    pub fn continue_on_error(mut self) -> Self {
        self.0.continue_on_error = true;
        self
    }
    /// What undoes the step.
    pub fn compensate(mut self, compensation: Compensation) -> Self {
        self.0.compensate = Some(compensation);
        self
    }
}
