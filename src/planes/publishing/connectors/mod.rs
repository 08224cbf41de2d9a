//! The ways out: how a publication reaches a platform, and how a platform is asked what became of it.
//!
//! | room | holds |
//! |---|---|
//! | `sandbox` | a simulated platform, with latency, quotas, refusals and lost answers, all from a seed |
//! | `webhook` | a configured URL, signed as in the Standard Webhooks specification |

pub mod sandbox;
pub mod webhook;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

/// A publication as a platform is given it.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishRequest {
    /// The same with every try of this publication.
    pub idempotency_key: String,
    pub publication_id: i64,
    pub platform: String,
    pub campaign_id: Option<i64>,
    pub clip_id: i64,
    pub title: String,
    pub media_uri: String,
    pub duration_ms: Option<i64>,
    /// Tries before this one.
    pub retry_count: i64,
}

/// When a platform that refuses for now may be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// So long after its answer.
    After(Duration),
    /// At this time.
    At(DateTime<Utc>),
}

/// What a platform answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is out, or will be without our doing.
    Accepted { external_id: Option<String>, external_url: Option<String> },
    /// It is surely not out.
    Refused { reason: String },
    /// It is surely not out, and may be tried again then.
    Throttled { reason: String, until: Until },
    /// Nobody knows.
    NoAnswer { reason: String },
}

/// What a platform says has become of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusAnswer {
    /// It is out.
    Published { external_id: Option<String>, external_url: Option<String> },
    /// It came, and is surely not going out.
    Failed { reason: String },
    /// It came, and is not settled yet.
    Processing,
    /// It never came, so far.
    NeverSeen,
    /// The platform could not be asked.
    NoAnswer { reason: String },
}

/// A way out.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Sends a publication. Whoever calls bounds the time; after that the answer counts as [`Answer::NoAnswer`].
    async fn publish(&self, request: &PublishRequest) -> Answer;
    /// Asks what became of the publication with this key; changes nothing.
    async fn status(&self, platform: &str, idempotency_key: &str) -> StatusAnswer;
}
