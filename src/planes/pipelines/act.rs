//! What the loop may do to pipelines, each inside a transaction that it is given. Wake
//! [`Topic::Runs`](crate::db::Topic) after the commit.

use serde_json::json;

use super::{steer, store, triggers};
use crate::db::Tx;
use crate::planes::{ActError, Effect};

/// How often the loop has one run tried again; a person may go on.
const MAX_RETRIES: i64 = 3;

/// Has a failed run go on from the step that failed.
pub async fn retry_run(tx: &mut Tx, run: i64) -> Result<Effect, ActError> {
    let before = store::lock_run(tx, run).await?;
    let before = before.ok_or_else(|| ActError::refused(format!("there is no run {run}")))?;
    if before.status == "cancelled" {
        return Err(ActError::refused(format!("run {run} was given up by somebody")));
    }
    if let Some(parent) = before.parent_run_id {
        return Err(ActError::refused(format!("run {run} is a step of run {parent}; that one is to be tried again")));
    }
    if store::has_undone(tx, run).await? {
        return Err(ActError::refused(format!("run {run} has undone what it did; somebody has to look first")));
    }
    if before.retries >= MAX_RETRIES {
        return Err(ActError::refused(format!("run {run} was tried again {} times already", before.retries)));
    }
    steer::retry(tx, run).await?;
    let detail = json!({ "pipeline": before.pipeline_id, "retries": before.retries + 1, "error": before.error });
    Ok(Effect { detail })
}

/// Gives a run up, with the tasks and runs that it waits for.
pub async fn cancel_run(tx: &mut Tx, run: i64) -> Result<Effect, ActError> {
    let before = steer::cancel(tx, run).await?;
    Ok(Effect { detail: json!({ "pipeline": before.pipeline_id, "was": before.status }) })
}

/// Stops a trigger; somebody has to start it again.
pub async fn pause_trigger(tx: &mut Tx, id: &str) -> Result<Effect, ActError> {
    let row = triggers::lock(tx, id).await?;
    let row = row.ok_or_else(|| ActError::refused(format!("there is no trigger `{id}`")))?;
    if !row.is_active {
        return Err(ActError::refused(format!("trigger `{id}` is stopped already")));
    }
    triggers::set_active(tx, id, false, None).await?;
    Ok(Effect { detail: json!({ "pipeline": row.pipeline_id, "kind": row.kind, "last_error": row.error }) })
}
