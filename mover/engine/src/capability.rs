//! What this kernel and this process may use: found by trying, never by version numbers.

use std::os::fd::AsRawFd;

use mover_model::{Error, Result, limits};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use crate::arena::Arena;
use crate::control::Control;
use crate::lane::Alignment;
use crate::ring::{Flavour, Ring, Role};
use crate::settings::{Backend, HugePages, Settings};
use crate::sys;

/// What was found.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// The kernel's release, as uname(2) gives it.
    pub kernel: String,
    /// The best ring flavour, or why io_uring cannot be used.
    pub uring: std::result::Result<Flavour, String>,
    /// Every flavour, with whether it can be set up.
    pub flavours: Vec<(Flavour, std::result::Result<(), String>)>,
    /// Whether the default buffers of one worker can be registered, or why not.
    pub registered_buffers: std::result::Result<(), String>,
    /// Limit on locked memory in bytes; `None`: unlimited.
    pub memlock: Option<u64>,
    /// Free pages of the hugetlb pool.
    pub free_huge_pages: u64,
    /// The setting of transparent huge pages.
    pub transparent_huge_pages: String,
    /// CPUs this process may run on.
    pub cpus: usize,
}

/// Finds the best ring flavour for this process.
///
/// # Errors
/// Why there is none, in words: forbidden by sysctl or seccomp, or not in this kernel.
pub fn probe_uring() -> std::result::Result<Flavour, String> {
    let mut reason = String::new();
    for flavour in Flavour::TASK_RUN {
        match flavour.build(4, Role::Data) {
            Ok(_) => return Ok(flavour),
            Err(error) => {
                reason = match error.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => {
                        match sys::read_setting("/proc/sys/kernel/io_uring_disabled") {
                            Some(value) if value != "0" => {
                                format!("forbidden by the sysctl kernel.io_uring_disabled={value}")
                            }
                            _ => "forbidden by seccomp or a security module".to_owned(),
                        }
                    }
                    Some(libc::ENOSYS) => "not in this kernel, or hidden by seccomp".to_owned(),
                    Some(libc::ENOMEM) => "no memory for a ring (ulimit -l)".to_owned(),
                    _ => error.to_string(),
                };
            }
        }
    }
    Err(reason)
}

/// Finds everything, for `doctor`.
pub fn probe() -> Capabilities {
    let uring = probe_uring();
    let flavours = Flavour::TASK_RUN
        .into_iter()
        .chain([Flavour::SubmissionPolled])
        .map(|flavour| (flavour, flavour.build(4, Role::Data).map(drop).map_err(|error| error.to_string())))
        .collect();
    let registered_buffers = match &uring {
        Ok(_) => probe_registration().map_err(|error| error.to_string()),
        Err(reason) => Err(reason.clone()),
    };
    let memlock = getrlimit(Resource::RLIMIT_MEMLOCK).ok().map(|(soft, _)| soft);
    Capabilities {
        kernel: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        uring,
        flavours,
        registered_buffers,
        memlock: memlock.filter(|&limit| limit != libc::RLIM_INFINITY),
        free_huge_pages: sys::read_setting("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        transparent_huge_pages: sys::read_setting("/sys/kernel/mm/transparent_hugepage/enabled")
            .unwrap_or_else(|| "none".to_owned()),
        cpus: available_cpus(),
    }
}

/// Whether this process may lock memory past its limit: CAP_IPC_LOCK is among the effective capabilities.
pub fn may_lock_memory() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = sys::read_setting("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << CAP_IPC_LOCK) != 0
}

/// Bytes of buffers that this process may register; `None`: no limit but memory itself. Rings and the block of
/// zeros come out of the same limit.
pub fn registrable_bytes() -> Option<u64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    if limit == libc::RLIM_INFINITY || may_lock_memory() {
        return None;
    }
    Some(limit.saturating_sub(limits::LOCKED_OVERHEAD))
}

/// CPUs this process may run on.
pub fn available_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn probe_registration() -> Result<()> {
    let settings = Settings { backend: Backend::Uring, ..Settings::default() };
    let control = Control::new();
    let mut ring = Ring::new(&settings, &control)?;
    let arena = Arena::new(settings.worker_bytes() as usize, HugePages::Auto)?;
    ring.register_buffers(&arena, &control);
    // The ring goes before the arena whose buffers it knows.
    drop(ring);
    match control.degraded(0).into_iter().next() {
        None => Ok(()),
        Some(degradation) => Err(Error::usage(degradation.reason)),
    }
}

/// The O_DIRECT rules of a file that was opened with O_DIRECT: by statx(2), or where the filesystem does not
/// tell, by a read of one page. `None`: O_DIRECT does not work on it.
pub fn probe_direct(file: &std::fs::File) -> Option<Alignment> {
    const PAGE: Alignment = Alignment { offset: 4096, memory: 4096 };
    match sys::direct_alignment(file) {
        Ok(Some(rules)) if rules.offset == 0 => return None,
        Ok(Some(rules)) => {
            // Pieces of a request begin at multiples of the offset rule in memory too, so it covers both.
            let rules = Alignment { offset: rules.offset.max(rules.memory), ..rules };
            return (rules.offset <= PAGE.offset).then_some(rules);
        }
        Ok(None) | Err(_) => {}
    }
    let arena = Arena::new(4096, HugePages::Off).ok()?;
    // SAFETY: the buffer holds one page, and the call returns before it is freed.
    let result = unsafe { libc::pread64(file.as_raw_fd(), arena.at(0).cast(), 4096, 0) };
    // A file opened for writing only cannot be read; it was opened with O_DIRECT, which is all that is known.
    let usable = result >= 0 || Errno::last() == Errno::EBADF;
    usable.then_some(PAGE)
}
