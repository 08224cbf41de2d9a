//! Any recorded snapshot and decision can be decided again, and what comes out is decided again alike. They stand in
//! the input one after the other, as two values of JSON.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use showrunner::control::decider::{Decision, RuleSet, replay};
use showrunner::control::snapshot::Snapshot;

static RULES: LazyLock<RuleSet> = LazyLock::new(RuleSet::built_in);

fuzz_target!(|text: &str| {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>().filter_map(Result::ok);
    let Some(Ok(snapshot)) = values.next().map(serde_json::from_value::<Snapshot>) else { return };
    let recorded = values.next().and_then(|value| serde_json::from_value::<Decision>(value).ok()).unwrap_or_default();
    let once = replay(&RULES, &snapshot, &recorded);
    let twice = replay(&RULES, &snapshot, &once);
    assert_eq!(serde_json::to_string(&once).expect("JSON"), serde_json::to_string(&twice).expect("JSON"));
});
