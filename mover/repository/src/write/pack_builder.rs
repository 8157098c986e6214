//! The layout of a pack while it grows, for rings and plain writes alike: where each record goes, what stands in the
//! pack's own index, and when it is full.

use mover_model::{Error, ErrorKind, Result};

use crate::codec::PackKey;
use crate::format::BLOCK;
use crate::format::entry::{Encoding, Entry};
use crate::format::pack::{PACK_BYTES, PACK_ENTRIES_MAX, PackHeader, encode_header, encode_tail, pack_key};
use crate::keys::Keys;
use crate::names::ObjectName;
use crate::repository::Repository;
use crate::store::{Key, Upload};

/// Bytes as a length or a place in memory: no buffer here is longer than a pack.
const BLOCK_BYTES: usize = BLOCK as usize;

/// A record as long as its place in the pack is not decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Staged {
    /// What it will say; the offset and the tag come with the place.
    pub entry: Entry,
    /// First byte in the staging buffer.
    pub at: usize,
}

/// A pack that grows.
pub(crate) struct PackBuilder {
    header: PackHeader,
    key: PackKey,
    entries: Vec<Entry>,
    /// Where the next record may begin.
    next: u64,
}

impl PackBuilder {
    /// An empty pack of a new name with a new seed.
    ///
    /// # Errors
    /// `Internal` when the system has no randomness to give.
    pub fn new(repository: &Repository) -> Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|_| Error::new(ErrorKind::Internal, "the system gives no random bytes"))?;
        let header = PackHeader { repository: repository.id(), name: ObjectName::random()?, seed };
        let key = PackKey::new(repository.keys(), &header.seed);
        Ok(PackBuilder { header, key, entries: Vec::new(), next: BLOCK })
    }

    /// Where it will lie.
    pub fn key(&self) -> Key {
        pack_key(self.header.name)
    }

    /// Where the next record may begin.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it is to be closed, with `staged_bytes` in `staged` records that have no place yet.
    pub fn is_full(&self, staged_bytes: usize, staged: usize) -> bool {
        self.next + staged_bytes as u64 >= BLOCK + PACK_BYTES
            || self.entries.len() + staged >= PACK_ENTRIES_MAX
    }

    /// Places one record of whole blocks at the next block and encrypts it. Returns its offset in the pack.
    ///
    /// # Errors
    /// `Internal`, from the cipher.
    pub fn place_blocks(&mut self, entry: Entry, bytes: &mut [u8]) -> Result<u64> {
        debug_assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        self.next = self.next.next_multiple_of(BLOCK);
        self.place(entry, bytes)
    }

    /// Places one record behind the one before and encrypts it. Returns its offset in the pack.
    ///
    /// # Errors
    /// `Internal`, from the cipher.
    pub fn place(&mut self, entry: Entry, bytes: &mut [u8]) -> Result<u64> {
        let offset = self.next;
        let mut entry = Entry { offset, ..entry };
        entry.tag = self.key.seal(&entry, bytes)?;
        self.next += bytes.len() as u64;
        self.entries.push(entry);
        Ok(offset)
    }

    /// Places all records of a staging buffer, one behind the other from the next block on, encrypts them and clears what
    /// is left of the last block. Returns the offset in the pack and the bytes to be written there.
    ///
    /// # Errors
    /// `Internal`, from the cipher.
    pub fn place_staged(
        &mut self,
        staged: &[Staged],
        used: usize,
        buffer: &mut [u8],
    ) -> Result<(u64, usize)> {
        self.next = self.next.next_multiple_of(BLOCK);
        let base = self.next;
        for record in staged {
            debug_assert_eq!(self.next, base + record.at as u64);
            let length = record.entry.stored as usize;
            self.place(record.entry, &mut buffer[record.at..record.at + length])?;
        }
        let padded = used.next_multiple_of(BLOCK_BYTES);
        buffer[used..padded].fill(0);
        self.next = base + padded as u64;
        Ok((base, padded))
    }

    /// The pack with all records written, up to the end of the last block, for the committer.
    pub fn seal(self, upload: Box<dyn Upload>) -> SealedPack {
        let index_offset = self.next.next_multiple_of(BLOCK);
        SealedPack { header: self.header, entries: self.entries, index_offset, upload }
    }
}

/// A pack whose records are written, and nothing else.
pub(crate) struct SealedPack {
    header: PackHeader,
    entries: Vec<Entry>,
    index_offset: u64,
    upload: Box<dyn Upload>,
}

impl SealedPack {
    /// Its name.
    pub fn name(&self) -> ObjectName {
        self.header.name
    }

    /// Writes header, index and footer and makes the pack durable. Returns its entries and its bytes.
    ///
    /// # Errors
    /// The store's; `Internal` when there is a pack of its random name.
    pub fn commit(mut self, keys: &Keys) -> Result<(Vec<Entry>, u64)> {
        let tail = encode_tail(keys, &self.header, &self.entries, self.index_offset);
        let length = self.index_offset + tail.len() as u64;
        self.upload.write_at(0, &encode_header(keys, &self.header))?;
        self.upload.write_at(self.index_offset, &tail)?;
        match self.upload.commit(length)? {
            crate::store::Put::Done => Ok((self.entries, length)),
            crate::store::Put::Exists => {
                let key = pack_key(self.header.name).to_string();
                Err(Error::new(ErrorKind::Internal, "there is a pack of this new random name already")
                    .at(key))
            }
        }
    }
}

/// The entry of a chunk that has no place yet.
pub(crate) fn entry(
    id: mover_model::ChunkId,
    kind: crate::keys::ChunkKind,
    encoding: Encoding,
    stored: usize,
    plain: usize,
) -> Entry {
    Entry { id, tag: [0; 16], offset: 0, stored: stored as u32, plain: plain as u32, pack: 0, encoding, kind }
}
