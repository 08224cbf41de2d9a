//! One statement with its arguments, run on either database.

use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Arguments, Encode, FromRow, Type};

use super::faults::{Faults, Point};
use super::{Error, Result, Sql};

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
    faults: Option<&'e dyn Faults>,
    error: Option<sqlx::Error>,
}

macro_rules! run {
    ($self:ident, $arguments:ident, $text:ident => $query:expr, $method:ident) => {{
        if let Some(faults) = $self.faults {
            faults.strike(Point::Statement($self.sql.sqlite)).await?;
        }
        if let Some(error) = $self.error {
            return Err(Error::from(error));
        }
        match $self.target {
            Target::SqlitePool(pool, $arguments) => {
                let $text = $self.sql.sqlite;
                $query.$method(pool).await.map_err(Error::from)
            }
            Target::Sqlite(connection, $arguments) => {
                let $text = $self.sql.sqlite;
                $query.$method(connection).await.map_err(Error::from)
            }
            Target::PostgresPool(pool, $arguments) => {
                let $text = $self.sql.postgres;
                $query.$method(pool).await.map_err(Error::from)
            }
            Target::Postgres(connection, $arguments) => {
                let $text = $self.sql.postgres;
                $query.$method(connection).await.map_err(Error::from)
            }
        }
    }};
}

impl<'e> Query<'e> {
    fn new(sql: Sql, target: Target<'e>, faults: Option<&'e dyn Faults>) -> Self {
        Self { sql, target, faults, error: None }
    }
    pub(super) fn on_sqlite_pool(sql: Sql, pool: &'e SqlitePool, faults: Option<&'e dyn Faults>) -> Self {
        Self::new(sql, Target::SqlitePool(pool, SqliteArguments::default()), faults)
    }
    pub(super) fn on_sqlite(sql: Sql, connection: &'e mut SqliteConnection, faults: Option<&'e dyn Faults>) -> Self {
        Self::new(sql, Target::Sqlite(connection, SqliteArguments::default()), faults)
    }
    pub(super) fn on_postgres_pool(sql: Sql, pool: &'e PgPool, faults: Option<&'e dyn Faults>) -> Self {
        Self::new(sql, Target::PostgresPool(pool, PgArguments::default()), faults)
    }
    pub(super) fn on_postgres(sql: Sql, connection: &'e mut PgConnection, faults: Option<&'e dyn Faults>) -> Self {
        Self::new(sql, Target::Postgres(connection, PgArguments::default()), faults)
    }

    /// Binds the next argument.
    pub fn bind<T: Value>(mut self, value: T) -> Self {
        let bound = match &mut self.target {
            Target::SqlitePool(_, arguments) | Target::Sqlite(_, arguments) => Arguments::add(arguments, value),
            Target::PostgresPool(_, arguments) | Target::Postgres(_, arguments) => Arguments::add(arguments, value),
        };
        if let Err(error) = bound {
            self.error.get_or_insert(sqlx::Error::Encode(error));
        }
        self
    }

    /// All rows.
    pub async fn all<T: Row>(self) -> Result<Vec<T>> {
        run!(self, arguments, text => sqlx::query_as_with(text, arguments), fetch_all)
    }

    /// Exactly one row.
    pub async fn one<T: Row>(self) -> Result<T> {
        run!(self, arguments, text => sqlx::query_as_with(text, arguments), fetch_one)
    }

    /// One row or none.
    pub async fn optional<T: Row>(self) -> Result<Option<T>> {
        run!(self, arguments, text => sqlx::query_as_with(text, arguments), fetch_optional)
    }

    /// Runs the statement; returns how many rows it changed.
    pub async fn execute(self) -> Result<u64> {
        if let Some(faults) = self.faults {
            faults.strike(Point::Statement(self.sql.sqlite)).await?;
        }
        if let Some(error) = self.error {
            return Err(Error::from(error));
        }
        Ok(match self.target {
            Target::SqlitePool(pool, arguments) => {
                sqlx::query_with(self.sql.sqlite, arguments).execute(pool).await?.rows_affected()
            }
            Target::Sqlite(connection, arguments) => {
                sqlx::query_with(self.sql.sqlite, arguments).execute(connection).await?.rows_affected()
            }
            Target::PostgresPool(pool, arguments) => {
                sqlx::query_with(self.sql.postgres, arguments).execute(pool).await?.rows_affected()
            }
            Target::Postgres(connection, arguments) => {
                sqlx::query_with(self.sql.postgres, arguments).execute(connection).await?.rows_affected()
            }
        })
    }
}
