//! Events: a page of them, or a stream that goes on where it broke off.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::Db;
use crate::events::{self, Event, Filter, Monitor, Position, Received, Severity, Subscription};
use crate::problem::Problem;
use crate::web::{Cursor, Limit, Page, Params};

/// Streams at once. Each costs a connection, and at most a page of events in memory.
const STREAMS: usize = 64;

/// Stored events that a stream catches up on at most; for more there are pages.
const MOST_REPLAYED: usize = 10_000;

/// Events that one look at the table reads.
const BATCH: i64 = 200;

/// Between signs of life on a stream on which nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Where a client says how far it had come.
const LAST_EVENT_ID: &str = "last-event-id";

#[derive(Clone)]
struct Door {
    db: Db,
    monitor: Monitor,
    places: Arc<Semaphore>,
    /// Streams end with the doors.
    stop: CancellationToken,
}

/// The route of events; streams end at `stop`.
pub fn routes<S: Clone + Send + Sync + 'static>(db: Db, monitor: Monitor, stop: CancellationToken) -> OpenApiRouter<S> {
    let door = Door { db, monitor, places: Arc::new(Semaphore::new(STREAMS)), stop };
    OpenApiRouter::new().routes(routes!(events)).with_state(door)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Only events of these types, parted by commas; `job.*` is a whole family.
    r#type: Option<String>,
    /// Only events of this severity or worse.
    #[param(inline)]
    severity: Option<Severity>,
    /// Only events whose subject begins so, e.g. `run:12`.
    subject: Option<String>,
    /// Of a page.
    #[serde(default)]
    #[param(required = false)]
    limit: Limit,
    /// Where the page begins: `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor<i64>>,
}

/// Events: a page of stored ones, newest first, or with `Accept: text/event-stream` a stream of all from now on.
///
/// Each message of the stream holds an event as JSON; its `id`, sent back as `Last-Event-ID`, is where a new stream goes
/// on; the `id` of an event of a page is taken as well. A message `gap` says that events before the next one may be missing, and why.
#[utoipa::path(get, path = "/v1/events", operation_id = "listEvents", tag = "record", params(EventsQuery),
    responses((status = 200, description = "A page of events, or a stream of them",
        content((Page<Event> = "application/json"), (String = "text/event-stream")))))]
async fn events(
    State(door): State<Door>,
    headers: HeaderMap,
    Params(query): Params<EventsQuery>,
) -> Result<Response, Problem> {
    let types = query.r#type.iter().flat_map(|types| types.split(',')).map(str::trim).filter(|text| !text.is_empty());
    let filter = Filter { types: types.map(str::to_owned).collect(), severity: query.severity, subject: query.subject };
    if wants_stream(&headers) {
        return stream(door, &headers, filter).await;
    }
    let before = query.cursor.map(|Cursor(id)| id);
    let rows = events::list(&door.db, &filter, before, query.limit.fetch()).await?;
    Ok(Json(Page::cut(rows, query.limit, |event| event.id)).into_response())
}

/// Whether the client asks for a stream: one that takes anything (`*/*`) is given a page, which ends.
fn wants_stream(headers: &HeaderMap) -> bool {
    let takes = |value: &str| {
        value
            .split(',')
            .any(|kind| kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream"))
    };
    headers.contains_key(LAST_EVENT_ID)
        || headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(takes))
}

async fn stream(door: Door, headers: &HeaderMap, filter: Filter) -> Result<Response, Problem> {
    let last = match headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) {
        Some(value) => Some(place(&door.db, value.to_str().unwrap_or_default()).await?),
        None => None,
    };
    let place = door.places.clone().try_acquire_owned().map_err(|_| {
        Problem::unavailable(format!("There are {STREAMS} streams of events already; try again when one has ended."))
    })?;
    let (position, gap) = beginning(&door, last).await?;
    let subscription = door.monitor.subscribe();
    let telling = Telling {
        db: door.db,
        monitor: door.monitor,
        filter,
        subscription,
        position,
        gap,
        read: VecDeque::new(),
        behind: true,
        replayed: 0,
        stop: door.stop,
        _place: place,
    };
    let messages = stream::unfold(telling, |mut telling| async move {
        let message = telling.next().await?;
        Some((Ok::<_, Infallible>(message), telling))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

/// The place that a client names by the `id` of a message, or by that of an event of a page.
async fn place(db: &Db, text: &str) -> Result<Position, Problem> {
    if let Some(id) = text.parse::<i64>().ok().filter(|id| *id >= 0) {
        return Ok(events::place_of(db, id).await?);
    }
    text.parse().map_err(|refused: events::NotAPosition| Problem::refused("Last-Event-ID", refused.to_string()))
}

/// Where the stream begins, and what the client has to be told first.
async fn beginning(door: &Door, last: Option<Position>) -> Result<(Position, Option<Message>), Problem> {
    let end = door.monitor.position();
    let Some(last) = last else { return Ok((end, None)) };
    let forgotten = events::forgotten(&door.db).await?;
    if last < forgotten {
        return Ok((last, Some(gap(json!({ "reason": "retention" })))));
    }
    // No instance has told of anything that is not there: the place is of another database.
    if last > end.max(forgotten).max(events::end(&door.db).await?) {
        return Ok((end, Some(gap(json!({ "reason": "unknown_id" })))));
    }
    Ok((last, None))
}

/// Says that events may be missing here, and why.
fn gap(why: serde_json::Value) -> Message {
    Message::default().event("gap").data(why.to_string())
}

/// One client's stream. What is stored is read from the table until the client has caught up; from then on the
/// subscription tells, and only where that missed something the table is read again.
struct Telling {
    db: Db,
    monitor: Monitor,
    filter: Filter,
    subscription: Subscription,
    /// Everything stored up to here has been told or was not wanted.
    position: Position,
    gap: Option<Message>,
    read: VecDeque<Event>,
    behind: bool,
    replayed: usize,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Telling {
    /// The next message; none when the stream ends, which the client takes as a reason to come back.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(gap) = self.gap.take() {
                return Some(gap);
            }
            if let Some(event) = self.read.pop_front() {
                if let Some(message) = self.message(&event) {
                    return Some(message);
                }
            } else if self.behind {
                self.read_on().await?;
            } else {
                let received = tokio::select! {
                    () = self.stop.cancelled() => return None,
                    received = self.subscription.recv() => received?,
                };
                match received {
                    Received::Event(event) if event.position().is_some_and(|position| position <= self.position) => {}
                    Received::Event(event) => {
                        if let Some(message) = self.message(&event) {
                            return Some(message);
                        }
                    }
                    // What is stored is read from the table; what was transient is gone.
                    Received::Missed { transient, .. } => {
                        self.behind = true;
                        let lost = (transient > 0).then(|| json!({ "reason": "slow_reader", "count": transient }));
                        self.gap = lost.map(gap);
                    }
                }
            }
        }
    }

    /// Reads a stretch of the table; none where it cannot be read.
    async fn read_on(&mut self) -> Option<()> {
        let stretch = events::behind(&self.db, self.position, BATCH).await.ok()?;
        self.replayed += stretch.events.len();
        if stretch.events.is_empty() {
            (self.behind, self.replayed) = (false, 0);
        } else if self.replayed > MOST_REPLAYED {
            self.position = self.position.max(self.monitor.position());
            self.gap = Some(gap(json!({ "reason": "too_many", "most": MOST_REPLAYED })));
            (self.behind, self.replayed) = (false, 0);
        } else {
            self.read = stretch.events.into();
        }
        Some(())
    }

    /// The event as a message, if it is wanted.
    fn message(&mut self, event: &Event) -> Option<Message> {
        let position = event.position();
        self.position = position.unwrap_or(self.position);
        if !self.filter.takes(event) {
            return None;
        }
        let message = Message::default().data(serde_json::to_string(event).unwrap_or_default());
        Some(match position {
            Some(position) => message.id(position.to_string()),
            None => message,
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_who_asks_for_a_stream_is_given_one() {
        for (accept, streams) in [
            ("text/event-stream", true),
            ("application/json, Text/Event-Stream;q=0.5", true),
            ("*/*", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(wants_stream(&headers), streams, "{accept}");
        }
        let headers = HeaderMap::from_iter([(LAST_EVENT_ID.parse().expect("a name"), HeaderValue::from_static("1-1"))]);
        assert!(wants_stream(&headers));
        assert!(!wants_stream(&HeaderMap::new()));
    }
}
