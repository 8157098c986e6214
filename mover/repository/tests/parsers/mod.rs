//! What must hold for any bytes given to the parsers of a repository. Shared by the seeded test and the fuzz targets:
//! both make `input`, and `format_support` has to stand beside this module.
//!
//! Most objects carry a MAC, and nothing that is merely damaged gets past it. So each check builds an object from the
//! input, changes bytes of it, and makes the MACs anew: a faulty writer, or someone with the keys. The MACs are made
//! here by docs/formats/repository.md, not by the code that checks them.

#![allow(dead_code, reason = "each target uses its part")]

mod documents;
mod envelopes;
mod records;
mod tables;

use std::ops::Range;

use mover_model::{Error, ErrorKind};

pub use documents::documents;
pub use envelopes::envelope;
pub use records::{codec, node, root, texts};
pub use tables::{pack, segment};

/// A check: panics where a promise is broken, and tells whether an object was accepted.
pub type Check = fn(&[u8]) -> bool;

/// All of them, by the names of the fuzz targets.
pub const ALL: [(&str, Check); 8] = [
    ("envelope", envelope),
    ("documents", documents),
    ("pack", pack),
    ("segment", segment),
    ("node", node),
    ("root", root),
    ("codec", codec),
    ("texts", texts),
];

/// What the keys of `format_support` authenticate metadata with.
pub fn mac_key(encrypted: bool) -> [u8; 32] {
    blake3::derive_key("mover repository v1 metadata mac", if encrypted { &[9; 32] } else { &[7; 32] })
}

/// Takes numbers from the input; zeros where it has ended.
pub struct Source<'a>(pub &'a [u8]);

impl<'a> Source<'a> {
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        bytes[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        bytes
    }

    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (u32::from_le_bytes(self.bytes()) as usize).checked_rem(end).unwrap_or(0)
    }

    /// At most so many bytes of what is left.
    pub fn some(&mut self, most: usize) -> &'a [u8] {
        let (some, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        some
    }

    /// Changes up to three values within a range: of one byte, or of eight that mean something to a parser.
    pub fn damage(&mut self, bytes: &mut [u8], range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        for _ in 0..self.byte() % 4 {
            let at = range.start + self.below(range.len());
            let value = match self.byte() % 8 {
                0 => u64::MAX,
                1 => i64::MAX as u64,
                2 => 1 << 32,
                3 => bytes.len() as u64,
                4 => self.word(),
                5 => 0,
                _ => {
                    bytes[at] ^= self.byte().max(1);
                    continue;
                }
            };
            let at = at & !7;
            for (byte, new) in bytes[..range.end].iter_mut().skip(at).zip(value.to_le_bytes()) {
                *byte = new;
            }
        }
    }
}

/// An error of a parser is one of these kinds, and has words of a length that a terminal bears.
#[track_caller]
pub fn refused(error: &Error, kinds: &[ErrorKind]) {
    assert!(kinds.contains(&error.kind()), "{:?}: {error}", error.kind());
    assert!(error.message().len() < 16 << 10, "a message of {} bytes", error.message().len());
}
