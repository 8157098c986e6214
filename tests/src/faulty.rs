//! A filesystem of one file, served from this process, whose reads and writes go wrong by script.
//!
//! The file is backed by memory or by a real file. It may be used as it is, or below a loop device
//! ([`FaultyFile::into_device`]), which then is a block device with bad sectors.
//!
//! By default each request of a client reaches the script as it is (`FOPEN_DIRECT_IO`: no page cache, no
//! readahead), so a fault hits exactly the requests that touch its bytes. The kernel cuts requests of more
//! than 1 MiB. Everything is taken down on drop, a panic included: faults first, so that nothing waits.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, SessionACL, TimeOrNow, WriteFlags,
};

use crate::fault::{Faults, Op, Request, Verdict};
use crate::scratch::ScratchDir;
use crate::skip::{Skip, require_path};
use crate::sys;
use crate::volume::{LoopDevice, LoopOptions};

/// Name of the one file.
const NAME: &str = "disk.img";
/// Its number; the folder has 1.
const INODE: INodeNo = INodeNo(2);
/// Nothing is remembered by the kernel: a file that shrinks does so for the client at once.
const TTL: Duration = Duration::ZERO;
/// Requests that can be delayed side by side.
const THREADS: usize = 8;
/// How long drop waits for users of the file to go.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(3);

/// The mounted file. Declare it before what stands on it, so that it is dropped last.
#[derive(Debug)]
pub struct FaultyFile {
    session: Option<BackgroundSession>,
    faults: Faults,
    backing: File,
    mount_point: PathBuf,
    _folder: ScratchDir,
}

impl FaultyFile {
    /// A file of this size in memory, all hole.
    pub fn memory(size: u64) -> Result<FaultyFile, Skip> {
        let backing = sys::memory_file("mover-faulty").expect("memfd_create");
        backing.set_len(size).expect("size of a memory file");
        FaultyFile::mount(backing, false)
    }

    /// A file that shows, and changes, a real file.
    pub fn over(path: &Path) -> Result<FaultyFile, Skip> {
        let backing = OpenOptions::new().read(true).write(true).open(path);
        FaultyFile::mount(backing.unwrap_or_else(|error| panic!("{}: {error}", path.display())), false)
    }

    /// The same over an open file; `cached` lets the kernel's page cache stand between clients and faults.
    pub fn mount(backing: File, cached: bool) -> Result<FaultyFile, Skip> {
        require_path("/dev/fuse")?;
        let folder = ScratchDir::new();
        folder.open_to_all();
        let mount_point = folder.file("mnt");
        std::fs::create_dir(&mount_point).expect("folder to mount on");
        let faults = Faults::default();
        let served = Served {
            backing: backing.try_clone().expect("a second descriptor"),
            faults: faults.clone(),
            cached,
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("mover-faulty".into()), MountOption::NoAtime];
        config.acl = if sys::is_root() { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(served, &mount_point, &config)
            .map_err(|error| Skip::because(format!("cannot mount a FUSE filesystem: {error}")))?;
        Ok(FaultyFile { session: Some(session), faults, backing, mount_point, _folder: folder })
    }

    /// Path of the file.
    pub fn path(&self) -> PathBuf {
        self.mount_point.join(NAME)
    }

    /// The script, which may be changed at any time, and the counts.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The bytes below, past all faults: to fill the file, or to see what really arrived.
    pub fn backing(&self) -> &File {
        &self.backing
    }

    /// A loop device over the file: a disk with faults.
    pub fn into_device(self, options: LoopOptions) -> Result<FaultyDevice, Skip> {
        let device = options.attach(&self.path())?;
        Ok(FaultyDevice { device, file: self })
    }
}

impl Drop for FaultyFile {
    fn drop(&mut self) {
        self.faults.clear();
        // Without root the call is refused, and the session sees to it by its own helper when it is dropped.
        let gone = sys::unmount(&self.mount_point, UNMOUNT_PATIENCE).unwrap_or(false);
        let session = self.session.take();
        if let Some(session) = session.filter(|_| gone) {
            // The threads end with the mount; the backing file is closed when this returns.
            let _ = session.join();
        }
    }
}

/// A loop device over a faulty file. The fields are dropped in this order, which matters.
#[derive(Debug)]
pub struct FaultyDevice {
    device: LoopDevice,
    file: FaultyFile,
}

impl FaultyDevice {
    /// Path of the block device.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    /// The script of the file below.
    pub fn faults(&self) -> &Faults {
        self.file.faults()
    }

    /// The file below.
    pub fn file(&self) -> &FaultyFile {
        &self.file
    }
}

#[derive(Debug)]
struct Served {
    backing: File,
    faults: Faults,
    cached: bool,
}

impl Served {
    fn attributes(&self, inode: INodeNo) -> io::Result<FileAttr> {
        let below = self.backing.metadata()?;
        let folder = inode == INodeNo::ROOT;
        let time = |seconds: i64, nanoseconds: i64| {
            UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32)
        };
        let mtime = time(below.mtime(), below.mtime_nsec());
        Ok(FileAttr {
            ino: inode,
            size: if folder { 0 } else { below.len() },
            blocks: if folder { 0 } else { below.blocks() },
            atime: mtime,
            mtime,
            ctime: time(below.ctime(), below.ctime_nsec()),
            crtime: mtime,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o755 } else { 0o666 },
            nlink: if folder { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn reply_attributes(&self, inode: INodeNo, reply: ReplyAttr) {
        match self.attributes(inode) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn read_below(&self, offset: u64, verdict: Verdict) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; verdict.len as usize];
        let mut filled = 0;
        while filled < buffer.len() {
            match self.backing.read_at(&mut buffer[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        buffer.truncate(filled);
        flip(&mut buffer, verdict.flip);
        Ok(buffer)
    }

    fn write_below(&self, data: &[u8], offset: u64, verdict: Verdict) -> io::Result<u32> {
        let data = &data[..verdict.len as usize];
        match verdict {
            Verdict { lose: true, .. } => {}
            Verdict { flip: None, .. } => self.backing.write_all_at(data, offset)?,
            Verdict { flip, .. } => {
                let mut damaged = data.to_vec();
                self::flip(&mut damaged, flip);
                self.backing.write_all_at(&damaged, offset)?;
            }
        }
        Ok(data.len() as u32)
    }
}

fn flip(bytes: &mut [u8], index: Option<u64>) {
    if let Some(byte) = index.and_then(|index| bytes.get_mut(index as usize)) {
        *byte = !*byte;
    }
}

impl Filesystem for Served {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        // Asynchronous direct I/O, so that a queue above arrives as a queue here. Old kernels go without.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent != INodeNo::ROOT || name != NAME {
            return reply.error(Errno::ENOENT);
        }
        match self.attributes(INODE) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(
        &self,
        _request: &fuser::Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        self.reply_attributes(inode, reply);
    }

    fn setattr(
        &self,
        _request: &fuser::Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match size.map(|size| self.backing.set_len(size)) {
            Some(Err(error)) => reply.error(error.into()),
            Some(Ok(())) | None => self.reply_attributes(inode, reply),
        }
    }

    fn readdir(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (INODE, FileType::RegularFile, NAME),
        ];
        for (index, (inode, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(inode, index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _request: &fuser::Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), if self.cached { FopenFlags::empty() } else { direct });
    }

    fn read(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let request = Request { op: Op::Read, offset, len: u64::from(size) };
        match self.faults.run(request, |verdict| self.read_below(offset, verdict)) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let request = Request { op: Op::Write, offset, len: data.len() as u64 };
        match self.faults.run(request, |verdict| self.write_below(data, offset, verdict)) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let request = Request { op: Op::Sync, offset: 0, len: u64::MAX };
        answer(reply, self.faults.run(request, |_| self.backing.sync_all()));
    }

    fn fallocate(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let request = Request { op: Op::Allocate, offset, len: length };
        answer(reply, self.faults.run(request, |_| sys::allocate(&self.backing, mode, offset, length)));
    }

    fn lseek(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let from = u64::try_from(offset).unwrap_or(0);
        let request = Request { op: Op::Seek, offset: from, len: u64::MAX - from };
        match self.faults.run(request, |_| sys::seek(&self.backing, offset, whence)) {
            Ok(position) => reply.offset(position as i64),
            Err(error) => reply.error(error.into()),
        }
    }

    fn ioctl(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn statfs(&self, _request: &fuser::Request, _inode: INodeNo, reply: ReplyStatfs) {
        // Plenty of room: a client that checks for space first shall meet the scripted ENOSPC, not this.
        let blocks = 1 << 40;
        reply.statfs(blocks, blocks, blocks, 2, 0, 4096, 255, 4096);
    }
}

fn answer(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}
