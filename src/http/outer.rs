//! What happens to every request, whatever its route.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
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

/// 400 unless the request says once for whom it is: proxies and we could take different ones of two `Host` headers.
/// A body in chunks ends the connection, for hyper drops a `Content-Length` beside it without a word, and whoever
/// passed the request on may have gone by that one.
pub async fn refuse_ambiguous(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() >= Version::HTTP_11) {
        let detail = "Send exactly one `Host` header, with the name of this service.";
        return closing(Problem::new(StatusCode::BAD_REQUEST, "ambiguous-host", detail).into_response());
    }
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let response = next.run(request).await;
    if chunked { closing(response) } else { response }
}

/// The answer is the connection's last.
fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A body that knows whether somebody waits for more of it.
struct Watched {
    body: Body,
    waits: Arc<AtomicBool>,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.waits.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// 504 for a request that takes longer than `http.request_timeout_ms`, or 408 where it was the client's body that did
/// not come. A door waits by the machine's time, whatever clock the platform runs on.
pub async fn time_out(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    let waits = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| Body::new(Watched { body, waits: waits.clone() }));
    tokio::time::timeout(patience, next.run(request)).await.unwrap_or_else(|_| {
        if waits.load(Ordering::Relaxed) {
            let detail = format!("The body did not arrive within {} ms; nothing was done.", patience.as_millis());
            return closing(Problem::new(StatusCode::REQUEST_TIMEOUT, "body-stalled", detail).into_response());
        }
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
