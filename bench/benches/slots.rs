//! The slot loop: whole runs of the engine over ends that cost little, so that what is left is the loop.
//! Per request.
#![allow(missing_docs)] // what criterion's macros make

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mover_bench::criterion;
use mover_endpoints::{Direct, Null, OpenOptions, TargetOptions, open_source, open_target};
use mover_engine::capability::probe_uring;
use mover_engine::pattern::Noise;
use mover_engine::stats::{Counters, LatencyHistogram};
use mover_engine::{
    Access, Backend, Control, ReadErrors, Recorder, Segment, Settings, Sink, Source, Task, TaskOptions, run,
};
use mover_model::{Extent, Locator};

struct Deaf;

impl Recorder for Deaf {
    fn finished(&mut self, segment: &Segment) {
        black_box(segment);
    }
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}

struct Shape {
    backend: Backend,
    workers: usize,
    block_size: u32,
    requests: u64,
}

impl Shape {
    fn bytes(&self) -> u64 {
        self.requests * u64::from(self.block_size)
    }
}

fn transfer(shape: &Shape, source: &dyn Source, sink: &dyn Sink) {
    let settings = Settings {
        backend: shape.backend,
        workers: shape.workers,
        block_size: shape.block_size,
        ..Settings::default()
    };
    let options = TaskOptions {
        source_access: Access::Buffered,
        sink_access: Access::Buffered,
        zero_run: None,
        skip_zeros: false,
        keep_allocated: false,
        digest: false,
        join_gap: 0,
        read_errors: ReadErrors::Fail,
    };
    let (control, counters) = (Control::new(), Counters::default());
    let task = Task {
        source,
        sink,
        extents: Box::new(std::iter::once(Ok(Extent::data(0, shape.bytes())))),
        options,
        counters: &counters,
        recorder: Box::new(|| Box::new(Deaf) as Box<dyn Recorder>),
    };
    let report = run(&settings, vec![task], &control, None);
    assert!(report.outcomes[0].error.is_none(), "{:?}", report.outcomes[0].error);
    assert_eq!(counters.moved().writes, shape.requests);
}

fn backends() -> Vec<Backend> {
    // Without io_uring only the other backend is measured: its lines are missing then.
    let uring = probe_uring().is_ok().then_some(Backend::Uring);
    std::iter::once(Backend::Sync).chain(uring).collect()
}

fn slots(c: &mut Criterion) {
    let mut group = c.benchmark_group("slots");
    let memory = Path::new("/dev/shm");
    let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let folder = tempfile::tempdir_in(memory).expect("a folder in memory");
    for backend in backends() {
        // A null source fills each buffer with zeros; noise fills it once. The difference is the filling.
        for workers in [1, 2] {
            let shape = Shape { backend, workers, block_size: 4 << 10, requests: 100_000 };
            let name = format!("{}/{workers}-workers", backend.name());
            group.throughput(Throughput::Elements(shape.requests));
            let (null, noise) = (Null { size: Some(shape.bytes()) }, Noise { size: shape.bytes(), seed: 1 });
            group.bench_function(format!("noise-to-null-4K/{name}"), |b| {
                b.iter(|| transfer(&shape, &noise, &null));
            });
            group.bench_function(format!("null-to-null-4K/{name}"), |b| {
                b.iter(|| transfer(&shape, &null, &null));
            });
        }
        for block_size in [4 << 10, 256 << 10] {
            let shape =
                Shape { backend, workers: 1, block_size, requests: (64 << 20) / u64::from(block_size) };
            let (source, target) = (folder.path().join("source"), folder.path().join("target"));
            std::fs::write(&source, vec![0x5a; shape.bytes() as usize]).expect("a source");
            // Already written, as a second copy finds it: what is measured is the copy, not the making of pages.
            std::fs::copy(&source, &target).expect("a target");
            let (open, control) = (OpenOptions { direct: Direct::Off }, Control::new());
            let source = open_source(&Locator::Path(source), open, &control).expect("a source");
            let options =
                TargetOptions { force: true, size: Some(shape.bytes()), ..TargetOptions::default() };
            let target = open_target(&Locator::Path(target), options, open, &control).expect("a target");
            group.throughput(Throughput::Elements(shape.requests));
            group.bench_function(format!("tmpfs-to-tmpfs-{}K/{}", block_size >> 10, backend.name()), |b| {
                b.iter(|| transfer(&shape, &*source.source, &*target.sink));
            });
        }
    }
    group.finish();
}

fn fixed_cost(c: &mut Criterion) {
    let mut group = c.benchmark_group("run");
    for backend in backends() {
        for workers in [1, 2, 8] {
            // What a run costs before its first request: threads, rings, buffers and their registration.
            let shape = Shape { backend, workers, block_size: 1 << 20, requests: 1 };
            let (noise, null) = (Noise { size: shape.bytes(), seed: 1 }, Null { size: None });
            group.bench_function(format!("one-request/{}/{workers}-workers", backend.name()), |b| {
                b.iter(|| transfer(&shape, &noise, &null));
            });
        }
    }
    group.finish();
}

fn latency(c: &mut Criterion) {
    let mut group = c.benchmark_group("latency");
    let mut histogram = LatencyHistogram::default();
    let mut elapsed = 1;
    group.bench_function("record", |b| {
        b.iter(|| {
            elapsed = (elapsed * 7 + 1) % 100_000;
            histogram.record(Duration::from_micros(black_box(elapsed)));
        });
    });
    group.bench_function("summary", |b| b.iter(|| black_box(&histogram).summary()));
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = slots, fixed_cost, latency }
criterion_main!(benches);
