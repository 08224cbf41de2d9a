//! Reading what fits a filter.
//!
//! A ledger has millions of entries, and what is asked for may be few of them. So a statement is chosen by the filter
//! that leaves the fewest: its index leads the way in the order of ids, and the other filters are checked on the way.

use std::time::Duration;

use chrono::Datelike;

use super::entry::StoredEntry;
use crate::db::{Db, Result, Timestamp};

/// A prefix that more event types than this begin with is nothing rare: entries are read in order.
const MOST_KINDS: usize = 8;

/// How far an entry's time may lie beside those of its neighbours: clocks are set, but not by more.
const CLOCK_JUMP: Duration = Duration::from_secs(3600);

/// Which entries to read.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Begins with this, e.g. `orchestrator.`.
    pub event_type: Option<String>,
    pub severity: Option<String>,
    pub actor: Option<String>,
    pub subject: Option<String>,
    pub rule: Option<String>,
    pub cycle_id: Option<i64>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Only ids below this one.
    pub before_id: Option<i64>,
    /// Only ids above this one.
    pub after_id: Option<i64>,
}

/// The statement, oldest first and newest first, with what its lead demands.
macro_rules! both {
    ($lead:literal) => {
        (both!(@ $lead, "ASC"), both!(@ $lead, "DESC"))
    };
    (@ $lead:literal, $order:literal) => {
        concat!(
            "SELECT id, cycle_id, event_type, severity, actor, subject, rule, CAST(payload AS TEXT) AS payload,
                    created_at, prev_hash, hash
             FROM ledger_entries
             WHERE (CAST($1 AS TEXT) IS NULL OR substr(event_type, 1, length($1)) = $1)
               AND (CAST($2 AS TEXT) IS NULL OR severity = $2)
               AND (CAST($3 AS TEXT) IS NULL OR actor = $3)
               AND (CAST($4 AS TEXT) IS NULL OR subject = $4)
               AND (CAST($5 AS TEXT) IS NULL OR rule = $5)
               AND (CAST($6 AS BIGINT) IS NULL OR cycle_id = $6)
               AND ($7 IS NULL OR created_at >= $7)
               AND ($8 IS NULL OR created_at < $8)
               AND id < $9 AND id > $10 ",
            $lead,
            " ORDER BY id ",
            $order,
            " LIMIT $11"
        )
    };
}

/// The filter whose index leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    Cycle,
    Subject,
    Actor,
    Rule,
    Severity,
    /// One whole event type.
    Event,
    /// None: the primary key.
    Order,
}

impl Lead {
    /// The one that leaves the fewest entries, as far as can be known beforehand.
    fn of(filter: &Filter) -> Self {
        let is_an_operator = |actor: &String| !matches!(actor.as_str(), "loop" | "system");
        if filter.cycle_id.is_some() {
            Self::Cycle
        } else if filter.subject.is_some() {
            Self::Subject
        } else if filter.actor.as_ref().is_some_and(is_an_operator) {
            Self::Actor
        } else if filter.rule.is_some() {
            Self::Rule
        } else if filter.severity.as_ref().is_some_and(|severity| severity != "info") {
            Self::Severity
        } else {
            Self::Order
        }
    }

    fn statement(self, oldest_first: bool) -> &'static str {
        match self {
            Self::Cycle => text(oldest_first, both!("AND cycle_id = $6")),
            Self::Subject => text(oldest_first, both!("AND subject = $4")),
            Self::Actor => text(oldest_first, both!("AND actor = $3 AND actor NOT IN ('loop', 'system')")),
            Self::Rule => text(oldest_first, both!("AND rule = $5")),
            Self::Severity => text(oldest_first, both!("AND severity = $2 AND severity <> 'info'")),
            Self::Event => text(oldest_first, both!("AND event_type = $1")),
            Self::Order => text(oldest_first, both!("")),
        }
    }
}

fn text(oldest_first: bool, (oldest, newest): (&'static str, &'static str)) -> &'static str {
    if oldest_first { oldest } else { newest }
}

/// Reads up to `limit` entries, newest first unless `oldest_first`.
pub async fn query(db: &Db, filter: &Filter, oldest_first: bool, limit: i64) -> Result<Vec<StoredEntry>> {
    let Some(filter) = &within_ids(db, filter).await? else { return Ok(Vec::new()) };
    let lead = Lead::of(filter);
    let (Lead::Order, Some(prefix)) = (lead, &filter.event_type) else {
        return read(db, lead, filter, oldest_first, limit).await;
    };
    let kinds = kinds(db, prefix).await?;
    if kinds.len() > MOST_KINDS {
        return read(db, Lead::Order, filter, oldest_first, limit).await;
    }
    let mut entries = Vec::new();
    for kind in kinds {
        let filter = Filter { event_type: Some(kind), ..filter.clone() };
        entries.extend(read(db, Lead::Event, &filter, oldest_first, limit).await?);
    }
    entries.sort_by_key(|entry| if oldest_first { entry.id } else { -entry.id });
    entries.truncate(usize::try_from(limit).unwrap_or_default());
    Ok(entries)
}

async fn read(db: &Db, lead: Lead, filter: &Filter, oldest_first: bool, limit: i64) -> Result<Vec<StoredEntry>> {
    db.query(lead.statement(oldest_first))
        .bind(filter.event_type.clone())
        .bind(filter.severity.clone())
        .bind(filter.actor.clone())
        .bind(filter.subject.clone())
        .bind(filter.rule.clone())
        .bind(filter.cycle_id)
        .bind(filter.since)
        .bind(filter.until)
        .bind(filter.before_id.unwrap_or(i64::MAX))
        .bind(filter.after_id.unwrap_or(i64::MIN))
        .bind(limit)
        .all()
        .await
}

/// The filter with its times as bounds of ids too, which every index knows; none where no entry is of that time.
async fn within_ids(db: &Db, filter: &Filter) -> Result<Option<Filter>> {
    let mut filter = filter.clone();
    if let Some(since) = filter.since {
        let first = "SELECT id FROM ledger_entries WHERE created_at >= $1 ORDER BY created_at, id LIMIT 1";
        let first: Option<(i64,)> = db.query(first).bind(since.before(CLOCK_JUMP)).optional().await?;
        let Some((first,)) = first else { return Ok(None) };
        filter.after_id = filter.after_id.max(Some(first - 1));
    }
    // Behind the last year of four digits, text order is no longer time order.
    if let Some(until) = filter.until.map(|until| until.after(CLOCK_JUMP)).filter(|until| until.utc().year() <= 9999) {
        let last = "SELECT id FROM ledger_entries WHERE created_at < $1 ORDER BY created_at DESC, id DESC LIMIT 1";
        let last: Option<(i64,)> = db.query(last).bind(until).optional().await?;
        let Some((last,)) = last else { return Ok(None) };
        filter.before_id = Some(filter.before_id.map_or(last + 1, |before| before.min(last + 1)));
    }
    Ok(Some(filter))
}

/// The event types that begin so, one more than [`MOST_KINDS`] at most: a step along the index for each type that
/// there is.
async fn kinds(db: &Db, prefix: &str) -> Result<Vec<String>> {
    let kinds: Vec<(String,)> = db
        .query(
            "WITH RECURSIVE kinds (event_type) AS (
                 SELECT MIN(event_type) FROM ledger_entries
                 UNION ALL
                 SELECT (SELECT MIN(event_type) FROM ledger_entries WHERE event_type > kinds.event_type)
                 FROM kinds WHERE event_type IS NOT NULL)
             SELECT event_type FROM kinds WHERE substr(event_type, 1, length($1)) = $1 LIMIT $2",
        )
        .bind(prefix.to_owned())
        .bind(MOST_KINDS as i64 + 1)
        .all()
        .await?;
    Ok(kinds.into_iter().map(|(kind,)| kind).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::db::Options;

    /// SQLite's plan for a lead's statement, as it stands in [`Lead::statement`].
    macro_rules! plan {
        ($db:expr, $lead:literal) => {{
            let statement = concat!("EXPLAIN QUERY PLAN ", both!(@ $lead, "DESC"));
            let steps: Vec<(i64, i64, i64, String)> = $db.query(statement).all().await.expect("a plan");
            steps.into_iter().map(|(.., step)| step).collect::<Vec<_>>().join("; ")
        }};
    }

    #[tokio::test]
    async fn every_lead_goes_along_its_index_in_the_order_of_ids() {
        let clock = ManualClock::at(chrono::DateTime::UNIX_EPOCH);
        let db = Db::open(&Options::new("sqlite::memory:"), clock).await.expect("open");
        db.migrate().await.expect("migrate");
        let plans = [
            ("by_cycle", plan!(db, "AND cycle_id = $6")),
            ("by_subject", plan!(db, "AND subject = $4")),
            ("by_actor", plan!(db, "AND actor = $3 AND actor NOT IN ('loop', 'system')")),
            ("by_rule", plan!(db, "AND rule = $5")),
            ("by_severity", plan!(db, "AND severity = $2 AND severity <> 'info'")),
            ("by_event", plan!(db, "AND event_type = $1")),
        ];
        for (index, plan) in plans {
            assert!(plan.contains(&format!("USING INDEX ledger_entries_{index}")), "{index}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{index} sorts: {plan}");
        }
    }

    #[test]
    fn the_rarest_filter_leads() {
        let none = Filter::default();
        assert_eq!(Lead::of(&none), Lead::Order);
        let errors = Filter { severity: Some("error".to_owned()), actor: Some("loop".to_owned()), ..none.clone() };
        assert_eq!(Lead::of(&errors), Lead::Severity);
        assert_eq!(Lead::of(&Filter { severity: Some("info".to_owned()), ..none.clone() }), Lead::Order);
        let ada = Filter { actor: Some("operator:ada".to_owned()), ..errors };
        assert_eq!(Lead::of(&ada), Lead::Actor);
        assert_eq!(Lead::of(&Filter { subject: Some("clip:1".to_owned()), ..ada.clone() }), Lead::Subject);
        assert_eq!(Lead::of(&Filter { cycle_id: Some(1), ..ada }), Lead::Cycle);
    }
}
