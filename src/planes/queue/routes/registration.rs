//! `/api/register`: a service says what it runs.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::proof::admitted;
use super::{ATTEMPTS, LONGEST_NAME, PRIORITIES, YEAR_MS};
use crate::actor::Actor;
use crate::backoff::Growth;
use crate::db::Topic;
use crate::ledger::{self, Entry};
use crate::planes::queue::{Registration, TaskQueue, TaskRegistration, TaskSettings, register};
use crate::problem::Problem;
use crate::web::{Body, Checks};

/// Tasks of one service; each is a row that is written at every registration.
const MOST_TASKS: usize = 1_000;

/// A service and what it runs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NewService {
    /// The id unless given.
    #[schema(min_length = 1, max_length = 200)]
    pub name: Option<String>,
    #[schema(min_length = 1, max_length = 200)]
    pub version: Option<String>,
    /// Where its task runs are POSTed, http or https; without one its workers pull.
    #[schema(max_length = 2000)]
    pub endpoint: Option<String>,
    /// 1 to 1,000.
    #[schema(min_items = 1, max_items = 1_000)]
    pub tasks: Vec<NewServiceTask>,
}

/// A task, and how it is run. Times are in milliseconds.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NewServiceTask {
    #[schema(min_length = 1, max_length = 200)]
    pub id: String,
    /// SHA-256 of its code: 64 hexadecimal digits. Another one than before is the next `codeVersion`.
    pub code_hash: Option<String>,
    #[schema(min_length = 1, max_length = 200)]
    pub queue: Option<String>,
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: Option<i64>,
    /// A run is lost after twice this without a sign of life.
    #[schema(minimum = 10, maximum = 1_800_000)]
    pub heartbeat_interval_ms: Option<i64>,
    #[schema(minimum = 1, maximum = 31_536_000_000_i64)]
    pub timeout_ms: Option<i64>,
    /// 3 unless given.
    #[schema(minimum = 1, maximum = 1000)]
    pub max_attempts: Option<i64>,
    /// `exponential` unless given.
    #[schema(inline)]
    pub retry_backoff: Option<Growth>,
    /// A second unless given.
    #[schema(minimum = 0, maximum = 31_536_000_000_i64)]
    pub retry_delay_ms: Option<i64>,
    /// The part of a wait that chance takes off, so that many failures do not return at once: 0.5 unless given where
    /// waits grow exponentially, else 0.
    #[schema(minimum = 0, maximum = 1)]
    pub retry_jitter: Option<f64>,
    /// `MAX_RETRY_DELAY_MS` unless given.
    #[schema(minimum = 0, maximum = 31_536_000_000_i64)]
    pub max_retry_delay_ms: Option<i64>,
    /// Runs at once, in all.
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub concurrency_limit: Option<i64>,
    /// Runs at once with one concurrency key; one unless given.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub key_concurrency_limit: Option<i64>,
    /// Starts in `ratePeriodMs`.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub rate_limit: Option<i64>,
    /// Starts in `ratePeriodMs` with one concurrency key.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub key_rate_limit: Option<i64>,
    /// A second unless given.
    #[schema(minimum = 1, maximum = 86_400_000)]
    pub rate_period_ms: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    pub service_id: String,
    pub tasks: Vec<RegisteredTask>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredTask {
    pub id: String,
    pub code_version: Option<i64>,
    /// Whether the code is new, or another than before.
    pub changed: bool,
}

impl NewServiceTask {
    fn check(&self, checks: &mut Checks) {
        checks.text("id", Some(&self.id), LONGEST_NAME);
        checks.text("queue", self.queue.as_deref(), LONGEST_NAME);
        let is_digest = |hash: &str| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self.code_hash.as_deref().is_some_and(|hash| !is_digest(hash)) {
            checks.refuse("codeHash", "takes 64 hexadecimal digits");
        }
        checks.range("priority", self.priority, PRIORITIES);
        checks.range("heartbeatIntervalMs", self.heartbeat_interval_ms, (10, 1_800_000));
        checks.range("timeoutMs", self.timeout_ms, (1, YEAR_MS));
        checks.range("maxAttempts", self.max_attempts, ATTEMPTS);
        checks.range("retryDelayMs", self.retry_delay_ms, (0, YEAR_MS));
        if self.retry_jitter.is_some_and(|jitter| !(0.0..=1.0).contains(&jitter)) {
            checks.refuse("retryJitter", "takes a number from 0 to 1");
        }
        checks.range("maxRetryDelayMs", self.max_retry_delay_ms, (0, YEAR_MS));
        checks.range("concurrencyLimit", self.concurrency_limit, (0, 1_000_000));
        checks.range("keyConcurrencyLimit", self.key_concurrency_limit, (1, 1_000_000));
        checks.range("rateLimit", self.rate_limit, (1, 1_000_000));
        checks.range("keyRateLimit", self.key_rate_limit, (1, 1_000_000));
        checks.range("ratePeriodMs", self.rate_period_ms, (1, 86_400_000));
    }

    fn registration(self) -> TaskRegistration {
        let usual = TaskSettings::default();
        let retry_backoff = self.retry_backoff.unwrap_or(usual.retry_backoff);
        let usual_jitter = if retry_backoff == Growth::Exponential { usual.retry_jitter } else { 0.0 };
        TaskRegistration {
            id: self.id,
            code_hash: self.code_hash.map(|hash| hash.to_ascii_lowercase()),
            settings: TaskSettings {
                queue: self.queue.unwrap_or(usual.queue),
                priority: self.priority.unwrap_or(usual.priority),
                heartbeat_interval_ms: self.heartbeat_interval_ms,
                timeout_ms: self.timeout_ms,
                max_attempts: self.max_attempts.unwrap_or(usual.max_attempts),
                retry_backoff,
                retry_delay_ms: self.retry_delay_ms.unwrap_or(usual.retry_delay_ms),
                retry_jitter: self.retry_jitter.unwrap_or(usual_jitter),
                max_retry_delay_ms: self.max_retry_delay_ms,
                concurrency_limit: self.concurrency_limit,
                key_concurrency_limit: self.key_concurrency_limit,
                rate_limit: self.rate_limit,
                key_rate_limit: self.key_rate_limit,
                rate_period_ms: self.rate_period_ms.unwrap_or(usual.rate_period_ms),
            },
        }
    }
}

impl NewService {
    fn checked(Body(service): Body<Self>) -> Result<Self, Problem> {
        let mut checks = Checks::default();
        checks.text("name", service.name.as_deref(), LONGEST_NAME);
        checks.text("version", service.version.as_deref(), LONGEST_NAME);
        if let Some(endpoint) = &service.endpoint {
            let url = reqwest::Url::parse(endpoint);
            let is_web = url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if !is_web || endpoint.len() > 2_000 {
                checks.refuse("endpoint", "takes a URL such as https://worker.example/run");
            }
        }
        if !(1..=MOST_TASKS).contains(&service.tasks.len()) {
            checks.refuse("tasks", format!("takes 1 to {MOST_TASKS} tasks"));
        }
        let mut ids = HashSet::new();
        for (place, task) in service.tasks.iter().enumerate().take(MOST_TASKS) {
            checks.within = format!("tasks[{place}].");
            task.check(&mut checks);
            if !ids.insert(&task.id) {
                checks.refuse("id", "is the id of a task before it");
            }
        }
        checks.done()?;
        Ok(service)
    }
}

/// Says what a service runs. Its id is the token's `iss`: a short-lived HS256 JWT (at most five minutes, each `jti`
/// taken once) that is signed with the shared key. The key itself is never sent.
#[utoipa::path(post, path = "/api/register", operation_id = "registerService", tag = "workers", security(()),
    request_body = NewService,
    responses((status = 200, description = "It is registered", body = Registered),
              (status = 401, description = "The token is not signed with the shared key, is over, or was used before",
               body = Problem, content_type = "application/problem+json")))]
pub(super) async fn register_service(
    State(queue): State<Arc<TaskQueue>>,
    headers: HeaderMap,
    body: Result<Body<NewService>, Problem>,
) -> Result<Json<Registered>, Problem> {
    let (id, service) = admitted(&queue, &headers, body.and_then(NewService::checked)).await?;
    let registration = Registration {
        name: service.name.unwrap_or_else(|| id.clone()),
        service: id.clone(),
        version: service.version,
        endpoint: service.endpoint,
        tasks: service.tasks.into_iter().map(NewServiceTask::registration).collect(),
    };
    let mut tx = queue.db.begin().await?;
    let versions = register(&mut tx, &registration).await?;
    let changed: Vec<_> = versions.iter().filter(|version| version.changed).collect();
    if !changed.is_empty() {
        let payload = json!({ "version": registration.version, "tasks": changed });
        let entry = Entry::new("queue.code_changed", Actor::System, payload).subject(format!("service:{id}"));
        ledger::append(&mut tx, &[entry]).await?;
    }
    tx.commit().await?;
    queue.db.wake(Topic::Jobs).await;
    let tasks = versions.into_iter().map(|version| RegisteredTask {
        id: version.task,
        code_version: version.code_version,
        changed: version.changed,
    });
    Ok(Json(Registered { service_id: id, tasks: tasks.collect() }))
}
