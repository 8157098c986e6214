//! Manifests in the store: `manifests/VM/POINT`. Putting one is the commit.

use jiff::Timestamp;
use mover_model::manifest::{MANIFEST_VERSION, Manifest};
use mover_model::{Error, ErrorKind, Name, PointSelector, Result};
use serde::{Deserialize, Serialize};

use crate::format::envelope::{self, Kind, Protection};
use crate::format::{hex, newer};
use crate::keys;
use crate::repository::{Repository, now};
use crate::store::{Key, Listed, Put};

/// Points that an error names where the one that was asked for is not there.
const NAMED_MAX: usize = 5;

/// Where a restore point's manifest lies.
pub fn manifest_key(vm: &Name, point: &Name) -> Key {
    Key::new(format!("manifests/{vm}/{point}"))
}

/// A new point's id: `20261120T193000Z-` and eight random hex digits, so that names sort as people expect. Order among
/// points is by parent all the same.
///
/// # Errors
/// `Internal` when the system gives no randomness.
pub fn new_point() -> Result<Name> {
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    format!("{time}-{}", hex::encode(&keys::random::<4>()?)).parse()
}

/// Machines that have objects below `manifests/`.
///
/// # Errors
/// The store's.
pub fn machines(repository: &Repository) -> Result<Vec<Name>> {
    // What is no name was not put by us.
    Ok(repository.store().list_folders("manifests/")?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// The manifest objects of a machine, aborted ones included, in the order of their names.
///
/// # Errors
/// The store's.
pub fn list(repository: &Repository, vm: &Name) -> Result<Vec<Listed>> {
    let mut listed = repository.store().list(&format!("manifests/{vm}/"))?;
    listed.retain(|listed| point_of(vm, &listed.key).is_some());
    Ok(listed)
}

/// The point that a key of a machine's manifests names.
fn point_of(vm: &Name, key: &Key) -> Option<Name> {
    let point = key.last().parse().ok()?;
    (manifest_key(vm, &point) == *key).then_some(point)
}

/// Reads one; `None` when it is not there or was aborted.
///
/// # Errors
/// `Corruption`, `Unsupported`, `WrongIdentity`; the store's.
pub fn get(repository: &Repository, vm: &Name, point: &Name) -> Result<Option<Manifest>> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let key = manifest_key(vm, point);
    let store = repository.store();
    let label = store.label_of(&key);
    let body = match envelope::open(store, &key, Protection::Sealed(repository.keys()))? {
        None | Some((Kind::Aborted, _)) => return Ok(None),
        Some((Kind::Manifest, body)) => body,
        Some((other, _)) => {
            let message = format!("it holds {other:?} where a manifest belongs");
            return Err(Error::new(ErrorKind::Corruption, message).at(label));
        }
    };
    // Of a later version only this field is sure to be there.
    let Versioned { version } = envelope::parse(&label, &body)?;
    if version != MANIFEST_VERSION {
        return Err(newer(
            &label,
            &format!("it has version {version}, and this mover knows {MANIFEST_VERSION}"),
        ));
    }
    let manifest: Manifest = envelope::parse(&label, &body)?;
    check_identity(repository, &manifest, &key).map_err(|error| error.at(label))?;
    Ok(Some(manifest))
}

/// Repositories that share an id key and are not encrypted share their MAC key too: the MAC does not tell them apart.
fn check_identity(repository: &Repository, manifest: &Manifest, key: &Key) -> Result<()> {
    let here = &repository.config().id;
    if manifest.repository != *here {
        let message = format!("it is a manifest of repository {}, and this is {here}", manifest.repository);
        return Err(Error::new(ErrorKind::WrongIdentity, message)
            .hint("remove the file: it was put there from elsewhere"));
    }
    if manifest_key(&manifest.vm, &manifest.point) != *key {
        let message = format!("it is the manifest of {}@{}", manifest.vm, manifest.point);
        return Err(Error::new(ErrorKind::WrongIdentity, message)
            .hint("remove the file: it was put there from elsewhere"));
    }
    Ok(())
}

/// All restore points of a machine, in their order (by parent). What cannot be read is returned beside them.
///
/// # Errors
/// The store's.
pub fn all(repository: &Repository, vm: &Name) -> Result<Points> {
    let mut points = Points::default();
    for listed in list(repository, vm)? {
        let Some(point) = point_of(vm, &listed.key) else { continue };
        match get(repository, vm, &point) {
            Ok(Some(manifest)) => points.points.push(manifest),
            // Aborted, or pruned since it was listed.
            Ok(None) => {}
            // A device or network that fails says nothing of one object: with some points missing the list would lie.
            Err(error) if error.kind() == ErrorKind::Unreachable => return Err(error),
            Err(error) => points.unreadable.push((listed.key, error)),
        }
    }
    // A child's sequence is one more than its parent's, so this is the parents' order. Points of one parent (two
    // hosts that backed up to copies of a repository) stand beside each other, by id.
    points.points.sort_by(|a, b| (a.sequence, &a.point).cmp(&(b.sequence, &b.point)));
    Ok(points)
}

/// Restore points of a machine.
#[derive(Debug, Default)]
pub struct Points {
    /// In their order, the oldest first.
    pub points: Vec<Manifest>,
    /// Keys that could not be read, and why.
    pub unreadable: Vec<(Key, Error)>,
}

impl Points {
    /// The one that is meant.
    ///
    /// # Errors
    /// `NotFound`, naming what there is instead; the error of its manifest where that is the one that cannot be read.
    pub fn select(&self, vm: &Name, selector: &PointSelector) -> Result<&Manifest> {
        let mut newest_first = self.points.iter().rev();
        let not_after = |manifest: &Manifest, time: i128| {
            // A time that is none is before nothing and after nothing.
            manifest.started.parse::<Timestamp>().is_ok_and(|started| started.as_nanosecond() <= time)
        };
        let found = match selector {
            PointSelector::Latest => newest_first.find(|manifest| !manifest.damaged),
            PointSelector::Id(id) => newest_first.find(|manifest| manifest.point == *id),
            PointSelector::At(time) => newest_first.find(|manifest| not_after(manifest, *time)),
        };
        found.ok_or_else(|| self.not_found(vm, selector))
    }

    fn not_found(&self, vm: &Name, selector: &PointSelector) -> Error {
        if let PointSelector::Id(id) = selector {
            let key = manifest_key(vm, id);
            if let Some((_, error)) = self.unreadable.iter().find(|(unreadable, _)| *unreadable == key) {
                return error.clone();
            }
        }
        let message = match selector {
            _ if self.points.is_empty() => format!("there is no restore point of `{vm}`"),
            PointSelector::Latest => {
                format!(
                    "all {} restore points of `{vm}` are marked damaged; name one to use it",
                    self.points.len()
                )
            }
            PointSelector::Id(id) => format!("`{vm}` has no restore point `{id}`"),
            PointSelector::At(time) => match Timestamp::from_nanosecond(*time) {
                Ok(time) => format!("`{vm}` has no restore point begun at {time} or before"),
                Err(_) => format!("`{vm}` has no restore point of that time"),
            },
        };
        let unreadable = match self.unreadable.len() {
            0 => String::new(),
            n => format!(" ({n} that cannot be read are not counted)"),
        };
        let newest: Vec<_> =
            self.points.iter().rev().take(NAMED_MAX).map(|point| point.point.as_str()).collect();
        let there_are = match newest.is_empty() {
            true => "`mover list` shows all machines".to_owned(),
            false => format!("the newest are {}; `mover list {vm}` shows all", newest.join(", ")),
        };
        Error::new(ErrorKind::NotFound, message + &unreadable).hint(there_are)
    }
}

/// Commits a restore point: exactly one of the session's manifest and gc's aborted record gets there.
///
/// # Errors
/// The store's. [`Put::Exists`] means that the session was ended by another process.
pub fn commit(repository: &Repository, manifest: &Manifest) -> Result<Put> {
    repository.check_writable()?;
    let key = manifest_key(&manifest.vm, &manifest.point);
    check_identity(repository, manifest, &key)?;
    envelope::put(repository.store(), &key, Kind::Manifest, Protection::Sealed(repository.keys()), manifest)
}

/// Ends a dead session's manifest key for good; `Exists` when it was committed or aborted before.
///
/// # Errors
/// The store's.
pub fn abort(repository: &Repository, key: &Key) -> Result<Put> {
    #[derive(Serialize)]
    struct Aborted {
        aborted: String,
    }
    repository.check_writable()?;
    let protection = Protection::Sealed(repository.keys());
    envelope::put(repository.store(), key, Kind::Aborted, protection, &Aborted { aborted: now() })
}
