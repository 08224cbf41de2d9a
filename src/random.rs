//! Chance comes in by the door: a seeded source that is passed in and can be replayed.

use std::sync::{Arc, Mutex};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A seeded source of chance, shared by handle. The same seed gives the same draws in the same order.
#[derive(Clone)]
pub struct Random {
    seed: u64,
    generator: Arc<Mutex<ChaCha8Rng>>,
}

impl Random {
    /// A source that can be replayed.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, generator: Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed))) }
    }

    /// A source that differs from run to run.
    #[allow(clippy::disallowed_methods)] // the one door by which the machine's chance comes in
    pub fn from_machine() -> Self {
        Self::seeded(rand::rng().next_u64())
    }

    /// What this source was seeded with, to print when a test fails.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A number in `0.0..1.0`.
    pub fn fraction(&self) -> f64 {
        self.generator.lock().expect("random lock").random()
    }

    /// A whole number in `low..=high`.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        self.generator.lock().expect("random lock").random_range(low..=high.max(low))
    }

    /// 128 random bits as 32 hexadecimal digits: instance names, idempotency keys.
    pub fn token(&self) -> String {
        let mut bytes = [0_u8; 16];
        self.generator.lock().expect("random lock").fill_bytes(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_numbers() {
        let (one, two) = (Random::seeded(7), Random::seeded(7));
        assert_eq!(one.token(), two.token());
        assert_eq!(one.between(3, 9), two.between(3, 9));
        assert_ne!(Random::seeded(8).token(), Random::seeded(7).token());
    }
}
