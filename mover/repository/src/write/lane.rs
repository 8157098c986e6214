//! The hot path of a backup: what one worker does with the requests it has read.
//!
//! ```text
//! request ──► for each chunk: zeros? ─► hole
//!                             name it, claim it: known ─► only the name
//!                             compress into a staging buffer ─► full: placed in the pack, encrypted, written
//!                             does not shrink: whole blocks ─► encrypted in place, written from the request's buffer
//!                                              else copied into the staging buffer
//! pack full ─► all its writes completed ─► committer (tail, fsync, name)
//! ```
//! All lanes of a worker share one [`PackLane`]. What waits for a staging buffer or a pack's place waits in a queue, in
//! order, and goes on with the next completion: the ring is never blocked.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mover_engine::arena::Memory;
use mover_engine::lane::{LaneOperation, OperationKind, SinkOperation};
use mover_engine::ring::{FileId, Submission, Token, Verb};
use mover_engine::transform::is_zero;
use mover_engine::{Io, Lane, LaneSetup, Scratch};
use mover_model::event::Degradation;
use mover_model::{ChunkId, Error, ErrorKind, Operation, Result, limits};

use super::pack_builder::{PackBuilder, Staged, entry};
use super::{DiskCounters, Writer};
use crate::codec::{Compressor, compressed_bound};
use crate::format::BLOCK;
use crate::format::entry::Encoding;
use crate::index::Claim;
use crate::keys::ChunkKind;
use crate::store::{Key, Upload};
use crate::tree::IdFile;

/// Staging buffers of a worker: one is filled while two are on their way.
pub(super) const STAGES: usize = 3;
/// Packs of a worker with writes in flight: one is filled while the last writes of the one before complete.
const PLACES: usize = 2;

/// A disk's lane.
pub(super) struct ChunkLane {
    shared: Rc<RefCell<PackLane>>,
    disk: Arc<DiskCounters>,
    ids: Arc<IdFile>,
    size: Option<u64>,
}

impl ChunkLane {
    pub fn new(
        shared: Rc<RefCell<PackLane>>,
        disk: Arc<DiskCounters>,
        ids: Arc<IdFile>,
        size: Option<u64>,
    ) -> Self {
        ChunkLane { shared, disk, ids, size }
    }
}

impl Lane for ChunkLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        if operation.kind != OperationKind::Sink(SinkOperation::Write) {
            // Nothing is noted of zeros: what has no name is a hole.
            return io.finish(&operation, Ok(operation.length));
        }
        let mut shared = self.shared.borrow_mut();
        let chunk_size = shared.chunk_size as u64;
        // Only whole chunks have names: see [`super::ChunkSink`].
        let start = operation.offset.next_multiple_of(chunk_size);
        let end = operation.offset + operation.length;
        let last = self.size.is_none_or(|size| end == size);
        let end = if last { end } else { end / chunk_size * chunk_size };
        if start >= end {
            return io.finish(&operation, Ok(operation.length));
        }
        let job = Job {
            operation,
            disk: self.disk.clone(),
            ids: self.ids.clone(),
            first: start / chunk_size,
            next: (start - operation.offset) as usize,
            end: (end - operation.offset) as usize,
            found: shared.spare_ids.pop().unwrap_or_default(),
            claimed: None,
            writes: 0,
            through: false,
        };
        let job = shared.jobs.add(job);
        shared.waiting.push_back(job);
        shared.pump(io);
    }

    fn advance(&mut self, aux: u32, result: i32, io: &mut Io<'_>) {
        let mut shared = self.shared.borrow_mut();
        shared.written(aux as usize, result, io);
        shared.pump(io);
    }

    /// The task has failed, or the run is stopped. A restore point is of all disks or of none: the others need not go on.
    fn cancel(&mut self, io: &mut Io<'_>) {
        if !io.control().stopped() {
            let error = Error::new(ErrorKind::Stopped, "given up, as another disk of the backup has failed");
            let mut shared = self.shared.borrow_mut();
            shared.fail(error, io);
            shared.pump(io);
        }
    }

    fn finish(&mut self, io: &mut Io<'_>) {
        self.shared.borrow_mut().finish(io);
    }
}

/// A request that is being stored.
struct Job {
    operation: LaneOperation,
    disk: Arc<DiskCounters>,
    ids: Arc<IdFile>,
    /// Number of its first chunk.
    first: u64,
    /// Bytes of the operation that are through.
    next: usize,
    end: usize,
    /// Names of the chunks that are through.
    found: Vec<ChunkId>,
    /// Name of the next chunk, where that is this worker's to store and has no room yet.
    claimed: Option<ChunkId>,
    /// Writes from the request's own buffer in flight.
    writes: u32,
    /// Whether all chunks are through.
    through: bool,
}

/// A staging buffer.
struct Stage {
    scratch: Scratch,
    used: usize,
    records: Vec<Staged>,
    in_flight: bool,
}

/// A place in the ring's table, and the pack in it.
struct Place {
    file: FileId,
    pack: Option<OpenPack>,
}

struct OpenPack {
    builder: PackBuilder,
    upload: Box<dyn Upload>,
    key: Key,
    /// Whether the ring writes to it.
    by_ring: bool,
    writes: u32,
    closing: bool,
}

/// What a write in flight writes from.
#[derive(Clone, Copy)]
enum From {
    Stage(usize),
    Job(usize),
}

#[derive(Clone, Copy)]
struct Write {
    place: usize,
    from: From,
    memory: Memory,
    offset: u64,
    length: u64,
    retries: u32,
}

/// What all lanes of one worker share.
pub(super) struct PackLane {
    writer: Arc<Writer>,
    chunk_size: usize,
    bound: usize,
    compressor: Compressor,
    stages: Vec<Stage>,
    /// The stage that is filled. Its records belong to the open pack.
    filling: Option<usize>,
    places: Vec<Place>,
    /// The place of the pack that is filled.
    open: Option<usize>,
    jobs: Slab<Job>,
    waiting: VecDeque<usize>,
    writes: Slab<Write>,
    spare_ids: Vec<Vec<ChunkId>>,
    tasks: Vec<usize>,
    failed: bool,
}

impl PackLane {
    pub fn new(writer: Arc<Writer>, stage_bytes: usize, setup: &mut LaneSetup<'_>) -> Result<Self> {
        let config = writer.repository.config();
        let chunk_size = config.chunk_size as usize;
        let stage = |setup: &mut LaneSetup<'_>| {
            let scratch = setup.scratch(stage_bytes)?;
            Ok(Stage { scratch, used: 0, records: Vec::new(), in_flight: false })
        };
        Ok(PackLane {
            chunk_size,
            bound: compressed_bound(chunk_size).max(chunk_size),
            compressor: Compressor::new(config.compression)?,
            stages: (0..STAGES).map(|_| stage(setup)).collect::<Result<_>>()?,
            filling: None,
            places: (0..PLACES).map(|_| Place { file: setup.reserve_file(), pack: None }).collect(),
            open: None,
            jobs: Slab::default(),
            waiting: VecDeque::new(),
            writes: Slab::default(),
            spare_ids: Vec::new(),
            tasks: Vec::new(),
            failed: false,
            writer,
        })
    }

    /// Another task of the run writes here.
    pub fn join(&mut self, task: usize) {
        self.tasks.push(task);
    }

    /// What is shared has failed: so have all tasks.
    fn fail(&mut self, error: Error, io: &mut Io<'_>) {
        self.failed = true;
        for &task in &self.tasks {
            io.fail_task(task, error.clone());
        }
    }

    /// Goes on with what waits, as far as there is room.
    fn pump(&mut self, io: &mut Io<'_>) {
        if !self.failed
            && let Some(error) = self.writer.committer.error()
        {
            self.fail(error, io);
        }
        while let Some(&job) = self.waiting.front() {
            if !self.failed {
                match self.store(job, io) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        self.writer.committer.fail(error.clone());
                        self.fail(error, io);
                    }
                }
            }
            self.waiting.pop_front();
            self.jobs.get(job).through = true;
            self.end(job, io);
        }
    }

    /// Ends a request whose chunks are through and whose writes have completed.
    fn end(&mut self, index: usize, io: &mut Io<'_>) {
        let job = self.jobs.get(index);
        if !job.through || job.writes > 0 {
            return;
        }
        let mut job = self.jobs.take(index);
        if self.failed {
            io.finish_failed(&job.operation);
        } else {
            io.finish(&job.operation, Ok(job.operation.length));
        }
        job.found.clear();
        self.spare_ids.push(job.found);
    }

    /// Stores a request's chunks; false when it has to wait.
    fn store(&mut self, index: usize, io: &mut Io<'_>) -> Result<bool> {
        let writer = self.writer.clone();
        let keys = writer.repository.keys();
        loop {
            let job = self.jobs.get(index);
            if job.next == job.end {
                job.ids.set(job.first, &job.found)?;
                return Ok(true);
            }
            let range = job.next..(job.next + self.chunk_size).min(job.end);
            let length = range.len();
            let id = match job.claimed {
                Some(id) => id,
                None => {
                    let bytes = &io.bytes(&job.operation)[range.clone()];
                    let id =
                        if is_zero(bytes) { ChunkId::HOLE } else { keys.chunk_id(ChunkKind::Data, bytes) };
                    if id.is_hole() || writer.index.claim(&id)? == Claim::Known {
                        job.next = range.end;
                        job.found.push(id);
                        continue;
                    }
                    id
                }
            };
            job.claimed = Some(id);
            let (Some(stage), Some(place)) = (self.stage(io)?, self.place(io)?) else { return Ok(false) };
            let stored = self.store_chunk(index, range.clone(), id, stage, place, io)?;
            let job = self.jobs.get(index);
            job.disk.add(length, stored);
            job.claimed = None;
            job.next = range.end;
            job.found.push(id);
            self.close_full(io)?;
        }
    }

    /// Stores one chunk, by way of the staging buffer or straight from the request's own. Returns its record's bytes.
    fn store_chunk(
        &mut self,
        index: usize,
        range: Range<usize>,
        id: ChunkId,
        stage: usize,
        place: usize,
        io: &mut Io<'_>,
    ) -> Result<usize> {
        let operation = self.jobs.get(index).operation;
        let stage = &mut self.stages[stage];
        let length = range.len();
        let room = stage.scratch.part(stage.used, self.bound);
        let (bytes, staging) = io.bytes_and_scratch(&operation, &room);
        let bytes = &mut bytes[range.clone()];
        let packed = self.compressor.compress(bytes, staging);
        if packed.is_none() && length.is_multiple_of(BLOCK as usize) {
            let entry = entry(id, ChunkKind::Data, Encoding::Raw, length, length);
            // The staging buffer's records come behind it: they have no place yet.
            let pack = self.places[place].pack.as_mut().unwrap_or_else(|| unreachable!("the pack is open"));
            let offset = pack.builder.place_blocks(entry, bytes)?;
            if pack.by_ring {
                let memory = operation.memory.skip(range.start as u64);
                self.jobs.get(index).writes += 1;
                self.push(
                    Write {
                        place,
                        from: From::Job(index),
                        memory,
                        offset,
                        length: length as u64,
                        retries: 0,
                    },
                    io,
                );
            } else {
                pack.upload.write_at(offset, bytes)?;
            }
            return Ok(length);
        }
        let (encoding, stored) = packed.unwrap_or_else(|| {
            staging[..length].copy_from_slice(bytes);
            (Encoding::Raw, length)
        });
        if packed.is_none() {
            io.count_copied(length as u64);
        }
        let entry = entry(id, ChunkKind::Data, encoding, stored, length);
        stage.records.push(Staged { entry, at: stage.used });
        stage.used += stored;
        Ok(stored)
    }

    /// A staging buffer with room for a chunk; `None` while all are on their way.
    fn stage(&mut self, io: &mut Io<'_>) -> Result<Option<usize>> {
        if let Some(stage) = self.filling {
            if self.stages[stage].used + self.bound <= self.stages[stage].scratch.length() {
                return Ok(Some(stage));
            }
            self.flush(io)?;
        }
        self.filling = self.stages.iter().position(|stage| !stage.in_flight);
        Ok(self.filling)
    }

    /// The place of a pack with room; `None` while all places have writes of full packs in flight.
    fn place(&mut self, io: &mut Io<'_>) -> Result<Option<usize>> {
        if self.open.is_some() {
            return Ok(self.open);
        }
        let Some(free) = self.places.iter().position(|place| place.pack.is_none()) else { return Ok(None) };
        let store = self.writer.repository.store();
        let builder = PackBuilder::new(&self.writer.repository)?;
        let key = builder.key();
        let upload = store.begin(&key, self.writer.pack_bytes.load(Ordering::Relaxed))?;
        let by_ring = match upload.file() {
            Some(file) if u64::from(file.alignment.offset.max(file.alignment.memory)) <= BLOCK => {
                io.set_file(self.places[free].file, file.fd, false);
                true
            }
            Some(file) => {
                io.control().degrade(Degradation {
                    about: "pack_writes".into(),
                    wanted: "packs written by the workers' rings".into(),
                    used: "one write at a time".into(),
                    reason: format!(
                        "the store's files ask for an alignment of {} bytes",
                        file.alignment.offset
                    ),
                    path: Some(store.label()),
                });
                false
            }
            None => false,
        };
        let pack = OpenPack { builder, upload, key, by_ring, writes: 0, closing: false };
        self.places[free].pack = Some(pack);
        self.open = Some(free);
        Ok(self.open)
    }

    /// Places what the staging buffer holds in the open pack, and writes it.
    fn flush(&mut self, io: &mut Io<'_>) -> Result<()> {
        let Some(at) = self.filling.take() else { return Ok(()) };
        let stage = &mut self.stages[at];
        let Some(place) = self.open.filter(|_| stage.used > 0) else { return Ok(()) };
        let pack = self.places[place].pack.as_mut().unwrap_or_else(|| unreachable!("the pack is open"));
        let buffer = io.scratch(&stage.scratch);
        let (offset, length) = pack.builder.place_staged(&stage.records, stage.used, buffer)?;
        stage.records.clear();
        stage.used = 0;
        if !pack.by_ring {
            return pack.upload.write_at(offset, &buffer[..length]);
        }
        stage.in_flight = true;
        let memory = io.scratch_memory(&self.stages[at].scratch, 0);
        self.push(
            Write { place, from: From::Stage(at), memory, offset, length: length as u64, retries: 0 },
            io,
        );
        Ok(())
    }

    fn push(&mut self, write: Write, io: &mut Io<'_>) {
        if let Some(pack) = &mut self.places[write.place].pack {
            pack.writes += 1;
        }
        let index = self.writes.add(write);
        self.submit(index, io);
    }

    fn submit(&mut self, index: usize, io: &mut Io<'_>) {
        let write = *self.writes.get(index);
        let submission = Submission {
            verb: Verb::Write,
            file: self.places[write.place].file,
            memory: write.memory,
            length: write.length,
            offset: write.offset,
            token: Token { lane: 0, aux: 0 },
        };
        io.push(index as u32, submission);
    }

    /// A write has completed, perhaps in part.
    fn written(&mut self, index: usize, result: i32, io: &mut Io<'_>) {
        let write = self.writes.get(index);
        // What is written goes on at a block, as O_DIRECT asks.
        let done = if result > 0 { result as u64 } else { 0 };
        let whole = done.min(write.length) / BLOCK * BLOCK;
        let again = matches!(-result, libc::EAGAIN | libc::EINTR) || (result > 0 && done < write.length);
        if again && !self.failed && write.retries < limits::RETRIES_MAX {
            write.memory = write.memory.skip(whole);
            write.offset += whole;
            write.length -= whole;
            write.retries += 1;
            return self.submit(index, io);
        }
        let write = self.writes.take(index);
        if done < write.length && !self.failed {
            let errno = if result < 0 { -result } else { libc::EIO };
            let key = self.places[write.place].pack.as_ref().map(|pack| pack.key.clone());
            let store = self.writer.repository.store();
            let label = key.map_or_else(|| store.label(), |key| store.label_of(&key));
            let error = Error::os(Operation::Write, label, errno).offset(write.offset);
            let error = match error.kind() {
                ErrorKind::Full => {
                    error.hint("make room where the repository lies, or prune it and collect garbage")
                }
                _ => error,
            };
            self.writer.committer.fail(error.clone());
            self.fail(error, io);
        }
        if let Some(pack) = &mut self.places[write.place].pack {
            pack.writes -= 1;
        }
        match write.from {
            From::Stage(stage) => self.stages[stage].in_flight = false,
            From::Job(job) => {
                self.jobs.get(job).writes -= 1;
                self.end(job, io);
            }
        }
        self.hand_over(write.place, io);
    }

    fn close_full(&mut self, io: &mut Io<'_>) -> Result<()> {
        let Some(pack) = self.open.and_then(|open| self.places[open].pack.as_ref()) else { return Ok(()) };
        let (bytes, records) =
            self.filling.map_or((0, 0), |at| (self.stages[at].used, self.stages[at].records.len()));
        if pack.builder.is_full(bytes, records) { self.close(io) } else { Ok(()) }
    }

    /// Writes the rest of the open pack, and lets no more into it.
    fn close(&mut self, io: &mut Io<'_>) -> Result<()> {
        self.flush(io)?;
        let Some(place) = self.open.take() else { return Ok(()) };
        if let Some(pack) = &mut self.places[place].pack {
            pack.closing = true;
        }
        self.hand_over(place, io);
        Ok(())
    }

    /// Gives a closed pack to the committer once its last write has completed.
    fn hand_over(&mut self, place: usize, io: &mut Io<'_>) {
        let place = &mut self.places[place];
        let over = place.pack.as_ref().is_some_and(|pack| pack.closing && pack.writes == 0);
        if !over || self.failed {
            return;
        }
        if let Some(pack) = place.pack.take() {
            if pack.by_ring {
                io.clear_file(place.file);
            }
            if pack.builder.is_empty() {
                return;
            }
            if let Err(error) = self.writer.committer.add(pack.builder.seal(pack.upload)) {
                self.fail(error, io);
            }
        }
    }

    fn finish(&mut self, io: &mut Io<'_>) {
        if self.failed {
            return;
        }
        if let Err(error) = self.close(io) {
            self.writer.committer.fail(error.clone());
            self.fail(error, io);
        }
    }
}

/// Things by small numbers that are used again.
struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    fn add(&mut self, item: T) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.items.push(None);
            self.items.len() - 1
        });
        self.items[index] = Some(item);
        index
    }

    fn get(&mut self, index: usize) -> &mut T {
        self.items[index].as_mut().unwrap_or_else(|| unreachable!("a number is used until it is given back"))
    }

    fn take(&mut self, index: usize) -> T {
        let item = self.items[index].take();
        self.free.push(index);
        item.unwrap_or_else(|| unreachable!("a number is given back once"))
    }
}
