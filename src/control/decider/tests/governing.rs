//! The governors, one by one and together.

use super::*;
use crate::config::Governors;
use crate::control::action::{ACTION_KINDS, Action};
use crate::db::Timestamp;
use crate::planes::queue::QueueView;

const QUEUE: &str = "rule \"tidy\" priority 5 cooldown \"10m\" then rebalance_queue() because \"tidy\";";

fn at() -> Timestamp {
    quiet().at
}

fn decided(rules: &RuleSet, memory: &Memory, governors: &Governors) -> Decision {
    let snapshot = quiet();
    plan(propose(rules, &snapshot, &still(), None), memory, governors, snapshot.at)
}

fn fates(decision: &Decision) -> Vec<(&str, Fate)> {
    decision.proposals.iter().map(|proposal| (proposal.rule.as_str(), proposal.fate)).collect()
}

fn why(decision: &Decision, proposal: usize) -> &str {
    decision.proposals[proposal].because.as_deref().unwrap_or("")
}

/// One rule that retries logs 1 to `count`.
fn retries(name: &str, priority: i64, count: i64) -> String {
    let list: Vec<String> = (1..=count).map(|id| id.to_string()).collect();
    format!(
        "rule \"{name}\" priority {priority} each id in [{}] then retry_failed_log(id) because `{name} ${{id}}`;\n",
        list.join(", ")
    )
}

#[test]
fn the_same_action_on_the_same_target_is_done_once_for_all_its_reasons() {
    let set = good(
        "rule \"low\" priority 2 then rebalance_queue() because \"low\";\n\
         rule \"high\" priority 8 then rebalance_queue() because \"high\";\n\
         rule \"emergency\" priority 5 then rebalance_queue(#{ emergency: true }) because \"now\";",
    );
    let decision = decided(&set, &Memory::default(), &Governors::default());
    assert_eq!(planned(&decision), ["rebalance_queue queue", "rebalance_queue queue:emergency"]);
    let action = &decision.actions[0];
    assert_eq!((action.priority, action.reason.as_str()), (8, "high"));
    assert_eq!(
        (action.rules.clone(), action.reasons.clone()),
        (vec!["high".into(), "low".into()], vec!["high".into(), "low".into()])
    );
    assert_eq!(fates(&decision), [("low", Fate::Merged), ("high", Fate::Planned), ("emergency", Fate::Planned)]);
    assert_eq!(why(&decision, 0), "carried out once, for high");
    assert_eq!(decision.summary, Summary { proposed: 3, planned: 2, held: 0 });
}

#[test]
fn a_rule_that_observes_is_recorded_and_lends_no_weight() {
    let set = good(
        "rule \"watcher\" priority 9 mode \"observe\" then rebalance_queue() because \"would\";\n\
         rule \"doer\" priority 2 then rebalance_queue() because \"do\";",
    );
    let decision = decided(&set, &Memory::default(), &Governors::default());
    assert_eq!(fates(&decision), [("watcher", Fate::Observed), ("doer", Fate::Planned)]);
    assert_eq!((decision.actions[0].priority, decision.actions[0].rules.clone()), (2, vec!["doer".to_owned()]));
}

#[test]
fn a_rule_that_wants_too_much_gets_nothing() {
    let set = good(&format!("{}{}", retries("many", 9, 26), retries("few", 1, 2)));
    let decision = decided(&set, &Memory::default(), &Governors::default());
    assert_eq!(planned(&decision), ["retry_failed_log publish_log:1", "retry_failed_log publish_log:2"]);
    assert!(decision.actions.iter().all(|action| action.rules == ["few"] && action.priority == 1));
    assert_eq!(why(&decision, 0), "its rule proposes 26 actions in one cycle, more than 25");
    assert_eq!(decision.summary, Summary { proposed: 28, planned: 2, held: 26 });
    let set = good(&retries("just", 9, 25));
    assert_eq!(decided(&set, &Memory::default(), &Governors::default()).actions.len(), 25);
}

fn acted(rule: &str, target: &str, ago: Duration) -> Memory {
    let cooldowns = BTreeMap::from([(rule.to_owned(), BTreeMap::from([(target.to_owned(), at().before(ago))]))]);
    Memory { cooldowns, ..Memory::default() }
}

#[test]
fn a_cooldown_holds_its_rule_and_target_only() {
    let set = good(QUEUE);
    let decide = |memory: &Memory| decided(&set, memory, &Governors::default());
    let held = decide(&acted("tidy", "queue", minutes(10) - Duration::from_millis(1)));
    assert!(held.actions.is_empty());
    assert!(why(&held, 0).starts_with("tidy acted on queue at "), "{}", why(&held, 0));
    assert_eq!(decide(&acted("tidy", "queue", minutes(10))).actions.len(), 1);
    assert_eq!(decide(&acted("tidy", "queue:emergency", minutes(1))).actions.len(), 1);
    assert_eq!(decide(&acted("other", "queue", minutes(1))).actions.len(), 1);

    let both =
        good(&format!("{QUEUE}rule \"fresh\" priority 1 cooldown \"10m\" then rebalance_queue() because \"fresh\";"));
    let decision = decided(&both, &acted("tidy", "queue", minutes(1)), &Governors::default());
    assert_eq!(planned(&decision), ["rebalance_queue queue"], "one of its rules is not cooling");
}

#[test]
fn a_budget_counts_the_last_hour_and_this_plan() {
    let set = good(&retries("retry", 5, 4));
    let governors =
        Governors { budgets: BTreeMap::from([("retry_failed_log".to_owned(), 10)]), ..Governors::default() };
    let used = |count| Memory { used: BTreeMap::from([("retry_failed_log".to_owned(), count)]), ..Memory::default() };
    assert_eq!(decided(&set, &used(6), &governors).actions.len(), 4);
    let decision = decided(&set, &used(8), &governors);
    assert_eq!(planned(&decision), ["retry_failed_log publish_log:1", "retry_failed_log publish_log:2"]);
    assert_eq!(why(&decision, 3), "the budget of 10 retry_failed_log an hour is used up");
    assert!(decided(&set, &used(u32::MAX), &governors).actions.is_empty());
    let common = Governors { budget_per_hour: 3, budgets: BTreeMap::new(), ..Governors::default() };
    assert_eq!(decided(&set, &Memory::default(), &common).actions.len(), 3);
}

fn breaker(failures: u32, opened: Option<Duration>) -> Memory {
    let breaker = Breaker { consecutive_failures: failures, opened_at: opened.map(|ago| at().before(ago)) };
    Memory { breakers: BTreeMap::from([("retry_failed_log".to_owned(), breaker)]), ..Memory::default() }
}

#[test]
fn a_breaker_opens_and_lets_one_through_to_try() {
    let set = good(&format!("{}{QUEUE}", retries("retry", 5, 3)));
    let count = |memory: &Memory| {
        let decision = decided(&set, memory, &Governors::default());
        assert!(planned(&decision).contains(&"rebalance_queue queue".to_owned()), "another kind is free");
        decision.actions.len() - 1
    };
    assert_eq!(count(&breaker(4, None)), 3, "closed");
    assert_eq!(count(&breaker(5, Some(minutes(5) - Duration::from_millis(1)))), 0, "open");
    assert_eq!(count(&breaker(5, Some(minutes(5)))), 1, "half open");
    assert_eq!(count(&breaker(0, Some(minutes(1)))), 3, "closed again");
    let open = decided(&set, &breaker(5, Some(minutes(1))), &Governors::default());
    assert!(why(&open, 0).starts_with("the breaker of retry_failed_log is open until "), "{}", why(&open, 0));
}

#[test]
fn a_plan_that_is_too_large_is_not_begun() {
    let set = good(&retries("retry", 5, 6));
    let most = |plan_blast_radius| Governors { plan_blast_radius, ..Governors::default() };
    assert_eq!(decided(&set, &Memory::default(), &most(6)).actions.len(), 6);
    let decision = decided(&set, &Memory::default(), &most(5));
    assert!(decision.blast_radius_exceeded && decision.actions.is_empty());
    assert_eq!(decision.summary, Summary { proposed: 6, planned: 0, held: 6 });
    assert_eq!(why(&decision, 0), "the plan has 6 actions, more than 5; none is carried out");
}

#[test]
fn the_plan_goes_by_priority_then_age_then_name() {
    let set = good(
        "rule \"b\" priority 5 each log in publish_logs.stuck then force_publish(log.id) because \"b\";\n\
         rule \"c\" priority 5 then trigger_reconciliation() because \"c\";\n\
         rule \"a\" priority 5 then rebalance_queue() because \"a\";\n\
         rule \"first\" priority 9 then rebalance_queue(#{ emergency: true }) because \"first\";",
    );
    let mut snapshot = quiet();
    let log =
        |id, minutes| crate::planes::publishing::StuckLog { id, clip_id: id, platform: "tiktok".to_owned(), minutes };
    snapshot.publish_logs.as_mut().expect("logs").stuck = vec![log(1, 61), log(2, 90)];
    assert_eq!(
        planned(&decide(&set, &mut snapshot)),
        [
            "rebalance_queue queue:emergency",
            "force_publish publish_log:2",
            "force_publish publish_log:1",
            "rebalance_queue queue",
            "trigger_reconciliation platforms",
        ]
    );
}

/// A platform on which every action fails, every two seconds for an hour and ten minutes, with the memory kept as the loop keeps it.
#[test]
fn where_everything_fails_the_loop_stays_within_its_bounds() {
    let rules = RuleSet::built_in();
    let governors = Governors::default();
    let mut snapshot = super::super::examples::full();
    let mut clips = snapshot.clips.take().expect("clips");
    snapshot.agents.as_mut().expect("agents").free_slots = 0;
    let mut memory = Memory::default();
    let mut begun: Vec<(Timestamp, &'static str)> = Vec::new();
    for cycle in 0..2_100_u64 {
        let now = at().after(Duration::from_secs(cycle * 2));
        snapshot.at = now;
        // Always new rows: cooldowns by target alone would not hold the loop.
        let fresh = i64::try_from(cycle).expect("small") * 10;
        clips.high_score_count = 10;
        clips.high_score = (1..=10)
            .map(|n| {
                let mut clip = clips.high_score[0].clone();
                clip.id = fresh + n;
                clip
            })
            .collect();
        clips.low_score = clips.high_score.clone();
        snapshot.clips = Some(clips.clone());
        let logs = snapshot.publish_logs.as_mut().expect("logs");
        logs.stuck.iter_mut().for_each(|log| log.id = fresh + 1);
        logs.retryable.iter_mut().for_each(|log| log.id = fresh + 2);
        let workers = snapshot.workers.as_mut().expect("workers");
        workers.queues.push(QueueView { name: "failing".to_owned(), paused: false, ..workers.queues[0].clone() });
        let worker = &mut workers.failing[0];
        (worker.failed, worker.failed_percent, worker.others_failed_percent) = (45, 90, Some(1));
        assess_health(&rules, &mut snapshot, &still());
        memory.used = ACTION_KINDS
            .iter()
            .map(|kind| {
                let hour = begun.iter().filter(|(at, of)| of == kind && at.after(minutes(60)) > now).count();
                ((*kind).to_owned(), u32::try_from(hour).expect("few"))
            })
            .collect();
        let decision = plan(propose(&rules, &snapshot, &still(), None), &memory, &governors, now);
        assert!(decision.actions.len() <= governors.plan_blast_radius);
        for action in &decision.actions {
            let kind = action.action.kind();
            begun.push((now, kind));
            for rule in &action.rules {
                memory.cooldowns.entry(rule.clone()).or_default().insert(action.target.clone(), now);
            }
            let breaker = memory.breakers.entry(kind.to_owned()).or_default();
            breaker.consecutive_failures += 1;
            if breaker.consecutive_failures >= governors.breaker_failures {
                breaker.opened_at = Some(now);
            }
        }
    }
    let proposed = |kind: &&str| rules.rules().iter().any(|rule| rule.action == **kind);
    for kind in ACTION_KINDS.iter().filter(|kind| proposed(kind)) {
        let times: Vec<Timestamp> = begun.iter().filter(|(_, of)| of == kind).map(|(at, _)| *at).collect();
        assert!(!times.is_empty(), "{kind} was tried");
        for (index, first) in times.iter().enumerate() {
            let hour = times[index..].iter().filter(|at| **at < first.after(minutes(60))).count();
            // One plan may begin ten before the first failure is known; then one every five minutes.
            assert!(hour <= 10 + 5 + 12, "{kind}: {hour} in an hour");
        }
    }
}

#[test]
fn an_action_is_written_flat_and_read_back() {
    let set = good(&format!("{}{QUEUE}", retries("retry", 5, 1)));
    let decision = decided(&set, &Memory::default(), &Governors::default());
    let text = serde_json::to_string(&decision).expect("json");
    assert!(text.contains(r#""action":"retry_failed_log","log_id":1,"target":"publish_log:1""#), "{text}");
    let back: Decision = serde_json::from_str(&text).expect("its own JSON");
    assert_eq!(back.actions[0].action, Action::RetryFailedLog { log_id: 1 });
    assert_eq!(serde_json::to_string(&back).expect("json"), text);
}
