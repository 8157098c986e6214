//! Which sessions there are, which of them live, and how those that do not are ended.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use mover_model::{ErrorKind, Result};

use super::{Pace, Purpose, Seen, Session, SessionRecord, host, object_key, put, turn::TURN};
use crate::format::envelope::{self, Kind, Protection};
use crate::manifests;
use crate::names::ObjectName;
use crate::repository::Repository;
use crate::store::{Key, Listed};

/// A session that has not ended.
pub(super) struct Found {
    pub(super) seen: Seen,
    /// Whether it stands in line: see [`super::turn`].
    pub(super) is_in_line: bool,
}

/// Records that were read: they never change.
pub(super) type Records = HashMap<String, SessionRecord>;

/// All sessions that have not ended, other than `own`.
///
/// # Errors
/// The store's. A session object that cannot be read counts as alive until it is old.
pub fn others(repository: &Repository, own: Option<&Session>) -> Result<Vec<Seen>> {
    others_at(repository, own, own.map(Session::pace).unwrap_or_default())
}

/// The same at another pace.
///
/// # Errors
/// As for [`others`].
pub fn others_at(repository: &Repository, own: Option<&Session>, pace: Pace) -> Result<Vec<Seen>> {
    let found = survey(repository, own.map(|own| own.record.id.as_str()), pace, &mut Records::new())?;
    Ok(found.into_iter().map(|found| found.seen).collect())
}

pub(super) fn survey(
    repository: &Repository,
    own: Option<&str>,
    pace: Pace,
    records: &mut Records,
) -> Result<Vec<Found>> {
    let store = repository.store();
    // Before the listing: what is put after it is younger than we think, and counts as alive.
    let now = store.now()?;
    let mut found = Vec::new();
    for (id, objects) in groups(store.list("sessions/")?) {
        let named = |name: &str| objects.iter().find(|object| object.key.last() == name);
        let Some(first) = named("0").filter(|_| Some(id.as_str()) != own && named("end").is_none()) else {
            continue;
        };
        let record = match records.get(&id) {
            Some(record) => record.clone(),
            None => match read(repository, &id, &objects)? {
                Some(record) => record,
                // Ended since it was listed.
                None => continue,
            },
        };
        records.insert(id, record.clone());
        if has_committed(repository, &record)? {
            continue;
        }
        let is_in_line = named(TURN).is_some();
        let Some(alive) = is_alive(repository, &record, &objects, now, pace)? else { continue };
        found.push(Found { seen: Seen { record, began: first.modified, alive }, is_in_line });
    }
    Ok(found)
}

/// Objects by session, in the order of their ids. What is no session's is left alone.
fn groups(listed: Vec<Listed>) -> BTreeMap<String, Vec<Listed>> {
    let mut groups = BTreeMap::<String, Vec<Listed>>::new();
    for object in listed {
        let mut parts = object.key.as_str().split('/').skip(1);
        if let (Some(id), Some(_), None) = (parts.next(), parts.next(), parts.next())
            && id.parse::<ObjectName>().is_ok()
        {
            groups.entry(id.to_owned()).or_default().push(object);
        }
    }
    groups
}

/// Reads a session's record, which each of its objects holds; `None` when it has ended meanwhile.
fn read(repository: &Repository, id: &str, objects: &[Listed]) -> Result<Option<SessionRecord>> {
    let mut damaged = false;
    for object in objects {
        let protection = Protection::Sealed(repository.keys());
        match envelope::get::<SessionRecord>(repository.store(), &object.key, Kind::Session, protection) {
            Ok(Some(record)) if record.id == id => return Ok(Some(record)),
            Ok(None) => {}
            Ok(Some(_)) => damaged = true,
            Err(error) => match error.kind() {
                ErrorKind::Corruption | ErrorKind::Unsupported | ErrorKind::Key => damaged = true,
                _ => return Err(error),
            },
        }
    }
    // Nothing is known of it but its age, so nothing it might need is deleted before it is old.
    Ok(damaged.then(|| SessionRecord {
        id: id.to_owned(),
        purpose: Purpose::Read { verb: "session that cannot be read".to_owned() },
        host: "unknown".to_owned(),
        host_id: String::new(),
        pid: 0,
        started: "unknown".to_owned(),
    }))
}

/// Whether the manifest key of a backup's session is taken: by its manifest, or by who ended it.
fn has_committed(repository: &Repository, record: &SessionRecord) -> Result<bool> {
    let Purpose::Backup { vm, point } = &record.purpose else { return Ok(false) };
    Ok(repository.store().open(&manifests::manifest_key(vm, point))?.is_some())
}

/// Whether a session's process may live; `None` when it has ended meanwhile.
fn is_alive(
    repository: &Repository,
    record: &SessionRecord,
    objects: &[Listed],
    now: SystemTime,
    pace: Pace,
) -> Result<Option<bool>> {
    let store = repository.store();
    if !record.host_id.is_empty() && record.host_id == host::id() {
        let first = object_key(&record.id, "0");
        match store.is_held(&first)? {
            Some(true) => return Ok(Some(true)),
            // The object goes before the lock does.
            Some(false) => return Ok(store.open(&first)?.map(|_| false)),
            None => {}
        }
    }
    let newest = objects.iter().map(|object| object.modified).max();
    // A time to come is no sign of death.
    let is_old =
        newest.is_none_or(|newest| now.duration_since(newest).is_ok_and(|age| age > pace.dead_after));
    Ok(Some(!is_old))
}

/// Ends dead sessions: a backup's manifest key is taken by an aborted record (or it had committed: both are fine), then
/// its objects are deleted. Returns those it ended. What sessions that ended have left is deleted as well.
///
/// # Errors
/// The store's.
pub fn end_dead(repository: &Repository, seen: &[Seen]) -> Result<Vec<Seen>> {
    let mut ended = Vec::new();
    for dead in seen.iter().filter(|seen| !seen.alive) {
        end(repository, dead)?;
        ended.push(dead.clone());
    }
    remove_leftovers(repository)?;
    Ok(ended)
}

/// Ends one dead session. It can still be alive where age alone was asked: then either its commit came first, or it finds
/// its manifest key taken; a gc finds its session gone before it deletes.
pub(super) fn end(repository: &Repository, dead: &Seen) -> Result<()> {
    if let Purpose::Backup { vm, point } = &dead.record.purpose {
        // Done or Exists: the key is taken for good.
        manifests::abort(repository, &manifests::manifest_key(vm, point))?;
    }
    remove(repository, &dead.record)
}

/// Deletes a session's objects, the first one first: with it the session has ended, whatever comes of the rest.
pub(super) fn remove(repository: &Repository, record: &SessionRecord) -> Result<()> {
    let store = repository.store();
    match store.delete(&object_key(&record.id, "0")) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::Refused => {
            put(repository, "end", record)?;
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    let rest: Vec<Key> = keys(store.list(&format!("sessions/{}/", record.id))?).collect();
    store.delete_many(&rest)
}

/// Deletes objects of sessions that have ended and could not, or had no time to, delete them.
fn remove_leftovers(repository: &Repository) -> Result<()> {
    let store = repository.store();
    for (id, objects) in groups(store.list("sessions/")?) {
        let is_there = |name: &str| objects.iter().any(|object| object.key.last() == name);
        let has_ended = !is_there("0") || is_there("end") || {
            let record = read(repository, &id, &objects)?;
            record.map(|record| has_committed(repository, &record)).transpose()?.unwrap_or(false)
        };
        if !has_ended {
            continue;
        }
        // `0` before `end`: without both it would look alive.
        let (last, first): (Vec<Key>, Vec<Key>) = keys(objects).partition(|key| key.last() == "end");
        match store.delete_many(&first).and_then(|()| store.delete_many(&last)) {
            // Credentials without delete may end the dead; what is left waits for those that have it.
            Err(error) if error.kind() == ErrorKind::Refused => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}

fn keys(objects: Vec<Listed>) -> impl Iterator<Item = Key> {
    objects.into_iter().map(|object| object.key)
}
