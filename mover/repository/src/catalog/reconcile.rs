//! Brings a catalog into agreement with the store, at the price of what has changed.
//!
//! The stamp of a machine's folder is taken before it is listed, and stored with what was found: whatever is put or
//! deleted after that gives another stamp the next time. Where a store has no stamp to give, because it has none or because
//! the folder has just changed, the machine is listed again. Several processes may do this at once: one that comes late
//! with what it found early stores the early stamp with it, so the next one looks again.

use mover_model::manifest::Manifest;
use mover_model::{Error, ErrorKind, Name, Result};

use super::{Catalog, MachineChange};
use crate::manifests;
use crate::notes::{self, PointNote};
use crate::repository::Repository;
use crate::store::Key;

/// Restore points read before they are taken in: a transaction of well under a second, a few MiB of memory.
const BATCH: usize = 4096;
/// Machines looked at before what was found is taken in.
const BATCH_MACHINES: usize = 1024;
/// Threads that read manifests: small files, where each read waits.
const READERS: usize = 8;
/// What is brought up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// One machine.
    Machine(Name),
    /// Nothing: only places.
    Nothing,
}

/// What a reconciliation found.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// Manifests that were read.
    pub read: u64,
    /// Restore points that were gone.
    pub removed: u64,
    /// Manifests that could not be read, and why.
    pub unreadable: Vec<(Key, Error)>,
}

/// Whose failure it was.
#[derive(Debug)]
pub enum Failure {
    /// The store's: there is no list without it.
    Store(Error),
    /// The catalog's: it is only a cache.
    Catalog(Error),
}

/// Whether these notes, the oldest first, say that a restore point is damaged: a later verification that found it whole
/// takes an earlier finding back.
pub fn is_damaged_by(notes: &[PointNote]) -> bool {
    matches!(notes.last(), Some(PointNote::Damaged { .. }))
}

/// Brings the catalog into agreement with the store.
///
/// # Errors
/// The store's, or the catalog's own.
pub fn reconcile(
    catalog: &mut dyn Catalog,
    repository: &Repository,
    scope: &Scope,
) -> Result<Reconciled, Failure> {
    let id = repository.config().id.clone();
    let mut result = Reconciled::default();
    let present = match scope {
        Scope::Nothing => return Ok(result),
        Scope::Machine(vm) => vec![vm.clone()],
        Scope::All => manifests::machines(repository).map_err(Failure::Store)?,
    };
    let mut known = catalog.stamps(&id).map_err(Failure::Catalog)?;
    let mut batch = Batch::default();
    for vm in present {
        let stamp = repository.store().stamp(&format!("manifests/{vm}/")).map_err(Failure::Store)?;
        let before = known.remove(&vm);
        if stamp.is_some() && before.as_ref() == Some(&stamp) {
            continue;
        }
        let listed = manifests::list(repository, &vm).map_err(Failure::Store)?;
        let mut gone = catalog.known(&id, &vm).map_err(Failure::Catalog)?;
        let mut change = MachineChange {
            gone: listed.is_empty(),
            vm,
            stamp,
            added: vec![],
            aborted: vec![],
            removed: vec![],
        };
        for object in listed {
            // Keys that no writer of ours puts are left to verify.
            let Ok(point) = object.key.last().parse::<Name>() else { continue };
            if !gone.remove(&point) {
                batch.wanted.push((batch.changes.len(), point));
            }
        }
        result.removed += gone.len() as u64;
        change.removed = gone.into_iter().collect();
        if change.gone && before.is_none() {
            continue;
        }
        batch.changes.push(change);
        if batch.wanted.len() >= BATCH || batch.changes.len() >= BATCH_MACHINES {
            std::mem::take(&mut batch).finish(catalog, repository, &mut result)?;
        }
    }
    if *scope == Scope::All {
        for vm in known.into_keys() {
            result.removed += catalog.known(&id, &vm).map_err(Failure::Catalog)?.len() as u64;
            let nothing = MachineChange {
                gone: true,
                vm,
                stamp: None,
                added: vec![],
                aborted: vec![],
                removed: vec![],
            };
            batch.changes.push(nothing);
        }
    }
    batch.finish(catalog, repository, &mut result)?;
    damage(catalog, repository, &id)?;
    Ok(result)
}

/// Machines whose changes are known but for the manifests that have to be read.
#[derive(Default)]
struct Batch {
    changes: Vec<MachineChange>,
    /// Index into `changes`, and the point.
    wanted: Vec<(usize, Name)>,
}

impl Batch {
    fn finish(
        mut self,
        catalog: &mut dyn Catalog,
        repository: &Repository,
        result: &mut Reconciled,
    ) -> Result<(), Failure> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let found = read_all(repository, &self.changes, &self.wanted);
        for ((index, point), manifest) in self.wanted.into_iter().zip(found) {
            let change = &mut self.changes[index];
            match manifest {
                Ok(Some(manifest)) => {
                    result.read += 1;
                    change.added.push(manifest);
                }
                Ok(None) => change.aborted.push(point),
                Err(error) if error.kind() == ErrorKind::Unreachable => return Err(Failure::Store(error)),
                Err(error) => {
                    // Looked at again the next time: someone may have put it right.
                    change.stamp = None;
                    result.unreadable.push((manifests::manifest_key(&change.vm, &point), error));
                }
            }
        }
        catalog.apply(&repository.config().id, &self.changes).map_err(Failure::Catalog)
    }
}

/// Reads manifests on several threads; one outcome for each that is wanted, in that order.
fn read_all(
    repository: &Repository,
    changes: &[MachineChange],
    wanted: &[(usize, Name)],
) -> Vec<Result<Option<Manifest>>> {
    let read = |(index, point): &(usize, Name)| manifests::get(repository, &changes[*index].vm, point);
    let threads = READERS.min(wanted.len().div_ceil(32));
    if threads < 2 {
        return wanted.iter().map(read).collect();
    }
    std::thread::scope(|scope| {
        let parts: Vec<_> = wanted
            .chunks(wanted.len().div_ceil(threads))
            .map(|part| (part, scope.spawn(move || part.iter().map(read).collect::<Vec<_>>())))
            .collect();
        let mut all = Vec::with_capacity(wanted.len());
        for (part, thread) in parts {
            match thread.join() {
                Ok(found) => all.extend(found),
                Err(_) => {
                    all.extend(part.iter().map(|_| {
                        Err(Error::new(ErrorKind::Internal, "a thread that reads manifests panicked"))
                    }))
                }
            }
        }
        all
    })
}

/// Takes in which restore points a verify or restore found damaged. Whoever notes that of a restore point notes the
/// chunks first, so the stamp of those tells whether to look.
fn damage(catalog: &mut dyn Catalog, repository: &Repository, id: &str) -> Result<(), Failure> {
    let store = repository.store();
    let before = catalog.damaged(id).map_err(Failure::Catalog)?;
    let stamp = store.stamp("notes/damaged/").map_err(Failure::Store)?;
    let listed = store.list("notes/damaged/").map_err(Failure::Store)?;
    let known = catalog.damage_stamp(id).map_err(Failure::Catalog)?;
    let changed = stamp.is_none() || stamp != known;
    let mut points = Vec::new();
    if changed && !(listed.is_empty() && before.is_empty()) {
        for vm in store.list_folders("notes/points/").map_err(Failure::Store)? {
            let Ok(vm) = vm.parse::<Name>() else { continue };
            let folders = store.list_folders(&format!("notes/points/{vm}/")).map_err(Failure::Store)?;
            let names = folders.iter().filter_map(|point| point.parse().ok());
            points.extend(names.map(|point: Name| (vm.clone(), point)));
        }
    } else {
        // A later verification may have taken it back.
        points.clone_from(&before);
    }
    let mut damaged = Vec::new();
    for (vm, point) in points {
        let notes = notes::of_point(repository, &vm, &point).map_err(Failure::Store)?;
        if is_damaged_by(&notes) {
            damaged.push((vm, point));
        }
    }
    damaged.sort();
    let mut before = before;
    before.sort();
    if damaged != before || stamp != known {
        catalog.set_damaged(id, &damaged, stamp.as_deref()).map_err(Failure::Catalog)?;
    }
    Ok(())
}
