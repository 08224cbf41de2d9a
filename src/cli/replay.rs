//! `replay`: deciding a recorded cycle again, with the rules of that time and what was seen then.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::Common;
use super::failure::{Failure, Outcome};
use super::output::Output;
use super::way_in::open_database;
use crate::control::ENGINE_VERSION;
use crate::control::cycles::{self, Cycle};
use crate::control::decider::{Decision, RuleSet, replay};
use crate::control::snapshot::Snapshot;
use crate::db::Db;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  showrunner replay 812    # exit code 3 if another decision comes out")]
pub(super) struct Replay {
    /// The cycle's number, as in the ledger.
    cycle_id: i64,
}

impl Replay {
    pub(super) async fn run(self, common: &Common, out: &mut Output) -> Outcome {
        let db = open_database(&common.load()?).await?;
        let found = self.decide_again(&db).await;
        db.close().await;
        let (cycle, recorded, again) = found?;
        let same = recorded == again;
        if out.wants_json() {
            out.json(&json!({
                "cycle_id": cycle.row.id, "same": same, "rules_hash": cycle.row.rules_hash,
                "engine_version": cycle.row.engine_version, "recorded": recorded, "replayed": again,
            }))?;
        } else if same {
            let hash: String = cycle.row.rules_hash.chars().take(12).collect();
            let count = again["actions"].as_array().map_or(0, Vec::len);
            out.line(&format!("Cycle {}: the same decision (actions: {count}) under rules {hash}.", cycle.row.id))?;
        }
        if same {
            return Ok(());
        }
        let engine = match cycle.row.engine_version.as_str() {
            ENGINE_VERSION => String::new(),
            recorded => format!(" It was decided by engine {recorded}; this is {ENGINE_VERSION}."),
        };
        Err(Failure::rejected(format!(
            "cycle {} is decided differently now.{engine} `showrunner replay {} --json` shows both decisions.",
            cycle.row.id, cycle.row.id
        )))
    }

    /// The cycle, what it decided, and what comes out now.
    async fn decide_again(&self, db: &Db) -> Outcome<(Cycle, serde_json::Value, serde_json::Value)> {
        let cycle = cycles::load(db, self.cycle_id).await?.ok_or_else(|| {
            Failure::failed(format!("there is no cycle {}; it may be past its retention", self.cycle_id))
        })?;
        if cycle.snapshot.is_null() {
            return Err(Failure::failed(format!("cycle {} failed before it saw anything", self.cycle_id)));
        }
        let unreadable = |what: &str, cause: String| {
            Failure::failed(format!("the {what} of cycle {} cannot be read by this program: {cause}", self.cycle_id))
        };
        let snapshot: Snapshot = serde_json::from_value(cycle.snapshot.clone())
            .map_err(|cause| unreadable("snapshot", cause.to_string()))?;
        let recorded: Decision = serde_json::from_value(cycle.decision.clone())
            .map_err(|cause| unreadable("decision", cause.to_string()))?;
        let sources = sources_of(db, &cycle.row.rules_hash).await?;
        let rules = RuleSet::load(&sources).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            unreadable("rules", lines.join("; "))
        })?;
        let again = serde_json::to_value(replay(&rules, &snapshot, &recorded))
            .map_err(|cause| unreadable("decision", cause.to_string()))?;
        Ok((cycle.clone(), cycle.decision, again))
    }
}

async fn sources_of(db: &Db, hash: &str) -> Outcome<BTreeMap<String, String>> {
    cycles::rule_sources(db, hash)
        .await?
        .ok_or_else(|| Failure::failed(format!("the rules {hash} are not in the database any more")))
}
