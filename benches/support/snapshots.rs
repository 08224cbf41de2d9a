//! Snapshots for the deciders, the same for every engine that is measured.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use showrunner::control::decider::RuleSet;
use showrunner::control::snapshot::Snapshot;
use showrunner::random::Random;

/// `count` snapshots of about 90 fields, from a fixed seed; in each, some three of the ten heuristics fire.
pub fn random(count: usize) -> Vec<Snapshot> {
    let random = Random::seeded(7);
    (0..count).map(|_| serde_json::from_value(one(&random)).expect("a snapshot")).collect()
}

fn one(random: &Random) -> Value {
    let at = "2026-11-20T18:30:00.000Z";
    let up_to = |most: u64| random.between(0, most);
    let coin = || random.between(0, 1) == 1;
    let list = |length: u64, item: &dyn Fn(u64) -> Value| (1..=length).map(item).collect::<Vec<_>>();
    let clip = |id: u64| {
        json!({ "id": id, "title": format!("clip {id}"), "visual_score": up_to(100) as f64, "campaign_id": null,
                "unused_platforms": ["tiktok", "youtube"] })
    };
    let pending = up_to(100);
    json!({
        "at": at,
        "jobs": { "pending": pending, "processing": up_to(9), "retry": up_to(9), "failed": up_to(9),
            "completed": up_to(9_999), "waiting": up_to(9), "oldest_pending_minutes": up_to(120),
            "queue_saturated": pending > 50 },
        "publish_logs": { "pending": up_to(9), "scheduled": up_to(99), "publishing": up_to(9), "unknown": up_to(2),
            "retry": up_to(9), "failed": up_to(99), "published": up_to(9_999), "recent_failures_1h": up_to(1),
            "oldest_pending_minutes": up_to(120),
            "retryable": list(up_to(1), &|id| json!({ "id": id, "clip_id": id, "platform": "tiktok",
                "retry_count": 1, "max_retries": 3, "last_error": "refused", "failed_at": at })),
            "retryable_count": 1,
            "stuck": list(up_to(1), &|id| json!({ "id": id, "clip_id": id, "platform": "tiktok", "minutes": 90 })),
            "stuck_count": 1, "overdue": up_to(9) },
        "scheduler": { "windows": [], "active": [], "closing_soon": list(up_to(1), &|_| json!("tiktok")),
            "any_active": coin() },
        "campaigns": { "active": up_to(9), "budget_total_cents": up_to(99_999),
            "top": [{ "id": 1, "name": "campaign", "priority": 5, "budget_cents": up_to(20_000), "spent_cents": 500,
                "ready_clips": 1, "best_clip_id": if coin() { json!(1) } else { Value::Null } }] },
        "clips": { "recent_24h": up_to(99), "avg_visual_score": up_to(100) as f64, "high_score_count": up_to(7),
            "high_score": list(up_to(1), &clip), "low_score": list(up_to(1), &clip),
            "best_ready": if coin() { clip(1) } else { Value::Null } },
        "ledger": { "errors_1h": up_to(10), "recent_errors": [] },
        "system": { "health_score": up_to(100), "status": "degraded", "deductions": [], "unobserved": [] },
    })
}

/// The rules of the ten heuristics, by name.
pub const HEURISTICS: [&str; 10] = [
    "queue_saturated",
    "critical_health",
    "stuck_publications",
    "recent_failures",
    "high_error_rate",
    "funded_campaign",
    "promote_high_score",
    "schedule_accumulated_clips",
    "window_closing",
    "low_quality_trend",
];

/// The built-in files with no other rules than the ten heuristics, and with the health score.
pub fn heuristics() -> BTreeMap<String, String> {
    let wanted = |paragraph: &&str| match paragraph.split_once("rule \"") {
        Some((_, rest)) => HEURISTICS.iter().any(|name| rest.starts_with(&format!("{name}\""))),
        None => true,
    };
    let built_in = RuleSet::built_in();
    let files = built_in.sources().iter().map(|(name, source)| {
        let kept: Vec<&str> = source.split("\n\n").filter(wanted).collect();
        (name.clone(), kept.join("\n\n") + "\n")
    });
    files.filter(|(name, source)| name == "health.rhai" || source.contains("rule \"")).collect()
}

/// The ten heuristics as a rule set of `count` rules: ten at a time under other names, in files of a hundred.
pub fn rules_times(count: usize) -> BTreeMap<String, String> {
    let ten = heuristics();
    let mut files = BTreeMap::new();
    for copy in 0..count / 10 {
        for (name, source) in ten.iter().filter(|(name, _)| *name != "health.rhai") {
            let file: &mut String = files.entry(format!("{:02}_{name}", copy / 10)).or_default();
            // A file's constants are its own; of the copies in one file, only the first brings them.
            let lines = source.lines().filter(|line| copy % 10 == 0 || !line.starts_with("const "));
            for line in lines {
                file.push_str(&line.replace("rule \"", &format!("rule \"r{copy}_")));
                file.push('\n');
            }
        }
    }
    files
}
