//! What the loop may do to the queue: put it in order.

use serde_json::json;

use super::store;
use crate::db::Tx;
use crate::planes::{ActError, Effect};

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
    let failed_jobs = if emergency { store::fail_long_pending(tx).await? } else { Vec::new() };
    let rescued = store::rescue(tx, store::BATCH).await?;
    let aged = store::age_priorities(tx).await?;
    let spread = store::spread_low_priority(tx).await?;
    let detail = json!({ "rescued": rescued, "aged": aged, "spread": spread, "failed": failed_jobs.len() });
    Ok(Rebalanced { effect: Effect { detail }, failed_jobs })
}
