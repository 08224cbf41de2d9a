//! One look at the platform: every section from one consistent read, in few statements.
//!
//! The figures of all sections are one statement; lists follow where the figures say that there is something to show.
//! Where that statement fails, each section reads its own figures. A section that cannot be read is left out and named
//! in `system.unobserved`; the cycle goes on with less trust.

use std::sync::{Arc, LazyLock};

use super::snapshot::{Snapshot, SystemSection};
use crate::db::{Db, Result, Sql, Timestamp, Tx};
use crate::ledger;
use crate::planes::fleet;
use crate::planes::pipelines::{self, EnginesSection, Pipelines};
use crate::planes::publishing::{self, Publishing};
use crate::planes::queue;

/// The figures of all sections.
#[derive(Clone, Copy, sqlx::FromRow)]
struct Figures {
    #[sqlx(flatten)]
    work: queue::Figures,
    #[sqlx(flatten)]
    logs: publishing::LogFigures,
    #[sqlx(flatten)]
    campaigns: publishing::CampaignFigures,
    #[sqlx(flatten)]
    clips: publishing::ClipFigures,
    #[sqlx(flatten)]
    ledger: ledger::Figures,
    #[sqlx(flatten)]
    runs: pipelines::Figures,
    #[sqlx(flatten)]
    agents: fleet::AgentFigures,
    #[sqlx(flatten)]
    streams: fleet::StreamFigures,
}

/// The row of [`Figures`].
static FIGURES: LazyLock<Sql> = LazyLock::new(|| {
    Sql::side_by_side(&[
        queue::FIGURES,
        publishing::LOG_FIGURES,
        publishing::CAMPAIGN_FIGURES,
        publishing::CLIP_FIGURES,
        ledger::FIGURES,
        pipelines::FIGURES,
        fleet::AGENT_FIGURES,
        fleet::STREAM_FIGURES,
    ])
});

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

impl<'a> Look<'a> {
    /// Begins with the figures of all sections; none where they cannot be read together.
    async fn begin(db: &'a Db) -> Result<(Self, Timestamp, Option<Figures>)> {
        let mut tx = db.begin_kept_read().await?;
        let at = tx.now().await?;
        let figures = tx.figures(*FIGURES, at).await;
        let mut look = Self { db, tx: Some(tx), unobserved: Vec::new() };
        if let Err(cause) = &figures {
            tracing::debug!(%cause, "the figures could not be read together; each section reads its own");
            look.begin_again().await;
        }
        Ok((look, at, figures.ok()))
    }

    async fn taken<T>(&mut self, name: &str, read: Result<T>) -> Option<T> {
        match read {
            Ok(section) => Some(section),
            Err(cause) => {
                tracing::warn!(%cause, section = name, "a section could not be observed");
                self.unobserved.push(name.to_owned());
                self.begin_again().await;
                None
            }
        }
    }

    async fn begin_again(&mut self) {
        self.tx = None; // gives its connection back before another one is asked for
        self.tx = self.db.begin_kept_read().await.ok();
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
        let (mut look, at, seen) = Look::begin(&self.db).await?;
        let publishing = &*self.publishing;
        // One reading for three sections: either all of them are seen or none.
        let work = section!(look, "jobs", |tx| queue::observe(tx, at, seen.map(|seen| seen.work)));
        let (jobs, workers, dead_letters) =
            work.map_or((None, None, None), |seen| (Some(seen.jobs), Some(seen.workers), Some(seen.dead_letters)));
        let publish_logs =
            section!(look, "publish_logs", |tx| publishing::observe_publish_logs(tx, at, seen.map(|seen| seen.logs)));
        let campaigns =
            section!(look, "campaigns", |tx| publishing::observe_campaigns(tx, at, seen.map(|seen| seen.campaigns)));
        let clips =
            section!(look, "clips", |tx| publishing::observe_clips(tx, publishing, at, seen.map(|seen| seen.clips)));
        let ledger = section!(look, "ledger", |tx| ledger::observe(tx, at, seen.map(|seen| seen.ledger)));
        let runs = section!(look, "pipelines", |tx| pipelines::observe(tx, at, seen.map(|seen| seen.runs)));
        let agents = section!(look, "agents", |tx| fleet::observe_agents(tx, at, seen.map(|seen| seen.agents)));
        let streams = section!(look, "streams", |tx| fleet::observe_streams(tx, at, seen.map(|seen| seen.streams)));
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
