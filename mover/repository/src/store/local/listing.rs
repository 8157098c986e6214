//! What lies in a folder, as keys. Others put and delete meanwhile: what goes while we look was never there.

use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mover_model::{Operation, Result};

use super::place::{Place, TEMPORARY};
use crate::store::{Key, Listed};

/// The folder of a prefix; `None` for one that no key begins with.
pub(super) fn folder_of(place: &Place, prefix: &str) -> Option<PathBuf> {
    let Some(inner) = prefix.strip_suffix('/') else {
        return prefix.is_empty().then(|| place.folder().to_owned());
    };
    Key::parse(inner).filter(|key| !is_temporary(key.as_str())).map(|key| place.path_of(&key))
}

/// Whether a key would lie among the temporary files.
pub(super) fn is_temporary(key: &str) -> bool {
    key.split('/').next() == Some(TEMPORARY)
}

/// All objects below a prefix, in the order of their keys.
pub(super) fn list(place: &Place, prefix: &str) -> Result<Vec<Listed>> {
    let mut listed = Vec::new();
    if let Some(folder) = folder_of(place, prefix) {
        walk(place, &folder, prefix, &mut |object| {
            listed.push(object);
            true
        })?;
    }
    listed.sort_unstable_by(|a: &Listed, b: &Listed| a.key.cmp(&b.key));
    Ok(listed)
}

/// The next segments below a prefix under which there are objects.
pub(super) fn list_folders(place: &Place, prefix: &str) -> Result<Vec<String>> {
    let mut folders = Vec::new();
    let Some(folder) = folder_of(place, prefix) else { return Ok(folders) };
    for entry in entries(place, &folder)? {
        let entry = entry.map_err(|error| place.error(Operation::List, &folder, &error))?;
        let Some(name) = segment(&entry, prefix) else { continue };
        let below = format!("{prefix}{name}/");
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && !walk(place, &entry.path(), &below, &mut |_| false)? {
            folders.push(name);
        }
    }
    folders.sort_unstable();
    Ok(folders)
}

/// Shows every object below a folder until one is enough; whether it came to the end.
fn walk(place: &Place, folder: &Path, prefix: &str, show: &mut dyn FnMut(Listed) -> bool) -> Result<bool> {
    for entry in entries(place, folder)? {
        let failed = |error: &io::Error| place.error(Operation::List, folder, error);
        let entry = entry.map_err(|error| failed(&error))?;
        let Some(name) = segment(&entry, prefix) else { continue };
        // Without following links.
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(place.error(Operation::Stat, &entry.path(), &error)),
        };
        if meta.is_dir() {
            if !walk(place, &entry.path(), &format!("{prefix}{name}/"), show)? {
                return Ok(false);
            }
        } else if meta.is_file() {
            let modified = put_at(&meta).map_err(|error| failed(&error))?;
            let Some(key) = Key::parse(&format!("{prefix}{name}")) else { continue };
            if !show(Listed { key, size: meta.len(), modified }) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// When an object was put: never before its name could be seen. The time of the last write is that of the temporary
/// file, and its writer may have been held up before the link; the link itself sets the time of change.
fn put_at(meta: &Metadata) -> io::Result<SystemTime> {
    let written = meta.modified()?;
    let nanoseconds = u32::try_from(meta.ctime_nsec()).unwrap_or_default();
    let changed = u64::try_from(meta.ctime()).ok();
    let changed =
        changed.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds)));
    Ok(changed.map_or(written, |changed| changed.max(written)))
}

/// An entry's name where it can be part of a key.
fn segment(entry: &DirEntry, prefix: &str) -> Option<String> {
    let name = entry.file_name().into_string().ok()?;
    let is_ours = Key::parse(&name).is_some() && !(prefix.is_empty() && is_temporary(&name));
    is_ours.then_some(name)
}

/// A folder's entries; none when it is not there.
fn entries(place: &Place, folder: &Path) -> Result<Box<dyn Iterator<Item = io::Result<DirEntry>>>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(Box::new(entries)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(Box::new(std::iter::empty()))
        }
        Err(error) => Err(place.error(Operation::List, folder, &error)),
    }
}
