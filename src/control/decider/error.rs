//! What is wrong with rules: at load with file, line, column and the nearest name; in a cycle with the rule.

use std::fmt;

use rhai::{EvalAltResult, Position};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::sandbox::{MAX_OPERATIONS, WALL_TIME};

/// Why a rule set was refused. Line and column count from 1; 0 means the file or folder as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
pub struct RuleError {
    /// The file's name, or the folder.
    pub file: String,
    /// The line; 0 for the whole file.
    pub line: usize,
    /// The column; 0 for the whole line.
    pub column: usize,
    /// What is wrong and, where one is near, which name was meant.
    pub message: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => write!(f, "{}: {}", self.file, self.message),
            (line, 0) => write!(f, "{}:{line}: {}", self.file, self.message),
            (line, column) => write!(f, "{}:{line}:{column}: {}", self.file, self.message),
        }
    }
}

impl RuleError {
    pub(super) fn at(file: &str, position: Position, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: position.line().unwrap_or(0),
            column: position.position().unwrap_or(0),
            message: message.into().chars().take(MAX_MESSAGE).collect(),
        }
    }

    pub(super) fn whole(file: &str, message: impl Into<String>) -> Self {
        Self::at(file, Position::NONE, message)
    }
}

/// A rule that broke a bound or a type in one cycle. It is skipped in that cycle; the others go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleFailure {
    /// The rule's name; `health` for a deduction.
    pub rule: String,
    /// Its file.
    pub file: String,
    /// The line that failed, else the rule's own.
    pub line: usize,
    /// What went wrong.
    pub message: String,
    /// It ran out of time: the one failure that a replay takes over instead of working it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
}

/// Bytes of a name for which a near one is looked for: no name of ours is half as long.
const MAX_HINTED: usize = 80;
/// Characters of an error's message.
const MAX_MESSAGE: usize = 1_000;

/// An evaluation error in words, without its position, and whether time ran out.
pub(super) fn explain(error: &EvalAltResult) -> (String, Position, bool) {
    let position = error.position();
    let inner = error.unwrap_inner();
    let message = match inner {
        EvalAltResult::ErrorTerminated(..) => {
            return (format!("took longer than {} ms", WALL_TIME.as_millis()), position, true);
        }
        EvalAltResult::ErrorTooManyOperations(_) => format!("took more than {MAX_OPERATIONS} operations"),
        EvalAltResult::ErrorStackOverflow(_) => "calls functions too deeply".to_owned(),
        EvalAltResult::ErrorPropertyNotFound(name, _) => format!("unknown field {name}"),
        EvalAltResult::ErrorVariableNotFound(name, _) => format!("unknown name {name}"),
        EvalAltResult::ErrorFunctionNotFound(signature, _) => format!("no such function or operator: {signature}"),
        EvalAltResult::ErrorRuntime(value, _) => value.to_string(),
        EvalAltResult::Exit(..) | EvalAltResult::Return(..) => "may not end the evaluation".to_owned(),
        other => {
            // `Display` adds the position, which is told apart from the words here.
            let text = other.to_string();
            let place = format!(" ({})", other.position());
            text.strip_suffix(&place).map_or(text.clone(), str::to_owned)
        }
    };
    (message, position, false)
}

/// The candidate that a name with foreign letters in it looks like: letters without width are nothing, and any other
/// foreign one stands for the one that it looks like.
pub(super) fn looks_like<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let invisible = |letter: char| matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let letters: Vec<char> = name.chars().filter(|letter| !invisible(*letter)).take(MAX_HINTED).collect();
    let like = |candidate: &str| {
        candidate.chars().count() == letters.len()
            && candidate.chars().zip(&letters).all(|(known, letter)| known == *letter || !letter.is_ascii())
    };
    candidates.into_iter().find(|candidate| like(candidate)).filter(|_| !letters.is_empty())
}

/// The candidate nearest to `name`, if one is near enough to have been meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > MAX_HINTED {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 3)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean X?`, or nothing.
pub(super) fn hint<'a>(prefix: &str, name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map_or_else(String::new, |near| format!("; did you mean {prefix}{near}?"))
}
