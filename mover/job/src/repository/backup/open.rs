//! Opens all disks of a backup, and decides how each is read.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use mover_endpoints::{OpenOptions, OpenSource, open_source};
use mover_engine::stats::Counters;
use mover_engine::{Access, Control, Order};
use mover_model::event::{Degradation, Event};
use mover_model::manifest::{Disk, Method};
use mover_model::{ChunkId, Error, ErrorKind, ExtentKind, Locator, Operation, Result};
use mover_repository::manifests::Points;
use mover_repository::tree::IdFile;

use super::base::Base;
use super::extents::{Changes, changes};
use super::{BackupOptions, DiskSpec, check};
use crate::Emit;
use crate::repository::common::{self, Arranged};

/// A disk of the backup.
pub(super) struct OpenDisk {
    pub arranged: Arranged,
    pub what: What,
    pub counters: Counters,
    pub error: Mutex<Option<Error>>,
}

/// What is done with a disk.
#[allow(clippy::large_enum_variant)] // one for each disk of a run
pub(super) enum What {
    /// It is read, as a whole or in part.
    Read(Reading),
    /// Another restore point has it.
    Reference {
        /// For the manifest.
        disk: Disk,
        /// For the result.
        reason: String,
    },
}

/// A disk that is read.
pub(super) struct Reading {
    pub source: OpenSource,
    /// Bytes; `None` for a stream until it has ended.
    pub size: Option<u64>,
    pub method: Method,
    /// Why it is read whole where less was asked for.
    pub reason: Option<String>,
    pub base: Option<BaseDisk>,
    /// Names of what was read.
    pub ids: Arc<IdFile>,
    /// Where a stream ended; `u64::MAX` before.
    pub stream_end: AtomicU64,
    pub common: Option<common::Reading>,
}

/// What a disk's changes are laid over.
pub(super) struct BaseDisk {
    pub disk: Disk,
    pub point: mover_model::Name,
    pub changes: Changes,
}

impl OpenDisk {
    pub fn new(arranged: Arranged, what: What) -> Self {
        OpenDisk { arranged, what, counters: Counters::default(), error: Mutex::default() }
    }

    pub fn spec(&self) -> &DiskSpec {
        &self.arranged.spec
    }

    /// Records an error, unless there was one before.
    pub fn fail(&self, error: Error) {
        self.error.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(error);
    }

    pub fn error(&self) -> Option<Error> {
        self.error.lock().unwrap_or_else(|p| p.into_inner()).clone()
    }

    pub fn reading(&self) -> Option<&Reading> {
        match &self.what {
            What::Read(reading) => Some(reading),
            What::Reference { .. } => None,
        }
    }

    /// Bytes, as far as known.
    pub fn size(&self) -> Option<u64> {
        match &self.what {
            What::Read(reading) => reading.size_now(),
            What::Reference { disk, .. } => Some(disk.size),
        }
    }
}

impl Reading {
    /// Bytes, once a stream has ended too.
    pub fn size_now(&self) -> Option<u64> {
        let end = self.stream_end.load(std::sync::atomic::Ordering::Acquire);
        self.size.or((end != u64::MAX).then_some(end))
    }

    pub fn is_stream(&self) -> bool {
        self.source.source.order() == Order::Sequential
    }

    /// The way the source is read.
    pub fn access(&self, chunk_size: u32) -> Access {
        let access = self.source.source.access();
        let granule = u64::from(self.source.source.alignment(access).offset);
        if u64::from(chunk_size).is_multiple_of(granule) { access } else { Access::Buffered }
    }

    /// Where the part begins that the source's best way cannot read: the unaligned last chunk.
    pub fn tail(&self, chunk_size: u32) -> Option<u64> {
        let size = self.size?;
        let granule = u64::from(self.source.source.alignment(self.access(chunk_size)).offset);
        (!size.is_multiple_of(granule)).then_some(size / u64::from(chunk_size) * u64::from(chunk_size))
    }

    /// An upper bound on the bytes that will be read, where there is one.
    pub fn data_bound(&self) -> Option<u64> {
        if let Some(base) = &self.base {
            return Some(base.changes.read.bytes());
        }
        let size = self.size?;
        match (&self.source.file, self.source.identity.as_ref().is_some_and(|id| id.block_device.is_some())) {
            (Some(file), false) => {
                let blocks = file.file().metadata().map_or(size, |meta| meta.blocks().saturating_mul(512));
                // Chunks are larger than what a filesystem allocates.
                Some(size.min(blocks.saturating_mul(2)))
            }
            (Some(_), true) => Some(size),
            // null: is nothing but a hole.
            (None, _) => Some(0),
        }
    }

    /// Bytes that will be accounted for, where known.
    pub fn total(&self) -> Option<u64> {
        self.base.as_ref().map(|base| base.changes.read.bytes()).or(self.size)
    }

    /// Absolute path, where the source is a file.
    pub fn path(&self, spec: &DiskSpec) -> Option<String> {
        match (&spec.locator, &self.source.file) {
            (Locator::Path(path), Some(_)) => {
                std::path::absolute(path).ok().map(|path| path.display().to_string())
            }
            _ => None,
        }
    }

    /// What a plan tells: bytes to read, bytes that are zeros, extents. With `count` they are counted where they are not
    /// known.
    pub fn amount(&self, count: bool) -> Result<(Option<u64>, Option<u64>, Option<u64>)> {
        let Some(size) = self.size else { return Ok((None, None, None)) };
        if let Some(base) = &self.base {
            let (read, changed) = (base.changes.read.bytes(), base.changes.changed.bytes());
            return Ok((Some(read), Some(changed - read), Some(base.changes.read.len() as u64)));
        }
        match &self.source.file {
            Some(file) if file.is_block() => Ok((Some(size), Some(0), Some(1))),
            None => Ok((Some(0), Some(size), Some(1))),
            Some(_) if !count => Ok((None, None, None)),
            Some(_) => {
                let (mut data, mut extents) = (0, 0);
                for extent in self.source.source.extents()? {
                    let extent = extent?;
                    extents += 1;
                    data += if extent.kind == ExtentKind::Data { extent.length } else { 0 };
                }
                Ok((Some(data), Some(size - data), Some(extents)))
            }
        }
    }
}

/// What the opening of disks has to know.
pub(super) struct Opening<'a> {
    pub options: &'a BackupOptions,
    pub chunk_size: u32,
    pub points: &'a Points,
    pub base: Option<&'a Base>,
    pub control: &'a Control,
    pub emit: Emit<'a>,
}

impl Opening<'_> {
    /// Opens a disk's source and decides how it is read.
    pub fn open(&self, number: usize, spec: &DiskSpec, common: Option<common::Reading>) -> Result<Reading> {
        let how = OpenOptions { direct: self.options.engine.direct };
        let source = open_source(&spec.locator, how, self.control)?;
        if let Some(message) = &source.warning {
            (self.emit)(Event::Warning { message: message.clone() });
        }
        let stream = source.source.order() == Order::Sequential;
        if stream && self.options.record_read_errors {
            return Err(Error::usage(
                "--on-read-error record needs a source that can be read again, not a pipe",
            )
            .at(spec.locator.to_string()));
        }
        let size = source.source.size();
        let listed = self.options.extents.iter().any(|(id, _)| *id == spec.id);
        let (base, reason) = match (listed, self.base, size) {
            (false, ..) => (None, None),
            (true, Some(base), Some(size)) => self.changed(number, spec, size, base)?,
            (true, ..) => {
                return Err(Error::usage("--extents cannot work on a stream").at(spec.locator.to_string()));
            }
        };
        let earlier =
            self.points.points.iter().any(|point| point.disks.iter().any(|disk| disk.id == spec.id));
        let method = match &base {
            Some(_) => Method::Changed,
            None if earlier => Method::Scan,
            None => Method::Full,
        };
        let reading = Reading {
            source,
            size,
            method,
            reason,
            base,
            ids: Arc::new(IdFile::new()?),
            stream_end: AtomicU64::new(u64::MAX),
            common,
        };
        if reading.access(self.chunk_size) != reading.source.source.access() {
            self.control.degrade(Degradation {
                about: "direct".into(),
                wanted: "O_DIRECT".into(),
                used: "the page cache".into(),
                reason: format!(
                    "the source asks for an alignment that chunks of {} bytes do not have",
                    self.chunk_size
                ),
                path: Some(spec.locator.to_string()),
            });
        }
        Ok(reading)
    }

    /// What a list of changes comes to: what it is laid over, or why everything is read all the same.
    fn changed(
        &self,
        number: usize,
        spec: &DiskSpec,
        size: u64,
        base: &Base,
    ) -> Result<(Option<BaseDisk>, Option<String>)> {
        let list = check::read_list(self.options, number, &spec.id, size, self.emit)?;
        let listed = list.base.as_deref();
        let (disk, reason) = base.disk(&spec.id, size, self.chunk_size, listed, self.points)?;
        if let Some(reason) = reason {
            self.control.degrade(Degradation {
                about: "incremental".into(),
                wanted: format!("only the listed extents of `{}` to be read", spec.id),
                used: "all of it".into(),
                reason: reason.clone(),
                path: Some(spec.locator.to_string()),
            });
            return Ok((None, Some(reason)));
        }
        let changes = changes(&list.extents, size, self.chunk_size);
        let point = base.manifest.point.clone();
        Ok((Some(BaseDisk { disk: disk.clone(), point, changes }), None))
    }
}

/// Root and bytes of a disk of which nothing has changed: the base's own.
pub(super) fn unchanged(base: &BaseDisk) -> Option<(ChunkId, u64)> {
    base.changes.changed.is_empty().then_some((base.disk.root, base.disk.data_bytes))
}

/// What a source that was written to, or that shrank, while it was read gave is not what it was.
pub(super) fn check_unchanged(spec: &DiskSpec, source: &OpenSource, emit: Emit<'_>) -> Result<()> {
    let (Some(file), Some(then)) = (&source.file, &source.identity) else { return Ok(()) };
    let label = spec.locator.to_string();
    let now = file.identity_now().map_err(|error| Error::io(Operation::Stat, &label, &error))?;
    if now.size < then.size {
        let error = Error::new(ErrorKind::SourceShrank, "the source shrank while it was read");
        return Err(error.at(label).offset(now.size));
    }
    if now.mtime_ns != then.mtime_ns || now.size != then.size {
        let message = format!("{label} was written to while it was read: the restore point may mix moments");
        emit(Event::Warning { message });
    }
    Ok(())
}
