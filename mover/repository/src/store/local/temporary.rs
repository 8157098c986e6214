//! Files on their way to be objects: `tmp/SESSION-RANDOM`.
//!
//! Each is locked while its process lives, so that [`sweep`] never takes it from a living one. Who sweeps takes the
//! lock for itself before it removes a name; who makes a file looks, once it holds the lock, whether the name is
//! still there: one of the two sees the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mover_engine::sys::lies_in_memory;
use mover_model::{Operation, Result};
use nix::fcntl::{FallocateFlags, fallocate};

use super::place::{Place, TEMPORARY, is_locked, lock, try_lock};
use super::steps::Step;
use crate::names::ObjectName;

/// Age that a file must have before it is swept where locks tell nothing: the age at which a session counts as dead.
const SWEEP_AGE: Duration = crate::session::DEAD_AFTER;

/// A temporary file; its name goes when it is dropped.
pub(super) struct Temporary {
    place: Arc<Place>,
    pub(super) path: PathBuf,
    pub(super) file: File,
    has_name: bool,
}

impl Temporary {
    pub(super) fn create(place: &Arc<Place>) -> Result<Self> {
        let folder = place.folder().join(TEMPORARY);
        loop {
            let name = format!("{}-{}", lock(&place.session), ObjectName::random()?);
            let path = folder.join(name);
            let failed = |operation, error: &io::Error| place.error(operation, &path, error);
            let step = || Step::Create(path.clone());
            let made = place.step(step, || {
                OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)
            });
            let file = match made {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    place.make_folder(&folder)?;
                    continue;
                }
                // 128 random bits: somebody else's file of that name is a signal that came after the file was made.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(failed(Operation::Open, &error)),
            };
            let temporary = Temporary { place: place.clone(), path: path.clone(), file, has_name: true };
            if !Place::has_locks(&temporary.file) {
                return Ok(temporary);
            }
            let locked = try_lock(&temporary.file, libc::F_RDLCK);
            let locked = locked.map_err(|error| failed(Operation::Lock, &error))?;
            let links = temporary.file.metadata().map_err(|error| failed(Operation::Stat, &error))?.nlink();
            if locked && links > 0 {
                return Ok(temporary);
            }
        }
    }

    /// Has room made for bytes, so that writes past the page cache find it there. Only a full filesystem is an error.
    pub(super) fn reserve(&self, bytes: u64) -> Result<()> {
        if bytes == 0 || lies_in_memory(&self.file) {
            return Ok(());
        }
        let Ok(length) = i64::try_from(bytes) else { return Ok(()) };
        let step = || Step::Write(self.path.clone());
        let reserved =
            self.place.step(step, || Ok(fallocate(&self.file, FallocateFlags::empty(), 0, length)?));
        match reserved {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) =>
            {
                let reason = format!("the filesystem does not reserve room: {error}");
                self.place.degrade("preallocate", "fallocate", "allocation by each write", reason);
                Ok(())
            }
            Err(error) => Err(self.place.error(Operation::Resize, &self.path, &error)),
        }
    }

    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let step = || Step::Write(self.path.clone());
        self.place
            .step(step, || self.file.write_all_at(bytes, offset))
            .map_err(|error| self.place.error(Operation::Write, &self.path, &error).offset(offset))
    }

    pub(super) fn truncate(&self, length: u64) -> Result<()> {
        let step = || Step::Write(self.path.clone());
        self.place
            .step(step, || self.file.set_len(length))
            .map_err(|error| self.place.error(Operation::Resize, &self.path, &error))
    }

    pub(super) fn sync(&self) -> Result<()> {
        let step = || Step::SyncFile(self.path.clone());
        self.place
            .step(step, || self.file.sync_all())
            .map_err(|error| self.place.error(Operation::Flush, &self.path, &error))
    }

    /// Its name has become the object's.
    pub(super) fn named(&mut self) {
        self.has_name = false;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.has_name {
            // An object that is in place is not worse for a second name, and a file that is none is swept later.
            let _ = self.place.step(|| Step::Remove(self.path.clone()), || std::fs::remove_file(&self.path));
        }
    }
}

/// Removes temporary files of which neither `living` nor a lock says that somebody still writes to them.
pub(super) fn sweep(place: &Place, now: SystemTime, living: &dyn Fn(&str) -> bool) -> Result<u64> {
    let folder = place.folder().join(TEMPORARY);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(place.error(Operation::List, &folder, &error)),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(|error| place.error(Operation::List, &folder, &error))?;
        let name = entry.file_name();
        let session = name.to_str().and_then(|name| name.rsplit_once('-')).map(|(session, _)| session);
        // What is no name of ours is left to whoever put it there.
        if session.is_none_or(living) {
            continue;
        }
        let path = entry.path();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let open = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        let file = match open {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(place.error(Operation::Open, &path, &error)),
        };
        if is_in_use(&file, now).map_err(|error| place.error(Operation::Lock, &path, &error))? {
            continue;
        }
        match place.step(|| Step::Remove(path.clone()), || std::fs::remove_file(&path)) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(place.error(Operation::Delete, &path, &error)),
        }
    }
    Ok(removed)
}

/// Whether a process may still write to a temporary file. If not, its lock is ours.
fn is_in_use(file: &File, now: SystemTime) -> io::Result<bool> {
    if Place::has_locks(file) {
        return Ok(is_locked(file)? || !try_lock(file, libc::F_WRLCK)?);
    }
    let modified = file.metadata()?.modified()?;
    Ok(now.duration_since(modified).is_ok_and(|age| age < SWEEP_AGE) || now < modified)
}
