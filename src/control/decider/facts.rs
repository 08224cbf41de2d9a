//! A snapshot as rules see it: one constant a section.

use rhai::{Dynamic, Scope};
use serde::Serialize;

use crate::control::snapshot::Snapshot;

/// The sections by name, as bits of a [`Sections`].
pub(super) const SECTIONS: [&str; 14] = [
    "at",
    "jobs",
    "publish_logs",
    "scheduler",
    "campaigns",
    "clips",
    "ledger",
    "workers",
    "dead_letters",
    "pipelines",
    "engines",
    "agents",
    "streams",
    "system",
];

/// A set of sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sections(u16);

impl Sections {
    pub(super) fn insert(&mut self, name: &str) {
        if let Some(bit) = SECTIONS.iter().position(|section| *section == name) {
            self.0 |= 1 << bit;
        }
    }
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    fn has(self, bit: usize) -> bool {
        self.0 & (1 << bit) != 0
    }
    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        (0..SECTIONS.len()).filter(move |bit| self.has(*bit)).map(|bit| SECTIONS[bit])
    }
    /// Those that are in both.
    pub(super) fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The sections that could not be read.
pub(super) fn unobserved(snapshot: &Snapshot) -> Sections {
    let missing = [
        false,
        snapshot.jobs.is_none(),
        snapshot.publish_logs.is_none(),
        snapshot.scheduler.is_none(),
        snapshot.campaigns.is_none(),
        snapshot.clips.is_none(),
        snapshot.ledger.is_none(),
        snapshot.workers.is_none(),
        snapshot.dead_letters.is_none(),
        snapshot.pipelines.is_none(),
        snapshot.engines.is_none(),
        snapshot.agents.is_none(),
        snapshot.streams.is_none(),
        false,
    ];
    Sections(missing.iter().enumerate().filter(|(_, missing)| **missing).fold(0, |bits, (bit, _)| bits | (1 << bit)))
}

/// The wanted sections as constants. An unobserved one is left out: no rule that needs it is evaluated.
pub(super) fn scope(snapshot: &Snapshot, wanted: Sections) -> Scope<'static> {
    let mut scope = Scope::new();
    for (bit, name) in SECTIONS.iter().enumerate().filter(|(bit, _)| wanted.has(*bit)) {
        let value = match bit {
            0 => Some(Dynamic::from(snapshot.at.to_string())),
            1 => snapshot.jobs.as_ref().map(section),
            2 => snapshot.publish_logs.as_ref().map(section),
            3 => snapshot.scheduler.as_ref().map(section),
            4 => snapshot.campaigns.as_ref().map(section),
            5 => snapshot.clips.as_ref().map(section),
            6 => snapshot.ledger.as_ref().map(section),
            7 => snapshot.workers.as_ref().map(section),
            8 => snapshot.dead_letters.as_ref().map(section),
            9 => snapshot.pipelines.as_ref().map(section),
            10 => snapshot.engines.as_ref().map(section),
            11 => snapshot.agents.as_ref().map(section),
            12 => snapshot.streams.as_ref().map(section),
            _ => Some(section(&snapshot.system)),
        };
        if let Some(value) = value {
            scope.push_constant_dynamic(*name, value);
        }
    }
    scope
}

fn section(section: &impl Serialize) -> Dynamic {
    // Sections are plain data: texts, numbers, lists and maps, which a Dynamic can always hold. They are not shared
    // values: the engine reads a constant in place, and it panics over shared values inside of lists and maps.
    rhai::serde::to_dynamic(section).unwrap_or_default()
}
