//! Copies that the kernel makes itself: reflinks, and copy_file_range(2) where a file server or the user asks.

use mover_endpoints::{FileSink, FileSource};
use mover_engine::sys::{self, NFS_MAGIC};
use mover_engine::{Control, Sink, Source};
use mover_model::{Error, ErrorKind, ExtentKind, Operation, Result};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};

use super::Offload;

/// What the kernel did.
pub struct Offloaded {
    /// `reflink` or `copy_file_range`.
    pub how: &'static str,
    /// Bytes it shared or copied.
    pub bytes: u64,
}

/// Bytes of one call: so long is a signal not seen.
const RANGE_BYTES: u64 = 64 << 20;

/// Lets the kernel copy a whole file. `Err(reason)` in words when it cannot: nothing was written then, and
/// the engine does it.
///
/// # Errors
/// An I/O error while it copied; under `Always` also that it cannot.
pub fn offload(
    source: &FileSource,
    target: &FileSink,
    offload: Offload,
    control: &Control,
) -> Result<std::result::Result<Offloaded, String>> {
    use std::os::fd::AsFd;
    let size = source.size().unwrap_or(0);
    let cannot = |reason: String| match offload {
        Offload::Always => {
            Err(Error::new(ErrorKind::Downgrade, format!("the kernel cannot copy it: {reason}"))
                .at(mover_engine::Sink::label(target))
                .hint("--offload auto copies through the engine instead"))
        }
        _ => Ok(Err(reason)),
    };
    if source.is_block() || target.is_block() {
        return cannot("both ends must be regular files".into());
    }
    if size == 0 {
        return Ok(Ok(Offloaded { how: "reflink", bytes: 0 }));
    }
    let reflink_reason = match sys::reflink(target.file().as_fd(), source.file().as_fd()) {
        Ok(()) => return Ok(Ok(Offloaded { how: "reflink", bytes: size })),
        Err(Errno::EXDEV) => "they lie on different filesystems".to_owned(),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS) => {
            "the filesystem does not share blocks".to_owned()
        }
        Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EIO)) => {
            return Err(Error::os(Operation::Clone, mover_engine::Sink::label(target), errno as i32));
        }
        Err(errno) => errno.desc().to_owned(),
    };
    let server = sys::filesystem_magic(source.file()) == Ok(NFS_MAGIC)
        && sys::filesystem_magic(target.file()) == Ok(NFS_MAGIC);
    if offload != Offload::Always && !server {
        return cannot(reflink_reason);
    }
    let mut bytes = 0;
    for extent in source.extents()? {
        let extent = extent?;
        if extent.kind != ExtentKind::Data {
            continue;
        }
        let mut position = extent.start;
        while position < extent.end() {
            if control.stopped() {
                return Ok(Ok(Offloaded { how: "copy_file_range", bytes }));
            }
            let (mut from, mut to) = (position as i64, position as i64);
            let length = (extent.end() - position).min(RANGE_BYTES) as usize;
            match copy_file_range(source.file(), Some(&mut from), target.file(), Some(&mut to), length) {
                Ok(0) => {
                    return Err(Error::new(ErrorKind::SourceShrank, "the source ended while it was copied")
                        .during(Operation::Copy)
                        .at(source.label())
                        .offset(position));
                }
                Ok(copied) => {
                    position += copied as u64;
                    bytes += copied as u64;
                }
                Err(Errno::EINTR) => {}
                Err(errno @ (Errno::EXDEV | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS))
                    if bytes == 0 =>
                {
                    return cannot(format!("{reflink_reason}; copy_file_range: {}", errno.desc()));
                }
                Err(errno) => {
                    let label = mover_engine::Sink::label(target);
                    return Err(Error::os(Operation::Copy, label, errno as i32).offset(position));
                }
            }
        }
    }
    if bytes > 0 && !target.reads_zero() {
        punch_holes(source, target)?;
    }
    Ok(Ok(Offloaded { how: "copy_file_range", bytes }))
}

/// What the target held before must not shine through the holes of the source. Last, so that a kernel that
/// cannot copy has not cost the target anything.
fn punch_holes(source: &FileSource, target: &FileSink) -> Result<()> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for extent in source.extents()? {
        let extent = extent?;
        if extent.kind != ExtentKind::Data {
            fallocate(target.file(), mode, extent.start as i64, extent.length as i64).map_err(|errno| {
                let label = mover_engine::Sink::label(target);
                Error::os(Operation::Zero, label, errno as i32)
                    .offset(extent.start)
                    .hint("--offload never copies through the engine instead")
            })?;
        }
    }
    Ok(())
}
