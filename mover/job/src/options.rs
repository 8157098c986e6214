//! What a user may say about the engine, before anything was probed. Every verb that moves data takes it.

use std::path::Path;

use mover_endpoints::Direct;
use mover_engine::settings::HugePages;
use mover_model::{Error, Operation, Result, limits};
use serde::{Deserialize, Serialize};

/// Where workers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numa {
    /// Anywhere.
    Off,
    /// On the node of the first device that tells one.
    Auto,
    /// On this node.
    Node(u32),
}

/// The engine flag group. `None` means: the default, which depends on what is found.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// `--block-size`: bytes of one request.
    pub block_size: Option<u32>,
    /// `--queue-depth`: requests in flight for each worker.
    pub queue_depth: Option<u16>,
    /// `--workers`.
    pub workers: Option<usize>,
    /// `--memory-limit`: bytes of the whole process.
    pub memory_limit: Option<u64>,
    /// `--direct`.
    pub direct: Direct,
    /// `--sqpoll`.
    pub sqpoll: bool,
    /// `--iopoll`.
    pub iopoll: bool,
    /// `--hugepages`.
    pub huge_pages: HugePages,
    /// `--hugepages required`: an error where the pool has too few.
    pub huge_pages_required: bool,
    /// `--cpus`: CPUs that workers are pinned to, in turn.
    pub cpus: Vec<usize>,
    /// `--numa`.
    pub numa: Numa,
    /// `--rate`: bytes a second.
    pub rate: Option<u64>,
    /// `--backend`: `None` chooses by probing.
    pub backend: Option<mover_engine::Backend>,
    /// `--no-register`: buffers and files are not registered with the ring (to measure what it is worth).
    pub register: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            block_size: None,
            queue_depth: None,
            workers: None,
            memory_limit: None,
            direct: Direct::Auto,
            sqpoll: false,
            iopoll: false,
            huge_pages: HugePages::Auto,
            huge_pages_required: false,
            cpus: Vec::new(),
            numa: Numa::Off,
            rate: None,
            backend: None,
            register: true,
        }
    }
}

impl EngineOptions {
    /// Checks what can be checked without looking at endpoints.
    ///
    /// # Errors
    /// `Usage`, naming the flag.
    pub fn check(&self) -> Result<()> {
        if let Some(size) = self.block_size
            && (!size.is_multiple_of(limits::BLOCK_SIZE_MIN)
                || !(limits::BLOCK_SIZE_MIN..=limits::BLOCK_SIZE_MAX).contains(&size))
        {
            return Err(Error::usage(format!(
                "--block-size {size}: must be a multiple of 4K between 4K and 32M"
            )));
        }
        if let Some(depth) = self.queue_depth.filter(|d| !(1..=limits::QUEUE_DEPTH_MAX).contains(d)) {
            return Err(Error::usage(format!(
                "--queue-depth {depth}: must be between 1 and {}",
                limits::QUEUE_DEPTH_MAX
            )));
        }
        if let Some(workers) = self.workers.filter(|w| !(1..=limits::WORKERS_MAX).contains(w)) {
            return Err(Error::usage(format!(
                "--workers {workers}: must be between 1 and {}",
                limits::WORKERS_MAX
            )));
        }
        if let Some(limit) = self.memory_limit.filter(|&limit| limit < limits::MEMORY_LIMIT_MIN) {
            return Err(Error::usage(format!(
                "--memory-limit {}: must be at least {} MiB",
                mover_model::units::format_size(limit),
                limits::MEMORY_LIMIT_MIN >> 20
            )));
        }
        if self.rate == Some(0) {
            return Err(Error::usage("--rate 0: nothing would ever move"));
        }
        Ok(())
    }
}

/// Flags that `tune --save` found best on a path; `--profile FILE` takes them where the command line says
/// nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `mover-profile`.
    pub format: String,
    /// 1.
    pub version: u32,
    /// Bytes of one request.
    pub block_size: Option<u32>,
    /// Requests in flight for each worker.
    pub queue_depth: Option<u16>,
    /// Workers.
    pub workers: Option<usize>,
}

impl Profile {
    /// Name of the format.
    pub const FORMAT: &'static str = "mover-profile";

    /// Reads a profile.
    ///
    /// # Errors
    /// `Unreachable` when the file cannot be read, `Usage` when it is no profile of a known version.
    pub fn read(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let text = std::fs::read(path).map_err(|error| Error::io(Operation::Open, &label, &error))?;
        let profile: Profile = serde_json::from_slice(&text)
            .map_err(|error| Error::usage(format!("is no profile: {error}")).at(&label))?;
        if profile.format != Profile::FORMAT || profile.version != 1 {
            return Err(Error::usage("is no profile of a version this mover knows").at(label));
        }
        Ok(profile)
    }

    /// Puts what the profile says where the options say nothing.
    pub fn apply(&self, options: &mut EngineOptions) {
        options.block_size = options.block_size.or(self.block_size);
        options.queue_depth = options.queue_depth.or(self.queue_depth);
        options.workers = options.workers.or(self.workers);
    }
}
