//! The algebra of extents on lists of 100,000, and reading them from a file. Per extent of the first list.
#![allow(missing_docs)] // what criterion's macros make

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mover_bench::{EXTENTS, criterion, scattered, shuffled};
use mover_model::{ExtentKind, ExtentList, extents_file};
use serde_json::json;

fn algebra(c: &mut Criterion) {
    let (one, other) = (scattered(EXTENTS, 1), scattered(EXTENTS, 2));
    let (ordered, mixed) = (one.iter().collect::<Vec<_>>(), shuffled(&one, 3));
    let mut group = c.benchmark_group("extents");
    group.throughput(Throughput::Elements(EXTENTS as u64));
    group.bench_function("subtract", |b| b.iter(|| black_box(&one).subtract(black_box(&other))));
    group.bench_function("intersect", |b| b.iter(|| black_box(&one).intersect(black_box(&other))));
    group.bench_function("union", |b| b.iter(|| black_box(&one).union(black_box(&other))));
    group.bench_function("fill_gaps", |b| {
        b.iter(|| black_box(&one).fill_gaps(i64::MAX as u64, ExtentKind::Hole));
    });
    for (name, extents) in [("ordered", ordered), ("shuffled", mixed)] {
        group.bench_function(format!("from_unordered/{name}"), |b| {
            b.iter(|| ExtentList::from_unordered(black_box(&extents).iter().copied(), None));
        });
    }
    group.finish();
}

fn file(c: &mut Criterion) {
    let list = scattered(EXTENTS, 1);
    let own: Vec<_> = list
        .iter()
        .map(|extent| json!({ "start": extent.start, "length": extent.length, "kind": extent.kind }))
        .collect();
    let own =
        json!({ "format": "mover-extents", "version": 1, "size": list.end(), "extents": own }).to_string();
    let qemu: Vec<_> = list
        .fill_gaps(list.end().unwrap_or(0), ExtentKind::Hole)
        .iter()
        .map(|extent| {
            let data = extent.kind == ExtentKind::Data;
            json!({ "start": extent.start, "length": extent.length, "depth": 0, "present": true,
                    "zero": !data, "data": data, "offset": extent.start })
        })
        .collect();
    let qemu = serde_json::Value::from(qemu).to_string();
    let mut group = c.benchmark_group("extents-file");
    for (name, text) in [("mover", own), ("qemu-img-map", qemu)] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| extents_file::parse(black_box(text.as_bytes()), None).expect("a list"));
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = algebra, file }
criterion_main!(benches);
