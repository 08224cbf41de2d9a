//! Imports go down the floors only, and never sideways between planes.

use std::fs;
use std::path::{Path, PathBuf};

/// The floor of a room, by its path below `src/`.
fn floor(room: &str) -> Option<u8> {
    let top = room.split("::").next().unwrap_or_default();
    Some(match top {
        "actor" | "backoff" | "clock" | "config" | "panic" | "problem" | "random" | "telemetry" => 0,
        "db" | "storage" | "web" => 1,
        "events" | "ledger" => 2,
        // What all planes share stands in planes/mod.rs, on the lower of their floors.
        "planes" if room.starts_with("planes::queue") || room == "planes" => 3,
        "planes" if room["planes::".len()..].starts_with(char::is_uppercase) => 3,
        "planes" => 4,
        "control" => 5,
        "app" | "cli" | "dashboard" | "http" | "main" | "lib" => 6,
        _ => return None,
    })
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The room of a file: `src/planes/queue/store.rs` is `planes::queue::store`.
fn room_of(file: &Path, root: &Path) -> String {
    let below = file.strip_prefix(root).expect("below the source").with_extension("");
    let parts: Vec<_> =
        below.iter().map(|part| part.to_string_lossy().into_owned()).filter(|part| part != "mod").collect();
    parts.join("::")
}

/// The rooms that a file names as `crate::…`, in `use` lines and in paths; groups are taken apart.
fn rooms_named(text: &str) -> Vec<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut named = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue; // a macro's own path is resolved where it is used
        }
        let rest = &code[at + "crate::".len()..];
        let is_path = |c: &char| c.is_alphanumeric() || *c == '_' || *c == ':';
        let path: String = rest.chars().take_while(is_path).collect();
        match rest[path.len()..].strip_prefix('{') {
            Some(group) => {
                let members = group.split('}').next().unwrap_or_default().split(',');
                let member = |member: &str| member.trim().chars().take_while(is_path).collect::<String>();
                named.extend(members.map(|text| format!("{path}{}", member(text))).filter(|name| *name != path));
            }
            None => named.push(path),
        }
    }
    named
}

/// Why `room` may not import `named`, if it may not.
fn breach(room: &str, named: &str) -> Option<String> {
    let here = floor(room).unwrap_or_else(|| panic!("src/{room} has no floor: add it to this test and to src/lib.rs"));
    let there = floor(named)?; // none for a macro or a type of the crate's root
    if there > here {
        return Some(format!("{room} (floor {here}) imports {named} (floor {there}): up"));
    }
    let plane =
        |room: &str| room.strip_prefix("planes::").map(|rest| rest.split("::").next().unwrap_or_default().to_owned());
    match (plane(room), plane(named)) {
        (Some(mine), Some(other))
            if mine != other && other != "queue" && other.chars().next().is_some_and(char::is_lowercase) =>
        {
            Some(format!("{room} imports {named}: sideways between planes"))
        }
        _ => None,
    }
}

#[test]
fn imports_go_down_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut breaches = Vec::new();
    for file in files {
        let room = room_of(&file, &root);
        let text = fs::read_to_string(&file).expect("a source file");
        breaches.extend(rooms_named(&text).iter().filter_map(|named| breach(&room, named)));
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn the_test_of_the_floors_can_fail() {
    assert!(breach("db::query", "control::runner").is_some());
    assert!(breach("planes::publishing::act", "planes::fleet::store").is_some());
    assert!(breach("planes::queue", "planes::publishing::act").is_some());
    assert!(breach("planes::publishing::act", "planes::queue::enqueue").is_none());
    let text = "use crate::{db::Db, http};\nlet x = crate::ledger::append();";
    assert_eq!(rooms_named(text), ["db::Db", "http", "ledger::append"]);
}

/// The names under which a file's types stand in the OpenAPI document.
fn schemas(text: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|letter| letter.is_alphanumeric()).collect::<String>();
    let (mut names, mut is_shown, mut renamed) = (Vec::new(), false, None);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[derive(") && line.contains("ToSchema") {
            (is_shown, renamed) = (true, None);
        } else if let Some(name) = line.strip_prefix("#[schema(as = ") {
            renamed = Some(word(name));
        }
        let item = line.trim_start_matches("pub(super) ").trim_start_matches("pub ");
        let named = item.strip_prefix("struct ").or_else(|| item.strip_prefix("enum "));
        if let Some(name) = named.filter(|_| is_shown) {
            names.push(renamed.take().unwrap_or_else(|| word(name)));
            is_shown = false;
        }
    }
    names
}

#[test]
fn no_two_schemas_of_the_document_share_a_name() {
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let read = |file: &PathBuf| schemas(&fs::read_to_string(file).expect("a file of the source"));
    let mut names: Vec<String> = files.iter().flat_map(read).collect();
    names.sort_unstable();
    let twice: Vec<&[String]> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(names.len() > 100 && twice.is_empty(), "one of two would stand for both: {twice:?}");
}
