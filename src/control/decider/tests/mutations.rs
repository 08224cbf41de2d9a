//! Rule sources as chance makes them: each is a set or a list of places, and a set decides without harm.

use proptest::prelude::*;

use super::super::rules::BUILT_IN;
use super::*;

/// What is put into a good file: words of the language in the wrong place, numbers at the edge, letters from elsewhere.
const SCRAPS: [&str; 48] = [
    "rule",
    "\"x\"",
    "priority",
    "11",
    "when",
    "then",
    "because",
    "each",
    "in",
    "cooldown",
    "\"9999999days\"",
    "mode",
    "deduct",
    "for",
    "const",
    "fn",
    "let",
    "while true {",
    "loop {",
    "}",
    "{",
    "(",
    ")",
    "[",
    "]",
    "#{",
    "`${",
    "`",
    "\"",
    ";",
    ",",
    ".",
    "..",
    "::",
    "|x|",
    "=>",
    "9223372036854775807",
    "-9223372036854775808",
    "1e308",
    "0xffffffffffffffff",
    "clips.high_score",
    "jobs.pending",
    "()",
    "schedule_clip",
    "j\u{43e}bs",
    "\u{202e}",
    "\u{0}",
    "🦀",
];

/// Words, numbers, texts and signs, each with the space before it.
fn pieces(source: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let mut wordly = false;
    for letter in source.chars() {
        let word = letter.is_alphanumeric() || letter == '_';
        match pieces.last_mut() {
            Some(last) if word && wordly => last.push(letter),
            _ => pieces.push(letter.to_string()),
        }
        wordly = word;
    }
    pieces
}

#[derive(Debug, Clone)]
enum Change {
    Drop(usize, usize),
    Put(usize, usize),
    Swap(usize, usize),
    Repeat(usize, usize, usize),
    Any(usize, String),
}

fn changes() -> impl Strategy<Value = Change> {
    let at = || 0..5_000_usize;
    prop_oneof![
        (at(), 1..6_usize).prop_map(|(at, count)| Change::Drop(at, count)),
        (at(), 0..SCRAPS.len()).prop_map(|(at, scrap)| Change::Put(at, scrap)),
        (at(), at()).prop_map(|(one, other)| Change::Swap(one, other)),
        (at(), 1..30_usize, 2..40_usize).prop_map(|(at, count, times)| Change::Repeat(at, count, times)),
        (at(), any::<String>()).prop_map(|(at, text)| Change::Any(at, text)),
    ]
}

fn changed(source: &str, changes: &[Change]) -> String {
    let mut pieces = pieces(source);
    for change in changes {
        if pieces.is_empty() {
            break;
        }
        let length = pieces.len();
        match change {
            Change::Drop(at, count) => drop(pieces.drain(at % length..(at % length + count).min(length))),
            Change::Put(at, scrap) => pieces.insert(at % length, format!(" {} ", SCRAPS[*scrap])),
            Change::Swap(one, other) => pieces.swap(one % length, other % length),
            Change::Repeat(at, count, times) => {
                let part = pieces[at % length..(at % length + count).min(length)].concat();
                pieces.insert(at % length, part.repeat(*times));
            }
            Change::Any(at, text) => pieces.insert(at % length, text.clone()),
        }
    }
    pieces.concat()
}

/// Loads; what is wrong has a place, and what is right decides on both examples, and again in a replay.
fn tried(sources: BTreeMap<String, String>) -> Result<(), TestCaseError> {
    match RuleSet::load(&sources) {
        Err(errors) => {
            prop_assert!(!errors.is_empty());
            for error in errors {
                prop_assert!(!error.message.is_empty() && error.message.len() <= 4_000);
                let lines = sources.get(&error.file).map_or(0, |source| source.lines().count());
                prop_assert!(error.line <= lines + 1, "{error} of {lines} lines");
                prop_assert!(error.file == "rules" || sources.contains_key(&error.file), "{error}");
            }
        }
        Ok(set) => {
            for mut snapshot in [super::super::examples::empty(), super::super::examples::full()] {
                assess_health(&set, &mut snapshot, &still());
                let decision = plan(
                    propose(&set, &snapshot, &still(), None),
                    &Memory::default(),
                    &Default::default(),
                    snapshot.at,
                );
                let again = serde_json::to_string(&replay(&set, &snapshot, &decision)).expect("json");
                let failed = decision.failures.iter().any(|failure| failure.rule == "health");
                prop_assert!(failed || again == serde_json::to_string(&decision).expect("json"));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn good_files_with_changes(file in 0..BUILT_IN.len(), changes in proptest::collection::vec(changes(), 1..6)) {
        let (name, source) = BUILT_IN[file];
        tried(BTreeMap::from([(name.to_owned(), changed(source, &changes))]))?;
    }

    #[test]
    fn any_text(name in "[a-z]{1,8}\\.rhai|health\\.rhai|\\PC{0,6}", source in any::<String>()) {
        tried(BTreeMap::from([(name, source)]))?;
    }

    #[test]
    fn scraps(scraps in proptest::collection::vec(0..SCRAPS.len(), 0..40)) {
        let source = scraps.iter().map(|scrap| SCRAPS[*scrap]).collect::<Vec<_>>().join(" ");
        tried(BTreeMap::from([("test.rhai".to_owned(), source.clone())]))?;
        tried(BTreeMap::from([("test.rhai".to_owned(), format!("rule \"a\" priority 1 when {source} then rebalance_queue() because \"x\";"))]))?;
    }
}
