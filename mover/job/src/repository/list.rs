//! `mover list`: the machines of a repository, or the restore points of one.

use std::collections::HashSet;

use mover_model::{Error, ErrorKind, Name, Result};
use mover_repository::catalog::{MachineSummary, PointSummary, Scope};
use mover_repository::notes::{self, PointNote};
use mover_repository::{Repository, manifests};
use serde::Serialize;

use super::access::{self, RepositoryOptions};
use crate::Emit;

/// What `mover list` is told.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// The repository.
    pub repository: RepositoryOptions,
    /// The machine whose restore points are meant; `None`: one line for each machine.
    pub vm: Option<Name>,
}

/// The document of `list --json`. Version 1 only grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListDocument {
    /// Version of this document.
    pub version: u32,
    /// The repository's id.
    pub repository: String,
    /// Where it lies.
    pub location: String,
    /// Its machines, by name; absent where one machine was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machines: Option<Vec<MachineRow>>,
    /// The machine that was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Its restore points, the oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub points: Option<Vec<PointRow>>,
    /// Manifests that could not be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// A machine in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MachineRow {
    /// Its name.
    pub vm: String,
    /// Restore points, damaged ones included.
    pub points: u64,
    /// Of these, damaged ones.
    pub damaged: u64,
    /// The restore point that `@latest` is; absent where all are damaged.
    pub latest: Option<String>,
    /// When that was begun: RFC 3339, UTC.
    pub latest_time: Option<String>,
    /// Disks of the newest restore point.
    pub disks: u64,
    /// Bytes of these disks.
    pub size: u64,
    /// Bytes that all its restore points added to the repository.
    pub stored_bytes: u64,
}

/// A restore point in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointRow {
    /// Its id; with it the point is named as `VM@ID`.
    pub id: String,
    /// The one before it.
    pub parent: Option<String>,
    /// Its place in the order by parent, from 1.
    pub sequence: u64,
    /// When it was begun: RFC 3339, UTC.
    pub time: String,
    /// Disks.
    pub disks: u64,
    /// Bytes of all disks.
    pub size: u64,
    /// Bytes that were new, before compression.
    pub new_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// Whether parts of it are not there or not whole.
    pub damaged: bool,
    /// When every chunk of it was last read and found whole.
    pub verified_at: Option<String>,
}

/// A manifest that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// Lists. Warnings about the catalog are events; the list is right all the same.
///
/// # Errors
/// Those of opening the repository; `NotFound` for a machine without restore points; the store's.
pub fn run(options: &ListOptions, emit: Emit<'_>) -> Result<ListDocument> {
    let repository = access::open(&options.repository)?;
    let scope = options.vm.clone().map_or(Scope::All, Scope::Machine);
    let opened = super::catalog::open(&repository, &options.repository, &scope, emit)?;
    let id = &repository.config().id;
    let unreadable = opened.unreadable.iter();
    let mut document = ListDocument {
        version: 1,
        repository: id.clone(),
        location: repository.store().label(),
        machines: None,
        vm: options.vm.as_ref().map(Name::to_string),
        points: None,
        unreadable: unreadable
            .map(|(key, error)| Unreadable { key: key.to_string(), reason: error.to_string() })
            .collect(),
    };
    match &options.vm {
        None => {
            let machines = opened.catalog.machines(id)?;
            document.machines = Some(machines.into_iter().map(MachineRow::from).collect());
        }
        Some(vm) => {
            let points = opened.catalog.points(id, vm)?;
            if points.is_empty() && document.unreadable.is_empty() {
                return Err(no_points(&repository, vm)?);
            }
            // Verifications are looked up now: nothing tells the catalog of them.
            let prefix = format!("notes/points/{vm}/");
            let noted: HashSet<String> = repository.store().list_folders(&prefix)?.into_iter().collect();
            let rows = points.into_iter().map(|point| {
                let notes = match noted.contains(point.point.as_str()) {
                    true => notes::of_point(&repository, vm, &point.point)?,
                    false => Vec::new(),
                };
                Ok(PointRow { verified_at: verified_at(&notes), ..PointRow::from(point) })
            });
            document.points = Some(rows.collect::<Result<_>>()?);
        }
    }
    Ok(document)
}

/// When a restore point was last found whole, unless it was found damaged after that.
pub(super) fn verified_at(notes: &[PointNote]) -> Option<String> {
    match notes.last() {
        Some(PointNote::Verified { time }) => Some(time.clone()),
        _ => None,
    }
}

/// The error for a machine without restore points, naming machines that have some.
pub(super) fn no_points(repository: &Repository, vm: &Name) -> Result<Error> {
    const FEW: usize = 5;
    let machines = manifests::machines(repository)?;
    let few: Vec<_> = machines.iter().take(FEW).map(Name::as_str).collect();
    let hint = match machines.len() {
        0 => "the repository holds no restore points at all".to_owned(),
        n if n <= FEW => format!("there are {}", few.join(", ")),
        n => format!("there are {} and {} more: `mover list` names them", few.join(", "), n - FEW),
    };
    Ok(Error::new(ErrorKind::NotFound, format!("there are no restore points of {vm}"))
        .at(repository.store().label())
        .hint(hint))
}

impl From<MachineSummary> for MachineRow {
    fn from(machine: MachineSummary) -> Self {
        MachineRow {
            vm: machine.vm.to_string(),
            points: machine.points,
            damaged: machine.damaged,
            latest: machine.latest.map(|point| point.to_string()),
            latest_time: machine.latest_time,
            disks: machine.disks,
            size: machine.size,
            stored_bytes: machine.stored_bytes,
        }
    }
}

impl From<PointSummary> for PointRow {
    fn from(point: PointSummary) -> Self {
        PointRow {
            id: point.point.to_string(),
            parent: point.parent.map(|parent| parent.to_string()),
            sequence: point.sequence,
            time: point.started,
            disks: point.disks,
            size: point.size,
            new_bytes: point.new_bytes,
            stored_bytes: point.stored_bytes,
            damaged: point.damaged,
            verified_at: None,
        }
    }
}
