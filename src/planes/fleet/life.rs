//! What happens to a job that an agent took: on the air, told to stop, ended, and begun again.

use std::time::Duration;

use serde_json::{Map, Value};

use super::change::{Change, id_of, is_reachable};
use super::metadata;
use super::model::{JobEvent, JobId, JobStatus, RestartPolicy, Resumed, Then};
use super::offer::lease_of;
use super::protocol::{AudioAck, JobUpdate, OfJob, Progress, Stop, ToAgent, close};
use super::record::{Job, Wanted};
use super::redact::without_secrets;
use crate::backoff;
use crate::db::Json;

/// Errors in a row after which a job is not begun again.
pub const MOST_RESTARTS: i64 = 10;
/// The waits between restarts, doubled each time.
const RESTART_WAIT: Duration = Duration::from_secs(1);
const LONGEST_RESTART_WAIT: Duration = Duration::from_secs(60);
/// Who ran for so long was well: the next error counts as the first.
const HEALTHY_RUN: Duration = Duration::from_secs(10 * 60);
/// Characters of an error that are kept: an agent's last lines.
const LONGEST_ERROR: usize = 4_000;

/// Why something cannot be asked of a job now.
pub type Refusal = String;

fn of_job(job: &Job) -> OfJob {
    OfJob { job_id: JobId(job.id).to_string(), lease: Some(job.lease) }
}

/// Without what cannot be stored, and its end where it is long.
fn cut(text: &str) -> String {
    // The end says why; NUL cannot be stored.
    let clean: Vec<char> = text.chars().filter(|c| *c != '\0').collect();
    clean[clean.len().saturating_sub(LONGEST_ERROR)..].iter().collect()
}

impl Change {
    /// Whether `agent` speaks of the job that it holds now. Who speaks of another run of it is told to end that.
    pub(super) fn is_of(&self, job: i64, agent: &str, lease: Option<i64>) -> bool {
        self.job(job).is_some_and(|row| {
            row.status.is_held()
                && row.agent_id.as_deref() == Some(agent)
                && lease.is_none_or(|lease| lease == row.lease)
        })
    }

    /// Has an agent end what is not, or no longer, its own.
    pub(super) fn fence_off(&mut self, agent: &str, job_id: &str, lease: Option<i64>) {
        self.tell(agent, &ToAgent::Kill(OfJob { job_id: job_id.to_owned(), lease }), None, None);
    }

    /// The agent speaks of a job, or of a run of it, that is not its own; `runs`: it may run it. Who holds the job under
    /// another lease is only told to end the one that it names: else it would end the wrong one.
    pub(super) fn unknown_job(&mut self, agent: &str, job_id: &str, lease: Option<i64>, runs: bool) {
        let holds = id_of(job_id).is_some_and(|job| self.is_of(job, agent, None));
        if runs && (lease.is_some() || !holds) {
            self.fence_off(agent, job_id, lease);
        }
    }

    /// An agent's words about a job, as everybody may read them.
    pub(super) fn quoted(&self, job: i64, said: &str) -> String {
        // Cut afterwards: half a secret would not be found.
        self.job(job).map_or_else(String::new, |row| cut(&without_secrets(said, &row.config.0)))
    }

    /// What the agent says of a job.
    pub fn update(&mut self, agent: &str, update: &JobUpdate, correlation: Option<&str>) {
        use JobStatus as S;
        let ends = matches!(update.status, Some(S::Stopped | S::Failed | S::Canceled));
        let Some(job) = id_of(&update.job_id) else {
            return self.unknown_job(agent, &update.job_id, update.lease, !ends);
        };
        let lease = update.lease.or_else(|| lease_of(job, correlation));
        if !self.is_of(job, agent, lease) {
            return self.unknown_job(agent, &update.job_id, update.lease, !ends);
        }
        let Some(before) = self.job(job).map(|row| row.status) else { return };
        if ends && before == S::Assigned && lease.is_none() {
            return; // most likely the end of an earlier run, told late
        }
        if let Some(progress) = &update.progress {
            self.note_progress(job, progress);
        }
        if let Some(metadata) = &update.metadata {
            self.merge_metadata(job, metadata);
        }
        match update.status {
            None => {}
            Some(S::Accepted) => _ = self.step(job, JobEvent::Accepted) || self.resume(job, Resumed::Accepted),
            Some(S::Starting) => _ = self.step(job, JobEvent::Starting) || self.resume(job, Resumed::Starting),
            Some(S::Running) => {
                let runs = self.step(job, JobEvent::Running) || self.resume(job, Resumed::Running);
                if runs {
                    self.is_on_the_air(job, agent);
                }
            }
            Some(S::Stopping) if before == S::Unknown => _ = self.resume(job, Resumed::Stopping),
            Some(S::Stopping) if before != S::Stopping => _ = self.step(job, JobEvent::StopRequested),
            Some(S::Canceled) if before == S::Stopping => _ = self.step(job, JobEvent::Canceled),
            Some(S::Stopped | S::Canceled) => self.end(job, None, update.exit_code),
            Some(S::Failed) => {
                let error = update.error.as_deref().map_or_else(
                    || match update.exit_code {
                        Some(code) => format!("the agent's process ended with code {code}"),
                        None => "the agent gave no reason".to_owned(),
                    },
                    |error| self.quoted(job, error),
                );
                if matches!(before, S::Assigned | S::Accepted | S::Starting) {
                    self.failed_start(agent, job);
                    self.avoid(job, agent);
                }
                self.end(job, Some(error), update.exit_code);
            }
            Some(_) => {} // what only the orchestrator can say
        }
    }

    fn resume(&mut self, job: i64, how: Resumed) -> bool {
        let stopping = self.job(job).is_some_and(|row| row.wanted != Wanted::Run);
        if !self.step(job, JobEvent::Resumed(if stopping { Resumed::Stopping } else { how })) {
            return false;
        }
        self.progresses_from_now(job);
        if stopping {
            self.send_stop(job);
        }
        true
    }

    /// While nobody could say how far the stream was, it did not stand still.
    pub(super) fn progresses_from_now(&mut self, job: i64) {
        let now = self.now;
        if let Some(row) = self.job_mut(job).filter(|row| row.progressed_at.is_some()) {
            row.progressed_at = Some(now);
        }
    }

    fn is_on_the_air(&mut self, job: i64, agent: &str) {
        let now = self.now;
        if let Some(row) = self.job_mut(job) {
            row.started_at.get_or_insert(now);
            row.avoid.0.clear();
        }
        if let Some(row) = self.agent_mut(agent) {
            row.failed_starts = 0;
        }
    }

    fn note_progress(&mut self, job: i64, progress: &Progress) {
        let now = self.now;
        let Some(row) = self.job_mut(job) else { return };
        let old = row.progress.as_ref().map(|old| (old.0.position_ms, old.0.frames));
        if old != Some((progress.position_ms, progress.frames)) {
            row.progressed_at = Some(now);
        }
        row.progress = Some(Json(progress.clone()));
    }

    /// Merges what fits into the stream's metadata; what does not is left out.
    fn merge_metadata(&mut self, job: i64, changes: &Map<String, Value>) {
        let Some(row) = self.job(job) else { return };
        let mut merged = row.metadata.0.clone();
        if metadata::merge(&mut merged, changes).is_ok()
            && let Some(row) = self.job_mut(job)
        {
            row.metadata.0 = merged;
        }
    }

    /// What becomes of a job that ended, as its policy and people want it.
    fn then(&self, job: &Job, failed: bool) -> Then {
        match (job.wanted, job.restart_policy) {
            (Wanted::Stop, _) => Then::End,
            (Wanted::Restart, _) => Then::Again,
            (Wanted::Run, RestartPolicy::Never) => Then::End,
            (Wanted::Run, RestartPolicy::OnFailure) if !failed => Then::End,
            (Wanted::Run, _) if failed && self.restarts_after(job) > MOST_RESTARTS => Then::End,
            (Wanted::Run, _) => Then::Again,
        }
    }

    /// Restarts in a row, with the one that would come now.
    fn restarts_after(&self, job: &Job) -> i64 {
        let well = job.started_at.is_some_and(|since| self.now.since(since) >= HEALTHY_RUN);
        if well { 1 } else { job.restarts + 1 }
    }

    /// The job ended; with an error, unless there is none.
    fn end(&mut self, job: i64, error: Option<String>, exit_code: Option<i64>) {
        let Some(before) = self.job(job).cloned() else { return };
        let then = self.then(&before, error.is_some());
        let event = if error.is_some() { JobEvent::Failed(then) } else { JobEvent::Stopped(then) };
        if !self.step(job, event) {
            return;
        }
        let restarts = self.restarts_after(&before);
        let (now, random) = (self.now, self.rules.random.clone());
        let Some(row) = self.job_mut(job) else { return };
        row.exit_code = exit_code;
        let failed = error.is_some();
        if failed {
            row.error = error;
        }
        if then == Then::Again {
            let wanted = row.wanted == Wanted::Restart;
            row.restarts = if wanted { 0 } else { restarts };
            row.due_at = (!wanted).then(|| now.after(restart_wait(restarts, &random)));
            row.reason = Some(if wanted {
                "it was told to begin again".to_owned()
            } else if failed {
                format!("it begins again after an error, for the {restarts}. time in a row")
            } else {
                "it begins again after it ended".to_owned()
            });
            self.let_go(job);
        } else if failed && restarts > MOST_RESTARTS && before.restart_policy != RestartPolicy::Never {
            row.reason = Some(format!("it failed {restarts} times in a row and is not begun again"));
        }
    }

    /// A job that waits again belongs to no agent.
    fn let_go(&mut self, job: i64) {
        if let Some(row) = self.job_mut(job) {
            row.agent_id = None;
            row.offers = 0;
            (row.wanted, row.killed) = (Wanted::Run, false);
        }
    }

    /// Ends a job: at once while it waits, else by its agent.
    pub fn stop(&mut self, job: i64) -> Result<(), Refusal> {
        let Some(row) = self.job(job) else { return Err(format!("there is no job {}", JobId(job))) };
        let can_be_told = is_reachable(row.agent_id.as_deref().and_then(|agent| self.agent(agent)));
        match row.status {
            status if status.is_final() => Err(format!("job {} has ended already; it is {status}", JobId(job))),
            // Its agent began to end it by itself: nothing would come of it if that one does not get to the end.
            JobStatus::Stopping if row.due_at.is_none() && can_be_told => {
                if let Some(row) = self.job_mut(job) {
                    row.wanted = Wanted::Stop;
                }
                self.send_stop(job);
                Ok(())
            }
            status
                if matches!(status, JobStatus::Stopping | JobStatus::Unknown) || status.is_held() && !can_be_told =>
            {
                if row.wanted != Wanted::Stop
                    && let Some(row) = self.job_mut(job)
                {
                    row.wanted = Wanted::Stop;
                }
                Ok(())
            }
            _ => {
                self.begin_stop(job, Wanted::Stop);
                Ok(())
            }
        }
    }

    /// Ends a job and has it begin again, where there is a choice on another agent.
    pub fn restart(&mut self, job: i64) -> Result<(), Refusal> {
        let Some(row) = self.job(job) else { return Err(format!("there is no job {}", JobId(job))) };
        let agent = row.agent_id.clone();
        match row.status {
            JobStatus::Accepted | JobStatus::Starting | JobStatus::Running => {
                self.begin_stop(job, Wanted::Restart);
                Ok(())
            }
            status => {
                let agent = agent.map_or_else(String::new, |agent| format!(" on agent {agent}"));
                Err(format!("job {} does not run; it is {status}{agent}", JobId(job)))
            }
        }
    }

    /// The same, and tries the agent that it leaves last.
    pub fn move_away(&mut self, job: i64) -> Result<(), Refusal> {
        self.restart(job)?;
        if let Some(agent) = self.job(job).and_then(|row| row.agent_id.clone()) {
            self.avoid(job, &agent);
        }
        Ok(())
    }

    pub(super) fn begin_stop(&mut self, job: i64, wanted: Wanted) {
        if !self.step(job, JobEvent::StopRequested) {
            return;
        }
        if let Some(row) = self.job_mut(job) {
            (row.wanted, row.killed) = (wanted, false);
        }
        self.send_stop(job);
    }

    /// Tells the agent to end the job, and notes when it is killed.
    pub(super) fn send_stop(&mut self, job: i64) {
        let grace_ms = self.rules.config.stop_grace_ms;
        let due = self.after(grace_ms);
        let Some(row) = self.job_mut(job).filter(|row| row.status == JobStatus::Stopping) else { return };
        row.due_at = Some(due);
        row.killed = false;
        let stop = Stop { job_id: JobId(row.id).to_string(), grace_ms, lease: Some(row.lease) };
        if let Some(agent) = row.agent_id.clone() {
            self.tell(&agent, &ToAgent::Stop(stop), None, None);
        }
    }

    /// Mutes or unmutes a job that runs; what its agent answers counts.
    pub fn set_muted(&mut self, job: i64, muted: bool) -> Result<(), Refusal> {
        let Some(row) = self.job(job) else { return Err(format!("there is no job {}", JobId(job))) };
        let agent = row.agent_id.clone().unwrap_or_default();
        if row.status == JobStatus::Unknown || row.status.is_held() && !is_reachable(self.agent(&agent)) {
            return Err(format!("agent {agent}, which runs job {}, is offline", JobId(job)));
        }
        if row.status != JobStatus::Running {
            return Err(format!("job {} does not run; it is {}", JobId(job), row.status));
        }
        let about = of_job(row);
        let message = if muted { ToAgent::Mute(about) } else { ToAgent::Unmute(about) };
        self.tell(&agent, &message, None, None);
        Ok(())
    }

    /// How a mute or unmute went.
    pub fn answer_audio(&mut self, agent: &str, ack: &AudioAck, muted: bool) {
        let Some(job) = id_of(&ack.job_id).filter(|job| self.is_of(*job, agent, None)) else { return };
        let error = self.quoted(job, ack.error.as_deref().unwrap_or("no reason given"));
        if let Some(row) = self.job_mut(job) {
            if ack.success {
                row.metadata.0.insert("isMuted".to_owned(), Value::Bool(muted));
            } else {
                let word = if muted { "mute" } else { "unmute" };
                row.reason = Some(format!("agent {agent} could not {word} it: {error}"));
            }
        }
    }

    /// The time of a job has come.
    pub fn due(&mut self, job: i64) {
        let now = self.now;
        let Some(row) = self.job(job).filter(|row| row.due_at.is_some_and(|due| due <= now)).cloned() else { return };
        let agent = row.agent_id.clone().unwrap_or_default();
        match row.status {
            JobStatus::Assigned if row.wanted == Wanted::Stop => _ = self.step(job, JobEvent::Fenced(Then::Cancel)),
            JobStatus::Assigned if !is_reachable(self.agent(&agent)) => {
                self.unplace(job, &format!("agent {agent} was lost before it took it"));
            }
            JobStatus::Assigned => {
                self.fence_off(&agent, &JobId(job).to_string(), Some(row.lease));
                self.failed_start(&agent, job);
                self.unplace(job, &format!("agent {agent} did not answer the offer in time"));
            }
            JobStatus::Stopping if !row.killed => {
                let due = self.after(self.rules.config.kill_after_ms);
                if let Some(row) = self.job_mut(job) {
                    (row.killed, row.due_at) = (true, Some(due));
                }
                self.fence_off(&agent, &JobId(job).to_string(), Some(row.lease));
            }
            JobStatus::Stopping if row.wanted == Wanted::Restart => self.wait_for_its_lease(job, &agent),
            JobStatus::Stopping => {
                self.take_away(job, Then::End, format!("agent {agent} did not confirm that it was killed"));
            }
            JobStatus::Unknown => {
                let then = match (row.wanted, row.restart_policy) {
                    (Wanted::Stop, _) => Then::Cancel,
                    (Wanted::Run, RestartPolicy::Never) => Then::End,
                    _ => Then::Again,
                };
                let lost = if is_reachable(self.agent(&agent)) { "came back without it" } else { "was lost" };
                self.take_away(job, then, format!("agent {agent} {lost}"));
            }
            _ => {
                if let Some(row) = self.job_mut(job) {
                    row.due_at = None; // its wait is over
                }
            }
        }
    }

    /// The agent does not confirm that it killed what is to begin elsewhere: perhaps it is heard and hears nothing, and
    /// the stream would run twice. Cut off, it is heard no more, and ends by itself what its lease no longer holds.
    fn wait_for_its_lease(&mut self, job: i64, agent: &str) {
        let config = self.rules.config.clone();
        let due = self.after(config.heartbeat_timeout_ms.saturating_add(config.reconnect_grace_ms));
        if self.step(job, JobEvent::Lost)
            && let Some(row) = self.job_mut(job)
        {
            row.due_at = Some(due);
            row.reason = Some(format!("agent {agent} did not confirm that it was killed; its lease has to end first"));
        }
        self.cut_off(agent, close::SILENT, "an order to kill was not answered");
    }

    /// Takes a job from its agent: what that one still says of it counts no more, and what it still runs is killed.
    fn take_away(&mut self, job: i64, then: Then, error: String) {
        if !self.step(job, JobEvent::Fenced(then)) {
            return;
        }
        if let Some(row) = self.job_mut(job) {
            row.error = Some(error.clone());
        }
        if then == Then::Again {
            if let Some(row) = self.job_mut(job) {
                row.reason = Some(error);
            }
            self.let_go(job);
        }
    }
}

fn restart_wait(restarts: i64, random: &crate::random::Random) -> Duration {
    let tries = u32::try_from(restarts).unwrap_or(u32::MAX);
    backoff::exponential(RESTART_WAIT, LONGEST_RESTART_WAIT, tries, random)
}
