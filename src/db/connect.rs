//! Opening either database: pools, pragmas, time-outs, and waiting out another process's lock.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnectionMetadata;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, Postgres};
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Transaction};

use super::health::Health;
use super::{Db, Error, Pools, PostgresPools, Result, Waker};
use crate::clock::SharedClock;
use crate::config::Durability;

/// How to open the database.
#[derive(Debug, Clone)]
pub struct Options {
    /// `sqlite://path/to/file.db`, `sqlite::memory:` or `postgres://user@host/database`.
    pub url: String,
    /// SQLite only.
    pub durability: Durability,
    /// Connections of the pool: readers on SQLite (beside the one writer); on PostgreSQL there are half as many beside,
    /// which keep plans, and one that listens.
    pub max_connections: u32,
}

impl Options {
    /// The defaults for `url`: eight connections serve a host of two to four cores.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), durability: Durability::Normal, max_connections: 8 }
    }
}

/// A connection that takes longer to show that it is alive is given up.
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// Connecting seldom takes longer, unless the server refuses.
const UNUSUALLY_LONG: Duration = Duration::from_millis(500);

/// How often it is tried to replace a connection that fell silent, a second apart or more; by then the kernel itself
/// has given it up.
const REPLACEMENTS: usize = 900;

/// How long a writer waits for another process's lock before it says so.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// How long SQLite itself waits for it, each time.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// Rows of one answer that may wait to be taken; at its bound SQLite's thread and ours hand each row over singly.
const ROWS_WAITING: usize = 1_024;

impl Db {
    /// Opens the database; on SQLite the file and its folder are made if they are missing. Does not migrate.
    /// `clock` stands for the database's clock on SQLite, which runs in this process.
    pub async fn open(options: &Options, clock: SharedClock) -> Result<Self> {
        let url = options.url.as_str();
        let health = Health::new(clock.clone());
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let pools = open_postgres(options, &health).await?;
            return Ok(Self { pools, clock: None, faults: None, waker: Waker::default(), health });
        }
        if !url.starts_with("sqlite:") {
            let scheme = url.split(':').next().unwrap_or_default();
            return Err(Error::Schema(format!(
                "DATABASE_URL has the scheme `{scheme}`; use sqlite://path/to/file.db or postgres://user@host/database"
            )));
        }
        let pools = open_sqlite(options).await?;
        Ok(Self { pools, clock: Some(clock), faults: None, waker: Waker::default(), health })
    }
}

async fn open_sqlite(options: &Options) -> Result<Pools> {
    let in_memory = options.url.contains(":memory:");
    let connect = SqliteConnectOptions::from_str(&options.url)
        .map_err(|cause| Error::Schema(format!("DATABASE_URL is not a SQLite URL: {cause}")))?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(match options.durability {
            Durability::Normal => SqliteSynchronous::Normal,
            Durability::Full => SqliteSynchronous::Full,
        })
        .foreign_keys(true)
        .busy_timeout(BUSY_PATIENCE)
        .row_buffer_size(ROWS_WAITING)
        .optimize_on_close(true, None)
        .pragma("cache_size", "-4096") // 4 MiB: what one transaction changes stays in it
        .pragma("temp_store", "memory");
    let file: PathBuf = connect.get_filename().to_path_buf();
    if let Some(folder) = file.parent().filter(|folder| !in_memory && !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|cause| Error::Unavailable(format!("cannot make the folder {}: {cause}", folder.display())))?;
    }
    let pool = |connections: u32| {
        // A connection of an in-memory database that is closed takes the database with it.
        SqlitePoolOptions::new()
            .max_connections(connections)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false) // it was tested when it was given back, and nobody can cut it
    };
    let write = connect_patiently(pool(1), &connect).await.map_err(|cause| cannot_open(&options.url, cause))?;
    let read = if in_memory {
        write.clone()
    } else {
        // 2 MiB: there may be many, they read little at a time, and the system keeps the file's pages anyway.
        let connect = connect.read_only(true).create_if_missing(false).pragma("cache_size", "-2048");
        connect_patiently(pool(options.max_connections), &connect)
            .await
            .map_err(|cause| cannot_open(&options.url, cause))?
    };
    let file = if in_memory { None } else { DatabaseFile::opened(file).map(Arc::new) };
    Ok(Pools::Sqlite { read, write, file })
}

/// The file that is open. SQLite goes on writing to a file that was removed, and all of that would be lost with the
/// process.
pub(super) struct DatabaseFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl DatabaseFile {
    fn opened(path: PathBuf) -> Option<Self> {
        Some(Self { identity: identity(&path)?, path })
    }

    /// Whether the path still leads to it.
    pub(super) fn check(&self) -> Result<()> {
        if identity(&self.path) == Some(self.identity) {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "{} was removed or replaced while it was open: put it back, or restart the service to work on what is there",
            self.path.display()
        )))
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Path) -> Option<(u64, u64)> {
    None // there an open file cannot be removed
}

/// Opens a SQLite file, also while another process makes it: the switch to the write-ahead log does not wait for a
/// lock by itself.
async fn connect_patiently(pool: SqlitePoolOptions, connect: &SqliteConnectOptions) -> sqlx::Result<SqlitePool> {
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..LOCK_PATIENCE.as_millis() / PAUSE.as_millis() {
        match pool.clone().connect_with(connect.clone()).await {
            Err(sqlx::Error::Database(cause)) if is_locked(cause.code().as_deref()) => tokio::time::sleep(PAUSE).await,
            other => return other,
        }
    }
    pool.connect_with(connect.clone()).await
}

/// How often a lock is waited for; each time waits out the connection's busy time-out.
pub(super) const LOCK_TRIES: u64 = LOCK_PATIENCE.as_secs() / BUSY_PATIENCE.as_secs();

/// Whether another process holds SQLite's lock: nothing has happened, and it can be waited for again.
pub(super) fn is_held(cause: &sqlx::Error, health: &Health) -> bool {
    let held = matches!(cause, sqlx::Error::Database(cause) if is_locked(cause.code().as_deref()));
    if held {
        tracing::warn!("another process holds the database's write lock; waiting for it");
        health.fails(true, "another process holds the database's write lock");
    }
    held
}

/// SQLITE_BUSY, and SQLITE_BUSY_SNAPSHOT.
fn is_locked(code: Option<&str>) -> bool {
    matches!(code, Some("5" | "517"))
}

/// How a statement is planned once, for whatever will be bound to it and however much its tables grow: along indexes, in
/// their order. By itself PostgreSQL would keep what is cheapest while a table is new and empty.
const KEPT_PLANS: [(&str, &str); 3] =
    [("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off"), ("enable_sort", "off")];

async fn open_postgres(options: &Options, health: &Health) -> Result<Pools> {
    let connect = PgConnectOptions::from_str(&options.url)
        .map_err(|cause| Error::Schema(format!("DATABASE_URL is not a PostgreSQL URL: {cause}")))?
        .application_name("showrunner")
        .options([
            ("jit", "off"), // a plan that is made for one run is not worth compiling
            ("statement_timeout", "30s"),
            ("lock_timeout", "10s"),
            // A paused instance lets go of its locks soon; no transaction of ours waits for anything but the database.
            ("idle_in_transaction_session_timeout", "5s"),
            ("TimeZone", "UTC"),
        ]);
    let kept = connect.clone().options(KEPT_PLANS);
    let kept = postgres_pool(options.max_connections.div_ceil(2), &kept, health).connect_lazy_with(kept);
    let connect = connect.options([("plan_cache_mode", "force_custom_plan")]); // a plan for all ignores partial indexes
    let fresh = postgres_pool(options.max_connections, &connect, health);
    let opened = tokio::select! {
        // Side by side: the first cycle asks both.
        opened = async { tokio::try_join!(fresh.connect_with(connect.clone()), kept.acquire()) } => opened,
        cause = why_not(&connect) => Err(cause),
    };
    let (fresh, _) = opened.map_err(|cause| cannot_open(&options.url, cause))?;
    Ok(Pools::Postgres(PostgresPools { fresh, kept }))
}

fn postgres_pool(connections: u32, connect: &PgConnectOptions, health: &Health) -> PgPoolOptions {
    let (taken, released) = (Alive::new(health, connect), Alive::new(health, connect));
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .test_before_acquire(false)
        .before_acquire(move |connection, meta| {
            let alive = taken.clone();
            Box::pin(async move { alive.before_acquire(connection, &meta).await })
        })
        .after_release(move |connection, _| {
            let alive = released.clone();
            Box::pin(async move { alive.after_release(connection).await })
        })
}

/// A pool that cannot connect only says that it timed out: where it takes long, a connection of its own says why not.
async fn why_not(connect: &PgConnectOptions) -> sqlx::Error {
    tokio::time::sleep(UNUSUALLY_LONG).await;
    match connect.connect().await {
        Err(cause) => cause,
        Ok(_) => std::future::pending().await, // the pool can, too
    }
}

/// Keeps the pool's connections alive. One whose other end has fallen silent is replaced in its place: sqlx would close
/// it, and closing waits for a silent TLS peer without end and keeps its place in the pool meanwhile.
#[derive(Clone)]
struct Alive {
    health: Health,
    options: PgConnectOptions,
}

impl Alive {
    fn new(health: &Health, options: &PgConnectOptions) -> Self {
        Self { health: health.clone(), options: options.clone() }
    }

    async fn before_acquire(&self, connection: &mut PgConnection, meta: &PoolConnectionMetadata) -> sqlx::Result<bool> {
        // A connection that was busy a moment ago is alive, unless others fell silent; one that rested may have been cut.
        if meta.idle_for < Duration::from_secs(1) && !self.health.fell_silent_lately() {
            return Ok(true);
        }
        match self.ping(connection).await {
            Some(answer) => Ok(answer.is_ok()),
            None => self.replace(connection).await.map(|()| true),
        }
    }

    async fn after_release(&self, connection: &mut PgConnection) -> sqlx::Result<bool> {
        if self.health.answers() {
            return Ok(true); // sqlx asks for itself, without an end to its patience
        }
        if let Some(answer) = self.ping(connection).await {
            return answer.map(|()| true);
        }
        for _ in 0..REPLACEMENTS {
            if self.replace(connection).await.is_ok() {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Err(sqlx::Error::PoolTimedOut)
    }

    /// Asks for a sign of life; None: silence.
    async fn ping(&self, connection: &mut PgConnection) -> Option<sqlx::Result<()>> {
        // Where one fell silent, the others most likely did too: nobody shall wait long for each of them in turn.
        let patience = if self.health.fell_silent_lately() { Duration::from_secs(1) } else { PING_PATIENCE };
        let answer = tokio::time::timeout(patience, connection.ping()).await.ok();
        if answer.is_none() {
            self.health.falls_silent();
        }
        answer
    }

    async fn replace(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let fresh = tokio::time::timeout(PING_PATIENCE, self.options.connect()).await;
        *connection = fresh.map_err(|_| sqlx::Error::PoolTimedOut)??;
        Ok(())
    }
}

/// Names the place without the password that the URL may carry before the `@` or behind the `?`.
fn cannot_open(url: &str, cause: sqlx::Error) -> Error {
    let place = url.split('?').next().unwrap_or_default();
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    Error::Unavailable(format!("cannot open {place}: {cause}. Check DATABASE_URL, and that the database is running"))
}

/// Takes SQLite's write lock, waiting while another process holds it.
pub(super) async fn begin_immediate(write: &SqlitePool, health: &Health) -> Result<Transaction<'static, Sqlite>> {
    for _ in 1..LOCK_TRIES {
        match write.begin_with("BEGIN IMMEDIATE").await {
            // SQLite rolled a transaction back by itself (the disk was full), and the connection does not know.
            Err(sqlx::Error::InvalidSavePointStatement | sqlx::Error::BeginFailed) => {
                write.acquire().await?.detach().close_hard().await?;
            }
            Err(cause) if is_held(&cause, health) => {}
            other => return Ok(other?),
        }
    }
    Ok(write.begin_with("BEGIN IMMEDIATE").await?)
}

/// Begins a transaction; a connection that the server cut meanwhile is replaced once.
pub(super) async fn begin_postgres(
    pool: &PgPool,
    text: &'static str,
    health: &Health,
) -> Result<Transaction<'static, Postgres>> {
    let begin = async {
        match pool.begin_with(text).await {
            Err(sqlx::Error::Io(_) | sqlx::Error::Database(_)) => pool.begin_with(text).await,
            other => other,
        }
    };
    health.patiently(false, begin).await
}
