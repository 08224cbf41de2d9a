//! Any text is a set of rules or a list of places.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use showrunner::control::decider::RuleSet;

fuzz_target!(|text: &str| {
    for name in ["test.rhai", "health.rhai"] {
        let sources = BTreeMap::from([(name.to_owned(), text.to_owned())]);
        if let Err(errors) = RuleSet::load(&sources) {
            assert!(!errors.is_empty());
            let lines = text.lines().count();
            assert!(errors.iter().all(|error| error.line <= lines + 1 && !error.message.is_empty()), "{errors:?}");
        }
    }
});
