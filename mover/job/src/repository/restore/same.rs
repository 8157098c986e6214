//! What of a target is as the disk has it: the target is read by the engine, each chunk is hashed and compared with the
//! name that the tree has for it.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use mover_endpoints::{OpenOptions, OpenSource, open_source};
use mover_engine::lane::{LaneOperation, OperationKind};
use mover_engine::stats::Counters;
use mover_engine::{Access, Alignment, Io, Lane, LaneSetup, Recorder, Segment, Sink, Task, TaskOptions};
use mover_engine::{ReadErrors, run as run_engine};
use mover_model::extent::Subtract;
use mover_model::{Error, ErrorKind, Extent, ExtentKind, ExtentList, Operation, Result};
use mover_repository::format::node::Root;
use mover_repository::keys::ChunkKind;
use mover_repository::tree::{DataExtents, Nodes};

use super::execute::Run;
use super::open::{Asked, OpenDisk};

/// Compares the targets that hold something with their disks; what differs goes to [`OpenDisk::differing`].
pub(super) fn compare(run: &Run<'_>, asked: &[Asked<'_>]) {
    let mut comparisons = Vec::new();
    for asked in asked {
        let Some(open) = asked.writing().filter(|open| open.compare) else { continue };
        match Comparison::new(run, asked, open) {
            Ok(comparison) => comparisons.push(comparison),
            Err(error) => asked.fail(error),
        }
    }
    let tasks: Vec<_> = comparisons.iter().map(Comparison::task).collect();
    if tasks.is_empty() {
        return;
    }
    let report = run_engine(&run.settings, tasks, run.control, run.rate.as_ref());
    if report.cut_short || run.control.stopped() {
        run.cut_short.store(true, std::sync::atomic::Ordering::Release);
        return;
    }
    for (comparison, outcome) in comparisons.into_iter().zip(report.outcomes) {
        let asked = comparison.asked;
        match outcome.error.map_or_else(|| comparison.end(), Err) {
            Ok(()) => {}
            Err(error) => asked.fail(error),
        }
    }
}

/// A target that is compared with its disk.
struct Comparison<'a> {
    asked: &'a Asked<'a>,
    open: &'a OpenDisk,
    source: OpenSource,
    /// What of the target is read by the engine: whole chunks, and the disk's last one.
    read: ExtentList,
    /// Up to here chunks of the target can be equal: to the end of the shorter of the two.
    end: u64,
    /// Bytes of the target.
    size: u64,
    sink: CompareSink,
}

impl<'a> Comparison<'a> {
    fn new(run: &Run<'a>, asked: &'a Asked<'a>, open: &'a OpenDisk) -> Result<Self> {
        let how = OpenOptions { direct: run.options.engine.direct };
        let source = open_source(&asked.target, how, run.control)?;
        let chunk = u64::from(open.root.chunk_size);
        let size = source.source.size().unwrap_or(0);
        let end = if size >= open.root.size { open.root.size } else { size / chunk * chunk };
        // A direct read takes whole blocks only: a last chunk that has none at its end is read on its own.
        let granule = u64::from(source.source.alignment(source.source.access()).offset);
        let most = if end.is_multiple_of(granule) { end } else { end / chunk * chunk };
        let mut read = ExtentList::new();
        for extent in source.source.extents()? {
            let extent = extent?;
            let from = (extent.start / chunk * chunk).max(read.end().unwrap_or(0));
            let to = extent.end().next_multiple_of(chunk).min(most);
            if extent.kind == ExtentKind::Data && from < to {
                read.push(Extent::data(from, to - from));
            }
        }
        let sink = CompareSink {
            shared: Arc::new(Shared {
                nodes: run.nodes.clone(),
                root: open.root,
                label: asked.target.to_string(),
                differing: Mutex::default(),
            }),
        };
        Ok(Comparison { asked, open, source, read, end, size, sink })
    }

    fn task(&self) -> Task<'_> {
        Task {
            source: &*self.source.source,
            sink: &self.sink,
            extents: Box::new(self.read.iter().map(Ok)),
            options: TaskOptions {
                source_access: self.source.source.access(),
                sink_access: Access::Direct,
                zero_run: None,
                skip_zeros: true,
                keep_allocated: false,
                digest: false,
                join_gap: 0,
                read_errors: ReadErrors::Fail,
            },
            counters: &self.open.compared,
            recorder: Box::new(|| Box::new(NoRecord)),
        }
    }

    /// Adds what the engine did not read, and tells what differs in all.
    fn end(self) -> Result<()> {
        let root = self.open.root;
        let mut read = self.read;
        let tail =
            read.end().unwrap_or(0).max(self.end / u64::from(root.chunk_size) * u64::from(root.chunk_size));
        if tail < self.end && !self.end.is_multiple_of(u64::from(root.chunk_size)) {
            self.sink.shared.compare_tail(&self.source, tail, self.end)?;
            Counters::add(&self.open.compared.read_bytes, self.end - tail);
            read.push(Extent::data(tail, self.end - tail));
        }
        let mut differing =
            std::mem::take(&mut *self.sink.shared.differing.lock().unwrap_or_else(|p| p.into_inner()));
        // What was not read is holes of the target, or behind its end: zeros, but for the rest of a last chunk that the
        // target has in part.
        let rest = (self.end < self.size.min(root.size)).then(|| {
            let end = root.size.min(self.end + u64::from(root.chunk_size));
            Extent::new(self.end, end - self.end, ExtentKind::Hole)
        });
        let mut subtract = Subtract::new(&read);
        for extent in DataExtents::new(&self.sink.shared.nodes, root) {
            let extent = extent?;
            if extent.kind == ExtentKind::Data {
                subtract.apply(extent, |part| differing.push(part));
            } else if let Some(part) = rest.and_then(|rest| rest.clip(extent.start, extent.end())) {
                differing.push(part);
            }
        }
        let differing = ExtentList::from_unordered(differing, Some(root.size))
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()).during(Operation::Verify))?;
        let same = root.size - differing.bytes();
        self.open.same_bytes.store(same, std::sync::atomic::Ordering::Relaxed);
        *self.open.differing.lock().unwrap_or_else(|p| p.into_inner()) = Some(differing);
        Ok(())
    }
}

struct NoRecord;

impl Recorder for NoRecord {
    fn finished(&mut self, _: &Segment) {}
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}

/// Where the target's bytes go: nowhere, once they were compared.
struct CompareSink {
    shared: Arc<Shared>,
}

struct Shared {
    nodes: Arc<Nodes>,
    root: Root,
    label: String,
    differing: Mutex<Vec<Extent>>,
}

impl Shared {
    /// Compares bytes of the target, from `offset` on.
    fn compare(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let chunk = u64::from(self.root.chunk_size);
        let end = offset + bytes.len() as u64;
        let first = offset / chunk;
        let ids = self.nodes.chunk_ids(&self.root, first, end.div_ceil(chunk) - first)?;
        let keys = self.nodes.chunks().repository().keys();
        let mut found: Vec<Extent> = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let start = (first + at as u64) * chunk;
            let (from, to) = (start.max(offset), (start + chunk).min(self.root.size).min(end));
            let part = &bytes[(from - offset) as usize..(to - offset) as usize];
            // Blocks may be smaller than chunks; a part of one cannot be compared, and counts as different.
            let whole = from == start && to == (start + chunk).min(self.root.size);
            let same = if id.is_hole() {
                is_zero(part)
            } else {
                whole && keys.chunk_id(ChunkKind::Data, part) == *id
            };
            if same {
                continue;
            }
            let kind = if id.is_hole() { ExtentKind::Hole } else { ExtentKind::Data };
            match found.last_mut() {
                Some(last) if last.end() == from && last.kind == kind => last.length += to - from,
                _ => found.push(Extent::new(from, to - from, kind)),
            }
        }
        if !found.is_empty() {
            self.differing.lock().unwrap_or_else(|p| p.into_inner()).extend(found);
        }
        Ok(())
    }

    /// The disk's last chunk, through the page cache.
    fn compare_tail(&self, source: &OpenSource, from: u64, to: u64) -> Result<()> {
        let Some(file) = &source.file else { return Ok(()) };
        let mut bytes = vec![0; (to - from) as usize];
        file.file()
            .read_exact_at(&mut bytes, from)
            .map_err(|error| Error::io(Operation::Read, &self.label, &error).offset(from))?;
        self.compare(from, &bytes)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Compared as numbers, which the compiler turns into wide loads.
    let (head, words, tail) = (bytes.len() % 8, bytes.chunks_exact(8), bytes.len() / 8 * 8);
    let zero = words.map(|word| u64::from_ne_bytes(std::array::from_fn(|at| word[at]))).all(|word| word == 0);
    zero && (head == 0 || bytes[tail..].iter().all(|&byte| byte == 0))
}

impl Sink for CompareSink {
    fn label(&self) -> String {
        self.shared.label.clone()
    }

    fn capacity(&self) -> Option<u64> {
        None
    }

    fn access(&self) -> Access {
        Access::Direct
    }

    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }

    fn reads_zero(&self) -> bool {
        true
    }

    fn lane(&self, _: Access, _: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(CompareLane { shared: self.shared.clone() }))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn finish(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

struct CompareLane {
    shared: Arc<Shared>,
}

impl Lane for CompareLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        let compared = match operation.kind {
            OperationKind::Sink(mover_engine::SinkOperation::Write) => {
                self.shared.compare(operation.offset, io.bytes(&operation))
            }
            // Only data is read, and no zeros are looked for in it.
            _ => Ok(()),
        };
        match compared {
            Ok(()) => io.finish(&operation, Ok(operation.length)),
            Err(error) => {
                io.fail(error);
                io.finish_failed(&operation);
            }
        }
    }

    fn advance(&mut self, _: u32, _: i32, _: &mut Io<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn zeros_are_told_at_every_length() {
        for length in 0..40 {
            let mut bytes = vec![0u8; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
