//! Deciding, without a database: the ten heuristics, a thousand rules, and loading them. benches/peers has the same
//! ten beside another engine.

use std::time::{Duration, Instant};

use showrunner::clock::SystemClock;
use showrunner::control::decider::{RuleSet, propose};

use crate::support::{Goal, Report, milliseconds, percentile, rate, snapshots};

pub fn measure(report: &mut Report) {
    report.part("Deciding by rules");
    let clock = SystemClock::shared();
    let snapshots = snapshots::random(200);
    let stretch = Duration::from_millis(report.count(1_000, 50) as u64);

    let ten = RuleSet::load(&snapshots::heuristics()).expect("good rules");
    assert_eq!(ten.rules().len(), 10);
    let mut next = snapshots.iter().cycle();
    let decisions = rate(stretch, || drop(propose(&ten, next.next().expect("a snapshot"), &clock, None)));
    report.figure("ten heuristics, snapshot converted each time", decisions, "decisions/s", Goal::None);

    for rules in [100, 1_000] {
        let sources = snapshots::rules_times(rules);
        let mut loads = Vec::new();
        let mut set = None;
        for _ in 0..report.count(7, 1) {
            let began = Instant::now();
            set = Some(RuleSet::load(&sources).expect("good rules"));
            loads.push(began.elapsed());
        }
        let set = set.expect("a set");
        assert_eq!(set.rules().len(), rules);
        let mut next = snapshots.iter().cycle();
        let decisions = rate(stretch, || drop(propose(&set, next.next().expect("a snapshot"), &clock, None)));
        let goals = if rules == 1_000 { [Goal::AtMost(2.0), Goal::AtMost(150.0)] } else { [Goal::None; 2] };
        report.figure(
            &format!("{rules} rules: one decision"),
            milliseconds(Duration::from_secs(1)) / decisions,
            "ms",
            goals[0],
        );
        report.figure(&format!("{rules} rules: loaded and checked"), percentile(&mut loads, 0.5), "ms", goals[1]);
    }
}
