//! What only XFS itself can tell: whether the filesystem was made with reflinks.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// `struct xfs_fsop_geom_v1` (fs/xfs/libxfs/xfs_fs.h): words of which only the flags are of use here.
#[repr(C, align(8))]
struct Geometry {
    before_flags: [u8; 92],
    flags: u32,
    after_flags: [u8; 16],
}

const _: () = assert!(std::mem::size_of::<Geometry>() == 112);

/// `XFS_FSOP_GEOM_FLAGS_REFLINK`.
const REFLINK: u32 = 1 << 20;

mod ioctls {
    nix::ioctl_read!(geometry_v1, b'X', 100, super::Geometry);
}

/// Whether the XFS that a file or folder lies on can share blocks between files.
///
/// # Errors
/// `ENOTTY` where it is no XFS.
pub fn has_reflink(file: &File) -> Result<bool, Errno> {
    let mut answer = Geometry { before_flags: [0; 92], flags: 0, after_flags: [0; 16] };
    // SAFETY: XFS_IOC_FSGEOMETRY_V1 writes one struct of this size; other filesystems answer ENOTTY.
    unsafe { ioctls::geometry_v1(file.as_raw_fd(), &mut answer) }?;
    Ok(answer.flags & REFLINK != 0)
}
