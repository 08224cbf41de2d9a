//! A configured URL that publishes for us: signed POSTs as in the Standard Webhooks specification, and a status URL.
//!
//! What counts as an answer is decided here, and decided carefully: only an answer that proves that nothing was
//! accepted is a refusal. Everything else that is no acceptance leaves the outcome unknown.
//!
//! Redirects are not followed: what is signed for one place is not sent to another. `301`, `307` and `308` say that the
//! request belongs elsewhere, and so that it was not taken here: refused, with the place to configure. After a POST `302`
//! and `303` may as well say "done, look there": unknown.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use secrecy::ExposeSecret;
use serde_json::json;
use serde_json::value::RawValue;
use sha2::Sha256;

use super::{Answer, Connector, PublishRequest, StatusAnswer, Until};
use crate::clock::SharedClock;
use crate::config;

/// Bytes of an answer's body that are read: a few fields of JSON need no more.
const BODY_LIMIT: usize = 64 * 1024;

/// Characters of one field of an answer that are kept.
const TEXT_LIMIT: usize = 2_000;

/// How long a 429 without Retry-After throttles.
const DEFAULT_THROTTLE: Duration = Duration::from_secs(60);

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The part of a call's time after which the client gives up: sooner than whoever calls, who would not hear what was
/// answered in the end. An acceptance whose body drips is one all the same.
const WITHIN: f64 = 0.9;

/// Why the webhook cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("publishing.webhook.{field}: `{url}` is no http or https URL")]
    Url { field: &'static str, url: String },
    #[error("publishing.webhook.status_url: write {{key}} where the idempotency key belongs")]
    NoKey,
    #[error("publishing.webhook.secret: write whsec_ and then at least 24 bytes in base64")]
    Secret,
    #[error("the HTTP client cannot be built: {0}")]
    Client(#[source] reqwest::Error),
}

/// The HTTP receiver of publications.
pub struct Webhook {
    url: Url,
    status_url: String,
    key: Vec<u8>,
    client: Client,
    clock: SharedClock,
}

impl Webhook {
    /// Checks the settings and builds the client; `timeout` bounds a whole call.
    pub fn new(config: &config::Webhook, timeout: Duration, clock: SharedClock) -> Result<Self, WebhookError> {
        let url = web_url("url", &config.url)?;
        if !config.status_url.contains("{key}") {
            return Err(WebhookError::NoKey);
        }
        web_url("status_url", &config.status_url.replace("{key}", "key"))?;
        let key = config
            .secret
            .expose_secret()
            .strip_prefix("whsec_")
            .and_then(|encoded| STANDARD.decode(encoded).ok())
            .filter(|key| key.len() >= 24)
            .ok_or(WebhookError::Secret)?;
        // Fails when another part of the process has installed it already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            // A kept connection that is cut while a request is on it would look like a lost answer.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT.min(timeout.mul_f64(WITHIN)))
            .timeout(timeout.mul_f64(WITHIN))
            .user_agent(concat!("showrunner/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(WebhookError::Client)?;
        Ok(Self { url, status_url: config.status_url.clone(), key, client, clock })
    }

    /// `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
    fn signature(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

fn web_url(field: &'static str, text: &str) -> Result<Url, WebhookError> {
    let wrong = || WebhookError::Url { field, url: text.to_owned() };
    let url = Url::parse(text).map_err(|_| wrong())?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(url) } else { Err(wrong()) }
}

/// The JSON body of a publication.
fn body_of(request: &PublishRequest) -> String {
    json!({
        "event": "publication.requested",
        "idempotency_key": request.idempotency_key,
        "publication_id": request.publication_id,
        "clip": {
            "id": request.clip_id,
            "title": request.title,
            "media_uri": request.media_uri,
            "duration_ms": request.duration_ms,
        },
        "platform": request.platform,
        "campaign_id": request.campaign_id,
    })
    .to_string()
}

/// Everything but letters, digits and `-._~` as `%XX`.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

/// The fields of a body, each as it was written: a number may have more digits than any number of ours.
type Fields = BTreeMap<String, Box<RawValue>>;

/// The body's fields, as far as it is there, short enough, and a JSON object.
async fn fields_of(mut response: Response) -> Fields {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Fields::new();
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).unwrap_or_default()
}

/// The first of these fields that is text or a number, as text: cut where it is too long, and without control
/// characters, some of which no database takes.
fn text_field(fields: &Fields, names: [&str; 2]) -> Option<String> {
    let text = names.iter().find_map(|name| {
        let written = fields.get(*name)?.get();
        match written.as_bytes() {
            [b'"', ..] => serde_json::from_str(written).ok(),
            [b'-' | b'0'..=b'9', ..] => Some(written.to_owned()),
            _ => None,
        }
    })?;
    Some(text.chars().filter(|letter| !letter.is_control()).take(TEXT_LIMIT).collect())
}

/// `Retry-After` as seconds or an HTTP date.
fn retry_after(response: &Response) -> Option<Until> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Until::After(Duration::from_secs(seconds)));
    }
    DateTime::parse_from_rfc2822(text).ok().map(|at| Until::At(at.with_timezone(&Utc)))
}

/// Where a redirect points, without what may be a secret in it.
fn moved_to(response: &Response) -> Option<String> {
    let place = response.url().join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
    let place = format!("{}{}", place.origin().ascii_serialization(), place.path());
    Some(place.chars().take(TEXT_LIMIT).collect()).filter(|_| response.status().is_redirection())
}

/// An error of the client: refused only where it is certain that nothing was sent.
fn answer_to(error: &reqwest::Error) -> Answer {
    let reason = described(error);
    if (error.is_connect() && !error.is_timeout()) || error.is_builder() {
        Answer::Refused { reason }
    } else {
        Answer::NoAnswer { reason }
    }
}

/// The error with its causes; the URL stays out, it may carry credentials.
fn described(error: &reqwest::Error) -> String {
    let mut reason = if error.is_timeout() {
        "no answer in time".to_owned()
    } else if error.is_connect() {
        "no connection".to_owned()
    } else {
        "the exchange was cut".to_owned()
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    reason
}

#[async_trait]
impl Connector for Webhook {
    async fn publish(&self, request: &PublishRequest) -> Answer {
        let body = body_of(request);
        let timestamp = self.clock.now().timestamp();
        let sent = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("idempotency-key", request.idempotency_key.as_str())
            .header("webhook-id", request.idempotency_key.as_str())
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", self.signature(&request.idempotency_key, timestamp, &body))
            .body(body)
            .send()
            .await;
        let response = match sent {
            Ok(response) => response,
            Err(error) => return answer_to(&error),
        };
        let status = response.status();
        let reason = match moved_to(&response) {
            Some(place) => format!("the receiver answered {status} and points to {place}; redirects are not followed"),
            None => format!("the receiver answered {status}"),
        };
        match (status, retry_after(&response)) {
            (status, _) if status.is_success() => {
                let body = fields_of(response).await;
                Answer::Accepted {
                    external_id: text_field(&body, ["external_id", "id"]),
                    external_url: text_field(&body, ["external_url", "url"]),
                }
            }
            (StatusCode::TOO_MANY_REQUESTS, until) => {
                Answer::Throttled { reason, until: until.unwrap_or(Until::After(DEFAULT_THROTTLE)) }
            }
            (StatusCode::SERVICE_UNAVAILABLE, Some(until)) => Answer::Throttled { reason, until },
            (StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_EARLY, _) => {
                Answer::NoAnswer { reason }
            }
            (StatusCode::MOVED_PERMANENTLY | StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT, _) => {
                Answer::Refused { reason }
            }
            (status, _) if status.is_client_error() => Answer::Refused { reason },
            _ => Answer::NoAnswer { reason },
        }
    }

    async fn status(&self, _platform: &str, idempotency_key: &str) -> StatusAnswer {
        let url = self.status_url.replace("{key}", &percent_encoded(idempotency_key));
        let response = match self.client.get(url).send().await {
            Ok(response) => response,
            Err(error) => return StatusAnswer::NoAnswer { reason: described(&error) },
        };
        match response.status() {
            StatusCode::OK => {
                let body = fields_of(response).await;
                match text_field(&body, ["status"; 2]).as_deref() {
                    Some("published") => StatusAnswer::Published {
                        external_id: text_field(&body, ["external_id", "id"]),
                        external_url: text_field(&body, ["external_url", "url"]),
                    },
                    Some("processing") => StatusAnswer::Processing,
                    Some("failed") => StatusAnswer::Failed {
                        reason: text_field(&body, ["error", "reason"])
                            .unwrap_or_else(|| "the receiver says that it failed".to_owned()),
                    },
                    _ => StatusAnswer::NoAnswer { reason: "the receiver's status is not understood".to_owned() },
                }
            }
            StatusCode::NOT_FOUND => StatusAnswer::NeverSeen,
            status => StatusAnswer::NoAnswer { reason: format!("the receiver answered {status}") },
        }
    }
}

#[cfg(test)]
mod tests;
