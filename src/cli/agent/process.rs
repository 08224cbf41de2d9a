//! One job's program: started in a process group of its own, listened to, muted through its standard input, and ended
//! by TERM, a grace period, and KILL, always the whole group.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use super::progress::{Read, Reader, has_begun};
use super::tail::{Lines, Tail};
use crate::cli::watchdog::Watchdog;
use crate::clock::SharedClock;
use crate::planes::fleet::protocol::Progress;

/// ffmpeg looks at its keys ten times a second; a program that says nothing for this long did not take the command.
const CONTROL_PATIENCE: Duration = Duration::from_secs(3);
/// Commands that wait behind one another; more come only from somebody who presses without looking.
const CONTROLS: usize = 16;
/// Between two tellings of progress: watchers want to see that it moves, not every frame.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// What is left in the pipes is read for this long after the end; somebody who left the group may hold them open.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes read at once.
const PIECE: usize = 8 * 1024;

/// Secrets of the agent that are not its programs'.
const WITHHELD: [&str; 2] = ["AGENT_TOKEN", "SHOWRUNNER_TOKEN"];

/// What a running program can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// TERM, and KILL after the grace period.
    Stop { grace: Duration },
    /// KILL.
    Kill,
    /// Sound off (`true`) or on.
    Mute(bool),
}

/// What it tells.
#[derive(Debug)]
pub(super) enum Told {
    Progress(Progress),
    /// How a mute or unmute went.
    Muted {
        muted: bool,
        result: Result<(), String>,
    },
    /// It has ended, and its group with it. The last thing that is told.
    Ended(End),
}

/// How it ended.
#[derive(Debug)]
pub(super) struct End {
    status: Option<ExitStatus>,
    last_lines: String,
    /// How far it came.
    pub(super) progress: Option<Progress>,
}

impl End {
    /// Whether the program says that all went well.
    pub(super) fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its exit code; a program that a signal ended has none.
    pub(super) fn exit_code(&self) -> Option<i64> {
        self.status.and_then(|status| status.code()).map(i64::from)
    }

    /// In a sentence, with its last lines.
    pub(super) fn sentence(&self, program: &str) -> String {
        let how = match self.status {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("{program} ended with exit code {code}"),
                (None, Some(signal)) => format!("{program} was ended by signal {signal}"),
                (None, None) => format!("{program} ended"),
            },
            None => format!("{program} ended, and nobody knows how"),
        };
        if self.last_lines.is_empty() { format!("{how}.") } else { format!("{how}:\n{}", self.last_lines) }
    }
}

/// How a program takes commands on its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controls {
    /// ffmpeg's interactive keys: `c`, then a command to the filter that the template names `volume@mute`.
    Ffmpeg,
    /// Not at all.
    None,
}

impl Controls {
    pub(super) fn of(program: &str) -> Self {
        let name = program.rsplit('/').next().unwrap_or_default();
        if name == "ffmpeg" { Self::Ffmpeg } else { Self::None }
    }
}

/// A program that was started; dropping it does not end it.
pub(super) struct Process {
    pub(super) id: u32,
    orders: mpsc::UnboundedSender<Order>,
}

impl Process {
    /// Starts `arguments[0]`. What it tells goes through `tell` until [`Told::Ended`].
    pub(super) fn start(
        arguments: &[String],
        watchdog: &Arc<Watchdog>,
        clock: SharedClock,
        tell: impl Fn(Told) + Send + 'static,
    ) -> Result<Self, String> {
        let program = &arguments[0];
        let mut command = Command::new(program);
        command.args(&arguments[1..]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        WITHHELD.iter().for_each(|name| _ = command.env_remove(name));
        let mut child = command.spawn().map_err(|cause| format!("{program} could not be started: {cause}."))?;
        let id = child.id().ok_or_else(|| format!("{program} was gone at once."))?;
        let group = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or("a process without a number")?;
        let guarded = watchdog.begins(group);
        if let Err(cause) = guarded {
            let _ = kill_process_group(group, Signal::KILL);
            return Err(format!("{program} was not started: the watchdog is gone ({cause}). Restart the agent."));
        }
        let (orders, received) = mpsc::unbounded_channel(); // bounded by who sends: one machine with few states a job
        let (said, lines) = mpsc::channel(256);
        if let Some(out) = child.stdout.take() {
            tokio::spawn(listen(out, said.clone()));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(listen(err, said));
        }
        let keys = child.stdin.take();
        let keeper = Keeper {
            group,
            keys,
            controls: Controls::of(program),
            reader: Reader::default(),
            tail: Tail::default(),
            asked: VecDeque::new(),
            kill_at: None,
            reply_until: None,
            progress: None,
            progress_at: None,
            clock,
            tell,
        };
        let watchdog = watchdog.clone();
        tokio::spawn(async move {
            keeper.keep(child, received, lines).await;
            watchdog.has_ended(group);
        });
        Ok(Self { id, orders })
    }

    /// Tells it. One that has ended hears nothing, and its end has been told.
    pub(super) fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }
}

/// Reads one of its outputs to the end. A reader that is slow slows the program, as a pipe does.
async fn listen(mut output: impl AsyncRead + Unpin, said: mpsc::Sender<String>) {
    let (mut lines, mut piece) = (Lines::default(), vec![0; PIECE]);
    while let Ok(length @ 1..) = output.read(&mut piece).await {
        let mut found = Vec::new();
        lines.take(&piece[..length], |line| found.push(line));
        for line in found {
            if said.send(line).await.is_err() {
                return;
            }
        }
    }
    let mut last = None;
    lines.end(|line| last = Some(line));
    if let Some(line) = last {
        let _ = said.send(line).await;
    }
}

struct Keeper<T> {
    group: Pid,
    keys: Option<ChildStdin>,
    controls: Controls,
    reader: Reader,
    tail: Tail,
    /// Mutes that were asked for; the first has been sent and waits for its reply.
    asked: VecDeque<bool>,
    kill_at: Option<Duration>,
    reply_until: Option<Duration>,
    /// The last that it said.
    progress: Option<Progress>,
    /// When progress was told last.
    progress_at: Option<Duration>,
    clock: SharedClock,
    tell: T,
}

impl<T: Fn(Told)> Keeper<T> {
    async fn keep(
        mut self,
        mut child: Child,
        mut orders: mpsc::UnboundedReceiver<Order>,
        mut lines: mpsc::Receiver<String>,
    ) {
        let mut listening = true;
        let status = loop {
            tokio::select! {
                ended = child.wait() => break ended.ok(),
                line = lines.recv(), if listening => match line {
                    Some(line) => self.heard(line).await,
                    None => listening = false,
                },
                Some(order) = orders.recv() => self.obey(order).await,
                () = until(&self.clock, self.kill_at) => self.kill(),
                () = until(&self.clock, self.reply_until) => {
                    let muted = self.asked.front().copied().unwrap_or_default();
                    self.replied(muted, Err("the program did not take the command".to_owned())).await;
                }
            }
        };
        // Whatever it started goes with it.
        let _ = kill_process_group(self.group, Signal::KILL);
        let clock = self.clock.clone();
        let last_words = async {
            while let Some(line) = lines.recv().await {
                self.keep_words(line);
            }
        };
        tokio::select! {
            () = last_words => {}
            () = clock.sleep(LAST_WORDS) => {}
        }
        while let Some(muted) = self.asked.pop_front() {
            (self.tell)(Told::Muted { muted, result: Err("the program ended first".to_owned()) });
        }
        (self.tell)(Told::Ended(End { status, last_lines: self.tail.text(), progress: self.progress }));
    }

    async fn heard(&mut self, line: String) {
        if !self.asked.is_empty()
            && let Some(reply) = line.strip_prefix("Command reply for stream ")
        {
            // One line a filter graph; the graph without the filter says ENOSYS.
            let muted = self.asked[0];
            if reply.contains("ret:0 ") {
                self.replied(muted, Ok(())).await;
            }
            return;
        }
        self.keep_words(line);
    }

    fn keep_words(&mut self, line: String) {
        match self.reader.line(&line) {
            Read::Whole(progress) => {
                let now = self.clock.elapsed();
                if !has_begun(&progress) {
                    return;
                }
                self.progress = Some(progress.clone());
                if self.progress_at.is_none_or(|last| now >= last + PROGRESS_EVERY) {
                    self.progress_at = Some(now);
                    (self.tell)(Told::Progress(progress));
                }
            }
            Read::Part => {}
            Read::Words => self.tail.push(line),
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Stop { grace } => {
                // The first stop sets the time; a later one may only bring it nearer.
                let at = self.clock.elapsed() + grace;
                if self.kill_at.is_none() {
                    let _ = kill_process_group(self.group, Signal::TERM);
                }
                self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
            }
            Order::Kill => self.kill(),
            Order::Mute(muted) if self.controls == Controls::None => {
                let result = Err("this agent's program takes no commands while it runs".to_owned());
                (self.tell)(Told::Muted { muted, result });
            }
            Order::Mute(muted) if self.asked.len() >= CONTROLS => {
                (self.tell)(Told::Muted { muted, result: Err("too many commands at once".to_owned()) });
            }
            Order::Mute(muted) => {
                self.asked.push_back(muted);
                if self.asked.len() == 1 {
                    self.send().await;
                }
            }
        }
    }

    fn kill(&mut self) {
        self.kill_at = None;
        let _ = kill_process_group(self.group, Signal::KILL);
    }

    /// Presses the keys for the first mute that is asked for. It waits only for a program that has left its pipe full
    /// of them.
    async fn send(&mut self) {
        let Some(muted) = self.asked.front().copied() else { return };
        let keys = format!("cvolume@mute -1 volume {}\n", u8::from(!muted));
        let clock = self.clock.clone();
        let sent = match self.keys.as_mut() {
            Some(pipe) => tokio::select! {
                written = pipe.write_all(keys.as_bytes()) => written.is_ok(),
                () = clock.sleep(CONTROL_PATIENCE) => false,
            },
            None => false,
        };
        let patience = if sent { CONTROL_PATIENCE } else { Duration::ZERO };
        self.reply_until = Some(self.clock.elapsed() + patience);
    }

    async fn replied(&mut self, muted: bool, result: Result<(), String>) {
        self.asked.pop_front();
        self.reply_until = None;
        (self.tell)(Told::Muted { muted, result });
        self.send().await;
    }
}

async fn until(clock: &SharedClock, at: Option<Duration>) {
    match at {
        Some(at) => clock.sleep(at.saturating_sub(clock.elapsed())).await,
        None => std::future::pending().await,
    }
}
