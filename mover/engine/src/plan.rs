//! From extents to work: cuts at the grid of blocks, joins near neighbours, splits what is large.
//!
//! Requests never cross a multiple of the block size. So the digests of two runs over the same extents are
//! of the same ranges, whoever moved them.

use mover_model::{Extent, ExtentKind, limits};

/// Work that one worker takes from the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A run of one kind, which the worker cuts into requests.
    Span {
        /// Which task.
        task: usize,
        /// Its bytes.
        extent: Extent,
    },
    /// One request whose data lies in several pieces with gaps that are read but not written.
    Joined(Box<Joined>),
    /// A sequential task as a whole: its worker pulls the extents itself.
    Sequential {
        /// Which task.
        task: usize,
    },
}

/// Neighbours within one block, read in one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Which task.
    pub task: usize,
    /// First byte of the first piece.
    pub start: u64,
    /// Bytes up to the end of the last piece.
    pub length: u32,
    /// Start (counted from `start`) and length of each piece.
    pub pieces: Vec<(u32, u32)>,
}

/// Turns one task's extents into items.
#[derive(Debug)]
pub struct Planner {
    task: usize,
    block_size: u64,
    join_gap: u64,
    waiting: Vec<Extent>,
}

impl Planner {
    /// For a task; neighbours are joined over gaps of up to `join_gap` bytes (0: never).
    pub fn new(task: usize, block_size: u32, join_gap: u32) -> Self {
        Planner {
            task,
            block_size: u64::from(block_size),
            join_gap: u64::from(join_gap),
            waiting: Vec::new(),
        }
    }

    /// Takes the next extent, in order, and gives the items that are complete.
    pub fn add(&mut self, extent: Extent, give: &mut impl FnMut(Item)) {
        if extent.kind != ExtentKind::Data {
            // A hole between two pieces of a joined request keeps its own item: it may have to be zeroed.
            self.give_span(extent, give);
            return;
        }
        if self.join_gap == 0 {
            self.give_span(extent, give);
            return;
        }
        let block_size = self.block_size;
        let block = |offset: u64| offset / block_size;
        let joins = self.waiting.last().is_some_and(|last| {
            block(last.start) == block(extent.start)
                && block(last.end() - 1) == block(extent.start)
                && extent.start - last.end() <= self.join_gap
                && self.waiting.len() < limits::PIECES_MAX
        });
        if !joins {
            self.flush(give);
        }
        // Only what lies in the extent's last block can have a neighbour later on.
        let last_block = block(extent.end() - 1) * self.block_size;
        if extent.start >= last_block {
            self.waiting.push(extent);
        } else if joins {
            let boundary = (block(extent.start) + 1) * self.block_size;
            self.waiting.extend(extent.clip(extent.start, boundary));
            self.flush(give);
            if let Some(rest) = extent.clip(boundary, extent.end()) {
                self.add(rest, give);
            }
        } else if extent.end().is_multiple_of(self.block_size) {
            self.give_span(extent, give);
        } else {
            if let Some(whole) = extent.clip(extent.start, last_block) {
                self.give_span(whole, give);
            }
            self.waiting.extend(extent.clip(last_block, extent.end()));
        }
    }

    /// Gives what still waits for a neighbour.
    pub fn flush(&mut self, give: &mut impl FnMut(Item)) {
        match self.waiting.len() {
            0 => {}
            1 => {
                let extent = self.waiting[0];
                self.waiting.clear();
                self.give_span(extent, give);
            }
            _ => {
                let start = self.waiting[0].start;
                let end = self.waiting[self.waiting.len() - 1].end();
                let pieces =
                    self.waiting.drain(..).map(|e| ((e.start - start) as u32, e.length as u32)).collect();
                give(Item::Joined(Box::new(Joined {
                    task: self.task,
                    start,
                    length: (end - start) as u32,
                    pieces,
                })));
            }
        }
    }

    fn give_span(&self, extent: Extent, give: &mut impl FnMut(Item)) {
        give(Item::Span { task: self.task, extent });
    }
}

/// Takes off a data span what one worker takes at once, and leaves the rest for others; `None` when it is no more than that.
pub fn split_span(extent: &mut Extent, block_size: u32) -> Option<Extent> {
    let most = limits::STEAL_BYTES.max(u64::from(block_size)) / u64::from(block_size) * u64::from(block_size);
    let boundary = (extent.start / most + 1) * most;
    if extent.kind != ExtentKind::Data || extent.end() <= boundary {
        return None;
    }
    let rest = Extent::data(boundary, extent.end() - boundary);
    extent.length = boundary - extent.start;
    Some(rest)
}

/// As [`cut_request`], with zeros cut as data is: what goes to a pipe is written.
pub fn cut_in_order(span: &mut Extent, block_size: u32) -> Extent {
    let mut as_data = Extent::data(span.start, span.length);
    let request = cut_request(&mut as_data, block_size);
    let kind = span.kind;
    *span = Extent { kind, ..as_data };
    Extent { kind, ..request }
}

/// Takes the first request off a span: up to the next multiple of the block size, or for zeros up to
/// [`limits::ZERO_REQUEST_BYTES`].
pub fn cut_request(span: &mut Extent, block_size: u32) -> Extent {
    let most = match span.kind {
        ExtentKind::Data => u64::from(block_size) - span.start % u64::from(block_size),
        ExtentKind::Zero | ExtentKind::Hole => {
            limits::ZERO_REQUEST_BYTES - span.start % limits::ZERO_REQUEST_BYTES
        }
    };
    let length = span.length.min(most);
    let request = Extent { length, ..*span };
    span.start += length;
    span.length -= length;
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(extents: &[Extent], block_size: u32, join_gap: u32) -> Vec<Item> {
        let mut items = Vec::new();
        let mut planner = Planner::new(0, block_size, join_gap);
        for &extent in extents {
            planner.add(extent, &mut |item| items.push(item));
        }
        planner.flush(&mut |item| items.push(item));
        items
    }

    fn span(start: u64, length: u64) -> Item {
        Item::Span { task: 0, extent: Extent::data(start, length) }
    }

    #[test]
    fn near_neighbours_of_one_block_become_one_request() {
        let extents = [Extent::data(0, 4096), Extent::data(8192, 4096), Extent::data(65536, 4096)];
        assert_eq!(
            plan(&extents, 1 << 20, 8192),
            [
                Item::Joined(Box::new(Joined {
                    task: 0,
                    start: 0,
                    length: 12288,
                    pieces: vec![(0, 4096), (8192, 4096)]
                })),
                span(65536, 4096)
            ]
        );
        assert_eq!(plan(&extents, 1 << 20, 0).len(), 3);
        assert_eq!(plan(&extents, 4096, 8192).len(), 3, "never across a block");
    }

    #[test]
    fn a_large_extent_is_split_as_it_is_taken() {
        let steal = limits::STEAL_BYTES;
        assert_eq!(
            plan(&[Extent::data(4096, 2 * steal)], 1 << 20, 32768)[0],
            span(4096, 2 * steal - (1 << 20) + (1 << 20) - 4096)
        );
        let mut first = Extent::data(4096, 2 * steal);
        let mut second = split_span(&mut first, 1 << 20).unwrap();
        assert_eq!(first, Extent::data(4096, steal - 4096));
        let third = split_span(&mut second, 1 << 20).unwrap();
        assert_eq!((second, third), (Extent::data(steal, steal), Extent::data(2 * steal, 4096)));
        assert_eq!(split_span(&mut { third }, 1 << 20), None);
        let mut hole = Extent::new(0, 1 << 50, ExtentKind::Hole);
        assert_eq!(
            split_span(&mut hole, 1 << 20),
            None,
            "a hole is one request after another, without a buffer"
        );
    }

    #[test]
    fn requests_end_at_the_grid() {
        let mut rest = Extent::data(4096, 3 << 20);
        assert_eq!(cut_request(&mut rest, 1 << 20), Extent::data(4096, (1 << 20) - 4096));
        assert_eq!(cut_request(&mut rest, 1 << 20), Extent::data(1 << 20, 1 << 20));
        let mut hole = Extent::new(0, 3 << 40, ExtentKind::Hole);
        assert_eq!(cut_request(&mut hole, 1 << 20).length, limits::ZERO_REQUEST_BYTES);
    }

    proptest! {
        #[test]
        fn items_cover_the_extents_and_nothing_else(
            pieces in proptest::collection::vec((0u64..40_000, 1u64..60_000, 0u8..3), 0..40),
            block_shift in 12u32..17,
            join_gap in prop_oneof![Just(0u32), 1u32..40_000],
        ) {
            let block_size = 1u32 << block_shift;
            let mut extents = mover_model::ExtentList::new();
            let mut position = 0;
            for (gap, length, kind) in pieces {
                let kind = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Hole][kind as usize];
                extents.push(Extent::new(position + gap, length, kind));
                position += gap + length;
            }
            let list: Vec<_> = extents.iter().collect();
            let mut covered = Vec::new();
            for item in plan(&list, block_size, join_gap) {
                match item {
                    Item::Span { mut extent, .. } => while extent.length > 0 {
                        let request = cut_request(&mut extent, block_size);
                        if request.kind == ExtentKind::Data {
                            let size = u64::from(block_size);
                            prop_assert_eq!(request.start / size, (request.end() - 1) / size);
                        }
                        covered.push(request);
                    },
                    Item::Joined(joined) => {
                        let size = u64::from(block_size);
                        let end = joined.start + u64::from(joined.length);
                        prop_assert_eq!(joined.start / size, (end - 1) / size);
                        prop_assert!(joined.pieces.len() >= 2 && joined.pieces.len() <= limits::PIECES_MAX);
                        for (start, length) in joined.pieces {
                            covered.push(Extent::data(joined.start + u64::from(start), u64::from(length)));
                        }
                    }
                    Item::Sequential { .. } => prop_assert!(false),
                }
            }
            let covered = mover_model::ExtentList::from_unordered(covered, None).unwrap();
            prop_assert_eq!(covered, extents);
        }
    }
}
