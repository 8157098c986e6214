//! `mover show`: all that is known of one restore point.

use std::collections::BTreeMap;

use mover_model::event::CommonResult;
use mover_model::manifest::{Disk, FileIdentity, Manifest, Method, Pointer, Stored};
use mover_model::{Name, PointSelector, Result};
use mover_repository::catalog::{Scope, is_damaged_by};
use mover_repository::notes::{self, PointNote};
use mover_repository::{Repository, manifests};
use serde::Serialize;

use super::access::{self, RepositoryOptions};
use super::list::{no_points, verified_at};
use crate::Emit;

/// What `mover show` is told.
#[derive(Debug, Clone)]
pub struct ShowOptions {
    /// The repository.
    pub repository: RepositoryOptions,
    /// The machine.
    pub vm: Name,
    /// Which of its restore points.
    pub point: PointSelector,
}

/// The document of `show --json`. Version 1 only grows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShowDocument {
    /// Version of this document.
    pub version: u32,
    /// The repository's id.
    pub repository: String,
    /// Where it lies.
    pub location: String,
    /// The machine.
    pub vm: String,
    /// Its UUID, where it is known.
    pub vm_uuid: Option<String>,
    /// The restore point's id; with it the point is named as `VM@ID`.
    pub id: String,
    /// The one before it.
    pub parent: Option<String>,
    /// Its place in the order by parent, from 1.
    pub sequence: u64,
    /// `--run-key`.
    pub run_key: Option<String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// When it was begun: RFC 3339, UTC.
    pub started: String,
    /// When it was committed.
    pub finished: String,
    /// The host that made it.
    pub host: String,
    /// The version of mover that made it.
    pub mover: String,
    /// Whether parts of it could not be read by the backup, or were found damaged since.
    pub damaged: bool,
    /// When every chunk of it was last read and found whole.
    pub verified_at: Option<String>,
    /// What was learnt of it after it was made, the oldest first.
    pub notes: Vec<PointNote>,
    /// What it added to the repository.
    pub stored: Stored,
    /// Its disks.
    pub disks: Vec<ShowDisk>,
    /// Names of the machine's configuration documents that it holds, and their bytes.
    pub documents: BTreeMap<String, u64>,
    /// The quiesce receipt.
    pub quiesce: Option<serde_json::Value>,
    /// Evidence for the time point.
    pub time_point: Option<serde_json::Value>,
}

/// One disk of a restore point.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShowDisk {
    /// Its id.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// The name of its content, 64 hex digits.
    pub root: String,
    /// Bytes in chunks that are not zeros.
    pub data_bytes: u64,
    /// How it was read.
    pub method: Method,
    /// Why it is a full backup where less was asked for.
    pub reason: Option<String>,
    /// The restore point that the list of changes was counted from.
    pub base: Option<String>,
    /// What `--since` takes for the changes since this moment: the tracker's own name of it where there is one, else
    /// `VM@POINT`.
    pub checkpoint: String,
    /// Its locator, as it was given.
    pub source: String,
    /// Absolute path, where the source was a file.
    pub path: Option<String>,
    /// What the source was when it was read.
    pub identity: Option<FileIdentity>,
    /// Present where the disk is common to several machines: by which id, where it lies, and who has it.
    pub common: Option<CommonResult>,
    /// What named the common disk at the time of the backup.
    pub pointer: Option<Pointer>,
    /// Parts that could not be read: start and bytes.
    pub bad_extents: Vec<(u64, u64)>,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// What it added.
    pub stored: Stored,
}

/// Shows a restore point.
///
/// # Errors
/// Those of opening the repository; `NotFound`, naming what there is instead; the store's.
pub fn run(options: &ShowOptions, emit: Emit<'_>) -> Result<ShowDocument> {
    let repository = access::open(&options.repository)?;
    let manifest = find(&repository, &options.vm, &options.point)?;
    let notes = notes::of_point(&repository, &manifest.vm, &manifest.point)?;
    let vms = sharing(&repository, &options.repository, &manifest, emit)?;
    let token = format!("{}@{}", manifest.vm, manifest.point);
    let disks = manifest.disks.into_iter().zip(vms).map(|(disk, vms)| show_disk(disk, vms, &token)).collect();
    Ok(ShowDocument {
        version: 1,
        repository: manifest.repository,
        location: repository.store().label(),
        vm: manifest.vm.to_string(),
        vm_uuid: manifest.vm_uuid,
        id: manifest.point.to_string(),
        parent: manifest.parent.map(|parent| parent.to_string()),
        sequence: manifest.sequence,
        run_key: manifest.run_key,
        labels: manifest.labels,
        started: manifest.started,
        finished: manifest.finished,
        host: manifest.host,
        mover: manifest.mover,
        damaged: manifest.damaged || is_damaged_by(&notes),
        verified_at: verified_at(&notes),
        notes,
        stored: manifest.stored,
        disks,
        documents: manifest.documents.into_iter().map(|(name, text)| (name, text.len() as u64)).collect(),
        quiesce: manifest.quiesce,
        time_point: manifest.time_point,
    })
}

fn find(repository: &Repository, vm: &Name, point: &PointSelector) -> Result<Manifest> {
    // One object instead of all of the machine's, where it is named.
    if let PointSelector::Id(point) = point
        && let Some(manifest) = manifests::get(repository, vm, point)?
    {
        return Ok(manifest);
    }
    let points = manifests::all(repository, vm)?;
    if points.points.is_empty() && points.unreadable.is_empty() {
        return Err(no_points(repository, vm)?);
    }
    points.select(vm, point).cloned()
}

/// For each disk of a restore point the machines that have it in common.
fn sharing(
    repository: &Repository,
    options: &RepositoryOptions,
    manifest: &Manifest,
    emit: Emit<'_>,
) -> Result<Vec<Vec<String>>> {
    if manifest.disks.iter().all(|disk| disk.common.is_none()) {
        return Ok(vec![Vec::new(); manifest.disks.len()]);
    }
    let opened = super::catalog::open(repository, options, &Scope::All, emit)?;
    let machines = manifest.disks.iter().map(|disk| match &disk.common {
        Some(common) => {
            let machines = opened.catalog.common_machines(&repository.config().id, &common.id, &disk.root)?;
            Ok(machines.iter().map(Name::to_string).collect())
        }
        None => Ok(Vec::new()),
    });
    machines.collect()
}

fn show_disk(disk: Disk, vms: Vec<String>, token: &str) -> ShowDisk {
    let (common, pointer) = match disk.common {
        Some(common) => {
            (Some(CommonResult { id: common.id, location: common.location, vms }), common.pointer)
        }
        None => (None, None),
    };
    ShowDisk {
        id: disk.id.to_string(),
        size: disk.size,
        chunk_size: disk.chunk_size,
        root: disk.root.to_string(),
        data_bytes: disk.data_bytes,
        method: disk.method,
        reason: disk.reason,
        base: disk.base.map(|base| base.to_string()),
        checkpoint: disk.checkpoint.unwrap_or_else(|| token.to_owned()),
        source: disk.source,
        path: disk.path,
        identity: disk.identity,
        common,
        pointer,
        bad_extents: disk.bad_extents.iter().map(|bad| (bad.start, bad.length)).collect(),
        read_bytes: disk.read_bytes,
        stored: disk.stored,
    }
}
