//! Buffer memory of a worker: one mapping, registered once, never freed while the kernel may still write to it.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use mover_model::limits;
use mover_model::{Error, ErrorKind, Operation, Result};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::settings::HugePages;

/// Bytes of the block of zeros behind the buffers, for targets that know no better way to write zeros.
pub const ZERO_BLOCK_BYTES: usize = 64 << 10;

/// Index under which the buffers are registered.
const BUFFERS: u16 = 0;
/// Index under which the block of zeros is registered.
const ZEROS: u16 = 1;

/// A place in a worker's arena. Only the engine makes one, so what a lane pushes to a ring always lies in memory
/// that stays there until the operation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    address: *mut u8,
    buffer: u16,
}

impl Memory {
    /// No place: for operations that need no buffer.
    pub(crate) const NONE: Memory = Memory { address: std::ptr::null_mut(), buffer: BUFFERS };

    /// The place `bytes` further on, in the same buffer: a lane goes on there after a short transfer.
    pub fn skip(self, bytes: u64) -> Self {
        Memory { address: self.address.wrapping_add(bytes as usize), ..self }
    }

    /// Its address.
    pub fn address(self) -> *mut u8 {
        self.address
    }

    /// Index of the registered buffer that it lies in.
    pub(crate) fn buffer(self) -> u16 {
        self.buffer
    }
}

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// A part of a worker's registered memory that belongs to a lane, or to what several lanes share: see
/// [`crate::lane::LaneSetup::scratch`]. It means something to the worker that handed it out only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scratch {
    offset: usize,
    length: usize,
}

impl Scratch {
    pub(crate) fn new(offset: usize, length: usize) -> Self {
        Scratch { offset, length }
    }

    /// Its bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// `length` bytes of it from `from` on.
    ///
    /// # Panics
    /// When it has no such bytes.
    pub fn part(&self, from: usize, length: usize) -> Scratch {
        assert!(from <= self.length && length <= self.length - from, "no such part of the scratch memory");
        Scratch { offset: self.offset + from, length }
    }

    /// Where it lies in the arena, and its length.
    pub(crate) fn range(&self) -> (usize, usize) {
        (self.offset, self.length)
    }
}

/// The buffers of one worker. Addresses are aligned to a page at least.
pub struct Arena {
    /// First byte of the buffers.
    base: NonNull<u8>,
    /// The mapping that holds them.
    mapping: NonNull<u8>,
    mapped: usize,
    /// Bytes of the buffers, lanes' scratch memory among them; the block of zeros lies behind them.
    bytes: usize,
    huge: bool,
}

// SAFETY: the mapping belongs to the arena alone; the pointers are only addresses of it.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps `bytes` of buffers (a multiple of the page size) and the block of zeros.
    ///
    /// # Errors
    /// `Internal` when the kernel has no memory to map.
    pub fn new(bytes: usize, huge_pages: HugePages) -> Result<Self> {
        debug_assert!(bytes.is_multiple_of(limits::BLOCK_SIZE_MIN as usize));
        let wanted = bytes + ZERO_BLOCK_BYTES;
        let map = |bytes: usize, flags: MapFlags| {
            let bytes = NonZeroUsize::new(bytes).unwrap_or(NonZeroUsize::MIN);
            // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
            unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
                .map(NonNull::cast::<u8>)
        };
        if huge_pages == HugePages::Pool {
            let mapped = wanted.next_multiple_of(HUGE_PAGE);
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB | MapFlags::MAP_POPULATE;
            if let Ok(mapping) = map(mapped, flags) {
                return Ok(Arena { base: mapping, mapping, mapped, bytes, huge: true });
            }
        }
        // A transparent huge page needs an aligned range, and a transfer over few large pages has few memory
        // segments: on a virtio disk that was worth a factor of two (perf-notes.md, "Huge pages").
        let mapped = wanted + HUGE_PAGE;
        let mapping = map(mapped, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE).map_err(|errno| {
            Error::new(ErrorKind::Internal, format!("no memory for {wanted} bytes of buffers: {errno}"))
                .during(Operation::Register)
                .hint("lower --memory-limit, --queue-depth or --block-size")
        })?;
        let skip = mapping.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: skip is less than HUGE_PAGE, by which the mapping is longer than what is used of it.
        let base = unsafe { mapping.add(skip) };
        let arena = Arena { base, mapping, mapped, bytes, huge: false };
        if huge_pages != HugePages::Off && bytes >= HUGE_PAGE {
            // Advice only: a kernel without transparent huge pages gives ordinary ones. Whole huge pages
            // only, so that a small arena does not take more memory than it has buffers.
            let whole = bytes / HUGE_PAGE * HUGE_PAGE;
            // SAFETY: the range lies inside the mapping just made.
            let _ = unsafe { madvise(arena.base.cast(), whole, MmapAdvise::MADV_HUGEPAGE) };
        }
        Ok(arena)
    }

    /// Whether the mapping is of the hugetlb pool.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// Address of an offset into the buffers.
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes);
        // SAFETY: the offset lies inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// An offset into the buffers as a lane is given it.
    pub(crate) fn memory(&self, offset: usize) -> Memory {
        Memory { address: self.at(offset), buffer: BUFFERS }
    }

    /// The block of zeros; nothing ever writes to it.
    pub(crate) fn zeros(&self) -> Memory {
        Memory { address: self.at(self.bytes), buffer: ZEROS }
    }

    /// `length` bytes of the buffers from `offset` on.
    ///
    /// # Safety
    /// The kernel must not be writing to them: their read has completed.
    pub unsafe fn slice(&self, offset: usize, length: usize) -> &[u8] {
        assert!(offset <= self.bytes && length <= self.bytes - offset);
        // SAFETY: inside the mapping, initialised (mappings are zeroed), and not written to meanwhile, by contract.
        unsafe { std::slice::from_raw_parts(self.at(offset), length) }
    }

    /// Offset of a range of the buffers that a lane was given.
    ///
    /// # Panics
    /// When the range does not lie in the buffers as a whole.
    pub(crate) fn offset_of(&self, memory: Memory, length: usize) -> usize {
        let at = (memory.address as usize).wrapping_sub(self.base.as_ptr() as usize);
        let inside = memory.buffer == BUFFERS && at <= self.bytes && length <= self.bytes - at;
        assert!(inside, "the range does not lie in the worker's buffers");
        at
    }

    /// `length` bytes of the buffers from `offset` on, to look at and to change.
    ///
    /// # Safety
    /// The kernel must not be using them.
    pub(crate) unsafe fn slice_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        assert!(offset <= self.bytes && length <= self.bytes - offset);
        // SAFETY: inside the mapping, initialised (mappings are zeroed), borrowed from the arena as a whole,
        // and not in use by the kernel, by contract.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset), length) }
    }

    /// Two ranges of the buffers at once, each given as offset and length.
    ///
    /// # Safety
    /// The kernel must not be using them.
    ///
    /// # Panics
    /// When they overlap.
    pub(crate) unsafe fn two_slices_mut(
        &mut self,
        one: (usize, usize),
        other: (usize, usize),
    ) -> (&mut [u8], &mut [u8]) {
        for (offset, length) in [one, other] {
            assert!(offset <= self.bytes && length <= self.bytes - offset);
        }
        assert!(one.0 + one.1 <= other.0 || other.0 + other.1 <= one.0, "the ranges overlap");
        // SAFETY: as for `slice_mut`; the two do not overlap, which was just checked.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.at(one.0), one.1),
                std::slice::from_raw_parts_mut(self.at(other.0), other.1),
            )
        }
    }

    /// Fills a range with zeros: what a stream's last block is padded with.
    ///
    /// # Safety
    /// The kernel must not be using the range.
    pub unsafe fn clear(&mut self, offset: usize, length: usize) {
        assert!(offset <= self.bytes && length <= self.bytes - offset);
        // SAFETY: inside the mapping, and not in use, by contract.
        unsafe { std::ptr::write_bytes(self.at(offset), 0, length) }
    }

    /// What the kernel registers: the buffers, and the block of zeros.
    pub fn iovecs(&self) -> [libc::iovec; 2] {
        [
            libc::iovec { iov_base: self.at(0).cast(), iov_len: self.bytes },
            libc::iovec { iov_base: self.zeros().address.cast(), iov_len: ZERO_BLOCK_BYTES },
        ]
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no operation uses it any more: a worker that could not drain its
        // ring leaks the arena instead.
        let _ = unsafe { munmap(self.mapping.cast(), self.mapped) };
    }
}
