//! Writes a segment front to back: entries come from an iterator, and only what an open segment holds in memory is
//! held meanwhile.

use mover_model::{Error, ErrorKind, Result};

use super::{
    Layout, PAGE_ENTRIES, footer_block, header_block, page_key, print_of, segment_key, tables_hasher,
};
use crate::format::BLOCK;
use crate::format::entry::{ENTRY_BYTES, Entry};
use crate::format::pack::block;
use crate::keys::Keys;
use crate::names::ObjectName;
use crate::store::{Put, Store, Upload};

/// Bytes that are gathered before they are written: large enough that a write's cost does not count.
const WRITE_BYTES: usize = 1 << 20;

/// Writes a segment of entries in the order of their ids (equal ids may follow each other: a chunk in two packs).
/// `Entry::pack` counts into `packs`. Durable when it returns; returns the bytes of the object.
///
/// # Errors
/// Those of the store and of the iterator; `Internal` for entries that are out of order or name no pack, and for a name
/// that was used before.
pub fn write_segment(
    store: &dyn Store,
    keys: &Keys,
    repository: [u8; 16],
    name: ObjectName,
    packs: &[ObjectName],
    superseded: &[ObjectName],
    entries: &mut dyn Iterator<Item = Result<Entry>>,
) -> Result<u64> {
    let key = segment_key(name);
    let label = store.label_of(&key);
    let internal =
        |what: &str| Error::new(ErrorKind::Internal, format!("an index segment {what}")).at(&label);
    let expected = Layout::of(entries.size_hint().0 as u64, packs.len() as u64, superseded.len() as u64);
    let expected_bytes = expected.map_or(0, |layout| layout.size);
    let mut out =
        Out { upload: store.begin(&key, expected_bytes)?, at: 0, buffer: Vec::with_capacity(WRITE_BYTES) };
    out.write(&header_block(repository, name, &label).encode(keys, &[]))?;

    let page_key = page_key(keys, repository, name);
    let (mut firsts, mut prints) = (Vec::new(), Vec::new());
    let mut page = Page::default();
    let mut last = None;
    for entry in entries {
        let entry = entry?;
        if last.is_some_and(|last| last > entry.id) {
            return Err(internal("got entries that are not in the order of their ids"));
        }
        if entry.pack as usize >= packs.len() {
            return Err(internal("got an entry of a pack that it does not name"));
        }
        last = Some(entry.id);
        if page.entries == 0 {
            firsts.push(entry.id.prefix());
        }
        prints.push(print_of(&entry.id));
        page.push(&entry);
        if page.entries == PAGE_ENTRIES {
            out.write(page.seal(&page_key, firsts.len() as u64 - 1))?;
            page = Page::default();
        }
    }
    if page.entries > 0 {
        out.write(page.seal(&page_key, firsts.len() as u64 - 1))?;
    }

    let layout = Layout::of(prints.len() as u64, packs.len() as u64, superseded.len() as u64)
        .ok_or_else(|| internal("would be longer than any object"))?;
    debug_assert_eq!(out.position(), layout.firsts);
    let mut hasher = tables_hasher(keys, repository, name);
    let mut table = |out: &mut Out, bytes: &[u8]| {
        hasher.update(bytes);
        out.write(bytes)
    };
    for first in &firsts {
        table(&mut out, &first.to_le_bytes())?;
    }
    for print in &prints {
        table(&mut out, &print.to_le_bytes())?;
    }
    for name in packs.iter().chain(superseded) {
        table(&mut out, &name.0)?;
    }
    let padding = vec![0; (layout.footer - out.position()) as usize];
    table(&mut out, &padding)?;
    let footer = footer_block(repository, name, &label, layout.footer);
    out.write(&footer.encode(keys, &layout.encode(hasher.finalize().as_bytes())))?;
    out.flush()?;
    match out.upload.commit(layout.size)? {
        Put::Done => Ok(layout.size),
        Put::Exists => Err(internal("of this name is there already, though names are random")),
    }
}

/// The page that is being filled.
struct Page {
    bytes: [u8; block::BYTES],
    entries: usize,
}

impl Default for Page {
    fn default() -> Self {
        Page { bytes: [0; block::BYTES], entries: 0 }
    }
}

impl Page {
    fn push(&mut self, entry: &Entry) {
        self.bytes[self.entries * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(&entry.encode());
        self.entries += 1;
    }

    fn seal(&mut self, key: &[u8; 32], number: u64) -> &[u8] {
        self.bytes[super::PAGE_NUMBER_AT..][..8].copy_from_slice(&number.to_le_bytes());
        self.bytes[super::PAGE_COUNT_AT..][..4].copy_from_slice(&(self.entries as u32).to_le_bytes());
        let mac = blake3::keyed_hash(key, &self.bytes);
        self.bytes[super::PAGE_MAC_AT..].copy_from_slice(mac.as_bytes());
        &self.bytes
    }
}

/// Gathers bytes for the upload, in their order.
struct Out {
    upload: Box<dyn Upload>,
    at: u64,
    buffer: Vec<u8>,
}

impl Out {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // A write begins at a block and ends at one, but for padding that fills the last block anyway.
        if self.buffer.len() + bytes.len() > WRITE_BYTES {
            let whole = self.buffer.len() - self.buffer.len() % BLOCK as usize;
            self.upload.write_at(self.at, &self.buffer[..whole])?;
            self.at += whole as u64;
            self.buffer.drain(..whole);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.upload.write_at(self.at, &self.buffer)?;
            self.at += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }
}
