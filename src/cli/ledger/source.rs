//! Where the ledger is read: at a running server, or in the database itself.

use reqwest::Method;
use serde::Deserialize;

use crate::cli::failure::Outcome;
use crate::cli::way_in::{Remote, open_database};
use crate::cli::{Common, Server};
use crate::db::Db;
use crate::ledger::{self, Filter, StoredEntry, Verification};
use crate::web::{Cursor, Page};

/// Rows of a page: the server's most.
const PAGE: i64 = 500;

/// A ledger that can be read.
pub(super) enum Source {
    Server(Remote),
    Database(Db),
}

/// The answer of `GET /v1/ledger/verify`.
#[derive(Deserialize)]
struct Verified {
    entries: i64,
    checkpoint_id: Option<i64>,
    first_bad: Option<BadEntry>,
}

#[derive(Deserialize)]
struct BadEntry {
    id: i64,
    reason: String,
}

impl Source {
    pub(super) async fn open(common: &Common, server: &Server) -> Outcome<Self> {
        match Remote::from(server)? {
            Some(remote) => Ok(Self::Server(remote)),
            None => Ok(Self::Database(open_database(&common.load()?).await?)),
        }
    }

    /// Leaves as one should.
    pub(super) async fn close(self) {
        if let Self::Database(db) = self {
            db.close().await;
        }
    }

    /// Up to `limit` entries that fit, newest first.
    pub(super) async fn newest(&self, filter: &Filter, limit: i64) -> Outcome<Vec<StoredEntry>> {
        let remote = match self {
            Self::Database(db) => return Ok(ledger::query(db, filter, false, limit).await?),
            Self::Server(remote) => remote,
        };
        let mut entries: Vec<StoredEntry> = Vec::new();
        let mut before_id = filter.before_id;
        while (entries.len() as i64) < limit {
            let wanted = PAGE.min(limit - entries.len() as i64);
            let page = page(remote, filter, "newest", before_id, wanted).await?;
            before_id = page.items.last().map(|entry| entry.id);
            entries.extend(page.items);
            if page.next_cursor.is_none() {
                break;
            }
        }
        Ok(entries)
    }

    /// The next page of what fits behind `filter.after_id`, oldest first; empty at the end.
    pub(super) async fn oldest(&self, filter: &Filter) -> Outcome<Vec<StoredEntry>> {
        match self {
            Self::Database(db) => Ok(ledger::query(db, filter, true, PAGE).await?),
            Self::Server(remote) => Ok(page(remote, filter, "oldest", filter.after_id, PAGE).await?.items),
        }
    }

    /// Walks the chain; `progress` hears how far, where the walk is our own.
    pub(super) async fn verify(&self, progress: impl FnMut(i64)) -> Outcome<Verification> {
        match self {
            Self::Database(db) => Ok(ledger::verify(db, progress).await?),
            Self::Server(remote) => {
                let found: Verified = remote.ask(Method::GET, "v1/ledger/verify", &[], None).await?;
                let Verified { entries, checkpoint_id, first_bad } = found;
                Ok(Verification { entries, checkpoint_id, first_bad: first_bad.map(|bad| (bad.id, bad.reason)) })
            }
        }
    }
}

async fn page(
    remote: &Remote,
    filter: &Filter,
    order: &str,
    from: Option<i64>,
    limit: i64,
) -> Outcome<Page<StoredEntry>> {
    let mut query = parameters(filter);
    query.extend([("order", order.to_owned()), ("limit", limit.to_string())]);
    query.extend(from.map(|id| ("cursor", Cursor(id).encode())));
    remote.ask(Method::GET, "v1/ledger", &query, None).await
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
