//! Doom lists as gc leaves them for a later gc: [`crate::index::doom`] has the list itself, here is who is waited for.
//!
//! A list is put before gc looks for sessions that must have ended before it deletes anything. A gc that gives up
//! waiting leaves its list, and a second one without packs that names the sessions it still waits for, so that a later gc
//! needs not wait for sessions that began after the list and saw it. To all others the second one is a list of nothing.

use std::collections::HashSet;

use mover_model::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::format::envelope::{self, Kind, Protection};
use crate::index::doom::{DoomList, key};
use crate::names::ObjectName;
use crate::repository::Repository;
use crate::store::{Key, Put};

/// The document of a doom list, with the field that only gc looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Document {
    id: String,
    marked: String,
    mark_ns: i128,
    packs: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waits: Option<Waits>,
}

/// Sessions that began before a list was put, and had not ended when its gc gave up waiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waits {
    /// Name of the list.
    pub list: String,
    /// Ids of sessions.
    pub sessions: Vec<String>,
}

/// Doom lists as they are found.
#[derive(Default)]
pub(super) struct Found {
    /// Those with packs.
    pub lists: Vec<DoomList>,
    /// Those that tell who is waited for, by their keys.
    pub waits: Vec<(Key, Waits)>,
    /// Those that could not be read, and why. Nothing is deleted because of them, and gc removes them: as long as no gc
    /// puts their packs on a list of its own, these are packs like others.
    pub damaged: Vec<(Key, Error)>,
}

impl Found {
    /// All packs on them.
    pub fn packs(&self) -> Result<HashSet<ObjectName>> {
        let mut packs = HashSet::new();
        for list in &self.lists {
            packs.extend(list.pack_names()?);
        }
        Ok(packs)
    }
}

/// Reads all doom lists.
///
/// # Errors
/// The store's; `Unsupported` and `Key` of a list, as what it says must not be ignored.
pub(super) fn all(repository: &Repository) -> Result<Found> {
    let mut found = Found::default();
    let store = repository.store();
    for listed in store.list("doom/")? {
        let Ok(name) = listed.key.last().parse::<ObjectName>() else { continue };
        let document =
            envelope::get::<Document>(store, &listed.key, Kind::Doom, Protection::Sealed(repository.keys()));
        match document {
            Ok(Some(document)) if document.id == name.to_string() => match document.waits {
                Some(waits) => found.waits.push((listed.key, waits)),
                None => {
                    let Document { id, marked, mark_ns, packs, .. } = document;
                    found.lists.push(DoomList { id, marked, mark_ns, packs });
                }
            },
            Ok(Some(_)) => {
                let error = Error::new(ErrorKind::Corruption, "this doom list has another name");
                found.damaged.push((listed.key, error));
            }
            // Deleted since it was listed: its packs are in no segment any more.
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Corruption => found.damaged.push((listed.key, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Tells for whom a list waits.
///
/// # Errors
/// The store's.
pub(super) fn put_waits(repository: &Repository, list: &DoomList, sessions: Vec<String>) -> Result<()> {
    let name = ObjectName::random()?;
    let document = Document {
        id: name.to_string(),
        marked: list.marked.clone(),
        mark_ns: list.mark_ns,
        packs: Vec::new(),
        waits: Some(Waits { list: list.id.clone(), sessions }),
    };
    match envelope::put(
        repository.store(),
        &key(name),
        Kind::Doom,
        Protection::Sealed(repository.keys()),
        &document,
    )? {
        Put::Done => Ok(()),
        Put::Exists => Err(Error::new(ErrorKind::Internal, "a new doom list's name is taken")),
    }
}
