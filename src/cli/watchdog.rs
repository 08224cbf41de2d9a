//! What ends the programs of an agent or worker when that itself is gone, however it went.
//!
//! It is a process of its own, in a group of its own, that does nothing but read a pipe from its master: a line for each
//! group of processes that begins and each that has ended. The pipe closes when the master is gone, killed or not; what
//! has not ended by then gets TERM, a moment, and KILL. Groups rather than the kernel's parent-death signal, because
//! that reaches only the child itself and not what it started.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::clock::{SharedClock, SystemClock};

/// The hidden command by which it is started.
pub(super) const COMMAND: &str = "watchdog";

/// Between TERM and KILL: a recording is closed in well under this.
const GRACE: Duration = Duration::from_secs(5);
/// Between looks whether a group is still there; nothing tells of the end of somebody else's child.
const LOOK: Duration = Duration::from_millis(50);

/// The master's end of the pipe.
pub(super) struct Watchdog(Mutex<(Child, Option<ChildStdin>)>);

impl Watchdog {
    pub(super) fn start() -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(COMMAND).process_group(0).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn()?;
        let pipe = child.stdin.take();
        Ok(Self(Mutex::new((child, pipe))))
    }

    /// A group begins. An error means that nobody would end it.
    pub(super) fn begins(&self, group: Pid) -> std::io::Result<()> {
        self.tell('+', group)
    }

    /// A group has ended.
    pub(super) fn has_ended(&self, group: Pid) {
        // A watchdog that is gone guards nothing any more; the next `begins` says so.
        let _ = self.tell('-', group);
    }

    fn tell(&self, mark: char, group: Pid) -> std::io::Result<()> {
        let mut lead = self.lead();
        let pipe = lead.1.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        pipe.write_all(format!("{mark}{}\n", group.as_raw_nonzero()).as_bytes())
    }

    /// Lets it go home.
    pub(super) fn end(&self) {
        let mut lead = self.lead();
        drop(lead.1.take());
        let _ = lead.0.wait();
    }

    fn lead(&self) -> MutexGuard<'_, (Child, Option<ChildStdin>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The other end: returns when the master is gone and none of its groups is left.
pub(super) async fn watch() {
    let mut groups = BTreeSet::new();
    let lines = std::io::stdin().lock().lines().map_while(Result::ok);
    for line in lines {
        note(&mut groups, &line);
    }
    end(groups, SystemClock::shared()).await;
}

fn note(groups: &mut BTreeSet<i32>, line: &str) {
    if let Some(group) = line.strip_prefix('+').and_then(|number| number.parse().ok()) {
        groups.insert(group);
    } else if let Some(group) = line.strip_prefix('-').and_then(|number| number.parse().ok()) {
        groups.remove(&group);
    }
}

async fn end(groups: BTreeSet<i32>, clock: SharedClock) {
    // 1 would be everybody.
    let mut left: Vec<Pid> = groups.into_iter().filter(|group| *group > 1).filter_map(Pid::from_raw).collect();
    for group in &left {
        let _ = kill_process_group(*group, Signal::TERM);
    }
    let until = clock.elapsed() + GRACE;
    while !left.is_empty() && clock.elapsed() < until {
        clock.sleep(LOOK).await;
        left.retain(|group| test_kill_process_group(*group).is_ok());
    }
    for group in left {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_and_has_not_ended_is_left() {
        let mut groups = BTreeSet::new();
        ["+10", "+11", "-10", "nonsense", "-99", "+", "+12"].iter().for_each(|line| note(&mut groups, line));
        assert_eq!(groups, BTreeSet::from([11, 12]));
    }
}
