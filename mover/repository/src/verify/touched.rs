//! Which ranges of a disk damage touches.

use std::collections::{HashMap, HashSet};

use mover_model::{ChunkId, ErrorKind, Result};

use crate::format::node::{FANOUT, Root, chunks_below};
use crate::tree::Nodes;

/// Damaged ranges below a node, in chunks from the node's first, by the node's name.
pub type Known = HashMap<ChunkId, Vec<(u64, u64)>>;

/// The byte ranges of a disk that chunks or nodes among `bad` touch. Subtrees that were looked at before are in `known`.
///
/// # Errors
/// The store's. A node that cannot be read is damage, and touches all below it.
pub fn touched(
    nodes: &Nodes,
    root: &ChunkId,
    size: u64,
    bad: &HashSet<ChunkId>,
    known: &mut Known,
) -> Result<Vec<(u64, u64)>> {
    let root: Root = match nodes.root(root) {
        Ok(root) if !bad.contains(&root.top) => root,
        Ok(_) => return Ok(vec![(0, size)]),
        Err(error) if error.kind() == ErrorKind::Corruption => return Ok(vec![(0, size)]),
        Err(error) => return Err(error),
    };
    if root.top.is_hole() {
        return Ok(Vec::new());
    }
    let ranges = below(nodes, &root.top, root.level, bad, known)?;
    let chunk = u64::from(root.chunk_size);
    let bytes = ranges.iter().map(|&(first, count)| {
        let start = first.saturating_mul(chunk).min(root.size);
        (start, count.saturating_mul(chunk).min(root.size - start))
    });
    Ok(bytes.filter(|(_, length)| *length > 0).collect())
}

fn below(
    nodes: &Nodes,
    id: &ChunkId,
    level: u8,
    bad: &HashSet<ChunkId>,
    known: &mut Known,
) -> Result<Vec<(u64, u64)>> {
    if let Some(ranges) = known.get(id) {
        return Ok(ranges.clone());
    }
    let below_child = chunks_below(level);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut add = |start: u64, count: u64| match ranges.last_mut() {
        Some((first, length)) if *first + *length == start => *length += count,
        _ => ranges.push((start, count)),
    };
    match nodes.node(id, level) {
        Err(error) if error.kind() == ErrorKind::Corruption => {
            add(0, below_child.saturating_mul(FANOUT as u64))
        }
        Err(error) => return Err(error),
        Ok(node) => {
            for (at, child) in (0u64..).zip(node.children.iter()).filter(|(_, child)| !child.is_hole()) {
                let start = at * below_child;
                if bad.contains(child) {
                    add(start, below_child);
                } else if level > 0 {
                    let inside = below(nodes, child, level - 1, bad, known)?;
                    inside.into_iter().for_each(|(first, count)| add(start + first, count));
                }
            }
        }
    }
    known.insert(*id, ranges.clone());
    Ok(ranges)
}
