//! What each pass of a copy moves.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use mover_engine::queue::Extents;
use mover_model::extent::Subtract;
use mover_model::{Extent, ExtentKind, Result};

use super::open::OpenPair;

/// The two passes over the extents of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Everything that keeps to the alignment of both ends, by the best way there is.
    Main,
    /// The unaligned rims of extents, through the page cache.
    Rims,
}

/// The extents of one pass: what the list or the source says, without what an earlier run moved, cut at the
/// alignment of both ends. Nothing is kept between the passes but whether there are rims at all.
pub(super) struct PassExtents<'a> {
    pair: &'a OpenPair<'a>,
    pass: Pass,
    from: Extents<'a>,
    subtract: Subtract<'a>,
    granule: u64,
    /// For a target that is written in order: where the next extent starts.
    in_order: Option<u64>,
    ready: VecDeque<Extent>,
}

impl<'a> PassExtents<'a> {
    /// Of a pair.
    ///
    /// # Errors
    /// When the source cannot be asked for its extents.
    pub fn new(pair: &'a OpenPair<'a>, pass: Pass) -> Result<Self> {
        let from: Extents<'a> = match (&pair.list, pass) {
            _ if pass == Pass::Rims && !pair.has_rims.load(Ordering::Acquire) => Box::new(std::iter::empty()),
            (Some(list), _) => Box::new(list.iter().map(Ok)),
            (None, _) => pair.source.source.extents()?,
        };
        // A stream has no rims: its last block is padded by the worker.
        let granule = if pair.size.is_some() { pair.granule() } else { 1 };
        let in_order = pair.sequential_target().then_some(0);
        let subtract = Subtract::new(&pair.done);
        Ok(PassExtents { pair, pass, from, subtract, granule, in_order, ready: VecDeque::new() })
    }

    /// What is written in order has no place for a rim in the middle: a hole gives up its unaligned ends, which
    /// are read with the data beside them. Only the very end stays a rim, and is last there too.
    fn move_boundary(&mut self, start: u64, extent: Extent) -> Extent {
        let size = self.pair.size;
        let end = match extent.kind {
            ExtentKind::Data => extent.end().next_multiple_of(self.granule),
            _ if Some(extent.end()) == size => extent.end(),
            _ => extent.end() / self.granule * self.granule,
        };
        let end = end.min(size.unwrap_or(end)).max(start);
        self.in_order = Some(end);
        Extent { start, length: end - start, ..extent }
    }
}

impl Iterator for PassExtents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(Ok(ready));
            }
            let extent = match self.from.next()? {
                Ok(extent) => extent,
                Err(error) => return Some(Err(error)),
            };
            let extent = match self.in_order {
                Some(start) => self.move_boundary(start, extent),
                None => extent,
            };
            let (granule, pass, pair, ready) = (self.granule, self.pass, self.pair, &mut self.ready);
            self.subtract.apply(extent, |part| {
                let cut = part.split_aligned(granule);
                match pass {
                    Pass::Main => {
                        ready.extend(cut.middle);
                        if cut.head.is_some() || cut.tail.is_some() {
                            pair.has_rims.store(true, Ordering::Release);
                        }
                    }
                    Pass::Rims => ready.extend(cut.head.into_iter().chain(cut.tail)),
                }
            });
        }
    }
}
