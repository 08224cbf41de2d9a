//! What happens on the simulated platform, from a seed alone: the same for both worlds, whatever they make of it.

use std::time::Duration;

use crate::random::Random;

/// The platforms, as configured by default.
const PLATFORMS: [&str; 3] = ["tiktok", "youtube", "instagram"];

/// One campaign, from the beginning: name, budget in cents, priority.
pub(super) const CAMPAIGNS: [(&str, i64, i64); 3] =
    [("Winter launch", 250_000, 8), ("Creator week", 60_000, 4), ("Evergreen", 8_000, 0)];

/// What happens in one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Happenings {
    /// Whether this is the first step, in which the campaigns begin.
    pub(super) first: bool,
    pub(super) clips: Vec<NewClip>,
    /// Jobs that other programs enqueue.
    pub(super) jobs: u64,
    /// Jobs that those programs work off.
    pub(super) worked_off: u64,
    /// Whether the platforms are down.
    pub(super) outage: bool,
}

/// A clip that comes out of editing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NewClip {
    pub(super) number: u64,
    pub(super) title: String,
    pub(super) score: f64,
    /// Which of [`CAMPAIGNS`] it belongs to.
    pub(super) campaign: Option<usize>,
    /// What its makers plan by themselves; most clips wait for somebody to think of them.
    pub(super) plan: Option<Plan>,
}

/// A publication that somebody plans by hand.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) platform: &'static str,
    /// From now.
    pub(super) after: Duration,
    /// It was tried before the demo began, and failed.
    pub(super) failed: bool,
}

/// The seeded writer of happenings.
pub(super) struct Scenario {
    random: Random,
    steps: u32,
    step: u32,
    clips: u64,
}

impl Scenario {
    /// A scenario that comes round after `steps`.
    pub(super) fn new(random: Random, steps: u32) -> Self {
        Self { random, steps: steps.max(1), step: 0, clips: 0 }
    }

    /// The next step, which takes `length` of simulated time.
    pub(super) fn next(&mut self, length: Duration) -> Happenings {
        let first = self.step == 0;
        let at = f64::from(self.step % self.steps) / f64::from(self.steps);
        self.step += 1;
        let count = if first { 14 } else { u64::from(self.random.fraction() < 0.35) };
        let clips = (0..count).map(|_| self.clip(length, first)).collect();
        Happenings {
            first,
            clips,
            jobs: self.arriving(first, at),
            worked_off: self.random.between(2, 5),
            outage: (0.45..0.58).contains(&at),
        }
    }

    /// Two bursts fill the queue faster than it can be worked off.
    fn arriving(&self, first: bool, at: f64) -> u64 {
        if first {
            return 15;
        }
        let quiet = self.random.between(1, 3);
        if (0.10..0.18).contains(&at) || (0.66..0.72).contains(&at) { 12 + quiet } else { quiet }
    }

    fn clip(&mut self, length: Duration, first: bool) -> NewClip {
        self.clips += 1;
        let (quality, within) = (self.random.fraction(), self.random.fraction());
        let score = match quality {
            high if high < 0.30 => 82.0 + 16.0 * within,
            middle if middle < 0.75 => 45.0 + 34.0 * within,
            _ => 12.0 + 26.0 * within,
        };
        let campaign = self.random.between(0, 4) as usize;
        let planned = self.random.fraction();
        let failed = first && planned < 0.2;
        let plan = Plan {
            platform: PLATFORMS[self.random.between(0, 2) as usize],
            after: length * self.random.between(2, 40) as u32,
            failed,
        };
        NewClip {
            number: self.clips,
            title: format!("{} {}", SUBJECTS[self.random.between(0, SUBJECTS.len() as u64 - 1) as usize], self.clips),
            score: (score * 10.0).round() / 10.0,
            campaign: (campaign < CAMPAIGNS.len()).then_some(campaign),
            plan: (planned < 0.6).then_some(plan),
        }
    }
}

const SUBJECTS: [&str; 8] =
    ["Backstage", "First take", "City lights", "Rehearsal", "Fan question", "Outtakes", "Night drive", "Encore"];

#[cfg(test)]
mod tests {
    use super::*;

    fn play(seed: u64) -> Vec<Happenings> {
        let mut scenario = Scenario::new(Random::seeded(seed), 100);
        (0..100).map(|_| scenario.next(Duration::from_secs(60))).collect()
    }

    #[test]
    fn a_seed_gives_the_same_day_again_and_another_one_another() {
        assert_eq!(play(3), play(3));
        assert_ne!(play(3), play(4));
    }

    #[test]
    fn a_day_has_clips_of_every_kind_bursts_and_an_outage_in_the_middle() {
        let day = play(1);
        let scores: Vec<f64> = day.iter().flat_map(|step| &step.clips).map(|clip| clip.score).collect();
        assert!(scores.iter().any(|score| *score > 80.0) && scores.iter().any(|score| *score < 40.0));
        assert!(day.iter().any(|step| step.jobs > 2 * step.worked_off), "a burst");
        assert!(day[50].outage && !day[0].outage && !day[99].outage);
        assert!(day[0].first && !day[1].first);
    }
}
