//! What differs between two disks.

use mover_model::{ChunkId, Error, Extent, ExtentKind, ExtentList, Result};

use crate::format::node::{FANOUT, Root, chunks_below};
use crate::tree::Nodes;

/// The extents of `new` that differ from `old`, as data where `new` has data and as holes where it has none. Beyond the
/// smaller disk's end everything of `new` differs that is no hole. Shared subtrees are not read.
///
/// # Errors
/// `Usage` for different chunk sizes; `Corruption`; the store's.
pub fn diff(nodes: &Nodes, old: &Root, new: &Root) -> Result<ExtentList> {
    if old.chunk_size != new.chunk_size {
        let message = format!(
            "the disks have chunks of {} and of {} bytes: their trees cannot be compared",
            old.chunk_size, new.chunk_size
        );
        return Err(Error::usage(message).hint("restore both and compare their bytes"));
    }
    let mut differ = Differ { nodes, old, new, extents: ExtentList::new() };
    // One node on top that covers both: the smaller tree lies below its first children.
    let level = old.level.max(new.level);
    differ.compare(top_at(old, level), top_at(new, level), level, 0)?;
    Ok(differ.extents)
}

/// One side of a comparison at some level.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// A node or a chunk; a hole where it names nothing.
    Named(ChunkId),
    /// Above the tree's top: the tree lies below the first child, and all others are holes.
    Above,
}

const HOLE: Side = Side::Named(ChunkId::HOLE);

fn top_at(root: &Root, level: u8) -> Side {
    if root.top.is_hole() || root.level == level { Side::Named(root.top) } else { Side::Above }
}

struct Differ<'a> {
    nodes: &'a Nodes,
    old: &'a Root,
    new: &'a Root,
    extents: ExtentList,
}

impl Differ<'_> {
    /// Compares two nodes of a level whose first chunk is `first`. As deep as the tree has levels: eight at most.
    fn compare(&mut self, old: Side, new: Side, level: u8, first: u64) -> Result<()> {
        if old == new && old != Side::Above {
            return Ok(());
        }
        let chunk = u64::from(self.new.chunk_size);
        let (before, after) = (self.children(self.old, old, level)?, self.children(self.new, new, level)?);
        for (at, (before, after)) in before.into_iter().zip(after).enumerate() {
            let number = first.saturating_add(chunks_below(level).saturating_mul(at as u64));
            let start = number.saturating_mul(chunk);
            if start >= self.new.size {
                break;
            }
            if level > 0 {
                self.compare(before, after, level - 1, number)?;
            } else if before != after {
                let kind = if after == HOLE { ExtentKind::Hole } else { ExtentKind::Data };
                let end = self.new.size.min(start.saturating_add(chunk));
                self.extents.push(Extent::new(start, end - start, kind));
            }
        }
        Ok(())
    }

    fn children(&self, root: &Root, side: Side, level: u8) -> Result<Vec<Side>> {
        match side {
            HOLE => Ok(vec![HOLE; FANOUT]),
            Side::Named(id) => {
                Ok(self.nodes.node(&id, level)?.children.iter().map(|&child| Side::Named(child)).collect())
            }
            Side::Above => {
                let mut children = vec![HOLE; FANOUT];
                children[0] = top_at(root, level - 1);
                Ok(children)
            }
        }
    }
}
