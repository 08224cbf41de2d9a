//! The plane's HTTP routes: pipelines, runs, triggers and engines.
//!
//! Every change by a person is one transaction: the rows, the ledger entry, and the answer kept under the client's
//! `Idempotency-Key`.

mod engines;
mod pipelines;
mod runs;
mod triggers;

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::StatusCode;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Definition, Fault, Pipelines, StartError};
use crate::ledger::Stop;
use crate::problem::{FieldError, Problem};

/// The plane's routes with their OpenAPI.
pub fn routes<S: Clone + Send + Sync + 'static>(plane: Arc<Pipelines>) -> OpenApiRouter<S> {
    OpenApiRouter::new()
        .routes(routes!(pipelines::list))
        .routes(routes!(pipelines::get, pipelines::put))
        .routes(routes!(pipelines::trigger))
        .routes(routes!(pipelines::dry_run))
        .routes(routes!(pipelines::graph))
        .routes(routes!(pipelines::schema))
        .routes(routes!(runs::list))
        .routes(routes!(runs::get))
        .routes(routes!(runs::graph))
        .routes(routes!(runs::pause))
        .routes(routes!(runs::resume))
        .routes(routes!(runs::cancel))
        .routes(routes!(runs::retry))
        .routes(routes!(triggers::list))
        .routes(routes!(triggers::get, triggers::put))
        .routes(routes!(triggers::start))
        .routes(routes!(triggers::stop))
        .routes(routes!(engines::list))
        .routes(routes!(engines::health))
        .routes(routes!(engines::pause))
        .routes(routes!(engines::resume))
        .routes(routes!(engines::stop))
        .with_state(plane)
}

/// The route that stands outside the guard: a trigger may have a key of its own.
pub fn open_routes<S: Clone + Send + Sync + 'static>(plane: Arc<Pipelines>) -> OpenApiRouter<S> {
    OpenApiRouter::new().routes(routes!(triggers::fire)).with_state(plane)
}

impl From<StartError> for Stop {
    fn from(error: StartError) -> Self {
        Self::Problem(error.into())
    }
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        match error {
            StartError::NoSuchPipeline(id) => no_pipeline(&id),
            StartError::Input(faults) | StartError::Definition(faults) => invalid(faults),
            StartError::Store(error) => error.into(),
        }
    }
}

fn no_pipeline(id: &str) -> Problem {
    Problem::not_found(format!("There is no pipeline `{id}`; GET /api/pipelines lists them."))
}

/// 422 with every fault at its place.
fn invalid(faults: Vec<Fault>) -> Problem {
    let field = |fault: Fault| FieldError {
        field: if fault.path.is_empty() { "body".to_owned() } else { fault.path },
        message: fault.message,
    };
    Problem::invalid(faults.into_iter().map(field).collect())
}

/// A body that is the bare input: nothing at all is an empty one.
fn input(bytes: &Bytes) -> Result<Value, Problem> {
    if bytes.trim_ascii().is_empty() {
        return Ok(json!({}));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|cause| {
        Problem::new(StatusCode::BAD_REQUEST, "malformed", format!("The body is not JSON: {cause}."))
    })?;
    if crate::db::has_nul(&value) {
        return Err(invalid(vec![Fault::at("body", "contains a NUL character, which cannot be stored")]));
    }
    Ok(value)
}

/// A body that is a definition, in YAML or JSON.
fn definition(bytes: &Bytes) -> Result<Definition, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid(vec![Fault::at("body", "is not UTF-8")]))?;
    if text.contains('\0') || text.contains("\\u0000") {
        return Err(invalid(vec![Fault::at("body", "contains a NUL character, which cannot be stored")]));
    }
    Definition::parse(text).map_err(|fault| invalid(vec![fault]))
}
