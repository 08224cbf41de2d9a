//! The platforms of the simulation: they refuse, throttle, answer late or never, and remember what is out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use showrunner::clock::Clock;
use showrunner::planes::publishing::connectors::{Answer, Connector, PublishRequest, StatusAnswer, Until};
use showrunner::random::Random;

use super::clock::SimClock;

/// Everything that the platforms know.
#[derive(Default)]
struct Known {
    /// What is out: clip and platform by idempotency key.
    posts: BTreeMap<String, (i64, String)>,
    /// Requests that are still on their way: when they arrive.
    under_way: Vec<(Duration, PublishRequest)>,
    /// Clips that were posted twice on a platform.
    doubles: Vec<String>,
}

/// The platforms. They deliberately do not use the idempotency key to drop a second post.
pub struct SimPlatform {
    clock: Arc<SimClock>,
    random: Random,
    known: Mutex<Known>,
    healthy: Mutex<bool>,
}

/// No request is on its way for longer than this; reconciliation waits for longer before it settles anything.
const LONGEST_WAY: Duration = Duration::from_secs(9 * 60);

impl SimPlatform {
    pub fn new(clock: Arc<SimClock>, random: Random) -> Self {
        Self { clock, random, known: Mutex::default(), healthy: Mutex::new(false) }
    }

    /// From now on they answer every request at once.
    pub fn heal(&self) {
        *self.healthy.lock().expect("health") = true;
    }

    pub fn doubles(&self) -> Vec<String> {
        self.known.lock().expect("known").doubles.clone()
    }

    /// The idempotency keys of all that is out.
    pub fn posted(&self) -> Vec<String> {
        self.arrive();
        self.known.lock().expect("known").posts.keys().cloned().collect()
    }

    fn accept(&self, request: &PublishRequest) {
        let mut known = self.known.lock().expect("known");
        let place = (request.clip_id, request.platform.clone());
        if let Some((key, _)) = known.posts.iter().find(|(_, post)| **post == place) {
            let words = format!("clip {} on {}: {key} and {}", place.0, place.1, request.idempotency_key);
            known.doubles.push(words);
        }
        known.posts.insert(request.idempotency_key.clone(), place);
    }

    fn arrive(&self) {
        let now = self.clock.elapsed();
        let arrived: Vec<PublishRequest> = {
            let mut known = self.known.lock().expect("known");
            let (arrived, under_way) = known.under_way.drain(..).partition(|(due, _)| *due <= now);
            known.under_way = under_way;
            let arrived: Vec<(Duration, PublishRequest)> = arrived;
            arrived.into_iter().map(|(_, request)| request).collect()
        };
        arrived.iter().for_each(|request| self.accept(request));
    }

    async fn never(&self) -> Answer {
        self.clock.sleep(Duration::from_secs(24 * 3600)).await;
        Answer::NoAnswer { reason: "never".to_owned() }
    }
}

fn accepted() -> Answer {
    Answer::Accepted { external_id: Some("x".to_owned()), external_url: None }
}

#[async_trait]
impl Connector for SimPlatform {
    async fn publish(&self, request: &PublishRequest) -> Answer {
        self.arrive();
        let draw = if *self.healthy.lock().expect("health") { 0 } else { self.random.between(0, 99) };
        match draw {
            0..50 => {
                self.accept(request);
                accepted()
            }
            50..58 => {
                self.clock.sleep(Duration::from_millis(self.random.between(10, 20_000))).await;
                self.accept(request);
                accepted()
            }
            58..68 => Answer::Refused { reason: "no".to_owned() },
            68..76 => {
                let wait = Duration::from_secs(self.random.between(1, 900));
                Answer::Throttled { reason: "later".to_owned(), until: Until::After(wait) }
            }
            76..84 => {
                self.accept(request);
                self.never().await
            }
            84..92 => {
                let way = Duration::from_secs(self.random.between(1, LONGEST_WAY.as_secs()));
                let due = self.clock.elapsed() + way;
                self.known.lock().expect("known").under_way.push((due, request.clone()));
                self.never().await
            }
            _ => self.never().await,
        }
    }

    async fn status(&self, _platform: &str, key: &str) -> StatusAnswer {
        self.arrive();
        let draw = if *self.healthy.lock().expect("health") { 0 } else { self.random.between(0, 99) };
        let out = self.known.lock().expect("known").posts.contains_key(key);
        match draw {
            70..80 => StatusAnswer::NoAnswer { reason: "busy".to_owned() },
            80..90 => StatusAnswer::Processing,
            90..100 => {
                self.clock.sleep(Duration::from_secs(24 * 3600)).await;
                StatusAnswer::NoAnswer { reason: "never".to_owned() }
            }
            _ if out => StatusAnswer::Published { external_id: Some("x".to_owned()), external_url: None },
            _ => StatusAnswer::NeverSeen,
        }
    }
}
