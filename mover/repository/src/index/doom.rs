//! Doom lists: the packs that a gc is going to delete, told before it does, so that nobody relies on them any more.
//! `doom/ID` is put once, is never changed, and is deleted after the last of its packs.

use std::time::{Duration, SystemTime};

use mover_model::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::format::envelope::{self, Kind, Protection};
use crate::names::ObjectName;
use crate::repository::Repository;
use crate::store::{Key, Put};

const PREFIX: &str = "doom/";

/// A doom list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoomList {
    /// Its name, 32 hex digits.
    pub id: String,
    /// When the manifests were listed by which its packs are garbage: RFC 3339, UTC, for people.
    pub marked: String,
    /// The same by the store's clock: nanoseconds since 1970.
    pub mark_ns: i128,
    /// Names of the packs, 32 hex digits each.
    pub packs: Vec<String>,
}

impl DoomList {
    /// A list of packs that were found to be garbage by the manifests of the time `mark`, by the store's clock.
    pub fn new(id: ObjectName, mark: SystemTime, packs: &[ObjectName]) -> Self {
        let mark_ns = match mark.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => since.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        let marked =
            jiff::Timestamp::from_nanosecond(mark_ns).map_or_else(|_| String::new(), |t| t.to_string());
        DoomList {
            id: id.to_string(),
            marked,
            mark_ns,
            packs: packs.iter().map(ObjectName::to_string).collect(),
        }
    }

    /// The mark as a time of the store's clock.
    pub fn mark(&self) -> SystemTime {
        let distance = self.mark_ns.unsigned_abs().min(u128::from(u64::MAX)) as u64;
        let distance = Duration::from_nanos(distance);
        let epoch = SystemTime::UNIX_EPOCH;
        let mark = if self.mark_ns < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
        mark.unwrap_or(epoch)
    }

    /// The packs.
    ///
    /// # Errors
    /// `Corruption` for a name that is none.
    pub fn pack_names(&self) -> Result<Vec<ObjectName>> {
        let bad = |pack: &String| {
            Error::new(ErrorKind::Corruption, format!("the doom list {} names the pack {pack:?}", self.id))
        };
        self.packs.iter().map(|pack| pack.parse().map_err(|_| bad(pack))).collect()
    }
}

/// Where a list lies.
pub fn key(id: ObjectName) -> Key {
    Key::new(format!("{PREFIX}{id}"))
}

/// Puts a list: durable, and seen by every session that begins after this has returned.
///
/// # Errors
/// The store's; `Internal` for a name that is none or was used before.
pub fn put(repository: &Repository, list: &DoomList) -> Result<()> {
    let internal =
        |what: &str| Error::new(ErrorKind::Internal, format!("the doom list {:?} {what}", list.id));
    let id = list.id.parse().map_err(|_| internal("has a name that is none"))?;
    let protection = Protection::Sealed(repository.keys());
    match envelope::put(repository.store(), &key(id), Kind::Doom, protection, list)? {
        Put::Done => Ok(()),
        Put::Exists => Err(internal("is there already, though names are random")),
    }
}

/// Reads a list; `None` when there is none of that name.
///
/// # Errors
/// `Corruption`, `Unsupported`, the store's.
pub fn get(repository: &Repository, id: ObjectName) -> Result<Option<DoomList>> {
    let (key, protection) = (key(id), Protection::Sealed(repository.keys()));
    let read = envelope::get::<DoomList>(repository.store(), &key, Kind::Doom, protection);
    let Some(list) = read.map_err(|error| match error.kind() {
        ErrorKind::Corruption => error.hint("run `mover gc`, which clears a damaged doom list away"),
        _ => error,
    })?
    else {
        return Ok(None);
    };
    if list.id != id.to_string() {
        let message = format!("this is the doom list {}, under another name", list.id);
        return Err(Error::new(ErrorKind::Corruption, message).at(repository.store().label_of(&key)));
    }
    Ok(Some(list))
}

/// All lists, the earliest mark first.
///
/// # Errors
/// As for [`get`].
pub fn list(repository: &Repository) -> Result<Vec<DoomList>> {
    let mut lists = Vec::new();
    for listed in repository.store().list(PREFIX)? {
        // What is no name of ours was put by nobody of us.
        let Ok(id) = listed.key.last().parse() else { continue };
        // One that is gone by now was finished with: its gc has deleted its packs and their segments before.
        lists.extend(get(repository, id)?);
    }
    lists.sort_by(|a, b| (a.mark_ns, &a.id).cmp(&(b.mark_ns, &b.id)));
    Ok(lists)
}

/// Deletes a list, after all its packs.
///
/// # Errors
/// The store's.
pub fn delete(repository: &Repository, list: &DoomList) -> Result<()> {
    match list.id.parse() {
        Ok(id) => repository.store().delete(&key(id)),
        Err(_) => Err(Error::new(ErrorKind::Internal, format!("the doom list {:?} has no name", list.id))),
    }
}
