//! How long to wait before another try: exponential, capped, with full jitter on the upper half.

use std::time::Duration;

use crate::random::Random;

/// The wait before try number `attempt` + 1 (`attempt` counts from 1): `base` doubled each time,
/// never above `cap`, and drawn from the upper half of that so that many failures do not return at once.
pub fn exponential(base: Duration, cap: Duration, attempt: u32, random: &Random) -> Duration {
    let doublings = attempt.saturating_sub(1).min(31);
    let full = base.saturating_mul(1_u32 << doublings).min(cap);
    full.mul_f64(0.5 + random.fraction() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_wait_stays_within_half_and_the_whole_of_the_capped_doubling(attempt in 1_u32..80, seed: u64) {
            let (base, cap) = (Duration::from_secs(1), Duration::from_secs(600));
            let full = base.saturating_mul(1 << (attempt - 1).min(31)).min(cap);
            let wait = exponential(base, cap, attempt, &Random::seeded(seed));
            prop_assert!(wait >= full / 2 && wait <= full);
        }
    }
}
