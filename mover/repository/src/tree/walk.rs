//! Walks a tree in the order of the disk.

use std::collections::VecDeque;
use std::sync::Arc;

use mover_model::{ChunkId, Error, ErrorKind, Extent, ExtentKind, Result};

use crate::format::node::{FANOUT, Node, Root, chunks_below};
use crate::tree::Nodes;

/// The leaves of a tree that are no holes: number of the first chunk, id, node. Holes cost nothing, however large.
pub struct Leaves<'a> {
    nodes: &'a Nodes,
    /// From the top down: number of the node's first chunk, the node, the next of its children.
    path: Vec<(u64, Arc<Node>, usize)>,
    /// A node to go into: number of its first chunk, id, level.
    next: Option<(u64, ChunkId, u8)>,
}

impl<'a> Leaves<'a> {
    /// All leaves of a tree.
    pub fn new(nodes: &'a Nodes, root: Root) -> Self {
        let next = (!root.top.is_hole()).then_some((0, root.top, root.level));
        Leaves { nodes, path: Vec::new(), next }
    }
}

impl Iterator for Leaves<'_> {
    type Item = Result<(u64, ChunkId, Arc<Node>)>;

    /// After an error nothing comes any more.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((first, id, level)) = self.next.take() {
                match self.nodes.node(&id, level) {
                    Ok(node) if level == 0 => return Some(Ok((first, id, node))),
                    Ok(node) => self.path.push((first, node, 0)),
                    Err(error) => {
                        self.path.clear();
                        return Some(Err(error));
                    }
                }
            }
            let (first, node, child) = self.path.last_mut()?;
            let found = (*child..FANOUT).find(|&at| !node.children[at].is_hole());
            match found {
                Some(at) => {
                    *child = at + 1;
                    let below = chunks_below(node.level).saturating_mul(at as u64);
                    self.next = Some((first.saturating_add(below), node.children[at], node.level - 1));
                }
                None => {
                    self.path.pop();
                }
            }
        }
    }
}

/// Longest data extent that is told at once, so that the first comes after a few leaves and not after all of a full
/// disk.
const DATA_EXTENT_BYTES: u64 = 1 << 30;

/// A disk's extents from its tree: data where there are chunks, holes elsewhere, neighbours joined (data up to 1 GiB),
/// from 0 to its size without gaps.
pub struct DataExtents<'a> {
    leaves: Leaves<'a>,
    root: Root,
    /// Extents that are complete.
    ready: VecDeque<Extent>,
    /// The data extent that may go on.
    open: Extent,
    ended: bool,
}

impl<'a> DataExtents<'a> {
    /// Of a tree.
    pub fn new(nodes: &'a Nodes, root: Root) -> Self {
        let open = Extent::data(0, 0);
        DataExtents { leaves: Leaves::new(nodes, root), root, ready: VecDeque::new(), open, ended: false }
    }

    fn add_data(&mut self, start: u64, end: u64) {
        if start == self.open.end() && self.open.length > 0 && end - self.open.start <= DATA_EXTENT_BYTES {
            self.open.length = end - self.open.start;
            return;
        }
        self.close(start);
        self.open = Extent::data(start, end - start);
    }

    /// The open extent is complete, and up to `next` nothing follows.
    fn close(&mut self, next: u64) {
        let end = self.open.end();
        self.ready.extend((self.open.length > 0).then_some(self.open));
        self.ready.extend((next > end).then(|| Extent::new(end, next - end, ExtentKind::Hole)));
    }
}

impl Iterator for DataExtents<'_> {
    type Item = Result<Extent>;

    /// After an error nothing comes any more.
    fn next(&mut self) -> Option<Self::Item> {
        let (size, chunk) = (self.root.size, u64::from(self.root.chunk_size));
        loop {
            if let Some(extent) = self.ready.pop_front() {
                return Some(Ok(extent));
            }
            if self.ended {
                return None;
            }
            match self.leaves.next() {
                Some(Ok((first, id, node))) => {
                    for (at, _) in node.children.iter().enumerate().filter(|(_, child)| !child.is_hole()) {
                        let start = (first + at as u64).saturating_mul(chunk);
                        if start >= size {
                            self.ended = true;
                            let message = format!("tree node {id} has chunks behind the disk's end");
                            return Some(Err(Error::new(ErrorKind::Corruption, message).offset(size)));
                        }
                        self.add_data(start, size.min(start + chunk));
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                None => {
                    self.ended = true;
                    self.close(size);
                }
            }
        }
    }
}
