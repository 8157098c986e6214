//! Mutated lists of extents: whatever the bytes, the parser neither panics nor accepts what is no list.
//!
//! `MOVER_FUZZ_SECONDS` says how long (2 by default), `MOVER_FUZZ_SEED` repeats a run: round N of a seed is always the
//! same input. tools/fuzz has the same check under libFuzzer.

#[path = "support/extents_check.rs"]
mod extents_check;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What mutation starts from: every dialect, and lists that are refused late.
const INPUTS: [&str; 16] = [
    include_str!("golden/imageio-dirty.json"),
    include_str!("golden/imageio-zero.json"),
    include_str!("golden/mover-bare.json"),
    include_str!("golden/mover-unordered.json"),
    include_str!("golden/mover.json"),
    include_str!("golden/nbdinfo-all-types.json"),
    include_str!("golden/nbdinfo-allocation-depth.json"),
    include_str!("golden/nbdinfo-allocation.json"),
    include_str!("golden/nbdinfo-dirty-bitmap.json"),
    include_str!("golden/nbdinfo-totals.json"),
    include_str!("golden/qemu-img-backing.json"),
    include_str!("golden/qemu-img-empty-disk.json"),
    include_str!("golden/qemu-img-odd-size.json"),
    include_str!("golden/qemu-img-preallocated.json"),
    include_str!("golden/qemu-img-qcow2.json"),
    include_str!("golden/qemu-img-raw.json"),
];

/// Text that stands for a number or a value in a mutated list.
const VALUES: [&str; 20] = [
    "0",
    "1",
    "-1",
    "-0",
    "511",
    "65536",
    "4611686018427387903",
    "4611686018427387904",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e3",
    "1e999",
    "0.5",
    "null",
    "true",
    "\"0\"",
    "[[]]",
    "{}",
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize, longest: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(longest) + 1)
    }
}

fn mutate(input: &mut Vec<u8>, random: &mut Random) {
    let length = input.len();
    match random.below(8) {
        0 if length > 0 => input[random.below(length)] ^= 1 << random.below(8),
        1 => input.truncate(random.below(length + 1)),
        2 => drop(input.drain(random.range(length, 40))),
        // A piece of this or another list, put in somewhere.
        3 => {
            let other = INPUTS[random.below(INPUTS.len())].as_bytes();
            let piece = other[random.range(other.len(), 200)].to_vec();
            let at = random.below(length + 1);
            input.splice(at..at, piece);
        }
        4 => {
            let piece = input[random.range(length, 200)].to_vec();
            let at = random.below(length + 1);
            input.splice(at..at, piece);
        }
        // A piece many times: depth, long tokens.
        5 if random.below(8) == 0 => {
            let piece = input[random.range(length, 3)].repeat(random.below(3000));
            let at = random.below(length + 1);
            input.splice(at..at, piece);
        }
        // Another value in place of a number or a word.
        _ => {
            let is_word = |byte: &u8| byte.is_ascii_alphanumeric();
            let Some(at) = input[random.below(length + 1)..].iter().position(is_word) else { return };
            let from = input[..at].iter().rposition(|byte| !is_word(byte)).map_or(0, |before| before + 1);
            let to = input[at..].iter().position(|byte| !is_word(byte)).map_or(length, |end| at + end);
            input.splice(from..to, VALUES[random.below(VALUES.len())].bytes());
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn mutated_lists_neither_panic_nor_break_the_promises_of_a_list() {
    let time = Duration::from_secs(variable("MOVER_FUZZ_SECONDS").unwrap_or(2));
    let seed = variable("MOVER_FUZZ_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
    });
    let (mut rounds, mut accepted) = (0u64, 0u64);
    let started = Instant::now();
    while started.elapsed() < time {
        let mut random = Random(seed.wrapping_add(rounds.wrapping_mul(0x2545_f491_4f6c_dd1d)));
        let mut input = INPUTS[random.below(INPUTS.len())].as_bytes().to_vec();
        for _ in 0..random.below(4) {
            mutate(&mut input, &mut random);
        }
        let size = random.next() >> random.below(64);
        match catch_unwind(AssertUnwindSafe(|| extents_check::check(&input, size))) {
            Ok(list) => accepted += u64::from(list),
            Err(_) => panic!(
                "MOVER_FUZZ_SEED={seed}, round {rounds}, a disk of {size} bytes:\n{}",
                input.escape_ascii()
            ),
        }
        rounds += 1;
    }
    // Mutation that never leaves a list intact, or always, would test nothing.
    assert!(
        rounds >= 100 && accepted > rounds / 100 && accepted < rounds,
        "{accepted} of {rounds}, seed {seed}"
    );
}
