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
    /// Pages of the kernel's hugetlb pool; a downgrade when it has none.
    Required,
    /// Ordinary pages.
    Off,
}

/// Settings of one run of the engine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of one request; a multiple of 4 KiB.
    pub block_size: u32,
    /// Requests in flight for each worker.
    pub queue_depth: u16,
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
            queue_depth: limits::QUEUE_DEPTH_DEFAULT,
            workers: limits::WORKERS_DEFAULT,
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
        self.workers as u64 * u64::from(self.queue_depth) * u64::from(self.block_size)
    }
}
