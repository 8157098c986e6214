//! Extents of a disk and their algebra.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtentKind {
    /// Bytes that have to be read.
    Data,
    /// Reads as zeros and is allocated, or was written with zeros.
    Zero,
    /// Reads as zeros and is not allocated, or was discarded.
    Hole,
}

/// A range of bytes `[start, start + length)` of a disk, with what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Bytes; never zero in a list. `start + length` fits 63 bits.
    pub length: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

impl Extent {
    /// An extent of a kind.
    pub const fn new(start: u64, length: u64, kind: ExtentKind) -> Self {
        Extent { start, length, kind }
    }

    /// A data extent.
    pub const fn data(start: u64, length: u64) -> Self {
        Extent::new(start, length, ExtentKind::Data)
    }

    /// First byte after it.
    pub const fn end(&self) -> u64 {
        self.start + self.length
    }

    /// The part inside `[start, end)`, if any.
    pub fn clip(&self, start: u64, end: u64) -> Option<Extent> {
        let from = self.start.max(start);
        let to = self.end().min(end);
        (from < to).then(|| Extent::new(from, to - from, self.kind))
    }

    /// Splits at `[aligned start, aligned end)`: the middle whose ends are multiples of `granule` (a power of
    /// two), and the unaligned rims before and after it. An extent inside one granule is all rim.
    pub fn split_aligned(&self, granule: u64) -> Aligned {
        debug_assert!(granule.is_power_of_two());
        let first = (self.start + (granule - 1)) & !(granule - 1);
        let last = self.end() & !(granule - 1);
        if first >= last {
            return Aligned { head: Some(*self), middle: None, tail: None };
        }
        Aligned {
            head: self.clip(self.start, first),
            middle: self.clip(first, last),
            tail: self.clip(last, self.end()),
        }
    }
}

/// An extent cut at alignment boundaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aligned {
    /// Before the first boundary, or everything where no aligned middle exists.
    pub head: Option<Extent>,
    /// From boundary to boundary.
    pub middle: Option<Extent>,
    /// After the last boundary.
    pub tail: Option<Extent>,
}

/// Why a list of extents is no valid list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtentError {
    /// Two extents share bytes.
    #[error("extents overlap at offset {0}")]
    Overlap(u64),
    /// An extent passes the end of the disk.
    #[error("the extent at offset {start} of {length} bytes ends past the disk's size of {size} bytes")]
    PastEnd {
        /// Its first byte.
        start: u64,
        /// Its length.
        length: u64,
        /// The disk's size.
        size: u64,
    },
    /// An extent of no bytes.
    #[error("the extent at offset {0} is empty")]
    Empty(u64),
    /// An end that no disk can have.
    #[error("the extent at offset {0} ends past 2^63 - 1")]
    TooLarge(u64),
}

/// Extents in order of their start, without overlap, neighbours of one kind joined.
///
/// 16 bytes each: the kind is kept in the two upper bits of the length, which a 63-bit disk leaves free in
/// all but the one impossible extent of 2⁶² bytes and more, so that is cut in pieces.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ExtentList {
    packed: Vec<Packed>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Packed {
    start: u64,
    tagged_length: u64,
}

const KIND_SHIFT: u32 = 62;
const LENGTH_MASK: u64 = (1 << KIND_SHIFT) - 1;

impl Packed {
    fn new(extent: Extent) -> Self {
        Packed { start: extent.start, tagged_length: extent.length | (extent.kind as u64) << KIND_SHIFT }
    }

    fn extent(self) -> Extent {
        let kind = match self.tagged_length >> KIND_SHIFT {
            0 => ExtentKind::Data,
            1 => ExtentKind::Zero,
            _ => ExtentKind::Hole,
        };
        Extent { start: self.start, length: self.tagged_length & LENGTH_MASK, kind }
    }
}

impl fmt::Debug for ExtentList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl ExtentList {
    /// No extents.
    pub fn new() -> Self {
        Self::default()
    }

    /// A list from extents in any order.
    ///
    /// # Errors
    /// Overlaps, empty extents, and ends past `size` (when it is known) or past 2⁶³ - 1.
    pub fn from_unordered(
        extents: impl IntoIterator<Item = Extent>,
        size: Option<u64>,
    ) -> Result<Self, ExtentError> {
        let mut list = ExtentList::new();
        let mut ordered = true;
        for extent in extents {
            let end = extent.start.checked_add(extent.length).filter(|&end| end <= i64::MAX as u64);
            let end = end.ok_or(ExtentError::TooLarge(extent.start))?;
            if extent.length == 0 {
                return Err(ExtentError::Empty(extent.start));
            }
            if let Some(size) = size.filter(|&size| end > size) {
                return Err(ExtentError::PastEnd { start: extent.start, length: extent.length, size });
            }
            ordered &= list.end().is_none_or(|last| last <= extent.start);
            if ordered {
                list.push(extent);
            } else {
                list.push_packed(extent);
            }
        }
        if !ordered {
            list.packed.sort_unstable_by_key(|packed| packed.start);
            let mut sorted = ExtentList::new();
            for extent in list.iter() {
                if sorted.end().is_some_and(|end| end > extent.start) {
                    return Err(ExtentError::Overlap(extent.start));
                }
                sorted.push(extent);
            }
            list = sorted;
        }
        list.packed.shrink_to_fit();
        Ok(list)
    }

    /// Appends an extent that starts at or after the list's end; joined to the last one if it continues it.
    ///
    /// # Panics
    /// If it starts before the list's end: the caller's order is broken.
    pub fn push(&mut self, extent: Extent) {
        if extent.length == 0 {
            return;
        }
        assert!(self.end().is_none_or(|end| end <= extent.start), "extents pushed out of order");
        if let Some(last) = self.packed.last_mut() {
            let previous = last.extent();
            let joined = previous.length + extent.length;
            if previous.end() == extent.start && previous.kind == extent.kind && joined <= LENGTH_MASK {
                *last = Packed::new(Extent { length: joined, ..previous });
                return;
            }
        }
        self.push_packed(extent);
    }

    fn push_packed(&mut self, mut extent: Extent) {
        const WHOLE: u64 = LENGTH_MASK & !0xfff;
        while extent.length > LENGTH_MASK {
            self.packed.push(Packed::new(Extent { length: WHOLE, ..extent }));
            extent = Extent::new(extent.start + WHOLE, extent.length - WHOLE, extent.kind);
        }
        self.packed.push(Packed::new(extent));
    }

    /// First byte after the last extent.
    pub fn end(&self) -> Option<u64> {
        self.packed.last().map(|packed| packed.extent().end())
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// The extents in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.packed.iter().map(|packed| packed.extent())
    }

    /// The extent at an index.
    pub fn get(&self, index: usize) -> Option<Extent> {
        self.packed.get(index).map(|packed| packed.extent())
    }

    /// Bytes of one kind.
    pub fn bytes_of(&self, kind: ExtentKind) -> u64 {
        self.iter().filter(|extent| extent.kind == kind).map(|extent| extent.length).sum()
    }

    /// Bytes of all kinds.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|extent| extent.length).sum()
    }

    /// Index of the first extent that ends after `offset`.
    pub fn first_after(&self, offset: u64) -> usize {
        self.packed.partition_point(|packed| packed.extent().end() <= offset)
    }

    /// The parts inside `[start, end)`.
    pub fn clip(&self, start: u64, end: u64) -> ExtentList {
        let mut out = ExtentList::new();
        for extent in self.packed[self.first_after(start)..].iter().map(|packed| packed.extent()) {
            match extent.clip(start, end) {
                Some(part) => out.push(part),
                None => break,
            }
        }
        out
    }

    /// What of this list lies in none of `other`'s extents, whatever their kinds.
    pub fn subtract(&self, other: &ExtentList) -> ExtentList {
        let mut out = ExtentList::new();
        let mut subtract = Subtract::new(other);
        for extent in self.iter() {
            subtract.apply(extent, |part| out.push(part));
        }
        out
    }

    /// What of this list lies in `other`'s extents too; kinds are this list's.
    pub fn intersect(&self, other: &ExtentList) -> ExtentList {
        let mut out = ExtentList::new();
        let mut theirs = other.iter().peekable();
        for extent in self.iter() {
            while theirs.peek().is_some_and(|their| their.end() <= extent.start) {
                theirs.next();
            }
            while let Some(their) = theirs.peek() {
                match extent.clip(their.start, their.end()) {
                    Some(part) => out.push(part),
                    None => break,
                }
                if their.end() > extent.end() {
                    break;
                }
                theirs.next();
            }
        }
        out
    }

    /// All bytes of either list. Where both have a byte, data wins over zero and zero over hole.
    pub fn union(&self, other: &ExtentList) -> ExtentList {
        // Cut both at every boundary of either; then the kind of each piece is the least of the two.
        let mut bounds: Vec<u64> = self.iter().chain(other.iter()).flat_map(|e| [e.start, e.end()]).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let mut out = ExtentList::new();
        let (mut mine, mut theirs) = (0, 0);
        for pair in bounds.windows(2) {
            let (start, end) = (pair[0], pair[1]);
            let kind_in = |list: &ExtentList, at: &mut usize| {
                while list.get(*at).is_some_and(|extent| extent.end() <= start) {
                    *at += 1;
                }
                list.get(*at).filter(|extent| extent.start <= start).map(|extent| extent.kind)
            };
            let kinds = [kind_in(self, &mut mine), kind_in(other, &mut theirs)];
            if let Some(kind) = kinds.into_iter().flatten().min() {
                out.push(Extent::new(start, end - start, kind));
            }
        }
        out
    }

    /// The list with every gap in `[0, size)` filled by extents of `kind`.
    pub fn fill_gaps(&self, size: u64, kind: ExtentKind) -> ExtentList {
        let mut out = ExtentList::new();
        let mut position = 0;
        for extent in self.iter() {
            let gap_end = extent.start.min(size);
            if position < gap_end {
                out.push(Extent::new(position, gap_end - position, kind));
            }
            out.push(extent);
            position = extent.end();
        }
        if position < size {
            out.push(Extent::new(position, size - position, kind));
        }
        out
    }
}

impl FromIterator<Extent> for ExtentList {
    /// From extents already in order.
    fn from_iter<I: IntoIterator<Item = Extent>>(iter: I) -> Self {
        let mut list = ExtentList::new();
        for extent in iter {
            list.push(extent);
        }
        list
    }
}

/// Streaming subtraction: extents come in order, one by one, and leave without what `from` covers.
pub struct Subtract<'a> {
    covered: &'a ExtentList,
    next: usize,
}

impl<'a> Subtract<'a> {
    /// Will remove what `covered` holds.
    pub fn new(covered: &'a ExtentList) -> Self {
        Subtract { covered, next: 0 }
    }

    /// Gives the parts of `extent` that are not covered, in order. Each extent must start at or
    /// after the end of the one before it.
    pub fn apply(&mut self, extent: Extent, mut part: impl FnMut(Extent)) {
        let mut position = extent.start;
        while let Some(covered) = self.covered.get(self.next) {
            if covered.end() <= extent.start {
                self.next += 1;
                continue;
            }
            if covered.start >= extent.end() {
                break;
            }
            if let Some(before) = extent.clip(position, covered.start) {
                part(before);
            }
            position = covered.end().min(extent.end());
            if covered.end() > extent.end() {
                break;
            }
            self.next += 1;
        }
        if let Some(rest) = extent.clip(position, extent.end()) {
            part(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_is_sixteen_bytes_in_a_list() {
        assert_eq!(std::mem::size_of::<Packed>(), 16);
    }

    #[test]
    fn alignment_splits_off_rims() {
        let cut = Extent::data(100, 8192).split_aligned(512);
        assert_eq!(cut.head, Some(Extent::data(100, 412)));
        assert_eq!(cut.middle, Some(Extent::data(512, 7680)));
        assert_eq!(cut.tail, Some(Extent::data(8192, 100)));
        let small = Extent::data(513, 100).split_aligned(512);
        assert_eq!((small.head, small.middle), (Some(Extent::data(513, 100)), None));
        let whole = Extent::data(512, 512).split_aligned(512);
        assert_eq!((whole.head, whole.middle, whole.tail), (None, Some(Extent::data(512, 512)), None));
    }

    #[test]
    fn bad_lists_say_where() {
        let list = |extents: &[Extent]| ExtentList::from_unordered(extents.iter().copied(), Some(100));
        assert_eq!(list(&[Extent::data(0, 10), Extent::data(9, 1)]), Err(ExtentError::Overlap(9)));
        assert_eq!(list(&[Extent::data(20, 10), Extent::data(0, 21)]), Err(ExtentError::Overlap(20)));
        assert_eq!(list(&[Extent::data(5, 0)]), Err(ExtentError::Empty(5)));
        assert_eq!(
            list(&[Extent::data(99, 2)]),
            Err(ExtentError::PastEnd { start: 99, length: 2, size: 100 })
        );
        assert_eq!(
            ExtentList::from_unordered([Extent::data(u64::MAX, 2)], None),
            Err(ExtentError::TooLarge(u64::MAX))
        );
    }

    #[test]
    fn the_largest_disk_fits() {
        let list = ExtentList::from_unordered([Extent::data(0, i64::MAX as u64)], None).unwrap();
        assert_eq!(list.bytes(), i64::MAX as u64);
    }
}
