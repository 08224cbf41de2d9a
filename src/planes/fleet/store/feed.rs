//! What changed behind a number, in the order of its commits.

use super::{of_agents, of_jobs_in_short};
use crate::db::{Db, Result, Sql, Tx};
use crate::planes::fleet::record::{Agent, Job};

/// Rows of each kind that one look reads.
pub const BATCH: i64 = 1_000;
/// Ended jobs that are shown beside the living.
pub const ENDED: i64 = 1_000;

/// Rows that changed, and up to which number that is all.
#[derive(Debug, Default)]
pub struct Changes {
    pub agents: Vec<Agent>,
    pub jobs: Vec<Job>,
    pub head: i64,
}

async fn head(tx: &mut Tx) -> Result<i64> {
    Ok(tx.query("SELECT revision FROM fleet_head WHERE id = 1").one::<(i64,)>().await?.0)
}

/// The last number that was given.
pub async fn last(db: &Db) -> Result<i64> {
    Ok(db.query_kept("SELECT revision FROM fleet_head WHERE id = 1").one::<(i64,)>().await?.0)
}

/// Everything that is shown: all agents, all living jobs, and the newest that ended.
pub async fn everything(tx: &mut Tx) -> Result<Changes> {
    const ENDED_JOBS: Sql = of_jobs_in_short!("WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT $1");
    let head = head(tx).await?;
    let agents = tx.query(of_agents!("")).all().await?;
    let mut jobs: Vec<Job> = tx.query(of_jobs_in_short!("WHERE ended_at IS NULL")).all().await?;
    jobs.extend(tx.query(ENDED_JOBS).bind(ENDED).all::<Job>().await?);
    Ok(Changes { agents, jobs, head })
}

/// What changed behind `revision`. One consistent read.
pub async fn behind(tx: &mut Tx, revision: i64) -> Result<Changes> {
    let head = head(tx).await?;
    if head == revision {
        return Ok(Changes { head, ..Changes::default() });
    }
    let agents: Vec<Agent> =
        tx.query(of_agents!("WHERE revision > $1 ORDER BY revision LIMIT $2")).bind(revision).bind(BATCH).all().await?;
    let jobs: Vec<Job> = tx
        .query(of_jobs_in_short!("WHERE revision > $1 ORDER BY revision LIMIT $2"))
        .bind(revision)
        .bind(BATCH)
        .all()
        .await?;
    // A full list ends before the head, and so does what is known for sure.
    let end = |full: bool, last: Option<i64>| if full { last.unwrap_or(head) } else { head };
    let head = end(agents.len() as i64 == BATCH, agents.last().map(|agent| agent.revision))
        .min(end(jobs.len() as i64 == BATCH, jobs.last().map(|job| job.revision)));
    Ok(Changes { agents, jobs, head })
}
