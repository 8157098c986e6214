//! What a file is, by which a common disk is known again without being read.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mover_engine::sys::{block_device_size, filesystem_magic, filesystem_name, is_open_for_writing};
use mover_model::manifest::FileIdentity;
use mover_model::{Error, Operation, Result};
use mover_repository::catalog::is_network_filesystem;
use nix::sys::stat::{major, minor};

/// Stamps younger than this are not trusted: a second change within one tick of the filesystem's clock leaves them as
/// they are.
const TRUSTED_AFTER: Duration = Duration::from_secs(2);

/// What a file is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    /// Of a local regular file; others cannot be known again by what they are.
    pub identity: Option<FileIdentity>,
    /// Bytes.
    pub size: u64,
    /// Why there is no identity, or why it may not be trusted.
    pub doubt: Option<Doubt>,
}

/// Why a file's identity does not tell that its content is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Somebody has it open for writing: it is no common disk.
    Writer(String),
    /// A block device, or a file that another host may write.
    NotLocal(String),
    /// It was changed a moment ago.
    Young,
}

/// Looks at a file or block device.
pub(super) fn look(path: &Path) -> Result<Look> {
    let label = path.display().to_string();
    // A named pipe must not hold us up.
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = open.map_err(|error| Error::io(Operation::Open, &label, &error))?;
    let meta = file.metadata().map_err(|error| Error::io(Operation::Stat, &label, &error))?;
    let kind = meta.file_type();
    let size = match kind.is_block_device() {
        true => block_device_size(&file).map_err(|errno| Error::os(Operation::Stat, &label, errno as i32))?,
        false => meta.len(),
    };
    if let Some(who) = writer(&file, &meta) {
        return Ok(Look { identity: None, size, doubt: Some(Doubt::Writer(who)) });
    }
    let not_local = if kind.is_block_device() {
        Some("a block device".to_owned())
    } else if !kind.is_file() {
        Some("no regular file".to_owned())
    } else {
        match filesystem_magic(&file) {
            Ok(magic) if is_network_filesystem(magic) => {
                Some(format!("a file on a network filesystem ({})", filesystem_name(magic)))
            }
            Ok(_) => None,
            Err(errno) => Some(format!("a file on an unknown filesystem ({})", errno.desc())),
        }
    };
    if let Some(what) = not_local {
        return Ok(Look { identity: None, size, doubt: Some(Doubt::NotLocal(what)) });
    }
    let identity = identity_of(&meta);
    let doubt = (!is_settled(&identity, SystemTime::now())).then_some(Doubt::Young);
    Ok(Look { identity: Some(identity), size, doubt })
}

/// What a path names now, for the comparison with what a pointer came to; `None` where there is nothing.
pub(super) fn identity_at(path: &Path) -> Option<FileIdentity> {
    Some(identity_of(&std::fs::metadata(path).ok()?))
}

fn identity_of(meta: &Metadata) -> FileIdentity {
    let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    FileIdentity {
        device: format!("{}:{}", major(meta.dev()), minor(meta.dev())),
        inode: meta.ino(),
        size: meta.len(),
        mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
        ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        birth_ns: meta.created().ok().map(since_1970),
    }
}

fn since_1970(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

/// Whether a change after `now` is sure to give other stamps. Stamps in the future, after a clock was set back, are not.
fn is_settled(identity: &FileIdentity, now: SystemTime) -> bool {
    let newest = identity.mtime_ns.max(identity.ctime_ns);
    since_1970(now) - newest >= TRUSTED_AFTER.as_nanos() as i128
}

/// Who has the file open for writing, as far as this host can tell: the kernel's own word where it gives it (a lease is
/// refused), QEMU's locks, then the open files of the processes that we may look at.
fn writer(file: &File, meta: &Metadata) -> Option<String> {
    if mover_endpoints::has_writer(file) {
        return Some("a virtual machine".into());
    }
    match is_open_for_writing(file) {
        Ok(false) => None,
        Ok(true) => Some(find_writer(meta).unwrap_or_else(|| "a process".into())),
        Err(_) => find_writer(meta),
    }
}

/// A process with the file open for writing, from /proc.
fn find_writer(meta: &Metadata) -> Option<String> {
    let same = |other: &Metadata| {
        (other.dev(), other.ino()) == (meta.dev(), meta.ino())
            || meta.file_type().is_block_device()
                && other.file_type().is_block_device()
                && other.rdev() == meta.rdev()
    };
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        for fd in std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            if !std::fs::metadata(fd.path()).is_ok_and(|other| same(&other)) {
                continue;
            }
            let info = process.path().join("fdinfo").join(fd.file_name());
            if std::fs::read_to_string(info).is_ok_and(|info| is_writable(&info)) {
                let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("{} (process {pid})", program.trim()));
            }
        }
    }
    None
}

/// Whether /proc/PID/fdinfo/N tells of an access mode with writing.
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_trusted_after_two_seconds_and_never_from_the_future() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, [1; 4096]).unwrap();
        let identity = look(&path).unwrap().identity.unwrap();
        let changed = UNIX_EPOCH + Duration::from_nanos(identity.ctime_ns as u64);
        for (after_ms, settled) in [(0, false), (1999, false), (2000, true), (60_000, true)] {
            assert_eq!(
                is_settled(&identity, changed + Duration::from_millis(after_ms)),
                settled,
                "{after_ms}"
            );
        }
        assert!(!is_settled(&identity, changed - Duration::from_secs(60)));
        assert_eq!(look(&path).unwrap().doubt, Some(Doubt::Young));
        std::fs::write(&path, [2; 4096]).unwrap();
        assert_ne!(look(&path).unwrap().identity.unwrap(), identity);
    }

    #[test]
    fn a_file_open_for_writing_is_told_with_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, [1; 4096]).unwrap();
        let open = OpenOptions::new().append(true).open(&path).unwrap();
        let Some(Doubt::Writer(who)) = look(&path).unwrap().doubt else { panic!("not seen") };
        assert!(who.contains(&std::process::id().to_string()), "{who}");
        assert!(find_writer(&open.metadata().unwrap()).is_some());
        drop(open);
        let reader = File::open(&path).unwrap();
        assert_eq!(look(&path).unwrap().doubt, Some(Doubt::Young));
        assert_eq!(find_writer(&reader.metadata().unwrap()), None);
        assert!(is_writable("pos:\t0\nflags:\t0100002\nmnt_id:\t1\n"));
        assert!(!is_writable("pos:\t0\nflags:\t0100000\nmnt_id:\t1\n") && !is_writable(""));
    }
}
