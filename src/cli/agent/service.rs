//! The one task of an agent that decides. Everything comes to it in a row: what the orchestrator says, what programs
//! tell, time, signals. So nothing here is ever done twice at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::jobs::{Cause, Jobs, Verdict};
use super::lines::{Lines, Mark};
use super::link::{self, News, Out, Refusal};
use super::process::{Controls, Order, Process, Told};
use super::settings::Settings;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::serve::Signals;
use crate::cli::watchdog::Watchdog;
use crate::clock::SharedClock;
use crate::planes::fleet::model::JobStatus;
use crate::planes::fleet::protocol::{
    Assign, AssignAck, AudioAck, Complaint, Credentials, FromAgent, Heartbeat, Hello, HelloAck, Ids, JobUpdate,
    Received, ToAgent, encode,
};
use crate::random::Random;

/// Programs that are ended by the agent itself have this long between TERM and KILL, as the orchestrator's default.
const OWN_GRACE: Duration = Duration::from_secs(10);
/// The same where they may run elsewhere by then: time to close a file, and no more.
const FENCE_GRACE: Duration = Duration::from_secs(2);
/// An ffmpeg that is told to be quiet counts as running after this; else it tells twice a second once it has begun.
const QUIET_START: Duration = Duration::from_secs(10);
/// Until `agent.hello.ack` says better: the documented defaults.
const INTERVAL_MS: u64 = 3_000;
const TIMEOUT_MS: u64 = 10_000;
/// A welcome may take so long: where a whole fleet comes back at once, connecting again would only make it longer.
const WELCOME_PATIENCE: Duration = Duration::from_secs(30);
/// Goodbyes may take so long to be sent.
const FAREWELL: Duration = Duration::from_secs(2);
/// Room for what the link hears while this task is at something else; the link waits beyond it.
const NEWS: usize = 64;

pub(super) struct Service {
    settings: Settings,
    clock: SharedClock,
    random: Random,
    lines: Lines,
    watchdog: Arc<Watchdog>,
    jobs: Jobs,
    /// The programs of the jobs that are held.
    processes: HashMap<String, Running>,
    line: Option<mpsc::Sender<Out>>,
    /// What the orchestrator acknowledged on this connection.
    welcome: Option<HelloAck>,
    /// The terms of the last welcome hold while nobody is heard.
    terms: HelloAck,
    heard_at: Duration,
    /// When the orchestrator surely still heard this agent: where only its own words arrive, it gives the jobs away.
    known_at: Duration,
    /// When this connection was opened.
    opened_at: Duration,
    beat_at: Duration,
    fenced: bool,
    /// Since when it is told to end.
    leaving: Option<Leaving>,
    tell: mpsc::UnboundedSender<(String, Told)>,
}

struct Running {
    process: Process,
    /// When it counts as running without having shown it.
    quiet_until: Option<Duration>,
}

struct Leaving {
    stop_at: Duration,
    stopped: bool,
    code: Result<(), Failure>,
}

impl Service {
    pub(super) fn new(
        settings: Settings,
        watchdog: Watchdog,
        clock: SharedClock,
        random: Random,
        lines: Lines,
    ) -> Self {
        let terms =
            HelloAck { heartbeat_interval_ms: INTERVAL_MS, heartbeat_timeout_ms: TIMEOUT_MS, ..HelloAck::default() };
        let now = clock.elapsed();
        Self {
            jobs: Jobs::new(settings.slots.into()),
            settings,
            clock,
            random,
            lines,
            watchdog: Arc::new(watchdog),
            processes: HashMap::new(),
            line: None,
            welcome: None,
            terms,
            heard_at: now,
            known_at: now,
            opened_at: now,
            beat_at: now,
            fenced: false,
            leaving: None,
            // Replaced by `run`, which holds the other end.
            tell: mpsc::unbounded_channel().0,
        }
    }

    /// Runs until it is told to end, and everything has ended.
    pub(super) async fn run(mut self, mut signals: Signals) -> Outcome {
        // Bounded by what is told: a few lifecycle messages a job, and progress by the clock.
        let (tell, mut told) = mpsc::unbounded_channel();
        self.tell = tell;
        let (news, mut heard) = mpsc::channel(NEWS);
        let url = self.settings.url.clone();
        let link = tokio::spawn(link::keep(url, self.clock.clone(), self.random.clone(), news));
        let said = format!("agent {} with {} slots, for {}", self.settings.id, self.settings.slots, self.settings.url);
        self.lines.say(Mark::Begins, "agent.started", None, &said);
        while !self.may_go() {
            let wait = self.next_look().saturating_sub(self.clock.elapsed());
            let clock = self.clock.clone();
            tokio::select! {
                Some((job, told)) = told.recv() => self.on_told(&job, told),
                Some(news) = heard.recv() => self.on_news(news),
                () = clock.sleep(wait) => self.look(),
                () = signals.next() => {
                    if self.leaving.as_ref().is_some_and(|leaving| leaving.stopped) || !self.leave(Ok(())) {
                        self.end_now(&mut told).await;
                        return Err(Failure::failed("ended at once by a second signal; its programs were killed"));
                    }
                }
            }
        }
        if self.line.take().is_some() {
            // What is in it is still sent.
            let clock = self.clock.clone();
            let goodbye = async { while !matches!(heard.recv().await, None | Some(News::Lost { .. })) {} };
            tokio::select! {
                () = goodbye => {}
                () = clock.sleep(FAREWELL) => {}
            }
        }
        link.abort();
        self.watchdog.end();
        self.lines.say(Mark::Good, "agent.ended", None, "ended");
        self.leaving.map_or(Ok(()), |leaving| leaving.code)
    }

    fn may_go(&self) -> bool {
        self.leaving.is_some() && self.jobs.is_empty()
    }

    /// Begins to end; false if it is at that already.
    fn leave(&mut self, code: Result<(), Failure>) -> bool {
        if let Some(leaving) = self.leaving.as_mut() {
            if leaving.code.is_ok() {
                leaving.code = code;
            }
            return false;
        }
        let drain = if code.is_ok() { self.settings.drain } else { Duration::ZERO };
        self.jobs.drain(true);
        self.leaving = Some(Leaving { stop_at: self.clock.elapsed() + drain, stopped: false, code });
        if !self.jobs.is_empty() {
            let said = match drain {
                Duration::ZERO => "ends; its jobs are stopped".to_owned(),
                drain => format!("ends; its jobs may finish for {}", humantime::format_duration(drain)),
            };
            self.lines.say(Mark::Waits, "agent.draining", None, &said);
        }
        self.hello(); // so that nothing new is offered
        self.look();
        true
    }

    /// Kills what runs, and waits until it is gone.
    async fn end_now(&mut self, told: &mut mpsc::UnboundedReceiver<(String, Told)>) {
        self.processes.values().for_each(|running| running.process.order(Order::Kill));
        let clock = self.clock.clone();
        let gone = async {
            while let Some((job, told)) = told.recv().await {
                self.on_told(&job, told);
                if self.jobs.is_empty() {
                    break;
                }
            }
        };
        tokio::select! {
            () = gone => {}
            () = clock.sleep(FAREWELL) => {}
        }
        self.watchdog.end();
    }

    /// When time has something to say next.
    fn next_look(&self) -> Duration {
        let mut next = self.beat_at;
        let quiet = self.processes.values().filter_map(|running| running.quiet_until);
        let stop = self.leaving.iter().filter(|leaving| !leaving.stopped).map(|leaving| leaving.stop_at);
        quiet.chain(stop).chain(self.fence_at()).for_each(|at| next = next.min(at));
        next
    }

    /// Does what time asks for.
    fn look(&mut self) {
        let now = self.clock.elapsed();
        if now >= self.beat_at {
            self.beat_at = now + Duration::from_millis(self.terms.heartbeat_interval_ms.max(100));
            self.beat(now);
        }
        if self.fence_at().is_some_and(|at| now >= at) {
            self.fence();
        }
        if self.leaving.as_ref().is_some_and(|leaving| !leaving.stopped && now >= leaving.stop_at) {
            if let Some(leaving) = self.leaving.as_mut() {
                leaving.stopped = true;
            }
            self.stop_all(Cause::Shutdown, OWN_GRACE);
        }
        let quiet: Vec<String> = self
            .processes
            .iter_mut()
            .filter(|(_, running)| running.quiet_until.is_some_and(|until| now >= until))
            .map(|(job, running)| {
                running.quiet_until = None;
                job.clone()
            })
            .collect();
        quiet.iter().for_each(|job| self.works(job));
    }

    fn beat(&mut self, now: Duration) {
        let silence = now.saturating_sub(self.heard_at.max(self.opened_at));
        let timeout = match self.welcome {
            Some(_) => Duration::from_millis(self.terms.heartbeat_timeout_ms),
            None => WELCOME_PATIENCE,
        };
        if self.welcome.is_some() {
            self.send(&FromAgent::Heartbeat(Heartbeat { active_jobs: Some(self.jobs.active()) }), None);
        }
        if self.line.is_some() && silence > timeout {
            // A connection on which nothing comes any more, not even answers to pings, is none.
            self.line = None;
            self.welcome = None;
        } else if now.saturating_sub(self.known_at.max(self.opened_at)) * 2 > timeout {
            self.put(Out::Ping(now));
        }
    }

    /// When the orchestrator, which may not have heard of this agent for as long, gives its jobs to others.
    fn fence_at(&self) -> Option<Duration> {
        let lease = Duration::from_millis(self.terms.heartbeat_timeout_ms.saturating_add(self.terms.grace_ms));
        (self.terms.grace_ms > 0 && !self.fenced).then(|| self.known_at + lease)
    }

    fn fence(&mut self) {
        self.fenced = true;
        if !self.jobs.is_empty() {
            let said = "no answer came for as long as the lease holds: its jobs are ended";
            self.lines.say(Mark::Bad, "agent.fenced", None, said);
            self.stop_all(Cause::Fenced, FENCE_GRACE);
        }
    }

    fn stop_all(&mut self, cause: Cause, grace: Duration) {
        for job in self.jobs.names() {
            self.stop(&job, None, grace, cause);
        }
    }

    fn heard(&mut self) {
        self.heard_at = self.clock.elapsed();
    }

    /// The orchestrator has heard what this agent said at that time.
    fn is_known(&mut self, at: Duration) {
        if at > self.known_at {
            self.known_at = at;
            self.fenced = false;
        }
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Open(line) => {
                self.line = Some(line);
                self.welcome = None;
                self.opened_at = self.clock.elapsed();
                self.hello();
            }
            News::Said(received) => {
                self.heard();
                self.on_message(received);
            }
            News::Noise(cause) => {
                self.heard();
                self.complain("malformed", cause, None);
            }
            News::Alive => self.heard(),
            News::Answered(at) => {
                self.heard();
                if self.welcome.is_some() {
                    self.is_known(at);
                }
            }
            News::Lost { cause, wait } => {
                self.line = None;
                self.welcome = None;
                let wait = Duration::from_millis(wait.as_millis() as u64);
                let said = format!("not connected: {cause}; next try in {}", humantime::format_duration(wait));
                self.lines.say(Mark::Waits, "agent.disconnected", None, &said);
            }
            News::Refused(refusal) => {
                (self.line, self.welcome) = (None, None);
                let failure = match refusal {
                    Refusal::Token => Failure::rejected("the orchestrator refuses the token: set AGENT_TOKEN anew"),
                    Refusal::Replaced => Failure::failed(format!(
                        "another agent has connected as `{}`: give each its own --id",
                        self.settings.id
                    )),
                };
                self.leave(Err(failure));
            }
        }
    }

    fn on_message(&mut self, received: Received<ToAgent>) {
        let Received { msg_id, message, .. } = received;
        match message {
            ToAgent::HelloAck(ack) => {
                let said = format!("connected to {}", ack.instance);
                if self.welcome.is_none() {
                    self.lines.say(Mark::Good, "agent.connected", None, &said);
                }
                self.is_known(self.opened_at);
                self.terms = ack.clone();
                self.welcome = Some(ack);
                self.beat_at = self.clock.elapsed() + Duration::from_millis(self.terms.heartbeat_interval_ms.max(100));
                for update in self.jobs.everything() {
                    self.update(update);
                }
            }
            ToAgent::Assign(assign) => self.on_offer(&assign, msg_id),
            ToAgent::Stop(stop) => {
                let grace = Duration::from_millis(stop.grace_ms);
                self.stop_by_order(&stop.job_id, stop.lease, msg_id, |service| {
                    service.stop(&stop.job_id, stop.lease, grace, Cause::Asked)
                });
            }
            ToAgent::Kill(of) => self.stop_by_order(&of.job_id, of.lease, msg_id, |service| {
                let known = service.stop(&of.job_id, of.lease, OWN_GRACE, Cause::Asked);
                if known && let Some(running) = service.processes.get(&of.job_id) {
                    running.process.order(Order::Kill);
                }
                known
            }),
            ToAgent::Mute(of) => self.on_mute(&of.job_id, true),
            ToAgent::Unmute(of) => self.on_mute(&of.job_id, false),
            ToAgent::Drain(drain) => {
                self.jobs.drain(drain.drain || self.leaving.is_some());
                let said = if drain.drain { "drains: nothing new is taken" } else { "takes jobs again" };
                self.lines.say(Mark::Waits, "agent.drain", None, said);
            }
            ToAgent::Error(complaint) => {
                let said = format!("the orchestrator complains: {} ({})", complaint.message, complaint.code);
                self.lines.say(Mark::Bad, "agent.complaint", None, &said);
            }
            ToAgent::Unknown(kind) => {
                self.complain("unknown-type", format!("this agent does not know `{kind}`"), msg_id);
            }
        }
    }

    fn on_offer(&mut self, assign: &Assign, msg_id: Option<String>) {
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
                if let Some(end) = self.jobs.ended(job, false, None, cause) {
                    self.update(end);
                }
            }
        }
    }

    /// Orders its end; false if it is not held under that lease.
    fn stop(&mut self, job: &str, lease: Option<i64>, grace: Duration, cause: Cause) -> bool {
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
    fn stop_by_order(
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

    fn on_mute(&mut self, job: &str, muted: bool) {
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
    fn works(&mut self, job: &str) {
        if let Some(update) = self.jobs.works(job) {
            self.lines.say(Mark::Good, "job.running", Some(job), &format!("{job} runs"));
            self.update(update);
        }
    }

    fn on_told(&mut self, job: &str, told: Told) {
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
                let Some(update) = self.jobs.ended(job, end.is_success(), end.exit_code(), sentence) else { return };
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

    fn hello(&mut self) {
        let active_jobs = self.jobs.active();
        let hello = Hello {
            agent_id: self.settings.id.clone(),
            name: Some(self.settings.name.clone()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            capabilities: self.settings.capabilities.clone(),
            drain: self.leaving.is_some(),
            active_job: active_jobs.first().cloned(),
            active_jobs,
            auth: Credentials { token: self.settings.token.expose_secret().to_owned() },
        };
        self.send(&FromAgent::Hello(Box::new(hello)), None);
    }

    /// Told only to who has welcomed this agent: a new connection is told everything.
    fn update(&mut self, update: JobUpdate) {
        if self.welcome.is_some() {
            self.send(&FromAgent::JobUpdate(Box::new(update)), None);
        }
    }

    fn complain(&mut self, code: &str, message: String, correlation_id: Option<String>) {
        let complaint = Complaint { code: code.to_owned(), message };
        self.send(&FromAgent::Error(complaint), correlation_id);
    }

    fn send(&mut self, message: &FromAgent, correlation_id: Option<String>) {
        let ids = Ids { msg_id: Some(self.random.token()), correlation_id, ts: Some(self.clock.now().into()) };
        self.put(Out::Text(encode(message, &ids)));
    }

    fn put(&mut self, out: Out) {
        // Full, it takes nothing any more: the next connection is told everything.
        if self.line.as_ref().is_some_and(|line| line.try_send(out).is_err()) {
            (self.line, self.welcome) = (None, None);
        }
    }
}
