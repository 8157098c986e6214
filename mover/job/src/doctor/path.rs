//! What one path allows: found by asking the kernel, never by trying on data.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mover_endpoints::{DeviceFacts, device_facts, device_of_path, find_signature};
use mover_engine::capability::probe_direct;
use mover_engine::sys::{
    block_device_size, filesystem_magic, filesystem_name, is_read_only_device, lies_in_memory, read_setting,
    whole_file,
};
use mover_engine::{Backend, Control};
use mover_model::event::{Degradation, Event};
use mover_model::{Error, Operation, Result};
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::{Whence, lseek};
use serde::Serialize;

use super::mounts::{Mount, loops_over, mount_of, users_of_device};
use super::{Advice, System};
use crate::bench::target::folder_of;
use crate::options::EngineOptions;
use crate::resolve::{Found, resolve};

/// Facts of one path.
#[derive(Debug, Clone, Serialize)]
pub struct PathReport {
    /// As it was named.
    pub path: PathBuf,
    /// Whether it is there.
    pub exists: bool,
    /// What the facts below are of: the path, or the folder it would be made in.
    pub looked_at: PathBuf,
    /// `file`, `device`, `folder`, `pipe` or `other`.
    pub kind: &'static str,
    /// Bytes of a file or device.
    pub size_bytes: Option<u64>,
    /// Bytes of it that are allocated, for a file.
    pub allocated_bytes: Option<u64>,
    /// Free bytes of its filesystem, for users.
    pub free_bytes: Option<u64>,
    /// The filesystem it lies on; of a device nothing.
    pub filesystem: Option<String>,
    /// Where that is mounted.
    pub mount_point: Option<PathBuf>,
    /// Whether it may not be written: the mount or the device is read-only.
    pub read_only: bool,
    /// Whether O_DIRECT works.
    pub direct: Answer,
    /// Granule of offsets and lengths with O_DIRECT, in bytes.
    pub direct_offset_alignment: Option<u32>,
    /// Granule of buffer addresses with O_DIRECT, in bytes.
    pub direct_memory_alignment: Option<u32>,
    /// Whether holes can be told from data.
    pub allocation: Answer,
    /// Whether files on it can share blocks.
    pub reflink: Answer,
    /// How zeros reach it as a target.
    pub zeroing: String,
    /// The device it is or lies on.
    pub device: Option<Device>,
    /// Who uses it.
    pub in_use: Vec<String>,
    /// What a device or image carries, in words.
    pub signature: Option<String>,
    /// What a copy from here uses when nothing is said.
    pub plan: Option<Plan>,
    /// What would make it better.
    pub advice: Vec<Advice>,
}

/// Yes, no, or not known; and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// `None`: not known.
    pub yes: Option<bool>,
    /// Why.
    pub reason: String,
}

impl Answer {
    fn new(yes: impl Into<Option<bool>>, reason: impl Into<String>) -> Self {
        Answer { yes: yes.into(), reason: reason.into() }
    }
}

/// A block device.
#[derive(Debug, Clone, Serialize)]
pub struct Device {
    /// Its kernel name.
    pub name: String,
    /// Bytes of a logical block.
    pub logical_block: Option<u64>,
    /// Bytes of a physical block.
    pub physical_block: Option<u64>,
    /// Largest transfer of one request, in KiB.
    pub max_transfer_kib: Option<u64>,
    /// Largest transfer that the hardware takes, in KiB.
    pub max_hardware_transfer_kib: Option<u64>,
    /// Most memory segments of one request.
    pub max_segments: Option<u64>,
    /// Requests its queue holds.
    pub queue_requests: Option<u64>,
    /// Whether it has poll queues.
    pub poll_queues: bool,
    /// NUMA node it hangs on.
    pub numa_node: Option<i64>,
    /// Whether it spins.
    pub rotational: Option<bool>,
    /// The scheduler in use.
    pub scheduler: Option<String>,
    /// Whether it zeroes by a command of its own.
    pub zeroes_offload: bool,
    /// The file below a loop device.
    pub backing_file: Option<String>,
    /// Whether a loop device passes the page cache by.
    pub backing_direct: Option<bool>,
}

/// What will be used.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// `io_uring` or `sync`.
    pub backend: String,
    /// `direct` or `buffered`.
    pub access: &'static str,
    /// Bytes of one request.
    pub block_size: u32,
    /// Requests in flight for each worker.
    pub queue_depth: u16,
    /// Workers.
    pub workers: usize,
    /// Buffer memory in bytes.
    pub buffer_bytes: u64,
    /// Choices among equals, with their reasons.
    pub choices: Vec<String>,
    /// Downgrades.
    pub degraded: Vec<Degradation>,
}

/// Looks at a path; where it is not there, at its folder.
///
/// # Errors
/// `Unreachable` when neither is there, or it may not be read.
pub fn look(path: &Path, mounts: &[Mount], system: &System) -> Result<PathReport> {
    let label = path.display().to_string();
    let (looked_at, exists, meta) = match std::fs::metadata(path) {
        Ok(meta) => (path.to_owned(), true, meta),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let folder = folder_of(path);
            let meta = std::fs::metadata(&folder).map_err(|_| Error::io(Operation::Stat, &label, &error))?;
            (folder, false, meta)
        }
        Err(error) => return Err(Error::io(Operation::Stat, label, &error)),
    };
    let kind = kind_of(&meta);
    // A pipe would block, and a character device may act on being opened.
    let file = match kind {
        "file" | "device" | "folder" => {
            Some(File::open(&looked_at).map_err(|error| Error::io(Operation::Open, &label, &error))?)
        }
        _ => None,
    };
    let real = std::fs::canonicalize(&looked_at).unwrap_or_else(|_| looked_at.clone());
    let mount = mount_of(mounts, &real).filter(|_| kind != "device");
    let facts = match &file {
        Some(file) => {
            device_facts(file).or_else(|| mount.and_then(|mount| device_of_path(Path::new(&mount.source))))
        }
        None => None,
    };
    let size_bytes = match (kind, &file) {
        ("device", Some(file)) => block_device_size(file).ok(),
        ("file", _) => Some(meta.len()),
        _ => None,
    };
    let filesystem = filesystem_of(kind, file.as_ref(), mount);
    let (direct, rules) = direct_of(kind, &looked_at, filesystem.as_deref());
    let device = facts.as_ref().map(device_of);
    let mut report = PathReport {
        path: path.to_owned(),
        exists,
        kind,
        size_bytes,
        allocated_bytes: (kind == "file").then(|| meta.blocks() * 512),
        free_bytes: (kind == "file" || kind == "folder").then(|| free_of(&looked_at)).flatten(),
        mount_point: mount.map(|mount| mount.point.clone()),
        read_only: mount.is_some_and(|mount| mount.read_only)
            || (kind == "device" && file.as_ref().is_some_and(|f| is_read_only_device(f).unwrap_or(false))),
        direct_offset_alignment: rules.map(|rules| rules.offset),
        direct_memory_alignment: rules.map(|rules| rules.memory),
        direct,
        allocation: allocation_of(kind, file.as_ref(), size_bytes.unwrap_or(0)),
        reflink: reflink_of(kind, file.as_ref(), filesystem.as_deref()),
        zeroing: zeroing_of(kind, filesystem.as_deref(), facts.as_ref()),
        in_use: users_of(kind, &meta, file.as_ref(), mounts),
        signature: signature_of(kind, file.as_ref(), size_bytes),
        plan: None,
        advice: Vec::new(),
        looked_at,
        filesystem,
        device,
    };
    report.plan = plan_of(&report, file.as_ref(), facts.as_ref());
    report.advice = advice(&report, system);
    Ok(report)
}

fn kind_of(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_file() {
        "file"
    } else if kind.is_block_device() {
        "device"
    } else if kind.is_dir() {
        "folder"
    } else if kind.is_fifo() {
        "pipe"
    } else {
        "other"
    }
}

fn filesystem_of(kind: &str, file: Option<&File>, mount: Option<&Mount>) -> Option<String> {
    if kind == "device" {
        return None;
    }
    // The mount knows more names than the numbers of statfs do.
    let by_number = file.and_then(|file| filesystem_magic(file).ok()).map(filesystem_name);
    match (by_number, mount) {
        (Some(name), _) if name != "unknown" => Some(name.to_owned()),
        (_, Some(mount)) => Some(mount.filesystem.clone()),
        (name, None) => name.map(str::to_owned),
    }
}

fn free_of(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}

fn direct_of(kind: &str, path: &Path, filesystem: Option<&str>) -> (Answer, Option<mover_engine::Alignment>) {
    match kind {
        "folder" => {
            let answer = match filesystem {
                Some("ext4" | "xfs" | "btrfs" | "zfs" | "nfs" | "smb" | "bcachefs" | "f2fs") => {
                    Answer::new(true, "as this filesystem is known; the rules are those of each file")
                }
                _ => Answer::new(None, "only a file on it tells"),
            };
            return (answer, None);
        }
        "file" | "device" => {}
        _ => return (Answer::new(false, "is no disk"), None),
    }
    match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Err(error) => (Answer::new(false, error.to_string()), None),
        Ok(file) => match probe_direct(&file) {
            Some(rules) => (Answer::new(true, "the kernel says so"), Some(rules)),
            None => (Answer::new(false, "its alignment rules are not known or not usable"), None),
        },
    }
}

fn allocation_of(kind: &str, file: Option<&File>, size: u64) -> Answer {
    match (kind, file) {
        ("device", _) => Answer::new(false, "a device does not tell what is allocated: all of it is read"),
        ("file", Some(_)) if size == 0 => Answer::new(None, "the file is empty"),
        ("file", Some(file)) => {
            let data = lseek(file, 0, Whence::SeekData);
            match data {
                Ok(_) | Err(nix::errno::Errno::ENXIO) => Answer::new(true, "SEEK_DATA and SEEK_HOLE work"),
                Err(errno) => Answer::new(false, format!("SEEK_DATA: {}", errno.desc())),
            }
        }
        _ => Answer::new(None, "only a file tells"),
    }
}

fn reflink_of(kind: &str, file: Option<&File>, filesystem: Option<&str>) -> Answer {
    let (Some(file), Some(filesystem)) = (file, filesystem) else {
        return Answer::new(false, if kind == "device" { "a device shares no blocks" } else { "is no disk" });
    };
    match filesystem {
        "btrfs" | "bcachefs" => Answer::new(true, "every file of this filesystem can share blocks"),
        "xfs" => match mover_engine::xfs::has_reflink(file) {
            Ok(true) => Answer::new(true, "made with reflink=1"),
            Ok(false) => Answer::new(false, "made with reflink=0"),
            Err(errno) => Answer::new(None, errno.desc()),
        },
        "nfs" | "smb" | "zfs" | "overlay" | "overlayfs" | "ocfs2" => {
            Answer::new(None, format!("{filesystem}: known when it is tried on a copy"))
        }
        other => Answer::new(false, format!("{other} cannot share blocks")),
    }
}

fn zeroing_of(kind: &str, filesystem: Option<&str>, facts: Option<&DeviceFacts>) -> String {
    match (kind, filesystem) {
        ("device", _) if facts.is_some_and(|facts| facts.zeroes_offload) => {
            "by a command of the device (write zeroes)".into()
        }
        ("device", _) => "zeros written as data: the device has no command for it".into(),
        (_, Some("ext4" | "xfs" | "btrfs" | "tmpfs" | "f2fs" | "bcachefs")) => "holes punched".into(),
        ("file" | "folder", Some(other)) => {
            format!("{other}: holes punched where it takes them, else zeros written")
        }
        _ => "zeros written as data".into(),
    }
}

fn device_of(facts: &DeviceFacts) -> Device {
    let block = Path::new("/sys/class/block").join(&facts.name);
    let hardware = read_setting(block.join("queue/max_hw_sectors_kb"));
    Device {
        name: facts.name.clone(),
        logical_block: facts.logical_block,
        physical_block: facts.physical_block,
        max_transfer_kib: facts.max_transfer_kib,
        max_hardware_transfer_kib: hardware.and_then(|text| text.parse().ok()),
        max_segments: facts.max_segments,
        queue_requests: facts.requests,
        poll_queues: facts.polls,
        numa_node: facts.numa_node,
        rotational: facts.rotational,
        scheduler: facts.scheduler.clone(),
        zeroes_offload: facts.zeroes_offload,
        backing_file: read_setting(block.join("loop/backing_file")),
        backing_direct: read_setting(block.join("loop/dio")).map(|text| text == "1"),
    }
}

fn users_of(kind: &str, meta: &Metadata, file: Option<&File>, mounts: &[Mount]) -> Vec<String> {
    match (kind, file) {
        ("device", _) => users_of_device(mounts, meta.rdev()),
        ("file", Some(file)) => {
            let mut users = loops_over(meta);
            if is_locked(file) {
                users.push("locked by another process (a virtual machine, or another mover)".to_owned());
            }
            users
        }
        _ => Vec::new(),
    }
}

/// Whether any process holds a lock on a part of the file.
fn is_locked(file: &File) -> bool {
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

fn signature_of(kind: &str, file: Option<&File>, size: Option<u64>) -> Option<String> {
    match (kind, file, size) {
        ("file" | "device", Some(file), Some(size)) => {
            find_signature(file, size).ok().flatten().map(str::to_owned)
        }
        _ => None,
    }
}

/// What a copy from here uses when nothing is said.
fn plan_of(report: &PathReport, file: Option<&File>, facts: Option<&DeviceFacts>) -> Option<Plan> {
    let file = file?;
    let memory = report.kind != "device" && lies_in_memory(file);
    let found = Found {
        pairs: 1,
        memory_only: memory,
        data_bytes: report.size_bytes.filter(|_| report.kind == "file"),
        devices: facts.cloned().into_iter().collect(),
        ..Found::default()
    };
    let control = Control::new();
    let resolved = resolve(&EngineOptions::default(), &found, &control).ok()?;
    let direct = !memory && report.direct.yes != Some(false);
    let choices = resolved.choices.into_iter().filter_map(|event| match event {
        Event::Choice { about, chosen, reason, .. } => Some(format!("{about}: {chosen} ({reason})")),
        _ => None,
    });
    let settings = resolved.settings;
    Some(Plan {
        backend: if settings.backend == Backend::Uring { "io_uring" } else { "sync" }.to_owned(),
        access: if direct { "direct" } else { "buffered" },
        block_size: settings.block_size,
        queue_depth: settings.queue_depth,
        workers: settings.workers,
        buffer_bytes: settings.buffer_bytes(),
        choices: choices.collect(),
        degraded: control.degraded(0),
    })
}

/// What would make it better, and how.
fn advice(report: &PathReport, system: &System) -> Vec<Advice> {
    let mut list = Vec::new();
    if report.direct.yes == Some(false) && matches!(report.kind, "file" | "device") {
        let better = "O_DIRECT: no copy through the page cache";
        let how = "put the image on ext4, xfs, btrfs or a block device".to_owned();
        list.push(Advice::new("direct", &format!("the page cache: {}", report.direct.reason), better, how));
    }
    if report.filesystem.as_deref() == Some("xfs") && report.reflink.yes == Some(false) {
        let how = "mkfs.xfs -m reflink=1 (it cannot be added later)".to_owned();
        list.push(Advice::new("reflink", "blocks are copied", "copies on this filesystem in no time", how));
    }
    if !report.in_use.is_empty() {
        let better = "a target: one in use is always refused";
        let how = "unmount, detach or stop what uses it; it can be read as it is".to_owned();
        list.push(Advice::new("in_use", &report.in_use.join("; "), better, how));
    }
    let Some(device) = &report.device else { return list };
    let queue = format!("/sys/block/{}/queue", device.name);
    if !device.poll_queues {
        let driver = match device.name.as_str() {
            name if name.starts_with("nvme") => Some("nvme"),
            name if name.starts_with("vd") => Some("virtio_blk"),
            _ => None,
        };
        if let Some(driver) = driver {
            let polls = system.cpus_online.clamp(1, 4);
            let how = format!("{driver}.poll_queues={polls} on the kernel's command line, then --iopoll");
            list.push(Advice::new(
                "poll_queues",
                "completions by interrupt",
                "polled completions (lower latency)",
                how,
            ));
        }
    } else {
        let how = "--iopoll".to_owned();
        list.push(Advice::new(
            "poll_queues",
            "completions by interrupt",
            "polled completions (lower latency)",
            how,
        ));
    }
    if let Some(scheduler) =
        device.scheduler.as_deref().filter(|&s| s != "none" && device.rotational == Some(false))
    {
        let how = format!("echo none > {queue}/scheduler");
        list.push(Advice::new("scheduler", scheduler, "none: less CPU for each request", how));
    }
    let block = report.plan.as_ref().map_or(0, |plan| u64::from(plan.block_size) >> 10);
    if let (Some(now), Some(most)) = (device.max_transfer_kib, device.max_hardware_transfer_kib)
        && now < block
        && now < most
    {
        let better = most.min(block);
        let how = format!("echo {better} > {queue}/max_sectors_kb");
        let (now, better) = (format!("requests are split at {now} KiB"), format!("requests of {better} KiB"));
        list.push(Advice::new("max_transfer", &now, &better, how));
    }
    if device.backing_direct == Some(false) {
        let how = format!("losetup --direct-io=on /dev/{}", device.name);
        list.push(Advice::new("direct", "a loop device through the page cache", "a direct one", how));
    }
    if let Some(node) = device.numa_node.filter(|_| system.numa_nodes.len() > 1) {
        let better = format!("workers on node {node}, where the device is");
        list.push(Advice::new("numa", "workers on any node", &better, "--numa auto".to_owned()));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::{mounts, system};
    use super::*;

    fn look_at(path: &Path) -> Result<PathReport> {
        look(path, &mounts::mounts(), &system::look().0)
    }

    #[test]
    fn a_file_a_folder_and_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![7u8; 10_000]).unwrap();
        let report = look_at(&path).unwrap();
        assert_eq!((report.kind, report.exists, report.size_bytes), ("file", true, Some(10_000)));
        assert!(report.filesystem.is_some() && report.plan.is_some());
        let report = look_at(folder.path()).unwrap();
        assert_eq!(report.kind, "folder");
        let report = look_at(&folder.path().join("new")).unwrap();
        assert_eq!((report.kind, report.exists), ("folder", false));
        assert_eq!(report.looked_at, folder.path());
        assert_eq!(look_at(&folder.path().join("no/such")).unwrap_err().exit_code(), 10);
        // Nothing was written.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), vec![7u8; 10_000]);
    }

    #[test]
    fn a_lock_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_locked(file.as_file()));
        let whole = whole_file(libc::F_WRLCK);
        fcntl(file.as_file(), FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        assert!(is_locked(&File::open(file.path()).unwrap()));
    }

    #[test]
    fn zeroing_goes_by_facts() {
        let offload = DeviceFacts { zeroes_offload: true, ..DeviceFacts::default() };
        assert!(zeroing_of("device", None, Some(&offload)).contains("command of the device"));
        assert!(zeroing_of("device", None, None).contains("written"));
        assert_eq!(zeroing_of("folder", Some("xfs"), None), "holes punched");
    }
}
