//! Buffer memory of a worker: one mapping, cut into equal buffers, registered once, never freed while the
//! kernel may still write to it.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use mover_model::limits;
use mover_model::{Error, ErrorKind, Operation, Result};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::settings::HugePages;

/// Bytes of the block of zeros behind the buffers, for targets that know no better way to write zeros.
pub const ZERO_BLOCK_BYTES: usize = 64 << 10;

/// The buffers of one worker. Addresses are aligned to a page at least.
pub struct Arena {
    base: NonNull<u8>,
    mapped: usize,
    block_size: usize,
    count: usize,
    huge: bool,
}

// SAFETY: the mapping belongs to the arena alone; the pointer is only an address of it.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps `count` buffers of `block_size` bytes (a multiple of the page size) and the block of zeros.
    ///
    /// # Errors
    /// `Internal` when the kernel has no memory to map.
    pub fn new(count: usize, block_size: usize, huge_pages: HugePages) -> Result<Self> {
        debug_assert!(block_size.is_multiple_of(limits::BLOCK_SIZE_MIN as usize));
        let wanted = count * block_size + ZERO_BLOCK_BYTES;
        let mapping = |bytes: usize, flags: MapFlags| {
            let bytes = NonZeroUsize::new(bytes).unwrap_or(NonZeroUsize::MIN);
            // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
            unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
        };
        if huge_pages == HugePages::Required {
            let rounded = wanted.next_multiple_of(2 << 20);
            if let Ok(base) =
                mapping(rounded, MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB | MapFlags::MAP_POPULATE)
            {
                return Ok(Arena { base: base.cast(), mapped: rounded, block_size, count, huge: true });
            }
        }
        let base = mapping(wanted, MapFlags::MAP_PRIVATE).map_err(|errno| {
            Error::new(ErrorKind::Internal, format!("no memory for {wanted} bytes of buffers: {errno}"))
                .during(Operation::Register)
                .hint("lower --memory-limit, --queue-depth or --block-size")
        })?;
        let arena = Arena { base: base.cast(), mapped: wanted, block_size, count, huge: false };
        if huge_pages != HugePages::Off {
            // Advice only: a kernel without transparent huge pages gives ordinary ones.
            // SAFETY: the range is the mapping just made.
            let _ = unsafe { madvise(arena.base.cast(), count * block_size, MmapAdvise::MADV_HUGEPAGE) };
        }
        Ok(arena)
    }

    /// Whether the mapping is of the hugetlb pool.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// Number of buffers.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Address of a buffer.
    pub fn buffer(&self, index: usize) -> *mut u8 {
        assert!(index < self.count);
        // SAFETY: the offset lies inside the mapping, as index < count.
        unsafe { self.base.as_ptr().add(index * self.block_size) }
    }

    /// The block of zeros; nothing ever writes to it.
    pub fn zeros(&self) -> *mut u8 {
        // SAFETY: the block of zeros follows the buffers inside the mapping.
        unsafe { self.base.as_ptr().add(self.count * self.block_size) }
    }

    /// The first `length` bytes of a buffer.
    ///
    /// # Safety
    /// The kernel must not be writing to the buffer: its read has completed.
    pub unsafe fn bytes(&self, index: usize, length: usize) -> &[u8] {
        assert!(length <= self.block_size);
        // SAFETY: inside the mapping, initialised (mappings are zeroed), and not written to meanwhile, by contract.
        unsafe { std::slice::from_raw_parts(self.buffer(index), length) }
    }

    /// Fills a buffer's range with zeros: what a stream's last block is padded with.
    ///
    /// # Safety
    /// The kernel must not be using the buffer.
    pub unsafe fn clear(&mut self, index: usize, from: usize, to: usize) {
        assert!(from <= to && to <= self.block_size);
        // SAFETY: inside the mapping, and not in use, by contract.
        unsafe { std::ptr::write_bytes(self.buffer(index).add(from), 0, to - from) }
    }

    /// The buffers as the kernel registers them, one entry each, the block of zeros last.
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        let mut out: Vec<_> = (0..self.count)
            .map(|index| libc::iovec { iov_base: self.buffer(index).cast(), iov_len: self.block_size })
            .collect();
        out.push(libc::iovec { iov_base: self.zeros().cast(), iov_len: ZERO_BLOCK_BYTES });
        out
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no operation uses it any more: a worker that could not drain its
        // ring leaks the arena instead.
        let _ = unsafe { munmap(self.base.cast(), self.mapped) };
    }
}
