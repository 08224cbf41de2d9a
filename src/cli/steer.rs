//! `run-once`, `snapshot`, `status`, `enable`, `disable`: looking at the loop and steering it.

use serde_json::{Value, json};

use super::failure::Outcome;
use super::output::{Output, or_dash};
use super::way_in::WayIn;
use super::{Common, Server};
use crate::control::orchestrator::{CycleReport, LoopStatus};
use crate::control::snapshot::{Snapshot, SystemSection};

pub(super) async fn run_once(common: &Common, server: &Server, out: &mut Output) -> Outcome {
    let way_in = WayIn::open(common, server).await?;
    let report = way_in.run_once().await;
    way_in.close().await;
    let report = report?;
    if out.wants_json() { out.json(&report) } else { show_report(&report, out) }
}

pub(super) async fn snapshot(common: &Common, server: &Server, out: &mut Output) -> Outcome {
    let way_in = WayIn::open_to_read(common, server).await?;
    let snapshot = way_in.snapshot().await;
    way_in.close().await;
    let snapshot = snapshot?;
    if out.wants_json() { out.json(&snapshot) } else { show_snapshot(&snapshot, out) }
}

pub(super) async fn status(common: &Common, server: &Server, out: &mut Output) -> Outcome {
    let way_in = WayIn::open_to_read(common, server).await?;
    let status = way_in.status().await;
    way_in.close().await;
    let status = status?;
    if out.wants_json() { out.json(&status) } else { show_status(&status, out) }
}

pub(super) async fn switch(common: &Common, server: &Server, on: bool, out: &mut Output) -> Outcome {
    let way_in = WayIn::open(common, server).await?;
    let switched = match way_in.switch(on).await {
        Ok(()) => way_in.status().await,
        Err(failure) => Err(failure),
    };
    way_in.close().await;
    let status = switched?;
    if out.wants_json() {
        return out.json(&json!({ "enabled": status.enabled, "running": status.running }));
    }
    match (on, status.running) {
        (true, true) => out.line(&format!("The loop is on and runs every {} s.", status.interval_seconds)),
        (true, false) => out.line("The loop is on; it runs as soon as a server leads. `showrunner serve` starts one."),
        (false, _) => out.line("The loop is off, for every instance and across restarts."),
    }
}

fn show_status(status: &LoopStatus, out: &mut Output) -> Outcome {
    let switch = match (status.enabled, status.running) {
        (true, true) => "on, running",
        (true, false) => "on, but no server leads",
        (false, _) => "off",
    };
    let mut rows = vec![
        row("loop", switch),
        row("interval", format!("{} s", status.interval_seconds)),
        row("leader", or_dash(status.leader.as_ref())),
        row("term", status.term),
        row("next cycle", or_dash(status.next_due)),
    ];
    if let Some(last) = &status.last_cycle {
        let health = or_dash(last.health_score);
        rows.push(row("last cycle", format!("{} {} at {}", last.id, last.status, last.started_at)));
        rows.push(row("health", format!("{health} {}", last.health_status)));
        rows.push(row(
            "actions",
            format!("{} planned, {} succeeded, {} failed", last.actions, last.succeeded, last.failed),
        ));
        rows.extend(last.error.iter().map(|error| row("error", error)));
    }
    let rules = &status.rules;
    let from = rules.folder.as_deref().unwrap_or("built in");
    let hash: String = rules.hash.chars().take(12).collect();
    rows.push(row("rules", format!("{} from {from}, {hash}", rules.count)));
    rows.extend(rules.rejected_because.iter().map(|why| row("rejected", why)));
    out.table(&["status", ""], rows)
}

fn show_snapshot(snapshot: &Snapshot, out: &mut Output) -> Outcome {
    let mut rows = vec![row("at", snapshot.at)];
    health_rows(&snapshot.system, &mut rows);
    if let Some(jobs) = &snapshot.jobs {
        rows.push(row(
            "jobs",
            format!(
                "{} pending, {} processing, {} retry, {} waiting, {} failed; oldest {} min",
                jobs.pending, jobs.processing, jobs.retry, jobs.waiting, jobs.failed, jobs.oldest_pending_minutes
            ),
        ));
    }
    if let Some(logs) = &snapshot.publish_logs {
        rows.push(row(
            "publications",
            format!(
                "{} published, {} scheduled, {} pending, {} publishing, {} unknown, {} retry, {} failed",
                logs.published, logs.scheduled, logs.pending, logs.publishing, logs.unknown, logs.retry, logs.failed
            ),
        ));
        rows.push(row("failed in 1 h", logs.recent_failures_1h));
    }
    for window in snapshot.scheduler.iter().flat_map(|scheduler| &scheduler.windows) {
        let state = if window.active {
            format!("open, {} min left", window.minutes_left)
        } else {
            format!("opens {}", window.opens_at)
        };
        rows.push(row(&format!("window {}", window.platform), state));
    }
    if let Some(campaigns) = &snapshot.campaigns {
        let budget = campaigns.budget_total_cents as f64 / 100.0;
        rows.push(row("campaigns", format!("{} active, budgets {budget:.2} together", campaigns.active)));
    }
    if let Some(clips) = &snapshot.clips {
        let mean = clips.avg_visual_score.map(|score| format!("{score:.1}"));
        rows.push(row(
            "clips",
            format!("{} in 24 h, mean score {}, {} high", clips.recent_24h, or_dash(mean), clips.high_score_count),
        ));
    }
    if let Some(ledger) = &snapshot.ledger {
        rows.push(row("errors in 1 h", ledger.errors_1h));
    }
    out.table(&["snapshot", ""], rows)
}

fn health_rows(system: &SystemSection, rows: &mut Vec<Vec<String>>) {
    rows.push(row("health", format!("{} {}", system.health_score, system.status.as_str())));
    rows.extend(system.deductions.iter().map(|taken| row("", format!("−{} {}", taken.points, taken.reason))));
    if !system.unobserved.is_empty() {
        rows.push(row("unobserved", system.unobserved.join(", ")));
    }
}

fn show_report(report: &CycleReport, out: &mut Output) -> Outcome {
    let mut rows = vec![row("cycle", report.cycle_id), row("at", report.timestamp)];
    health_rows(&report.snapshot.system, &mut rows);
    out.table(&["run once", ""], rows)?;
    let results = report.execution["results"].as_array().map(Vec::as_slice).unwrap_or_default();
    if results.is_empty() {
        return out.line("No actions needed.");
    }
    let planned = report.decision["actions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = results.iter().enumerate().map(|(index, result)| {
        let plan = planned.get(index).unwrap_or(&Value::Null);
        let target = first_text(&[&result["target"], &plan["target"]]);
        let action = first_text(&[&plan["action"]["action"], &result["action"]["action"], &result["action"]]);
        let reasons: Vec<&str> = plan["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        vec![action, target, first_text(&[&result["outcome"], &result["status"]]), reasons.join("; ")]
    });
    out.table(&["action", "target", "outcome", "because"], rows)
}

fn first_text(places: &[&Value]) -> String {
    places.iter().find_map(|value| value.as_str()).unwrap_or_default().to_owned()
}

fn row(name: &str, value: impl ToString) -> Vec<String> {
    vec![name.to_owned(), value.to_string()]
}
