//! The plane's HTTP routes and WebSockets.

mod agents;
mod jobs;
mod sockets;
mod templates;
mod tokens;

use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Fleet;
use crate::problem::Problem;
use crate::web::Checks;

/// The plane's routes with their OpenAPI.
pub fn routes<S: Clone + Send + Sync + 'static>(fleet: Arc<Fleet>) -> OpenApiRouter<S> {
    OpenApiRouter::new()
        .routes(routes!(agents::list))
        .routes(routes!(agents::get))
        .routes(routes!(agents::drain))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(jobs::list, jobs::submit))
        .routes(routes!(jobs::get))
        .routes(routes!(jobs::stop))
        .routes(routes!(jobs::mute))
        .routes(routes!(jobs::unmute))
        .routes(routes!(jobs::metadata, jobs::set_metadata))
        .routes(routes!(jobs::events))
        .routes(routes!(templates::list, templates::create))
        .routes(routes!(templates::get, templates::put, templates::delete))
        .routes(routes!(sockets::ui))
        .with_state(fleet)
}

/// Where agents connect; they prove themselves in their hello.
pub fn agent_routes<S: Clone + Send + Sync + 'static>(fleet: Arc<Fleet>) -> OpenApiRouter<S> {
    OpenApiRouter::new().routes(routes!(sockets::agent)).with_state(fleet)
}

/// Bytes of a stream's configuration: an agent takes messages of 1 MiB, and it goes out in one.
const LONGEST_CONFIG: usize = 512 * 1024;

/// Refuses a configuration that no agent could be told.
fn check_config(checks: &mut Checks, field: &str, config: &Map<String, Value>) {
    if serde_json::to_string(config).map_or(usize::MAX, |text| text.len()) > LONGEST_CONFIG {
        checks.refuse(field, format!("takes at most {LONGEST_CONFIG} bytes"));
    }
}

/// Items of a list that is a bare array, unless it says otherwise: all of most fleets.
const USUAL: i64 = 1_000;

/// Reads `limit`, 1 to 1,000.
fn limit(given: Option<i64>) -> Result<i64, Problem> {
    let limit = given.unwrap_or(USUAL);
    if (1..=USUAL).contains(&limit) {
        return Ok(limit);
    }
    let message = format!("takes a whole number from 1 to {USUAL}");
    Err(Problem::refused("limit", message))
}

/// A bare array of at most `limit` of `items`, of which one more was read; the header `Link` says where the rest is.
fn listed<T: Serialize>(mut items: Vec<T>, limit: i64, path: &str, key: impl Fn(&T) -> String) -> Response {
    let most = usize::try_from(limit).unwrap_or_default();
    let more = items.len() > most;
    items.truncate(most);
    let next = items.last().filter(|_| more).map(|last| {
        let query: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("limit", &limit.to_string())
            .append_pair("after", &key(last))
            .finish();
        format!("<{path}?{query}>; rel=\"next\"")
    });
    let mut response = Json(items).into_response();
    if let Some(next) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
        response.headers_mut().insert(header::LINK, next);
    }
    response
}
