//! One chunk in a pack: 72 bytes, the same in a pack's own index and in an index segment.
//!
//! ```text
//!  0  id       32  name of the content
//! 32  tag      16  AES-256-GCM tag; zeros without encryption
//! 48  offset    8  first byte in the pack
//! 56  stored    4  bytes in the pack
//! 60  plain     4  bytes of the content
//! 64  pack      4  index into the segment's table of packs; zero in a pack's own index
//! 68  encoding  1  0 raw, 1 lz4, 2 zstd
//! 69  kind      1  0 data, 1 node
//! 70  reserved  2  zero
//! ```

use mover_model::{ChunkId, Error, ErrorKind, Result};

use crate::keys::ChunkKind;

/// How a chunk's bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are.
    Raw = 0,
    /// LZ4 block.
    Lz4 = 1,
    /// Zstandard frame.
    Zstd = 2,
}

/// Where a chunk is, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: ChunkId,
    /// Its authentication tag.
    pub tag: [u8; 16],
    /// First byte in the pack.
    pub offset: u64,
    /// Bytes in the pack.
    pub stored: u32,
    /// Bytes of the content.
    pub plain: u32,
    /// Index into a segment's table of packs; zero in a pack's own index.
    pub pack: u32,
    /// How its bytes are kept.
    pub encoding: Encoding,
    /// What it is.
    pub kind: ChunkKind,
}

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 72;

/// Most bytes of a record or of its content: twice the largest chunk. A length beyond it is damage, and is found before
/// a buffer of that length is asked for.
pub const CHUNK_BYTES_MAX: u32 = 8 << 20;

impl Encoding {
    fn from_byte(byte: u8) -> Option<Self> {
        [Encoding::Raw, Encoding::Lz4, Encoding::Zstd].into_iter().find(|&encoding| encoding as u8 == byte)
    }
}

impl Entry {
    /// Its bytes.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..32].copy_from_slice(&self.id.0);
        bytes[32..48].copy_from_slice(&self.tag);
        bytes[48..56].copy_from_slice(&self.offset.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.stored.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.plain.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.pack.to_le_bytes());
        bytes[68] = self.encoding as u8;
        bytes[69] = self.kind as u8;
        bytes
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// `Corruption` for what no writer writes; without a path, which the caller knows.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self> {
        let entry = Entry {
            id: ChunkId(array(bytes, 0)),
            tag: array(bytes, 32),
            offset: u64::from_le_bytes(array(bytes, 48)),
            stored: u32::from_le_bytes(array(bytes, 56)),
            plain: u32::from_le_bytes(array(bytes, 60)),
            pack: u32::from_le_bytes(array(bytes, 64)),
            encoding: Encoding::from_byte(bytes[68])
                .ok_or_else(|| bad(format!("its encoding is {}, which is none", bytes[68])))?,
            kind: match bytes[69] {
                0 => ChunkKind::Data,
                1 => ChunkKind::Node,
                kind => return Err(bad(format!("its kind is {kind}, which is none"))),
            },
        };
        if bytes[70..72] != [0; 2] {
            return Err(bad("its reserved bytes are not zero"));
        }
        entry.check_lengths()?;
        Ok(entry)
    }

    /// Whether its lengths are such as a writer writes.
    fn check_lengths(&self) -> Result<()> {
        let lengths = 1..=CHUNK_BYTES_MAX;
        if !lengths.contains(&self.stored) || !lengths.contains(&self.plain) {
            let Entry { stored, plain, .. } = self;
            return Err(bad(format!("{stored} bytes stored of {plain} are no lengths of a chunk")));
        }
        if self.encoding == Encoding::Raw && self.stored != self.plain {
            return Err(bad("a chunk that is kept as it is has two lengths"));
        }
        if self.offset.checked_add(u64::from(self.stored)).is_none() {
            return Err(bad(format!("its offset {} is past all packs", self.offset)));
        }
        if self.id.is_hole() {
            return Err(bad("it names a hole, of which nothing is stored"));
        }
        Ok(())
    }

    /// The first byte after its record.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.stored))
    }
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corruption, format!("an entry is damaged: {what}"))
}

/// `N` bytes from `at` on. The layouts of this module lie inside their buffers, whose lengths are constants.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}
