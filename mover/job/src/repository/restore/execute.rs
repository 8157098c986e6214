//! The course of a restore: open everything, decide, say the plan, compare, move, flush.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mover_engine::{Control, Rate, Report, Settings, Source};
use mover_model::event::{
    CommonResult, DiskResult, DiskStatus, Event, Moved, PairResult, PointResult, RunResult, Status,
};
use mover_model::manifest::{Manifest, Stored};
use mover_model::{Error, ErrorKind, Locator, Operation, PointSelector, Result};
use mover_repository::index::Index;
use mover_repository::read::Chunks;
use mover_repository::tree::Nodes;
use mover_repository::{Repository, manifests};

use super::marker::{self, Marker};
use super::open::{Asked, MadeFolder, Origin};
use super::{RestoreOptions, documents, lost, moving, open, same, settle};
use crate::Emit;
use crate::progress::Ticker;
use crate::repository::access;

/// Everything that the steps of one restore share.
pub(super) struct Run<'a> {
    pub options: &'a RestoreOptions,
    pub settings: Settings,
    pub rate: Option<Rate>,
    pub control: &'a Control,
    pub emit: Emit<'a>,
    pub nodes: Arc<Nodes>,
    /// Whether a stop left work undone.
    pub cut_short: AtomicBool,
}

/// Runs the restore; what became of each disk goes to `result`, an error of the run as a whole is returned.
pub(super) fn execute(
    options: &RestoreOptions,
    control: &Control,
    emit: Emit<'_>,
    result: &mut RunResult,
) -> Result<()> {
    open::check(options)?;
    let repository = access::open(&options.repository)?;
    // Before anything is looked up: from here on gc deletes nothing that this run may need.
    let (session, degradation) = access::begin_reading(&repository, "restore")?;
    degradation.into_iter().for_each(|degradation| control.degrade(degradation));
    let ended = restore(&repository, options, control, emit, result);
    access::end_reading(session, emit);
    ended
}

fn restore(
    repository: &Arc<Repository>,
    options: &RestoreOptions,
    control: &Control,
    emit: Emit<'_>,
    result: &mut RunResult,
) -> Result<()> {
    let manifest = select(repository, options, emit)?;
    // After the manifest: a restore point that is committed meanwhile may need segments that were put meanwhile.
    let index = Arc::new(Index::open_for_reading(repository)?);
    let tell_index = || index.degradations().into_iter().for_each(|degradation| control.degrade(degradation));
    tell_index();
    result.point = Some(point_result(repository, &manifest));
    if manifest.damaged {
        let message = format!(
            "{}@{}: parts of it could not be read when it was made; they are zeros or older content",
            manifest.vm, manifest.point
        );
        emit(Event::Warning { message });
    }
    let chunks = Arc::new(Chunks::new(repository.clone(), index.clone()));
    let nodes = Arc::new(Nodes::new(chunks.clone()));
    let mut asked = open::choose(options, &manifest)?;
    super::common_disks::decide(repository, options, &manifest, &mut asked, emit)?;
    let documents = documents::plan(options, &manifest, emit)?;
    let made = MadeFolder::make(options)?;
    let origin = Origin { options, manifest: &manifest, nodes: &nodes, chunks: &chunks };
    open::open_all(&origin, &mut asked, control, emit)?;
    let ticker = Ticker::new(emit, control, options.strict);
    let settings = match settle::settle(options, &manifest, &asked, control, emit, &ticker) {
        Ok(settings) => settings,
        Err(error) => {
            open::abandon(&asked);
            return Err(error);
        }
    };
    if options.dry_run {
        fill(result, &asked, options, &Report::default());
        return Ok(());
    }
    let run = Run {
        options,
        rate: options.engine.rate.map(Rate::new),
        settings,
        control,
        emit,
        nodes,
        cut_short: AtomicBool::new(false),
    };
    mark(&run, &manifest, &mut asked);
    made.keep();
    let total = asked.iter().filter(|asked| asked.writing().is_some()).map(total_bytes).sum();
    let (report, written) = std::thread::scope(|scope| {
        let asked = &asked;
        let ticking = std::thread::Builder::new()
            .name("progress".into())
            .spawn_scoped(scope, || ticker.run(|| progress(asked), Some(total)));
        let ticking = match ticking {
            Ok(ticking) => ticking,
            Err(error) => return (Report::default(), Err(no_thread(&error))),
        };
        // Also when what follows panics: the scope waits for the ticker.
        let _ends = ticker.ends_with(ticking.thread().clone());
        let report = bring(&run, asked, &ticker);
        (report, documents::write(options, &documents))
    });
    // With what lookups have found since.
    tell_index();
    ticker.tell_degradations();
    fill(result, &asked, options, &report);
    written?;
    if options.strict && !control.degraded(0).is_empty() {
        return Err(settle::strict_error(control));
    }
    Ok(())
}

/// The restore point that is meant. Others of the machine that cannot be read are told, and stand in nobody's way.
fn select(repository: &Repository, options: &RestoreOptions, emit: Emit<'_>) -> Result<Manifest> {
    if let PointSelector::Id(point) = &options.point
        && let Some(manifest) = manifests::get(repository, &options.vm, point)?
    {
        return Ok(manifest);
    }
    let points = manifests::all(repository, &options.vm)?;
    for (key, error) in &points.unreadable {
        emit(Event::Warning { message: format!("the restore point {key} cannot be read: {error}") });
    }
    points.select(&options.vm, &options.point).cloned()
}

/// Marks every target as being restored, before its first byte.
fn mark(run: &Run<'_>, manifest: &Manifest, asked: &mut [Asked<'_>]) {
    for asked in asked {
        let disk = asked.disk;
        let Some(open) = &mut asked.open else { continue };
        let Some(path) = open.marker.clone() else { continue };
        let (vm, point) = (manifest.vm.as_str(), manifest.point.as_str());
        let mark = Marker::new(&manifest.repository, vm, point, disk.id.as_str(), disk.root);
        let written = mark.with_target(&open.target).map(|mark| mark.write(&path));
        if let Some(Err(error)) = written {
            let message =
                format!("{}: a stopped run could not be gone on with (--resume): {error}", asked.target);
            (run.emit)(Event::Warning { message });
            open.marker = None;
        }
    }
}

fn bring(run: &Run<'_>, asked: &[Asked<'_>], ticker: &Ticker<'_>) -> Report {
    let writing = |asked: &&Asked<'_>| asked.writing().is_some();
    if asked.iter().filter(writing).any(|asked| asked.open.as_ref().is_some_and(|open| open.compare)) {
        ticker.phase("compare");
        same::compare(run, asked);
    }
    let mut report = Report::default();
    if !run.cut_short.load(Ordering::Acquire) {
        for asked in asked.iter().filter(writing) {
            let Some(file) = asked.open.as_ref().and_then(|open| open.target.file.as_ref()) else { continue };
            if let Err(error) = file.prepare() {
                asked.fail(error);
            }
        }
        ticker.phase("restore");
        report = moving::move_all(run, asked);
    }
    ticker.phase("flush");
    for asked in asked {
        let Some(open) = &asked.open else { continue };
        // Also after a failure: what is there is then as durable as it can be.
        let stopped = run.cut_short.load(Ordering::Acquire);
        match finish(asked, open, stopped) {
            Ok(()) => open.flushed.store(open.target.file.is_some(), Ordering::Release),
            Err(error) => asked.fail(error),
        }
        if !stopped {
            lost::settle(run, asked, open, &open.source.label());
        }
        if asked.failed() {
            continue;
        }
        if stopped {
            asked.fail(stopped_error(asked, open.marker.as_deref()));
        } else if let Some(Err(error)) = open.marker.as_deref().map(marker::remove) {
            (run.emit)(Event::Warning { message: error.to_string() });
        }
    }
    report
}

/// Sets the final size and makes the target durable.
fn finish(asked: &Asked<'_>, open: &open::OpenDisk, stopped: bool) -> Result<()> {
    if !asked.failed() && !stopped {
        open.target.sink.finish(open.root.size)?;
    }
    open.target.sink.flush()
}

fn stopped_error(asked: &Asked<'_>, marker: Option<&Path>) -> Error {
    let (kind, hint) = match marker {
        Some(_) => (ErrorKind::Interrupted, "run the same command with --resume to go on"),
        None => (ErrorKind::Stopped, "run it again from the start"),
    };
    Error::new(kind, "stopped before everything was restored: the target is not complete")
        .at(asked.target.to_string())
        .hint(hint)
}

fn no_thread(error: &std::io::Error) -> Error {
    Error::io(Operation::Setup, "a thread", error)
        .hint("raise the limit on processes (ulimit -u, pids of the container)")
}

/// Bytes that a disk's progress counts up to: its data, and of one that is compared first all that is looked at.
fn total_bytes(asked: &Asked<'_>) -> u64 {
    if asked.open.as_ref().is_some_and(|open| open.compare) { asked.disk.size } else { asked.disk.data_bytes }
}

/// What moved, for progress: holes are no work, and count for nothing but where data was found to be zeros.
fn progress(asked: &[Asked<'_>]) -> Moved {
    let moved = moved(asked);
    Moved { zero_bytes: moved.zero_found_bytes, ..moved }
}

fn moved(asked: &[Asked<'_>]) -> Moved {
    let mut total = Moved::default();
    asked.iter().filter_map(|asked| asked.open.as_ref()).for_each(|open| total += open.moved());
    total
}

fn point_result(repository: &Repository, manifest: &Manifest) -> PointResult {
    PointResult {
        repository: repository.config().id.clone(),
        vm: manifest.vm.to_string(),
        id: manifest.point.to_string(),
        parent: manifest.parent.as_ref().map(ToString::to_string),
        committed: true,
        repeated: false,
        damaged: manifest.damaged,
        disks: Vec::new(),
        stored: Stored::default(),
    }
}

fn fill(result: &mut RunResult, asked: &[Asked<'_>], options: &RestoreOptions, report: &Report) {
    result.moved = moved(asked);
    (result.read_latency, result.write_latency) = (report.read_latency, report.write_latency);
    let Some(point) = &mut result.point else { return };
    for asked in asked {
        let error = asked.error.lock().unwrap_or_else(|p| p.into_inner()).clone();
        let moved = asked.open.as_ref().map(open::OpenDisk::moved).unwrap_or_default();
        point.disks.push(disk_result(asked, error.is_some(), moved, options));
        if asked.kept.is_some() {
            continue;
        }
        let source = format!("{}@{} {}", point.vm, point.id, asked.disk.id);
        result.pairs.push(PairResult {
            disk: Some(asked.disk.id.to_string()),
            source,
            target: asked.target.to_string(),
            status: if error.is_some() { Status::Failed } else { Status::Done },
            size: Some(asked.disk.size),
            moved,
            flushed: asked.open.as_ref().is_some_and(|open| open.flushed.load(Ordering::Acquire)),
            verified: false,
            error: error.map(|error| {
                let mut record = error.record();
                record.disk = Some(asked.disk.id.to_string());
                record
            }),
        });
    }
}

fn disk_result(asked: &Asked<'_>, failed: bool, moved: Moved, options: &RestoreOptions) -> DiskResult {
    let disk = asked.disk;
    let compared = asked
        .open
        .as_ref()
        .is_some_and(|open| open.differing.lock().unwrap_or_else(|p| p.into_inner()).is_some());
    DiskResult {
        id: disk.id.to_string(),
        status: match (&asked.kept, failed) {
            (Some(_), _) => DiskStatus::Kept,
            (None, true) => DiskStatus::Failed,
            (None, false) if options.dry_run => DiskStatus::Skipped,
            (None, false) => DiskStatus::Restored,
        },
        size: disk.size,
        root: Some(disk.root.to_string()),
        method: Some(disk.method),
        reason: asked.kept.clone().or_else(|| {
            let same = moved.verified_bytes;
            compared.then(|| format!("{same} of {} bytes were the same, and not written", disk.size))
        }),
        read_bytes: moved.read_bytes,
        stored: Stored::default(),
        common: disk.common.as_ref().map(|common| CommonResult {
            id: common.id.clone(),
            location: common.location.clone(),
            vms: asked.vms.clone(),
        }),
    }
}

/// The locators of targets, for what is chosen by where they lie.
pub(super) fn target_paths<'a>(asked: &'a [Asked<'_>]) -> impl Iterator<Item = &'a Path> {
    asked.iter().filter(|asked| asked.open.is_some()).filter_map(|asked| match &asked.target {
        Locator::Path(path) => Some(path.as_path()),
        _ => None,
    })
}
