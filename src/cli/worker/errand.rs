//! One run from the moment that it is ours to the callback: the command beside signs of life, both ways.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::command::{self, End, Progress, Start};
use super::manifest::Manifest;
use super::service::{Beat, Said, Service};
use crate::backoff;
use crate::cli::watchdog::Watchdog;
use crate::clock::SharedClock;
use crate::config;
use crate::planes::queue::Assignment;
use crate::random::Random;
use crate::storage::{Stores, is_reference};

/// Between two messages of progress: a command may print them as fast as it likes.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// The waits between tries of a callback; the lease decides how often.
const CALLBACK_BASE: Duration = Duration::from_millis(200);
const CALLBACK_CAP: Duration = Duration::from_secs(5);

/// What every run needs.
pub(super) struct Errands {
    pub(super) service: Service,
    pub(super) manifest: Manifest,
    /// Ends their commands when this worker is gone.
    pub(super) watchdog: Watchdog,
    pub(super) clock: SharedClock,
    pub(super) random: Random,
    /// Ends what runs.
    pub(super) cut: CancellationToken,
}

/// How a run ended here.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) run: i64,
    pub(super) task: String,
    pub(super) attempt: i64,
    /// `completed`, `failed: …`, `cancelled`, `lost: …`
    pub(super) outcome: String,
    pub(super) took: Duration,
}

/// Why a command was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Somebody gives the run up.
    Cancelled,
    /// The lease is somebody else's.
    Gone,
    /// This worker stops.
    Cut,
}

impl Errands {
    /// Carries a run out and says how it ended.
    pub(super) async fn carry_out(self: Arc<Self>, run: Assignment) -> Report {
        let began = self.clock.elapsed();
        let outcome = self.clone().outcome(&run).await;
        let took = self.clock.elapsed().saturating_sub(began);
        Report { run: run.run_id, task: run.task_id, attempt: run.attempt, outcome, took }
    }

    async fn outcome(self: Arc<Self>, run: &Assignment) -> String {
        let (sender, progress) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let (this, given, stopped) = (self.clone(), run.clone(), stop.clone());
        let working = tokio::spawn(async move { this.work(given, sender, stopped).await });
        let (ended, why) = self.keep_alive(run, working, progress, stop).await;
        let answer = match (ended, why) {
            (_, Some(Why::Gone)) => return "lost: the lease is gone".to_owned(),
            (_, Some(Why::Cancelled)) => json!({ "status": "cancelled" }),
            (_, Some(Why::Cut)) => {
                json!({ "status": "failed", "error": "the worker stopped before the task had ended" })
            }
            (Ok(result), None) => json!({ "status": "completed", "result": result }),
            (Err(error), None) => json!({ "status": "failed", "error": error }),
        };
        self.answer(run, answer).await
    }

    /// Gets the input, runs the command, and reads what it printed.
    async fn work(
        &self,
        run: Assignment,
        progress: mpsc::Sender<Progress>,
        stop: CancellationToken,
    ) -> Result<Value, String> {
        let task = self.manifest.tasks.get(&run.task_id).ok_or("this worker's manifest does not name the task")?;
        let input = tokio::select! {
            input = self.input(&run) => input?,
            () = stop.cancelled() => return Err("stopped".to_owned()),
        };
        let start = Start {
            task,
            folder: &self.manifest.folder,
            env: vec![
                ("SHOWRUNNER_RUN_ID", run.run_id.to_string()),
                ("SHOWRUNNER_TASK_ID", run.task_id.clone()),
                ("SHOWRUNNER_ATTEMPT", run.attempt.to_string()),
            ],
            input: input.to_string().into_bytes(),
            timeout: run.timeout_ms.and_then(|limit| u64::try_from(limit).ok()).map(Duration::from_millis),
        };
        match command::run(start, &self.watchdog, self.clock.clone(), progress, stop).await {
            End::Exited { status, output, .. } if status.success() => Ok(result(&output)),
            End::Exited { status, errors, .. } if errors.is_empty() => Err(status.to_string()),
            End::Exited { status, errors, .. } => Err(format!("{status}: {errors}")),
            End::NotStarted(cause) => Err(format!("`{}` cannot be started: {cause}", task.command[0])),
            End::TooLong => Err("it printed more than 1 MiB".to_owned()),
            End::TimedOut => Err(format!("it took longer than {} ms", run.timeout_ms.unwrap_or_default())),
            End::Stopped => Err("stopped".to_owned()),
        }
    }

    /// The input itself, also where it lies in storage: the run's token holds what lets us in.
    async fn input(&self, run: &Assignment) -> Result<Value, String> {
        if !is_reference(&run.input) {
            return Ok(run.input.clone());
        }
        let now = self.clock.now().into();
        let opened = self.service.key().open(&run.storage, now).ok_or("the storage token cannot be read")?;
        let wanted = run.input["$storage"]["backend"].as_str().unwrap_or_default();
        let mut backend = opened.backends[wanted].clone();
        let Some(fields) = backend.as_object_mut() else {
            return Err(format!("the storage token does not name the back end `{wanted}`"));
        };
        fields.insert("id".to_owned(), json!(wanted));
        let storage = config::Storage { backends: json!([backend]).to_string().into(), ..config::Storage::default() };
        let stores = Stores::open(&storage)?;
        stores.resolve(run.input.clone()).await.map_err(|error| format!("the input cannot be read: {error}"))
    }

    /// Gives signs of life until the work has ended, and ends it where the answers say so.
    async fn keep_alive(
        &self,
        run: &Assignment,
        mut working: tokio::task::JoinHandle<Result<Value, String>>,
        mut progress: mpsc::Receiver<Progress>,
        stop: CancellationToken,
    ) -> (Result<Value, String>, Option<Why>) {
        let every = beat_every(run);
        let (mut why, mut latest): (Option<Why>, Option<Progress>) = (None, None);
        let mut next = self.clock.elapsed() + every;
        let mut last = self.clock.elapsed();
        loop {
            tokio::select! {
                ended = &mut working => {
                    return (ended.unwrap_or_else(|cause| Err(format!("the worker failed: {cause}"))), why);
                }
                Some(told) = progress.recv() => {
                    latest = Some(told);
                    next = next.min(last + PROGRESS_EVERY.min(every));
                }
                () = self.cut.cancelled(), if why.is_none() => {
                    why = Some(Why::Cut);
                    stop.cancel();
                }
                () = self.clock.sleep(next.saturating_sub(self.clock.elapsed())) => {
                    last = self.clock.elapsed();
                    next = last + every;
                    match self.service.beat(run, latest.take()).await {
                        // Whoever does not answer may be back soon; the lease decides, not we.
                        Beat::Held | Beat::Away => {}
                        Beat::Cancel => {
                            why.get_or_insert(Why::Cancelled);
                            stop.cancel();
                        }
                        Beat::Gone => {
                            why = Some(Why::Gone);
                            stop.cancel();
                        }
                    }
                }
            }
        }
    }

    /// Calls back until somebody has answered. A repeated callback changes nothing.
    async fn answer(&self, run: &Assignment, mut answer: Value) -> String {
        answer["lease"] = json!(run.lease);
        let mut tries = 0;
        loop {
            let detail = match self.service.call_back(run, &answer).await {
                Said::Yes(_) => return shown(&answer),
                // What was said is not taken; that the run failed is.
                Said::No { status: StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY, detail }
                    if answer["status"] == "completed" =>
                {
                    let error = format!("the result is not taken: {detail}");
                    answer = json!({ "lease": run.lease, "status": "failed", "error": error, "retry": false });
                    continue;
                }
                // An answer that was lost, and the callback that came again.
                Said::No { status: StatusCode::CONFLICT, .. } if tries > 0 => return shown(&answer),
                Said::No { detail, .. } => return format!("lost: {detail}"),
                Said::Away(detail) => detail,
            };
            tries += 1;
            if self.cut.is_cancelled() && tries > 3 {
                return format!("lost: nobody hears how it ended: {detail}");
            }
            self.clock.sleep(backoff::exponential(CALLBACK_BASE, CALLBACK_CAP, tries, &self.random)).await;
            // The lease goes on meanwhile; where it is gone, the next callback is told why.
            let _ = self.service.beat(run, None).await;
        }
    }
}

/// Four signs of life within the time after which the service takes the run for lost.
fn beat_every(run: &Assignment) -> Duration {
    Duration::from_millis(u64::try_from(run.heartbeat_interval_ms).unwrap_or(1_000).max(10)) / 2
}

/// JSON as it is, anything else as a text.
fn result(output: &[u8]) -> Value {
    let text = String::from_utf8_lossy(output);
    match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
    }
}

fn shown(answer: &Value) -> String {
    let status = answer["status"].as_str().unwrap_or_default();
    answer["error"].as_str().map_or_else(|| status.to_owned(), |error| format!("{status}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_prints_is_its_result() {
        assert_eq!(result(b" {\"a\": 1}\n"), json!({ "a": 1 }));
        assert_eq!(result(b"done\n"), json!("done"));
        assert_eq!(result(b"\n"), Value::Null);
        assert_eq!(result(b"\xff"), json!("\u{fffd}"));
    }
}
