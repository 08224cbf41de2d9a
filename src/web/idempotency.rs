//! `Idempotency-Key`: a repeated request is answered as the first time, not done again.
//!
//! Inside the handler's own transaction, [`begin`] takes the key and [`finish`] keeps the answer, so that effect and
//! answer commit together. A request that failed keeps nothing and can be repeated. While two requests with one key
//! run at once, the second waits for the first one's transaction and is then answered by it.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::actor::Caller;
use crate::db::{self, Db, Json, Tx};
use crate::problem::Problem;

/// The longest key that is taken.
const LONGEST: usize = 255;

/// The header of that name, if the client sent it: 1 to 255 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Option<String>);

impl IdempotencyKey {
    /// The key, for who keeps it with what it makes.
    pub fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Whether the client sent one.
    pub fn is_given(&self) -> bool {
        self.0.is_some()
    }
}

impl PartialSchema for IdempotencyKey {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        text.min_length(Some(1)).max_length(Some(LONGEST)).pattern(Some("^[ -~]+$")).into()
    }
}
impl ToSchema for IdempotencyKey {}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or_default(); // only visible ASCII, spaces and tabs pass
        if values.next().is_some() || text.is_empty() || text.len() > LONGEST || text.contains('\t') {
            let message = format!("takes one key of 1 to {LONGEST} printable ASCII characters");
            return Err(Problem::refused("Idempotency-Key", message));
        }
        Ok(Self(Some(text.to_owned())))
    }
}

/// What [`begin`] found.
#[derive(Debug)]
#[must_use = "a replay is the answer to the request"]
pub enum Begun {
    /// Do it, then call [`finish`] with this ticket.
    Fresh(Ticket),
    /// It was done before: answer this.
    Replay(Replay),
}

/// The right to keep an answer under a key; empty where the client sent none.
#[derive(Debug)]
pub struct Ticket(Option<(String, String)>);

/// An answer that was given before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    status: u16,
    location: Option<String>,
    body: Value,
}

/// Takes the client's key for `route` (e.g. `POST /v1/clips`) and the caller, inside the request's transaction.
/// 422 if the key was used with another `request`. Call it before anything else is read or written in `tx`.
pub async fn begin(
    tx: &mut Tx,
    caller: &Caller,
    route: &str,
    key: IdempotencyKey,
    request: &impl Serialize,
) -> Result<Begun, Problem> {
    let Some(key) = key.0 else { return Ok(Begun::Fresh(Ticket(None))) };
    let scope = format!("{} {route}", caller.name);
    let fingerprint = fingerprint(request).map_err(Problem::internal)?;
    let now = tx.now().await?;
    let taken = tx
        .query(
            "INSERT INTO idempotency_keys (scope, idempotency_key, fingerprint, response, created_at)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(scope.clone())
        .bind(key.clone())
        .bind(fingerprint.clone())
        .bind(Json(Value::Null))
        .bind(now)
        .execute()
        .await?;
    if taken == 1 {
        return Ok(Begun::Fresh(Ticket(Some((scope, key)))));
    }
    let (earlier, response): (String, Json<Option<Replay>>) = tx
        .query("SELECT fingerprint, response FROM idempotency_keys WHERE scope = $1 AND idempotency_key = $2")
        .bind(scope)
        .bind(key)
        .one()
        .await?;
    if earlier != fingerprint {
        return Err(Problem::refused("Idempotency-Key", "was used before with another request; take a new key"));
    }
    match response.0 {
        Some(replay) => Ok(Begun::Replay(replay)),
        None => Err(Problem::internal("a request committed its idempotency key without its answer")),
    }
}

/// Keeps the answer under the ticket's key and returns it as the response to send after the commit.
/// `location` becomes the header of that name, e.g. `/v1/clips/7`.
pub async fn finish(
    tx: &mut Tx,
    ticket: Ticket,
    status: StatusCode,
    location: Option<String>,
    body: &impl Serialize,
) -> Result<Response, Problem> {
    let body = serde_json::to_value(body).map_err(Problem::internal)?;
    let answer = Replay { status: status.as_u16(), location, body };
    if let Some((scope, key)) = ticket.0 {
        tx.query("UPDATE idempotency_keys SET response = $1 WHERE scope = $2 AND idempotency_key = $3")
            .bind(Json(answer.clone()))
            .bind(scope)
            .bind(key)
            .execute()
            .await?;
    }
    Ok(answer.into_answer())
}

/// Forgets keys older than `keep`; returns how many. Clients repeat within minutes, so a day is ample.
pub async fn expire(db: &Db, keep: Duration) -> db::Result<u64> {
    let mut tx = db.begin().await?;
    let now = tx.now().await?;
    let gone = tx.query("DELETE FROM idempotency_keys WHERE created_at < $1").bind(now.before(keep)).execute().await?;
    tx.commit().await?;
    Ok(gone)
}

impl Replay {
    fn into_answer(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK);
        let mut response = (status, axum::Json(self.body)).into_response();
        if let Some(location) = self.location.and_then(|location| HeaderValue::try_from(location).ok()) {
            response.headers_mut().insert(axum::http::header::LOCATION, location);
        }
        response
    }
}

impl IntoResponse for Replay {
    /// The same answer, marked `Idempotency-Replayed: true`.
    fn into_response(self) -> Response {
        let mut response = self.into_answer();
        let name = HeaderName::from_static("idempotency-replayed");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
        response
    }
}

/// SHA-256 of the request as it was understood: spelling and order of the JSON do not matter.
fn fingerprint(request: &impl Serialize) -> serde_json::Result<String> {
    let digest = Sha256::digest(serde_json::to_vec(request)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::DateTime;

    use super::*;
    use crate::actor::Role;
    use crate::clock::ManualClock;
    use crate::db::Options;

    async fn database() -> (Db, std::sync::Arc<ManualClock>) {
        let clock = ManualClock::at(DateTime::UNIX_EPOCH);
        let db = Db::open(&Options::new("sqlite::memory:"), clock.clone()).await.expect("open");
        db.migrate().await.expect("migrate");
        (db, clock)
    }

    fn caller(name: &str) -> Caller {
        Caller { name: name.to_owned(), role: Role::Operator }
    }

    fn key() -> IdempotencyKey {
        IdempotencyKey(Some("k-1".to_owned()))
    }

    /// Creates the thing unless it was created before; `Ok(true)` if it did.
    async fn create(db: &Db, who: &str, title: &str, commit: bool) -> Result<bool, Problem> {
        let mut tx = db.begin().await?;
        match begin(&mut tx, &caller(who), "POST /v1/things", key(), &title).await? {
            Begun::Replay(replay) => {
                assert_eq!(replay.body, serde_json::json!({ "title": title }));
                let response = replay.into_response();
                assert_eq!(response.status(), StatusCode::CREATED);
                assert_eq!(response.headers()["location"], "/v1/things/1");
                assert_eq!(response.headers()["idempotency-replayed"], "true");
                Ok(false)
            }
            Begun::Fresh(ticket) => {
                let body = serde_json::json!({ "title": title });
                let location = Some("/v1/things/1".to_owned());
                finish(&mut tx, ticket, StatusCode::CREATED, location, &body).await?;
                if commit {
                    tx.commit().await?;
                }
                Ok(true)
            }
        }
    }

    #[tokio::test]
    async fn a_repeated_request_is_answered_and_not_done_again() {
        let (db, clock) = database().await;
        assert!(create(&db, "ann", "a", false).await.expect("rolled back"), "what rolled back");
        assert!(create(&db, "ann", "a", true).await.expect("first"), "left the key free");
        assert!(!create(&db, "ann", "a", true).await.expect("second"));
        assert!(create(&db, "bob", "a", true).await.expect("another caller's key is another key"));
        let problem = create(&db, "ann", "b", true).await.expect_err("the key belongs to another request");
        assert_eq!((problem.status, problem.errors[0].field.as_str()), (422, "Idempotency-Key"));

        clock.advance(Duration::from_secs(3600));
        assert_eq!(expire(&db, Duration::from_secs(3600)).await.expect("expire"), 0);
        clock.advance(Duration::from_secs(1));
        assert_eq!(expire(&db, Duration::from_secs(3600)).await.expect("expire"), 2);
        assert!(create(&db, "ann", "b", true).await.expect("free again"));
    }

    #[tokio::test]
    async fn only_one_printable_key_is_taken() {
        let long = "k".repeat(256);
        for (value, taken) in [("a b~!", true), ("", false), (long.as_str(), false), ("a\tb", false)] {
            let request = axum::http::Request::builder().header("Idempotency-Key", value).body(()).expect("request");
            let read = IdempotencyKey::from_request_parts(&mut request.into_parts().0, &()).await;
            assert_eq!(read.is_ok(), taken, "{value:?}");
        }
    }
}
