//! From extents to requests: the planner, and the queue that workers steal from. Per extent.
#![allow(missing_docs)] // what criterion's macros make

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_deque::Worker as Deque;
use mover_bench::{EXTENTS, criterion, regular};
use mover_engine::Order;
use mover_engine::plan::{Item, Planner, cut_request};
use mover_engine::queue::{Extents, Next, Queue, Tasks};
use mover_model::{Error, Extent};

const BLOCK_SIZE: u32 = 1 << 20;

struct NoneFails;

impl Tasks for NoneFails {
    fn failed(&self, _: usize) -> bool {
        false
    }
    fn fail(&self, _: usize, error: Error) {
        panic!("{error}");
    }
}

/// Cuts an item into requests as a worker does, and counts them.
fn requests(item: Item) -> u64 {
    match item {
        Item::Span { mut extent, .. } => {
            let mut count = 0;
            while extent.length > 0 {
                black_box(cut_request(&mut extent, BLOCK_SIZE));
                count += 1;
            }
            count
        }
        Item::Joined(_) | Item::Sequential { .. } => 1,
    }
}

fn plan(extents: &[Extent], join_gap: u32) -> u64 {
    let mut count = 0;
    let mut planner = Planner::new(0, BLOCK_SIZE, join_gap);
    let mut give = |item| count += requests(item);
    for &extent in extents {
        planner.add(extent, &mut give);
    }
    planner.flush(&mut give);
    count
}

fn drain(extents: &[Extent], workers: usize) -> u64 {
    let deques: Vec<_> = (0..workers).map(|_| Deque::new_fifo()).collect();
    let stealers = deques.iter().map(Deque::stealer).collect();
    let list: Extents<'_> = Box::new(extents.iter().copied().map(Ok));
    let queue = Queue::new(vec![(list, Order::Any, 0)], BLOCK_SIZE, stealers);
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for own in deques {
            let (queue, total) = (&queue, &total);
            scope.spawn(move || {
                let mut count = 0;
                loop {
                    match queue.next(&own, &NoneFails) {
                        Next::Item(item) => count += requests(item),
                        Next::Later => std::thread::yield_now(),
                        Next::Never => break,
                    }
                }
                total.fetch_add(count, Ordering::Relaxed);
            });
        }
    });
    total.into_inner()
}

fn scheduler(c: &mut Criterion) {
    let apart = regular(EXTENTS);
    // Pairs 8 KiB apart: each becomes one request of two pieces.
    let near: Vec<_> = (0..EXTENTS as u64)
        .map(|n| Extent::data((n / 2) * (256 << 10) + (n % 2) * (24 << 10), 16 << 10))
        .collect();
    let whole = [Extent::data(0, (EXTENTS as u64) << 20)];
    let mut group = c.benchmark_group("scheduler");
    group.throughput(Throughput::Elements(EXTENTS as u64));
    group.bench_function("plan/apart", |b| b.iter(|| plan(black_box(&apart), 32 << 10)));
    group.bench_function("plan/joined", |b| b.iter(|| plan(black_box(&near), 32 << 10)));
    group.bench_function("plan/one-extent-of-100000-requests", |b| {
        b.iter(|| plan(black_box(&whole), 32 << 10))
    });
    for workers in [1, 2, 4] {
        group.bench_function(format!("queue/{workers}-workers"), |b| {
            b.iter(|| assert_eq!(drain(black_box(&apart), workers), EXTENTS as u64));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = scheduler }
criterion_main!(benches);
