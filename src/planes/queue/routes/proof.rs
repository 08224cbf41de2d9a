//! How workers prove who they are: by a token of their own that the shared key signed, or by the one that was given with
//! a run.

use axum::http::{HeaderMap, StatusCode, header};

use crate::planes::queue::{Hold, TaskQueue};
use crate::problem::Problem;
use crate::storage::{BadToken, SecretKey};

pub(super) fn refused(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(status, kind, detail)
}

pub(super) fn key(queue: &TaskQueue) -> Result<&SecretKey, Problem> {
    let none = "This service takes no remote workers: it has no PIPEWEAVE_SECRET_KEY. Set the same 64 hexadecimal \
                digits here and for the workers; `openssl rand -hex 32` makes some.";
    queue.key.as_ref().ok_or_else(|| refused(StatusCode::SERVICE_UNAVAILABLE, "workers-refused", none))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let only = values.next().filter(|_| values.next().is_none())?; // of two, nobody knows which one is meant
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn signed(headers: &HeaderMap) -> Result<&str, Problem> {
    let form = "Send `Authorization: Bearer <JWT>`, signed by HS256 with the shared key, with iss, iat, exp and jti.";
    bearer(headers).ok_or_else(|| refused(StatusCode::UNAUTHORIZED, "unauthorized", form))
}

impl From<BadToken> for Problem {
    fn from(bad: BadToken) -> Self {
        match bad {
            BadToken::Store(error) => error.into(),
            bad => refused(StatusCode::UNAUTHORIZED, "unauthorized", format!("The token {bad}.")),
        }
    }
}

/// The service whose worker signed the request's token. A request that is `sound` uses the token up; of one that is
/// not, only its worker hears what is wrong with it, and sends it again with the same token.
pub(super) async fn admitted<T>(
    queue: &TaskQueue,
    headers: &HeaderMap,
    sound: Result<T, Problem>,
) -> Result<(String, T), Problem> {
    let (key, token) = (key(queue)?, signed(headers)?);
    let mut tx = queue.db.begin().await?;
    let request = match sound {
        Ok(request) => request,
        Err(unsound) => {
            key.check(token, tx.now().await?)?;
            return Err(unsound);
        }
    };
    let registration = key.admit(&mut tx, token).await?;
    tx.commit().await?;
    Ok((registration.iss, request))
}

/// Whether the request's token is the one that was given with this run and lease.
pub(super) fn given(queue: &TaskQueue, headers: &HeaderMap, hold: Hold) -> Result<(), Problem> {
    let key = key(queue)?;
    if bearer(headers).is_some_and(|token| key.is_run_token(token, hold.id, hold.lease)) {
        return Ok(());
    }
    let detail = "The token is not the one that was given with this run and lease; nothing was changed.";
    Err(refused(StatusCode::UNAUTHORIZED, "unauthorized", detail))
}
