//! Builds the tree of a new restore point: the parent's, with what was read laid over it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use mover_model::{ChunkId, Error, ErrorKind, ExtentList, Operation, Result};

use crate::format::node::{FANOUT, Node, Root, chunks_below, level_for};
use crate::tree::Nodes;

/// Ids of a leaf's chunks: what is read and written at once.
const LEAF_IDS: usize = FANOUT;
/// Bytes of an id.
const ID_BYTES: usize = 32;
/// Leaves kept in memory, 16 MiB of ids; more go to a file.
const LEAVES_IN_MEMORY: usize = (16 << 20) / (LEAF_IDS * ID_BYTES);

/// Ids of a disk's chunks as workers find them, in any order. Few are kept in memory; more go to an unlinked temporary
/// file of 32 bytes a chunk, sparse, so that memory does not grow with the disk.
pub struct IdFile {
    held: Mutex<Held>,
}

enum Held {
    Memory(BTreeMap<u64, Box<[ChunkId; LEAF_IDS]>>),
    File {
        file: File,
        /// Leaves of which something was noted.
        touched: BTreeSet<u64>,
    },
}

const LABEL: &str = "the temporary file of chunk names";

fn failed(operation: Operation, error: &std::io::Error) -> Error {
    let error = Error::io(operation, LABEL, error);
    match error.kind() {
        ErrorKind::Full => {
            error.hint("make room in the folder for temporary files, or name another by TMPDIR")
        }
        _ => error,
    }
}

fn bytes_of(ids: &[ChunkId]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.0).collect()
}

impl IdFile {
    /// An empty one.
    ///
    /// # Errors
    /// None now: the temporary file is made when it is needed.
    pub fn new() -> Result<Self> {
        Ok(IdFile { held: Mutex::new(Held::Memory(BTreeMap::new())) })
    }

    /// Notes the ids of chunks `first`, `first + 1`, …; holes may be among them.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn set(&self, first: u64, ids: &[ChunkId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut held = self.held.lock().unwrap_or_else(|p| p.into_inner());
        let leaves = first / LEAF_IDS as u64..=(first + ids.len() as u64 - 1) / LEAF_IDS as u64;
        if let Held::Memory(memory) = &mut *held {
            for (number, &id) in (first..).zip(ids) {
                let leaf = memory.entry(number / LEAF_IDS as u64);
                leaf.or_insert_with(|| Box::new([ChunkId::HOLE; LEAF_IDS]))[number as usize % LEAF_IDS] = id;
            }
            if memory.len() > LEAVES_IN_MEMORY {
                let spilled = spill(memory)?;
                *held = spilled;
            }
            return Ok(());
        }
        if let Held::File { file, touched } = &mut *held {
            touched.extend(leaves);
            let wrote = file.write_all_at(&bytes_of(ids), first * ID_BYTES as u64);
            wrote.map_err(|error| failed(Operation::Write, &error))?;
        }
        Ok(())
    }

    /// The ids of chunks from `first` on; holes where nothing was noted.
    ///
    /// # Errors
    /// `Io`.
    pub fn get(&self, first: u64, ids: &mut [ChunkId]) -> Result<()> {
        let held = self.held.lock().unwrap_or_else(|p| p.into_inner());
        match &*held {
            Held::Memory(memory) => {
                for (number, id) in (first..).zip(ids) {
                    let leaf = memory.get(&(number / LEAF_IDS as u64));
                    *id = leaf.map_or(ChunkId::HOLE, |leaf| leaf[number as usize % LEAF_IDS]);
                }
            }
            Held::File { file, .. } => {
                let mut bytes = vec![0; ids.len() * ID_BYTES];
                let mut done = 0;
                while done < bytes.len() {
                    let offset = first * ID_BYTES as u64 + done as u64;
                    match file.read_at(&mut bytes[done..], offset) {
                        // Behind its end nothing was noted.
                        Ok(0) => break,
                        Ok(more) => done += more,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(failed(Operation::Read, &error)),
                    }
                }
                for (id, bytes) in ids.iter_mut().zip(bytes.chunks_exact(ID_BYTES)) {
                    *id = ChunkId(std::array::from_fn(|i| bytes[i]));
                }
            }
        }
        Ok(())
    }

    /// The first leaf (256 chunks) from number `leaf` on, and before `end`, of which something was noted.
    fn next_touched(&self, leaf: u64, end: u64) -> Option<u64> {
        if leaf >= end {
            return None;
        }
        match &*self.held.lock().unwrap_or_else(|p| p.into_inner()) {
            Held::Memory(memory) => memory.range(leaf..end).next().map(|(&leaf, _)| leaf),
            Held::File { touched, .. } => touched.range(leaf..end).next().copied(),
        }
    }
}

fn spill(memory: &BTreeMap<u64, Box<[ChunkId; LEAF_IDS]>>) -> Result<Held> {
    let file = tempfile::tempfile().map_err(|error| failed(Operation::Open, &error))?;
    for (leaf, ids) in memory {
        let offset = leaf * (LEAF_IDS * ID_BYTES) as u64;
        file.write_all_at(&bytes_of(&ids[..]), offset).map_err(|error| failed(Operation::Write, &error))?;
    }
    Ok(Held::File { file, touched: memory.keys().copied().collect() })
}

/// Where new nodes go. Returns the node's id; nodes that are known are not stored again.
pub trait NodeSink {
    /// Stores a node's bytes.
    ///
    /// # Errors
    /// The store's.
    fn put(&mut self, bytes: &[u8]) -> Result<ChunkId>;
}

/// The tree that a new one is made from.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Its root, of the same size and chunk size.
    pub root: &'a ChunkId,
    /// What differs from it.
    pub changed: &'a ExtentList,
    /// Bytes in its chunks that are no holes, as its manifest says: the parts that are shared are not counted again.
    pub data_bytes: u64,
}

/// Builds a tree and returns its root, the root's id and the bytes in chunks that are no holes.
///
/// Without `base` the disk is what `ids` says. With `base` (a tree of the same size and chunk size) the chunks that
/// `changed` touches are what `ids` says, all others the base's; subtrees without a change are neither read nor
/// written, and where nothing changed the base's own id comes back.
///
/// # Errors
/// The store's, `Corruption` of the base; `Internal` for a base of another size.
pub fn build(
    nodes: &Nodes,
    sink: &mut dyn NodeSink,
    base: Option<Base<'_>>,
    ids: &IdFile,
    size: u64,
    chunk_size: u32,
) -> Result<(ChunkId, Root, u64)> {
    let chunks = size.div_ceil(u64::from(chunk_size));
    let level = level_for(size, chunk_size);
    let mut old = Root { size, chunk_size, level, top: ChunkId::HOLE };
    let mut changed = vec![(0, chunks)];
    let mut old_bytes = 0;
    let mut old_root = None;
    if let Some(base) = base {
        let root = nodes.root(base.root)?;
        if (root.size, root.chunk_size) != (size, chunk_size) {
            let message = format!("a tree of {size} bytes cannot be made from one of {} bytes", root.size);
            return Err(Error::new(ErrorKind::Internal, message));
        }
        let ranges = chunk_ranges(base.changed, size, chunk_size);
        if ranges.is_empty() {
            return Ok((*base.root, root, base.data_bytes));
        }
        // Where everything changed there is nothing to take from it.
        if ranges != changed {
            (old, changed, old_bytes, old_root) = (root, ranges, base.data_bytes, Some(*base.root));
        }
    }
    let mut builder = Builder {
        nodes,
        sink,
        ids,
        changed: &changed,
        size,
        chunk_size: u64::from(chunk_size),
        chunks,
        removed: 0,
        added: 0,
    };
    let top = builder.rebuild(level, 0, old.top)?;
    let data_bytes = (old_bytes + builder.added).saturating_sub(builder.removed);
    let root = Root { top, ..old };
    if let Some(id) = old_root.filter(|_| top == old.top) {
        return Ok((id, root, data_bytes));
    }
    let id = builder.sink.put(&root.encode())?;
    Ok((id, root, data_bytes))
}

/// Numbers of the chunks that extents touch: first and end of each run.
fn chunk_ranges(extents: &ExtentList, size: u64, chunk_size: u32) -> Vec<(u64, u64)> {
    let chunk_size = u64::from(chunk_size);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for extent in extents.iter().filter_map(|extent| extent.clip(0, size)) {
        let (first, end) = (extent.start / chunk_size, extent.end().div_ceil(chunk_size));
        match ranges.last_mut() {
            Some(last) if last.1 >= first => last.1 = last.1.max(end),
            _ => ranges.push((first, end)),
        }
    }
    ranges
}

struct Builder<'a> {
    nodes: &'a Nodes,
    sink: &'a mut dyn NodeSink,
    ids: &'a IdFile,
    /// In order, apart from each other.
    changed: &'a [(u64, u64)],
    size: u64,
    chunk_size: u64,
    chunks: u64,
    /// Bytes in changed chunks of the base,
    removed: u64,
    /// and of the new tree.
    added: u64,
}

impl Builder<'_> {
    /// The part of the first changed run from chunk `first` on that lies before `end`.
    fn change_in(&self, first: u64, end: u64) -> Option<(u64, u64)> {
        let at = self.changed.partition_point(|range| range.1 <= first);
        let range = self.changed.get(at)?;
        (first < end && range.0 < end).then(|| (range.0.max(first), range.1.min(end)))
    }

    fn bytes(&self, chunk: u64) -> u64 {
        self.chunk_size.min(self.size - chunk * self.chunk_size)
    }

    /// The node number `index` of a level, made from the base's node `old`.
    fn rebuild(&mut self, level: u8, index: u64, old: ChunkId) -> Result<ChunkId> {
        let below = chunks_below(level);
        let first = index.saturating_mul(below).saturating_mul(FANOUT as u64);
        let end = first.saturating_add(below.saturating_mul(FANOUT as u64)).min(self.chunks);
        let Some(change) = self.change_in(first, end) else { return Ok(old) };
        if old.is_hole() {
            // Of a node that was none only what was read now is looked at.
            let leaf = LEAF_IDS as u64;
            if self.ids.next_touched(first / leaf, end.div_ceil(leaf)).is_none() {
                return Ok(ChunkId::HOLE);
            }
        }
        let before =
            if old.is_hole() { Node::empty(level) } else { self.nodes.node(&old, level)?.as_ref().clone() };
        let mut node = before.clone();
        let mut next = Some(change);
        while let Some((from, to)) = next {
            if level == 0 {
                self.change_leaf(&mut node, first, from, to)?;
                next = self.change_in(to, end);
                continue;
            }
            let mut child = (from - first) / below;
            if old.is_hole() {
                // Over what neither was there nor was read, at once: a sparse disk of any size costs nothing.
                let leaf = LEAF_IDS as u64;
                match self.ids.next_touched(from / leaf, end.div_ceil(leaf)) {
                    Some(touched) => child = child.max((touched * leaf - first) / below),
                    None => break,
                }
            }
            let at = child as usize;
            node.children[at] =
                self.rebuild(level - 1, index * FANOUT as u64 + child, before.children[at])?;
            next = self.change_in(first + (child + 1) * below, end);
        }
        if node == before {
            return Ok(old);
        }
        if node.is_hole() { Ok(ChunkId::HOLE) } else { self.sink.put(&node.encode()) }
    }

    /// Takes the ids of chunks `from` to `to` into a leaf whose first chunk is `first`.
    fn change_leaf(&mut self, leaf: &mut Node, first: u64, from: u64, to: u64) -> Result<()> {
        let range = (from - first) as usize..(to - first) as usize;
        let mut ids = [ChunkId::HOLE; LEAF_IDS];
        self.ids.get(from, &mut ids[range.clone()])?;
        for (chunk, at) in (from..to).zip(range) {
            if !leaf.children[at].is_hole() {
                self.removed += self.bytes(chunk);
            }
            if !ids[at].is_hole() {
                self.added += self.bytes(chunk);
            }
            leaf.children[at] = ids[at];
        }
        Ok(())
    }
}
