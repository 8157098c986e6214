//! Whether a restore may write over a disk that other machines have too.

use std::path::Path;

use mover_endpoints::Qcow2Header;
use mover_model::manifest::{Disk, FileIdentity, Manifest, Pointer, PointerKind};
use mover_model::{Error, ErrorKind, Name};
use mover_repository::Repository;
use mover_repository::catalog::Catalog;

use super::Decision;
use super::arrange::resolve;
use super::identity::identity_at;

/// Decides for one disk of a restore point, before anything is written: pointers are read again here, and the images
/// that hold them may be restored in the same run. `keep_common` is `--keep-common`.
///
/// A catalog that cannot tell counts as one that says that others have the disk.
pub fn decide(
    repository: &Repository,
    catalog: &dyn Catalog,
    manifest: &Manifest,
    disk: &Disk,
    keep_common: bool,
) -> Decision {
    let Some(common) = &disk.common else { return Decision::Restore { warning: None } };
    let sharing = match catalog.common_machines(&repository.config().id, &common.id, &disk.root) {
        Ok(machines) => {
            let others: Vec<_> = machines.into_iter().filter(|vm| *vm != manifest.vm).collect();
            if others.is_empty() {
                return Decision::Restore { warning: None };
            }
            format!("restore points of {} have it too", enumerate(&others))
        }
        Err(error) => format!("who else has it is not known ({error})"),
    };
    if !keep_common {
        let warning = format!(
            "disk {} is a common disk ({} at {}): {sharing}; --keep-common leaves it as it is",
            disk.id, common.id, common.location
        );
        return Decision::Restore { warning: Some(warning) };
    }
    let compared = match &common.pointer {
        Some(pointer) => compare(pointer),
        None => compare_place(&common.location, disk),
    };
    match compared {
        Ok(how) => Decision::Keep { reason: format!("{sharing}; {how}") },
        Err((old, new)) => {
            let message = format!(
                "disk {} is a common disk, and what names it was changed after the backup: it was {old}, it is {new}",
                disk.id
            );
            let holder = common.pointer.as_ref().map_or(&common.location, |pointer| &pointer.holder);
            let error = Error::new(ErrorKind::CommonChanged, message)
                .at(holder.clone())
                .hint("put the pointer back, or restore the disk to another place without --keep-common");
            Decision::Changed { old, new, error }
        }
    }
}

/// The first few names, and how many more there are.
fn enumerate(names: &[Name]) -> String {
    const FEW: usize = 5;
    let few: Vec<_> = names.iter().take(FEW).map(Name::as_str).collect();
    match names.len().saturating_sub(FEW) {
        0 => few.join(", "),
        more => format!("{} and {more} more", few.join(", ")),
    }
}

/// What a pointer is now; `Err` with old and new where it is not what it was.
fn compare(pointer: &Pointer) -> Result<String, (String, String)> {
    let holder = Path::new(&pointer.holder);
    let (value, named) = match pointer.kind {
        PointerKind::Qcow2Backing => {
            match std::fs::File::open(holder).and_then(|file| Qcow2Header::of(&file)) {
                Ok(Some(Qcow2Header { backing: Some(backing), .. })) => {
                    let named = resolve(holder, &backing.file);
                    (Ok(backing.file.to_string_lossy().into_owned()), named)
                }
                Ok(Some(_)) => (Err("a qcow2 image without a backing image".into()), None),
                Ok(None) => (Err("no qcow2 image".into()), None),
                Err(error) => (Err(format!("not to be read: {error}")), None),
            }
        }
        PointerKind::Symlink => match std::fs::read_link(holder) {
            Ok(value) => (Ok(value.display().to_string()), Some(holder.to_owned())),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                (Err("no link any more".into()), None)
            }
            Err(error) => (Err(format!("not to be read: {error}")), None),
        },
        // The machine's definition is not here to be read: what it named is.
        PointerKind::Domain => (Ok(pointer.value.clone()), Some(pointer.resolved.clone().into())),
    };
    let old = format!("{} ({})", pointer.value, describe(&pointer.resolved, pointer.identity.as_ref()));
    let value = value.map_err(|what| (old.clone(), format!("{} is {what}", pointer.holder)))?;
    let Some(real) = named.and_then(|path| std::fs::canonicalize(path).ok()) else {
        return Err((old, format!("{value} (nothing is there)")));
    };
    let resolved = real.display().to_string();
    let identity = identity_at(&real);
    if value == pointer.value && resolved == pointer.resolved && identity == pointer.identity {
        return Ok(format!("{} still names {resolved}", pointer.holder));
    }
    let new = format!("{value} ({})", describe(&resolved, identity.as_ref()));
    Err((old, new))
}

/// Likewise for a disk that was named by its own path: it is its own pointer.
fn compare_place(location: &str, disk: &Disk) -> Result<String, (String, String)> {
    if disk.path.is_none() {
        return Ok(format!("{location} is nothing that could be looked at"));
    }
    let old = describe(location, disk.identity.as_ref());
    match (identity_at(Path::new(location)), &disk.identity) {
        (None, _) => Err((old, format!("{location} (nothing is there)"))),
        (Some(now), Some(was)) if now != *was => Err((old, describe(location, Some(&now)))),
        (Some(now), Some(_)) => Ok(format!("{} is as it was", describe(location, Some(&now)))),
        (Some(_), None) => Ok(format!("{location} is there")),
    }
}

fn describe(path: &str, identity: Option<&FileIdentity>) -> String {
    match identity {
        Some(identity) => format!(
            "{path}, inode {} on {}, {} bytes, modified {}",
            identity.inode,
            identity.device,
            identity.size,
            time(identity.mtime_ns)
        ),
        None => path.to_owned(),
    }
}

fn time(ns: i128) -> String {
    jiff::Timestamp::from_nanosecond(ns).map_or_else(|_| format!("{ns} ns"), |time| time.to_string())
}
