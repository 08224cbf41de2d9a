//! The end of the demo: what happened with the loop, beside what happened without it.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::world::{Sample, Tally};
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::control::snapshot::HealthStatus;

/// One line of the comparison: name in JSON, words, with the loop, without it.
type Line = (&'static str, &'static str, f64, f64);

pub(super) fn show(
    samples: &[(Sample, Sample)],
    with_loop: &Tally,
    without: &Tally,
    step: Duration,
    out: &mut Output,
) -> Outcome {
    let lines = compare(samples, with_loop, without, step);
    if out.wants_json() {
        let side = |pick: fn(&Line) -> f64| -> Value {
            Value::Object(lines.iter().map(|line| (line.0.to_owned(), json!(pick(line)))).collect::<Map<_, _>>())
        };
        return out.json(&json!({ "with_loop": side(|line| line.2), "without_loop": side(|line| line.3) }));
    }
    let simulated = humantime::format_duration(Duration::from_secs(step.as_secs() * samples.len() as u64));
    out.line(&format!("The same platform, the same seed, {simulated} of its time:"))?;
    out.table(
        &["", "with the loop", "without it"],
        lines
            .iter()
            .map(|(_, words, with_loop, without)| vec![(*words).to_owned(), number(*with_loop), number(*without)]),
    )
}

fn compare(samples: &[(Sample, Sample)], with_loop: &Tally, without: &Tally, step: Duration) -> Vec<Line> {
    let of = |measure: &dyn Fn(&[&Sample]) -> f64| {
        let (one, other): (Vec<&Sample>, Vec<&Sample>) = samples.iter().map(|(one, other)| (one, other)).unzip();
        (measure(&one), measure(&other))
    };
    let minutes = step.as_secs_f64() / 60.0;
    let spent = |status: HealthStatus| {
        of(&move |side: &[&Sample]| side.iter().filter(|sample| sample.status() == status).count() as f64 * minutes)
    };
    let mean = of(&|side| side.iter().map(|sample| sample.health() as f64).sum::<f64>() / side.len().max(1) as f64);
    let peak = of(&|side| side.iter().map(|sample| sample.backlog()).max().unwrap_or_default() as f64);
    let (degraded, critical) = (spent(HealthStatus::Degraded), spent(HealthStatus::Critical));
    let count =
        |name, words, pick: fn(&Tally) -> i64| -> Line { (name, words, pick(with_loop) as f64, pick(without) as f64) };
    vec![
        count("published", "clips published", |tally| tally.published),
        count("published_high", "of the good ones (score over 80)", |tally| tally.published_high),
        count("failed", "publications failed for good", |tally| tally.failed),
        count("failed_never_retried", "failed and never tried again", |tally| tally.failed_never_retried),
        count("unknown", "sent, and nobody knows what came of it", |tally| tally.unknown),
        count("overdue", "planned, overdue and not sent", |tally| tally.overdue),
        count("posted_twice", "posted twice", |tally| tally.posted_twice),
        ("health_mean", "mean health", mean.0, mean.1),
        ("degraded_minutes", "minutes degraded", degraded.0, degraded.1),
        ("critical_minutes", "minutes critical", critical.0, critical.1),
        ("backlog_peak", "longest queue", peak.0, peak.1),
        count("jobs_left", "jobs left at the end", |tally| tally.jobs_waiting),
        count("actions", "actions by the loop", |tally| tally.actions),
    ]
}

fn number(value: f64) -> String {
    if value.fract().abs() < 0.05 { format!("{value:.0}") } else { format!("{value:.1}") }
}
