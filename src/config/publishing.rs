//! Platforms, windows and connectors.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::secrets::{redacted, without_secrets};

/// Platforms, windows and connectors.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Publishing {
    /// `sandbox` (a simulated platform) or `webhook`.
    pub connector: ConnectorKind,
    /// The IANA zone of the windows, e.g. `Europe/Madrid`.
    pub time_zone: String,
    /// The platforms by name.
    pub platforms: BTreeMap<String, Platform>,
    /// Milliseconds that a platform may take to answer; after that the outcome is unknown.
    pub call_timeout_ms: u64,
    /// Publications overdue by more than these minutes go out one by one, a platform's spacing apart.
    pub catch_up_after_minutes: u64,
    /// Minutes after which a platform's "never heard of it" settles an unknown publication as failed.
    pub settle_minutes: u64,
    /// How often a scheduled publication may be moved a day later.
    pub max_postponements: u32,
    /// Minutes before the first retry of a failed publication; doubled for each further one.
    pub retry_backoff_minutes: u64,
    /// The simulated platform.
    pub sandbox: Sandbox,
    /// The HTTP receiver.
    pub webhook: Webhook,
}

/// Which connector publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectorKind {
    /// The simulated platform.
    Sandbox,
    /// A configured URL.
    Webhook,
}

/// One platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// Local time at which the window opens, `HH:MM`.
    pub opens: String,
    /// Local time at which it closes, `HH:MM`; `24:00` is midnight, and earlier than `opens` is the next day.
    pub closes: String,
    /// This platform's own IANA zone, if it is not the common one.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// Minutes between two publications.
    #[serde(default = "Platform::default_spacing")]
    pub spacing_minutes: u64,
    /// Publications a local day.
    #[serde(default = "Platform::default_quota")]
    pub daily_quota: u32,
    /// What one publication takes from its campaign's budget.
    #[serde(default)]
    pub cost_cents: i64,
}

/// The simulated platform. Probabilities are 0 to 1; what happens to a publication follows from `seed` alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// Seed of everything that it does.
    pub seed: u64,
    /// Milliseconds that an answer takes at least.
    pub latency_min_ms: u64,
    /// Milliseconds that an answer takes at most.
    pub latency_max_ms: u64,
    /// How often it refuses.
    pub refuse: f64,
    /// How often it refuses for now and names a time.
    pub throttle: f64,
    /// How often it accepts nothing and never answers.
    pub lose_request: f64,
    /// How often it accepts and never answers.
    pub lose_answer: f64,
    /// Publications a day and platform before it throttles; 0 is no limit.
    pub quota_per_day: u32,
}

/// The HTTP receiver of publications (Standard Webhooks).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhook {
    /// Where publications are posted, e.g. `https://publisher.example/publish`.
    #[serde(serialize_with = "without_secrets")]
    pub url: String,
    /// Where their state is asked, with `{key}` in place of the idempotency key.
    #[serde(serialize_with = "without_secrets")]
    pub status_url: String,
    /// The signing secret, `whsec_…` (base64).
    #[serde(serialize_with = "redacted")]
    pub secret: SecretString,
}

impl Platform {
    fn default_spacing() -> u64 {
        15
    }
    fn default_quota() -> u32 {
        25
    }
    pub(super) fn between(opens: &str, closes: &str) -> Self {
        Self {
            opens: opens.to_owned(),
            closes: closes.to_owned(),
            time_zone: None,
            spacing_minutes: Self::default_spacing(),
            daily_quota: Self::default_quota(),
            cost_cents: 0,
        }
    }
}

impl Default for Publishing {
    fn default() -> Self {
        let platforms = [("instagram", "18:00", "23:00"), ("tiktok", "16:00", "24:00"), ("youtube", "17:00", "22:00")];
        Self {
            connector: ConnectorKind::Sandbox,
            time_zone: "UTC".to_owned(),
            platforms: platforms
                .iter()
                .map(|(name, opens, closes)| ((*name).to_owned(), Platform::between(opens, closes)))
                .collect(),
            call_timeout_ms: 30_000,
            catch_up_after_minutes: 10,
            settle_minutes: 10,
            max_postponements: 3,
            retry_backoff_minutes: 5,
            sandbox: Sandbox::default(),
            webhook: Webhook::default(),
        }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            seed: 1,
            latency_min_ms: 20,
            latency_max_ms: 120,
            refuse: 0.0,
            throttle: 0.0,
            lose_request: 0.0,
            lose_answer: 0.0,
            quota_per_day: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Webhook;

    #[test]
    fn no_secret_of_a_receivers_url_is_shown() {
        let url = "http://ann:secret@host/x?token=secret&id={key}".to_owned();
        let shown = serde_json::to_string(&Webhook { url, ..Webhook::default() }).expect("JSON");
        assert!(shown.contains("http://ann:[hidden]@host/x?token=[hidden]&id={key}"), "{shown}");
        assert!(!shown.contains("secret@") && !shown.contains("=secret"), "{shown}");
    }
}
