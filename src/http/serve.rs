//! Connections: how many, how slow they may be, and how they end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::Service;

/// Open connections; further ones wait in the system's backlog. Each costs about 16 KiB.
const CONNECTIONS: usize = 1024;

/// A client has this long to send a request's head, and as long to begin the next one.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// A request's head may take so many bytes.
const HEAD_BYTES: usize = 32 * 1024;

/// After a failed accept (no file descriptors left, most likely) others need a moment to close.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// Serves `router` until `stop`, then takes no more connections, lets running requests end for as long as `drain`, and
/// cuts off what is left.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, drain: Duration) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Some((stream, peer, place)) => {
                let (router, stop, cut) = (router.clone(), stop.clone(), cut.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = converse(stream, peer, router, stop) => {}
                        () = cut.cancelled() => {}
                    }
                    drop(place);
                });
            }
            None => tokio::time::sleep(AFTER_FAILED_ACCEPT).await,
        }
    }
    drop(listener);
    // Every place is free again once the last connection has ended.
    if tokio::time::timeout(drain, places.acquire_many(CONNECTIONS as u32)).await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
    cut.cancel();
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            let _ = stream.set_nodelay(true); // answers are small and whole
            Some((stream, peer, place))
        }
        Err(cause) => {
            tracing::warn!(%cause, "a connection could not be accepted");
            None
        }
    }
}

/// Answers one connection's requests until the client leaves, or until the running request is done after `stop`.
async fn converse(stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_header_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
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
