//! What really runs, which no message tells: each simulated program notes its own beginning and end here. The
//! invariants are held against this and against the database, never against what agents say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use showrunner::clock::SharedClock;

/// Shared by all agents of a story.
#[derive(Clone)]
pub struct Truth {
    clock: SharedClock,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Agent and lease of each program, by job.
    running: BTreeMap<String, Vec<(String, i64)>>,
    /// Since when a job runs more than once.
    twice: BTreeMap<String, Duration>,
    /// The longest that one did.
    longest: Duration,
    /// By job and lease: when the program ended, and whether well, if nobody told it to end.
    ended: BTreeMap<(String, i64), (DateTime<Utc>, Option<bool>)>,
    begun: usize,
}

impl Truth {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, inner: Arc::default() }
    }

    pub fn begins(&self, job: &str, agent: &str, lease: i64) {
        let now = self.clock.elapsed();
        let mut inner = self.inner.lock().expect("a lock");
        inner.begun += 1;
        let programs = inner.running.entry(job.to_owned()).or_default();
        assert!(!programs.iter().any(|(other, _)| other == agent), "{agent} runs {job} twice at once: {programs:?}");
        programs.push((agent.to_owned(), lease));
        if programs.len() > 1 {
            inner.twice.entry(job.to_owned()).or_insert(now);
        }
    }

    /// `by_itself`: nobody told it to end; whether it ended well.
    pub fn ends(&self, job: &str, agent: &str, lease: i64, by_itself: Option<bool>) {
        let now = self.clock.elapsed();
        let mut inner = self.inner.lock().expect("a lock");
        inner.ended.insert((job.to_owned(), lease), (self.clock.now(), by_itself));
        let programs = inner.running.entry(job.to_owned()).or_default();
        programs.retain(|(other, _)| other != agent);
        if programs.len() < 2
            && let Some(since) = inner.twice.remove(job)
        {
            inner.longest = inner.longest.max(now.saturating_sub(since));
        }
    }

    /// The longest that a job ran on two agents at once, also one that still does.
    pub fn longest_overlap(&self) -> Duration {
        let now = self.clock.elapsed();
        let inner = self.inner.lock().expect("a lock");
        inner.twice.values().map(|since| now.saturating_sub(*since)).fold(inner.longest, Duration::max)
    }

    /// Whether the program of that lease ended well and by itself.
    pub fn ended_well(&self, job: &str, lease: i64) -> bool {
        self.inner.lock().expect("a lock").ended.get(&(job.to_owned(), lease)).is_some_and(|end| end.1 == Some(true))
    }

    /// Whether the program of that lease was over by then; one that never began is.
    pub fn was_over(&self, job: &str, lease: i64, at: DateTime<Utc>) -> bool {
        let inner = self.inner.lock().expect("a lock");
        let runs = inner.running.get(job).is_some_and(|programs| programs.iter().any(|(_, own)| *own == lease));
        !runs && inner.ended.get(&(job.to_owned(), lease)).is_none_or(|end| end.0 <= at)
    }

    pub fn begun(&self) -> usize {
        self.inner.lock().expect("a lock").begun
    }

    /// The programs that run, as agent and lease by job.
    pub fn running(&self) -> BTreeMap<String, Vec<(String, i64)>> {
        let mut running = self.inner.lock().expect("a lock").running.clone();
        running.retain(|_, programs| !programs.is_empty());
        running
    }
}
