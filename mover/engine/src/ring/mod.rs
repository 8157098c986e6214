//! How operations reach the kernel: io_uring, or plain system calls with the same contract.
//!
//! A ring belongs to one worker thread. An operation is pushed as a [`Submission`] and comes back as a
//! [`Completed`] with the same token; between the two its buffer belongs to the kernel.

mod sync;
mod uring;

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use mover_model::Result;

pub use uring::{Flavour, Role};

use crate::arena::{Arena, Memory};
use crate::control::Control;
use crate::settings::{Backend, Settings};

/// Ties a completion to what it belongs to: a slot and piece of the worker, a lane, and a number of the lane's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The worker's lane.
    pub lane: u16,
    /// The lane's own number of the operation.
    pub aux: u32,
}

impl Token {
    fn pack(self) -> u64 {
        u64::from(self.lane) << 32 | u64::from(self.aux)
    }

    fn unpack(raw: u64) -> Self {
        Token { lane: (raw >> 32) as u16, aux: raw as u32 }
    }
}

/// A file in the ring's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(u32);

/// Stands in the table where no file is: the kernel answers EBADF to operations on it.
const NO_FILE: RawFd = -1;

struct FileEntry {
    fd: RawFd,
    /// Whether it accepts polled I/O; operations on others go to the plain ring.
    polled: bool,
}

/// What the kernel is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Read into the buffer.
    Read,
    /// Write from the buffer.
    Write,
    /// fallocate(2) with this mode.
    Fallocate(i32),
}

/// Offset of an operation on a pipe: at the file description's own position.
pub const AT_POSITION: u64 = u64::MAX;

/// One operation for the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Submission {
    /// What to do.
    pub verb: Verb,
    /// On which file.
    pub file: FileId,
    /// Where in memory.
    pub memory: Memory,
    /// Bytes; at most 2 GiB - 4 KiB for reads and writes.
    pub length: u64,
    /// Where in the file, or [`AT_POSITION`].
    pub offset: u64,
    /// Comes back with the completion.
    pub token: Token,
}

/// An operation the kernel has finished.
#[derive(Debug, Clone, Copy)]
pub struct Completed {
    /// The submission's.
    pub token: Token,
    /// Bytes, or a negated errno.
    pub result: i32,
}

/// One worker's way to the kernel.
pub enum Ring {
    /// io_uring.
    Uring(Box<uring::UringPair>),
    /// System calls, made when an operation is pushed.
    Sync(sync::SyncRing),
}

impl Ring {
    /// Sets up the ring that the settings ask for, on the worker's own thread. Downgrades are recorded.
    ///
    /// # Errors
    /// When io_uring was chosen and cannot be set up after all.
    pub fn new(settings: &Settings, control: &Control) -> Result<Self> {
        match settings.backend {
            Backend::Uring => Ok(Ring::Uring(Box::new(uring::UringPair::new(settings, control)?))),
            Backend::Sync => Ok(Ring::Sync(sync::SyncRing::new(control.stop_flag()))),
        }
    }

    /// Registers the arena's buffers; where that is refused, plain reads and writes are used, and the
    /// downgrade is recorded.
    pub fn register_buffers(&mut self, arena: &Arena, control: &Control) {
        if let Ring::Uring(ring) = self {
            ring.register_buffers(arena, control);
        }
    }

    /// Adds a file; it must stay open as long as the ring, or until its place is given another.
    pub fn add_file(&mut self, fd: BorrowedFd<'_>, polled: bool) -> FileId {
        let entry = FileEntry { fd: fd.as_raw_fd(), polled };
        match self {
            Ring::Uring(ring) => ring.add_file(entry),
            Ring::Sync(ring) => ring.add_file(entry),
        }
    }

    /// Adds a place for a file that comes later: see `Ring::set_file`.
    pub fn reserve_file(&mut self) -> FileId {
        let entry = FileEntry { fd: NO_FILE, polled: false };
        match self {
            Ring::Uring(ring) => ring.add_file(entry),
            Ring::Sync(ring) => ring.add_file(entry),
        }
    }

    /// Puts another file in a place, or none. No operation on the place may be in flight: one that is queued
    /// and not yet submitted would go to the new file.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub(crate) fn set_file(&mut self, id: FileId, file: Option<BorrowedFd<'_>>, polled: bool) -> Result<()> {
        let entry = FileEntry { fd: file.map_or(NO_FILE, |fd| fd.as_raw_fd()), polled };
        match self {
            Ring::Uring(ring) => ring.set_file(id, entry),
            Ring::Sync(ring) => {
                ring.set_file(id, entry);
                Ok(())
            }
        }
    }

    /// Registers all added files with the kernel, if there are rings to do so.
    pub fn register_files(&mut self, control: &Control) {
        if let Ring::Uring(ring) = self {
            ring.register_files(control);
        }
    }

    /// Queues an operation. It is in flight from here on.
    ///
    /// # Errors
    /// When the kernel does not take what is queued; nothing queued may be freed then.
    pub(crate) fn push(&mut self, submission: Submission) -> Result<()> {
        match self {
            Ring::Uring(ring) => ring.push(submission),
            Ring::Sync(ring) => {
                ring.push(submission);
                Ok(())
            }
        }
    }

    /// Asks for an operation in flight to end early; `own` is the token of the request itself.
    ///
    /// # Errors
    /// As for [`Ring::push`].
    pub(crate) fn cancel(&mut self, target: Token, own: Token) -> Result<()> {
        match self {
            Ring::Uring(ring) => ring.cancel(target, own),
            // Nothing of it is ever in flight; a pipe is left by the stop flag.
            Ring::Sync(_) => Ok(()),
        }
    }

    /// Submits what is queued and waits for a completion, no longer than `timeout`.
    ///
    /// # Errors
    /// When io_uring_enter(2) fails for good.
    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        match self {
            Ring::Uring(ring) => ring.wait(timeout),
            Ring::Sync(_) => Ok(()),
        }
    }

    /// The next completion that has arrived.
    pub fn pop(&mut self) -> Option<Completed> {
        match self {
            Ring::Uring(ring) => ring.pop(),
            Ring::Sync(ring) => ring.pop(),
        }
    }

    /// Operations pushed and not yet popped.
    pub fn in_flight(&self) -> usize {
        match self {
            Ring::Uring(ring) => ring.in_flight(),
            Ring::Sync(ring) => ring.in_flight(),
        }
    }
}
