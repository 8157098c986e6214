//! Reads the disks: one run of the engine over all of them, and after it the chunks of which a part cannot be read.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use mover_engine::queue::Extents;
use mover_engine::{
    Access, Control, Rate, ReadErrors, Recorder, Report, Segment, Settings, Task, TaskOptions,
    run as run_engine,
};
use mover_model::event::BadExtent;
use mover_model::{Error, ErrorKind, Extent, Operation, Result, limits};
use mover_repository::write::{ChunkSink, Writer};

use super::extents::WholeChunks;
use super::open::{OpenDisk, Reading, unchanged};

/// What the reading of disks has to know.
pub(super) struct Readers<'a> {
    pub disks: &'a [OpenDisk],
    pub writer: &'a Arc<Writer>,
    pub settings: &'a Settings,
    pub chunk_size: u32,
    pub record_read_errors: bool,
    pub control: &'a Control,
    pub rate: Option<&'a Rate>,
}

/// Parts that could not be read, as workers find them.
type BadExtents = Arc<Mutex<Vec<BadExtent>>>;

struct BadRecorder {
    disk: usize,
    path: String,
    bad: BadExtents,
}

impl Recorder for BadRecorder {
    fn finished(&mut self, _: &Segment) {}

    fn bad(&mut self, start: u64, length: u64, errno: i32) {
        let bad = BadExtent { pair: self.disk, path: self.path.clone(), start, length, errno };
        self.bad.lock().unwrap_or_else(|p| p.into_inner()).push(bad);
    }
}

/// One part of a disk that is read in one way.
struct Part<'a> {
    disk: usize,
    sink: ChunkSink,
    access: Access,
    extents: Extents<'a>,
}

impl Readers<'_> {
    /// Reads everything. Errors go to the disks; returns the engine's report and what could not be read.
    pub fn read(&self) -> (Report, Vec<BadExtent>) {
        let mut parts = Vec::new();
        for (number, disk) in self.disks.iter().enumerate() {
            let Some(reading) = disk.reading() else { continue };
            if let Err(error) = self.add_parts(number, disk, reading, &mut parts) {
                disk.fail(error);
                // All or nothing: what would be read of the others would be thrown away.
                return (Report::default(), Vec::new());
            }
        }
        if parts.is_empty() {
            return (Report::default(), Vec::new());
        }
        let bad = BadExtents::default();
        let report = self.run(parts, &bad);
        let found = std::mem::take(&mut *bad.lock().unwrap_or_else(|p| p.into_inner()));
        if found.is_empty() || report.cut_short || self.disks.iter().any(|disk| disk.error().is_some()) {
            return (report, found);
        }
        let mut left = Vec::new();
        for number in 0..self.disks.len() {
            if let Err(error) = self.salvage(number, &found, &mut left) {
                self.disks[number].fail(error);
            }
        }
        (report, left)
    }

    fn add_parts<'p>(
        &self,
        number: usize,
        disk: &'p OpenDisk,
        reading: &'p Reading,
        parts: &mut Vec<Part<'p>>,
    ) -> Result<()> {
        if reading.base.as_ref().is_some_and(|base| unchanged(base).is_some()) {
            return Ok(());
        }
        let tail = reading.tail(self.chunk_size);
        let end = tail.or(reading.size).unwrap_or(u64::MAX);
        let main: Extents<'p> = match &reading.base {
            _ if reading.is_stream() => reading.source.source.extents()?,
            Some(base) => whole(base.changes.read.clip(0, end).iter()),
            None => Box::new(WholeChunks::new(reading.source.source.extents()?, self.chunk_size, end)),
        };
        let mut add = |access, extents| {
            let label = disk.spec().id.to_string();
            let sink = self.writer.sink(number, reading.ids.clone(), label).sized(reading.size);
            let sink = if parts.is_empty() { sink.leading() } else { sink };
            parts.push(Part { disk: number, sink, access, extents });
        };
        add(reading.access(self.chunk_size), main);
        // Through the page cache, at the same time: nothing is written to it.
        if let (Some(tail), Some(size)) = (tail, reading.size) {
            let rest: Extents<'p> = match &reading.base {
                Some(base) => whole(base.changes.read.clip(tail, size).iter()),
                None => whole(std::iter::once(Extent::data(tail, size - tail))),
            };
            add(Access::Buffered, rest);
        }
        Ok(())
    }

    fn run(&self, parts: Vec<Part<'_>>, bad: &BadExtents) -> Report {
        let (sinks, rest): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|part| (part.sink, (part.disk, part.access, part.extents))).unzip();
        let mut numbers = Vec::new();
        let mut tasks = Vec::new();
        for (sink, (number, source_access, extents)) in sinks.iter().zip(rest) {
            let disk = &self.disks[number];
            let Some(reading) = disk.reading() else { continue };
            let path = disk.spec().locator.to_string();
            numbers.push(number);
            tasks.push(Task {
                source: &*reading.source.source,
                sink,
                extents,
                options: TaskOptions {
                    source_access,
                    sink_access: Access::Direct,
                    // The sink looks at whole chunks itself.
                    zero_run: None,
                    skip_zeros: true,
                    keep_allocated: false,
                    digest: false,
                    join_gap: 0,
                    read_errors: if self.record_read_errors { ReadErrors::Record } else { ReadErrors::Fail },
                },
                counters: &disk.counters,
                recorder: Box::new(move || {
                    Box::new(BadRecorder { disk: number, path: path.clone(), bad: bad.clone() })
                }),
            });
        }
        let report = run_engine(self.settings, tasks, self.control, self.rate);
        for (outcome, number) in report.outcomes.iter().zip(numbers) {
            let disk = &self.disks[number];
            if let Some(error) = &outcome.error {
                disk.fail(error.clone());
            }
            if let (Some(end), Some(reading)) = (outcome.stream_end, disk.reading()) {
                reading.stream_end.store(end, Ordering::Release);
            }
        }
        report
    }

    /// Stores the chunks of a disk that the workers could not read whole, with zeros where nothing can be read.
    fn salvage(&self, number: usize, found: &[BadExtent], left: &mut Vec<BadExtent>) -> Result<()> {
        let disk = &self.disks[number];
        let Some(reading) = disk.reading() else { return Ok(()) };
        let (Some(file), Some(size)) = (&reading.source.file, reading.size) else { return Ok(()) };
        let chunk_size = u64::from(self.chunk_size);
        let of_disk = found.iter().filter(|bad| bad.pair == number && bad.length > 0);
        let chunks: BTreeSet<u64> = of_disk
            .flat_map(|bad| bad.start / chunk_size..=(bad.start + bad.length - 1) / chunk_size)
            .collect();
        let path = disk.spec().locator.to_string();
        for chunk in chunks {
            let start = chunk * chunk_size;
            let mut content = vec![0; chunk_size.min(size - start) as usize];
            for (at, piece) in content.chunks_mut(limits::SALVAGE_BYTES as usize).enumerate() {
                let offset = start + at as u64 * u64::from(limits::SALVAGE_BYTES);
                match file.file().read_exact_at(piece, offset) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                        let error = Error::new(ErrorKind::SourceShrank, "the source ended while it was read");
                        return Err(error.during(Operation::Read).at(path).offset(offset));
                    }
                    Err(error) if error.raw_os_error().is_some_and(is_medium_error) => {
                        piece.fill(0);
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        let length = piece.len() as u64;
                        add_bad(
                            left,
                            BadExtent { pair: number, path: path.clone(), start: offset, length, errno },
                        );
                    }
                    Err(error) => return Err(Error::io(Operation::Read, path, &error).offset(offset)),
                }
            }
            reading.ids.set(chunk, &[self.writer.put_data(number, &content)?])?;
        }
        Ok(())
    }
}

fn whole<'a>(extents: impl Iterator<Item = Extent>) -> Extents<'a> {
    let extents: Vec<_> = extents.map(Ok).collect();
    Box::new(extents.into_iter())
}

/// Errors that say something about a part of the medium and nothing about the rest.
fn is_medium_error(errno: i32) -> bool {
    matches!(errno, libc::EIO | libc::EREMOTEIO | libc::ENODATA | libc::EILSEQ | libc::EBADMSG | libc::ENXIO)
}

/// Adds a bad extent that lies behind all others of its disk, joined to the last one if it continues it.
fn add_bad(list: &mut Vec<BadExtent>, bad: BadExtent) {
    match list.last_mut() {
        Some(last)
            if last.pair == bad.pair && last.start + last.length == bad.start && last.errno == bad.errno =>
        {
            last.length += bad.length;
        }
        _ => list.push(bad),
    }
}
