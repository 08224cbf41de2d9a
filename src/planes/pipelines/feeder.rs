//! Hands waiting runs to idle engines, keeps the leases of those that run, and tells engines what is asked of their
//! runs. One task a process; a hint makes it look sooner, a poll runs underneath.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::message::{Asked, Assignment, Inbound, Work};
use super::store::{self, Hold};
use super::{Engine, Pipelines};
use crate::db::{Result, Topic};

/// Between looks when nothing wakes it.
const POLL: Duration = Duration::from_secs(1);

pub(super) async fn run(plane: Arc<Pipelines>) {
    let lease = Duration::from_secs(plane.config.lease_seconds);
    let mut renew_at = plane.clock.elapsed() + lease / 3;
    while !plane.stop.is_cancelled() {
        let mut hint = plane.db.listen(Topic::Runs);
        let mut jobs = plane.db.listen(Topic::JobsEnded);
        let looked = plane.feed(lease).await.and(plane.tell_asked().await);
        let renewed = match plane.clock.elapsed() >= renew_at {
            true => {
                let renewed = plane.renew(lease).await;
                renew_at = plane.clock.elapsed() + lease / 3;
                renewed
            }
            false => Ok(()),
        };
        if let Err(cause) = looked.and(renewed) {
            tracing::warn!(%cause, "runs could not be looked at");
        }
        let poll = POLL.min(renew_at.saturating_sub(plane.clock.elapsed()));
        tokio::select! {
            () = plane.stop.cancelled() => {}
            () = plane.look.notified() => {}
            () = hint.woken() => {}
            () = jobs.woken() => {}
            () = plane.clock.sleep(poll.max(Duration::from_millis(1))) => {}
        }
    }
    // Engines give their runs back while they stop; their leases hold until then.
    loop {
        tokio::select! {
            () = plane.workers.wait() => return,
            () = plane.clock.sleep(renew_at.saturating_sub(plane.clock.elapsed())) => {}
        }
        if let Err(cause) = plane.renew(lease).await {
            tracing::warn!(%cause, "leases could not be renewed");
        }
        renew_at = plane.clock.elapsed() + lease / 3;
    }
}

impl Pipelines {
    /// Takes runs for the engines that are idle.
    async fn feed(&self, lease: Duration) -> Result<()> {
        let mut idle: Vec<Arc<Engine>> = self.engines().into_iter().filter(|engine| engine.reserve()).collect();
        let fed = self.feed_to(&mut idle, lease).await;
        idle.iter().for_each(|engine| engine.unreserve());
        fed
    }

    async fn feed_to(&self, idle: &mut Vec<Arc<Engine>>, lease: Duration) -> Result<()> {
        if idle.is_empty() {
            self.backlog.store(true, Ordering::Release);
            return Ok(());
        }
        // Unset before the look: whoever adds a run after it sets it again.
        self.backlog.store(false, Ordering::Release);
        let now = self.db.now().await?;
        if !store::has_work(&self.db, now).await? {
            return Ok(());
        }
        self.backlog.store(true, Ordering::Release);
        let mut tx = self.db.begin().await?;
        store::wake_runs(&mut tx).await?;
        let names: Vec<&str> = idle.iter().map(|engine| engine.id.as_str()).collect();
        let runs = store::claim(&mut tx, &self.instance, &names, lease).await?;
        tx.commit().await?;
        let engines: Vec<Arc<Engine>> = idle.drain(..runs.len().min(idle.len())).collect();
        for (engine, run) in engines.into_iter().zip(runs) {
            let hold = Hold { run: run.id, lease: run.lease };
            let (parent, depth) = (run.parent_run_id, run.depth);
            let asked = run.requested.as_deref().and_then(asked_for);
            let work = Work::Claimed(Box::new(run));
            let assignment = Assignment { hold, parent, depth, asked, work };
            let _ = engine.inbound.send(Inbound::WorkflowRequest(Box::new(assignment))).await;
        }
        Ok(())
    }

    /// Renews the leases of the runs that engines have, and asks the database's time.
    async fn renew(&self, lease: Duration) -> Result<()> {
        self.ask_time().await?;
        let runs: Vec<i64> = self.engines().iter().filter_map(|engine| engine.health().run).collect();
        store::renew(&self.db, &self.instance, &runs, self.now().after(lease)).await
    }

    async fn tell_asked(&self) -> Result<()> {
        for (run, asked) in store::requested(&self.db, &self.instance).await? {
            let Some(what) = asked_for(&asked) else { continue };
            let engine = self.engines().into_iter().find(|engine| engine.health().run == Some(run));
            if let Some(engine) = engine {
                // A full channel is told again at the next look.
                let _ = engine.inbound.try_send(Inbound::Asked { run, what });
            }
        }
        Ok(())
    }
}

fn asked_for(text: &str) -> Option<Asked> {
    match text {
        "pause" => Some(Asked::Pause),
        "cancel" => Some(Asked::Cancel),
        _ => None,
    }
}
