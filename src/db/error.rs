//! What can go wrong in the store, as the rooms above need to tell it apart.

use crate::problem::Problem;

/// A failed statement, transaction or migration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A unique index refused the row.
    #[error("already there: {0}")]
    Unique(String),
    /// A CHECK, NOT NULL or foreign key refused the row.
    #[error("refused by the database: {0}")]
    Refused(String),
    /// The database cannot be reached, is restarting, is locked by another process, or its disk is full.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The schema is not the one that this program was built for.
    #[error("{0}")]
    Schema(String),
    /// Anything else; a fault of ours.
    #[error("database error: {0}")]
    Other(#[source] sqlx::Error),
}

/// What the store returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind;
        match &error {
            sqlx::Error::Database(cause) => match cause.kind() {
                ErrorKind::UniqueViolation => Self::Unique(cause.constraint().unwrap_or(cause.message()).to_owned()),
                ErrorKind::ForeignKeyViolation | ErrorKind::NotNullViolation | ErrorKind::CheckViolation => {
                    Self::Refused(cause.message().to_owned())
                }
                // Said by a trigger of ours, in SQLite's own words.
                _ if cause.message().starts_with("UNIQUE constraint failed") => {
                    Self::Unique(cause.message().to_owned())
                }
                _ if is_unavailable(cause.code().as_deref()) => Self::Unavailable(cause.message().to_owned()),
                _ => Self::Other(error),
            },
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                Self::Unavailable(error.to_string())
            }
            sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => Self::Unavailable(error.to_string()),
            _ => Self::Other(error),
        }
    }
}

/// SQLite: BUSY (5), LOCKED (6), IOERR (10), FULL (13), CANTOPEN (14) and their extended forms.
/// PostgreSQL: classes 08 (connection), 53 (resources), 57 (operator intervention), and 40 (rolled back: try again).
fn is_unavailable(code: Option<&str>) -> bool {
    let Some(code) = code else { return false };
    if code.len() == 5 {
        return ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) || code == "55P03";
    }
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14))
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Unique(what) => Self::conflict(format!("There is already such a row ({what}).")),
            Error::Refused(why) => Self::conflict(format!("The database refused the change: {why}.")),
            Error::Unavailable(cause) => {
                tracing::warn!(%cause, "the database is not available");
                Self::unavailable("The database is not available; the request can be repeated in a moment.")
            }
            Error::Schema(_) | Error::Other(_) => Self::internal(error),
        }
    }
}
