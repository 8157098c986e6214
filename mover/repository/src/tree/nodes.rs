//! Reads tree nodes through the index, with a bounded cache.

use std::sync::{Arc, Mutex};

use mover_model::{ChunkId, Error, ErrorKind, Result};

use crate::format::node::{FANOUT, Node, Root, chunks_below};
use crate::keys::ChunkKind;
use crate::read::Chunks;
use crate::read::recent::Recent;

/// Nodes that are kept: 8 KiB each, so 8 MiB. At a chunk size of 128 KiB they stand for 32 GiB of a disk, the window
/// in which workers are at the same time.
const NODES_KEPT: usize = 1000;

/// A reader of nodes. Shared by all threads of a process.
pub struct Nodes {
    chunks: Arc<Chunks>,
    kept: Mutex<Recent<ChunkId, Arc<Node>>>,
}

impl Nodes {
    /// Over a reader of chunks.
    pub fn new(chunks: Arc<Chunks>) -> Self {
        Nodes { chunks, kept: Mutex::new(Recent::new(NODES_KEPT)) }
    }

    /// The chunks below.
    pub fn chunks(&self) -> &Arc<Chunks> {
        &self.chunks
    }

    /// The root of a disk.
    ///
    /// # Errors
    /// `Corruption` when it is missing or damaged; the store's.
    pub fn root(&self, id: &ChunkId) -> Result<Root> {
        let bytes = self.chunks.get(id, ChunkKind::Node)?;
        Root::decode(&bytes).map_err(|error| named(&error, "tree root", id))
    }

    /// A node of a level.
    ///
    /// # Errors
    /// As for [`Nodes::root`].
    pub fn node(&self, id: &ChunkId, level: u8) -> Result<Arc<Node>> {
        let kept = self.kept.lock().unwrap_or_else(|p| p.into_inner()).get(id);
        let node = match kept {
            Some(node) => node,
            None => {
                // Read without the lock: two threads may read one, which costs less than waiting for each other.
                let bytes = self.chunks.get(id, ChunkKind::Node)?;
                let node = Node::decode(&bytes, level).map_err(|error| named(&error, "tree node", id))?;
                let node = Arc::new(node);
                self.kept.lock().unwrap_or_else(|p| p.into_inner()).put(*id, node.clone());
                node
            }
        };
        if node.level != level {
            let message = format!("tree node {id} is of level {} where one of {level} belongs", node.level);
            return Err(Error::new(ErrorKind::Corruption, message));
        }
        Ok(node)
    }

    /// The ids of `count` chunks from number `first` on (holes included); reads one leaf for each 256.
    ///
    /// # Errors
    /// As for [`Nodes::root`].
    pub fn chunk_ids(&self, root: &Root, first: u64, count: u64) -> Result<Vec<ChunkId>> {
        let mut ids = vec![ChunkId::HOLE; count as usize];
        let mut at = 0;
        while at < count {
            let number = first + at;
            let in_leaf = number % FANOUT as u64;
            let most = (FANOUT as u64 - in_leaf).min(count - at);
            if let Some(leaf) = self.leaf_of(root, number)? {
                let children = &leaf.children[in_leaf as usize..(in_leaf + most) as usize];
                ids[at as usize..(at + most) as usize].copy_from_slice(children);
            }
            at += most;
        }
        Ok(ids)
    }

    /// The leaf that lists a chunk; `None` where it lies in a hole.
    fn leaf_of(&self, root: &Root, number: u64) -> Result<Option<Arc<Node>>> {
        let (mut id, mut level) = (root.top, root.level);
        // What the top node does not reach is behind the disk's end.
        if level < u8::MAX && number / FANOUT as u64 >= chunks_below(level) {
            return Ok(None);
        }
        loop {
            if id.is_hole() {
                return Ok(None);
            }
            let node = self.node(&id, level)?;
            if level == 0 {
                return Ok(Some(node));
            }
            id = node.children[(number / chunks_below(level)) as usize % FANOUT];
            level -= 1;
        }
    }
}

/// What the layout finds wrong it cannot name.
fn named(error: &Error, what: &str, id: &ChunkId) -> Error {
    Error::new(error.kind(), format!("{what} {id}: {}", error.message())).hint(crate::read::VERIFY_HINT)
}
