//! Opens the segments of an index beside a gc that may be putting and deleting some.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use mover_model::{Error, ErrorKind, Result};

use super::places::Places;
use super::{Location, SMALL_ENTRIES};
use crate::format::pack::{self, pack_key};
use crate::format::segment::Segment;
use crate::names::ObjectName;
use crate::repository::Repository;

/// Segments that keep their file open: a usual limit is 1024 files, and packs and disks need theirs.
pub(super) const OPEN_FILES: usize = 256;
/// Listings after which a change in each of them is no chance: a gc changes the index twice.
const LISTINGS: usize = 16;

/// What was found.
pub(super) struct Found {
    /// Readable, and not superseded by a readable one; in the order of their names.
    pub segments: Vec<Arc<Segment>>,
    /// Not readable, and not superseded by a readable one.
    pub damaged: Vec<(ObjectName, Error)>,
}

/// Whether an error tells of the object, not of the store: the object is left out then, and the run goes on.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Unsupported | ErrorKind::WrongIdentity)
}

/// Opens all segments. One that is gone between the listing and the opening has been superseded by one that was put
/// before it was deleted, and that the next listing has.
pub(super) fn segments(repository: &Repository) -> Result<Found> {
    let mut open: BTreeMap<ObjectName, Segment> = BTreeMap::new();
    let mut damaged: BTreeMap<ObjectName, Error> = BTreeMap::new();
    let mut files = 0;
    for _ in 0..LISTINGS {
        let listed = repository.store().list("index/")?;
        // What is no name of ours was put by nobody of us.
        let listed: HashSet<ObjectName> = listed.iter().filter_map(|o| o.key.last().parse().ok()).collect();
        open.retain(|name, _| listed.contains(name));
        damaged.retain(|name, _| listed.contains(name));
        let mut gone = false;
        for &name in &listed {
            if open.contains_key(&name) || damaged.contains_key(&name) {
                continue;
            }
            match Segment::open(repository.store(), repository.keys(), repository.id(), name) {
                Ok(Some(mut segment)) => {
                    if segment.entries() < SMALL_ENTRIES || files == OPEN_FILES {
                        segment.close(repository.store_arc());
                    } else {
                        files += 1;
                    }
                    open.insert(name, segment);
                }
                Ok(None) => gone = true,
                Err(error) if is_damage(&error) => {
                    damaged.insert(name, error);
                }
                Err(error) => return Err(error),
            }
        }
        if !gone {
            let superseded: HashSet<ObjectName> =
                open.values().flat_map(Segment::superseded).copied().collect();
            open.retain(|name, _| !superseded.contains(name));
            damaged.retain(|name, _| !superseded.contains(name));
            let segments = open.into_values().map(Arc::new).collect();
            return Ok(Found { segments, damaged: damaged.into_iter().collect() });
        }
    }
    Err(Error::new(ErrorKind::Busy, "index segments vanish as fast as they are listed")
        .at(format!("{}/index", repository.store().label()))
        .hint("try again when `mover gc` has ended"))
}

/// All packs in the store.
pub(super) fn all_packs(repository: &Repository) -> Result<Vec<ObjectName>> {
    let listed = repository.store().list("packs/")?;
    Ok(listed.iter().filter_map(|object| object.key.last().parse().ok()).collect())
}

/// Adds what packs' own indexes say; returns those that are damaged themselves. A pack that is gone says nothing.
pub(super) fn read_packs(
    repository: &Repository,
    packs: &[ObjectName],
    places: &mut Places,
) -> Result<Vec<(ObjectName, Error)>> {
    let (store, mut damaged) = (repository.store(), Vec::new());
    for &name in packs {
        let key = pack_key(name);
        let Some(object) = store.open(&key)? else { continue };
        match pack::read_index(repository.keys(), repository.id(), name, &*object, &store.label_of(&key)) {
            Ok(index) => {
                index.entries.into_iter().for_each(|entry| places.add(Location { pack: name, entry }))
            }
            Err(error) if is_damage(&error) => damaged.push((name, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(damaged)
}
