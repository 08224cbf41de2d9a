//! Sending tasks to the services that have an endpoint.
//!
//! A task is claimed and the claim committed before the endpoint is called; the call only asks the worker to accept it.
//! What the worker does afterwards comes in by its own messages, under the lease that it was given. A worker that
//! refuses fails the try; one that has no room now (429, 503) or is not there costs the run none, and is left alone for a
//! while; one whose answer is lost may have begun, so its lease decides.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::header::RETRY_AFTER;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::plane::TaskQueue;
use super::seats::Claimed;
use super::{
    Again, Claim, Hold, Job, Outcomes, WorkerSeen, claim, fail, give_back, held_by, lanes, look, note_outcomes,
    services, task, worker_seen,
};
use crate::backoff;
use crate::db::{Db, Result, Topic};
use crate::problem::Problem;
use crate::storage::{Grant, SecretKey};

/// A task run as its worker is given it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    pub run_id: i64,
    pub task_id: String,
    /// Every message about the run carries it.
    pub lease: i64,
    /// The bearer token of every message about the run under this lease.
    pub token: String,
    /// From 1.
    pub attempt: i64,
    pub max_attempts: i64,
    /// Where it is large: `{"$storage": {backend, key, size, sha256}}`.
    #[schema(value_type = Value)]
    pub input: Value,
    #[schema(value_type = Option<Value>)]
    pub context: Option<Value>,
    pub code_version: Option<i64>,
    pub timeout_ms: Option<i64>,
    /// The lease lapses after twice this without a sign of life.
    pub heartbeat_interval_ms: i64,
    /// The storage back ends with their credentials: a JWE (`dir`, `A256GCM`) for the shared key.
    pub storage: String,
}

impl TaskQueue {
    /// What workers are told of the runs that they were given. After an error all of them go back.
    pub(super) async fn assign(
        &self,
        key: &SecretKey,
        claimed: Claimed,
    ) -> std::result::Result<Vec<Assignment>, Problem> {
        let now = self.db.now().await?;
        let half_a_lease = i64::try_from(self.lease.as_millis() / 2).unwrap_or(i64::MAX);
        let backends: Vec<String> = self.stores.ids().map(str::to_owned).collect();
        let kinds: BTreeSet<&str> = claimed.jobs().iter().map(|job| job.kind.as_str()).collect();
        let mut intervals = HashMap::new();
        for kind in kinds {
            let interval = task(&self.db, kind).await?.and_then(|task| task.heartbeat_interval_ms);
            intervals.insert(kind.to_owned(), interval.unwrap_or(half_a_lease));
        }
        let mut storages = Vec::with_capacity(claimed.jobs().len());
        for job in claimed.jobs() {
            let grant = Grant {
                run: format!("task-run:{}", job.id),
                lease: job.lease,
                backends: backends.clone(),
                life: job.timeout_ms.map_or(super::store::finish::LONGEST_LEASE, super::store::claim::millis),
            };
            storages.push(key.seal(&grant, &self.stores, now)?);
        }
        let told = |(job, storage): (Job, String)| Assignment {
            run_id: job.id,
            lease: job.lease,
            token: key.run_token(job.id, job.lease),
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            input: job.input.0,
            context: job.context.map(|context| context.0),
            code_version: job.code_version,
            timeout_ms: job.timeout_ms,
            heartbeat_interval_ms: intervals.get(&job.kind).copied().unwrap_or(half_a_lease),
            task_id: job.kind,
            storage,
        };
        Ok(claimed.arrived().into_iter().zip(storages).map(told).collect())
    }
}

/// Looks, and takes what there is.
pub(super) async fn take(db: &Db, wanted: &Claim<'_>) -> Result<Claimed> {
    let outlook = look(db, wanted).await?;
    if !outlook.has_work() {
        return Ok(Claimed::new(db, Vec::new()));
    }
    let mut tx = db.begin().await?;
    let jobs = claim(&mut tx, &outlook, wanted).await?;
    tx.commit().await?;
    Ok(Claimed::new(db, jobs)) // not before: what was rolled back is soon another's, under the same lease
}

/// A service's tasks on one queue.
#[derive(Debug, Clone)]
struct Lane {
    service: String,
    endpoint: String,
    queue: String,
    kinds: Vec<String>,
}

impl Lane {
    /// The name under which it holds leases.
    fn worker(&self) -> String {
        format!("{}@{}", self.service, self.queue)
    }
}

/// What a worker made of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It accepted the run, or may have.
    Taken,
    /// It has no room now, and may have said for how long.
    Busy(Option<Duration>),
    /// Nobody is there.
    Away,
    /// It was not asked: the run could not be made ready for it.
    Unready,
    Refused,
}

/// How long a service that is not there is left alone, doubled each time.
const AWAY_BASE: Duration = Duration::from_millis(500);
const AWAY_CAP: Duration = Duration::from_secs(15);
/// The same for one that has no room and does not say for how long: most runs are short.
const BUSY_BASE: Duration = Duration::from_millis(50);
const BUSY_CAP: Duration = Duration::from_secs(1);
/// No service is left alone for longer because it says so.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Sends tasks to the services that have an endpoint.
pub struct Dispatcher {
    queue: Arc<TaskQueue>,
    /// Those that took nothing: how often in a row, and until when they are left alone.
    resting: Mutex<HashMap<String, (u32, Duration)>>,
}

impl Dispatcher {
    pub fn new(queue: Arc<TaskQueue>) -> Self {
        Self { queue, resting: Mutex::default() }
    }

    fn resting(&self) -> MutexGuard<'_, HashMap<String, (u32, Duration)>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an endpoint is left alone for now.
    fn rests(&self, endpoint: &str) -> bool {
        self.resting().get(endpoint).is_some_and(|(_, until)| self.queue.clock.elapsed() < *until)
    }

    /// How long until the next endpoint may be called again, if that is sooner than the next look.
    fn next_look(&self) -> Duration {
        let now = self.queue.clock.elapsed();
        let ends = self.resting().values().map(|(_, until)| *until).filter(|until| *until > now).min();
        ends.map_or(self.queue.poll_interval, |end| self.queue.poll_interval.min(end - now))
    }

    /// Notes what an endpoint made of the last call.
    fn note(&self, lane: &Lane, answer: Answer) {
        let endpoint = lane.endpoint.as_str();
        let mut resting = self.resting();
        let times = resting.get(endpoint).map_or(1, |(times, _)| times.saturating_add(1));
        let rest = match answer {
            Answer::Taken | Answer::Refused => {
                resting.remove(endpoint);
                return;
            }
            Answer::Busy(Some(rest)) => rest.min(LONGEST_REST),
            Answer::Busy(None) => backoff::exponential(BUSY_BASE, BUSY_CAP, times, &self.queue.random),
            Answer::Away | Answer::Unready => backoff::exponential(AWAY_BASE, AWAY_CAP, times, &self.queue.random),
        };
        resting.insert(endpoint.to_owned(), (times, self.queue.clock.elapsed() + rest));
        if answer == Answer::Away && times == 1 {
            tracing::warn!(service = lane.service, "the service's endpoint cannot be reached; its tasks wait");
        }
    }

    /// Sends until `stop`. A service that is slow to accept holds up none but itself.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let queue = this.queue.clone();
        // Who is being served, and who is to be served once more after that: others need no new look for it.
        let (mut busy, mut again, mut sending) = (HashSet::new(), HashSet::new(), JoinSet::new());
        while !stop.is_cancelled() && queue.key.is_some() {
            let mut hint = queue.db.listen(Topic::Jobs); // armed before the look
            match this.lanes().await {
                Ok(lanes) => {
                    for lane in lanes {
                        if busy.insert(lane.worker()) {
                            sending.spawn(this.clone().send(lane));
                        } else {
                            again.insert(lane.worker());
                        }
                    }
                }
                Err(cause) => tracing::warn!(%cause, "services could not be read"),
            }
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    Some(ended) = sending.join_next() => match ended {
                        Ok(lane) => {
                            if again.remove(&lane.worker()) && !stop.is_cancelled() && !this.rests(&lane.endpoint) {
                                sending.spawn(this.clone().send(lane));
                            } else {
                                busy.remove(&lane.worker());
                            }
                        }
                        Err(_) => busy.clear(), // a panic: nobody knows whose it was, and the claims fence doubles
                    },
                    () = hint.woken() => break,
                    () = queue.clock.sleep(this.next_look()) => break,
                }
            }
        }
        while sending.join_next().await.is_some() {}
    }

    async fn send(self: Arc<Self>, lane: Lane) -> Lane {
        if let Err(cause) = self.serve(&lane).await {
            tracing::warn!(%cause, service = lane.service, "tasks could not be sent");
        }
        lane
    }

    /// Sends what there is to send now; how many were accepted.
    pub async fn send_pending(&self) -> Result<usize> {
        if self.queue.key.is_none() {
            return Ok(0);
        }
        let lanes = self.lanes().await?;
        let sent = join_all(lanes.iter().map(|lane| self.serve(lane))).await;
        sent.into_iter().sum()
    }

    async fn lanes(&self) -> Result<Vec<Lane>> {
        let db = &self.queue.db;
        let endpoints: HashMap<String, String> = services(db)
            .await?
            .into_iter()
            .filter_map(|service| Some((service.id, service.endpoint.filter(|endpoint| !self.rests(endpoint))?)))
            .collect();
        let mut by_queue: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        if !endpoints.is_empty() {
            for lane in lanes(db, None).await? {
                by_queue.entry((lane.service, lane.queue)).or_default().push(lane.task);
            }
        }
        let lane = |((service, queue), kinds): ((String, String), Vec<String>)| {
            let endpoint = endpoints.get(&service)?.clone();
            Some(Lane { service, endpoint, queue, kinds })
        };
        Ok(by_queue.into_iter().filter_map(lane).collect())
    }

    /// Claims for one service and calls it, until nothing is left or it has as much as it may.
    async fn serve(&self, lane: &Lane) -> Result<usize> {
        let Some(key) = &self.queue.key else { return Ok(0) };
        let worker = lane.worker();
        let kinds: Vec<&str> = lane.kinds.iter().map(String::as_str).collect();
        let mut accepted = 0;
        loop {
            let held = usize::try_from(held_by(&self.queue.db, &worker).await?).unwrap_or(usize::MAX);
            let limit = self.queue.max_concurrency.saturating_sub(held);
            let (lease, longest_wait) = (self.queue.lease, self.queue.longest_wait);
            let wanted = Claim { queue: &lane.queue, kinds: &kinds, worker: &worker, lease, longest_wait, limit };
            let claimed = take(&self.queue.db, &wanted).await?;
            if claimed.jobs().is_empty() {
                return Ok(accepted);
            }
            let assignments = match self.queue.assign(key, claimed).await {
                Ok(assignments) => assignments,
                Err(problem) => {
                    tracing::warn!(cause = problem.detail, service = lane.service, "tasks could not be made ready");
                    self.note(lane, Answer::Unready);
                    return Ok(accepted);
                }
            };
            let calls = join_all(assignments.into_iter().map(|assignment| self.call(lane, assignment))).await;
            let answers = calls.into_iter().collect::<Result<Vec<Answer>>>()?;
            let taken = answers.iter().filter(|answer| **answer == Answer::Taken).count();
            if taken > 0 {
                let mut tx = self.queue.db.begin().await?;
                let seen = WorkerSeen {
                    id: &worker,
                    service: Some(&lane.service),
                    mode: "push",
                    endpoint: Some(&lane.endpoint),
                    queue: &lane.queue,
                    kinds: &kinds,
                    capacity: i64::try_from(self.queue.max_concurrency).unwrap_or(i64::MAX),
                };
                worker_seen(&mut tx, &seen).await?;
                tx.commit().await?;
            }
            accepted += taken;
            let rests = answers.iter().find(|answer| matches!(answer, Answer::Away | Answer::Busy(_)));
            self.note(lane, rests.copied().unwrap_or(Answer::Taken));
            if rests.is_some() {
                return Ok(accepted);
            }
        }
    }

    /// Hands one run over.
    async fn call(&self, lane: &Lane, assignment: Assignment) -> Result<Answer> {
        let hold = Hold { id: assignment.run_id, lease: assignment.lease };
        // What the worker says beside its status is not read: nothing in it counts.
        match self.queue.client.post(&lane.endpoint).json(&assignment).send().await {
            Ok(response) if response.status().is_success() => Ok(Answer::Taken),
            Ok(response) if matches!(response.status().as_u16(), 429 | 503) => {
                let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                self.given_back(hold, Answer::Busy(seconds.map(Duration::from_secs))).await
            }
            Ok(response) => self.refused(lane, hold, &format!("the worker refused it: {}", response.status())).await,
            Err(error) if error.is_connect() => self.given_back(hold, Answer::Away).await,
            Err(error) if error.is_builder() => self.refused(lane, hold, "the endpoint is no URL").await,
            Err(_) => Ok(Answer::Taken), // it may have begun; its lease decides
        }
    }

    /// The run has not begun, and waits for the next look.
    async fn given_back(&self, hold: Hold, answer: Answer) -> Result<Answer> {
        let mut tx = self.queue.db.begin().await?;
        give_back(&mut tx, &[hold]).await?;
        tx.commit().await?;
        Ok(answer)
    }

    async fn refused(&self, lane: &Lane, hold: Hold, why: &str) -> Result<Answer> {
        let mut tx = self.queue.db.begin().await?;
        if fail(&mut tx, hold, why, Again::ByPolicy(&self.queue.random, self.queue.longest_wait)).await?.is_some() {
            note_outcomes(&mut tx, &lane.worker(), Outcomes { failed: 1, ..Outcomes::default() }).await?;
        }
        tx.commit().await?;
        self.queue.db.wake(Topic::JobsEnded).await;
        Ok(Answer::Refused)
    }
}
