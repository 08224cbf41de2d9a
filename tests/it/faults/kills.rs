//! Killed at random under load, and told to stop in the middle of a publication.
//!
//! `KILLS=500` kills more often than the default; `KILLS_SEED` replays a storm's waits and choices.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use showrunner::random::Random;

use super::{PATIENCE, account, borrowed, chain_is_whole, cycle_after_now, load, serve, settings};
use crate::on_both;
use crate::support::World;
use crate::support::receiver::Receiver;

/// Kills of one storm; hundreds are asked for by hand.
const KILLS: u64 = 24;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// The program, which may not live until it listens.
fn launch(world: &World, settings: &[(&'static str, String)]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_showrunner"));
    command.arg("serve").env("DATABASE_URL", world.url()).env("PORT", "0").env("LOG_LEVEL", "error");
    command.envs(borrowed(settings)).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program starts")
}

on_both! {
    async fn a_storm_of_kills_loses_nothing_and_doubles_nothing(world) {
        let seed = number_from("KILLS_SEED").unwrap_or_else(|| Random::from_machine().seed());
        let kills = number_from("KILLS").unwrap_or(KILLS);
        eprintln!("KILLS={kills} KILLS_SEED={seed}");
        let random = Random::seeded(seed);
        let receiver = Receiver::answering(Some(Duration::from_millis(20))).await;
        let settings = settings(&mut world, &receiver);
        let mut instances = vec![launch(&world, &settings)];
        let mut publications = 0;
        for kill in 0..kills {
            if kill == kills / 2 {
                instances.push(launch(&world, &settings)); // the second half is stormed with two
            }
            load(&world, 3).await;
            publications += 3;
            // No sign is waited for: a kill may come anywhere, also before the program listens.
            tokio::time::sleep(Duration::from_millis(random.between(10, 1_200))).await;
            let place = random.between(0, instances.len() as u64 - 1) as usize;
            let mut struck = std::mem::replace(&mut instances[place], launch(&world, &settings));
            struck.kill().expect("it is killed");
            struck.wait().expect("it is gone");
        }
        for mut instance in instances {
            instance.kill().expect("it is killed");
            instance.wait().expect("it is gone");
        }
        let process = serve(&world, &settings).await;
        cycle_after_now(&world).await;
        account(&world, &receiver, publications).await;
        let left = world.ledger_of(&process, "orchestrator.leader_acquired").await;
        assert!(left.iter().any(|entry| entry["payload"]["left_by"].is_string()), "the ledger names who was killed");
        assert_eq!(world.number("SELECT COUNT(*) FROM cycles WHERE status = 'running' AND finished_at IS NOT NULL").await, 0);
        process.until("/readyz", 200, "ok", PATIENCE).await;
        chain_is_whole(&process).await;
        assert_eq!(process.end("TERM").await, Some(0));
    }

    async fn a_kill_leaves_a_gap_that_status_and_ledger_tell(world) {
        let receiver = Receiver::answering(Some(Duration::ZERO)).await;
        let settings = settings(&mut world, &receiver);
        let first = serve(&world, &settings).await;
        cycle_after_now(&world).await;
        let old = first.instance().await;
        first.end("KILL").await;
        // Three intervals go by with nobody there, and the lease with them: the next one starts at once, and waits.
        let second = serve(&world, &settings).await;
        cycle_after_now(&world).await;
        let gap = second.get("/orchestrator/status").await["last_gap"].clone();
        assert!(gap["because"].as_str().is_some_and(|words| words.contains(&old)), "{gap}");
        assert!(gap["seconds"].as_u64().is_some_and(|seconds| (3..60).contains(&seconds)), "{gap}");
        let entries = world.ledger_of(&second, "orchestrator.gap").await;
        assert_eq!(entries[0]["payload"], gap);
        // After a clean stop nobody is blamed, and where no cycle is missing nothing is said.
        assert_eq!(second.end("TERM").await, Some(0));
        let third = serve(&world, &settings).await;
        cycle_after_now(&world).await;
        let acquired = world.ledger_of(&third, "orchestrator.leader_acquired").await;
        assert!(acquired[0]["payload"]["left_by"].is_null(), "{}", acquired[0]);
    }

    async fn a_stop_in_the_middle_of_a_publication_writes_down_what_became_of_it(world) {
        for (delay, outcome) in [(Some(Duration::from_millis(700)), "published"), (None, "unknown")] {
            let receiver = Receiver::answering(delay).await;
            let settings = settings(&mut world, &receiver);
            let process = serve(&world, &settings).await;
            process.poke("/orchestrator/disable").await; // nobody is to ask the receiver what became of it
            load(&world, 1).await;
            world.until("SELECT status FROM publish_logs WHERE id = (SELECT MAX(id) FROM publish_logs)", "publishing").await;
            while receiver.posts().is_empty() {
                tokio::task::yield_now().await;
            }
            let began = tokio::time::Instant::now();
            assert_eq!(process.end("TERM").await, Some(0));
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
            let status = world.text("SELECT status FROM publish_logs WHERE id = (SELECT MAX(id) FROM publish_logs)").await;
            assert_eq!(status, outcome);
            assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE status = 'processing'").await, 0);
        }
    }
}
