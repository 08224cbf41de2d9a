//! The platforms of the simulation: they refuse, throttle, answer late, twice or never, lie if the seed says so, and
//! remember what is out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use showrunner::clock::Clock;
use showrunner::planes::publishing::connectors::{Answer, Connector, PublishRequest, StatusAnswer, Until};
use showrunner::random::Random;

use super::clock::{SimClock, Skewed};
use super::faults::{Place, SimFaults};

/// How the platforms are at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// They answer every request at once.
    Healthy,
    /// Now and then they refuse, throttle, are late or silent.
    Moody,
    /// They refuse, or accept nothing and never answer.
    Down,
}

/// Everything that the platforms know.
#[derive(Default)]
struct Known {
    /// What is out: clip and platform by idempotency key.
    posts: BTreeMap<String, (i64, String)>,
    /// Requests that are still on their way: when they arrive.
    under_way: Vec<(Duration, PublishRequest)>,
    /// Requests as they were sent: key and number of the try.
    sent: BTreeSet<(String, i64)>,
    /// What must never happen.
    wrongs: Vec<String>,
    /// Posts that came again under the same key.
    repeats: Vec<String>,
}

/// The platforms. They deliberately do not use the idempotency key to drop a second post.
pub struct SimPlatform {
    clock: Arc<SimClock>,
    random: Random,
    /// Whether they say what is not so, of requests and of what is out.
    liar: bool,
    known: Mutex<Known>,
    mood: Mutex<Mood>,
}

/// No request is on its way for longer than this; reconciliation waits for longer before it settles anything.
const LONGEST_WAY: Duration = Duration::from_secs(9 * 60);

impl SimPlatform {
    pub fn new(clock: Arc<SimClock>, random: Random, liar: bool) -> Self {
        Self { clock, random, liar, known: Mutex::default(), mood: Mutex::new(Mood::Moody) }
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().expect("mood") = mood;
    }

    /// What must never happen, whatever the platforms say: a clip out under two keys, or a try sent twice.
    pub fn wrongs(&self) -> Vec<String> {
        self.known.lock().expect("known").wrongs.clone()
    }

    /// What must not happen while platforms tell the truth and the database's clock does not run ahead.
    pub fn repeats(&self) -> Vec<String> {
        self.known.lock().expect("known").repeats.clone()
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
            if *key == request.idempotency_key {
                known.repeats.push(words);
            } else {
                known.wrongs.push(words);
            }
        }
        known.posts.insert(request.idempotency_key.clone(), place);
    }

    fn arrive(&self) {
        let now = self.clock.elapsed();
        let arrived: Vec<(Duration, PublishRequest)> = {
            let mut known = self.known.lock().expect("known");
            let (arrived, under_way) = known.under_way.drain(..).partition(|(due, _)| *due <= now);
            known.under_way = under_way;
            arrived
        };
        arrived.iter().for_each(|(_, request)| self.accept(request));
    }

    fn draw(&self) -> u64 {
        match *self.mood.lock().expect("mood") {
            Mood::Healthy => 0,
            Mood::Moody => self.random.between(0, 99),
            Mood::Down => self.random.between(0, 1) * 40 + 59, // refuses, or is silent
        }
    }

    fn lies(&self) -> bool {
        self.liar && *self.mood.lock().expect("mood") == Mood::Moody && self.random.between(0, 7) == 0
    }

    async fn publish(&self, request: &PublishRequest, clock: &Skewed) -> Answer {
        self.arrive();
        let again =
            !self.known.lock().expect("known").sent.insert((request.idempotency_key.clone(), request.retry_count));
        if again {
            let words = format!("try {} of {} was sent twice", request.retry_count, request.idempotency_key);
            self.known.lock().expect("known").wrongs.push(words);
        }
        if self.lies() {
            if self.random.between(0, 1) == 0 {
                return accepted();
            }
            self.accept(request);
            return Answer::Refused { reason: "no, it says".to_owned() };
        }
        match self.draw() {
            0..50 => {
                self.accept(request);
                accepted()
            }
            50..58 => {
                clock.sleep(Duration::from_millis(self.random.between(10, 20_000))).await;
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
                never(clock).await
            }
            84..92 => {
                let way = Duration::from_secs(self.random.between(1, LONGEST_WAY.as_secs()));
                let due = self.clock.elapsed() + way;
                self.known.lock().expect("known").under_way.push((due, request.clone()));
                never(clock).await
            }
            _ => never(clock).await,
        }
    }

    async fn status(&self, key: &str, clock: &Skewed) -> StatusAnswer {
        self.arrive();
        let out = self.known.lock().expect("known").posts.contains_key(key) != self.lies();
        match self.draw() {
            70..80 => StatusAnswer::NoAnswer { reason: "busy".to_owned() },
            80..90 => StatusAnswer::Processing,
            90..100 => {
                never(clock).await;
                StatusAnswer::NoAnswer { reason: "never".to_owned() }
            }
            // Asked twice, it answers twice: each time with another name for the same post.
            _ if out => {
                let name = self.random.between(0, 9).to_string();
                StatusAnswer::Published { external_id: Some(name), external_url: None }
            }
            _ => StatusAnswer::NeverSeen,
        }
    }
}

async fn never(clock: &Skewed) -> Answer {
    clock.sleep(Duration::from_secs(24 * 3600)).await;
    Answer::NoAnswer { reason: "never".to_owned() }
}

fn accepted() -> Answer {
    Answer::Accepted { external_id: Some("x".to_owned()), external_url: None }
}

/// An instance's way to the platforms: the process may die or stand still on it.
pub struct Door {
    pub platform: Arc<SimPlatform>,
    pub clock: Arc<Skewed>,
    pub faults: Arc<SimFaults>,
}

#[async_trait]
impl Connector for Door {
    async fn publish(&self, request: &PublishRequest) -> Answer {
        self.faults.pass(Place::Send).await.ok();
        let answer = self.platform.publish(request, &self.clock).await;
        self.faults.pass(Place::Answer).await.ok();
        answer
    }

    async fn status(&self, _platform: &str, key: &str) -> StatusAnswer {
        self.faults.pass(Place::Send).await.ok();
        let answer = self.platform.status(key, &self.clock).await;
        self.faults.pass(Place::Answer).await.ok();
        answer
    }
}
