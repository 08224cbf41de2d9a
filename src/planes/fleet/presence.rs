//! What happens to an agent: it comes, goes, says what it runs, is drained, and rests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::change::{Change, id_of};
use super::model::{AgentEvent, AgentState, JobEvent, JobStatus, Resumed, Then};
use super::protocol::{ActiveJob, Drain, Hello, ToAgent, close};
use super::record::{Agent, Job, Wanted};
use super::store::Order;
use crate::db::{Json, Timestamp};

/// How long lost connections count against an agent.
const FLAPPING: Duration = Duration::from_secs(10 * 60);
/// Characters of a name or version.
const LONGEST_NAME: usize = 200;
/// More time for each agent that is lost at once: a crowd comes back more slowly than one.
const GRACE_PER_AGENT: Duration = Duration::from_millis(2);

/// Between two tries to move what an agent holds after its drain's deadline.
const DRAIN_AGAIN: Duration = Duration::from_secs(1);

fn text(text: Option<&str>) -> Option<String> {
    let clean = |text: &str| text.chars().filter(|c| *c != '\0').take(LONGEST_NAME).collect::<String>();
    text.map(clean).filter(|text| !text.is_empty())
}

impl Change {
    /// How long `lost` agents that went at once have to come back with their jobs.
    pub fn grace(&self, lost: usize) -> Duration {
        let crowd = u32::try_from(lost.saturating_sub(1)).unwrap_or(u32::MAX);
        Duration::from_millis(self.rules.config.reconnect_grace_ms) + GRACE_PER_AGENT.saturating_mul(crowd)
    }

    /// An agent said hello on a connection of `instance`; the number of its connection. `known` is that number where it
    /// says hello again on the same one.
    pub fn hello(&mut self, hello: &Hello, instance: &str, token_id: Option<i64>, known: Option<i64>) -> i64 {
        let now = self.now;
        let id = hello.agent_id.as_str();
        let before = self.agent(id).cloned();
        let again = before
            .as_ref()
            .is_some_and(|agent| Some(agent.connection) == known && agent.instance.as_deref() == Some(instance));
        let mut agent = before.clone().unwrap_or_else(|| Agent::unknown(id, now));
        if let Some(name) = text(hello.name.as_deref()) {
            agent.name = name;
        }
        agent.software_version = text(hello.version.as_deref()).or(agent.software_version);
        agent.slots = hello.slots();
        agent.capabilities = Json(hello.capabilities.clone());
        agent.last_seen_at = now;
        agent.token_id = token_id;
        // What a person decided, the agent does not undo; what it decided itself, it may.
        let by_itself = agent.drained_by.as_deref() == Some("agent");
        if hello.drain && !agent.drain {
            (agent.drain, agent.drained_by, agent.drain_deadline_at) = (true, Some("agent".to_owned()), None);
        } else if !hello.drain && agent.drain && by_itself {
            (agent.drain, agent.drained_by, agent.drain_deadline_at) = (false, None, None);
        }
        let (drained, is_known) = (agent.drain, before.is_some());
        let jobs = hello.jobs();
        if again {
            let connection = agent.connection;
            self.put_agent(agent);
            let load = self.load_of(id);
            self.step_agent(id, if drained { AgentEvent::Drained } else { AgentEvent::Undrained(load) });
            self.reconcile(id, &jobs, true);
            return connection;
        }
        if let Some(old) = before.filter(|agent| agent.state != AgentState::Offline)
            && let Some(old_instance) = old.instance
        {
            let reason = "another connection said hello as this agent".to_owned();
            let order = Order::Close { code: close::REPLACED, reason };
            self.order_to(old_instance, old.id, old.connection, order);
        }
        agent.connection += 1;
        agent.instance = Some(instance.to_owned());
        agent.connected_at = Some(now);
        (agent.failed_starts, agent.faulted_until) = (0, None); // it may have been mended
        let connection = agent.connection;
        self.put_agent(agent);
        let load = self.load_of(id);
        self.step_agent(id, AgentEvent::Connected(load));
        if drained {
            self.step_agent(id, AgentEvent::Drained);
        }
        if drained || is_known {
            // What it was told last may be no longer so, or was lost with its connection.
            self.tell(id, &ToAgent::Drain(Drain { drain: drained, deadline_ms: None }), None, None);
        }
        self.reconcile(id, &jobs, true);
        connection
    }

    /// Brings what the agent runs and what it is to run in line. `anew`: it has just said hello, and what it was told
    /// before may be lost.
    fn reconcile(&mut self, agent: &str, active: &[&ActiveJob], anew: bool) {
        let named: BTreeMap<i64, &ActiveJob> =
            active.iter().filter_map(|job| id_of(&job.job_id).map(|id| (id, *job))).collect();
        let held = self.held(agent);
        for job in active {
            let own = id_of(&job.job_id).filter(|id| held.contains(id)).and_then(|id| self.job(id));
            if own.is_none_or(|own| job.lease.is_some_and(|lease| lease != own.lease)) {
                self.fence_off(agent, &job.job_id, job.lease);
            }
        }
        let quiet = Duration::from_millis(self.rules.config.heartbeat_timeout_ms);
        for id in held {
            let Some(row) = self.job(id).cloned() else { continue };
            let is_named = named.get(&id).filter(|job| job.lease.is_none_or(|lease| lease == row.lease)).copied();
            match (row.status, is_named) {
                (JobStatus::Unknown, Some(job)) => {
                    self.comes_back(id, row.wanted, row.started_at.is_some(), job.status)
                }
                (JobStatus::Assigned, Some(_)) => {
                    self.step(id, JobEvent::Accepted);
                    if row.wanted != Wanted::Run {
                        self.begin_stop(id, row.wanted);
                    }
                }
                (JobStatus::Assigned, None) if anew && row.wanted == Wanted::Stop => {
                    self.step(id, JobEvent::Fenced(Then::Cancel));
                }
                (JobStatus::Stopping, Some(_)) if anew => self.send_stop(id),
                (_, Some(_)) => {}
                (JobStatus::Assigned, None) if anew => {
                    let due = self.after(self.rules.config.heartbeat_timeout_ms);
                    if let Some(row) = self.job_mut(id) {
                        row.due_at = Some(due);
                    }
                    self.send_offer(id);
                }
                (JobStatus::Assigned, None) => {}
                // How it ended may still come: within one heartbeat.
                (status, None) if anew || self.now.since(row.updated_at) > quiet => {
                    if status == JobStatus::Unknown && !anew {
                        continue; // it is waited for already
                    }
                    self.step(id, JobEvent::Lost);
                    let due = self.after(self.rules.config.heartbeat_interval_ms);
                    if let Some(row) = self.job_mut(id) {
                        row.due_at = Some(due);
                    }
                }
                (_, None) => {}
            }
        }
    }

    fn comes_back(&mut self, job: i64, wanted: Wanted, ran: bool, told: Option<JobStatus>) {
        let how = match told {
            _ if wanted != Wanted::Run => Resumed::Stopping,
            Some(JobStatus::Accepted) => Resumed::Accepted,
            Some(JobStatus::Starting) => Resumed::Starting,
            Some(JobStatus::Stopping) => Resumed::Stopping,
            Some(JobStatus::Running) => Resumed::Running,
            _ if ran => Resumed::Running,
            _ => Resumed::Accepted,
        };
        self.step(job, JobEvent::Resumed(how));
        self.progresses_from_now(job);
        let now = self.now;
        if let Some(row) = self.job_mut(job)
            && how == Resumed::Running
        {
            row.started_at.get_or_insert(now);
        }
        if wanted != Wanted::Run {
            self.send_stop(job);
        }
    }

    /// What the agent runs, as a heartbeat tells it.
    pub fn heartbeat(&mut self, agent: &str, active: &[ActiveJob]) {
        let active: Vec<&ActiveJob> = active.iter().collect();
        self.reconcile(agent, &active, false);
    }

    /// The agent's connection ended. An older one's end says nothing.
    pub fn lost(&mut self, agent: &str, connection: i64, last_seen: Option<Timestamp>, grace: Duration) {
        if self.agent(agent).is_none_or(|row| row.connection != connection) {
            return;
        }
        if !self.step_agent(agent, AgentEvent::Lost) {
            return;
        }
        let now = self.now;
        if let Some(row) = self.agent_mut(agent) {
            (row.instance, row.connected_at, row.faulted_until) = (None, None, None);
            row.last_seen_at = last_seen.unwrap_or(row.last_seen_at).max(row.last_seen_at);
            if row.drops_since.is_none_or(|since| now.since(since) > FLAPPING) {
                (row.drops, row.drops_since) = (0, Some(now));
            }
            row.drops += 1;
        }
        for job in self.held(agent) {
            let due = now.after(grace);
            // What it was only offered waits for it as long, for it may have begun it, and then goes to another.
            let offered = self.job(job).is_some_and(|row| row.status == JobStatus::Assigned);
            if (offered || self.step(job, JobEvent::Lost))
                && let Some(row) = self.job_mut(job)
            {
                row.due_at = Some(due);
            }
        }
    }

    /// Gives the agent nothing new, or lets it work again. What still runs at `deadline` is begun elsewhere.
    pub fn drain(&mut self, agent: &str, drain: bool, by: &str, deadline: Option<Duration>) -> bool {
        let now = self.now;
        let load = self.load_of(agent);
        let Some(row) = self.agent_mut(agent) else { return false };
        row.drain = drain;
        row.drained_by = drain.then(|| by.to_owned());
        row.drain_deadline_at = deadline.filter(|_| drain).map(|deadline| now.after(deadline));
        self.step_agent(agent, if drain { AgentEvent::Drained } else { AgentEvent::Undrained(load) });
        let deadline_ms = deadline.filter(|_| drain).map(|deadline| deadline.as_millis() as u64);
        self.tell(agent, &ToAgent::Drain(Drain { drain, deadline_ms }), None, None);
        true
    }

    /// What is due about an agent: the end of its drain, and of its rest.
    pub fn agent_due(&mut self, agent: &str) {
        let now = self.now;
        let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let Some(row) = self.agent(agent).cloned() else { return };
        if is_due(row.drain_deadline_at) {
            for job in self.held(agent) {
                let _ = self.move_away(job); // what ends already cannot
            }
            // What is offered, or out of reach, may still come to run here, and moves then.
            let may_run = |row: &Job| matches!(row.status, JobStatus::Assigned | JobStatus::Unknown);
            let again = self.held(agent).into_iter().filter_map(|job| self.job(job)).any(may_run);
            if let Some(row) = self.agent_mut(agent) {
                row.drain_deadline_at = again.then(|| now.after(DRAIN_AGAIN));
            }
        }
        if is_due(row.faulted_until) {
            let load = self.load_of(agent);
            self.step_agent(agent, AgentEvent::Recovered(load));
            if let Some(row) = self.agent_mut(agent) {
                (row.faulted_until, row.failed_starts) = (None, 0);
            }
        }
    }

    /// Cuts the agent's connection off.
    pub fn cut_off(&mut self, agent: &str, code: u16, reason: &str) {
        self.order(agent, Order::Close { code, reason: reason.to_owned() });
    }
}
