//! `mover backup`: a restore point of a machine's disks, all of them or none.
//!
//! ```text
//! check → session → index → parent → [read, hash, store] → packs durable → segments → trees → session.check → manifest
//! ```

mod base;
mod check;
mod execute;
mod extents;
mod open;
mod outcome;
mod prepare;
mod read;

use std::collections::BTreeMap;
use std::path::PathBuf;

use mover_engine::Control;
use mover_model::event::RunResult;
use mover_model::{Locator, Name};

use crate::Emit;
use crate::options::EngineOptions;
use crate::repository::access::RepositoryOptions;

/// Whether a disk is common to several machines (`--disk ID=LOCATOR,common` or `common=ID`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CommonRequest {
    /// Nothing was said: only a qcow2 backing image is looked at.
    #[default]
    No,
    /// `,common`: known by what the file is.
    Auto,
    /// `,common=ID`: known by this name.
    Id(String),
}

/// `--disk ID=LOCATOR[,common[=ID]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its name within the machine.
    pub id: Name,
    /// Where it is read from.
    pub locator: Locator,
    /// Whether it is common to several machines.
    pub common: CommonRequest,
}

/// What `mover backup` is told.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Where the restore point goes.
    pub repository: RepositoryOptions,
    /// The machine.
    pub vm: Name,
    /// Its disks; at least one, no id twice.
    pub disks: Vec<DiskSpec>,
    /// `--extents ID=FILE`: the disk's changes since `since`; only those are read.
    pub extents: Vec<(Name, PathBuf)>,
    /// `--since NAME@POINT`, or a checkpoint token from `show`: what the lists of changes are counted from. Needed with,
    /// and only with, `extents`.
    pub since: Option<String>,
    /// `--run-key`: a second run with the same key returns the first one's restore point.
    pub run_key: Option<String>,
    /// `--label KEY=VALUE`.
    pub labels: BTreeMap<String, String>,
    /// `--vm-uuid`: an earlier restore point of another one is refused.
    pub vm_uuid: Option<String>,
    /// `--document NAME=FILE`: kept in the manifest.
    pub documents: Vec<(String, PathBuf)>,
    /// The engine's flags.
    pub engine: EngineOptions,
    /// `--on-read-error record`.
    pub record_read_errors: bool,
    /// `--strict`: a downgrade is an error.
    pub strict: bool,
    /// `--dry-run`: plan only, nothing is written.
    pub dry_run: bool,
}

impl BackupOptions {
    /// A backup of a machine, with the defaults for all that is not named.
    pub fn new(repository: RepositoryOptions, vm: Name, disks: Vec<DiskSpec>) -> Self {
        BackupOptions {
            repository,
            vm,
            disks,
            extents: Vec::new(),
            since: None,
            run_key: None,
            labels: BTreeMap::new(),
            vm_uuid: None,
            documents: Vec::new(),
            engine: EngineOptions::default(),
            record_read_errors: false,
            strict: false,
            dry_run: false,
        }
    }
}

/// Makes a restore point and returns the `result` record; its `exit_code` is the process's. `result.point` names what
/// was committed; each disk is a pair with its id in `disk`.
///
/// Emits everything but `start` and `result`, which are the caller's. Stops early once `control` is stopped: nothing is
/// committed then.
pub fn run(options: &BackupOptions, control: &Control, emit: Emit<'_>) -> RunResult {
    let mut result = RunResult { verb: "backup".into(), ..RunResult::default() };
    let ended = execute::execute(options, control, emit, &mut result);
    outcome::conclude(&mut result, ended, control);
    result
}
