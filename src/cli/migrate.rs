//! `migrate`: the schema, brought up to date or only looked at; and `db init`, the same under another name.

use clap::{Args, Subcommand};

use super::Common;
use super::failure::{Failure, Outcome};
use super::output::Output;
use super::way_in::{connect_or_make, connect_to_check};
use crate::db::MigrationState;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  showrunner migrate\n  showrunner migrate --check    # changes nothing; exit code 3 when something is to be done"
)]
pub(super) struct Migrate {
    /// Change nothing; exit code 3 if the schema is not this program's.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Database {
    /// Make the tables in a database, or bring them up to this program's.
    #[command(
        after_help = "Examples:\n  showrunner db init --url postgres://user@host/showrunner\n  showrunner db init --url sqlite://showrunner.db"
    )]
    Init {
        /// The database; default: the configured one.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
}

impl Database {
    pub(super) async fn run(self, common: &Common, out: &mut Output) -> Outcome {
        let Self::Init { url } = self;
        let database = url.or_else(|| common.database.clone());
        Migrate { check: false }.run(&Common { database, ..common.clone() }, out).await
    }
}

impl Migrate {
    pub(super) async fn run(self, common: &Common, out: &mut Output) -> Outcome {
        let config = common.load()?;
        let db = if self.check { connect_to_check(&config).await? } else { connect_or_make(&config).await? };
        let before = db.migration_state().await?;
        let after = if self.check {
            before.clone()
        } else {
            db.migrate().await?;
            db.migration_state().await?
        };
        db.close().await;
        if out.wants_json() {
            out.json(&after)?;
        } else {
            show(&before, &after, out)?;
        }
        match (after.drift.first(), after.pending.len()) {
            (Some(drift), _) => Err(Failure::rejected(drift)),
            (None, 0) => Ok(()),
            (None, count) => {
                let are = if count == 1 { "migration is" } else { "migrations are" };
                Err(Failure::rejected(format!("{count} {are} still to come; run `showrunner migrate`")))
            }
        }
    }
}

fn show(before: &MigrationState, after: &MigrationState, out: &mut Output) -> Outcome {
    let rows = before.applied.iter().map(|version| vec![version.to_string(), "applied".to_owned()]);
    let rows = rows.chain(before.pending.iter().map(|version| {
        let state = if after.pending.contains(version) { "pending" } else { "applied now" };
        vec![version.to_string(), state.to_owned()]
    }));
    out.table(&["migration", "state"], rows)
}
