//! The store: SQLite and PostgreSQL behind one face.
//!
//! [`Db`] is chosen at run time by a URL. Reads go by [`Db::query`] or, where several must agree, by
//! [`Db::begin_read`]; writes always go by [`Db::begin`], so that on SQLite the one writer's lock is taken
//! before the first statement and "database is locked" can only happen there, where it is waited out.
//! Statements use `$1` placeholders on both; where the dialects part, [`sql!`](crate::sql) names the place.
//!
//! | room | holds |
//! |---|---|
//! | `connect` | opening either database, pools and pragmas |
//! | `query` | one statement with its arguments, run on either database |
//! | `sql`, `timestamp`, `error` | the text, the time and the failures of a statement |
//! | `migrate` | the embedded migrations and the check for drift |
//! | `wake` | hints that something changed, in this process and, with PostgreSQL, in others |
//! | `faults` | where a simulation lets statements and commits fail |

mod connect;
mod error;
mod faults;
mod migrate;
mod query;
mod sql;
mod timestamp;
mod wake;

use std::sync::Arc;

use sqlx::Transaction;
use sqlx::postgres::{PgPool, Postgres};
use sqlx::sqlite::{Sqlite, SqlitePool};

pub use connect::Options;
pub use error::{Error, Result};
pub use faults::{Faults, Point};
pub use migrate::MigrationState;
pub use query::{Query, Row, Value};
pub use sql::Sql;
pub use sqlx::types::Json;
pub use timestamp::Timestamp;
pub use wake::{Topic, Waker};

use crate::clock::SharedClock;

/// Which database this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Embedded, one file, one process that serves.
    Sqlite,
    /// A server that any number of instances share.
    Postgres,
}

/// A handle to the database; cheap to clone.
#[derive(Clone)]
pub struct Db {
    pools: Pools,
    /// The clock that stands for the database's own: always on SQLite (it runs in this process),
    /// on PostgreSQL only in a simulation.
    clock: Option<SharedClock>,
    faults: Option<Arc<dyn Faults>>,
    waker: Waker,
}

#[derive(Clone)]
enum Pools {
    Sqlite { read: SqlitePool, write: SqlitePool },
    Postgres(PgPool),
}

/// A transaction. Dropped without [`Tx::commit`], it rolls back.
pub struct Tx {
    inner: TxInner,
    clock: Option<SharedClock>,
    now: Option<Timestamp>,
    faults: Option<Arc<dyn Faults>>,
}

enum TxInner {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Db {
    /// Which database this is.
    pub fn dialect(&self) -> Dialect {
        match self.pools {
            Pools::Sqlite { .. } => Dialect::Sqlite,
            Pools::Postgres(_) => Dialect::Postgres,
        }
    }

    /// The same database, failing where `faults` says.
    pub fn with_faults(mut self, faults: Arc<dyn Faults>) -> Self {
        self.faults = Some(faults);
        self
    }

    /// The same database with `clock` in place of its own clock.
    pub fn with_clock(mut self, clock: SharedClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The database's own time: due times and leases go by it, not by an instance's clock.
    pub async fn now(&self) -> Result<Timestamp> {
        match &self.clock {
            Some(clock) => Ok(Timestamp::new(clock.now())),
            None => Ok(self.query("SELECT clock_timestamp()").one::<(Timestamp,)>().await?.0),
        }
    }

    /// One reading statement outside a transaction.
    pub fn query(&self, sql: impl Into<Sql>) -> Query<'_> {
        match &self.pools {
            Pools::Sqlite { read, .. } => Query::on_sqlite_pool(sql.into(), read, self.faults.as_deref()),
            Pools::Postgres(pool) => Query::on_postgres_pool(sql.into(), pool, self.faults.as_deref()),
        }
    }

    /// A writing transaction. On SQLite it holds the write lock from here on.
    pub async fn begin(&self) -> Result<Tx> {
        self.strike(Point::Begin).await?;
        let inner = match &self.pools {
            Pools::Sqlite { write, .. } => TxInner::Sqlite(connect::begin_immediate(write).await?),
            Pools::Postgres(pool) => TxInner::Postgres(connect::begin_postgres(pool, "BEGIN").await?),
        };
        Ok(self.transaction(inner))
    }

    /// A reading transaction that sees one state of the database throughout.
    pub async fn begin_read(&self) -> Result<Tx> {
        self.strike(Point::Begin).await?;
        let inner = match &self.pools {
            Pools::Sqlite { read, .. } => TxInner::Sqlite(read.begin().await?),
            Pools::Postgres(pool) => {
                let text = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                TxInner::Postgres(connect::begin_postgres(pool, text).await?)
            }
        };
        Ok(self.transaction(inner))
    }

    fn transaction(&self, inner: TxInner) -> Tx {
        Tx { inner, clock: self.clock.clone(), now: None, faults: self.faults.clone() }
    }

    async fn strike(&self, point: Point<'_>) -> Result<()> {
        match &self.faults {
            Some(faults) => faults.strike(point).await,
            None => Ok(()),
        }
    }

    /// Closes every connection; on SQLite the write-ahead log is folded into the file.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { read, write } => {
                read.close().await;
                write.close().await;
            }
            Pools::Postgres(pool) => pool.close().await,
        }
    }
}

impl Tx {
    /// Which database this is.
    pub fn dialect(&self) -> Dialect {
        match self.inner {
            TxInner::Sqlite(_) => Dialect::Sqlite,
            TxInner::Postgres(_) => Dialect::Postgres,
        }
    }

    /// The database's time, asked once and the same for the rest of the transaction.
    pub async fn now(&mut self) -> Result<Timestamp> {
        if let Some(now) = self.now {
            return Ok(now);
        }
        let now = match &self.clock {
            Some(clock) => Timestamp::new(clock.now()),
            None => self.query("SELECT clock_timestamp()").one::<(Timestamp,)>().await?.0,
        };
        self.now = Some(now);
        Ok(now)
    }

    /// One statement inside the transaction.
    pub fn query(&mut self, sql: impl Into<Sql>) -> Query<'_> {
        match &mut self.inner {
            TxInner::Sqlite(tx) => Query::on_sqlite(sql.into(), tx, self.faults.as_deref()),
            TxInner::Postgres(tx) => Query::on_postgres(sql.into(), tx, self.faults.as_deref()),
        }
    }

    /// Makes everything durable. An error here leaves open whether it happened; only reading again can tell.
    pub async fn commit(self) -> Result<()> {
        let faults = self.faults;
        if let Some(faults) = &faults {
            faults.strike(Point::BeforeCommit).await?;
        }
        match self.inner {
            TxInner::Sqlite(tx) => tx.commit().await?,
            TxInner::Postgres(tx) => tx.commit().await?,
        }
        match faults {
            Some(faults) => faults.strike(Point::AfterCommit).await,
            None => Ok(()),
        }
    }
}
