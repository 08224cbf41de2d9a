//! Connections: how many, how slow they may be, and how they end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::rate::network;
use crate::problem::Problem;
use crate::web;

/// A request's head may take so many bytes.
const HEAD_BYTES: usize = 32 * 1024;

/// Connections beyond the bound that are told so at once; what comes beyond these is closed without a word.
const TURNED_AWAY: usize = 64;

/// Who is turned away has this long to read the answer: closed at once, it could be lost with what he still sends.
const FAREWELL: Duration = Duration::from_secs(1);

/// After a failed accept (no file descriptors left, most likely) others need a moment to close.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Open connections; further ones are answered 503. Each costs about 16 KiB.
    pub connections: usize,
    /// Of those, the ones of one client address: no single client shuts the others out.
    pub connections_of_one: usize,
    /// A client has this long to send a request's head, and as long to begin the next one.
    pub head_patience: Duration,
    /// A client that takes nothing of its answer for this long is cut off.
    pub write_patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_of_one: 512,
            head_patience: Duration::from_secs(30),
            write_patience: Duration::from_secs(30),
        }
    }
}

/// Serves `router` until `stop`, then takes no more connections, lets running requests end for as long as `drain`, and
/// cuts off what is left.
pub async fn serve(listener: TcpListener, router: Router, bounds: Bounds, stop: CancellationToken, drain: Duration) {
    let places = Places::new(bounds);
    let porch = Arc::new(Semaphore::new(TURNED_AWAY));
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(cause) => {
                tracing::warn!(%cause, "a connection could not be accepted");
                tokio::time::sleep(AFTER_FAILED_ACCEPT).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true); // answers are small and whole
        let cut = cut.clone();
        if let Some(place) = places.take(peer) {
            let (router, stop) = (router.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = converse(stream, peer, web::Place::new(place), router, bounds, stop) => {}
                    () = cut.cancelled() => {}
                }
            });
        } else if let Ok(step) = porch.clone().try_acquire_owned() {
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::time::timeout(FAREWELL, turn_away(stream)) => {}
                    () = cut.cancelled() => {}
                }
                drop(step);
            });
        }
    }
    drop(listener);
    // Every place is free again once the last connection has ended.
    if tokio::time::timeout(drain, places.free.acquire_many(bounds.connections as u32)).await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
    cut.cancel();
}

/// The places for connections: so many in all, and so many for one client address.
struct Places {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<u128, usize>>>,
    of_one: usize,
}

/// A connection's place; free again when dropped.
struct Place {
    network: u128,
    taken: Arc<Mutex<HashMap<u128, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    fn new(bounds: Bounds) -> Self {
        let free = Arc::new(Semaphore::new(bounds.connections));
        Self { free, taken: Arc::default(), of_one: bounds.connections_of_one }
    }

    fn take(&self, peer: SocketAddr) -> Option<Place> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        let network = network(peer.ip());
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = taken.entry(network).or_default();
        if *of_one >= self.of_one {
            return None;
        }
        *of_one += 1;
        Some(Place { network, taken: self.taken.clone(), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = taken.get_mut(&self.network) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.remove(&self.network);
            }
        }
    }
}

/// Tells a client that every place is taken, and reads on until it has heard.
async fn turn_away(mut stream: TcpStream) {
    let problem = Problem::unavailable("Too many connections are open; close some, or try again in a moment.");
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    if stream.write_all(answer.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut unread = [0; 1024];
        while matches!(stream.read(&mut unread).await, Ok(1..)) {}
    }
}

/// Answers one connection's requests until the client leaves, until the running request is done after `stop`, or until
/// a route has taken the connection over as a WebSocket; that route has the place then.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    place: web::Place,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(place.clone());
        router.clone().call(request)
    });
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(bounds.write_patience));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_patience)
        .max_header_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(cause) = ended {
        tracing::debug!(%peer, %cause, "a connection broke");
    }
}
