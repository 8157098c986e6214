//! The hot path: one worker, one thread, one ring, one arena.
//!
//! ```text
//! loop { fill: take requests while slots are free → begin reads
//!        wait: submit, sleep until something completes
//!        drain: completions → lanes → finished operations → transform → begin writes → free the slot }
//! ```
//! No payload is copied: the buffer that the source's read filled is the buffer that the target's write is
//! given. No lock, no allocation and no map stands in the loop; a slot's vectors keep their capacity.
//! It stands in one file so that it can be read from top to bottom.

mod salvage;
mod shared;

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_deque::Worker as Deque;
use mover_model::{Error, ErrorKind, Extent, ExtentKind, Operation, Result, limits};

use self::salvage::is_medium_error;
pub use self::shared::{ReadErrors, Recorder, Segment, TaskOptions};
pub(crate) use self::shared::{Shared, SharedTask, order_of};

use crate::arena::{Arena, Memory};
use crate::lane::{
    Fault, Finished, Io, Lane, LaneOperation, LaneSetup, OperationKind, Order, Reserve, SCRATCH_GRANULE,
    SinkOperation, States,
};
use crate::plan::{Item, Joined, cut_in_order, cut_request};
use crate::pool::Pool;
use crate::queue::{Extents, Next};
use crate::ring::Ring;
use crate::settings::{HugePages, Settings};
use crate::slot::{DataSegment, Phase, Slot};
use crate::stats::{Counters, LatencyHistogram};
use crate::transform;

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
    /// Given up for good, with arena and lanes, when operations never end: see `Drop`.
    ring: ManuallyDrop<Ring>,
    arena: ManuallyDrop<Arena>,
    pool: Pool,
    /// Two for each task: its source's, then its sink's.
    lanes: ManuallyDrop<Vec<Box<dyn Lane>>>,
    /// Tasks whose lanes were told to end what may wait for ever.
    cancelled: Vec<bool>,
    /// Lanes that were told to finish.
    finishing: Vec<bool>,
    recorders: Vec<Box<dyn Recorder + 'a>>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    finished: VecDeque<Finished>,
    current: Current<'a>,
    /// A request that waits, for the rate limit or for room in the arena.
    held: Option<Held>,
    fatal: Option<Error>,
    /// Whether completions wait that were not handled yet, as new requests were to be begun first.
    backlog: bool,
    stats: WorkerStats,
}

/// How long completions are handled before new requests are begun: half of what one block takes to compress, and far
/// more than a raw move spends on all of them.
const BUSY_LIMIT: Duration = Duration::from_micros(500);

/// How long a worker waits, at the end, for operations that the kernel does not finish, before it gives up
/// their memory for good.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// How long a worker sleeps, at the end, before it asks a lane again that waits for something outside the ring.
const LANE_NAP: Duration = Duration::from_millis(1);

/// Bytes of scratch memory that the lanes of one task ask for.
fn scratch_bytes(task: &SharedTask<'_>, settings: &Settings) -> usize {
    task.source.scratch_bytes(settings).next_multiple_of(SCRATCH_GRANULE)
        + task.sink.scratch_bytes(settings).next_multiple_of(SCRATCH_GRANULE)
}

impl<'r, 'a> Worker<'r, 'a> {
    pub fn new(
        shared: &'r Shared<'a>,
        own: Deque<Item>,
        recorders: Vec<Box<dyn Recorder + 'a>>,
        worker: usize,
    ) -> Result<Self> {
        let settings = shared.settings;
        let depth = settings.queue_depth;
        let mut ring = Ring::new(settings, shared.control)?;
        let bytes = settings.worker_bytes() as usize;
        // Behind the buffers, in the same mapping, so that it is registered with them.
        let scratch = shared.tasks.iter().map(|task| scratch_bytes(task, settings)).sum::<usize>();
        let mut reserve = Reserve { next: bytes, end: bytes + scratch };
        let arena = Arena::new(reserve.end, settings.huge_pages)?;
        if settings.huge_pages == HugePages::Pool && !arena.is_huge() {
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
        let mut states = States::new();
        for (index, task) in shared.tasks.iter().enumerate() {
            let (ring, reserve, states) = (&mut ring, &mut reserve, &mut states);
            let mut setup = LaneSetup { ring, settings, worker, task: index, reserve, states };
            lanes.push(task.source.lane(task.options.source_access, &mut setup)?);
            lanes.push(task.sink.lane(task.options.sink_access, &mut setup)?);
        }
        if settings.register {
            ring.register_files(shared.control);
        }
        Ok(Worker {
            shared,
            own,
            ring: ManuallyDrop::new(ring),
            arena: ManuallyDrop::new(arena),
            pool: Pool::new(bytes, settings.block_size as usize),
            lanes: ManuallyDrop::new(lanes),
            cancelled: vec![false; shared.tasks.len()],
            finishing: vec![false; shared.tasks.len() * 2],
            recorders,
            slots: (0..depth).map(|_| Slot::free()).collect(),
            free: (0..depth).rev().collect(),
            finished: VecDeque::with_capacity(usize::from(depth) * 2),
            current: Current::Nothing,
            held: None,
            fatal: None,
            backlog: false,
            stats: WorkerStats::default(),
        })
    }

    /// Works until there is nothing left to do, or the run is stopped.
    pub fn run(mut self) -> WorkerStats {
        loop {
            let dry = self.fill();
            if self.backlog
                && let Err(error) = self.ring.wait(Duration::ZERO)
            {
                self.fatal = Some(error);
                return self.give_up();
            }
            self.drain();
            self.cancel_what_waits();
            if self.backlog && self.fatal.is_none() {
                continue;
            }
            // A lane may hold operations back, but only while something is in flight whose end it is told.
            if self.fatal.is_none() && !self.idle() && self.ring.in_flight() == 0 {
                let broken = Error::new(ErrorKind::Internal, "operations wait for what was never begun");
                self.fatal = Some(broken);
            }
            if self.fatal.is_some() {
                return self.give_up();
            }
            if self.idle() {
                match dry {
                    Some(Dry::ForGood) => return self.end(),
                    // What lanes have in flight of their own goes on meanwhile.
                    Some(Dry::ForNow(_)) if self.ring.in_flight() > 0 => {}
                    Some(Dry::ForNow(wait)) => {
                        std::thread::sleep(wait);
                        continue;
                    }
                    None => continue,
                }
            }
            let timeout = match dry {
                Some(Dry::ForNow(wait)) => wait,
                _ => Duration::from_millis(limits::WAIT_MS),
            };
            if let Err(error) = self.ring.wait(timeout) {
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
                if self.has_more() {
                    self.shared.cut_short.store(true, Ordering::Release);
                }
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
                && let Some(rate) = self.shared.rate
                && let Err(wait) = rate.take(self.rated_bytes(&held.request))
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

    /// Bytes of a request that the rate limit counts: what is read, and zeros that a pipe is sent.
    fn rated_bytes(&self, request: &Request) -> u64 {
        match request {
            Request::Plain { task, extent } if extent.kind != ExtentKind::Data => {
                let in_order = self.shared.tasks[*task].sink.order() == Order::Sequential;
                if in_order { extent.length } else { 0 }
            }
            _ => request.read_bytes() as u64,
        }
    }

    /// Whether a stop leaves work undone.
    fn has_more(&mut self) -> bool {
        if self.held.is_some() {
            return true;
        }
        let next = self.next_request();
        let more = !matches!(next, Err(Dry::ForGood));
        self.held = next.ok().map(|request| Held { request, granted: true });
        more
    }

    /// Once a task has failed or the run is stopped, an operation on a pipe whose other end is silent would
    /// hold the worker for ever.
    fn cancel_what_waits(&mut self) {
        let mut any = false;
        for task in 0..self.cancelled.len() {
            let over = self.shared.control.stopped() || self.shared.tasks[task].failed();
            if over && !self.cancelled[task] {
                self.cancelled[task] = true;
                any = true;
                self.with_lane(task * 2, |lane, io| lane.cancel(io));
                self.with_lane(task * 2 + 1, |lane, io| lane.cancel(io));
            }
        }
        if any {
            // Operations that a lane ended at once are over, and not waited for.
            self.drain();
        }
    }

    fn with_lane(&mut self, index: usize, call: impl FnOnce(&mut dyn Lane, &mut Io<'_>)) {
        let (control, tasks) = (self.shared.control, &self.shared.tasks);
        let (ring, finished, fatal) = (&mut *self.ring, &mut self.finished, &mut self.fatal);
        let mut io = Io::new(ring, finished, fatal, control, tasks, &mut self.arena, index as u16);
        call(&mut *self.lanes[index], &mut io);
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
                        return Ok(Request::Plain { task: *task, extent: cut_in_order(span, block_size) });
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
        (slot.written_bytes, slot.writes, slot.zero_found_bytes, slot.zeroes) = (0, 0, 0, 0);
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
        let memory = self.arena.memory(self.place(index, from));
        let operation = LaneOperation {
            kind: OperationKind::Read,
            slot: index,
            piece: 0,
            offset,
            length: u64::from(length),
            memory,
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
                memory: Memory::NONE,
            };
            slot.zeroes += 1;
            let lane = slot.task * 2 + 1;
            self.begin(lane, operation);
        }
        if self.slots[usize::from(index)].outstanding == 0 {
            self.complete(index);
        }
    }

    fn begin(&mut self, lane: usize, operation: LaneOperation) {
        self.with_lane(lane, |lane, io| lane.begin(operation, io));
    }

    // ---- drain: completions become finished operations, those become the next step of their slot ---------

    /// Handles what has completed. Where that takes long, because lanes hash and compress, it breaks off with a
    /// backlog so that freed slots are filled first: the device would idle meanwhile.
    fn drain(&mut self) {
        let begin = Instant::now();
        self.backlog = false;
        loop {
            if let Some(finished) = self.finished.pop_front() {
                self.on_finished(finished);
                if begin.elapsed() > BUSY_LIMIT {
                    self.backlog = true;
                    return;
                }
            } else if let Some(completed) = self.ring.pop() {
                let token = completed.token;
                self.with_lane(usize::from(token.lane), |lane, io| {
                    lane.advance(token.aux, completed.result, io)
                });
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
                )
                .hint("let it stand still meanwhile, as a snapshot does");
                task.fail(error.during(Operation::Read).at(task.source.label()).offset(slot.start + done));
                return self.forgo(index);
            }
            Err(fault) if self.is_cancelled(fault) => return self.release(index),
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

    /// Whether an operation ended because the run was stopped: no error, but work left undone.
    fn is_cancelled(&self, fault: Fault) -> bool {
        let cancelled = fault.errno == libc::ECANCELED && self.shared.control.stopped();
        if cancelled {
            self.shared.cut_short.store(true, Ordering::Release);
        }
        cancelled
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
        // SAFETY: the slot's read has completed; writes of other pieces touch no more than their own ranges,
        // of which nothing is looked at here.
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
        let memory = self.arena.memory(self.place(index, at));
        let slot = &mut self.slots[usize::from(index)];
        slot.written_bytes += u64::from(length);
        slot.writes += 1;
        self.begin_piece(index, SinkOperation::Write, at, padded, memory, piece);
    }

    fn begin_found_zero(&mut self, index: u16, at: u32, length: u32, piece: &mut u16) {
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        slot.zero_found_bytes += u64::from(length);
        if task.options.skip_zeros {
            return;
        }
        slot.zeroes += 1;
        self.begin_piece(index, SinkOperation::Hole, at, length, Memory::NONE, piece);
    }

    fn begin_piece(
        &mut self,
        index: u16,
        kind: SinkOperation,
        at: u32,
        length: u32,
        memory: Memory,
        piece: &mut u16,
    ) {
        let slot = &mut self.slots[usize::from(index)];
        slot.outstanding += 1;
        let operation = LaneOperation {
            kind: OperationKind::Sink(kind),
            slot: index,
            piece: *piece,
            offset: slot.start + u64::from(at),
            length: u64::from(length),
            memory,
        };
        *piece += 1;
        let lane = slot.task * 2 + 1;
        self.begin(lane, operation);
    }

    fn on_written(&mut self, index: u16, result: std::result::Result<u64, Fault>) {
        let cancelled = result.is_err_and(|fault| self.is_cancelled(fault));
        let slot = &mut self.slots[usize::from(index)];
        let task = &self.shared.tasks[slot.task];
        if let Err(fault) = result {
            slot.failed = true;
            let operation = if slot.segments.is_empty() { Operation::Zero } else { Operation::Write };
            if !cancelled {
                task.fail(Error::os(operation, task.sink.label(), fault.errno).offset(fault.offset));
            }
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
            let counters = self.shared.tasks[slot.task].counters;
            let zeros = if slot.segments.is_empty() { slot.length } else { slot.zero_found_bytes };
            Counters::add(&counters.written_bytes, slot.written_bytes);
            Counters::add(&counters.writes, slot.writes);
            Counters::add(&counters.zero_bytes, zeros);
            Counters::add(&counters.zero_found_bytes, slot.zero_found_bytes);
            Counters::add(&counters.zeroes, slot.zeroes);
            if slot.segments.is_empty() {
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
        self.with_lane(lane, |lane, io| lane.abandon(io));
    }

    // ---- the end -------------------------------------------------------------------------------------------

    /// No work is left and no slot is busy: lanes finish, and what they have in flight is waited for.
    fn end(mut self) -> WorkerStats {
        if !self.shared.cut_short.load(Ordering::Acquire) {
            self.finish_lanes();
        }
        loop {
            self.drain();
            self.cancel_what_waits();
            if self.fatal.is_some() {
                return self.give_up();
            }
            if self.ring.in_flight() > 0 {
                if let Err(error) = self.ring.wait(Duration::from_millis(limits::WAIT_MS)) {
                    self.fatal = Some(error);
                }
            } else if !self.lanes_wait() {
                return std::mem::take(&mut self.stats);
            } else {
                std::thread::sleep(LANE_NAP);
            }
        }
    }

    fn finish_lanes(&mut self) {
        for index in 0..self.lanes.len() {
            if !self.shared.tasks[index / 2].failed() {
                self.finishing[index] = true;
                self.with_lane(index, |lane, io| lane.finish(io));
            }
        }
    }

    /// Whether a lane that was told to finish waits for something outside the ring. Neither one of a failed
    /// task is waited for, nor any when the run is stopped: then its work is left undone.
    fn lanes_wait(&self) -> bool {
        let wait = self.lanes.iter().enumerate().any(|(index, lane)| {
            self.finishing[index] && !self.shared.tasks[index / 2].failed() && !lane.is_idle()
        });
        if wait && self.shared.control.stopped() {
            self.shared.cut_short.store(true, Ordering::Release);
            return false;
        }
        wait
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
    /// gets time to end, and after that ring, arena and lanes are given up for good.
    fn drop(&mut self) {
        let begin = Instant::now();
        while self.ring.in_flight() > 0 && begin.elapsed() < DRAIN_LIMIT {
            if self.ring.wait(Duration::from_millis(limits::WAIT_MS)).is_err() {
                std::thread::sleep(Duration::from_millis(10));
            }
            while self.ring.pop().is_some() {}
        }
        if self.ring.in_flight() == 0 {
            // SAFETY: none is used after this; the ring goes first, as it knows the others' buffers.
            unsafe {
                ManuallyDrop::drop(&mut self.ring);
                ManuallyDrop::drop(&mut self.arena);
                ManuallyDrop::drop(&mut self.lanes);
            }
        }
    }
}
