//! One run of the engine: tasks in, outcomes out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crossbeam_deque::Worker as Deque;
use mover_model::event::Latency;
use mover_model::{Error, ErrorKind, Result};

use crate::control::{Control, Rate};
use crate::lane::{Sink, Source};
use crate::queue::{Extents, Queue};
use crate::settings::Settings;
use crate::stats::{Counters, LatencyHistogram};
use crate::sys;
use crate::worker::{Recorder, Shared, SharedTask, TaskOptions, Worker, WorkerStats, order_of};

/// Makes the recorder of a worker.
pub type RecorderFactory<'a> = Box<dyn Fn() -> Box<dyn Recorder + 'a> + Sync + 'a>;

/// Extents to move from a source to a sink.
pub struct Task<'a> {
    /// Where from.
    pub source: &'a dyn Source,
    /// Where to.
    pub sink: &'a dyn Sink,
    /// What, in order.
    pub extents: Extents<'a>,
    /// How.
    pub options: TaskOptions,
    /// Raised as data arrives.
    pub counters: &'a Counters,
    /// Called once for each worker.
    pub recorder: RecorderFactory<'a>,
}

/// How one task ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The first error.
    pub error: Option<Error>,
    /// Where a stream ended.
    pub stream_end: Option<u64>,
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct Report {
    /// One for each task, in order.
    pub outcomes: Vec<Outcome>,
    /// Whether the run was stopped and left work undone.
    pub cut_short: bool,
    /// Latency of reads.
    pub read_latency: Option<Latency>,
    /// Latency of writes.
    pub write_latency: Option<Latency>,
}

/// Moves all tasks' extents and returns when nothing is in flight any more. Nothing is flushed.
///
/// A task that fails does not end the others. The calling thread only waits.
pub fn run<'a>(
    settings: &'a Settings,
    tasks: Vec<Task<'a>>,
    control: &'a Control,
    rate: Option<&'a Rate>,
) -> Report {
    let deques: Vec<_> = (0..settings.workers.max(1)).map(|_| Deque::new_fifo()).collect();
    let stealers = deques.iter().map(Deque::stealer).collect();
    let mut shared_tasks = Vec::with_capacity(tasks.len());
    let mut lists = Vec::with_capacity(tasks.len());
    let mut factories = Vec::with_capacity(tasks.len());
    for task in tasks {
        lists.push((task.extents, order_of(task.source, task.sink), task.options.join_gap));
        factories.push(task.recorder);
        shared_tasks.push(SharedTask {
            source: task.source,
            sink: task.sink,
            options: task.options,
            counters: task.counters,
            error: Mutex::new(None),
            failed: AtomicBool::new(false),
            stream_end: AtomicU64::new(u64::MAX),
            bad_extents: AtomicU64::new(0),
        });
    }
    let queue = Queue::new(lists, settings.block_size, stealers);
    let cut_short = AtomicBool::new(false);
    let shared = Shared { settings, control, rate, tasks: shared_tasks, queue, cut_short };
    let mut reads = LatencyHistogram::default();
    let mut writes = LatencyHistogram::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = deques
            .into_iter()
            .enumerate()
            .map(|(index, own)| {
                let (shared, factories) = (&shared, &factories);
                let thread = std::thread::Builder::new().name(format!("mover-{index}"));
                thread.spawn_scoped(scope, move || {
                    // Caught here and not at the join, so that the other workers stop at once. Unwind safety:
                    // what a panic may have left half done is of tasks that have failed.
                    catch_unwind(AssertUnwindSafe(|| work(shared, own, factories, index))).unwrap_or_else(
                        |panic| {
                            fail_all(shared, panicked(&*panic));
                            Ok(WorkerStats::default())
                        },
                    )
                })
            })
            .collect();
        // Memory or rings for some workers but not for all: the others do the work, which is said.
        let mut started = 0;
        let mut not_started = None;
        for thread in threads {
            match thread.map(|thread| thread.join()) {
                Ok(Ok(Ok(stats))) => {
                    started += 1;
                    reads.add(&stats.reads);
                    writes.add(&stats.writes);
                }
                Ok(Ok(Err(error))) => not_started = Some(error),
                Ok(Err(panic)) => fail_all(&shared, panicked(&*panic)),
                Err(error) => {
                    let message = format!("cannot start a worker: {error}");
                    not_started = Some(Error::new(ErrorKind::Internal, message));
                }
            }
        }
        match not_started {
            Some(error) if started == 0 => fail_all(&shared, error),
            Some(error) => control.degrade(mover_model::event::Degradation {
                about: "workers".into(),
                wanted: format!("{} workers", settings.workers),
                used: format!("{started} of them"),
                reason: error.to_string(),
                path: None,
            }),
            None => {}
        }
    });
    let outcomes = shared
        .tasks
        .into_iter()
        .map(|task| Outcome {
            error: task.error.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()),
            stream_end: Some(task.stream_end.into_inner()).filter(|&end| end != u64::MAX),
        })
        .collect();
    Report {
        outcomes,
        cut_short: shared.cut_short.into_inner(),
        read_latency: reads.summary(),
        write_latency: writes.summary(),
    }
}

fn fail_all(shared: &Shared<'_>, error: Error) {
    shared.tasks.iter().for_each(|task| task.fail(error.clone()));
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let what = panic.downcast_ref::<String>().map(String::as_str);
    let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::new(ErrorKind::Internal, format!("a worker panicked: {what}"))
}

fn work<'a>(
    shared: &Shared<'a>,
    own: Deque<crate::plan::Item>,
    factories: &[RecorderFactory<'a>],
    index: usize,
) -> Result<WorkerStats> {
    if !shared.settings.cpus.is_empty() {
        let cpu = shared.settings.cpus[index % shared.settings.cpus.len()];
        if let Err(reason) = sys::pin_to_cpu(cpu) {
            shared.control.degrade(mover_model::event::Degradation {
                about: "cpus".into(),
                wanted: format!("a worker on CPU {cpu}"),
                used: "any CPU".into(),
                reason,
                path: None,
            });
        }
    }
    let recorders = factories.iter().map(|factory| factory()).collect();
    Ok(Worker::new(shared, own, recorders, index)?.run())
}
