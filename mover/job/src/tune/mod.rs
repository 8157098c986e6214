//! `mover tune`: finds the block size, queue depth and number of workers that are fastest on a path.
//!
//! It reads in order, as `copy` does, going on where the measurement before ended; or, when told to, writes
//! into a file that it makes itself. `search` decides what is measured.

pub mod search;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mover_engine::capability::available_cpus;
use mover_engine::{Backend, Control, Settings};
use mover_model::event::{Degradation, Event};
use mover_model::units::format_size;
use mover_model::{Error, ErrorKind, Operation, Result, limits};
use serde::Serialize;

use crate::Emit;
use crate::bench::measure::measure;
use crate::bench::report::PathFacts;
use crate::bench::seed_of_now;
use crate::bench::target::{Target, devices_of, folder_of};
use crate::options::{EngineOptions, Profile};
use crate::resolve::{Found, resolve};
use search::{Candidate, Cell, Space, Stage, best, measurements_max, search};

/// How long everything takes when nothing is said.
pub const RUNTIME: Duration = Duration::from_secs(20);
/// Least time of one measurement: less shows the start and not the device.
const SLICE_MIN: Duration = Duration::from_millis(20);
/// Most time of one measurement: more adds nothing.
const SLICE_MAX: Duration = Duration::from_secs(2);
/// Size of the file made for writing when nothing is said.
pub const WRITE_SIZE: u64 = 512 << 20;

/// What `mover tune` is told.
#[derive(Debug, Clone)]
pub struct TuneOptions {
    /// A file or device to read; with `write_test` a folder, or a file in the folder to write in.
    pub path: PathBuf,
    /// Writes instead of reads, in a file of its own.
    pub write_test: bool,
    /// Where to keep a profile.
    pub save: Option<PathBuf>,
    /// How long everything takes, about.
    pub runtime: Duration,
    /// Bytes from the path's start that are read; size of the file that is written.
    pub size: Option<u64>,
    /// The engine's flags: what is given here is not searched.
    pub engine: EngineOptions,
}

/// The document of `mover tune --json`. Version 1 only grows.
#[derive(Debug, Clone, Serialize)]
pub struct TuneReport {
    /// `mover-tune`.
    pub format: &'static str,
    /// 1.
    pub version: u32,
    /// `read` or `write`.
    pub operation: &'static str,
    /// What was measured.
    pub path: PathFacts,
    /// `io_uring` or `sync`.
    pub backend: &'static str,
    /// Seconds of each measurement.
    pub slice_seconds: f64,
    /// All combinations that were measured, in order of their first measurement.
    pub cells: Vec<TuneCell>,
    /// The flags to use: the least memory within 3 % of the best throughput.
    pub best: TuneCell,
    /// What the defaults give, where they were measured.
    pub default: Option<TuneCell>,
    /// The flags as they are written on a command line.
    pub flags: String,
    /// Where the profile was saved.
    pub saved: Option<PathBuf>,
    /// What was wanted and not to be had.
    pub degraded: Vec<Degradation>,
    /// What to know when reading the figures.
    pub notes: Vec<String>,
    /// Whether a signal ended it early.
    pub interrupted: bool,
}

/// One combination and what it gave.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TuneCell {
    /// Bytes of one request.
    pub block_size: u32,
    /// Requests in flight for each worker.
    pub queue_depth: u16,
    /// Worker threads.
    pub workers: usize,
    /// Buffer memory in bytes.
    pub buffer_bytes: u64,
    /// Median throughput in 10⁹ bytes a second.
    pub gb_per_second: f64,
    /// How often it was measured.
    pub measurements: usize,
    /// When it was measured first.
    pub stage: Stage,
}

impl TuneCell {
    fn of(cell: &Cell) -> Self {
        let Candidate { workers, block_size, queue_depth } = cell.candidate;
        TuneCell {
            block_size,
            queue_depth,
            workers,
            buffer_bytes: cell.candidate.memory_bytes(),
            gb_per_second: cell.rate() / 1e9,
            measurements: cell.rates.len(),
            stage: cell.stage,
        }
    }
}

/// Measures, names the best flags, and saves them where asked.
///
/// # Errors
/// As [`crate::bench::run`]; `Refused` when the file to save in exists and is no profile.
pub fn run(options: &TuneOptions, control: &Control, emit: Emit<'_>) -> Result<TuneReport> {
    if options.runtime.is_zero() {
        return Err(Error::usage("--runtime 0: nothing would be measured"));
    }
    if let Some(save) = &options.save {
        refuse_other_file(save)?;
    }
    let target = open(options, control, emit)?;
    let (settings, default) = settings_of(options, &target, control, emit)?;
    let space = space_of(options, &settings, &target);
    let slice = slice_of(options.runtime, measurements_max(&space));
    let mut stage_now = None;
    let mut position = 0;
    let cells = search(&space, Some(default), |candidate, stage| {
        if control.stopped() {
            return Ok(None);
        }
        if stage_now.replace(stage) != Some(stage) {
            emit(Event::Phase { phase: stage_name(stage).to_owned() });
        }
        let rate =
            measure_one(&target, candidate, &settings, slice, options.engine.rate, &mut position, control)?;
        Ok((!control.stopped()).then_some(rate))
    })?;
    let found = best(&cells)
        .ok_or_else(|| Error::new(ErrorKind::Stopped, "stopped by a signal before anything was measured"))?;
    let interrupted = control.stopped();
    let saved = options.save.clone().filter(|_| !interrupted);
    if let Some(path) = &saved {
        save(path, &found.candidate)?;
    }
    let default = cells.iter().find(|cell| cell.candidate == default);
    Ok(TuneReport {
        format: "mover-tune",
        version: 1,
        operation: if options.write_test { "write" } else { "read" },
        path: PathFacts::of(&target),
        backend: settings.backend.name(),
        slice_seconds: slice.as_secs_f64(),
        best: TuneCell::of(found),
        default: default.map(TuneCell::of),
        flags: flags_of(&found.candidate),
        cells: cells.iter().map(TuneCell::of).collect(),
        saved,
        degraded: control.degraded(0),
        notes: notes_of(options, &target),
        interrupted,
    })
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Coarse => "coarse search",
        Stage::Refine => "finer, around the best",
        Stage::Final => "the best against each other",
    }
}

fn open(options: &TuneOptions, control: &Control, emit: Emit<'_>) -> Result<Target> {
    let path = &options.path;
    let label = path.display().to_string();
    let meta = std::fs::metadata(path).map_err(|error| Error::io(Operation::Stat, &label, &error))?;
    // Blocks as small as the smallest that is tried; larger ones are cut at their own grid.
    let granule = limits::BLOCK_SIZE_MIN;
    let direct = options.engine.direct;
    if !options.write_test {
        if meta.is_dir() {
            return Err(Error::usage("is a folder: there is nothing to read")
                .at(label)
                .hint("--write-test measures writes, in a file that it makes there itself"));
        }
        return Target::to_read(path, granule, options.size, direct, control);
    }
    if !meta.is_dir() && !meta.is_file() {
        return Err(Error::refused(
            label,
            "is a device: writes are measured only in a file that mover makes itself",
        )
        .hint("without --write-test reads are measured, which harm nothing"));
    }
    let folder = if meta.is_dir() { path.clone() } else { folder_of(path) };
    let size = options.size.unwrap_or(WRITE_SIZE);
    Target::to_write(&folder, granule, size, direct, seed_of_now(), control, emit)
}

/// The settings that are not searched, and the default of those that are.
fn settings_of(
    options: &TuneOptions,
    target: &Target,
    control: &Control,
    emit: Emit<'_>,
) -> Result<(Settings, Candidate)> {
    let devices = devices_of(std::slice::from_ref(&options.path));
    let found = Found { pairs: 1, memory_only: target.memory, devices, ..Found::default() };
    let resolved = resolve(&options.engine, &found, control)?;
    resolved.choices.into_iter().for_each(emit);
    let settings = resolved.settings;
    let Settings { workers, block_size, queue_depth, .. } = settings;
    Ok((settings, Candidate { workers, block_size, queue_depth }))
}

fn space_of(options: &TuneOptions, settings: &Settings, target: &Target) -> Space {
    let engine = &options.engine;
    let most = if settings.iopoll { settings.block_size } else { 8 << 20 };
    // A request is never larger than a good part of what there is to read.
    let most = u64::from(most).min((target.blocks.bytes() / 8).max(u64::from(limits::BLOCK_SIZE_MIN)));
    let mut block_sizes: Vec<u32> = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20]
        .into_iter()
        .filter(|&size| u64::from(size) <= most)
        .collect();
    if block_sizes.is_empty() {
        block_sizes.push(limits::BLOCK_SIZE_MIN);
    }
    let sync = settings.backend == Backend::Sync;
    let cpus = available_cpus();
    let workers_most = if sync { limits::SYNC_WORKERS_MAX } else { cpus.min(8) };
    Space {
        block_sizes: engine.block_size.map_or(block_sizes, |size| vec![size]),
        queue_depths: match engine.queue_depth {
            _ if sync => vec![1],
            Some(depth) => vec![depth],
            None => vec![1, 4, 16, 64],
        },
        workers: match engine.workers {
            Some(workers) => vec![workers],
            None => [1, 2, 4, 8, 16].into_iter().filter(|&workers| workers <= workers_most).collect(),
        },
        memory_max: buffer_bytes_max,
        memory_limit: engine.memory_limit,
        granule: target.alignment().offset.max(limits::BLOCK_SIZE_MIN),
    }
}

/// Buffers that the process's memory ceiling leaves room for; the same that a copy keeps to.
fn buffer_bytes_max(workers: usize, limit: Option<u64>) -> u64 {
    match limit {
        Some(limit) => limit
            .saturating_sub(limits::MEMORY_OVERHEAD)
            .max(limit / 2)
            .min(limit.saturating_sub(limits::MEMORY_OVERHEAD_MIN)),
        None => {
            let further = workers.saturating_sub(2) as u64;
            limits::BUFFER_BYTES_DEFAULT + further * limits::BUFFER_BYTES_PER_FURTHER_WORKER
        }
    }
}

fn slice_of(runtime: Duration, measurements: usize) -> Duration {
    (runtime / measurements.max(1) as u32).clamp(SLICE_MIN, SLICE_MAX)
}

fn measure_one(
    target: &Target,
    candidate: &Candidate,
    settings: &Settings,
    slice: Duration,
    rate: Option<u64>,
    position: &mut u64,
    control: &Control,
) -> Result<f64> {
    let Candidate { workers, block_size, queue_depth } = *candidate;
    let settings = Settings { workers, block_size, queue_depth, ..settings.clone() };
    let load = target.load(None, *position);
    let window = measure(vec![load], &settings, slice, rate, control)?;
    let bytes = window.samples[0].bytes;
    *position = position.wrapping_add(bytes / u64::from(limits::BLOCK_SIZE_MIN));
    Ok(bytes as f64 / window.seconds.max(f64::MIN_POSITIVE))
}

fn flags_of(candidate: &Candidate) -> String {
    let size = match candidate.block_size {
        size if size.is_multiple_of(1 << 20) => format!("{}M", size >> 20),
        size => format!("{}K", size >> 10),
    };
    format!("--block-size {size} --queue-depth {} --workers {}", candidate.queue_depth, candidate.workers)
}

fn notes_of(options: &TuneOptions, target: &Target) -> Vec<String> {
    let mut notes = Vec::new();
    if target.memory {
        notes.push("the path lies in memory: every transfer is a copy by a CPU".to_owned());
    } else if target.access() == mover_engine::Access::Buffered {
        notes.push(
            "the path goes through the page cache: the figures are of memory, not of the device".to_owned(),
        );
    }
    if target.skipped_bytes >= u64::from(limits::BLOCK_SIZE_DEFAULT) {
        let holes = format_size(target.skipped_bytes);
        notes.push(format!("the file is sparse: its {holes} without data were left out"));
    }
    if options.engine.memory_limit.is_none() {
        notes.push("searched within the default memory ceiling; --memory-limit widens it".to_owned());
    }
    notes
}

/// Refuses to replace anything but a profile.
fn refuse_other_file(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let folder = folder_of(path);
            match std::fs::metadata(&folder) {
                Ok(meta) if meta.is_dir() => Ok(()),
                Ok(_) => Err(Error::usage("is no folder").at(folder.display().to_string())),
                Err(error) => Err(Error::io(Operation::Stat, folder.display().to_string(), &error)),
            }
        }
        Err(error) => Err(Error::io(Operation::Stat, path.display().to_string(), &error)),
        Ok(meta) if meta.is_file() && (meta.len() == 0 || Profile::read(path).is_ok()) => Ok(()),
        Ok(_) => Err(Error::refused(path.display().to_string(), "exists and is no profile of mover")
            .hint("name a file that does not exist")),
    }
}

/// Writes the profile beside its place and moves it there: no reader ever sees half of it.
fn save(path: &Path, candidate: &Candidate) -> Result<()> {
    let profile = Profile {
        format: Profile::FORMAT.to_owned(),
        version: 1,
        block_size: Some(candidate.block_size),
        queue_depth: Some(candidate.queue_depth),
        workers: Some(candidate.workers),
    };
    let label = path.display().to_string();
    let failed = |error: &std::io::Error| Error::io(Operation::Write, &label, error);
    let mut text = serde_json::to_vec_pretty(&profile)
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    text.push(b'\n');
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path)).map_err(|error| failed(&error))?;
    file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(|error| failed(&error))?;
    file.persist(path).map_err(|error| failed(&error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_as_they_are_typed() {
        let candidate = Candidate { workers: 2, block_size: 1 << 20, queue_depth: 8 };
        assert_eq!(flags_of(&candidate), "--block-size 1M --queue-depth 8 --workers 2");
        let small = Candidate { block_size: 96 << 10, ..candidate };
        assert!(flags_of(&small).starts_with("--block-size 96K "));
    }

    #[test]
    fn slices_fit_the_time() {
        assert_eq!(slice_of(Duration::from_secs(20), 50), Duration::from_millis(400));
        assert_eq!(slice_of(Duration::from_millis(100), 50), SLICE_MIN);
        assert_eq!(slice_of(Duration::from_secs(1000), 50), SLICE_MAX);
    }

    #[test]
    fn a_profile_is_saved_whole_and_nothing_else_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        let candidate = Candidate { workers: 3, block_size: 1 << 18, queue_depth: 5 };
        refuse_other_file(&path).unwrap();
        save(&path, &candidate).unwrap();
        refuse_other_file(&path).unwrap();
        save(&path, &candidate).unwrap();
        let profile = Profile::read(&path).unwrap();
        assert_eq!(
            (profile.block_size, profile.queue_depth, profile.workers),
            (Some(1 << 18), Some(5), Some(3))
        );
        let other = folder.path().join("other");
        std::fs::write(&other, "text").unwrap();
        assert_eq!(refuse_other_file(&other).unwrap_err().exit_code(), 5);
        assert_eq!(refuse_other_file(folder.path()).unwrap_err().exit_code(), 5);
    }
}
