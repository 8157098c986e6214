//! System calls that nix does not wrap safely: device ioctls, statx's O_DIRECT rules, reflinks.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::lane::Alignment;

mod ioctls {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, 0x1268, libc::c_int);
    nix::ioctl_read_bad!(blkpbszget, 0x127b, libc::c_int);
    nix::ioctl_read_bad!(blkroget, 0x125e, libc::c_int);
    nix::ioctl_write_int!(ficlone, 0x94, 9);
}

/// Bytes of a block device.
pub fn block_device_size(device: &File) -> Result<u64, Errno> {
    let mut size = 0;
    // SAFETY: BLKGETSIZE64 writes one u64; anything but a block device answers ENOTTY.
    unsafe { ioctls::blkgetsize64(device.as_raw_fd(), &mut size) }?;
    Ok(size)
}

/// Bytes of a logical block of a block device: the least that can be read or written.
pub fn logical_block_size(device: &File) -> Result<u32, Errno> {
    let mut size = 0;
    // SAFETY: BLKSSZGET writes one int.
    unsafe { ioctls::blksszget(device.as_raw_fd(), &mut size) }?;
    Ok(size as u32)
}

/// Bytes of a physical block of a block device.
pub fn physical_block_size(device: &File) -> Result<u32, Errno> {
    let mut size = 0;
    // SAFETY: BLKPBSZGET writes one unsigned int.
    unsafe { ioctls::blkpbszget(device.as_raw_fd(), &mut size) }?;
    Ok(size as u32)
}

/// Whether a block device is read-only.
pub fn is_read_only_device(device: &File) -> Result<bool, Errno> {
    let mut read_only = 0;
    // SAFETY: BLKROGET writes one int.
    unsafe { ioctls::blkroget(device.as_raw_fd(), &mut read_only) }?;
    Ok(read_only != 0)
}

/// Makes `target` share all blocks of `source` (ioctl_ficlone(2)).
pub fn reflink(target: BorrowedFd<'_>, source: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: FICLONE takes a descriptor and touches no memory of ours.
    unsafe { ioctls::ficlone(target.as_raw_fd(), source.as_raw_fd() as libc::c_ulong) }?;
    Ok(())
}

/// The kernel's own word on O_DIRECT for a file (statx(2) STATX_DIOALIGN, kernel 6.1): `Ok(None)` when the
/// filesystem does not tell, `Some` with a zero offset alignment when it does not support it.
pub fn direct_alignment(file: &File) -> Result<Option<Alignment>, Errno> {
    const STATX_DIOALIGN: u32 = 0x2000;
    let mut answer = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH asks about the descriptor; the buffer is a whole struct statx.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, STATX_DIOALIGN, answer.as_mut_ptr())
    };
    Errno::result(result)?;
    // SAFETY: zeroed at first and filled by the kernel; every bit pattern is a valid struct statx.
    let answer = unsafe { answer.assume_init() };
    if answer.stx_mask & STATX_DIOALIGN == 0 {
        return Ok(None);
    }
    Ok(Some(Alignment { offset: answer.stx_dio_offset_align, memory: answer.stx_dio_mem_align.max(1) }))
}

/// Whether anyone on this host, in any container, has a regular file open or mapped for writing: the kernel refuses a
/// read lease then (F_SETLEASE in fcntl(2)). The lease is given back at once. `file` is open for reading only.
///
/// # Errors
/// The kernel's, where it cannot tell: another user's file without CAP_LEASE, a filesystem without leases.
pub fn is_open_for_writing(file: &File) -> Result<bool, Errno> {
    // include/uapi/asm-generic/fcntl.h; libc does not name it.
    const F_SETSIG: libc::c_int = 10;
    // Who opens it for writing in between waits for the lease's end, and we are sent a signal: one that is ignored
    // where nobody asks for it, instead of SIGIO, which ends the process.
    // SAFETY: F_SETSIG and F_SETLEASE take numbers and touch no memory of ours.
    let taken = unsafe {
        Errno::result(libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG))?;
        Errno::result(libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK))
    };
    match taken {
        Ok(_) => {}
        Err(Errno::EAGAIN) => return Ok(true),
        Err(errno) => return Err(errno),
    }
    // SAFETY: as above.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) })?;
    Ok(false)
}

/// Pins the calling thread to a CPU.
pub fn pin_to_cpu(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu).map_err(|_| format!("CPU {cpu} is beyond the largest number the kernel knows"))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|errno| format!("sched_setaffinity: {}", errno.desc()))
}

/// Type of the filesystem a file lies on, as statfs(2) names it by number.
pub fn filesystem_magic(file: impl AsFd) -> Result<i64, Errno> {
    Ok(nix::sys::statfs::fstatfs(file)?.filesystem_type().0)
}

/// A record lock over a whole file, of this kind (`F_RDLCK`, `F_WRLCK`, `F_UNLCK`).
pub fn whole_file(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Whether a file's filesystem keeps its bytes in memory.
pub fn lies_in_memory(file: impl AsFd) -> bool {
    matches!(filesystem_magic(file), Ok(TMPFS_MAGIC | RAMFS_MAGIC))
}

/// Name of a filesystem by its number, for messages.
pub fn filesystem_name(magic: i64) -> &'static str {
    match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        TMPFS_MAGIC => "tmpfs",
        RAMFS_MAGIC => "ramfs",
        NFS_MAGIC => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x6573_5546 => "fuse",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        _ => "unknown",
    }
}

/// tmpfs.
pub const TMPFS_MAGIC: i64 = 0x0102_1994;
/// ramfs.
pub const RAMFS_MAGIC: i64 = 0x8584_58f6;
/// NFS.
pub const NFS_MAGIC: i64 = 0x6969;

/// A small file of /sys or /proc, trimmed; `None` when it is not there.
pub fn read_setting(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
