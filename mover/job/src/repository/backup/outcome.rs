//! From the outcomes of all disks to one `result` and one exit code.

use mover_engine::Control;
use mover_model::error::{EXIT_BAD_EXTENTS, most_severe};
use mover_model::event::{CommonResult, DiskResult, DiskStatus, PairResult, PointResult, RunResult, Status};
use mover_model::manifest::{Disk, Manifest, Method};
use mover_model::{Error, ErrorKind, Result};
use mover_repository::Repository;

use super::open::{OpenDisk, What};

/// Fills status, error and exit code. `ended` is an error of the run as a whole; those of disks stand in
/// `result.pairs` already.
pub(super) fn conclude(result: &mut RunResult, ended: Result<()>, control: &Control) {
    result.degraded = control.degraded(0);
    let mut code = 0;
    if let Err(error) = ended {
        result.error = Some(error.record());
        code = error.exit_code();
    }
    for pair in &result.pairs {
        let Some(error) = &pair.error else { continue };
        let severe = most_severe(code, error.kind.exit_code());
        if severe != code || result.error.is_none() {
            result.error = Some(error.clone());
        }
        code = severe;
    }
    if result.bad_extents_count > 0 {
        code = most_severe(code, EXIT_BAD_EXTENTS);
    }
    result.exit_code = code;
    result.status = match code {
        0 => Status::Done,
        EXIT_BAD_EXTENTS => Status::DoneWithBadExtents,
        _ => Status::Failed,
    };
}

/// Whether a disk was only given up, as another one had failed.
pub(super) fn is_given_up(error: &Error) -> bool {
    error.kind() == ErrorKind::Stopped
}

/// What each disk moved, and how it ended.
pub(super) fn pairs(result: &mut RunResult, disks: &[OpenDisk], target: &str, committed: bool) {
    result.pairs = disks
        .iter()
        .map(|disk| {
            let error = disk.error();
            let moved = disk.counters.moved();
            result.moved += moved;
            let told = error.as_ref().filter(|error| !is_given_up(error)).map(|error| {
                let mut record = error.record();
                record.disk = Some(disk.spec().id.to_string());
                record
            });
            PairResult {
                disk: Some(disk.spec().id.to_string()),
                source: disk.spec().locator.to_string(),
                target: target.to_owned(),
                status: if error.is_some() { Status::Failed } else { Status::Done },
                size: disk.size(),
                moved,
                flushed: committed,
                verified: false,
                error: told,
            }
        })
        .collect();
    for bad in &result.bad_extents {
        let pair = &mut result.pairs[bad.pair];
        if pair.status == Status::Done {
            pair.status = Status::DoneWithBadExtents;
        }
    }
}

/// A restore point that was not made, with what is known of its disks.
pub(super) fn uncommitted(
    point: PointResult,
    disks: &[OpenDisk],
    common: impl Fn(&Disk) -> Option<CommonResult>,
) -> PointResult {
    let disks = disks.iter().map(|disk| {
        let (method, reason, known) = match &disk.what {
            What::Read(reading) => (Some(reading.method), reading.reason.clone(), None),
            What::Reference { disk, reason } => (Some(Method::Common), Some(reason.clone()), Some(disk)),
        };
        let failed = disk.error().is_some_and(|error| !is_given_up(&error));
        DiskResult {
            id: disk.spec().id.to_string(),
            status: match (failed, known.is_some()) {
                (true, _) => DiskStatus::Failed,
                (false, true) => DiskStatus::Referenced,
                (false, false) => DiskStatus::Skipped,
            },
            size: disk.size().unwrap_or(0),
            root: known.map(|disk| disk.root.to_string()),
            method,
            reason,
            read_bytes: disk.counters.moved().read_bytes,
            stored: Default::default(),
            // What is read is known as a common disk only once its content is.
            common: known.and_then(&common),
        }
    });
    PointResult { disks: disks.collect(), ..point }
}

/// A restore point that is in the repository.
pub(super) fn committed(
    manifest: &Manifest,
    repeated: bool,
    common: impl Fn(&Disk) -> Option<CommonResult>,
) -> PointResult {
    let disks = manifest.disks.iter().map(|disk| DiskResult {
        id: disk.id.to_string(),
        status: if disk.method == Method::Common { DiskStatus::Referenced } else { DiskStatus::Stored },
        size: disk.size,
        root: Some(disk.root.to_string()),
        method: Some(disk.method),
        reason: disk.reason.clone(),
        read_bytes: disk.read_bytes,
        stored: disk.stored,
        common: common(disk),
    });
    PointResult {
        repository: manifest.repository.clone(),
        vm: manifest.vm.to_string(),
        id: manifest.point.to_string(),
        parent: manifest.parent.as_ref().map(ToString::to_string),
        committed: true,
        repeated,
        damaged: manifest.damaged,
        disks: disks.collect(),
        stored: if repeated { Default::default() } else { manifest.stored },
    }
}

/// A restore point that is begun.
pub(super) fn begun(repository: &Repository, vm: &str, id: &str) -> PointResult {
    PointResult {
        repository: repository.config().id.clone(),
        vm: vm.to_owned(),
        id: id.to_owned(),
        ..PointResult::default()
    }
}
