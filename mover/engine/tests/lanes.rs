//! Lanes that do more than pass operations on: they gather them in scratch memory, write files of their own
//! that they open on the way, share what they know with the worker's other lanes, and finish at the end.

mod recording;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mover_engine::lane::{Fault, LaneOperation, OperationKind, SinkOperation};
use mover_engine::ring::{FileId, Submission, Token, Verb};
use mover_engine::stats::Counters;
use mover_engine::{
    Access, Alignment, Backend, Control, Io, Lane, LaneSetup, Rate, Recorder, Report, Scratch, Settings,
    Sink, Source, Task, run,
};
use mover_model::event::Moved;
use mover_model::{Error, ErrorKind, Extent, Result};
use recording::{Content, K, M, NoteTaker, Notes, PLAIN, Rig, Verbs, backends, data, move_between, must_end};

/// A file without a name.
fn nameless() -> File {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("mover-lanes-{}-{number}", std::process::id()));
    let options = File::options().read(true).write(true).create_new(true).open(&path);
    let file = options.expect("a temporary file");
    std::fs::remove_file(&path).expect("it was just made");
    file
}

fn submission(verb: Verb, file: FileId, memory: mover_engine::arena::Memory, length: usize) -> Submission {
    Submission { verb, file, memory, length: length as u64, offset: 0, token: Token { lane: 0, aux: 0 } }
}

// ---- a sink that gathers --------------------------------------------------------------------------------

/// Where a piece of a task went.
struct Place {
    task: usize,
    offset: u64,
    length: u64,
    pack: u64,
    at: u64,
}

/// What a test sees of its gathering sinks.
#[derive(Default)]
struct Store {
    packs: Mutex<Vec<(u64, File)>>,
    places: Mutex<Vec<Place>>,
    numbers: AtomicU64,
    /// Operations that had to wait for the scratch memory.
    held_back: AtomicUsize,
    made: AtomicUsize,
    finished: AtomicUsize,
}

/// How a gathering sink fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    Never,
    /// At the operation with this offset, with an error of its own and a fault after it.
    At(u64),
    /// When it writes its third pack, which the kernel refuses.
    Pack,
    /// In its finish.
    Finish,
}

/// Bytes of a gathering sink's scratch memory: two blocks and a half.
const GATHERED: usize = 40 << 10;

struct Gather {
    store: Arc<Store>,
    /// What it says that its lanes ask for.
    reserve: usize,
    failing: Failing,
}

impl Gather {
    fn new(store: &Arc<Store>) -> Gather {
        Gather { store: store.clone(), reserve: GATHERED, failing: Failing::Never }
    }
}

/// What the lanes of one worker gather in.
struct Gathered {
    store: Arc<Store>,
    scratch: Scratch,
    file: FileId,
    /// Number of the pack that is gathered or in flight.
    number: u64,
    /// The pack in flight, kept open until it is written.
    pack: Option<File>,
    /// The one before, where it is still in the ring's table.
    last: Option<File>,
    used: usize,
    waiting: VecDeque<(usize, LaneOperation)>,
    tasks: Vec<usize>,
    closing: bool,
    refused: bool,
    failed: bool,
}

impl Gathered {
    fn pump(&mut self, io: &mut Io<'_>) {
        while self.pack.is_none()
            && let Some((task, operation)) = self.waiting.pop_front()
        {
            let length = operation.length as usize;
            if self.failed {
                io.finish_failed(&operation);
                continue;
            }
            if self.used + length > self.scratch.length() {
                self.waiting.push_front((task, operation));
                self.write(io);
                break;
            }
            // Changed in place first, as a sink that encrypts would.
            io.bytes(&operation).iter_mut().for_each(|byte| *byte ^= 0x33);
            let part = self.scratch.part(self.used, length);
            let (bytes, scratch) = io.bytes_and_scratch(&operation, &part);
            scratch.copy_from_slice(bytes);
            io.count_copied(operation.length);
            self.store.places.lock().unwrap().push(Place {
                task,
                offset: operation.offset,
                length: operation.length,
                pack: self.number,
                at: self.used as u64,
            });
            self.used += length;
            io.finish(&operation, Ok(operation.length));
        }
        if self.closing && self.pack.is_none() && self.used > 0 && !self.failed {
            self.write(io);
        }
    }

    fn write(&mut self, io: &mut Io<'_>) {
        let file = nameless();
        let mut given = file.try_clone().unwrap();
        if self.refused && self.number == 2 {
            // Open for reading only.
            given = File::open("/dev/null").unwrap();
        }
        io.set_file(self.file, given.as_fd(), false);
        let memory = io.scratch_memory(&self.scratch, 0);
        io.push(7, submission(Verb::Write, self.file, memory, self.used));
        self.store.packs.lock().unwrap().push((self.number, file));
        self.pack = Some(given);
    }

    fn written(&mut self, result: i32, io: &mut Io<'_>) {
        let given = self.pack.take().expect("a pack is in flight");
        if result != self.used as i32 {
            self.failed = true;
            for &task in &self.tasks {
                io.fail_task(task, Error::new(ErrorKind::Full, "a pack was not written").at("store"));
            }
        }
        self.used = 0;
        if self.number.is_multiple_of(2) {
            io.clear_file(self.file);
        } else {
            // Stays open until its place is given another, or the run has ended.
            self.last = Some(given);
        }
        self.number = self.store.numbers.fetch_add(1, Ordering::Relaxed);
        self.pump(io);
    }
}

struct GatherLane {
    task: usize,
    failing: Failing,
    store: Arc<Store>,
    shared: Rc<RefCell<Gathered>>,
}

impl Sink for Gather {
    fn label(&self) -> String {
        "gather".to_owned()
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
    fn scratch_bytes(&self, settings: &Settings) -> usize {
        assert!(settings.block_size as usize <= GATHERED);
        self.reserve
    }
    fn reads_zero(&self) -> bool {
        true
    }
    fn lane(&self, _: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        let key = Arc::as_ptr(&self.store) as usize;
        let shared = setup.worker_state(key, |setup| {
            self.store.made.fetch_add(1, Ordering::Relaxed);
            assert!(setup.worker() < setup.settings().workers);
            Ok(Gathered {
                store: self.store.clone(),
                scratch: setup.scratch(GATHERED)?,
                file: setup.reserve_file(),
                number: self.store.numbers.fetch_add(1, Ordering::Relaxed),
                pack: None,
                last: None,
                used: 0,
                waiting: VecDeque::new(),
                tasks: Vec::new(),
                closing: false,
                refused: self.failing == Failing::Pack,
                failed: false,
            })
        })?;
        shared.borrow_mut().tasks.push(setup.task());
        Ok(Box::new(GatherLane {
            task: setup.task(),
            failing: self.failing,
            store: self.store.clone(),
            shared,
        }))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn finish(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

impl Lane for GatherLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        assert_eq!(operation.kind, OperationKind::Sink(SinkOperation::Write));
        if self.failing == Failing::At(operation.offset) {
            io.fail(Error::new(ErrorKind::WrongIdentity, "this is another's").at("store"));
            return io.finish(&operation, Err(Fault { errno: libc::EIO, offset: operation.offset }));
        }
        let mut shared = self.shared.borrow_mut();
        if shared.pack.is_some() {
            self.store.held_back.fetch_add(1, Ordering::Relaxed);
        }
        shared.waiting.push_back((self.task, operation));
        shared.pump(io);
    }

    fn advance(&mut self, aux: u32, result: i32, io: &mut Io<'_>) {
        assert_eq!(aux, 7);
        self.shared.borrow_mut().written(result, io);
    }

    fn finish(&mut self, io: &mut Io<'_>) {
        self.store.finished.fetch_add(1, Ordering::Relaxed);
        if self.failing == Failing::Finish {
            return io.fail(Error::new(ErrorKind::Full, "no room for the end").at("store"));
        }
        let mut shared = self.shared.borrow_mut();
        shared.closing = true;
        shared.pump(io);
    }
}

struct Group {
    report: Report,
    moved: Vec<Moved>,
    store: Arc<Store>,
}

impl Group {
    fn error(&self, task: usize) -> Option<&Error> {
        self.report.outcomes[task].error.as_ref()
    }

    fn expect_stored(&self, task: usize, bytes: u64) {
        let packs = self.store.packs.lock().unwrap();
        let places = self.store.places.lock().unwrap();
        let mut places: Vec<_> = places.iter().filter(|place| place.task == task).collect();
        places.sort_unstable_by_key(|place| place.offset);
        let mut position = 0;
        for place in places {
            assert_eq!(place.offset, position, "without gaps");
            position += place.length;
            let (_, file) = packs.iter().find(|pack| pack.0 == place.pack).expect("it was written");
            let mut stored = vec![0; place.length as usize];
            file.read_exact_at(&mut stored, place.at).unwrap();
            stored.iter_mut().for_each(|byte| *byte ^= 0x33);
            assert!(stored == Content::default().bytes(place.offset, place.length), "at {}", place.offset);
        }
        assert_eq!(position, bytes);
    }
}

/// One worker moves a task into each sink; sinks of one store share their scratch memory.
fn gather(
    settings: &Settings,
    sinks: &[Gather],
    bytes: u64,
    control: &Control,
    rate: Option<&Rate>,
) -> Group {
    gather_hooked(settings, sinks, bytes, control, rate, || {})
}

fn gather_hooked(
    settings: &Settings,
    sinks: &[Gather],
    bytes: u64,
    control: &Control,
    rate: Option<&Rate>,
    hook: impl Fn() + Send + Sync + Clone + 'static,
) -> Group {
    let rigs: Vec<_> = sinks
        .iter()
        .map(|_| {
            let hook = hook.clone();
            Rig::hooked(16 * K, move |_| hook())
        })
        .collect();
    let counters: Vec<_> = sinks.iter().map(|_| Counters::default()).collect();
    let notes = Notes::default();
    let tasks = sinks.iter().zip(&rigs).zip(&counters).map(|((sink, rig), counters)| Task {
        source: &rig.source,
        sink,
        extents: Box::new(std::iter::once(Ok(data(0, bytes)))),
        options: PLAIN,
        counters,
        recorder: Box::new(|| Box::new(NoteTaker(&notes)) as Box<dyn Recorder>),
    });
    let report = run(settings, tasks.collect(), control, rate);
    let moved = counters.iter().map(Counters::moved).collect();
    Group { report, moved, store: sinks[0].store.clone() }
}

fn settings(backend: Backend) -> Settings {
    Settings { block_size: 16 * K as u32, queue_depth: 8, workers: 1, backend, ..Settings::default() }
}

#[test]
fn operations_are_gathered_in_scratch_and_the_rest_is_written_at_the_end() {
    for (backend, register) in backends().into_iter().flat_map(|b| [(b, true), (b, false)]) {
        let group = must_end(move || {
            let store = Arc::default();
            let settings = Settings { register, ..settings(backend) };
            gather(&settings, &[Gather::new(&store)], M + 9000, &Control::new(), None)
        });
        assert!(group.error(0).is_none(), "{:?}", group.error(0));
        assert!(!group.report.cut_short);
        group.expect_stored(0, M + 9000);
        assert_eq!(group.moved[0].copied_bytes, M + 9000);
        assert_eq!(group.moved[0].written_bytes, M + 9000);
        let store = &group.store;
        // Two blocks in each, and one more for the rest that only the finish writes.
        assert_eq!(store.packs.lock().unwrap().len(), 33);
        assert!(store.held_back.load(Ordering::Relaxed) > 0);
        assert_eq!(store.finished.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn what_a_lane_has_in_flight_of_its_own_goes_on_while_the_worker_has_nothing_to_do() {
    for backend in backends() {
        let group = must_end(move || {
            let rate = Rate::new(4 * M);
            gather(&settings(backend), &[Gather::new(&Arc::default())], M, &Control::new(), Some(&rate))
        });
        assert!(group.error(0).is_none(), "{:?}", group.error(0));
        group.expect_stored(0, M);
    }
}

#[test]
fn two_tasks_share_what_they_gather_in() {
    for backend in backends() {
        let group = must_end(move || {
            let store = Arc::default();
            // Only the first asks for the memory.
            let second = Gather { reserve: 0, ..Gather::new(&store) };
            gather(&settings(backend), &[Gather::new(&store), second], M, &Control::new(), None)
        });
        assert!(group.error(0).is_none() && group.error(1).is_none());
        group.expect_stored(0, M);
        group.expect_stored(1, M);
        assert_eq!(group.store.made.load(Ordering::Relaxed), 1);
        assert_eq!(group.store.finished.load(Ordering::Relaxed), 2);
        assert_eq!(group.moved.iter().map(|moved| moved.copied_bytes).sum::<u64>(), 2 * M);
    }
}

#[test]
fn workers_gather_each_in_their_own() {
    for backend in backends() {
        let group = must_end(move || {
            let settings = Settings { workers: 3, ..settings(backend) };
            gather(&settings, &[Gather::new(&Arc::default())], 8 * M, &Control::new(), None)
        });
        assert!(group.error(0).is_none(), "{:?}", group.error(0));
        group.expect_stored(0, 8 * M);
        assert_eq!(group.store.made.load(Ordering::Relaxed), 3);
        assert_eq!(group.store.finished.load(Ordering::Relaxed), 3);
    }
}

// ---- errors of a lane's own -----------------------------------------------------------------------------

#[test]
fn a_lane_fails_its_task_in_its_own_words() {
    for backend in backends() {
        let group = must_end(move || {
            let store = Arc::default();
            let failing = Gather { failing: Failing::At(160 * K), ..Gather::new(&store) };
            let other = Gather { reserve: 0, ..Gather::new(&store) };
            gather(&settings(backend), &[failing, other], M, &Control::new(), None)
        });
        let error = group.error(0).expect("the task fails");
        assert_eq!((error.kind(), error.message()), (ErrorKind::WrongIdentity, "this is another's"));
        // The other goes on, and is finished; the failed one is not.
        assert!(group.error(1).is_none(), "{:?}", group.error(1));
        group.expect_stored(1, M);
        assert_eq!(group.store.finished.load(Ordering::Relaxed), 1);
        assert!(!group.report.cut_short);
    }
}

#[test]
fn what_lanes_share_fails_the_tasks_of_all_of_them() {
    for (backend, register) in backends().into_iter().flat_map(|b| [(b, true), (b, false)]) {
        let group = must_end(move || {
            let store = Arc::default();
            let failing = Gather { failing: Failing::Pack, ..Gather::new(&store) };
            let other = Gather { reserve: 0, ..Gather::new(&store) };
            let settings = Settings { register, ..settings(backend) };
            gather(&settings, &[failing, other], M, &Control::new(), None)
        });
        for task in 0..2 {
            let error = group.error(task).expect("the task fails");
            assert_eq!((error.kind(), error.message()), (ErrorKind::Full, "a pack was not written"));
        }
        assert_eq!(group.store.finished.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_finish_that_fails_fails_its_task() {
    for backend in backends() {
        let group = must_end(move || {
            let store = Arc::default();
            let failing = Gather { failing: Failing::Finish, ..Gather::new(&store) };
            let other = Gather { reserve: 0, ..Gather::new(&store) };
            gather(&settings(backend), &[failing, other], M, &Control::new(), None)
        });
        let error = group.error(0).expect("the task fails");
        assert_eq!((error.kind(), error.message()), (ErrorKind::Full, "no room for the end"));
        assert!(group.error(1).is_none());
        group.expect_stored(1, M);
        assert_eq!(group.store.finished.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn more_scratch_memory_than_was_reserved_is_an_error() {
    for backend in backends() {
        let group = must_end(move || {
            let greedy = Gather { reserve: GATHERED - 4096, ..Gather::new(&Arc::default()) };
            gather(&settings(backend), &[greedy], M, &Control::new(), None)
        });
        let error = group.error(0).expect("the run fails");
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.message().contains("scratch memory"), "{error}");
    }
}

// ---- a stop ---------------------------------------------------------------------------------------------

#[test]
fn a_run_that_is_stopped_finishes_no_lane() {
    for backend in backends() {
        let group = must_end(move || {
            let control = Arc::new(Control::new());
            let (stopper, begun) = (control.clone(), Arc::new(AtomicU64::new(0)));
            let hook = move || {
                if begun.fetch_add(1, Ordering::Relaxed) == 20 {
                    stopper.stop();
                }
            };
            let sinks = [Gather::new(&Arc::default())];
            gather_hooked(&settings(backend), &sinks, 1 << 40, &control, None, hook)
        });
        assert!(group.report.cut_short);
        assert!(group.error(0).is_none(), "{:?}", group.error(0));
        assert_eq!(group.store.finished.load(Ordering::Relaxed), 0);
        let packs = group.store.packs.lock().unwrap().len();
        assert!((10..16).contains(&packs), "{packs} packs: what was read was gathered");
    }
}

#[test]
fn a_stop_that_leaves_nothing_undone_lets_lanes_finish() {
    for backend in backends() {
        let group = must_end(move || {
            let control = Arc::new(Control::new());
            let (stopper, begun) = (control.clone(), Arc::new(AtomicU64::new(0)));
            let hook = move || {
                if begun.fetch_add(1, Ordering::Relaxed) == 7 {
                    stopper.stop();
                }
            };
            let sinks = [Gather::new(&Arc::default())];
            gather_hooked(&settings(backend), &sinks, 128 * K, &control, None, hook)
        });
        assert!(!group.report.cut_short);
        assert!(group.error(0).is_none(), "{:?}", group.error(0));
        group.expect_stored(0, 128 * K);
    }
}

// ---- a source that reads into scratch --------------------------------------------------------------------

/// A file whose bytes are turned over on the way.
struct Turned {
    file: Arc<File>,
    bytes: u64,
    /// Reads of this offset find no file.
    without: Option<u64>,
}

struct TurnedLane {
    file: Arc<File>,
    places: [FileId; 2],
    scratch: Scratch,
    block: usize,
    open: Vec<Option<LaneOperation>>,
    without: Option<u64>,
}

impl Source for Turned {
    fn label(&self) -> String {
        "turned".to_owned()
    }
    fn size(&self) -> Option<u64> {
        Some(self.bytes)
    }
    fn access(&self) -> Access {
        Access::Buffered
    }
    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }
    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        Ok(Box::new(std::iter::once(Ok(data(0, self.bytes)))))
    }
    fn scratch_bytes(&self, settings: &Settings) -> usize {
        usize::from(settings.queue_depth) * settings.block_size as usize
    }
    fn lane(&self, _: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        let scratch = setup.scratch(self.scratch_bytes(setup.settings()))?;
        assert!(setup.scratch(1).is_err());
        Ok(Box::new(TurnedLane {
            file: self.file.clone(),
            places: [setup.reserve_file(), setup.reserve_file()],
            scratch,
            block: setup.settings().block_size as usize,
            open: vec![None; usize::from(setup.queue_depth())],
            without: self.without,
        }))
    }
}

impl Lane for TurnedLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        // The first of the two places is never given a file.
        let without = self.without == Some(operation.offset);
        if !without && self.open.iter().all(Option::is_none) {
            io.set_file(self.places[1], self.file.as_fd(), false);
        }
        let slot = usize::from(operation.slot);
        let memory = io.scratch_memory(&self.scratch, slot * self.block);
        assert!(memory.address().addr().is_multiple_of(4096));
        let file = self.places[usize::from(!without)];
        let submission = submission(Verb::Read, file, memory, operation.length as usize);
        io.push(u32::from(operation.slot), Submission { offset: operation.offset, ..submission });
        self.open[slot] = Some(operation);
    }

    fn advance(&mut self, aux: u32, result: i32, io: &mut Io<'_>) {
        let operation = self.open[aux as usize].take().expect("a read is open");
        if result < 0 {
            return io.finish(&operation, Err(Fault { errno: -result, offset: operation.offset }));
        }
        let part = self.scratch.part(aux as usize * self.block, result as usize);
        let whole = LaneOperation { length: result as u64, ..operation };
        let (bytes, scratch) = io.bytes_and_scratch(&whole, &part);
        for (byte, raw) in bytes.iter_mut().zip(scratch.iter()) {
            *byte = raw ^ 0x5a;
        }
        io.count_copied(result as u64);
        if operation.offset == 0 {
            // The same by the other ways.
            let raw = io.scratch(&part).to_vec();
            assert!(io.bytes(&whole).iter().zip(&raw).all(|(byte, raw)| *byte == raw ^ 0x5a));
            let (one, other) = io.two_scratches(&part.part(0, 16), &part.part(16, 16));
            assert_eq!((&*one, &*other), raw[..32].split_at(16));
            assert_eq!(io.counters().moved().copied_bytes, result as u64);
        }
        io.finish(&operation, Ok(result as u64));
    }
}

fn turned(bytes: u64, without: Option<u64>) -> Turned {
    let file = nameless();
    let turned: Vec<u8> = Content::default().bytes(0, bytes).iter().map(|byte| byte ^ 0x5a).collect();
    file.write_all_at(&turned, 0).unwrap();
    Turned { file: Arc::new(file), bytes, without }
}

#[test]
fn a_source_fills_buffers_from_what_it_read_into_scratch() {
    for (backend, register) in backends().into_iter().flat_map(|b| [(b, true), (b, false)]) {
        must_end(move || {
            let source = turned(M + 1234, None);
            let settings = Settings { register, ..settings(backend) };
            let mut rig = Rig::new(16 * K);
            rig.sink.alignment = Alignment::NONE;
            let extents = source.extents().unwrap();
            let moves = move_between(&settings, PLAIN, &rig.control, None, &source, &rig.sink, extents);
            assert!(moves.error().is_none(), "{:?}", moves.error());
            // The recording sink compares what it is given with the content.
            assert_eq!(*rig.sink.state.wrong.lock().unwrap(), [0_u64; 0]);
            assert_eq!(rig.sink.state.ops_of(Verbs::Write).len(), 65);
            assert_eq!((moves.moved.written_bytes, moves.moved.copied_bytes), (M + 1234, M + 1234));
            assert_eq!(rig.control.degraded(0).len(), 0, "{:?}", rig.control.degraded(0));
        });
    }
}

#[test]
fn a_place_without_a_file_answers_with_an_error() {
    for (backend, register) in backends().into_iter().flat_map(|b| [(b, true), (b, false)]) {
        must_end(move || {
            let source = turned(M, Some(64 * K));
            let settings = Settings { register, ..settings(backend) };
            let rig = Rig::new(16 * K);
            let extents = source.extents().unwrap();
            let moves = move_between(&settings, PLAIN, &rig.control, None, &source, &rig.sink, extents);
            let error = moves.error().expect("the task fails");
            assert_eq!((error.errno(), error.at_offset()), (Some(libc::EBADF), Some(64 * K)));
        });
    }
}
