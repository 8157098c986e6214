//! A disk as the engine writes it.

use std::sync::Arc;

use mover_engine::{Access, Alignment, Lane, LaneSetup, Settings, Sink};
use mover_model::Result;

use super::lane::{ChunkLane, PackLane, STAGES};
use super::{DiskCounters, Writer};
use crate::codec::compressed_bound;
use crate::format::BLOCK;
use crate::tree::IdFile;

/// Bytes of one staging buffer, where chunks are not larger: as long as one request, so that the device sees few and
/// long writes.
const STAGE_BYTES: usize = 1 << 20;

/// Takes a disk's chunks. Requests begin at chunks and hold whole ones, but for the disk's last.
///
/// Pieces that are no whole chunks are let pass and not stored: they come only from requests of which a part could not
/// be read, and whoever records read errors stores those chunks itself.
pub struct ChunkSink {
    writer: Arc<Writer>,
    disk: Arc<DiskCounters>,
    ids: Arc<IdFile>,
    label: String,
    /// Bytes of the disk, where known: where its last chunk ends.
    size: Option<u64>,
    leads: bool,
}

/// Bytes of memory beside the buffers that each worker takes for its staging buffers.
pub fn scratch_bytes(chunk_size: u32) -> usize {
    STAGES * stage_bytes(chunk_size)
}

fn stage_bytes(chunk_size: u32) -> usize {
    let bound = compressed_bound(chunk_size as usize).max(chunk_size as usize);
    (bound + BLOCK as usize).next_multiple_of(BLOCK as usize).max(STAGE_BYTES)
}

impl ChunkSink {
    pub(super) fn new(writer: Arc<Writer>, disk: Arc<DiskCounters>, ids: Arc<IdFile>, label: String) -> Self {
        ChunkSink { writer, disk, ids, label, size: None, leads: false }
    }

    /// Says how long the disk is, so that its last chunk is known as whole.
    pub fn sized(mut self, size: Option<u64>) -> Self {
        self.size = size;
        self
    }

    /// Makes it the one that asks for the memory that all sinks of a run share. Exactly one of each run must be.
    pub fn leading(mut self) -> Self {
        self.leads = true;
        self
    }

    fn chunk_size(&self) -> u32 {
        self.writer.repository.config().chunk_size
    }
}

impl Sink for ChunkSink {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn capacity(&self) -> Option<u64> {
        None
    }

    fn access(&self) -> Access {
        Access::Direct
    }

    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }

    fn scratch_bytes(&self, _: &Settings) -> usize {
        if self.leads { scratch_bytes(self.chunk_size()) } else { 0 }
    }

    fn reads_zero(&self) -> bool {
        true
    }

    fn lane(&self, _: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        let key = Arc::as_ptr(&self.writer) as usize;
        let bytes = stage_bytes(self.chunk_size());
        let shared = setup.worker_state(key, |setup| PackLane::new(self.writer.clone(), bytes, setup))?;
        shared.borrow_mut().join(setup.task());
        let disk = self.disk.clone();
        Ok(Box::new(ChunkLane::new(shared, disk, self.ids.clone(), self.size)))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn finish(&self, _: u64) -> Result<()> {
        Ok(())
    }
}
