//! Sizes and places: how long reads are, how much scratch memory they need, and which part of a request lies in which
//! chunk.

use std::sync::Arc;

use mover_engine::lane::LaneOperation;
use mover_engine::{Alignment, Io};

use super::chunks::OpenPack;
use super::source::{ChunkMap, ReadErrors};
use crate::store::DirectFile;

/// Bytes of one read into scratch memory, where a chunk is not longer.
const RUN_BYTES: u64 = 1 << 20;
/// Room for what a read is longer than its records, as O_DIRECT takes whole blocks only.
const RIMS_BYTES: usize = 64 << 10;
/// Most scratch memory of a worker: what keeps any device busy.
const SCRATCH_MAX: usize = 256 << 20;

/// A disk, as its lanes know it.
pub(super) struct Disk {
    pub map: Arc<dyn ChunkMap>,
    pub errors: ReadErrors,
    pub label: String,
}

/// Bytes of records that one read into scratch memory may hold.
pub(super) fn run_bytes(chunk_size: u32) -> u64 {
    RUN_BYTES.max(u64::from(chunk_size))
}

/// Bytes of a part of the scratch memory that holds the longest run.
pub(super) fn part_bytes(chunk_size: u32) -> usize {
    (run_bytes(chunk_size) as usize + RIMS_BYTES).next_multiple_of(RIMS_BYTES)
}

/// Bytes of memory beside the buffers that a worker takes to read trees: with it the worker's bytes in flight stay in
/// flight, and one run more.
pub fn scratch_bytes(chunk_size: u32, worker_bytes: u64) -> usize {
    let runs = worker_bytes.div_ceil(run_bytes(chunk_size)) as usize + 1;
    let part = part_bytes(chunk_size);
    (runs * part).min(SCRATCH_MAX.max(part) / part * part)
}

/// The file that the ring reads a pack by, where it has one whose blocks are not too large.
pub(super) fn file_of(pack: &OpenPack) -> Option<DirectFile<'_>> {
    pack.object.file().filter(|file| file.alignment.offset as usize <= RIMS_BYTES / 2)
}

pub(super) fn rules_of(pack: &OpenPack) -> Alignment {
    file_of(pack).map_or(Alignment::NONE, |file| file.alignment)
}

/// First byte of a chunk on its disk, and its bytes.
pub(super) fn chunk_range(disk: &Disk, number: u64) -> (u64, u64) {
    let chunk = u64::from(disk.map.chunk_size());
    let start = number.saturating_mul(chunk);
    (start, disk.map.size().saturating_sub(start).min(chunk))
}

/// The part of an operation that lies in a chunk.
pub(super) fn part_of(operation: &LaneOperation, disk: &Disk, number: u64) -> LaneOperation {
    let (start, length) = chunk_range(disk, number);
    let from = start.max(operation.offset);
    let to = (start + length).min(operation.offset + operation.length).max(from);
    let memory = operation.memory.skip(from - operation.offset);
    LaneOperation { offset: from, length: to - from, memory, ..*operation }
}

/// Copies what an operation has of a chunk.
pub(super) fn copy_part(content: &[u8], disk: &Disk, number: u64, part: &LaneOperation, io: &mut Io<'_>) {
    let from = (part.offset - chunk_range(disk, number).0) as usize;
    io.bytes(part).copy_from_slice(&content[from..from + part.length as usize]);
}
