//! One measurement: loads that run at the same time for a fixed time, each on workers of its own.
//!
//! Every load is an engine run of its own, so that each device has its own depth and workers, as a job of fio
//! has. Throughput is counted between two instants at which all loads are at full depth: neither the set-up
//! nor the draining of the rings is in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mover_engine::queue::Extents;
use mover_engine::stats::Counters;
use mover_engine::{
    Access, Control, Rate, ReadErrors, Recorder, Report, Segment, Settings, Sink, Source, Task, TaskOptions,
    run,
};
use mover_model::event::Latency;
use mover_model::{Result, limits};
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};

/// What is done to one path.
pub struct Load<'a> {
    /// Read from.
    pub source: &'a dyn Source,
    /// Written to.
    pub sink: &'a dyn Sink,
    /// How the source is read.
    pub source_access: Access,
    /// How the sink is written.
    pub sink_access: Access,
    /// Where, without end.
    pub extents: Extents<'a>,
    /// Whether the writes are measured, else the reads.
    pub write: bool,
}

/// What one load did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Bytes in the window.
    pub bytes: u64,
    /// Requests in the window.
    pub requests: u64,
    /// Latency of all requests.
    pub latency: Option<Latency>,
    /// CPU time of the load's own threads for each byte.
    pub cpu_seconds_per_byte: f64,
}

/// What all loads did.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// One for each load, in order.
    pub samples: Vec<Sample>,
    /// Length of the window.
    pub seconds: f64,
    /// CPU time of the process in the window, user and system together.
    pub cpu_seconds: f64,
}

/// Longest time that the first request of a load may take before the window opens all the same.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Runs all loads for `runtime`, or until `control` is stopped.
///
/// # Errors
/// The first error of any load.
pub fn measure(
    loads: Vec<Load<'_>>,
    settings: &Settings,
    runtime: Duration,
    rate: Option<u64>,
    control: &Control,
) -> Result<Window> {
    let inner = Control::new();
    let writes: Vec<_> = loads.iter().map(|load| load.write).collect();
    let counters: Vec<_> = loads.iter().map(|_| Counters::default()).collect();
    let cpu: Vec<_> = loads.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
    let rate = rate.map(Rate::new);
    let running = AtomicUsize::new(loads.len());
    let main = std::thread::current();
    let (mut window, reports) = std::thread::scope(|scope| {
        let threads: Vec<_> = loads
            .into_iter()
            .zip(counters.iter().zip(&cpu))
            .map(|(load, (counters, cpu))| {
                let (inner, rate, running, main) = (&inner, rate.as_ref(), &running, main.clone());
                scope.spawn(move || {
                    let report = run_load(load, settings, counters, cpu, inner, rate);
                    running.fetch_sub(1, Ordering::Release);
                    main.unpark();
                    report
                })
            })
            .collect();
        let watch = Watch { counters: &counters, writes: &writes, running: &running, control };
        let window = watch.window(threads.len(), runtime);
        inner.stop();
        let reports: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        (window, reports)
    });
    for degradation in inner.degraded(0) {
        control.degrade(degradation);
    }
    for (index, report) in reports.into_iter().enumerate() {
        let report = report.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if let Some(error) = report.outcomes.into_iter().find_map(|outcome| outcome.error) {
            return Err(error);
        }
        let sample = &mut window.samples[index];
        sample.latency = if writes[index] { report.write_latency } else { report.read_latency };
        let (bytes, _) = progress(&counters[index], writes[index]);
        let seconds = Duration::from_nanos(cpu[index].load(Ordering::Acquire)).as_secs_f64();
        sample.cpu_seconds_per_byte = if bytes == 0 { 0.0 } else { seconds / bytes as f64 };
    }
    Ok(window)
}

/// Moves a list of extents once, to its end.
///
/// # Errors
/// The task's.
pub fn move_all(
    source: &dyn Source,
    sink: &dyn Sink,
    extents: Extents<'_>,
    settings: &Settings,
    control: &Control,
) -> Result<()> {
    let (source_access, sink_access) = (source.access(), sink.access());
    let load = Load { source, sink, source_access, sink_access, extents, write: true };
    let cpu = Arc::new(AtomicU64::new(0));
    let report = run_load(load, settings, &Counters::default(), &cpu, control, None);
    report.outcomes.into_iter().find_map(|outcome| outcome.error).map_or(Ok(()), Err)
}

fn run_load(
    load: Load<'_>,
    settings: &Settings,
    counters: &Counters,
    cpu: &Arc<AtomicU64>,
    control: &Control,
    rate: Option<&Rate>,
) -> Report {
    let options = TaskOptions {
        source_access: load.source_access,
        sink_access: load.sink_access,
        zero_run: None,
        skip_zeros: false,
        keep_allocated: false,
        digest: false,
        join_gap: 0,
        read_errors: ReadErrors::Fail,
    };
    let task = Task {
        source: load.source,
        sink: load.sink,
        extents: load.extents,
        options,
        counters,
        recorder: Box::new(|| Box::new(ThreadCpu { begun: thread_cpu(), total: cpu.clone() })),
    };
    run(settings, vec![task], control, rate)
}

/// Made and dropped by a worker on its own thread: adds up the CPU time between.
struct ThreadCpu {
    begun: Duration,
    total: Arc<AtomicU64>,
}

impl Recorder for ThreadCpu {
    fn finished(&mut self, _: &Segment) {}
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}

impl Drop for ThreadCpu {
    fn drop(&mut self) {
        let spent = thread_cpu().saturating_sub(self.begun);
        self.total.fetch_add(spent.as_nanos() as u64, Ordering::Release);
    }
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// CPU time of the process so far, in seconds.
pub fn process_cpu_seconds() -> f64 {
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn progress(counters: &Counters, write: bool) -> (u64, u64) {
    let moved = counters.moved();
    if write { (moved.written_bytes, moved.writes) } else { (moved.read_bytes, moved.reads) }
}

struct Watch<'a> {
    counters: &'a [Counters],
    writes: &'a [bool],
    running: &'a AtomicUsize,
    control: &'a Control,
}

impl Watch<'_> {
    /// Waits for all loads to be under way, then for the time of the window.
    fn window(&self, loads: usize, runtime: Duration) -> Window {
        let begin = Instant::now();
        let under_way = || {
            self.counters.iter().zip(self.writes).all(|(counters, &write)| progress(counters, write).1 > 0)
        };
        while !under_way() && begin.elapsed() < FIRST_REQUEST_LIMIT && !self.over(loads) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let before = self.look();
        let opened = Instant::now();
        let tick = Duration::from_millis(limits::WAIT_MS);
        loop {
            let left = runtime.saturating_sub(opened.elapsed());
            if left.is_zero() || self.over(loads) {
                break;
            }
            std::thread::park_timeout(left.min(tick));
        }
        let seconds = opened.elapsed().as_secs_f64();
        let after = self.look();
        let samples = before
            .0
            .iter()
            .zip(&after.0)
            .map(|(before, after)| Sample {
                bytes: after.0 - before.0,
                requests: after.1 - before.1,
                ..Sample::default()
            })
            .collect();
        Window { samples, seconds, cpu_seconds: after.1 - before.1 }
    }

    /// Whether to end early: told to stop, or a load has failed.
    fn over(&self, loads: usize) -> bool {
        self.control.stopped() || self.running.load(Ordering::Acquire) < loads
    }

    fn look(&self) -> (Vec<(u64, u64)>, f64) {
        let figures =
            self.counters.iter().zip(self.writes).map(|(counters, &write)| progress(counters, write));
        (figures.collect(), process_cpu_seconds())
    }
}
