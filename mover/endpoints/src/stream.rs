//! `-` and named pipes: bytes in order, one operation at a time.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mover_engine::arena::ZERO_BLOCK_BYTES;
use mover_engine::lane::{Fault, LaneOperation, OperationKind, SinkOperation};
use mover_engine::ring::{AT_POSITION, FileId, Submission, Token, Verb};
use mover_engine::{Access, Alignment, Io, Lane, LaneSetup, Order, Sink, Source};
use mover_model::{Extent, Result};

/// A lane's numbers of what it pushes: it has one transfer in flight, and may ask for its end.
const TRANSFER: u32 = 0;
const CANCELLATION: u32 = 1;

/// A pipe, terminal or socket that is read to its end.
pub struct StreamSource {
    file: File,
    label: String,
}

impl StreamSource {
    /// From an open file.
    pub fn new(file: File, label: String) -> Self {
        StreamSource { file, label }
    }
}

impl Source for StreamSource {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn size(&self) -> Option<u64> {
        None
    }

    fn order(&self) -> Order {
        Order::Sequential
    }

    fn access(&self) -> Access {
        Access::Buffered
    }

    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }

    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        // As far as any disk can go; the worker ends it where the stream ends.
        Ok(Box::new(std::iter::once(Ok(Extent::data(0, i64::MAX as u64)))))
    }

    fn lane(&self, _: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        let file = setup.add_file(self.file.as_fd(), false);
        Ok(Box::new(ReadLane { file, waiting: VecDeque::new(), done: 0, ended: false }))
    }
}

/// Reads are begun in order, and each waits for the one before.
struct ReadLane {
    file: FileId,
    waiting: VecDeque<LaneOperation>,
    /// Bytes of the first waiting operation that have arrived.
    done: u64,
    ended: bool,
}

impl ReadLane {
    fn push(&self, operation: &LaneOperation, io: &mut Io<'_>) {
        io.push(TRANSFER, submission(Verb::Read, self.file, operation, self.done));
    }

    fn end_first(&mut self, result: std::result::Result<u64, Fault>, io: &mut Io<'_>) {
        if let Some(operation) = self.waiting.pop_front() {
            io.finish(&operation, result);
        }
        self.done = 0;
        if self.ended {
            // Those that waited end as the one before them: at the end of the stream, or with its error.
            while let Some(operation) = self.waiting.pop_front() {
                io.finish(&operation, result.map(|_| 0));
            }
        } else if let Some(next) = self.waiting.front() {
            self.push(next, io);
        }
    }
}

impl Lane for ReadLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        if self.ended {
            return io.finish(&operation, Ok(0));
        }
        self.waiting.push_back(operation);
        if self.waiting.len() == 1 {
            self.push(&operation, io);
        }
    }

    fn cancel(&mut self, io: &mut Io<'_>) {
        if !self.waiting.is_empty() {
            io.cancel(TRANSFER, CANCELLATION);
        }
    }

    fn advance(&mut self, aux: u32, result: i32, io: &mut Io<'_>) {
        if aux == CANCELLATION {
            return;
        }
        let Some(first) = self.waiting.front().copied() else { return };
        match result {
            0 => {
                self.ended = true;
                let done = self.done;
                self.end_first(Ok(done), io);
            }
            n if n > 0 => {
                self.done += n as u64;
                if self.done == first.length {
                    self.end_first(Ok(first.length), io);
                } else {
                    self.push(&first, io);
                }
            }
            n if n == -libc::EINTR || n == -libc::EAGAIN => self.push(&first, io),
            n => {
                self.ended = true;
                let fault = Fault { errno: -n, offset: first.offset + self.done };
                self.end_first(Err(fault), io);
            }
        }
    }
}

/// A pipe, terminal or socket that is written in order.
pub struct StreamSink {
    file: File,
    label: String,
    /// Bytes written: a later pass over the same sink goes on there.
    position: Arc<AtomicU64>,
}

impl StreamSink {
    /// From an open file.
    pub fn new(file: File, label: String) -> Self {
        StreamSink { file, label, position: Arc::default() }
    }
}

impl Sink for StreamSink {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn capacity(&self) -> Option<u64> {
        None
    }

    fn order(&self) -> Order {
        Order::Sequential
    }

    fn access(&self) -> Access {
        Access::Buffered
    }

    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }

    fn reads_zero(&self) -> bool {
        false
    }

    fn lane(&self, _: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        let file = setup.add_file(self.file.as_fd(), false);
        let position = self.position.load(Ordering::Acquire);
        let written = self.position.clone();
        Ok(Box::new(WriteLane {
            file,
            position,
            written,
            active: None,
            waiting: BTreeMap::new(),
            failed: None,
        }))
    }

    fn flush(&self) -> Result<()> {
        // Standard output may be a file: then the bytes must be durable as anywhere else. A pipe says EINVAL.
        match nix::unistd::fsync(&self.file) {
            Ok(())
            | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::EROFS | nix::errno::Errno::ENOTSUP) => {
                Ok(())
            }
            Err(errno) => {
                Err(mover_model::Error::os(mover_model::Operation::Flush, &self.label, errno as i32))
            }
        }
    }

    fn finish(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Writes wait until everything before them has been written; zeros are written as zeros.
struct WriteLane {
    file: FileId,
    /// Bytes written so far, here and where the sink keeps it.
    position: u64,
    written: Arc<AtomicU64>,
    active: Option<LaneOperation>,
    waiting: BTreeMap<u64, LaneOperation>,
    failed: Option<i32>,
}

impl WriteLane {
    fn push(&self, operation: &LaneOperation, io: &mut Io<'_>) {
        let done = self.position - operation.offset;
        let submission = if operation.kind == OperationKind::Sink(SinkOperation::Write) {
            submission(Verb::Write, self.file, operation, done)
        } else {
            let length = (operation.length - done).min(ZERO_BLOCK_BYTES as u64);
            Submission { memory: io.zeros(), length, ..submission(Verb::Write, self.file, operation, 0) }
        };
        io.push(TRANSFER, submission);
    }

    fn next(&mut self, io: &mut Io<'_>) {
        if let Some(errno) = self.failed {
            let waiting = std::mem::take(&mut self.waiting);
            for operation in waiting.into_values() {
                io.finish(&operation, Err(Fault { errno, offset: self.position }));
            }
        } else if self.active.is_none()
            && let Some(operation) = self.waiting.remove(&self.position)
        {
            self.active = Some(operation);
            self.push(&operation, io);
        }
    }
}

impl Lane for WriteLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        self.waiting.insert(operation.offset, operation);
        self.next(io);
    }

    fn cancel(&mut self, io: &mut Io<'_>) {
        if self.active.is_some() {
            io.cancel(TRANSFER, CANCELLATION);
        }
    }

    fn advance(&mut self, aux: u32, result: i32, io: &mut Io<'_>) {
        if aux == CANCELLATION {
            return;
        }
        let Some(operation) = self.active else { return };
        match result {
            n if n > 0 => {
                self.position += n as u64;
                self.written.store(self.position, Ordering::Release);
                if self.position < operation.offset + operation.length {
                    return self.push(&operation, io);
                }
                self.active = None;
                io.finish(&operation, Ok(operation.length));
            }
            n if n == -libc::EINTR || n == -libc::EAGAIN => return self.push(&operation, io),
            n => {
                let errno = if n == 0 { libc::EIO } else { -n };
                self.failed = Some(errno);
                self.active = None;
                io.finish(&operation, Err(Fault { errno, offset: self.position }));
            }
        }
        self.next(io);
    }

    fn abandon(&mut self, io: &mut Io<'_>) {
        self.failed.get_or_insert(libc::ECANCELED);
        self.next(io);
    }
}

fn submission(verb: Verb, file: FileId, operation: &LaneOperation, done: u64) -> Submission {
    Submission {
        verb,
        file,
        memory: operation.memory.skip(done),
        length: operation.length - done,
        offset: AT_POSITION,
        token: Token { lane: 0, aux: 0 },
    }
}
