//! The whole service, its doors aside, in one process on a simulated clock: three instances, other programs,
//! operators, platforms that lie, and a database that fails, stalls and loses answers, all from a seed.
//!
//! `SIM_SEEDS=5000` runs more seeds, `SIM_SEED=17` one, `SIM_STEPS=40` only its first steps. A seed that fails prints
//! itself, the shortest beginning that still fails, and the command that replays it.

mod clock;
mod faults;
mod instance;
mod invariants;
mod platform;
mod world;

use showrunner::clock::Clock;
use showrunner::db::Timestamp;

use world::World;

/// Seeds of a usual test run: about a minute.
const SEEDS: u64 = 40;
/// Things that happen before the faults stop.
const STEPS: u64 = 250;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs a seed; the error says which step broke what.
fn run(seed: u64, steps: u64, talk: bool) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut world = World::new(seed).await;
        for step in 0..steps {
            let happened = world.happen().await;
            if talk {
                eprintln!("{step}: {happened}");
            }
            world.check(step % 25 == 24).await.map_err(|broken| format!("step {step} ({happened}): {broken}"))?;
        }
        let result = async {
            world.settle().await?;
            world.check(true).await?;
            invariants::terms(&world.db).await?;
            invariants::governors(&world.db, &world.config).await?;
            invariants::replays(&world.db).await?;
            invariants::settled(&world.db, &world.platform, Timestamp::new(world.clock.now())).await
        };
        let result = result.await.map_err(|broken| format!("after the faults: {broken}"));
        world.end().await;
        result
    })
}

/// The fewest steps with which the seed still fails.
fn shortest(seed: u64, steps: u64) -> u64 {
    let (mut holds, mut fails) = (0, steps);
    while fails - holds > 1 {
        let middle = (holds + fails) / 2;
        if run(seed, middle, false).is_err() { fails = middle } else { holds = middle }
    }
    fails
}

#[test]
fn every_seed_holds() {
    if let Some(seed) = number("SIM_SEED") {
        let result = run(seed, number("SIM_STEPS").unwrap_or(STEPS), true);
        assert_eq!(result, Ok(()), "seed {seed}");
        return;
    }
    for seed in 0..number("SIM_SEEDS").unwrap_or(SEEDS) {
        if let Err(broken) = run(seed, STEPS, false) {
            let steps = shortest(seed, STEPS);
            let last = run(seed, steps, false).err().unwrap_or_default();
            panic!(
                "seed {seed} fails: {broken}\nthe shortest beginning that fails has {steps} steps: {last}\n\
                 replay it: SIM_SEED={seed} SIM_STEPS={steps} cargo test --test it simulation -- --nocapture"
            );
        }
    }
}
