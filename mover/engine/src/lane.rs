//! The contract between a worker and an endpoint.
//!
//! An endpoint opens one [`Lane`] per worker. The worker begins operations on it; the lane turns each into
//! one or several submissions on the worker's own ring (or none, when it ends elsewhere), sees their
//! completions, and says when the operation as a whole has ended. Lanes of different workers share nothing;
//! those of one worker may share a state ([`LaneSetup::worker_state`]).
//!
//! A lane may also push submissions that belong to no operation, from scratch memory of its own: they are
//! waited for as all others are, and after the last operation [`Lane::finish`] lets it push the rest.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use mover_model::{Error, ErrorKind, Extent, Operation, Result};

use crate::arena::{Arena, Memory, Scratch};
use crate::control::Control;
use crate::ring::{FileId, Ring, Submission, Token};
use crate::settings::Settings;
use crate::stats::Counters;
use crate::worker::SharedTask;

/// Which of an endpoint's two ways to its bytes a lane takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// O_DIRECT: offsets and lengths keep to the endpoint's alignment.
    Direct,
    /// Through the page cache, at any offset. Never at the same time as a direct lane on the same target: a
    /// dirty page would carry old bytes over direct writes to its neighbours.
    Buffered,
}

/// Whether extents may come in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Any worker, any order.
    Any,
    /// One worker, rising offsets, every byte: a pipe.
    Sequential,
}

/// The rules of O_DIRECT for one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Offsets and lengths are multiples of this power of two, in bytes.
    pub offset: u32,
    /// Buffer addresses are multiples of this power of two, in bytes.
    pub memory: u32,
}

impl Alignment {
    /// No rule: the page cache takes anything.
    pub const NONE: Alignment = Alignment { offset: 1, memory: 1 };

    /// Whether an operation keeps to the rules: the one place where they are checked.
    pub fn allows(&self, offset: u64, length: u64, address: *const u8) -> bool {
        let granule = u64::from(self.offset);
        offset.is_multiple_of(granule)
            && length.is_multiple_of(granule)
            && (address as usize).is_multiple_of(self.memory as usize)
    }
}

/// Where data comes from.
pub trait Source: Send + Sync {
    /// Its name in messages.
    fn label(&self) -> String;
    /// Bytes; `None` for a stream.
    fn size(&self) -> Option<u64>;
    /// Whether it is read in order.
    fn order(&self) -> Order {
        Order::Any
    }
    /// The way to its bytes that was found best when it was opened.
    fn access(&self) -> Access;
    /// The rules of that way.
    fn alignment(&self, access: Access) -> Alignment;
    /// Bytes of registered memory beside the buffers that its lane in each worker asks for, see
    /// [`LaneSetup::scratch`]. Where lanes share a state, one of the endpoints answers for all.
    fn scratch_bytes(&self, _settings: &Settings) -> usize {
        0
    }
    /// What it holds, in order, from 0 to its size without gaps.
    ///
    /// # Errors
    /// When it cannot be asked; later ones come out of the iterator.
    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>>;
    /// A lane for the calling worker.
    ///
    /// # Errors
    /// When the endpoint cannot be reached by this worker.
    fn lane(&self, access: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>>;
}

/// Where data goes.
pub trait Sink: Send + Sync {
    /// Its name in messages.
    fn label(&self) -> String;
    /// Bytes it can hold without growing; `None` when it grows.
    fn capacity(&self) -> Option<u64>;
    /// Whether it is written in order.
    fn order(&self) -> Order {
        Order::Any
    }
    /// The way to its bytes that was found best when it was opened.
    fn access(&self) -> Access;
    /// The rules of that way.
    fn alignment(&self, access: Access) -> Alignment;
    /// As for a source: see [`Source::scratch_bytes`].
    fn scratch_bytes(&self, _settings: &Settings) -> usize {
        0
    }
    /// Whether everything that is not written reads as zeros: true for a file made by this run.
    fn reads_zero(&self) -> bool;
    /// A lane for the calling worker.
    ///
    /// # Errors
    /// When the endpoint cannot be reached by this worker.
    fn lane(&self, access: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>>;
    /// Makes everything whose write has completed durable.
    ///
    /// # Errors
    /// The device's error, after which nothing written before may be trusted.
    fn flush(&self) -> Result<()>;
    /// Sets the final size, where that is the sink's to set.
    ///
    /// # Errors
    /// When it cannot be set.
    fn finish(&self, size: u64) -> Result<()>;
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Fill the buffer from the endpoint.
    Read,
    /// One of a sink's.
    Sink(SinkOperation),
}

/// What a sink is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkOperation {
    /// Write the buffer.
    Write,
    /// Make the range read as zeros, deallocated where that is possible.
    Hole,
    /// Make the range read as zeros and keep it allocated.
    Zero,
}

/// An operation that a worker begins on a lane.
#[derive(Debug, Clone, Copy)]
pub struct LaneOperation {
    /// What to do.
    pub kind: OperationKind,
    /// The worker's slot.
    pub slot: u16,
    /// The piece of the slot's request.
    pub piece: u16,
    /// Byte offset on the endpoint.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// First byte in the slot's buffer; meaningless for holes and zeros.
    pub memory: Memory,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// The operation's slot.
    pub slot: u16,
    /// The operation's piece.
    pub piece: u16,
    /// Bytes done: all of them, or for a read fewer at the endpoint's end.
    pub result: std::result::Result<u64, Fault>,
}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The kernel's error number.
    pub errno: i32,
    /// Where on the endpoint.
    pub offset: u64,
}

/// One worker's connection to one endpoint; it never leaves the worker's thread.
pub trait Lane {
    /// Begins an operation. It ends with exactly one [`Io::finish`], here or in a later [`Lane::advance`].
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>);

    /// One of the lane's submissions has completed; `aux` is the number it was pushed with, `result` bytes
    /// or a negated errno.
    fn advance(&mut self, aux: u32, result: i32, io: &mut Io<'_>);

    /// The task has failed, and a request that was read will not be written. A lane whose operations wait for
    /// the ones before them ends those that wait: what they wait for may never be begun.
    fn abandon(&mut self, _io: &mut Io<'_>) {}

    /// The task has failed or the run is stopped. A lane whose submissions may wait for ever (a pipe whose
    /// other end is silent) cancels them; files end by themselves.
    fn cancel(&mut self, _io: &mut Io<'_>) {}

    /// The worker has no more work and no operation is open. A lane that keeps something back pushes it now;
    /// the worker waits, calling [`Lane::advance`], until nothing is in flight. Submissions from before may
    /// still be in flight. Called once, but never when the run was cut short or the lane's task has failed.
    fn finish(&mut self, _io: &mut Io<'_>) {}

    /// Whether a lane that was told to finish waits for nothing outside the ring. One that says no is asked
    /// again a little later, until the run is stopped or the task fails.
    fn is_idle(&self) -> bool {
        true
    }
}

/// What a lane may use while it handles an operation.
pub struct Io<'a> {
    ring: &'a mut Ring,
    finished: &'a mut VecDeque<Finished>,
    fatal: &'a mut Option<Error>,
    control: &'a Control,
    tasks: &'a [SharedTask<'a>],
    arena: &'a mut Arena,
    lane: u16,
}

impl<'a> Io<'a> {
    pub(crate) fn new(
        ring: &'a mut Ring,
        finished: &'a mut VecDeque<Finished>,
        fatal: &'a mut Option<Error>,
        control: &'a Control,
        tasks: &'a [SharedTask<'a>],
        arena: &'a mut Arena,
        lane: u16,
    ) -> Self {
        Io { ring, finished, fatal, control, tasks, arena, lane }
    }

    /// The task that the lane belongs to: each has two lanes.
    fn task(&self) -> usize {
        usize::from(self.lane) / 2
    }

    /// Queues a submission under the lane's number `aux`.
    pub fn push(&mut self, aux: u32, submission: Submission) {
        let submission = Submission { token: Token { lane: self.lane, aux }, ..submission };
        if let Err(error) = self.ring.push(submission) {
            // The ring is broken: the worker ends the run and frees nothing.
            self.fatal.get_or_insert(error);
        }
    }

    /// Cancels what was pushed under the number `aux`; it completes with ECANCELED, or as it would have. The
    /// cancellation itself completes under `own`.
    pub fn cancel(&mut self, aux: u32, own: u32) {
        let target = Token { lane: self.lane, aux };
        if let Err(error) = self.ring.cancel(target, Token { lane: self.lane, aux: own }) {
            self.fatal.get_or_insert(error);
        }
    }

    /// Ends an operation.
    pub fn finish(&mut self, operation: &LaneOperation, result: std::result::Result<u64, Fault>) {
        self.finished.push_back(Finished { slot: operation.slot, piece: operation.piece, result });
    }

    /// Ends a read with a buffer full of zeros.
    pub fn finish_with_zeros(&mut self, operation: &LaneOperation) {
        self.bytes(operation).fill(0);
        self.finish(operation, Ok(operation.length));
    }

    /// Ends an operation of a task that [`Io::fail`] or [`Io::fail_task`] was told of before.
    pub fn finish_failed(&mut self, operation: &LaneOperation) {
        self.finish(operation, Err(Fault { errno: libc::ECANCELED, offset: operation.offset }));
    }

    /// Fails the lane's task with an error of the lane's own words. The first error of a task is the one
    /// that is told. Operations that are open still have to be ended: see [`Io::finish_failed`].
    pub fn fail(&mut self, error: Error) {
        self.fail_task(self.task(), error);
    }

    /// Fails another task of the run, [`LaneSetup::task`] of one of its lanes: what lanes share has failed.
    pub fn fail_task(&mut self, task: usize, error: Error) {
        self.tasks[task].fail(error);
    }

    /// The bytes of a read or a write in the slot's buffer: to fill, to look at, or to change in place.
    ///
    /// Only between the operation's begin and its finish, and not while a submission uses them.
    ///
    /// # Panics
    /// When the operation has no bytes: a hole, or zeros.
    pub fn bytes(&mut self, operation: &LaneOperation) -> &mut [u8] {
        let length = operation.length as usize;
        let offset = self.arena.offset_of(operation.memory, length);
        // SAFETY: the slot's buffer is the lane's from begin to finish, and the lane has no submission that
        // uses it, by contract.
        unsafe { self.arena.slice_mut(offset, length) }
    }

    /// The bytes of a scratch memory. Not while a submission uses them.
    pub fn scratch(&mut self, scratch: &Scratch) -> &mut [u8] {
        let (offset, length) = scratch.range();
        // SAFETY: nothing but lanes uses the reserve, and no submission of theirs does now, by contract.
        unsafe { self.arena.slice_mut(offset, length) }
    }

    /// [`Io::bytes`] and [`Io::scratch`] at once, to bring one into the other.
    ///
    /// # Panics
    /// As for [`Io::bytes`].
    pub fn bytes_and_scratch(
        &mut self,
        operation: &LaneOperation,
        scratch: &Scratch,
    ) -> (&mut [u8], &mut [u8]) {
        let length = operation.length as usize;
        let offset = self.arena.offset_of(operation.memory, length);
        // SAFETY: as for the two of them alone.
        unsafe { self.arena.two_slices_mut((offset, length), scratch.range()) }
    }

    /// Two scratch memories, or parts of one, at once.
    ///
    /// # Panics
    /// When they overlap.
    pub fn two_scratches(&mut self, one: &Scratch, other: &Scratch) -> (&mut [u8], &mut [u8]) {
        // SAFETY: as for each of them alone.
        unsafe { self.arena.two_slices_mut(one.range(), other.range()) }
    }

    /// The place `at` bytes into a scratch memory, to push a submission with.
    ///
    /// # Panics
    /// When it lies behind the scratch memory's end.
    pub fn scratch_memory(&self, scratch: &Scratch, at: usize) -> Memory {
        let (offset, length) = scratch.range();
        assert!(at <= length, "behind the end of the scratch memory");
        self.arena.memory(offset + at)
    }

    /// Puts another file in a place of the ring's table. No submission on the place may be in flight.
    ///
    /// The caller keeps the descriptor open until what was pushed on it has completed, and until the place
    /// is given another file or is cleared, or the run has ended (lanes are dropped after the ring).
    /// `polled` says that it takes polled I/O.
    pub fn set_file(&mut self, id: FileId, fd: BorrowedFd<'_>, polled: bool) {
        if let Err(error) = self.ring.set_file(id, Some(fd), polled) {
            self.fatal.get_or_insert(error);
        }
    }

    /// Takes the file out of a place, so that the kernel lets it go. No submission on the place may be in
    /// flight; what is pushed on it later ends in EBADF.
    pub fn clear_file(&mut self, id: FileId) {
        if let Err(error) = self.ring.set_file(id, None, false) {
            self.fatal.get_or_insert(error);
        }
    }

    /// Counts payload that the lane has copied in user space.
    pub fn count_copied(&mut self, bytes: u64) {
        Counters::add(&self.counters().copied_bytes, bytes);
    }

    /// The counters of the lane's task.
    pub fn counters(&self) -> &Counters {
        self.tasks[self.task()].counters
    }

    /// A block of zeros of [`crate::arena::ZERO_BLOCK_BYTES`] bytes.
    pub fn zeros(&self) -> Memory {
        self.arena.zeros()
    }

    /// Where downgrades are recorded.
    pub fn control(&self) -> &Control {
        self.control
    }
}

/// What a lane may use while it is made.
pub struct LaneSetup<'a> {
    pub(crate) ring: &'a mut Ring,
    pub(crate) settings: &'a Settings,
    pub(crate) worker: usize,
    pub(crate) task: usize,
    pub(crate) reserve: &'a mut Reserve,
    pub(crate) states: &'a mut States,
}

/// Scratch memory of a worker that no lane was given yet: offsets in the arena.
pub(crate) struct Reserve {
    pub next: usize,
    pub end: usize,
}

/// Bytes at whose multiples scratch memory begins: what O_DIRECT asks of memory anywhere.
pub(crate) const SCRATCH_GRANULE: usize = 4096;

/// What the lanes of one worker share, by key and type. The lanes keep it alive.
pub(crate) type States = Vec<(usize, TypeId, Rc<dyn Any>)>;

impl LaneSetup<'_> {
    /// The run's settings.
    pub fn settings(&self) -> &Settings {
        self.settings
    }

    /// Number of the worker, from 0.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Number of the task that the lane is made for, from 0: see [`Io::fail_task`].
    pub fn task(&self) -> usize {
        self.task
    }

    /// A part of the memory that [`Source::scratch_bytes`] and [`Sink::scratch_bytes`] asked for. It begins
    /// at a multiple of 4096 and takes whole pages of the reserve. It is registered as the buffers are.
    ///
    /// # Errors
    /// `Internal` when less is left.
    pub fn scratch(&mut self, bytes: usize) -> Result<Scratch> {
        let left = self.reserve.end - self.reserve.next;
        if bytes > left {
            let message =
                format!("{bytes} bytes of scratch memory asked for, {left} are left of the reserve");
            return Err(Error::new(ErrorKind::Internal, message).during(Operation::Setup));
        }
        let scratch = Scratch::new(self.reserve.next, bytes);
        // The reserve is of whole pages, so the next multiple lies in it too.
        self.reserve.next += bytes.next_multiple_of(SCRATCH_GRANULE);
        Ok(scratch)
    }

    /// What the lanes of this worker share under a key: the first that asks makes it.
    ///
    /// # Errors
    /// The maker's.
    pub fn worker_state<T: 'static>(
        &mut self,
        key: usize,
        make: impl FnOnce(&mut LaneSetup<'_>) -> Result<T>,
    ) -> Result<Rc<RefCell<T>>> {
        let kind = TypeId::of::<T>();
        let known = self.states.iter().find(|state| state.0 == key && state.1 == kind);
        if let Some(state) = known.and_then(|state| state.2.clone().downcast::<RefCell<T>>().ok()) {
            return Ok(state);
        }
        let state = Rc::new(RefCell::new(make(self)?));
        self.states.push((key, kind, state.clone()));
        Ok(state)
    }

    /// A place in the ring's table for files that come later: see [`Io::set_file`].
    pub fn reserve_file(&mut self) -> FileId {
        self.ring.reserve_file()
    }

    /// Adds a file to the worker's ring; the endpoint keeps it open as long as the run lasts. `polled` says
    /// that it takes polled I/O.
    pub fn add_file(&mut self, fd: BorrowedFd<'_>, polled: bool) -> FileId {
        self.ring.add_file(fd, polled)
    }

    /// Requests that the worker keeps in flight.
    pub fn queue_depth(&self) -> u16 {
        self.settings.queue_depth
    }
}
