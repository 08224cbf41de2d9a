//! The status page in a real browser: it shows health and the last cycles, and changes when a cycle runs.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::on_both;
use crate::support::World;

/// Set where a skipped test is a failure.
const REQUIRE_VARIABLE: &str = "SHOWRUNNER_TEST_REQUIRE_CHROMIUM";

fn browser() -> Option<PathBuf> {
    let named = std::env::var_os("SHOWRUNNER_TEST_CHROMIUM").map(PathBuf::from);
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders)
        .flat_map(|folder| ["chromium", "chromium-browser", "google-chrome"].map(|name| folder.join(name)))
        .find(|file| file.is_file());
    named.or(found)
}

/// The document as the browser has it after the page's own scripts have run for some seconds.
async fn rendered(browser: &std::path::Path, url: &str) -> String {
    let profile = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(browser);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("a task").expect("the browser runs");
    String::from_utf8(output.stdout).expect("a document")
}

/// The text of the element with this id, without its tags.
fn text_of(document: &str, id: &str) -> String {
    let (_, rest) = document.split_once(&format!("id=\"{id}\"")).unwrap_or_else(|| panic!("#{id} is on the page"));
    let (_, rest) = rest.split_once('>').expect("an opening tag");
    let mut depth = 0;
    let mut text = String::new();
    for piece in rest.split('<') {
        let (tag, words) = piece.split_once('>').unwrap_or(("", piece));
        if tag.starts_with('/') {
            depth -= 1;
        } else if !tag.is_empty() && !tag.ends_with('/') {
            depth += 1;
        }
        if depth < 0 {
            break;
        }
        text.push_str(words);
        text.push(' ');
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn page(world: &World, browser: &std::path::Path) -> String {
    let address = world.app.as_ref().and_then(showrunner::app::App::address).expect("a listening service");
    rendered(browser, &format!("http://{address}/")).await
}

on_both! {
    async fn the_page_shows_health_and_cycles_and_changes_when_one_runs(world) {
        let Some(browser) = browser() else {
            assert!(std::env::var_os(REQUIRE_VARIABLE).is_none(), "{REQUIRE_VARIABLE} is set and there is no Chromium");
            eprintln!("skipped: no Chromium found; install it, or name it by SHOWRUNNER_TEST_CHROMIUM");
            return;
        };
        world.start_still().await;
        world.run_once().await;
        let before = page(&world, &browser).await;
        assert_eq!(text_of(&before, "health-score"), "100");
        assert!(text_of(&before, "health-status").to_lowercase().contains("healthy"));
        assert!(!text_of(&before, "cycles").contains("rebalance_queue"));

        world.pending_jobs(51, 31).await;
        world.run_once().await;
        let after = page(&world, &browser).await;
        assert_eq!(text_of(&after, "health-score"), "65", "saturated, and old");
        assert!(text_of(&after, "health-status").to_lowercase().contains("degraded"));
        let cycles = text_of(&after, "cycles");
        assert!(cycles.contains("rebalance_queue") && cycles.contains("51 jobs are pending"), "{cycles}");
        assert!(after.contains("<svg") && after.contains("id=\"health-chart\""));
    }
}
