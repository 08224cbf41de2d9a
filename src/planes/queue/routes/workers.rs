//! What workers say of runs: `/api/pull`, `/api/heartbeat`, `/api/progress`, `/api/callback`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use futures_util::future::select_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::proof::{admitted, given, key, refused};
use super::task_runs;
use crate::db::{Timestamp, Topic};
use crate::planes::queue::dispatch::{Assignment, take};
use crate::planes::queue::seats::Claimed;
use crate::planes::queue::store::registry::Lane;
use crate::planes::queue::{
    Again, Beat, Claim, Hold, JobRecord, Outcomes, Status, TaskQueue, WorkerSeen, acknowledge_cancel, complete, fail,
    get, heartbeat, holder_seen, lanes, note_outcomes, progress, worker_seen,
};
use crate::problem::Problem;
use crate::storage::{Reference, is_reference};
use crate::web::{Body, Checks, Path};

/// Task runs that are handed out at once.
const MOST_RUNS: usize = 100;

/// Between two signs of life of a worker that waits; it counts as alive for a minute.
const SEEN_EVERY: Duration = Duration::from_secs(10);

/// A worker that asks for work.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pull {
    /// The worker's name, different from the others' of its service.
    #[schema(min_length = 1, max_length = 80)]
    pub worker: String,
    /// Only these tasks of the service; all of them unless given.
    pub tasks: Option<Vec<String>>,
    /// Runs at most, 1 to 100; 1 unless given.
    #[schema(minimum = 1, maximum = 100)]
    pub limit: Option<i64>,
    /// How long to wait for work; 0 unless given, and never as long as a request may take.
    #[schema(minimum = 0, maximum = 600_000)]
    pub wait_ms: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Pulled {
    /// Empty where there is no work.
    pub runs: Vec<Assignment>,
}

/// A sign of life.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Heartbeat {
    pub run_id: i64,
    pub lease: i64,
}

/// How far a run is; a sign of life as well.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Progress {
    pub run_id: i64,
    pub lease: i64,
    /// 0 to 100.
    #[schema(minimum = 0, maximum = 100)]
    pub percent: f64,
    #[schema(max_length = 1000)]
    pub message: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BeatAnswer {
    /// `ok`
    pub status: &'static str,
    /// Somebody gives the run up: stop, and call back with `cancelled`.
    pub cancel_requested: bool,
    pub lease_expires_at: Timestamp,
}

/// How a run ended.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Callback {
    pub lease: i64,
    #[schema(inline)]
    pub status: End,
    /// Any JSON. From 256 KiB it is kept in storage; what the worker put there itself under
    /// `results/task-run-{runId}/` is named by `{"$storage": {backend, key, size, sha256}}`.
    #[serde(default)]
    #[schema(value_type = Option<Value>)]
    pub result: Value,
    /// Why it failed.
    pub error: Option<String>,
    /// `false`: trying again is of no use.
    pub retry: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Completed,
    Failed,
    Cancelled,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallbackAnswer {
    pub run_id: i64,
    /// What the run is now.
    #[schema(inline)]
    pub status: Status,
}

/// Why a message about a run counts no longer.
fn too_late(job: Option<&JobRecord>, hold: Hold) -> Problem {
    match job {
        None => task_runs::missing(hold.id),
        Some(job) if job.lease == hold.lease && job.status != Status::Processing => Problem::conflict(format!(
            "Task run {} has ended under lease {} already, and is {}; nothing was changed.",
            hold.id, hold.lease, job.status
        )),
        Some(_) => refused(
            StatusCode::GONE,
            "lease-gone",
            format!("Lease {} of task run {} has lapsed; nothing was changed. Stop it.", hold.lease, hold.id),
        ),
    }
}

impl Pull {
    fn checked(Body(pull): Body<Self>) -> Result<Self, Problem> {
        let mut checks = Checks::default();
        checks.text("worker", Some(&pull.worker), 80);
        checks.range("limit", pull.limit, (1, MOST_RUNS as i64));
        checks.range("waitMs", pull.wait_ms, (0, 600_000));
        checks.done()?;
        Ok(pull)
    }
}

/// Hands out task runs, waiting for some where there are none: for workers that cannot be called. The token is a fresh
/// one as for `/api/register`.
#[utoipa::path(post, path = "/api/pull", operation_id = "pullTasks", tag = "workers", security(()), request_body = Pull,
    responses((status = 200, description = "The runs, each under its lease", body = Pulled),
              (status = 401, description = "The token is not signed with the shared key, is over, or was used before",
               body = Problem, content_type = "application/problem+json"),
              (status = 409, description = "The service has not registered these tasks", body = Problem,
               content_type = "application/problem+json")))]
pub(super) async fn pull(
    State(queue): State<Arc<TaskQueue>>,
    headers: HeaderMap,
    body: Result<Body<Pull>, Problem>,
) -> Result<Json<Pulled>, Problem> {
    let (service, pull) = admitted(&queue, &headers, body.and_then(Pull::checked)).await?;
    let key = key(&queue)?;
    let takes = |lane: &Lane| pull.tasks.as_ref().is_none_or(|wanted| wanted.contains(&lane.task));
    let mut looked = lanes(&queue.db, Some(&service)).await?;
    looked.retain(takes);
    if looked.is_empty() {
        let detail = format!("`{service}` has registered none of these tasks; POST /api/register comes first.");
        return Err(Problem::conflict(detail));
    }
    let limit = pull.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(1);
    let wait = Duration::from_millis(u64::try_from(pull.wait_ms.unwrap_or(0)).unwrap_or(0)).min(queue.longest_poll);
    // A door waits by the machine's time, whatever clock the platform runs on.
    let patience = tokio::time::sleep(wait);
    tokio::pin!(patience);
    let name = |queue: &str| format!("{service}/{}@{queue}", pull.worker).chars().take(300).collect::<String>();
    let mut claimed = Claimed::new(&queue.db, Vec::new());
    let mut seen_at: Option<Duration> = None;
    loop {
        let mut hint = queue.db.listen(Topic::Jobs); // armed before the look
        let mut by_queue: BTreeMap<&str, (bool, Vec<&str>)> = BTreeMap::new();
        for lane in &looked {
            let (own, kinds) = by_queue.entry(&lane.queue).or_default();
            *own |= lane.own;
            kinds.push(&lane.task);
        }
        let at = queue.clock.elapsed();
        if seen_at.is_none_or(|last| at.saturating_sub(last) >= SEEN_EVERY) {
            seen_at = Some(at);
            let mut tx = queue.db.begin().await?;
            for (place, (_, kinds)) in &by_queue {
                let seen = WorkerSeen {
                    id: &name(place),
                    service: Some(&service),
                    mode: "pull",
                    endpoint: None,
                    queue: place,
                    kinds,
                    capacity: limit as i64,
                };
                worker_seen(&mut tx, &seen).await?;
            }
            tx.commit().await?;
        }
        for (place, (_, kinds)) in &by_queue {
            let wanted = Claim {
                queue: place,
                kinds,
                worker: &name(place),
                lease: queue.lease,
                longest_wait: queue.longest_wait,
                limit: limit - claimed.jobs().len(),
            };
            claimed.add(take(&queue.db, &wanted).await?);
            if claimed.jobs().len() >= limit {
                break;
            }
        }
        if !claimed.jobs().is_empty() || wait.is_zero() {
            break;
        }
        let seats = queue.enqueuer.seats();
        let own = by_queue.iter().filter(|(_, (own, _))| *own);
        let mut sitting: Vec<_> =
            own.map(|(place, (_, kinds))| seats.sit(place, kinds, &name(place), queue.lease)).collect();
        let seated = select_all(sitting.iter_mut().map(|sitting| Box::pin(sitting.job())));
        tokio::select! {
            (job, ..) = seated => if let Some(job) = job {
                claimed.add(Claimed::new(&queue.db, vec![job]));
                break;
            },
            () = &mut patience => break,
            () = queue.stop.cancelled() => break,
            () = hint.woken() => {}
            () = tokio::time::sleep(queue.poll_interval.max(Duration::from_millis(100))) => {}
        }
        looked = lanes(&queue.db, Some(&service)).await?;
        looked.retain(takes);
        if looked.is_empty() {
            break; // another service has taken its tasks over
        }
    }
    Ok(Json(Pulled { runs: queue.assign(key, claimed).await? }))
}

/// Takes a sign of life, with how far the run is if it says so.
async fn alive(
    queue: &TaskQueue,
    headers: &HeaderMap,
    hold: Hold,
    news: Option<(f64, Option<&str>)>,
) -> Result<Json<BeatAnswer>, Problem> {
    given(queue, headers, hold)?;
    let mut tx = queue.db.begin().await?;
    let beat = match news {
        Some((percent, message)) => progress(&mut tx, hold, queue.lease, percent, message).await?,
        None => heartbeat(&mut tx, hold, queue.lease).await?,
    };
    if beat != Beat::Gone {
        holder_seen(&mut tx, hold.id).await?;
    }
    tx.commit().await?;
    match beat {
        Beat::Held { cancel_requested, lease_expires_at } => {
            Ok(Json(BeatAnswer { status: "ok", cancel_requested, lease_expires_at }))
        }
        Beat::Gone => Err(too_late(get(&queue.db, hold.id).await?.as_ref(), hold)),
    }
}

/// Says that a run is alive; the answer says whether somebody gives it up.
#[utoipa::path(post, path = "/api/heartbeat", operation_id = "heartbeat", tag = "workers", security(()),
    request_body = Heartbeat,
    responses((status = 200, description = "The lease is held on", body = BeatAnswer),
              (status = 401, description = "The token is another run's or lease's", body = Problem, content_type = "application/problem+json"),
              (status = 404, description = "There is no such run", body = Problem, content_type = "application/problem+json"),
              (status = 409, description = "The run has ended", body = Problem, content_type = "application/problem+json"),
              (status = 410, description = "The lease has lapsed", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn beat(
    State(queue): State<Arc<TaskQueue>>,
    headers: HeaderMap,
    body: Result<Body<Heartbeat>, Problem>,
) -> Result<Json<BeatAnswer>, Problem> {
    key(&queue)?;
    let Body(message) = body?;
    alive(&queue, &headers, Hold { id: message.run_id, lease: message.lease }, None).await
}

/// Says how far a run is.
#[utoipa::path(post, path = "/api/progress", operation_id = "progress", tag = "workers", security(()),
    request_body = Progress,
    responses((status = 200, description = "Noted, and the lease is held on", body = BeatAnswer),
              (status = 401, description = "The token is another run's or lease's", body = Problem, content_type = "application/problem+json"),
              (status = 404, description = "There is no such run", body = Problem, content_type = "application/problem+json"),
              (status = 409, description = "The run has ended", body = Problem, content_type = "application/problem+json"),
              (status = 410, description = "The lease has lapsed", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn note_progress(
    State(queue): State<Arc<TaskQueue>>,
    headers: HeaderMap,
    body: Result<Body<Progress>, Problem>,
) -> Result<Json<BeatAnswer>, Problem> {
    key(&queue)?;
    let Body(message) = body?;
    let mut checks = Checks::default();
    checks.text("message", message.message.as_deref(), 1_000);
    if !(0.0..=100.0).contains(&message.percent) {
        checks.refuse("percent", "takes a number from 0 to 100");
    }
    checks.done()?;
    let news = (message.percent, message.message.as_deref());
    alive(&queue, &headers, Hold { id: message.run_id, lease: message.lease }, Some(news)).await
}

/// Says how a run ended. It counts once, and only under the lease that holds: a late, repeated or forged callback
/// changes nothing and is told so.
#[utoipa::path(post, path = "/api/callback/{runId}", operation_id = "callback", tag = "workers", security(()),
    params(("runId" = i64, Path)), request_body = Callback,
    responses((status = 200, description = "Written down", body = CallbackAnswer),
              (status = 401, description = "The token is another run's or lease's", body = Problem, content_type = "application/problem+json"),
              (status = 409, description = "The run has ended, or nobody gives it up", body = Problem, content_type = "application/problem+json"),
              (status = 410, description = "The lease has lapsed", body = Problem, content_type = "application/problem+json"),
              (status = 502, description = "Storage does not take the result", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn callback(
    State(queue): State<Arc<TaskQueue>>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    body: Result<Body<Callback>, Problem>,
) -> Result<Json<CallbackAnswer>, Problem> {
    key(&queue)?;
    let Body(message) = body?;
    let hold = Hold { id, lease: message.lease };
    given(&queue, &headers, hold)?;
    let before = get(&queue.db, id).await?;
    let Some(job) = before.filter(|job| job.lease == hold.lease && job.status == Status::Processing) else {
        return Err(too_late(get(&queue.db, id).await?.as_ref(), hold));
    };
    check_result(&queue, id, &message.result).await?;
    // Outside of the transaction; a result whose lease lapses meanwhile is left over there.
    let result = queue.stores.put_json_if_large(None, &format!("results/task-run-{id}"), message.result).await?;
    let error = message.error.as_deref().unwrap_or("the worker gave no reason");
    let again =
        if message.retry == Some(false) { Again::Never } else { Again::ByPolicy(&queue.random, queue.longest_wait) };
    let mut tx = queue.db.begin().await?;
    let held = match message.status {
        End::Completed => complete(&mut tx, hold, &result).await?.then_some(Status::Completed),
        End::Failed => fail(&mut tx, hold, error, again).await?,
        End::Cancelled => acknowledge_cancel(&mut tx, hold).await?.then_some(Status::Cancelled),
    };
    let Some(status) = held else {
        drop(tx);
        return Err(match get(&queue.db, id).await? {
            Some(job) if job.lease == hold.lease && job.status == Status::Processing => {
                Problem::conflict(format!("Nobody gives task run {id} up; nothing was changed."))
            }
            job => too_late(job.as_ref(), hold),
        });
    };
    if let Some(worker) = &job.worker {
        let outcomes = match message.status {
            End::Completed => Outcomes { completed: 1, ..Outcomes::default() },
            End::Failed => Outcomes { failed: 1, ..Outcomes::default() },
            End::Cancelled => Outcomes::default(),
        };
        note_outcomes(&mut tx, worker, outcomes).await?;
    }
    holder_seen(&mut tx, id).await?;
    tx.commit().await?;
    if job.awaited {
        queue.db.wake(Topic::JobsEnded).await;
    }
    queue.db.wake(Topic::Jobs).await; // a place is free, and a limit may be
    Ok(Json(CallbackAnswer { run_id: id, status }))
}

/// A reference in a result may only name what the run itself put there, and what is there.
async fn check_result(queue: &TaskQueue, id: i64, result: &Value) -> Result<(), Problem> {
    if !is_reference(result) {
        return Ok(());
    }
    let mut checks = Checks::default();
    let reference = serde_json::from_value::<Reference>(result["$storage"].clone()).ok();
    match reference.filter(|reference| reference.key.starts_with(&format!("results/task-run-{id}/"))) {
        None => checks.refuse("result", format!("names something in storage that is not below results/task-run-{id}/")),
        Some(reference) => match queue.stores.size_of(&reference).await {
            Ok(Some(size)) if size == reference.size => {}
            Ok(Some(size)) => checks.refuse("result", format!("says {} bytes, and {size} lie there", reference.size)),
            Ok(None) => checks.refuse("result", format!("names {}, where nothing lies", reference.key)),
            Err(cause) => return Err(cause.into()),
        },
    }
    checks.done()
}
