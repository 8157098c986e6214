//! Slots: the fixed pool of requests that a worker has in flight.
//!
//! ```text
//! Free ──take──► Reading ──read done──► (transform) ──► Writing ──last piece done──► Free
//!   │                │                                     ▲
//!   │                └─ read error, policy `record` ─► Salvaging ─┘  reads again in small pieces
//!   └──── zeros or hole ──────────────► Writing            (no buffer is used)
//! ```

use std::time::Instant;

use mover_model::Digest;

use crate::pool::Chunk;
use crate::transform::Run;

/// Where a slot's request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No request.
    Free,
    /// Its buffer belongs to a read.
    Reading,
    /// Its buffer belongs to a small read at this offset into it; what was read before is good.
    Salvaging {
        /// Index of the data segment that is read.
        segment: usize,
        /// Offset into the request.
        position: u32,
    },
    /// Its buffer belongs to writes; `outstanding` of them.
    Writing,
}

/// A range of a request that holds data, counted from the request's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataSegment {
    /// First byte.
    pub start: u32,
    /// Bytes.
    pub length: u32,
    /// Digest of its bytes, once read, where digests are taken.
    pub digest: Option<Digest>,
}

/// A request in flight.
pub struct Slot {
    /// Which task it belongs to.
    pub task: usize,
    /// Where it stands.
    pub phase: Phase,
    /// Its part of the arena; `None` for zeros, which need no buffer.
    pub buffer: Option<Chunk>,
    /// First byte on both endpoints.
    pub start: u64,
    /// Bytes; more than a buffer holds only for zeros.
    pub length: u64,
    /// The data in it; empty for zeros.
    pub segments: Vec<DataSegment>,
    /// Runs of data and zeros in a segment; scratch that keeps its capacity.
    pub runs: Vec<Run>,
    /// While salvaging: what could be read.
    pub salvaged: Vec<DataSegment>,
    /// What the pieces write, counted when all have arrived: data bytes,
    pub written_bytes: u64,
    /// write requests,
    pub writes: u64,
    /// bytes of zeros found in data,
    pub zero_found_bytes: u64,
    /// and zeroing requests.
    pub zeroes: u64,
    /// Pieces begun on the sink and not yet finished.
    pub outstanding: u16,
    /// Whether a piece failed.
    pub failed: bool,
    /// When the present phase began.
    pub begun: Instant,
}

impl Slot {
    /// A free slot.
    pub fn free() -> Self {
        Slot {
            task: 0,
            phase: Phase::Free,
            buffer: None,
            start: 0,
            length: 0,
            segments: Vec::with_capacity(4),
            runs: Vec::new(),
            salvaged: Vec::new(),
            written_bytes: 0,
            writes: 0,
            zero_found_bytes: 0,
            zeroes: 0,
            outstanding: 0,
            failed: false,
            begun: Instant::now(),
        }
    }
}
