//! Where `tail` and `query` read: a running server, or the database itself.

use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::failure::Outcome;
use crate::cli::way_in::{Remote, open_database};
use crate::cli::{Common, Server};
use crate::db::{Db, Timestamp};
use crate::ledger::{self, Filter, StoredEntry};

/// Rows of a page: the server's most.
const PAGE: i64 = 500;

/// A ledger that can be read.
pub(super) enum Source {
    Server(Remote),
    Database(Db),
}

/// A page of `GET /v1/ledger`.
#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    id: i64,
    cycle_id: Option<i64>,
    event_type: String,
    severity: String,
    actor: String,
    subject: Option<String>,
    rule: Option<String>,
    payload: Value,
    created_at: Timestamp,
    prev_hash: String,
    hash: String,
}

impl From<Item> for StoredEntry {
    fn from(item: Item) -> Self {
        Self {
            id: item.id,
            cycle_id: item.cycle_id,
            event_type: item.event_type,
            severity: item.severity,
            actor: item.actor,
            subject: item.subject,
            rule: item.rule,
            payload: item.payload.to_string(),
            created_at: item.created_at,
            prev_hash: item.prev_hash,
            hash: item.hash,
        }
    }
}

impl Source {
    pub(super) async fn open(common: &Common, server: &Server) -> Outcome<Self> {
        match Remote::from(server)? {
            Some(remote) => Ok(Self::Server(remote)),
            None => Ok(Self::Database(open_database(&common.load()?).await?)),
        }
    }

    /// Up to `limit` entries that fit, newest first.
    pub(super) async fn newest(&self, filter: &Filter, limit: i64) -> Outcome<Vec<StoredEntry>> {
        match self {
            Self::Database(db) => Ok(ledger::query(db, filter, false, limit).await?),
            Self::Server(remote) => pages(remote, filter, limit).await,
        }
    }

    /// What came after `id`, newest first, up to a page; the rest comes with the next call.
    pub(super) async fn newer_than(&self, filter: &Filter, id: i64) -> Outcome<Vec<StoredEntry>> {
        match self {
            Self::Database(db) => {
                let filter = Filter { after_id: Some(id), ..filter.clone() };
                let mut entries = ledger::query(db, &filter, true, PAGE).await?;
                entries.reverse();
                Ok(entries)
            }
            Self::Server(remote) => pages(remote, &Filter { after_id: Some(id), ..filter.clone() }, 100 * PAGE).await,
        }
    }
}

async fn pages(remote: &Remote, filter: &Filter, limit: i64) -> Outcome<Vec<StoredEntry>> {
    let mut entries: Vec<StoredEntry> = Vec::new();
    let mut cursor: Option<String> = None;
    let below = filter.before_id.unwrap_or(i64::MAX);
    let above = filter.after_id.unwrap_or(i64::MIN);
    while (entries.len() as i64) < limit {
        let mut query = parameters(filter);
        query.push(("limit", PAGE.min(limit - entries.len() as i64).max(1).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page: Page = remote.ask(Method::GET, "v1/ledger", &query, None).await?;
        let reached = page.items.last().is_none_or(|item| item.id <= above);
        entries.extend(page.items.into_iter().filter(|item| item.id < below && item.id > above).map(Into::into));
        cursor = page.next_cursor;
        if reached || cursor.is_none() {
            break;
        }
    }
    entries.truncate(usize::try_from(limit).unwrap_or(0));
    Ok(entries)
}

fn parameters(filter: &Filter) -> Vec<(&'static str, String)> {
    [
        ("event_type", filter.event_type.clone()),
        ("severity", filter.severity.clone()),
        ("actor", filter.actor.clone()),
        ("subject", filter.subject.clone()),
        ("rule", filter.rule.clone()),
        ("cycle_id", filter.cycle_id.map(|id| id.to_string())),
        ("since", filter.since.map(|at| at.to_string())),
        ("until", filter.until.map(|at| at.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}
