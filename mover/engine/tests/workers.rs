//! Workers together: what they steal is moved once, one task's failure is its own, a stop and a rate limit
//! are kept, and whatever panics, nothing hangs.

mod recording;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_deque::Worker as Deque;
use mover_engine::plan::Item;
use mover_engine::queue::{Next, Queue, Tasks};
use mover_engine::stats::Counters;
use mover_engine::{Backend, Control, Order, Rate, Recorder, Report, Segment, Settings, Task, run};
use mover_model::{Error, ErrorKind, Extent, ExtentKind, ExtentList, limits};
use proptest::prelude::*;
use recording::{
    Ended, Ending, G, K, M, NoteTaker, Notes, Op, Rig, Verbs, backends, data, empty, must_end, read, write,
};

/// The bytes of a log's operations as a list, which fails when two of them overlap.
fn list(ops: impl IntoIterator<Item = Op>, kind: ExtentKind) -> ExtentList {
    let extents = ops.into_iter().map(|(_, start, length)| Extent::new(start, length, kind));
    ExtentList::from_unordered(extents, None).expect("nothing is moved twice")
}

fn expect_moved_once(ended: &Ended, extents: &ExtentList) {
    let state = &ended.state;
    let data = list(state.ops_of(Verbs::Write), ExtentKind::Data);
    let holes = list(state.ops_of(Verbs::Hole), ExtentKind::Hole);
    let of = |kind| extents.iter().filter(move |extent| extent.kind == kind).collect::<ExtentList>();
    assert_eq!(data, of(ExtentKind::Data));
    assert_eq!(holes, of(ExtentKind::Hole));
    // The recorder heard of the same bytes, once.
    let told = ended.outcome.segments.iter().map(|segment| {
        let kind = if segment.zero { ExtentKind::Hole } else { ExtentKind::Data };
        Extent::new(segment.start, segment.length, kind)
    });
    assert_eq!(&ExtentList::from_unordered(told, None).expect("nothing is recorded twice"), extents);
    assert_eq!(ended.outcome.moved.written_bytes, extents.bytes_of(ExtentKind::Data));
    assert_eq!(ended.outcome.moved.zero_bytes, extents.bytes_of(ExtentKind::Hole));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn every_byte_is_moved_once_whoever_moves_it(
        pieces in proptest::collection::vec((0u64..40, 1u64..90, proptest::bool::weighted(0.8)), 0..60),
        block in 1u64..8,
        workers in 1usize..6,
        depth in 1u16..9,
        in_flight in prop_oneof![Just(None), (1u64..6).prop_map(Some)],
        join in prop_oneof![Just(0u64), 1u64..40],
        ending in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
        uring in any::<bool>(),
    ) {
        let mut extents = ExtentList::new();
        let mut position = 0;
        for (gap, length, is_data) in pieces {
            let kind = if is_data { ExtentKind::Data } else { ExtentKind::Hole };
            extents.push(Extent::new((position + gap) * 512, length * 512, kind));
            position += gap + length;
        }
        let given: Vec<_> = extents.iter().collect();
        let ended = must_end(move || {
            let mut rig = Rig::new(block * 4 * K);
            rig.settings.workers = workers;
            rig.settings.queue_depth = depth;
            rig.settings.bytes_in_flight = in_flight.map(|blocks| blocks * block * 4 * K);
            rig.options.join_gap = (join * K) as u32;
            rig.settings.backend = if uring { *backends().last().unwrap() } else { Backend::Sync };
            if let Some(seed) = ending {
                rig.source.ending = Ending::Shuffled(seed);
                rig.sink.ending = Ending::Shuffled(!seed);
            }
            rig.run(&given).good()
        });
        expect_moved_once(&ended, &extents);
        let peak = ended.state.peak();
        prop_assert!(peak.requests <= usize::from(depth) * limits::PIECES_MAX);
        prop_assert!(peak.bytes <= in_flight.unwrap_or(u64::MAX).min(u64::from(depth)) * block * 4 * K);
    }
}

#[test]
fn a_large_extent_is_shared_among_workers() {
    let ended = must_end(|| {
        let mut rig = Rig::hooked(M, |op| {
            if op.0 == Verbs::Read {
                // Slow enough for every worker to find something.
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        rig.settings.workers = 4;
        rig.settings.queue_depth = 2;
        rig.run(&[data(0, G)]).good()
    });
    expect_moved_once(&ended, &ExtentList::from_iter([data(0, G)]));
    let calls = ended.state.calls.lock().unwrap();
    let threads: std::collections::HashSet<_> = calls.iter().map(|call| call.thread).collect();
    assert!(threads.len() > 1, "one worker did it all");
}

#[test]
fn the_last_items_are_never_lost() {
    // Many small runs with more workers than work: the end of the queue is where a race would be.
    must_end(|| {
        for round in 0..400_u64 {
            let mut rig = Rig::new(4 * K);
            rig.settings.workers = 8;
            rig.settings.queue_depth = 2;
            let count = round % (limits::FEED_BATCH as u64 * 2 + 3);
            let extents: Vec<_> = (0..count).map(|n| data(n * 8 * K, 4 * K)).collect();
            let ended = rig.run(&extents).good();
            assert_eq!(ended.state.sorted(Verbs::Write).len() as u64, count, "round {round}");
            expect_moved_once(&ended, &extents.into_iter().collect());
        }
    });
}

struct NoneFails;

impl Tasks for NoneFails {
    fn failed(&self, _: usize) -> bool {
        false
    }
    fn fail(&self, _: usize, error: Error) {
        panic!("{error}");
    }
}

#[test]
fn no_worker_is_sent_away_while_there_is_work() {
    // What is taken off a large extent and what is put back: between the two the queue looks empty.
    const WORKERS: u64 = 3;
    const TOTAL: u64 = 8192 * G;
    must_end(|| {
        for round in 0..10 {
            let deques: Vec<_> = (0..WORKERS).map(|_| Deque::new_fifo()).collect();
            let stealers = deques.iter().map(Deque::stealer).collect();
            let list = Box::new(std::iter::once(Ok(data(0, TOTAL))));
            let queue = Queue::new(vec![(list, Order::Any, 0)], M as u32, stealers);
            let taken = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for own in deques {
                    let (queue, taken) = (&queue, &taken);
                    scope.spawn(move || {
                        loop {
                            match queue.next(&own, &NoneFails) {
                                Next::Item(Item::Span { extent, .. }) => {
                                    taken.fetch_add(extent.length, Ordering::Relaxed);
                                }
                                Next::Item(other) => panic!("{other:?}"),
                                Next::Later => std::hint::spin_loop(),
                                Next::Never => break,
                            }
                        }
                        // The others may hold one item each that they have not counted yet.
                        let left = TOTAL - taken.load(Ordering::Relaxed);
                        assert!(left <= (WORKERS - 1) * limits::STEAL_BYTES, "round {round}: {left} left");
                    });
                }
            });
            assert_eq!(taken.into_inner(), TOTAL);
        }
    });
}

// ---- several tasks --------------------------------------------------------------------------------------

struct Group {
    report: Report,
    states: Vec<Arc<recording::State>>,
    notes: Vec<Notes>,
}

/// Runs several rigs' ends as the tasks of one run, with the settings of the first.
fn run_group(rigs: Vec<(Rig, Vec<Extent>)>) -> Group {
    let settings: Settings = rigs[0].0.settings.clone();
    let control = Control::new();
    let counters: Vec<_> = rigs.iter().map(|_| Counters::default()).collect();
    let notes: Vec<_> = rigs.iter().map(|_| Notes::default()).collect();
    let tasks = rigs.iter().zip(&counters).zip(&notes).map(|(((rig, extents), counters), notes)| Task {
        source: &rig.source,
        sink: &rig.sink,
        extents: Box::new(extents.iter().copied().map(Ok)),
        options: rig.options,
        counters,
        recorder: Box::new(move || Box::new(NoteTaker(notes)) as Box<dyn Recorder>),
    });
    let report = run(&settings, tasks.collect(), &control, None);
    let states = rigs.iter().map(|(rig, _)| rig.source.state.clone()).collect();
    Group { report, states, notes }
}

#[test]
fn a_task_that_fails_does_not_end_the_others() {
    for (workers, backend) in backends().into_iter().flat_map(|backend| [(1, backend), (3, backend)]) {
        let group = must_end(move || {
            let rigs = (0..4_u64).map(|number| {
                let mut rig = Rig::new(16 * K);
                rig.settings.workers = workers;
                rig.settings.queue_depth = 4;
                rig.settings.backend = backend;
                rig.source.ending = Ending::Shuffled(number);
                match number {
                    1 => rig.source.faults.push((M..M + 1, libc::EIO)),
                    2 => rig.sink.faults.push((M..M + 1, libc::ENOSPC)),
                    3 => rig.sink.order = Order::Sequential,
                    _ => {}
                }
                (rig, vec![data(0, 2 * M), empty(2 * M, M, ExtentKind::Hole), data(3 * M, 2 * M)])
            });
            run_group(rigs.collect())
        });
        let kinds: Vec<_> =
            group.report.outcomes.iter().map(|outcome| outcome.error.as_ref().map(Error::kind)).collect();
        assert_eq!(kinds, [None, Some(ErrorKind::Io), Some(ErrorKind::Full), None]);
        for good in [0, 3] {
            let written = list(group.states[good].ops_of(Verbs::Write), ExtentKind::Data);
            assert_eq!(written.bytes(), 4 * M);
            let segments = group.notes[good].segments.lock().unwrap();
            assert_eq!(segments.iter().map(|segment| segment.length).sum::<u64>(), 5 * M);
        }
    }
}

#[test]
fn a_failed_task_is_left_at_once() {
    let group = must_end(|| {
        let mut rig = Rig::new(16 * K);
        rig.settings.workers = 2;
        rig.sink.faults.push((0..u64::MAX, libc::EIO));
        // 16 TiB of small extents: all of them would take hours.
        let extents = (0..100_000).map(|n| data(n * 160 * M, 100 * M)).collect();
        run_group(vec![(rig, extents)])
    });
    assert!(group.report.outcomes[0].error.is_some());
    assert!(group.states[0].ops_of(Verbs::Write).len() <= 2);
}

#[test]
fn an_error_in_a_list_of_extents_is_that_tasks() {
    for order in [Order::Any, Order::Sequential] {
        let ended = must_end(move || {
            let mut rig = Rig::new(16 * K);
            rig.source.order = order;
            let broken = Error::new(ErrorKind::Io, "the list breaks off").at("source");
            rig.run_list(Box::new([Ok(data(0, 16 * K)), Err(broken), Ok(data(M, K))].into_iter()))
        });
        assert_eq!(ended.outcome.error().map(Error::message), Some("the list breaks off"));
        assert!(!ended.ops().contains(&read(M, K)), "nothing after the error is moved");
    }
}

// ---- stop and rate --------------------------------------------------------------------------------------

#[test]
fn a_stop_finishes_what_has_begun_and_nothing_else() {
    for (backend, workers) in backends().into_iter().flat_map(|backend| [(backend, 1), (backend, 3)]) {
        let ended = must_end(move || {
            let control = Arc::new(Control::new());
            let (stopper, begun) = (control.clone(), AtomicU64::new(0));
            let mut rig = Rig::hooked(16 * K, move |op| {
                if op.0 == Verbs::Read && begun.fetch_add(1, Ordering::Relaxed) == 20 {
                    stopper.stop();
                }
            });
            rig.control = control;
            rig.settings.backend = backend;
            rig.settings.workers = workers;
            rig.settings.queue_depth = 4;
            rig.source.ending = Ending::Shuffled(3);
            rig.sink.ending = Ending::Shuffled(4);
            rig.run(&[data(0, G)]).good()
        });
        assert!(ended.outcome.report.cut_short);
        let reads = list(ended.state.ops_of(Verbs::Read), ExtentKind::Data);
        assert_eq!(list(ended.state.ops_of(Verbs::Write), ExtentKind::Data), reads);
        let count = ended.state.ops_of(Verbs::Read).len();
        assert!((21..21 + workers * 4).contains(&count), "{count} reads");
        let told = ended.outcome.segments.iter().map(|segment| data(segment.start, segment.length));
        assert_eq!(ExtentList::from_unordered(told, None).unwrap(), reads, "the ledger holds what was moved");
    }
}

#[test]
fn a_run_stopped_before_it_begins_does_nothing() {
    let rig = Rig::new(16 * K);
    rig.control.stop();
    let ended = rig.run(&[data(0, M)]).good();
    assert!(ended.outcome.report.cut_short && ended.ops().is_empty());
}

#[test]
fn a_rate_limit_holds_over_all_workers() {
    let begin = Instant::now();
    let ended = must_end(|| {
        let mut rig = Rig::new(64 * K);
        rig.settings.workers = 3;
        rig.settings.queue_depth = 4;
        rig.rate = Some(Rate::new(10 * M));
        rig.run(&[data(0, 4 * M), empty(4 * M, G, ExtentKind::Hole)]).good()
    });
    // 4 MiB at 10 MiB/s, less the burst of a tenth of a second and a request of each worker. Zeros are free.
    let least = Duration::from_millis(400 - 100 - 25);
    assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
    assert_eq!(ended.outcome.moved.written_bytes, 4 * M);
    assert_eq!(ended.state.ops_of(Verbs::Write).len(), 64);
}

#[test]
fn a_stop_is_seen_under_a_rate_limit() {
    let begin = Instant::now();
    let ended = must_end(|| {
        let mut rig = Rig::new(64 * K);
        rig.rate = Some(Rate::new(1));
        let control = rig.control.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            control.stop();
        });
        rig.run(&[data(0, 4 * M)]).good()
    });
    assert!(ended.outcome.report.cut_short);
    assert!(begin.elapsed() < Duration::from_secs(20), "a request at this rate is paid for in 18 hours");
}

// ---- what breaks ----------------------------------------------------------------------------------------

#[test]
fn a_worker_without_a_lane_leaves_the_work_to_the_others() {
    let ended = must_end(|| {
        let mut rig = Rig::new(16 * K);
        rig.settings.workers = 4;
        rig.sink.lanes_max = 0;
        rig.run(&[data(0, M)])
    });
    assert_eq!(ended.outcome.error().map(Error::kind), Some(ErrorKind::Unreachable));
    assert_eq!(ended.ops(), []);
}

#[test]
fn an_operation_that_fails_as_it_begins_fails_the_task() {
    for source_fails in [true, false] {
        let ended = must_end(move || {
            let mut rig = Rig::new(16 * K);
            rig.settings.workers = 2;
            rig.settings.queue_depth = 8;
            let end = if source_fails { &mut rig.source } else { &mut rig.sink };
            end.faults.push((0..u64::MAX, libc::ENODEV));
            rig.run(&[data(0, G)])
        });
        assert_eq!(ended.outcome.error().and_then(Error::errno), Some(libc::ENODEV));
        assert!(ended.ops().len() <= 32);
    }
}

fn expect_internal(error: Option<&Error>) {
    let error = error.expect("a panic fails the run");
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert!(error.message().starts_with("a worker panicked: "), "{error}");
}

#[test]
fn a_lane_that_panics_ends_the_run_with_an_internal_error() {
    for (backend, workers) in backends().into_iter().flat_map(|backend| [(backend, 1), (backend, 4)]) {
        for (source_panics, shuffled) in [(true, false), (true, true), (false, false), (false, true)] {
            let ended = must_end(move || {
                let mut rig = Rig::new(16 * K);
                rig.settings.backend = backend;
                rig.settings.workers = workers;
                rig.settings.queue_depth = 8;
                if shuffled {
                    rig.source.ending = Ending::Shuffled(5);
                    rig.sink.ending = Ending::Shuffled(6);
                }
                let end = if source_panics { &mut rig.source } else { &mut rig.sink };
                end.panic_at = Some(300 * K);
                // Half a terabyte: whoever goes on with it after the panic is seen.
                rig.run(&[data(0, 512 * G)])
            });
            expect_internal(ended.outcome.error());
        }
    }
}

struct Panics;

impl Recorder for Panics {
    fn finished(&mut self, _: &Segment) {
        panic!("a recorder panics, as it was told");
    }
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}

#[test]
fn a_recorder_that_panics_ends_the_run_with_an_internal_error() {
    for (backend, in_factory) in
        backends().into_iter().flat_map(|backend| [(backend, false), (backend, true)])
    {
        let report = must_end(move || {
            let mut rig = Rig::new(16 * K);
            rig.settings.backend = backend;
            rig.settings.workers = 3;
            rig.settings.queue_depth = 8;
            rig.source.ending = Ending::Shuffled(1);
            rig.sink.ending = Ending::Shuffled(2);
            let (control, counters) = (Control::new(), Counters::default());
            let task = Task {
                source: &rig.source,
                sink: &rig.sink,
                extents: Box::new(std::iter::once(Ok(data(0, 512 * G)))),
                options: rig.options,
                counters: &counters,
                recorder: Box::new(move || {
                    assert!(!in_factory, "a factory panics, as it was told");
                    Box::new(Panics) as Box<dyn Recorder>
                }),
            };
            run(&rig.settings, vec![task], &control, None)
        });
        expect_internal(report.outcomes[0].error.as_ref());
    }
}

#[test]
fn a_list_of_extents_that_panics_ends_the_run_with_an_internal_error() {
    for (workers, order) in [(1, Order::Any), (4, Order::Any), (4, Order::Sequential)] {
        let ended = must_end(move || {
            let mut rig = Rig::new(16 * K);
            rig.settings.workers = workers;
            rig.source.order = order;
            rig.run_list(Box::new((0..).map(|n| {
                assert!(n < 100, "a list panics, as it was told");
                Ok(data(n * 32 * K, 16 * K))
            })))
        });
        expect_internal(ended.outcome.error());
    }
}

#[test]
fn a_panic_fails_every_task() {
    let group = must_end(|| {
        let rigs = (0..2).map(|number| {
            let mut rig = Rig::new(16 * K);
            rig.settings.workers = 2;
            rig.sink.panic_at = (number == 0).then_some(M);
            (rig, vec![data(0, 64 * G)])
        });
        run_group(rigs.collect())
    });
    for outcome in &group.report.outcomes {
        expect_internal(outcome.error.as_ref());
    }
}

#[test]
fn a_run_without_tasks_ends() {
    let control = Control::new();
    let settings = Settings { backend: Backend::Sync, ..Settings::default() };
    assert!(run(&settings, Vec::new(), &control, None).outcomes.is_empty());
}

#[test]
fn a_write_is_begun_for_every_read_of_a_task_that_goes_well() {
    let ended = Rig::new(4 * K).run(&[data(0, 8 * K)]).good();
    assert_eq!(ended.ops(), [read(0, 4 * K), write(0, 4 * K), read(4 * K, 4 * K), write(4 * K, 4 * K)]);
}
