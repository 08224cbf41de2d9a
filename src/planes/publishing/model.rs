//! Campaigns, clips, publications, and the state machine of a publication.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::Timestamp;

/// Where a publication is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PublicationStatus)]
pub enum Status {
    /// Planned for `scheduled_at`.
    Scheduled,
    /// Handed to the queue.
    Pending,
    /// The attempt is recorded; the platform is being called.
    Publishing,
    /// Called, and no answer came. Only reconciliation settles it.
    Unknown,
    /// The platform refused for now and named a time, `scheduled_at`.
    Retry,
    /// Out.
    Published,
    /// Surely not out.
    Failed,
    /// Given up by an operator.
    Cancelled,
}

/// What can happen to a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its time has come: it is handed to the queue.
    Due,
    /// Its named time has come, but it has no try left.
    RetriesSpent,
    /// A worker records the attempt, before the platform is called.
    Attempted,
    /// The platform took it.
    Accepted,
    /// The platform refused it.
    Refused,
    /// The platform refused it for now and named a time.
    Throttled,
    /// The platform did not answer.
    NoAnswer,
    /// Its job died without finishing.
    JobLost,
    /// Its job was failed while it waited in the queue.
    WaitedTooLong,
    /// The platform says that it is out.
    FoundPublished,
    /// The platform says, after long enough, that it never came.
    FoundMissing,
    /// It is given another try.
    Retried,
    /// It is moved to a later time, or by an operator to any time.
    Postponed,
    /// It goes out next, whatever its window.
    Forced,
    /// Somebody gave it up.
    Cancelled,
}

/// A pair of status and event that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a publication that is {status} cannot take {event:?}")]
pub struct IllegalTransition {
    pub status: Status,
    pub event: Event,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Pending,
        Self::Publishing,
        Self::Unknown,
        Self::Retry,
        Self::Published,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The next status; the store's conditional updates follow this table.
    pub fn on(self, event: Event) -> Result<Self, IllegalTransition> {
        match (self, event) {
            (Self::Scheduled | Self::Retry, Event::Due) => Ok(Self::Pending),
            (Self::Retry, Event::RetriesSpent) => Ok(Self::Failed),
            (Self::Pending, Event::Attempted) => Ok(Self::Publishing),
            (Self::Publishing, Event::Accepted) => Ok(Self::Published),
            (Self::Publishing, Event::Refused) => Ok(Self::Failed),
            (Self::Publishing, Event::Throttled) => Ok(Self::Retry),
            (Self::Publishing, Event::NoAnswer | Event::JobLost) => Ok(Self::Unknown),
            // Nothing was sent yet: the publication stays, and gets a new job.
            (Self::Pending, Event::JobLost) => Ok(Self::Pending),
            (Self::Pending, Event::WaitedTooLong) => Ok(Self::Failed),
            (Self::Unknown, Event::FoundPublished) => Ok(Self::Published),
            (Self::Unknown, Event::FoundMissing) => Ok(Self::Failed),
            (Self::Failed, Event::Retried) => Ok(Self::Scheduled),
            (Self::Scheduled, Event::Postponed) => Ok(Self::Scheduled),
            (Self::Retry, Event::Postponed) => Ok(Self::Retry),
            (Self::Scheduled | Self::Pending | Self::Retry, Event::Forced) => Ok(Self::Pending),
            (Self::Scheduled | Self::Pending | Self::Retry | Self::Failed, Event::Cancelled) => Ok(Self::Cancelled),
            (status, event) => Err(IllegalTransition { status, event }),
        }
    }

    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Pending => "pending",
            Self::Publishing => "publishing",
            Self::Unknown => "unknown",
            Self::Retry => "retry",
            Self::Published => "published",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a campaign is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CampaignStatus {
    /// Being prepared; nothing is scheduled for it.
    Draft,
    /// Running.
    Active,
    /// Held.
    Paused,
    /// Over.
    Completed,
}

impl CampaignStatus {
    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Completed => "completed",
        }
    }
}

/// Where a clip stands; all but `archived` follows from its publications, and the database keeps it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClipStatus {
    /// It has no publication.
    Ready,
    /// It has one that is not cancelled.
    Scheduled,
    /// One of its publications went out.
    Published,
    /// Put away by an operator.
    Archived,
}

impl ClipStatus {
    /// As in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Scheduled => "scheduled",
            Self::Published => "published",
            Self::Archived => "archived",
        }
    }
}

/// A word that is no status.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no status")]
pub struct UnknownWord(String);

macro_rules! reads_from_text {
    ($($name:ty),+) => {$(
        impl TryFrom<String> for $name {
            type Error = UnknownWord;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                serde_json::from_value(serde_json::Value::String(text.clone())).map_err(|_| UnknownWord(text))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )+};
}
reads_from_text!(Status, CampaignStatus, ClipStatus);

/// A row of `campaigns`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct Campaign {
    pub id: i64,
    pub name: String,
    #[sqlx(try_from = "String")]
    pub status: CampaignStatus,
    pub budget_cents: i64,
    /// What its publications have cost so far.
    pub spent_cents: i64,
    /// A larger one comes first, -1000 to 1000.
    pub priority: i64,
    pub starts_at: Option<Timestamp>,
    pub ends_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A row of `clips`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct Clip {
    pub id: i64,
    pub title: String,
    /// Where the platform fetches it.
    pub media_uri: String,
    pub campaign_id: Option<i64>,
    /// 0 to 100.
    pub visual_score: f64,
    #[sqlx(try_from = "String")]
    pub status: ClipStatus,
    /// A larger one comes first, -1000 to 1000.
    pub priority: i64,
    pub duration_ms: Option<i64>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A row of `publish_logs`: one intended publication of a clip on a platform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, sqlx::FromRow)]
pub struct PublishLog {
    pub id: i64,
    pub clip_id: i64,
    pub campaign_id: Option<i64>,
    pub platform: String,
    #[sqlx(try_from = "String")]
    pub status: Status,
    pub scheduled_at: Option<Timestamp>,
    pub retry_count: i64,
    pub max_retries: i64,
    /// How often it was moved a day later.
    pub postponed_count: i64,
    /// A larger one goes out first, -1000 to 1000.
    pub priority: i64,
    /// What it takes from its campaign's budget when it is out.
    pub cost_cents: i64,
    /// Goes to the platform with every try.
    pub idempotency_key: String,
    /// The job that carries it, once it was handed to the queue.
    pub job_id: Option<i64>,
    /// The platform's own name for it.
    pub external_id: Option<String>,
    pub external_url: Option<String>,
    pub last_error: Option<String>,
    /// Since when it waits in the queue.
    pub pending_at: Option<Timestamp>,
    /// When the platform was last called.
    pub attempted_at: Option<Timestamp>,
    pub failed_at: Option<Timestamp>,
    pub published_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl PublishLog {
    /// Its name in the ledger.
    pub fn subject(&self) -> String {
        subject_of_log(self.id)
    }
}

/// A publication's name in the ledger.
pub fn subject_of_log(id: i64) -> String {
    format!("publish_log:{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 15] = [
        Event::Due,
        Event::RetriesSpent,
        Event::Attempted,
        Event::Accepted,
        Event::Refused,
        Event::Throttled,
        Event::NoAnswer,
        Event::JobLost,
        Event::WaitedTooLong,
        Event::FoundPublished,
        Event::FoundMissing,
        Event::Retried,
        Event::Postponed,
        Event::Forced,
        Event::Cancelled,
    ];

    #[test]
    fn nothing_moves_a_publication_that_is_out() {
        for event in EVENTS {
            assert_eq!(Status::Published.on(event), Err(IllegalTransition { status: Status::Published, event }));
            assert!(Status::Cancelled.on(event).is_err());
        }
    }

    #[test]
    fn an_unknown_outcome_is_settled_by_reconciliation_alone() {
        let settling: Vec<Event> = EVENTS.into_iter().filter(|event| Status::Unknown.on(*event).is_ok()).collect();
        assert_eq!(settling, [Event::FoundPublished, Event::FoundMissing]);
    }

    #[test]
    fn only_a_recorded_attempt_leads_to_the_platform() {
        for status in Status::ALL {
            for event in EVENTS {
                if status.on(event) == Ok(Status::Publishing) {
                    assert_eq!((status, event), (Status::Pending, Event::Attempted));
                }
            }
        }
    }

    #[test]
    fn words_read_back() {
        for status in Status::ALL {
            assert_eq!(Status::try_from(status.as_str().to_owned()).expect("a status"), status);
        }
        assert!(Status::try_from("gone".to_owned()).is_err());
    }
}
