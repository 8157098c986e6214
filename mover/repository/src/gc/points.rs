//! The restore points that a mark begins from.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use mover_model::{ChunkId, Error, ErrorKind, Name, Result};

use super::{Gc, stopped};
use crate::manifests;
use crate::store::Key;

/// Manifests by a hash of their keys: a million of them take 16 MB.
#[derive(Default)]
pub(super) struct Points {
    marked: HashSet<[u8; 16]>,
    /// Keys at which there is no manifest but, as it seems, the record of an aborted one; with the time of its put.
    pub aborted: Vec<(Key, SystemTime)>,
}

impl Points {
    /// The roots of all restore points that were not listed before, each with the key of a manifest that names it.
    ///
    /// Before the index is opened: what a listed manifest needs was in the index when it was committed, so an index that is
    /// opened later has it.
    ///
    /// # Errors
    /// `Corruption` when a manifest cannot be read; the store's.
    pub fn roots(&mut self, gc: &Gc<'_>) -> Result<Vec<(ChunkId, String)>> {
        let mut roots: HashMap<ChunkId, String> = HashMap::new();
        self.aborted.clear();
        for vm in manifests::machines(gc.repository)? {
            for listed in manifests::list(gc.repository, &vm)? {
                let hash = hash(&listed.key);
                if self.marked.contains(&hash) {
                    continue;
                }
                if gc.control.stopped() {
                    return Err(stopped());
                }
                let Ok(point) = listed.key.last().parse::<Name>() else { continue };
                match manifests::get(gc.repository, &vm, &point)
                    .map_err(|error| unreadable(gc, &listed.key, error))?
                {
                    Some(manifest) => {
                        for disk in &manifest.disks {
                            roots.entry(disk.root).or_insert_with(|| listed.key.to_string());
                        }
                        self.marked.insert(hash);
                    }
                    None => self.aborted.push((listed.key, listed.modified)),
                }
            }
        }
        Ok(roots.into_iter().collect())
    }

    /// Whether a restore point's manifest was seen by a mark of this gc.
    pub fn has(&self, vm: &Name, point: &Name) -> bool {
        self.marked.contains(&hash(&manifests::manifest_key(vm, point)))
    }
}

fn hash(key: &Key) -> [u8; 16] {
    let hash = blake3::hash(key.as_str().as_bytes());
    std::array::from_fn(|i| hash.as_bytes()[i])
}

fn unreadable(gc: &Gc<'_>, key: &Key, error: Error) -> Error {
    let nothing =
        matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Unsupported | ErrorKind::WrongIdentity);
    if !nothing {
        return error;
    }
    let kind = error.kind();
    let message = format!(
        "a manifest cannot be read, so what it needs is unknown and nothing is deleted: {}",
        error.message()
    );
    Error::new(kind, message).at(gc.repository.store().label_of(key)).hint(match kind {
        ErrorKind::Corruption => "`mover verify` tells more; deleting this object gives the restore point up",
        ErrorKind::Unsupported => "use the newer version of mover that made it",
        _ => "it belongs to another repository: move it there",
    })
}
