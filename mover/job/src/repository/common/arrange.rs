//! From the disks that were named to the disks that are backed up: backing images of qcow2 disks are common disks, and
//! are added where nobody named them.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mover_endpoints::Qcow2Header;
use mover_model::event::Event;
use mover_model::manifest::{Pointer, PointerKind};
use mover_model::{Error, Locator, Name, Operation, Result};

use super::identity::identity_at;
use crate::Emit;
use crate::repository::backup::{CommonRequest, DiskSpec};

/// A disk of a backup, with what names it where it is common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arranged {
    /// What was said, or made for a backing image: then with [`CommonRequest::Auto`].
    pub spec: DiskSpec,
    /// The qcow2 image or the link that names it; only for common disks.
    pub pointer: Option<Pointer>,
    /// Whether nobody named it.
    pub added: bool,
}

/// Finds the backing images of the disks: another disk of the run becomes a common one, what nobody named is added as
/// `ID-base`. Says in events what it found.
///
/// # Errors
/// `Usage` where an added disk's id is taken or too long; `Unreachable` for a disk that cannot be read.
pub fn arrange(specs: &[DiskSpec], emit: Emit<'_>) -> Result<Vec<Arranged>> {
    let mut disks: Vec<_> =
        specs.iter().map(|spec| Arranged { spec: spec.clone(), pointer: None, added: false }).collect();
    // Grows as backing images with backing images of their own are found; each file comes in once, so it ends.
    let mut at = 0;
    while at < disks.len() {
        let holder = disks[at].clone();
        at += 1;
        let Some(found) = backing_of(&holder.spec, emit)? else { continue };
        let place = place_of(&found.path);
        let known =
            disks.iter().position(|disk| path_of(&disk.spec).is_some_and(|path| place_of(path) == place));
        if let Some(index) = known {
            let disk = &mut disks[index];
            // The first image that names it is its pointer; a disk that backs itself is damaged, and no common one.
            if disk.spec.id != holder.spec.id {
                disk.pointer.get_or_insert(found.pointer);
                if disk.spec.common == CommonRequest::No {
                    disk.spec.common = CommonRequest::Auto;
                }
            }
            continue;
        }
        if !found.trusted {
            emit(Event::Warning {
                message: format!(
                    "disk {}: {} begins like a qcow2 image over {}, which is not backed up: a guest can write such a \
                     beginning into a raw disk, and the name does not end in .qcow2; if it is one, name its backing \
                     image too: --disk ID={},common",
                    holder.spec.id,
                    holder.spec.locator,
                    found.path.display(),
                    found.path.display()
                ),
            });
            continue;
        }
        let id = added_id(&holder.spec.id, &disks)?;
        emit(Event::Choice {
            about: "common".into(),
            chosen: format!("{id}={}", found.path.display()),
            reason: format!("it is the backing image of disk {} ({})", holder.spec.id, holder.spec.locator),
            pair: None,
        });
        let spec = DiskSpec { id, locator: Locator::Path(found.path), common: CommonRequest::Auto };
        disks.push(Arranged { spec, pointer: Some(found.pointer), added: true });
    }
    for disk in &mut disks {
        if disk.spec.common != CommonRequest::No && disk.pointer.is_none() {
            disk.pointer = path_of(&disk.spec).and_then(link_pointer);
        }
    }
    Ok(disks)
}

fn path_of(spec: &DiskSpec) -> Option<&Path> {
    match &spec.locator {
        Locator::Path(path) => Some(path),
        _ => None,
    }
}

fn place_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn added_id(holder: &Name, disks: &[Arranged]) -> Result<Name> {
    let hint = "name the backing image as a disk of its own: --disk ID=FILE,common";
    let id: Name = format!("{holder}-base").parse().map_err(|error: Error| error.hint(hint))?;
    if disks.iter().any(|disk| disk.spec.id == id) {
        return Err(Error::usage(format!(
            "the backing image of disk {holder} would be added as {id}, and there is a disk of that id"
        ))
        .hint(hint));
    }
    Ok(id)
}

/// A backing image that was found.
struct Found {
    path: PathBuf,
    pointer: Pointer,
    /// Whether the image that names it is one for sure, and no raw disk whose guest wrote its beginning.
    trusted: bool,
}

fn backing_of(spec: &DiskSpec, emit: Emit<'_>) -> Result<Option<Found>> {
    let Some(path) = path_of(spec) else { return Ok(None) };
    let label = path.display().to_string();
    let meta = std::fs::metadata(path).map_err(|error| {
        let hint = format!("name a file or block device that is there: --disk {}=SOURCE", spec.id);
        Error::io(Operation::Stat, &label, &error).hint(hint)
    })?;
    if !meta.is_file() {
        return Ok(None);
    }
    let file = File::open(path).map_err(|error| Error::io(Operation::Open, &label, &error))?;
    let warn = |message: String| emit(Event::Warning { message: format!("disk {}: {message}", spec.id) });
    let header = match Qcow2Header::of(&file) {
        Ok(Some(header)) => header,
        Ok(None) => return Ok(None),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            warn(format!("{label} begins like a qcow2 image and is none: {error}; it is backed up as it is"));
            return Ok(None);
        }
        // Whether that ends the backup or is recorded is for who reads the disk to say.
        Err(error) => {
            warn(format!("the beginning of {label} cannot be read: {error}; it is taken for no qcow2 image"));
            return Ok(None);
        }
    };
    if header.external_data {
        warn(format!("the data of {label} are in an external data file, which is not backed up with it"));
    }
    let Some(backing) = header.backing else { return Ok(None) };
    let holder = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let Some(named) = resolve(&holder, &backing.file) else {
        warn(format!(
            "{label} has the backing image {}, which is no file; it is not backed up with it",
            backing.file.display()
        ));
        return Ok(None);
    };
    let Ok(resolved) = std::fs::canonicalize(&named) else {
        warn(format!("the backing image of {label} is not there: {}", named.display()));
        return Ok(None);
    };
    warn(format!(
        "{label} is a qcow2 image with a backing image: it is backed up as the file it is, and {} as a disk of its own",
        resolved.display()
    ));
    let pointer = Pointer {
        kind: PointerKind::Qcow2Backing,
        holder: holder.display().to_string(),
        value: backing.file.to_string_lossy().into_owned(),
        resolved: resolved.display().to_string(),
        identity: identity_at(&resolved),
    };
    let name = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let trusted = matches!(name.to_ascii_lowercase().as_str(), "qcow2" | "qcow");
    Ok(Some(Found { path: resolved, pointer, trusted }))
}

/// The file that a backing field names, as QEMU finds it: relative to the image's folder. `None` for what is no file.
pub(super) fn resolve(holder: &Path, value: &std::ffi::OsStr) -> Option<PathBuf> {
    let bytes = value.as_bytes();
    let bytes = bytes.strip_prefix(b"file:").unwrap_or(bytes);
    // QEMU takes what stands before a colon that comes before any slash as a protocol (block.c: path_has_protocol).
    let colon = bytes.iter().position(|byte| *byte == b':');
    let slash = bytes.iter().position(|byte| *byte == b'/');
    if bytes.is_empty() || colon.is_some_and(|colon| slash.is_none_or(|slash| colon < slash)) {
        return None;
    }
    Some(holder.parent()?.join(std::ffi::OsStr::from_bytes(bytes)))
}

/// The pointer of a disk that was named by a link.
fn link_pointer(path: &Path) -> Option<Pointer> {
    let value = std::fs::read_link(path).ok()?;
    let resolved = std::fs::canonicalize(path).ok()?;
    Some(Pointer {
        kind: PointerKind::Symlink,
        holder: std::path::absolute(path).ok()?.display().to_string(),
        value: value.display().to_string(),
        identity: identity_at(&resolved),
        resolved: resolved.display().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_fields_are_resolved_as_qemu_does() {
        let holder = Path::new("/vm/a/disk.qcow2");
        for (value, path) in [
            ("base.img", Some("/vm/a/base.img")),
            ("../base.img", Some("/vm/a/../base.img")),
            ("/x/base.img", Some("/x/base.img")),
            ("file:base.img", Some("/vm/a/base.img")),
            ("./a:b", Some("/vm/a/./a:b")),
            ("nbd://host/x", None),
            ("json:{\"driver\":\"raw\"}", None),
            ("a:b", None),
            ("", None),
        ] {
            assert_eq!(resolve(holder, value.as_ref()), path.map(PathBuf::from), "{value}");
        }
    }
}
