//! Measured speed: `cargo bench`, or `cargo bench -- cycle ledger` for some of it; docs/BENCHMARKS.md has the results.
//!
//! Each part prints a line per figure as it comes, with its goal. A missed goal is printed as missed and nothing more:
//! a timing never fails the run. What does fail it is work that is wrong: a cycle that is not idle, a chain that does
//! not verify, a publication that is lost.
//!
//! `-- --quick` takes small counts, to see that everything runs. PostgreSQL is named by
//! `SHOWRUNNER_TEST_POSTGRES_URL`, else looked for on 127.0.0.1:5432; without it those lines are left out.

#![allow(clippy::disallowed_methods)] // a benchmark measures the machine's own time

mod cycle;
mod ledger;
mod memory;
mod publications;
mod rules;
mod start;
mod support;

use support::Report;

#[tokio::main]
async fn main() {
    // Cargo itself adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().map(String::as_str) == Some(memory::CHILD) {
        return memory::child(&arguments[1..]).await;
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let chosen = |name: &str| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|argument| argument == name)
    };
    let mut report = Report::begin(quick);
    if chosen("rules") {
        rules::measure(&mut report);
    }
    if chosen("cycle") {
        cycle::measure(&mut report).await;
    }
    if chosen("ledger") {
        ledger::measure(&mut report).await;
    }
    if chosen("memory") {
        memory::measure(&mut report).await;
    }
    if chosen("start") {
        start::measure(&mut report).await;
    }
    if chosen("publications") {
        publications::measure(&mut report).await;
    }
    report.end();
}
