//! The embedded migrations: run at start under a lock, and checked against what the database says it has had.

use std::borrow::Cow;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::{Db, Error, Pools, Result};

/// Every migration in order: version, name, SQLite's text, PostgreSQL's text.
const MIGRATIONS: &[(i64, &str, &str, &str)] = &[(
    1,
    "loop and publishing",
    include_str!("../../migrations/sqlite/0001_loop_and_publishing.sql"),
    include_str!("../../migrations/postgres/0001_loop_and_publishing.sql"),
)];

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
            // PostgreSQL is locked by the migrator itself. SQLite's write lock is held by each migration's
            // transaction; of two processes that start together, the later one finds the work done.
            Pools::Postgres(pool) => self.migrator().run(pool).await,
            Pools::Sqlite { write, .. } => self.migrator().run(write).await,
        };
        match result {
            Ok(()) => Ok(()),
            Err(_) if self.migration_state().await.is_ok_and(|state| state.pending.is_empty()) => Ok(()),
            Err(cause) => Err(Error::Schema(format!("the migration failed and was rolled back: {cause}"))),
        }
    }

    /// Compares what the database has had with what this program brings; changes nothing.
    pub async fn migration_state(&self) -> Result<MigrationState> {
        let migrator = self.migrator();
        let exists: (i64,) = self
            .query(crate::sql!(
                "SELECT COUNT(*) FROM " { sqlite: "sqlite_schema WHERE type = 'table' AND name",
                postgres: "pg_catalog.pg_tables WHERE schemaname = current_schema() AND tablename" } " = '_sqlx_migrations'"
            ))
            .one()
            .await?;
        let applied: Vec<(i64, Vec<u8>)> = if exists.0 == 0 {
            Vec::new()
        } else {
            self.query("SELECT version, checksum FROM _sqlx_migrations ORDER BY version").all().await?
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
