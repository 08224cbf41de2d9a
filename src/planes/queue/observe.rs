//! What the loop sees of the queue: the sections `jobs`, `workers` and `dead_letters`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::store::watch::{self, Figures, Recent};
use crate::db::{Result, Timestamp, Tx};

/// More pending jobs than this is a saturated queue (seed heuristic: ">50 pending jobs").
const SATURATED_ABOVE: i64 = 50;
/// Rows that a list shows at most.
const SHOWN: usize = 20;

/// The queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobsSection {
    /// Ready to run.
    pub pending: i64,
    /// Running.
    pub processing: i64,
    /// Waiting for another try.
    pub retry: i64,
    /// Out of tries.
    pub failed: i64,
    /// Done.
    pub completed: i64,
    /// Not due yet.
    pub waiting: i64,
    /// Age of the oldest pending job, in whole minutes; 0 when there is none.
    pub oldest_pending_minutes: i64,
    /// More than 50 are pending.
    pub queue_saturated: bool,
}

/// Who runs jobs, and the queues that give trouble.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkersSection {
    pub total: i64,
    /// Heard of within the last minute.
    pub alive: i64,
    pub quarantined: i64,
    /// Jobs that the living run at once.
    pub capacity: i64,
    /// Workers with failed tries in the running ten minutes, most failures first, at most 20; none in quarantine.
    pub failing: Vec<WorkerView>,
    pub paused_queues: i64,
    /// Queues that are paused, or whose workers had failed tries in the running ten minutes, most failures first, at
    /// most 20.
    pub queues: Vec<QueueView>,
}

/// A worker with failed tries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    pub id: String,
    pub queue: String,
    /// Tries in the running ten minutes.
    pub completed: i64,
    /// With those that were lost.
    pub failed: i64,
    /// Of a hundred tries.
    pub failed_percent: i64,
    /// The same of all others of its queue; null where they ended none.
    pub others_failed_percent: Option<i64>,
}

/// A queue that is paused or fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    pub name: String,
    pub paused: bool,
    /// `loop`, or `operator:<name>`.
    pub paused_by: Option<String>,
    pub paused_minutes: i64,
    /// Tries in the running ten minutes.
    pub completed: i64,
    /// With those that were lost.
    pub failed: i64,
    /// Of a hundred tries.
    pub failed_percent: i64,
}

/// Jobs that ran out of tries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeadLettersSection {
    /// Nobody has tried them again.
    pub open: i64,
    /// Of the last hour, while any is open; counted up to 1,000.
    pub recent_1h: i64,
    /// Of the 200 newest open ones whose job is there: first those whose task's code has changed since, then the
    /// newest, at most 20.
    pub retryable: Vec<DeadLetterView>,
}

/// A dead letter that can be tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterView {
    pub id: i64,
    pub job_id: i64,
    pub task: String,
    pub queue: String,
    pub error: Option<String>,
    /// How the last try ended: `failed`, `lapsed` or `timed_out`.
    pub outcome: Option<String>,
    /// How often its job has run out of tries, this time with it.
    pub rounds: i64,
    /// The task's code is newer than the one that failed.
    pub code_changed: bool,
    pub minutes: i64,
}

/// All that the loop sees of the queue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    pub jobs: JobsSection,
    pub workers: WorkersSection,
    pub dead_letters: DeadLettersSection,
}

/// Reads the sections: the figures where they are not `seen` yet, and lists only where there is something to show. The
/// cost does not grow with what is over.
pub async fn observe(tx: &mut Tx, now: Timestamp, seen: Option<Figures>) -> Result<Observed> {
    let seen = match seen {
        Some(seen) => seen,
        None => tx.figures(watch::FIGURES, now).await?,
    };
    let jobs = JobsSection {
        pending: seen.jobs_pending,
        processing: seen.jobs_processing,
        retry: seen.jobs_retry,
        failed: seen.jobs_failed,
        completed: seen.jobs_completed,
        waiting: seen.jobs_waiting,
        oldest_pending_minutes: seen.jobs_oldest_pending.map_or(0, |oldest| minutes(now, oldest)),
        queue_saturated: seen.jobs_pending > SATURATED_ABOVE,
    };
    let recent = if seen.workers_failing > 0 { watch::recent(tx, now).await? } else { Vec::new() };
    let paused = if seen.queues_paused > 0 { watch::paused(tx).await? } else { Vec::new() };
    let workers = WorkersSection {
        total: seen.workers,
        alive: seen.workers_alive,
        quarantined: seen.workers_quarantined,
        capacity: seen.workers_capacity,
        failing: failing(&recent),
        paused_queues: seen.queues_paused,
        queues: troubled(&recent, paused, now),
    };
    let mut dead_letters = DeadLettersSection { open: seen.dead_letters, ..DeadLettersSection::default() };
    if seen.dead_letters > 0 {
        dead_letters.recent_1h = watch::letters_since(tx, now.before(Duration::from_secs(3600))).await?;
        let letters = watch::letters(tx, SHOWN as i64).await?;
        dead_letters.retryable = letters
            .into_iter()
            .map(|letter| DeadLetterView {
                id: letter.id,
                job_id: letter.job_id,
                task: letter.task_id,
                queue: letter.queue,
                error: letter.error,
                outcome: letter.outcome,
                rounds: letter.rounds,
                code_changed: letter.code_changed > 0,
                minutes: minutes(now, letter.created_at),
            })
            .collect();
    }
    Ok(Observed { jobs, workers, dead_letters })
}

fn minutes(now: Timestamp, since: Timestamp) -> i64 {
    (now.since(since).as_secs() / 60) as i64
}

fn percent(completed: i64, failed: i64) -> Option<i64> {
    (failed * 100).checked_div(completed + failed)
}

/// Completed and failed tries of each queue's workers that are not in quarantine.
fn by_queue(recent: &[Recent]) -> BTreeMap<&str, (i64, i64)> {
    let mut queues: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for worker in recent.iter().filter(|worker| !worker.quarantined) {
        let (completed, failed) = queues.entry(&worker.queue).or_default();
        *completed += worker.completed;
        *failed += worker.failed;
    }
    queues
}

fn failing(recent: &[Recent]) -> Vec<WorkerView> {
    let queues = by_queue(recent);
    let view = |worker: &Recent| {
        let (completed, failed) = queues.get(worker.queue.as_str()).copied().unwrap_or_default();
        WorkerView {
            id: worker.id.clone(),
            queue: worker.queue.clone(),
            completed: worker.completed,
            failed: worker.failed,
            failed_percent: percent(worker.completed, worker.failed).unwrap_or_default(),
            others_failed_percent: percent(completed - worker.completed, failed - worker.failed),
        }
    };
    recent.iter().filter(|worker| !worker.quarantined && worker.failed > 0).map(view).take(SHOWN).collect()
}

fn troubled(
    recent: &[Recent],
    paused: Vec<(String, Option<String>, Option<Timestamp>)>,
    now: Timestamp,
) -> Vec<QueueView> {
    let outcomes = by_queue(recent);
    let view = |name: String, paused: bool| {
        let (completed, failed) = outcomes.get(name.as_str()).copied().unwrap_or_default();
        let failed_percent = percent(completed, failed).unwrap_or_default();
        QueueView { name, paused, paused_by: None, paused_minutes: 0, completed, failed, failed_percent }
    };
    let mut queues: Vec<QueueView> = paused
        .into_iter()
        .map(|(name, by, since)| QueueView {
            paused_by: by,
            paused_minutes: since.map_or(0, |since| minutes(now, since)),
            ..view(name, true)
        })
        .collect();
    let is_paused = |name: &str| queues.iter().any(|queue| queue.name == name);
    let failing: Vec<QueueView> = outcomes
        .iter()
        .filter(|(name, (_, failed))| *failed > 0 && !is_paused(name))
        .map(|(name, _)| view((*name).to_owned(), false))
        .collect();
    queues.extend(failing);
    queues.sort_by(|one, other| other.failed.cmp(&one.failed).then_with(|| one.name.cmp(&other.name)));
    queues.truncate(SHOWN);
    queues
}
