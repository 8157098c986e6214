//! What one engine run is told: sizes, depth, workers and ring flavour, all decided before it starts.

use mover_model::limits;

/// The two ways to hand operations to the kernel; both keep the same contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// One io_uring per worker.
    Uring,
    /// pread, pwrite, fallocate: one operation at a time per worker.
    Sync,
}

impl Backend {
    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Uring => "io_uring",
            Backend::Sync => "sync",
        }
    }
}

/// Whether huge pages back the buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// Transparent huge pages where the kernel has them to give; nothing is said when it has none.
    Auto,
    /// Pages of the kernel's hugetlb pool; a downgrade when it has too few.
    Pool,
    /// Ordinary pages.
    Off,
}

/// Settings of one run of the engine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of one request; a multiple of 4 KiB.
    pub block_size: u32,
    /// Most requests in flight for each worker.
    pub queue_depth: u16,
    /// Most bytes in flight for each worker, a multiple of the block size; `None`: as many as `queue_depth`
    /// whole blocks. With less, small requests fill the depth and large ones the bytes.
    pub bytes_in_flight: Option<u64>,
    /// Worker threads.
    pub workers: usize,
    /// How operations reach the kernel.
    pub backend: Backend,
    /// A kernel thread polls for submissions.
    pub sqpoll: bool,
    /// Completions are polled for; the devices need poll queues.
    pub iopoll: bool,
    /// Whether buffers and files are registered with the ring.
    pub register: bool,
    /// What backs the buffers.
    pub huge_pages: HugePages,
    /// CPUs that workers are pinned to, in turn; empty: not pinned.
    pub cpus: Vec<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            block_size: limits::BLOCK_SIZE_DEFAULT,
            queue_depth: limits::REQUESTS_DEFAULT,
            bytes_in_flight: Some(limits::BYTES_IN_FLIGHT_DEFAULT),
            workers: limits::WORKERS_PER_PAIR,
            backend: Backend::Uring,
            sqpoll: false,
            iopoll: false,
            register: true,
            huge_pages: HugePages::Auto,
            cpus: Vec::new(),
        }
    }
}

impl Settings {
    /// Buffer memory of all workers in bytes.
    pub fn buffer_bytes(&self) -> u64 {
        self.workers as u64 * self.worker_bytes()
    }

    /// Buffer memory of one worker in bytes.
    pub fn worker_bytes(&self) -> u64 {
        let block_size = u64::from(self.block_size);
        let whole = u64::from(self.queue_depth) * block_size;
        let most = self.bytes_in_flight.map_or(whole, |bytes| bytes / block_size * block_size);
        most.clamp(block_size, whole.max(block_size))
    }
}
