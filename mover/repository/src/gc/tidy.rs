//! What else is left of things that are gone: superseded segments, aborted records, notes, sessions, temporary files.

use std::collections::{HashMap, HashSet};

use mover_model::{Name, Result};

use super::Gc;
use super::mark::Marks;
use super::points::Points;
use crate::format::envelope::{self, Kind, Protection};
use crate::manifests::manifest_key;
use crate::names::ObjectName;
use crate::notes;
use crate::repository::Repository;
use crate::session::{self, DEAD_AFTER, Purpose, Seen};
use crate::store::Key;

/// Segments that another one stands for, left by a gc that was cut.
pub(super) fn leftover_segments(repository: &Repository, marks: &Marks) -> Result<Vec<ObjectName>> {
    let superseded: HashSet<ObjectName> =
        marks.segments().flat_map(|segment| segment.superseded()).copied().collect();
    let listed = repository.store().list("index/")?;
    Ok(listed
        .iter()
        .filter_map(|listed| listed.key.last().parse().ok())
        .filter(|name| superseded.contains(name))
        .collect())
}

/// Deletes all the rest, and returns how many objects that were.
pub(super) fn tidy(gc: &Gc<'_>, marks: &Marks, points: &Points) -> Result<u64> {
    let mut deleted = notes_of_points(gc, points)?;
    deleted += notes_of_damage(gc, marks)?;
    let sessions = session::others(gc.repository, Some(gc.session))?;
    deleted += aborted(gc, points, &sessions)?;
    deleted += temporary(gc, &sessions)?;
    Ok(deleted)
}

/// Notes of restore points that are gone.
fn notes_of_points(gc: &Gc<'_>, points: &Points) -> Result<u64> {
    let store = gc.repository.store();
    let mut gone: HashMap<(Name, Name), bool> = HashMap::new();
    let mut deleted = 0;
    for listed in store.list("notes/points/")? {
        let parts: Vec<&str> = listed.key.as_str().split('/').collect();
        let [_, _, vm, point, _] = parts[..] else { continue };
        let (Ok(vm), Ok(point)) = (vm.parse::<Name>(), point.parse::<Name>()) else { continue };
        if points.has(&vm, &point) {
            continue;
        }
        let key = manifest_key(&vm, &point);
        let gone = match gone.get(&(vm.clone(), point.clone())) {
            Some(&gone) => gone,
            // It may have come after the mark.
            None => *gone.entry((vm, point)).or_insert(store.open(&key)?.is_none()),
        };
        if gone {
            store.delete(&listed.key)?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Notes of damage in packs that are gone. A missing pack in which something has its only place is damage that is not
/// repaired yet.
fn notes_of_damage(gc: &Gc<'_>, marks: &Marks) -> Result<u64> {
    let store = gc.repository.store();
    // Listed now: with packs that came since the mark.
    let there: HashSet<ObjectName> =
        store.list("packs/")?.iter().filter_map(|listed| listed.key.last().parse().ok()).collect();
    notes::forget_damaged(gc.repository, &|pack| {
        let Ok(name) = pack.parse::<ObjectName>() else { return true };
        !there.contains(&name) && !marks.packs.find(name).is_some_and(|pack| pack.is_living())
    })
}

/// Records that a session was ended, once nobody can be there any more who would commit instead.
fn aborted(gc: &Gc<'_>, points: &Points, sessions: &[Seen]) -> Result<u64> {
    let store = gc.repository.store();
    let committing: HashSet<Key> = sessions
        .iter()
        .filter_map(|seen| match &seen.record.purpose {
            Purpose::Backup { vm, point } => Some(manifest_key(vm, point)),
            _ => None,
        })
        .collect();
    let now = store.now()?;
    let mut deleted = 0;
    for (key, put) in &points.aborted {
        let age = now.duration_since(*put).unwrap_or_default();
        if age < DEAD_AFTER || committing.contains(key) {
            continue;
        }
        let object = envelope::open(store, key, Protection::Sealed(gc.repository.keys()))?;
        if object.is_some_and(|(kind, _)| kind == Kind::Aborted) {
            store.delete(key)?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// What uploads of dead processes have left.
fn temporary(gc: &Gc<'_>, sessions: &[Seen]) -> Result<u64> {
    let store = gc.repository.store();
    let known: HashSet<&str> = sessions.iter().map(|seen| seen.record.id.as_str()).collect();
    let living = |id: &str| {
        // One that began after we looked has its object by now; what cannot be told lives.
        id == gc.session.record().id
            || known.contains(id)
            || Key::parse(id)
                .is_none_or(|id| store.list(&format!("sessions/{id}/")).is_ok_and(|l| !l.is_empty()))
    };
    store.sweep(&living)
}
