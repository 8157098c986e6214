//! Events: what a suite reads while a run goes on, one JSON object a line.
//!
//! Version 1 only grows: fields are added, never renamed or removed. The schema is in docs/events.md.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::ErrorRecord;
use crate::manifest::{Method, Stored};

/// Version of the envelope and of all events in it.
pub const EVENT_VERSION: u32 = 1;

/// The envelope of every event line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`EVENT_VERSION`].
    pub v: u32,
    /// The run's id: all lines of one process share it.
    pub run: String,
    /// Rises by one from line to line; a gap tells that a slow reader lost progress events.
    pub seq: u64,
    /// RFC 3339, UTC, microseconds.
    pub time: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The run begins.
    Start {
        /// The verb.
        verb: String,
        /// Version of mover.
        version: String,
    },
    /// What will be done for one source and target, and by which means. One per pair.
    Plan(Plan),
    /// A choice that was made among equals, and why: nothing was lost by it.
    Choice {
        /// What was chosen about: `backend`, `workers`, `offload`, …
        about: String,
        /// What was chosen.
        chosen: String,
        /// Why.
        reason: String,
        /// The pair it is about, where it is about one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        pair: Option<usize>,
    },
    /// Something asked for or preferred was not to be had. An error under `--strict`.
    Degraded(Degradation),
    /// Something the user should know that is no downgrade.
    Warning {
        /// A sentence.
        message: String,
    },
    /// A phase of the run begins: `copy`, `rims`, `flush`, `verify`.
    Phase {
        /// Its name.
        phase: String,
    },
    /// Where the run stands. Sent once a second; dropped when the reader is slow.
    Progress(Progress),
    /// A part of the source that could not be read (`--on-read-error record`).
    BadExtent(BadExtent),
    /// What `prune` will do, before it deletes anything; `result.prune` says what it did.
    PrunePlan(PruneResult),
    /// The last line of every run.
    Result(Box<RunResult>),
}

/// A downgrade: what was wanted, what is used instead, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Degradation {
    /// `io_uring`, `direct`, `registered_buffers`, `registered_files`, `huge_pages`, `zeroing`, `sqpoll`, `iopoll`, `numa`, …
    pub about: String,
    /// What was wanted.
    pub wanted: String,
    /// What is used instead.
    pub used: String,
    /// Why.
    pub reason: String,
    /// The endpoint it is about, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
}

/// The plan of one pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Index of the pair, from 0.
    pub pair: usize,
    /// The source's locator.
    pub source: String,
    /// The target's locator.
    pub target: String,
    /// Bytes of the disk; absent for a stream.
    pub size: Option<u64>,
    /// Where the extents come from: `allocation`, `list`, `whole`, `stream`.
    pub extents_from: String,
    /// Bytes to read and write; absent where they are found on the way.
    pub data_bytes: Option<u64>,
    /// Bytes to zero or leave out; absent where they are found on the way.
    pub zero_bytes: Option<u64>,
    /// Number of extents; absent where they are found on the way.
    pub extents: Option<u64>,
    /// `io_uring` or `sync` or `reflink` or `copy_file_range`.
    pub backend: String,
    /// How the source is read: `direct` or `buffered`.
    pub source_access: String,
    /// How the target is written: `direct` or `buffered`.
    pub target_access: String,
    /// Bytes of one request.
    pub block_size: u32,
    /// Most requests in flight for each worker; large ones are bounded by `buffer_bytes` first.
    pub queue_depth: u16,
    /// Workers.
    pub workers: usize,
    /// Buffer memory in bytes, all workers together.
    pub buffer_bytes: u64,
}

/// Where a run stands; counted at completion, never at submission.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The phase.
    pub phase: String,
    /// Bytes of data that arrived at their targets.
    pub data_bytes: u64,
    /// Bytes that are zeros and were not moved.
    pub zero_bytes: u64,
    /// Bytes of all disks accounted for, holes included.
    pub done_bytes: u64,
    /// Bytes of all disks, where known.
    pub total_bytes: Option<u64>,
    /// Data bytes a second since the last progress event.
    pub bytes_per_second: u64,
    /// Seconds since the run began.
    pub elapsed_seconds: f64,
}

/// A part of a source that could not be read. The target is left there as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadExtent {
    /// Index of the pair.
    pub pair: usize,
    /// The source.
    pub path: String,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// The kernel's error number.
    pub errno: i32,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Everything was done.
    #[default]
    Done,
    /// Done, with recorded bad extents.
    DoneWithBadExtents,
    /// Failed, refused or interrupted: see `error`.
    Failed,
}

/// The last line of every run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// How it ended.
    pub status: Status,
    /// The process exit code.
    pub exit_code: u8,
    /// The verb.
    pub verb: String,
    /// Wall time in seconds.
    pub elapsed_seconds: f64,
    /// CPU time of the process in seconds, user and system together.
    pub cpu_seconds: f64,
    /// Peak resident memory in bytes.
    pub peak_memory_bytes: u64,
    /// What moved, all pairs together.
    pub moved: Moved,
    /// One entry per pair.
    pub pairs: Vec<PairResult>,
    /// Latency of reads from the sources.
    pub read_latency: Option<Latency>,
    /// Latency of writes to the targets.
    pub write_latency: Option<Latency>,
    /// Every downgrade of the run.
    pub degraded: Vec<Degradation>,
    /// The first [`crate::limits::BAD_EXTENTS_LISTED`] bad extents.
    pub bad_extents: Vec<BadExtent>,
    /// All bad extents, the unlisted ones included.
    pub bad_extents_count: u64,
    /// The restore point that was made, read or looked at.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub point: Option<PointResult>,
    /// What `verify` found.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verify: Option<VerifyResult>,
    /// What `gc` did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gc: Option<GcResult>,
    /// What `prune` did, or would do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prune: Option<PruneResult>,
    /// The most severe error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<ErrorRecord>,
}

/// A restore point as a run made or read it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PointResult {
    /// The repository's id.
    pub repository: String,
    /// The machine.
    pub vm: String,
    /// The restore point's id; with it the point is named as `VM@ID`.
    pub id: String,
    /// The one before it.
    pub parent: Option<String>,
    /// Whether it is in the repository: false after a failed backup and in a dry run.
    pub committed: bool,
    /// Whether an earlier run of the same run key had made it, so that this one did nothing.
    pub repeated: bool,
    /// Whether parts of it could not be read.
    pub damaged: bool,
    /// Its disks.
    pub disks: Vec<DiskResult>,
    /// What it added to the repository; zeros for a run that reads.
    pub stored: Stored,
}

/// One disk of a restore point, as a run made or read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskResult {
    /// The disk's id.
    pub id: String,
    /// What became of it.
    pub status: DiskStatus,
    /// Bytes.
    pub size: u64,
    /// The name of its content, 64 hex digits; absent where it did not come that far.
    pub root: Option<String>,
    /// How it was read by a backup.
    pub method: Option<Method>,
    /// Why it was read whole where less was asked for, or why it was kept.
    pub reason: Option<String>,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// What it added to the repository.
    pub stored: Stored,
    /// Present where the disk is common to several machines.
    pub common: Option<CommonResult>,
}

/// What became of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskStatus {
    /// Read, and what was new was stored.
    Stored,
    /// Neither read nor stored: another restore point has it.
    Referenced,
    /// Written to its target.
    Restored,
    /// A common disk that was left as it is.
    Kept,
    /// See `error`.
    Failed,
    /// Not begun: something else failed before.
    Skipped,
}

/// A common disk, as `show` and `result` tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonResult {
    /// By which it is known.
    pub id: String,
    /// Where it lies.
    pub location: String,
    /// The machines whose restore points have it.
    pub vms: Vec<String>,
}

/// What `verify` found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyResult {
    /// Restore points that were looked at.
    pub points: u64,
    /// Distinct chunks of data that were read and compared with their names.
    pub chunks: u64,
    /// Distinct tree nodes likewise.
    pub nodes: u64,
    /// Bytes read from packs.
    pub stored_bytes: u64,
    /// Objects that are missing or not as they were written: key, and what is wrong.
    pub damaged_objects: Vec<DamagedObject>,
    /// Damaged chunks.
    pub damaged_chunks: u64,
    /// What the damage touches: every disk of every restore point.
    pub touched: Vec<TouchedDisk>,
}

/// An object of the repository that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedObject {
    /// Its key.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

/// A disk of a restore point that damage touches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchedDisk {
    /// The machine.
    pub vm: String,
    /// The restore point.
    pub point: String,
    /// The disk.
    pub disk: String,
    /// Damaged ranges of the disk: start and length in bytes.
    pub extents: Vec<(u64, u64)>,
}

/// What `gc` did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GcResult {
    /// Chunks and nodes that restore points need.
    pub live_chunks: u64,
    /// Distinct tree nodes that were read to find that.
    pub nodes_read: u64,
    /// Packs deleted, or to be deleted in a dry run.
    pub packs_deleted: u64,
    /// Packs whose living chunks were moved to new ones.
    pub packs_rewritten: u64,
    /// Bytes of chunk data read for that.
    pub rewritten_bytes: u64,
    /// Bytes given back.
    pub freed_bytes: u64,
    /// Packs that wait on a doom list for sessions to end.
    pub packs_waiting: u64,
    /// The sessions that are waited for.
    pub waiting_for: Vec<String>,
    /// Dead sessions that were ended.
    pub sessions_ended: u64,
    /// Other objects deleted: superseded segments, temporary files, notes of what is gone.
    pub objects_deleted: u64,
    /// Whether nothing was changed.
    pub dry_run: bool,
}

/// What `prune` did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PruneResult {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// One entry for each restore point that was looked at, the oldest first.
    pub points: Vec<PrunePoint>,
}

/// A restore point in a prune plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunePoint {
    /// The machine.
    pub vm: String,
    /// The restore point.
    pub point: String,
    /// When it was begun.
    pub time: String,
    /// Whether it stays.
    pub keep: bool,
    /// Why: the rules that keep it (`last 1/7`, `daily 2026-11-20`), or why it cannot go yet.
    pub reasons: Vec<String>,
}

/// Bytes and requests that moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Bytes read from the sources.
    pub read_bytes: u64,
    /// Bytes written to the targets as data.
    pub written_bytes: u64,
    /// Bytes zeroed or left out on the targets.
    pub zero_bytes: u64,
    /// Of these, bytes that were data at the source and found to be zeros.
    pub zero_found_bytes: u64,
    /// Payload bytes copied in user space: 0 on a raw move.
    pub copied_bytes: u64,
    /// Bytes shared or copied by the kernel (reflink, copy_file_range).
    pub offloaded_bytes: u64,
    /// Bytes that a journal says were moved by an earlier run.
    pub resumed_bytes: u64,
    /// Bytes read back and compared.
    pub verified_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Zeroing requests.
    pub zeroes: u64,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, other: Moved) {
        // Taken apart, so that a new field cannot be forgotten here.
        let Moved {
            read_bytes,
            written_bytes,
            zero_bytes,
            zero_found_bytes,
            copied_bytes,
            offloaded_bytes,
            resumed_bytes,
            verified_bytes,
            reads,
            writes,
            zeroes,
        } = other;
        self.read_bytes += read_bytes;
        self.written_bytes += written_bytes;
        self.zero_bytes = self.zero_bytes.saturating_add(zero_bytes);
        self.zero_found_bytes += zero_found_bytes;
        self.copied_bytes += copied_bytes;
        self.offloaded_bytes += offloaded_bytes;
        self.resumed_bytes = self.resumed_bytes.saturating_add(resumed_bytes);
        self.verified_bytes = self.verified_bytes.saturating_add(verified_bytes);
        self.reads += reads;
        self.writes += writes;
        self.zeroes += zeroes;
    }
}

/// The outcome of one pair.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PairResult {
    /// The disk's id, where the run knows disks by id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disk: Option<String>,
    /// The source's locator.
    pub source: String,
    /// The target's locator.
    pub target: String,
    /// How it ended.
    pub status: Status,
    /// Bytes of the disk.
    pub size: Option<u64>,
    /// What moved.
    pub moved: Moved,
    /// Whether the target was flushed to stable storage after its last write.
    pub flushed: bool,
    /// Whether `--verify` ran and found the target equal.
    pub verified: bool,
    /// The error that ended this pair.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<ErrorRecord>,
}

/// Latency of one kind of request, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Requests measured.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// Slowest.
    pub max_us: u64,
}

/// One line of `--digest-out`, and the record behind `--verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestLine {
    /// Index of the pair.
    pub pair: usize,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// xxh3-128 of the bytes; absent for a range of zeros that was not read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub xxh3_128: Option<Digest>,
    /// Whether it is a range of zeros that was not read.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub zero: bool,
}
