//! The queue's HTTP routes. JSON keys are in camelCase, as clients of the task queue know them.
//!
//! A change by a person is one transaction with its ledger entry. Enqueueing is no such change: it is what the queue is
//! for, thousands of times a second.

mod letters;
mod proof;
mod queues;
mod registration;
mod services;
mod task_runs;
mod tasks;
mod workers;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use services::CodeVersion;

use super::TaskQueue;
use crate::actor::{Caller, Role};
use crate::db::Tx;
use crate::ledger::{self, Entry};
use crate::problem::Problem;

/// Priorities, tries and times as the tables check them.
const PRIORITIES: (i64, i64) = (-1000, 1000);
const ATTEMPTS: (i64, i64) = (1, 1000);
const YEAR_MS: i64 = 31_536_000_000;
/// Characters of a task's, queue's or service's id, and of a key.
const LONGEST_NAME: usize = 200;
const LONGEST_KEY: usize = 300;

/// The routes behind the guard, with their OpenAPI.
pub fn routes<S: Clone + Send + Sync + 'static>(queue: Arc<TaskQueue>) -> OpenApiRouter<S> {
    OpenApiRouter::new()
        .routes(routes!(tasks::enqueue_one))
        .routes(routes!(tasks::enqueue_batch))
        .routes(routes!(task_runs::status))
        .routes(routes!(task_runs::items))
        .routes(routes!(task_runs::get_one))
        .routes(routes!(task_runs::cancel_one))
        .routes(routes!(letters::list, letters::purge))
        .routes(routes!(letters::retry_many))
        .routes(routes!(letters::purge_one))
        .routes(routes!(letters::retry))
        .routes(routes!(services::list))
        .routes(routes!(services::tasks_of))
        .routes(routes!(services::history))
        .routes(routes!(queues::list))
        .routes(routes!(queues::pause_one))
        .routes(routes!(queues::resume_one))
        .routes(routes!(queues::limits))
        .with_state(queue)
}

/// The routes of workers. They stand outside the guard: a worker proves by its own token that it holds the shared
/// secret, or that it was given the run.
pub fn worker_routes<S: Clone + Send + Sync + 'static>(queue: Arc<TaskQueue>) -> OpenApiRouter<S> {
    OpenApiRouter::new()
        .routes(routes!(registration::register_service))
        .routes(routes!(workers::pull))
        .routes(routes!(workers::beat))
        .routes(routes!(workers::note_progress))
        .routes(routes!(workers::callback))
        .with_state(queue)
}

/// Begins a change by an operator.
async fn begin(queue: &TaskQueue, caller: &Caller) -> Result<Tx, Problem> {
    caller.require(Role::Operator)?;
    Ok(queue.db.begin().await?)
}

/// Writes the ledger entry and commits.
async fn commit(
    mut tx: Tx,
    caller: &Caller,
    event: &'static str,
    subject: String,
    payload: serde_json::Value,
) -> Result<(), Problem> {
    ledger::append(&mut tx, &[Entry::new(event, caller.actor(), payload).subject(subject)]).await?;
    Ok(tx.commit().await?)
}
