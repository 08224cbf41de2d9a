//! A snapshot as rules see it: the sections, and of them what rules mention.

use std::ops::Range;

use rhai::{Array, Dynamic, Map, Scope};
use serde::Serialize;

use super::convert::fill;
use super::mentions::{Mentions, Place};
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

/// What rules mention of one snapshot, side by side without a tree of allocations.
#[derive(Debug)]
pub(super) struct Facts<'m> {
    pub(super) mentions: &'m Mentions,
    /// The sections, then what is in them.
    pub(super) values: Vec<Fact>,
    /// All texts, one after the other.
    pub(super) texts: String,
}

/// One mentioned value.
#[derive(Debug, Clone)]
pub(super) enum Fact {
    /// Not in the snapshot.
    Missing,
    /// There, and `()`.
    Unknown,
    Truth(bool),
    Int(i64),
    Float(f64),
    /// Where it stands in the texts.
    Text(Range<usize>),
    /// Its mentioned fields stand from `first` on, in the order of their node.
    Map {
        first: usize,
    },
    /// Its items stand from `first` on.
    List {
        first: usize,
        count: usize,
    },
    /// Used as a whole: as the engine has it.
    Whole(Dynamic),
}

impl<'m> Facts<'m> {
    /// No section.
    pub(super) fn none(mentions: &'m Mentions) -> Self {
        Self { mentions, values: vec![Fact::Missing; SECTIONS.len()], texts: String::new() }
    }

    /// The wanted sections. An unobserved one is missing: no rule that needs it is evaluated.
    pub(super) fn of(snapshot: &Snapshot, mentions: &'m Mentions, wanted: Sections) -> Self {
        let mut facts = Self::none(mentions);
        for (slot, place) in wanted.names().filter_map(Mentions::section) {
            match slot {
                0 => fill(&mut facts, place, slot, &snapshot.at.to_string()),
                1 => facts.section(place, slot, snapshot.jobs.as_ref()),
                2 => facts.section(place, slot, snapshot.publish_logs.as_ref()),
                3 => facts.section(place, slot, snapshot.scheduler.as_ref()),
                4 => facts.section(place, slot, snapshot.campaigns.as_ref()),
                5 => facts.section(place, slot, snapshot.clips.as_ref()),
                6 => facts.section(place, slot, snapshot.ledger.as_ref()),
                7 => facts.section(place, slot, snapshot.workers.as_ref()),
                8 => facts.section(place, slot, snapshot.dead_letters.as_ref()),
                9 => facts.section(place, slot, snapshot.pipelines.as_ref()),
                10 => facts.section(place, slot, snapshot.engines.as_ref()),
                11 => facts.section(place, slot, snapshot.agents.as_ref()),
                12 => facts.section(place, slot, snapshot.streams.as_ref()),
                _ => fill(&mut facts, place, slot, &snapshot.system),
            }
        }
        facts
    }

    fn section(&mut self, place: Place, slot: usize, section: Option<&impl Serialize>) {
        if let Some(section) = section {
            fill(self, place, slot, section);
        }
    }

    /// Room for `count` values; answers the first.
    pub(super) fn reserve(&mut self, count: usize) -> usize {
        let first = self.values.len();
        self.values.resize(first + count, Fact::Missing);
        first
    }

    /// For the engine: one constant a section. They are not shared values: the engine reads a constant in place, and it
    /// panics over shared values inside of lists and maps.
    pub(super) fn scope(&self) -> Scope<'static> {
        let mut scope = Scope::new();
        for (slot, place) in SECTIONS.into_iter().filter_map(Mentions::section) {
            if let Some(value) = self.dynamic(&self.values[slot], Some(place)) {
                scope.push_constant_dynamic(SECTIONS[slot], value);
            }
        }
        scope
    }

    /// One value for the engine, with what is mentioned of it; nothing for a missing one.
    pub(super) fn dynamic(&self, fact: &Fact, place: Option<Place>) -> Option<Dynamic> {
        let node = place.map(|place| self.mentions.node(place));
        Some(match fact {
            Fact::Missing => return None,
            Fact::Unknown => Dynamic::UNIT,
            Fact::Truth(truth) => (*truth).into(),
            Fact::Int(number) => (*number).into(),
            Fact::Float(number) => (*number).into(),
            Fact::Text(range) => self.texts[range.clone()].into(),
            Fact::Map { first } => {
                let fields = node.iter().flat_map(|node| &node.fields).zip(&self.values[*first..]);
                let fields = fields.filter_map(|((name, place), fact)| {
                    self.dynamic(fact, Some(*place)).map(|value| (name.as_str().into(), value))
                });
                Dynamic::from_map(fields.collect::<Map>())
            }
            Fact::List { first, count } => {
                let items = node.and_then(|node| node.items);
                let list = self.values[*first..first + count].iter();
                // Items that nobody mentions are there to be counted.
                let list = list.map(|fact| self.dynamic(fact, items).unwrap_or(Dynamic::UNIT));
                Dynamic::from_array(list.collect::<Array>())
            }
            Fact::Whole(value) => value.clone(),
        })
    }
}
