//! Where a simulated world keeps its rows: a SQLite file in memory, or a PostgreSQL database of its own.

use std::path::Path;
use std::sync::Arc;

use showrunner::clock::SystemClock;
use showrunner::db::{Db, Options};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::support::postgres;

#[derive(Clone)]
pub enum Store {
    Sqlite(Arc<Template>),
    Postgres,
}

/// A migrated SQLite file, made once and copied for each seed.
pub struct Template(tempfile::TempDir);

/// A folder in memory, where the system has one.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a folder")
}

async fn migrated(url: &str) {
    let db = Db::open(&Options { max_connections: 1, ..Options::new(url) }, SystemClock::shared()).await;
    let db = db.expect("a database");
    db.migrate().await.expect("the schema");
    db.close().await;
}

impl Store {
    pub fn sqlite() -> Self {
        let folder = folder();
        let url = format!("sqlite://{}", folder.path().join("template.db").display());
        super::block_on(async {
            migrated(&url).await;
            // The file alone is copied: everything must be in it, and not in the log beside it.
            let options: SqliteConnectOptions = url.parse().expect("a URL");
            let options = options.busy_timeout(std::time::Duration::from_secs(30));
            let mut connection = SqliteConnection::connect_with(&options).await.expect("the template");
            sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await.expect("a checkpoint");
            connection.close().await.expect("closed");
        });
        Self::Sqlite(Arc::new(Template(folder)))
    }

    /// None where there is no server.
    pub fn postgres() -> Option<Self> {
        super::block_on(async {
            let url = postgres::fresh_database().await?;
            postgres::drop_database(&url).await;
            Some(Self::Postgres)
        })
    }

    /// Makes a fresh database with the schema; returns its URL.
    pub async fn make(&self, folder: &Path) -> String {
        match self {
            Self::Sqlite(template) => {
                let file = folder.join("sim.db");
                std::fs::copy(template.0.path().join("template.db"), &file).expect("a copy");
                format!("sqlite://{}", file.display())
            }
            Self::Postgres => {
                let url = postgres::fresh_database().await.expect("a server");
                migrated(&url).await;
                url
            }
        }
    }

    /// For the command that replays a seed.
    pub fn variable(&self) -> &'static str {
        if self.interleaves() { "SIM_DATABASE=postgres " } else { "" }
    }

    /// Whether an instance may stand still with a transaction open: SQLite has one writer, and the others would wait.
    pub fn stalls_inside(&self) -> bool {
        matches!(self, Self::Postgres)
    }

    /// Whether instances act at the same time.
    pub fn interleaves(&self) -> bool {
        matches!(self, Self::Postgres)
    }

    pub async fn end(&self, url: &str) {
        if matches!(self, Self::Postgres) {
            postgres::drop_database(url).await;
        }
    }
}
