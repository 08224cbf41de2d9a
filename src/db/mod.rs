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
//! | `sql`, `timestamp`, `json`, `error` | the text, the times, the JSON and the failures of a statement |
//! | `figures` | the figures of several rooms in one statement |
//! | `migrate` | the embedded migrations and the check for drift |
//! | `health` | what the database last failed at, for those who watch the service |
//! | `wake` | hints that something changed, in this process and, with PostgreSQL, in others |
//! | `faults` | where a simulation lets statements and commits fail |

mod connect;
mod error;
mod faults;
mod figures;
mod health;
mod json;
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
pub use figures::AGO;
pub use health::Trouble;
pub use json::{Json, has_nul};
pub use migrate::MigrationState;
pub use query::{Query, Row, Value};
pub use sql::Sql;
pub use timestamp::Timestamp;
pub use wake::{Listener, Topic, Waker};

use crate::clock::SharedClock;
use connect::DatabaseFile;
use health::Health;

/// Connections have this long to say goodbye.
const CLOSE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

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
    health: Health,
}

#[derive(Clone)]
enum Pools {
    Sqlite {
        read: SqlitePool,
        write: SqlitePool,
        /// None in memory.
        file: Option<Arc<DatabaseFile>>,
    },
    Postgres(PostgresPools),
}

#[derive(Clone)]
struct PostgresPools {
    /// Connections that plan each statement for what is bound to it.
    fresh: PgPool,
    /// Connections that plan each statement once.
    kept: PgPool,
}

impl PostgresPools {
    fn planning(&self, once: bool) -> &PgPool {
        if once { &self.kept } else { &self.fresh }
    }
}

/// A transaction. Dropped without [`Tx::commit`], it rolls back.
pub struct Tx {
    inner: TxInner,
    clock: Option<SharedClock>,
    now: Option<Timestamp>,
    faults: Option<Arc<dyn Faults>>,
    health: Health,
    writes: bool,
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

    /// The database's own time, where it can be had without asking. A statement that is given none asks the server:
    /// `coalesce($1, date_trunc('milliseconds', clock_timestamp()))`.
    pub fn known_now(&self) -> Option<Timestamp> {
        self.clock.as_ref().map(|clock| Timestamp::new(clock.now()))
    }

    /// What the database fails at, if it does now: the last failure is recent, and nothing of the kind has succeeded
    /// since.
    pub fn trouble(&self) -> Option<Trouble> {
        self.health.trouble()
    }

    /// One reading statement outside a transaction.
    pub fn query(&self, sql: impl Into<Sql>) -> Query<'_> {
        self.read(sql.into(), false)
    }

    /// The same with a kept plan, as in [`Db::begin_kept`].
    pub fn query_kept(&self, sql: impl Into<Sql>) -> Query<'_> {
        self.read(sql.into(), true)
    }

    fn read(&self, sql: Sql, kept_plan: bool) -> Query<'_> {
        let watch = query::Watch { faults: self.faults.as_deref(), health: &self.health, writes: false, alone: false };
        match &self.pools {
            Pools::Sqlite { read, .. } => Query::on_sqlite_pool(sql, read, watch),
            Pools::Postgres(pools) => Query::on_postgres_pool(sql, pools.planning(kept_plan), watch),
        }
    }

    /// One writing statement that is its own transaction: a single round trip, where several would be noticed.
    /// As with [`Tx::commit`], an error leaves open whether it happened.
    pub fn write(&self, sql: impl Into<Sql>) -> Query<'_> {
        self.write_alone(sql.into(), false)
    }

    /// The same with a kept plan, as in [`Db::begin_kept`].
    pub fn write_kept(&self, sql: impl Into<Sql>) -> Query<'_> {
        self.write_alone(sql.into(), true)
    }

    fn write_alone(&self, sql: Sql, kept_plan: bool) -> Query<'_> {
        let watch = query::Watch { faults: self.faults.as_deref(), health: &self.health, writes: true, alone: true };
        match &self.pools {
            Pools::Sqlite { write, file, .. } => {
                let lost = file.as_ref().and_then(|file| file.check().err());
                Query::on_sqlite_pool(sql, write, watch).failing(lost)
            }
            Pools::Postgres(pools) => Query::on_postgres_pool(sql, pools.planning(kept_plan), watch),
        }
    }

    /// A writing transaction. On SQLite it holds the write lock from here on.
    pub async fn begin(&self) -> Result<Tx> {
        self.begin_writing(false).await
    }

    /// The same for statements that are good in one plan whatever is bound to them: PostgreSQL keeps their plans until
    /// their tables change much. To plan a statement takes it two to twenty times as long as to run it. Not for joins
    /// with a list that is bound: while a table is empty, it seems cheapest to walk over it for each entry.
    pub async fn begin_kept(&self) -> Result<Tx> {
        self.begin_writing(true).await
    }

    async fn begin_writing(&self, kept_plans: bool) -> Result<Tx> {
        let begun = async {
            self.strike(Point::Begin).await?;
            Ok(match &self.pools {
                Pools::Sqlite { write, file, .. } => {
                    if let Some(file) = file {
                        file.check()?;
                    }
                    TxInner::Sqlite(connect::begin_immediate(write, &self.health).await?)
                }
                Pools::Postgres(pools) => {
                    let pool = pools.planning(kept_plans);
                    TxInner::Postgres(connect::begin_postgres(pool, "BEGIN", &self.health).await?)
                }
            })
        };
        Ok(self.transaction(self.health.noted(true, begun.await)?, true))
    }

    /// A reading transaction that sees one state of the database throughout.
    pub async fn begin_read(&self) -> Result<Tx> {
        self.begin_reading(false).await
    }

    /// The same with kept plans, as in [`Db::begin_kept`].
    pub async fn begin_kept_read(&self) -> Result<Tx> {
        self.begin_reading(true).await
    }

    async fn begin_reading(&self, kept_plans: bool) -> Result<Tx> {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let begun = async {
            self.strike(Point::BeginRead).await?;
            Ok(match &self.pools {
                Pools::Sqlite { read, .. } => TxInner::Sqlite(read.begin().await?),
                Pools::Postgres(pools) => {
                    let pool = pools.planning(kept_plans);
                    TxInner::Postgres(connect::begin_postgres(pool, BEGIN, &self.health).await?)
                }
            })
        };
        Ok(self.transaction(self.health.noted(false, begun.await)?, false))
    }

    fn transaction(&self, inner: TxInner, writes: bool) -> Tx {
        let (clock, faults, health) = (self.clock.clone(), self.faults.clone(), self.health.clone());
        Tx { inner, clock, now: None, faults, health, writes }
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
            Pools::Sqlite { read, write, .. } => {
                read.close().await;
                write.close().await;
            }
            // A peer that has fallen silent must not hold up the end of the program.
            Pools::Postgres(PostgresPools { fresh, kept }) => {
                let closed = async { tokio::join!(fresh.close(), kept.close()) };
                _ = tokio::time::timeout(CLOSE_PATIENCE, closed).await;
            }
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
        self.later().await
    }

    /// The database's time, asked again, for the rest of the transaction.
    pub async fn later(&mut self) -> Result<Timestamp> {
        let now = match &self.clock {
            Some(clock) => Timestamp::new(clock.now()),
            None => self.query("SELECT clock_timestamp()").one::<(Timestamp,)>().await?.0,
        };
        self.now = Some(now);
        Ok(now)
    }

    /// The database's time came with another answer: it need not be asked for.
    pub fn learn_now(&mut self, now: Timestamp) {
        if self.known_now().is_none() {
            self.now = Some(now);
        }
    }

    /// The same, where it can be had without asking; see [`Db::known_now`].
    pub fn known_now(&mut self) -> Option<Timestamp> {
        self.now = self.now.or_else(|| self.clock.as_ref().map(|clock| Timestamp::new(clock.now())));
        self.now
    }

    /// One statement inside the transaction.
    pub fn query(&mut self, sql: impl Into<Sql>) -> Query<'_> {
        let (faults, writes) = (self.faults.as_deref(), self.writes);
        let watch = query::Watch { faults, health: &self.health, writes, alone: false };
        match &mut self.inner {
            TxInner::Sqlite(tx) => Query::on_sqlite(sql.into(), tx, watch),
            TxInner::Postgres(tx) => Query::on_postgres(sql.into(), tx, watch),
        }
    }

    /// Makes everything durable. An error here leaves open whether it happened; only reading again can tell.
    pub async fn commit(self) -> Result<()> {
        let (faults, health, writes) = (self.faults, self.health, self.writes);
        let committed = async {
            if let Some(faults) = &faults {
                faults.strike(if writes { Point::BeforeCommit } else { Point::EndRead }).await?;
            }
            match self.inner {
                TxInner::Sqlite(tx) => tx.commit().await?,
                TxInner::Postgres(tx) => health.patiently(writes, tx.commit()).await?,
            }
            match &faults {
                Some(faults) if writes => faults.strike(Point::AfterCommit).await,
                _ => Ok(()),
            }
        };
        let committed = committed.await;
        if committed.is_ok() {
            health.works(writes);
        }
        health.noted(writes, committed)
    }
}
