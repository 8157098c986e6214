//! A source of pseudo-random bytes, for measuring writes: what is written neither compresses nor passes for
//! zeros, and costs nothing to make after the first use of a buffer.

use mover_model::{Extent, ExtentKind, Result};

use crate::lane::{Access, Alignment, Io, Lane, LaneOperation, LaneSetup, Source};

/// Bytes of noise from offset 0 to a size. Reading the same offset twice gives different bytes.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    /// Bytes.
    pub size: u64,
    /// Where the noise starts.
    pub seed: u64,
}

impl Source for Noise {
    fn label(&self) -> String {
        "noise".to_owned()
    }

    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn access(&self) -> Access {
        Access::Direct
    }

    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }

    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        let whole = (self.size > 0).then(|| Ok(Extent::new(0, self.size, ExtentKind::Data)));
        Ok(Box::new(whole.into_iter()))
    }

    fn lane(&self, _: Access, _: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(NoiseLane { random: SplitMix::new(self.seed) }))
    }
}

/// Arenas begin as zeros, so a page that begins with a zero word is one that never held noise: the others are
/// left as they are, whichever request they served before.
struct NoiseLane {
    random: SplitMix,
}

const PAGE: usize = 4096;

impl Lane for NoiseLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        // SAFETY: the operation's range lies in the slot's buffer, and no submission uses it: this read is the
        // only operation of the slot.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(operation.memory.address(), operation.length as usize) };
        for page in bytes.chunks_mut(PAGE) {
            if page.iter().take(8).all(|&byte| byte == 0) {
                self.random.fill(page);
            }
        }
        io.finish(&operation, Ok(operation.length));
    }

    fn advance(&mut self, _: u32, _: i32, _: &mut Io<'_>) {}
}

/// SplitMix64: a small generator of good enough noise, with a seed.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        SplitMix(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, evenly enough: the bias is below bound / 2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Fills bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_below_a_bound_reach_all_of_it() {
        let mut random = SplitMix::new(1);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[random.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
        let mut bytes = [0u8; 4099];
        random.fill(&mut bytes);
        assert!(!bytes.chunks(16).any(crate::transform::is_zero));
    }
}
