//! The system calls that the standard library lacks. Most of the unsafe code of this crate stands here.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// `LOOP_CLR_FD` of linux/loop.h: detach the file from a loop device.
const LOOP_CLR_FD: u64 = 0x4C01;

/// Whether this process has the effective user id 0.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes no argument and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A new anonymous file in memory.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the name is a live, terminated string.
    let descriptor = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the call above has just made this descriptor and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// `lseek`, in particular with `SEEK_DATA` and `SEEK_HOLE`.
pub(crate) fn seek(file: &File, offset: i64, whence: libc::c_int) -> io::Result<u64> {
    // SAFETY: plain integers on a descriptor that the reference keeps open.
    let position = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(position).map_err(|_| io::Error::last_os_error())
}

/// `fallocate` with the mode as given.
pub(crate) fn allocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (signed(offset)?, signed(len)?);
    // SAFETY: plain integers on a descriptor that the reference keeps open.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// Drops the clean cached pages of a file, so that the next read comes from below.
pub(crate) fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: plain integers on a descriptor that the reference keeps open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Detaches a loop device; one that is still open detaches when the last user closes it.
pub(crate) fn loop_detach(device: &File) -> io::Result<()> {
    // SAFETY: this ioctl takes no argument; the reference keeps the descriptor open.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _, 0) }).map(drop)
}

/// Mounts a source (a device, or any word for tmpfs) on a folder.
pub(crate) fn mount(source: &Path, target: &Path, kind: &str, options: &str) -> io::Result<()> {
    let (source, target) = (c_path(source)?, c_path(target)?);
    let (kind, options) = (CString::new(kind)?, CString::new(options)?);
    // SAFETY: four live, terminated strings; the kernel only reads them.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) })
        .map(drop)
}

/// Unmounts; waits for late users for as long as given, then detaches lazily. True when it is really gone.
pub(crate) fn unmount(target: &Path, patience: Duration) -> io::Result<bool> {
    let path = c_path(target)?;
    let deadline = std::time::Instant::now() + patience;
    loop {
        // SAFETY: a live, terminated string.
        let result = check(unsafe { libc::umount2(path.as_ptr(), 0) });
        match result {
            Ok(_) => return Ok(true),
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => return Err(error),
            Err(_) if std::time::Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(_) => break,
        }
    }
    // SAFETY: as above.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }).map(|_| false)
}

/// Bytes that an ordinary user may still write on the filesystem of a path.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = c_path(path)?;
    // SAFETY: statvfs is plain integers, for which zeros are a valid value.
    let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a live string and a live struct of the type asked for.
    check(unsafe { libc::statvfs(path.as_ptr(), &raw mut info) })?;
    Ok(info.f_bavail * info.f_frsize)
}

/// A descriptor that becomes readable when the process ends, and that no other process can inherit the name of.
pub(crate) fn process_descriptor(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other).and_then(check)?;
    // SAFETY: the call above has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits until the process behind the descriptor has ended, at most for as long as given.
pub(crate) fn wait_ended(process: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one live pollfd, and a count of one.
    match check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends a signal; a negative pid names a process group.
pub(crate) fn signal(pid: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Collects a child that has ended, with what it has used.
pub(crate) fn collect(pid: libc::pid_t) -> io::Result<(libc::c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is plain integers, for which zeros are a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: two live values of the types asked for.
        match check(unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) }) {
            Ok(_) => return Ok((status, usage)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
