//! Moves disks to their targets: everything aligned by the best way, then the rims through the page cache.

use std::sync::atomic::Ordering;

use mover_engine::queue::Extents;
use mover_engine::{
    Access, ReadErrors, Recorder, Report, Segment, Source, Task, TaskOptions, run as run_engine,
};
use mover_model::{ChunkId, Extent, ExtentKind, ExtentList, Locator, Result, limits};

use super::execute::Run;
use super::open::{Asked, OpenDisk};
use crate::copy::Sparse;

/// Which part of the extents.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// What keeps to the target's alignment.
    Main,
    /// The end of a disk whose size does not.
    Rims,
}

/// Moves all disks; latencies are of the first pass.
pub(super) fn move_all(run: &Run<'_>, asked: &[Asked<'_>]) -> Report {
    let report = pass(run, asked, Pass::Main);
    // A dirty page of a rim that is written back beside a direct write would carry old bytes over new ones, so not
    // before nothing is in flight.
    let rims = asked.iter().filter_map(Asked::writing).any(|open| aligned_end(open) < open.root.size);
    if rims && !run.cut_short.load(Ordering::Acquire) {
        pass(run, asked, Pass::Rims);
    }
    report
}

fn pass(run: &Run<'_>, asked: &[Asked<'_>], pass: Pass) -> Report {
    let lists: Vec<_> = asked
        .iter()
        .map(|asked| {
            let open = asked.open.as_ref()?;
            open.differing.lock().unwrap_or_else(|p| p.into_inner()).clone()
        })
        .collect();
    let mut tasks = Vec::new();
    let mut indices = Vec::new();
    for (index, (asked, list)) in asked.iter().zip(&lists).enumerate() {
        let Some(open) = asked.writing() else { continue };
        let extents = match extents_of(run, open, list.as_ref(), pass) {
            Ok(extents) => extents,
            Err(error) => {
                asked.fail(error);
                continue;
            }
        };
        tasks.push(Task {
            source: &open.source,
            sink: &*open.target.sink,
            extents,
            options: task_options(run, &asked.target, open, pass),
            counters: &open.counters,
            recorder: Box::new(|| Box::new(NoRecord)),
        });
        indices.push(index);
    }
    if tasks.is_empty() {
        return Report::default();
    }
    let report = run_engine(&run.settings, tasks, run.control, run.rate.as_ref());
    if report.cut_short {
        run.cut_short.store(true, Ordering::Release);
    }
    for (outcome, index) in report.outcomes.iter().zip(indices) {
        if let Some(error) = &outcome.error {
            asked[index].fail(error.clone());
        }
    }
    report
}

/// The extents of a pass. Chunks are larger than any device's blocks: only the disk's end can be unaligned.
fn extents_of<'a>(
    run: &Run<'_>,
    open: &'a OpenDisk,
    list: Option<&'a ExtentList>,
    pass: Pass,
) -> Result<Extents<'a>> {
    let cut = aligned_end(open);
    match (pass, list) {
        (Pass::Main, Some(list)) => {
            Ok(Box::new(list.iter().filter_map(move |extent| extent.clip(0, cut)).map(Ok)))
        }
        (Pass::Main, None) => Ok(Box::new(open.source.extents()?.filter_map(move |extent| match extent {
            Ok(extent) => extent.clip(0, cut).map(Ok),
            Err(error) => Some(Err(error)),
        }))),
        (Pass::Rims, Some(list)) => {
            let rims: Vec<_> = list.clip(cut, open.root.size).iter().map(Ok).collect();
            Ok(Box::new(rims.into_iter()))
        }
        (Pass::Rims, None) if cut == open.root.size => Ok(Box::new(std::iter::empty())),
        (Pass::Rims, None) => {
            // The tree is not walked again for its last chunk.
            let last = (open.root.size - 1) / u64::from(open.root.chunk_size);
            let is_hole = run.nodes.chunk_ids(&open.root, last, 1)?.iter().all(ChunkId::is_hole);
            let kind = if is_hole { ExtentKind::Hole } else { ExtentKind::Data };
            Ok(Box::new(std::iter::once(Ok(Extent::new(cut, open.root.size - cut, kind)))))
        }
    }
}

/// Up to here a disk can be written by the target's best way.
fn aligned_end(open: &OpenDisk) -> u64 {
    let sink = &open.target.sink;
    let granule = u64::from(sink.alignment(sink.access()).offset);
    open.root.size / granule * granule
}

fn task_options(run: &Run<'_>, target: &Locator, open: &OpenDisk, pass: Pass) -> TaskOptions {
    let sparse = run.options.sparse;
    // Where zeros need not be told from data, looking for them would only cost.
    let looks = pass == Pass::Main && !open.in_order() && !matches!(target, Locator::Null { .. });
    TaskOptions {
        source_access: Access::Direct,
        sink_access: if pass == Pass::Main { open.target.sink.access() } else { Access::Buffered },
        zero_run: match sparse {
            // Runs are looked for within requests, which may be smaller.
            Sparse::Auto if looks => {
                Some(limits::ZERO_RUN_AUTO.min(1 << run.settings.block_size.trailing_zeros()))
            }
            Sparse::Always if looks => Some(limits::ZERO_RUN_ALWAYS),
            _ => None,
        },
        skip_zeros: open.target.sink.reads_zero() && (sparse != Sparse::Never || open.target.file.is_none()),
        keep_allocated: sparse == Sparse::Never,
        digest: false,
        join_gap: 0,
        read_errors: ReadErrors::Fail,
    }
}

struct NoRecord;

impl Recorder for NoRecord {
    fn finished(&mut self, _: &Segment) {}
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}
