//! One statement with its arguments, run on either database.

use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Arguments, Encode, FromRow, Type};

use super::faults::{Faults, Point};
use super::health::Health;
use super::{Error, Result, Sql, connect};

/// A value that both databases take.
pub trait Value: for<'q> Encode<'q, Sqlite> + Type<Sqlite> + for<'q> Encode<'q, Postgres> + Type<Postgres> {}
impl<T> Value for T where T: for<'q> Encode<'q, Sqlite> + Type<Sqlite> + for<'q> Encode<'q, Postgres> + Type<Postgres> {}

/// A row that both databases give: `#[derive(sqlx::FromRow)]`, or a tuple.
pub trait Row: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}
impl<T> Row for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

enum Target<'e> {
    SqlitePool(&'e SqlitePool, SqliteArguments),
    Sqlite(&'e mut SqliteConnection, SqliteArguments),
    PostgresPool(&'e PgPool, PgArguments),
    Postgres(&'e mut PgConnection, PgArguments),
}

/// A statement to which arguments are bound in order of `$1`, `$2`, …
#[must_use = "a query does nothing until it is run"]
pub struct Query<'e> {
    sql: Sql,
    target: Target<'e>,
    watch: Watch<'e>,
    error: Option<Error>,
}

/// Who makes a statement fail, and who is told that it failed.
pub(super) struct Watch<'e> {
    pub(super) faults: Option<&'e dyn Faults>,
    pub(super) health: &'e Health,
    /// Whether it belongs to a writing transaction.
    pub(super) writes: bool,
    /// Whether it is a writing transaction by itself: its end is a commit.
    pub(super) alone: bool,
}

impl Watch<'_> {
    /// How often another process's lock is waited out: a statement of a transaction meets none.
    fn tries(&self) -> u64 {
        if self.alone { connect::LOCK_TRIES } else { 1 }
    }

    /// Runs `work`, unless it is struck.
    async fn run<T>(&self, text: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = async {
            let Some(faults) = self.faults else { return work.await };
            if self.alone {
                faults.strike(Point::Begin).await?;
            }
            faults.strike(Point::Statement(text)).await?;
            let done = work.await?;
            if self.alone {
                faults.strike(Point::AfterCommit).await?;
            }
            Ok(done)
        };
        let result = result.await;
        // A writing statement may have found nothing to change: that it succeeds shows no more than a read does.
        if result.is_ok() && (self.alone || !self.writes) {
            self.health.works(false);
        }
        self.health.noted(self.writes, result)
    }
}

macro_rules! run {
    ($self:ident, $arguments:ident, $text:ident => $query:expr, $method:ident, $done:ident => $made:expr) => {{
        if let Some(error) = $self.error {
            return Err(error);
        }
        let watch = $self.watch;
        let work = async {
            match $self.target {
                Target::SqlitePool(pool, mut given) => {
                    let $text = $self.sql.sqlite;
                    let mut tries = watch.tries();
                    loop {
                        tries -= 1;
                        let $arguments = if tries > 0 { given.clone() } else { std::mem::take(&mut given) };
                        match $query.$method(pool).await {
                            Err(cause) if tries > 0 && connect::is_held(&cause, watch.health) => {}
                            other => break other.map(|$done| $made).map_err(Error::from),
                        }
                    }
                }
                Target::Sqlite(connection, $arguments) => {
                    let $text = $self.sql.sqlite;
                    $query.$method(connection).await.map(|$done| $made).map_err(Error::from)
                }
                Target::PostgresPool(pool, $arguments) => {
                    let $text = $self.sql.postgres;
                    watch.health.patiently(watch.writes, $query.$method(pool)).await.map(|$done| $made)
                }
                Target::Postgres(connection, $arguments) => {
                    let $text = $self.sql.postgres;
                    watch.health.patiently(watch.writes, $query.$method(connection)).await.map(|$done| $made)
                }
            }
        };
        watch.run($self.sql.sqlite, work).await
    }};
}

impl<'e> Query<'e> {
    fn new(sql: Sql, target: Target<'e>, watch: Watch<'e>) -> Self {
        Self { sql, target, watch, error: None }
    }
    pub(super) fn on_sqlite_pool(sql: Sql, pool: &'e SqlitePool, watch: Watch<'e>) -> Self {
        Self::new(sql, Target::SqlitePool(pool, SqliteArguments::default()), watch)
    }
    pub(super) fn on_sqlite(sql: Sql, connection: &'e mut SqliteConnection, watch: Watch<'e>) -> Self {
        Self::new(sql, Target::Sqlite(connection, SqliteArguments::default()), watch)
    }
    pub(super) fn on_postgres_pool(sql: Sql, pool: &'e PgPool, watch: Watch<'e>) -> Self {
        Self::new(sql, Target::PostgresPool(pool, PgArguments::default()), watch)
    }
    pub(super) fn on_postgres(sql: Sql, connection: &'e mut PgConnection, watch: Watch<'e>) -> Self {
        Self::new(sql, Target::Postgres(connection, PgArguments::default()), watch)
    }

    /// The statement fails with `error` in place of being run.
    pub(super) fn failing(mut self, error: Option<Error>) -> Self {
        self.error = self.error.or(error);
        self
    }

    /// Binds the next argument.
    pub fn bind<T: Value>(mut self, value: T) -> Self {
        let bound = match &mut self.target {
            Target::SqlitePool(_, arguments) | Target::Sqlite(_, arguments) => Arguments::add(arguments, value),
            Target::PostgresPool(_, arguments) | Target::Postgres(_, arguments) => Arguments::add(arguments, value),
        };
        if let Err(error) = bound {
            self.error.get_or_insert(sqlx::Error::Encode(error).into());
        }
        self
    }

    /// All rows.
    pub async fn all<T: Row>(self) -> Result<Vec<T>> {
        run!(self, arguments, text => sqlx::query_as_with(text, arguments), fetch_all, rows => rows)
    }

    /// Exactly one row.
    pub async fn one<T: Row>(self) -> Result<T> {
        if self.watch.alone {
            return self.optional().await?.ok_or_else(|| sqlx::Error::RowNotFound.into());
        }
        run!(self, arguments, text => sqlx::query_as_with(text, arguments), fetch_one, rows => rows)
    }

    /// One row or none.
    pub async fn optional<T: Row>(self) -> Result<Option<T>> {
        // SQLite commits at the end of the statement, which whoever takes only the first row does not wait for.
        if self.watch.alone {
            return Ok(self.all().await?.into_iter().next());
        }
        run!(self, arguments, text => sqlx::query_as_with(text, arguments), fetch_optional, rows => rows)
    }

    /// Runs the statement; returns how many rows it changed.
    pub async fn execute(self) -> Result<u64> {
        run!(self, arguments, text => sqlx::query_with(text, arguments), execute, done => done.rows_affected())
    }
}
