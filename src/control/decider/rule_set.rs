//! A set of rules: loaded as a whole or not at all.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use rhai::{Caches, Dynamic, Engine, ImmutableString, Module, Position, Shared};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::error::{RuleError, hint};
use super::evaluate::Evaluation;
use super::facts::{Facts, Sections};
use super::load::Loader;
use super::mentions::{Mentions, Place};
use super::plain::Formula;
use super::rules::{BUILT_IN, HEALTH};
use super::sandbox::{self, CYCLE_OPERATIONS, LOAD_TIME};
use super::{call, examples};
use crate::clock::SystemClock;

/// Bytes of one file: a rule takes about 300.
pub const MAX_FILE_BYTES: usize = 256 * 1024;
/// Files of a set.
pub const MAX_FILES: usize = 200;
/// Bytes of all files together: as many rules as are taken, of a thousand each.
pub const MAX_BYTES: usize = 2 * 1024 * 1024;
/// Rules of a set, so that a cycle over all of them stays within milliseconds.
pub const MAX_RULES: usize = 2_000;
/// Constants of a set: each can be a list as long as lists get, and all stay in memory.
pub(super) const MAX_CONSTANTS: usize = 500;
/// Errors that are told of a set; the rest show once these are mended.
pub(super) const MAX_ERRORS: usize = 100;

/// Whether a rule's proposals are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They are.
    #[default]
    Act,
    /// They are only recorded.
    Observe,
}

/// What is known of a rule without running it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleInfo {
    /// Unique in the set.
    pub name: String,
    /// 1 to 10; a larger one is carried out first.
    pub priority: i64,
    /// Seconds until it may act on the same target again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown_seconds: Option<u64>,
    /// Whether it acts.
    pub mode: Mode,
    /// Its file.
    pub file: String,
    /// The line on which it begins.
    pub line: usize,
    /// The action that it proposes.
    pub action: String,
}

pub(super) struct Rule {
    pub(super) info: RuleInfo,
    pub(super) each: Option<Each>,
    pub(super) when: Option<Formula>,
    pub(super) kind: &'static str,
    pub(super) arguments: Vec<Formula>,
    pub(super) then_at: Position,
    pub(super) because: Formula,
    pub(super) sections: Sections,
}

/// `each name in list`.
pub(super) struct Each {
    pub(super) name: ImmutableString,
    pub(super) list: Formula,
    /// Where the items are mentioned, if the list is one of the snapshot.
    pub(super) items: Option<Place>,
}

pub(super) struct Deduct {
    pub(super) points: i64,
    pub(super) per_item: bool,
    pub(super) value: Formula,
    pub(super) because: Formula,
    pub(super) sections: Sections,
    pub(super) line: usize,
}

#[derive(Default)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) constants: Vec<(ImmutableString, Dynamic)>,
    pub(super) functions: Option<Shared<Module>>,
    pub(super) rules: Vec<Rule>,
    pub(super) deductions: Vec<Deduct>,
    /// Which functions its expressions mean, kept between evaluations.
    pub(super) caches: Mutex<Caches>,
}

/// Rules that passed every check, compiled, with the engine that runs them.
pub struct RuleSet {
    pub(super) engine: Engine,
    pub(super) files: Vec<File>,
    /// The sections that rules and deductions mention, and what of them: the rest needs no conversion.
    pub(super) sections: Sections,
    pub(super) mentions: Mentions,
    infos: Vec<RuleInfo>,
    sources: BTreeMap<String, String>,
    hash: String,
}

impl std::fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleSet").field("hash", &self.hash).field("rules", &self.infos.len()).finish()
    }
}

impl RuleSet {
    /// Loads a set from file names and sources. Without a `health.rhai` the built-in one is used.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the files; nothing is loaded then.
    pub fn load(sources: &BTreeMap<String, String>) -> Result<Self, Vec<RuleError>> {
        let sources = complete(sources.clone());
        bounds(&sources)?;
        let engine = sandbox::engine();
        let mut loader = Loader::new(&engine);
        let files = sources.iter().map(|(name, source)| loader.file(name, source)).collect::<Vec<_>>();
        if !loader.errors.is_empty() {
            loader.errors.truncate(MAX_ERRORS);
            return Err(loader.errors);
        }
        let infos = files.iter().flat_map(|file| &file.rules).map(|rule| rule.info.clone()).collect();
        let mentions = loader.mentions;
        let of_rules = files.iter().flat_map(|file| &file.rules).map(|rule| rule.sections);
        let of_deductions = files.iter().flat_map(|file| &file.deductions).map(|deduct| deduct.sections);
        let sections = of_rules.chain(of_deductions).fold(Sections::default(), Sections::and);
        let hash = hash(&sources);
        let set = Self { engine, files, sections, mentions, infos, sources, hash };
        let errors = set.try_out();
        if errors.is_empty() { Ok(set) } else { Err(errors) }
    }

    /// The set, if every platform that a rule names is one of `platforms`. A recorded set is replayed without it: what
    /// is configured today says nothing of yesterday.
    ///
    /// # Errors
    /// The places where another one is named.
    pub fn for_platforms<'a>(self, platforms: impl IntoIterator<Item = &'a str>) -> Result<Self, Vec<RuleError>> {
        let platforms: Vec<&str> = platforms.into_iter().collect();
        let mut errors = Vec::new();
        for file in &self.files {
            for rule in &file.rules {
                let Some((name, at)) = call::platform(rule.kind, &rule.arguments, &file.constants) else { continue };
                if platforms.contains(&name.as_str()) {
                    continue;
                }
                let mut near = hint("", &name, platforms.iter().copied());
                if near.is_empty() {
                    near = format!("; publishing.platforms has {}", platforms.join(", "));
                }
                let message =
                    format!("rule {}: no platform `{}` is configured{near}", rule.info.name, name.escape_debug());
                errors.push(RuleError::at(&file.name, at, message));
            }
        }
        if errors.is_empty() { Ok(self) } else { Err(ordered(errors)) }
    }

    /// The rules that come with the service.
    pub fn built_in() -> Self {
        let sources = BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Self::load(&sources).expect("a test loads the built-in rules, and they do not change after it")
    }

    /// SHA-256 over names and sources, as 64 hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The files by name, `health.rhai` included: loading them again gives the same hash.
    pub fn sources(&self) -> &BTreeMap<String, String> {
        &self.sources
    }

    /// The files that hold neither rule nor deduction, though they do in `before`: a save that has only begun looks so.
    pub(super) fn emptied_since(&self, before: &Self) -> Vec<RuleError> {
        let is_empty = |file: &File| file.rules.is_empty() && file.deductions.is_empty();
        let was_full = |name: &str| before.files.iter().any(|file| file.name == name && !is_empty(file));
        let emptied = self.files.iter().filter(|file| is_empty(file) && was_full(&file.name));
        emptied
            .map(|file| RuleError::whole(&file.name, "holds no rule any more; to take its rules away, remove the file"))
            .collect()
    }

    /// The rules, by file and line.
    pub fn rules(&self) -> &[RuleInfo] {
        &self.infos
    }

    /// Runs every clause against an empty platform (guards respected) and a full one (every clause, whatever the
    /// guards say), so that wrong types are found now and not in the cycle that needs the rule. Only an index past the
    /// end of a list is let pass where guards are not heeded: `when list.len() > 3 then f(list[3])` is a good rule.
    fn try_out(&self) -> Vec<RuleError> {
        let mut errors = Vec::new();
        let clock = SystemClock::shared();
        for (snapshot, every_clause) in [(examples::empty(), false), (examples::full(), true)] {
            let facts = Facts::of(&snapshot, &self.mentions, self.sections);
            let mut evaluation = Evaluation::new(&self.engine, &facts, Some(&clock), LOAD_TIME);
            for file in &self.files {
                for rule in &file.rules {
                    // A set that outlasts a cycle on two small examples would do so on the platform.
                    if let Some(because) = evaluation.exhausted(CYCLE_OPERATIONS) {
                        let mut error = RuleError::whole(&file.name, format!("rule {}: {because}", rule.info.name));
                        error.line = rule.info.line;
                        errors.push(error);
                        return ordered(errors);
                    }
                    if let Err(broken) = evaluation.rule(file, rule, every_clause)
                        && !(every_clause && broken.out_of_bounds)
                    {
                        errors.push(broken.at_load(&file.name, rule.info.line, &format!("rule {}", rule.info.name)));
                    }
                }
                for deduct in &file.deductions {
                    if evaluation.exhausted(CYCLE_OPERATIONS).is_some() {
                        break; // what is left fails in the cycle, and says so
                    }
                    if let Err(broken) = evaluation.deduct(file, deduct, every_clause)
                        && !(every_clause && broken.out_of_bounds)
                    {
                        errors.push(broken.at_load(&file.name, deduct.line, "deduct"));
                    }
                }
            }
        }
        ordered(errors)
    }
}

/// By place, one a place, and not without end.
fn ordered(mut errors: Vec<RuleError>) -> Vec<RuleError> {
    errors.sort_by(|a, b| (&a.file, a.line, a.column, &a.message).cmp(&(&b.file, b.line, b.column, &b.message)));
    errors.dedup_by(|a, b| (&a.file, a.line, a.column) == (&b.file, b.line, b.column));
    errors.truncate(MAX_ERRORS);
    errors
}

/// Adds the built-in health rules to a set that has none.
pub(super) fn complete(mut sources: BTreeMap<String, String>) -> BTreeMap<String, String> {
    sources.entry(HEALTH.to_owned()).or_insert_with(|| {
        BUILT_IN.iter().find(|(name, _)| *name == HEALTH).map_or_else(String::new, |(_, text)| (*text).to_owned())
    });
    sources
}

pub(super) fn hash(sources: &BTreeMap<String, String>) -> String {
    let mut digest = Sha256::new();
    for (name, source) in sources {
        // Lengths keep the end of one part from being read as the beginning of the next.
        for part in [name, source] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
    }
    digest.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bounds(sources: &BTreeMap<String, String>) -> Result<(), Vec<RuleError>> {
    let mut errors = Vec::new();
    if sources.len() > MAX_FILES {
        errors.push(RuleError::whole("rules", format!("{} files; at most {MAX_FILES} are taken", sources.len())));
    }
    for (name, source) in sources {
        if name.is_empty() || name.chars().any(char::is_control) {
            errors.push(RuleError::whole(
                &name.escape_debug().to_string(),
                "a file's name may hold no control characters",
            ));
        } else if source.len() > MAX_FILE_BYTES {
            let message = format!("{} bytes; at most {MAX_FILE_BYTES} are taken", source.len());
            errors.push(RuleError::whole(name, message));
        }
    }
    let bytes: usize = sources.values().map(String::len).sum();
    if errors.is_empty() && bytes > MAX_BYTES {
        errors.push(RuleError::whole("rules", format!("{bytes} bytes in all files; at most {MAX_BYTES} are taken")));
    }
    errors.truncate(MAX_ERRORS);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
