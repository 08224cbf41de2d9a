//! What somebody may do to a run: hold it, let it go on, give it up, have it tried again.

use super::Pipelines;
use super::model::{Run, RunEvent, RunStatus, StepStatus};
use super::store;
use crate::db::{self, Tx};
use crate::planes::ActError;

/// Holds a run. One that is on an engine finishes the calls that are out first.
pub async fn pause(tx: &mut Tx, id: i64) -> Result<Run, ActError> {
    let run = locked(tx, id, RunEvent::Paused).await?;
    match RunStatus::read(&run.status) {
        RunStatus::Running => store::request(tx, id, "pause").await?,
        // Somebody gave it up, and the next engine that takes it ends it.
        _ if run.requested.as_deref() == Some("cancel") => {}
        _ => store::set_status(tx, id, "paused").await?,
    }
    Ok(run)
}

/// Lets a held run go on.
pub async fn resume(tx: &mut Tx, id: i64) -> Result<Run, ActError> {
    let run = locked(tx, id, RunEvent::Resumed).await?;
    store::set_status(tx, id, "pending").await?;
    Ok(run)
}

/// Gives a run up, and with it the tasks and runs that it waits for. Nothing is undone: that is for runs that fail.
pub async fn cancel(tx: &mut Tx, id: i64) -> Result<Run, ActError> {
    let run = locked(tx, id, RunEvent::Cancelled).await?;
    cancel_in(tx, id).await?;
    Ok(run)
}

/// The same where the run may be over already.
pub(super) async fn cancel_in(tx: &mut Tx, id: i64) -> db::Result<()> {
    let mut open = vec![id];
    while let Some(id) = open.pop() {
        let Some(run) = store::lock_run(tx, id).await? else { continue };
        match RunStatus::read(&run.status) {
            RunStatus::Running => store::request(tx, id, "cancel").await?,
            status if status.is_final() => {}
            _ => {
                store::set_status(tx, id, "cancelled").await?;
                for (job, child) in store::cancel_steps(tx, id).await? {
                    if let Some(job) = job {
                        store::cancel_task(tx, job).await?;
                    }
                    open.extend(child);
                }
            }
        }
    }
    Ok(())
}

/// Has a failed or cancelled run go on from the step that failed: what is done stays done, unless it was undone.
pub async fn retry(tx: &mut Tx, id: i64) -> Result<Run, ActError> {
    let run = locked(tx, id, RunEvent::Retried).await?;
    let rows = store::steps_in(tx, id).await?;
    let undone: Vec<String> = rows
        .iter()
        .filter(|row| row.status == StepStatus::Completed.as_str())
        .filter_map(|row| row.step.strip_suffix(".compensate"))
        .flat_map(|step| [step.to_owned(), format!("{step}.compensate")])
        .collect();
    store::retry_run(tx, id, &undone).await?;
    Ok(run)
}

async fn locked(tx: &mut Tx, id: i64, event: RunEvent) -> Result<Run, ActError> {
    let run = store::lock_run(tx, id).await?;
    let run = run.ok_or_else(|| ActError::refused(format!("there is no run {id}")))?;
    RunStatus::read(&run.status).on(event).map_err(|illegal| ActError::refused(illegal.to_string()))?;
    Ok(run)
}

impl Pipelines {
    /// Tells engines of this process what was asked of their runs, and has the others told.
    pub async fn asked(&self) {
        self.look();
        self.db.wake(crate::db::Topic::Runs).await;
    }
}
