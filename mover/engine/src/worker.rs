//! The hot path: one worker, one thread, one ring, one arena.
//!
//! ```text
//! loop { fill: take requests while slots are free → begin reads
//!        wait: submit, sleep until something completes
//!        drain: completions → lanes → finished operations → transform → begin writes → free the slot }
//! ```
//! No payload is copied: the buffer that the source's read filled is the buffer that the target's write is
//! given. No lock, no allocation and no map stands in the loop; a slot's vectors keep their capacity.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_deque::Worker as Deque;
use mover_model::{Digest, Error, ErrorKind, Extent, ExtentKind, Operation, Result, limits};

use crate::arena::{Arena, BUFFERS};
use crate::control::{Control, Rate};
use crate::lane::{
    Fault, Finished, Io, Lane, LaneOperation, LaneSetup, OperationKind, Order, Sink, SinkOperation, Source,
};
use crate::plan::{Item, Joined, cut_request};
use crate::pool::Pool;
use crate::queue::{Extents, Next, Queue, Tasks};
use crate::ring::Ring;
use crate::run::TaskOptions;
use crate::settings::{HugePages, Settings};
use crate::slot::{DataSegment, Phase, Slot};
use crate::stats::{Counters, LatencyHistogram};
use crate::transform;

/// What happens when a part of the source cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadErrors {
    /// The task fails.
    Fail,
    /// What can be read is moved, the rest is recorded and the target left there as it was.
    Record,
}

/// A finished part of a task: its bytes are at the target (not yet flushed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Digest of the bytes, where digests are taken; `None` for zeros that were not read too.
    pub digest: Option<Digest>,
    /// Whether it was a range of zeros that was not read.
    pub zero: bool,
}

/// One worker's record of what it finished for one task; never shared, so never locked.
pub trait Recorder: Send {
    /// A segment has arrived at its target.
    fn finished(&mut self, segment: &Segment);
    /// A part of the source could not be read.
    fn bad(&mut self, start: u64, length: u64, errno: i32);
}

/// One task as the workers share it.
pub(crate) struct SharedTask<'a> {
    pub source: &'a dyn Source,
    pub sink: &'a dyn Sink,
    pub options: TaskOptions,
    pub counters: &'a Counters,
    /// The first error: what follows it is not worth telling.
    pub error: Mutex<Option<Error>>,
    /// Set with the error: no worker begins anything more for the task.
    pub failed: AtomicBool,
    /// End of a stream, once found.
    pub stream_end: AtomicU64,
    pub bad_extents: AtomicU64,
}

impl SharedTask<'_> {
    pub fn fail(&self, error: Error) {
        let mut slot = self.error.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        slot.get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// What all workers of a run share.
pub(crate) struct Shared<'a> {
    pub settings: &'a Settings,
    pub control: &'a Control,
    pub rate: Option<&'a Rate>,
    pub tasks: Vec<SharedTask<'a>>,
    pub queue: Queue<'a>,
}

impl Tasks for Shared<'_> {
    fn failed(&self, task: usize) -> bool {
        self.tasks[task].failed()
    }

    fn fail(&self, task: usize, error: Error) {
        self.tasks[task].fail(error);
    }
}

/// Latency of what one worker did.
#[derive(Default)]
pub(crate) struct WorkerStats {
    pub reads: LatencyHistogram,
    pub writes: LatencyHistogram,
}

enum Current<'a> {
    Nothing,
    Span { task: usize, extent: Extent },
    Sequential { task: usize, extents: Extents<'a>, span: Option<Extent> },
}

/// A request on its way into a slot.
enum Request {
    Plain { task: usize, extent: Extent },
    Joined(Box<Joined>),
}

struct Held {
    request: Request,
    /// Whether the rate limit has granted it already.
    granted: bool,
}

impl Request {
    /// Bytes that it reads, and needs a buffer for.
    fn read_bytes(&self) -> usize {
        match self {
            Request::Plain { extent, .. } if extent.kind == ExtentKind::Data => extent.length as usize,
            Request::Plain { .. } => 0,
            Request::Joined(joined) => joined.length as usize,
        }
    }
}

/// Why no request was taken.
enum Dry {
    /// More may come.
    ForNow(Duration),
    /// All work is done or being done by others.
    ForGood,
}

/// One worker.
pub(crate) struct Worker<'r, 'a> {
    shared: &'r Shared<'a>,
    own: Deque<Item>,
    /// Given up for good, with the arena, when operations never end: see `Drop`.
    ring: ManuallyDrop<Ring>,
    arena: ManuallyDrop<Arena>,
    pool: Pool,
    /// Two for each task: its source's, then its sink's.
    lanes: Vec<Box<dyn Lane>>,
    recorders: Vec<Box<dyn Recorder + 'a>>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    finished: VecDeque<Finished>,
    current: Current<'a>,
    /// A request that waits, for the rate limit or for room in the arena.
    held: Option<Held>,
    fatal: Option<Error>,
    stats: WorkerStats,
}

/// How long a worker waits, at the end, for operations that the kernel does not finish, before it gives up
/// their memory for good.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

impl<'r, 'a> Worker<'r, 'a> {
    pub fn new(
        shared: &'r Shared<'a>,
        own: Deque<Item>,
        recorders: Vec<Box<dyn Recorder + 'a>>,
    ) -> Result<Self> {
        let settings = shared.settings;
        let depth = settings.queue_depth;
        let mut ring = Ring::new(settings, shared.control)?;
        let bytes = settings.worker_bytes() as usize;
        let arena = Arena::new(bytes, settings.huge_pages)?;
        if settings.huge_pages == HugePages::Required && !arena.is_huge() {
            shared.control.degrade(mover_model::event::Degradation {
                about: "huge_pages".into(),
                wanted: "buffers in huge pages".into(),
                used: "ordinary pages, transparent huge pages where the kernel has them".into(),
                reason: "the pool of huge pages has too few free (vm.nr_hugepages)".into(),
                path: None,
            });
        }
        if settings.register {
            ring.register_buffers(&arena, shared.control);
        }
        let mut lanes = Vec::with_capacity(shared.tasks.len() * 2);
        for task in &shared.tasks {
            let mut setup = LaneSetup { ring: &mut ring, queue_depth: depth };
            lanes.push(task.source.lane(task.options.source_access, &mut setup)?);
            lanes.push(task.sink.lane(task.options.sink_access, &mut setup)?);
        }
        if settings.register {
            ring.register_files();
        }
        Ok(Worker {
            shared,
            own,
            ring: ManuallyDrop::new(ring),
            arena: ManuallyDrop::new(arena),
            pool: Pool::new(bytes, settings.block_size as usize),
            lanes,
            recorders,
            slots: (0..depth).map(|_| Slot::free()).collect(),
            free: (0..depth).rev().collect(),
            finished: VecDeque::with_capacity(usize::from(depth) * 2),
            current: Current::Nothing,
            held: None,
            fatal: None,
            stats: WorkerStats::default(),
        })
    }

    /// Works until there is nothing left to do, or the run is stopped.
    pub fn run(mut self) -> WorkerStats {
        loop {
            let dry = self.fill();
            self.drain();
            if self.fatal.is_some() {
                return self.give_up();
            }
            if self.idle() {
                match dry {
                    Some(Dry::ForGood) => return self.end(),
                    Some(Dry::ForNow(wait)) => std::thread::sleep(wait),
                    None => {}
                }
                continue;
            }
            let timeout = match dry {
                Some(Dry::ForNow(wait)) => wait,
                _ => Duration::from_millis(limits::WAIT_MS),
            };
            if self.ring.in_flight() > 0
                && let Err(error) = self.ring.wait(timeout)
            {
                self.fatal = Some(error);
                return self.give_up();
            }
            self.drain();
        }
    }

    fn idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    // ---- fill: take requests and begin them ---------------------------------------------------------------

    fn fill(&mut self) -> Option<Dry> {
        while let Some(&slot) = self.free.last() {
            if self.shared.control.stopped() {
                return Some(Dry::ForGood);
            }
            let held = match self.held.take() {
                Some(held) => held,
                None => match self.next_request() {
                    Ok(request) => Held { request, granted: false },
                    Err(dry) => return Some(dry),
                },
            };
            let bytes = held.request.read_bytes();
            if !held.granted
                && let Some(wait) = self.shared.rate.and_then(|rate| rate.take(bytes as u64).err())
            {
                self.held = Some(held);
                return Some(Dry::ForNow(wait.min(Duration::from_millis(limits::WAIT_MS))));
            }
            let buffer = if bytes == 0 { None } else { self.pool.take(bytes) };
            if bytes > 0 && buffer.is_none() {
                // Room comes with the next completion: an idle worker's arena is free as a whole.
                self.held = Some(Held { granted: true, ..held });
                return None;
            }
            self.free.pop();
            self.slots[usize::from(slot)].buffer = buffer;
            self.take(slot, held.request);
        }
        None
    }

    fn next_request(&mut self) -> std::result::Result<Request, Dry> {
        let block_size = self.shared.settings.block_size;
        loop {
            match &mut self.current {
                Current::Span { task, extent } if extent.length > 0 && !self.shared.tasks[*task].failed() => {
                    return Ok(Request::Plain { task: *task, extent: cut_request(extent, block_size) });
                }
                Current::Sequential { task, extents, span } => {
                    let shared = &self.shared.tasks[*task];
                    let ended = shared.failed() || shared.stream_end.load(Ordering::Acquire) != u64::MAX;
                    if let Some(span) = span.as_mut().filter(|span| span.length > 0 && !ended) {
                        return Ok(Request::Plain { task: *task, extent: cut_request(span, block_size) });
                    }
                    *span = None;
                    match if ended { None } else { extents.next() } {
                        Some(Ok(extent)) => *span = Some(extent),
                        Some(Err(error)) => shared.fail(error),
                        None => self.current = Current::Nothing,
                    }
                    continue;
                }
                Current::Span { .. } | Current::Nothing => {}
            }
            self.current = Current::Nothing;
            match self.shared.queue.next(&self.own, self.shared) {
                Next::Item(Item::Span { task, extent }) => self.current = Current::Span { task, extent },
                Next::Item(Item::Joined(joined)) => {
                    if !self.shared.tasks[joined.task].failed() {
                        return Ok(Request::Joined(joined));
                    }
                }
                Next::Item(Item::Sequential { task }) => {
                    if let Some(extents) = self.shared.queue.take_sequential(task) {
                        self.current = Current::Sequential { task, extents, span: None };
                    }
                }
                Next::Later => return Err(Dry::ForNow(Duration::from_micros(50))),
                Next::Never => return Err(Dry::ForGood),
            }
        }
    }

    fn take(&mut self, index: u16, request: Request) {
        let slot = &mut self.slots[usize::from(index)];
        debug_assert_eq!(slot.phase, Phase::Free);
        slot.segments.clear();
        slot.failed = false;
        slot.begun = Instant::now();
        match request {
            Request::Plain { task, extent } => {
                slot.task = task;
                slot.start = extent.start;
                slot.length = extent.length;
                if extent.kind != ExtentKind::Data {
                    return self.begin_zero(index);
                }
                slot.segments.push(DataSegment { start: 0, length: extent.length as u32, digest: None });
            }
            Request::Joined(joined) => {
                slot.task = joined.task;
                slot.start = joined.start;
                slot.length = u64::from(joined.length);
                slot.segments.extend(joined.pieces.iter().map(|&(start, length)| DataSegment {
                    start,
                    length,
                    digest: None,
                }));
            }
        }
        self.slots[usize::from(index)].phase = Phase::Reading;
        self.begin_read(index, 0, self.slots[usize::from(index)].length as u32);
    }

    /// Where a byte of a slot's buffer lies in the arena.
    fn place(&self, index: u16, at: u32) -> usize {
        let buffer = self.slots[usize::from(index)].buffer;
        let buffer = buffer.unwrap_or_else(|| unreachable!("a request without data has no buffer"));
        debug_assert!(at as usize <= self.pool.bytes(buffer));
        self.pool.offset(buffer) + at as usize
    }

    fn begin_read(&mut self, index: u16, from: u32, length: u32) {
        let slot = &self.slots[usize::from(index)];
        let (task, offset) = (slot.task, slot.start + u64::from(from));
        let address = self.arena.at(self.place(index, from));
        let operation = LaneOperation {
            kind: OperationKind::Read,
            slot: index,
            piece: 0,
            offset,
            length: u64::from(length),
            address,
            buffer: BUFFERS,
        };
        self.begin(task * 2, operation);
    }

    /// Zeros need no buffer: they go to the sink at once, or nowhere when it reads as zeros anyway.
    fn begin_zero(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        slot.phase = Phase::Writing;
        slot.outstanding = 0;
        if !task.options.skip_zeros {
            let kind = if task.options.keep_allocated { SinkOperation::Zero } else { SinkOperation::Hole };
            slot.outstanding = 1;
            let operation = LaneOperation {
                kind: OperationKind::Sink(kind),
                slot: index,
                piece: 0,
                offset: slot.start,
                length: slot.length,
                address: std::ptr::null_mut(),
                buffer: BUFFERS,
            };
            Counters::add(&task.counters.zeroes, 1);
            let lane = slot.task * 2 + 1;
            self.begin(lane, operation);
        }
        if self.slots[usize::from(index)].outstanding == 0 {
            self.complete(index);
        }
    }

    fn begin(&mut self, lane: usize, operation: LaneOperation) {
        let zeros = self.arena.zeros();
        let mut io = Io::new(
            &mut self.ring,
            &mut self.finished,
            &mut self.fatal,
            self.shared.control,
            lane as u16,
            zeros,
        );
        self.lanes[lane].begin(operation, &mut io);
    }

    // ---- drain: completions become finished operations, those become the next step of their slot ---------

    fn drain(&mut self) {
        loop {
            if let Some(finished) = self.finished.pop_front() {
                self.on_finished(finished);
            } else if let Some(completed) = self.ring.pop() {
                let zeros = self.arena.zeros();
                let lane = completed.token.lane;
                let mut io = Io::new(
                    &mut self.ring,
                    &mut self.finished,
                    &mut self.fatal,
                    self.shared.control,
                    lane,
                    zeros,
                );
                self.lanes[usize::from(lane)].advance(completed.token.aux, completed.result, &mut io);
            } else {
                return;
            }
        }
    }

    fn on_finished(&mut self, finished: Finished) {
        match self.slots[usize::from(finished.slot)].phase {
            Phase::Reading => self.on_read(finished.slot, finished.result),
            Phase::Salvaging { segment, position } => {
                self.on_salvaged(finished.slot, segment, position, finished.result);
            }
            Phase::Writing => self.on_written(finished.slot, finished.result),
            Phase::Free => unreachable!("an operation finished twice"),
        }
    }

    fn on_read(&mut self, index: u16, result: std::result::Result<u64, Fault>) {
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        self.stats.reads.record(slot.begun.elapsed());
        if task.failed() {
            return self.forgo(index);
        }
        match result {
            Ok(done) if done == slot.length => {}
            Ok(done) if task.source.size().is_none() => {
                // The end of a stream: keep what came, and let no later read begin.
                // Reads that were queued behind the end find nothing, further on: the least is the end.
                task.stream_end.fetch_min(slot.start + done, Ordering::AcqRel);
                slot.length = done;
                slot.segments.clear();
                if done == 0 {
                    return self.release(index);
                }
                slot.segments.push(DataSegment { start: 0, length: done as u32, digest: None });
            }
            Ok(done) => {
                let error = Error::new(
                    ErrorKind::SourceShrank,
                    "the source ended before the size it had when the run began",
                );
                task.fail(error.during(Operation::Read).at(task.source.label()).offset(slot.start + done));
                return self.forgo(index);
            }
            Err(fault) => {
                // A pipe cannot be left as it was where something is missing.
                let records =
                    task.options.read_errors == ReadErrors::Record && task.sink.order() == Order::Any;
                if records && is_medium_error(fault.errno) {
                    return self.salvage(index);
                }
                task.fail(Error::os(Operation::Read, task.source.label(), fault.errno).offset(fault.offset));
                return self.forgo(index);
            }
        }
        Counters::add(&task.counters.read_bytes, slot.length);
        Counters::add(&task.counters.reads, 1);
        self.transform_and_write(index);
    }

    /// The buffer is ours until the first write begins: take digests, find zeros, then hand it to the sink.
    fn transform_and_write(&mut self, index: u16) {
        let place = self.place(index, 0);
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        let options = &task.options;
        if options.digest {
            // SAFETY: the slot's read has completed and no write has begun.
            let bytes = unsafe { self.arena.slice(place, slot.length as usize) };
            for segment in &mut slot.segments {
                let range = segment.start as usize..(segment.start + segment.length) as usize;
                segment.digest = Some(transform::digest(&bytes[range]));
            }
        }
        slot.phase = Phase::Writing;
        slot.begun = Instant::now();
        // Held at one until all pieces have begun, so that none that ends at once completes the slot early.
        slot.outstanding = 1;
        let mut piece = 0;
        for at in 0..self.slots[usize::from(index)].segments.len() {
            let segment = self.slots[usize::from(index)].segments[at];
            self.write_segment(index, segment, &mut piece);
        }
        self.on_written(index, Ok(0));
    }

    fn write_segment(&mut self, index: u16, segment: DataSegment, piece: &mut u16) {
        let slot = &self.slots[usize::from(index)];
        let (start, length) = (slot.start, slot.length);
        let task = &self.shared.tasks[slot.task];
        let options = &task.options;
        let granule = u64::from(task.sink.alignment(options.sink_access).offset);
        let Some(least) = options.zero_run else {
            // Only a stream's last block can be unaligned here: extents were cut at the alignment. It is
            // padded with zeros up to the target's granule; `Sink::finish` cuts a file to the true size.
            let padded = u64::from(segment.length).next_multiple_of(granule) as u32;
            if padded != segment.length {
                let tail = self.place(index, segment.length);
                // SAFETY: the read has completed and no write of this slot has begun: it has one segment.
                unsafe { self.arena.clear(tail, (padded - segment.length) as usize) };
            }
            return self.begin_write(index, segment.start, padded, segment.length, piece);
        };
        let range = segment.start as usize..(segment.start + segment.length) as usize;
        let mut runs = std::mem::take(&mut self.slots[usize::from(index)].runs);
        runs.clear();
        // SAFETY: the slot's read has completed; writes of other pieces only read the buffer.
        let bytes = unsafe { self.arena.slice(self.place(index, 0), length as usize) };
        transform::zero_runs(&bytes[range], start + u64::from(segment.start), least, |run| runs.push(run));
        for run in &runs {
            let at = segment.start + run.start;
            if run.zero {
                self.begin_found_zero(index, at, run.length, piece);
                continue;
            }
            let padded = u64::from(run.length).next_multiple_of(granule) as u32;
            if padded != run.length {
                let tail = self.place(index, at + run.length);
                // SAFETY: as above; only the last run of a stream's last block is unaligned, and what is
                // cleared lies behind all that is written.
                unsafe { self.arena.clear(tail, (padded - run.length) as usize) };
            }
            self.begin_write(index, at, padded, run.length, piece);
        }
        self.slots[usize::from(index)].runs = runs;
    }

    fn begin_write(&mut self, index: u16, at: u32, padded: u32, length: u32, piece: &mut u16) {
        let address = self.arena.at(self.place(index, at));
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        slot.outstanding += 1;
        Counters::add(&task.counters.written_bytes, u64::from(length));
        Counters::add(&task.counters.writes, 1);
        let operation = LaneOperation {
            kind: OperationKind::Sink(SinkOperation::Write),
            slot: index,
            piece: *piece,
            offset: slot.start + u64::from(at),
            length: u64::from(padded),
            address,
            buffer: BUFFERS,
        };
        *piece += 1;
        let lane = slot.task * 2 + 1;
        self.begin(lane, operation);
    }

    fn begin_found_zero(&mut self, index: u16, at: u32, length: u32, piece: &mut u16) {
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        Counters::add(&task.counters.zero_bytes, u64::from(length));
        Counters::add(&task.counters.zero_found_bytes, u64::from(length));
        if task.options.skip_zeros {
            return;
        }
        slot.outstanding += 1;
        Counters::add(&task.counters.zeroes, 1);
        let operation = LaneOperation {
            kind: OperationKind::Sink(SinkOperation::Hole),
            slot: index,
            piece: *piece,
            offset: slot.start + u64::from(at),
            length: u64::from(length),
            address: std::ptr::null_mut(),
            buffer: BUFFERS,
        };
        *piece += 1;
        let lane = slot.task * 2 + 1;
        self.begin(lane, operation);
    }

    fn on_written(&mut self, index: u16, result: std::result::Result<u64, Fault>) {
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        if let Err(fault) = result {
            slot.failed = true;
            let operation = if slot.segments.is_empty() { Operation::Zero } else { Operation::Write };
            task.fail(Error::os(operation, task.sink.label(), fault.errno).offset(fault.offset));
        }
        slot.outstanding -= 1;
        if slot.outstanding == 0 {
            if !slot.segments.is_empty() {
                self.stats.writes.record(slot.begun.elapsed());
            }
            self.complete(index);
        }
    }

    /// Everything of the slot's request is at its target, or failed.
    fn complete(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        if !slot.failed {
            let recorder = &mut self.recorders[slot.task];
            if slot.segments.is_empty() {
                Counters::add(&self.shared.tasks[slot.task].counters.zero_bytes, slot.length);
                recorder.finished(&Segment {
                    start: slot.start,
                    length: slot.length,
                    digest: None,
                    zero: true,
                });
            }
            for segment in &slot.segments {
                recorder.finished(&Segment {
                    start: slot.start + u64::from(segment.start),
                    length: u64::from(segment.length),
                    digest: segment.digest,
                    zero: false,
                });
            }
        }
        self.release(index);
    }

    fn release(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.phase = Phase::Free;
        if let Some(buffer) = slot.buffer.take() {
            self.pool.give(buffer);
        }
        self.free.push(index);
    }

    /// Ends a request that is not written, as its task has failed.
    fn forgo(&mut self, index: u16) {
        let lane = self.slots[usize::from(index)].task * 2 + 1;
        self.release(index);
        let zeros = self.arena.zeros();
        let control = self.shared.control;
        let (ring, finished, fatal) = (&mut *self.ring, &mut self.finished, &mut self.fatal);
        self.lanes[lane].abandon(&mut Io::new(ring, finished, fatal, control, lane as u16, zeros));
    }

    // ---- salvage: a request that could not be read as a whole is read in small pieces ---------------------

    fn salvage(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.salvaged.clear();
        slot.phase = Phase::Salvaging { segment: 0, position: slot.segments[0].start };
        self.begin_salvage_read(index);
    }

    fn begin_salvage_read(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        let Phase::Salvaging { segment, position } = slot.phase else { unreachable!("not salvaging") };
        self.begin_read(index, position, salvage_length(slot, segment, position));
    }

    fn on_salvaged(
        &mut self,
        index: u16,
        segment: usize,
        position: u32,
        result: std::result::Result<u64, Fault>,
    ) {
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        if task.failed() {
            return self.forgo(index);
        }
        let length = salvage_length(slot, segment, position);
        match result {
            Ok(done) if done == u64::from(length) => match slot.salvaged.last_mut() {
                Some(last) if last.start + last.length == position => last.length += length,
                _ => slot.salvaged.push(DataSegment { start: position, length, digest: None }),
            },
            Ok(done) => {
                let error = Error::new(ErrorKind::SourceShrank, "the source ended while it was read");
                let offset = slot.start + u64::from(position) + done;
                task.fail(error.during(Operation::Read).at(task.source.label()).offset(offset));
                return self.forgo(index);
            }
            Err(fault) if is_medium_error(fault.errno) => {
                let start = slot.start + u64::from(position);
                self.recorders[slot.task].bad(start, u64::from(length), fault.errno);
                let count = task.bad_extents.fetch_add(1, Ordering::Relaxed);
                if count as usize >= limits::BAD_EXTENTS_MAX {
                    let error =
                        Error::os(Operation::Read, task.source.label(), fault.errno).offset(fault.offset);
                    task.fail(error.hint("too many unreadable extents: the source is gone, not scratched"));
                    return self.forgo(index);
                }
            }
            Err(fault) => {
                task.fail(Error::os(Operation::Read, task.source.label(), fault.errno).offset(fault.offset));
                return self.forgo(index);
            }
        }
        let next = position + length;
        let current = slot.segments[segment];
        slot.phase = if next < current.start + current.length {
            Phase::Salvaging { segment, position: next }
        } else if let Some(following) = slot.segments.get(segment + 1) {
            Phase::Salvaging { segment: segment + 1, position: following.start }
        } else {
            std::mem::swap(&mut slot.segments, &mut slot.salvaged);
            if slot.segments.is_empty() {
                return self.release(index);
            }
            let bytes = slot.segments.iter().map(|s| u64::from(s.length)).sum();
            Counters::add(&task.counters.read_bytes, bytes);
            Counters::add(&task.counters.reads, 1);
            return self.transform_and_write(index);
        };
        self.begin_salvage_read(index);
    }

    // ---- the end -------------------------------------------------------------------------------------------

    fn end(mut self) -> WorkerStats {
        debug_assert_eq!(self.ring.in_flight(), 0);
        std::mem::take(&mut self.stats)
    }

    /// The ring is broken: every task fails.
    fn give_up(mut self) -> WorkerStats {
        if let Some(error) = self.fatal.take() {
            for task in &self.shared.tasks {
                task.fail(error.clone());
            }
        }
        std::mem::take(&mut self.stats)
    }
}

impl Drop for Worker<'_, '_> {
    /// Nothing is freed that the kernel may still write to: what is in flight after a broken ring or a panic
    /// gets time to end, and after that ring and arena are given up for good.
    fn drop(&mut self) {
        let begin = Instant::now();
        while self.ring.in_flight() > 0 && begin.elapsed() < DRAIN_LIMIT {
            if self.ring.wait(Duration::from_millis(limits::WAIT_MS)).is_err() {
                std::thread::sleep(Duration::from_millis(10));
            }
            while self.ring.pop().is_some() {}
        }
        if self.ring.in_flight() == 0 {
            // SAFETY: neither is used after this; the ring goes first, as it knows the arena's buffers.
            unsafe {
                ManuallyDrop::drop(&mut self.ring);
                ManuallyDrop::drop(&mut self.arena);
            }
        }
    }
}

/// Errors that say something about a part of the medium and nothing about the rest.
fn is_medium_error(errno: i32) -> bool {
    matches!(errno, libc::EIO | libc::EREMOTEIO | libc::ENODATA | libc::EILSEQ | libc::EBADMSG | libc::ENXIO)
}

fn salvage_length(slot: &Slot, segment: usize, position: u32) -> u32 {
    let current = slot.segments[segment];
    let to_grid = limits::SALVAGE_BYTES - (slot.start + u64::from(position)) as u32 % limits::SALVAGE_BYTES;
    to_grid.min(current.start + current.length - position)
}

/// Whether a task must keep to one worker.
pub(crate) fn order_of(source: &dyn Source, sink: &dyn Sink) -> Order {
    if source.order() == Order::Sequential || sink.order() == Order::Sequential {
        Order::Sequential
    } else {
        Order::Any
    }
}
