//! Each default rule fires at its threshold and not just below it.

use super::*;
use crate::control::action::Action;
use crate::control::snapshot::HealthStatus;
use crate::planes::publishing::{CampaignView, ClipView, RetryableLog, StuckLog};

/// Which of the default rules propose something.
fn firing(change: impl Fn(&mut Snapshot)) -> Vec<String> {
    let mut snapshot = quiet();
    change(&mut snapshot);
    let decision = decide(&RuleSet::built_in(), &mut snapshot);
    assert_eq!(decision.failures, []);
    let mut rules: Vec<String> = decision.proposals.into_iter().map(|proposal| proposal.rule).collect();
    rules.dedup();
    rules
}

fn clip(id: i64, visual_score: f64) -> ClipView {
    let unused_platforms = vec!["instagram".to_owned(), "tiktok".to_owned()];
    ClipView { id, title: format!("clip {id}"), visual_score, campaign_id: None, unused_platforms }
}

fn campaign(budget_cents: i64, best_clip_id: Option<i64>) -> CampaignView {
    let name = "spring".to_owned();
    CampaignView { id: 1, name, priority: 5, budget_cents, spent_cents: 0, ready_clips: 1, best_clip_id }
}

#[test]
fn a_quiet_platform_is_healthy_and_needs_nothing() {
    let mut snapshot = quiet();
    let decision = decide(&RuleSet::built_in(), &mut snapshot);
    assert_eq!(serde_json::to_string(&decision).expect("json"), "{}");
    assert_eq!((snapshot.system.health_score, snapshot.system.status), (100, HealthStatus::Healthy));
}

#[test]
fn the_ten_rules_are_there_with_their_priorities() {
    let set = RuleSet::built_in();
    let mut rules: Vec<(&str, i64, &str)> =
        set.rules().iter().map(|rule| (rule.name.as_str(), rule.priority, rule.action.as_str())).collect();
    rules.sort();
    assert_eq!(
        rules,
        [
            ("critical_health", 10, "rebalance_queue"),
            ("funded_campaign", 9, "schedule_clip"),
            ("high_error_rate", 7, "trigger_reconciliation"),
            ("low_quality_trend", 3, "downgrade_low_score_clip"),
            ("promote_high_score", 7, "promote_high_score_clip"),
            ("queue_saturated", 9, "rebalance_queue"),
            ("recent_failures", 8, "retry_failed_log"),
            ("schedule_accumulated_clips", 6, "schedule_clip"),
            ("stuck_publications", 8, "force_publish"),
            ("window_closing", 8, "schedule_clip"),
        ]
    );
    assert!(set.rules().iter().all(|rule| rule.cooldown_seconds.is_some()));
}

#[test]
fn queue_saturated() {
    let jobs = |pending| {
        firing(|snapshot| {
            let jobs = snapshot.jobs.as_mut().expect("jobs");
            jobs.pending = pending;
            jobs.queue_saturated = pending > 50;
        })
    };
    assert!(jobs(50).is_empty());
    assert_eq!(jobs(51), ["queue_saturated"]);
}

#[test]
fn critical_health() {
    let errors = |count| {
        firing(|snapshot| {
            snapshot.jobs.as_mut().expect("jobs").oldest_pending_minutes = 31;
            snapshot.publish_logs.as_mut().expect("logs").recent_failures_1h = 1;
            snapshot.ledger.as_mut().expect("ledger").errors_1h = count;
        })
    };
    // 100 - 15 - 10 - 5 × 5 = 50, and one error more.
    assert!(errors(5).is_empty());
    assert_eq!(errors(6), ["high_error_rate", "critical_health"]);
}

#[test]
fn high_error_rate() {
    let errors = |count| firing(|snapshot| snapshot.ledger.as_mut().expect("ledger").errors_1h = count);
    assert!(errors(5).is_empty());
    assert_eq!(errors(6), ["high_error_rate"]);
}

#[test]
fn stuck_publications() {
    let stuck = |minutes| {
        firing(|snapshot| {
            let logs = snapshot.publish_logs.as_mut().expect("logs");
            logs.oldest_pending_minutes = minutes;
            if minutes > 60 {
                logs.stuck = vec![StuckLog { id: 7, clip_id: 1, platform: "tiktok".to_owned(), minutes }];
            }
        })
    };
    assert!(stuck(60).is_empty());
    assert_eq!(stuck(61), ["stuck_publications"]);
}

#[test]
fn recent_failures() {
    let failures = |count| {
        firing(|snapshot| {
            let at = snapshot.at;
            let logs = snapshot.publish_logs.as_mut().expect("logs");
            logs.recent_failures_1h = count;
            logs.retryable = vec![RetryableLog {
                id: 3,
                clip_id: 1,
                platform: "youtube".to_owned(),
                retry_count: 0,
                max_retries: 3,
                last_error: None,
                failed_at: at,
            }];
        })
    };
    assert!(failures(0).is_empty());
    assert_eq!(failures(1), ["recent_failures"]);
}

#[test]
fn promote_high_score() {
    let window = |open| {
        firing(|snapshot| {
            snapshot.scheduler.as_mut().expect("scheduler").any_active = open;
            let clips = snapshot.clips.as_mut().expect("clips");
            clips.high_score_count = 1;
            clips.high_score = vec![clip(1, 90.0)];
        })
    };
    assert!(window(false).is_empty());
    assert_eq!(window(true), ["promote_high_score"]);
}

#[test]
fn schedule_accumulated_clips() {
    let stock = |count: i64| {
        firing(|snapshot| {
            let clips = snapshot.clips.as_mut().expect("clips");
            clips.high_score_count = count;
            clips.high_score = (1..=count).map(|id| clip(id, 90.0)).collect();
        })
    };
    assert!(stock(3).is_empty());
    assert_eq!(stock(4), ["schedule_accumulated_clips"]);
}

#[test]
fn funded_campaign() {
    let budget = |cents, best| {
        firing(|snapshot| {
            let campaigns = snapshot.campaigns.as_mut().expect("campaigns");
            campaigns.active = 1;
            campaigns.top = vec![campaign(cents, best)];
        })
    };
    assert!(budget(10_000, Some(4)).is_empty(), "$100 is not more than $100");
    assert!(budget(10_001, None).is_empty(), "no clip is ready");
    assert_eq!(budget(10_001, Some(4)), ["funded_campaign"]);
}

#[test]
fn window_closing() {
    let closing = |platforms: &[&str]| {
        firing(|snapshot| {
            snapshot.scheduler.as_mut().expect("scheduler").closing_soon =
                platforms.iter().map(|platform| (*platform).to_owned()).collect();
            snapshot.clips.as_mut().expect("clips").best_ready = Some(clip(5, 70.0));
        })
    };
    assert!(closing(&[]).is_empty());
    assert!(closing(&["youtube"]).is_empty(), "the clip is already on that platform");
    assert_eq!(closing(&["tiktok"]), ["window_closing"]);
    assert!(
        firing(|snapshot| snapshot.scheduler.as_mut().expect("scheduler").closing_soon.push("tiktok".to_owned()))
            .is_empty()
    );
}

#[test]
fn low_quality_trend() {
    let mean = |score| {
        firing(|snapshot| {
            let clips = snapshot.clips.as_mut().expect("clips");
            clips.avg_visual_score = score;
            clips.low_score = vec![clip(9, 12.0)];
        })
    };
    assert!(mean(None).is_empty(), "an unknown mean is not a low one");
    assert!(mean(Some(40.0)).is_empty());
    assert_eq!(mean(Some(39.9)), ["low_quality_trend"]);
}

#[test]
fn reasons_name_the_figures_and_actions_their_rows() {
    let mut snapshot = quiet();
    snapshot.campaigns.as_mut().expect("campaigns").top = vec![campaign(25_000, Some(4))];
    let decision = decide(&RuleSet::built_in(), &mut snapshot);
    let action = &decision.actions[0];
    assert_eq!(action.action, Action::ScheduleClip { clip_id: 4, platform: None });
    assert_eq!(action.reason, "campaign \"spring\" has a budget of 25000 cents, more than 10000");
    assert_eq!(
        serde_json::to_value(action).expect("json"),
        serde_json::json!({
            "action": "schedule_clip", "clip_id": 4, "target": "clip:4", "priority": 9, "rules": ["funded_campaign"],
            "reasons": [action.reason], "reason": action.reason
        })
    );
}

#[test]
fn health_takes_off_points_and_stays_between_nought_and_a_hundred() {
    let set = RuleSet::built_in();
    let mut snapshot = quiet();
    let jobs = snapshot.jobs.as_mut().expect("jobs");
    (jobs.pending, jobs.queue_saturated, jobs.oldest_pending_minutes) = (51, true, 31);
    snapshot.publish_logs.as_mut().expect("logs").recent_failures_1h = 1;
    assess_health(&set, &mut snapshot, &still());
    let points: Vec<i64> = snapshot.system.deductions.iter().map(|deduction| deduction.points).collect();
    assert_eq!(points, [20, 15, 10]);
    assert_eq!((snapshot.system.health_score, snapshot.system.status), (55, HealthStatus::Degraded));

    snapshot.ledger.as_mut().expect("ledger").errors_1h = 2;
    assess_health(&set, &mut snapshot, &still());
    assert_eq!((snapshot.system.health_score, snapshot.system.status), (45, HealthStatus::Critical));
    snapshot.ledger.as_mut().expect("ledger").errors_1h = i64::MAX;
    assess_health(&set, &mut snapshot, &still());
    assert_eq!(snapshot.system.health_score, 0);
}

#[test]
fn health_changes_its_name_at_eighty_and_fifty() {
    let status = |points: &str| {
        let health = format!("deduct {points} when true because \"test\";");
        let sources = BTreeMap::from([("health.rhai".to_owned(), health)]);
        let set = RuleSet::load(&sources).unwrap_or_else(|errors| panic!("{}", lines(&errors)));
        let mut snapshot = quiet();
        assess_health(&set, &mut snapshot, &still());
        snapshot.system.status
    };
    assert_eq!(status("20"), HealthStatus::Healthy);
    assert_eq!(status("21"), HealthStatus::Degraded);
    assert_eq!(status("50"), HealthStatus::Degraded);
    assert_eq!(status("51"), HealthStatus::Critical);
}

#[test]
fn what_was_not_observed_is_unknown_and_holds_the_rules_that_need_it() {
    let set = RuleSet::built_in();
    let mut snapshot = quiet();
    snapshot.clips = None;
    snapshot.ledger = None;
    let decision = decide(&set, &mut snapshot);
    assert_eq!(snapshot.system.unobserved, ["clips", "ledger"]);
    assert_eq!((snapshot.system.health_score, snapshot.system.status), (100, HealthStatus::Unknown));
    let held: Vec<(&str, &str)> =
        decision.held_rules.iter().map(|held| (held.rule.as_str(), held.because.as_str())).collect();
    assert!(held.contains(&("high_error_rate", "section ledger was not observed")), "{held:?}");
    assert_eq!(held.len(), 5, "four rules over clips and one over the ledger: {held:?}");

    let jobs = snapshot.jobs.as_mut().expect("jobs");
    (jobs.queue_saturated, jobs.oldest_pending_minutes) = (true, 31);
    snapshot.publish_logs.as_mut().expect("logs").recent_failures_1h = 1;
    let decision = decide(&set, &mut snapshot);
    assert_eq!((snapshot.system.health_score, snapshot.system.status), (55, HealthStatus::Unknown));
    assert_eq!(planned(&decision), ["rebalance_queue queue"]);
}
