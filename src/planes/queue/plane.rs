//! What the queue's doors work with.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::enqueuer::Enqueuer;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::db::Db;
use crate::random::Random;
use crate::storage::{SecretKey, Stores};

/// The queue as it is reached from outside: by clients that enqueue and ask, and by workers on other machines.
pub struct TaskQueue {
    pub(super) db: Db,
    /// Requests that enqueue one task share commits.
    pub(super) enqueuer: Enqueuer,
    pub(super) clock: SharedClock,
    pub(super) random: Random,
    pub(super) stores: Stores,
    /// What is shared with workers; without it they are refused.
    pub(super) key: Option<SecretKey>,
    /// How long a client's idempotency key holds unless it says so.
    pub(super) idempotency_ttl: Duration,
    /// The longest wait of a task that names none.
    pub(super) longest_wait: Duration,
    pub(super) lease: Duration,
    pub(super) max_concurrency: usize,
    pub(super) poll_interval: Duration,
    /// Below the time that a request may take, so that a long poll ends by itself.
    pub(super) longest_poll: Duration,
    pub(super) client: reqwest::Client,
    /// Ends long polls when the doors close.
    pub(super) stop: CancellationToken,
}

/// A worker that takes longer to accept a task has not accepted it.
const ACCEPTANCE: Duration = Duration::from_secs(10);

impl TaskQueue {
    /// The error says what to set.
    pub fn new(
        config: &Config,
        db: Db,
        clock: SharedClock,
        random: Random,
        stores: Stores,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, String> {
        let key = SecretKey::parse(&config.secret_key)?;
        // Fails when another part of the process has installed it already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(ACCEPTANCE / 2)
            .timeout(ACCEPTANCE)
            .user_agent(concat!("showrunner/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|cause| format!("the HTTP client did not start: {cause}"))?;
        let queue = &config.queue;
        Ok(Arc::new(Self {
            enqueuer: Enqueuer::new(db.clone()),
            db,
            clock,
            random,
            stores,
            key,
            idempotency_ttl: Duration::from_secs(queue.idempotency_ttl_seconds),
            longest_wait: Duration::from_millis(queue.max_retry_delay_ms),
            lease: Duration::from_secs(queue.lease_seconds),
            max_concurrency: queue.max_concurrency,
            poll_interval: Duration::from_millis(queue.poll_interval_ms),
            longest_poll: Duration::from_millis(config.http.request_timeout_ms).mul_f64(0.8),
            client,
            stop,
        }))
    }
}
