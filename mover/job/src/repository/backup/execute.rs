//! The course of a backup: session, index, parent, disks, trees, manifest.

use std::collections::BTreeMap;
use std::sync::Arc;

use mover_engine::{Control, Rate};
use mover_model::event::{CommonResult, Event, Moved, PointResult, RunResult};
use mover_model::manifest::{Disk, MANIFEST_VERSION, Manifest};
use mover_model::{Error, ErrorKind, Name, Operation, Result, limits};
use mover_repository::catalog::{Catalog, Scope};
use mover_repository::index::Index;
use mover_repository::read::Chunks;
use mover_repository::session::{Purpose, Session};
use mover_repository::store::Put;
use mover_repository::tree::{Base, Nodes, build};
use mover_repository::write::Writer;
use mover_repository::{Repository, manifests};

use super::open::{OpenDisk, Reading, What, check_unchanged, unchanged};
use super::prepare::{Prepared, Preparing, strict};
use super::read::Readers;
use super::{BackupOptions, check, outcome};
use crate::Emit;
use crate::progress::Ticker;
use crate::repository::access;
use crate::repository::common::{self, Arranged};

/// Keys that a run key may stand for: each attempt that was given up uses one.
const ATTEMPTS_MAX: u32 = 1000;

/// What the steps of one backup share.
struct Backup<'a> {
    options: &'a BackupOptions,
    documents: BTreeMap<String, String>,
    repository: Arc<Repository>,
    control: &'a Control,
    emit: Emit<'a>,
    ticker: &'a Ticker<'a>,
}

/// Makes the restore point; what moved and how each disk ended goes to `result`, an error of the run as a whole is
/// returned.
pub(super) fn execute(
    options: &BackupOptions,
    control: &Control,
    emit: Emit<'_>,
    result: &mut RunResult,
) -> Result<()> {
    check::check(options)?;
    let documents = check::documents(options)?;
    let ticker = Ticker::new(emit, control, options.strict);
    if options.dry_run {
        return dry_run(options, control, emit, &ticker, result);
    }
    let arranged = common::arrange(&options.disks, emit)?;
    // Sources that are not there are found before a repository is made for them.
    for disk in &arranged {
        refuse_missing(disk)?;
    }
    let repository = access::open_or_init(&options.repository, emit)?;
    let backup = Backup { options, documents, repository, control, emit, ticker: &ticker };
    let (session, point) = match backup.begin()? {
        Begun::Session(session, point) => (session, point),
        Begun::Repeated(manifest) => {
            let catalog = backup.catalog_of(&manifest)?;
            let common = |disk: &Disk| backup.common_result(catalog.as_deref(), disk);
            result.point = Some(outcome::committed(&manifest, true, common));
            return Ok(());
        }
    };
    result.point = Some(outcome::begun(&backup.repository, options.vm.as_str(), point.as_str()));
    let made = backup.make(&session, &point, arranged, result);
    if let Err(error) = session.end() {
        let message =
            format!("the session of this backup could not be ended, and is left to time out: {error}");
        emit(Event::Warning { message });
    }
    made
}

/// Whether a source is there is asked of its name alone; it is opened later.
fn refuse_missing(disk: &Arranged) -> Result<()> {
    match &disk.spec.locator {
        mover_model::Locator::Path(path) => std::fs::metadata(path).map(|_| ()).map_err(|error| {
            let hint = format!("name a file or block device that is there: --disk {}=SOURCE", disk.spec.id);
            Error::io(Operation::Open, path.display().to_string(), &error).hint(hint)
        }),
        _ => Ok(()),
    }
}

/// Shows the plan. Nothing is written, not even a session.
fn dry_run(
    options: &BackupOptions,
    control: &Control,
    emit: Emit<'_>,
    ticker: &Ticker<'_>,
    result: &mut RunResult,
) -> Result<()> {
    let repository = match access::open(&options.repository) {
        Ok(repository) => Some(repository),
        Err(error) if error.kind() == ErrorKind::NotFound && !options.repository.folder.exists() => {
            emit(Event::Warning { message: "there is no repository yet: this backup would make one".into() });
            None
        }
        Err(error) => return Err(error),
    };
    let chunk_size = repository
        .as_ref()
        .map_or(mover_repository::config::CHUNK_SIZE_DEFAULT, |repository| repository.config().chunk_size);
    let preparing = Preparing { options, repository: repository.as_ref(), chunk_size, control, emit, ticker };
    let prepared = preparing.prepare(common::arrange(&options.disks, emit)?)?;
    let point = PointResult {
        repository: repository.as_ref().map(|repository| repository.config().id.clone()).unwrap_or_default(),
        vm: options.vm.to_string(),
        parent: prepared.points.points.last().map(|parent| parent.point.to_string()),
        ..PointResult::default()
    };
    let common = |disk: &Disk| {
        common_result(repository.as_deref(), prepared.catalog.as_deref(), options.vm.as_str(), disk)
    };
    result.point = Some(outcome::uncommitted(point, &prepared.disks, common));
    outcome::pairs(result, &prepared.disks, &options.repository.folder.display().to_string(), false);
    Ok(())
}

#[allow(clippy::large_enum_variant)] // one for a run
enum Begun {
    Session(Session, Name),
    Repeated(Manifest),
}

impl Backup<'_> {
    /// Begins the session, with a point's id that is free; or finds that a run of the same key was committed.
    fn begin(&self) -> Result<Begun> {
        let vm = &self.options.vm;
        let Some(run_key) = &self.options.run_key else {
            let point = manifests::new_point()?;
            return Ok(Begun::Session(self.session(&point)?, point));
        };
        // The same key gives the same ids, so that of two runs only one is committed. An id that was given up by a run
        // that died is passed over.
        for attempt in 0..ATTEMPTS_MAX {
            let point = point_of(vm, run_key, attempt)?;
            let taken = || -> Result<Option<Option<Manifest>>> {
                match manifests::get(&self.repository, vm, &point)? {
                    Some(manifest) => Ok(Some(Some(manifest))),
                    None => {
                        let listed = manifests::list(&self.repository, vm)?;
                        Ok(listed.iter().any(|object| object.key.last() == point.as_str()).then_some(None))
                    }
                }
            };
            match taken()? {
                Some(Some(manifest)) => return self.repeated(manifest, run_key),
                Some(None) => continue,
                None => {}
            }
            let session = match self.session(&point) {
                Ok(session) => session,
                Err(error) => {
                    return match taken()? {
                        Some(Some(manifest)) => self.repeated(manifest, run_key),
                        _ => Err(error),
                    };
                }
            };
            // Another run of the key may have come to its end meanwhile, and a dead one is given up by the beginning.
            match taken()? {
                None => return Ok(Begun::Session(session, point)),
                Some(Some(manifest)) => {
                    session.end()?;
                    return self.repeated(manifest, run_key);
                }
                Some(None) => session.end()?,
            }
        }
        Err(Error::new(ErrorKind::Busy, format!("{ATTEMPTS_MAX} runs of this --run-key were given up"))
            .hint("use another run key"))
    }

    fn session(&self, point: &Name) -> Result<Session> {
        let purpose = Purpose::Backup { vm: self.options.vm.clone(), point: point.clone() };
        Session::begin(&self.repository, purpose)
    }

    fn repeated(&self, manifest: Manifest, run_key: &str) -> Result<Begun> {
        if manifest.run_key.as_deref() == Some(run_key) {
            return Ok(Begun::Repeated(manifest));
        }
        let message = format!(
            "the restore point {} has the id of this --run-key and is of another run",
            manifest.point
        );
        Err(Error::new(ErrorKind::Refused, message).hint("use another run key"))
    }

    fn make(
        &self,
        session: &Session,
        point: &Name,
        arranged: Vec<Arranged>,
        result: &mut RunResult,
    ) -> Result<()> {
        let index = Arc::new(Index::open(&self.repository)?);
        for degradation in index.degradations() {
            self.control.degrade(degradation);
        }
        let preparing = Preparing {
            options: self.options,
            repository: Some(&self.repository),
            chunk_size: self.repository.config().chunk_size,
            control: self.control,
            emit: self.emit,
            ticker: self.ticker,
        };
        let prepared = preparing.prepare(arranged)?;
        let disks = &prepared.disks;
        let total = disks.iter().filter_map(OpenDisk::reading).map(Reading::total).sum();
        let made = std::thread::scope(|scope| {
            let ticking = std::thread::Builder::new()
                .name("progress".into())
                .spawn_scoped(scope, || self.ticker.run(|| sum(disks), total));
            let ticking = ticking.map_err(|error| {
                Error::io(Operation::Setup, "a thread", &error)
                    .hint("raise the limit on processes (ulimit -u, pids of the container)")
            })?;
            // Also when what follows panics: the scope waits for the ticker.
            let _ends = self.ticker.ends_with(ticking.thread().clone());
            self.move_and_commit(session, point, &index, &prepared, result)
        });
        let target = self.repository.store().label();
        match &made {
            Ok(Some((manifest, repeated))) => {
                let common = |disk: &Disk| self.common_result(prepared.catalog.as_deref(), disk);
                result.point = Some(outcome::committed(manifest, *repeated, common));
            }
            _ => {
                let common = |disk: &Disk| self.common_result(prepared.catalog.as_deref(), disk);
                result.point = result.point.take().map(|point| outcome::uncommitted(point, disks, common));
            }
        }
        outcome::pairs(result, disks, &target, matches!(made, Ok(Some(_))));
        made.map(|_| ())
    }

    /// Reads, builds the trees and commits. `None` when a disk failed.
    fn move_and_commit(
        &self,
        session: &Session,
        point: &Name,
        index: &Arc<Index>,
        prepared: &Prepared,
        result: &mut RunResult,
    ) -> Result<Option<(Manifest, bool)>> {
        let (disks, settings) = (&prepared.disks, &prepared.settings);
        let started = now();
        let writer = Writer::new(self.repository.clone(), index.clone())?;
        let data: Option<u64> = disks.iter().filter_map(OpenDisk::reading).map(Reading::data_bound).sum();
        // Whatever does not shrink, and its index.
        writer.expect(data.map_or(u64::MAX, |data| data.saturating_add(data / 64).saturating_add(1 << 20)));
        self.ticker.phase("backup");
        let rate = self.options.engine.rate.map(Rate::new);
        let readers = Readers {
            disks,
            writer: &writer,
            settings,
            chunk_size: self.repository.config().chunk_size,
            record_read_errors: self.options.record_read_errors,
            control: self.control,
            rate: rate.as_ref(),
        };
        let (report, bad) = readers.read();
        result.read_latency = report.read_latency;
        result.write_latency = report.write_latency;
        for extent in &bad {
            (self.emit)(Event::BadExtent(extent.clone()));
        }
        result.bad_extents_count = bad.len() as u64;
        result.bad_extents = bad[..bad.len().min(limits::BAD_EXTENTS_LISTED)].to_vec();
        for disk in disks.iter().filter(|disk| disk.error().is_none()) {
            if let Some(reading) = disk.reading()
                && let Err(error) = check_unchanged(disk.spec(), &reading.source, self.emit)
            {
                disk.fail(error);
            }
        }
        for degradation in self.repository.store().degraded() {
            self.control.degrade(degradation);
        }
        if disks.iter().any(|disk| disk.error().is_some()) {
            return Ok(None);
        }
        if report.cut_short {
            return Err(stopped());
        }
        self.ticker.phase("tree");
        let nodes = Nodes::new(Arc::new(Chunks::new(self.repository.clone(), index.clone())));
        let mut manifests_of = Vec::with_capacity(disks.len());
        for (number, disk) in disks.iter().enumerate() {
            let mut entry = self.disk(number, disk, &nodes, &writer, prepared.catalog.as_deref())?;
            entry.bad_extents = bad.iter().filter(|bad| bad.pair == number).cloned().collect();
            manifests_of.push(entry);
            if self.control.stopped() {
                return self.stop();
            }
        }
        manifests_of.sort_by(|a, b| a.id.cmp(&b.id));
        self.ticker.phase("commit");
        let stored = writer.finish()?;
        self.ticker.tell_degradations();
        if self.control.stopped() {
            return self.stop();
        }
        if self.options.strict {
            strict(self.control)?;
        }
        let parent = prepared.points.points.last();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            repository: self.repository.config().id.clone(),
            namespace: String::new(),
            vm: self.options.vm.clone(),
            vm_uuid: self
                .options
                .vm_uuid
                .clone()
                .or_else(|| parent.and_then(|parent| parent.vm_uuid.clone())),
            point: point.clone(),
            parent: parent.map(|parent| parent.point.clone()),
            sequence: parent.map_or(1, |parent| parent.sequence + 1),
            run_key: self.options.run_key.clone(),
            labels: self.options.labels.clone(),
            started,
            finished: now(),
            host: session.record().host.clone(),
            mover: env!("CARGO_PKG_VERSION").into(),
            damaged: !bad.is_empty(),
            disks: manifests_of,
            stored,
            quiesce: None,
            time_point: None,
            documents: self.documents.clone(),
        };
        session.check()?;
        match manifests::commit(&self.repository, &manifest)? {
            Put::Done => Ok(Some((manifest, false))),
            Put::Exists => self.taken(point),
        }
    }

    fn stop<T>(&self) -> Result<T> {
        // A stop may be the answer to a downgrade under --strict, which says more.
        if self.options.strict {
            strict(self.control)?;
        }
        Err(stopped())
    }

    /// The point's key is taken: by another run of the same run key, or by whoever gave this session up.
    fn taken(&self, point: &Name) -> Result<Option<(Manifest, bool)>> {
        let there = manifests::get(&self.repository, &self.options.vm, point)?;
        match there.filter(|there| there.run_key.is_some() && there.run_key == self.options.run_key) {
            Some(manifest) => Ok(Some((manifest, true))),
            None => Err(Error::new(
                ErrorKind::Busy,
                "the session of this backup was ended by another process, such as a gc that took it for dead: nothing \
                 was committed",
            )
            .at(self.repository.store().label_of(&manifests::manifest_key(&self.options.vm, point)))
            .hint("run it again")),
        }
    }

    /// A disk as the manifest has it; builds its tree.
    fn disk(
        &self,
        number: usize,
        disk: &OpenDisk,
        nodes: &Nodes,
        writer: &Arc<Writer>,
        catalog: Option<&dyn Catalog>,
    ) -> Result<Disk> {
        let reading = match &disk.what {
            What::Reference { disk, .. } => return Ok(disk.clone()),
            What::Read(reading) => reading,
        };
        let spec = disk.spec();
        let chunk_size = self.repository.config().chunk_size;
        let size = reading.size_now().unwrap_or(0);
        let base = reading.base.as_ref();
        let (root, data_bytes) = match base.and_then(unchanged) {
            Some(unchanged) => unchanged,
            None => {
                let base = base.map(|base| Base {
                    root: &base.disk.root,
                    changed: &base.changes.changed,
                    data_bytes: base.disk.data_bytes,
                });
                let (root, _, data_bytes) =
                    build(nodes, &mut &**writer, base, &reading.ids, size, chunk_size)?;
                (root, data_bytes)
            }
        };
        let settled = match (&reading.common, catalog) {
            (Some(common), Some(catalog)) => {
                common::settle(&self.repository, catalog, &disk.arranged, common, &root, self.emit)
            }
            _ => Default::default(),
        };
        Ok(Disk {
            id: spec.id.clone(),
            size,
            chunk_size,
            root,
            data_bytes,
            method: reading.method,
            reason: reading.reason.clone(),
            base: base.map(|base| base.point.clone()),
            checkpoint: None,
            source: spec.locator.to_string(),
            path: reading.path(spec),
            identity: settled.identity,
            common: settled.common,
            bad_extents: Vec::new(),
            read_bytes: disk.counters.moved().read_bytes,
            stored: writer.stored_by(number),
        })
    }

    /// The catalog, where a restore point that an earlier run made has a common disk.
    fn catalog_of(&self, manifest: &Manifest) -> Result<Option<Box<dyn Catalog>>> {
        if manifest.disks.iter().all(|disk| disk.common.is_none()) {
            return Ok(None);
        }
        let opened = crate::repository::catalog::open(
            &self.repository,
            &self.options.repository,
            &Scope::All,
            self.emit,
        )?;
        Ok(Some(opened.catalog))
    }

    fn common_result(&self, catalog: Option<&dyn Catalog>, disk: &Disk) -> Option<CommonResult> {
        common_result(Some(&self.repository), catalog, self.options.vm.as_str(), disk)
    }
}

/// A common disk, with the machines whose restore points have it, this backup's among them.
fn common_result(
    repository: Option<&Repository>,
    catalog: Option<&dyn Catalog>,
    vm: &str,
    disk: &Disk,
) -> Option<CommonResult> {
    let common = disk.common.as_ref()?;
    let known = match (repository, catalog) {
        // What it cannot tell is no reason to fail: the disks are in the repository.
        (Some(repository), Some(catalog)) => {
            catalog.common_machines(&repository.config().id, &common.id, &disk.root).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let mut vms: Vec<_> = known.iter().map(ToString::to_string).collect();
    vms.push(vm.to_owned());
    vms.sort();
    vms.dedup();
    Some(CommonResult { id: common.id.clone(), location: common.location.clone(), vms })
}

/// The id of a run key's point: the same for the same machine and key.
fn point_of(vm: &Name, run_key: &str, attempt: u32) -> Result<Name> {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for part in [vm.as_str(), run_key] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let digest = hasher.digest128();
    match attempt {
        0 => format!("rk-{digest:032x}").parse(),
        attempt => format!("rk-{digest:032x}-{attempt}").parse(),
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "stopped before everything was read: nothing was committed")
        .hint("run it again: what was stored already is found, unless gc runs before")
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn sum(disks: &[OpenDisk]) -> Moved {
    let mut total = Moved::default();
    disks.iter().for_each(|disk| total += disk.counters.moved());
    total
}
