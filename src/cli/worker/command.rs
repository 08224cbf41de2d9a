//! A command that carries a run out: its input and output are bounded, and it ends with all that it started.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::manifest::Task;
use crate::cli::watchdog::Watchdog;
use crate::clock::SharedClock;

/// Bytes of standard output: about as many as the service takes in a callback.
const LONGEST_OUTPUT: usize = 1 << 20;
/// Bytes of the end of standard error that are kept for the error.
const KEPT_ERRORS: usize = 4 << 10;
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Once the command is over, whoever else holds its output open may do so for this long.
const AFTERMATH: Duration = Duration::from_millis(500);

/// Percent, and a word about it.
pub(super) type Progress = (f64, Option<String>);

/// How a command ended.
#[derive(Debug)]
pub(super) enum End {
    Exited {
        status: ExitStatus,
        /// What it printed beside its progress.
        output: Vec<u8>,
        /// The end of its standard error.
        errors: String,
    },
    /// It could not be started.
    NotStarted(io::Error),
    /// It printed more than may be.
    TooLong,
    TimedOut,
    /// It was told to end.
    Stopped,
}

/// What a command is started with.
pub(super) struct Start<'a> {
    pub(super) task: &'a Task,
    pub(super) folder: &'a Path,
    /// Beside the worker's own environment.
    pub(super) env: Vec<(&'static str, String)>,
    /// Its standard input.
    pub(super) input: Vec<u8>,
    pub(super) timeout: Option<Duration>,
}

/// Runs a command to its end. What it says of its progress goes to `progress`; `stop` has it ended.
pub(super) async fn run(
    start: Start<'_>,
    watchdog: &Watchdog,
    clock: SharedClock,
    progress: mpsc::Sender<Progress>,
    stop: CancellationToken,
) -> End {
    let child = match spawn(&start) {
        Ok(child) => child,
        Err(cause) => return End::NotStarted(cause),
    };
    let Some(group) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) else {
        return End::NotStarted(io::Error::other("it has no number"));
    };
    if let Err(cause) = watchdog.begins(group) {
        signal(group, Signal::KILL);
        return End::NotStarted(io::Error::other(format!("the watchdog is gone ({cause}); restart the worker")));
    }
    let end = attend(start, child, group, clock, progress, stop).await;
    watchdog.has_ended(group);
    end
}

/// Waits for its end, or brings it about.
async fn attend(
    start: Start<'_>,
    mut child: Child,
    group: Pid,
    clock: SharedClock,
    progress: mpsc::Sender<Progress>,
    stop: CancellationToken,
) -> End {
    // Whoever left the command's group may hold its pipes for ever; nobody reads or writes them beyond its end.
    let over = CancellationToken::new();
    let _over = over.clone().drop_guard();
    if let Some(mut stdin) = child.stdin.take() {
        let (input, over) = (start.input, over.clone());
        // A command that does not read its input is free to.
        tokio::spawn(async move {
            tokio::select! {
                _ = stdin.write_all(&input) => {}
                () = over.cancelled() => {}
            }
        });
    }
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return End::NotStarted(io::Error::other("no pipes"));
    };
    let mut output = tokio::spawn(read_output(stdout, progress, over.clone()));
    let errors = tokio::spawn(read_errors(stderr, over.clone()));
    let mut deadline = clock.sleep(start.timeout.unwrap_or(Duration::from_secs(365 * 24 * 3600)));
    let mut told = None;
    let cut_short = tokio::select! {
        status = child.wait() => Ok(status),
        read = &mut output => match read {
            Ok(Some(read)) => {
                told = Some(read);
                // It closed its output; how it ends is still to come.
                tokio::select! {
                    status = child.wait() => Ok(status),
                    () = &mut deadline => Err(End::TimedOut),
                    () = stop.cancelled() => Err(End::Stopped),
                }
            }
            _ => Err(End::TooLong),
        },
        () = &mut deadline => Err(End::TimedOut),
        () = stop.cancelled() => Err(End::Stopped),
    };
    let status = match cut_short {
        Ok(Ok(status)) => status,
        Ok(Err(cause)) => return End::NotStarted(cause),
        Err(end) => {
            end_group(&mut child, group, &clock).await;
            return end;
        }
    };
    let last_words = async move {
        if told.is_none() {
            told = output.await.ok().flatten();
        }
        (told, errors.await.unwrap_or_default())
    };
    tokio::pin!(last_words);
    let (told, errors) = tokio::select! {
        words = &mut last_words => words,
        () = clock.sleep(AFTERMATH) => {
            signal(group, Signal::KILL);
            over.cancel();
            last_words.await
        }
    };
    // What it left running goes with it.
    signal(group, Signal::KILL);
    match told {
        Some(output) => End::Exited { status, output, errors },
        None => End::TooLong,
    }
}

fn spawn(start: &Start<'_>) -> io::Result<Child> {
    let [program, arguments @ ..] = start.task.command.as_slice() else {
        return Err(io::Error::other("the manifest names no program"));
    };
    // A path is one below the manifest's folder; a bare name is looked up as the shell would.
    let program = if program.contains('/') { start.folder.join(program) } else { program.into() };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(start.folder).envs(&start.task.env);
    command.envs(start.env.iter().map(|(name, value)| (*name, value)));
    // The key opens more than one run's storage; no command needs it.
    command.env_remove("PIPEWEAVE_SECRET_KEY").env_remove("SHOWRUNNER_SECRET_KEY");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.process_group(0);
    command.spawn()
}

/// All that it prints until it is over, without the lines that tell its progress; none where that is too much.
async fn read_output(
    stdout: impl AsyncRead + Unpin,
    progress: mpsc::Sender<Progress>,
    over: CancellationToken,
) -> Option<Vec<u8>> {
    let mut reader = BufReader::new(stdout);
    let mut output = Vec::new();
    loop {
        let start = output.len();
        let left = (LONGEST_OUTPUT + 1 - start) as u64;
        let mut line = (&mut reader).take(left);
        let is_last = tokio::select! {
            read = line.read_until(b'\n', &mut output) => matches!(read, Ok(0) | Err(_)),
            () = over.cancelled() => true, // what was read of a line is kept
        };
        if output.len() > LONGEST_OUTPUT {
            return None;
        }
        if let Some(told) = progress_of(&output[start..]) {
            output.truncate(start);
            let _ = progress.try_send(told); // the next one says more
        }
        if is_last {
            return Some(output);
        }
    }
}

/// A line such as `{"progress": 40, "message": "frame 4"}`.
fn progress_of(line: &[u8]) -> Option<Progress> {
    if !line.trim_ascii_start().starts_with(b"{\"progress\"") {
        return None;
    }
    let told: Value = serde_json::from_slice(line).ok()?;
    let percent = told["progress"].as_f64()?.clamp(0.0, 100.0);
    let message = told["message"].as_str().map(|text| text.chars().take(1_000).collect::<String>());
    Some((percent, message.filter(|text| !text.trim().is_empty())))
}

/// The end of its standard error, as far as it came until it is over.
async fn read_errors(mut stderr: impl AsyncRead + Unpin, over: CancellationToken) -> String {
    let (mut kept, mut piece) = (Vec::new(), [0_u8; 4096]);
    loop {
        let read = tokio::select! {
            read = stderr.read(&mut piece) => read.unwrap_or_default(),
            () = over.cancelled() => 0,
        };
        if read == 0 {
            break;
        }
        kept.extend_from_slice(&piece[..read]);
        let excess = kept.len().saturating_sub(KEPT_ERRORS);
        kept.drain(..excess);
    }
    // The service refuses a callback with a NUL in it.
    String::from_utf8_lossy(&kept).replace('\0', "").trim().to_owned()
}

/// SIGTERM to the command and all that it started; what is left after a while gets SIGKILL.
async fn end_group(child: &mut Child, group: Pid, clock: &SharedClock) {
    signal(group, Signal::TERM);
    tokio::select! {
        _ = child.wait() => {}
        () = clock.sleep(GRACE) => {}
    }
    signal(group, Signal::KILL);
    let _ = child.wait().await;
}

/// To a whole process group; one that is gone does not mind.
fn signal(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_of_progress_is_progress() {
        assert_eq!(
            progress_of(b"{\"progress\": 40, \"message\": \"frame 4\"}\n"),
            Some((40.0, Some("frame 4".to_owned())))
        );
        assert_eq!(progress_of(b"{\"progress\":400}"), Some((100.0, None)));
        for other in ["{\"progress\": \"x\"}", "{\"frames\": 3, \"progress\": 4}", "progress 4", "{\"progress\": 4", ""]
        {
            assert_eq!(progress_of(other.as_bytes()), None, "{other}");
        }
    }
}
