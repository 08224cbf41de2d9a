//! `demo`: a simulated platform on a fast clock, run by the loop, beside its twin that is left alone.
//!
//! Both worlds live through the same [`scenario`] from the same seed, each on a database of its own; only the loop
//! makes the difference. The [`screen`] redraws both in place; the [`summary`] compares them at the end.

mod scenario;
mod screen;
mod summary;
mod world;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use clap::Args;

use self::scenario::Scenario;
use self::screen::{Plain, Screen, View};
use self::world::{Decision, Sample, World};
use super::failure::{Failure, Outcome};
use super::output::Output;
use super::serve::Signals;
use crate::clock::{AcceleratedClock, SharedClock, SystemClock};
use crate::random::Random;

/// Steps of a whole scenario; with less time to run there are fewer, so that each can be carried out.
const STEPS: u32 = 240;
/// A step takes at least this long to watch.
const SHORTEST_STEP: Duration = Duration::from_millis(100);
/// How long the scenario takes to come round when the demo has no end.
const ROUND: Duration = Duration::from_secs(120);
/// Between two drawings.
const REDRAW: Duration = Duration::from_millis(100);
/// Decisions that are kept to be shown.
const SHOWN_DECISIONS: usize = 50;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  showrunner demo\n  showrunner demo --for 2m\n  showrunner demo --for 30s --plain --seed 7\n\nLeave with q or Ctrl-C; the summary comes either way. Nothing is kept."
)]
pub(super) struct Demo {
    /// How long to run, e.g. 2m; without it, until q or Ctrl-C.
    #[arg(long = "for", value_name = "TIME", value_parser = running_time)]
    running_time: Option<Duration>,
    /// What happens follows from this number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many times as fast as life: 120 makes two minutes of watching four hours of platform.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=1200))]
    speed: u32,
    /// Plain lines instead of the redrawn screen; also where the output is not a terminal.
    #[arg(long)]
    plain: bool,
    /// The port of the status page; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

fn running_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|cause| cause.to_string())?;
    if (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&time) {
        Ok(time)
    } else {
        Err("1s to 24h is taken".to_owned())
    }
}

/// How the run is paced, in the simulated time.
#[derive(Debug, Clone, Copy)]
struct Pace {
    begins_at: DateTime<Utc>,
    /// Between two steps of the scenario.
    step: Duration,
    /// Steps until the scenario comes round, or ends.
    steps: u32,
    /// How long the whole run takes.
    whole: Option<Duration>,
}

impl Demo {
    fn pace(&self) -> Pace {
        let watched = self.running_time.unwrap_or(ROUND);
        let steps = (watched.as_millis() / SHORTEST_STEP.as_millis()).clamp(1, u128::from(STEPS)) as u32;
        let round = watched * self.speed;
        // The first window, TikTok's at 16:00, opens when a twenty-fourth of the run is over: something is to be seen
        // in the first seconds.
        let opening = NaiveDate::from_ymd_opt(2026, 11, 20).and_then(|day| day.and_hms_opt(16, 0, 0));
        let opening = opening.map(|at| at.and_utc()).unwrap_or_default();
        Pace { begins_at: opening - round / 24, step: round / steps, steps, whole: self.running_time.map(|_| round) }
    }

    pub(super) async fn run(self, out: &mut Output) -> Outcome {
        let drawn = !self.plain && !out.wants_json() && std::io::stdout().is_terminal();
        let folder = Folder::make()?;
        let pace = self.pace();
        let clock = AcceleratedClock::shared(pace.begins_at, self.speed);
        let with_loop = World::start(&folder.0.join("with-loop.db"), &clock, &self, true).await?;
        let without = World::start(&folder.0.join("without-loop.db"), &clock, &self, false).await?;
        let mut show = Show {
            clock,
            pace,
            scenario: Scenario::new(Random::seeded(self.seed), pace.steps),
            with_loop,
            without,
            view: View::default(),
            stage: Stage::open(drawn, out)?,
        };
        let ended = show.play().await;
        let Show { with_loop, without, stage, view, .. } = show;
        drop(stage); // gives the terminal back before anything is printed
        let found = match ended {
            Ok(()) => Ok((with_loop.tally().await?, without.tally().await?)),
            Err(failure) => Err(failure),
        };
        tokio::join!(with_loop.stop(), without.stop());
        let (with_loop, without) = found?;
        summary::show(&view.samples, &with_loop, &without, pace.step, out)
    }
}

/// Everything on the stage.
struct Show<'a> {
    clock: SharedClock,
    pace: Pace,
    scenario: Scenario,
    with_loop: World,
    without: World,
    view: View,
    stage: Stage<'a>,
}

impl Show<'_> {
    /// Plays until the time is over or somebody leaves.
    async fn play(&mut self) -> Outcome {
        let mut signals = Signals::listen()?;
        let watch = SystemClock::shared();
        self.view.url = self.with_loop.url();
        for step in 0_u32.. {
            self.view.progress = self.pace.whole.map(|whole| self.clock.elapsed().as_secs_f64() / whole.as_secs_f64());
            if self.view.progress.is_some_and(|progress| progress >= 1.0) {
                return Ok(());
            }
            self.step().await?;
            self.stage.stepped(&self.view)?;
            let next = self.pace.step * (step + 1);
            while self.clock.elapsed() < next {
                if self.stage.draw(&self.view)? {
                    return Ok(());
                }
                let rest = next.saturating_sub(self.clock.elapsed());
                tokio::select! {
                    () = self.clock.sleep(rest) => {}
                    () = watch.sleep(REDRAW) => {}
                    () = signals.next() => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// The same happens to both worlds; then both are looked at.
    async fn step(&mut self) -> Outcome {
        let happenings = self.scenario.next(self.pace.step);
        let (one, other) =
            tokio::join!(self.with_loop.live_through(&happenings), self.without.live_through(&happenings));
        one.and(other)?;
        let (with_loop, without) = tokio::join!(self.with_loop.look(), self.without.look());
        let (with_loop, without): (Sample, Sample) = (with_loop?, without?);
        let decisions: Vec<Decision> = self.with_loop.decisions().await?;
        self.view.outage = happenings.outage;
        self.view.decisions.extend(decisions);
        let surplus = self.view.decisions.len().saturating_sub(SHOWN_DECISIONS);
        self.view.decisions.drain(..surplus);
        self.view.samples.push((with_loop, without));
        Ok(())
    }
}

/// Where the play is seen.
enum Stage<'a> {
    Screen(Screen),
    Lines(Plain<'a>),
}

impl<'a> Stage<'a> {
    fn open(drawn: bool, out: &'a mut Output) -> Outcome<Self> {
        if drawn { Ok(Self::Screen(Screen::open()?)) } else { Ok(Self::Lines(Plain::new(out))) }
    }

    /// After each step.
    fn stepped(&mut self, view: &View) -> Outcome {
        match self {
            Self::Screen(_) => Ok(()),
            Self::Lines(lines) => lines.stepped(view),
        }
    }

    /// Whether somebody wants to leave.
    fn draw(&mut self, view: &View) -> Outcome<bool> {
        match self {
            Self::Screen(screen) => screen.draw(view),
            Self::Lines(_) => Ok(false),
        }
    }
}

/// A folder of its own for both databases, gone with the demo.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Outcome<Self> {
        let folder = std::env::temp_dir().join(format!("showrunner-demo-{}", Random::from_machine().token()));
        std::fs::create_dir_all(&folder)
            .map_err(|cause| Failure::failed(format!("{} cannot be made: {cause}", folder.display())))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(cause) = std::fs::remove_dir_all(&self.0) {
            eprintln!("showrunner: {} stays behind: {cause}", self.0.display());
        }
    }
}
