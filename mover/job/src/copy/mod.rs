//! `mover copy`.

mod context;
mod digests;
mod execute;
mod extents;
mod journal;
mod ledger;
mod offload;
mod open;
mod outcome;
mod record;
mod spool;
mod verify;

use std::path::PathBuf;

use mover_engine::Control;
use mover_model::Locator;
use mover_model::event::RunResult;

use crate::Emit;
use crate::options::EngineOptions;

/// One source and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Where from.
    pub source: Locator,
    /// Where to.
    pub target: Locator,
}

/// Whether the kernel may share or copy the blocks itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Offload {
    /// Where it costs nothing (a reflink; a copy made by a file server) and nothing asks to see the bytes.
    #[default]
    Auto,
    /// Never.
    Never,
    /// An error where it cannot.
    Always,
}

/// What becomes of zeros on the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sparse {
    /// Holes stay holes, and runs of zeros of at least 64 KiB in data become holes.
    #[default]
    Auto,
    /// Everything is allocated.
    Never,
    /// As `Auto`, from 4 KiB on.
    Always,
}

/// What `mover copy` is told.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// What to copy; at least one.
    pub pairs: Vec<Pair>,
    /// A list of changed extents: only those are written. One pair only.
    pub extents: Option<PathBuf>,
    /// The engine's flags.
    pub engine: EngineOptions,
    /// `--offload`.
    pub offload: Offload,
    /// `--sparse`.
    pub sparse: Sparse,
    /// `--verify`: read the target back past the page cache and compare digests.
    pub verify: bool,
    /// `--digest-out FILE`.
    pub digest_out: Option<PathBuf>,
    /// `--journal FILE`.
    pub journal: Option<PathBuf>,
    /// `--resume`.
    pub resume: bool,
    /// `--force`.
    pub force: bool,
    /// `--on-read-error record`.
    pub record_read_errors: bool,
    /// `--strict`: a downgrade is an error.
    pub strict: bool,
    /// `--dry-run`: plan only.
    pub dry_run: bool,
}

/// Runs the copy to its end and returns the `result` record; its `exit_code` is the process's.
///
/// Emits everything but `start` and `result`, which are the caller's. Stops early, cleanly, once `control` is
/// stopped.
pub fn run(options: &CopyOptions, control: &Control, emit: Emit<'_>) -> RunResult {
    let mut result = RunResult { verb: "copy".into(), ..RunResult::default() };
    let ended = execute::execute(options, control, emit, &mut result);
    outcome::conclude(&mut result, ended, control);
    result
}
