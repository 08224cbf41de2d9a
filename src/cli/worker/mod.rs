//! `worker`: a reference worker, which runs commands from a manifest.
//!
//! ```text
//! pull, or the endpoint ──▶ a free place ──▶ errand: command ∥ signs of life ──▶ callback ──▶ report
//! ```
//!
//! | room | holds |
//! |---|---|
//! | `manifest` | what it runs, and the version of its code |
//! | `service` | the service, as a worker talks to it |
//! | `endpoint` | where the service sends runs |
//! | `errand` | one run from its assignment to its callback |
//! | `command` | the process group that carries it out |

mod command;
mod endpoint;
mod errand;
mod manifest;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Common;
use super::failure::{Failure, Outcome};
use super::output::Output;
use super::serve::Signals;
use super::watchdog::Watchdog;
use crate::backoff;
use crate::clock::SystemClock;
use crate::http;
use crate::planes::queue::Assignment;
use crate::random::Random;
use crate::storage::SecretKey;
use errand::{Errands, Report};
use manifest::Manifest;
use service::{Said, Service};

/// The waits between tries of what the service does not answer.
const WAIT_BASE: Duration = Duration::from_millis(250);
const WAIT_CAP: Duration = Duration::from_secs(10);
/// How long commands that are told to end may take, beyond their own grace, until everything is called back.
const LAST_WORDS: Duration = Duration::from_secs(15);

/// The manifest names a service and, for each of its tasks, a command. A command is given the run's input as JSON on
/// its standard input, and SHOWRUNNER_RUN_ID, SHOWRUNNER_TASK_ID and SHOWRUNNER_ATTEMPT in its environment. What it
/// prints is the result: JSON as it is, anything else as a text. A line such as {"progress": 40, "message": "frame 4"}
/// tells its progress. Another exit code than 0 fails the try, with the end of its standard error. SIGTERM: what runs
/// comes to its end, for as long as --drain.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  showrunner worker tasks.yaml                     be called at an endpoint of its own\n  showrunner worker tasks.yaml --pull              ask for work: behind NAT, or without an open port\n  showrunner worker tasks.yaml --listen 10.0.0.7:7000 --endpoint http://worker-7:7000/ --concurrency 8\n\nA manifest:\n  service: thumbnails\n  version: \"1.4\"\n  tasks:\n    make-thumbnail:\n      command: [python3, thumbnail.py, --size, \"320\"]\n      heartbeatIntervalMs: 5000\n      timeoutMs: 60000\n      maxAttempts: 5\n\nThe key that it shares with the service is in PIPEWEAVE_SECRET_KEY, or `secret_key` of the configuration."
)]
pub(super) struct Worker {
    /// The manifest, YAML or JSON.
    manifest: PathBuf,
    /// The service.
    #[arg(
        long,
        env = "SHOWRUNNER_URL",
        value_name = "URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8000"
    )]
    url: String,
    /// Ask for work instead of being called.
    #[arg(long, conflicts_with_all = ["listen", "endpoint"])]
    pull: bool,
    /// Where to be called; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The URL by which the service reaches that; default: http and the address itself.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Runs at once, 1 to 100.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    concurrency: u32,
    /// How long running commands may take to end after SIGTERM.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    drain: Duration,
    /// The worker's name among those of its service.
    #[arg(long)]
    name: Option<String>,
}

/// Those who carry runs out, and the places that are left.
struct Crew {
    errands: Arc<Errands>,
    places: Arc<Semaphore>,
    running: TaskTracker,
    reports: mpsc::Sender<Report>,
    /// Nothing more is begun.
    stop: CancellationToken,
}

impl Crew {
    /// A place for one more run, if there is one.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        (!self.stop.is_cancelled()).then_some(place)
    }

    fn begin(&self, run: Assignment, place: OwnedSemaphorePermit, after: impl FnOnce() + Send + 'static) {
        let (errands, reports) = (self.errands.clone(), self.reports.clone());
        self.running.spawn(async move {
            let report = errands.carry_out(run).await;
            after();
            drop(place);
            let _ = reports.send(report).await; // nobody listens any more: the program ends
        });
    }
}

impl Worker {
    pub(super) async fn run(self, common: &Common, out: &mut Output) -> Outcome {
        let mut signals = Signals::listen()?;
        let manifest = Manifest::read(&self.manifest).map_err(Failure::usage)?;
        let key = SecretKey::parse(&common.load()?.secret_key).map_err(Failure::usage)?.ok_or_else(|| {
            Failure::usage("a worker needs the key that it shares with the service: set PIPEWEAVE_SECRET_KEY")
        })?;
        let (clock, random) = (SystemClock::shared(), Random::from_machine());
        let id = manifest.service.clone();
        let service =
            Service::new(&self.url, key, id.clone(), clock.clone(), random.clone()).map_err(Failure::usage)?;
        let name = self.name.clone().unwrap_or_else(|| format!("{}-{}", std::process::id(), &random.token()[..6]));
        let (reports, mut ended) = mpsc::channel(100);
        let cut = CancellationToken::new();
        let watchdog = Watchdog::start()
            .map_err(|cause| Failure::failed(format!("the watchdog of the commands did not start: {cause}")))?;
        let errands = Arc::new(Errands { service, manifest, watchdog, clock: clock.clone(), random, cut: cut.clone() });
        let places = Arc::new(Semaphore::new(self.concurrency as usize));
        let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
        let running = TaskTracker::new();
        let crew = Arc::new(Crew { errands, places, running: running.clone(), reports, stop: stop.clone() });

        // The door is open before the service is told of it.
        let doors = TaskTracker::new();
        let endpoint = match self.pull {
            true => None,
            false => {
                let listener = tokio::net::TcpListener::bind(self.listen)
                    .await
                    .map_err(|cause| Failure::failed(format!("cannot listen on {}: {cause}", self.listen)))?;
                let address = listener.local_addr()?;
                let router = endpoint::router(crew.clone());
                doors.spawn(http::serve(listener, router, http::Bounds::default(), closed.clone(), Duration::ZERO));
                Some(self.endpoint.clone().unwrap_or_else(|| format!("http://{address}/")))
            }
        };
        let registered = tokio::select! {
            registered = register(&crew, endpoint.as_deref()) => registered,
            () = signals.next() => return Ok(()),
        };
        registered?;
        announce(&crew, endpoint.as_deref(), &name, out)?;
        if self.pull {
            let crew = crew.clone();
            doors.spawn(async move { pull(&crew, &name).await });
        }
        drop(crew);
        doors.close();

        let failed = loop {
            tokio::select! {
                Some(report) = ended.recv() => show(&report, out)?,
                () = signals.next() => break None,
                () = doors.wait() => break Some(Failure::failed("no more work is taken; see above")),
            }
        };
        // A door that is still open says that there is no room, until everything has ended.
        stop.cancel();
        running.close();
        let _closed = closed.drop_guard();
        let mut until = clock.elapsed().saturating_add(self.drain);
        loop {
            tokio::select! {
                Some(report) = ended.recv() => {
                    show(&report, out)?;
                    continue;
                }
                () = running.wait() => break,
                () = clock.sleep(until.saturating_sub(clock.elapsed())) => {}
                () = signals.next(), if !cut.is_cancelled() => {}
            }
            if cut.is_cancelled() {
                return Err(Failure::failed("commands still run; the service takes their runs for lost"));
            }
            cut.cancel();
            until = clock.elapsed() + LAST_WORDS;
        }
        while let Ok(report) = ended.try_recv() {
            show(&report, out)?;
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Tells the service what this worker runs, until somebody answers.
async fn register(crew: &Crew, endpoint: Option<&str>) -> Outcome {
    let errands = &crew.errands;
    let body = errands.manifest.registration(endpoint)?;
    let mut tries = 0;
    loop {
        match errands.service.register(&body).await {
            Said::Yes(_) => return Ok(()),
            Said::No { detail, .. } => return Err(Failure::failed(format!("not registered: {detail}"))),
            Said::Away(detail) => {
                if tries == 0 {
                    Failure::failed(format!("the service does not answer ({detail}); this worker goes on asking"))
                        .say();
                }
                tries += 1;
                errands.clock.sleep(backoff::exponential(WAIT_BASE, WAIT_CAP, tries, &errands.random)).await;
            }
        }
    }
}

/// Asks for as many runs as there are places, until the worker stops.
async fn pull(crew: &Crew, name: &str) {
    let errands = &crew.errands;
    let mut tries = 0;
    loop {
        let asked = async {
            // Nobody else takes places, so that as many as there are now are there when the answer comes.
            let first = crew.places.clone().acquire_owned().await.ok()?;
            let limit = 1 + crew.places.available_permits();
            drop(first);
            Some(errands.service.pull(name, limit).await)
        };
        let said = tokio::select! {
            () = crew.stop.cancelled() => return,
            said = asked => said,
        };
        match said {
            Some(Ok(runs)) => {
                tries = 0;
                for run in runs {
                    if let Some(place) = crew.place() {
                        crew.begin(run, place, || {});
                    }
                }
                continue;
            }
            // Somebody restored an older database: it learns anew what we run.
            Some(Err(Said::No { status: reqwest::StatusCode::CONFLICT, .. })) => {
                if let Err(failure) = register(crew, None).await {
                    failure.say();
                    return;
                }
            }
            Some(Err(Said::No { detail, .. } | Said::Away(detail))) if tries == 0 => {
                Failure::failed(format!("no work is handed out ({detail}); this worker goes on asking")).say();
            }
            Some(Err(_)) => {}
            None => return,
        }
        tries += 1;
        let wait = backoff::exponential(WAIT_BASE, WAIT_CAP, tries, &errands.random);
        tokio::select! {
            () = crew.stop.cancelled() => return,
            () = errands.clock.sleep(wait) => {}
        }
    }
}

fn announce(crew: &Crew, endpoint: Option<&str>, name: &str, out: &mut Output) -> Outcome {
    let manifest = &crew.errands.manifest;
    let tasks: Vec<&str> = manifest.tasks.keys().map(String::as_str).collect();
    if out.wants_json() {
        return out.json(&json!({ "service": manifest.service, "worker": name, "tasks": tasks, "endpoint": endpoint }));
    }
    let how = endpoint.map_or_else(|| "asks for work".to_owned(), |endpoint| format!("is called at {endpoint}"));
    out.line(&format!("Worker {name} of `{}` {how}: {}.", manifest.service, tasks.join(", ")))
}

fn show(report: &Report, out: &mut Output) -> Outcome {
    let Report { run, task, attempt, outcome, took } = report;
    if out.wants_json() {
        let took = took.as_millis() as u64;
        return out.json(&json!({ "runId": run, "taskId": task, "attempt": attempt, "outcome": outcome, "ms": took }));
    }
    out.line(&format!("Run {run} ({task}, try {attempt}) {outcome} after {} ms.", took.as_millis()))
}
