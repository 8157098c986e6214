//! A folder as a store.
//!
//! ```text
//! FOLDER/KEY               objects, 0600; folders 0700, made when they are needed
//! FOLDER/tmp/SESSION-RANDOM files on their way to be objects
//! ```
//! A put: file in `tmp/` → fsync → link to its name (fails where one is) → fsync of the folder and of the new ones above
//! it → the temporary name goes. A cut before the link leaves a file that [`Store::sweep`] removes; a cut after it leaves
//! a whole object.

mod listing;
mod object;
mod place;
mod steps;
mod temporary;
mod upload;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mover_model::event::Degradation;
use mover_model::{Error, ErrorKind, Operation, Result};

use super::{Held, Key, Listed, Object, Put, Store, Upload};
use place::{Place, lock};
use temporary::Temporary;

pub use steps::{Step, Steps};

/// Age at which a folder's time of change is trusted: no filesystem that we know has a coarser clock.
const STAMP_AGE: Duration = Duration::from_secs(2);

/// A folder as a store.
pub struct LocalStore {
    place: Arc<Place>,
}

impl LocalStore {
    /// A store in a folder, which need not exist before the first put.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        LocalStore { place: Arc::new(Place::new(folder.into(), None)) }
    }

    /// With something that sees, and may cut, every step.
    pub fn with_steps(folder: impl Into<PathBuf>, steps: Arc<dyn Steps>) -> Self {
        LocalStore { place: Arc::new(Place::new(folder.into(), Some(steps))) }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.place.folder()
    }

    fn write_whole(&self, key: &Key, bytes: &[u8]) -> Result<Temporary> {
        refuse_temporary(key)?;
        let temporary = Temporary::create(&self.place)?;
        temporary.write_at(0, bytes)?;
        temporary.sync()?;
        Ok(temporary)
    }
}

fn refuse_temporary(key: &Key) -> Result<()> {
    if listing::is_temporary(key.as_str()) {
        let what = format!("the key {key} lies among the temporary files");
        return Err(Error::new(ErrorKind::Internal, what).hint("this is a bug: please report it"));
    }
    Ok(())
}

impl Store for LocalStore {
    fn label(&self) -> String {
        self.folder().display().to_string()
    }

    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        let mut temporary = self.write_whole(key, bytes)?;
        self.place.publish(&mut temporary, key)
    }

    fn put_held(&self, key: &Key, bytes: &[u8], held: &mut Vec<Held>) -> Result<Put> {
        let mut temporary = self.write_whole(key, bytes)?;
        let before = held.len();
        if Place::has_locks(&temporary.file) {
            // The temporary file is locked since it was made, and a lock is the file's, whatever its names.
            let same = temporary.file.try_clone();
            let same = same.map_err(|error| self.place.error(Operation::Lock, &temporary.path, &error))?;
            held.push(Box::new(same));
        }
        let put = self.place.publish(&mut temporary, key)?;
        if put == Put::Exists {
            held.truncate(before);
        }
        Ok(put)
    }

    fn begin(&self, key: &Key, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        refuse_temporary(key)?;
        Ok(Box::new(upload::LocalUpload::begin(&self.place, key, expected_bytes)?))
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let object = object::LocalObject::open(&self.place, key)?;
        Ok(object.map(|object| Box::new(object) as Box<dyn Object>))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        listing::list(&self.place, prefix)
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        listing::list_folders(&self.place, prefix)
    }

    /// The folder's device, inode and times of change, if the last change was long enough ago that a later one cannot
    /// have the same time. A clock that is set back past that makes it wait, not err.
    fn stamp(&self, prefix: &str) -> Result<Option<String>> {
        let Some(folder) = listing::folder_of(&self.place, prefix) else { return Ok(None) };
        let meta = match std::fs::symlink_metadata(&folder) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.place.error(Operation::Stat, &folder, &error)),
        };
        // A network filesystem's client may answer from its cache.
        if self.place.is_remote() || !meta.is_dir() {
            return Ok(None);
        }
        let modified = meta.modified().map_err(|error| self.place.error(Operation::Stat, &folder, &error))?;
        let is_old = SystemTime::now().duration_since(modified).is_ok_and(|age| age >= STAMP_AGE);
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        let [mtime, mtime_ns, ctime, ctime_ns] = times;
        Ok(is_old.then(|| {
            format!("{:x}:{:x}:{mtime}.{mtime_ns:09}:{ctime}.{ctime_ns:09}", meta.dev(), meta.ino())
        }))
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.place.delete(std::slice::from_ref(key))
    }

    fn delete_many(&self, keys: &[Key]) -> Result<()> {
        self.place.delete(keys)
    }

    /// This host's clock, or where the folder lies on another the one that gives new files their times.
    fn now(&self) -> Result<SystemTime> {
        if !self.place.is_remote() {
            return Ok(SystemTime::now());
        }
        let temporary = Temporary::create(&self.place)?;
        let modified = temporary.file.metadata().and_then(|meta| meta.modified());
        modified.map_err(|error| self.place.error(Operation::Stat, &temporary.path, &error))
    }

    fn degraded(&self) -> Vec<Degradation> {
        self.place.degraded()
    }

    fn hold(&self, key: &Key) -> Result<Option<Held>> {
        let path = self.place.path_of(key);
        let Some(file) = object::open_file(&self.place, key)? else {
            return Err(Error::new(ErrorKind::NotFound, "there is no such object to lock")
                .at(path.display().to_string())
                .hint("another process has deleted it: run it again"));
        };
        if !Place::has_locks(&file) {
            return Ok(None);
        }
        let locked = place::try_lock(&file, libc::F_RDLCK);
        match locked.map_err(|error| self.place.error(Operation::Lock, &path, &error))? {
            true => Ok(Some(Box::new(file))),
            false => Err(Error::new(ErrorKind::Busy, "another process has locked it for itself")
                .during(Operation::Lock)
                .at(path.display().to_string())
                .hint("only mover locks objects, and shared: find what else has opened it")),
        }
    }

    fn is_held(&self, key: &Key) -> Result<Option<bool>> {
        let file = match object::open_file(&self.place, key) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Some(false)),
            // Another user's object: a lock on what cannot be opened cannot be asked for.
            Err(error) if error.errno() == Some(libc::EACCES) => return Ok(None),
            Err(error) => return Err(error),
        };
        if !Place::has_locks(&file) {
            return Ok(None);
        }
        let locked = place::is_locked(&file);
        locked.map(Some).map_err(|error| self.place.error(Operation::Lock, &self.place.path_of(key), &error))
    }

    fn sweep(&self, living: &dyn Fn(&str) -> bool) -> Result<u64> {
        temporary::sweep(&self.place, self.now()?, living)
    }

    fn enter(&self, session: &str) {
        session.clone_into(&mut lock(&self.place.session));
    }
}
