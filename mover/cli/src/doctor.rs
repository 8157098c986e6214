//! `mover doctor`: arguments and rendering; the work is `mover_job::doctor`.

use std::fmt::Write as _;
use std::path::PathBuf;

use mover_job::doctor::path::{Answer, Device};
use mover_job::doctor::{self, Advice, DoctorReport, PathReport, System};
use mover_model::units::format_size;

use crate::output;
use crate::people::print_error;

/// Arguments of `mover doctor`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Only looks, and never writes. A path that is not there: its folder is looked at. Exit code 10 \
                        when a path cannot be reached, else 0, whatever is missing."
)]
pub struct Args {
    /// Files, block devices and folders to look at
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Runs the verb; returns the process exit code.
pub fn run(args: Args, output: output::Options) -> u8 {
    let report = doctor::run(&args.paths);
    let printed = if output.json { output::document(&report) } else { output::text(&page(&report)) };
    report.errors.iter().for_each(print_error);
    mover_model::error::most_severe(printed, report.exit_code)
}

fn page(report: &DoctorReport) -> String {
    let mut text = String::new();
    host(&mut text, &report.system);
    hints(&mut text, &report.advice);
    for path in &report.paths {
        text.push('\n');
        one_path(&mut text, path);
        hints(&mut text, &path.advice);
    }
    text
}

fn field(text: &mut String, name: &str, value: impl AsRef<str>) {
    let _ = writeln!(text, "  {name:<26} {}", value.as_ref());
}

fn host(text: &mut String, system: &System) {
    let _ = writeln!(text, "host");
    field(text, "kernel", format!("{} ({})", system.kernel, system.machine));
    let uring = match (&system.io_uring.flavour, &system.io_uring.reason) {
        (Some(flavour), _) => format!("yes: {flavour}"),
        (None, reason) => format!("no: {}", reason.as_deref().unwrap_or("not known why")),
    };
    field(text, "io_uring", uring);
    for flavour in system.io_uring.flavours.iter().filter(|_| system.io_uring.usable) {
        let answer = match &flavour.fact.reason {
            None => "yes".to_owned(),
            Some(reason) => format!("no: {reason}"),
        };
        field(text, &format!("  {}", flavour.name), answer);
    }
    let registered = system.registered_buffers.reason.as_deref();
    field(text, "registered buffers", registered.map_or("yes".to_owned(), |reason| format!("no: {reason}")));
    let exempt = if system.memlock_exempt { ", which does not bind this user" } else { "" };
    let limit = |bytes| format!("at most {}{exempt}", format_size(bytes));
    field(text, "locked memory", system.memlock_bytes.map_or("no limit".to_owned(), limit));
    let pools: Vec<_> = system
        .huge_page_pools
        .iter()
        .map(|pool| format!("{} of {} free × {}", pool.free, pool.total, format_size(pool.page_bytes)))
        .collect();
    field(text, "huge page pools", if pools.is_empty() { "none".to_owned() } else { pools.join(", ") });
    field(text, "transparent huge", &system.transparent_huge_pages);
    field(text, "CPUs", format!("{} of {} on line", system.cpus_available, system.cpus_online));
    for node in &system.numa_nodes {
        let memory = node.memory_bytes.map_or(String::new(), |bytes| format!(", {}", format_size(bytes)));
        field(text, &format!("NUMA node {}", node.node), format!("CPUs {}{memory}", node.cpus));
    }
}

fn one_path(text: &mut String, report: &PathReport) {
    let _ = writeln!(text, "{}", report.path.display());
    if !report.exists {
        field(text, "is not there", format!("its folder {} was looked at", report.looked_at.display()));
    }
    field(text, "kind", report.kind);
    if let Some(size) = report.size_bytes {
        let allocated =
            report.allocated_bytes.map_or(String::new(), |b| format!(", {} allocated", format_size(b)));
        field(text, "size", format!("{} ({size} bytes){allocated}", format_size(size)));
    }
    if let Some(filesystem) = &report.filesystem {
        let at =
            report.mount_point.as_ref().map_or(String::new(), |point| format!(" at {}", point.display()));
        let free = report.free_bytes.map_or(String::new(), |bytes| format!(", {} free", format_size(bytes)));
        field(text, "filesystem", format!("{filesystem}{at}{free}"));
    }
    if report.read_only {
        field(text, "read-only", "yes: it can be a source only");
    }
    let rules = match (report.direct_offset_alignment, report.direct_memory_alignment) {
        (Some(offset), Some(memory)) => format!("; offsets by {offset}, memory by {memory} bytes"),
        _ => String::new(),
    };
    field(text, "O_DIRECT", format!("{}{rules}", answer(&report.direct)));
    field(text, "allocation", answer(&report.allocation));
    field(text, "reflink", answer(&report.reflink));
    field(text, "zeroing", &report.zeroing);
    if let Some(device) = &report.device {
        one_device(text, device);
    }
    field(text, "in use", if report.in_use.is_empty() { "no".to_owned() } else { report.in_use.join("; ") });
    if let Some(signature) = &report.signature {
        field(text, "carries", format!("{signature}: not overwritten without --force"));
    }
    if let Some(plan) = &report.plan {
        let used = format!(
            "{}, {}, blocks of {}, up to {} requests for each of {} worker(s), {} of buffers",
            plan.backend,
            plan.access,
            format_size(plan.block_size.into()),
            plan.queue_depth,
            plan.workers,
            format_size(plan.buffer_bytes)
        );
        field(text, "will be used", used);
        for degradation in &plan.degraded {
            let line =
                format!("{} instead of {}: {}", degradation.used, degradation.wanted, degradation.reason);
            field(text, "", line);
        }
    }
}

fn one_device(text: &mut String, device: &Device) {
    let number = |value: Option<u64>| value.map_or("?".to_owned(), |value| value.to_string());
    let spins = match device.rotational {
        Some(true) => ", rotational",
        Some(false) => ", not rotational",
        None => "",
    };
    let blocks = format!("blocks {}/{}", number(device.logical_block), number(device.physical_block));
    let scheduler = device.scheduler.as_deref().unwrap_or("none");
    field(text, "device", format!("{}, {blocks}, scheduler {scheduler}{spins}", device.name));
    let hardware = match device.max_hardware_transfer_kib {
        Some(kib) if kib > 1 << 20 => "no limit".to_owned(),
        kib => format!("{} KiB", number(kib)),
    };
    let transfer = format!(
        "{} KiB (hardware: {hardware}), {} segments, {} requests in its queue",
        number(device.max_transfer_kib),
        number(device.max_segments),
        number(device.queue_requests)
    );
    field(text, "  largest transfer", transfer);
    field(text, "  poll queues", if device.poll_queues { "yes" } else { "no" });
    let node = device.numa_node.map_or("not told".to_owned(), |node| node.to_string());
    field(text, "  NUMA node", node);
    if let Some(file) = &device.backing_file {
        let way = if device.backing_direct == Some(true) { "direct" } else { "through the page cache" };
        field(text, "  loop over", format!("{file}, {way}"));
    }
}

fn answer(answer: &Answer) -> String {
    let word = match answer.yes {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    };
    format!("{word}: {}", answer.reason)
}

fn hints(text: &mut String, advice: &[Advice]) {
    if !advice.is_empty() {
        let _ = writeln!(text, "  what it would take:");
    }
    for item in advice {
        let _ = writeln!(text, "    {}: {} → {}\n      {}", item.about, item.now, item.better, item.how);
    }
}
