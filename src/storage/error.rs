//! Why a back end did not do it, and what a client is told.

use axum::http::StatusCode;

use crate::problem::Problem;

/// Why a back end did not do it. No text holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no storage back end `{id}`; there are {known}")]
    NoBackend { id: String, known: String },
    #[error("`{0}` is no key: it takes 1 to 1024 bytes in parts between `/`, none of them empty, `.` or `..`")]
    BadKey(String),
    #[error("the storage back end `{backend}` has nothing at `{key}`")]
    NotFound { backend: String, key: String },
    #[error("the storage back end `{backend}` refuses the service's credentials; check STORAGE_BACKENDS")]
    Refused { backend: String },
    #[error("the storage back end `{backend}` does not answer as it should")]
    Unavailable { backend: String },
    /// What came back is not what was put there.
    #[error("the storage back end `{backend}` gave another value than was put at `{key}`: {why}")]
    Changed { backend: String, key: String, why: &'static str },
    #[error("`$storage` names no value: {0}")]
    BadReference(&'static str),
    #[error("the machine gives no random numbers")]
    NoChance,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::NoBackend { .. } | Error::BadKey(_) | Error::NotFound { .. } => {
                return Self::not_found(sentence(&error));
            }
            Error::BadReference(_) => {
                return Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-reference", sentence(&error));
            }
            Error::NoChance => return Self::internal(error),
            Error::Refused { .. } | Error::Unavailable { .. } | Error::Changed { .. } => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, "storage", sentence(&error))
    }
}

/// The error as a sentence.
fn sentence(error: &Error) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).chain(['.']).collect()).unwrap_or_default()
}
