//! What this agent runs and what it has to say about it: pure, so that it can be tried in every order.

use std::collections::{BTreeMap, VecDeque};

use crate::planes::fleet::model::JobStatus;
use crate::planes::fleet::protocol::{ActiveJob, JobUpdate, Progress};

/// Ends that are remembered, to be told again after a reconnect. An end is told once more than the connection broke; a
/// machine that ends more jobs than this within one outage is not served by telling them all.
pub(super) const REMEMBERED: usize = 256;

/// Where a job is, as this agent knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its program was started, and nothing has come out yet.
    Starting,
    /// It shows that it works.
    Running,
    /// It was told to end.
    Stopping,
}

/// What happens to a job that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The program shows that it works.
    Works,
    /// It is told to end, gently or not.
    StopAsked,
}

/// An event that cannot happen in that phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen while {phase:?}")]
pub(super) struct Illegal {
    phase: Phase,
    event: Event,
}

impl Phase {
    pub(super) fn on(self, event: Event) -> Result<Self, Illegal> {
        match (self, event) {
            (Self::Starting, Event::Works) => Ok(Self::Running),
            (Self::Starting | Self::Running | Self::Stopping, Event::StopAsked) => Ok(Self::Stopping),
            // Progress goes on until the end; it is not news, nor does it take a stop back.
            (Self::Running | Self::Stopping, Event::Works) => Err(Illegal { phase: self, event }),
        }
    }

    pub(super) fn status(self) -> JobStatus {
        match self {
            Self::Starting => JobStatus::Starting,
            Self::Running => JobStatus::Running,
            Self::Stopping => JobStatus::Stopping,
        }
    }
}

/// Who wanted a job's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The orchestrator: then it has stopped as it should.
    Asked,
    /// This agent goes away: the job is not done.
    Shutdown,
    /// Nobody was heard for so long that the job may run elsewhere.
    Fenced,
}

#[derive(Debug)]
struct Held {
    lease: i64,
    phase: Phase,
    cause: Option<Cause>,
}

/// What becomes of an offer.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// A slot is taken for it: start the program.
    Start,
    /// It is held under this lease already.
    Held(Phase),
    /// It was held under this lease and has ended.
    Over(Box<JobUpdate>),
    /// Not taken, and why. `stop` where an older assignment of the same job has to go first.
    Refused { reason: String, stop: bool },
}

/// The jobs of one agent.
#[derive(Debug)]
pub(super) struct Jobs {
    slots: usize,
    held: BTreeMap<String, Held>,
    ended: VecDeque<JobUpdate>,
    draining: bool,
}

impl Jobs {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots, held: BTreeMap::new(), ended: VecDeque::new(), draining: false }
    }

    /// Nothing new is taken while it drains.
    pub(super) fn drain(&mut self, on: bool) {
        self.draining = on;
    }

    /// Judges an offer. The same one again changes nothing.
    pub(super) fn offer(&mut self, job: &str, lease: i64) -> Verdict {
        let refused = |reason: String| Verdict::Refused { reason, stop: false };
        match self.held.get(job) {
            Some(held) if held.lease == lease => return Verdict::Held(held.phase),
            Some(held) if held.lease > lease => {
                return refused(format!("lease {lease} is over: the job runs here under lease {}", held.lease));
            }
            Some(held) => {
                let reason = format!("the job still runs here under lease {} and is ended first", held.lease);
                return Verdict::Refused { reason, stop: true };
            }
            None => {}
        }
        match self.last_end(job) {
            Some(end) if end.lease == Some(lease) => return Verdict::Over(Box::new(end.clone())),
            Some(end) if end.lease > Some(lease) => {
                return refused(format!("lease {lease} is over: a later one has ended here"));
            }
            _ => {}
        }
        if self.draining {
            return refused("the agent drains".to_owned());
        }
        if self.held.len() >= self.slots {
            return refused(format!("no slot is free, {} of {} are taken", self.held.len(), self.slots));
        }
        self.held.insert(job.to_owned(), Held { lease, phase: Phase::Starting, cause: None });
        Verdict::Start
    }

    /// The program shows that it works; gives what is to be told, the first time.
    pub(super) fn works(&mut self, job: &str) -> Option<JobUpdate> {
        let held = self.held.get_mut(job)?;
        held.phase = held.phase.on(Event::Works).ok()?;
        Some(update(job, held))
    }

    /// It is told to end. Gives what is to be told if that was news; `None` if it is not held, or held under a later
    /// lease than the order's, which then is somebody's late word.
    pub(super) fn stop(&mut self, job: &str, lease: Option<i64>, cause: Cause) -> Option<Option<JobUpdate>> {
        let held = self.held.get_mut(job).filter(|held| lease.is_none_or(|lease| lease >= held.lease))?;
        let before = held.phase;
        held.phase = held.phase.on(Event::StopAsked).ok()?;
        held.cause.get_or_insert(cause);
        Some((before != held.phase).then(|| update(job, held)))
    }

    /// Its program has ended, or could not be started; gives what is to be told.
    pub(super) fn ended(
        &mut self,
        job: &str,
        success: bool,
        exit_code: Option<i64>,
        sentence: String,
        progress: Option<Progress>,
    ) -> Option<JobUpdate> {
        let held = self.held.remove(job)?;
        let (status, error) = match held.cause {
            Some(Cause::Asked) => (JobStatus::Stopped, None),
            Some(Cause::Shutdown) => (JobStatus::Failed, Some("the agent was shut down".to_owned())),
            Some(Cause::Fenced) => {
                (JobStatus::Failed, Some("the agent was out of contact for longer than its lease holds".to_owned()))
            }
            None if success => (JobStatus::Stopped, None),
            None => (JobStatus::Failed, Some(sentence)),
        };
        let (job_id, lease) = (job.to_owned(), Some(held.lease));
        let status = Some(status);
        let end = JobUpdate { job_id, lease, status, error, exit_code, progress, ..JobUpdate::default() };
        self.ended.retain(|earlier| earlier.job_id != job);
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(end.clone());
        Some(end)
    }

    /// How the job ended here last, if that is remembered.
    pub(super) fn last_end(&self, job: &str) -> Option<&JobUpdate> {
        self.ended.iter().find(|end| end.job_id == job)
    }

    /// The lease under which a job is held.
    pub(super) fn lease(&self, job: &str) -> Option<i64> {
        self.held.get(job).map(|held| held.lease)
    }

    /// What is held, for a hello or a heartbeat.
    pub(super) fn active(&self) -> Vec<ActiveJob> {
        let active = |(job, held): (&String, &Held)| ActiveJob {
            job_id: job.clone(),
            lease: Some(held.lease),
            status: Some(held.phase.status()),
        };
        self.held.iter().map(active).collect()
    }

    /// Everything that the orchestrator may have missed: where each job stands, and how the last ones ended.
    pub(super) fn everything(&self) -> Vec<JobUpdate> {
        let held = self.held.iter().map(|(job, held)| update(job, held));
        self.ended.iter().cloned().chain(held).collect()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.held.keys().cloned().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

fn update(job: &str, held: &Held) -> JobUpdate {
    let status = Some(held.phase.status());
    JobUpdate { job_id: job.to_owned(), lease: Some(held.lease), status, ..JobUpdate::default() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(jobs: &mut Jobs, job: &str) -> (JobStatus, bool) {
        let told =
            jobs.ended(job, false, Some(1), "ffmpeg ended with exit code 1.".to_owned(), None).expect("it was held");
        (told.status.expect("a status"), told.error.is_some_and(|error| error.contains("exit code 1")))
    }

    #[test]
    fn an_offer_that_comes_again_changes_nothing() {
        let mut jobs = Jobs::new(1);
        assert_eq!(jobs.offer("job-1", 3), Verdict::Start);
        assert_eq!(jobs.offer("job-1", 3), Verdict::Held(Phase::Starting));
        assert!(jobs.works("job-1").is_some());
        assert!(jobs.works("job-1").is_none(), "told once");
        assert_eq!(jobs.offer("job-1", 3), Verdict::Held(Phase::Running));
        assert!(matches!(jobs.offer("job-1", 2), Verdict::Refused { stop: false, .. }));
        assert!(matches!(jobs.offer("job-1", 4), Verdict::Refused { stop: true, .. }));
        assert!(matches!(jobs.offer("job-2", 1), Verdict::Refused { stop: false, .. }), "no slot");
        assert_eq!(end(&mut jobs, "job-1"), (JobStatus::Failed, true));
        assert!(matches!(jobs.offer("job-1", 3), Verdict::Over(_)));
        assert!(matches!(jobs.offer("job-1", 2), Verdict::Refused { stop: false, .. }));
        assert_eq!(jobs.offer("job-1", 4), Verdict::Start);
    }

    #[test]
    fn an_end_is_judged_by_who_wanted_it() {
        for (cause, status) in [
            (Cause::Asked, JobStatus::Stopped),
            (Cause::Shutdown, JobStatus::Failed),
            (Cause::Fenced, JobStatus::Failed),
        ] {
            let mut jobs = Jobs::new(1);
            jobs.offer("job-1", 1);
            assert_eq!(jobs.stop("job-1", Some(0), cause), None, "an order under an older lease");
            assert!(jobs.stop("job-1", Some(1), cause).flatten().is_some());
            assert_eq!(jobs.stop("job-1", None, Cause::Asked), Some(None), "no news");
            assert_eq!(end(&mut jobs, "job-1"), (status, false));
        }
        let mut jobs = Jobs::new(1);
        jobs.offer("job-1", 1);
        let told = jobs.ended("job-1", true, Some(0), String::new(), None).expect("it was held");
        assert_eq!((told.status, told.error), (Some(JobStatus::Stopped), None));
    }

    #[test]
    fn what_ended_in_an_outage_is_told_after_it() {
        let mut jobs = Jobs::new(2);
        jobs.offer("job-1", 1);
        jobs.offer("job-2", 5);
        end(&mut jobs, "job-1");
        let told: Vec<_> = jobs.everything().into_iter().map(|told| (told.job_id, told.lease, told.status)).collect();
        let wanted = [
            ("job-1".to_owned(), Some(1), Some(JobStatus::Failed)),
            ("job-2".to_owned(), Some(5), Some(JobStatus::Starting)),
        ];
        assert_eq!(told, wanted);
        assert_eq!(jobs.active().len(), 1);
    }

    proptest! {
        #[test]
        fn slots_are_never_overrun_and_leases_never_go_back(
            slots in 1_usize..4, steps in prop::collection::vec((0_u8..5, 0_u8..5, 0_i64..6), 1..200),
        ) {
            let mut jobs = Jobs::new(slots);
            let mut highest = BTreeMap::<String, i64>::new();
            for (what, which, lease) in steps {
                let job = format!("job-{which}");
                match what {
                    0 | 1 => if jobs.offer(&job, lease) == Verdict::Start {
                        let before = highest.insert(job, lease);
                        prop_assert!(before.is_none_or(|before| before < lease), "lease {lease} after {before:?}");
                    },
                    2 => _ = jobs.works(&job),
                    3 => _ = jobs.stop(&job, Some(lease), Cause::Asked),
                    _ => _ = jobs.ended(&job, true, Some(0), String::new(), None),
                }
                prop_assert!(jobs.active().len() <= slots);
                prop_assert!(jobs.ended.len() <= REMEMBERED);
            }
        }
    }
}
