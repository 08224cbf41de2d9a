//! The HTTP door: one router shell around every plane's routes.
//!
//! A request passes, from outside in: request id, log span and metrics (`outer`), the panic net, the rate limit
//! (`rate`), the check for one `Host` (`outer`), the loopback check where the API is open (`auth`), time-out and body limit (`outer`), and at a guarded
//! route the token and its role (`auth`). Whatever goes wrong on the way is answered as problem+json.
//!
//! | room | holds |
//! |---|---|
//! | `auth`, `rate`, `outer` | the layers |
//! | `serve` | connections: their bounds and the graceful drain |
//! | `openapi` | the document, made from the routes, and the page to try it |
//! | `metrics` | what Prometheus is told |
//! | `orchestrator`, `cycles`, `ledger`, `events`, `storage`, `rules`, `probes`, `process` | routes |

mod auth;
mod cycles;
pub mod events;
mod ledger;
pub mod metrics;
mod openapi;
mod orchestrator;
mod outer;
mod probes;
pub mod process;
mod rate;
mod rules;
mod serve;
pub mod storage;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use metrics_exporter_prometheus::PrometheusHandle;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use serve::{Bounds, serve};

use crate::clock::SystemClock;
use crate::config::Config;
use crate::control::orchestrator::Orchestrator;
use crate::dashboard;
use crate::db::Db;
use crate::problem::Problem;
use crate::random::Random;

/// What the routes work with.
#[derive(Clone)]
pub struct AppState {
    pub orchestrator: Orchestrator,
    pub db: Db,
    pub config: Arc<Config>,
    pub random: Random,
    /// Of [`metrics::recorder`].
    pub metrics: PrometheusHandle,
}

/// The whole service's router. `planes` are the planes' own guarded routes, which bring their state along; `open`
/// ones, of workers and triggers, stand outside the guard and check for themselves.
pub fn router(state: AppState, planes: OpenApiRouter<AppState>, open: OpenApiRouter<AppState>) -> Router {
    let guard = Arc::new(auth::Guard::new(&state.config.auth));
    let limiter = Arc::new(rate::Limiter::new(state.config.http.requests_per_second));
    let patience = Duration::from_millis(state.config.http.request_timeout_ms);
    let body_limit = state.config.http.body_limit_bytes;

    let (routes, document) = documented(planes, open, &guard).split_for_parts();
    let document = openapi::complete(document);
    routes
        .merge(openapi::routes(document))
        .merge(dashboard::routes())
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .with_state(state.clone())
        .layer(DefaultBodyLimit::max(body_limit))
        .layer(from_fn_with_state(body_limit, outer::refuse_long_bodies))
        .layer(from_fn_with_state(patience, outer::time_out))
        .layer(from_fn_with_state(guard, auth::check_loopback))
        .layer(from_fn(outer::refuse_ambiguous))
        .layer(from_fn_with_state(limiter, rate::limit))
        .layer(CatchPanicLayer::custom(outer::panicked))
        .layer(from_fn_with_state((state.random, SystemClock::shared()), outer::accompany))
}

/// Every route that the document shows: the open ones, and behind the guard all others.
fn documented(
    planes: OpenApiRouter<AppState>,
    open: OpenApiRouter<AppState>,
    guard: &Arc<auth::Guard>,
) -> OpenApiRouter<AppState> {
    let guarded = OpenApiRouter::new()
        .routes(routes!(orchestrator::snapshot))
        .routes(routes!(orchestrator::run_once))
        .routes(routes!(orchestrator::enable))
        .routes(routes!(orchestrator::disable))
        .routes(routes!(orchestrator::status))
        .routes(routes!(cycles::list))
        .routes(routes!(cycles::get))
        .routes(routes!(cycles::health_history))
        .routes(routes!(ledger::list))
        .merge(ledger::verification())
        .routes(routes!(rules::show))
        .routes(routes!(probes::metrics))
        .merge(planes)
        .route_layer(from_fn_with_state(guard.clone(), auth::authenticate));
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(probes::alive))
        .routes(routes!(probes::ready))
        .routes(routes!(probes::healthy))
        .merge(open.layer(from_fn_with_state(guard.clone(), auth::recognize)))
        .merge(guarded)
}

async fn no_such_route(uri: Uri) -> Problem {
    Problem::not_found(format!("There is no route {}; /docs lists them all.", uri.path()))
}

async fn no_such_method(uri: Uri) -> Problem {
    let detail = format!("{} does not take this method; the header `Allow` names those it takes.", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
}

/// Refuses to open the API to others without tokens; the sentence says what to set.
pub fn check_exposure(config: &Config) -> Result<(), String> {
    if config.host.is_loopback() || !config.auth.tokens.is_empty() {
        return Ok(());
    }
    Err(format!(
        "listening on {} would let anybody who can reach it run the loop, because no tokens are set: set `auth.tokens` \
         (each with a name, a role and a token of at least 16 characters), or `host` to 127.0.0.1",
        config.host
    ))
}
