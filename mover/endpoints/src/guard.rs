//! What is refused before a byte is written: a target that is the source, lies on it, backs it, is mounted,
//! held or locked, or holds something.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mover_model::{Error, ErrorKind, Locator, Operation, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::facts::{sysfs_disk, sysfs_node};
use mover_engine::sys::{read_setting, whole_file};

/// How long a lock or claim that is held is waited for. A resumed run waits for the writes of the killed one
/// to land; 7.8 s were seen. Any other waits for a run that has just ended.
pub(crate) fn lock_wait(resume: bool) -> Duration {
    Duration::from_millis(if resume { 30_000 } else { 500 })
}

pub(crate) const LOCK_POLL: Duration = Duration::from_millis(20);

/// Gives the lock up: nothing of ours is in flight any more.
pub(crate) fn unlock_target(file: &File) {
    // It would go with the descriptor too, only later.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
}

/// Refuses a target whose bytes are the source's, however they are named.
pub(crate) fn refuse_same(
    target: &Metadata,
    target_label: &str,
    source: &Metadata,
    source_label: &str,
) -> Result<()> {
    let refuse = |why: String| Err(Error::refused(target_label, why).hint("choose another target"));
    let both_block = target.file_type().is_block_device() && source.file_type().is_block_device();
    if target.is_file() && source.is_file() && (target.dev(), target.ino()) == (source.dev(), source.ino()) {
        return refuse(format!("target and source ({source_label}) are the same file"));
    }
    if both_block {
        if target.rdev() == source.rdev() {
            return refuse(format!("target and source ({source_label}) are the same device"));
        }
        let (target_disk, source_disk) = (sysfs_disk(target.rdev()), sysfs_disk(source.rdev()));
        let partition =
            |meta: &Metadata| sysfs_node(meta.rdev()).is_some_and(|node| node.join("partition").exists());
        if target_disk.is_some() && target_disk == source_disk && !(partition(target) && partition(source)) {
            return refuse(format!("one of target and source ({source_label}) is a partition of the other"));
        }
    }
    if let Some(backing) = loop_backings(target).find(|backing| is_file(backing, source)) {
        return refuse(format!("the device is a loop device over the source ({})", backing.display()));
    }
    if let Some(backing) = loop_backings(source).find(|backing| is_file(backing, target)) {
        return refuse(format!(
            "the source ({source_label}) is a loop device over this file ({})",
            backing.display()
        ));
    }
    Ok(())
}

/// Refuses a target that is a source, its own pair's or another's, and two pairs with one target, however
/// they are named: by path, link, loop device, partition, or as standard input and output.
///
/// # Errors
/// `Refused`, naming both.
pub fn refuse_shared(pairs: &[(&Locator, &Locator)]) -> Result<()> {
    let stdin = std::io::stdin();
    let stdout = std::io::stdout();
    let sources: Vec<_> = pairs.iter().map(|(source, _)| metadata_of(source, stdin.as_fd())).collect();
    let targets: Vec<_> = pairs.iter().map(|(_, target)| metadata_of(target, stdout.as_fd())).collect();
    for (index, (_, target)) in pairs.iter().enumerate() {
        for (other, (other_source, other_target)) in pairs.iter().enumerate() {
            if let (Some(this), Some(that)) = (&targets[index], &sources[other]) {
                refuse_same(this, &target.to_string(), that, &other_source.to_string())?;
            }
            if index == other {
                continue;
            }
            let same_name = match (target, other_target) {
                (Locator::Path(this), Locator::Path(that)) => place_of(this) == place_of(that),
                _ => false,
            };
            if same_name {
                return Err(Error::refused(target.to_string(), "two pairs name this target")
                    .hint("choose another target"));
            }
            if let (Some(this), Some(that)) = (&targets[index], &targets[other]) {
                refuse_same(this, &target.to_string(), that, &other_target.to_string())?;
            }
        }
    }
    Ok(())
}

fn metadata_of(locator: &Locator, standard: BorrowedFd<'_>) -> Option<Metadata> {
    match locator {
        Locator::Path(path) => std::fs::metadata(path).ok(),
        Locator::Stream => File::from(standard.try_clone_to_owned().ok()?).metadata().ok(),
        Locator::Null { .. } => None,
    }
}

/// A name that need not exist yet, with the links on the way to it resolved.
fn place_of(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (std::fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// The file below a loop device, and what is below that where it is a loop device too.
fn loop_backings(meta: &Metadata) -> impl Iterator<Item = PathBuf> {
    let next = |path: &PathBuf| std::fs::metadata(path).ok().as_ref().and_then(loop_backing);
    // The kernel allows no cycles.
    std::iter::successors(loop_backing(meta), next)
}

/// The file below a loop device, or below the loop device that a partition lies on.
fn loop_backing(meta: &Metadata) -> Option<PathBuf> {
    if !meta.file_type().is_block_device() {
        return None;
    }
    read_setting(sysfs_disk(meta.rdev())?.join("loop/backing_file")).map(PathBuf::from)
}

fn is_file(path: &Path, meta: &Metadata) -> bool {
    std::fs::metadata(path).is_ok_and(|other| (other.dev(), other.ino()) == (meta.dev(), meta.ino()))
}

/// Refuses a regular file that backs a loop device: whatever is mounted from it would be destroyed below it.
pub(crate) fn refuse_loop_backing(target: &Metadata, label: &str) -> Result<()> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Ok(()) };
    for entry in entries.flatten() {
        let Some(backing) = read_setting(entry.path().join("loop/backing_file")) else { continue };
        if is_file(Path::new(&backing), target) {
            let device = entry.file_name().to_string_lossy().into_owned();
            return Err(Error::refused(
                label,
                format!("the file is in use as the loop device /dev/{device}"),
            )
            .hint(format!("detach it first: losetup -d /dev/{device}")));
        }
    }
    Ok(())
}

/// Takes an exclusive lock on all of a target file. QEMU's image locks conflict with it in both directions.
/// One that is held is waited for as long as `wait`: it may be that of a killed run whose writes still land.
pub(crate) fn lock_target(file: &File, label: &str, wait: Duration) -> Result<()> {
    let begin = Instant::now();
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) if begin.elapsed() < wait => std::thread::sleep(LOCK_POLL),
            Err(Errno::EAGAIN | Errno::EACCES) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "another process holds a lock on this file: a virtual machine uses it, or another mover writes it",
                )
                .during(Operation::Lock)
                .at(label)
                .hint("stop the other process, or choose another target"));
            }
            // A filesystem without locks cannot tell; the lock is one guard of several.
            Err(_) => return Ok(()),
        }
    }
}

/// Whether another process has the file open for writing, as far as QEMU's image locks tell.
pub fn has_writer(file: &File) -> bool {
    // QEMU locks byte 100 + n for each permission n that it uses; permission 1 is "write"
    // (block/file-posix.c: RAW_LOCK_PERM_BASE, include/block/block-common.h: BLK_PERM_WRITE).
    const WRITE_PERMISSION: i64 = 101;
    let mut lock = whole_file(libc::F_WRLCK);
    lock.l_start = WRITE_PERMISSION;
    lock.l_len = 1;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}
