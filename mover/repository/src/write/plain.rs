//! A pack that is filled by plain writes: tree nodes, and what gc moves.

use mover_model::{ChunkId, Result};

use super::pack_builder::{PackBuilder, SealedPack, entry};
use crate::codec::{Compressor, compressed_bound};
use crate::config::Compression;
use crate::format::BLOCK;
use crate::format::entry::{Encoding, Entry};
use crate::format::pack::PACK_BYTES;
use crate::keys::ChunkKind;
use crate::repository::Repository;
use crate::store::Upload;

/// Records gathered before they are written.
const BUFFER_BYTES: usize = 4 << 20;

/// Packs of one kind of chunk, one after the other.
pub(crate) struct PlainPacks {
    kind: ChunkKind,
    compression: Compression,
    compressor: Option<Compressor>,
    packed: Vec<u8>,
    open: Option<OpenPack>,
}

struct OpenPack {
    builder: PackBuilder,
    /// Begun with the first write, when it is known whether the pack is a small one.
    upload: Option<Box<dyn Upload>>,
    /// Records from `base` on that are not written yet.
    buffer: Vec<u8>,
    base: u64,
}

impl PlainPacks {
    /// Packs of chunks of a kind.
    pub fn new(kind: ChunkKind, compression: Compression) -> Self {
        PlainPacks { kind, compression, compressor: None, packed: Vec::new(), open: None }
    }

    /// Stores content. Returns the bytes of its record, and the pack where that is full now.
    ///
    /// # Errors
    /// The store's.
    pub fn put(
        &mut self,
        repository: &Repository,
        id: ChunkId,
        content: &[u8],
    ) -> Result<(usize, Option<SealedPack>)> {
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(self.compression)?),
        };
        let mut packed = std::mem::take(&mut self.packed);
        packed.resize(compressed_bound(content.len()).max(content.len()), 0);
        let (encoding, stored) = compressor.compress(content, &mut packed).unwrap_or_else(|| {
            packed[..content.len()].copy_from_slice(content);
            (Encoding::Raw, content.len())
        });
        let entry = entry(id, self.kind, encoding, stored, content.len());
        let full = self.put_record(repository, entry, &packed[..stored]);
        self.packed = packed;
        Ok((stored, full?))
    }

    /// Stores a record as it is (not encrypted); of the entry its place and tag mean nothing.
    ///
    /// # Errors
    /// The store's.
    pub fn put_record(
        &mut self,
        repository: &Repository,
        entry: Entry,
        record: &[u8],
    ) -> Result<Option<SealedPack>> {
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(OpenPack::begin(repository)?),
        };
        open.add(repository, entry, record)?;
        if !open.builder.is_full(0, 0) {
            return Ok(None);
        }
        self.close(repository)
    }

    /// Closes the open pack, if there is one.
    ///
    /// # Errors
    /// The store's.
    pub fn close(&mut self, repository: &Repository) -> Result<Option<SealedPack>> {
        let Some(mut open) = self.open.take() else { return Ok(None) };
        let mut rest = std::mem::take(&mut open.buffer);
        rest.resize(rest.len().next_multiple_of(BLOCK as usize), 0);
        let mut upload = match open.upload {
            Some(upload) => upload,
            None => repository.store().begin(&open.builder.key(), open.base + rest.len() as u64)?,
        };
        upload.write_at(open.base, &rest)?;
        Ok(Some(open.builder.seal(upload)))
    }
}

impl OpenPack {
    fn begin(repository: &Repository) -> Result<Self> {
        let builder = PackBuilder::new(repository)?;
        let base = builder.next();
        Ok(OpenPack { builder, upload: None, buffer: Vec::new(), base })
    }

    fn add(&mut self, repository: &Repository, entry: Entry, record: &[u8]) -> Result<()> {
        let blocks = entry.encoding == Encoding::Raw && record.len().is_multiple_of(BLOCK as usize);
        if blocks {
            self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK as usize), 0);
        }
        let at = self.buffer.len();
        self.buffer.extend_from_slice(record);
        let bytes = &mut self.buffer[at..];
        let offset =
            if blocks { self.builder.place_blocks(entry, bytes) } else { self.builder.place(entry, bytes) }?;
        debug_assert_eq!(offset, self.base + at as u64);
        if self.buffer.len() >= BUFFER_BYTES {
            // Whole blocks, so that the next write begins at one.
            let whole = self.buffer.len() / BLOCK as usize * BLOCK as usize;
            let upload = match &mut self.upload {
                Some(upload) => upload,
                none => none.insert(repository.store().begin(&self.builder.key(), PACK_BYTES)?),
            };
            upload.write_at(self.base, &self.buffer[..whole])?;
            self.buffer.drain(..whole);
            self.base += whole as u64;
        }
        Ok(())
    }
}
