//! From `retry_failed_log(log.id)` after `then` to a typed [`Action`].

use rhai::{Dynamic, Expr, ImmutableString, Map, Position};

use super::error::hint;
use super::plain::Formula;
use crate::control::action::{ACTION_KINDS, Action};

/// What a parameter of an action takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parameter {
    /// The id of a row.
    Id(&'static str),
    /// The name of a row.
    Name(&'static str),
    /// The name of a platform; may be left out.
    Platform,
    /// `#{ emergency: true }`; may be left out.
    Options,
}

/// The longest name of a platform.
const MAX_PLATFORM: usize = 64;
/// The longest name of a row: that of a worker.
const MAX_NAME: usize = 300;

fn parameters(kind: &str) -> &'static [Parameter] {
    match kind {
        "schedule_clip" => &[Parameter::Id("clip_id"), Parameter::Platform],
        "retry_failed_log" | "force_publish" => &[Parameter::Id("log_id")],
        "promote_high_score_clip" | "downgrade_low_score_clip" => &[Parameter::Id("clip_id")],
        "rebalance_queue" => &[Parameter::Options],
        "retry_dead_letter" => &[Parameter::Id("dead_letter_id")],
        "pause_queue" | "resume_queue" => &[Parameter::Name("queue")],
        "retry_run" | "cancel_run" => &[Parameter::Id("run_id")],
        "pause_trigger" => &[Parameter::Name("trigger_id")],
        "quarantine_worker" => &[Parameter::Name("worker_id")],
        "drain_agent" | "undrain_agent" => &[Parameter::Name("agent_id")],
        "restart_stream" | "stop_stream" | "move_stream" => &[Parameter::Name("job_id")],
        "raise_alert" => &[Parameter::Name("subject")],
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
    let least = wanted.iter().filter(|parameter| matches!(parameter, Parameter::Id(_) | Parameter::Name(_))).count();
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
                (Expr::Map(..), Parameter::Id(_) | Parameter::Name(_) | Parameter::Platform) => "a map",
                _ => continue,
            };
            return Err(refused(kind, *parameter, never));
        }
    }
    Ok(())
}

/// The platform that a call names outright, by a text or a constant, and where.
pub(super) fn platform(
    kind: &str,
    arguments: &[Formula],
    constants: &[(ImmutableString, Dynamic)],
) -> Option<(String, Position)> {
    let place = parameters(kind).iter().position(|parameter| *parameter == Parameter::Platform)?;
    let argument = &arguments.get(place)?.written;
    let name = match argument {
        Expr::StringConstant(text, _) => text.clone(),
        Expr::Variable(variable, ..) => {
            let (_, value) = constants.iter().find(|(name, _)| *name == variable.1)?;
            value.clone().into_immutable_string().ok()?
        }
        _ => return None,
    };
    Some((name.to_string(), argument.position()))
}

/// The action with these values.
pub(super) fn build(kind: &'static str, values: &[Dynamic]) -> Result<Action, String> {
    for (value, parameter) in values.iter().zip(parameters(kind)) {
        fits(kind, *parameter, value)?;
    }
    let id = || values.first().and_then(|value| value.as_int().ok()).unwrap_or_default();
    let name = || values.first().map(ToString::to_string).unwrap_or_default();
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
        "retry_dead_letter" => Action::RetryDeadLetter { dead_letter_id: id() },
        "pause_queue" => Action::PauseQueue { queue: name() },
        "resume_queue" => Action::ResumeQueue { queue: name() },
        "retry_run" => Action::RetryRun { run_id: id() },
        "cancel_run" => Action::CancelRun { run_id: id() },
        "pause_trigger" => Action::PauseTrigger { trigger_id: name() },
        "quarantine_worker" => Action::QuarantineWorker { worker_id: name() },
        "drain_agent" => Action::DrainAgent { agent_id: name() },
        "undrain_agent" => Action::UndrainAgent { agent_id: name() },
        "restart_stream" => Action::RestartStream { job_id: name() },
        "stop_stream" => Action::StopStream { job_id: name() },
        "move_stream" => Action::MoveStream { job_id: name() },
        "raise_alert" => Action::RaiseAlert { subject: name() },
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
        Parameter::Name(_) => is_name(value, MAX_NAME),
        Parameter::Platform => value.is_unit() || is_name(value, MAX_PLATFORM),
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
    if good { Ok(()) } else { Err(refused(kind, parameter, &not_taken(parameter, value))) }
}

/// What a value that does not fit is; of a text where one is taken, what is wrong with it.
fn not_taken(parameter: Parameter, value: &Dynamic) -> String {
    let longest = match parameter {
        Parameter::Name(_) => MAX_NAME,
        Parameter::Platform => MAX_PLATFORM,
        Parameter::Id(_) | Parameter::Options => return described(value),
    };
    match value.read_lock::<ImmutableString>() {
        None => described(value),
        Some(text) if text.is_empty() => "an empty text".to_owned(),
        Some(text) if text.len() > longest => format!("one of {} bytes: at most {longest} are taken", text.len()),
        Some(_) => "one with control characters".to_owned(),
    }
}

fn is_name(value: &Dynamic, longest: usize) -> bool {
    value
        .read_lock::<ImmutableString>()
        .is_some_and(|text| (1..=longest).contains(&text.len()) && !text.chars().any(char::is_control))
}

fn refused(kind: &str, parameter: Parameter, got: &str) -> String {
    let wanted = match parameter {
        Parameter::Id(name) => format!("{name}, a positive whole number"),
        Parameter::Name(name) => format!("{name}, a text"),
        Parameter::Platform => "the name of a platform".to_owned(),
        Parameter::Options => "#{ emergency: true }".to_owned(),
    };
    format!("{kind} takes {wanted}, not {got}")
}

fn signature(kind: &str) -> String {
    let names = parameters(kind).iter().map(|parameter| match parameter {
        Parameter::Id(name) | Parameter::Name(name) => *name,
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
