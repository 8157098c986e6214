//! What a worker does with a buffer between read and write: the search for zeros, and the digest. Per byte
//! of a request of 1 MiB.
#![allow(missing_docs)] // what criterion's macros make

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mover_bench::criterion;
use mover_engine::pattern::SplitMix;
use mover_engine::transform::{digest, is_zero, zero_runs};

const BLOCK_SIZE: usize = 1 << 20;

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SplitMix::new(1).fill(&mut bytes);
    bytes
}

fn zero_scan(c: &mut Criterion) {
    let (data, zeros) = (noise(BLOCK_SIZE), vec![0; BLOCK_SIZE]);
    // Every other 64 KiB is zeros.
    let mut mixed = data.clone();
    mixed.chunks_mut(64 << 10).step_by(2).for_each(|part| part.fill(0));
    // Zeros up to the last word of each 4 KiB: all of it is read and nothing found, the worst there is.
    let mut sly = zeros.clone();
    sly.chunks_mut(4 << 10).for_each(|part| part[4095] = 1);
    let mut group = c.benchmark_group("zero-scan");
    group.throughput(Throughput::Bytes(BLOCK_SIZE as u64));
    for (name, bytes) in [("data", &data), ("zeros", &zeros), ("mixed", &mixed), ("almost-zeros", &sly)] {
        for granule in [64 << 10, 4 << 10] {
            group.bench_function(format!("{name}/{}K", granule >> 10), |b| {
                b.iter(|| {
                    let mut found = 0;
                    zero_runs(black_box(bytes), 0, granule, |run| found += u64::from(run.zero));
                    found
                });
            });
        }
    }
    group.bench_function("is_zero", |b| b.iter(|| is_zero(black_box(&zeros))));
    group.finish();
}

fn digests(c: &mut Criterion) {
    let data = noise(BLOCK_SIZE);
    let mut group = c.benchmark_group("digest");
    for length in [4 << 10, 64 << 10, BLOCK_SIZE] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(format!("{}K", length >> 10), |b| b.iter(|| digest(black_box(&data[..length]))));
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = zero_scan, digests }
criterion_main!(benches);
