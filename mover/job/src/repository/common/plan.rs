//! Whether a common disk has to be read, and what its manifest says of it when it was.

use std::path::Path;

use mover_model::event::Event;
use mover_model::manifest::{Common, Disk, FileIdentity, Manifest, Method, Stored};
use mover_model::{ChunkId, Locator, Name, Result};
use mover_repository::catalog::{Catalog, CommonDisk, CommonKey};
use mover_repository::notes::PointNote;
use mover_repository::{Repository, manifests, notes};

use super::arrange::Arranged;
use super::identity::{Doubt, Look, look};
use super::{CommonPlan, Reading, Settled};
use crate::Emit;
use crate::repository::backup::CommonRequest;

/// Restore points that are looked at for one that has the disk as it is now: the newest are the likeliest, and each
/// costs a read of its manifest.
const CANDIDATES: usize = 16;

/// Looks whether a disk is common, and known. The catalog only tells where to look: a reference is made to nothing but
/// a manifest that is there, with a disk that is whole. The caller's session has begun before.
///
/// # Errors
/// `Unreachable` for a disk that cannot be looked at. What goes wrong with the catalog or an earlier restore point is a
/// warning, and the disk is read.
pub fn plan(
    repository: &Repository,
    catalog: &dyn Catalog,
    disk: &Arranged,
    emit: Emit<'_>,
) -> Result<CommonPlan> {
    let id = match &disk.spec.common {
        CommonRequest::No => return Ok(CommonPlan::NotCommon),
        CommonRequest::Auto => None,
        CommonRequest::Id(id) => Some(id.clone()),
    };
    let name = &disk.spec.id;
    let reading = |look: Option<&Look>, reason| Reading {
        id: id.clone(),
        location: location(&disk.spec.locator),
        pointer: disk.pointer.clone(),
        before: look.and_then(|look| look.identity.clone()),
        trusted: look.is_some_and(|look| look.identity.is_some() && look.doubt.is_none()),
        reason,
    };
    let Locator::Path(path) = &disk.spec.locator else {
        // A stream has nothing to be known by before it was read.
        return Ok(CommonPlan::Read(reading(None, None)));
    };
    let now = look(path)?;
    match (&now.doubt, &id) {
        (Some(Doubt::Writer(who)), _) => {
            emit(Event::Warning {
                message: format!(
                    "disk {name}: {} is open for writing by {who}: it is not counted as a common disk",
                    path.display()
                ),
            });
            return Ok(CommonPlan::NotCommon);
        }
        (Some(Doubt::NotLocal(what)), None) => {
            choice(
                emit,
                name,
                "read",
                format!("it is {what}, which is known again only by an id of yours: say common=ID"),
            );
            return Ok(CommonPlan::Read(reading(Some(&now), None)));
        }
        _ => {}
    }
    let uuid = &repository.config().id;
    let found = match (&id, &now.identity) {
        (Some(id), _) => catalog.commons(uuid, CommonKey::Id(id), CANDIDATES),
        (None, Some(identity)) => {
            catalog.commons(uuid, CommonKey::File(&identity.device, identity.inode), CANDIDATES)
        }
        (None, None) => Ok(Vec::new()),
    };
    let found = found.unwrap_or_else(|error| {
        emit(Event::Warning {
            message: format!("disk {name}: the catalog cannot tell whether it is known: {error}"),
        });
        Vec::new()
    });
    let mut stale = None;
    for candidate in found {
        match examine(repository, &candidate, id.as_deref(), &now) {
            Fit::Same(known) => return Ok(reference(disk, *known, &now, &candidate, emit)),
            Fit::Stale(why) => stale = stale.or(Some(why)),
            Fit::Gone => {}
            Fit::Unusable(why) => emit(Event::Warning { message: format!("disk {name}: {why}; it is read") }),
        }
    }
    if let Some(why) = &stale {
        choice(emit, name, "read", why.clone());
    }
    Ok(CommonPlan::Read(reading(Some(&now), stale)))
}

/// How an earlier restore point's disk fits what is there now.
enum Fit {
    /// It is the same.
    Same(Box<Disk>),
    /// It was the same disk; it has changed since, or may have.
    Stale(String),
    /// The restore point is no longer there.
    Gone,
    /// It cannot be relied on.
    Unusable(String),
}

fn examine(repository: &Repository, candidate: &CommonDisk, id: Option<&str>, now: &Look) -> Fit {
    let CommonDisk { vm, point, disk: disk_id, .. } = candidate;
    let manifest = match manifests::get(repository, vm, point) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return Fit::Gone,
        Err(error) => return Fit::Unusable(format!("{vm}@{point} has it and cannot be read: {error}")),
    };
    let Some(disk) = manifest.disks.iter().find(|disk| disk.id == *disk_id) else { return Fit::Gone };
    // The manifest is the truth, the catalog a copy.
    let Some(common) = disk.common.as_ref().filter(|common| id.is_none_or(|id| common.id == id)) else {
        return Fit::Gone;
    };
    let who = format!("the common disk {} of {vm}@{point}", common.id);
    match (&now.identity, &disk.identity) {
        (Some(now_is), Some(was)) if now_is != was => {
            return Fit::Stale(format!(
                "{who} was another file or has changed since: {}",
                difference(was, now_is)
            ));
        }
        (Some(_), Some(_)) if now.doubt.is_some() => {
            return Fit::Stale(format!(
                "it was changed less than two seconds ago, so it may not be as {who} was"
            ));
        }
        (Some(_), None) => {
            return Fit::Stale(format!("{who} had no file whose stamps could be trusted when it was read"));
        }
        (None, _) if now.size != disk.size => {
            return Fit::Stale(format!("{who} had {} bytes, and it has {} now", disk.size, now.size));
        }
        _ => {}
    }
    match is_whole(repository, &manifest, disk) {
        Ok(true) => Fit::Same(Box::new(disk.clone())),
        Ok(false) => Fit::Unusable(format!("{who} is damaged")),
        Err(error) => Fit::Unusable(format!("it is not known whether {who} is whole: {error}")),
    }
}

/// Whether a disk of a restore point was read without errors and nothing of it was found damaged since.
fn is_whole(repository: &Repository, manifest: &Manifest, disk: &Disk) -> Result<bool> {
    if !disk.bad_extents.is_empty() {
        return Ok(false);
    }
    let notes = notes::of_point(repository, &manifest.vm, &manifest.point)?;
    Ok(match notes.last() {
        Some(PointNote::Damaged { extents, .. }) => !extents.iter().any(|(id, ..)| *id == disk.id),
        _ => true,
    })
}

/// What tells two files apart, in words.
fn difference(was: &FileIdentity, now: &FileIdentity) -> String {
    let pairs = [
        (was.device != now.device, "device"),
        (was.inode != now.inode, "inode"),
        (was.size != now.size, "size"),
        (was.mtime_ns != now.mtime_ns, "time of modification"),
        (was.ctime_ns != now.ctime_ns, "time of change"),
        (was.birth_ns != now.birth_ns, "time of birth"),
    ];
    let names: Vec<_> = pairs.iter().filter(|(differs, _)| *differs).map(|(_, name)| *name).collect();
    format!("{} differs", names.join(", "))
}

fn reference(disk: &Arranged, known: Disk, now: &Look, candidate: &CommonDisk, emit: Emit<'_>) -> CommonPlan {
    let by = if now.identity.is_some() { "its file is the same" } else { "its id was given" };
    let reason = format!("{} is known from {}@{}: {by}", candidate.id, candidate.vm, candidate.point);
    choice(emit, &disk.spec.id, "reference", reason.clone());
    let location = location(&disk.spec.locator);
    let new = Disk {
        id: disk.spec.id.clone(),
        method: Method::Common,
        reason: Some(reason.clone()),
        base: None,
        checkpoint: None,
        source: disk.spec.locator.to_string(),
        path: matches!(disk.spec.locator, Locator::Path(_)).then(|| location.clone()),
        identity: now.identity.clone(),
        common: Some(Common { id: candidate.id.clone(), location, pointer: disk.pointer.clone() }),
        bad_extents: Vec::new(),
        read_bytes: 0,
        stored: Stored::default(),
        ..known
    };
    CommonPlan::Reference { disk: new, known_by: candidate.vm.clone(), reason }
}

/// What a common disk that was read is, now that its content is known. Called after the last byte was read.
pub fn settle(
    repository: &Repository,
    catalog: &dyn Catalog,
    disk: &Arranged,
    reading: &Reading,
    root: &ChunkId,
    emit: Emit<'_>,
) -> Settled {
    let name = &disk.spec.id;
    let warn = |message: String| emit(Event::Warning { message: format!("disk {name}: {message}") });
    if let Locator::Path(path) = &disk.spec.locator {
        let spoilt = match look(path) {
            Ok(Look { doubt: Some(Doubt::Writer(who)), .. }) => {
                Some(format!("it was opened for writing by {who}"))
            }
            Ok(after) => match (&reading.before, &after.identity) {
                (Some(before), Some(after)) if before != after => {
                    Some(format!("its file was changed: {}", difference(before, after)))
                }
                (before, after) if before.is_some() != after.is_some() => {
                    Some("another file was put in its place".into())
                }
                _ => None,
            },
            Err(error) => Some(format!("its file cannot be looked at any more: {error}")),
        };
        if let Some(why) = spoilt {
            warn(format!("while it was read {why}; it is not counted as a common disk"));
            return Settled::default();
        }
        if reading.before.is_some() && !reading.trusted {
            choice(
                emit,
                name,
                "no identity",
                "its file was changed less than two seconds before it was read: it will be read again the next time".into(),
            );
        }
    }
    // The same content may be known under an id already: of a copy of the file, or one that somebody gave.
    let known =
        catalog.commons(&repository.config().id, CommonKey::Root(root), CANDIDATES).unwrap_or_else(|error| {
            warn(format!("the catalog cannot tell whether its content is known: {error}"));
            Vec::new()
        });
    let known = known.into_iter().find(|known| reading.id.as_ref().is_none_or(|id| *id == known.id));
    let id = match (&reading.id, &known) {
        (Some(id), _) => id.clone(),
        (None, Some(known)) => known.id.clone(),
        (None, None) => root.to_string(),
    };
    if let Some(known) = &known {
        choice(
            emit,
            name,
            &id,
            format!("{}@{} has the same content as a common disk", known.vm, known.point),
        );
    }
    Settled {
        common: Some(Common { id, location: reading.location.clone(), pointer: reading.pointer.clone() }),
        identity: reading.before.clone().filter(|_| reading.trusted),
        known_by: known.map(|known| known.vm),
    }
}

fn choice(emit: Emit<'_>, disk: &Name, chosen: &str, reason: String) {
    emit(Event::Choice { about: format!("common disk {disk}"), chosen: chosen.into(), reason, pair: None });
}

/// The absolute path of a locator that is one.
fn location(locator: &Locator) -> String {
    match locator {
        Locator::Path(path) => {
            std::path::absolute(path).as_deref().unwrap_or(Path::new(path)).display().to_string()
        }
        other => other.to_string(),
    }
}
