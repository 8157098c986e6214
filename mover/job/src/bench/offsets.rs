//! Where a benchmark reads and writes: endless streams of extents over the parts of a path that hold data.

use mover_engine::pattern::SplitMix;
use mover_model::{Extent, ExtentKind, Result, limits};

/// The whole blocks of a path that hold data: reading holes is no I/O.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    block_size: u64,
    /// First byte of each run of blocks, and the number of blocks in all runs before it.
    runs: Vec<(u64, u64)>,
    /// Blocks in all runs.
    count: u64,
}

impl Blocks {
    /// The blocks of the data among `extents`, which come in order, that lie below `end` whole.
    ///
    /// # Errors
    /// The iterator's.
    pub fn of(extents: impl Iterator<Item = Result<Extent>>, block_size: u32, end: u64) -> Result<Self> {
        let block_size = u64::from(block_size);
        let mut blocks = Blocks { block_size, ..Blocks::default() };
        let mut add = |from: u64, to: u64| {
            let first = from.next_multiple_of(block_size);
            let to = to.min(end) / block_size * block_size;
            if first < to {
                blocks.runs.push((first, blocks.count));
                blocks.count += (to - first) / block_size;
            }
        };
        let mut open: Option<(u64, u64)> = None;
        for extent in extents {
            let extent = extent?;
            if extent.start >= end {
                break;
            }
            if extent.kind != ExtentKind::Data {
                continue;
            }
            match &mut open {
                Some((_, to)) if *to == extent.start => *to = extent.end(),
                _ => {
                    if let Some((from, to)) = open.replace((extent.start, extent.end())) {
                        add(from, to);
                    }
                }
            }
        }
        if let Some((from, to)) = open {
            add(from, to);
        }
        Ok(blocks)
    }

    /// Bytes in them.
    pub fn bytes(&self) -> u64 {
        self.count * self.block_size
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// First byte of the block of this number.
    fn offset(&self, index: u64) -> u64 {
        debug_assert!(index < self.count);
        let run = self.runs.partition_point(|&(_, before)| before <= index) - 1;
        let (start, before) = self.runs[run];
        start + (index - before) * self.block_size
    }

    /// Blocks from this one to the end of its run.
    fn left_in_run(&self, index: u64) -> u64 {
        let run = self.runs.partition_point(|&(_, before)| before <= index);
        self.runs.get(run).map_or(self.count, |&(_, before)| before) - index
    }

    /// Single blocks in random order, without end.
    pub fn random(&self, seed: u64) -> Random<'_> {
        Random { blocks: self, random: SplitMix::new(seed) }
    }

    /// All blocks in order, from the one of number `first` (counted round the end), over and over.
    pub fn sequential(&self, first: u64) -> Sequential<'_> {
        Sequential { blocks: self, next: if self.count == 0 { 0 } else { first % self.count } }
    }
}

/// See [`Blocks::random`].
pub struct Random<'a> {
    blocks: &'a Blocks,
    random: SplitMix,
}

impl Iterator for Random<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        if self.blocks.is_empty() {
            return None;
        }
        let index = self.random.below(self.blocks.count);
        Some(Ok(Extent::data(self.blocks.offset(index), self.blocks.block_size)))
    }
}

/// See [`Blocks::sequential`].
pub struct Sequential<'a> {
    blocks: &'a Blocks,
    next: u64,
}

impl Iterator for Sequential<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        if self.blocks.is_empty() {
            return None;
        }
        // No more at once than one worker takes: the queue holds a batch of these, on a disk of any size.
        let most = (limits::STEAL_BYTES / self.blocks.block_size).max(1);
        let count = self.blocks.left_in_run(self.next).min(most);
        let extent = Extent::data(self.blocks.offset(self.next), count * self.blocks.block_size);
        self.next = (self.next + count) % self.blocks.count;
        Some(Ok(extent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(extents: &[Extent], block_size: u32, end: u64) -> Blocks {
        Blocks::of(extents.iter().copied().map(Ok), block_size, end).unwrap()
    }

    #[test]
    fn only_whole_blocks_of_data_count() {
        let hole = |start, length| Extent::new(start, length, ExtentKind::Hole);
        let list = [Extent::data(0, 6000), hole(6000, 2192), Extent::data(8192, 4096), hole(12288, 4096)];
        let found = blocks(&list, 4096, u64::MAX);
        assert_eq!((found.count, found.bytes()), (2, 8192));
        assert_eq!((0..2).map(|index| found.offset(index)).collect::<Vec<_>>(), [0, 8192]);
        assert!(blocks(&[hole(0, 1 << 40)], 4096, u64::MAX).is_empty());
        assert!(blocks(&[Extent::data(0, 4095)], 4096, u64::MAX).is_empty());
        // Neighbours are one run; the limit cuts.
        let split = [Extent::data(0, 5000), Extent::data(5000, 11384)];
        assert_eq!(blocks(&split, 8192, u64::MAX).count, 2);
        assert_eq!(blocks(&split, 8192, 16383).count, 1);
    }

    #[test]
    fn random_order_stays_on_the_blocks_and_reaches_all() {
        let list = [Extent::data(4096, 8192), Extent::data(1 << 20, 4096)];
        let found = blocks(&list, 4096, u64::MAX);
        let mut seen: Vec<_> = found.random(7).take(200).map(|extent| extent.unwrap()).collect();
        seen.sort_by_key(|extent| extent.start);
        seen.dedup();
        assert_eq!(seen, [Extent::data(4096, 4096), Extent::data(8192, 4096), Extent::data(1 << 20, 4096)]);
        assert!(Blocks::default().random(1).next().is_none());
    }

    #[test]
    fn sequential_order_wraps_and_never_crosses_a_gap() {
        let list = [Extent::data(0, 8192), Extent::data(16384, 4096)];
        let found = blocks(&list, 4096, u64::MAX);
        let seen: Vec<_> = found.sequential(4).take(4).map(|extent| extent.unwrap()).collect();
        assert_eq!(
            seen,
            [
                Extent::data(4096, 4096),
                Extent::data(16384, 4096),
                Extent::data(0, 8192),
                Extent::data(16384, 4096)
            ]
        );
        let large = blocks(&[Extent::data(0, 1 << 40)], 1 << 20, u64::MAX);
        assert_eq!(large.sequential(0).next().unwrap().unwrap(), Extent::data(0, limits::STEAL_BYTES));
    }
}
