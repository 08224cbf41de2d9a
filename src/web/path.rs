//! The variable segments of the path.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// The variable segments of the path, e.g. `Path(id): Path<i64>`. What does not fit names nothing: 404.
#[derive(Debug, Clone)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = parts.uri.path().to_owned();
        let nothing = || Problem::not_found(format!("There is nothing at {path}; check the id."));
        if path.contains("%00") {
            return Err(nothing()); // PostgreSQL cannot store a NUL, so no row has such a name
        }
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(nothing()),
        }
    }
}
