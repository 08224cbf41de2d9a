//! `/ui`: one client that watches. It is a place in the mirror's order: whatever lies behind it is sent, as much as it
//! takes, and several changes of one row that it was too slow for are one message.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use futures_util::SinkExt;
use serde::Serialize;

use super::Fleet;
use super::mirror::Filter;
use super::protocol::{self, Complaint, FromUi, Received, Subscribe, UiReady};
use super::socket::{Rate, answer_close, farewell};
use crate::db::Timestamp;

/// What a client may say: subscriptions.
pub const LONGEST_MESSAGE: usize = 16 * 1024;
/// Messages that are written before the client's own are looked at.
const PAGE: usize = 256;
/// Between two writes to one client: what changes within it goes out together.
const TOGETHER: Duration = Duration::from_millis(20);
/// A client that is quiet is pinged, so that whatever stands between does not close the connection.
const PING: Duration = Duration::from_secs(30);
/// A client that takes nothing for so long is cut off.
const PATIENCE: Duration = Duration::from_secs(60);
/// Messages of a client a second, and in a burst.
const RATE: f64 = 5.0;
const BURST: f64 = 20.0;

#[derive(Serialize)]
struct ToUi<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    seq: i64,
    ts: Timestamp,
    #[serde(rename = "correlationId", skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    payload: T,
}

/// A client's view.
struct View {
    filter: Filter,
    cursor: i64,
    resumed: bool,
    /// Told so far, until the state is complete.
    told: Option<(usize, usize)>,
    answers: Option<String>,
}

impl View {
    fn new(fleet: &Fleet, wanted: &Subscribe, answers: Option<String>) -> Result<Self, String> {
        let since = match &wanted.since {
            Some(text) => {
                let seq = text.parse::<i64>().ok().filter(|seq| *seq >= 0);
                Some(seq.ok_or("`since` takes the `seq` of a message, a whole number from 0")?)
            }
            None => None,
        };
        let resumed = since.filter(|since| fleet.mirror.can_resume(*since));
        let filter = Filter::new(wanted)?;
        Ok(Self { filter, cursor: resumed.unwrap_or(0), resumed: resumed.is_some(), told: Some((0, 0)), answers })
    }
}

/// Serves one client until it leaves.
pub async fn serve(fleet: Arc<Fleet>, mut socket: WebSocket, wanted: Subscribe) {
    let Ok(_permit) = fleet.hub.ui_clients.clone().try_acquire_owned() else {
        return farewell(&mut socket, 1013, "too many clients watch here; try again, or another instance").await;
    };
    let mut view = match View::new(&fleet, &wanted, None) {
        Ok(view) => view,
        Err(reason) => return farewell(&mut socket, 1008, &reason).await,
    };
    let mut changes = fleet.mirror.watch();
    let mut rate = Rate::new(RATE, BURST, fleet.clock.elapsed());
    // By the machine's time, whatever clock the platform runs on.
    let mut rest = pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        changes.mark_unchanged(); // before the look, so that nothing falls between
        match in_time(&fleet, write(&fleet, &mut socket, &mut view)).await {
            Some(true) => {}
            Some(false) => {
                tokio::task::yield_now().await;
                continue;
            }
            None => return leave(&fleet, &mut socket).await,
        }
        tokio::select! {
            () = fleet.stop.cancelled() => return leave(&fleet, &mut socket).await,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                rest.as_mut().await;
                rest.set(tokio::time::sleep(TOGETHER));
            }
            () = tokio::time::sleep(PING) => {
                if in_time(&fleet, socket.send(Message::Ping(Vec::new().into()))).await.is_none() {
                    return leave(&fleet, &mut socket).await;
                }
            }
            received = socket.recv() => {
                let text = match received {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Binary(_))) => return farewell(&mut socket, 1003, "messages are text").await,
                    Some(Ok(Message::Close(_))) => return answer_close(&mut socket).await,
                    Some(Err(_)) | None => return,
                };
                if !rate.allows(fleet.clock.elapsed()) {
                    return farewell(&mut socket, 1008, "too many messages").await;
                }
                if in_time(&fleet, hear(&fleet, &mut socket, &mut view, &text)).await.is_none() {
                    return leave(&fleet, &mut socket).await;
                }
            }
        }
    }
}

/// What comes of writing to a client; none where it has left, does not read, or this instance goes away meanwhile.
async fn in_time<T>(fleet: &Fleet, work: impl Future<Output = Result<T, axum::Error>>) -> Option<T> {
    tokio::select! {
        written = tokio::time::timeout(PATIENCE, work) => written.ok()?.ok(),
        () = fleet.stop.cancelled() => None,
    }
}

/// Nothing more is written; the client is told why where this instance goes away.
async fn leave(fleet: &Fleet, socket: &mut WebSocket) {
    if fleet.stop.is_cancelled() {
        farewell(socket, 1001, "this instance goes away; connect again with ?since=").await;
    }
}

/// Writes what lies behind the client's place; whether that was all.
async fn write(fleet: &Fleet, socket: &mut WebSocket, view: &mut View) -> Result<bool, axum::Error> {
    let page = fleet.mirror.page(view.cursor, &view.filter, PAGE);
    for frame in page.frames {
        socket.feed(Message::Text(frame)).await?;
    }
    view.cursor = page.cursor;
    if let Some((agents, jobs)) = &mut view.told {
        (*agents, *jobs) = (*agents + page.agents, *jobs + page.jobs);
    }
    if page.done
        && let Some((agents, jobs)) = view.told.take()
    {
        let payload = UiReady { resumed: view.resumed, agents, jobs };
        let answers = view.answers.take();
        let text = say(fleet, "ui.ready", view.cursor, answers.as_deref(), payload);
        socket.feed(Message::Text(text.into())).await?;
    }
    socket.flush().await?;
    Ok(page.done)
}

async fn hear(fleet: &Fleet, socket: &mut WebSocket, view: &mut View, text: &str) -> Result<(), axum::Error> {
    let (about, refusal) = match protocol::from_ui(text) {
        Ok(Received { msg_id, message: FromUi::Subscribe(wanted), .. }) => {
            match View::new(fleet, &wanted, msg_id.clone()) {
                Ok(anew) => {
                    *view = anew;
                    return Ok(());
                }
                Err(reason) => (msg_id, ("refused", reason)),
            }
        }
        Ok(Received { msg_id, message: FromUi::Unknown(kind), .. }) => {
            (msg_id, ("unknown-type", format!("`{}` is no message that is known here", kind.escape_debug())))
        }
        Err(broken) => (broken.msg_id, ("malformed", broken.cause)),
    };
    let payload = Complaint { code: refusal.0.to_owned(), message: refusal.1 };
    let text = say(fleet, "error", view.cursor, about.as_deref(), payload);
    socket.send(Message::Text(text.into())).await
}

fn say<T: Serialize>(fleet: &Fleet, kind: &'static str, seq: i64, correlation_id: Option<&str>, payload: T) -> String {
    let ts = Timestamp::new(fleet.clock.now());
    serde_json::to_string(&ToUi { kind, seq, ts, correlation_id, payload }).unwrap_or_default()
}
