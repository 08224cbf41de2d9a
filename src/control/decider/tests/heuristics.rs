//! Each default rule fires at its threshold and not just below it.

use super::*;
use crate::control::action::Action;
use crate::control::snapshot::HealthStatus;
use crate::planes::fleet::{DrainedAgent, FlappingAgent, StillStream};
use crate::planes::pipelines::{FailedRun, FailingTrigger};
use crate::planes::publishing::{CampaignView, ClipView, RetryableLog, StuckLog};
use crate::planes::queue::{DeadLetterView, QueueView, WorkerView};

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
fn the_rules_are_there_with_their_priorities() {
    let set = RuleSet::built_in();
    let mut rules: Vec<(&str, i64, &str)> =
        set.rules().iter().map(|rule| (rule.name.as_str(), rule.priority, rule.action.as_str())).collect();
    rules.sort();
    assert_eq!(
        rules,
        [
            ("bad_worker", 9, "quarantine_worker"),
            ("calm_agent", 4, "undrain_agent"),
            ("critical_health", 10, "rebalance_queue"),
            ("failed_run", 5, "retry_run"),
            ("failing_queue", 8, "pause_queue"),
            ("flapping_agent", 8, "drain_agent"),
            ("funded_campaign", 9, "schedule_clip"),
            ("high_error_rate", 7, "trigger_reconciliation"),
            ("hopeless_trigger", 7, "pause_trigger"),
            ("low_quality_trend", 3, "downgrade_low_score_clip"),
            ("no_free_slot", 6, "raise_alert"),
            ("promote_high_score", 7, "promote_high_score_clip"),
            ("queue_saturated", 9, "rebalance_queue"),
            ("recent_failures", 8, "retry_failed_log"),
            ("rested_queue", 4, "resume_queue"),
            ("revivable_dead_letter", 5, "retry_dead_letter"),
            ("schedule_accumulated_clips", 6, "schedule_clip"),
            ("still_stream", 8, "restart_stream"),
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
fn bad_worker() {
    let worker = |failed, failed_percent, others_failed_percent| {
        firing(|snapshot| {
            let (id, queue) = ("worker-2".to_owned(), "default".to_owned());
            let worker = WorkerView { id, queue, completed: 0, failed, failed_percent, others_failed_percent };
            snapshot.workers.as_mut().expect("workers").failing = vec![worker];
        })
    };
    assert!(worker(9, 50, Some(20)).is_empty());
    assert!(worker(10, 49, Some(20)).is_empty());
    assert!(worker(10, 50, Some(21)).is_empty(), "the others do not do well either");
    assert!(worker(10, 50, None).is_empty(), "nobody knows of the others");
    assert_eq!(worker(10, 50, Some(20)), ["bad_worker"]);
}

fn queue(failed: i64, failed_percent: i64, paused: Option<(&str, i64)>) -> Vec<String> {
    firing(|snapshot| {
        snapshot.workers.as_mut().expect("workers").queues = vec![QueueView {
            name: "render".to_owned(),
            paused: paused.is_some(),
            paused_by: paused.map(|(by, _)| by.to_owned()),
            paused_minutes: paused.map_or(0, |(_, minutes)| minutes),
            completed: 10,
            failed,
            failed_percent,
        }];
    })
}

#[test]
fn failing_queue() {
    assert!(queue(9, 50, None).is_empty());
    assert!(queue(10, 49, None).is_empty());
    assert_eq!(queue(10, 50, None), ["failing_queue"]);
    assert!(queue(10, 50, Some(("loop", 0))).is_empty(), "it is paused already");
}

#[test]
fn rested_queue() {
    assert!(queue(0, 0, Some(("loop", 14))).is_empty());
    assert!(queue(0, 0, Some(("operator:ann", 15))).is_empty(), "what a person paused is hers to resume");
    assert_eq!(queue(0, 0, Some(("loop", 15))), ["rested_queue"]);
}

#[test]
fn revivable_dead_letter() {
    let letter = |outcome: &str, rounds, code_changed| {
        firing(|snapshot| {
            snapshot.dead_letters.as_mut().expect("letters").retryable = vec![DeadLetterView {
                id: 4,
                job_id: 9,
                task: "render".to_owned(),
                queue: "default".to_owned(),
                error: None,
                outcome: Some(outcome.to_owned()),
                rounds,
                code_changed,
                minutes: 1,
            }];
        })
    };
    assert!(letter("failed", 1, false).is_empty());
    assert!(letter("lapsed", 2, false).is_empty(), "its workers die of it");
    assert_eq!(letter("lapsed", 1, false), ["revivable_dead_letter"]);
    assert_eq!(letter("failed", 2, true), ["revivable_dead_letter"]);
}

#[test]
fn failed_run() {
    let run = |retries, minutes| {
        firing(|snapshot| {
            let failed_at = snapshot.at;
            let pipeline_id = "render".to_owned();
            let run = FailedRun { id: 3, pipeline_id, trigger_id: None, retries, error: None, failed_at, minutes };
            snapshot.pipelines.as_mut().expect("pipelines").failed = vec![run];
        })
    };
    assert!(run(0, 4).is_empty());
    assert!(run(1, 5).is_empty());
    assert_eq!(run(0, 5), ["failed_run"]);
}

#[test]
fn hopeless_trigger() {
    let trigger = |failed, completed| {
        firing(|snapshot| {
            let trigger = FailingTrigger { id: "nightly".to_owned(), failed, completed };
            snapshot.pipelines.as_mut().expect("pipelines").failing_triggers = vec![trigger];
        })
    };
    assert!(trigger(4, 0).is_empty());
    assert!(trigger(5, 1).is_empty());
    assert_eq!(trigger(5, 0), ["hopeless_trigger"]);
}

#[test]
fn flapping_agent() {
    let agent = |drops, drain| {
        firing(|snapshot| {
            let agent = FlappingAgent { id: "studio".to_owned(), drops, drain };
            snapshot.agents.as_mut().expect("agents").flapping = vec![agent];
        })
    };
    assert!(agent(4, false).is_empty());
    assert!(agent(5, true).is_empty(), "it is drained already");
    assert_eq!(agent(5, false), ["flapping_agent"]);
}

#[test]
fn calm_agent() {
    let agent = |online, calm_minutes| {
        firing(|snapshot| {
            let agent = DrainedAgent { id: "studio".to_owned(), online, calm_minutes };
            snapshot.agents.as_mut().expect("agents").drained = vec![agent];
        })
    };
    assert!(agent(true, 29).is_empty());
    assert!(agent(false, 30).is_empty(), "it is not there");
    assert_eq!(agent(true, 30), ["calm_agent"]);
}

#[test]
fn still_stream() {
    let stream = |still_seconds| {
        firing(|snapshot| {
            let stream = StillStream { id: "job-7".to_owned(), agent_id: "studio".to_owned(), still_seconds };
            snapshot.streams.as_mut().expect("streams").still = vec![stream];
        })
    };
    assert!(stream(59).is_empty());
    assert_eq!(stream(60), ["still_stream"]);
}

#[test]
fn no_free_slot() {
    let streams = |free_slots, oldest_waiting_minutes| {
        firing(|snapshot| {
            snapshot.agents.as_mut().expect("agents").free_slots = free_slots;
            let streams = snapshot.streams.as_mut().expect("streams");
            (streams.waiting, streams.oldest_waiting_minutes) = (3, oldest_waiting_minutes);
        })
    };
    assert!(streams(0, 0).is_empty(), "the next agent may have a slot for it at once");
    assert!(streams(1, 1).is_empty(), "it waits for something else");
    assert_eq!(streams(0, 1), ["no_free_slot"]);
}

#[test]
fn streams_that_find_no_slot_are_seen_in_the_health() {
    let health = |waiting, free_slots| {
        let mut snapshot = quiet();
        snapshot.streams.as_mut().expect("streams").waiting = waiting;
        snapshot.agents.as_mut().expect("agents").free_slots = free_slots;
        assess_health(&RuleSet::built_in(), &mut snapshot, &still());
        snapshot.system.health_score
    };
    assert_eq!((health(0, 0), health(1, 1), health(1, 0)), (100, 100, 95));
}

#[test]
fn a_record_of_an_older_program_lacks_sections_and_is_read() {
    let mut record = serde_json::to_value(quiet()).expect("json");
    let later = ["workers", "dead_letters", "pipelines", "engines", "agents", "streams"];
    for section in later {
        record.as_object_mut().expect("a map").remove(section);
    }
    let mut snapshot: Snapshot = serde_json::from_value(record).expect("an older snapshot");
    let decision = decide(&RuleSet::built_in(), &mut snapshot);
    assert_eq!(snapshot.system.unobserved, later);
    assert_eq!(decision.held_rules.len(), 10, "{:?}", decision.held_rules);
}

#[test]
fn the_planes_trouble_alone_is_no_emergency() {
    let mut snapshot = quiet();
    snapshot.dead_letters.as_mut().expect("letters").recent_1h = 1_000;
    snapshot.workers.as_mut().expect("workers").paused_queues = 100;
    snapshot.pipelines.as_mut().expect("pipelines").failed_1h = 1_000;
    snapshot.engines.as_mut().expect("engines").error = 1_000;
    snapshot.streams.as_mut().expect("streams").failed_1h = 1_000;
    snapshot.streams.as_mut().expect("streams").waiting = 1_000;
    // What their events leave in the ledger counts once a kind: runs, jobs, engines, streams.
    snapshot.ledger.as_mut().expect("ledger").errors_1h = 4;
    assess_health(&RuleSet::built_in(), &mut snapshot, &still());
    assert_eq!((snapshot.system.health_score, snapshot.system.status), (50, HealthStatus::Degraded));
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
