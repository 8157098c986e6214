//! From what the user said and what was found to the settings of a run, with a reason for every choice.

use mover_endpoints::{DeviceFacts, Direct};
use mover_engine::capability::{available_cpus, probe_uring, registrable_bytes};
use mover_engine::settings::HugePages;
use mover_engine::sys::read_setting;
use mover_engine::{Backend, Control, Settings};
use mover_model::event::{Degradation, Event};
use mover_model::units::format_size;
use mover_model::{Error, Result, limits};

use crate::options::{EngineOptions, Numa};

/// What was found about the endpoints of a run.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Pairs that move at the same time.
    pub pairs: usize,
    /// Whether every endpoint lies in memory, so that each transfer is a copy by a CPU.
    pub memory_only: bool,
    /// Whether everything goes in order through one worker.
    pub sequential: bool,
    /// Bytes of data, where known or bounded.
    pub data_bytes: Option<u64>,
    /// The devices below the endpoints.
    pub devices: Vec<DeviceFacts>,
    /// Endpoints that polled I/O cannot reach, in words.
    pub unpolled: Vec<String>,
    /// What the endpoints ask for in each worker beside the buffers, registered with them.
    pub scratch: Scratch,
    /// Bytes that a request has to hold whole: chunks of a repository; 0 where there are none.
    pub chunk_size: u32,
    /// Whether workers hash and compress, so that CPUs bound the run and not the devices.
    pub cpu_bound: bool,
}

/// Registered memory beside the buffers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scratch {
    /// None.
    #[default]
    None,
    /// Where chunks of this many bytes are staged for packs.
    Write(u32),
    /// Where packs with chunks of this many bytes are read to.
    Read(u32),
}

impl Scratch {
    /// Bytes in a worker with so many bytes of buffers.
    pub fn bytes(self, worker_bytes: u64) -> u64 {
        match self {
            Scratch::None => 0,
            Scratch::Write(chunk_size) => mover_repository::write::scratch_bytes(chunk_size) as u64,
            Scratch::Read(chunk_size) => {
                mover_repository::read::scratch_bytes(chunk_size, worker_bytes) as u64
            }
        }
    }

    /// Bytes of buffers and of this, all workers together.
    pub fn with_buffers(self, settings: &Settings) -> u64 {
        settings.buffer_bytes() + settings.workers as u64 * self.bytes(settings.worker_bytes())
    }

    /// The most bytes of buffers, in whole blocks, that fit a worker's share together with this; 0 where none do.
    fn room(self, share: u64, block: u64, wanted: u64) -> u64 {
        let fits = |blocks: &u64| blocks * block + self.bytes(blocks * block) <= share;
        (1..=wanted.div_ceil(block)).rev().find(fits).map_or(0, |blocks| blocks * block)
    }
}

/// Most workers where nothing is said and CPUs bound the run: their memory keeps to the product's 256 MiB.
const WORKERS_CPU_BOUND_MAX: usize = 8;

/// Settings, and why.
pub struct Resolved {
    /// What the engine is told.
    pub settings: Settings,
    /// Choices, as events.
    pub choices: Vec<Event>,
}

/// Decides every setting.
///
/// # Errors
/// `Usage` when what was said contradicts itself.
pub fn resolve(options: &EngineOptions, found: &Found, control: &Control) -> Result<Resolved> {
    options.check()?;
    let mut choices = Vec::new();
    let mut choose = |about: &str, chosen: String, reason: String| {
        choices.push(Event::Choice { about: about.into(), chosen, reason, pair: None });
    };
    let backend = choose_backend(options, found, control, &mut choose)?;
    let mut settings = Settings {
        backend,
        register: options.register,
        huge_pages: options.huge_pages,
        ..Settings::default()
    };
    choose_rings(options, found, control, &mut settings, &mut choose);
    choose_sizes(options, found, &mut settings, &mut choose)?;
    hold_whole_chunks(found, control, &mut settings, &mut choose);
    let transparent = read_setting("/sys/kernel/mm/transparent_hugepage/enabled");
    let without = transparent.is_none_or(|setting| setting.contains("[never]"));
    if without && settings.backend == Backend::Uring && settings.huge_pages == HugePages::Auto {
        choose(
            "huge_pages",
            "ordinary pages".into(),
            "transparent huge pages are switched off here; with them, or --hugepages on, large transfers cost less"
                .into(),
        );
    }
    if options.huge_pages_required {
        require_huge_pages(&settings)?;
    }
    settings.cpus = choose_cpus(options, found, control, &mut choose);
    Ok(Resolved { settings, choices })
}

fn choose_backend(
    options: &EngineOptions,
    found: &Found,
    control: &Control,
    choose: &mut impl FnMut(&str, String, String),
) -> Result<Backend> {
    if options.backend == Some(Backend::Sync) {
        choose("backend", "sync".into(), "asked for".into());
        return Ok(Backend::Sync);
    }
    match probe_uring() {
        Err(reason) if options.backend == Some(Backend::Uring) => {
            Err(Error::new(mover_model::ErrorKind::Downgrade, format!("io_uring cannot be used: {reason}"))
                .hint("--backend auto uses system calls instead; `mover doctor` tells what is missing"))
        }
        Err(reason) => {
            control.degrade(Degradation {
                about: "io_uring".into(),
                wanted: "io_uring".into(),
                used: "system calls, one at a time for each of more workers".into(),
                reason,
                path: None,
            });
            Ok(Backend::Sync)
        }
        Ok(_) if options.backend.is_none() && found.memory_only => {
            choose(
                "backend",
                "sync".into(),
                "both ends lie in memory: a plain copy by each CPU is faster than handing it to kernel workers".into(),
            );
            Ok(Backend::Sync)
        }
        Ok(flavour) => {
            choose("backend", "io_uring".into(), format!("the kernel sets up {}", flavour.name()));
            Ok(Backend::Uring)
        }
    }
}

fn choose_rings(
    options: &EngineOptions,
    found: &Found,
    control: &Control,
    settings: &mut Settings,
    choose: &mut impl FnMut(&str, String, String),
) {
    let uring = settings.backend == Backend::Uring;
    let refuse = |about: &str, wanted: &str, reason: String| {
        control.degrade(Degradation {
            about: about.into(),
            wanted: wanted.into(),
            used: "submission and completion by system call".into(),
            reason,
            path: None,
        });
    };
    if options.sqpoll {
        if uring {
            settings.sqpoll = true;
        } else {
            refuse("sqpoll", "a kernel thread that submits", "there is no io_uring".into());
        }
    }
    if options.iopoll {
        let polled: Vec<_> = found.devices.iter().filter(|device| device.polls).collect();
        if !uring {
            refuse("iopoll", "polled completions", "there is no io_uring".into());
        } else if options.direct == Direct::Off {
            refuse(
                "iopoll",
                "polled completions",
                "polling needs O_DIRECT, and --direct off was said".into(),
            );
        } else if polled.is_empty() {
            refuse(
                "iopoll",
                "polled completions",
                "no device here has poll queues (nvme.poll_queues=N)".into(),
            );
        } else {
            settings.iopoll = true;
            for endpoint in &found.unpolled {
                choose("iopoll", format!("not for {endpoint}"), "its device has no poll queues".into());
            }
        }
    }
}

fn choose_sizes(
    options: &EngineOptions,
    found: &Found,
    settings: &mut Settings,
    choose: &mut impl FnMut(&str, String, String),
) -> Result<()> {
    let cpus = available_cpus();
    let asked = options.block_size.unwrap_or(limits::BLOCK_SIZE_DEFAULT);
    let block_size = whole_chunks(asked, found);
    if options.block_size.is_some_and(|asked| asked != block_size) {
        choose(
            "block_size",
            format_size(u64::from(block_size)),
            format!("a request holds whole chunks of {}", format_size(u64::from(found.chunk_size))),
        );
    }
    settings.block_size = block_size;
    if settings.iopoll {
        let most = found.devices.iter().filter(|d| d.polls).filter_map(DeviceFacts::polled_request_max).min();
        if let Some(most) = most.filter(|&most| most < u64::from(block_size)) {
            let rounded = (most as u32 / limits::BLOCK_SIZE_MIN).max(1) * limits::BLOCK_SIZE_MIN;
            settings.block_size = 1 << rounded.ilog2();
            choose(
                "block_size",
                format_size(u64::from(settings.block_size)),
                "a polled device takes no larger request whole, and a split one may never complete".into(),
            );
        }
    }
    // A stream needs one worker; little data does not keep several busy.
    let few = is_little(found, settings);
    settings.workers = match options.workers {
        _ if found.sequential => 1,
        Some(workers) => workers,
        None if few => 1,
        // A chunk is hashed and compressed by the worker that has read it.
        None if found.cpu_bound => cpus.clamp(1, WORKERS_CPU_BOUND_MAX),
        None => (found.pairs * limits::WORKERS_PER_PAIR).clamp(1, cpus),
    };
    if found.sequential && options.workers.is_some_and(|workers| workers > 1) {
        choose("workers", "1".into(), "a stream is moved in order".into());
    }
    let budget = match options.memory_limit {
        Some(limit) => limit
            .saturating_sub(limits::MEMORY_OVERHEAD)
            .max(limit / 2)
            .min(limit.saturating_sub(limits::MEMORY_OVERHEAD_MIN)),
        None => {
            let further = settings.workers.saturating_sub(2) as u64;
            limits::BUFFER_BYTES_DEFAULT + further * limits::BUFFER_BYTES_PER_FURTHER_WORKER
        }
    };
    // What endpoints ask for is part of a limit that was set; the default ceiling is of buffers alone.
    let scratch = if options.memory_limit.is_some() { found.scratch } else { Scratch::None };
    let block = u64::from(settings.block_size);
    if let Some(depth) = options.queue_depth {
        // A depth that was asked for is of whole blocks: it is what fio calls iodepth.
        settings.queue_depth = depth;
        settings.bytes_in_flight = None;
        let bytes =
            settings.buffer_bytes() + settings.workers as u64 * scratch.bytes(settings.worker_bytes());
        if settings.worker_bytes() > limits::BYTES_IN_FLIGHT_MAX {
            return Err(Error::usage(format!(
                "depth {depth} × {} is more than a worker can have in flight, 1 GiB",
                format_size(block)
            ))
            .hint("lower --queue-depth or --block-size"));
        }
        if options.memory_limit.is_some() && bytes > budget {
            return Err(Error::usage(format!(
                "{} workers × depth {depth} × {} do not fit the memory limit, which leaves {} for buffers",
                settings.workers,
                format_size(block),
                format_size(budget)
            ))
            .hint("lower --workers, --queue-depth or --block-size, or raise --memory-limit"));
        }
    } else {
        let wanted = limits::BYTES_IN_FLIGHT_DEFAULT.max(block);
        let room = |workers: usize| scratch.room(budget / workers as u64, block, wanted);
        while room(settings.workers) == 0 && settings.workers > 1 && options.workers.is_none() {
            settings.workers -= 1;
        }
        let room = room(settings.workers);
        if room == 0 && options.memory_limit.is_some() {
            return Err(Error::usage(format!(
                "{} workers with blocks of {} do not fit the memory limit",
                settings.workers,
                format_size(block)
            ))
            .hint("lower --workers or --block-size, or raise --memory-limit"));
        }
        settings.queue_depth = limits::REQUESTS_DEFAULT;
        let bytes = wanted.min(room).max(block);
        if bytes < wanted {
            choose(
                "bytes_in_flight",
                format_size(bytes),
                "the memory ceiling leaves room for no more".into(),
            );
        }
        let bytes = within_locked_memory(bytes, found, settings, choose);
        // No buffer that nothing will ever be read into.
        let needed =
            found.data_bytes.map(|data| data.div_ceil(settings.workers as u64).next_multiple_of(block));
        settings.bytes_in_flight = Some(needed.map_or(bytes, |needed| needed.clamp(block, bytes)));
    }
    if settings.backend == Backend::Sync {
        spread_over_threads(options, found, settings, cpus);
    }
    Ok(())
}

/// A request's bytes, as a multiple of the chunk.
fn whole_chunks(bytes: u32, found: &Found) -> u32 {
    match found.chunk_size {
        0 => bytes,
        chunk => bytes.max(chunk).next_multiple_of(chunk),
    }
}

/// Where a polled device takes no request as long as a chunk, it is not polled.
fn hold_whole_chunks(
    found: &Found,
    control: &Control,
    settings: &mut Settings,
    choose: &mut impl FnMut(&str, String, String),
) {
    let whole = whole_chunks(settings.block_size, found);
    if whole == settings.block_size {
        return;
    }
    if settings.iopoll {
        settings.iopoll = false;
        control.degrade(Degradation {
            about: "iopoll".into(),
            wanted: "polled completions".into(),
            used: "submission and completion by system call".into(),
            reason: "a polled device takes no request that is as long as a chunk".into(),
            path: None,
        });
    }
    settings.block_size = whole;
    let least = u64::from(whole);
    settings.bytes_in_flight = settings.bytes_in_flight.map(|bytes| (bytes / least * least).max(least));
    choose("block_size", format_size(least), "a request holds whole chunks".into());
}

/// Requests of whole chunks, for who reads trees: of a chunk that two requests have in part each would read all. Polled
/// devices take no larger requests than they were given.
pub fn fit_chunks(chunk_size: u32, settings: &mut Settings, emit: crate::Emit<'_>) {
    if chunk_size == 0 || settings.block_size.is_multiple_of(chunk_size) || settings.iopoll {
        return;
    }
    let block_size = settings.block_size.next_multiple_of(chunk_size);
    // As many bytes in flight as before, and a request at least.
    let bytes = settings.worker_bytes() / u64::from(block_size) * u64::from(block_size);
    settings.block_size = block_size;
    settings.bytes_in_flight = settings.bytes_in_flight.map(|_| bytes.max(u64::from(block_size)));
    emit(Event::Choice {
        about: "block_size".into(),
        chosen: format_size(u64::from(block_size)),
        reason: "requests hold whole chunks of the repository".into(),
        pair: None,
    });
}

/// As much as may be registered, where that is enough to work with: an ordinary user's limit of 8 MiB is just
/// short of the default, and registered buffers are worth more than the eighth block.
fn within_locked_memory(
    bytes: u64,
    found: &Found,
    settings: &Settings,
    choose: &mut impl FnMut(&str, String, String),
) -> u64 {
    let block = u64::from(settings.block_size);
    let uses = settings.backend == Backend::Uring && settings.register;
    let Some(lockable) = registrable_bytes().filter(|_| uses) else { return bytes };
    let share = found.scratch.room(lockable / settings.workers as u64, block, bytes);
    // Less than a quarter would cost more than registration brings.
    if share >= bytes || share < bytes / 4 || share == 0 {
        return bytes;
    }
    choose(
        "bytes_in_flight",
        format_size(share),
        "the limit on locked memory lets no more be registered".into(),
    );
    share
}

/// Refuses to begin where the pool of huge pages has too few for all workers.
fn require_huge_pages(settings: &Settings) -> Result<()> {
    const HUGE_PAGE: u64 = 2 << 20;
    let free = read_setting("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0);
    let each = (settings.worker_bytes() + mover_engine::arena::ZERO_BLOCK_BYTES as u64).div_ceil(HUGE_PAGE);
    let needed = settings.workers as u64 * each;
    if free >= needed {
        return Ok(());
    }
    let message =
        format!("huge pages are required: {needed} of 2 MiB are needed, and the pool has {free} free");
    Err(Error::new(mover_model::ErrorKind::Downgrade, message)
        .hint(format!("sysctl vm.nr_hugepages={needed}; or --hugepages on, which goes on without")))
}

/// Whether there is too little data for several workers.
fn is_little(found: &Found, settings: &Settings) -> bool {
    found.data_bytes.is_some_and(|bytes| bytes <= 8 * u64::from(settings.block_size))
}

/// Without a ring a worker has one operation in flight: depth becomes threads. Memory needs no depth at
/// all, only CPUs, and blocks that stay in their caches between read and write.
fn spread_over_threads(options: &EngineOptions, found: &Found, settings: &mut Settings, cpus: usize) {
    let in_flight = settings.workers * (settings.worker_bytes() / u64::from(settings.block_size)) as usize;
    settings.queue_depth = 1;
    settings.bytes_in_flight = None;
    if found.sequential {
        return;
    }
    if found.memory_only {
        if options.workers.is_none() && !is_little(found, settings) && !found.cpu_bound {
            settings.workers = cpus.min(limits::WORKERS_IN_MEMORY.max(found.pairs));
        }
        if options.block_size.is_none() {
            settings.block_size = whole_chunks(limits::MEMORY_BLOCK_SIZE, found);
        }
    } else if options.workers.is_none() {
        settings.workers = in_flight.clamp(1, limits::SYNC_WORKERS_MAX);
    }
}

fn choose_cpus(
    options: &EngineOptions,
    found: &Found,
    control: &Control,
    choose: &mut impl FnMut(&str, String, String),
) -> Vec<usize> {
    if !options.cpus.is_empty() {
        return options.cpus.clone();
    }
    let (node, why) = match options.numa {
        Numa::Off => return Vec::new(),
        Numa::Node(node) => (i64::from(node), "asked for".to_owned()),
        Numa::Auto => match found.devices.iter().find_map(|d| Some((d.numa_node?, d.name.clone()))) {
            Some((node, device)) => (node, format!("the device {device} hangs on it")),
            None => {
                choose("numa", "any node".into(), "no device here tells its node".into());
                return Vec::new();
            }
        },
    };
    let list = read_setting(format!("/sys/devices/system/node/node{node}/cpulist")).unwrap_or_default();
    let cpus = parse_cpu_list(&list).unwrap_or_default();
    if cpus.is_empty() {
        control.degrade(Degradation {
            about: "numa".into(),
            wanted: format!("workers on node {node}"),
            used: "any CPU".into(),
            reason: "the node does not exist or has no CPUs".into(),
            path: None,
        });
    } else {
        // Memory follows: a worker's first touch of its arena takes it from the node it runs on.
        choose("numa", format!("CPUs {list} of node {node}"), why);
    }
    cpus
}

/// CPUs of a list such as `0-3,8`; `None` if it is none.
pub fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > 8191 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        Found { pairs: 1, ..Found::default() }
    }

    fn settings(options: &EngineOptions, found: &Found) -> Result<Settings> {
        let mut settings = Settings::default();
        choose_sizes(options, found, &mut settings, &mut |_, _, _| {})?;
        Ok(settings)
    }

    #[test]
    fn buffers_keep_to_the_ceiling() {
        for workers in [1usize, 2, 3, 16] {
            for block_size in [4096u32, 65536, 1 << 20, 4 << 20] {
                let options = EngineOptions {
                    workers: Some(workers),
                    block_size: Some(block_size),
                    ..EngineOptions::default()
                };
                let settings = settings(&options, &found()).unwrap();
                let ceiling = (16 << 20) + workers.saturating_sub(2) as u64 * (7 << 20);
                assert!(settings.buffer_bytes() <= ceiling, "{workers} × {block_size}");
            }
        }
    }

    #[test]
    fn a_memory_limit_is_kept_or_refused() {
        let limit = |mib: u64| EngineOptions { memory_limit: Some(mib << 20), ..EngineOptions::default() };
        assert!(settings(&limit(24), &found()).unwrap().buffer_bytes() <= 12 << 20);
        assert!(settings(&limit(16), &found()).unwrap().buffer_bytes() <= 2 << 20);
        let mut options = limit(16);
        options.queue_depth = Some(64);
        assert_eq!(settings(&options, &found()).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn small_work_takes_one_worker_and_few_buffers() {
        let small = Found { data_bytes: Some(100_000), ..found() };
        let settings = settings(&EngineOptions::default(), &small).unwrap();
        assert_eq!((settings.workers, settings.buffer_bytes()), (1, 1 << 20));
    }

    #[test]
    fn requests_hold_whole_chunks() {
        for (chunk_size, block_size, expected) in [
            (128 << 10, None, 1 << 20),
            (4 << 20, None, 4 << 20),
            (128 << 10, Some(4096), 128 << 10),
            (2 << 20, Some(3 << 20), 4 << 20),
        ] {
            let found = Found { chunk_size, cpu_bound: true, ..found() };
            let options = EngineOptions { block_size, ..EngineOptions::default() };
            assert_eq!(
                settings(&options, &found).unwrap().block_size,
                expected,
                "{chunk_size} {block_size:?}"
            );
        }
    }

    #[test]
    fn scratch_memory_is_part_of_a_memory_limit() {
        for scratch in [Scratch::Write(128 << 10), Scratch::Read(128 << 10), Scratch::Read(4 << 20)] {
            let found = Found { scratch, cpu_bound: true, ..found() };
            let options =
                EngineOptions { memory_limit: Some(64 << 20), workers: Some(3), ..EngineOptions::default() };
            let settings = settings(&options, &found).unwrap();
            let all = settings.buffer_bytes() + 3 * scratch.bytes(settings.worker_bytes());
            assert!(all <= 48 << 20 && settings.worker_bytes() >= 1 << 20, "{scratch:?}: {all}");
            let tight = EngineOptions { memory_limit: Some(16 << 20), ..options };
            assert_eq!(super::tests::settings(&tight, &found).unwrap_err().exit_code(), 2, "{scratch:?}");
        }
    }

    #[test]
    fn cpus_bound_the_workers_of_a_repository_and_256_mib_their_memory() {
        let mut settings =
            Settings { workers: WORKERS_CPU_BOUND_MAX, block_size: 1 << 20, ..Settings::default() };
        let ceiling = limits::BUFFER_BYTES_DEFAULT
            + (WORKERS_CPU_BOUND_MAX as u64 - 2) * limits::BUFFER_BYTES_PER_FURTHER_WORKER;
        settings.bytes_in_flight = Some((ceiling / WORKERS_CPU_BOUND_MAX as u64) >> 20 << 20);
        for scratch in [Scratch::Write(512 << 10), Scratch::Read(512 << 10), Scratch::Read(4 << 20)] {
            let each = settings.worker_bytes() + scratch.bytes(settings.worker_bytes());
            let all = WORKERS_CPU_BOUND_MAX as u64 * each + limits::MEMORY_OVERHEAD;
            assert!(all < 256 << 20, "{scratch:?}: {all}");
        }
        let many = Found { cpu_bound: true, scratch: Scratch::Read(128 << 10), ..found() };
        let workers = super::tests::settings(&EngineOptions::default(), &many).unwrap().workers;
        assert_eq!(workers, available_cpus().clamp(1, WORKERS_CPU_BOUND_MAX));
        let little = Found { data_bytes: Some(4 << 20), ..many };
        assert_eq!(super::tests::settings(&EngineOptions::default(), &little).unwrap().workers, 1);
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0-2,8\n"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_cpu_list(""), Some(vec![]));
        assert_eq!(parse_cpu_list("2-1"), None);
        assert_eq!(parse_cpu_list("a"), None);
    }
}
