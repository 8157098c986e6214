//! `mover restore`: disks of a restore point to files, block devices or standard output, on the engine.
//!
//! Every chunk is checked against its name before it is written. All targets are opened, and everything that can be
//! refused is refused, before the first byte is written; one disk that fails does not end the others.

mod common_disks;
mod documents;
mod execute;
mod lost;
mod marker;
mod moving;
mod open;
mod outcome;
mod same;
mod settle;

use std::path::PathBuf;

use mover_engine::Control;
use mover_model::event::RunResult;
use mover_model::{Locator, Name, PointSelector};

use super::access::RepositoryOptions;
use crate::Emit;
use crate::copy::Sparse;
use crate::options::EngineOptions;

/// What `mover restore` is told.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The repository.
    pub repository: RepositoryOptions,
    /// The machine.
    pub vm: Name,
    /// The restore point.
    pub point: PointSelector,
    /// `--disk ID=TARGET`: only these disks, or with `into` where these go instead.
    pub disks: Vec<(Name, Locator)>,
    /// `--into DIR`: all disks, each to `DIR/ID.raw`, and the machine's documents beside them.
    pub into: Option<PathBuf>,
    /// `--force`: overwrite what is there.
    pub force: bool,
    /// `--delta`: write only what differs from the target's content.
    pub delta: bool,
    /// `--resume`: go on with a run of the same command that was stopped.
    pub resume: bool,
    /// `--keep-common`: leave common disks as they are.
    pub keep_common: bool,
    /// The engine's flags.
    pub engine: EngineOptions,
    /// `--sparse`.
    pub sparse: Sparse,
    /// `--strict`: a downgrade is an error.
    pub strict: bool,
    /// `--dry-run`: plan only.
    pub dry_run: bool,
}

/// Runs the restore to its end and returns the `result` record; its `exit_code` is the process's.
///
/// `result.point` has one entry for each disk that was asked for; `result.pairs` one for each that was written, with its
/// `disk`. Emits everything but `start` and `result`, which are the caller's. Stops early, cleanly, once `control` is
/// stopped.
pub fn run(options: &RestoreOptions, control: &Control, emit: Emit<'_>) -> RunResult {
    let mut result = RunResult { verb: "restore".into(), ..RunResult::default() };
    let ended = execute::execute(options, control, emit, &mut result);
    outcome::conclude(&mut result, ended, control);
    result
}
