//! Loop devices, and filesystems made on them, that vanish on drop.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::scratch::{ScratchDir, open_to_all};
use crate::skip::{Skip, require_path, require_root, require_tool};
use crate::sys;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// How long drop waits for late users (a udev probe, an I/O in flight) before it detaches lazily.
const PATIENCE: Duration = Duration::from_secs(3);

/// How a loop device is attached.
#[derive(Debug, Clone, Copy)]
pub struct LoopOptions {
    sector_size: u32,
    direct_io: bool,
    read_only: bool,
}

impl Default for LoopOptions {
    /// Sectors of 512 bytes, direct I/O to the file below, writable.
    fn default() -> LoopOptions {
        LoopOptions { sector_size: 512, direct_io: true, read_only: false }
    }
}

impl LoopOptions {
    /// Logical block size: 512 or 4096.
    pub fn sector_size(mut self, bytes: u32) -> LoopOptions {
        self.sector_size = bytes;
        self
    }

    /// Whether the device goes past the page cache of the file below.
    pub fn direct_io(mut self, direct_io: bool) -> LoopOptions {
        self.direct_io = direct_io;
        self
    }

    /// A device that refuses writes.
    pub fn read_only(mut self) -> LoopOptions {
        self.read_only = true;
        self
    }

    /// Attaches a free loop device to the file.
    pub fn attach(self, file: &Path) -> Result<LoopDevice, Skip> {
        require_root()?;
        require_path("/dev/loop-control")?;
        let mut command = Command::new(require_tool("losetup")?);
        command.args(["--find", "--show", "--sector-size", &self.sector_size.to_string()]);
        command.arg(if self.direct_io { "--direct-io=on" } else { "--direct-io=off" });
        if self.read_only {
            command.arg("--read-only");
        }
        let output = command.arg(file).output().expect("losetup runs");
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            // Whether loop devices, this sector size and direct I/O are to be had is up to the machine.
            return Err(Skip::because(format!("no loop device over {}: {reason}", file.display())));
        }
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let device = LoopDevice { path, _scratch: None };
        let direct_io = fs::read_to_string(device.attribute("loop/dio")).expect("state of a loop device");
        if (direct_io.trim() == "1") != self.direct_io {
            return Err(Skip::because(format!("no direct I/O below a loop device on {}", file.display())));
        }
        Ok(device)
    }

    /// Attaches a loop device to a new file of this size, all hole.
    pub fn sparse(self, size: u64) -> Result<LoopDevice, Skip> {
        let scratch = ScratchDir::new();
        let mut device = self.attach(&scratch.sparse("loop.img", size))?;
        device._scratch = Some(scratch);
        Ok(device)
    }
}

/// A block device over a file; detached on drop.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _scratch: Option<ScratchDir>,
}

impl LoopDevice {
    /// A loop device over the file with the default options.
    pub fn over(file: &Path) -> Result<LoopDevice, Skip> {
        LoopOptions::default().attach(file)
    }

    /// Path of the device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file of this device below `/sys/block`.
    pub fn attribute(&self, name: &str) -> PathBuf {
        Path::new("/sys/block").join(self.path.file_name().expect("name of a device")).join(name)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // A scope of its own: the device stays attached while this descriptor is open.
        if let Ok(device) = OpenOptions::new().read(true).open(&self.path) {
            let _ = sys::loop_detach(&device);
        }
        let deadline = Instant::now() + PATIENCE;
        while self.attribute("loop/backing_file").exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A filesystem that a test can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4 on a loop device.
    Ext4,
    /// XFS on a loop device, with reflink.
    Xfs,
    /// btrfs on a loop device.
    Btrfs,
    /// In memory.
    Tmpfs,
}

impl Kind {
    /// All of them, for tests that run over each.
    pub const ALL: [Kind; 4] = [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Tmpfs];

    /// The name by which the kernel knows it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
            Kind::Tmpfs => "tmpfs",
        }
    }

    /// The least size that its tools take without complaint.
    fn size_min(self) -> u64 {
        match self {
            Kind::Ext4 | Kind::Tmpfs => 16 * MIB,
            Kind::Xfs => 300 * MIB,
            Kind::Btrfs => 128 * MIB,
        }
    }
}

/// A filesystem to be made.
#[derive(Debug, Clone)]
pub struct Filesystem {
    kind: Kind,
    size: u64,
    device: LoopOptions,
    options: String,
}

impl Filesystem {
    /// A filesystem of this kind: 2 GiB, of which the machine spends what is written.
    pub fn new(kind: Kind) -> Filesystem {
        let device = LoopOptions::default().direct_io(false);
        Filesystem { kind, size: 2 * GIB, device, options: String::new() }
    }

    /// ext4.
    pub fn ext4() -> Filesystem {
        Filesystem::new(Kind::Ext4)
    }

    /// XFS.
    pub fn xfs() -> Filesystem {
        Filesystem::new(Kind::Xfs)
    }

    /// btrfs.
    pub fn btrfs() -> Filesystem {
        Filesystem::new(Kind::Btrfs)
    }

    /// tmpfs.
    pub fn tmpfs() -> Filesystem {
        Filesystem::new(Kind::Tmpfs)
    }

    /// Of this size.
    pub fn size(mut self, bytes: u64) -> Filesystem {
        self.size = bytes;
        self
    }

    /// As small as it goes, to be filled up quickly; see [`Mounted::leave_free`].
    pub fn small(self) -> Filesystem {
        let size = self.kind.size_min();
        self.size(size)
    }

    /// On a loop device with these options (not for tmpfs).
    pub fn device(mut self, options: LoopOptions) -> Filesystem {
        self.device = options;
        self
    }

    /// With these mount options, as behind `mount -o`.
    pub fn options(mut self, options: &str) -> Filesystem {
        self.options = options.to_owned();
        self
    }

    /// Makes it and mounts it in a temporary folder that every user may write to.
    pub fn mount(self) -> Result<Mounted, Skip> {
        require_root()?;
        let scratch = ScratchDir::new();
        scratch.open_to_all();
        let mount_point = scratch.file("mnt");
        fs::create_dir(&mount_point).expect("folder to mount on");
        let (device, source, options) = if self.kind == Kind::Tmpfs {
            (None, PathBuf::from("mover-test"), join(&format!("size={}", self.size), &self.options))
        } else {
            let device = self.device.attach(&scratch.sparse("disk.img", self.size))?;
            self.format(device.path())?;
            let source = device.path().to_owned();
            (Some(device), source, self.options.clone())
        };
        if let Err(error) = sys::mount(&source, &mount_point, self.kind.name(), &options) {
            if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)) {
                return Err(Skip::because(format!("cannot mount {}: {error}", self.kind.name())));
            }
            panic!("mount of {} with \"{options}\": {error}", self.kind.name());
        }
        let mounted = Mounted { mount_point, device, scratch };
        open_to_all(mounted.path());
        Ok(mounted)
    }

    fn format(&self, device: &Path) -> Result<(), Skip> {
        // No discard of a device that is all hole, no space kept for root, no background initialisation.
        let (tool, arguments): (_, &[&str]) = match self.kind {
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=0"]),
            Kind::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
            Kind::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K"]),
            Kind::Tmpfs => unreachable!("tmpfs has no device"),
        };
        let mut command = Command::new(require_tool(tool)?);
        let output = command.args(arguments).arg(device).stdin(Stdio::null()).output().expect("mkfs runs");
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} on {} bytes: {problem}", self.size);
        Ok(())
    }
}

fn join(first: &str, second: &str) -> String {
    if second.is_empty() { first.to_owned() } else { format!("{first},{second}") }
}

/// A mounted filesystem. Unmounted on drop, then its device goes, then its image.
#[derive(Debug)]
pub struct Mounted {
    mount_point: PathBuf,
    device: Option<LoopDevice>,
    scratch: ScratchDir,
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Path of a file on it, which need not exist.
    pub fn file(&self, name: &str) -> PathBuf {
        self.mount_point.join(name)
    }

    /// The device it is on, if any.
    pub fn device(&self) -> Option<&LoopDevice> {
        self.device.as_ref()
    }

    /// The image that holds it (absent for tmpfs).
    pub fn image(&self) -> PathBuf {
        self.scratch.file("disk.img")
    }

    /// Bytes that can still be written.
    pub fn free_bytes(&self) -> u64 {
        sys::free_bytes(self.path()).expect("statvfs of a mounted filesystem")
    }

    /// Reserves space by a file until about this many bytes are left, so that ENOSPC comes soon. On
    /// btrfs it is about and no more: what is free there is an estimate.
    pub fn leave_free(&self, bytes: u64) -> PathBuf {
        let path = self.file("ballast");
        let file = File::create(&path).expect("ballast file");
        let (mut len, mut step_max) = (0, u64::MAX);
        // Space for metadata comes and goes while blocks are reserved, and btrfs reserves in pieces of its own
        // only: so in several turns, and by half as much when it was too much.
        while step_max > 4096 {
            let step = self.free_bytes().saturating_sub(bytes).min(step_max);
            if step == 0 {
                break;
            }
            match sys::allocate(&file, 0, len, step) {
                Ok(()) => len += step,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => step_max = step / 2,
                Err(error) => panic!("ballast: {error}"),
            }
        }
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = sys::unmount(&self.mount_point, PATIENCE);
    }
}
