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

/// A field that may be left out, or be null to clear the value.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}
