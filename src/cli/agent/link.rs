//! The connection to the orchestrator: opened again and again, each time after a wait that grows and that chance
//! spreads, so that a fleet does not come back in one moment.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use super::jobs::REMEMBERED;
use crate::backoff::exponential;
use crate::clock::SharedClock;
use crate::planes::fleet::protocol::{MOST_SLOTS, Received, ToAgent, close, to_agent};
use crate::random::Random;

/// The first wait; the following ones double.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// No wait is longer: an orchestrator that is back is found within this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A connection that held for this long was a good one: the next wait is the first again.
const SETTLED: Duration = Duration::from_secs(10);
/// Opening a connection and sending one message may each take this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where an instance says that it goes away, its agents spread over this before they come back.
const SPREAD_MS: u64 = 2_000;
/// The orchestrator's messages are small; a config is the largest part of one.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// Messages that wait to be sent: all that a welcome brings, how jobs ended and where each one is, beside what is said
/// meanwhile. At this bound the connection counts as stuck.
const OUTBOX: usize = REMEMBERED + MOST_SLOTS as usize + 64;

/// What is sent.
#[derive(Debug)]
pub(super) enum Out {
    Text(String),
    /// With this agent's time, which comes back in the answer.
    Ping(Duration),
}

/// What is heard.
#[derive(Debug)]
pub(super) enum News {
    /// Connected; what is put in here is sent. Dropping it ends the connection, after what is in it.
    Open(mpsc::Sender<Out>),
    Said(Received<ToAgent>),
    /// Something that is no message.
    Noise(String),
    /// A sign of life without words.
    Alive,
    /// The answer to a ping of that time: then at the latest the orchestrator still heard this agent.
    Answered(Duration),
    /// Not connected, and why; the next try comes after the wait.
    Lost {
        cause: String,
        wait: Duration,
    },
    /// There is no use in trying again.
    Refused(Refusal),
}

/// Why the orchestrator does not want this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Token,
    Replaced,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How a connection ended.
enum Parting {
    /// By us.
    Ours,
    /// The instance goes away; another one may take its place.
    GoingAway,
    Refused(Refusal),
    Broken(String),
}

/// Connects for as long as somebody listens.
pub(super) async fn keep(url: String, clock: SharedClock, random: Random, news: mpsc::Sender<News>) {
    let mut attempt = 0_u32;
    loop {
        let (parting, held) = match open(&url, &clock).await {
            Ok(socket) => {
                let began = clock.elapsed();
                let (outgoing, outbox) = mpsc::channel(OUTBOX);
                if news.send(News::Open(outgoing)).await.is_err() {
                    return;
                }
                let parting = converse(socket, outbox, &news, &clock).await;
                (parting, clock.elapsed().saturating_sub(began))
            }
            Err(cause) => (Parting::Broken(cause), Duration::ZERO),
        };
        attempt = if held >= SETTLED { 1 } else { attempt.saturating_add(1) };
        let (cause, wait) = match parting {
            Parting::Refused(refusal) => {
                let _ = news.send(News::Refused(refusal)).await;
                return;
            }
            Parting::GoingAway => {
                ("the instance goes away".to_owned(), Duration::from_millis(random.between(SPREAD_MS / 20, SPREAD_MS)))
            }
            Parting::Ours => ("closed".to_owned(), exponential(FIRST_WAIT, LONGEST_WAIT, attempt, &random)),
            Parting::Broken(cause) => (cause, exponential(FIRST_WAIT, LONGEST_WAIT, attempt, &random)),
        };
        if news.send(News::Lost { cause, wait }).await.is_err() {
            return;
        }
        tokio::select! {
            () = clock.sleep(wait) => {}
            () = news.closed() => return,
        }
    }
}

async fn open(url: &str, clock: &SharedClock) -> Result<Socket, String> {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MESSAGE_BYTES);
    config.max_frame_size = Some(MESSAGE_BYTES);
    tokio::select! {
        opened = connect_async_with_config(url, Some(config), true) => match opened {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(answer)) => Err(format!("the answer was {}, not a WebSocket", answer.status())),
            Err(cause) => Err(cause.to_string()),
        },
        () = clock.sleep(PATIENCE) => Err(format!("no connection within {} s", PATIENCE.as_secs())),
    }
}

async fn converse(
    mut socket: Socket,
    mut outbox: mpsc::Receiver<Out>,
    news: &mpsc::Sender<News>,
    clock: &SharedClock,
) -> Parting {
    loop {
        tokio::select! {
            out = outbox.recv() => {
                let (message, last) = match out {
                    Some(Out::Text(text)) => (Message::text(text), false),
                    Some(Out::Ping(at)) => (Message::Ping(written(at)), false),
                    None => (Message::Close(None), true),
                };
                let sent = tokio::select! {
                    sent = socket.send(message) => sent.map_err(|cause| cause.to_string()),
                    () = clock.sleep(PATIENCE) => Err("the connection takes nothing more".to_owned()),
                };
                match sent {
                    Ok(()) if last => return Parting::Ours,
                    Ok(()) => {}
                    Err(_) if last => return Parting::Ours,
                    Err(cause) => return Parting::Broken(cause),
                }
            }
            heard = socket.next() => {
                let told = match heard {
                    Some(Ok(Message::Text(text))) => match to_agent(&text) {
                        Ok(received) => News::Said(received),
                        Err(malformed) => News::Noise(malformed.to_string()),
                    },
                    Some(Ok(Message::Close(frame))) => {
                        return frame.map_or_else(
                            || Parting::Broken("closed without a reason".to_owned()),
                            |frame| parting(frame.code.into(), &frame.reason),
                        );
                    }
                    Some(Ok(Message::Pong(payload))) => read(&payload).map_or(News::Alive, News::Answered),
                    Some(Ok(_)) => News::Alive,
                    Some(Err(cause)) => return Parting::Broken(cause.to_string()),
                    None => return Parting::Broken("the connection ended".to_owned()),
                };
                if news.send(told).await.is_err() {
                    return Parting::Ours;
                }
            }
        }
    }
}

/// A time as a ping carries it.
fn written(at: Duration) -> Bytes {
    Bytes::copy_from_slice(&(at.as_millis() as u64).to_be_bytes())
}

fn read(payload: &[u8]) -> Option<Duration> {
    payload.try_into().ok().map(|bytes| Duration::from_millis(u64::from_be_bytes(bytes)))
}

/// What a closing code means, as `protocol` lists them.
fn parting(code: u16, reason: &str) -> Parting {
    match code {
        close::UNAUTHORIZED => Parting::Refused(Refusal::Token),
        close::REPLACED => Parting::Refused(Refusal::Replaced),
        1001 => Parting::GoingAway,
        _ => Parting::Broken(format!("closed with {code}: {reason}")),
    }
}
