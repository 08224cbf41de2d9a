//! How long to wait before another try: fixed, linear or exponential, capped, with jitter.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::random::Random;

/// How waits grow from try to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Growth {
    /// Always the same.
    Fixed,
    /// The base once, twice, three times, …
    Linear,
    /// The base doubled each time.
    Exponential,
}

/// A series of waits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    pub growth: Growth,
    pub base: Duration,
    /// No wait is longer.
    pub cap: Duration,
    /// The part of a wait that chance decides, 0 to 1: with 0.5 it is drawn from the upper half, so that many failures
    /// do not return at once.
    pub jitter: f64,
}

impl Backoff {
    /// The wait before try number `attempt` + 1; `attempt` counts from 1.
    pub fn wait(&self, attempt: u32, random: &Random) -> Duration {
        let full = self.full(attempt);
        let jitter = self.jitter.clamp(0.0, 1.0);
        if jitter == 0.0 { full } else { full.mul_f64(1.0 - jitter * random.fraction()) }
    }

    /// The wait without chance.
    pub fn full(&self, attempt: u32) -> Duration {
        let tries = attempt.max(1);
        let wait = match self.growth {
            Growth::Fixed => self.base,
            Growth::Linear => self.base.saturating_mul(tries),
            Growth::Exponential => self.base.saturating_mul(1_u32 << (tries - 1).min(31)),
        };
        wait.min(self.cap)
    }
}

/// The usual series: doubled each time, drawn from the upper half, never above `cap`.
pub fn exponential(base: Duration, cap: Duration, attempt: u32, random: &Random) -> Duration {
    Backoff { growth: Growth::Exponential, base, cap, jitter: 0.5 }.wait(attempt, random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_growth() -> impl Strategy<Value = Growth> {
        prop_oneof![Just(Growth::Fixed), Just(Growth::Linear), Just(Growth::Exponential)]
    }

    proptest! {
        #[test]
        fn the_wait_stays_within_half_and_the_whole_of_the_capped_doubling(attempt in 1_u32..80, seed: u64) {
            let (base, cap) = (Duration::from_secs(1), Duration::from_secs(600));
            let full = base.saturating_mul(1 << (attempt - 1).min(31)).min(cap);
            let wait = exponential(base, cap, attempt, &Random::seeded(seed));
            prop_assert!(wait >= full / 2 && wait <= full);
        }

        #[test]
        fn no_wait_passes_the_cap_or_is_shortened_by_more_than_its_jitter(
            growth in any_growth(), base in 0_u64..1_000_000, cap in 0_u64..100_000_000,
            jitter in 0.0_f64..=1.0, attempt in 0_u32..2_000, seed: u64,
        ) {
            let (base, cap) = (Duration::from_millis(base), Duration::from_millis(cap));
            let backoff = Backoff { growth, base, cap, jitter };
            let wait = backoff.wait(attempt, &Random::seeded(seed));
            prop_assert!(wait <= cap);
            let least = backoff.full(attempt).mul_f64(1.0 - jitter);
            prop_assert!(wait + Duration::from_nanos(1) >= least, "{wait:?} < {least:?}");
            prop_assert!(backoff.full(attempt) <= backoff.full(attempt + 1), "waits never shrink");
        }
    }

    #[test]
    fn waits_grow_as_they_are_named() {
        let of = |growth, jitter| Backoff { growth, base: Duration::from_secs(2), cap: Duration::from_secs(9), jitter };
        let series = |growth| (1..=5).map(|attempt| of(growth, 0.0).full(attempt).as_secs()).collect::<Vec<_>>();
        assert_eq!(series(Growth::Fixed), [2, 2, 2, 2, 2]);
        assert_eq!(series(Growth::Linear), [2, 4, 6, 8, 9]);
        assert_eq!(series(Growth::Exponential), [2, 4, 8, 9, 9]);
        let random = Random::seeded(1);
        assert_eq!(of(Growth::Fixed, 0.0).wait(1, &random), Duration::from_secs(2), "no jitter, no chance");
    }
}
