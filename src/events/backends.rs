//! Subscribers that are always there: the log and the metrics.

use std::collections::BTreeSet;

use super::bus::{Received, Subscription};
use super::event::{Event, types};
use crate::ledger::Severity;

/// Types that the metrics tell apart; more than any service has, and few enough for a metrics server.
const MOST_TYPES: usize = 100;

/// Writes every event into the log, without its data but for what an alert says: info at debug, the others at their
/// own level.
pub(super) async fn log(mut subscription: Subscription) {
    while let Some(received) = subscription.recv().await {
        match received {
            Received::Event(event) => write(&event),
            Received::Missed { count, .. } => tracing::warn!(count, "events were missed by the log"),
        }
    }
}

fn write(event: &Event) {
    let Event { id, event_type, source, subject, .. } = event;
    let subject = subject.as_deref().unwrap_or_default();
    if event_type == types::ALERT_RAISED {
        let text = event.data["text"].as_str().unwrap_or_default();
        tracing::warn!(id, event_type, source, subject, text, "alert");
        return;
    }
    match event.severity {
        Severity::Info => tracing::debug!(id, event_type, source, subject, "event"),
        Severity::Warning => tracing::warn!(id, event_type, source, subject, "event"),
        Severity::Error => tracing::error!(id, event_type, source, subject, "event"),
        Severity::Critical => tracing::error!(id, event_type, source, subject, critical = true, "event"),
    }
}

/// Counts every event by type and severity.
pub(super) async fn count(mut subscription: Subscription) {
    let mut known = BTreeSet::new();
    while let Some(received) = subscription.recv().await {
        match received {
            Received::Event(event) => {
                let event_type = label(&mut known, &event.event_type).to_owned();
                let severity = event.severity.as_str();
                metrics::counter!("showrunner_events_total", "type" => event_type, "severity" => severity).increment(1);
            }
            Received::Missed { count, .. } => metrics::counter!("showrunner_events_missed_total").increment(count),
        }
    }
}

/// The type itself, or `other` where there are too many already.
fn label<'a>(known: &mut BTreeSet<String>, event_type: &'a str) -> &'a str {
    if known.contains(event_type) {
        return event_type;
    }
    if known.len() == MOST_TYPES {
        return "other";
    }
    known.insert(event_type.to_owned());
    event_type
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_somebody_makes_up_do_not_flood_the_metrics() {
        let mut known = BTreeSet::new();
        for n in 0..MOST_TYPES {
            let name = format!("made.up_{n}");
            assert_eq!(label(&mut known, &name), name);
        }
        assert_eq!(label(&mut known, "one.more"), "other");
        assert_eq!(label(&mut known, "made.up_0"), "made.up_0");
    }
}
