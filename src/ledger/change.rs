//! A change that a person asks for by HTTP: the rows, the ledger entry, and the answer kept under the client's
//! `Idempotency-Key`, in one transaction.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::{Entry, append};
use crate::actor::{Caller, Role};
use crate::db::{self, Db, Tx};
use crate::problem::Problem;
use crate::web::IdempotencyKey;
use crate::web::idempotency::{self, Begun, Ticket};

/// A change that is under way: its transaction, and the right to keep its answer.
pub struct Change {
    pub tx: Tx,
    ticket: Ticket,
    caller: Caller,
}

impl Change {
    /// Begins a change by an operator; a request that was done before is answered at once, by `Err`.
    pub async fn begin(
        db: &Db,
        caller: Caller,
        route: &str,
        key: IdempotencyKey,
        request: &impl Serialize,
    ) -> Result<Self, Stop> {
        caller.require(Role::Operator)?;
        let mut tx = db.begin().await?;
        match idempotency::begin(&mut tx, &caller, route, key, request).await? {
            Begun::Fresh(ticket) => Ok(Self { tx, ticket, caller }),
            Begun::Replay(replay) => Err(Stop::Replay(replay.into_response())),
        }
    }

    /// Writes the ledger entry, keeps the answer and commits.
    pub async fn commit(
        self,
        event_type: &'static str,
        subject: String,
        payload: Value,
        status: StatusCode,
        body: &impl Serialize,
    ) -> Result<Response, Stop> {
        self.end(event_type, subject, payload, status, None, body).await
    }

    /// The same of something that was made, and stands at `location` now.
    pub async fn commit_made(
        self,
        event_type: &'static str,
        subject: String,
        payload: Value,
        location: String,
        body: &impl Serialize,
    ) -> Result<Response, Stop> {
        self.end(event_type, subject, payload, StatusCode::CREATED, Some(location), body).await
    }

    async fn end(
        mut self,
        event_type: &'static str,
        subject: String,
        payload: Value,
        status: StatusCode,
        location: Option<String>,
        body: &impl Serialize,
    ) -> Result<Response, Stop> {
        let response = idempotency::finish(&mut self.tx, self.ticket, status, location, body).await?;
        let entry = Entry::new(event_type, self.caller.actor(), payload).subject(subject);
        append(&mut self.tx, &[entry]).await?;
        self.tx.commit().await?;
        Ok(response)
    }
}

/// Why a change ends early.
pub enum Stop {
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

impl From<db::Error> for Stop {
    fn from(error: db::Error) -> Self {
        Self::Problem(error.into())
    }
}
