//! SQLite without room, locked by another process, and with its file taken away.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};

use super::{PATIENCE, account, chain_is_whole, cycle_after_now, load, serve, settings};
use crate::support::World;
use crate::support::process::Process;
use crate::support::receiver::Receiver;
use crate::support::world::time;

/// What every one of these faults comes to: said at once where it is asked, and over when its cause is.
async fn is_said(process: &Process, words: &str) {
    process.until("/readyz", 503, words, PATIENCE).await;
    let status = process.until("/orchestrator/status", 200, words, PATIENCE).await;
    assert!(status["database"]["since"].is_string(), "{status}");
}

async fn is_over(world: &World, process: &Process) {
    cycle_after_now(world).await;
    process.until("/readyz", 200, "ok", PATIENCE).await;
    let status = process.get("/orchestrator/status").await;
    assert!(status["database"].is_null(), "{status}");
    // A cycle that itself waited for the database ends well; the next one says which ticks it took.
    let told = "SELECT CASE WHEN EXISTS (SELECT 1 FROM ledger_entries WHERE event_type IN ('orchestrator.gap',
            'orchestrator.cycle_error') OR (event_type = 'orchestrator.cycle_started' AND payload LIKE '%\"skipped_ticks\"%'))
        THEN 'told' ELSE 'nothing' END";
    world.until(told, "told").await;
}

/// Waits until the fault has lasted for some seconds.
async fn lasts(process: &Process, seconds: i64) {
    let lasted = |status: &serde_json::Value| {
        let at = |field: &str| status["database"][field].as_str().map(time);
        at("since").zip(at("last")).is_some_and(|(since, last)| (last - since).num_seconds() >= seconds)
    };
    let patience = tokio::time::Instant::now() + PATIENCE;
    while !lasted(&process.get("/orchestrator/status").await) {
        assert!(tokio::time::Instant::now() < patience, "it is over too soon");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A small disk; there is one only where we may mount.
struct Disk(tempfile::TempDir);

impl Disk {
    fn of_megabytes(size: u32) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}m"), "showrunner-test"])
            .arg(folder.path())
            .status();
        let mounted = mounted.is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("skipped: no small disk can be mounted here; root can");
        }
        mounted.then_some(Self(folder))
    }

    /// Takes all the room that is left; returns the file to remove.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("ballast");
        let mut file = std::fs::File::create(&path).expect("a file");
        for size in [65_536, 4_096, 512] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn url_of(file: &Path) -> String {
    format!("sqlite://{}", file.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_gone_on_from() {
    let Some(disk) = Disk::of_megabytes(16) else { return };
    let file = disk.0.path().join("showrunner.db");
    let mut world = World::at(url_of(&file)).await;
    let receiver = Receiver::answering(Some(Duration::from_millis(20))).await;
    let settings = settings(&mut world, &receiver);
    let process = serve(&world, &settings).await;
    load(&world, 5).await;
    cycle_after_now(&world).await;
    let ballast = disk.fill();
    is_said(&process, "full; make room on its disk").await;
    let clip = serde_json::json!({ "title": "x", "media_uri": "s3://x", "visual_score": 1 });
    let refused = process.post("/v1/clips", &clip).await;
    assert_eq!(refused.0, 503, "{}", refused.1);
    lasts(&process, 4).await;
    std::fs::remove_file(ballast).expect("room again");
    is_over(&world, &process).await;
    load(&world, 5).await;
    account(&world, &receiver, 10).await;
    chain_is_whole(&process).await;
    assert_eq!(process.end("TERM").await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_may_not_grow_are_said_and_gone_on_from() {
    let mut world = World::on_sqlite().await;
    let receiver = Receiver::answering(Some(Duration::from_millis(20))).await;
    let settings = settings(&mut world, &receiver);
    let process = serve(&world, &settings).await;
    load(&world, 5).await;
    cycle_after_now(&world).await;
    let limited = |limit: &str| {
        let id = process.id().to_string();
        Command::new("prlimit").args(["--pid", &id, &format!("--fsize={limit}:")]).status()
    };
    if !limited("4096").is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no `prlimit` here");
        return;
    }
    is_said(&process, "the size of files limited?").await;
    lasts(&process, 4).await;
    assert!(limited("unlimited").expect("prlimit").success());
    is_over(&world, &process).await;
    account(&world, &receiver, 5).await;
    chain_is_whole(&process).await;
    assert_eq!(process.end("TERM").await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_another_process_holds_locked_is_said_and_gone_on_from() {
    let mut world = World::on_sqlite().await;
    let receiver = Receiver::answering(Some(Duration::from_millis(20))).await;
    let settings = settings(&mut world, &receiver);
    let process = serve(&world, &settings).await;
    cycle_after_now(&world).await;
    load(&world, 5).await;
    let mut other = SqliteConnection::connect(world.url()).await.expect("another process's connection");
    sqlx::raw_sql("PRAGMA busy_timeout = 30000; BEGIN IMMEDIATE").execute(&mut other).await.expect("the lock");
    is_said(&process, "another process holds the database's write lock").await;
    lasts(&process, 4).await;
    sqlx::raw_sql("COMMIT").execute(&mut other).await.expect("the lock is given back");
    is_over(&world, &process).await;
    account(&world, &receiver, 5).await;
    chain_is_whole(&process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_taken_away_is_not_written_to() {
    let mut world = World::on_sqlite().await;
    let receiver = Receiver::answering(Some(Duration::from_millis(20))).await;
    let settings = settings(&mut world, &receiver);
    let process = serve(&world, &settings).await;
    cycle_after_now(&world).await;
    load(&world, 5).await;
    let (file, away) = (world.folder().join("showrunner.db"), world.folder().join("away.db"));
    std::fs::rename(&file, &away).expect("it is moved");
    is_said(&process, "was removed or replaced").await;
    std::fs::write(&file, "another file in its place").expect("a file");
    is_said(&process, "put it back, or restart").await;
    lasts(&process, 4).await;
    std::fs::rename(&away, &file).expect("it is back");
    is_over(&world, &process).await;
    account(&world, &receiver, 5).await;
    chain_is_whole(&process).await;
    assert_eq!(process.end("TERM").await, Some(0));
}
