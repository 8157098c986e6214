//! Temporary folders that clean up after themselves, and after earlier runs that were killed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::sys;

/// The variable that names the place for scratch folders, instead of the system's temporary folder.
pub const PLACE_VARIABLE: &str = "MOVER_TEST_DIR";

const PREFIX: &str = "mover-test-";
const LOCK: &str = ".lock";
/// Younger folders are left alone by the sweep: their owner may not have locked them yet.
const SWEEP_AGE: Duration = Duration::from_secs(10);
/// How long the sweep waits for the devices of one folder to go.
const SWEEP_PATIENCE: Duration = Duration::from_secs(2);

/// A temporary folder, removed with all its content on drop.
#[derive(Debug)]
pub struct ScratchDir {
    folder: TempDir,
    /// Held while the folder is in use; the sweep of a later run sees by it whether the owner lives.
    _lock: File,
}

impl ScratchDir {
    /// A folder in the place that `MOVER_TEST_DIR` names, else in the system's temporary folder.
    #[expect(clippy::new_without_default, reason = "makes a folder; not a value to be had by default")]
    pub fn new() -> ScratchDir {
        ScratchDir::in_place(&std::env::var_os(PLACE_VARIABLE).map_or_else(std::env::temp_dir, PathBuf::from))
    }

    /// A folder in memory (tmpfs) where there is one, else as [`ScratchDir::new`].
    pub fn in_memory() -> ScratchDir {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { ScratchDir::in_place(memory) } else { ScratchDir::new() }
    }

    /// A folder in this place.
    pub fn in_place(place: &Path) -> ScratchDir {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| sweep(place));
        let make = || -> io::Result<ScratchDir> {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)?;
            let lock = File::create(folder.path().join(LOCK))?;
            lock.lock()?;
            Ok(ScratchDir { folder, _lock: lock })
        };
        make().unwrap_or_else(|error| panic!("no scratch folder in {}: {error}", place.display()))
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Path of a file in the folder, which need not exist.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a file of this size that is all hole.
    pub fn sparse(&self, name: &str, size: u64) -> PathBuf {
        let path = self.file(name);
        let file = File::create(&path).expect("scratch file");
        file.set_len(size).unwrap_or_else(|error| panic!("{} of {size} bytes: {error}", path.display()));
        path
    }

    /// Makes a file with this content.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, content).expect("scratch file");
        path
    }

    /// Lets every user enter the folder and make files in it.
    pub fn open_to_all(&self) {
        open_to_all(self.path());
    }
}

pub(crate) fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, Permissions::from_mode(0o777)).expect("permissions of a scratch folder");
}

/// Takes down what killed runs have left in this place: mounts, loop devices, folders.
///
/// A folder is dead when its lock can be had. Failures are passed over: the sweep is a courtesy.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if ours && is_dead(&path) {
            // Devices first, while the path of their file is still to be seen: one that is mounted detaches
            // when it is unmounted.
            let devices = detach_below(&path);
            unmount_below(&path);
            wait_gone(&devices);
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn is_dead(folder: &Path) -> bool {
    let Ok(lock) = OpenOptions::new().write(true).open(folder.join(LOCK)) else { return false };
    let age = lock.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age > SWEEP_AGE) && lock.try_lock().is_ok()
}

fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // The last mounted comes first, as it may stand on an earlier one.
    for line in mounts.lines().rev() {
        let target = line.split(' ').nth(1).map(Path::new);
        if let Some(target) = target.filter(|target| target.starts_with(folder)) {
            let _ = sys::unmount(target, Duration::ZERO);
        }
    }
}

/// Detaches the devices over files below the folder; gives what stands in /sys for as long as one is attached.
fn detach_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let mut attached = Vec::new();
    for device in devices.flatten() {
        let path = device.path().join("loop/backing_file");
        let backing = fs::read_to_string(&path).unwrap_or_default();
        if Path::new(backing.trim_end()).starts_with(folder) {
            let node = Path::new("/dev").join(device.file_name());
            let _ = OpenOptions::new().read(true).open(node).and_then(|device| sys::loop_detach(&device));
            attached.push(path);
        }
    }
    attached
}

/// Waits until these are gone: the last step of an unmount is taken after the call returns.
fn wait_gone(paths: &[PathBuf]) {
    let deadline = Instant::now() + SWEEP_PATIENCE;
    while paths.iter().any(|path| path.exists()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}
