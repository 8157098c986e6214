//! The one door from a locator to an open endpoint: probes, chooses the best way in, refuses what would
//! destroy something, and records every downgrade.

use std::fs::{File, OpenOptions as StdOpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mover_engine::capability::probe_direct;
use mover_engine::sys::{filesystem_magic, filesystem_name, is_read_only_device, lies_in_memory};
use mover_engine::{Alignment, Control, Sink, Source};
use mover_model::event::Degradation;
use mover_model::units::format_size;
use mover_model::{Error, ErrorKind, Locator, Operation, Result};

use crate::facts::{device_facts, size_of};
use crate::file::{FileSink, FileSource, Handles, Identity, Zeroing};
use crate::guard::{LOCK_POLL, has_writer, lock_target, lock_wait, refuse_loop_backing};
use crate::null::Null;
use crate::signature::find_signature;
use crate::stream::{StreamSink, StreamSource};

/// Whether O_DIRECT is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// An error where it cannot be.
    Required,
    /// Where it can be and helps; a downgrade is recorded.
    Auto,
    /// Never.
    Off,
}

/// How both kinds of endpoint are opened.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// Whether O_DIRECT is used.
    pub direct: Direct,
}

/// How a target is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct TargetOptions {
    /// Overwrite what is there.
    pub force: bool,
    /// The target is one that an earlier run began: its identity is checked by the caller.
    pub resume: bool,
    /// Only listed extents are written: the target keeps its size and its other bytes.
    pub keep_content: bool,
    /// Bytes that will be written; `None` for a stream.
    pub size: Option<u64>,
    /// Permissions of a file that is made; `None`: for the owner only.
    pub mode: Option<u32>,
    /// Look, but change nothing: for `--dry-run`.
    pub dry_run: bool,
}

/// An open source.
pub struct OpenSource {
    /// What the engine reads.
    pub source: Box<dyn Source>,
    /// The file, where it is one: for calls outside the engine.
    pub file: Option<Arc<FileSource>>,
    /// Its permissions, where it is a regular file.
    pub mode: Option<u32>,
    /// What it was when it was opened; `None` for null and streams.
    pub identity: Option<Identity>,
    /// Where it lies and how it is read, in words.
    pub medium: Medium,
    /// Something the user should know.
    pub warning: Option<String>,
}

/// An open target.
pub struct OpenTarget {
    /// What the engine writes.
    pub sink: Box<dyn Sink>,
    /// The file, where it is one: for calls outside the engine.
    pub file: Option<Arc<FileSink>>,
    /// What it was when it was opened; `None` for null and streams.
    pub identity: Option<Identity>,
    /// Where it lies.
    pub medium: Medium,
    /// Whether this run made the file.
    pub created: bool,
}

/// Where an endpoint's bytes lie, as far as choices depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Memory (tmpfs, ramfs) or nothing (null): every transfer is a copy by a CPU.
    Memory,
    /// A device or filesystem.
    Storage,
    /// A pipe.
    Stream,
}

impl OpenTarget {
    fn plain(sink: Box<dyn Sink>, medium: Medium) -> Self {
        OpenTarget { sink, file: None, identity: None, medium, created: false }
    }
}

struct Shared<T: ?Sized>(Arc<T>);

macro_rules! forward {
    ($trait:ident for $type:ty { $($name:ident(&self $(, $arg:ident: $kind:ty)*) -> $result:ty;)* }) => {
        impl $trait for Shared<$type> {
            $(fn $name(&self $(, $arg: $kind)*) -> $result { self.0.$name($($arg),*) })*
        }
    };
}

type ExtentIterator<'a> = Box<dyn Iterator<Item = Result<mover_model::Extent>> + Send + 'a>;

forward!(Source for FileSource {
    label(&self) -> String;
    size(&self) -> Option<u64>;
    access(&self) -> mover_engine::Access;
    alignment(&self, access: mover_engine::Access) -> Alignment;
    extents(&self) -> Result<ExtentIterator<'_>>;
    lane(&self, access: mover_engine::Access, setup: &mut mover_engine::LaneSetup<'_>) -> Result<Box<dyn mover_engine::Lane>>;
});

forward!(Sink for FileSink {
    label(&self) -> String;
    capacity(&self) -> Option<u64>;
    access(&self) -> mover_engine::Access;
    alignment(&self, access: mover_engine::Access) -> Alignment;
    reads_zero(&self) -> bool;
    lane(&self, access: mover_engine::Access, setup: &mut mover_engine::LaneSetup<'_>) -> Result<Box<dyn mover_engine::Lane>>;
    flush(&self) -> Result<()>;
    finish(&self, size: u64) -> Result<()>;
});

/// Opens a source.
///
/// # Errors
/// `Unreachable` when it is not there or may not be read, `Usage` when it is no disk, `Downgrade` when
/// O_DIRECT is required and not to be had.
pub fn open_source(locator: &Locator, options: OpenOptions, control: &Control) -> Result<OpenSource> {
    let path = match locator {
        Locator::Null { size: None } => {
            return Err(Error::usage("a null: source needs a size, such as null:1G"));
        }
        Locator::Null { size } => {
            let source = Box::new(Null { size: *size });
            return Ok(OpenSource {
                source,
                file: None,
                mode: None,
                identity: None,
                medium: Medium::Memory,
                warning: None,
            });
        }
        Locator::Stream => {
            let file = duplicate(std::io::stdin().as_fd(), "-")?;
            refuse_closed(&file, "standard input")?;
            return Ok(stream_source(file, "-".to_owned()));
        }
        Locator::Path(path) => path,
    };
    let label = path.display().to_string();
    let meta = std::fs::metadata(path).map_err(|error| Error::io(Operation::Open, &label, &error))?;
    if meta.is_dir() {
        return Err(Error::usage("is a folder, not a disk").at(label));
    }
    let file = File::open(path).map_err(|error| Error::io(Operation::Open, &label, &error))?;
    let kind = meta.file_type();
    if kind.is_fifo() {
        return Ok(stream_source(file, label));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::usage("is no regular file, block device or pipe")
            .at(label)
            .hint("for zeros, use null:SIZE"));
    }
    let is_block = kind.is_block_device();
    let size = size_of(&file, is_block, &label)?;
    let medium = medium_of(&file, is_block);
    let direct = open_direct(
        path,
        &file,
        StdOpenOptions::new().read(true),
        0,
        options.direct,
        medium,
        &label,
        control,
    )?;
    let identity = Identity::of(&file, size).map_err(|error| Error::io(Operation::Stat, &label, &error))?;
    let warning = has_writer(&file).then(|| {
        format!("{label} is open for writing by a virtual machine: the copy may mix moments; take a snapshot first")
    });
    let polled = device_facts(&file).is_some_and(|facts| facts.polls);
    let handles = Handles { label, buffered: file, direct, is_block, polled, size };
    let file = Arc::new(FileSource(handles));
    Ok(OpenSource {
        source: Box::new(Shared(file.clone())),
        file: Some(file),
        // As cp does: a copy is as private as what it is a copy of.
        mode: meta.is_file().then(|| meta.permissions().mode() & 0o777),
        identity: Some(identity),
        medium,
        warning,
    })
}

fn stream_source(file: File, label: String) -> OpenSource {
    let source = Box::new(StreamSource::new(file, label));
    OpenSource { source, file: None, mode: None, identity: None, medium: Medium::Stream, warning: None }
}

/// Opens a target, and creates it where it is a file that does not exist.
///
/// # Errors
/// `Refused` for everything that would destroy something unasked, `Busy` for a locked file, `Unreachable`
/// when it may not be opened, `Downgrade` when O_DIRECT is required and not to be had.
pub fn open_target(
    locator: &Locator,
    target: TargetOptions,
    options: OpenOptions,
    control: &Control,
) -> Result<OpenTarget> {
    let path = match locator {
        Locator::Null { size } => {
            if let (Some(size), Some(needed)) = (size, target.size) {
                refuse_smaller(&locator.to_string(), *size, needed)?;
            }
            return Ok(OpenTarget::plain(Box::new(Null { size: *size }), Medium::Memory));
        }
        Locator::Stream => {
            let file = duplicate(std::io::stdout().as_fd(), "-")?;
            refuse_closed(&file, "standard output")?;
            return Ok(OpenTarget::plain(Box::new(StreamSink::new(file, "-".to_owned())), Medium::Stream));
        }
        Locator::Path(path) => path,
    };
    let label = path.display().to_string();
    let existing = match std::fs::metadata(path) {
        Ok(meta) => Some(meta),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(Operation::Open, label, &error)),
    };
    if let Some(meta) = &existing {
        let kind = meta.file_type();
        if meta.is_dir() {
            return Err(Error::usage("is a folder: name the file in it").at(label));
        }
        if kind.is_fifo() {
            // Opened for both, a pipe does not wait for its reader.
            let open = StdOpenOptions::new().read(target.dry_run).write(true).open(path);
            let file = open.map_err(|error| Error::io(Operation::Open, &label, &error))?;
            return Ok(OpenTarget::plain(Box::new(StreamSink::new(file, label)), Medium::Stream));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::usage("is no regular file, block device or pipe")
                .at(label)
                .hint("to discard, use null:"));
        }
    }
    if existing.is_none() && path.is_symlink() {
        return Err(Error::refused(&label, "is a link to something that is not there")
            .hint("name the file itself, or choose another target"));
    }
    let is_block = existing.as_ref().is_some_and(|meta| meta.file_type().is_block_device());
    let existed = existing.is_some();
    if let Some(meta) = existing.as_ref().filter(|meta| meta.is_file()) {
        refuse_loop_backing(meta, &label)?;
        refuse_full(meta.len(), &target, &label)?;
    }
    if !existed {
        refuse_missing_device(path, &label)?;
    }
    if target.dry_run && !existed {
        return dry_target(path, &label);
    }
    let mut open = StdOpenOptions::new();
    open.read(true).write(true);
    let file = if existed {
        open.open(path)
    } else {
        open.create_new(true).mode(target.mode.unwrap_or(0o600)).open(path)
    };
    let mut file = file.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY | libc::ETXTBSY) => in_use(&label),
        Some(libc::EEXIST) => Error::refused(&label, "a file of this name has just appeared")
            .hint("look what it is, and choose another target"),
        Some(libc::EROFS) => Error::refused(&label, "the filesystem or device is read-only")
            .hint("make it writable, or choose another target"),
        _ => Error::io(Operation::Open, &label, &error),
    })?;
    let unfinished = Unfinished((!existed).then_some(path));
    let mut size = size_of(&file, is_block, &label)?;
    if is_block {
        guard_device(path, &file, size, &target, &label)?;
    }
    let medium = medium_of(&file, is_block);
    // The lock and the claim sit on the descriptor that the ring writes by: after kill -9 the dead ring's
    // writes still land, and until they have, the kernel keeps the descriptor and with it the lock.
    let flags = if is_block { libc::O_EXCL } else { 0 };
    let mut writable = StdOpenOptions::new();
    writable.read(true).write(true);
    let direct = open_direct(path, &file, &mut writable, flags, options.direct, medium, &label, control)?;
    if is_block && direct.is_none() {
        file = writable.custom_flags(flags).open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => in_use(&label),
            _ => Error::io(Operation::Open, &label, &error),
        })?;
    } else if !is_block {
        lock_target(direct.as_ref().map_or(&file, |(file, _)| file), &label, lock_wait(target.resume))?;
        // Whoever held the lock may have filled the file meanwhile; from here on it is ours alone.
        size = size_of(&file, is_block, &label)?;
        refuse_full(size, &target, &label)?;
    }
    refuse_swapped(&file, direct.as_ref().map(|(file, _)| file), is_block, &label)?;
    // A file made by this run, or one that held nothing: nothing can be lost, and it reads as zeros.
    let empty = !is_block && size == 0;
    // A file is sized by `FileSink::prepare`, once nothing can be refused any more.
    let resized = if is_block || (target.keep_content && !empty) { None } else { target.size };
    if let Some(needed) = target.size.filter(|_| resized.is_none()) {
        refuse_smaller(&label, size, needed)?;
    }
    let identity = Identity::of(&file, size).map_err(|error| Error::io(Operation::Stat, &label, &error))?;
    let polled = device_facts(&file).is_some_and(|facts| facts.polls);
    let handles = Handles { label, buffered: file, direct, is_block, polled, size };
    let fresh = empty;
    let sized = !target.keep_content || fresh;
    let folder = if existed { None } else { File::open(folder_of(path)).ok() };
    let file =
        Arc::new(FileSink { handles, fresh, zeroing: Arc::new(Zeroing::default()), sized, resized, folder });
    unfinished.done();
    Ok(OpenTarget {
        sink: Box::new(Shared(file.clone())),
        file: Some(file),
        identity: Some(identity),
        medium,
        created: !existed,
    })
}

/// Removes the file that was made, unless its opening came to a good end.
struct Unfinished<'a>(Option<&'a Path>);

impl Unfinished<'_> {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            // It stays behind only if it cannot be removed, and then it is empty.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What a target that does not exist yet would be, found by looking at its folder.
fn dry_target(path: &Path, label: &str) -> Result<OpenTarget> {
    let folder = File::open(folder_of(path)).map_err(|error| Error::io(Operation::Open, label, &error))?;
    let medium = medium_of(&folder, false);
    Ok(OpenTarget { sink: Box::new(Null { size: None }), file: None, identity: None, medium, created: false })
}

/// A standard stream that the caller closed: the runtime puts `/dev/null` in its place before anything runs, for
/// reading and writing, which no shell does.
fn refuse_closed(file: &File, what: &str) -> Result<()> {
    const NULL_DEVICE: u64 = libc::makedev(1, 3);
    let null =
        file.metadata().is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == NULL_DEVICE);
    let flags = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL).unwrap_or(0);
    if null && flags & libc::O_ACCMODE == libc::O_RDWR {
        return Err(Error::new(ErrorKind::Unreachable, format!("{what} is closed"))
            .during(Operation::Open)
            .at("-"));
    }
    Ok(())
}

/// A name under /dev that is not there is a device that is not there: a file made of it would lie in memory.
fn refuse_missing_device(path: &Path, label: &str) -> Result<()> {
    let folder = std::fs::canonicalize(folder_of(path)).unwrap_or_default();
    if folder.starts_with("/dev") && !folder.starts_with("/dev/shm") {
        return Err(Error::os(Operation::Open, label, libc::ENODEV).hint("there is no such device"));
    }
    Ok(())
}

fn refuse_full(size: u64, target: &TargetOptions, label: &str) -> Result<()> {
    if size == 0 || target.force || target.resume {
        return Ok(());
    }
    Err(Error::refused(label, format!("the file exists and holds {}", format_size(size)))
        .hint("to overwrite it, say --force"))
}

/// Refuses a name that was given to another file between two opens.
fn refuse_swapped(first: &File, second: Option<&File>, is_block: bool, label: &str) -> Result<()> {
    let stat = |file: &File| file.metadata().map_err(|error| Error::io(Operation::Stat, label, &error));
    let meta = stat(first)?;
    let same = match second {
        Some(second) => {
            let second = stat(second)?;
            (meta.dev(), meta.ino(), meta.rdev()) == (second.dev(), second.ino(), second.rdev())
        }
        None => true,
    };
    if same && meta.file_type().is_block_device() == is_block {
        return Ok(());
    }
    Err(Error::refused(label, "another file was put in its place while it was opened").hint("run it again"))
}

fn refuse_smaller(label: &str, size: u64, needed: u64) -> Result<()> {
    if size >= needed {
        return Ok(());
    }
    let message = format!("the target holds {size} bytes and the source {needed}: it is too small");
    Err(Error::refused(label, message).hint("choose a target of at least the source's size"))
}

fn in_use(label: &str) -> Error {
    Error::refused(
        label,
        "the device is mounted or held by another program (LVM, RAID, swap, a virtual machine)",
    )
    .hint("unmount or release it first; --force does not change this")
}

/// Refuses a device that is in use, read-only, or carries something.
fn guard_device(path: &Path, file: &File, size: u64, target: &TargetOptions, label: &str) -> Result<()> {
    let read_only = is_read_only_device(file).unwrap_or(false);
    if read_only {
        return Err(Error::refused(label, "the device is read-only")
            .hint("make it writable, or choose another target"));
    }
    // The kernel's own claim on a device: a mounted or otherwise held one answers EBUSY. A run that was
    // killed holds it until its last write has landed.
    let begin = Instant::now();
    loop {
        match StdOpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path) {
            Ok(_) => break,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                if begin.elapsed() > lock_wait(target.resume) {
                    return Err(in_use(label));
                }
                std::thread::sleep(LOCK_POLL);
            }
            Err(error) => return Err(Error::io(Operation::Open, label, &error)),
        }
    }
    if target.force || target.resume {
        return Ok(());
    }
    let found = find_signature(file, size).map_err(|error| Error::io(Operation::Read, label, &error))?;
    match found {
        Some(what) => {
            Err(Error::refused(label, format!("the device carries {what}"))
                .hint("to overwrite it, say --force"))
        }
        None => Ok(()),
    }
}

fn medium_of(file: &File, is_block: bool) -> Medium {
    let memory = !is_block && lies_in_memory(file);
    if memory { Medium::Memory } else { Medium::Storage }
}

/// Opens the second, direct descriptor, if it is wanted and works.
#[allow(clippy::too_many_arguments)] // one call for sources, one for targets; a struct would only rename them
fn open_direct(
    path: &Path,
    buffered: &File,
    how: &mut StdOpenOptions,
    flags: i32,
    direct: Direct,
    medium: Medium,
    label: &str,
    control: &Control,
) -> Result<Option<(File, Alignment)>> {
    // On tmpfs there is no cache to go past: what O_DIRECT does there is the same copy with more rules.
    if direct == Direct::Off || (direct == Direct::Auto && medium == Medium::Memory) {
        return Ok(None);
    }
    let opened = how.custom_flags(libc::O_DIRECT | flags).open(path);
    let reason = match opened {
        Ok(file) => match probe_direct(&file) {
            Some(rules) => return Ok(Some((file, rules))),
            None => "its alignment rules are not known or not usable".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    let filesystem = filesystem_magic(buffered).map_or("unknown", filesystem_name);
    if direct == Direct::Required {
        return Err(Error::new(
            ErrorKind::Downgrade,
            format!("O_DIRECT is required and does not work on this {filesystem} filesystem: {reason}"),
        )
        .at(label)
        .hint("--direct auto goes through the page cache instead"));
    }
    control.degrade(Degradation {
        about: "direct".into(),
        wanted: "O_DIRECT".into(),
        used: "the page cache".into(),
        reason: format!("O_DIRECT does not work on this {filesystem} filesystem: {reason}"),
        path: Some(label.to_owned()),
    });
    Ok(None)
}

fn duplicate(fd: std::os::fd::BorrowedFd<'_>, label: &str) -> Result<File> {
    fd.try_clone_to_owned().map(File::from).map_err(|error| Error::io(Operation::Open, label, &error))
}
