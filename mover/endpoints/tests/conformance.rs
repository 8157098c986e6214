//! One suite over every source and every sink, on both backends. Only the constructors differ: a new
//! endpoint is one function and one line in `source_suite!` or `sink_suite!`.
//!
//! The other side of each run is a recording end, which holds a pattern that follows from the offset and
//! compares what arrives with it. It is this long because it stands in one file: constructors, sources, sinks.

#[path = "../../engine/tests/recording/mod.rs"]
mod recording;

use std::any::Any;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mover_endpoints::{
    Direct, Null, OpenOptions, StreamSink, StreamSource, TargetOptions, open_source, open_target,
};
use mover_engine::stats::Counters;
use mover_engine::{
    Access, Alignment, Backend, Control, Order, ReadErrors, Recorder, Report, Segment, Settings, Sink,
    Source, Task, TaskOptions, run,
};
use mover_model::{Error, ErrorKind, Extent, ExtentKind, ExtentList, Locator};
use mover_tests::scratch::ScratchDir;
use mover_tests::volume::LoopOptions;
use mover_tests::{Skip, need};
use recording::{
    Content, Ending, K, M, Moves, PLAIN, Rig, Verbs, backends, data, empty, hole, move_between, must_end,
    read,
};

type Keep = Box<dyn Any + Send>;
type Made<T> = Result<T, Skip>;

// ---- sources --------------------------------------------------------------------------------------------

/// A source that holds [`source_content`] up to its size.
struct OpenedSource {
    source: Box<dyn Source>,
    content: Content,
    size: u64,
    /// Whether a read past the size finds an end there.
    ends: bool,
    _keep: Vec<Keep>,
}

/// Two holes, one of which ends within a block.
fn source_content() -> Content {
    Content { zeros: vec![256 * K..512 * K, M - 64 * K..M - 4 * K] }
}

/// No multiple of 4 KiB.
const FILE_SIZE: u64 = M + 5632;
const DEVICE_SIZE: u64 = M + 8 * K;
/// No multiple of anything.
const STREAM_SIZE: u64 = M + 77;

fn write_sparse(path: &Path, size: u64) {
    let content = source_content();
    let file = File::create(path).expect("scratch file");
    file.set_len(size).expect("scratch file");
    let mut position = 0;
    for zeros in content.zeros.iter().cloned().chain(std::iter::once(size..size)) {
        let bytes = content.bytes(position, zeros.start - position);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, position).expect("scratch file");
        position = zeros.end;
    }
}

fn opened_source(path: &Path, direct: Direct, size: u64, keep: Vec<Keep>) -> OpenedSource {
    let locator = Locator::Path(path.to_owned());
    let opened = open_source(&locator, OpenOptions { direct }, &Control::new()).expect("a source opens");
    OpenedSource { source: opened.source, content: source_content(), size, ends: true, _keep: keep }
}

fn file_source(direct: Direct, scratch: ScratchDir) -> OpenedSource {
    let path = scratch.file("source.img");
    write_sparse(&path, FILE_SIZE);
    opened_source(&path, direct, FILE_SIZE, vec![Box::new(scratch)])
}

fn direct_file_source() -> Made<OpenedSource> {
    Ok(file_source(Direct::Auto, ScratchDir::new()))
}

fn buffered_file_source() -> Made<OpenedSource> {
    Ok(file_source(Direct::Off, ScratchDir::new()))
}

fn memory_file_source() -> Made<OpenedSource> {
    Ok(file_source(Direct::Auto, ScratchDir::in_memory()))
}

fn device_source(sector: u32) -> Made<OpenedSource> {
    let scratch = ScratchDir::new();
    let path = scratch.file("device.img");
    write_sparse(&path, DEVICE_SIZE);
    let device = LoopOptions::default().sector_size(sector).attach(&path)?;
    let path = device.path().to_owned();
    Ok(opened_source(&path, Direct::Auto, DEVICE_SIZE, vec![Box::new(device), Box::new(scratch)]))
}

fn device_512_source() -> Made<OpenedSource> {
    device_source(512)
}

fn device_4096_source() -> Made<OpenedSource> {
    device_source(4096)
}

fn null_source() -> Made<OpenedSource> {
    let content = Content { zeros: std::iter::once(0..u64::MAX).collect() };
    let source = Box::new(Null { size: Some(STREAM_SIZE) });
    Ok(OpenedSource { source, content, size: STREAM_SIZE, ends: false, _keep: Vec::new() })
}

fn stream_source() -> Made<OpenedSource> {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    std::thread::spawn(move || {
        let bytes = source_content().bytes(0, STREAM_SIZE);
        // In pieces that fit no block, as a program writes them. The reader may be gone before the end.
        for piece in bytes.chunks(9001) {
            if writer.write_all(piece).is_err() {
                return;
            }
        }
    });
    let source = Box::new(StreamSource::new(File::from(OwnedFd::from(reader)), "pipe".into()));
    Ok(OpenedSource { source, content: source_content(), size: STREAM_SIZE, ends: true, _keep: Vec::new() })
}

macro_rules! tests_of {
    ($case:ident: $($check:ident)*) => {
        mod $case {
            use super::*;
            $(#[test]
            fn $check() {
                for backend in backends() {
                    let opened = need!(super::$case());
                    must_end(move || super::$check(opened, backend));
                }
            })*
        }
    };
}

macro_rules! source_suite {
    ($($case:ident)*) => { $(tests_of! { $case:
        a_source_says_what_it_is
        extents_cover_the_source_in_order
        everything_is_read_with_the_source_s_own_extents
        any_aligned_place_is_read_by_many_reads_at_once
        a_source_ends_at_its_size
        a_source_outlives_a_worker_that_dies
    })* };
}

source_suite! {
    direct_file_source
    buffered_file_source
    memory_file_source
    device_512_source
    device_4096_source
    null_source
    stream_source
}

fn settings(backend: Backend, block_size: u64, depth: u16, workers: usize) -> Settings {
    Settings { backend, block_size: block_size as u32, queue_depth: depth, workers, ..Settings::default() }
}

/// Reads extents of a source into a recording sink, which compares.
fn read_from(
    opened: &OpenedSource,
    settings: &Settings,
    access: Access,
    extents: &[Extent],
) -> (Moves, recording::End) {
    let mut rig = Rig::zeros(4 * K, &opened.content.zeros);
    rig.sink.ending = Ending::Shuffled(11);
    // A stream's last block is not padded for it.
    rig.sink.alignment = Alignment::NONE;
    let options = TaskOptions { source_access: access, ..PLAIN };
    let control = Control::new();
    let extents = Box::new(extents.iter().copied().map(Ok));
    let moves = move_between(settings, options, &control, None, &*opened.source, &rig.sink, extents);
    (moves, rig.sink)
}

/// What the recorder was told, each byte once.
fn told(moves: &Moves) -> ExtentList {
    let extents = moves.segments.iter().map(|segment| data(segment.start, segment.length));
    ExtentList::from_unordered(extents, None).expect("nothing ends twice")
}

fn expect_read(moves: &Moves, sink: &recording::End, extents: &[Extent]) {
    assert!(moves.error().is_none(), "{:?}", moves.error());
    assert_eq!(*sink.state.wrong.lock().unwrap(), [0_u64; 0], "wrong bytes");
    let expected = ExtentList::from_unordered(extents.iter().map(|e| data(e.start, e.length)), None).unwrap();
    assert_eq!(told(moves), expected);
}

fn is_ordered(source: &dyn Source) -> bool {
    source.order() == Order::Sequential
}

fn a_source_says_what_it_is(opened: OpenedSource, _: Backend) {
    let source = &opened.source;
    assert!(!source.label().is_empty());
    let expected = (!is_ordered(&**source)).then_some(opened.size);
    assert_eq!(source.size(), expected);
    assert_eq!(source.alignment(Access::Buffered).offset, 1, "the page cache takes anything");
    let rules = source.alignment(source.access());
    assert!(rules.offset.is_power_of_two() && rules.offset <= 4096, "{rules:?}");
    assert!(rules.memory.is_power_of_two() && rules.memory <= 4096, "{rules:?}");
}

fn extents_cover_the_source_in_order(opened: OpenedSource, _: Backend) {
    for _ in 0..2 {
        let mut position = 0;
        for extent in opened.source.extents().expect("extents") {
            let extent = extent.expect("extents");
            assert_eq!(extent.start, position, "no gap and no overlap");
            assert!(extent.length > 0);
            position = extent.end();
            if extent.kind != ExtentKind::Data {
                let bytes = opened.content.bytes(extent.start, extent.length);
                assert!(bytes.iter().all(|&byte| byte == 0), "{extent:?} holds data");
            }
        }
        let expected = if is_ordered(&*opened.source) { i64::MAX as u64 } else { opened.size };
        assert_eq!(position, expected);
    }
}

fn everything_is_read_with_the_source_s_own_extents(opened: OpenedSource, backend: Backend) {
    let settings = settings(backend, 64 * K, 8, 2);
    let extents: Vec<_> = opened.source.extents().unwrap().map(Result::unwrap).collect();
    if is_ordered(&*opened.source) {
        let (moves, sink) = read_from(&opened, &settings, Access::Buffered, &extents);
        assert_eq!(moves.report.outcomes[0].stream_end, Some(opened.size));
        return expect_read(&moves, &sink, &[data(0, opened.size)]);
    }
    // As the copy does it: what is aligned in the best way there is, the rims through the page cache.
    let access = opened.source.access();
    let granule = u64::from(opened.source.alignment(access).offset);
    let cut: Vec<_> = extents
        .iter()
        .filter(|extent| extent.kind == ExtentKind::Data)
        .map(|e| e.split_aligned(granule))
        .collect();
    let middles: Vec<_> = cut.iter().filter_map(|cut| cut.middle).collect();
    let rims: Vec<_> = cut.iter().flat_map(|cut| [cut.head, cut.tail]).flatten().collect();
    let (moves, sink) = read_from(&opened, &settings, access, &middles);
    expect_read(&moves, &sink, &middles);
    let (moves, sink) = read_from(&opened, &settings, Access::Buffered, &rims);
    expect_read(&moves, &sink, &rims);
}

fn any_aligned_place_is_read_by_many_reads_at_once(opened: OpenedSource, backend: Backend) {
    if is_ordered(&*opened.source) {
        let (moves, sink) =
            read_from(&opened, &settings(backend, 4 * K, 32, 3), Access::Buffered, &[data(0, 1 << 40)]);
        return expect_read(&moves, &sink, &[data(0, opened.size)]);
    }
    for access in [opened.source.access(), Access::Buffered] {
        let granule = u64::from(opened.source.alignment(access).offset).max(512);
        let end = opened.size / granule * granule;
        // Every third granule-sized piece from the end to the start, the last one included.
        let extents: Vec<_> =
            (1..=end / granule).step_by(3).map(|n| data(end - n * granule, granule)).collect();
        let (moves, sink) = read_from(&opened, &settings(backend, 4 * K, 32, 3), access, &extents);
        expect_read(&moves, &sink, &extents);
    }
}

fn a_source_ends_at_its_size(opened: OpenedSource, backend: Backend) {
    if !opened.ends || is_ordered(&*opened.source) {
        // A null disk is as long as the list says; a stream's end is found by reading everything.
        return;
    }
    for access in [opened.source.access(), Access::Buffered] {
        let granule = u64::from(opened.source.alignment(access).offset);
        let start = (opened.size - 1) / granule * granule;
        for extent in [data(start, 8 * K), data(start / 4096 * 4096 + 64 * K, 4 * K)] {
            let (moves, _) = read_from(&opened, &settings(backend, 64 * K, 4, 1), access, &[extent]);
            let error = moves.error().expect("a read past the end is no success");
            assert_eq!(error.kind(), ErrorKind::SourceShrank, "{error}");
            assert_eq!(error.at_offset(), Some(opened.size.max(extent.start)), "{access:?} {extent:?}");
            assert!(moves.segments.is_empty());
        }
    }
}

/// A recorder that ends its worker, with whatever is in flight.
struct Deadly(u32);

impl Recorder for Deadly {
    fn finished(&mut self, _: &Segment) {
        self.0 -= 1;
        assert!(self.0 > 0, "a recorder panics, as it was told");
    }
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}

fn run_deadly(backend: Backend, source: &dyn Source, sink: &dyn Sink, extents: &[Extent]) -> Report {
    let (settings, control, counters) =
        (settings(backend, 4 * K, 32, 2), Control::new(), Counters::default());
    let options = TaskOptions { source_access: source.access(), sink_access: sink.access(), ..PLAIN };
    let extents = Box::new(extents.iter().copied().map(Ok));
    let recorder = Box::new(|| Box::new(Deadly(5)) as Box<dyn Recorder>);
    run(
        &settings,
        vec![Task { source, sink, extents, options, counters: &counters, recorder }],
        &control,
        None,
    )
}

fn a_source_outlives_a_worker_that_dies(opened: OpenedSource, backend: Backend) {
    let rig = Rig::zeros(4 * K, &opened.content.zeros);
    let report = run_deadly(backend, &*opened.source, &rig.sink, &[data(0, M)]);
    assert_eq!(report.outcomes[0].error.as_ref().map(Error::kind), Some(ErrorKind::Internal));
    if !is_ordered(&*opened.source) {
        let access = opened.source.access();
        let (moves, sink) = read_from(&opened, &settings(backend, 64 * K, 4, 1), access, &[data(0, M)]);
        expect_read(&moves, &sink, &[data(0, M)]);
    }
}

// ---- sinks ----------------------------------------------------------------------------------------------

/// A sink of `size` bytes that are [`OLD`], or a stream.
struct OpenedSink {
    sink: Box<dyn Sink>,
    size: u64,
    /// Its file and the place of its allocation, where it is a regular file.
    file: Option<PathBuf>,
    /// Everything it holds, once the sink is closed; `None` for a sink that forgets.
    read_back: Box<dyn FnOnce() -> Option<Vec<u8>> + Send>,
    /// Dropped last.
    keep: Vec<Keep>,
}

/// What a sink holds before.
const OLD: u8 = 0xaa;
const SINK_SIZE: u64 = M;

impl OpenedSink {
    /// Makes everything durable, closes the sink and gives what it holds.
    fn content(self) -> Option<Vec<u8>> {
        self.sink.flush().expect("a flush");
        drop(self.sink);
        let content = (self.read_back)();
        drop(self.keep);
        content
    }

    fn ordered(&self) -> bool {
        self.sink.order() == Order::Sequential
    }
}

fn opened_sink(path: &Path, direct: Direct, backing: &Path, keep: Vec<Keep>) -> OpenedSink {
    let target = TargetOptions { force: true, size: Some(SINK_SIZE), ..TargetOptions::default() };
    let locator = Locator::Path(path.to_owned());
    let opened = open_target(&locator, target, OpenOptions { direct }, &Control::new());
    let opened = opened.expect("a target opens");
    let file = opened.file.as_ref().expect("it is a file");
    file.prepare().expect("it takes its size");
    let is_block = file.is_block();
    let backing = backing.to_owned();
    OpenedSink {
        sink: opened.sink,
        size: SINK_SIZE,
        file: (!is_block).then(|| backing.clone()),
        read_back: Box::new(move || Some(fs::read(backing).expect("what was written"))),
        keep,
    }
}

fn file_sink(direct: Direct, scratch: ScratchDir) -> OpenedSink {
    let path = scratch.write("target.img", vec![OLD; SINK_SIZE as usize]);
    opened_sink(&path, direct, &path, vec![Box::new(scratch)])
}

fn direct_file_sink() -> Made<OpenedSink> {
    Ok(file_sink(Direct::Auto, ScratchDir::new()))
}

fn buffered_file_sink() -> Made<OpenedSink> {
    Ok(file_sink(Direct::Off, ScratchDir::new()))
}

fn memory_file_sink() -> Made<OpenedSink> {
    Ok(file_sink(Direct::Auto, ScratchDir::in_memory()))
}

fn device_sink(sector: u32, direct: Direct) -> Made<OpenedSink> {
    let scratch = ScratchDir::new();
    let backing = scratch.write("device.img", vec![OLD; SINK_SIZE as usize]);
    let device = LoopOptions::default().sector_size(sector).attach(&backing)?;
    let path = device.path().to_owned();
    Ok(opened_sink(&path, direct, &backing, vec![Box::new(device), Box::new(scratch)]))
}

fn device_512_sink() -> Made<OpenedSink> {
    device_sink(512, Direct::Auto)
}

fn device_4096_sink() -> Made<OpenedSink> {
    device_sink(4096, Direct::Auto)
}

fn buffered_device_sink() -> Made<OpenedSink> {
    device_sink(512, Direct::Off)
}

fn null_sink() -> Made<OpenedSink> {
    let sink = Box::new(Null { size: Some(SINK_SIZE) });
    Ok(OpenedSink { sink, size: SINK_SIZE, file: None, read_back: Box::new(|| None), keep: Vec::new() })
}

fn stream_sink() -> Made<OpenedSink> {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let thread = std::thread::spawn(move || {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).expect("a pipe is read");
        content
    });
    let sink = Box::new(StreamSink::new(File::from(OwnedFd::from(writer)), "pipe".into()));
    let read_back = Box::new(move || Some(thread.join().expect("a reader")));
    Ok(OpenedSink { sink, size: SINK_SIZE, file: None, read_back, keep: Vec::new() })
}

macro_rules! sink_suite {
    ($($case:ident)*) => { $(tests_of! { $case:
        a_sink_says_what_it_is
        any_aligned_place_takes_many_writes_at_once
        unaligned_writes_through_the_page_cache_leave_their_neighbours
        holes_read_as_zeros_over_what_was_there
        zeros_read_as_zeros_and_stay_allocated
        holes_and_zeros_do_not_spoil_each_other
        a_sink_refuses_what_lies_past_its_end
        a_sink_is_flushed_and_takes_its_size
        a_sink_outlives_a_worker_that_dies
    })* };
}

sink_suite! {
    direct_file_sink
    buffered_file_sink
    memory_file_sink
    device_512_sink
    device_4096_sink
    buffered_device_sink
    null_sink
    stream_sink
}

/// Writes a recording source's pattern to a sink.
fn write_to(
    opened: &OpenedSink,
    settings: &Settings,
    options: TaskOptions,
    extents: &[Extent],
) -> (Moves, recording::End) {
    let mut rig = Rig::new(4 * K);
    rig.source.ending = Ending::Shuffled(12);
    let control = Control::new();
    let extents = Box::new(extents.iter().copied().map(Ok));
    let moves = move_between(settings, options, &control, None, &rig.source, &*opened.sink, extents);
    (moves, rig.source)
}

fn options_of(opened: &OpenedSink) -> TaskOptions {
    TaskOptions { sink_access: opened.sink.access(), ..PLAIN }
}

/// Writes, reads back, and compares with what must be there.
fn write_and_compare(opened: OpenedSink, settings: &Settings, options: TaskOptions, extents: &[Extent]) {
    let (moves, _) = write_to(&opened, settings, options, extents);
    assert!(moves.error().is_none(), "{:?}", moves.error());
    let expected = ExtentList::from_unordered(extents.iter().map(|e| data(e.start, e.length)), None).unwrap();
    assert_eq!(told(&moves), expected);
    compare(opened, extents);
}

fn compare(opened: OpenedSink, extents: &[Extent]) {
    let mut expected = vec![OLD; opened.size as usize];
    for extent in extents {
        let place = &mut expected[extent.start as usize..extent.end() as usize];
        match extent.kind {
            ExtentKind::Data => Content::default().fill(extent.start, place),
            ExtentKind::Zero | ExtentKind::Hole => place.fill(0),
        }
    }
    let Some(found) = opened.content() else { return };
    assert_eq!(found.len(), expected.len());
    if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at]) {
        panic!("at {at}: {:#x} instead of {:#x}", found[at], expected[at]);
    }
}

fn a_sink_says_what_it_is(opened: OpenedSink, _: Backend) {
    let sink = &opened.sink;
    assert!(!sink.label().is_empty());
    assert!(sink.capacity().is_none_or(|capacity| capacity == opened.size));
    assert!(opened.file.is_none() || sink.capacity().is_none(), "a file grows");
    assert_eq!(sink.alignment(Access::Buffered).offset, 1);
    let rules = sink.alignment(sink.access());
    assert!(rules.offset.is_power_of_two() && rules.offset <= 4096, "{rules:?}");
    assert!(rules.memory.is_power_of_two() && rules.memory <= 4096, "{rules:?}");
    // It held something before; only a null sink may not care.
    assert!(!sink.reads_zero() || sink.label().starts_with("null:"));
}

fn any_aligned_place_takes_many_writes_at_once(opened: OpenedSink, backend: Backend) {
    let settings = settings(backend, 4 * K, 32, 3);
    let options = options_of(&opened);
    if opened.ordered() {
        return write_and_compare(opened, &settings, options, &[data(0, SINK_SIZE)]);
    }
    let granule = u64::from(opened.sink.alignment(options.sink_access).offset).max(512);
    let extents: Vec<_> =
        (1..=SINK_SIZE / granule).step_by(3).map(|n| data(SINK_SIZE - n * granule, granule)).collect();
    write_and_compare(opened, &settings, options, &extents);
}

fn unaligned_writes_through_the_page_cache_leave_their_neighbours(opened: OpenedSink, backend: Backend) {
    if opened.ordered() {
        return;
    }
    let extents = [
        data(1, 510),
        empty(511, 3, ExtentKind::Hole),
        data(700, 4000),
        empty(9 * K + 5, 7 * K, ExtentKind::Zero),
        data(SINK_SIZE - 77, 77),
    ];
    write_and_compare(opened, &settings(backend, 4 * K, 4, 1), PLAIN.buffered(), &extents);
}

trait Buffered {
    fn buffered(self) -> Self;
}

impl Buffered for TaskOptions {
    fn buffered(self) -> Self {
        TaskOptions { sink_access: Access::Buffered, ..self }
    }
}

fn blocks(opened: &OpenedSink) -> Option<u64> {
    opened.sink.flush().expect("a flush");
    opened.file.as_ref().map(|path| fs::metadata(path).expect("the target").blocks())
}

/// Data, then a large and a small range of zeros that no write follows, then data.
fn with_zeros(kind: ExtentKind) -> [Extent; 5] {
    [
        data(0, 64 * K),
        empty(64 * K, 512 * K, kind),
        data(576 * K, 4 * K),
        empty(580 * K, 4 * K, kind),
        data(584 * K, SINK_SIZE - 584 * K),
    ]
}

fn holes_read_as_zeros_over_what_was_there(opened: OpenedSink, backend: Backend) {
    let before = blocks(&opened);
    let options = options_of(&opened);
    let extents = with_zeros(ExtentKind::Hole);
    let (moves, _) = write_to(&opened, &settings(backend, 64 * K, 4, 2), options, &extents);
    assert!(moves.error().is_none(), "{:?}", moves.error());
    if let (Some(before), Some(after)) = (before, blocks(&opened)) {
        assert!(after + 900 <= before, "half a MiB is given back: {before} and {after} sectors");
    }
    compare(opened, &extents);
}

fn zeros_read_as_zeros_and_stay_allocated(opened: OpenedSink, backend: Backend) {
    let before = blocks(&opened);
    let options = TaskOptions { keep_allocated: true, ..options_of(&opened) };
    let extents = with_zeros(ExtentKind::Zero);
    let (moves, _) = write_to(&opened, &settings(backend, 64 * K, 4, 2), options, &extents);
    assert!(moves.error().is_none(), "{:?}", moves.error());
    if let (Some(before), Some(after)) = (before, blocks(&opened)) {
        assert!(after >= before, "nothing is given back: {before} and {after} sectors");
    }
    compare(opened, &extents);
}

fn holes_and_zeros_do_not_spoil_each_other(opened: OpenedSink, backend: Backend) {
    if opened.ordered() {
        return;
    }
    let (settings, before) = (settings(backend, 64 * K, 4, 1), blocks(&opened));
    let keep = TaskOptions { keep_allocated: true, ..options_of(&opened) };
    let zeros = [empty(0, 8 * K, ExtentKind::Zero)];
    let holes = [empty(512 * K, 512 * K, ExtentKind::Hole)];
    for (options, extents) in [(keep, zeros), (options_of(&opened), holes)] {
        let (moves, _) = write_to(&opened, &settings, options, &extents);
        assert!(moves.error().is_none(), "{:?}", moves.error());
    }
    if let (Some(before), Some(after)) = (before, blocks(&opened)) {
        assert!(
            after + 900 <= before,
            "a target that cannot zero a range can still punch: {before}, {after}"
        );
    }
    compare(opened, &[zeros[0], holes[0]]);
}

fn a_sink_refuses_what_lies_past_its_end(opened: OpenedSink, backend: Backend) {
    let Some(capacity) = opened.sink.capacity() else { return };
    for past in [data(capacity, 4 * K), empty(capacity, 4 * K, ExtentKind::Hole)] {
        let options = options_of(&opened);
        let (moves, _) = write_to(&opened, &settings(backend, 4 * K, 4, 1), options, &[past]);
        let error = moves.error().expect("there is no such place");
        assert_eq!((error.kind(), error.at_offset()), (ErrorKind::Full, Some(capacity)), "{error}");
        assert!(moves.segments.is_empty());
    }
    compare(opened, &[]);
}

fn a_sink_is_flushed_and_takes_its_size(opened: OpenedSink, backend: Backend) {
    let options = options_of(&opened);
    let (moves, _) = write_to(&opened, &settings(backend, 64 * K, 4, 1), options, &[data(0, SINK_SIZE)]);
    assert!(moves.error().is_none(), "{:?}", moves.error());
    opened.sink.flush().expect("a flush");
    let (size, is_file) = (SINK_SIZE - 1001, opened.file.is_some());
    opened.sink.finish(size).expect("a size");
    opened.sink.flush().expect("a flush after the end");
    let expected = Content::default().bytes(0, if is_file { size } else { SINK_SIZE });
    assert!(opened.content().is_none_or(|content| content == expected));
}

fn a_sink_outlives_a_worker_that_dies(opened: OpenedSink, backend: Backend) {
    let rig = Rig::new(4 * K);
    let report = run_deadly(backend, &rig.source, &*opened.sink, &[data(0, SINK_SIZE)]);
    assert_eq!(report.outcomes[0].error.as_ref().map(Error::kind), Some(ErrorKind::Internal));
    if !opened.ordered() {
        let options = options_of(&opened);
        write_and_compare(opened, &settings(backend, 64 * K, 4, 2), options, &[data(0, SINK_SIZE)]);
    }
}

// ---- what is said of streams alone ----------------------------------------------------------------------

#[test]
fn a_source_that_fails_does_not_leave_a_stream_waiting() {
    // Writes that were begun wait for the one before them, which will never come.
    for (backend, policy) in backends()
        .into_iter()
        .flat_map(|backend| [ReadErrors::Fail, ReadErrors::Record].map(|policy| (backend, policy)))
    {
        for seed in 0..20 {
            let opened = stream_sink().expect("a pipe");
            must_end(move || {
                let mut rig = Rig::new(4 * K);
                rig.source.ending = Ending::Shuffled(seed);
                rig.source.faults.push((100 * K..101 * K, libc::EIO));
                let options = TaskOptions { read_errors: policy, sink_access: Access::Buffered, ..PLAIN };
                let (settings, control) = (settings(backend, 4 * K, 16, 2), Control::new());
                let extents = Box::new(std::iter::once(Ok(data(0, M))));
                let moves =
                    move_between(&settings, options, &control, None, &rig.source, &*opened.sink, extents);
                assert_eq!(moves.error().and_then(Error::errno), Some(libc::EIO));
                let content = opened.content().expect("what came out of the pipe");
                assert!(content.len() as u64 <= 100 * K);
                assert!(content == Content::default().bytes(0, content.len() as u64), "in order, no gap");
            });
        }
    }
}

#[test]
fn a_reader_that_leaves_is_an_error_and_no_hang() {
    for backend in backends() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let sink = Box::new(StreamSink::new(File::from(OwnedFd::from(writer)), "pipe".into()));
        let thread = std::thread::spawn(move || reader.read_exact(&mut vec![0; 100_000]).expect("a pipe"));
        let opened = OpenedSink { sink, size: M, file: None, read_back: Box::new(|| None), keep: Vec::new() };
        must_end(move || {
            let options = options_of(&opened);
            let (moves, _) = write_to(&opened, &settings(backend, 4 * K, 16, 2), options, &[data(0, M)]);
            let error = moves.error().expect("nobody reads");
            assert_eq!(error.errno(), Some(libc::EPIPE));
            assert!(error.at_offset().is_some_and(|offset| offset >= 100_000), "{error}");
        });
        thread.join().expect("the reader");
    }
}

#[test]
fn a_stop_ends_the_wait_for_a_silent_pipe() {
    for (backend, reads) in backends().into_iter().flat_map(|backend| [(backend, true), (backend, false)]) {
        // Both ends stay open: nothing comes, and beyond what the pipe holds nothing goes.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        must_end(move || {
            let (mut rig, control) = (Rig::new(4 * K), Control::new());
            rig.sink.alignment = Alignment::NONE;
            let settings = settings(backend, 64 * K, 8, 2);
            let extents = Box::new(std::iter::once(Ok(data(0, 16 * M))));
            let begin = std::time::Instant::now();
            // Kept open, and silent.
            let _other: OwnedFd;
            let (mut source, mut sink): (Box<dyn Source>, Box<dyn Sink>) =
                (Box::new(rig.source), Box::new(rig.sink));
            if reads {
                source = Box::new(StreamSource::new(File::from(OwnedFd::from(reader)), "pipe".into()));
                _other = writer.into();
            } else {
                sink = Box::new(StreamSink::new(File::from(OwnedFd::from(writer)), "pipe".into()));
                _other = reader.into();
            }
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(std::time::Duration::from_millis(200));
                    control.stop();
                });
                move_between(&settings, PLAIN, &control, None, &*source, &*sink, extents)
            });
            assert!(begin.elapsed() < std::time::Duration::from_secs(12), "{:?}", begin.elapsed());
        });
    }
}

#[test]
fn a_second_pass_over_a_stream_goes_on_where_the_first_ended() {
    for backend in backends() {
        let opened = stream_sink().expect("a pipe");
        must_end(move || {
            for extent in [data(0, 512 * K), data(512 * K, 512 * K)] {
                let options = options_of(&opened);
                let (moves, _) = write_to(&opened, &settings(backend, 64 * K, 4, 1), options, &[extent]);
                assert!(moves.error().is_none(), "{:?}", moves.error());
            }
            compare(opened, &[data(0, M)]);
        });
    }
}

#[test]
fn one_request_is_one_operation_of_the_other_side() {
    // The suite rests on the recording end: it sees what the engine was asked for and nothing else.
    let rig = Rig::new(4 * K);
    let null = Null { size: None };
    let extents = [data(0, 8 * K), empty(8 * K, 4 * K, ExtentKind::Hole)];
    let list = Box::new(extents.into_iter().map(Ok));
    let settings = settings(Backend::Sync, 4 * K, 1, 1);
    let moves = move_between(&settings, PLAIN, &Control::new(), None, &rig.source, &null, list);
    assert!(moves.error().is_none());
    assert_eq!(rig.source.state.ops(), [read(0, 4 * K), read(4 * K, 4 * K)]);
    let moves = move_between(
        &settings,
        PLAIN,
        &Control::new(),
        None,
        &Null { size: Some(12 * K) },
        &rig.sink,
        Box::new(std::iter::once(Ok(empty(0, 12 * K, ExtentKind::Hole)))),
    );
    assert!(moves.error().is_none());
    assert_eq!(rig.sink.state.ops_of(Verbs::Hole), [hole(0, 12 * K)]);
}
