//! The rule book: a folder that changes under the running loop.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

const ONE: &str = "rule \"one\" priority 1 when jobs.pending > 5 then rebalance_queue() because \"x\";\n";
const TWO: &str = "rule \"two\" priority 2 when jobs.pending > 5 then rebalance_queue() because \"x\";\n";

fn write(folder: &Path, name: &str, text: &str) {
    // As editors do: a new file in the place of the old one.
    let draft = folder.join(".draft");
    fs::write(&draft, text).expect("write");
    fs::rename(&draft, folder.join(name)).expect("rename");
}

fn with_one() -> (TempDir, RuleBook) {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "rules.rhai", ONE);
    let book = RuleBook::folder(folder.path());
    (folder, book)
}

fn names(book: &RuleBook) -> Vec<String> {
    book.current().rules().iter().map(|rule| rule.name.clone()).collect()
}

fn rejected(refresh: Refresh) -> String {
    match refresh {
        Refresh::Rejected { errors, .. } => lines(&errors),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_built_in_rules_never_change() {
    let book = RuleBook::built_in();
    assert_eq!(book.refresh(), Refresh::Unchanged);
    let status = book.status();
    assert_eq!((status.count, status.folder, status.rejected_hash), (20, None, None));
    assert_eq!(status.hash, book.current().hash());
}

#[test]
fn a_saved_file_is_in_force_at_the_next_look() {
    let (folder, book) = with_one();
    assert_eq!(book.refresh(), Refresh::Unchanged);
    assert_eq!(names(&book), ["one"]);
    let previous = book.current().hash().to_owned();
    write(folder.path(), "rules.rhai", TWO);
    let found = book.refresh();
    assert_eq!(found, Refresh::Loaded { hash: book.current().hash().to_owned(), previous });
    assert_eq!(names(&book), ["two"]);
    assert_eq!(book.refresh(), Refresh::Unchanged);
    write(folder.path(), "more.rhai", ONE);
    assert!(matches!(book.refresh(), Refresh::Loaded { .. }));
    assert_eq!(names(&book), ["one", "two"], "by file name");
    fs::remove_file(folder.path().join("rules.rhai")).expect("remove");
    assert!(matches!(book.refresh(), Refresh::Loaded { .. }));
    assert_eq!(names(&book), ["one"]);
}

#[test]
fn a_file_that_is_touched_or_not_a_rule_file_changes_nothing() {
    let (folder, book) = with_one();
    write(folder.path(), "rules.rhai", ONE);
    assert_eq!(book.refresh(), Refresh::Unchanged, "the same text");
    write(folder.path(), "notes.txt", "not rules");
    write(folder.path(), ".hidden.rhai", "not rules");
    assert_eq!(book.refresh(), Refresh::Unchanged);
}

#[test]
fn a_half_saved_file_is_refused_once_and_the_old_set_stays() {
    let (folder, book) = with_one();
    let good = book.current().hash().to_owned();
    write(folder.path(), "rules.rhai", &TWO[..40]);
    let refusal = rejected(book.refresh());
    assert!(refusal.starts_with("rules.rhai:1:"), "{refusal}");
    assert_eq!(book.refresh(), Refresh::Unchanged, "told once");
    assert_eq!(names(&book), ["one"]);
    let status = book.status();
    assert_eq!((status.hash.as_str(), status.rejected_because), (good.as_str(), vec![refusal]));
    assert!(status.rejected_hash.is_some_and(|hash| hash.len() == 64 && hash != good));

    write(folder.path(), "rules.rhai", TWO);
    assert!(matches!(book.refresh(), Refresh::Loaded { previous, .. } if previous == good));
    assert_eq!(book.status().rejected_because, Vec::<String>::new());
}

#[test]
fn a_file_that_is_emptied_keeps_its_rules_and_one_that_is_removed_takes_them_along() {
    let (folder, book) = with_one();
    write(folder.path(), "more.rhai", TWO);
    write(folder.path(), "health.rhai", "deduct 5 when jobs.pending > 5 because \"x\";");
    assert!(matches!(book.refresh(), Refresh::Loaded { .. }));
    for emptied in ["", "// nothing yet\n", "/* the rest of it"] {
        for file in ["more.rhai", "health.rhai"] {
            let before = fs::read_to_string(folder.path().join(file)).expect("read");
            write(folder.path(), file, emptied);
            let refusal = rejected(book.refresh());
            assert_eq!(refusal, format!("{file}: holds no rule any more; to take its rules away, remove the file"));
            assert_eq!(book.status().rejected_because, [refusal]);
            assert_eq!(names(&book), ["two", "one"]);
            write(folder.path(), file, &before);
            assert!(matches!(book.refresh(), Refresh::Loaded { .. }), "taken back");
        }
    }
    // A new file may wait for its rules, and all of them may go with their file.
    write(folder.path(), "later.rhai", "");
    assert!(matches!(book.refresh(), Refresh::Loaded { .. }));
    fs::remove_file(folder.path().join("more.rhai")).expect("remove");
    assert!(matches!(book.refresh(), Refresh::Loaded { .. }));
    assert_eq!(names(&book), ["one"]);
    fs::remove_file(folder.path().join("rules.rhai")).expect("remove");
    assert!(rejected(book.refresh()).ends_with("there is no rule in the folder"));
    assert_eq!(names(&book), ["one"]);
}

#[test]
fn a_folder_without_a_single_rule_is_no_set() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "rules.rhai", &format!("/* {ONE}"));
    assert!(rejected(RuleBook::folder(folder.path()).refresh()).ends_with("there is no rule in the folder"));
}

#[test]
fn one_bad_file_keeps_the_whole_set_out() {
    let (folder, book) = with_one();
    write(folder.path(), "good.rhai", TWO);
    write(
        folder.path(),
        "bad.rhai",
        "rule \"bad\" priority 1 when jobs.pendng > 1 then rebalance_queue() because \"x\";",
    );
    assert_eq!(rejected(book.refresh()), "bad.rhai:1:33: unknown field jobs.pendng; did you mean jobs.pending?");
    assert_eq!(names(&book), ["one"]);
}

#[test]
fn taking_a_bad_change_back_is_told() {
    let (folder, book) = with_one();
    let hash = book.current().hash().to_owned();
    write(folder.path(), "rules.rhai", "rule");
    rejected(book.refresh());
    write(folder.path(), "rules.rhai", ONE);
    assert_eq!(book.refresh(), Refresh::Loaded { hash: hash.clone(), previous: hash });
    assert_eq!(book.status().rejected_hash, None);
}

#[test]
fn a_deleted_or_empty_folder_leaves_the_old_set_in_force() {
    let (folder, book) = with_one();
    fs::remove_file(folder.path().join("rules.rhai")).expect("remove");
    assert!(rejected(book.refresh()).ends_with("the folder holds no .rhai file"));
    let path = folder.path().to_owned();
    drop(folder);
    assert!(rejected(book.refresh()).contains("the folder cannot be read"));
    assert_eq!(book.refresh(), Refresh::Unchanged, "told once");
    assert_eq!(names(&book), ["one"]);
    assert_eq!(book.status().rejected_hash, None, "nothing could be read");
    fs::create_dir(&path).expect("a folder again");
    write(&path, "rules.rhai", TWO);
    assert!(matches!(book.refresh(), Refresh::Loaded { .. }));
    assert_eq!(names(&book), ["two"]);
    fs::remove_dir_all(path).expect("clean");
}

#[test]
fn a_bad_folder_at_start_up_falls_back_to_the_built_in_rules_and_says_so() {
    let book = RuleBook::folder("/nowhere/at/all");
    assert_eq!(book.status().count, 20);
    assert!(book.status().rejected_because[0].contains("/nowhere/at/all: the folder cannot be read"));
    assert!(rejected(book.refresh()).contains("cannot be read"));
    assert_eq!(book.refresh(), Refresh::Unchanged);
}

#[test]
fn what_cannot_be_read_as_rules_is_refused() {
    let (folder, book) = with_one();
    fs::write(folder.path().join("bytes.rhai"), [0xff, 0xfe]).expect("write");
    assert!(rejected(book.refresh()).starts_with("bytes.rhai: cannot be read: "));
    fs::write(folder.path().join("bytes.rhai"), " ".repeat(256 * 1024 + 1)).expect("write");
    assert!(rejected(book.refresh()).contains("at most 262144 are taken"));
    fs::remove_file(folder.path().join("bytes.rhai")).expect("remove");
    fs::write(folder.path().join("a\tb.rhai"), ONE).expect("write");
    assert!(rejected(book.refresh()).contains("control characters"));
}

#[test]
fn init_writes_the_built_in_rules_and_overwrites_nothing() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("rules");
    let files = rules::init(&folder).expect("written");
    assert_eq!(files.len(), 7);
    let book = RuleBook::folder(&folder);
    assert_eq!(book.current().hash(), RuleSet::built_in().hash());

    fs::remove_file(folder.join("campaigns.rhai")).expect("remove");
    fs::write(folder.join("queue.rhai"), ONE).expect("write");
    let error = rules::init(&folder).expect_err("files are there");
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("clips.rhai already exists; nothing was written"), "{error}");
    assert!(!folder.join("campaigns.rhai").exists());
    assert_eq!(fs::read_to_string(folder.join("queue.rhai")).expect("read"), ONE);
}

#[test]
fn a_platform_that_nobody_configured_is_found_at_load() {
    let folder = tempfile::tempdir().expect("a folder");
    let platforms = || vec!["instagram".to_owned(), "tiktok".to_owned()];
    for (call, wanted) in [
        (
            "schedule_clip(1, \"tiktokk\")",
            "test.rhai:2:43: rule a: no platform `tiktokk` is configured; did you mean tiktok?",
        ),
        ("schedule_clip(1, \"tikt\u{43e}k\")", "did you mean tiktok?"),
        ("schedule_clip(1, PLACE)", "no platform `myspace` is configured; publishing.platforms has instagram, tiktok"),
    ] {
        let source = format!("const PLACE = \"myspace\";\nrule \"a\" priority 1 then {call} because \"x\";");
        std::fs::write(folder.path().join("test.rhai"), &source).expect("a file");
        let status = RuleBook::folder_for(folder.path(), platforms()).status();
        assert!(status.rejected_because.join("\n").contains(wanted), "{call}: {:?}", status.rejected_because);
        assert!(RuleBook::folder(folder.path()).status().rejected_because.is_empty(), "any, where nobody said");
    }
    std::fs::write(
        folder.path().join("test.rhai"),
        "rule \"a\" priority 1 then schedule_clip(1, \"tiktok\") because \"x\";",
    )
    .expect("a file");
    assert!(RuleBook::folder_for(folder.path(), platforms()).status().rejected_because.is_empty());
}
