//! Layouts of all objects: little-endian, u64 offsets, magic, version, three feature masks. What is read is never
//! trusted: every length is checked before it is used, every page and footer is authenticated.
//!
//! docs/formats/repository.md has the byte layouts; the code here and that page say the same.

pub mod entry;
pub mod envelope;
pub mod hex;
pub mod node;
pub mod pack;
pub mod segment;

use mover_model::{Error, ErrorKind, Result};

/// What a reader must know to open an object at all, may ignore when it only reads, or may ignore always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// An unknown bit: not opened (`Unsupported`).
    pub incompatible: u64,
    /// An unknown bit: read, never changed or relied on for a new object.
    pub read_only_compatible: u64,
    /// Unknown bits are ignored.
    pub compatible: u64,
}

impl Features {
    /// Bytes of the three masks.
    pub const BYTES: usize = 24;

    /// The masks as they stand in an object.
    pub fn encode(&self) -> [u8; Features::BYTES] {
        let mut bytes = [0; Features::BYTES];
        bytes[..8].copy_from_slice(&self.incompatible.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.read_only_compatible.to_le_bytes());
        bytes[16..].copy_from_slice(&self.compatible.to_le_bytes());
        bytes
    }

    /// The masks from an object.
    pub fn decode(bytes: &[u8; Features::BYTES]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Features { incompatible: word(0), read_only_compatible: word(8), compatible: word(16) }
    }

    /// Refuses what cannot be read without knowing more than this version does.
    ///
    /// # Errors
    /// `Unsupported`, naming the object and the unknown bits.
    pub fn check(&self, known_incompatible: u64, label: &str) -> Result<()> {
        match self.incompatible & !known_incompatible {
            0 => Ok(()),
            unknown => {
                Err(newer(label, &format!("it uses features that this version does not know ({unknown:#x})")))
            }
        }
    }
}

/// The error for an object of a later format.
pub(crate) fn newer(label: &str, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, what).at(label).hint("use a newer mover; nothing was changed")
}

/// Bytes of a block: records of incompressible chunks, pages of an index and footers are aligned to it, so that
/// O_DIRECT takes them as they are.
pub const BLOCK: u64 = 4096;
