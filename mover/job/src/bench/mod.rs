//! `mover bench`: what devices and files give, measured as fio measures it, with the engine that copies.
//!
//! Where to look first: [`run`]; [`measure`] is one measurement, [`target`] what is measured, [`offsets`]
//! where in it, [`report`] the document. `tune` measures with the same parts.

pub mod measure;
pub mod offsets;
pub mod report;
pub mod target;

use std::path::PathBuf;
use std::time::Duration;

use mover_engine::capability::available_cpus;
use mover_engine::{Access, Backend, Control, Settings};
use mover_model::event::Event;
use mover_model::units::format_size;
use mover_model::{Error, ErrorKind, Result, limits};

use crate::Emit;
use crate::options::EngineOptions;
use crate::resolve::{Found, resolve};
pub use report::{BenchReport, Figures, PathFacts, Point};
use target::{Target, devices_of};

/// Bytes of one request when nothing is said: what devices' own figures are given for.
pub const BLOCK_SIZE: u32 = 4 << 10;
/// Requests in flight for each worker and path when nothing is said.
pub const QUEUE_DEPTH: u16 = 32;
/// How long each point is measured when nothing is said.
pub const RUNTIME: Duration = Duration::from_secs(5);
/// Size of a file made for writing when nothing is said.
pub const WRITE_SIZE: u64 = 1 << 30;

const _: () = assert!(BLOCK_SIZE >= limits::BLOCK_SIZE_MIN && QUEUE_DEPTH <= limits::QUEUE_DEPTH_MAX);

/// What `mover bench` is told.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Files and block devices to read; for writing, folders and files that do not exist.
    pub paths: Vec<PathBuf>,
    /// Writes instead of reads.
    pub write: bool,
    /// In order instead of at random.
    pub sequential: bool,
    /// Worker counts 1, 2, 4 … up to `--workers`, or to the number of CPUs.
    pub curve: bool,
    /// How long each point is measured.
    pub runtime: Duration,
    /// Bytes from the start of each path that are read; size of the file that is written.
    pub size: Option<u64>,
    /// Start of the random order; two runs with one seed ask for the same blocks.
    pub seed: u64,
    /// The engine's flags.
    pub engine: EngineOptions,
}

/// Runs the benchmark. Reads never write; writes go only into files that it makes itself.
///
/// # Errors
/// `Usage`, `Refused` for a path that is not to be written or holds nothing to read, and those of opening,
/// reading and writing. Stopping `control` ends it with what was measured so far.
pub fn run(options: &BenchOptions, control: &Control, emit: Emit<'_>) -> Result<BenchReport> {
    check(options)?;
    let (settings, counts) = settings_of(options, control, emit)?;
    let targets = open_all(options, &settings, control, emit)?;
    let notes = notes_of(options, &settings, &targets);
    let mut points = Vec::new();
    for workers in counts {
        if control.stopped() {
            break;
        }
        emit(Event::Phase { phase: format!("bench, {workers} workers") });
        let settings = Settings { workers, ..settings.clone() };
        let loads = targets
            .iter()
            .enumerate()
            .map(|(index, target)| {
                // Each path has its own order.
                let seed = options.seed.wrapping_add((index as u64) << 32 | workers as u64);
                target.load((!options.sequential).then_some(seed), 0)
            })
            .collect();
        let window = measure::measure(loads, &settings, options.runtime, options.engine.rate, control)?;
        points.push(Point::of(workers, &window));
    }
    if points.is_empty() {
        return Err(Error::new(ErrorKind::Stopped, "stopped by a signal before anything was measured"));
    }
    Ok(BenchReport {
        format: "mover-bench",
        version: 1,
        operation: if options.write { "write" } else { "read" },
        order: if options.sequential { "sequential" } else { "random" },
        block_size: settings.block_size,
        queue_depth: settings.queue_depth,
        backend: settings.backend.name(),
        runtime_seconds: options.runtime.as_secs_f64(),
        seed: options.seed,
        paths: targets.iter().map(PathFacts::of).collect(),
        points,
        degraded: control.degraded(0),
        notes,
        interrupted: control.stopped(),
    })
}

fn check(options: &BenchOptions) -> Result<()> {
    if options.paths.is_empty() {
        return Err(Error::usage("name at least one file or device to measure"));
    }
    if options.runtime.is_zero() {
        return Err(Error::usage("--runtime 0: nothing would be measured"));
    }
    for (index, path) in options.paths.iter().enumerate() {
        if !options.write && options.paths[..index].contains(path) {
            return Err(Error::usage("is named twice: use --workers or --queue-depth for more load")
                .at(path.display().to_string()));
        }
    }
    Ok(())
}

/// The settings, with the numbers of workers to measure.
fn settings_of(options: &BenchOptions, control: &Control, emit: Emit<'_>) -> Result<(Settings, Vec<usize>)> {
    let mut engine = options.engine.clone();
    engine.block_size.get_or_insert(BLOCK_SIZE);
    engine.queue_depth.get_or_insert(QUEUE_DEPTH);
    let most = match (options.curve, engine.workers) {
        (_, Some(workers)) => workers,
        (true, None) => available_cpus(),
        (false, None) => 1,
    };
    engine.workers = Some(most);
    let found = Found { pairs: 1, devices: devices_of(&options.paths), ..Found::default() };
    let resolved = resolve(&engine, &found, control)?;
    resolved.choices.into_iter().for_each(emit);
    Ok((resolved.settings, if options.curve { curve(most) } else { vec![most] }))
}

/// 1, 2, 4 … and `most`.
fn curve(most: usize) -> Vec<usize> {
    let mut counts: Vec<_> =
        std::iter::successors(Some(1usize), |count| count.checked_mul(2)).take_while(|&c| c < most).collect();
    counts.push(most.max(1));
    counts
}

fn open_all(
    options: &BenchOptions,
    settings: &Settings,
    control: &Control,
    emit: Emit<'_>,
) -> Result<Vec<Target>> {
    let (direct, block_size) = (options.engine.direct, settings.block_size);
    let open = |(index, path): (usize, &PathBuf)| {
        let target = if options.write {
            let size = options.size.unwrap_or(WRITE_SIZE);
            let seed = options.seed.wrapping_add(index as u64);
            Target::to_write(path, block_size, size, direct, seed, control, emit)?
        } else {
            Target::to_read(path, block_size, options.size, direct, control)?
        };
        target.check_alignment(block_size)?;
        Ok(target)
    };
    options.paths.iter().enumerate().map(open).collect()
}

fn notes_of(options: &BenchOptions, settings: &Settings, targets: &[Target]) -> Vec<String> {
    let mut notes = Vec::new();
    for target in targets {
        let label = &target.label;
        if target.memory {
            notes.push(format!("{label} lies in memory: every transfer is a copy by a CPU"));
        } else if target.access() == Access::Buffered {
            notes.push(format!(
                "{label} goes through the page cache: the figures are of memory, not of the device"
            ));
        }
        if target.skipped_bytes >= u64::from(settings.block_size) {
            let holes = format_size(target.skipped_bytes);
            notes.push(format!(
                "{label} is sparse: its {holes} without data are left out, as reading holes is no I/O"
            ));
        }
    }
    let shallow = settings.queue_depth == 1 && options.engine.queue_depth != Some(1);
    if settings.backend == Backend::Sync && shallow {
        notes.push(
            "without io_uring each worker has one request in flight: --workers is the depth".to_owned(),
        );
    }
    notes
}

/// A seed for when nothing is said.
pub fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_doubles_and_ends_at_the_most() {
        assert_eq!(curve(1), [1]);
        assert_eq!(curve(2), [1, 2]);
        assert_eq!(curve(6), [1, 2, 4, 6]);
        assert_eq!(curve(8), [1, 2, 4, 8]);
    }
}
