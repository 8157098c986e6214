//! A source and a sink that write down what they are asked, finish when they are told to, and fail on
//! demand; and a rig that runs the engine over them.
//!
//! What a source holds is a function of the offset, so that disks of any size can be checked byte for byte
//! without memory: a write is compared with the source's content when it begins.
#![allow(dead_code)] // several test crates use it, each in part

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::ThreadId;
use std::time::Duration;

use mover_engine::lane::{Fault, LaneOperation, OperationKind, SinkOperation};
use mover_engine::pattern::SplitMix;
use mover_engine::ring::{FileId, Submission, Token, Verb};
use mover_engine::stats::Counters;
use mover_engine::{
    Access, Alignment, Backend, Control, Io, Lane, LaneSetup, Order, Rate, ReadErrors, Recorder, Report,
    Segment, Settings, Sink, Source, Task, TaskOptions, run,
};
use mover_model::event::Moved;
use mover_model::{Error, ErrorKind, Extent, ExtentKind, Result};

pub const K: u64 = 1 << 10;
pub const M: u64 = 1 << 20;
pub const G: u64 = 1 << 30;

/// What a lane was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verbs {
    Read,
    Write,
    Hole,
    Zero,
}

/// One operation in a log, without where its buffer lay and who asked.
pub type Op = (Verbs, u64, u64);

pub fn read(start: u64, length: u64) -> Op {
    (Verbs::Read, start, length)
}
pub fn write(start: u64, length: u64) -> Op {
    (Verbs::Write, start, length)
}
pub fn hole(start: u64, length: u64) -> Op {
    (Verbs::Hole, start, length)
}
pub fn zero(start: u64, length: u64) -> Op {
    (Verbs::Zero, start, length)
}
pub const fn data(start: u64, length: u64) -> Extent {
    Extent::data(start, length)
}
pub const fn empty(start: u64, length: u64, kind: ExtentKind) -> Extent {
    Extent::new(start, length, kind)
}

/// One operation as a lane got it.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub op: Op,
    pub address: usize,
    pub slot: u16,
    pub thread: ThreadId,
}

/// When a lane ends its operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In `begin`.
    AtOnce,
    /// Later, in an order that follows from the seed: completions of empty reads on the worker's own ring
    /// each end one of the operations that wait, or none.
    Shuffled(u64),
}

/// What a source holds.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Ranges of zeros; everything else is a pattern without a zero byte.
    pub zeros: Vec<Range<u64>>,
}

impl Content {
    pub fn fill(&self, start: u64, bytes: &mut [u8]) {
        for (offset, byte) in (start..).zip(bytes.iter_mut()) {
            *byte = (offset ^ (offset >> 7) ^ (offset >> 15)) as u8 | 1;
        }
        let end = start + bytes.len() as u64;
        for zeros in &self.zeros {
            let (from, to) = (zeros.start.clamp(start, end), zeros.end.clamp(start, end));
            bytes[(from - start) as usize..(to - start) as usize].fill(0);
        }
    }

    pub fn bytes(&self, start: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.fill(start, &mut bytes);
        bytes
    }
}

/// The most that a worker had in flight on both of its lanes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Flight {
    pub requests: usize,
    pub bytes: u64,
}

/// A buffer in flight: the slot, where it lies and how long it is.
type Buffer = (u16, usize, u64);

type Hook = Box<dyn Fn(&Op) + Send + Sync>;

/// Everything that a source, a sink and their lanes share.
pub struct State {
    pub content: Content,
    pub calls: Mutex<Vec<Call>>,
    /// Offsets of writes whose bytes were not the content's.
    pub wrong: Mutex<Vec<u64>>,
    /// What was written, where a test wants to look at it: set it to an empty one before the run.
    pub stored: Mutex<Option<Vec<u8>>>,
    flight: Mutex<HashMap<ThreadId, Vec<Buffer>>>,
    /// Buffers that were in flight twice.
    pub shared: Mutex<Vec<Op>>,
    peak: Mutex<Flight>,
    hook: Option<Hook>,
    lanes: AtomicUsize,
}

impl State {
    fn begin(&self, operation: &LaneOperation, op: Op) {
        let thread = std::thread::current().id();
        let call = Call { op, address: operation.memory.address() as usize, slot: operation.slot, thread };
        self.calls.lock().unwrap().push(call);
        if matches!(op.0, Verbs::Read | Verbs::Write) {
            let mut flight = self.flight.lock().unwrap();
            let flight = flight.entry(thread).or_default();
            let (slot, from) = (operation.slot, operation.memory.address() as usize);
            let to = from + op.2 as usize;
            if flight
                .iter()
                .any(|&(other, at, length)| other != slot && at < to && from < at + length as usize)
            {
                self.shared.lock().unwrap().push(op);
            }
            flight.push((slot, from, op.2));
            let mut peak = self.peak.lock().unwrap();
            peak.requests = peak.requests.max(flight.len());
            peak.bytes = peak.bytes.max(flight.iter().map(|buffer| buffer.2).sum());
        }
        if let Some(hook) = &self.hook {
            hook(&op);
        }
    }

    fn end(&self, operation: &LaneOperation, op: Op) {
        if matches!(op.0, Verbs::Read | Verbs::Write) {
            let mut flight = self.flight.lock().unwrap();
            let flight = flight.entry(std::thread::current().id()).or_default();
            let buffer = (operation.slot, operation.memory.address() as usize, op.2);
            let index = flight.iter().position(|&other| other == buffer).expect("it was begun");
            flight.swap_remove(index);
        }
    }

    /// The most that one worker had in flight.
    pub fn peak(&self) -> Flight {
        *self.peak.lock().unwrap()
    }

    pub fn ops(&self) -> Vec<Op> {
        self.calls.lock().unwrap().iter().map(|call| call.op).collect()
    }

    pub fn ops_of(&self, verb: Verbs) -> Vec<Op> {
        self.ops().into_iter().filter(|op| op.0 == verb).collect()
    }

    /// In order of their offset, whoever was first.
    pub fn sorted(&self, verb: Verbs) -> Vec<Op> {
        let mut ops = self.ops_of(verb);
        ops.sort_unstable();
        ops
    }

    /// Number of lanes that were asked for.
    pub fn lanes(&self) -> usize {
        self.lanes.load(Ordering::Relaxed)
    }
}

/// One end of a run, as a source or as a sink.
pub struct End {
    pub name: &'static str,
    pub state: Arc<State>,
    pub size: Option<u64>,
    /// Where reads find the end, where that is not the size.
    pub cut: Option<u64>,
    pub order: Order,
    pub alignment: Alignment,
    pub ending: Ending,
    /// Operations that touch the range end in the errno.
    pub faults: Vec<(Range<u64>, i32)>,
    /// Operations that touch the offset panic.
    pub panic_at: Option<u64>,
    /// How many lanes can be had before asking for one is an error.
    pub lanes_max: usize,
}

impl End {
    fn make_lane(&self, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        let number = self.state.lanes.fetch_add(1, Ordering::Relaxed);
        if number >= self.lanes_max {
            return Err(Error::new(ErrorKind::Unreachable, "no more lanes").at(self.name));
        }
        let (mut seed, mut ticker) = (0, None);
        if let Ending::Shuffled(given) = self.ending {
            let null = File::open("/dev/null").expect("/dev/null");
            seed = given ^ (number as u64) << 32;
            ticker = Some((setup.add_file(null.as_fd(), false), null));
        }
        Ok(Box::new(RecordingLane {
            state: self.state.clone(),
            held: Vec::new(),
            random: SplitMix::new(seed),
            end: self.cut.or(self.size),
            faults: self.faults.clone(),
            panic_at: self.panic_at,
            ticker,
        }))
    }
}

impl Source for End {
    fn label(&self) -> String {
        self.name.to_owned()
    }
    fn size(&self) -> Option<u64> {
        self.size
    }
    fn order(&self) -> Order {
        self.order
    }
    fn access(&self) -> Access {
        Access::Direct
    }
    fn alignment(&self, _: Access) -> Alignment {
        self.alignment
    }
    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        Ok(Box::new(self.size.into_iter().map(|size| Ok(data(0, size)))))
    }
    fn lane(&self, _: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        self.make_lane(setup)
    }
}

impl Sink for End {
    fn label(&self) -> String {
        self.name.to_owned()
    }
    fn capacity(&self) -> Option<u64> {
        self.size
    }
    fn order(&self) -> Order {
        self.order
    }
    fn access(&self) -> Access {
        Access::Direct
    }
    fn alignment(&self, _: Access) -> Alignment {
        self.alignment
    }
    fn reads_zero(&self) -> bool {
        false
    }
    fn lane(&self, _: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        self.make_lane(setup)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn finish(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

struct RecordingLane {
    state: Arc<State>,
    held: Vec<(LaneOperation, Op)>,
    random: SplitMix,
    end: Option<u64>,
    faults: Vec<(Range<u64>, i32)>,
    panic_at: Option<u64>,
    /// Kept open as long as the ring knows it: lanes are dropped after the ring.
    ticker: Option<(FileId, File)>,
}

impl RecordingLane {
    fn tick(&self, io: &mut Io<'_>) {
        let Some((file, _)) = &self.ticker else { return };
        io.push(
            0,
            Submission {
                verb: Verb::Read,
                file: *file,
                memory: io.zeros(),
                length: 0,
                offset: 0,
                token: Token { lane: 0, aux: 0 },
            },
        );
    }

    /// Does the operation and ends it.
    fn perform(&mut self, operation: &LaneOperation, op: Op, io: &mut Io<'_>) {
        self.state.end(operation, op);
        let (verb, start, length) = op;
        let range = start..start + length;
        let touches = |other: &Range<u64>| range.start < other.end && other.start < range.end;
        if let Some((fault, errno)) = self.faults.iter().find(|(fault, _)| touches(fault)) {
            let offset = fault.start.max(start);
            return io.finish(operation, Err(Fault { errno: *errno, offset }));
        }
        match verb {
            Verbs::Read => {
                let done = length.min(self.end.unwrap_or(u64::MAX).saturating_sub(start));
                // SAFETY: the buffer belongs to this read until it is finished.
                let bytes =
                    unsafe { std::slice::from_raw_parts_mut(operation.memory.address(), done as usize) };
                self.state.content.fill(start, bytes);
                io.finish(operation, Ok(done));
            }
            Verbs::Write => {
                // SAFETY: the buffer belongs to this write until it is finished, and nobody writes to it.
                let bytes =
                    unsafe { std::slice::from_raw_parts(operation.memory.address(), length as usize) };
                if bytes != self.state.content.bytes(start, length) {
                    self.state.wrong.lock().unwrap().push(start);
                }
                if let Some(stored) = &mut *self.state.stored.lock().unwrap() {
                    let least = stored.len().max(range.end as usize);
                    stored.resize(least, 0);
                    stored[start as usize..range.end as usize].copy_from_slice(bytes);
                }
                io.finish(operation, Ok(length));
            }
            Verbs::Hole | Verbs::Zero => io.finish(operation, Ok(length)),
        }
    }
}

impl Lane for RecordingLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        let verb = match operation.kind {
            OperationKind::Read => Verbs::Read,
            OperationKind::Sink(SinkOperation::Write) => Verbs::Write,
            OperationKind::Sink(SinkOperation::Hole) => Verbs::Hole,
            OperationKind::Sink(SinkOperation::Zero) => Verbs::Zero,
        };
        let op = (verb, operation.offset, operation.length);
        self.state.begin(&operation, op);
        let range = operation.offset..operation.offset + operation.length;
        assert!(!self.panic_at.is_some_and(|at| range.contains(&at)), "a lane panics, as it was told");
        if self.ticker.is_some() {
            self.held.push((operation, op));
            self.tick(io);
        } else {
            self.perform(&operation, op, io);
        }
    }

    fn advance(&mut self, _: u32, _: i32, io: &mut Io<'_>) {
        // Each tick ends one operation or is followed by another tick: as many of one as of the other.
        if self.random.below(3) == 0 {
            return self.tick(io);
        }
        let index = self.random.below(self.held.len() as u64) as usize;
        let (operation, op) = self.held.swap_remove(index);
        self.perform(&operation, op, io);
    }
}

/// A run over recording ends, to be changed before it starts.
pub struct Rig {
    pub settings: Settings,
    pub options: TaskOptions,
    pub control: Arc<Control>,
    pub rate: Option<Rate>,
    pub source: End,
    pub sink: End,
}

/// Options that move everything as it is.
pub const PLAIN: TaskOptions = TaskOptions {
    source_access: Access::Direct,
    sink_access: Access::Direct,
    zero_run: None,
    skip_zeros: false,
    keep_allocated: false,
    digest: false,
    join_gap: 0,
    read_errors: ReadErrors::Fail,
};

impl Rig {
    /// One worker, one request at a time, all operations ended at once: then the log is in order.
    pub fn new(block_size: u64) -> Rig {
        Rig::with(block_size, Content::default(), None)
    }

    /// With zeros in the data.
    pub fn zeros(block_size: u64, zeros: &[Range<u64>]) -> Rig {
        Rig::with(block_size, Content { zeros: zeros.to_vec() }, None)
    }

    /// With a look at each operation as it begins.
    pub fn hooked(block_size: u64, hook: impl Fn(&Op) + Send + Sync + 'static) -> Rig {
        Rig::with(block_size, Content::default(), Some(Box::new(hook)))
    }

    fn with(block_size: u64, content: Content, hook: Option<Hook>) -> Rig {
        let state = Arc::new(State {
            content,
            calls: Mutex::default(),
            wrong: Mutex::default(),
            shared: Mutex::default(),
            stored: Mutex::default(),
            flight: Mutex::default(),
            peak: Mutex::default(),
            hook,
            lanes: AtomicUsize::new(0),
        });
        let end = |name, size| End {
            name,
            state: state.clone(),
            size,
            cut: None,
            order: Order::Any,
            alignment: Alignment { offset: 512, memory: 512 },
            ending: Ending::AtOnce,
            faults: Vec::new(),
            panic_at: None,
            lanes_max: usize::MAX,
        };
        Rig {
            settings: Settings {
                block_size: block_size as u32,
                queue_depth: 1,
                workers: 1,
                backend: Backend::Sync,
                ..Settings::default()
            },
            options: PLAIN,
            control: Arc::default(),
            rate: None,
            source: end("source", Some(i64::MAX as u64)),
            sink: end("sink", None),
        }
    }

    pub fn run(self, extents: &[Extent]) -> Ended {
        let extents: Vec<_> = extents.iter().copied().map(Ok).collect();
        self.run_list(Box::new(extents.into_iter()))
    }

    pub fn run_list(self, extents: Box<dyn Iterator<Item = Result<Extent>> + Send>) -> Ended {
        let Rig { settings, options, control, rate, source, sink } = self;
        let state = source.state.clone();
        let outcome = move_between(&settings, options, &control, rate.as_ref(), &source, &sink, extents);
        Ended { state, control, outcome }
    }
}

/// How a rig's run ended.
pub struct Ended {
    pub state: Arc<State>,
    pub control: Arc<Control>,
    pub outcome: Moves,
}

impl Ended {
    /// Everything, in order.
    pub fn ops(&self) -> Vec<Op> {
        self.state.ops()
    }

    /// It went well, and what was written is what was read.
    pub fn good(self) -> Ended {
        assert!(self.outcome.error().is_none(), "{:?}", self.outcome.error());
        assert_eq!(*self.state.wrong.lock().unwrap(), [0_u64; 0], "writes of wrong bytes");
        assert_eq!(*self.state.shared.lock().unwrap(), [], "one buffer, two requests");
        self
    }
}

/// What one task did.
pub struct Moves {
    pub report: Report,
    pub moved: Moved,
    /// In order of their start.
    pub segments: Vec<Segment>,
    pub bad: Vec<(u64, u64, i32)>,
}

impl Moves {
    pub fn error(&self) -> Option<&Error> {
        self.report.outcomes[0].error.as_ref()
    }
}

/// Recorders of all workers, gathered.
#[derive(Default)]
pub struct Notes {
    pub segments: Mutex<Vec<Segment>>,
    pub bad: Mutex<Vec<(u64, u64, i32)>>,
}

pub struct NoteTaker<'a>(pub &'a Notes);

impl Recorder for NoteTaker<'_> {
    fn finished(&mut self, segment: &Segment) {
        self.0.segments.lock().unwrap().push(*segment);
    }
    fn bad(&mut self, start: u64, length: u64, errno: i32) {
        self.0.bad.lock().unwrap().push((start, length, errno));
    }
}

/// Moves extents between any two ends.
pub fn move_between(
    settings: &Settings,
    options: TaskOptions,
    control: &Control,
    rate: Option<&Rate>,
    source: &dyn Source,
    sink: &dyn Sink,
    extents: Box<dyn Iterator<Item = Result<Extent>> + Send + '_>,
) -> Moves {
    let (counters, notes) = (Counters::default(), Notes::default());
    let recorder = Box::new(|| Box::new(NoteTaker(&notes)) as Box<dyn Recorder>);
    let task = Task { source, sink, extents, options, counters: &counters, recorder };
    let report = run(settings, vec![task], control, rate);
    let moved = counters.moved();
    let mut segments = notes.segments.into_inner().unwrap();
    segments.sort_unstable_by_key(|segment| segment.start);
    let mut bad = notes.bad.into_inner().unwrap();
    bad.sort_unstable();
    Moves { report, moved, segments, bad }
}

/// The backends that can be had here. Without io_uring its half is left out, and said so.
#[expect(clippy::print_stderr, reason = "shown by the test harness when the test fails, or on demand")]
pub fn backends() -> Vec<Backend> {
    match mover_engine::capability::probe_uring() {
        Ok(_) => vec![Backend::Sync, Backend::Uring],
        Err(reason) => {
            eprintln!("SKIP io_uring: {reason}");
            vec![Backend::Sync]
        }
    }
}

/// Runs it on a thread of its own, and fails the test when it has not ended after a while: a hang shall
/// not look like a slow test. Its panic is passed on.
pub fn must_end<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    const PATIENCE: Duration = Duration::from_secs(60);
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = what();
        // Nobody waits any more when the time was up.
        let _ = sender.send(result);
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it sends before it ends"),
        },
    }
}
