//! Measures the parts of mover by themselves; `bench/compare` measures the whole against its peers.
//!
//! ```text
//! cargo bench -p mover-bench               all of it, some minutes
//! cargo bench -p mover-bench -- --test     each once, to see that it still runs
//! ```
//! What the benches have in common stands here: how long criterion measures, and the inputs.
#![forbid(unsafe_code)]

use std::time::Duration;

use criterion::Criterion;
use mover_engine::pattern::SplitMix;
use mover_model::{Extent, ExtentKind, ExtentList};

/// Short enough that all benches together take a few minutes on two shared cores.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
}

/// Extents in the lists that are measured: a disk of 100 GiB that was written to all over.
pub const EXTENTS: usize = 100_000;

/// A data extent of 64 KiB at the start of every MiB: the layout of the sparse image in `bench/compare`.
pub fn regular(count: usize) -> Vec<Extent> {
    (0..count as u64).map(|n| Extent::data(n << 20, 64 << 10)).collect()
}

/// Extents of all kinds with gaps between them, of sizes that follow from the seed, in multiples of 4 KiB.
pub fn scattered(count: usize, seed: u64) -> ExtentList {
    let mut random = SplitMix::new(seed);
    let mut position = 0;
    let kinds = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Hole];
    let next = |_| {
        let start = position + (1 + random.below(200)) * 4096;
        let length = (1 + random.below(200)) * 4096;
        position = start + length;
        Extent::new(start, length, kinds[random.below(3) as usize])
    };
    (0..count).map(next).collect()
}

/// The same extents in an order that follows from the seed.
pub fn shuffled(list: &ExtentList, seed: u64) -> Vec<Extent> {
    let mut random = SplitMix::new(seed);
    let mut extents: Vec<_> = list.iter().collect();
    for last in (1..extents.len()).rev() {
        extents.swap(last, random.below(last as u64 + 1) as usize);
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_are_what_they_say() {
        let list = scattered(1000, 1);
        assert_eq!(list.len(), 1000);
        let shuffled = shuffled(&list, 2);
        assert_ne!(shuffled, list.iter().collect::<Vec<_>>());
        assert_eq!(ExtentList::from_unordered(shuffled, None).unwrap(), list);
        assert_eq!(regular(3)[2], Extent::data(2 << 20, 64 << 10));
    }
}
