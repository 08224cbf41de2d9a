//! A change of the fleet: the rows that it is about, read under the fleet's lock, changed in memory by the state
//! machines, and written back together, with the commands that follow from it.
//!
//! Everything that happens to agents and jobs is a method of [`Change`]: what agents say (`presence`, `life`), what
//! people and the loop want, what is due. The same rules hold for all of them, and one transaction can carry hundreds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::model::{AgentEvent, AgentState, JobEvent, JobId, JobStatus, Load};
use super::protocol::{self, Ids, ToAgent};
use super::record::{Agent, Job};
use super::store::feed::Changes;
use super::store::{self, Command, Held, Order};
use crate::config;
use crate::db::{Result, Timestamp, Tx};
use crate::random::Random;

/// What a change goes by.
#[derive(Clone)]
pub struct Rules {
    pub config: Arc<config::Fleet>,
    pub random: Random,
}

/// A change under way.
pub struct Change {
    pub(super) rules: Rules,
    pub(super) now: Timestamp,
    /// The last number before this change.
    base: i64,
    revision: i64,
    agents: BTreeMap<String, Agent>,
    jobs: BTreeMap<i64, Job>,
    /// What else takes up the slots of these agents, and is not changed.
    others: BTreeMap<String, Vec<Held>>,
    changed_agents: BTreeSet<String>,
    /// Agents whose jobs change, which they may or may not show.
    concerned: BTreeSet<String>,
    changed_jobs: BTreeSet<i64>,
    commands: Vec<Command>,
    /// Whether a row was inserted by itself, under a number of its own.
    inserted: bool,
}

/// What a change came to; tell it ([`Fleet::told`](super::Fleet)) once it is committed.
#[derive(Default)]
pub struct Saved {
    pub commands: Vec<Command>,
    /// The last number before the change, and all rows behind it; none where there are more than these.
    pub news: Option<(i64, Changes)>,
}

impl Change {
    /// Takes the fleet's lock.
    pub async fn begin(tx: &mut Tx, rules: &Rules) -> Result<Self> {
        let revision = store::lock(tx).await?;
        let now = tx.now().await?;
        Ok(Self {
            rules: rules.clone(),
            now,
            base: revision,
            revision,
            agents: BTreeMap::new(),
            jobs: BTreeMap::new(),
            others: BTreeMap::new(),
            changed_agents: BTreeSet::new(),
            concerned: BTreeSet::new(),
            changed_jobs: BTreeSet::new(),
            commands: Vec::new(),
            inserted: false,
        })
    }

    /// Reads these jobs and agents, the agents of those jobs, and in short what else these agents have.
    pub async fn load(&mut self, tx: &mut Tx, agents: &[&str], jobs: &[i64]) -> Result<()> {
        let missing: Vec<i64> = jobs.iter().copied().filter(|id| !self.jobs.contains_key(id)).collect();
        for job in store::jobs(tx, &missing).await? {
            self.jobs.insert(job.id, job);
        }
        let mut wanted: BTreeSet<&str> = agents.iter().copied().collect();
        let of_jobs: Vec<String> = jobs
            .iter()
            .filter_map(|id| self.jobs.get(id))
            .filter(|job| job.status.is_held())
            .filter_map(|job| job.agent_id.clone())
            .collect();
        wanted.extend(of_jobs.iter().map(String::as_str));
        let wanted: Vec<&str> = wanted.into_iter().filter(|id| !self.agents.contains_key(*id)).collect();
        for agent in store::agents(tx, &wanted).await? {
            self.agents.insert(agent.id.clone(), agent);
        }
        for row in store::held_in_short(tx, &wanted).await? {
            self.others.entry(row.agent_id.clone()).or_default().push(row);
        }
        Ok(())
    }

    /// The last number before this change.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Also reads all jobs of these agents, which may change.
    pub async fn load_jobs_of(&mut self, tx: &mut Tx, agents: &[&str]) -> Result<()> {
        for job in store::held_by(tx, agents).await? {
            self.jobs.entry(job.id).or_insert(job);
        }
        Ok(())
    }

    pub fn agent(&self, id: &str) -> Option<&Agent> {
        self.agents.get(id)
    }

    pub fn job(&self, id: i64) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// The number of the next row that is inserted by itself.
    pub fn next_revision(&mut self) -> i64 {
        self.inserted = true;
        self.revision += 1;
        self.revision
    }

    /// A job that was inserted in this transaction.
    pub fn add_job(&mut self, job: Job) {
        self.jobs.insert(job.id, job);
    }

    pub(super) fn agent_mut(&mut self, id: &str) -> Option<&mut Agent> {
        let agent = self.agents.get_mut(id)?;
        self.changed_agents.insert(agent.id.clone());
        Some(agent)
    }

    pub(super) fn put_agent(&mut self, agent: Agent) {
        self.changed_agents.insert(agent.id.clone());
        self.agents.insert(agent.id.clone(), agent);
    }

    /// The job, which is written and told in the end.
    pub(super) fn job_mut(&mut self, id: i64) -> Option<&mut Job> {
        let job = self.jobs.get_mut(&id)?;
        self.changed_jobs.insert(id);
        if job.status.is_held()
            && let Some(agent) = &job.agent_id
        {
            self.concerned.insert(agent.clone());
        }
        Some(job)
    }

    /// Lets `event` happen to the job; false where it makes no sense there, which changes nothing. Its due time and
    /// reason are gone with its old status.
    pub(super) fn step(&mut self, id: i64, event: JobEvent) -> bool {
        let now = self.now;
        let Some(status) = self.jobs.get(&id).and_then(|job| job.status.on(event).ok()) else { return false };
        let Some(job) = self.job_mut(id) else { return false };
        job.status = status;
        job.due_at = None;
        job.reason = None;
        if matches!(event, JobEvent::Accepted | JobEvent::Starting | JobEvent::Running) {
            job.offers = 0;
        }
        if status.is_final() {
            job.ended_at = Some(now);
        }
        true
    }

    /// Lets `event` happen to the agent; false where it makes no sense there.
    pub(super) fn step_agent(&mut self, id: &str, event: AgentEvent) -> bool {
        let Some(state) = self.agents.get(id).and_then(|agent| agent.state.on(event).ok()) else { return false };
        let Some(agent) = self.agent_mut(id) else { return false };
        agent.state = state;
        true
    }

    /// The ids of the jobs that take up the agent's slots, oldest first.
    pub(super) fn held(&self, agent: &str) -> Vec<i64> {
        self.slots_of(agent).into_iter().map(|(_, id, _)| id).collect()
    }

    fn slots_of(&self, agent: &str) -> Vec<(Option<Timestamp>, i64, JobStatus)> {
        let held = |job: &&Job| job.status.is_held() && job.agent_id.as_deref() == Some(agent);
        let jobs = self.jobs.values().filter(held).map(|job| (job.assigned_at, job.id, job.status));
        let others = self.others.get(agent).into_iter().flatten();
        let others = others.filter(|row| !self.jobs.contains_key(&row.id));
        let mut slots: Vec<_> = jobs.chain(others.map(|row| (row.assigned_at, row.id, row.status))).collect();
        slots.sort_by_key(|(since, id, _)| (*since, *id));
        slots
    }

    pub(super) fn load_of(&self, agent: &str) -> Load {
        let slots = self.slots_of(agent);
        let oldest = slots.first().map(|(.., status)| *status);
        Load::of(self.agents.get(agent).map_or(0, |agent| agent.slots), slots.len() as i64, oldest)
    }

    /// Says something to an agent, if it is connected.
    pub(super) fn tell(&mut self, agent: &str, message: &ToAgent, msg_id: Option<String>, answers: Option<String>) {
        let ids = Ids { msg_id, correlation_id: answers, ts: Some(self.now) };
        let text = protocol::encode(message, &ids);
        self.order(agent, Order::Send(text));
    }

    pub(super) fn order(&mut self, agent: &str, order: Order) {
        if let Some(agent) = self.agents.get(agent)
            && let Some(instance) = &agent.instance
        {
            let (instance, agent_id) = (instance.clone(), agent.id.clone());
            self.commands.push(Command { instance, agent_id, connection: agent.connection, order });
        }
    }

    /// Sends something to a connection that is about to be replaced, wherever it is.
    pub(super) fn order_to(&mut self, instance: String, agent_id: String, connection: i64, order: Order) {
        self.commands.push(Command { instance, agent_id, connection, order });
    }

    pub(super) fn after(&self, milliseconds: u64) -> Timestamp {
        self.now.after(Duration::from_millis(milliseconds))
    }

    /// Whether anything changed.
    pub fn is_empty(&self) -> bool {
        self.changed_agents.is_empty() && self.changed_jobs.is_empty() && self.commands.is_empty() && !self.inserted
    }

    /// Brings agents' states in line with their jobs, and writes everything. What `me` has to send comes back, to be
    /// sent after the commit; the rest is left for its instances. Wake [`Topic::Fleet`](crate::db::Topic) afterwards.
    pub async fn save(mut self, tx: &mut Tx, me: Option<&str>) -> Result<Saved> {
        let concerned: Vec<String> = self.concerned.union(&self.changed_agents).cloned().collect();
        for id in concerned {
            let (load, held) = (self.load_of(&id), self.held(&id));
            let Some(agent) = self.agents.get_mut(&id) else { continue };
            let state = agent.state.on(AgentEvent::Loaded(load)).unwrap_or(agent.state);
            let shows = (state, held.len() as i64, held.first().copied());
            if shows != (agent.state, agent.busy, agent.current_job_id) {
                (agent.state, agent.busy, agent.current_job_id) = shows;
                self.changed_agents.insert(id);
            }
        }
        let ids: Vec<String> = self.changed_agents.iter().cloned().collect();
        for id in &self.changed_jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                self.revision += 1;
                (job.revision, job.version, job.updated_at) = (self.revision, job.version + 1, self.now);
            }
        }
        for id in &ids {
            if let Some(agent) = self.agents.get_mut(id) {
                self.revision += 1;
                (agent.revision, agent.version, agent.updated_at) = (self.revision, agent.version + 1, self.now);
            }
        }
        let jobs: Vec<&Job> = self.changed_jobs.iter().filter_map(|id| self.jobs.get(id)).collect();
        store::write_jobs(tx, &jobs).await?;
        let agents: Vec<&Agent> = ids.iter().filter_map(|id| self.agents.get(id)).collect();
        store::write_agents(tx, &agents).await?;
        store::set_head(tx, self.revision).await?;
        let (mine, others): (Vec<Command>, Vec<Command>) =
            self.commands.into_iter().partition(|command| Some(command.instance.as_str()) == me);
        store::leave_commands(tx, &others).await?;
        let news = Changes {
            agents: ids.iter().filter_map(|id| self.agents.remove(id)).collect(),
            jobs: self.changed_jobs.iter().filter_map(|id| self.jobs.remove(id)).collect(),
            head: self.revision,
        };
        Ok(Saved { commands: mine, news: (!self.inserted).then_some((self.base, news)) })
    }
}

/// The job that an agent means, if its id is one of ours.
pub(super) fn id_of(text: &str) -> Option<i64> {
    text.parse::<JobId>().ok().map(|id| id.0)
}

/// Whether the agent could be told something.
pub(super) fn is_reachable(agent: Option<&Agent>) -> bool {
    agent.is_some_and(|agent| agent.state != AgentState::Offline)
}
