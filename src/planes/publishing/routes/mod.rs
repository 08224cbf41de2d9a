//! The plane's HTTP routes: campaigns, clips and publications, listed by viewers and changed by operators.
//!
//! Every change is one transaction: the row, its ledger entry, and the answer kept under the client's
//! `Idempotency-Key`.

mod campaigns;
mod clips;
mod publish_logs;

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) use campaigns::{CampaignPatch, CampaignQuery, NewCampaign};
pub(super) use clips::{ClipPatch, ClipQuery, NewClip};
pub(super) use publish_logs::{LogQuery, NewPublishLog};

use super::Publishing;
use crate::db::Timestamp;
use crate::problem::{FieldError, Problem};

/// Priorities of everything, as the tables check them.
const PRIORITIES: (i64, i64) = (-1000, 1000);

/// The plane's routes with their OpenAPI.
pub fn routes<S: Clone + Send + Sync + 'static>(publishing: Arc<Publishing>) -> OpenApiRouter<S> {
    OpenApiRouter::new()
        .routes(routes!(campaigns::list, campaigns::create))
        .routes(routes!(campaigns::get, campaigns::change))
        .routes(routes!(clips::list, clips::create))
        .routes(routes!(clips::get, clips::change))
        .routes(routes!(publish_logs::list, publish_logs::create))
        .routes(routes!(publish_logs::get, publish_logs::change))
        .with_state(publishing)
}

/// A refusal of one field.
fn refused(field: &str, message: impl Into<String>) -> Problem {
    Problem::invalid(vec![FieldError { field: field.to_owned(), message: message.into() }])
}

/// A field that may be left out, or be null to clear the value.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

/// Collects everything that is wrong with a body, so that the client hears of it at once.
#[derive(Default)]
struct Checks(Vec<FieldError>);

impl Checks {
    fn refuse(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(FieldError { field: field.to_owned(), message: message.into() });
    }
    fn text(&mut self, field: &str, text: Option<&String>, longest: usize) {
        if text.is_some_and(|text| text.trim().is_empty() || text.chars().count() > longest) {
            self.refuse(field, format!("takes 1 to {longest} characters, not all blank"));
        }
    }
    fn range(&mut self, field: &str, value: Option<i64>, (low, high): (i64, i64)) {
        if value.is_some_and(|value| !(low..=high).contains(&value)) {
            self.refuse(field, format!("takes a whole number from {low} to {high}"));
        }
    }
    fn time(&mut self, field: &str, at: Option<Timestamp>) {
        use chrono::Datelike;
        if at.is_some_and(|at| !(1970..=9999).contains(&at.utc().year())) {
            self.refuse(field, "takes a time of the years 1970 to 9999");
        }
    }
    fn done(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid(self.0)) }
    }
}
