//! The contract between a worker and an endpoint.
//!
//! An endpoint opens one [`Lane`] per worker. The worker begins operations on it; the lane turns each into
//! one or several submissions on the worker's own ring (or none, when it ends elsewhere), sees their
//! completions, and says when the operation as a whole has ended. Lanes of different workers share nothing.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use mover_model::{Error, Extent, Result};

use crate::arena::Memory;
use crate::control::Control;
use crate::ring::{FileId, Ring, Submission, Token};

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
}

/// What a lane may use while it handles an operation.
pub struct Io<'a> {
    ring: &'a mut Ring,
    finished: &'a mut VecDeque<Finished>,
    fatal: &'a mut Option<Error>,
    control: &'a Control,
    lane: u16,
    zeros: Memory,
}

impl<'a> Io<'a> {
    pub(crate) fn new(
        ring: &'a mut Ring,
        finished: &'a mut VecDeque<Finished>,
        fatal: &'a mut Option<Error>,
        control: &'a Control,
        lane: u16,
        zeros: Memory,
    ) -> Self {
        Io { ring, finished, fatal, control, lane, zeros }
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
        // SAFETY: the operation's range lies in the slot's buffer, and no submission uses it: this read is
        // the only operation of the slot.
        unsafe { std::ptr::write_bytes(operation.memory.address(), 0, operation.length as usize) };
        self.finish(operation, Ok(operation.length));
    }

    /// A block of zeros of [`crate::arena::ZERO_BLOCK_BYTES`] bytes.
    pub fn zeros(&self) -> Memory {
        self.zeros
    }

    /// Where downgrades are recorded.
    pub fn control(&self) -> &Control {
        self.control
    }
}

/// What a lane may use while it is made.
pub struct LaneSetup<'a> {
    pub(crate) ring: &'a mut Ring,
    pub(crate) queue_depth: u16,
}

impl LaneSetup<'_> {
    /// Adds a file to the worker's ring; the endpoint keeps it open as long as the run lasts. `polled` says
    /// that it takes polled I/O.
    pub fn add_file(&mut self, fd: BorrowedFd<'_>, polled: bool) -> FileId {
        self.ring.add_file(fd, polled)
    }

    /// Requests that the worker keeps in flight.
    pub fn queue_depth(&self) -> u16 {
        self.queue_depth
    }
}
