//! The machine's configuration documents, beside its disks.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mover_model::event::Event;
use mover_model::manifest::Manifest;
use mover_model::units::format_size;
use mover_model::{Error, Name, Operation, Result};

use super::RestoreOptions;
use crate::Emit;

/// The documents that `--into` writes, and where to. One whose name could leave the folder, or is that of a disk, is left
/// out with a warning.
///
/// # Errors
/// `Refused` where something else is in the way.
pub(super) fn plan<'a>(
    options: &RestoreOptions,
    manifest: &'a Manifest,
    emit: Emit<'_>,
) -> Result<Vec<(PathBuf, &'a str)>> {
    let Some(folder) = &options.into else { return Ok(Vec::new()) };
    let mut planned = Vec::new();
    for (name, text) in &manifest.documents {
        let of_disk = manifest.disks.iter().any(|disk| {
            let file = format!("{}.raw", disk.id);
            *name == file || *name == format!("{file}.mover-restore")
        });
        if name.parse::<Name>().is_err() || of_disk {
            let name = name.escape_debug();
            let message = format!(
                "the document `{name}` cannot have that name in {}: it is not restored",
                folder.display()
            );
            emit(Event::Warning { message });
            continue;
        }
        let path = folder.join(name);
        refuse_other(options, &path, text)?;
        planned.push((path, text.as_str()));
    }
    Ok(planned)
}

fn refuse_other(options: &RestoreOptions, path: &Path, text: &str) -> Result<()> {
    let label = path.display().to_string();
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(Operation::Stat, label, &error)),
    };
    if !meta.is_file() {
        return Err(Error::refused(
            label,
            "is no regular file, and a document of the machine would take its name",
        )
        .hint("choose another folder"));
    }
    let overwrites = options.force || options.delta || options.resume;
    let same = || std::fs::read(path).is_ok_and(|there| there == text.as_bytes());
    if meta.len() == 0 || overwrites || same() {
        return Ok(());
    }
    Err(Error::refused(label, format!("the file exists and holds {}", format_size(meta.len())))
        .hint("to overwrite it, say --force"))
}

/// Writes them, durable.
///
/// # Errors
/// `Full`, `Io`.
pub(super) fn write(options: &RestoreOptions, planned: &[(PathBuf, &str)]) -> Result<()> {
    let Some(folder) = options.into.as_ref().filter(|_| !planned.is_empty()) else { return Ok(()) };
    for (path, text) in planned {
        let failed = |error: std::io::Error| Error::io(Operation::Write, path.display().to_string(), &error);
        // A link put there meanwhile is not followed.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(Operation::Flush, folder.display().to_string(), &error))
}
