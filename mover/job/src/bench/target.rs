//! What a benchmark reads: existing files and devices; and what it writes: only a file that it makes itself.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mover_endpoints::{
    DeviceFacts, Direct, Null, OpenOptions, OpenSource, OpenTarget, TargetOptions, device_facts,
    device_of_path, open_source, open_target,
};
use mover_engine::pattern::Noise;
use mover_engine::sys::{filesystem_magic, filesystem_name, lies_in_memory};
use mover_engine::{Access, Alignment, Backend, Control, Settings, Source};
use mover_model::event::Event;
use mover_model::units::format_size;
use mover_model::{Error, ErrorKind, Locator, Operation, Result};

use super::measure::Load;
use super::offsets::Blocks;
use crate::Emit;

/// A path that is ready to be measured.
pub struct Target {
    /// As the user named it.
    pub label: String,
    /// Bytes of the file or device.
    pub size: u64,
    /// The blocks that are read or written.
    pub blocks: Blocks,
    /// Bytes that hold no whole block of data and are left out.
    pub skipped_bytes: u64,
    /// Whether it lies in memory.
    pub memory: bool,
    /// The device below.
    pub device: Option<DeviceFacts>,
    /// The filesystem; `None` for a block device.
    pub filesystem: Option<String>,
    /// Whether it is a block device.
    pub is_block: bool,
    end: End,
}

enum End {
    Read { source: OpenSource, sink: Null },
    Write { noise: Noise, target: OpenTarget },
}

impl Target {
    /// Opens a path for reading and finds its data. `limit`: only that many bytes from its start are read.
    ///
    /// # Errors
    /// As [`open_source`]; `Refused` when it holds no data, as reading holes is no I/O.
    pub fn to_read(
        path: &Path,
        block_size: u32,
        limit: Option<u64>,
        direct: Direct,
        control: &Control,
    ) -> Result<Self> {
        let label = path.display().to_string();
        let source = open_source(&Locator::Path(path.to_owned()), OpenOptions { direct }, control)?;
        let Some(file) = &source.file else {
            return Err(Error::usage("is a pipe: only files and block devices can be measured").at(label));
        };
        let size = source.source.size().unwrap_or(0);
        let end = limit.map_or(size, |limit| limit.min(size));
        let blocks = Blocks::of(source.source.extents()?, block_size, end)?;
        if blocks.is_empty() {
            let message = if end < u64::from(block_size) {
                format!(
                    "holds {}: less than one block of {}",
                    format_size(end),
                    format_size(u64::from(block_size))
                )
            } else {
                "holds no data: it is sparse, and reading holes is no I/O".to_owned()
            };
            return Err(
                Error::refused(label, message).hint("measure a device, or a file that was written in full")
            );
        }
        let is_block = file.is_block();
        let device = device_facts(file.file());
        let filesystem = (!is_block).then(|| filesystem_of(file.file()));
        let memory = !is_block && in_memory(file.file());
        Ok(Target {
            label,
            size,
            skipped_bytes: end - blocks.bytes(),
            blocks,
            memory,
            device,
            filesystem,
            is_block,
            end: End::Read { source, sink: Null { size: None } },
        })
    }

    /// Makes a file of `size` bytes and writes all of it once. `path` is a folder, or names a file that does
    /// not exist. The file loses its name before its first byte is written: whatever ends this process ends
    /// the file.
    ///
    /// # Errors
    /// `Refused` when the path exists and is no folder, `Full` when there is no room.
    pub fn to_write(
        path: &Path,
        block_size: u32,
        size: u64,
        direct: Direct,
        seed: u64,
        control: &Control,
        emit: Emit<'_>,
    ) -> Result<Self> {
        let label = path.display().to_string();
        let file = name_of_new_file(path)?;
        let size = (size / u64::from(block_size)).max(1) * u64::from(block_size);
        refuse_full(&file, size)?;
        let options = TargetOptions { size: Some(size), ..TargetOptions::default() };
        let target = open_target(&Locator::Path(file.clone()), options, OpenOptions { direct }, control)?;
        unlink_made(&file, &target)?;
        let Some(handle) = &target.file else {
            return Err(Error::new(ErrorKind::Internal, "a new file is no file").at(label));
        };
        let device = device_facts(handle.file());
        let filesystem = Some(filesystem_of(handle.file()));
        let memory = in_memory(handle.file());
        let blocks = Blocks::of(std::iter::once(Ok(mover_model::Extent::data(0, size))), block_size, size)?;
        let noise = Noise { size, seed };
        let target = Target {
            label,
            size,
            blocks,
            skipped_bytes: 0,
            memory,
            device,
            filesystem,
            is_block: false,
            end: End::Write { noise, target },
        };
        emit(Event::Phase { phase: "layout".into() });
        target.lay_out(control)?;
        Ok(target)
    }

    /// Writes every byte once: what follows overwrites, and allocates nothing.
    fn lay_out(&self, control: &Control) -> Result<()> {
        let End::Write { noise, target } = &self.end else { return Ok(()) };
        let backend =
            if mover_engine::capability::probe_uring().is_ok() { Backend::Uring } else { Backend::Sync };
        let settings = Settings { backend, workers: 1, register: false, ..Settings::default() };
        let extents = noise.extents()?;
        super::measure::move_all(noise, target.sink.as_ref(), extents, &settings, control)?;
        target.sink.flush()?;
        if control.stopped() {
            return Err(Error::new(ErrorKind::Stopped, "stopped by a signal").at(&self.label));
        }
        Ok(())
    }

    /// The way to its bytes.
    pub fn access(&self) -> Access {
        match &self.end {
            End::Read { source, .. } => source.source.access(),
            End::Write { target, .. } => target.sink.access(),
        }
    }

    /// The rules of that way.
    pub fn alignment(&self) -> Alignment {
        match &self.end {
            End::Read { source, .. } => source.source.alignment(source.source.access()),
            End::Write { target, .. } => target.sink.alignment(target.sink.access()),
        }
    }

    /// Refuses blocks that O_DIRECT does not take here.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check_alignment(&self, block_size: u32) -> Result<()> {
        let granule = self.alignment().offset.max(1);
        if block_size.is_multiple_of(granule) {
            return Ok(());
        }
        let message = format!("--block-size {block_size}: O_DIRECT takes multiples of {granule} here");
        Err(Error::usage(message).at(&self.label))
    }

    /// A load on it. `seed` gives random order, else it goes in order from `first_block` on.
    pub fn load(&self, seed: Option<u64>, first_block: u64) -> Load<'_> {
        let extents: mover_engine::queue::Extents<'_> = match seed {
            Some(seed) => Box::new(self.blocks.random(seed)),
            None => Box::new(self.blocks.sequential(first_block)),
        };
        match &self.end {
            End::Read { source, sink } => Load {
                source: source.source.as_ref(),
                sink,
                source_access: source.source.access(),
                sink_access: Access::Direct,
                extents,
                write: false,
            },
            End::Write { noise, target } => Load {
                source: noise,
                sink: target.sink.as_ref(),
                source_access: Access::Direct,
                sink_access: target.sink.access(),
                extents,
                write: true,
            },
        }
    }
}

fn in_memory(file: &std::fs::File) -> bool {
    lies_in_memory(file)
}

fn filesystem_of(file: &std::fs::File) -> String {
    filesystem_magic(file).map_or("unknown", filesystem_name).to_owned()
}

/// The name under which a file for writing begins: in the folder, or the path itself.
fn name_of_new_file(path: &Path) -> Result<PathBuf> {
    let label = || path.display().to_string();
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            Ok(path.join(format!(".mover-bench-{}-{}", std::process::id(), now.as_nanos())))
        }
        Ok(_) => {
            Err(Error::refused(label(), "exists: writes are measured only in a file that mover makes itself")
                .hint("name a folder, or a file that does not exist"))
        }
        // A dangling link is something that exists, too.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
            Ok(path.to_owned())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::refused(label(), "is a symbolic link that leads nowhere").hint("name a folder"))
        }
        Err(error) => Err(Error::io(Operation::Stat, label(), &error)),
    }
}

/// Least share of the free space that is left to others.
const FREE_SPACE_KEPT: u64 = 20;

fn refuse_full(file: &Path, size: u64) -> Result<()> {
    let folder = folder_of(file);
    let label = folder.display().to_string();
    let stat = nix::sys::statvfs::statvfs(&folder)
        .map_err(|errno| Error::os(Operation::Stat, &label, errno as i32))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free - free / FREE_SPACE_KEPT < size {
        let message = format!("{} are free: no room for a file of {}", format_size(free), format_size(size));
        return Err(Error::new(ErrorKind::Full, message).at(label).hint("give a smaller --size"));
    }
    Ok(())
}

/// The folder a path lies in.
pub(crate) fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Takes away the name of a file that this run made, if it still is that file's.
fn unlink_made(path: &Path, target: &OpenTarget) -> Result<()> {
    let label = path.display().to_string();
    let Some(identity) = target.identity.as_ref().filter(|_| target.created) else {
        return Err(Error::refused(label, "appeared while it was about to be made"));
    };
    let meta = std::fs::symlink_metadata(path).map_err(|error| Error::io(Operation::Stat, &label, &error))?;
    if (meta.dev(), meta.ino()) != (identity.device, identity.inode) {
        return Err(Error::refused(label, "was replaced by another file while it was made"));
    }
    std::fs::remove_file(path).map_err(|error| Error::io(Operation::Open, &label, &error))
}

/// The devices below paths, for what depends on them before they are opened.
pub(crate) fn devices_of(paths: &[PathBuf]) -> Vec<DeviceFacts> {
    paths
        .iter()
        .filter_map(|path| device_of_path(path).or_else(|| device_of_path(&folder_of(path))))
        .collect()
}
