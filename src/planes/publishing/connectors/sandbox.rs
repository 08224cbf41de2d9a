//! A simulated platform. What happens to a try follows from the seed, the publication's key and the number of the try
//! alone, so that a run repeats whatever runs beside it.
//!
//! It deliberately does not honour idempotency keys: a publication that is sent twice is two rows of `sandbox_posts`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{NaiveTime, TimeDelta};
use sha2::{Digest, Sha256};

use super::{Answer, Connector, PublishRequest, StatusAnswer, Until};
use crate::clock::SharedClock;
use crate::config;
use crate::db::{Db, Result, Timestamp};

/// A platform that never answers is silent for this long; every caller gives up before.
const SILENCE: Duration = Duration::from_secs(86_400);

/// The simulated platform.
pub struct Sandbox {
    config: config::Sandbox,
    db: Db,
    clock: SharedClock,
    outage: AtomicBool,
}

/// What is drawn for one try.
enum Fate {
    Accept,
    Refuse,
    Throttle(Duration),
    LoseRequest,
    LoseAnswer,
}

impl Sandbox {
    /// A platform that keeps its posts in `db`.
    pub fn new(config: config::Sandbox, db: Db, clock: SharedClock) -> Self {
        Self { config, db, clock, outage: AtomicBool::new(false) }
    }

    /// Takes every simulated platform down, or up again. While down, no connection is made.
    pub fn set_outage(&self, down: bool) {
        self.outage.store(down, Ordering::Relaxed);
    }

    /// Whether it is down.
    pub fn outage(&self) -> bool {
        self.outage.load(Ordering::Relaxed)
    }

    /// Three numbers in `0.0..1.0` that belong to one try: outcome, latency, length of a throttling.
    fn draws(&self, key: &str, retry_count: i64) -> [f64; 3] {
        let digest = Sha256::new()
            .chain_update(self.config.seed.to_be_bytes())
            .chain_update(retry_count.to_be_bytes())
            .chain_update(key.as_bytes())
            .finalize();
        std::array::from_fn(|draw| {
            let bytes = &digest[draw * 4..draw * 4 + 4];
            let number = bytes.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
            f64::from(number) / (f64::from(u32::MAX) + 1.0)
        })
    }

    fn fate(&self, [outcome, _, length]: [f64; 3]) -> Fate {
        let config = &self.config;
        let mut bound = config.refuse;
        if outcome < bound {
            return Fate::Refuse;
        }
        bound += config.throttle;
        if outcome < bound {
            return Fate::Throttle(Duration::from_secs(60 + (length * 240.0) as u64));
        }
        bound += config.lose_request;
        if outcome < bound {
            return Fate::LoseRequest;
        }
        bound += config.lose_answer;
        if outcome < bound { Fate::LoseAnswer } else { Fate::Accept }
    }

    /// Keeps a post; none when the platform's quota for today is used up.
    async fn post(&self, request: &PublishRequest) -> Result<Option<(String, String)>> {
        let mut tx = self.db.begin().await?;
        let now = tx.now().await?;
        if self.config.quota_per_day > 0 {
            let midnight = Timestamp::new(now.utc().date_naive().and_time(NaiveTime::MIN).and_utc());
            let (posts,): (i64,) = tx
                .query("SELECT COUNT(*) FROM sandbox_posts WHERE platform = $1 AND created_at >= $2")
                .bind(request.platform.clone())
                .bind(midnight)
                .one()
                .await?;
            if posts >= i64::from(self.config.quota_per_day) {
                return Ok(None);
            }
        }
        let external_id = format!("{}-{}-{}", request.platform, request.publication_id, request.retry_count);
        let external_url = format!("https://{}.example/v/{external_id}", request.platform);
        tx.query(
            "INSERT INTO sandbox_posts (platform, clip_id, idempotency_key, external_id, external_url, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(request.platform.clone())
        .bind(request.clip_id)
        .bind(request.idempotency_key.clone())
        .bind(external_id.clone())
        .bind(external_url.clone())
        .bind(now)
        .execute()
        .await?;
        tx.commit().await?;
        Ok(Some((external_id, external_url)))
    }
}

fn silent() -> Answer {
    Answer::NoAnswer { reason: "the platform did not answer".to_owned() }
}

#[async_trait]
impl Connector for Sandbox {
    async fn publish(&self, request: &PublishRequest) -> Answer {
        let draws = self.draws(&request.idempotency_key, request.retry_count);
        let (least, most) = (self.config.latency_min_ms, self.config.latency_max_ms.max(self.config.latency_min_ms));
        let latency = least + ((most - least) as f64 * draws[1]) as u64;
        self.clock.sleep(Duration::from_millis(latency)).await;
        if self.outage() {
            return Answer::Refused { reason: format!("{} is down: connection refused", request.platform) };
        }
        let fate = self.fate(draws);
        match fate {
            Fate::Refuse => return Answer::Refused { reason: "the platform refused the clip".to_owned() },
            Fate::Throttle(wait) => {
                return Answer::Throttled { reason: "too many requests".to_owned(), until: Until::After(wait) };
            }
            Fate::LoseRequest => {
                self.clock.sleep(SILENCE).await;
                return silent();
            }
            Fate::LoseAnswer | Fate::Accept => {}
        }
        let posted = match self.post(request).await {
            Ok(posted) => posted,
            Err(error) => return Answer::NoAnswer { reason: format!("the simulated platform failed: {error}") },
        };
        let Some((external_id, external_url)) = posted else {
            let midnight = (self.clock.now().date_naive() + TimeDelta::days(1)).and_time(NaiveTime::MIN).and_utc();
            return Answer::Throttled { reason: "the daily quota is used up".to_owned(), until: Until::At(midnight) };
        };
        if matches!(fate, Fate::LoseAnswer) {
            self.clock.sleep(SILENCE).await;
            return silent();
        }
        Answer::Accepted { external_id: Some(external_id), external_url: Some(external_url) }
    }

    async fn status(&self, _platform: &str, idempotency_key: &str) -> StatusAnswer {
        if self.outage() {
            return StatusAnswer::NoAnswer { reason: "the platform is down".to_owned() };
        }
        let post: Result<Option<(String, String)>> = self
            .db
            .query("SELECT external_id, external_url FROM sandbox_posts WHERE idempotency_key = $1 ORDER BY id LIMIT 1")
            .bind(idempotency_key.to_owned())
            .optional()
            .await;
        match post {
            Ok(Some((external_id, external_url))) => {
                StatusAnswer::Published { external_id: Some(external_id), external_url: Some(external_url) }
            }
            Ok(None) => StatusAnswer::NeverSeen,
            Err(error) => StatusAnswer::NoAnswer { reason: format!("the simulated platform failed: {error}") },
        }
    }
}
