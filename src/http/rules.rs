//! The rules in force.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use crate::control::decider::RuleInfo;
use crate::control::orchestrator::RulesStatus;

/// The rules in force on this instance.
#[derive(Serialize, ToSchema)]
pub struct RulesAnswer {
    #[serde(flatten)]
    status: RulesStatus,
    /// The rules of the set in force, in the order in which they are asked.
    rules: Vec<RuleInfo>,
}

/// The rules in force on this instance, and what is wrong with a newer set.
#[utoipa::path(get, path = "/v1/rules", operation_id = "getRules", tag = "loop",
    responses((status = 200, description = "The rules", body = RulesAnswer)))]
pub async fn show(State(state): State<AppState>) -> Json<RulesAnswer> {
    let book = state.orchestrator.rules();
    Json(RulesAnswer { status: book.status(), rules: book.current().rules().to_vec() })
}
