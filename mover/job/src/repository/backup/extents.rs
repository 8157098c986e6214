//! From what a source or a list says to what is read: whole chunks.

use mover_engine::queue::Extents;
use mover_model::{Extent, ExtentKind, ExtentList, Result};

/// A source's extents with data rounded out to chunks, and holes to what is left. Each chunk is read once.
pub(super) struct WholeChunks<'a> {
    from: Extents<'a>,
    chunk: u64,
    /// Where reading ends: the disk's size, or where the part begins that is read another way.
    end: u64,
    /// First byte that was not given yet.
    position: u64,
}

impl<'a> WholeChunks<'a> {
    pub fn new(from: Extents<'a>, chunk_size: u32, end: u64) -> Self {
        WholeChunks { from, chunk: u64::from(chunk_size), end, position: 0 }
    }
}

impl Iterator for WholeChunks<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        loop {
            let extent = match self.from.next()? {
                Ok(extent) => extent,
                Err(error) => return Some(Err(error)),
            };
            if extent.kind != ExtentKind::Data {
                // Nothing is said of holes: what has no name is one.
                continue;
            }
            let start = (extent.start / self.chunk * self.chunk).max(self.position);
            let end = extent.end().checked_next_multiple_of(self.chunk).unwrap_or(u64::MAX).min(self.end);
            if start < end {
                self.position = end;
                return Some(Ok(Extent::data(start, end - start)));
            }
        }
    }
}

/// What a list of changes means for chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Whole chunks that have to be read.
    pub read: ExtentList,
    /// Whole chunks whose content may differ from the base's: those that are read, and those that are zeros now.
    pub changed: ExtentList,
}

/// Rounds a list of changes to chunks. A chunk that is zeros as a whole needs no read; one that is in part does.
pub(super) fn changes(list: &ExtentList, size: u64, chunk_size: u32) -> Changes {
    let chunk = u64::from(chunk_size);
    let down = |at: u64| at / chunk * chunk;
    let up = |at: u64| at.checked_next_multiple_of(chunk).unwrap_or(u64::MAX).min(size);
    let mut changes = Changes::default();
    let mut add = |start: u64, end: u64, reads: bool| {
        let push = |list: &mut ExtentList| {
            let start = start.max(list.end().unwrap_or(0));
            if start < end {
                list.push(Extent::data(start, end - start));
            }
        };
        push(&mut changes.changed);
        if reads {
            push(&mut changes.read);
        }
    };
    let mut extents = list.iter().filter_map(|extent| extent.clip(0, size)).peekable();
    while let Some(extent) = extents.next() {
        let mut end = extent.end();
        if extent.kind == ExtentKind::Data {
            add(down(extent.start), up(end), true);
            continue;
        }
        // Zeros and holes are one: neither has anything to read.
        while let Some(next) = extents.next_if(|next| next.start == end && next.kind != ExtentKind::Data) {
            end = next.end();
        }
        let (first, last) = (up(extent.start), if end == size { size } else { down(end) });
        if first >= last {
            // No whole chunk: the one or two that it touches.
            add(down(extent.start), up(end), true);
            continue;
        }
        add(down(extent.start), first, true);
        add(first, last, false);
        add(last, up(end), true);
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: u64 = 16 << 10;

    fn data(ranges: &[(u64, u64)]) -> ExtentList {
        ranges.iter().map(|&(start, end)| Extent::data(start, end - start)).collect()
    }

    fn of(extents: &[Extent], size: u64) -> (ExtentList, ExtentList) {
        let list = ExtentList::from_unordered(extents.iter().copied(), Some(size)).unwrap();
        let changes = changes(&list, size, C as u32);
        (changes.read, changes.changed)
    }

    #[test]
    fn changes_are_rounded_out() {
        let (read, changed) =
            of(&[Extent::data(C + 1, 1), Extent::data(2 * C - 1, 2), Extent::data(9 * C, 5)], 9 * C + 7);
        assert_eq!(read, data(&[(C, 3 * C), (9 * C, 9 * C + 7)]));
        assert_eq!(read, changed);
    }

    #[test]
    fn zeros_clear_whole_chunks_and_have_others_read() {
        let zero = |start, length| Extent::new(start, length, ExtentKind::Zero);
        let hole = |start, length| Extent::new(start, length, ExtentKind::Hole);
        // From inside chunk 1 to inside chunk 4, in two kinds that meet in the middle of a chunk.
        let (read, changed) = of(&[zero(C + 1, C), hole(2 * C + 1, 2 * C)], 10 * C);
        assert_eq!(read, data(&[(C, 2 * C), (4 * C, 5 * C)]));
        assert_eq!(changed, data(&[(C, 5 * C)]));
        // Inside one chunk, and over the disk's short last one.
        let (read, changed) = of(&[zero(1, 2), hole(9 * C, 100)], 9 * C + 100);
        assert_eq!(read, data(&[(0, C)]));
        assert_eq!(changed, data(&[(0, C), (9 * C, 9 * C + 100)]));
        // The last chunk in part.
        let (read, _) = of(&[hole(9 * C, 99)], 9 * C + 100);
        assert_eq!(read, data(&[(9 * C, 9 * C + 100)]));
        // Data and zeros in one chunk.
        let (read, changed) = of(&[Extent::data(0, 1), zero(1, 2 * C)], 10 * C);
        assert_eq!(read, data(&[(0, C), (2 * C, 3 * C)]));
        assert_eq!(changed, data(&[(0, 3 * C)]));
    }

    #[test]
    fn sources_are_read_in_whole_chunks_once() {
        let hole = |start, length| Extent::new(start, length, ExtentKind::Hole);
        let extents = [
            Extent::data(0, 4096),
            hole(4096, 4096),
            Extent::data(8192, 4096),
            hole(12288, 4 * C),
            Extent::data(12288 + 4 * C, C),
        ];
        let from = || Box::new(extents.into_iter().map(Ok)) as Extents<'_>;
        let size = 12288 + 5 * C;
        let read: ExtentList = WholeChunks::new(from(), C as u32, size).map(Result::unwrap).collect();
        assert_eq!(read, data(&[(0, C), (4 * C, size)]));
        let read: ExtentList = WholeChunks::new(from(), C as u32, 5 * C).map(Result::unwrap).collect();
        assert_eq!(read, data(&[(0, C), (4 * C, 5 * C)]));
    }
}
