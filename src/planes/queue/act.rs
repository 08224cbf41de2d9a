//! What the loop may do to the queue: put it in order, try dead letters again, pause and resume queues, and give a bad
//! worker no jobs for a while.

use std::time::Duration;

use serde_json::json;

use super::store::letters::{self, RetryLetter};
use super::store::{self, finish, order, queues, registry, watch};
use crate::actor::Actor;
use crate::db::Tx;
use crate::planes::{ActError, Effect};

/// How often the loop tries one job again that has run out of tries; a person may go on.
const MAX_ROUNDS: i64 = 3;

/// How long a worker is kept without jobs: longer than the ten minutes by which it is judged.
const QUARANTINE: Duration = Duration::from_secs(15 * 60);

/// What putting the queue in order did.
pub struct Rebalanced {
    /// For the ledger.
    pub effect: Effect,
    /// Jobs that were failed because they had been pending for over two hours; whoever waits on one must hear of it.
    pub failed_jobs: Vec<i64>,
}

/// Takes lapsed leases back, raises the priority of old pending jobs, and spreads young low-priority ones beyond the
/// saturation bound over the next minutes. An `emergency` also fails what has been pending for over two hours; failed
/// jobs are kept.
pub async fn rebalance(tx: &mut Tx, emergency: bool) -> Result<Rebalanced, ActError> {
    let failed_jobs = if emergency { order::fail_long_pending(tx).await? } else { Vec::new() };
    let rescued = finish::rescue(tx, finish::LONGEST_LEASE, finish::LONGEST_WAIT, store::BATCH).await?;
    let aged = order::age_priorities(tx).await?;
    let spread = order::spread_low_priority(tx).await?;
    let detail = json!({ "rescued": rescued, "aged": aged, "spread": spread, "failed": failed_jobs.len() });
    Ok(Rebalanced { effect: Effect { detail }, failed_jobs })
}

/// Gives a dead letter's job another round of tries, three times at most.
pub async fn retry_dead_letter(tx: &mut Tx, id: i64) -> Result<Effect, ActError> {
    let rounds = watch::rounds(tx, id).await?;
    if rounds > MAX_ROUNDS {
        return Err(ActError::refused(format!("the job of dead letter {id} has run out of tries {rounds} times")));
    }
    match letters::retry_dead_letter(tx, id, &Actor::Loop).await? {
        RetryLetter::Retried { job_id } => Ok(Effect { detail: json!({ "job": job_id, "rounds": rounds }) }),
        RetryLetter::Already => Err(ActError::refused(format!("dead letter {id} was tried again already"))),
        RetryLetter::JobGone => Err(ActError::refused(format!("the job of dead letter {id} is gone or alive"))),
        RetryLetter::Unknown => Err(ActError::refused(format!("there is no dead letter {id}"))),
    }
}

/// Hands out no more of a queue's jobs; running ones go on.
pub async fn pause_queue(tx: &mut Tx, name: &str) -> Result<Effect, ActError> {
    match queues::pause(tx, name, &Actor::Loop).await? {
        true => Ok(Effect { detail: json!({ "queue": name }) }),
        false => Err(ActError::refused(format!("the queue `{name}` is paused already"))),
    }
}

/// Hands a queue's jobs out again that the loop has paused; what a person paused is the person's to resume.
pub async fn resume_queue(tx: &mut Tx, name: &str) -> Result<Effect, ActError> {
    let by = watch::paused_by(tx, name).await?;
    let by = by.ok_or_else(|| ActError::refused(format!("the queue `{name}` is not paused")))?;
    if by != Actor::Loop.to_string() {
        return Err(ActError::refused(format!("the queue `{name}` was paused by {by}")));
    }
    queues::resume(tx, name).await?;
    Ok(Effect { detail: json!({ "queue": name }) })
}

/// Gives a worker no jobs for 15 minutes; never the last one of its queue.
pub async fn quarantine_worker(tx: &mut Tx, id: &str) -> Result<Effect, ActError> {
    let found = watch::worker_and_peers(tx, id).await?;
    let (quarantined, peers) = found.ok_or_else(|| ActError::refused(format!("there is no worker `{id}`")))?;
    if quarantined {
        return Err(ActError::refused(format!("worker `{id}` is in quarantine already")));
    }
    if peers == 0 {
        return Err(ActError::refused(format!("worker `{id}` is the last one of its queue")));
    }
    let until = tx.now().await?.after(QUARANTINE);
    registry::quarantine(tx, id, until).await?;
    Ok(Effect { detail: json!({ "until": until, "others": peers }) })
}
