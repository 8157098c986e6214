//! `--verify`: the target is read back past the page cache, and what comes is what was read from the source.

use std::collections::{BTreeMap, VecDeque};
use std::iter::Peekable;
use std::sync::Mutex;

use mover_endpoints::{Null, OpenOptions, OpenSource, open_source};
use mover_engine::queue::Extents;
use mover_engine::stats::Counters;
use mover_engine::{Access, ReadErrors, Recorder, Segment, Task, TaskOptions, run as run_engine, transform};
use mover_model::{Digest, Error, ErrorKind, Extent, ExtentKind, Operation, Result};

use super::context::{Run, bad};
use super::open::OpenPair;
use super::spool::{Record, Sorted, Spool};

/// What each request must find, from the moment it is planned until it is compared.
type Expected = Mutex<BTreeMap<u64, Digest>>;

/// Reads one pair's target back.
///
/// # Errors
/// `Corruption`, naming the first offset that differs; `Io` when it cannot be read.
pub(super) fn verify(run: &Run<'_>, index: usize, pair: &OpenPair<'_>) -> Result<()> {
    let (Some(spool), Some(target)) = (&run.spool, &pair.target.file) else {
        return Err(
            Error::usage("--verify needs a target that can be read back").at(pair.pair.target.to_string())
        );
    };
    let label = pair.pair.target.to_string();
    let how = OpenOptions { direct: run.options.engine.direct };
    let source = open_source(&pair.pair.target, how, run.control)?;
    let rims: Mutex<Vec<(Extent, Digest)>> = Mutex::default();
    let check = Check { run, pair, expected: Expected::default(), differing: Mutex::default() };
    let access = source.source.access();
    drop_cache(target.file());
    let zeros = vec![0; run.settings.block_size as usize];
    let feed = Feed::new(&check, spool, index as u32, &source, &rims, &zeros)?;
    check.read(&source, access, Box::new(feed))?;
    let rims = rims.into_inner().unwrap_or_else(|p| p.into_inner());
    if !rims.is_empty() {
        // These bytes went through the page cache; it was flushed and dropped, so they come from the device.
        drop_cache(target.file());
        check.expect(rims.iter().map(|(extent, digest)| (extent.start, *digest)));
        let extents = rims.into_iter().map(|(extent, _)| Ok(extent));
        check.read(&source, Access::Buffered, Box::new(extents))?;
    }
    let differing = check.differing.into_inner().unwrap_or_else(|p| p.into_inner());
    if let Some((start, length)) = differing.iter().min() {
        let bytes: u64 = differing.iter().map(|(_, length)| length).sum();
        return Err(Error::new(
            ErrorKind::Corruption,
            format!("the target does not hold what was written: it differs within these {length} bytes, and in ranges of {bytes} bytes in all"),
        )
        .during(Operation::Verify)
        .at(label)
        .offset(*start)
        .hint("the device or something else writing to it damaged the copy: do not trust it"));
    }
    if run.control.stopped() {
        let kind = if run.options.journal.is_some() { ErrorKind::Interrupted } else { ErrorKind::Stopped };
        return Err(Error::new(kind, "stopped before all of the target had been read back").at(label));
    }
    let left = check.expected.into_inner().unwrap_or_else(|p| p.into_inner()).len();
    if left > 0 {
        return Err(Error::new(ErrorKind::Internal, format!("{left} extents were not read back")).at(label));
    }
    refuse_gaps(run, index, pair, label)
}

/// What was read back must be all there was to move: an extent that was lost on the way would leave no trace
/// in the digests.
fn refuse_gaps(run: &Run<'_>, index: usize, pair: &OpenPair<'_>, label: String) -> Result<()> {
    let end = *pair.stream_end.lock().unwrap_or_else(|p| p.into_inner());
    let size = end.or(pair.size).unwrap_or(0);
    let all = pair.list.as_ref().map_or(size, |list| list.bytes());
    let unread: u64 = bad(run).iter().filter(|extent| extent.pair == index).map(|extent| extent.length).sum();
    let verified = pair.moved().verified_bytes;
    if verified + unread == all {
        return Ok(());
    }
    let message = format!("{verified} of {} bytes were read back", all - unread.min(all));
    Err(Error::new(ErrorKind::Internal, message).during(Operation::Verify).at(label))
}

/// Clean pages of the target leave the page cache: what is read next comes from the device.
fn drop_cache(file: &std::fs::File) {
    // Advice, and enough: everything was flushed before, so every page is clean.
    let _ = nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

struct Check<'a> {
    run: &'a Run<'a>,
    pair: &'a OpenPair<'a>,
    expected: Expected,
    differing: Mutex<Vec<(u64, u64)>>,
}

impl Check<'_> {
    fn expect(&self, entries: impl Iterator<Item = (u64, Digest)>) {
        self.expected.lock().unwrap_or_else(|p| p.into_inner()).extend(entries);
    }

    fn read(&self, source: &OpenSource, access: Access, extents: Extents<'_>) -> Result<()> {
        let counters = Counters::default();
        let sink = Null { size: None };
        let task = Task {
            source: &*source.source,
            sink: &sink,
            extents,
            options: TaskOptions {
                source_access: access,
                sink_access: Access::Direct,
                zero_run: None,
                skip_zeros: true,
                keep_allocated: false,
                digest: true,
                join_gap: 0,
                read_errors: ReadErrors::Fail,
            },
            counters: &counters,
            recorder: Box::new(|| Box::new(CheckRecorder(self))),
        };
        let report = run_engine(&self.run.settings, vec![task], self.run.control, self.run.rate.as_ref());
        match report.outcomes.into_iter().find_map(|outcome| outcome.error) {
            Some(error) if error.kind() == ErrorKind::SourceShrank => {
                let short =
                    Error::new(ErrorKind::Corruption, "the target ends before what was written to it");
                Err(short
                    .during(Operation::Verify)
                    .at(source.source.label())
                    .offset(error.at_offset().unwrap_or(0)))
            }
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

struct CheckRecorder<'a>(&'a Check<'a>);

impl Recorder for CheckRecorder<'_> {
    fn finished(&mut self, segment: &Segment) {
        let expected = self.0.expected.lock().unwrap_or_else(|p| p.into_inner()).remove(&segment.start);
        if expected.is_some() && expected == segment.digest {
            self.0.pair.add_verified(segment.length);
        } else {
            let mut differing = self.0.differing.lock().unwrap_or_else(|p| p.into_inner());
            differing.push((segment.start, segment.length));
        }
    }

    fn bad(&mut self, _: u64, _: u64, _: i32) {
        // Read errors fail the pass: the policy says so.
    }
}

/// What has to be read back, in the order of the disk: every segment that was written, and of the zeros
/// whatever the target has allocated.
struct Feed<'a> {
    check: &'a Check<'a>,
    records: Sorted<'a>,
    pair: u32,
    granule: u64,
    block_size: u64,
    allocated: Peekable<Extents<'a>>,
    rims: &'a Mutex<Vec<(Extent, Digest)>>,
    zeros: &'a [u8],
    whole_zero: Digest,
    ready: VecDeque<Extent>,
}

impl<'a> Feed<'a> {
    fn new(
        check: &'a Check<'a>,
        spool: &'a Spool,
        pair: u32,
        source: &'a OpenSource,
        rims: &'a Mutex<Vec<(Extent, Digest)>>,
        zeros: &'a [u8],
    ) -> Result<Self> {
        Ok(Feed {
            check,
            records: spool.sorted()?,
            pair,
            granule: u64::from(source.source.alignment(source.source.access()).offset),
            block_size: u64::from(check.run.settings.block_size),
            allocated: source.source.extents()?.peekable(),
            rims,
            zeros,
            whole_zero: transform::digest(zeros),
            ready: VecDeque::new(),
        })
    }

    fn add(&mut self, extent: Extent, digest: Digest) {
        if !extent.start.is_multiple_of(self.granule) || !extent.length.is_multiple_of(self.granule) {
            self.rims.lock().unwrap_or_else(|p| p.into_inner()).push((extent, digest));
        } else {
            self.check.expect(std::iter::once((extent.start, digest)));
            self.ready.push_back(extent);
        }
    }

    /// Zeros that the target has not allocated are zeros; the rest is read and must be.
    fn add_zeros(&mut self, record: &Record) -> Result<()> {
        let (start, end) = (record.start, record.start + record.length);
        let mut proven = record.length;
        while let Some(next) = self.allocated.peek() {
            let extent = match next {
                Ok(extent) => *extent,
                Err(error) => return Err(error.clone()),
            };
            if extent.start >= end {
                break;
            }
            if let (ExtentKind::Data, Some(mut part)) = (extent.kind, extent.clip(start, end)) {
                proven -= part.length;
                while part.length > 0 {
                    let to_grid = self.block_size - part.start % self.block_size;
                    let piece = Extent::data(part.start, part.length.min(to_grid));
                    let digest = if piece.length == self.block_size {
                        self.whole_zero
                    } else {
                        transform::digest(&self.zeros[..piece.length as usize])
                    };
                    part = Extent::data(piece.end(), part.length - piece.length);
                    self.add(piece, digest);
                }
            }
            if extent.end() > end {
                break;
            }
            self.allocated.next();
        }
        self.check.pair.add_verified(proven);
        Ok(())
    }
}

impl Iterator for Feed<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        loop {
            if let Some(extent) = self.ready.pop_front() {
                return Some(Ok(extent));
            }
            let record = match self.records.next()? {
                Ok(record) => record,
                Err(error) => return Some(Err(error)),
            };
            if record.pair != self.pair || record.length == 0 {
                continue;
            }
            match record.digest() {
                Some(digest) => self.add(Extent::data(record.start, record.length), digest),
                None => {
                    if let Err(error) = self.add_zeros(&record) {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}
