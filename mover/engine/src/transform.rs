//! Transforms between read and write: finding zeros and taking digests. Neither moves a byte.

use mover_model::Digest;
use xxhash_rust::xxh3::xxh3_128;

/// xxh3-128 of one extent's bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    Digest(xxh3_128(bytes))
}

/// Whether all bytes are zero. Leaves at the first 128 bytes that are not, so that data costs one cache line.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (head, words, tail) = as_words(bytes);
    if head.iter().chain(tail).any(|&b| b != 0) {
        return false;
    }
    // Sixteen words at a time, or-ed without a branch: the compiler makes vector code of it.
    let mut chunks = words.chunks_exact(16);
    for chunk in &mut chunks {
        if chunk.iter().fold(0, |all, &word| all | word) != 0 {
            return false;
        }
    }
    chunks.remainder().iter().all(|&word| word == 0)
}

fn as_words(bytes: &[u8]) -> (&[u8], &[u64], &[u8]) {
    // SAFETY: any eight initialised bytes are a valid u64, and align_to keeps to aligned ones.
    unsafe { bytes.align_to::<u64>() }
}

/// A part of a request: data to write, or zeros to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte, counted from the start of the slice.
    pub start: u32,
    /// Bytes.
    pub length: u32,
    /// Whether all of them are zero.
    pub zero: bool,
}

/// Cuts bytes into runs of data and of zeros, zeros at least `least` long and aligned to it, counted from
/// `phase` (the slice's offset on the disk). Calls `run` for each in order; together they cover the slice.
///
/// `least` is a power of two. Whole granules only are looked at, and each is left at its first non-zero
/// bytes: on data that is not zero the scan reads one cache line per granule.
pub fn zero_runs(bytes: &[u8], phase: u64, least: u32, mut run: impl FnMut(Run)) {
    let length = bytes.len() as u32;
    let first = (phase.next_multiple_of(u64::from(least)) - phase).min(u64::from(length)) as u32;
    let mut open = Run { start: 0, length: first, zero: false };
    let mut position = first;
    while position < length {
        let end = (position + least).min(length);
        // A short last granule is data: it may go on past the request.
        let zero = end - position == least && is_zero(&bytes[position as usize..end as usize]);
        if zero == open.zero {
            open.length = end - open.start;
        } else {
            if open.length > 0 {
                run(open);
            }
            open = Run { start: position, length: end - position, zero };
        }
        position = end;
    }
    if open.length > 0 {
        run(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_digest_is_xxh3_128() {
        // The published vector of xxHash for empty input and seed 0.
        assert_eq!(digest(b"").to_string(), "99aa06d3014798d86001c324468d497f");
    }

    fn runs(bytes: &[u8], phase: u64, least: u32) -> Vec<Run> {
        let mut out = Vec::new();
        zero_runs(bytes, phase, least, |run| out.push(run));
        out
    }

    #[test]
    fn zeros_are_cut_out_at_the_granule() {
        let mut bytes = vec![0u8; 4 * 4096];
        bytes[4096] = 1;
        assert_eq!(
            runs(&bytes, 0, 4096),
            [
                Run { start: 0, length: 4096, zero: true },
                Run { start: 4096, length: 4096, zero: false },
                Run { start: 8192, length: 8192, zero: true },
            ]
        );
        assert_eq!(runs(&bytes, 0, 65536), [Run { start: 0, length: 16384, zero: false }]);
        assert_eq!(runs(&[], 0, 4096), []);
    }

    proptest! {
        #[test]
        fn a_single_set_byte_is_always_found(length in 1usize..5000, at in 0usize..5000, skew in 0usize..8) {
            let mut bytes = vec![0u8; length + skew];
            prop_assert!(is_zero(&bytes[skew..]));
            bytes[skew + at % length] = 0x80;
            prop_assert!(!is_zero(&bytes[skew..]));
        }

        #[test]
        fn runs_cover_all_and_zero_runs_are_zero(
            marks in proptest::collection::vec(0usize..40_000, 0..6),
            length in 0usize..40_000,
            phase in 0u64..10_000,
            shift in 9u32..14,
        ) {
            let mut bytes = vec![0u8; length];
            for mark in marks { if mark < length { bytes[mark] = 7; } }
            let least = 1u32 << shift;
            let mut position = 0;
            let mut previous = None;
            for run in runs(&bytes, phase, least) {
                prop_assert_eq!(run.start, position);
                prop_assert!(previous != Some(run.zero), "neighbours differ");
                previous = Some(run.zero);
                position += run.length;
                if run.zero {
                    prop_assert!(run.length >= least);
                    prop_assert_eq!((phase + u64::from(run.start)) % u64::from(least), 0);
                    prop_assert!(bytes[run.start as usize..position as usize].iter().all(|&b| b == 0));
                }
            }
            prop_assert_eq!(position as usize, length);
        }
    }
}
