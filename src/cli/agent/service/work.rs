//! Jobs and their programs: offers are taken or refused, programs begin and are told to end, and what they tell goes
//! to the orchestrator.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{OWN_GRACE, QUIET_START, Running, Service};
use crate::cli::agent::jobs::{Cause, Verdict};
use crate::cli::agent::lines::Mark;
use crate::cli::agent::process::{Controls, Order, Process, Told};
use crate::planes::fleet::model::JobStatus;
use crate::planes::fleet::protocol::{Assign, AssignAck, AudioAck, FromAgent, JobUpdate};

impl Service {
    pub(super) fn stop_all(&mut self, cause: Cause, grace: Duration) {
        for job in self.jobs.names() {
            self.stop(&job, None, grace, cause);
        }
    }

    pub(super) fn on_offer(&mut self, assign: &Assign, msg_id: Option<String>) {
        let job = assign.job_id.as_str();
        // Whether it fits is asked before a slot is taken.
        let arguments = self.arguments(assign);
        let verdict = match (&arguments, self.jobs.lease(job)) {
            (Err(reason), None) => Verdict::Refused { reason: reason.clone(), stop: false },
            _ => self.jobs.offer(job, assign.lease),
        };
        let refused = match &verdict {
            Verdict::Refused { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        if let Some(reason) = &refused {
            self.lines.say(Mark::Bad, "job.refused", Some(job), &format!("{job} is not taken: {reason}"));
        }
        let ack = AssignAck {
            job_id: job.to_owned(),
            accepted: refused.is_none(),
            lease: Some(assign.lease),
            reason: refused,
        };
        self.send(&FromAgent::AssignAck(ack), msg_id);
        match verdict {
            Verdict::Start => self.start(job, &arguments.unwrap_or_default()),
            Verdict::Held(phase) => self.update(JobUpdate {
                job_id: job.to_owned(),
                lease: Some(assign.lease),
                status: Some(phase.status()),
                ..JobUpdate::default()
            }),
            Verdict::Over(end) => self.update(*end),
            Verdict::Refused { stop: true, .. } => _ = self.stop(job, None, OWN_GRACE, Cause::Asked),
            Verdict::Refused { stop: false, .. } => {}
        }
    }

    fn arguments(&self, assign: &Assign) -> Result<Vec<String>, String> {
        let given = [("jobId", assign.job_id.as_str()), ("agentId", &self.settings.id)];
        let given: Map<String, Value> =
            given.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        self.settings.template.fill(&assign.config, &given).map_err(|misfit| misfit.to_string())
    }

    fn start(&mut self, job: &str, arguments: &[String]) {
        let (tell, name) = (self.tell.clone(), job.to_owned());
        let tell = move |told| _ = tell.send((name.clone(), told));
        match Process::start(arguments, &self.watchdog, self.clock.clone(), tell) {
            Ok(process) => {
                let said = format!("{job} starts as process {}", process.id);
                self.lines.say(Mark::Begins, "job.started", Some(job), &said);
                // Only ffmpeg is known to show when it has begun.
                let shows = Controls::of(&arguments[0]) == Controls::Ffmpeg;
                let quiet_until = shows.then(|| self.clock.elapsed() + QUIET_START);
                self.processes.insert(job.to_owned(), Running { process, quiet_until });
                let (job_id, lease) = (job.to_owned(), self.jobs.lease(job));
                self.update(JobUpdate { job_id, lease, status: Some(JobStatus::Starting), ..JobUpdate::default() });
                if !shows {
                    self.works(job);
                }
            }
            Err(cause) => {
                self.lines.say(Mark::Bad, "job.failed", Some(job), &cause);
                if let Some(end) = self.jobs.ended(job, false, None, cause, None) {
                    self.update(end);
                }
            }
        }
    }

    /// Orders its end; false if it is not held under that lease.
    pub(super) fn stop(&mut self, job: &str, lease: Option<i64>, grace: Duration, cause: Cause) -> bool {
        let Some(told) = self.jobs.stop(job, lease, cause) else { return false };
        if let Some(running) = self.processes.get(job) {
            running.process.order(Order::Stop { grace });
        }
        if let Some(update) = told {
            self.lines.say(Mark::Waits, "job.stopping", Some(job), &format!("{job} is told to end"));
            self.update(update);
        }
        true
    }

    /// An order that finds nothing to end is answered by how it ended, or that it is not here.
    pub(super) fn stop_by_order(
        &mut self,
        job: &str,
        lease: Option<i64>,
        msg_id: Option<String>,
        stop: impl FnOnce(&mut Self) -> bool,
    ) {
        if stop(self) {
            return;
        }
        let remembered = self.jobs.last_end(job).filter(|end| lease.is_none() || end.lease == lease).cloned();
        match (remembered, lease) {
            (Some(end), _) => self.update(end),
            (None, Some(lease)) if self.jobs.lease(job).is_none_or(|held| held < lease) => self.update(JobUpdate {
                job_id: job.to_owned(),
                lease: Some(lease),
                status: Some(JobStatus::Stopped),
                ..JobUpdate::default()
            }),
            _ => self.complain("unknown-job", format!("{job} does not run here"), msg_id),
        }
    }

    pub(super) fn on_mute(&mut self, job: &str, muted: bool) {
        match self.processes.get(job) {
            Some(running) => running.process.order(Order::Mute(muted)),
            None => self.muted(job, muted, Err("the job does not run here".to_owned())),
        }
    }

    fn muted(&mut self, job: &str, muted: bool, result: Result<(), String>) {
        let what = if muted { "muted" } else { "unmuted" };
        match &result {
            Ok(()) => self.lines.say(Mark::Good, &format!("job.{what}"), Some(job), &format!("{job} is {what}")),
            Err(cause) => {
                let said = format!("{job} is not {what}: {cause}");
                self.lines.say(Mark::Bad, "job.control_failed", Some(job), &said);
            }
        }
        let ack = AudioAck { job_id: job.to_owned(), success: result.is_ok(), error: result.err() };
        self.send(&if muted { FromAgent::Mute(ack) } else { FromAgent::Unmute(ack) }, None);
    }

    /// The program shows that it works.
    pub(super) fn works(&mut self, job: &str) {
        if let Some(update) = self.jobs.works(job) {
            self.lines.say(Mark::Good, "job.running", Some(job), &format!("{job} runs"));
            self.update(update);
        }
    }

    pub(super) fn on_told(&mut self, job: &str, told: Told) {
        match told {
            Told::Progress(progress) => {
                if let Some(running) = self.processes.get_mut(job) {
                    running.quiet_until = None;
                }
                self.works(job);
                let (job_id, lease) = (job.to_owned(), self.jobs.lease(job));
                self.update(JobUpdate { job_id, lease, progress: Some(progress), ..JobUpdate::default() });
            }
            Told::Muted { muted, result } => self.muted(job, muted, result),
            Told::Ended(end) => {
                self.processes.remove(job);
                let sentence = end.sentence(self.settings.template.program());
                let (success, exit_code) = (end.is_success(), end.exit_code());
                let Some(update) = self.jobs.ended(job, success, exit_code, sentence, end.progress) else { return };
                let failed = update.status == Some(JobStatus::Failed);
                let (mark, event) = if failed { (Mark::Bad, "job.failed") } else { (Mark::Good, "job.stopped") };
                let said = match &update.error {
                    Some(error) => format!("{job} failed: {error}"),
                    None => format!("{job} has stopped"),
                };
                self.lines.say(mark, event, Some(job), &said);
                self.update(update);
            }
        }
    }
}
