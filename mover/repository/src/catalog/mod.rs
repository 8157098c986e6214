//! The catalog: a cache of what the manifests say, so that listing is fast and common disks are found. Never needed to
//! commit or to restore, and never believed: whoever acts on what it says reads the manifest that it names.
//!
//! [`open`] gives one that agrees with the store: the host's own (SQLite, in the state folder), or, where that
//! cannot be used, one in memory that is made from the manifests then and there. docs/formats/catalog.md has the tables.

mod reconcile;
mod sqlite;
mod state;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use mover_model::manifest::Manifest;
use mover_model::{ChunkId, Error, ErrorKind, Name, Result};

pub use reconcile::{Reconciled, Scope, is_damaged_by, reconcile};
pub use sqlite::SqliteCatalog;
pub use state::{catalog_path, is_network_filesystem, state_folder};

use crate::repository::Repository;
use crate::store::Key;

/// What a catalog can do. Several processes may use one at once.
pub trait Catalog: Send {
    /// Its name in messages.
    fn label(&self) -> String;

    /// Notes that a repository was seen at a place (an absolute path, or a URL).
    ///
    /// # Errors
    /// `Io`, `Busy`, `Full`, `Corruption`: of the catalog, never of a repository. So for all that follow.
    fn saw(&mut self, repository: &str, place: &str) -> Result<()>;

    /// The repository that was last seen at a place.
    fn repository_at(&self, place: &str) -> Result<Option<String>>;

    /// All repositories that it knows, the last seen first.
    fn repositories(&self) -> Result<Vec<KnownRepository>>;

    /// The machines that it knows, each with the stamp at which it agreed with the store; `None`: it may not agree.
    fn stamps(&self, repository: &str) -> Result<HashMap<Name, Option<String>>>;

    /// The restore points of a machine that it knows, aborted ones included.
    fn known(&self, repository: &str, vm: &Name) -> Result<HashSet<Name>>;

    /// Takes changes in, all of them or none.
    fn apply(&mut self, repository: &str, changes: &[MachineChange]) -> Result<()>;

    /// Forgets everything about a repository but its places.
    fn forget(&mut self, repository: &str) -> Result<()>;

    /// Machines, by name.
    fn machines(&self, repository: &str) -> Result<Vec<MachineSummary>>;

    /// The restore points of a machine, the oldest first.
    fn points(&self, repository: &str, vm: &Name) -> Result<Vec<PointSummary>>;

    /// Disks that are common to several machines and have this in common, the newest first, at most `most`.
    fn commons(&self, repository: &str, by: CommonKey<'_>, most: usize) -> Result<Vec<CommonDisk>>;

    /// Machines with a restore point whose disk is common under this id, or common with this content; by name.
    fn common_machines(&self, repository: &str, id: &str, root: &ChunkId) -> Result<Vec<Name>>;

    /// The stamp of the notes on damage that were taken in.
    fn damage_stamp(&self, repository: &str) -> Result<Option<String>>;

    /// Takes in which restore points were found damaged after they were made: these and no others.
    fn set_damaged(&mut self, repository: &str, points: &[(Name, Name)], stamp: Option<&str>) -> Result<()>;

    /// The points of [`Catalog::set_damaged`].
    fn damaged(&self, repository: &str) -> Result<Vec<(Name, Name)>>;
}

/// A repository that a catalog knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRepository {
    /// Its id.
    pub id: String,
    /// Where it was seen, the last place first.
    pub places: Vec<String>,
    /// When it was last seen: RFC 3339, UTC.
    pub seen: String,
    /// Machines.
    pub machines: u64,
    /// Restore points.
    pub points: u64,
}

/// What has changed with a machine.
#[derive(Debug, Clone)]
pub struct MachineChange {
    /// The machine.
    pub vm: Name,
    /// The stamp of its folder, taken before it was listed; `None`: it is to be listed again the next time.
    pub stamp: Option<String>,
    /// Restore points that came.
    pub added: Vec<Manifest>,
    /// Keys that were taken by an aborted record.
    pub aborted: Vec<Name>,
    /// Restore points that went.
    pub removed: Vec<Name>,
    /// Whether the machine has no objects any more.
    pub gone: bool,
}

/// A machine in a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSummary {
    /// Its name.
    pub vm: Name,
    /// Restore points, damaged ones included.
    pub points: u64,
    /// Of these, damaged ones.
    pub damaged: u64,
    /// The newest whose backup recorded no damage: what `@latest` is.
    pub latest: Option<Name>,
    /// When that was begun.
    pub latest_time: Option<String>,
    /// Disks of the newest restore point.
    pub disks: u64,
    /// Bytes of these disks.
    pub size: u64,
    /// Bytes that all its restore points added.
    pub stored_bytes: u64,
}

/// A restore point in a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointSummary {
    /// Its id.
    pub point: Name,
    /// The one before it.
    pub parent: Option<Name>,
    /// Its place in the order by parent.
    pub sequence: u64,
    /// When it was begun.
    pub started: String,
    /// Disks.
    pub disks: u64,
    /// Bytes of all disks.
    pub size: u64,
    /// Bytes that were new.
    pub new_bytes: u64,
    /// Bytes that it added.
    pub stored_bytes: u64,
    /// Whether its backup recorded damage, or it was found damaged later.
    pub damaged: bool,
}

/// By what a common disk is looked for.
#[derive(Debug, Clone, Copy)]
pub enum CommonKey<'a> {
    /// Its id.
    Id(&'a str),
    /// Its content.
    Root(&'a ChunkId),
    /// The file that it was read from: device and inode. The rest of its identity is in the manifest.
    File(&'a str, u64),
}

/// A disk of a restore point that is common to several machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonDisk {
    /// The machine.
    pub vm: Name,
    /// The restore point.
    pub point: Name,
    /// The disk's id in it.
    pub disk: Name,
    /// By which it is common.
    pub id: String,
}

/// A catalog that agrees with the store.
pub struct Opened {
    /// The catalog.
    pub catalog: Box<dyn Catalog>,
    /// What was wrong with the host's own one, in sentences.
    pub warnings: Vec<String>,
    /// Manifests that could not be read, and why.
    pub unreadable: Vec<(Key, Error)>,
    /// Whether it is the host's own: false for one in memory.
    pub durable: bool,
}

/// Opens the host's catalog and brings it up to date for the scope. Where it cannot be used (a network filesystem, no
/// permission, damaged, locked, of another version), that is a warning, and a catalog in memory takes its place.
///
/// `place` is where the repository lies, for [`known_repository_at`]; `fresh` forgets first what was known of it.
///
/// # Errors
/// The store's only, and `Internal` where not even memory can be had.
pub fn open(
    state: Option<&Path>,
    repository: &Repository,
    place: Option<&Path>,
    scope: &Scope,
    fresh: bool,
) -> Result<Opened> {
    let mut warnings = Vec::new();
    if let Some(mut catalog) = open_file(state, &mut warnings) {
        // A file may turn out to be damaged only when it is used: one second chance with a new one.
        for _ in 0..2 {
            match bring_up(&mut catalog, repository, place, scope, fresh) {
                Ok(unreadable) => {
                    return Ok(Opened { catalog: Box::new(catalog), warnings, unreadable, durable: true });
                }
                Err(reconcile::Failure::Store(error)) => return Err(error),
                Err(reconcile::Failure::Catalog(error)) if error.kind() == ErrorKind::Corruption => {
                    drop(catalog);
                    set_aside(state, &error, &mut warnings);
                    match open_file(state, &mut warnings) {
                        Some(again) => catalog = again,
                        None => break,
                    }
                }
                Err(reconcile::Failure::Catalog(error)) => {
                    warnings.push(unused(&error));
                    break;
                }
            }
        }
    }
    let mut catalog = SqliteCatalog::in_memory()?;
    match bring_up(&mut catalog, repository, None, scope, false) {
        Ok(unreadable) => Ok(Opened { catalog: Box::new(catalog), warnings, unreadable, durable: false }),
        Err(reconcile::Failure::Store(error) | reconcile::Failure::Catalog(error)) => Err(error),
    }
}

/// Notes in the host's catalog that a repository lies at a folder, for [`known_repository_at`]. Every verb that opens a
/// repository calls it. The warnings are sentences; nothing depends on it. A damaged catalog stays where it is: [`open`]
/// moves it away.
pub fn remember(state: Option<&Path>, folder: &Path, id: &str) -> Vec<String> {
    let note = || {
        let mut catalog = SqliteCatalog::open(&state::make_catalog_path(state)?)?;
        state::places_of(folder).iter().try_for_each(|place| saw_if_new(&mut catalog, id, place))
    };
    note().err().map(|error| unused(&error)).into_iter().collect()
}

/// The repository that this host's catalog knows at a folder, whether or not it is there now (an unmounted share).
///
/// # Errors
/// `Io`, `Busy`, `Corruption`, `Unsupported` where there is a catalog that cannot be asked: a warning to whoever
/// wants to make a repository there, no more.
pub fn known_repository_at(state: Option<&Path>, folder: &Path) -> Result<Option<String>> {
    let path = state::catalog_path(state)?;
    if !path.exists() {
        return Ok(None);
    }
    let catalog = SqliteCatalog::open_existing(&path)?;
    for place in state::places_of(folder) {
        if let Some(id) = catalog.repository_at(&place)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// What the host's catalog knows, without a look at any repository.
///
/// # Errors
/// `NotFound` where there is none; those of [`known_repository_at`].
pub fn status(state: Option<&Path>) -> Result<(std::path::PathBuf, Vec<KnownRepository>)> {
    let path = state::catalog_path(state)?;
    if !path.exists() {
        return Err(Error::new(ErrorKind::NotFound, "this host has no catalog yet")
            .at(path.display().to_string())
            .hint("the first command that works on a repository makes it"));
    }
    let known = SqliteCatalog::open_existing(&path)?.repositories()?;
    Ok((path, known))
}

fn saw_if_new(catalog: &mut SqliteCatalog, id: &str, place: &str) -> Result<()> {
    // Most runs find it known: a read does not wait for another process's write.
    if catalog.repository_at(place)?.as_deref() == Some(id) { Ok(()) } else { catalog.saw(id, place) }
}

fn open_file(state: Option<&Path>, warnings: &mut Vec<String>) -> Option<SqliteCatalog> {
    for _ in 0..2 {
        let error = match state::make_catalog_path(state).and_then(|path| SqliteCatalog::open(&path)) {
            Ok(catalog) => return Some(catalog),
            Err(error) => error,
        };
        if error.kind() != ErrorKind::Corruption {
            warnings.push(unused(&error));
            return None;
        }
        set_aside(state, &error, warnings);
    }
    None
}

/// Moves a damaged catalog out of the way, for someone to look at.
fn set_aside(state: Option<&Path>, error: &Error, warnings: &mut Vec<String>) {
    match state::catalog_path(state).and_then(|path| state::set_aside(&path)) {
        Ok(Some(aside)) => warnings.push(format!(
            "the catalog is damaged and is made anew from the manifests ({error}); the damaged one is {}",
            aside.display()
        )),
        // Another process was faster.
        Ok(None) => {}
        Err(aside) => warnings.push(format!("{}; it cannot be moved away either: {aside}", unused(error))),
    }
}

fn unused(error: &Error) -> String {
    format!("the catalog is not used, manifests are read instead: {error}")
}

fn bring_up(
    catalog: &mut SqliteCatalog,
    repository: &Repository,
    place: Option<&Path>,
    scope: &Scope,
    fresh: bool,
) -> Result<Vec<(Key, Error)>, reconcile::Failure> {
    let id = &repository.config().id;
    for place in place.map(state::places_of).unwrap_or_default() {
        saw_if_new(catalog, id, &place).map_err(reconcile::Failure::Catalog)?;
    }
    if fresh {
        catalog.forget(id).map_err(reconcile::Failure::Catalog)?;
    }
    Ok(reconcile::reconcile(catalog, repository, scope)?.unreadable)
}
