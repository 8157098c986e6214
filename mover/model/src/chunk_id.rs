//! Names of stored content: keyed BLAKE3, 256 bits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The keyed BLAKE3 hash (32 bytes) by which a chunk, a tree node or a tree's root is named.
///
/// The key belongs to the repository, so a guest cannot choose its data to collide with another's. All zeros
/// name nothing: a hole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// A range that reads as zeros and of which nothing is stored.
    pub const HOLE: ChunkId = ChunkId([0; 32]);

    /// Whether it names nothing.
    pub fn is_hole(&self) -> bool {
        *self == ChunkId::HOLE
    }

    /// The first eight bytes as a number: ids are uniformly distributed, so it sorts and finds them.
    pub fn prefix(&self) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|i| self.0[i]))
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// Text that is not 64 hex digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a chunk's name is 64 lower-case hex digits")]
pub struct ChunkIdParseError;

impl FromStr for ChunkId {
    type Err = ChunkIdParseError;

    fn from_str(text: &str) -> Result<Self, ChunkIdParseError> {
        let text = text.as_bytes();
        // One name for each id: lower case only.
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut id = [0; 32];
        if text.len() != 64 {
            return Err(ChunkIdParseError);
        }
        for (byte, pair) in id.iter_mut().zip(text.chunks_exact(2)) {
            let (high, low) = digit(pair[0]).zip(digit(pair[1])).ok_or(ChunkIdParseError)?;
            *byte = high << 4 | low;
        }
        Ok(ChunkId(id))
    }
}

impl Serialize for ChunkId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChunkId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_rejects_other_text() {
        let id = ChunkId(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(ChunkId::HOLE.is_hole() && !id.is_hole());
        for bad in ["", "00", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<ChunkId>(), Err(ChunkIdParseError), "{bad}");
        }
    }
}
