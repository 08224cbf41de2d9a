//! One look at the platform: every section from one consistent read, in few statements.
//!
//! A section that cannot be read is left out and named in `system.unobserved`; the cycle goes on with less trust.

use std::sync::Arc;

use super::snapshot::{Snapshot, SystemSection};
use crate::db::{Db, Result, Timestamp, Tx};
use crate::ledger;
use crate::planes::fleet;
use crate::planes::pipelines::{self, EnginesSection, Pipelines};
use crate::planes::publishing::{self, Publishing};
use crate::planes::queue;

/// Looks.
#[derive(Clone)]
pub struct Monitor {
    db: Db,
    publishing: Arc<Publishing>,
    engines: Option<Arc<Pipelines>>,
}

/// A reading transaction that is begun again when a failed statement has spoilt it.
struct Look<'a> {
    db: &'a Db,
    tx: Option<Tx>,
    unobserved: Vec<String>,
}

/// Reads one section through `$look`; on failure names it and begins a new read for the others.
macro_rules! section {
    ($look:ident, $name:literal, |$tx:ident| $read:expr) => {{
        let read = match $look.tx.as_mut() {
            Some($tx) => $read.await,
            None => Err(crate::db::Error::Unavailable("no reading transaction".to_owned())),
        };
        $look.taken($name, read).await
    }};
}

impl Look<'_> {
    async fn taken<T>(&mut self, name: &str, read: Result<T>) -> Option<T> {
        match read {
            Ok(section) => Some(section),
            Err(cause) => {
                tracing::warn!(%cause, section = name, "a section could not be observed");
                self.unobserved.push(name.to_owned());
                self.tx = None; // gives its connection back before another one is asked for
                self.tx = self.db.begin_read().await.ok();
                None
            }
        }
    }
}

impl Monitor {
    /// A monitor over the given planes.
    pub fn new(db: Db, publishing: Arc<Publishing>) -> Self {
        Self { db, publishing, engines: None }
    }

    /// Looks at this process's engines too; without them there are none.
    pub fn with_engines(self, pipelines: Arc<Pipelines>) -> Self {
        Self { engines: Some(pipelines), ..self }
    }

    /// Looks at everything. Fails only when the database cannot be read at all. Health is not worked out yet.
    pub async fn look(&self) -> Result<Snapshot> {
        let mut tx = self.db.begin_read().await?;
        let at: Timestamp = tx.now().await?;
        let mut look = Look { db: &self.db, tx: Some(tx), unobserved: Vec::new() };
        let publishing = &*self.publishing;
        // One reading for three sections: either all of them are seen or none.
        let work = section!(look, "jobs", |tx| queue::observe(tx, at));
        let (jobs, workers, dead_letters) =
            work.map_or((None, None, None), |seen| (Some(seen.jobs), Some(seen.workers), Some(seen.dead_letters)));
        let publish_logs = section!(look, "publish_logs", |tx| publishing::observe_publish_logs(tx, at));
        let campaigns = section!(look, "campaigns", |tx| publishing::observe_campaigns(tx));
        let clips = section!(look, "clips", |tx| publishing::observe_clips(tx, publishing, at));
        let ledger = section!(look, "ledger", |tx| ledger::observe(tx, at));
        let runs = section!(look, "pipelines", |tx| pipelines::observe(tx, at));
        let agents = section!(look, "agents", |tx| fleet::observe_agents(tx, at));
        let streams = section!(look, "streams", |tx| fleet::observe_streams(tx, at));
        let engines = self.engines.as_ref().map_or_else(EnginesSection::default, |plane| plane.observe_engines());
        Ok(Snapshot {
            at,
            jobs,
            publish_logs,
            scheduler: Some(publishing.observe_scheduler(at)),
            campaigns,
            clips,
            ledger,
            workers,
            dead_letters,
            pipelines: runs,
            engines: Some(engines),
            agents,
            streams,
            system: SystemSection { unobserved: look.unobserved, ..SystemSection::default() },
        })
    }
}
