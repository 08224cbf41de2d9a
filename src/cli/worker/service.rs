//! The service, as a worker talks to it.

use std::time::Duration;

use reqwest::{Client, StatusCode, Url};
use serde_json::{Value, json};

use crate::cli::failure::without_secrets;
use crate::clock::SharedClock;
use crate::planes::queue::Assignment;
use crate::random::Random;
use crate::storage::{Registration, SecretKey};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a pull waits for work; an answer that is cut off leaves its runs to their leases, so not for too long.
const PULL_WAIT: Duration = Duration::from_secs(10);
/// Seconds that a registration's token is valid.
const TOKEN_LIFE: i64 = 60;

/// What the service said.
#[derive(Debug)]
pub(super) enum Said {
    Yes(Value),
    /// It understood and refuses; asking again is of no use.
    No {
        status: StatusCode,
        detail: String,
    },
    /// It cannot be reached or has no time now.
    Away(String),
}

/// What a sign of life was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beat {
    Held,
    /// Somebody gives the run up.
    Cancel,
    /// The run is over or somebody else's.
    Gone,
    /// Nobody answered.
    Away,
}

pub(super) struct Service {
    client: Client,
    base: Url,
    key: SecretKey,
    /// The id under which this worker registers.
    id: String,
    clock: SharedClock,
    random: Random,
}

impl Service {
    /// The error says what to give instead.
    pub(super) fn new(
        url: &str,
        key: SecretKey,
        id: String,
        clock: SharedClock,
        random: Random,
    ) -> Result<Self, String> {
        let base = Url::parse(&format!("{}/", url.trim_end_matches('/')))
            .ok()
            .filter(|base| matches!(base.scheme(), "http" | "https") && base.has_host())
            .ok_or_else(|| format!("`{}` is no server; --url takes http://host:port", without_secrets(url)))?;
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(PATIENCE / 2)
            .build()
            .map_err(|cause| format!("the HTTP client did not start: {cause}"))?;
        Ok(Self { client, base, key, id, clock, random })
    }

    pub(super) fn key(&self) -> &SecretKey {
        &self.key
    }

    /// Tells what this worker runs.
    pub(super) async fn register(&self, registration: &Value) -> Said {
        self.post("api/register", registration, &self.token(), PATIENCE).await
    }

    /// Asks for runs, waiting for some where there are none.
    pub(super) async fn pull(&self, worker: &str, limit: usize) -> Result<Vec<Assignment>, Said> {
        let body = json!({ "worker": worker, "limit": limit.min(100), "waitMs": PULL_WAIT.as_millis() as u64 });
        match self.post("api/pull", &body, &self.token(), PULL_WAIT + PATIENCE).await {
            Said::Yes(mut said) => serde_json::from_value(said["runs"].take())
                .map_err(|cause| Said::Away(format!("answers as no showrunner does: {cause}"))),
            other => Err(other),
        }
    }

    /// Says that a run is alive, and how far it is.
    pub(super) async fn beat(&self, run: &Assignment, progress: Option<(f64, Option<String>)>) -> Beat {
        let said = match progress {
            None => {
                let body = json!({ "runId": run.run_id, "lease": run.lease });
                self.post("api/heartbeat", &body, &run.token, PATIENCE).await
            }
            Some((percent, message)) => {
                let body = json!({ "runId": run.run_id, "lease": run.lease, "percent": percent, "message": message });
                self.post("api/progress", &body, &run.token, PATIENCE).await
            }
        };
        match said {
            Said::Yes(said) if said["cancelRequested"] == true => Beat::Cancel,
            Said::Yes(_) => Beat::Held,
            // Something in the message was wrong, and the next one is another.
            Said::No { status: StatusCode::UNPROCESSABLE_ENTITY, .. } => Beat::Held,
            Said::No { .. } => Beat::Gone,
            Said::Away(_) => Beat::Away,
        }
    }

    /// Says how a run ended.
    pub(super) async fn call_back(&self, run: &Assignment, answer: &Value) -> Said {
        self.post(&format!("api/callback/{}", run.run_id), answer, &run.token, PATIENCE).await
    }

    /// A token that proves that we hold the key: short-lived, and used once.
    fn token(&self) -> String {
        let iat = self.clock.now().timestamp();
        self.key.sign(&Registration { iss: self.id.clone(), iat, exp: iat + TOKEN_LIFE, jti: self.random.token() })
    }

    async fn post(&self, path: &str, body: &Value, bearer: &str, patience: Duration) -> Said {
        let Ok(url) = self.base.join(path) else { return Said::Away(format!("no URL for {path}")) };
        let sent = self.client.post(url).bearer_auth(bearer).json(body).timeout(patience).send().await;
        let (status, text) = match sent {
            Ok(response) => (response.status(), response.text().await),
            Err(cause) => return Said::Away(root(&cause)),
        };
        let value: Value = match text {
            Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
            Err(cause) => return Said::Away(root(&cause)),
        };
        if status.is_success() {
            return Said::Yes(value);
        }
        let detail = value["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        // Without a key the service takes no workers, however often they ask.
        let is_refusal = status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS;
        if is_refusal || value["type"] == "/problems/workers-refused" {
            return Said::No { status, detail };
        }
        Said::Away(detail)
    }
}

/// Without the URL: it says nothing that the operator did not write.
fn root(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
