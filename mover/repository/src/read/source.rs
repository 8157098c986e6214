//! A disk of the repository as the engine's [`Source`]: each worker's lane finds the chunks of a request, reads records
//! that lie side by side in one operation by the worker's own ring, decompresses into the slot's buffer and checks
//! every chunk against its name. An incompressible chunk of whole blocks is read into the slot's buffer at once.

use std::rc::Rc;
use std::sync::{Arc, Mutex};

use mover_engine::{Access, Alignment, Lane, LaneSetup, Settings, Source};
use mover_model::{ChunkId, Error, ErrorKind, Extent, Operation, Result};

use super::lane::TreeLane;
use super::parts::{Disk, scratch_bytes};
use super::reader::Reader;
use super::{Chunks, VERIFY_HINT};
use crate::format::node::Root;
use crate::index::Location;
use crate::tree::Nodes;

/// What a disk's chunks are: a tree, or a list of chunks that are verified.
pub trait ChunkMap: Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;
    /// Bytes of a chunk; the last one may be shorter.
    fn chunk_size(&self) -> u32;
    /// Its extents, from 0 to its size without gaps; data begins and ends at chunks.
    ///
    /// # Errors
    /// `Corruption`, the store's.
    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>>;
    /// Adds names and places of `count` chunks from number `first` on; `None` for a hole. A chunk that is in no index is
    /// an error of `Corruption`, whose offset is that on the disk.
    ///
    /// # Errors
    /// `Corruption`, the store's.
    fn chunks(&self, first: u64, count: u64, chunks: &mut Vec<Option<(ChunkId, Location)>>) -> Result<()>;
}

/// A tree as a disk.
pub struct TreeMap {
    nodes: Arc<Nodes>,
    root: Root,
}

impl TreeMap {
    /// Of a root.
    pub fn new(nodes: Arc<Nodes>, root: Root) -> Self {
        TreeMap { nodes, root }
    }
}

impl ChunkMap for TreeMap {
    fn size(&self) -> u64 {
        self.root.size
    }

    fn chunk_size(&self) -> u32 {
        self.root.chunk_size
    }

    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        Ok(Box::new(crate::tree::DataExtents::new(&self.nodes, self.root)))
    }

    fn chunks(&self, first: u64, count: u64, chunks: &mut Vec<Option<(ChunkId, Location)>>) -> Result<()> {
        let index = self.nodes.chunks().index();
        for (at, id) in self.nodes.chunk_ids(&self.root, first, count)?.into_iter().enumerate() {
            if id.is_hole() {
                chunks.push(None);
                continue;
            }
            let Some(location) = index.find(&id)? else {
                let offset = (first + at as u64) * u64::from(self.root.chunk_size);
                return Err(Error::new(ErrorKind::Corruption, format!("chunk {id} is in no index segment"))
                    .offset(offset)
                    .hint(VERIFY_HINT));
            };
            chunks.push(Some((id, location)));
        }
        Ok(())
    }
}

/// A chunk that could not be read.
#[derive(Debug, Clone)]
pub struct BadChunk {
    /// Its number on the (virtual) disk.
    pub number: u64,
    /// Its name; a hole where the tree node that has the name cannot be read.
    pub id: ChunkId,
    /// Where it should be; `None` where no index says.
    pub location: Option<Location>,
    /// What is wrong.
    pub error: Error,
}

/// What a bad chunk does.
#[derive(Clone)]
pub enum ReadErrors {
    /// It fails the task, with an error that names disk offset, chunk and pack.
    Fail,
    /// It is put on the list and reads as zeros: for verify.
    Collect(Arc<Mutex<Vec<BadChunk>>>),
    /// The same up to so many; one more fails the task. For restores, whose memory must not grow with the damage.
    CollectUpTo(Arc<Mutex<Vec<BadChunk>>>, usize),
}

/// A disk of the repository.
pub struct TreeSource {
    map: Arc<dyn ChunkMap>,
    chunks: Arc<Chunks>,
    errors: ReadErrors,
    label: String,
    /// Whether its lanes bring the scratch memory that all disks of a run share.
    brings_scratch: bool,
}

impl TreeSource {
    /// A disk; `label` names it in messages, such as `vm1@20261120T193000Z-01ab23cd vda`.
    pub fn new(map: Arc<dyn ChunkMap>, chunks: Arc<Chunks>, errors: ReadErrors, label: String) -> Self {
        TreeSource { map, chunks, errors, label, brings_scratch: true }
    }

    /// One that uses the scratch memory of another one in the same run, over the same [`Chunks`]: of several disks, all
    /// but one are such, so that memory does not grow with their number.
    pub fn sharing(self) -> Self {
        TreeSource { brings_scratch: false, ..self }
    }
}

impl Source for TreeSource {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn size(&self) -> Option<u64> {
        Some(self.map.size())
    }

    fn access(&self) -> Access {
        Access::Direct
    }

    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }

    fn scratch_bytes(&self, settings: &Settings) -> usize {
        let chunk_size = self.chunks.repository().config().chunk_size;
        if self.brings_scratch { scratch_bytes(chunk_size, settings.worker_bytes()) } else { 0 }
    }

    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        self.map.extents()
    }

    fn lane(&self, _: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        let (of_disk, of_all) = (self.map.chunk_size(), self.chunks.repository().config().chunk_size);
        if of_disk == 0 || of_disk > of_all {
            let message = format!("the disk has chunks of {of_disk} bytes, its repository of {of_all}");
            let error = Error::new(ErrorKind::Corruption, message).during(Operation::Read);
            return Err(error.at(&self.label).hint(VERIFY_HINT));
        }
        // Lanes of one worker share what they read by: places for packs, scratch memory.
        let key = Arc::as_ptr(&self.chunks) as usize;
        let reader = setup.worker_state(key, |setup| Reader::new(&self.chunks, setup))?;
        let disk = Disk { map: self.map.clone(), errors: self.errors.clone(), label: self.label.clone() };
        Ok(Box::new(TreeLane { task: setup.task(), disk: Rc::new(disk), reader }))
    }
}
