//! Seeded randomness: every random test prints its seed, and `MOVER_TEST_SEED` runs it again.

use std::env;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// The variable that fixes the seed of every randomised test of a run.
pub const SEED_VARIABLE: &str = "MOVER_TEST_SEED";

/// The seed for a test: from the environment, else from the clock. Printed, so a failed test shows it.
#[expect(clippy::print_stderr, reason = "captured by the test harness, and shown when the test fails")]
pub fn seed(test: &str) -> u64 {
    let seed = match env::var(SEED_VARIABLE) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE}={text} is no number")),
        Err(_) => {
            let clock =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
            // Short enough to be typed again.
            mix(clock ^ u64::from(std::process::id())) >> 32
        }
    };
    eprintln!("SEED {test}: {SEED_VARIABLE}={seed}");
    seed
}

/// SplitMix64: small, quick, the same everywhere, good enough for tests.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator whose numbers follow from the seed alone.
    pub fn new(seed: u64) -> Rng {
        Rng { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// A number in the range (which must not be empty).
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "empty range {range:?}");
        // The bias of the remainder is far below what a test could see.
        range.start + self.bits() % (range.end - range.start)
    }

    /// A number in the range, all orders of magnitude being equally likely: the sizes that disks have.
    pub fn magnitude(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "empty range {range:?}");
        let bits = self.range(u64::from(range.start.max(1).ilog2())..u64::from(range.end.ilog2()) + 1);
        let low = (1_u64 << bits).max(range.start);
        let high = (1_u64 << bits).saturating_mul(2).min(range.end);
        if low < high { self.range(low..high) } else { range.start }
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.range(0..100) < percent
    }

    /// One of the choices (of which there must be some).
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.range(0..choices.len() as u64) as usize]
    }
}

/// The finaliser of SplitMix64: a bijection that scatters neighbours.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
