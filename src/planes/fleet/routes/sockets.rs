//! `/agent` and `/ui`, where HTTP ends.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::actor::{Caller, Role};
use crate::planes::fleet::protocol::Subscribe;
use crate::planes::fleet::{Fleet, socket, ui};
use crate::problem::Problem;
use crate::web::{Params, Place};

/// What a browser names beside `bearer.<token>`, which is never said back.
const SUBPROTOCOL: &str = "showrunner";

fn no_upgrade(rejection: &WebSocketUpgradeRejection, path: &str) -> Response {
    let detail = format!("{path} is a WebSocket; open it as one, e.g. with ws://localhost:8000{path} ({rejection}).");
    let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade-required", detail);
    let mut response = problem.into_response();
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response
}

fn not_here() -> Problem {
    Problem::unavailable("This process takes no agents and no watchers; it works only on request.")
}

/// Where agents connect, by WebSocket. The first message is `agent.hello` with the agent's token.
#[utoipa::path(get, path = "/agent", operation_id = "connectAgent", tag = "fleet", security(()),
    responses((status = 101, description = "The connection is a WebSocket now"),
              (status = 426, description = "Open it as a WebSocket", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn agent(
    State(fleet): State<Arc<Fleet>>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    place: Option<Extension<Place>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => socket::sized(upgrade, socket::LONGEST_MESSAGE),
        Err(rejection) => return no_upgrade(&rejection, "/agent"),
    };
    if !fleet.is_running() {
        return not_here().into_response();
    }
    let from_loopback = peer.is_some_and(|Extension(ConnectInfo(peer))| peer.ip().to_canonical().is_loopback());
    let place = place.map(|Extension(place)| place);
    let connections = fleet.connections.clone();
    upgrade.on_upgrade(move |socket| {
        connections.track_future(Box::pin(socket::serve(fleet, socket, from_loopback, place)))
    })
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UiQuery {
    /// Only what changed behind the `seq` of an earlier message.
    since: Option<String>,
    /// `agents`, `jobs`, or both with a comma between.
    topics: Option<String>,
    /// Only these agents and the jobs on them, with commas between.
    agents: Option<String>,
    /// Only these jobs, with commas between.
    jobs: Option<String>,
}

fn items(text: Option<String>) -> Vec<String> {
    let items = text.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|item| !item.is_empty());
    items.map(str::to_owned).collect()
}

/// Live updates, by WebSocket: the whole state first, as `ui.agent.update` and `ui.job.update`, then `ui.ready`, then
/// changes. `seq` grows; after a gap, `?since=` goes on from there. A browser names its token as the subprotocol
/// `bearer.<token>` beside `showrunner`.
#[utoipa::path(get, path = "/ui", operation_id = "watchFleet", tag = "fleet", params(UiQuery),
    responses((status = 101, description = "The connection is a WebSocket now"),
              (status = 426, description = "Open it as a WebSocket", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn ui(
    State(fleet): State<Arc<Fleet>>,
    caller: Caller,
    Params(query): Params<UiQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    if let Err(problem) = caller.require(Role::Viewer) {
        return problem.into_response();
    }
    let upgrade = match upgrade {
        Ok(upgrade) => socket::sized(upgrade, ui::LONGEST_MESSAGE).protocols([SUBPROTOCOL]),
        Err(rejection) => return no_upgrade(&rejection, "/ui"),
    };
    if !fleet.is_running() {
        return not_here().into_response();
    }
    let wanted = Subscribe {
        since: query.since.filter(|since| !since.is_empty()),
        topics: items(query.topics),
        agent_ids: items(query.agents),
        job_ids: items(query.jobs),
    };
    let connections = fleet.connections.clone();
    upgrade.on_upgrade(move |socket| connections.track_future(Box::pin(ui::serve(fleet, socket, wanted))))
}
