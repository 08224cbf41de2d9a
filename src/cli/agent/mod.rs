//! `agent`: runs stream jobs on this machine, as the orchestrator assigns them: a command for each, in a process group
//! of its own, several at once.
//!
//! ```text
//!  orchestrator ⇄ link ⇄ service ─▶ jobs (what is held, under which lease; pure)
//!                           │  ▲
//!                    orders ▼  │ progress, mutes, the end
//!                         process (one for each job) ─▶ watchdog (ends what is left when the agent is gone)
//! ```
//!
//! | room | holds |
//! |---|---|
//! | `settings`, `template` | flags and file; the command with its placeholders |
//! | `service` | the one task that decides: messages and ends come in, orders and messages go out |
//! | `jobs` | which jobs are held and what is to be told of them |
//! | `link` | the WebSocket, opened again and again |
//! | `process`, `progress`, `tail` | one program: signals, keys, what it says |
//! | `lines` | what people see |

mod jobs;
mod lines;
mod link;
mod process;
mod progress;
mod service;
mod settings;
mod tail;
mod template;

use clap::Args;

use super::failure::{Failure, Outcome};
use super::output::Output;
use super::serve::Signals;
use super::watchdog::Watchdog;
use crate::clock::SystemClock;
use crate::random::Random;
use lines::Lines;

/// Runs jobs of the orchestrator on this machine. SIGTERM ends it: jobs may finish for as long as --drain, then they
/// are stopped; a second signal kills them at once.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  showrunner agent --url ws://127.0.0.1:8000/agent --slots 2 \\\n    --command 'ffmpeg -nostats -progress pipe:1 -i {streamUrl} -c copy /srv/recordings/{jobId}.mkv'\n\n  restream, and let `mute` work on the filter named volume@mute:\n  showrunner agent --file /etc/showrunner/agent.yaml --command 'ffmpeg -re -i {streamUrl} \\\n    -af volume@mute=1 -c:v copy -c:a aac -f flv {target}'\n\n{name} is a key of the job's config, {video.rate} a field in it, {name=x} has a default; {{ is a brace. There is no\nshell: a value is always one argument or a part of one.\n\nExit codes: 0 ended as it was told, 1 failed, killed by a second signal or replaced by another agent of the same id,\n2 wrong usage, 3 the token was refused."
)]
pub(super) struct Agent {
    #[command(flatten)]
    flags: settings::Flags,
}

impl Agent {
    pub(super) async fn run(self, out: &Output) -> Outcome {
        let settings = self.flags.settle()?;
        let signals = Signals::listen()?;
        let watchdog = Watchdog::start()
            .map_err(|cause| Failure::failed(format!("the watchdog of the agent's programs did not start: {cause}")))?;
        let (clock, random) = (SystemClock::shared(), Random::from_machine());
        let service = service::Service::new(settings, watchdog, clock, random, Lines::new(out.wants_json()));
        service.run(signals).await
    }
}
