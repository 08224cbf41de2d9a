//! Fires what is due, and what a request or an event asks for; each occasion once over all instances.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::store::{self, Row};
use super::{Happened, Overlap, Trigger};
use crate::db::{self, Timestamp, Tx, has_nul};
use crate::planes::pipelines::expression::{Facts, Local, Template};
use crate::planes::pipelines::run::kept;
use crate::planes::pipelines::store::{NewRun, insert_run, newest_version_in};
use crate::planes::pipelines::{Pipelines, steer};

/// Between looks; a cron trigger fires at most this late.
const POLL: Duration = Duration::from_millis(500);
/// Triggers that one look fires at most.
const BATCH: i64 = 100;
/// How long firings are kept: what is due is far newer.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What came of firing a trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fired {
    /// A run was begun, or was begun before on the same occasion.
    Run(i64),
    /// A run of an earlier firing is still open, or the trigger was stopped meanwhile.
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
            match self.fire_cron(&id).await {
                Ok(runs) => begun += runs,
                Err(cause) => self.not_fired(&id, cause).await?,
            }
        }
        Ok(begun)
    }

    /// What keeps one trigger from firing is shown on it and keeps no other one: only a database that is away ends the
    /// look. A schedule's next time is looked forward to; now it would fail again.
    async fn not_fired(&self, id: &str, cause: db::Error) -> db::Result<()> {
        if matches!(cause, db::Error::Unavailable(_)) {
            return Err(cause);
        }
        tracing::warn!(%cause, trigger = id, "a trigger could not be fired; it shows why");
        let shown = async {
            let mut tx = self.db.begin().await?;
            let now = tx.now().await?;
            store::complain(&mut tx, id, kept(cause.to_string())).await?;
            if let Some(row) = store::lock_active(&mut tx, id).await? {
                store::set_due(&mut tx, id, row.settings.0.trigger().due_after(now)).await?;
            }
            tx.commit().await
        };
        match shown.await {
            Err(cause) if !matches!(cause, db::Error::Unavailable(_)) => {
                tracing::warn!(%cause, trigger = id, "a trigger cannot show why it was not fired");
                Ok(())
            }
            other => other,
        }
    }

    async fn fire_cron(&self, id: &str) -> db::Result<usize> {
        let mut tx = self.db.begin().await?;
        let now = tx.now().await?;
        let Some(row) = store::lock_active(&mut tx, id).await? else { return Ok(0) };
        let trigger = row.settings.0.trigger();
        // The newest one is on time; of those before it, as many as may be made up for.
        let times = newest_due(trigger, row.due_at, now, trigger.catch_up().max(1));
        let Some(newest) = times.last().copied() else { return Ok(0) };
        let next = trigger.due_after(newest);
        let on_time = |due: &Timestamp| trigger.catch_up() > 0 || now.since(*due) < Duration::from_secs(60);
        let mut begun = 0;
        for due in times.into_iter().filter(on_time) {
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
        let Some(row) = store::lock_active(&mut tx, &row.id).await? else { return Ok(Fired::Skipped) };
        let now = tx.now().await?;
        let fired = self.fire_in(&mut tx, &row, occasion, json!({ "fired_at": now, "body": body })).await?;
        tx.commit().await?;
        self.backlogged().await;
        Ok(fired)
    }

    /// Fires those of the triggers that heed an event; each event fires a trigger once.
    pub(super) async fn happened(&self, triggers: impl Iterator<Item = &Row>, event: &Happened) -> db::Result<usize> {
        let mut begun = 0;
        for row in triggers.filter(|row| row.settings.0.trigger().heeds(event)) {
            match self.heed(&row.id, event).await {
                Ok(fired) => begun += usize::from(matches!(fired, Fired::Run(_))),
                Err(cause) => self.not_fired(&row.id, cause).await?,
            }
        }
        if begun > 0 {
            self.backlogged().await;
        }
        Ok(begun)
    }

    async fn heed(&self, id: &str, event: &Happened) -> db::Result<Fired> {
        let mut tx = self.db.begin().await?;
        let Some(row) = store::lock_active(&mut tx, id).await? else { return Ok(Fired::Skipped) };
        let now = tx.now().await?;
        let told = json!({ "id": event.id, "type": event.event_type, "subject": event.subject, "data": event.data });
        let fired = self.fire_in(&mut tx, &row, &event.id, json!({ "fired_at": now, "event": told })).await?;
        tx.commit().await?;
        Ok(fired)
    }

    /// Fires a trigger that the transaction holds.
    async fn fire_in(&self, tx: &mut Tx, row: &Row, occasion: &str, facts: Value) -> db::Result<Fired> {
        if !store::fire(tx, &row.id, occasion, "started").await? {
            match store::fired(tx, &row.id, occasion).await? {
                (_, Some(run)) => return Ok(Fired::Run(run)),
                // What was refused began nothing: whoever sends it again may have mended the pipeline.
                (outcome, None) if outcome == "refused" => {}
                (_, None) => return Ok(Fired::Skipped),
            }
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
                let error = kept(error);
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

/// The newest times at which a trigger was due up to `now`, at most `count`, oldest first; `first` is the oldest of all
/// that there may be. They are looked for from the end: nobody knows how many lie between.
fn newest_due(trigger: &dyn Trigger, first: Option<Timestamp>, now: Timestamp, count: usize) -> Vec<Timestamp> {
    let mut times = Vec::new();
    let mut last = now;
    while times.len() < count
        && let Some(first) = first.filter(|first| *first <= last)
    {
        let newest = newest_up_to(trigger, first, last);
        times.push(newest);
        last = newest.before(Duration::from_millis(1));
    }
    times.reverse();
    times
}

/// The newest due time up to `last`, where `first` is one: by halves, as what comes after a later time is no earlier.
fn newest_up_to(trigger: &dyn Trigger, first: Timestamp, last: Timestamp) -> Timestamp {
    let due_after = |at: Timestamp| trigger.due_after(at).filter(|due| *due <= last);
    let mut newest = first;
    // In the hour that a clock change repeats that does not hold: what is left is halved again.
    while let Some(due) = due_after(newest) {
        newest = due;
        let (mut low, mut high) = (0, last.since(due).as_secs() + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match due_after(due.after(Duration::from_secs(middle))) {
                Some(later) => {
                    newest = newest.max(later);
                    low = middle + 1;
                }
                None => high = middle,
            }
        }
    }
    newest
}

/// The run's input: the trigger's template over what is known, or what the request brought.
fn filled(template: Option<&Value>, facts: Value) -> Result<Value, String> {
    let input = match template {
        Some(template) => {
            let read = Template::read(template, &mut |_, _| {});
            let read = read.map_err(|(path, error)| format!("input{path}: {error}"))?;
            read.value(&Known(facts), Local::default()).map_err(|error| format!("input: {error}"))?
        }
        None => facts.get("body").cloned().unwrap_or_else(|| json!({})),
    };
    // An event's data may hold one, and the database would refuse the run.
    if has_nul(&input) {
        return Err("input: holds a NUL character, which cannot be stored".to_owned());
    }
    Ok(input)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::planes::pipelines::triggers::cron::tests::{cron, time};

    #[test]
    fn no_input_holds_what_no_database_takes() {
        let facts = || json!({ "event": { "id": "e", "data": "a\0b" } });
        let spoilt = filled(Some(&json!({ "x": "${input.event.data}" })), facts());
        assert!(spoilt.is_err_and(|error| error.contains("NUL character")));
        assert_eq!(filled(Some(&json!({ "x": "${input.event.id}" })), facts()), Ok(json!({ "x": "e" })));
        assert!(filled(None, json!({ "body": { "a\0b": 1 } })).is_err());
    }

    #[test]
    fn however_much_was_missed_the_newest_comes() {
        let often = cron("*/30 * * * * *", "UTC");
        let (first, now) = (time("2026-11-20T12:00:30Z"), time("2026-11-23T12:00:10.500Z"));
        let expected = ["2026-11-23T11:59:00Z", "2026-11-23T11:59:30Z", "2026-11-23T12:00:00Z"].map(time);
        assert_eq!(newest_due(&often, Some(first), now, 3), expected);
        assert_eq!(newest_due(&often, Some(first), first, 3), [first]);
        assert!(newest_due(&often, Some(now), first, 3).is_empty());
        assert!(newest_due(&often, None, now, 3).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Around the hours in which clocks change, too.
        #[test]
        fn the_newest_due_times_are_those_with_which_a_walk_ends(
            begins in prop::sample::select(vec![
                "2026-03-28T23:00:00Z", "2026-10-24T22:00:00Z", "2026-04-04T13:00:00Z", "2026-10-03T13:00:00Z",
            ]),
            zone in prop::sample::select(vec!["Europe/Madrid", "Australia/Lord_Howe", "UTC"]),
            schedule in prop::sample::select(vec![
                "*/40 * * * * *", "0 */7 * * * *", "0 5 * * * *", "0 30 2 * * *", "*/20 30 2 * * *",
            ]),
            (wait, missed) in (0_u64..3_600, 0_u64..5 * 3_600),
            count in 1_usize..5,
        ) {
            let trigger = cron(schedule, zone);
            let first = trigger.due_after(time(begins).after(Duration::from_secs(wait))).expect("a time");
            let now = first.after(Duration::from_secs(missed));
            let mut walked = vec![first];
            while let Some(due) = trigger.due_after(walked[walked.len() - 1]).filter(|due| *due <= now) {
                walked.push(due);
            }
            let expected = &walked[walked.len().saturating_sub(count)..];
            prop_assert_eq!(newest_due(&trigger, Some(first), now, count), expected);
        }
    }
}
