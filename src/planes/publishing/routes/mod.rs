//! The plane's HTTP routes: campaigns, clips and publications, listed by viewers and changed by operators.
//!
//! Every change is one transaction: the row, its ledger entry, and the answer kept under the client's
//! `Idempotency-Key`.

mod campaigns;
mod clips;
mod publish_logs;

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) use campaigns::{CampaignPatch, CampaignQuery, NewCampaign};
pub(super) use clips::{ClipPatch, ClipQuery, NewClip};
pub(super) use publish_logs::{LogQuery, NewPublishLog};

use super::Publishing;
use crate::actor::{Caller, Role};
use crate::db::{Timestamp, Tx};
use crate::ledger::{self, Entry};
use crate::planes::ActError;
use crate::problem::{FieldError, Problem};
use crate::web::IdempotencyKey;
use crate::web::idempotency::{self, Begun, Ticket};

/// Priorities of everything, as the tables check them.
const PRIORITIES: (i64, i64) = (-1000, 1000);

/// The plane's routes with their OpenAPI.
pub fn routes<S: Clone + Send + Sync + 'static>(publishing: Arc<Publishing>) -> OpenApiRouter<S> {
    OpenApiRouter::new()
        .routes(routes!(campaigns::list, campaigns::create))
        .routes(routes!(campaigns::get, campaigns::change))
        .routes(routes!(clips::list, clips::create))
        .routes(routes!(clips::get, clips::change))
        .routes(routes!(publish_logs::list, publish_logs::create))
        .routes(routes!(publish_logs::get, publish_logs::change))
        .with_state(publishing)
}

/// A change that is under way: its transaction, and the right to keep its answer.
struct Change {
    tx: Tx,
    ticket: Ticket,
    caller: Caller,
}

impl Change {
    /// Begins a change by an operator; a request that was done before is answered at once, by `Err`.
    async fn begin(
        publishing: &Publishing,
        caller: Caller,
        route: &str,
        key: IdempotencyKey,
        request: &impl Serialize,
    ) -> Result<Self, Stop> {
        caller.require(Role::Operator)?;
        let mut tx = publishing.db().begin().await?;
        match idempotency::begin(&mut tx, &caller, route, key, request).await? {
            Begun::Fresh(ticket) => Ok(Self { tx, ticket, caller }),
            Begun::Replay(replay) => Err(Stop::Replay(replay.into_response())),
        }
    }

    /// Writes the ledger entry, keeps the answer and commits.
    async fn commit(
        mut self,
        event_type: &'static str,
        subject: String,
        payload: Value,
        status: StatusCode,
        location: String,
        body: &impl Serialize,
    ) -> Result<Response, Stop> {
        let location = (status == StatusCode::CREATED).then_some(location);
        let response = idempotency::finish(&mut self.tx, self.ticket, status, location, body).await?;
        let entry = Entry::new(event_type, self.caller.actor(), payload).subject(subject);
        ledger::append(&mut self.tx, &[entry]).await?;
        self.tx.commit().await?;
        Ok(response)
    }
}

/// Why a change ends early.
enum Stop {
    /// It was done before, and this was its answer.
    Replay(Response),
    /// It cannot be done.
    Problem(Problem),
}

impl IntoResponse for Stop {
    fn into_response(self) -> Response {
        match self {
            Self::Replay(response) => response,
            Self::Problem(problem) => problem.into_response(),
        }
    }
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<crate::db::Error> for Stop {
    fn from(error: crate::db::Error) -> Self {
        Self::Problem(error.into())
    }
}

impl From<ActError> for Stop {
    fn from(error: ActError) -> Self {
        Self::Problem(match error {
            ActError::Refused(reason) => Problem::conflict(sentence(&reason)),
            ActError::Store(error) => error.into(),
        })
    }
}

/// The reason as a sentence: capital and full stop.
fn sentence(reason: &str) -> String {
    let mut letters = reason.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// A refusal of one field.
fn refused(field: &str, message: impl Into<String>) -> Problem {
    Problem::invalid(vec![FieldError { field: field.to_owned(), message: message.into() }])
}

/// A field that may be left out, or be null to clear the value.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

/// Collects everything that is wrong with a body, so that the client hears of it at once.
#[derive(Default)]
struct Checks(Vec<FieldError>);

impl Checks {
    fn refuse(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(FieldError { field: field.to_owned(), message: message.into() });
    }
    fn text(&mut self, field: &str, text: Option<&String>, longest: usize) {
        if text.is_some_and(|text| text.trim().is_empty() || text.chars().count() > longest) {
            self.refuse(field, format!("takes 1 to {longest} characters, not all blank"));
        }
    }
    fn range(&mut self, field: &str, value: Option<i64>, (low, high): (i64, i64)) {
        if value.is_some_and(|value| !(low..=high).contains(&value)) {
            self.refuse(field, format!("takes a whole number from {low} to {high}"));
        }
    }
    fn time(&mut self, field: &str, at: Option<Timestamp>) {
        use chrono::Datelike;
        if at.is_some_and(|at| !(1970..=9999).contains(&at.utc().year())) {
            self.refuse(field, "takes a time of the years 1970 to 9999");
        }
    }
    fn done(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid(self.0)) }
    }
}
