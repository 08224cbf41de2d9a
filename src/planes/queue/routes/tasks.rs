//! `/api/queue/task` and `/api/queue/batch`: enqueueing.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{ATTEMPTS, LONGEST_KEY, LONGEST_NAME, PRIORITIES, YEAR_MS};
use crate::db::{Timestamp, Topic};
use crate::planes::queue::job::OWN_KEYS;
use crate::planes::queue::{NewJob, TaskQueue, enqueue_many};
use crate::problem::Problem;
use crate::storage::is_reference;
use crate::web::{Body, Checks, IdempotencyKey};

/// Tasks of one batch: one transaction that holds the write lock for less than a second.
const LARGEST_BATCH: usize = 10_000;

/// A task to be run.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NewTask {
    /// What is to be done. One that no service has registered waits until one does.
    #[schema(example = "process-document", min_length = 1, max_length = 200)]
    pub task_id: String,
    /// Any JSON; from 256 KiB it is kept in storage.
    #[serde(default = "nothing")]
    #[schema(value_type = Value)]
    pub input: Value,
    /// A larger one runs first; the task's, else 0, unless given.
    #[schema(minimum = -1000, maximum = 1000, example = 50)]
    pub priority: Option<i64>,
    /// Enqueueing again under the same key gives the same task run back.
    #[schema(min_length = 1, max_length = 300)]
    pub idempotency_key: Option<String>,
    /// How long the key holds, also after the end; `IDEMPOTENCY_TTL_SECONDS` unless given. 0: while the task run lives.
    #[schema(minimum = 0, maximum = 31_536_000)]
    pub idempotency_ttl_seconds: Option<i64>,
    /// Not before this time.
    pub run_at: Option<Timestamp>,
    /// Not before so many milliseconds from now.
    #[schema(minimum = 0, maximum = 31_536_000_000_i64)]
    pub delay_ms: Option<i64>,
    #[schema(minimum = 1, maximum = 1000)]
    pub max_attempts: Option<i64>,
    /// How long one try may take.
    #[schema(minimum = 1, maximum = 31_536_000_000_i64)]
    pub timeout_ms: Option<i64>,
    /// Runs of a task with the same key run one at a time, or as many as the task allows.
    #[schema(min_length = 1, max_length = 300)]
    pub concurrency_key: Option<String>,
    /// The task's, else `default`, unless given.
    #[schema(min_length = 1, max_length = 200)]
    pub queue: Option<String>,
    /// What belongs to the run and not to its input; kept with a dead letter.
    #[schema(value_type = Option<Value>)]
    pub context: Option<Value>,
}

fn nothing() -> Value {
    json!({})
}

/// Tasks to be run: all of them are enqueued, or none is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTasks {
    /// 1 to 10,000, in the order in which they are enqueued.
    #[schema(min_items = 1, max_items = 10_000)]
    pub tasks: Vec<NewTask>,
}

/// A task run, new or found by its key.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnqueuedTask {
    pub run_id: i64,
    pub task_id: String,
    /// Whether it is new; `false` where the idempotency key had given it before.
    pub created: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct EnqueuedTasks {
    /// In the order of the request.
    pub tasks: Vec<EnqueuedTask>,
    /// How many are new.
    pub created: usize,
}

impl NewTask {
    fn check(&self, checks: &mut Checks) {
        checks.text("taskId", Some(&self.task_id), LONGEST_NAME);
        checks.text("queue", self.queue.as_deref(), LONGEST_NAME);
        checks.text("idempotencyKey", self.idempotency_key.as_deref(), LONGEST_KEY);
        checks.text("concurrencyKey", self.concurrency_key.as_deref(), LONGEST_KEY);
        checks.range("priority", self.priority, PRIORITIES);
        checks.range("idempotencyTtlSeconds", self.idempotency_ttl_seconds, (0, YEAR_MS / 1000));
        checks.range("delayMs", self.delay_ms, (0, YEAR_MS));
        checks.range("maxAttempts", self.max_attempts, ATTEMPTS);
        checks.range("timeoutMs", self.timeout_ms, (1, YEAR_MS));
        if self.run_at.is_some() && self.delay_ms.is_some() {
            checks.refuse("delayMs", "is taken without runAt");
        }
        checks.time("runAt", self.run_at);
        if self.idempotency_key.as_ref().is_some_and(|key| key.starts_with(OWN_KEYS)) {
            checks.refuse("idempotencyKey", format!("may not begin with `{OWN_KEYS}`, as the service's own do"));
        }
        if is_reference(&self.input) {
            checks.refuse("input", "may not be a reference into storage");
        }
    }

    /// The job, its input put into storage where it is large. `now` is what a delay counts from.
    async fn into_job(self, queue: &TaskQueue, now: Option<Timestamp>) -> Result<NewJob, Problem> {
        let input = queue.stores.put_json_if_large(None, "inputs", self.input).await?;
        let input_ref = is_reference(&input).then(|| input["$storage"].to_string());
        let ttl = self
            .idempotency_ttl_seconds
            .map_or(queue.idempotency_ttl, |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or_default()));
        Ok(NewJob {
            queue: self.queue.map(Into::into),
            priority: self.priority,
            input,
            input_ref,
            context: self.context,
            idempotency_ttl: self.idempotency_key.as_ref().and(Some(ttl).filter(|ttl| !ttl.is_zero())),
            idempotency_key: self.idempotency_key,
            run_at: self.run_at.or(self.delay_ms.zip(now).map(|(delay, now)| now.after(millis(delay)))),
            max_attempts: self.max_attempts,
            timeout: self.timeout_ms.map(millis),
            concurrency_key: self.concurrency_key,
            ..NewJob::new(self.task_id)
        })
    }
}

fn millis(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default())
}

/// Enqueues a task. 200 where the idempotency key had given it before.
#[utoipa::path(post, path = "/api/queue/task", operation_id = "queueTask", tag = "queue", request_body = NewTask,
    params(("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "As `idempotencyKey`, which it stands for")),
    responses((status = 201, description = "Enqueued", body = EnqueuedTask),
              (status = 200, description = "It was enqueued before, under the same key", body = EnqueuedTask),
              (status = 409, description = "The idempotency key belongs to another task's run", body = Problem, content_type = "application/problem+json"),
              (status = 502, description = "Storage does not take the input", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn enqueue_one(
    State(queue): State<Arc<TaskQueue>>,
    key: IdempotencyKey,
    Body(mut task): Body<NewTask>,
) -> Result<(StatusCode, Json<EnqueuedTask>), Problem> {
    let mut checks = Checks::default();
    match (key.text(), &task.idempotency_key) {
        (Some(header), Some(key)) if header != key => {
            checks.refuse("idempotencyKey", "is another than the header Idempotency-Key names");
        }
        (Some(header), None) => task.idempotency_key = Some(header.to_owned()),
        _ => {}
    }
    task.check(&mut checks);
    checks.done()?;
    let now = delayed_from(&queue, std::slice::from_ref(&task)).await?;
    let job = task.into_job(&queue, now).await?;
    let task_id = job.kind.clone().into_owned();
    let done = queue.enqueuer.enqueue(job).await?;
    let done = EnqueuedTask { run_id: done.id, task_id, created: done.created };
    Ok((if done.created { StatusCode::CREATED } else { StatusCode::OK }, Json(done)))
}

/// Enqueues thousands of tasks in one transaction.
#[utoipa::path(post, path = "/api/queue/batch", operation_id = "queueBatch", tag = "queue", request_body = NewTasks,
    responses((status = 201, description = "All are enqueued", body = EnqueuedTasks),
              (status = 409, description = "An idempotency key belongs to another task's run; nothing was enqueued", body = Problem, content_type = "application/problem+json"),
              (status = 502, description = "Storage does not take an input", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn enqueue_batch(
    State(queue): State<Arc<TaskQueue>>,
    Body(batch): Body<NewTasks>,
) -> Result<(StatusCode, Json<EnqueuedTasks>), Problem> {
    let mut checks = Checks::default();
    if !(1..=LARGEST_BATCH).contains(&batch.tasks.len()) {
        checks.refuse("tasks", format!("takes 1 to {LARGEST_BATCH} tasks"));
    }
    for (place, task) in batch.tasks.iter().enumerate() {
        checks.within = format!("tasks[{place}].");
        task.check(&mut checks);
        if checks.count() >= 100 {
            break; // enough to mend first
        }
    }
    checks.done()?;
    let tasks = enqueue_all(&queue, batch.tasks).await?;
    let created = tasks.iter().filter(|task| task.created).count();
    Ok((StatusCode::CREATED, Json(EnqueuedTasks { tasks, created })))
}

/// The time from which delays count, where there are any.
async fn delayed_from(queue: &TaskQueue, tasks: &[NewTask]) -> Result<Option<Timestamp>, Problem> {
    Ok(if tasks.iter().any(|task| task.delay_ms.is_some()) { Some(queue.db.now().await?) } else { None })
}

async fn enqueue_all(queue: &TaskQueue, tasks: Vec<NewTask>) -> Result<Vec<EnqueuedTask>, Problem> {
    let now = delayed_from(queue, &tasks).await?;
    let mut jobs = Vec::with_capacity(tasks.len());
    for task in tasks {
        jobs.push(task.into_job(queue, now).await?);
    }
    let mut tx = queue.db.begin().await?;
    let enqueued = enqueue_many(&mut tx, &jobs).await?;
    tx.commit().await?;
    queue.db.wake(Topic::Jobs).await;
    let view = |(job, done): (NewJob, crate::planes::queue::Enqueued)| EnqueuedTask {
        run_id: done.id,
        task_id: job.kind.into_owned(),
        created: done.created,
    };
    Ok(jobs.into_iter().zip(enqueued).map(view).collect())
}
