//! All entries of a segment, some pages at a time.

use mover_model::Result;

use super::{PAGE_BYTES, PAGE_ENTRIES, Segment};
use crate::format::entry::{ENTRY_BYTES, Entry, array};

/// Pages that are read at once: enough that a pass over an index is as fast as reading it.
const BATCH_PAGES: usize = 64;

pub(super) struct Entries<'a> {
    segment: &'a Segment,
    /// The next entry.
    ordinal: u64,
    /// Pages from `batch` on.
    buffer: Vec<u8>,
    batch: u64,
    /// A page that was checked already.
    checked: Option<u64>,
}

impl<'a> Entries<'a> {
    pub(super) fn new(segment: &'a Segment) -> Self {
        Entries { segment, ordinal: 0, buffer: Vec::new(), batch: 0, checked: None }
    }

    /// Makes sure that a page is in the buffer.
    fn fill(&mut self, page: u64) -> Result<()> {
        let pages = self.buffer.len() / PAGE_BYTES;
        if !(self.batch..self.batch + pages as u64).contains(&page) {
            let pages = (self.segment.firsts.len() - page as usize).min(BATCH_PAGES);
            self.buffer.resize(pages * PAGE_BYTES, 0);
            self.batch = page;
            self.segment.read_pages(page, &mut self.buffer)?;
        }
        Ok(())
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(u64, Entry)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ordinal >= self.segment.entries {
            return None;
        }
        let page = self.ordinal / PAGE_ENTRIES as u64;
        if let Err(error) = self.fill(page) {
            self.ordinal = self.segment.entries;
            return Some(Err(error));
        }
        let bytes = &mut self.buffer[(page - self.batch) as usize * PAGE_BYTES..][..PAGE_BYTES];
        if self.checked != Some(page) {
            if let Err(error) = self.segment.check_page(page, bytes) {
                self.ordinal = (page + 1) * PAGE_ENTRIES as u64;
                return Some(Err(error));
            }
            self.checked = Some(page);
        }
        let (ordinal, place) = (self.ordinal, self.ordinal as usize % PAGE_ENTRIES);
        self.ordinal += 1;
        let entry = self.segment.entry(page, &array(bytes, place * ENTRY_BYTES));
        Some(entry.map(|entry| (ordinal, entry)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.segment.entries - self.ordinal.min(self.segment.entries)) as usize;
        (left.min(self.segment.firsts.len()), Some(left))
    }
}
