//! Events fire the triggers that heed them. Every instance reads the events behind one mark; the key of a firing lets
//! each event fire a trigger once, and the mark that nothing is missed while all instances stand still.

use std::sync::Arc;
use std::time::Duration;

use super::{Happened, store};
use crate::db::{self, Topic};
use crate::events::{self, Event};
use crate::planes::pipelines::Pipelines;

/// Between looks when nothing wakes it.
const POLL: Duration = Duration::from_secs(1);
/// Events that one look reads.
const BATCH: i64 = 500;
/// How far behind the oldest trigger the first look begins: clocks differ, and transactions commit late.
const SLACK: Duration = Duration::from_secs(60);

/// Heeds events until the plane stops.
pub(in crate::planes::pipelines) async fn run(plane: Arc<Pipelines>) {
    // An earlier process may have left a mark.
    let mut marked = true;
    while !plane.stop.is_cancelled() {
        let mut hint = plane.db.listen(Topic::Events);
        match plane.heed_events(&mut marked).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(cause) => tracing::warn!(%cause, "events could not be heeded; they are looked at again"),
        }
        tokio::select! {
            () = plane.stop.cancelled() => {}
            () = hint.woken() => {}
            () = plane.clock.sleep(POLL) => {}
        }
    }
}

/// Heeds the events that there are, once.
pub(in crate::planes::pipelines) async fn all(plane: &Pipelines) -> db::Result<()> {
    let mut marked = true;
    while plane.heed_events(&mut marked).await? {}
    Ok(())
}

impl Pipelines {
    /// Fires what heeds the next events; whether there may be more. Without a trigger of that kind nothing is read, and
    /// the mark is forgotten: a trigger that is made later heeds what happens after it.
    async fn heed_events(&self, marked: &mut bool) -> db::Result<bool> {
        let triggers = store::active(&self.db, "event", 1_000).await?;
        if triggers.is_empty() {
            if *marked {
                store::forget_mark(&self.db).await?;
                *marked = false;
            }
            return Ok(false);
        }
        *marked = true;
        let Some(mark) = store::mark(&self.db).await? else {
            let oldest = triggers.iter().map(|row| row.updated_at).min().unwrap_or_else(|| self.now());
            store::begin_mark(&self.db, oldest.before(SLACK)).await?;
            return Ok(true);
        };
        let behind = events::behind(&self.db, mark, BATCH).await?;
        for event in &behind.events {
            if let Some(told) = told(event) {
                // What happened before a trigger was started is none of its business.
                let heeds = triggers.iter().filter(|row| row.updated_at <= event.created_at);
                self.happened(heeds, &told).await?;
            }
        }
        if let Some(end) = behind.events.last().and_then(Event::position) {
            store::move_mark(&self.db, end).await?;
        }
        Ok(behind.events.len() as i64 == BATCH)
    }
}

/// A stored event as triggers see it.
fn told(event: &Event) -> Option<Happened> {
    Some(Happened {
        id: format!("event-{}", event.id?),
        event_type: event.event_type.clone(),
        subject: event.subject.clone().unwrap_or_default(),
        data: event.data.clone(),
    })
}
