//! The rules in force.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use crate::control::orchestrator::RulesStatus;
use crate::db;
use crate::problem::Problem;

#[derive(Serialize, ToSchema)]
pub struct RulesAnswer {
    #[serde(flatten)]
    status: RulesStatus,
    /// The files of the set in force with their text; empty until a cycle has run under it.
    files: BTreeMap<String, String>,
}

/// The rules in force with their files, and what is wrong with newer ones.
#[utoipa::path(get, path = "/v1/rules", operation_id = "getRules", tag = "loop",
    responses((status = 200, description = "The rules", body = RulesAnswer)))]
pub async fn show(State(state): State<AppState>) -> Result<Json<RulesAnswer>, Problem> {
    let status = state.orchestrator.status().await?.rules;
    let stored: Option<(db::Json<BTreeMap<String, String>>,)> =
        state.db.query("SELECT sources FROM rule_sets WHERE hash = $1").bind(status.hash.clone()).optional().await?;
    Ok(Json(RulesAnswer { status, files: stored.map(|(files,)| files.0).unwrap_or_default() }))
}
