//! The embedded migrations: run at start under a lock, and checked against what the database says it has had.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection, SqlSafeStr};

use super::connect::begin_immediate;
use super::{Db, Error, Pools, Result};

/// Every migration in order: version, name, SQLite's text, PostgreSQL's text.
const MIGRATIONS: &[(i64, &str, &str, &str)] = &[
    (
        1,
        "loop and publishing",
        include_str!("../../migrations/sqlite/0001_loop_and_publishing.sql"),
        include_str!("../../migrations/postgres/0001_loop_and_publishing.sql"),
    ),
    (
        2,
        "work",
        include_str!("../../migrations/sqlite/0002_work.sql"),
        include_str!("../../migrations/postgres/0002_work.sql"),
    ),
    (
        3,
        "pipelines",
        include_str!("../../migrations/sqlite/0003_pipelines.sql"),
        include_str!("../../migrations/postgres/0003_pipelines.sql"),
    ),
    (
        4,
        "events",
        include_str!("../../migrations/sqlite/0004_events.sql"),
        include_str!("../../migrations/postgres/0004_events.sql"),
    ),
    (
        5,
        "events of runs",
        include_str!("../../migrations/sqlite/0005_run_events.sql"),
        include_str!("../../migrations/postgres/0005_run_events.sql"),
    ),
    (
        6,
        "fleet",
        include_str!("../../migrations/sqlite/0006_fleet.sql"),
        include_str!("../../migrations/postgres/0006_fleet.sql"),
    ),
    (
        7,
        "text",
        include_str!("../../migrations/sqlite/0007_text.sql"),
        include_str!("../../migrations/postgres/0007_text.sql"),
    ),
    (
        8,
        "times",
        include_str!("../../migrations/sqlite/0008_times.sql"),
        include_str!("../../migrations/postgres/0008_times.sql"),
    ),
    (
        9,
        "clips",
        include_str!("../../migrations/sqlite/0009_clips.sql"),
        include_str!("../../migrations/postgres/0009_clips.sql"),
    ),
];

/// Where a database stands against this program.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MigrationState {
    /// Versions that the database has had, ascending.
    pub applied: Vec<i64>,
    /// Versions that it still needs.
    pub pending: Vec<i64>,
    /// What does not fit: a changed migration, or one from a newer program. Empty when all is well.
    pub drift: Vec<String>,
}

impl Db {
    fn migrator(&self) -> Migrator {
        let sqlite = matches!(self.pools, Pools::Sqlite { .. });
        let list = MIGRATIONS.iter().map(|(version, name, lite, postgres)| {
            let text = if sqlite { *lite } else { *postgres };
            Migration::new(*version, Cow::Borrowed(name), MigrationType::Simple, text.into_sql_str(), false)
        });
        Migrator::with_migrations(list.collect())
    }

    /// Brings the schema up to this program's. Safe to call from several instances at once.
    pub async fn migrate(&self) -> Result<()> {
        let state = self.migration_state().await?;
        if let Some(first) = state.drift.first() {
            return Err(Error::Schema(first.clone()));
        }
        if state.pending.is_empty() {
            return Ok(());
        }
        let result = match &self.pools {
            // PostgreSQL is locked by the migrator itself. A migration may build an index over millions of rows, and
            // whoever starts beside it waits for it: the usual time-outs of statements would end both.
            Pools::Postgres(pools) => {
                let mut connection = pools.fresh.acquire().await?.detach();
                sqlx::raw_sql("SET statement_timeout = '1h'; SET lock_timeout = '1h'").execute(&mut connection).await?;
                let done = self.migrator().run(&mut connection).await;
                let _ = connection.close().await; // its settings are not for others
                done
            }
            // On SQLite all of it is one transaction that begins with the write lock: of two processes that start
            // together, the later one finds the work done.
            Pools::Sqlite { write, .. } => {
                let mut tx = begin_immediate(write, &self.health).await?;
                match self.migrator().run(&mut *tx).await {
                    Ok(()) => return Ok(tx.commit().await?),
                    failed => failed,
                }
            }
        };
        result.map_err(|cause| Error::Schema(format!("the migration failed and was rolled back: {cause}")))
    }

    /// Whether the database ever had a migration.
    async fn has_migrations(&self) -> Result<bool> {
        let (tables,): (i64,) = self
            .query(crate::sql!(
                "SELECT COUNT(*) FROM " { sqlite: "sqlite_schema WHERE type = 'table' AND name",
                postgres: "pg_catalog.pg_tables WHERE schemaname = current_schema() AND tablename" } " = '_sqlx_migrations'"
            ))
            .one()
            .await?;
        Ok(tables > 0)
    }

    async fn applied_migrations(&self) -> Result<Vec<(i64, Vec<u8>)>> {
        self.query("SELECT version, checksum FROM _sqlx_migrations ORDER BY version").all().await
    }

    /// Compares what the database has had with what this program brings; changes nothing.
    pub async fn migration_state(&self) -> Result<MigrationState> {
        let migrator = self.migrator();
        let applied = match self.applied_migrations().await {
            Ok(applied) => applied,
            // A database that never had any fails at that; another process may begin them in this moment.
            Err(_) if !self.has_migrations().await? => Vec::new(),
            Err(_) => self.applied_migrations().await?,
        };
        let mut drift = Vec::new();
        for (version, checksum) in &applied {
            match migrator.iter().find(|migration| migration.version == *version) {
                None => drift.push(format!(
                    "the database has migration {version}, which this program does not know: use the newer program"
                )),
                Some(known) if known.checksum.as_ref() != checksum.as_slice() => drift.push(format!(
                    "migration {version} was changed after this database had it: restore a backup or the program that made it"
                )),
                Some(_) => {}
            }
        }
        let applied: Vec<i64> = applied.into_iter().map(|(version, _)| version).collect();
        let pending = migrator.iter().map(|m| m.version).filter(|version| !applied.contains(version)).collect();
        Ok(MigrationState { applied, pending, drift })
    }
}
