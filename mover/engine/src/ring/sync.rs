//! The synchronous backend: an operation is performed when it is pushed, and its completion waits in a queue.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mover_model::limits;
use nix::poll::{PollFd, PollFlags, poll};

use super::{AT_POSITION, Completed, FileEntry, FileId, NO_FILE, Submission, Verb};

/// System calls with the contract of a ring.
pub struct SyncRing {
    files: Vec<FileEntry>,
    completed: VecDeque<Completed>,
    stop: Arc<AtomicBool>,
}

impl SyncRing {
    pub(super) fn new(stop: Arc<AtomicBool>) -> Self {
        SyncRing { files: Vec::new(), completed: VecDeque::new(), stop }
    }

    /// Waits until a pipe can be read or written; false when the run is stopped before.
    fn ready(&self, fd: RawFd, verb: Verb) -> bool {
        // SAFETY: the endpoint keeps the descriptor open as long as it is in the table.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let events = if verb == Verb::Read { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        loop {
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            match poll(&mut [PollFd::new(fd, events)], limits::WAIT_MS as u16) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                _ => return true,
            }
        }
    }

    pub(super) fn add_file(&mut self, entry: FileEntry) -> FileId {
        self.files.push(entry);
        FileId(self.files.len() as u32 - 1)
    }

    pub(super) fn set_file(&mut self, id: FileId, entry: FileEntry) {
        self.files[id.0 as usize] = entry;
    }

    pub(super) fn push(&mut self, s: Submission) {
        let fd = self.files[s.file.0 as usize].fd;
        let length = s.length as usize;
        let address = s.memory.address().cast();
        if s.offset == AT_POSITION && fd != NO_FILE && !self.ready(fd, s.verb) {
            self.completed.push_back(Completed { token: s.token, result: -libc::ECANCELED });
            return;
        }
        // SAFETY: the address range lies in the worker's arena and belongs to this operation until it
        // completes, which is when the call returns; the endpoint keeps the descriptor open, and
        // where there is none the kernel says so.
        let result = unsafe {
            match s.verb {
                Verb::Read if s.offset == AT_POSITION => libc::read(fd, address, length),
                Verb::Write if s.offset == AT_POSITION => libc::write(fd, address, length),
                Verb::Read => libc::pread64(fd, address, length, s.offset as i64),
                Verb::Write => libc::pwrite64(fd, address, length, s.offset as i64),
                Verb::Fallocate(mode) => {
                    libc::fallocate64(fd, mode, s.offset as i64, s.length as i64) as isize
                }
            }
        };
        let result = if result < 0 { -nix::errno::Errno::last_raw() } else { result as i32 };
        self.completed.push_back(Completed { token: s.token, result });
    }

    pub(super) fn pop(&mut self) -> Option<Completed> {
        self.completed.pop_front()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.completed.len()
    }
}
