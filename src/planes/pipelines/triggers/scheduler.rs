//! Fires what is due, and what a request or an event asks for; each occasion once over all instances.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::store::{self, Row};
use super::{Happened, Overlap};
use crate::db::{self, Timestamp, Tx};
use crate::planes::pipelines::expression::{Facts, Local, Template};
use crate::planes::pipelines::store::{NewRun, insert_run, newest_version_in};
use crate::planes::pipelines::{Pipelines, steer};

/// Between looks; a cron trigger fires at most this late.
const POLL: Duration = Duration::from_millis(500);
/// Triggers that one look fires at most.
const BATCH: i64 = 100;
/// Due times that one look of one trigger goes through at most; the rest is missed at once.
const MAX_MISSED: usize = 1_000;
/// How long firings are kept: what is due is far newer.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What came of firing a trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fired {
    /// A run was begun, or was begun before on the same occasion.
    Run(i64),
    /// A run of an earlier firing is still open.
    Skipped,
    /// The pipeline does not take the input, or is not there.
    Refused(String),
}

/// Fires cron triggers until the plane stops.
pub(in crate::planes::pipelines) async fn run(plane: Arc<Pipelines>) {
    let mut forget_at = plane.clock.elapsed();
    while !plane.stop.is_cancelled() {
        if let Err(cause) = plane.fire_due().await {
            tracing::warn!(%cause, "triggers could not be looked at");
        }
        if plane.clock.elapsed() >= forget_at {
            forget_at = plane.clock.elapsed() + Duration::from_secs(3600);
            if let Err(cause) = plane.forget_firings().await {
                tracing::warn!(%cause, "old firings could not be taken away");
            }
        }
        tokio::select! {
            () = plane.stop.cancelled() => {}
            () = plane.clock.sleep(POLL) => {}
        }
    }
}

impl Pipelines {
    /// Fires what is due now; how many runs it began.
    pub async fn fire_due(&self) -> db::Result<usize> {
        let now = self.db.now().await?;
        let mut begun = 0;
        for (id,) in store::due(&self.db, now, BATCH).await? {
            begun += self.fire_cron(&id).await?;
        }
        Ok(begun)
    }

    async fn fire_cron(&self, id: &str) -> db::Result<usize> {
        let mut tx = self.db.begin().await?;
        let now = tx.now().await?;
        let Some(row) = store::lock(&mut tx, id).await?.filter(|row| row.is_active) else { return Ok(0) };
        let trigger = row.settings.0.trigger();
        let mut times = Vec::new();
        let mut next = row.due_at;
        while let Some(due) = next.filter(|due| *due <= now) {
            times.push(due);
            next = trigger.due_after(due);
            if times.len() >= MAX_MISSED {
                next = trigger.due_after(now);
            }
        }
        // The newest one is on time; of those before it, as many as may be made up for.
        let kept = times.len().saturating_sub(trigger.catch_up().max(1));
        let on_time = |due: &Timestamp| trigger.catch_up() > 0 || now.since(*due) < Duration::from_secs(60);
        let mut begun = 0;
        for due in times.into_iter().skip(kept).filter(on_time) {
            let facts = json!({ "due_at": due, "fired_at": now });
            if let Fired::Run(_) = self.fire_in(&mut tx, &row, &due.to_string(), facts).await? {
                begun += 1;
            }
        }
        store::set_due(&mut tx, id, next).await?;
        tx.commit().await?;
        if begun > 0 {
            self.backlogged().await;
        }
        Ok(begun)
    }

    /// Fires a trigger for a request or by hand. `occasion` tells a repeated request from a new one.
    pub async fn fire(&self, row: &Row, occasion: &str, body: Value) -> db::Result<Fired> {
        let mut tx = self.db.begin().await?;
        let now = tx.now().await?;
        let fired = self.fire_in(&mut tx, row, occasion, json!({ "fired_at": now, "body": body })).await?;
        tx.commit().await?;
        self.backlogged().await;
        Ok(fired)
    }

    /// Fires those of the triggers that heed an event; each event fires a trigger once.
    pub(super) async fn happened(&self, triggers: impl Iterator<Item = &Row>, event: &Happened) -> db::Result<usize> {
        let mut begun = 0;
        for row in triggers.filter(|row| row.settings.0.trigger().heeds(event)) {
            let mut tx = self.db.begin().await?;
            let now = tx.now().await?;
            let told =
                json!({ "id": event.id, "type": event.event_type, "subject": event.subject, "data": event.data });
            let fired = self.fire_in(&mut tx, row, &event.id, json!({ "fired_at": now, "event": told })).await?;
            tx.commit().await?;
            begun += usize::from(matches!(fired, Fired::Run(_)));
        }
        if begun > 0 {
            self.backlogged().await;
        }
        Ok(begun)
    }

    async fn fire_in(&self, tx: &mut Tx, row: &Row, occasion: &str, facts: Value) -> db::Result<Fired> {
        if !store::fire(tx, &row.id, occasion, "started").await? {
            let run = store::fired(tx, &row.id, occasion).await?;
            return Ok(run.map_or(Fired::Skipped, Fired::Run));
        }
        let open = store::open_runs(tx, &row.id).await?;
        if row.overlap == Overlap::Skip.as_str() && !open.is_empty() {
            store::note(tx, &row.id, occasion, "skipped", None, None).await?;
            return Ok(Fired::Skipped);
        }
        if row.overlap == Overlap::Cancel.as_str() {
            for (run,) in open {
                steer::cancel_in(tx, run).await?;
            }
        }
        let input = filled(row.input.0.as_ref(), facts);
        let begun = match input {
            Ok(input) => self.begin_fired(tx, row, input).await?,
            Err(error) => Err(error),
        };
        match begun {
            Ok(run) => {
                store::note(tx, &row.id, occasion, "started", Some(run), None).await?;
                Ok(Fired::Run(run))
            }
            Err(error) => {
                store::note(tx, &row.id, occasion, "refused", None, Some(&error)).await?;
                Ok(Fired::Refused(error))
            }
        }
    }

    async fn begin_fired(&self, tx: &mut Tx, row: &Row, input: Value) -> db::Result<Result<i64, String>> {
        let missing = || format!("there is no pipeline `{}`", row.pipeline_id);
        let Some(version) = newest_version_in(tx, &row.pipeline_id).await? else { return Ok(Err(missing())) };
        let Some(ready) = self.version_in(tx, &row.pipeline_id, version).await? else { return Ok(Err(missing())) };
        let input = match ready.take_input(input) {
            Ok(input) => input,
            Err(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                return Ok(Err(faults.join("; ")));
            }
        };
        let trigger_kind = row.settings.0.trigger().kind();
        let trigger_id = Some(row.id.as_str());
        let new = NewRun { pipeline: &row.pipeline_id, version, input: &input, trigger_kind, trigger_id, parent: None };
        Ok(Ok(insert_run(tx, new).await?))
    }

    async fn forget_firings(&self) -> db::Result<()> {
        let mut tx = self.db.begin().await?;
        let now = tx.now().await?;
        store::forget(&mut tx, now.before(KEPT)).await?;
        tx.commit().await
    }
}

/// The run's input: the trigger's template over what is known, or what the request brought.
fn filled(template: Option<&Value>, facts: Value) -> Result<Value, String> {
    let Some(template) = template else {
        return Ok(facts.get("body").cloned().unwrap_or_else(|| json!({})));
    };
    let read = Template::read(template, &mut |_, _| {}).map_err(|(path, error)| format!("input{path}: {error}"))?;
    read.value(&Known(facts), Local::default()).map_err(|error| format!("input: {error}"))
}

struct Known(Value);
impl Facts for Known {
    fn input(&self) -> &Value {
        &self.0
    }
    fn step(&self, _: &str) -> Option<(&'static str, &Value)> {
        None
    }
    fn ids(&self) -> Vec<&str> {
        Vec::new()
    }
}
