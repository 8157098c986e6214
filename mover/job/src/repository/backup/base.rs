//! The restore points before this one: which is the parent, which one a list of changes counts from, and whether that
//! one can be built on.

use mover_model::disk_arg::PointArg;
use mover_model::event::Event;
use mover_model::manifest::{Disk, Manifest};
use mover_model::{Error, ErrorKind, Name, PointSelector, Result};
use mover_repository::manifests::Points;
use mover_repository::notes::{self, PointNote};
use mover_repository::{Repository, manifests};

use super::BackupOptions;
use crate::Emit;

/// What a list of changes counts from.
pub(super) struct Base {
    /// The restore point.
    pub manifest: Manifest,
    /// Why it cannot be built on, where it cannot: everything is read then.
    pub unusable: Option<String>,
}

/// The machine's restore points. What cannot be read is told, and another machine of the same name is refused.
pub(super) fn points(repository: &Repository, options: &BackupOptions, emit: Emit<'_>) -> Result<Points> {
    let points = manifests::all(repository, &options.vm)?;
    for (key, error) in &points.unreadable {
        let message = format!("the restore point {key} cannot be read, and is passed over: {error}");
        emit(Event::Warning { message });
    }
    let known = points.points.iter().rev().find_map(|point| Some((point.vm_uuid.as_ref()?, &point.point)));
    if let (Some(uuid), Some((known, point))) = (&options.vm_uuid, known)
        && !uuid.eq_ignore_ascii_case(known)
    {
        let message = format!(
            "the machine `{}` of restore point {point} has the UUID {known}, and this one {uuid}",
            options.vm
        );
        return Err(Error::new(ErrorKind::WrongIdentity, message)
            .at(repository.store().label())
            .hint("back it up under another name, or find which machine this is"));
    }
    Ok(points)
}

/// The restore point that lists of changes count from.
///
/// # Errors
/// `NotFound` for an unknown one, `Refused` for another machine's or one that cannot be read.
pub(super) fn find(
    repository: &Repository,
    options: &BackupOptions,
    points: &Points,
) -> Result<Option<Base>> {
    let Some(since) = &options.since else { return Ok(None) };
    let manifest = match points.points.iter().rev().find(|point| has_checkpoint(point, since)) {
        Some(point) => point.clone(),
        None => named(options, points, since)?.clone(),
    };
    // What was changed between the two is in no list of this run's. One that is damaged is no base for anyone.
    let newer = points.points.iter().rev().take_while(|point| point.point != manifest.point);
    if let Some(newer) = newer.filter(|point| !point.damaged).max_by_key(|point| point.sequence) {
        let (vm, newer) = (&options.vm, &newer.point);
        let message = format!("--since {since} is {vm}@{}, and {vm}@{newer} is newer", manifest.point);
        return Err(Error::new(ErrorKind::Refused, message)
            .hint("give the changes since that one; without --extents everything is read"));
    }
    let mut unusable = manifest
        .damaged
        .then(|| format!("parts of restore point {} could not be read when it was made", manifest.point));
    let notes = notes::of_point(repository, &options.vm, &manifest.point)?;
    // A later verification that found all of it whole again counts.
    if let Some(PointNote::Damaged { time, .. }) = notes.last() {
        unusable.get_or_insert(format!("restore point {} was found damaged at {time}", manifest.point));
    }
    Ok(Some(Base { manifest, unusable }))
}

fn has_checkpoint(point: &Manifest, token: &str) -> bool {
    point.disks.iter().any(|disk| disk.checkpoint.as_deref() == Some(token))
}

fn named<'a>(options: &BackupOptions, points: &'a Points, since: &str) -> Result<&'a Manifest> {
    let parsed = PointArg::parse(since).map_err(|error| {
        let message = format!("--since {since}: no checkpoint of this machine, and {}", error.message());
        Error::usage(message).hint("write NAME@POINT; `mover list` shows the restore points")
    })?;
    if parsed.vm != options.vm {
        let message =
            format!("--since {since} names the machine `{}`, and this is `{}`", parsed.vm, options.vm);
        return Err(Error::new(ErrorKind::Refused, message)
            .hint("changes count from a restore point of the same machine"));
    }
    let Some(selector) = parsed.point else {
        return Err(Error::usage(format!("--since {since} names no restore point"))
            .hint(format!("write {since}@latest, or the point whose content the list counts from")));
    };
    if let PointSelector::Id(id) = &selector
        && let Some((key, error)) = points.unreadable.iter().find(|(key, _)| key.last() == id.as_str())
    {
        return Err(Error::refused(
            key.as_str(),
            format!("--since {since}: it cannot be read: {}", error.message()),
        )
        .hint("without --extents everything is read"));
    }
    points.select(&options.vm, &selector)
}

impl Base {
    /// The disk in it, and why the disk cannot be built on, where it cannot.
    ///
    /// # Errors
    /// `NotFound` when it has no such disk; `Refused` when the list says that it counts from another point.
    pub fn disk(
        &self,
        id: &Name,
        size: u64,
        chunk_size: u32,
        listed: Option<&str>,
        points: &Points,
    ) -> Result<(&Disk, Option<String>)> {
        let point = &self.manifest.point;
        let Some(disk) = self.manifest.disks.iter().find(|disk| disk.id == *id) else {
            let message = format!("the restore point {}@{point} has no disk `{id}`", self.manifest.vm);
            return Err(
                Error::new(ErrorKind::NotFound, message).hint("leave out --extents for a disk that is new")
            );
        };
        if let Some(listed) = listed
            && !self.is(listed, disk, points)
        {
            let message = format!(
                "the list of extents of `{id}` counts from {listed}, and --since names {}@{point}",
                self.manifest.vm
            );
            return Err(
                Error::new(ErrorKind::Refused, message).hint("give --since what the list counts from")
            );
        }
        let reason = match &self.unusable {
            Some(reason) => Some(reason.clone()),
            None if disk.size != size => {
                Some(format!("the disk has {size} bytes now and had {} at restore point {point}", disk.size))
            }
            None if disk.chunk_size != chunk_size => {
                Some(format!("restore point {point} has chunks of {} bytes", disk.chunk_size))
            }
            None => None,
        };
        Ok((disk, reason))
    }

    /// Whether a list's own word for its base means this point.
    fn is(&self, listed: &str, disk: &Disk, points: &Points) -> bool {
        if disk.checkpoint.as_deref() == Some(listed) {
            return true;
        }
        match PointArg::parse(listed) {
            Ok(PointArg { vm, point: Some(selector) }) if vm == self.manifest.vm => {
                points.select(&vm, &selector).is_ok_and(|named| named.point == self.manifest.point)
            }
            _ => false,
        }
    }
}
