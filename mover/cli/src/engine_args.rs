//! The engine flag group: every verb that moves data takes it. Beside it what some of them have in common.

use std::path::PathBuf;

use clap::ValueEnum;
use mover_endpoints::Direct;
use mover_engine::Backend;
use mover_engine::settings::HugePages;
use mover_job::copy::Sparse;
use mover_job::options::{EngineOptions, Numa, Profile};
use mover_model::units::{parse_rate, parse_size};
use mover_model::{Error, Result};

/// How data is moved. The defaults are right without any of these.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Bytes of one request, a multiple of 4K up to 32M [default: what suits the verb; 1M for copy]
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<u32>,

    /// Requests in flight for each worker, up to 1024 [default: what suits the verb; 8 MiB of them for copy, 64 at most]
    #[arg(long, value_name = "N")]
    queue_depth: Option<u16>,

    /// Worker threads, each with its own ring, up to 256 [default: one for each pair or path, two in memory]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,

    /// Memory that the whole process may use, at least 16M [default: 24M, 32M for two workers, 8M for each more]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory_limit: Option<u64>,

    /// Whether reads and writes pass the page cache by (O_DIRECT)
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    direct: DirectArg,

    /// Let a kernel thread poll for submissions
    #[arg(long)]
    sqpoll: bool,

    /// Poll for completions; the devices need poll queues
    #[arg(long)]
    iopoll: bool,

    /// Huge pages for the buffers: on takes them from the kernel's pool where it has enough
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    hugepages: HugePagesArg,

    /// CPUs to pin the workers to, in turn, such as 0,2-5 [default: not pinned]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,

    /// NUMA node to run on: off, auto (the device's own) or a node's number
    #[arg(long, value_name = "NODE", value_parser = numa, default_value = "off")]
    numa: Option<Numa>,

    /// Most bytes a second, such as 200M [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<u64>,

    /// How requests reach the kernel; auto probes
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    backend: BackendArg,

    /// Do not register buffers and files with the ring (to measure what it is worth)
    #[arg(long, hide = true)]
    no_register: bool,

    /// Take block size, queue depth and workers that are not given here from a file of `tune --save`
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

impl EngineArgs {
    /// The engine's options, checked, with what `--profile` adds.
    ///
    /// # Errors
    /// `Usage` for values that make no sense; those of reading the profile.
    pub fn options(&self) -> Result<EngineOptions> {
        let mut options = EngineOptions {
            block_size: self.block_size,
            queue_depth: self.queue_depth,
            workers: self.workers,
            memory_limit: self.memory_limit,
            direct: match self.direct {
                DirectArg::Required => Direct::Required,
                DirectArg::Auto => Direct::Auto,
                DirectArg::Off => Direct::Off,
            },
            sqpoll: self.sqpoll,
            iopoll: self.iopoll,
            huge_pages: match self.hugepages {
                HugePagesArg::Auto => HugePages::Auto,
                HugePagesArg::On | HugePagesArg::Required => HugePages::Pool,
                HugePagesArg::Off => HugePages::Off,
            },
            huge_pages_required: matches!(self.hugepages, HugePagesArg::Required),
            cpus: self.cpus.clone().unwrap_or_default().0,
            numa: self.numa.unwrap_or(Numa::Off),
            rate: self.rate,
            backend: match self.backend {
                BackendArg::Auto => None,
                BackendArg::IoUring => Some(Backend::Uring),
                BackendArg::Sync => Some(Backend::Sync),
            },
            register: !self.no_register,
        };
        if self.sqpoll && options.backend == Some(Backend::Sync) {
            return Err(contradiction("--sqpoll", "--backend sync"));
        }
        if self.iopoll && options.backend == Some(Backend::Sync) {
            return Err(contradiction("--iopoll", "--backend sync"));
        }
        if self.iopoll && options.direct == Direct::Off {
            return Err(contradiction("--iopoll", "--direct off"));
        }
        options.check()?;
        if let Some(path) = &self.profile {
            Profile::read(path)?.apply(&mut options);
            options.check().map_err(|error| error.at(path.display().to_string()))?;
        }
        Ok(options)
    }
}

fn contradiction(flag: &str, other: &str) -> Error {
    Error::usage(format!("{flag} and {other} exclude each other"))
        .hint(format!("leave out {flag} or {other}"))
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DirectArg {
    Required,
    #[default]
    Auto,
    Off,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum HugePagesArg {
    #[default]
    Auto,
    On,
    Required,
    Off,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum BackendArg {
    #[default]
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Sync,
}

/// What becomes of zeros on a target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SparseArg {
    #[default]
    Auto,
    Never,
    Always,
}

impl From<SparseArg> for Sparse {
    fn from(arg: SparseArg) -> Self {
        match arg {
            SparseArg::Auto => Sparse::Auto,
            SparseArg::Never => Sparse::Never,
            SparseArg::Always => Sparse::Always,
        }
    }
}

/// What an unreadable part of a source does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnReadError {
    #[default]
    Fail,
    Record,
}

fn block_size(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(bytes).map_err(|_| "must be a multiple of 4K between 4K and 32M".to_owned())
}

fn numa(text: &str) -> Result<Numa, String> {
    match text {
        "off" => Ok(Numa::Off),
        "auto" => Ok(Numa::Auto),
        node => node.parse().map(Numa::Node).map_err(|_| "write off, auto or a node's number".to_owned()),
    }
}

/// CPUs in the order in which they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct CpuList(Vec<usize>);

/// The largest number of CPUs that a Linux kernel can be built for.
const CPUS_MAX: usize = 8192;

fn cpu_list(text: &str) -> Result<CpuList, String> {
    let number = |text: &str| -> Result<usize, String> {
        let cpu = text.parse().map_err(|_| format!("`{text}` is no CPU: write a list such as 0,2-5"))?;
        if cpu < CPUS_MAX { Ok(cpu) } else { Err(format!("no kernel has a CPU {cpu}")) }
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("`{part}` ends before it begins"));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("CPU {cpu} is named twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(CpuList(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use mover_model::ErrorKind;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        engine: EngineArgs,
    }

    fn options(args: &str) -> Result<EngineOptions> {
        Line::try_parse_from(["x"].into_iter().chain(args.split_whitespace())).unwrap().engine.options()
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        let said = format!("{:?}", options("").unwrap());
        assert_eq!(said, format!("{:?}", EngineOptions::default()));
    }

    #[test]
    fn every_flag_reaches_the_options() {
        let all = "--block-size 256K --queue-depth 32 --workers 4 --memory-limit 1GiB --direct required --sqpoll \
                   --iopoll --hugepages required --cpus 0,2-5 --numa 1 --rate 200M --backend io_uring --no-register";
        let options = options(all).unwrap();
        assert_eq!(options.block_size, Some(256 << 10));
        assert_eq!(options.queue_depth, Some(32));
        assert_eq!(options.workers, Some(4));
        assert_eq!(options.memory_limit, Some(1 << 30));
        assert_eq!(options.direct, Direct::Required);
        assert!(options.sqpoll && options.iopoll && !options.register);
        assert_eq!((options.huge_pages, options.huge_pages_required), (HugePages::Pool, true));
        assert_eq!(options.cpus, [0, 2, 3, 4, 5]);
        assert_eq!(options.numa, Numa::Node(1));
        assert_eq!(options.rate, Some(200 << 20));
        assert_eq!(options.backend, Some(Backend::Uring));
    }

    #[test]
    fn contradictions_and_bad_values_are_usage_errors() {
        for bad in [
            "--sqpoll --backend sync",
            "--iopoll --backend sync",
            "--iopoll --direct off",
            "--block-size 5000",
            "--block-size 64M",
            "--queue-depth 0",
            "--workers 300",
            "--memory-limit 1M",
            "--rate 0",
        ] {
            assert_eq!(options(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpu_list("3").unwrap().0, [3]);
        assert_eq!(cpu_list("4,0-2").unwrap().0, [4, 0, 1, 2]);
        for bad in ["", "a", "1-", "-1", "2-1", "0,,1", "1,0-2", "8192", "0-99999999999999999999"] {
            assert!(cpu_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_profile_fills_only_what_is_not_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        let text =
            r#"{"format":"mover-profile","version":1,"block_size":524288,"queue_depth":16,"workers":3}"#;
        std::fs::write(&path, text).unwrap();
        let options = options(&format!("--workers 1 --profile {}", path.display())).unwrap();
        assert_eq!(options.block_size, Some(512 << 10));
        assert_eq!((options.queue_depth, options.workers), (Some(16), Some(1)));
    }
}
