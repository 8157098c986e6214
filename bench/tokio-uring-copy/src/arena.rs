//! The buffers: one aligned block of memory, asked for in huge pages, cut into one piece per task.

use std::alloc::{Layout, alloc};
use std::error::Error;
use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};
use tokio_uring::buf::{IoBuf, IoBufMut};

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A piece of the arena. The arena is never freed, so a copy of this handle cannot outlive its memory.
///
/// Each task owns one piece; the registry holds a second handle to the same piece, which `check_out` lends to that task.
#[derive(Clone, Copy)]
pub struct Buffer {
    start: NonNull<u8>,
    length: usize,
}

/// Allocates `count` buffers of `length` bytes, aligned for O_DIRECT; `length` is a multiple of 4096.
pub fn carve_buffers(count: usize, length: usize) -> Result<Vec<Buffer>, Box<dyn Error>> {
    let total = count.checked_mul(length).ok_or("BLOCK times DEPTH is too large")?;
    let layout = Layout::from_size_align(total.next_multiple_of(HUGE_PAGE_BYTES), HUGE_PAGE_BYTES)?;
    // SAFETY: the layout is not empty, for main() refuses a block or depth of zero.
    let arena = NonNull::new(unsafe { alloc(layout) }).ok_or("no memory for the buffers")?;
    // SAFETY: the range is our own fresh allocation. Only a wish: where huge pages are off, small ones do.
    let _ = unsafe { madvise(arena.cast::<c_void>(), layout.size(), MmapAdvise::MADV_HUGEPAGE) };
    // SAFETY: the range is our own fresh allocation. Writing it also faults it in before the first request.
    unsafe { arena.as_ptr().write_bytes(0, layout.size()) };
    // SAFETY: `index * length + length` stays within `total`.
    let carve = |index| Buffer { start: unsafe { arena.add(index * length) }, length };
    Ok((0..count).map(carve).collect())
}

// SAFETY: the memory never moves and is never freed, and all of it was initialised by `carve_buffers`.
unsafe impl IoBuf for Buffer {
    fn stable_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.length
    }

    fn bytes_total(&self) -> usize {
        self.length
    }
}

// SAFETY: as above; there is no smaller initialised part to keep count of.
unsafe impl IoBufMut for Buffer {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    unsafe fn set_init(&mut self, _position: usize) {}
}
