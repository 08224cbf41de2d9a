//! What the documents say and the examples show is what the program takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use showrunner::config::{Config, Loaded, Overrides};
use showrunner::control::action::ACTION_KINDS;
use showrunner::control::decider::RuleBook;

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(at(path)).expect("a document")
}

/// The keys of the configuration as the README writes them.
fn collect(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
    let Value::Object(fields) = value else {
        keys.insert(path.to_owned());
        return;
    };
    for (name, value) in fields {
        let shown = match path {
            "publishing.platforms" => "NAME",
            "governors.budgets" => "ACTION",
            _ => name,
        };
        collect(value, format!("{path}.{shown}").trim_start_matches('.'), keys);
    }
}

#[test]
fn the_readme_lists_every_setting_and_no_other() {
    let mut keys = BTreeSet::new();
    collect(&serde_json::to_value(Config::default()).expect("JSON"), "", &mut keys);
    let readme = text("README.md");
    let table = readme.split("| key | environment |").nth(1).expect("the table of settings");
    let listed: BTreeSet<String> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.split('`').nth(1).map(str::to_owned))
        .collect();
    assert_eq!(listed, keys);
}

#[test]
fn the_example_configuration_holds_the_defaults() {
    let overrides = Overrides { file: Some(at("examples/showrunner.yaml")), ..Overrides::default() };
    let loaded = Loaded::read(&overrides, [], Path::new("."), &ACTION_KINDS).expect("a configuration that is taken");
    let json = |config: &Config| serde_json::to_value(config).expect("JSON");
    assert_eq!(json(&loaded.config), json(&Config::default()));
}

#[test]
fn the_example_rules_are_good() {
    let status = RuleBook::folder(at("examples/rules")).status();
    assert_eq!(status.rejected_because, Vec::<String>::new());
    assert_eq!(status.count, 3);
}

#[test]
fn the_rule_in_the_readme_is_good() {
    let readme = text("README.md");
    let rule =
        readme.split("<<'END'\n").nth(1).and_then(|rest| rest.split("END\n").next()).expect("the worked example");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("decent.rhai"), rule).expect("a file");
    let status = RuleBook::folder(folder.path()).status();
    assert_eq!((status.rejected_because, status.count), (Vec::new(), 1));
}

/// Every name in code type that has a path or an underscore is somewhere in the source.
#[test]
fn the_architecture_names_what_exists() {
    fn read(folder: &Path, source: &mut String) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                read(&path, source);
            } else {
                source.push_str(&std::fs::read_to_string(&path).unwrap_or_default());
            }
        }
    }
    let mut source = String::new();
    ["src", "migrations"].iter().for_each(|folder| read(&at(folder), &mut source));
    let words: BTreeSet<&str> = source.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let document = text("docs/ARCHITECTURE.md");
    let mut missing = Vec::new();
    for name in document.split('`').skip(1).step_by(2) {
        let is_name = name.chars().all(|c| c.is_alphanumeric() || "_:.".contains(c));
        if is_name && !name.ends_with(".rs") && !name.ends_with(".toml") && !name.ends_with(".rhai") {
            missing.extend(name.split([':', '.']).filter(|part| !part.is_empty() && !words.contains(part)));
        } else if name.ends_with(".rs")
            && !["", "src", "src/planes", "src/control"].iter().any(|root| at(root).join(name).exists())
        {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}
