//! The mark of a restore that has begun and not ended: beside a file target (`TARGET.mover-restore`), in the state folder
//! for a device. It is durable before the first byte is written, and removed once everything is; `--resume` goes by it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mover_endpoints::{Identity, OpenTarget};
use mover_model::{ChunkId, Error, ErrorKind, Locator, Operation, Result};
use serde::{Deserialize, Serialize};

use super::RestoreOptions;

const FORMAT: &str = "mover-restore";
/// Longest mark that is read: it has a few names and numbers.
const BYTES_MAX: u64 = 16 << 10;

/// What is being restored to where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    format: String,
    version: u32,
    /// The repository's id.
    pub repository: String,
    /// The machine.
    pub vm: String,
    /// The restore point.
    pub point: String,
    /// The disk.
    pub disk: String,
    /// Its content.
    pub root: ChunkId,
    /// The target: the file's device and inode, or the block device's lasting name. Absent until it is known.
    pub target: Option<Place>,
}

/// What the target is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// A regular file.
    File {
        /// Device of its filesystem.
        device: u64,
        /// Inode.
        inode: u64,
    },
    /// A block device, by a name that survives a restart.
    Device(String),
}

impl Place {
    fn of(identity: &Identity) -> Place {
        match &identity.block_device {
            Some(name) => Place::Device(name.clone()),
            None => Place::File { device: identity.device, inode: identity.inode },
        }
    }
}

impl Marker {
    /// Of a disk; its target is not known yet.
    pub fn new(repository: &str, vm: &str, point: &str, disk: &str, root: ChunkId) -> Self {
        Marker {
            format: FORMAT.into(),
            version: 1,
            repository: repository.into(),
            vm: vm.into(),
            point: point.into(),
            disk: disk.into(),
            root,
            target: None,
        }
    }

    /// With its target; `None` for one that has no identity.
    pub fn with_target(mut self, target: &OpenTarget) -> Option<Self> {
        self.target = Some(Place::of(target.identity.as_ref()?));
        Some(self)
    }

    /// Refuses to go on with another restore than this one, whose target may not be known yet.
    ///
    /// # Errors
    /// `WrongIdentity`, naming what differs.
    pub fn check(&self, found: &Marker, path: &Path) -> Result<()> {
        let name = |marker: &Marker| {
            format!("{}@{} {} of repository {}", marker.vm, marker.point, marker.disk, marker.repository)
        };
        let differs = if name(self) != name(found) {
            format!("the restore that was stopped here is of {}, not of {}", name(found), name(self))
        } else if self.root != found.root {
            "the disk's content is not that of the restore that was stopped here".into()
        } else if self.target.is_some() && self.target != found.target {
            "the target is not the one that the stopped restore wrote to: another is in its place".into()
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::WrongIdentity, differs)
            .at(path.display().to_string())
            .hint("look what the target is; to begin anew, leave out --resume and say --force or --delta"))
    }

    /// Writes it, durable with its name.
    ///
    /// # Errors
    /// `Full`, `Io`, `Unreachable`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let label = path.display().to_string();
        let folder = folder_of(path);
        let new = path.with_extension(format!("mover-restore.{}", std::process::id()));
        // The state folder may not be there yet; a target's folder is.
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let text = text_of(self)?;
        let written = made
            .and_then(|()| write_durably(&new, &text))
            .and_then(|()| std::fs::rename(&new, path))
            .and_then(|()| File::open(folder)?.sync_all());
        written.map_err(|error| {
            // It is of no use half written.
            let _ = std::fs::remove_file(&new);
            Error::io(Operation::Write, label, &error)
                .hint("the mark of an unfinished restore lies beside its target: the folder must be writable")
        })
    }
}

fn text_of(marker: &Marker) -> Result<Vec<u8>> {
    serde_json::to_vec(marker).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

fn write_durably(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a mark; `None` where there is none.
///
/// # Errors
/// `WrongIdentity` for what is no mark of a version that is known; `Unreachable`.
pub(super) fn read(path: &Path) -> Result<Option<Marker>> {
    let label = path.display().to_string();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(Operation::Open, label, &error)),
    };
    let foreign = |why: String| {
        Error::new(ErrorKind::WrongIdentity, format!("is no mark of a restore that was stopped: {why}"))
            .at(&label)
            .hint("look what it is; if it is nothing of value, remove it and say --delta instead of --resume")
    };
    if meta.len() > BYTES_MAX {
        return Err(foreign(format!("{} bytes are too many", meta.len())));
    }
    let text = std::fs::read(path).map_err(|error| Error::io(Operation::Read, &label, &error))?;
    let marker: Marker = serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
    if marker.format != FORMAT || marker.version != 1 {
        return Err(foreign("it is of another version".into()));
    }
    Ok(Some(marker))
}

/// Removes a mark, so that its absence is durable.
///
/// # Errors
/// `Io`.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        removed => removed.and_then(|()| File::open(folder_of(path))?.sync_all()),
    }
    .map_err(|error| {
        Error::io(Operation::Delete, path.display().to_string(), &error)
            .hint("the restore is complete: remove this mark of it by hand")
    })
}

/// Where the mark of a target lies; `None` for a target that cannot be gone on with.
pub(super) fn path_of(target: &Locator, options: &RestoreOptions) -> Option<PathBuf> {
    let Locator::Path(path) = target else { return None };
    match std::fs::metadata(path).map(|meta| meta.file_type()) {
        Ok(kind) if kind.is_block_device() => {
            let name = mover_endpoints::Identity::of_path(path).ok()?.block_device?;
            let safe = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
            let name: String = name.chars().map(safe).collect();
            Some(super::open::state_folder(options)?.join(format!("device-{name}.mover-restore")))
        }
        Ok(kind) if !kind.is_file() => None,
        _ => {
            // Of a link the file's: the mark must be found again, however the target is named.
            let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let mut name = path.file_name()?.to_owned();
            name.push(".mover-restore");
            Some(path.with_file_name(name))
        }
    }
}
