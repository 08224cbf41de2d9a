//! Claiming, running, renewing and rescuing jobs in this process.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::model::Job;

/// Runs jobs of one kind.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The kind that it runs.
    fn kind(&self) -> &'static str;
    /// Runs one try. What leaves the process must be recorded before it goes out.
    async fn run(&self, job: &Job) -> Outcome;
}

/// How a try ended.
#[derive(Debug)]
pub enum Outcome {
    /// The handler finished the job in a transaction of its own, by `complete` or `fail`.
    Finished,
    /// The worker is to complete it with this result.
    Done(Value),
    /// The worker is to fail it; it is tried again while a try is left.
    Failed(String),
}

/// Works one queue with the given handlers.
pub struct Worker {
    #[allow(dead_code)]
    handlers: Vec<Arc<dyn Handler>>,
}
