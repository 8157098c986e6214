//! The folder behind a local store: what its filesystem can do, and how files and names become durable in it.

use std::collections::{BTreeSet, HashSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mover_engine::Alignment;
use mover_engine::capability::probe_direct;
use mover_engine::sys::{NFS_MAGIC, filesystem_magic, filesystem_name, lies_in_memory, whole_file};
use mover_model::event::Degradation;
use mover_model::{Error, ErrorKind, Operation, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, RenameFlags, fcntl, renameat2};

use super::steps::{Step, Steps};
use super::temporary::Temporary;
use crate::store::{Key, Put};

/// Folder of files on their way to be objects. No key begins with it.
pub(super) const TEMPORARY: &str = "tmp";

/// How often a folder that others remove in between is made again: each time takes a race that is lost.
const FOLDER_ATTEMPTS: usize = 64;

/// A folder, and what is known of it.
pub(super) struct Place {
    folder: PathBuf,
    steps: Option<Arc<dyn Steps>>,
    /// The session that uploads belong to.
    pub(super) session: Mutex<String>,
    /// Folders that are never removed and whose names are known to be durable.
    anchored: Mutex<HashSet<PathBuf>>,
    /// Folders that this process made.
    made: Mutex<HashSet<PathBuf>>,
    degraded: Mutex<Vec<Degradation>>,
}

/// A lock whose holder panicked still guards plain data here: no invariant spans two of its fields.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Again and again while a signal interrupts it.
pub(super) fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl Place {
    pub(super) fn new(folder: PathBuf, steps: Option<Arc<dyn Steps>>) -> Self {
        Place {
            folder,
            steps,
            session: Mutex::new("none".to_owned()),
            anchored: Mutex::default(),
            made: Mutex::default(),
            degraded: Mutex::default(),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path_of(&self, key: &Key) -> PathBuf {
        self.folder.join(key.as_str())
    }

    /// Does a step between the hooks.
    pub(super) fn step<T>(
        &self,
        step: impl FnOnce() -> Step,
        act: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(steps) = &self.steps else { return retried(act) };
        let step = step();
        steps.before(&step)?;
        let done = retried(act)?;
        steps.after(&step)?;
        Ok(done)
    }

    /// An error of a call on an object, with what to do about it.
    pub(super) fn error(&self, operation: Operation, path: &Path, error: &io::Error) -> Error {
        let told = Error::io(operation, path.display().to_string(), error);
        match (told.kind(), error.raw_os_error()) {
            (ErrorKind::Full, _) => told.hint(format!(
                "make room on the filesystem of {} and run it again; what was complete before is untouched",
                self.folder.display()
            )),
            (_, Some(libc::EACCES | libc::EPERM)) => {
                told.hint("the user that mover runs as needs to read and write the repository's folder")
            }
            (_, Some(libc::EROFS)) => told.hint("the filesystem is read-only: mount it writable"),
            (_, Some(libc::EXDEV)) => told.hint(
                "all folders of a repository must lie on one filesystem; look for mounts and links in it",
            ),
            (_, Some(libc::ELOOP)) => told
                .hint("a symbolic link stands where an object should be; objects are never links: remove it"),
            (_, Some(libc::EIO | libc::EREMOTEIO)) => told.hint("see dmesg for the device's own message"),
            _ => told,
        }
    }

    /// Says once what was not to be had.
    pub(super) fn degrade(&self, about: &str, wanted: &str, used: &str, reason: String) {
        let mut degraded = lock(&self.degraded);
        if degraded.iter().all(|known| known.about != about) {
            let path = Some(self.folder.display().to_string());
            let (about, wanted, used) = (about.to_owned(), wanted.to_owned(), used.to_owned());
            degraded.push(Degradation { about, wanted, used, reason, path });
        }
    }

    pub(super) fn degraded(&self) -> Vec<Degradation> {
        lock(&self.degraded).clone()
    }

    /// Whether locks on the file tell about processes of this host: not where another kernel, or none, keeps them.
    pub(super) fn has_locks(file: &File) -> bool {
        filesystem_magic(file).is_ok_and(|magic| !is_remote(magic))
    }

    /// Whether the folder lies on another host; a folder that is not there yet does not.
    pub(super) fn is_remote(&self) -> bool {
        File::open(&self.folder).is_ok_and(|folder| !Self::has_locks(&folder))
    }

    /// A second descriptor of a file that goes past the page cache, where that works and helps. The file is opened
    /// anew by its path, which still names it.
    pub(super) fn open_direct(&self, path: &Path, plain: &File, write: bool) -> Option<(File, Alignment)> {
        // In memory there is no cache to go past: what O_DIRECT does there is the same copy with more rules.
        if lies_in_memory(plain) {
            return None;
        }
        let flags = libc::O_DIRECT | libc::O_NOFOLLOW;
        let opened = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
        let same = |file: &File| {
            let (Ok(this), Ok(that)) = (file.metadata(), plain.metadata()) else { return false };
            (this.dev(), this.ino()) == (that.dev(), that.ino())
        };
        let reason = match opened {
            // Deleted since it was opened: the descriptor that is open still reads it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Ok(file) if !same(&file) => return None,
            Ok(file) => match probe_direct(&file) {
                Some(rules) => return Some((file, rules)),
                None => "its alignment rules are not known or not usable".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        let filesystem = filesystem_magic(plain).map_or("unknown", filesystem_name);
        let reason = format!("O_DIRECT does not work on this {filesystem} filesystem: {reason}");
        self.degrade("direct", "O_DIRECT", "the page cache", reason);
        None
    }

    /// Gives a temporary file, whose content is durable, its final name; the name is durable then.
    ///
    /// Why in this order: the content was synced before the name can be seen, so no reader and no power cut finds a
    /// name with half an object. Then the folder that holds the name, and the folders that hold that folder's name, are
    /// synced, so that nothing is told `Done` that a power cut could take back. Where the name is taken the folders are
    /// synced as well: who put the object there may have died before that, and the caller may find that it is its own.
    pub(super) fn publish(&self, temporary: &mut Temporary, key: &Key) -> Result<Put> {
        let target = self.path_of(key);
        let folder = target.parent().unwrap_or(&self.folder);
        let mut attempts = 0;
        let put = loop {
            self.make_folder(folder)?;
            match self.name(temporary, &target) {
                Ok(put) => break put,
                // An empty folder was removed by another process after we had seen it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < FOLDER_ATTEMPTS => {
                    lock(&self.anchored).remove(folder);
                    attempts += 1;
                }
                Err(error) => return Err(self.error(Operation::Link, &target, &error)),
            }
        };
        self.anchor(folder)?;
        Ok(put)
    }

    /// link(2), or where the filesystem has none a rename that replaces nothing.
    fn name(&self, temporary: &mut Temporary, target: &Path) -> io::Result<Put> {
        let from = temporary.path.clone();
        let step = || Step::Link(from.clone(), target.to_owned());
        let refused = match self.step(step, || std::fs::hard_link(&from, target)) {
            Ok(()) => return Ok(Put::Done),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                // A network filesystem that repeats a request whose answer was lost finds its own link.
                let mine = temporary.file.metadata()?;
                let there = match std::fs::symlink_metadata(target) {
                    Ok(there) => there,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Put::Exists),
                    Err(error) => return Err(error),
                };
                let same = (mine.dev(), mine.ino()) == (there.dev(), there.ino());
                return Ok(if same { Put::Done } else { Put::Exists });
            }
            Err(error) => error,
        };
        match refused.raw_os_error() {
            Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK) => {}
            _ => return Err(refused),
        }
        let step = || Step::Rename(from.clone(), target.to_owned());
        let renamed = self
            .step(step, || Ok(renameat2(AT_FDCWD, &from, AT_FDCWD, target, RenameFlags::RENAME_NOREPLACE)?));
        match renamed {
            Ok(()) => {
                temporary.named();
                let reason = format!("the filesystem has no hard links: {refused}");
                self.degrade("hard_links", "link", "rename without replacing", reason);
                Ok(Put::Done)
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(Put::Exists),
            // Neither way: what the first one said is the truth about this filesystem.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => Err(refused),
            Err(error) => Err(error),
        }
    }

    /// Makes a folder and those above it, where they are missing. Others may make and remove them meanwhile.
    pub(super) fn make_folder(&self, folder: &Path) -> Result<()> {
        for _ in 0..FOLDER_ATTEMPTS {
            if folder.is_dir() {
                return Ok(());
            }
            let step = || Step::MakeFolder(folder.to_owned());
            match self.step(step, || DirBuilder::new().mode(0o700).create(folder)) {
                Ok(()) => {
                    lock(&self.made).insert(folder.to_owned());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !folder.is_dir() => {
                    // Removed in between, or no folder at all.
                    if folder.symlink_metadata().is_ok_and(|meta| !meta.is_dir()) {
                        let told = Error::new(ErrorKind::Corruption, "is no folder");
                        return Err(told.at(folder.display().to_string()).hint(
                            "something other than mover put it into the repository: look what it is, and move it away",
                        ));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => match folder.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => self.make_folder(parent)?,
                    _ => return Err(self.error(Operation::Open, folder, &error)),
                },
                Err(error) => {
                    let told = self.error(Operation::Open, folder, &error);
                    return Err(told);
                }
            }
        }
        let told =
            Error::new(ErrorKind::Busy, "other processes keep removing this folder while it is needed");
        Err(told.at(folder.display().to_string()).hint("try again"))
    }

    /// Makes the names in a folder durable, and the folder's own name.
    ///
    /// That a folder is there says nothing of its name: another process may have made it and died. So the folder above
    /// is synced too, once per process for folders that are never removed, and each time for others.
    fn anchor(&self, folder: &Path) -> Result<()> {
        self.sync_folder(folder)?;
        let mut below = folder;
        let mut durable = Vec::new();
        while let Some(above) = below.parent() {
            let outside = below == self.folder || !below.starts_with(&self.folder);
            // A folder that was there before us is its owner's.
            let foreign = outside && !lock(&self.made).contains(below);
            if foreign || lock(&self.anchored).contains(below) {
                break;
            }
            self.sync_folder(if above.as_os_str().is_empty() { Path::new(".") } else { above })?;
            if outside || self.is_kept(below) {
                durable.push(below.to_owned());
            }
            below = above;
        }
        // Only now: a folder that is known to be durable stands for all those above it.
        lock(&self.anchored).extend(durable);
        Ok(())
    }

    /// Whether a folder stays when it is empty: those of the first level, which are few, and those of packs, which soon
    /// fill again. Others (of a machine, a session) come and go with what they hold.
    fn is_kept(&self, folder: &Path) -> bool {
        let Ok(inside) = folder.strip_prefix(&self.folder) else { return true };
        inside.components().count() <= 1 || inside.starts_with("packs")
    }

    fn sync_folder(&self, folder: &Path) -> Result<()> {
        let failed = |operation, error: &io::Error| self.error(operation, folder, error);
        let how = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).to_owned();
        let open = how.open(folder).map_err(|error| failed(Operation::Open, &error))?;
        match self.step(|| Step::SyncFolder(folder.to_owned()), || open.sync_all()) {
            Ok(()) => Ok(()),
            // Some network filesystems have no sync of folders: names are durable there when the server says so.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                let reason = format!("the filesystem does not sync folders: {error}");
                self.degrade("sync_folder", "fsync of folders", "the server's word", reason);
                Ok(())
            }
            Err(error) => Err(failed(Operation::Flush, &error)),
        }
    }

    /// Removes objects, then makes that durable, each folder once.
    ///
    /// A name that came back after a power cut would do harm: an index segment that names packs which are gone, a doom
    /// list whose packs are needed again. So a delete is over only when its folder is synced.
    pub(super) fn delete(&self, keys: &[Key]) -> Result<()> {
        let mut folders = BTreeSet::new();
        let mut outcome = Ok(());
        for key in keys {
            let path = self.path_of(key);
            let removed = self.step(|| Step::Remove(path.clone()), || std::fs::remove_file(&path));
            match removed.as_ref().map_err(io::Error::raw_os_error) {
                // One that is gone may have been removed by a process that died before it made that durable.
                Ok(()) | Err(Some(libc::ENOENT)) => {}
                // A folder of that name is no object.
                Err(Some(libc::EISDIR | libc::ENOTDIR)) => continue,
                Err(_) => {
                    outcome = removed.map_err(|error| self.delete_error(&path, &error));
                    break;
                }
            }
            folders.extend(path.parent().map(Path::to_owned));
        }
        for folder in folders.iter().filter(|folder| folder.is_dir()) {
            match self.sync_folder(folder) {
                // Another process has removed it: it was empty, and so is what a power cut brings back of it.
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                result => outcome = outcome.and(result),
            }
            self.remove_empty(folder);
        }
        outcome
    }

    fn delete_error(&self, path: &Path, error: &io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                Error::refused(path.display().to_string(), error.to_string())
                    .during(Operation::Delete)
                    .hint("this user may not delete there; backups need no deletes, prune and gc do")
            }
            _ => self.error(Operation::Delete, path, error),
        }
    }

    /// Removes a folder that holds nothing any more, and those above it. It only saves room: whatever goes wrong, an
    /// empty folder does no harm, and the next delete tries again.
    fn remove_empty(&self, folder: &Path) {
        let mut folder = folder;
        while folder.starts_with(&self.folder) && !self.is_kept(folder) {
            let removed = self.step(|| Step::Remove(folder.to_owned()), || std::fs::remove_dir(folder));
            match (removed, folder.parent()) {
                (Ok(()), Some(above)) => folder = above,
                _ => break,
            }
        }
    }
}

/// Filesystems whose files another host may use as well, or whose locks a program of the user's keeps.
fn is_remote(magic: i64) -> bool {
    const FUSE: i64 = 0x6573_5546;
    const CIFS: i64 = 0xff53_4d42;
    const SMB2: i64 = 0xfe53_4d42;
    const SMB: i64 = 0x517b;
    const CEPH: i64 = 0x00c3_6400;
    const V9FS: i64 = 0x0102_1997;
    const AFS: i64 = 0x5346_414f;
    const CODA: i64 = 0x7375_7245;
    const LUSTRE: i64 = 0x0bd0_0bd0;
    const GPFS: i64 = 0x4750_4653;
    const OCFS2: i64 = 0x7461_636f;
    const GFS2: i64 = 0x0116_1970;
    matches!(
        magic,
        NFS_MAGIC | FUSE | CIFS | SMB2 | SMB | CEPH | V9FS | AFS | CODA | LUSTRE | GPFS | OCFS2 | GFS2
    )
}

/// Takes a lock on a whole file for as long as its description is open; `false` when another one is in the way.
pub(super) fn try_lock(file: &File, kind: i32) -> io::Result<bool> {
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(kind))) {
            Ok(_) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether another description holds a lock on the file.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    let mut answer = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer))?;
    Ok(i32::from(answer.l_type) != libc::F_UNLCK)
}
