//! Index segments: sorted entries of many packs.
//!
//! ```text
//! 0          header, one block (`pack/block.rs`), no content of its own
//! 4096       pages of 4096 bytes: 56 entries, 4032 number of the page u64, 4040 its entries u32, zero × 20, 4064 MAC
//! firsts     first 8 bytes of each page's first id, as a u64 that sorts as they do
//! prints     2 bytes of each id (the 9th and 10th)
//! packs      names, 16 bytes each
//! superseded names of segments that this one stands for, 16 bytes each
//!            zeros up to a block
//! size-4096  footer, one block: 0 entries u64, 8 pages, 16 packs, 24 superseded (counts), 32 firsts, 40 prints,
//!            48 packs, 56 superseded (places), 64 size u64, 72 keyed BLAKE3 of all from `firsts` to the footer
//! ```
//! A lookup searches `firsts` for the page, compares 56 prints, and reads a page only for a match: one read for a
//! chunk that is there, none for nearly all that are not. `firsts` and `prints` are held in memory, 2.15 bytes a
//! chunk; pages are read from the store, where the host's page cache holds them.
//!
//! A page's MAC is keyed BLAKE3 of its 4096 bytes with zeros in place of the MAC, under a key made from the metadata
//! key, the repository and the segment's name: a page from elsewhere is none. Exactly 4096, as BLAKE3 hashes four whole
//! KiB at once, and takes each alone where one is short: twice the time of a lookup.

mod iter;
mod write;

use std::ops::Range;
use std::sync::Arc;

use mover_model::{ChunkId, Error, ErrorKind, Result};

pub use self::write::write_segment;
use crate::format::entry::{ENTRY_BYTES, Entry, array};
use crate::format::pack::block::{self, Block};
use crate::format::{BLOCK, Features};
use crate::keys::Keys;
use crate::names::ObjectName;
use crate::store::{Key, Object, Store};

/// Entries of a page.
pub const PAGE_ENTRIES: usize = 56;

const PAGE_BYTES: usize = BLOCK as usize;
const PAGE_NUMBER_AT: usize = PAGE_ENTRIES * ENTRY_BYTES;
const PAGE_COUNT_AT: usize = PAGE_NUMBER_AT + 8;
const PAGE_MAC_AT: usize = PAGE_BYTES - 32;
const HEADER_MAGIC: &[u8; 8] = b"MVSEGMHD";
const FOOTER_MAGIC: &[u8; 8] = b"MVSEGMFT";
/// Bytes of a table that are read at once: a multiple of every table's element.
const READ_BYTES: usize = 1 << 20;

/// Where a segment lies.
pub fn segment_key(name: ObjectName) -> Key {
    Key::new(format!("index/{name}"))
}

fn header_block(repository: [u8; 16], name: ObjectName, label: &str) -> Block<'_> {
    Block { magic: HEADER_MAGIC, repository, name, what: "the header of an index segment", label, offset: 0 }
}

fn footer_block(repository: [u8; 16], name: ObjectName, label: &str, offset: u64) -> Block<'_> {
    Block { magic: FOOTER_MAGIC, repository, name, what: "the footer of an index segment", label, offset }
}

/// A key of this segment for one use.
fn own_key(keys: &Keys, context: &[u8; 16], repository: [u8; 16], name: ObjectName) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&keys.metadata_mac);
    *hasher.update(context).update(&repository).update(&name.0).finalize().as_bytes()
}

fn page_key(keys: &Keys, repository: [u8; 16], name: ObjectName) -> [u8; 32] {
    own_key(keys, b"mover segm. page", repository, name)
}

fn tables_hasher(keys: &Keys, repository: [u8; 16], name: ObjectName) -> blake3::Hasher {
    blake3::Hasher::new_keyed(&own_key(keys, b"mover segm. tabl", repository, name))
}

/// The 2 bytes by which a page's entries are told apart without reading it; those before them are in `firsts`.
fn print_of(id: &ChunkId) -> u16 {
    u16::from_le_bytes([id.0[8], id.0[9]])
}

/// Places and counts: the counts make the places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    entries: u64,
    pages: u64,
    pack_count: u64,
    superseded_count: u64,
    firsts: u64,
    prints: u64,
    packs: u64,
    superseded: u64,
    footer: u64,
    size: u64,
}

impl Layout {
    /// `None` for counts of which no object can be.
    fn of(entries: u64, pack_count: u64, superseded_count: u64) -> Option<Self> {
        let pages = entries.div_ceil(PAGE_ENTRIES as u64);
        let firsts = pages.checked_add(1)?.checked_mul(BLOCK)?;
        let prints = firsts.checked_add(pages.checked_mul(8)?)?;
        let packs = prints.checked_add(entries.checked_mul(2)?)?;
        let superseded = packs.checked_add(pack_count.checked_mul(16)?)?;
        let footer =
            superseded.checked_add(superseded_count.checked_mul(16)?)?.checked_next_multiple_of(BLOCK)?;
        let size = footer.checked_add(BLOCK)?;
        let layout = Layout {
            entries,
            pages,
            pack_count,
            superseded_count,
            firsts,
            prints,
            packs,
            superseded,
            footer,
            size,
        };
        (size <= i64::MAX as u64).then_some(layout)
    }

    fn encode(&self, tables: &[u8; 32]) -> Vec<u8> {
        let counts = [self.entries, self.pages, self.pack_count, self.superseded_count];
        let places = [self.firsts, self.prints, self.packs, self.superseded, self.size];
        let mut bytes: Vec<u8> =
            counts.iter().chain(&places).flat_map(|number| number.to_le_bytes()).collect();
        bytes.extend_from_slice(tables);
        bytes
    }

    /// The layout of a footer; `None` where its places are not those of its counts, or its size not the object's.
    fn decode(content: &[u8], size: u64) -> Option<(Self, [u8; 32])> {
        let number = |at: usize| u64::from_le_bytes(array(content, at * 8));
        let layout = Layout::of(number(0), number(2), number(3))?;
        let tables = array(content, 72);
        (layout.size == size && content[..72] == layout.encode(&tables)[..72]).then_some((layout, tables))
    }
}

/// An open segment.
pub struct Segment {
    name: ObjectName,
    packs: Vec<ObjectName>,
    superseded: Vec<ObjectName>,
    entries: u64,
    firsts: Vec<u64>,
    prints: Vec<u16>,
    pages: Pages,
    page_key: [u8; 32],
    features: Features,
    label: String,
}

/// Where pages are read from.
enum Pages {
    /// The object.
    Open(Box<dyn Object>),
    /// The object, opened for each page: where there are more segments than a process may have open files.
    Closed(Arc<dyn Store>),
}

impl Segment {
    /// Opens a segment; `None` when it is gone.
    ///
    /// # Errors
    /// `Corruption`, `Unsupported`, `WrongIdentity`, and the store's.
    pub fn open(
        store: &dyn Store,
        keys: &Keys,
        repository: [u8; 16],
        name: ObjectName,
    ) -> Result<Option<Self>> {
        let key = segment_key(name);
        let Some(object) = store.open(&key)? else { return Ok(None) };
        let (label, size) = (store.label_of(&key), object.size());
        let header = header_block(repository, name, &label);
        if size < 2 * BLOCK || size % BLOCK != 0 {
            return Err(header.corrupt(&format!("cannot be that of an object of {size} bytes")));
        }
        let mut bytes = [0; block::BYTES];
        object.read_at(0, &mut bytes)?;
        let mut features = header.open(keys, &bytes)?.features;
        let footer = footer_block(repository, name, &label, size - BLOCK);
        object.read_at(footer.offset, &mut bytes)?;
        let opened = footer.open(keys, &bytes)?;
        features.read_only_compatible |= opened.features.read_only_compatible;
        features.compatible |= opened.features.compatible;
        let Some((layout, tables)) = Layout::decode(&opened.content, size) else {
            return Err(footer.corrupt(&format!("says other places than an object of {size} bytes has")));
        };

        let mut reader = Tables {
            object: &*object,
            at: layout.firsts,
            hasher: tables_hasher(keys, repository, name),
            buffer: vec![0; READ_BYTES.min((layout.footer - layout.firsts) as usize)],
        };
        let firsts = reader.table(layout.pages, u64::from_le_bytes)?;
        let prints = reader.table(layout.entries, u16::from_le_bytes)?;
        let packs = reader.table(layout.pack_count, ObjectName)?;
        let superseded = reader.table(layout.superseded_count, ObjectName)?;
        reader.table(layout.footer - reader.at, |[_]: [u8; 1]| ())?;
        if reader.hasher.finalize() != tables || !firsts.is_sorted() {
            let tables = Block { what: "the tables of an index segment", offset: layout.firsts, ..header };
            return Err(tables.corrupt("are not what was written"));
        }
        let page_key = page_key(keys, repository, name);
        let (entries, pages) = (layout.entries, Pages::Open(object));
        Ok(Some(Segment {
            name,
            packs,
            superseded,
            entries,
            firsts,
            prints,
            pages,
            page_key,
            features,
            label,
        }))
    }

    /// Gives up the open file: from now on each page that is read opens the object anew.
    pub fn close(&mut self, store: Arc<dyn Store>) {
        self.pages = Pages::Closed(store);
    }

    /// Its name.
    pub fn name(&self) -> ObjectName {
        self.name
    }

    /// Its name in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its packs; `Entry::pack` counts into them.
    pub fn packs(&self) -> &[ObjectName] {
        &self.packs
    }

    /// Segments that it stands for.
    pub fn superseded(&self) -> &[ObjectName] {
        &self.superseded
    }

    /// Number of entries.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Its features: with an unknown read-only compatible one it may be read, not relied on for new objects.
    pub fn features(&self) -> Features {
        self.features
    }

    /// All entries of this id with their ordinals (page × 56 + place), nearly always none or one. Adds to `found`.
    ///
    /// # Errors
    /// `Corruption` when a page is not as it was written; the store's.
    pub fn find(&self, id: &ChunkId, found: &mut Vec<(u64, Entry)>) -> Result<()> {
        self.visit(id, &mut |ordinal, entry| found.push((ordinal, entry)))
    }

    /// Calls `visit` with all entries of this id and their ordinals. Allocates nothing.
    ///
    /// # Errors
    /// As for [`Segment::find`].
    pub fn visit(&self, id: &ChunkId, visit: &mut dyn FnMut(u64, Entry)) -> Result<()> {
        let print = print_of(id);
        for page in self.pages_of(id.prefix()) {
            if self.prints_of(page).contains(&print) {
                self.visit_page(page, id, visit)?;
            }
        }
        Ok(())
    }

    /// The entries of this id in one page. Apart, so that a lookup which reads no page clears no buffer for one.
    #[inline(never)]
    fn visit_page(&self, page: usize, id: &ChunkId, visit: &mut dyn FnMut(u64, Entry)) -> Result<()> {
        let mut bytes = [0; PAGE_BYTES];
        self.read_pages(page as u64, &mut bytes)?;
        self.check_page(page as u64, &mut bytes)?;
        let (prints, print) = (self.prints_of(page), print_of(id));
        for place in (0..prints.len()).filter(|&place| prints[place] == print) {
            let entry: &[u8; ENTRY_BYTES] = &array(&bytes, place * ENTRY_BYTES);
            if entry[..32] == id.0 {
                visit((page * PAGE_ENTRIES + place) as u64, self.entry(page as u64, entry)?);
            }
        }
        Ok(())
    }

    fn prints_of(&self, page: usize) -> &[u16] {
        let first = page * PAGE_ENTRIES;
        &self.prints[first..self.prints.len().min(first + PAGE_ENTRIES)]
    }

    /// All entries in the order of their ids, with their ordinals. A damaged page is one error, after which the next
    /// page follows; an error of the store is the last item.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Result<(u64, Entry)>> + Send + '_> {
        Box::new(iter::Entries::new(self))
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        let names = self.packs.capacity() + self.superseded.capacity();
        self.firsts.capacity() * 8 + self.prints.capacity() * 2 + names * 16 + size_of::<Self>()
    }

    /// The pages that may hold ids of this prefix: those that begin with it, and the one before them.
    fn pages_of(&self, prefix: u64) -> Range<usize> {
        let from = self.first_page_at(prefix);
        let equal = self.firsts[from..].iter().take_while(|&&first| first == prefix).count();
        from.saturating_sub(1)..from + equal
    }

    /// The first page whose first prefix is not below this one. Ids are uniformly distributed, so the search begins
    /// where it should be and ends nearby, on few lines of cache.
    fn first_page_at(&self, prefix: u64) -> usize {
        let firsts = &self.firsts[..];
        let guess = ((u128::from(prefix) * firsts.len() as u128) >> 64) as usize;
        // Widened until all before `low` are below the prefix, and none from `high` on is.
        let (mut low, mut high) = (guess, guess);
        let mut step = 16;
        while low > 0 && firsts[low - 1] >= prefix {
            low = low.saturating_sub(step);
            step *= 2;
        }
        step = 16;
        while high < firsts.len() && firsts[high] < prefix {
            high = firsts.len().min(high + step);
            step *= 2;
        }
        low + firsts[low..high].partition_point(|&first| first < prefix)
    }

    /// Fills `bytes` with whole pages from `page` on.
    fn read_pages(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        let offset = (page + 1) * BLOCK;
        match &self.pages {
            Pages::Open(object) => object.read_at(offset, bytes),
            Pages::Closed(store) => match store.open(&segment_key(self.name))? {
                Some(object) => object.read_at(offset, bytes),
                None => Err(Error::new(ErrorKind::Corruption, "an index segment is gone")
                    .at(&self.label)
                    .offset(offset)
                    .hint("run the command again")),
            },
        }
    }

    /// Checks a page that was read; its MAC is zeros then.
    fn check_page(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        let mac: [u8; 32] = array(bytes, PAGE_MAC_AT);
        bytes[PAGE_MAC_AT..].fill(0);
        let count = (self.entries - page * PAGE_ENTRIES as u64).min(PAGE_ENTRIES as u64) as u32;
        let number_fits = bytes[PAGE_NUMBER_AT..PAGE_COUNT_AT] == page.to_le_bytes();
        let count_fits = bytes[PAGE_COUNT_AT..PAGE_COUNT_AT + 4] == count.to_le_bytes();
        if !number_fits || !count_fits || blake3::keyed_hash(&self.page_key, bytes) != mac {
            return Err(self.bad_page(page, "is not what was written"));
        }
        Ok(())
    }

    fn entry(&self, page: u64, bytes: &[u8; ENTRY_BYTES]) -> Result<Entry> {
        let entry = Entry::decode(bytes).map_err(|error| self.bad_page(page, error.message()))?;
        if entry.pack as usize >= self.packs.len() {
            return Err(self.bad_page(page, "names a pack that the segment does not"));
        }
        Ok(entry)
    }

    fn bad_page(&self, page: u64, what: &str) -> Error {
        Error::new(ErrorKind::Corruption, format!("page {page} of an index segment {what}"))
            .at(&self.label)
            .offset((page + 1) * BLOCK)
            .hint("the packs have the same entries in their own indexes: nothing is lost by this alone")
    }
}

/// Reads the tables front to back, hashing them.
struct Tables<'a> {
    object: &'a dyn Object,
    at: u64,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
}

impl Tables<'_> {
    fn table<const N: usize, T>(&mut self, count: u64, element: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let mut elements = Vec::with_capacity(count as usize);
        let mut left = count as usize * N;
        while left > 0 {
            let piece = left.min(READ_BYTES);
            self.object.read_at(self.at, &mut self.buffer[..piece])?;
            self.hasher.update(&self.buffer[..piece]);
            elements.extend(self.buffer[..piece].chunks_exact(N).map(|bytes| element(array(bytes, 0))));
            self.at += piece as u64;
            left -= piece;
        }
        Ok(elements)
    }
}
