//! A job is offered to an agent, which takes it, refuses it or does not answer.
//!
//! A refusal is about this job on this agent: the job is kept from it for a while that grows, and goes to others at
//! once. An agent on which several jobs fail to start rests.

use std::time::Duration;

use serde_json::Value;

use super::change::{Change, id_of};
use super::model::{AgentEvent, JobEvent, JobId, JobStatus};
use super::protocol::{Assign, AssignAck, ToAgent};
use super::record::Wanted;
use crate::backoff;

/// The waits after offers that nobody took, doubled each time.
const OFFER_WAIT: Duration = Duration::from_millis(250);
const LONGEST_OFFER_WAIT: Duration = Duration::from_secs(30);
/// Jobs in a row that did not come to run on an agent, after which it is given none for a while.
const MOST_FAILED_STARTS: i64 = 3;
/// That while: most faults of a machine last longer than seconds.
const REST: Duration = Duration::from_secs(60);
/// Agents that one job tries last. More refusals than that, and it waits before it is offered to anybody.
pub(super) const MOST_AVOIDED: usize = 20;

/// The id of the message that offers a job; answers carry it, and so the lease.
fn offer_id(job: i64, lease: i64) -> String {
    format!("assign-{job}-{lease}")
}

/// The lease of the offer that `correlation` answers.
pub(super) fn lease_of(job: i64, correlation: Option<&str>) -> Option<i64> {
    correlation?.strip_prefix(&format!("assign-{job}-"))?.parse().ok()
}

impl Change {
    /// How long an agent has to answer an offer: as long as it may be silent.
    pub(super) fn offer_patience(&self) -> u64 {
        self.rules.config.heartbeat_timeout_ms
    }

    /// Offers the job to the agent; false where either is not free any more.
    pub fn offer(&mut self, job: i64, agent: &str) -> bool {
        let free = |change: &Self| {
            change.agent(agent).is_some_and(|row| row.is_open() && (change.held(agent).len() as i64) < row.slots)
        };
        if !self.job(job).is_some_and(|row| row.status.is_waiting()) || !free(self) {
            return false;
        }
        if !self.step(job, JobEvent::Assigned) {
            return false;
        }
        let (now, due) = (self.now, self.after(self.offer_patience()));
        let Some(row) = self.job_mut(job) else { return false };
        row.agent_id = Some(agent.to_owned());
        row.lease += 1;
        row.assigned_at = Some(now);
        row.due_at = Some(due);
        (row.wanted, row.killed) = (Wanted::Run, false);
        (row.started_at, row.progress, row.progressed_at, row.exit_code) = (None, None, None, None);
        if row.metadata.0.contains_key("isMuted") {
            row.metadata.0.insert("isMuted".to_owned(), Value::Bool(false)); // a new process is not muted
        }
        self.job_mut(job); // with its agent, whose slots are fewer now
        self.send_offer(job);
        true
    }

    /// Sends the offer of an assigned job, for the first time or again.
    pub(super) fn send_offer(&mut self, job: i64) {
        let Some(row) = self.job(job) else { return };
        let Some(agent) = row.agent_id.clone() else { return };
        let assign = Assign {
            job_id: JobId(row.id).to_string(),
            lease: row.lease,
            config: row.config.0.clone(),
            template_id: row.template_id.clone(),
        };
        let id = offer_id(row.id, row.lease);
        self.tell(&agent, &ToAgent::Assign(Box::new(assign)), Some(id), None);
    }

    /// Nobody is free for the job; says why it waits.
    pub fn wait(&mut self, job: i64, reason: &str) {
        self.step(job, JobEvent::Queued);
        if self.job(job).is_some_and(|row| row.status == JobStatus::Pending && row.reason.as_deref() != Some(reason))
            && let Some(row) = self.job_mut(job)
        {
            row.reason = Some(reason.to_owned());
        }
    }

    /// The agent's answer to an offer.
    pub fn answer_offer(&mut self, agent: &str, ack: &AssignAck, correlation: Option<&str>) {
        let Some(job) = id_of(&ack.job_id) else {
            return self.unknown_job(agent, &ack.job_id, ack.lease, ack.accepted);
        };
        let lease = ack.lease.or_else(|| lease_of(job, correlation));
        if !self.is_of(job, agent, lease) {
            return self.unknown_job(agent, &ack.job_id, ack.lease, ack.accepted);
        }
        if ack.accepted {
            self.step(job, JobEvent::Accepted);
            return;
        }
        let reason = ack.reason.as_deref().map(|reason| format!(": {}", self.quoted(job, reason))).unwrap_or_default();
        self.unplace(job, &format!("agent {agent} refused it{reason}"));
    }

    /// Takes an offer back; it is made again elsewhere.
    pub(super) fn unplace(&mut self, job: i64, reason: &str) {
        if !self.step(job, JobEvent::Unplaced) {
            return;
        }
        let (now, random) = (self.now, self.rules.random.clone());
        let Some(row) = self.job_mut(job) else { return };
        let agent = row.agent_id.take();
        row.offers += 1;
        row.reason = Some(reason.to_owned());
        let tries = u32::try_from(row.offers).unwrap_or(u32::MAX);
        row.due_at = Some(now.after(backoff::exponential(OFFER_WAIT, LONGEST_OFFER_WAIT, tries, &random)));
        if let Some(agent) = agent {
            self.avoid(job, &agent);
        }
    }

    pub(super) fn avoid(&mut self, job: i64, agent: &str) {
        let Some(row) = self.job_mut(job) else { return };
        row.avoid.0.retain(|known| known != agent);
        row.avoid.0.push(agent.to_owned());
        let surplus = row.avoid.0.len().saturating_sub(MOST_AVOIDED);
        row.avoid.0.drain(..surplus);
    }

    /// Counts a job that did not come to run on the agent; after several it is given none for a while. One and the same
    /// job counts once until it has run: perhaps the fault is its own, and it shall not put every agent to rest.
    pub(super) fn failed_start(&mut self, agent: &str, job: i64) {
        if self.job(job).is_some_and(|row| row.avoid.0.iter().any(|known| known == agent)) {
            return;
        }
        let until = self.now.after(REST);
        let Some(row) = self.agent_mut(agent) else { return };
        row.failed_starts += 1;
        if row.failed_starts >= MOST_FAILED_STARTS && row.faulted_until.is_none() {
            row.faulted_until = Some(until);
            self.step_agent(agent, AgentEvent::Faulted);
        }
    }
}
