//! Every limit and default of the data path, each with its reason. Figures behind them: perf-notes.md.

/// Bytes of one request. 1 MiB was the fastest size of the bare loop on disk (256 KiB and 4 MiB both lose a
/// quarter); larger requests only add memory.
pub const BLOCK_SIZE_DEFAULT: u32 = 1 << 20;
/// Smallest request size: one page, the alignment every O_DIRECT path accepts.
pub const BLOCK_SIZE_MIN: u32 = 4 << 10;
/// Largest request size: the kernel takes one registered buffer of up to 1 GiB, and nothing is gained past 32 MiB.
pub const BLOCK_SIZE_MAX: u32 = 32 << 20;

/// Bytes in flight for each worker: eight blocks of 1 MiB keep a device busy in both directions, and are what
/// one worker may add to the process.
pub const BYTES_IN_FLIGHT_DEFAULT: u64 = 8 << 20;
/// Requests in flight for each worker: as many small ones fit into these bytes, and scattered extents need them.
pub const REQUESTS_DEFAULT: u16 = 64;
/// Most bytes in flight for each worker: the kernel registers no longer buffer.
pub const BYTES_IN_FLIGHT_MAX: u64 = 1 << 30;
/// Most requests in flight for each worker: the slot's index is part of the completion's token.
pub const QUEUE_DEPTH_MAX: u16 = 1024;

/// Workers for each pair when nothing is said: one ring fills a device, and a second worker on it only adds
/// CPU time and memory (perf-notes.md, "Workers").
pub const WORKERS_PER_PAIR: usize = 1;
/// Workers when every end lies in memory, where each transfer is a copy by a CPU.
pub const WORKERS_IN_MEMORY: usize = 2;
/// Most workers.
pub const WORKERS_MAX: usize = 256;

/// Buffer memory at two workers: half of the 32 MiB that the whole process may use; code, stacks, rings, the
/// queue of extents and the digest spools live in the other half.
pub const BUFFER_BYTES_DEFAULT: u64 = 16 << 20;
/// Buffer memory that each worker past the second adds; 7 of the 8 MiB, the last one is its stack and ring.
pub const BUFFER_BYTES_PER_FURTHER_WORKER: u64 = 7 << 20;

/// Largest extent that one worker takes from the queue, so that others find something to steal.
pub const STEAL_BYTES: u64 = 64 << 20;
/// Extents pulled from a source's extent list at once, by the worker that found the queue low.
pub const FEED_BATCH: usize = 64;
/// Zero ranges are cut to this, so that a zeroing call on a device without an offload can be interrupted
/// and shows progress.
pub const ZERO_REQUEST_BYTES: u64 = 1 << 30;

/// Data extents closer than this are read in one request and written in two: one more read costs a device
/// more than 32 KiB that are read for nothing. Not used when a caller's list says what may be touched.
pub const JOIN_GAP_BYTES: u32 = 32 << 10;
/// Most data pieces of one request.
pub const PIECES_MAX: usize = 64;

/// Runs of zeros found in data become holes from this length on (`--sparse auto`): shorter ones fragment the
/// target for little gain.
pub const ZERO_RUN_AUTO: u32 = 64 << 10;
/// The same under `--sparse always`: the page, the least a filesystem can leave out.
pub const ZERO_RUN_ALWAYS: u32 = 4 << 10;

/// Reads of a request that answered an I/O error are repeated in pieces of this size, so that `--on-read-error
/// record` loses no more than what is unreadable.
pub const SALVAGE_BYTES: u32 = 4 << 10;
/// Recorded bad extents after which a run gives up: the source is gone, not scratched.
pub const BAD_EXTENTS_MAX: usize = 100_000;
/// Bad extents that a `result` lists; the rest is counted.
pub const BAD_EXTENTS_LISTED: usize = 1_000;
/// Submissions of one operation that ended in EAGAIN or EINTR before it counts as failed.
pub const RETRIES_MAX: u32 = 10_000;

/// Bytes moved between two checkpoints of a journal. Each costs one flush of the target.
pub const JOURNAL_CHECKPOINT_BYTES: u64 = 512 << 20;
/// Longest time between two checkpoints of a journal, in milliseconds.
pub const JOURNAL_CHECKPOINT_MS: u64 = 1_000;
/// Finished segments on their way to the journal's keeper; workers wait when a flush takes longer than that.
pub const JOURNAL_QUEUE: usize = 32 << 10;
/// Extents read back from source and target before a journal is trusted: a second of work, whatever the size.
pub const RESUME_SAMPLE_EXTENTS: usize = 512;

/// Digest records kept in memory by each worker before they go to an unlinked temporary file.
pub const SPOOL_RECORDS: usize = 4_096;

/// Time between two progress events, in milliseconds.
pub const PROGRESS_MS: u64 = 1_000;
/// Longest sleep of a worker in the kernel, in milliseconds: how soon a signal or a rate limit is seen.
pub const WAIT_MS: u64 = 100;

/// Extents that a list from outside may hold; 48 bytes of text each at least, 16 bytes in memory.
pub const EXTENTS_MAX: usize = 64 << 20;

/// Locked memory that is not buffers: rings, the block of zeros of each worker.
pub const LOCKED_OVERHEAD: u64 = 1 << 20;
/// Least `--memory-limit`: code, stacks and rings take most of it, and one block has to fit.
pub const MEMORY_LIMIT_MIN: u64 = 16 << 20;
/// Memory of the process that is not buffers, at most: what `--memory-limit` leaves out of them.
pub const MEMORY_OVERHEAD: u64 = 16 << 20;
/// Memory of the process that is not buffers, at least. 7 to 9.5 MiB were measured for a copy, all but 0.7 MiB of them
/// pages of code and tables: how many of these are resident is the kernel's choice, which maps whole large folios of its
/// page cache around one that is touched. So all 9.8 MiB of the program count (a debug build is the largest), and 2 MiB
/// of the C library.
pub const MEMORY_OVERHEAD_MIN: u64 = 14 << 20;
/// Bytes of one request between two ends in memory: it stays in a CPU's cache between read and write.
pub const MEMORY_BLOCK_SIZE: u32 = 256 << 10;
/// Most workers of the synchronous backend: each has one operation in flight and a thread of its own.
pub const SYNC_WORKERS_MAX: usize = 16;
