//! The whole service, its doors aside, in one process on a simulated clock: three instances, other programs,
//! operators, platforms that fail and lie, clocks that jump and drift, and a database that fails, stalls and loses
//! answers, all from a seed.
//!
//! | variable | meaning |
//! |---|---|
//! | `SIM_SEEDS=5000` | so many seeds |
//! | `SIM_DATABASE=postgres` | on PostgreSQL, where instances act at the same time; not to be replayed to the letter |
//! | `SIM_SEED=17` | this one, telling what happens |
//! | `SIM_STEPS=40` | only its first steps |
//!
//! A seed that fails prints itself, the shortest beginning that still fails, and the command that replays it.
//!
//! What is promised: a clip never goes out on a platform under two keys, and no try is sent twice. While platforms tell
//! the truth and the database's clock is not set ahead, nothing is sent again under the same key either. A platform
//! that says "never heard of it" of what is out gets the publication again, under the same key and at most
//! `max_retries` times; so does one whose answer is late by more than the settling time, which a clock that is set
//! ahead makes short.

mod clock;
mod everything_fails;
mod faults;
mod instance;
mod invariants;
mod platform;
mod store;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use store::Store;
use world::World;

/// Seeds of a usual test run.
const SEEDS: u64 = 200;
/// The same on PostgreSQL, where each takes longer.
const SEEDS_ON_POSTGRES: u64 = 2;
/// Things that happen before the faults stop.
const STEPS: u64 = 250;
/// Bytes; without optimisation the futures of whole instances lie on the stack side by side.
const STACK: usize = 16 << 20;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Whether the variables speak of this database.
fn asked_for(postgres: bool) -> bool {
    std::env::var("SIM_DATABASE").is_ok_and(|database| database == "postgres") == postgres
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// Runs a seed, on a thread of its own; the error says which step broke what.
fn run(store: &Store, seed: u64, steps: u64, talk: bool) -> Result<(), String> {
    on_a_thread_of_its_own(|| run_here(store, seed, steps, talk))
}

fn on_a_thread_of_its_own(work: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let ran = thread.spawn_scoped(scope, work).expect("a thread").join();
        ran.unwrap_or_else(|_| Err("it panicked, as is said above".to_owned()))
    })
}

fn run_here(store: &Store, seed: u64, steps: u64, talk: bool) -> Result<(), String> {
    block_on(async {
        let mut world = World::new(seed, store.clone()).await;
        let mut result = Ok(());
        for step in 0..steps {
            let happened = world.happen().await;
            if talk {
                eprintln!("{step}: {happened}");
            }
            result = world.check(step % 50 == 49).await.map_err(|broken| format!("step {step} ({happened}): {broken}"));
            if result.is_err() {
                break;
            }
        }
        if result.is_ok() {
            result = async {
                let rounds = world.settle().await?;
                if talk {
                    eprintln!("settled after {rounds} rounds");
                }
                world.check_history().await
            }
            .await
            .map_err(|broken| format!("after the faults: {broken}"));
        }
        world.end().await;
        result
    })
}

/// The fewest steps with which the seed still fails.
fn shortest(store: &Store, seed: u64, steps: u64) -> u64 {
    let (mut holds, mut fails) = (0, steps);
    while fails - holds > 1 {
        let middle = (holds + fails) / 2;
        if run(store, seed, middle, false).is_err() { fails = middle } else { holds = middle }
    }
    fails
}

/// Runs seeds on as many threads as there are cores; panics over the first that fails.
fn every_seed_holds(store: &Store, seeds: u64) {
    if let Some(seed) = number("SIM_SEED") {
        let steps = number("SIM_STEPS").unwrap_or(STEPS);
        let result = run(store, seed, steps, true);
        assert_eq!(result, Ok(()), "seed {seed}");
        return;
    }
    let began = tokio::time::Instant::now();
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || !failed.lock().expect("failures").is_empty() {
                        return;
                    }
                    if let Err(broken) = run(store, seed, STEPS, false) {
                        failed.lock().expect("failures").push((seed, broken));
                    }
                }
            });
        }
    });
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let ran = next.into_inner().min(seeds);
    eprintln!("{ran} seeds in {minutes:.1} minutes: {:.0} a minute", ran as f64 / minutes);
    if let Some((seed, broken)) = failed.into_inner().expect("failures").into_iter().min() {
        let steps = shortest(store, seed, STEPS);
        let last = run(store, seed, steps, false).err().unwrap_or_else(|| "it held when run again".to_owned());
        let database = store.variable();
        panic!(
            "seed {seed} fails: {broken}\nthe shortest beginning that fails has {steps} steps: {last}\n\
             replay it: {database}SIM_SEED={seed} SIM_STEPS={steps} cargo test --test it simulation -- --nocapture"
        );
    }
}

#[test]
fn on_sqlite() {
    if asked_for(false) {
        every_seed_holds(&Store::sqlite(), number("SIM_SEEDS").unwrap_or(SEEDS));
    }
}

#[test]
fn on_postgres() {
    let night = asked_for(true);
    if !night && (number("SIM_SEED").is_some() || number("SIM_SEEDS").is_some()) {
        return;
    }
    if let Some(store) = Store::postgres() {
        every_seed_holds(&store, number("SIM_SEEDS").unwrap_or(SEEDS_ON_POSTGRES));
    }
}
