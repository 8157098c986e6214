//! Packs: records of chunks, then the pack's own index, then a footer.
//!
//! ```text
//! 0                 header, one block (`block.rs`): its content is the seed, 32 bytes
//! 4096              records; a raw record of whole blocks begins at a block, others follow each other densely
//! index offset      entries (72 bytes each, by offset), padded with zeros to a block
//! size - 4096       footer, one block: 0 index offset u64, 8 number of entries u64, 16 size of the pack u64,
//!                   24 MAC of the header 32, 56 keyed BLAKE3 of the padded index 32
//! ```
//! A pack is put whole or not at all, so a cut leaves no pack. The header's seed makes the pack's own key: a name
//! or a seed is never used twice, nor is an offset within a pack, which is the nonce.

pub(crate) mod block;

use mover_model::{ChunkId, Error, ErrorKind, Result};

use self::block::{Block, Opened};
use crate::format::BLOCK;
use crate::format::entry::{ENTRY_BYTES, Entry, array};
use crate::keys::Keys;
use crate::names::ObjectName;
use crate::store::{Key, Object};

/// Bytes of records after which a pack is closed: large enough that a disk's fsync is rare, small enough that gc
/// rewrites little.
pub const PACK_BYTES: u64 = 64 << 20;
/// Most chunks of a pack, so that its index is read and held in one piece (576 KiB).
pub const PACK_ENTRIES_MAX: usize = 8192;

const HEADER_MAGIC: &[u8; 8] = b"MVPACKHD";
const FOOTER_MAGIC: &[u8; 8] = b"MVPACKFT";
/// Set apart from every other use of the key.
const INDEX_CONTEXT: &[u8; 16] = b"mover pack index";

/// What a pack's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHeader {
    /// The repository's id (UUID bytes).
    pub repository: [u8; 16],
    /// Its own name.
    pub name: ObjectName,
    /// Random; the pack's encryption key is made from it.
    pub seed: [u8; 32],
}

/// A pack's own index.
#[derive(Debug, Clone)]
pub struct PackIndex {
    /// The header.
    pub header: PackHeader,
    /// Its chunks, by offset.
    pub entries: Vec<Entry>,
    /// Bytes of the whole pack.
    pub size: u64,
}

/// Where a pack lies: two hex digits of folders keep each small.
pub fn pack_key(name: ObjectName) -> Key {
    let name = name.to_string();
    Key::new(format!("packs/{}/{name}", &name[..2]))
}

fn header_block(repository: [u8; 16], name: ObjectName, label: &str) -> Block<'_> {
    Block { magic: HEADER_MAGIC, repository, name, what: "the header of a pack", label, offset: 0 }
}

fn footer_block(repository: [u8; 16], name: ObjectName, label: &str, offset: u64) -> Block<'_> {
    Block { magic: FOOTER_MAGIC, repository, name, what: "the footer of a pack", label, offset }
}

/// The header's block.
pub fn encode_header(keys: &Keys, header: &PackHeader) -> Vec<u8> {
    header_block(header.repository, header.name, "").encode(keys, &header.seed).to_vec()
}

/// The pack's index and footer, to be written at `index_offset` (a multiple of [`BLOCK`]). Entries may come in any
/// order, and with any `pack`; that they do not overlap is checked by whoever reads them.
pub fn encode_tail(keys: &Keys, header: &PackHeader, entries: &[Entry], index_offset: u64) -> Vec<u8> {
    debug_assert!(index_offset.is_multiple_of(BLOCK) && entries.len() <= PACK_ENTRIES_MAX);
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| entry.offset);
    let mut bytes = Vec::with_capacity(index_bytes(entries.len()) as usize + block::BYTES);
    for entry in order {
        bytes.extend_from_slice(&Entry { pack: 0, ..*entry }.encode());
    }
    bytes.resize(index_bytes(entries.len()) as usize, 0);

    let mut content = Vec::with_capacity(88);
    let header_mac: [u8; 32] = array(&encode_header(keys, header), block::BYTES - 32);
    for number in [index_offset, entries.len() as u64, index_offset + bytes.len() as u64 + BLOCK] {
        content.extend_from_slice(&number.to_le_bytes());
    }
    content.extend_from_slice(&header_mac);
    content.extend_from_slice(index_mac(keys, header, &bytes).as_bytes());
    let footer = footer_block(header.repository, header.name, "", 0);
    bytes.extend_from_slice(&footer.encode(keys, &content));
    bytes
}

fn index_mac(keys: &Keys, header: &PackHeader, index: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(&keys.metadata_mac);
    hasher.update(INDEX_CONTEXT).update(&header.repository).update(&header.name.0).update(index).finalize()
}

/// Bytes of an index of so many entries, padded to a block.
fn index_bytes(entries: usize) -> u64 {
    ((entries * ENTRY_BYTES) as u64).next_multiple_of(BLOCK)
}

/// Reads a pack's header only: for its seed.
///
/// # Errors
/// As for [`read_index`].
pub fn read_header(
    keys: &Keys,
    repository: [u8; 16],
    name: ObjectName,
    object: &dyn Object,
    label: &str,
) -> Result<PackHeader> {
    open_header(keys, repository, name, object, label).map(|(header, _)| header)
}

fn open_header(
    keys: &Keys,
    repository: [u8; 16],
    name: ObjectName,
    object: &dyn Object,
    label: &str,
) -> Result<(PackHeader, Opened)> {
    let block = header_block(repository, name, label);
    if object.size() < 2 * BLOCK || !object.size().is_multiple_of(BLOCK) {
        return Err(block.corrupt(&format!("cannot be that of an object of {} bytes", object.size())));
    }
    let mut bytes = [0; block::BYTES];
    object.read_at(0, &mut bytes)?;
    let opened = block.open(keys, &bytes)?;
    Ok((PackHeader { repository, name, seed: array(&opened.content, 0) }, opened))
}

/// Reads a pack's header, index and footer. `label` is the object's name in messages.
///
/// # Errors
/// `Corruption` with the pack's label, saying which part, for everything that is not as it was written; `Unsupported`
/// for a newer version, `WrongIdentity` for a pack of another repository.
pub fn read_index(
    keys: &Keys,
    repository: [u8; 16],
    name: ObjectName,
    object: &dyn Object,
    label: &str,
) -> Result<PackIndex> {
    let (header, header_block) = open_header(keys, repository, name, object, label)?;
    let size = object.size();
    let footer = footer_block(repository, name, label, size - BLOCK);
    let mut bytes = [0; block::BYTES];
    object.read_at(footer.offset, &mut bytes)?;
    let opened = footer.open(keys, &bytes)?;

    // Authentic from here on; what follows is still checked, as it bounds what is read.
    let number = |at| u64::from_le_bytes(array(&opened.content, at));
    let (index_offset, count) = (number(0), number(8));
    let fits = count <= PACK_ENTRIES_MAX as u64
        && index_offset >= BLOCK
        && index_offset % BLOCK == 0
        && index_offset.checked_add(index_bytes(count as usize)) == Some(footer.offset)
        && number(16) == size;
    if !fits {
        let what = format!("says {count} entries at {index_offset}, which an object of {size} bytes has not");
        return Err(footer.corrupt(&what));
    }
    if array::<32>(&opened.content, 24) != header_block.mac {
        return Err(footer.corrupt("does not belong to its header"));
    }

    let corrupt = |what: String, offset: u64| {
        Error::new(ErrorKind::Corruption, format!("the index of a pack {what}"))
            .at(label)
            .offset(offset)
            .hint("`mover verify` tells which restore points it touches")
    };
    let mut index = vec![0; index_bytes(count as usize) as usize];
    object.read_at(index_offset, &mut index)?;
    if index_mac(keys, &header, &index) != array::<32>(&opened.content, 56) {
        return Err(corrupt("is not what was written".into(), index_offset));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(count as usize);
    let mut free = BLOCK;
    for (number, bytes) in (0..count).zip(index.chunks_exact(ENTRY_BYTES)) {
        let at = index_offset + number * ENTRY_BYTES as u64;
        let entry =
            Entry::decode(&array(bytes, 0)).map_err(|error| corrupt(error.message().to_owned(), at))?;
        if entry.offset < free || entry.end() > index_offset || entry.pack != 0 {
            let what =
                format!("has an entry of bytes {} to {}, which is not there", entry.offset, entry.end());
            return Err(corrupt(what, at));
        }
        free = entry.end();
        entries.push(entry);
    }
    Ok(PackIndex { header, entries, size })
}

impl PackIndex {
    /// The entries of a chunk; nearly always none or one.
    pub fn find<'a>(&'a self, id: &'a ChunkId) -> impl Iterator<Item = &'a Entry> + 'a {
        self.entries.iter().filter(move |entry| entry.id == *id)
    }
}
