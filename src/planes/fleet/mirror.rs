//! The fleet as this instance knows it: every agent, every living job and the newest that ended, each with the message
//! that UI clients get for it, made once.
//!
//! It follows the database by the rows' numbers, whoever changed them on whichever instance; what this instance has
//! changed itself it need not read. A UI client is a place in
//! this order: what lies behind it is sent, and where it is slow, several changes of one row have become one.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use axum::extract::ws::Utf8Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{MutexGuard, watch};

use super::model::AgentState;
use super::offer::MOST_AVOIDED;
use super::placement::{Seat, Wish};
use super::protocol::Subscribe;
use super::record::{Agent, AgentView, Job, JobView};
use super::store::feed::{self, Changes};
use crate::db::{Db, Result, Timestamp, Tx};

/// Waiting jobs that one placement looks at; more than any fleet begins at once.
const WISHES: usize = 5_000;

/// A job that waits gains on those of higher priority: one step for each of these minutes.
const AGING_MINUTES: u64 = 5;

pub struct Mirror {
    state: RwLock<State>,
    /// One catches up at a time.
    catching_up: tokio::sync::Mutex<()>,
    head: watch::Sender<i64>,
}

#[derive(Default)]
struct State {
    agents: HashMap<String, KnownAgent>,
    jobs: HashMap<i64, KnownJob>,
    /// What changed last, by its number.
    order: BTreeMap<i64, Key>,
    waiting: BTreeSet<i64>,
    /// By their numbers: who ended last goes last, however old it is.
    ended: BTreeSet<(i64, i64)>,
    /// The last number that was let go: a client behind it has to begin anew.
    let_go: i64,
    head: i64,
    loaded: bool,
}

struct KnownAgent {
    agent: Agent,
    class: u64,
    frame: Utf8Bytes,
}

struct KnownJob {
    job: Job,
    frame: Utf8Bytes,
}

#[derive(Clone, PartialEq)]
enum Key {
    Agent(String),
    Job(i64),
}

/// What a UI client is sent next.
pub struct Page {
    pub frames: Vec<Utf8Bytes>,
    pub agents: usize,
    pub jobs: usize,
    /// Where it stands afterwards.
    pub cursor: i64,
    /// There is nothing behind it now.
    pub done: bool,
}

#[derive(Serialize)]
struct Frame<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    seq: i64,
    ts: Timestamp,
    payload: &'a T,
}

fn frame<T: Serialize>(kind: &'static str, seq: i64, ts: Timestamp, payload: &T) -> Utf8Bytes {
    serde_json::to_string(&Frame { kind, seq, ts, payload }).unwrap_or_default().into()
}

impl Default for Mirror {
    fn default() -> Self {
        Self { state: RwLock::default(), catching_up: tokio::sync::Mutex::default(), head: watch::Sender::new(0) }
    }
}

impl Mirror {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told whenever something changed.
    pub fn watch(&self) -> watch::Receiver<i64> {
        self.head.subscribe()
    }

    /// Reads what changed since the last time.
    pub async fn catch_up(&self, db: &Db) -> Result<()> {
        let _one = self.catching_up.lock().await;
        if self.is_at(feed::last(db).await?) {
            return Ok(());
        }
        loop {
            let mut tx = db.begin_read().await?;
            if self.read_on(&mut tx).await? {
                return Ok(());
            }
        }
    }

    /// Nobody else catches up meanwhile. Taken before a transaction: who holds the fleet's lock must not wait for
    /// somebody who waits for a connection.
    pub async fn hold(&self) -> MutexGuard<'_, ()> {
        self.catching_up.lock().await
    }

    /// Catches up inside a transaction that holds the fleet's lock and has changed nothing yet.
    pub async fn catch_up_in(&self, _held: &MutexGuard<'_, ()>, tx: &mut Tx) -> Result<()> {
        while !self.read_on(tx).await? {}
        Ok(())
    }

    /// Whether everything up to that number is known, and nothing behind it.
    pub fn is_at(&self, revision: i64) -> bool {
        let state = self.read();
        state.loaded && state.head == revision
    }

    /// Takes what this instance has committed itself, if nothing lies between that and what is known already.
    pub fn take_own(&self, base: i64, mut changes: Changes) -> bool {
        for job in &mut changes.jobs {
            job.config.0 = Value::Null; // as the feed reads it
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !state.loaded || state.head != base {
            return false;
        }
        let head = changes.head;
        state.put(changes);
        drop(state);
        self.head.send_replace(head);
        true
    }

    /// One look; whether it reached the end.
    async fn read_on(&self, tx: &mut Tx) -> Result<bool> {
        let (loaded, head) = {
            let state = self.read();
            (state.loaded, state.head)
        };
        let changes = if loaded { feed::behind(tx, head).await? } else { feed::everything(tx).await? };
        let full = changes.agents.len().max(changes.jobs.len()) as i64 >= feed::BATCH;
        self.take(changes);
        Ok(!loaded || !full)
    }

    fn take(&self, changes: Changes) {
        let (head, changed) = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let head = changes.head.max(state.head); // what is newer came meanwhile, from this instance itself
            let changed = head != state.head || !state.loaded;
            if !state.loaded && changes.jobs.iter().filter(|job| job.status.is_final()).count() as i64 >= feed::ENDED {
                state.let_go = head; // older ones may have ended since wherever a client stood
            }
            state.put(Changes { head, ..changes });
            state.loaded = true;
            (head, changed)
        };
        if changed {
            self.head.send_replace(head);
        }
    }

    /// The next messages for a client that has seen everything up to `cursor`.
    pub fn page(&self, cursor: i64, wanted: &Filter, most: usize) -> Page {
        let state = self.read();
        let mut page = Page { frames: Vec::new(), agents: 0, jobs: 0, cursor, done: true };
        for (revision, key) in state.order.range((Bound::Excluded(cursor), Bound::Unbounded)) {
            if page.frames.len() == most {
                page.done = false;
                return page;
            }
            page.cursor = *revision;
            match key {
                Key::Agent(id) => {
                    if let Some(known) = state.agents.get(id).filter(|known| wanted.takes_agent(&known.agent)) {
                        page.frames.push(known.frame.clone());
                        page.agents += 1;
                    }
                }
                Key::Job(id) => {
                    if let Some(known) = state.jobs.get(id).filter(|known| wanted.takes_job(&known.job)) {
                        page.frames.push(known.frame.clone());
                        page.jobs += 1;
                    }
                }
            }
        }
        page
    }

    /// Whether a client that stood there can go on from it.
    pub fn can_resume(&self, since: i64) -> bool {
        let state = self.read();
        since >= state.let_go && since <= state.head
    }

    /// Lets `work` see what placement needs: the jobs that wait now, and the agents that may take them.
    pub fn for_placement<T>(&self, now: Timestamp, work: impl FnOnce(Vec<Wish<'_>>, Vec<Seat<'_>>) -> T) -> Option<T> {
        let state = self.read();
        // Whose offer was not taken waits for agents that it avoids; others may have it at once.
        let is_wanted = |job: &Job| job.due_at.is_none() || (1..MOST_AVOIDED as i64).contains(&job.offers);
        let waiting = state.waiting.iter().filter_map(|id| state.jobs.get(id)).filter(|known| is_wanted(&known.job));
        let aged = |job: &Job| {
            let waited = now.since(job.created_at).as_secs() / (60 * AGING_MINUTES);
            job.priority.saturating_add(i64::try_from(waited).unwrap_or(i64::MAX))
        };
        let mut wishes: Vec<Wish<'_>> = waiting
            .map(|known| Wish {
                id: known.job.id,
                priority: aged(&known.job),
                requires: &known.job.requires.0,
                prefers: &known.job.prefers.0,
                avoid: &known.job.avoid.0,
                is_held_back: known.job.due_at.is_some(),
                was_refused: known.job.offers > 0,
                group: known.job.group_name.as_deref(),
            })
            .collect();
        if wishes.is_empty() {
            return None;
        }
        // What nobody wanted so far does not crowd out what was not offered yet.
        wishes.sort_by_key(|wish| (wish.is_held_back, std::cmp::Reverse(wish.priority), wish.id));
        wishes.truncate(WISHES);
        let mut groups: HashMap<&str, Vec<&str>> = HashMap::new();
        if wishes.iter().any(|wish| wish.group.is_some()) {
            for KnownJob { job, .. } in state.jobs.values().filter(|known| known.job.status.is_held()) {
                if let (Some(group), Some(agent)) = (&job.group_name, &job.agent_id) {
                    groups.entry(agent).or_default().push(group);
                }
            }
        }
        let seats = state.agents.values().filter(|known| known.agent.is_open()).map(|known| Seat {
            id: &known.agent.id,
            slots: known.agent.slots,
            taken: known.agent.busy,
            capabilities: &known.agent.capabilities.0,
            class: known.class,
            groups: groups.remove(known.agent.id.as_str()).unwrap_or_default(),
        });
        let mut seats: Vec<Seat<'_>> = seats.collect();
        seats.sort_by_key(|seat| seat.id);
        Some(work(wishes, seats))
    }

    /// Whether the agent's newest connection is this one, and the agent is taken for lost all the same.
    pub fn is_given_up(&self, agent: &str, connection: i64) -> bool {
        let state = self.read();
        let known = state.agents.get(agent).map(|known| &known.agent);
        known.is_some_and(|agent| agent.connection == connection && agent.state == AgentState::Offline)
    }

    /// The reason that a job is known to wait for.
    pub fn reason(&self, job: i64) -> Option<String> {
        self.read().jobs.get(&job).and_then(|known| known.job.reason.clone())
    }
}

impl State {
    fn put(&mut self, changes: Changes) {
        changes.agents.into_iter().for_each(|agent| self.put_agent(agent));
        changes.jobs.into_iter().for_each(|job| self.put_job(job));
        self.head = changes.head;
    }

    fn put_agent(&mut self, agent: Agent) {
        // The row's own version begins anew where it was forgotten and the agent comes back; the fleet's number grows.
        let known = self.agents.get(&agent.id).map(|known| known.agent.revision);
        if known.is_some_and(|revision| revision >= agent.revision) {
            return;
        }
        if let Some(revision) = known {
            self.order.remove(&revision);
        }
        let mut hasher = DefaultHasher::new();
        Value::Object(agent.capabilities.0.clone()).to_string().hash(&mut hasher);
        let view = AgentView::from(agent.clone());
        let frame = frame("ui.agent.update", agent.revision, agent.updated_at, &view);
        self.order.insert(agent.revision, Key::Agent(agent.id.clone()));
        self.agents.insert(agent.id.clone(), KnownAgent { agent, class: hasher.finish(), frame });
    }

    fn put_job(&mut self, job: Job) {
        let known = self.jobs.get(&job.id).map(|known| known.job.revision);
        if known.is_some_and(|revision| revision >= job.revision) {
            return;
        }
        if let Some(revision) = known {
            self.order.remove(&revision);
            self.ended.remove(&(revision, job.id));
        }
        if job.status.is_waiting() {
            self.waiting.insert(job.id)
        } else {
            self.waiting.remove(&job.id)
        };
        if job.status.is_final() {
            self.ended.insert((job.revision, job.id));
        }
        let view = JobView::from(job.clone());
        let frame = frame("ui.job.update", job.revision, job.updated_at, &view);
        self.order.insert(job.revision, Key::Job(job.id));
        self.jobs.insert(job.id, KnownJob { job, frame });
        // Those that ended first make room.
        while self.ended.len() as i64 > feed::ENDED {
            let Some((_, first)) = self.ended.pop_first() else { break };
            if let Some(gone) = self.jobs.remove(&first) {
                self.order.remove(&gone.job.revision);
                self.let_go = self.let_go.max(gone.job.revision);
            }
        }
    }
}

/// What a UI client wants.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    agents: bool,
    jobs: bool,
    agent_ids: BTreeSet<String>,
    job_ids: BTreeSet<i64>,
}

impl Filter {
    /// The error says what is taken.
    pub fn new(wanted: &Subscribe) -> std::result::Result<Self, String> {
        if let Some(unknown) = wanted.topics.iter().find(|topic| !["agents", "jobs"].contains(&topic.as_str())) {
            return Err(format!("there is no topic `{unknown}`; there are agents and jobs"));
        }
        let topic = |name: &str| wanted.topics.is_empty() || wanted.topics.iter().any(|topic| topic == name);
        let job_ids =
            wanted.job_ids.iter().map(|id| super::change::id_of(id).ok_or_else(|| format!("`{id}` is no job's id")));
        Ok(Self {
            agents: topic("agents"),
            jobs: topic("jobs"),
            agent_ids: wanted.agent_ids.iter().cloned().collect(),
            job_ids: job_ids.collect::<std::result::Result<_, _>>()?,
        })
    }

    fn takes_agent(&self, agent: &Agent) -> bool {
        let named = self.agent_ids.contains(&agent.id);
        self.agents && (named || self.agent_ids.is_empty() && self.job_ids.is_empty())
    }

    fn takes_job(&self, job: &Job) -> bool {
        let of_agent = job.agent_id.as_ref().is_some_and(|agent| self.agent_ids.contains(agent));
        let named = self.job_ids.contains(&job.id);
        self.jobs && (named || of_agent || self.agent_ids.is_empty() && self.job_ids.is_empty())
    }
}

#[cfg(test)]
mod tests;
