//! The ten heuristics, decided by Showrunner and by zen-engine (a decision table), over the same snapshots in the same
//! run: `cargo run --release --manifest-path benches/peers/Cargo.toml`.
//!
//! Both convert the snapshot for every decision. zen-engine begins from JSON that is ready, Showrunner from the
//! monitor's structure. Showrunner answers with actions, targets and written reasons; zen-engine only with the names
//! of the rules that fire. Both must name the same ones.

#[allow(dead_code)] // shared with the benches, which use the rest
#[path = "../../support/report.rs"]
mod report;
#[allow(dead_code)]
#[path = "../../support/snapshots.rs"]
mod snapshots;

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::{Duration, Instant};

use report::{Goal, Report};
use serde_json::{Value, json};
use showrunner::clock::SystemClock;
use showrunner::config::Governors;
use showrunner::control::decider::{Memory, RuleSet, plan, propose};
use zen_engine::{DecisionEngine, Variable, loader::LoaderConfig};

/// A rule, and the cells of its row: what a column must be.
const TABLE: [(&str, &[(&str, &str)]); 10] = [
    ("queue_saturated", &[("jobs.queue_saturated", "true")]),
    ("critical_health", &[("system.health_score", "< 50")]),
    ("stuck_publications", &[("len(publish_logs.stuck)", "> 0")]),
    ("recent_failures", &[("publish_logs.recent_failures_1h", "> 0"), ("len(publish_logs.retryable)", "> 0")]),
    ("high_error_rate", &[("ledger.errors_1h", "> 5")]),
    ("funded_campaign", &[("some(campaigns.top, #.budget_cents > 10000 and #.best_clip_id != null)", "true")]),
    ("promote_high_score", &[("scheduler.any_active", "true"), ("len(clips.high_score)", "> 0")]),
    ("schedule_accumulated_clips", &[("clips.high_score_count", "> 3"), ("len(clips.high_score)", "> 0")]),
    ("window_closing", &[("len(scheduler.closing_soon)", "> 0"), ("clips.best_ready != null", "true")]),
    ("low_quality_trend", &[("clips.avg_visual_score", "< 40"), ("len(clips.low_score)", "> 0")]),
];

/// In all; each engine gets half of it, in turns.
const MEASURED: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut report = Report::begin(false);
    report.part("Ten heuristics, snapshot converted each time");
    let clock = SystemClock::shared();
    let snapshots = snapshots::random(200);
    let ready: Vec<Value> = snapshots.iter().map(|it| serde_json::to_value(it).expect("JSON")).collect();
    let ours = RuleSet::load(&snapshots::heuristics()).expect("good rules");
    let zen = table();

    let mut fired = 0;
    for (snapshot, json) in snapshots.iter().zip(&ready) {
        let proposals = propose(&ours, snapshot, &clock, None);
        let decision = plan(proposals, &Memory::default(), &Governors::default(), snapshot.at);
        let decision = serde_json::to_value(decision).expect("JSON");
        let proposed = decision["proposals"].as_array().into_iter().flatten();
        let named: BTreeSet<String> = proposed.map(|it| it["rule"].as_str().expect("a rule").to_owned()).collect();
        let answer = zen.evaluate("heuristics", Variable::from(json)).await.expect("an answer").result.to_value();
        let rows = answer.as_array().expect("rows").iter();
        let others: BTreeSet<String> = rows.map(|it| it["rule"].as_str().expect("a rule").to_owned()).collect();
        assert_eq!(named, others, "both must decide alike");
        fired += named.len();
    }
    report.figure("rules that fire in a decision", fired as f64 / 200.0, "", Goal::None);

    let (mut of_ours, mut of_zen) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        of_ours.push(rate(async |turn| drop(black_box(propose(&ours, &snapshots[turn % 200], &clock, None)))).await);
        of_zen.push(
            rate(async |turn| {
                let answer = zen.evaluate("heuristics", Variable::from(&ready[turn % 200])).await;
                drop(black_box(answer.expect("an answer")));
            })
            .await,
        );
    }
    let median = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (of_ours, of_zen) = (median(of_ours), median(of_zen));
    report.figure("zen-engine, a decision table", of_zen, "decisions/s", Goal::None);
    report.figure("Showrunner", of_ours, "decisions/s", Goal::None);
    report.figure("Showrunner ÷ zen-engine", of_ours / of_zen, "×", Goal::AtLeast(3.0));
    report.end();
}

async fn rate(work: impl AsyncFn(usize)) -> f64 {
    let (began, mut turns) = (Instant::now(), 0);
    while began.elapsed() < MEASURED / 10 {
        for _ in 0..20 {
            work(turns).await;
            turns += 1;
        }
    }
    turns as f64 / began.elapsed().as_secs_f64()
}

fn table() -> DecisionEngine {
    let fields: BTreeSet<&str> = TABLE.iter().flat_map(|(_, cells)| cells.iter().map(|(field, _)| *field)).collect();
    let fields: Vec<&str> = fields.into_iter().collect();
    let id = |field: &str| format!("i{}", fields.iter().position(|it| *it == field).expect("a column"));
    let inputs: Vec<Value> =
        fields.iter().map(|field| json!({ "id": id(field), "name": field, "field": field })).collect();
    let rules: Vec<Value> = TABLE
        .iter()
        .map(|(name, cells)| {
            let mut row = json!({ "_id": name, "o": format!("\"{name}\"") });
            for field in &fields {
                row[id(field)] = "".into();
            }
            for (field, wanted) in *cells {
                row[id(field)] = (*wanted).into();
            }
            row
        })
        .collect();
    let content = json!({ "hitPolicy": "collect", "inputs": inputs, "rules": rules,
        "outputs": [{ "id": "o", "name": "rule", "field": "rule" }] });
    let node = |id: &str, kind: &str, content: Value| json!({ "id": id, "name": id, "type": kind, "content": content });
    let graph = json!({
        "nodes": [node("in", "inputNode", json!({})), node("table", "decisionTableNode", content),
            node("out", "outputNode", json!({}))],
        "edges": [{ "id": "1", "type": "edge", "sourceId": "in", "targetId": "table" },
            { "id": "2", "type": "edge", "sourceId": "table", "targetId": "out" }],
    });
    let loader: LoaderConfig =
        serde_json::from_value(json!({ "type": "static", "content": { "heuristics": graph } })).expect("a loader");
    DecisionEngine::default().with_loader(loader.into_loader().expect("the table"))
}
