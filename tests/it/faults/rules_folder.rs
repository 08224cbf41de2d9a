//! The folder of rules deleted, replaced by what is no folder, filled with what is no file, and edited without end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{BUSY, PATIENCE, cycle_after_now, serve, settings};
use crate::support::World;
use crate::support::receiver::Receiver;

fn clear(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    let _ = fs::remove_file(folder);
}

fn restore(folder: &Path) {
    clear(folder);
    fs::create_dir_all(folder).expect("a folder");
    fs::write(folder.join("busy.rhai"), BUSY).expect("a file");
}

/// A way to spoil the folder, and what is then said.
type Fault = (&'static str, fn(&Path));

const FAULTS: &[Fault] = &[
    ("the folder cannot be read", clear),
    ("the folder cannot be read", |folder| {
        clear(folder);
        fs::write(folder, "a file in its place").expect("a file");
    }),
    ("the folder cannot be read", |folder| {
        clear(folder);
        std::os::unix::fs::symlink(folder.with_file_name("nowhere"), folder).expect("a link");
    }),
    ("no .rhai file", |folder| {
        clear(folder);
        fs::create_dir(folder).expect("a folder");
    }),
    ("pipe.rhai is no file", |folder| {
        let made = Command::new("mkfifo").arg(folder.join("pipe.rhai")).status();
        assert!(made.expect("mkfifo").success());
    }),
    ("at most", |folder| {
        let file = fs::File::create(folder.join("huge.rhai")).expect("a file");
        file.set_len(1 << 30).expect("a hole of a gigabyte");
    }),
    ("cannot be read", |folder| fs::write(folder.join("noise.rhai"), [0xff, 0xfe, 0x00]).expect("a file")),
    ("link.rhai", |folder| std::os::unix::fs::symlink("nowhere", folder.join("link.rhai")).expect("a link")),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoilt_folder_leaves_the_last_good_rules_in_force() {
    let mut world = World::on_sqlite().await;
    let receiver = Receiver::answering(Some(Duration::ZERO)).await;
    let settings = settings(&mut world, &receiver);
    let folder = world.folder().join("rules");
    let process = serve(&world, &settings).await;
    cycle_after_now(&world).await;
    let good = process.get("/orchestrator/status").await["rules"]["hash"].clone();
    for (words, spoil) in FAULTS {
        spoil(&folder);
        let status = process.until("/orchestrator/status", 200, words, PATIENCE).await;
        assert_eq!(status["rules"]["hash"], good, "{words}");
        cycle_after_now(&world).await;
        restore(&folder);
        process.until("/orchestrator/status", 200, "\"rejected_because\":[]", PATIENCE).await;
    }
    let told = "SELECT COUNT(*) FROM ledger_entries WHERE event_type = 'orchestrator.rules_rejected'";
    assert_eq!(world.number(told).await, FAULTS.len() as i64, "each fault once, however long it lasted");
    // Who starts while the folder is empty goes on by the rules of the last cycle.
    clear(&folder);
    fs::create_dir(&folder).expect("a folder");
    process.end("KILL").await;
    let second = serve(&world, &settings).await;
    assert_eq!(second.get("/orchestrator/status").await["rules"]["hash"], good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_edits_are_looked_at_once_a_cycle() {
    let mut world = World::on_sqlite().await;
    let receiver = Receiver::answering(Some(Duration::ZERO)).await;
    let settings = settings(&mut world, &receiver);
    let file = world.folder().join("rules").join("busy.rhai");
    let process = serve(&world, &settings).await;
    cycle_after_now(&world).await;
    for edit in 0..1_000 {
        let text = format!("{BUSY}\n// edit {edit}\n");
        let length = if edit % 3 == 0 { text.len() / 2 } else { text.len() }; // as an editor leaves it half-way
        fs::write(&file, &text[..length]).expect("an edit");
        tokio::time::sleep(Duration::from_millis(4)).await; // spread over several cycles
    }
    fs::write(&file, BUSY).expect("the last edit");
    cycle_after_now(&world).await;
    cycle_after_now(&world).await;
    process.until("/orchestrator/status", 200, "\"rejected_because\":[]", PATIENCE).await;
    let cycles = world.number("SELECT COUNT(*) FROM cycles").await;
    let told = "SELECT COUNT(*) FROM ledger_entries WHERE event_type LIKE 'orchestrator.rules_%'";
    let told = world.number(told).await;
    assert!((1..=cycles).contains(&told), "{told} entries in {cycles} cycles");
    assert!(cycles < 100, "{cycles} cycles: an edit brings none");
    assert_eq!(world.number("SELECT COUNT(*) FROM cycles WHERE status = 'error'").await, 0);
}
