//! The same rules, snapshot, memory and settings give the same decision, byte for byte, also through JSON.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::config::Governors;
use crate::control::action::ACTION_KINDS;
use crate::planes::publishing::{CampaignView, ClipView, RetryableLog, StuckLog};

static BUILT_IN: LazyLock<RuleSet> = LazyLock::new(RuleSet::built_in);

fn clip() -> impl Strategy<Value = ClipView> {
    (1..50_i64, 0.0..100.0_f64, proptest::sample::subsequence(vec!["instagram", "tiktok", "youtube"], 0..=3)).prop_map(
        |(id, visual_score, unused)| ClipView {
            id,
            title: format!("clip \"{id}\" ≥ {visual_score}"),
            visual_score,
            campaign_id: None,
            unused_platforms: unused.into_iter().map(str::to_owned).collect(),
        },
    )
}

prop_compose! {
    fn snapshots()(
        (pending, oldest, failures, errors) in (0..100_i64, 0..90_i64, 0..3_i64, 0..12_i64),
        stuck in proptest::collection::vec((1..60_i64, 61..600_i64), 0..12),
        retryable in proptest::collection::vec((1..60_i64, 0..3_600_u64), 0..12),
        closing in proptest::sample::subsequence(vec!["instagram", "tiktok", "youtube"], 0..=3),
        any_active in any::<bool>(),
        budgets in proptest::collection::vec((0..30_000_i64, proptest::option::of(1..50_i64)), 0..5),
        (high, low) in (proptest::collection::vec(clip(), 0..12), proptest::collection::vec(clip(), 0..12)),
        best in proptest::option::of(clip()),
        mean in proptest::option::of(0.0..100.0_f64),
        missing in proptest::sample::subsequence(vec![0, 1, 2, 3, 4, 5], 0..=2),
    ) -> Snapshot {
        let mut snapshot = quiet();
        let at = snapshot.at;
        let jobs = snapshot.jobs.as_mut().expect("jobs");
        (jobs.pending, jobs.queue_saturated, jobs.oldest_pending_minutes) = (pending, pending > 50, oldest);
        let logs = snapshot.publish_logs.as_mut().expect("logs");
        logs.recent_failures_1h = failures;
        logs.stuck = stuck.into_iter().map(|(id, minutes)| {
            StuckLog { id, clip_id: id, platform: "tiktok".to_owned(), minutes }
        }).collect();
        logs.retryable = retryable.into_iter().map(|(id, ago)| RetryableLog {
            id, clip_id: id, platform: "youtube".to_owned(), retry_count: 1, max_retries: 3, last_error: None,
            failed_at: at.before(Duration::from_secs(ago)),
        }).collect();
        let scheduler = snapshot.scheduler.as_mut().expect("scheduler");
        scheduler.closing_soon = closing.into_iter().map(str::to_owned).collect();
        scheduler.any_active = any_active;
        snapshot.campaigns.as_mut().expect("campaigns").top = budgets.into_iter().enumerate().map(|(n, (cents, best))| {
            let name = format!("campaign {n}");
            CampaignView {
                id: n as i64 + 1, name, priority: 5, budget_cents: cents, spent_cents: 0, ready_clips: 1, best_clip_id: best,
            }
        }).collect();
        let clips = snapshot.clips.as_mut().expect("clips");
        (clips.high_score_count, clips.high_score, clips.low_score) = (high.len() as i64, high, low);
        (clips.best_ready, clips.avg_visual_score) = (best, mean);
        snapshot.ledger.as_mut().expect("ledger").errors_1h = errors;
        for section in missing {
            match section {
                0 => snapshot.jobs = None,
                1 => snapshot.publish_logs = None,
                2 => snapshot.scheduler = None,
                3 => snapshot.campaigns = None,
                4 => snapshot.clips = None,
                _ => snapshot.ledger = None,
            }
        }
        snapshot
    }
}

prop_compose! {
    fn memories()(
        acted in proptest::collection::vec((0..10_usize, 1..60_i64, 0..7_200_u64), 0..20),
        used in proptest::collection::vec(0..130_u32, 7),
        breakers in proptest::collection::vec((0..8_u32, proptest::option::of(0..600_u64)), 7),
    ) -> Memory {
        let at = quiet().at;
        let set = &BUILT_IN;
        let mut memory = Memory::default();
        for (rule, id, ago) in acted {
            let rule = &set.rules()[rule];
            let kind = if rule.action.contains("clip") { "clip" } else { "publish_log" };
            let target = if rule.action == "rebalance_queue" { "queue".to_owned() } else { format!("{kind}:{id}") };
            memory.cooldowns.entry(rule.name.clone()).or_default().insert(target, at.before(Duration::from_secs(ago)));
        }
        for (kind, (used, (consecutive_failures, opened))) in ACTION_KINDS.into_iter().zip(used.into_iter().zip(breakers)) {
            memory.used.insert(kind.to_owned(), used);
            let opened_at = opened.map(|ago| at.before(Duration::from_secs(ago)));
            memory.breakers.insert(kind.to_owned(), Breaker { consecutive_failures, opened_at });
        }
        memory
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_recorded_decision_is_decided_again(
        mut snapshot in snapshots(), memory in memories(), rule_radius in 1..30_usize, plan_radius in 1..60_usize,
    ) {
        let set = &BUILT_IN;
        let governors = Governors { rule_blast_radius: rule_radius, plan_blast_radius: plan_radius, ..Governors::default() };
        assess_health(set, &mut snapshot, &still());
        // The plan goes by its own time, a little after the snapshot's.
        let at = snapshot.at.after(Duration::from_millis(7));
        let decision = plan(propose(set, &snapshot, &still(), None), &memory, &governors, at);
        let written = serde_json::to_string(&decision).expect("json");

        let kept: Snapshot = serde_json::from_str(&serde_json::to_string(&snapshot).expect("json")).expect("a snapshot");
        let recorded: Decision = serde_json::from_str(&written).expect("a decision");
        let again = replay(&RuleSet::load(set.sources()).expect("its sources"), &kept, &recorded);
        prop_assert_eq!(serde_json::to_string(&again).expect("json"), written);

        let counted = decision.proposals.iter().filter(|proposal| proposal.fate == Fate::Planned).count();
        prop_assert_eq!(counted, decision.actions.len());
        prop_assert!(decision.actions.len() <= plan_radius);
        prop_assert!(decision.proposals.iter().all(|it| it.fate == Fate::Planned || it.because.is_some()));
        let mut targets: Vec<_> = decision.actions.iter().map(|it| (it.action.kind(), it.target.clone())).collect();
        targets.sort();
        targets.dedup();
        prop_assert_eq!(targets.len(), decision.actions.len(), "one action, once");
        prop_assert!(decision.actions.is_sorted_by(|a, b| a.priority >= b.priority));
    }
}

#[test]
fn the_order_of_files_on_disk_does_not_matter() {
    let mut snapshot = super::super::examples::full();
    let set = RuleSet::built_in();
    let one = serde_json::to_string(&decide(&set, &mut snapshot)).expect("json");
    let two = serde_json::to_string(&decide(&RuleSet::built_in(), &mut snapshot)).expect("json");
    assert_eq!(one, two);
}
