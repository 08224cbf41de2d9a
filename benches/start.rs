//! From the start of the real program to its first cycle in the ledger, on a database with a history.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use showrunner::clock::SystemClock;
use showrunner::control::fold_tallies;

use crate::support::{Goal, Place, Report, percentile, platform, resident_mebibytes};

pub async fn measure(report: &mut Report) {
    report.part("Start, on a database of 1 M rows");
    let jobs = report.count(322_581, 3_226) as u64;
    for place in Place::both().await {
        let db = place.open(SystemClock::shared()).await;
        platform::fill(&place.url, db.dialect(), jobs).await;
        fold_tallies(&db).await.expect("tallies fold");
        let (mut times, mut held) = (Vec::new(), 0.0_f64);
        for start in 0..report.count(7, 2) {
            let (took, mebibytes) = first_cycle(&place.url);
            let (cycles,): (i64,) = db.query("SELECT COUNT(*) FROM cycles").one().await.expect("a count");
            assert!(cycles > start as i64, "what the log says is in the database");
            times.push(took);
            held = held.max(mebibytes);
        }
        let name = place.name;
        report.figure(&format!("{name}: start to first cycle"), percentile(&mut times, 0.5), "ms", Goal::AtMost(300.0));
        report.figure(&format!("{name}: the slowest of them"), percentile(&mut times, 1.0), "ms", Goal::None);
        report.figure(&format!("{name}: resident after it"), held, "MiB", Goal::AtMost(64.0));
        place.close(db).await;
    }
}

/// Starts the program, waits until its log tells of a cycle (it does after the commit), and stops it cleanly, so that
/// the lease is free for the next one.
fn first_cycle(url: &str) -> (Duration, f64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_showrunner"));
    command.arg("serve").env("DATABASE_URL", url).env("PORT", "0").env("ORCHESTRATOR_ENABLED", "true");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines().map_while(Result::ok);
    let mut said = String::new();
    let found = lines.by_ref().any(|line| {
        said.push_str(&line);
        line.contains("Cycle ")
    });
    let took = began.elapsed();
    assert!(found, "no cycle: {said}");
    let held = resident_mebibytes(child.id());
    let stopped = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill");
    assert!(stopped.success());
    lines.for_each(drop); // until it ends
    assert!(child.wait().expect("its end").success());
    (took, held)
}
