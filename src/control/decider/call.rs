//! From `retry_failed_log(log.id)` after `then` to a typed [`Action`].

use rhai::{Dynamic, Expr, Map};

use super::error::hint;
use crate::control::action::{ACTION_KINDS, Action};

/// What a parameter of an action takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parameter {
    /// The id of a row.
    Id(&'static str),
    /// The name of a platform; may be left out.
    Platform,
    /// `#{ emergency: true }`; may be left out.
    Options,
}

/// The longest name of a platform.
const MAX_PLATFORM: usize = 64;

fn parameters(kind: &str) -> &'static [Parameter] {
    match kind {
        "schedule_clip" => &[Parameter::Id("clip_id"), Parameter::Platform],
        "retry_failed_log" | "force_publish" => &[Parameter::Id("log_id")],
        "promote_high_score_clip" | "downgrade_low_score_clip" => &[Parameter::Id("clip_id")],
        "rebalance_queue" => &[Parameter::Options],
        _ => &[],
    }
}

/// The action kind of that name, or what is wrong with it.
pub(super) fn kind(name: &str) -> Result<&'static str, String> {
    ACTION_KINDS.into_iter().find(|kind| *kind == name).ok_or_else(|| {
        let near = hint("", name, ACTION_KINDS);
        if near.is_empty() {
            format!("unknown action {name}; the actions are {}", ACTION_KINDS.join(", "))
        } else {
            format!("unknown action {name}{near}")
        }
    })
}

/// What can be seen of wrong arguments before they have values.
pub(super) fn check(kind: &str, arguments: &[Expr]) -> Result<(), String> {
    let wanted = parameters(kind);
    let least = wanted.iter().filter(|parameter| matches!(parameter, Parameter::Id(_))).count();
    if arguments.len() < least || arguments.len() > wanted.len() {
        return Err(format!("{kind} is written {}", signature(kind)));
    }
    for (argument, parameter) in arguments.iter().zip(wanted) {
        if let Some(value) = argument.get_literal_value(None) {
            fits(kind, *parameter, &value)?;
        } else {
            let never = match (argument, parameter) {
                (Expr::InterpolatedString(..), Parameter::Id(_) | Parameter::Options) => "a text",
                (Expr::Array(..), _) => "a list",
                (Expr::Map(..), Parameter::Id(_) | Parameter::Platform) => "a map",
                _ => continue,
            };
            return Err(refused(kind, *parameter, never));
        }
    }
    Ok(())
}

/// The action with these values.
pub(super) fn build(kind: &'static str, values: &[Dynamic]) -> Result<Action, String> {
    for (value, parameter) in values.iter().zip(parameters(kind)) {
        fits(kind, *parameter, value)?;
    }
    let id = || values.first().and_then(|value| value.as_int().ok()).unwrap_or_default();
    Ok(match kind {
        "schedule_clip" => Action::ScheduleClip {
            clip_id: id(),
            platform: values.get(1).filter(|value| !value.is_unit()).map(ToString::to_string),
        },
        "retry_failed_log" => Action::RetryFailedLog { log_id: id() },
        "trigger_reconciliation" => Action::TriggerReconciliation,
        "promote_high_score_clip" => Action::PromoteHighScoreClip { clip_id: id() },
        "downgrade_low_score_clip" => Action::DowngradeLowScoreClip { clip_id: id() },
        "force_publish" => Action::ForcePublish { log_id: id() },
        _ => Action::RebalanceQueue {
            emergency: values
                .first()
                .and_then(|options| options.read_lock::<Map>().map(|options| options.get("emergency").cloned()))
                .flatten()
                .and_then(|emergency| emergency.as_bool().ok())
                .unwrap_or(false),
        },
    })
}

fn fits(kind: &str, parameter: Parameter, value: &Dynamic) -> Result<(), String> {
    let good = match parameter {
        Parameter::Id(_) => value.as_int().is_ok_and(|id| id > 0),
        Parameter::Platform => {
            value.is_unit()
                || value
                    .read_lock::<rhai::ImmutableString>()
                    .is_some_and(|text| (1..=MAX_PLATFORM).contains(&text.len()) && !text.chars().any(char::is_control))
        }
        Parameter::Options => match value.read_lock::<Map>() {
            Some(options) => {
                if let Some(unknown) = options.keys().find(|key| key.as_str() != "emergency") {
                    return Err(format!("{kind} has no option {unknown}{}", hint("", unknown, ["emergency"])));
                }
                options.values().all(Dynamic::is_bool)
            }
            None => false,
        },
    };
    if good { Ok(()) } else { Err(refused(kind, parameter, &described(value))) }
}

fn refused(kind: &str, parameter: Parameter, got: &str) -> String {
    let wanted = match parameter {
        Parameter::Id(name) => format!("{name}, a positive whole number"),
        Parameter::Platform => "the name of a platform".to_owned(),
        Parameter::Options => "#{ emergency: true }".to_owned(),
    };
    format!("{kind} takes {wanted}, not {got}")
}

fn signature(kind: &str) -> String {
    let names = parameters(kind).iter().map(|parameter| match parameter {
        Parameter::Id(name) => *name,
        Parameter::Platform => "[platform]",
        Parameter::Options => "[#{ emergency: true }]",
    });
    format!("{kind}({})", names.collect::<Vec<_>>().join(", "))
}

/// A value in words, for an error.
pub(super) fn described(value: &Dynamic) -> String {
    match value.type_name() {
        "()" => "nothing (unknown)".to_owned(),
        "string" => "a text".to_owned(),
        "array" => "a list".to_owned(),
        "map" => "a map".to_owned(),
        "i64" | "f64" | "bool" => value.to_string(),
        other => other.to_owned(),
    }
}
