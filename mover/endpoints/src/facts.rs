//! What sysfs tells of the device below a path.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mover_engine::sys::{block_device_size, read_setting};
use mover_model::{Error, ErrorKind, Operation, Result};
use nix::sys::stat::{major, minor};

/// A block device as `doctor` shows it and as polling and NUMA placement need it.
#[derive(Debug, Clone, Default)]
pub struct DeviceFacts {
    /// Its kernel name, such as `nvme0n1`.
    pub name: String,
    /// Bytes of a logical block.
    pub logical_block: Option<u64>,
    /// Bytes of a physical block.
    pub physical_block: Option<u64>,
    /// Largest transfer in KiB that one request may have.
    pub max_transfer_kib: Option<u64>,
    /// Most memory segments of one request.
    pub max_segments: Option<u64>,
    /// Whether it has poll queues.
    pub polls: bool,
    /// Requests its queue holds.
    pub requests: Option<u64>,
    /// NUMA node it hangs on.
    pub numa_node: Option<i64>,
    /// Whether it spins.
    pub rotational: Option<bool>,
    /// The scheduler in use.
    pub scheduler: Option<String>,
    /// Whether it can zero by a command of its own.
    pub zeroes_offload: bool,
}

impl DeviceFacts {
    /// The largest request that a polled ring may be given, in bytes. A larger one would be split, and on
    /// kernel 6.1 a split polled request never completes.
    pub fn polled_request_max(&self) -> Option<u64> {
        let by_sectors = self.max_transfer_kib.map(|kib| kib << 10);
        let by_segments = self.max_segments.map(|segments| segments << 12);
        match (by_sectors, by_segments) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// The device a file is, or lies on; `None` for filesystems without one (tmpfs, btrfs, network).
pub fn device_facts(file: &File) -> Option<DeviceFacts> {
    let meta = file.metadata().ok()?;
    let number = if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() };
    facts_of_number(number)
}

/// The device a path is, or lies on, without opening it.
pub fn device_of_path(path: &Path) -> Option<DeviceFacts> {
    let meta = std::fs::metadata(path).ok()?;
    let number = if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() };
    facts_of_number(number)
}

fn facts_of_number(number: u64) -> Option<DeviceFacts> {
    let disk = sysfs_disk(number)?;
    let queue = disk.join("queue");
    let number = |name: &str| read_setting(queue.join(name)).and_then(|text| text.parse::<u64>().ok());
    let scheduler = read_setting(queue.join("scheduler"));
    Some(DeviceFacts {
        name: disk.file_name()?.to_string_lossy().into_owned(),
        logical_block: number("logical_block_size"),
        physical_block: number("physical_block_size"),
        max_transfer_kib: number("max_sectors_kb"),
        max_segments: number("max_segments").filter(|&segments| segments > 0),
        polls: number("io_poll") == Some(1),
        requests: number("nr_requests"),
        numa_node: read_setting(disk.join("device/numa_node"))
            .or_else(|| read_setting(disk.join("device/device/numa_node")))
            .and_then(|text| text.parse().ok())
            .filter(|&node| node >= 0),
        rotational: number("rotational").map(|value| value == 1),
        scheduler: scheduler.map(|text| match (text.find('['), text.find(']')) {
            (Some(from), Some(to)) if from < to => text[from + 1..to].to_owned(),
            _ => text,
        }),
        zeroes_offload: number("write_zeroes_max_bytes").is_some_and(|bytes| bytes > 0),
    })
}

/// The folder of a device number in sysfs; a partition's is inside its disk's.
pub(crate) fn sysfs_node(number: u64) -> Option<PathBuf> {
    std::fs::canonicalize(format!("/sys/dev/block/{}:{}", major(number), minor(number))).ok()
}

/// The folder of the whole disk that a device number is, or is a partition of.
pub(crate) fn sysfs_disk(number: u64) -> Option<PathBuf> {
    let node = sysfs_node(number)?;
    if node.join("partition").exists() { node.parent().map(Path::to_path_buf) } else { Some(node) }
}

/// A name by which a block device is known again after a restart, as good as the kernel has one: its WWID or
/// serial number, the file below a loop device, and for a partition its number; else the device number.
pub(crate) fn stable_name(number: u64) -> String {
    let (Some(node), Some(disk)) = (sysfs_node(number), sysfs_disk(number)) else {
        return format!("device:{}:{}", major(number), minor(number));
    };
    let said = |name: &str| read_setting(disk.join(name)).filter(|text| !text.is_empty());
    let backing = said("loop/backing_file").and_then(|path| {
        let meta = std::fs::metadata(path).ok()?;
        Some(format!("loop:{}:{}:{}", meta.dev(), meta.ino(), said("loop/offset").unwrap_or_default()))
    });
    let name = backing
        .or_else(|| {
            ["wwid", "device/wwid", "serial", "device/serial", "dm/uuid", "md/uuid"]
                .into_iter()
                .find_map(said)
        })
        .unwrap_or_else(|| format!("device:{}:{}", major(number), minor(number)));
    match read_setting(node.join("partition")) {
        Some(partition) => format!("{name}:{partition}"),
        None => name,
    }
}

/// Bytes of an open regular file or block device.
pub(crate) fn size_of_file(file: &File, label: &str) -> Result<u64> {
    let meta = file.metadata().map_err(|error| Error::io(Operation::Stat, label, &error))?;
    size_of(file, meta.file_type().is_block_device(), label)
}

/// The same, where it is known what it is.
pub(crate) fn size_of(file: &File, is_block: bool, label: &str) -> Result<u64> {
    let size = if is_block {
        block_device_size(file).map_err(|errno| Error::os(Operation::Stat, label, errno as i32))?
    } else {
        file.metadata().map_err(|error| Error::io(Operation::Stat, label, &error))?.len()
    };
    if size > i64::MAX as u64 {
        return Err(Error::new(ErrorKind::Usage, "is larger than 2^63 - 1 bytes").at(label));
    }
    Ok(size)
}
