//! What the process holds after a hundred thousand cycles: the whole service in a process of its own, with doors,
//! worker, dispatcher and upkeep, on a database that this process has filled, its loop driven as fast as it goes.

use std::process::Command;

use showrunner::app::{App, Mode, Parts};
use showrunner::clock::SystemClock;
use showrunner::config::Config;
use showrunner::db::{Db, Options};
use showrunner::random::Random;

use crate::support::{Goal, Loop, Place, Report, platform, resident_mebibytes};

/// The first argument of the process that is measured.
pub const CHILD: &str = "memory-child";

pub async fn measure(report: &mut Report) {
    report.part("Memory (resident set, SQLite)");
    let place = Place::sqlite();
    let db = place.open(SystemClock::shared()).await;
    platform::fill(&place.url, db.dialect(), 32_258).await;
    db.close().await;
    let marks = if report.quick { [100, 200, 400] } else { [1_000, 10_000, 100_000] };
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let output =
        command.arg(CHILD).arg(&place.url).args(marks.map(|mark: u32| mark.to_string())).output().expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let held: Vec<f64> = text.lines().map(|line| line.parse().expect("a number")).collect();
    for (mark, mebibytes) in marks.iter().zip(&held) {
        let goal = if *mark == marks[2] { Goal::AtMost(64.0) } else { Goal::None };
        report.figure(&format!("after {mark} cycles"), *mebibytes, "MiB", goal);
    }
    report.figure("last ÷ the one before, ten times the cycles", held[2] / held[1], "×", Goal::AtMost(1.1));
}

/// Runs the service on the database of the first argument, and its cycles; prints the resident set in MiB at each
/// mark that the others give.
pub async fn child(arguments: &[String]) {
    let (url, marks) = arguments.split_first().expect("a database");
    let clock = SystemClock::shared();
    let db = Db::open(&Options::new(url), clock.clone()).await.expect("the database");
    // This loop leads before the service's own could.
    let mut driven = Loop::over(&db, &clock).await;
    let config = Config { database_url: url.clone(), port: 0, ..Config::default() };
    let parts = Parts {
        config,
        clock: clock.clone(),
        random: Random::seeded(1),
        db: Some(db.clone()),
        mode: Mode::Serve,
        listen: true,
    };
    let app = App::start(parts).await.expect("the service");
    let mut done = 0;
    for mark in marks {
        let mark: u32 = mark.parse().expect("a number");
        while done < mark {
            driven.cycle().await;
            done += 1;
        }
        println!("{}", resident_mebibytes(std::process::id()));
    }
    drop(driven);
    app.stop().await;
    db.close().await;
}
