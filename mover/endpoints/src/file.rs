//! Regular files and block devices.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use mover_engine::arena::ZERO_BLOCK_BYTES;
use mover_engine::lane::{Fault, LaneOperation, OperationKind, SinkOperation};
use mover_engine::ring::{FileId, Submission, Token, Verb};
use mover_engine::{Access, Alignment, Io, Lane, LaneSetup, Sink, Source};
use mover_model::event::Degradation;
use mover_model::{Error, Extent, Operation, Result, limits};

use crate::extents::SeekExtents;
use crate::facts::{size_of_file, stable_name};

/// What a file was when it was opened: enough to tell later that it is another one, or was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Device number of the filesystem.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// A name that survives a restart, for a block device.
    pub block_device: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Last change of content, nanoseconds since 1970; 0 for a block device, which does not tell.
    pub mtime_ns: i128,
    /// Last change of anything, nanoseconds since 1970; 0 for a block device.
    pub ctime_ns: i128,
}

impl Identity {
    /// Of what a path names now, without keeping it open.
    pub fn of_path(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let file = File::open(path).map_err(|error| Error::io(Operation::Open, &label, &error))?;
        let size = size_of_file(&file, &label)?;
        Identity::of(&file, size).map_err(|error| Error::io(Operation::Stat, &label, &error))
    }

    /// Of an open file, whose size was found to be `size`.
    pub fn of(file: &File, size: u64) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        let regular = meta.is_file();
        let ns = |seconds: i64, ns: i64| {
            if regular { i128::from(seconds) * 1_000_000_000 + i128::from(ns) } else { 0 }
        };
        Ok(Identity {
            device: meta.dev(),
            inode: meta.ino(),
            block_device: meta.file_type().is_block_device().then(|| stable_name(meta.rdev())),
            size,
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// One file, open in both ways.
pub(crate) struct Handles {
    pub label: String,
    pub buffered: File,
    /// With O_DIRECT, and its rules.
    pub direct: Option<(File, Alignment)>,
    pub is_block: bool,
    /// Whether the device below has poll queues.
    pub polled: bool,
    pub size: u64,
}

impl Handles {
    fn access(&self) -> Access {
        if self.direct.is_some() { Access::Direct } else { Access::Buffered }
    }

    fn alignment(&self, access: Access) -> Alignment {
        match (&self.direct, access) {
            (Some((_, rules)), Access::Direct) => *rules,
            _ => Alignment::NONE,
        }
    }

    fn file(&self, access: Access) -> &File {
        match (&self.direct, access) {
            (Some((file, _)), Access::Direct) => file,
            _ => &self.buffered,
        }
    }

    fn lane(&self, access: Access, zeroing: Option<Arc<Zeroing>>, setup: &mut LaneSetup<'_>) -> FileLane {
        let polled = self.polled && access == Access::Direct && self.direct.is_some();
        FileLane {
            file: setup.add_file(self.file(access).as_fd(), polled),
            rules: self.alignment(access),
            zeroing,
            cached_device: self.is_block && access == Access::Buffered,
            claimed_elsewhere: self.direct.is_some(),
            label: self.label.clone(),
            running: Vec::with_capacity(usize::from(setup.queue_depth())),
            free: Vec::with_capacity(usize::from(setup.queue_depth())),
        }
    }
}

/// A regular file or block device that is read.
pub struct FileSource(pub(crate) Handles);

impl FileSource {
    /// What it is now, to be compared with what it was when it was opened.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn identity_now(&self) -> std::io::Result<Identity> {
        let size = if self.0.is_block { self.0.size } else { self.0.buffered.metadata()?.len() };
        Identity::of(&self.0.buffered, size)
    }

    /// Its content through the page cache, for calls outside the engine.
    pub fn file(&self) -> &File {
        &self.0.buffered
    }

    /// Whether it is a block device.
    pub fn is_block(&self) -> bool {
        self.0.is_block
    }
}

impl Source for FileSource {
    fn label(&self) -> String {
        self.0.label.clone()
    }

    fn size(&self) -> Option<u64> {
        Some(self.0.size)
    }

    fn access(&self) -> Access {
        self.0.access()
    }

    fn alignment(&self, access: Access) -> Alignment {
        self.0.alignment(access)
    }

    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        let size = self.0.size;
        if self.0.is_block {
            return Ok(Box::new((size > 0).then(|| Ok(Extent::data(0, size))).into_iter()));
        }
        Ok(Box::new(SeekExtents::new(&self.0.buffered, self.label(), size)))
    }

    fn lane(&self, access: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(self.0.lane(access, None, setup)))
    }
}

/// A regular file or block device that is written.
pub struct FileSink {
    pub(crate) handles: Handles,
    pub(crate) fresh: bool,
    pub(crate) zeroing: Arc<Zeroing>,
    /// Whether the run sets the file's size: not where only a list of extents is written.
    pub(crate) sized: bool,
    /// The size that [`FileSink::prepare`] gives the file.
    pub(crate) resized: Option<u64>,
    /// The folder of a file that this run made: its entry must be durable too.
    pub(crate) folder: Option<File>,
}

impl FileSink {
    /// The file, for calls outside the engine.
    pub fn file(&self) -> &File {
        &self.handles.buffered
    }

    /// Whether it is a block device.
    pub fn is_block(&self) -> bool {
        self.handles.is_block
    }

    /// Gives the file its size. The first change to a target: not before everything that can be refused
    /// was looked at, for all pairs and for the journal.
    ///
    /// # Errors
    /// `Full` where the filesystem has no files of that size; those of ftruncate(2).
    pub fn prepare(&self) -> Result<()> {
        let Some(size) = self.resized.filter(|&size| size != self.handles.size) else { return Ok(()) };
        self.handles
            .buffered
            .set_len(size)
            .map_err(|error| Error::io(Operation::Resize, self.label(), &error).offset(size))
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        // A lane that was given up for good still has writes in flight: then the lock stays as long as they do.
        if !self.is_block() && Arc::strong_count(&self.zeroing) == 1 {
            crate::guard::unlock_target(self.handles.file(self.handles.access()));
        }
    }
}

impl Sink for FileSink {
    fn label(&self) -> String {
        self.handles.label.clone()
    }

    fn capacity(&self) -> Option<u64> {
        self.handles.is_block.then_some(self.handles.size)
    }

    fn access(&self) -> Access {
        self.handles.access()
    }

    fn alignment(&self, access: Access) -> Alignment {
        self.handles.alignment(access)
    }

    fn reads_zero(&self) -> bool {
        self.fresh
    }

    fn lane(&self, access: Access, setup: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(self.handles.lane(access, Some(self.zeroing.clone()), setup)))
    }

    fn flush(&self) -> Result<()> {
        // Of the descriptor that writes: it is the one that is told of a write-back error.
        nix::unistd::fdatasync(self.handles.file(self.access()))
            .and_then(|()| nix::unistd::fdatasync(&self.handles.buffered))
            .and_then(|()| self.folder.as_ref().map_or(Ok(()), nix::unistd::fsync))
            .map_err(|errno| Error::os(Operation::Flush, self.label(), errno as i32))
    }

    fn finish(&self, size: u64) -> Result<()> {
        if self.handles.is_block || !self.sized {
            return Ok(());
        }
        self.handles
            .buffered
            .set_len(size)
            .map_err(|error| Error::io(Operation::Resize, self.label(), &error).offset(size))
    }
}

/// How a target is zeroed: the cheapest call it was not yet seen to refuse. One for all workers.
#[derive(Default)]
pub(crate) struct Zeroing {
    /// For ranges that may be deallocated.
    hole: AtomicU8,
    /// For ranges that stay allocated. A target may refuse this and punch nevertheless: tmpfs does.
    keep: AtomicU8,
}

impl Zeroing {
    fn of(&self, kind: OperationKind) -> &AtomicU8 {
        if kind == OperationKind::Sink(SinkOperation::Zero) { &self.keep } else { &self.hole }
    }
}

// The cheapest first: FALLOC_FL_PUNCH_HOLE, then BLKZEROOUT, then writes. BLKDISCARD never stands for
// zeros. On a block device FALLOC_FL_ZERO_RANGE *is* BLKZEROOUT (block/fops.c: blkdev_fallocate), with the
// advantage that it goes through the ring; on a file it zeroes and keeps the allocation.
const METHODS: [Option<i32>; 3] = [
    Some(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
    Some(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
    None,
];
/// The largest logical block of a device: a multiple of it is aligned on every one.
const DEVICE_BLOCK_MAX: u64 = 4096;
const PUNCH_HOLE: u8 = 0;
const ZERO_RANGE: u8 = 1;
const WRITE_ZEROS: u8 = 2;

/// One worker's way to one file. Every operation is one submission, and more only after a short transfer, a
/// retry, or for zeros that have to be written.
struct FileLane {
    file: FileId,
    rules: Alignment,
    zeroing: Option<Arc<Zeroing>>,
    /// Whether this is a block device behind the page cache.
    cached_device: bool,
    /// Whether another descriptor of ours, the direct one, holds the claim on it.
    claimed_elsewhere: bool,
    label: String,
    /// Operations in flight; the index is the submission's number.
    running: Vec<Running>,
    free: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Running {
    operation: LaneOperation,
    done: u64,
    retries: u32,
    method: u8,
}

impl FileLane {
    fn push(&mut self, index: u32, io: &mut Io<'_>) {
        let Running { operation, done, method, .. } = self.running[index as usize];
        let mut submission = Submission {
            verb: Verb::Read,
            file: self.file,
            memory: operation.memory.skip(done),
            length: operation.length - done,
            offset: operation.offset + done,
            token: Token { lane: 0, aux: index },
        };
        match operation.kind {
            OperationKind::Read => {}
            OperationKind::Sink(SinkOperation::Write) => submission.verb = Verb::Write,
            OperationKind::Sink(SinkOperation::Hole | SinkOperation::Zero) => {
                match METHODS[usize::from(method)] {
                    Some(mode) => submission.verb = Verb::Fallocate(mode),
                    None => {
                        submission.verb = Verb::Write;
                        submission.memory = io.zeros();
                        submission.length = submission.length.min(ZERO_BLOCK_BYTES as u64);
                    }
                }
            }
        }
        debug_assert!(
            matches!(submission.verb, Verb::Fallocate(_))
                || self.rules.allows(submission.offset, submission.length, submission.memory.address()),
            "an operation breaks the rules of O_DIRECT"
        );
        io.push(index, submission);
    }

    /// Whether zeros of a block device have to be written, however it likes its calls. Through the page cache
    /// they come unaligned, which no call takes; and a descriptor without the claim on the device gets EBUSY
    /// where a page of the range is dirty (block/bdev.c: truncate_bdev_range). What is so written is small.
    fn writes_zeros(&self, operation: &LaneOperation) -> bool {
        let unaligned = !(operation.offset | operation.length).is_multiple_of(DEVICE_BLOCK_MAX);
        self.cached_device && (self.claimed_elsewhere || unaligned)
    }

    fn end(&mut self, index: u32, result: std::result::Result<u64, Fault>, io: &mut Io<'_>) {
        let operation = self.running[index as usize].operation;
        self.free.push(index);
        io.finish(&operation, result);
    }

    fn fail(&mut self, index: u32, errno: i32, io: &mut Io<'_>) {
        let Running { operation, done, .. } = self.running[index as usize];
        self.end(index, Err(Fault { errno, offset: operation.offset + done }), io);
    }

    /// The target refused this way of zeroing: take the next one, for good.
    fn next_method(&mut self, index: u32, errno: i32, io: &mut Io<'_>) {
        let method = self.running[index as usize].method + 1;
        self.running[index as usize].method = method;
        if let Some(zeroing) = &self.zeroing {
            let kind = self.running[index as usize].operation.kind;
            zeroing.of(kind).fetch_max(method, Ordering::Relaxed);
        }
        if method == WRITE_ZEROS {
            io.control().degrade(Degradation {
                about: "zeroing".into(),
                wanted: "zeros by one call of the target".into(),
                used: "zeros written as data".into(),
                reason: nix::errno::Errno::from_raw(errno).desc().to_owned(),
                path: Some(self.label.clone()),
            });
        }
        self.push(index, io);
    }
}

impl Lane for FileLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        let method = match (operation.kind, &self.zeroing) {
            (OperationKind::Sink(SinkOperation::Hole | SinkOperation::Zero), _)
                if self.writes_zeros(&operation) =>
            {
                WRITE_ZEROS
            }
            (OperationKind::Sink(SinkOperation::Hole), Some(zeroing)) => {
                zeroing.of(operation.kind).load(Ordering::Relaxed)
            }
            // What shall stay allocated is never punched.
            (OperationKind::Sink(SinkOperation::Zero), Some(zeroing)) => {
                zeroing.of(operation.kind).load(Ordering::Relaxed).max(ZERO_RANGE)
            }
            _ => PUNCH_HOLE,
        };
        let running = Running { operation, done: 0, retries: 0, method };
        let index = match self.free.pop() {
            Some(index) => {
                self.running[index as usize] = running;
                index
            }
            None => {
                self.running.push(running);
                self.running.len() as u32 - 1
            }
        };
        self.push(index, io);
    }

    fn advance(&mut self, index: u32, result: i32, io: &mut Io<'_>) {
        let running = &mut self.running[index as usize];
        let operation = running.operation;
        let zeroing_call =
            matches!(operation.kind, OperationKind::Sink(SinkOperation::Hole | SinkOperation::Zero))
                && METHODS[usize::from(running.method)].is_some();
        match result {
            0 if zeroing_call => self.end(index, Ok(operation.length), io),
            // The end of the file: the worker knows whether that may be.
            0 if operation.kind == OperationKind::Read => {
                let done = running.done;
                self.end(index, Ok(done), io);
            }
            0 => self.fail(index, libc::EIO, io),
            n if n > 0 => {
                running.done += n as u64;
                if running.done >= operation.length {
                    return self.end(index, Ok(operation.length), io);
                }
                // A direct transfer goes on at its granule. A read that ended inside one ended at the end of
                // the file; a write is repeated from the granule's start.
                let granule = u64::from(self.rules.offset);
                let whole = running.done / granule * granule;
                if whole != running.done {
                    if operation.kind == OperationKind::Read {
                        let done = running.done;
                        return self.end(index, Ok(done), io);
                    }
                    running.done = whole;
                    running.retries += 1;
                    if running.retries > limits::RETRIES_MAX {
                        return self.fail(index, libc::EIO, io);
                    }
                }
                self.push(index, io);
            }
            n if n == -libc::EINTR || n == -libc::EAGAIN => {
                running.retries += 1;
                if running.retries > limits::RETRIES_MAX {
                    return self.fail(index, -n, io);
                }
                // Short of memory or of requests: a moment's rest, longer each time, gives both back.
                if running.retries > 8 {
                    std::thread::sleep(Duration::from_micros(u64::from(running.retries.min(1_000))));
                }
                self.push(index, io);
            }
            n if zeroing_call && refuses_method(-n) => self.next_method(index, -n, io),
            n => self.fail(index, -n, io),
        }
    }
}

/// Errors that say "not this way" and not "not here".
fn refuses_method(errno: i32) -> bool {
    matches!(
        errno,
        libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL | libc::ENODEV | libc::EPERM
    )
}
