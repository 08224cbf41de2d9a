//! The one task of an agent that decides. Everything comes to it in a row: what the orchestrator says, what programs
//! tell, time, signals. So nothing here is ever done twice at once. Here are its loop, its connection and its terms;
//! `work` is what it does with jobs and their programs.

mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::sync::mpsc;

use crate::cli::agent::jobs::{Cause, Jobs};
use crate::cli::agent::lines::{Lines, Mark};
use crate::cli::agent::link::{self, News, Out, Refusal};
use crate::cli::agent::process::{Order, Process, Told};
use crate::cli::agent::settings::Settings;
use crate::cli::failure::{Failure, Outcome, without_secrets};
use crate::cli::serve::Signals;
use crate::cli::watchdog::Watchdog;
use crate::clock::SharedClock;
use crate::planes::fleet::protocol::{
    Complaint, Credentials, FromAgent, Heartbeat, Hello, HelloAck, Ids, JobUpdate, Received, ToAgent, encode,
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
        let said = format!(
            "agent {} with {} slots, for {}",
            self.settings.id,
            self.settings.slots,
            without_secrets(&self.settings.url)
        );
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
