//! What is restored and where to: disks are chosen, and all targets opened, or none. Whatever is refused is refused
//! before a byte is written.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use mover_endpoints::{Medium, OpenOptions, OpenTarget, TargetOptions, open_target, refuse_shared};
use mover_engine::stats::Counters;
use mover_engine::{Control, Order};
use mover_model::event::{Event, Moved};
use mover_model::manifest::{Disk, Manifest};
use mover_model::{Error, ErrorKind, ExtentList, Locator, Operation, Result};
use mover_repository::format::node::Root;
use mover_repository::read::{BadChunk, Chunks, ReadErrors, TreeMap, TreeSource};
use mover_repository::tree::Nodes;

use super::RestoreOptions;
use super::marker::{self, Marker};
use crate::Emit;
use crate::repository::diff::{disk_ids, find_disk};

/// The most bad chunks of a disk that are passed over; one more ends its restore. They take memory.
const BAD_CHUNKS_MAX: usize = 65_536;

/// A disk that was asked for.
pub(super) struct Asked<'a> {
    pub disk: &'a Disk,
    pub target: Locator,
    /// Why it is left as it is, where it is a common disk.
    pub kept: Option<String>,
    /// The machines that have it too, where it is a common disk.
    pub vms: Vec<String>,
    /// The first error of this disk.
    pub error: Mutex<Option<Error>>,
    /// Present where it is written.
    pub open: Option<OpenDisk>,
}

/// A disk that is written.
pub(super) struct OpenDisk {
    pub root: Root,
    pub source: TreeSource,
    /// The chunks that could not be read, and are zeros on the target.
    pub bad: Arc<Mutex<Vec<BadChunk>>>,
    pub target: OpenTarget,
    /// Where the mark of an unfinished restore lies; `None` where none can be gone on with.
    pub marker: Option<PathBuf>,
    /// Whether the target's content is compared first, and only what differs is written.
    pub compare: bool,
    /// What differs, once that is known.
    pub differing: Mutex<Option<ExtentList>>,
    pub counters: Counters,
    /// Of the comparison.
    pub compared: Counters,
    /// Bytes that were found equal.
    pub same_bytes: AtomicU64,
    pub flushed: AtomicBool,
}

impl Asked<'_> {
    /// Records an error, unless there was one before.
    pub fn fail(&self, error: Error) {
        self.error.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(error);
    }

    pub fn failed(&self) -> bool {
        self.error.lock().unwrap_or_else(|p| p.into_inner()).is_some()
    }

    /// The disk where it is to be written, and nothing went wrong so far.
    pub fn writing(&self) -> Option<&OpenDisk> {
        self.open.as_ref().filter(|_| !self.failed())
    }
}

impl OpenDisk {
    pub fn in_order(&self) -> bool {
        self.target.sink.order() == Order::Sequential
    }

    /// What moved so far.
    pub fn moved(&self) -> Moved {
        use std::sync::atomic::Ordering::Relaxed;
        let compared = self.differing.lock().unwrap_or_else(|p| p.into_inner()).is_some();
        let verified =
            if compared { self.same_bytes.load(Relaxed) } else { self.compared.moved().read_bytes };
        Moved { verified_bytes: verified, ..self.counters.moved() }
    }
}

/// Checks what can be checked before anything is opened.
pub(super) fn check(options: &RestoreOptions) -> Result<()> {
    options.engine.check()?;
    if options.disks.is_empty() && options.into.is_none() {
        return Err(Error::usage("nothing says where the disks go")
            .hint("say --into DIR for all disks, or --disk ID=TARGET for single ones"));
    }
    for (at, (id, target)) in options.disks.iter().enumerate() {
        if options.disks[..at].iter().any(|(other, _)| other == id) {
            return Err(Error::usage(format!("the disk `{id}` is named twice"))
                .hint("restore it to the second target in a run of its own"));
        }
        let plain = matches!(target, Locator::Stream | Locator::Null { .. });
        if plain && (options.delta || options.resume) {
            let flag = if options.delta { "--delta" } else { "--resume" };
            return Err(Error::usage(format!("{flag} needs targets that can be read back, not {target}")));
        }
    }
    if options.disks.iter().filter(|(_, target)| *target == Locator::Stream).count() > 1 {
        return Err(Error::usage("`-` can be the target of one disk only")
            .hint("restore the disks one after the other"));
    }
    Ok(())
}

/// The disks that are asked for, in the order of the manifest.
///
/// # Errors
/// `NotFound` for a disk that the restore point does not have, naming those it has.
pub(super) fn choose<'a>(options: &RestoreOptions, manifest: &'a Manifest) -> Result<Vec<Asked<'a>>> {
    for (id, _) in &options.disks {
        find_disk(manifest, id)?;
    }
    let asked = manifest.disks.iter().filter_map(|disk| {
        let named = options.disks.iter().find(|(id, _)| *id == disk.id).map(|(_, target)| target.clone());
        let target = named.or_else(|| {
            options.into.as_ref().map(|folder| Locator::Path(folder.join(format!("{}.raw", disk.id))))
        })?;
        Some(Asked { disk, target, kept: None, vms: Vec::new(), error: Mutex::default(), open: None })
    });
    let asked: Vec<_> = asked.collect();
    if asked.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "the restore point has no disks to restore")
            .at(format!("{}@{}", manifest.vm, manifest.point))
            .hint(format!("it has {}", disk_ids(manifest))));
    }
    Ok(asked)
}

/// A folder that this run made, gone again with what was refused.
pub(super) struct MadeFolder(Option<PathBuf>);

impl MadeFolder {
    /// Makes the folder of `--into` where it does not exist.
    ///
    /// # Errors
    /// `Unreachable` when it cannot be made.
    pub fn make(options: &RestoreOptions) -> Result<Self> {
        let Some(folder) = options.into.as_ref().filter(|folder| !options.dry_run && !folder.exists()) else {
            return Ok(MadeFolder(None));
        };
        let failed = |error: std::io::Error| Error::io(Operation::Open, folder.display().to_string(), &error);
        std::fs::create_dir(folder)
            .map_err(|error| failed(error).hint("the folder that it lies in must exist and be writable"))?;
        // Durable with its name, as the files in it will be.
        let above = folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(above).and_then(|above| above.sync_all()).map_err(failed)?;
        Ok(MadeFolder(Some(folder.clone())))
    }

    /// Something is about to be written into it.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for MadeFolder {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // It stays behind only if it is not empty.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// The host's folder for state, where there is one.
pub(super) fn state_folder(options: &RestoreOptions) -> Option<PathBuf> {
    mover_repository::catalog::state_folder(options.repository.state.as_deref()).ok()
}

/// What all disks of a run share.
pub(super) struct Origin<'a> {
    pub options: &'a RestoreOptions,
    pub manifest: &'a Manifest,
    pub nodes: &'a Arc<Nodes>,
    pub chunks: &'a Arc<Chunks>,
}

/// Opens all targets. A disk whose tree cannot be read fails alone.
///
/// # Errors
/// What is refused, `Busy`, `Unreachable`, `WrongIdentity`: nothing was written then.
pub(super) fn open_all(
    origin: &Origin<'_>,
    asked: &mut [Asked<'_>],
    control: &Control,
    emit: Emit<'_>,
) -> Result<()> {
    let options = origin.options;
    let repository = Locator::Path(options.repository.folder.clone());
    let targets: Vec<_> = asked
        .iter()
        .filter(|asked| asked.kept.is_none() && !asked.failed())
        .map(|asked| asked.target.clone())
        .collect();
    refuse_shared(&targets.iter().map(|target| (&repository, target)).collect::<Vec<_>>())?;
    targets.iter().try_for_each(|target| refuse_inside(&options.repository.folder, target))?;
    let mut brings_scratch = true;
    for at in 0..asked.len() {
        if asked[at].kept.is_some() || asked[at].failed() {
            continue;
        }
        let root = match origin.nodes.root(&asked[at].disk.root).and_then(|root| same_as(root, &asked[at])) {
            Ok(root) => root,
            Err(error) => {
                asked[at].fail(error);
                continue;
            }
        };
        match open_disk(origin, &asked[at], root, brings_scratch, control, emit) {
            Ok(open) => asked[at].open = Some(open),
            Err(error) => {
                abandon(asked);
                return Err(error);
            }
        }
        brings_scratch = false;
    }
    Ok(())
}

/// A tree whose root says something else than the manifest is not the disk's.
fn same_as(root: Root, asked: &Asked<'_>) -> Result<Root> {
    if (root.size, root.chunk_size) == (asked.disk.size, asked.disk.chunk_size) {
        return Ok(root);
    }
    let message = format!(
        "the tree of disk {} is of {} bytes in chunks of {}, the restore point says {} in chunks of {}",
        asked.disk.id, root.size, root.chunk_size, asked.disk.size, asked.disk.chunk_size
    );
    Err(Error::new(ErrorKind::Corruption, message).hint("run `mover verify`"))
}

fn open_disk(
    origin: &Origin<'_>,
    asked: &Asked<'_>,
    root: Root,
    brings_scratch: bool,
    control: &Control,
    emit: Emit<'_>,
) -> Result<OpenDisk> {
    let (options, manifest, disk) = (origin.options, origin.manifest, asked.disk);
    let (vm, point) = (manifest.vm.as_str(), manifest.point.as_str());
    let mark = Marker::new(&manifest.repository, vm, point, disk.id.as_str(), disk.root);
    let path = marker::path_of(&asked.target, options);
    let found = match &path {
        Some(path) if options.resume => marker::read(path)?.map(|found| (path, found)),
        _ => None,
    };
    if let Some((path, found)) = &found {
        mark.check(found, path)?;
    } else if options.resume {
        let message = format!(
            "{}: there is no mark of a restore that was stopped: it begins at the start",
            asked.target
        );
        emit(Event::Warning { message });
    }
    let resume = found.is_some();
    let target_options = TargetOptions {
        // What differs from the disk is overwritten, which is what was asked for.
        force: options.force || options.delta,
        resume,
        keep_content: false,
        size: Some(root.size),
        mode: None,
        dry_run: options.dry_run,
    };
    let locator = match &asked.target {
        // Nothing is known of a file in a folder that a dry run does not make.
        Locator::Path(path)
            if options.dry_run
                && path
                    .parent()
                    .is_some_and(|folder| options.into.as_deref() == Some(folder) && !folder.exists()) =>
        {
            Locator::Null { size: None }
        }
        target => target.clone(),
    };
    let how = OpenOptions { direct: options.engine.direct };
    let target = open_target(&locator, target_options, how, control).map_err(|error| {
        let stopped = path.as_ref().filter(|_| !options.resume).and_then(|path| marker::read(path).ok()?);
        match stopped
            .filter(|found| error.kind() == ErrorKind::Refused && mark.check(found, Path::new("")).is_ok())
        {
            Some(_) => error.hint("a restore of this disk to here was stopped: --resume goes on with it"),
            None => error,
        }
    })?;
    if let (Some((path, found)), Some(mark)) = (&found, mark.with_target(&target)) {
        mark.check(found, path).inspect_err(|_| remove_made(&asked.target, &target))?;
    }
    let compare =
        (options.delta || resume) && !target.created && !target.sink.reads_zero() && target.file.is_some();
    let map = Arc::new(TreeMap::new(origin.nodes.clone(), root));
    let label = format!("{vm}@{point} {}", disk.id);
    // Others are restored beside a chunk that is lost. A pipe must not get zeros for it unasked, and what --delta finds
    // in its place may be better than zeros.
    let bad = Arc::default();
    let errors = match target.sink.order() {
        Order::Any if !options.delta => ReadErrors::CollectUpTo(Arc::clone(&bad), BAD_CHUNKS_MAX),
        _ => ReadErrors::Fail,
    };
    let source = TreeSource::new(map, origin.chunks.clone(), errors, label);
    Ok(OpenDisk {
        root,
        bad,

        source: if brings_scratch { source } else { source.sharing() },
        marker: path.filter(|_| target.medium != Medium::Stream && target.file.is_some()),
        target,
        compare,
        differing: Mutex::default(),
        counters: Counters::default(),
        compared: Counters::default(),
        same_bytes: AtomicU64::new(0),
        flushed: AtomicBool::new(false),
    })
}

/// Refuses a target in the repository's own folder: its objects would be overwritten, or gc would meet what it does not
/// know.
fn refuse_inside(repository: &Path, target: &Locator) -> Result<()> {
    let (Locator::Path(path), Ok(repository)) = (target, std::fs::canonicalize(repository)) else {
        return Ok(());
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let inside = [Some(folder), Some(path.as_path())]
        .into_iter()
        .flatten()
        .filter_map(|path| std::fs::canonicalize(path).ok())
        .any(|path| path.starts_with(&repository));
    if inside {
        return Err(Error::refused(target.to_string(), "the target lies in the repository's own folder")
            .hint("choose a target elsewhere"));
    }
    Ok(())
}

/// Removes the empty files that were made for a run that writes nothing.
pub(super) fn abandon(asked: &[Asked<'_>]) {
    for asked in asked {
        if let Some(open) = &asked.open {
            remove_made(&asked.target, &open.target);
        }
    }
}

fn remove_made(locator: &Locator, target: &OpenTarget) {
    if let (true, Locator::Path(path)) = (target.created, locator) {
        // It stays behind only if it cannot be removed, and then it is empty.
        let _ = std::fs::remove_file(path);
    }
}
