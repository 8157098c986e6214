//! `mover gc`: gives back what no restore point needs. The course of it, and why it loses nothing beside whatever
//! else runs, is in [`mover_repository::gc`].

use std::time::Duration;

use mover_engine::Control;
use mover_model::event::{Event, GcResult, RunResult, Status};
use mover_model::{Error, Result};
use mover_repository::gc;

use super::access::{self, RepositoryOptions};
use crate::Emit;

/// What `mover gc` is told.
#[derive(Debug, Clone)]
pub struct GcOptions {
    /// Which repository.
    pub repository: RepositoryOptions,
    /// `--wait`: how long it waits for sessions that are older than its doom list; what is left then is finished by
    /// a later gc.
    pub wait: Duration,
    /// `--repack-below`: a pack whose living share of bytes is smaller than this is rewritten; 0 rewrites none, 1 every pack
    /// with anything dead in it.
    pub repack_below: f64,
    /// `--dry-run`: nothing is changed.
    pub dry_run: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        GcOptions {
            repository: RepositoryOptions::default(),
            wait: Duration::from_secs(600),
            repack_below: 0.7,
            dry_run: false,
        }
    }
}

/// Collects garbage and returns the `result` record, with [`RunResult::gc`] filled; its `exit_code` is the process's.
///
/// Emits everything but `start` and `result`, which are the caller's. Stops early, leaving a consistent repository, once
/// `control` is stopped.
pub fn run(options: &GcOptions, control: &Control, emit: Emit<'_>) -> RunResult {
    let mut gc = GcResult { dry_run: options.dry_run, ..GcResult::default() };
    let ended = collect(options, control, emit, &mut gc);
    let mut result = RunResult { verb: "gc".into(), gc: Some(gc), ..RunResult::default() };
    result.degraded = control.degraded(0);
    if let Err(error) = ended {
        result.status = Status::Failed;
        result.exit_code = error.exit_code();
        result.error = Some(error.record());
    }
    result
}

fn collect(options: &GcOptions, control: &Control, emit: Emit<'_>, result: &mut GcResult) -> Result<()> {
    if !(0.0..=1.0).contains(&options.repack_below) {
        return Err(Error::usage(format!(
            "--repack-below {}: must be between 0 and 1",
            options.repack_below
        )));
    }
    let repository = access::open(&options.repository)?;
    let how =
        gc::Options { wait: options.wait, repack_below: options.repack_below, dry_run: options.dry_run };
    let ended = gc::collect(&repository, &how, control, emit, result);
    for degradation in repository.store().degraded() {
        emit(Event::Degraded(degradation.clone()));
        control.degrade(degradation);
    }
    ended
}
