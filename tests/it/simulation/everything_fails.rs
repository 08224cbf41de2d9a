//! Everything fails for hours: the platforms are down, and most transactions with the database do not come through. The
//! loop must not drive itself: what it does an hour stays bounded, health stays at its floor and does not hold itself
//! there, and once the faults stop the platform is healthy again.

use std::time::Duration;

use showrunner::random::Random;

use super::faults::Fault;
use super::instance::Step;
use super::invariants;
use super::platform::Mood;
use super::store::Store;
use super::world::{INSTANCES, World};
use super::{block_on, number, on_a_thread_of_its_own};

/// Seeds of this scenario in a usual run.
const SEEDS: u64 = 1;
/// Seconds of a round.
const ROUND: u64 = 20;
/// Rounds of an hour.
const HOUR: u64 = 3_600 / ROUND;

/// One hour in which everything fails.
async fn an_hour(world: &mut World, random: &Random, fed: bool, database_fails: bool) {
    for round in 0..HOUR {
        world.pass(Duration::from_secs(ROUND));
        if fed && round % 2 == 0 {
            world.feed().await;
        }
        for (place, step) in [Step::Loop, Step::Dispatch, Step::Work].into_iter().enumerate() {
            let place = (round as usize / 20 + place) % INSTANCES;
            let fault = match random.between(0, 9) {
                0..3 => Some((random.between(1, 25) as u32, Fault::Fails)),
                3..5 => Some((random.between(1, 25) as u32, Fault::AllFail)),
                5..6 => Some((1, Fault::AnswerLost)),
                _ => None,
            };
            world.step_of(place, step, fault.filter(|_| database_fails)).await;
        }
        // Whoever leads goes on leading.
        world.step_of((round as usize / 20 + 1) % INSTANCES, Step::Loop, None).await;
        if round % 20 == 0 {
            world.step_of(0, Step::Upkeep, None).await;
        }
    }
}

/// Error entries that the loop wrote within the last hour.
async fn own_errors(world: &World) -> i64 {
    let since = world.now().before(Duration::from_secs(3_600));
    let query = "SELECT COUNT(*) FROM ledger_entries
                 WHERE actor = 'loop' AND severity IN ('error', 'critical') AND created_at > $1";
    world.db.query(query).bind(since).one::<(i64,)>().await.expect("a count").0
}

fn scenario(store: &Store, seed: u64) -> Result<(), String> {
    block_on(async {
        let mut world = World::new(seed, store.clone()).await;
        let random = Random::seeded(seed ^ 0xfa11);
        world.around.platform.set_mood(Mood::Down);
        let result = async {
            let mut errors = Vec::new();
            for hour in 0..4 {
                an_hour(&mut world, &random, hour < 3, true).await;
                world.check(true).await?;
                errors.push(own_errors(&world).await);
            }
            let begun = invariants::count(&world.db, "SELECT COUNT(*) FROM actions").await;
            if begun == 0 {
                return Err("the loop did nothing at all".to_owned());
            }
            // Each kind keeps to its budget an hour; and a loop that fed on its errors would make more of them each hour.
            world.check_governors().await?;
            if errors[3] > errors[1].max(errors[2]) + 10 {
                return Err(format!("the loop's own errors grow from hour to hour: {errors:?}"));
            }
            // The platforms stay down, and nothing new comes: when the tries are used up, there is nothing to be ill of.
            world.work_off_foreign_jobs().await;
            for _ in 0..4 {
                an_hour(&mut world, &random, false, false).await;
            }
            let health = invariants::health(&world.db).await;
            if health < 50 {
                return Err(format!("nothing is left to do, and health is {health}: the loop keeps itself ill"));
            }
            let rounds = world.settle().await?;
            world.check_history().await?;
            eprintln!(
                "seed {seed}: {begun} actions, own errors an hour {errors:?}, health {health}, {rounds} rounds to heal"
            );
            Ok(())
        }
        .await;
        world.end().await;
        result
    })
}

#[test]
fn when_everything_fails_the_loop_does_not_drive_itself() {
    if number("SIM_SEED").is_some() {
        return;
    }
    let store = Store::sqlite();
    // A night tries more of them: each takes as long as twenty seeds of the usual kind.
    for seed in 0..number("SIM_SEEDS").map_or(SEEDS, |seeds| seeds.div_ceil(200)) {
        if let Err(broken) = on_a_thread_of_its_own(|| scenario(&store, seed)) {
            panic!("seed {seed} of everything failing: {broken}");
        }
    }
}
