//! What happens to every request, whatever its route.

use std::any::Any;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use crate::clock::SharedClock;
use crate::problem::Problem;
use crate::random::Random;
use crate::web;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken from a client; a longer one is replaced.
const LONGEST_REQUEST_ID: usize = 128;

/// Headers that every answer carries unless its route chose otherwise. The policy lets a page load only what this
/// service itself serves.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
];

/// Gives the request its id, log span and metrics, and the answer its headers.
/// The clock is the machine's: a request lasts as long as its client waits.
pub async fn accompany(
    State((random, clock)): State<(Random, SharedClock)>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request.headers().get(REQUEST_ID).filter(|id| is_taken(id)).cloned();
    let id = id.unwrap_or_else(|| HeaderValue::try_from(random.token()).expect("hexadecimal digits are a header"));
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let request_id = id.to_str().unwrap_or_default();
    let span = tracing::info_span!("request", id = request_id, method, path = request.uri().path());

    let began = clock.elapsed();
    let mut response = next.run(request).instrument(span.clone()).await;
    let took = clock.elapsed() - began;

    let status = response.status();
    span.in_scope(|| tracing::debug!(status = status.as_u16(), ms = took.as_millis() as u64, "answered"));
    let labels = [("method", method.to_owned()), ("route", route), ("status", status.as_u16().to_string())];
    metrics::counter!("showrunner_http_requests_total", &labels).increment(1);
    metrics::histogram!("showrunner_http_request_seconds", &labels[..2]).record(took.as_secs_f64());

    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Printable, without spaces, and not too long.
fn is_taken(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=LONGEST_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

/// The method's name; made-up ones share one, so that metrics stay few.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

/// 504 for a request that takes longer than `http.request_timeout_ms`. A door waits by the machine's time, whatever
/// clock the platform runs on.
pub async fn time_out(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    tokio::time::timeout(patience, next.run(request)).await.unwrap_or_else(|_| {
        let detail = format!(
            "The request was not done within {} ms and was given up; what it had committed stays.",
            patience.as_millis()
        );
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "timed-out", detail).into_response()
    })
}

/// 413 at once for a body that says itself that it is too long; others are cut off where they are read.
pub async fn refuse_long_bodies(State(limit): State<usize>, request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > limit as u64) {
        return web::too_large().into_response();
    }
    next.run(request).await
}

/// A route that panicked is our fault; the service goes on.
pub fn panicked(cause: Box<dyn Any + Send + 'static>) -> Response {
    let cause = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
    Problem::internal(cause.unwrap_or("a route panicked")).into_response()
}
