//! The endpoint to which the service sends runs. Only what it signed is taken.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};

use super::Crew;
use crate::planes::queue::Assignment;

/// Bytes of one run as it is sent: an input below 256 KiB, its context, and the storage's credentials.
const LONGEST_ASSIGNMENT: usize = 4 << 20;

/// The runs that this worker has, by number and lease: one that is sent twice is carried out once.
#[derive(Default)]
pub(super) struct Held(Mutex<HashSet<(i64, i64)>>);

impl Held {
    fn hold(&self, run: &Assignment) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((run.run_id, run.lease))
    }
    fn release(&self, run: i64, lease: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(run, lease));
    }
}

/// POST to whatever path.
pub(super) fn router(crew: Arc<Crew>) -> Router {
    Router::new()
        .route("/", post(accept))
        .route("/{*path}", post(accept))
        .layer(DefaultBodyLimit::max(LONGEST_ASSIGNMENT))
        .with_state((crew, Arc::new(Held::default())))
}

/// 202 and the run is ours; 503 where there is no room, which costs the run no try.
async fn accept(State((crew, held)): State<(Arc<Crew>, Arc<Held>)>, Json(run): Json<Assignment>) -> Response {
    if !crew.errands.service.key().is_run_token(&run.token, run.run_id, run.lease) {
        return (StatusCode::UNAUTHORIZED, "the run is not signed with the shared key\n").into_response();
    }
    if !crew.errands.manifest.tasks.contains_key(&run.task_id) {
        return (StatusCode::NOT_FOUND, "this worker does not run that task\n").into_response();
    }
    let Some(place) = crew.place() else {
        // When there will be room depends on what runs: it is asked again soon.
        return (StatusCode::SERVICE_UNAVAILABLE, "no room now\n").into_response();
    };
    if held.hold(&run) {
        let (id, lease) = (run.run_id, run.lease);
        crew.begin(run, place, move || held.release(id, lease));
    }
    StatusCode::ACCEPTED.into_response()
}
