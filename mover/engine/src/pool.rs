//! Which parts of a worker's arena are in use. Requests take as much as they need, not a whole block: the
//! memory that holds eight blocks of 1 MiB in flight holds sixty-four extents of 64 KiB.

/// A part of the arena.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chunk {
    first: u32,
    units: u32,
}

/// The parts of an arena, in units.
#[derive(Debug)]
pub struct Pool {
    unit: usize,
    /// Units of a whole block.
    block: usize,
    /// One bit for each unit in use, the lowest first.
    used: Vec<u64>,
    units: usize,
}

/// Bytes of a unit, where blocks are not smaller: what an extent of a few KiB costs.
const UNIT: usize = 64 << 10;

impl Pool {
    /// For an arena of `bytes`, a multiple of `block_size`.
    pub fn new(bytes: usize, block_size: usize) -> Self {
        let unit = if block_size.is_multiple_of(UNIT) { UNIT } else { block_size };
        let units = bytes / unit;
        Pool { unit, block: block_size / unit, used: vec![0; units.div_ceil(64)], units }
    }

    /// Takes a part of at least `bytes`, at most a block; `None` when no part so long is free.
    pub fn take(&mut self, bytes: usize) -> Option<Chunk> {
        let wanted = bytes.div_ceil(self.unit).max(1);
        debug_assert!(wanted <= self.block);
        // Large ones from below at whole blocks, small ones from above: so they do not cut up each other's room.
        let first = if wanted * 2 > self.block {
            (0..self.units / self.block)
                .map(|block| block * self.block)
                .find(|&first| self.is_free(first, wanted))
        } else {
            (0..=self.units - wanted).rev().find(|&first| self.is_free(first, wanted))
        };
        let first = first.or_else(|| (0..=self.units - wanted).find(|&first| self.is_free(first, wanted)))?;
        self.mark(first, wanted, true);
        Some(Chunk { first: first as u32, units: wanted as u32 })
    }

    /// Gives a part back.
    pub fn give(&mut self, chunk: Chunk) {
        debug_assert!((chunk.first..chunk.first + chunk.units).all(|unit| self.is_used(unit as usize)));
        self.mark(chunk.first as usize, chunk.units as usize, false);
    }

    /// Where a part lies in the arena, in bytes.
    pub fn offset(&self, chunk: Chunk) -> usize {
        chunk.first as usize * self.unit
    }

    /// Bytes of a part.
    pub fn bytes(&self, chunk: Chunk) -> usize {
        chunk.units as usize * self.unit
    }

    fn is_used(&self, unit: usize) -> bool {
        self.used[unit / 64] & (1 << (unit % 64)) != 0
    }

    fn is_free(&self, first: usize, units: usize) -> bool {
        first + units <= self.units && !(first..first + units).any(|unit| self.is_used(unit))
    }

    fn mark(&mut self, first: usize, units: usize, used: bool) {
        for unit in first..first + units {
            if used {
                self.used[unit / 64] |= 1 << (unit % 64);
            } else {
                self.used[unit / 64] &= !(1 << (unit % 64));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn eight_blocks_or_a_hundred_and_twenty_eight_small_ones() {
        let mut pool = Pool::new(8 << 20, 1 << 20);
        let blocks: Vec<_> = (0..8).map(|_| pool.take(1 << 20).unwrap()).collect();
        assert_eq!(pool.take(1), None);
        blocks.into_iter().for_each(|chunk| pool.give(chunk));
        assert_eq!((0..).map_while(|_| pool.take(65536)).count(), 128);
    }

    #[test]
    fn blocks_smaller_than_a_unit() {
        let mut pool = Pool::new(10 * 12288, 12288);
        assert_eq!((0..).map_while(|_| pool.take(4096)).count(), 10);
    }

    proptest! {
        #[test]
        fn parts_never_overlap_and_all_room_comes_back(
            steps in proptest::collection::vec((any::<bool>(), 1usize..(1 << 20)), 1..300),
        ) {
            let mut pool = Pool::new(8 << 20, 1 << 20);
            let mut held: Vec<Chunk> = Vec::new();
            for (take, value) in steps {
                if take {
                    if let Some(chunk) = pool.take(value) {
                        let (start, end) = (pool.offset(chunk), pool.offset(chunk) + pool.bytes(chunk));
                        prop_assert!(end - start >= value && end <= 8 << 20);
                        for other in &held {
                            let other = pool.offset(*other)..pool.offset(*other) + pool.bytes(*other);
                            prop_assert!(end <= other.start || other.end <= start);
                        }
                        held.push(chunk);
                    }
                } else if !held.is_empty() {
                    pool.give(held.swap_remove(value % held.len()));
                }
            }
            held.into_iter().for_each(|chunk| pool.give(chunk));
            prop_assert_eq!((0..).map_while(|_| pool.take(1 << 20)).count(), 8);
        }
    }
}
