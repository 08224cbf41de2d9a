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
    /// The database cannot be reached, is restarting, is locked by another process, or its disk is full or may not be
    /// written.
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
                // A trigger of ours, on either database: SQLITE_CONSTRAINT_TRIGGER, and raise_exception.
                _ if matches!(cause.code().as_deref(), Some("1811" | "P0001")) => {
                    Self::Refused(cause.message().to_owned())
                }
                _ if is_unavailable(cause.code().as_deref()) => Self::Unavailable(with_hint(&**cause)),
                _ => Self::Other(error),
            },
            // The pool keeps to itself why it could not connect.
            sqlx::Error::PoolTimedOut => {
                Self::Unavailable("no connection in time; is the database running, and can it be reached?".to_owned())
            }
            sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                Self::Unavailable(error.to_string())
            }
            sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => Self::Unavailable(error.to_string()),
            _ => Self::Other(error),
        }
    }
}

/// What the database said, and where that is too short to help, what to look at.
fn with_hint(cause: &dyn sqlx::error::DatabaseError) -> String {
    let code = cause.code().and_then(|code| code.parse::<u32>().ok()).filter(|code| *code < 10_000);
    let hint = match code.map(|code| code & 0xff) {
        Some(8) => "; the service must be allowed to write the file and its folder",
        Some(10) => "; is the disk broken or full, or the size of files limited?",
        Some(13) => "; make room on its disk",
        _ => "",
    };
    format!("{}{hint}", cause.message())
}

/// SQLite: BUSY (5), LOCKED (6), READONLY (8), IOERR (10), FULL (13), CANTOPEN (14) and their extended forms.
/// PostgreSQL: classes 08 (connection), 53 (resources), 57 (operator intervention), and 40 (rolled back: try again).
fn is_unavailable(code: Option<&str>) -> bool {
    let Some(code) = code else { return false };
    if code.len() == 5 {
        return ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) || code == "55P03";
    }
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14))
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
