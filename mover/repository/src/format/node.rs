//! Nodes of a disk's tree. The encoding is canonical: equal content has equal bytes, so equal names.
//!
//! ```text
//! root (64 bytes): magic "MVROOT01", size u64, chunk size u32, level u8, zero × 11, top id 32
//! node: magic "MVND" , version u8, level u8, zero u16, number of ids u64, bitmap of 256 bits, ids × 32
//! ```
//! A leaf (level 0) lists 256 chunks, an inner node of level n 256 nodes of level n - 1; a bit of the bitmap is set for
//! each that is no hole. A node of holes only is not stored: it is a hole in its parent. The level of the top node
//! is the least that covers the disk.

use mover_model::{ChunkId, Error, ErrorKind, Result};

use crate::config::{CHUNK_SIZE_MAX, CHUNK_SIZE_MIN};
use crate::format::entry::array;

/// Children of a node.
pub const FANOUT: usize = 256;
/// Longest encoded node.
pub const NODE_BYTES_MAX: usize = 48 + FANOUT * 32;

/// Bytes of an encoded root.
pub const ROOT_BYTES: usize = 64;
/// Level of the top node of the largest disk of the smallest chunks: 2⁶³ / 2¹⁴ chunks, 256 to a node.
pub const LEVEL_MAX: u8 = 6;

const ROOT_MAGIC: &[u8; 8] = b"MVROOT01";
const NODE_MAGIC: &[u8; 4] = b"MVND";
const NODE_VERSION: u8 = 1;
const NODE_HEAD: usize = 48;

/// A tree's root: what names a disk's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a chunk; the last one may be shorter.
    pub chunk_size: u32,
    /// Level of the top node.
    pub level: u8,
    /// The top node; a hole where the disk is all zeros.
    pub top: ChunkId,
}

/// A node: its children, holes where nothing is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 0: children are data chunks.
    pub level: u8,
    /// Always [`FANOUT`] of them.
    pub children: Box<[ChunkId; FANOUT]>,
}

/// The level that covers a disk: the least at which one node's children cover all its chunks.
pub fn level_for(size: u64, chunk_size: u32) -> u8 {
    let chunks = size.div_ceil(u64::from(chunk_size.max(1)));
    let mut level = 0;
    while level < 7 && chunks_below(level).saturating_mul(FANOUT as u64) < chunks {
        level += 1;
    }
    level
}

/// Chunks below one child of a node of this level: 256^level.
pub fn chunks_below(level: u8) -> u64 {
    1u64.checked_shl(8 * u32::from(level)).unwrap_or(u64::MAX)
}

impl Root {
    /// Its bytes.
    pub fn encode(&self) -> [u8; ROOT_BYTES] {
        let mut bytes = [0; ROOT_BYTES];
        bytes[..8].copy_from_slice(ROOT_MAGIC);
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.chunk_size.to_le_bytes());
        bytes[20] = self.level;
        bytes[32..].copy_from_slice(&self.top.0);
        bytes
    }

    /// Reads a root.
    ///
    /// # Errors
    /// `Corruption` for what no writer writes (wrong level, odd chunk size, size past 2⁶³), `Unsupported` for a newer
    /// version; without a path, which the caller knows.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bad =
            |what: String| Error::new(ErrorKind::Corruption, format!("this is no root of a disk: {what}"));
        let bytes: &[u8; ROOT_BYTES] =
            bytes.try_into().map_err(|_| bad(format!("it has {} bytes, not {ROOT_BYTES}", bytes.len())))?;
        if bytes[..6] != ROOT_MAGIC[..6] {
            return Err(bad("it does not begin as one".into()));
        }
        match &bytes[6..8] {
            b"01" => {}
            version if version.iter().all(u8::is_ascii_digit) && version > b"01" => {
                let version = String::from_utf8_lossy(version);
                return Err(newer(format!("a disk's root has version {version}, this program knows 01")));
            }
            _ => return Err(bad("it does not begin as one".into())),
        }
        let root = Root {
            size: u64::from_le_bytes(array(bytes, 8)),
            chunk_size: u32::from_le_bytes(array(bytes, 16)),
            level: bytes[20],
            top: ChunkId(array(bytes, 32)),
        };
        if bytes[21..32] != [0; 11] {
            return Err(bad("its reserved bytes are not zero".into()));
        }
        if !root.chunk_size.is_power_of_two() || !(CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&root.chunk_size)
        {
            return Err(bad(format!("its chunks have {} bytes", root.chunk_size)));
        }
        if root.size > i64::MAX as u64 {
            return Err(bad(format!("its size is {}", root.size)));
        }
        if root.level != level_for(root.size, root.chunk_size) {
            return Err(bad(format!("its level is {} at a size of {}", root.level, root.size)));
        }
        if root.size == 0 && !root.top.is_hole() {
            return Err(bad("a disk of no bytes has content".into()));
        }
        Ok(root)
    }
}

fn newer(what: String) -> Error {
    Error::new(ErrorKind::Unsupported, what).hint("a newer mover wrote it: use that one")
}

impl Node {
    /// A node of holes.
    pub fn empty(level: u8) -> Self {
        Node { level, children: Box::new([ChunkId::HOLE; FANOUT]) }
    }

    /// Whether all children are holes.
    pub fn is_hole(&self) -> bool {
        self.children.iter().all(ChunkId::is_hole)
    }

    /// Its bytes. A node of holes only has none: it is never stored.
    pub fn encode(&self) -> Vec<u8> {
        debug_assert!(!self.is_hole() && self.level <= LEVEL_MAX);
        let mut bytes = Vec::with_capacity(NODE_BYTES_MAX);
        bytes.resize(NODE_HEAD, 0);
        let mut ids = 0u64;
        for (place, child) in self.children.iter().enumerate().filter(|(_, child)| !child.is_hole()) {
            bytes[16 + place / 8] |= 1 << (place % 8);
            bytes.extend_from_slice(&child.0);
            ids += 1;
        }
        bytes[..4].copy_from_slice(NODE_MAGIC);
        bytes[4] = NODE_VERSION;
        bytes[5] = self.level;
        bytes[8..16].copy_from_slice(&ids.to_le_bytes());
        bytes
    }

    /// Reads a node of the level that its parent says.
    ///
    /// # Errors
    /// `Corruption` for what no writer writes, `Unsupported` for a newer version; without a path, which the caller
    /// knows.
    pub fn decode(bytes: &[u8], level: u8) -> Result<Self> {
        let bad =
            |what: String| Error::new(ErrorKind::Corruption, format!("this is no node of a tree: {what}"));
        if bytes.len() < NODE_HEAD || bytes[..4] != *NODE_MAGIC || bytes[4] == 0 {
            return Err(bad("it does not begin as one".into()));
        }
        if bytes[4] > NODE_VERSION {
            return Err(newer(format!("a tree's node has version {}, this program knows 1", bytes[4])));
        }
        if bytes[5] != level || level > LEVEL_MAX {
            return Err(bad(format!("its level is {} where {level} was expected", bytes[5])));
        }
        if bytes[6..8] != [0; 2] {
            return Err(bad("its reserved bytes are not zero".into()));
        }
        let bitmap: [u8; FANOUT / 8] = array(bytes, 16);
        let ids = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        let said = u64::from_le_bytes(array(bytes, 8));
        if said != ids || ids == 0 || bytes.len() as u64 != NODE_HEAD as u64 + ids * 32 {
            return Err(bad(format!("{said} ids are said, {ids} marked, in {} bytes", bytes.len())));
        }
        let mut node = Node::empty(level);
        let mut rest = &bytes[NODE_HEAD..];
        for place in (0..FANOUT).filter(|place| bitmap[place / 8] >> (place % 8) & 1 == 1) {
            node.children[place] = ChunkId(array(rest, 0));
            rest = &rest[32..];
            if node.children[place].is_hole() {
                return Err(bad(format!("child {place} is marked and a hole")));
            }
        }
        Ok(node)
    }
}
