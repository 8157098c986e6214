//! Notes: what is learnt of immutable things later on, each put once: `notes/KIND/…`.
//!
//! - `notes/damaged/NAME`: chunks that a verify or restore found bad, with their packs; later backups count these as
//!   absent and store them again.
//! - `notes/points/VM/POINT/NAME`: a restore point was verified, or found damaged, at a time.

use std::collections::BTreeSet;

use mover_model::{ChunkId, Error, ErrorKind, Name, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::format::envelope::{self, Kind, Protection};
use crate::names::ObjectName;
use crate::repository::Repository;
use crate::store::{Key, Put};

/// Chunks of one note: about 20 MiB of JSON, well below what an envelope holds.
const CHUNKS_OF_A_NOTE: usize = 100_000;

/// A chunk that is not what its name says, or not there, in one pack.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DamagedChunk {
    /// Its name.
    pub id: ChunkId,
    /// The pack's name, 32 hex digits.
    pub pack: String,
    /// What was found.
    pub reason: String,
}

/// What is known of a restore point beside its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum PointNote {
    /// Every chunk was read and was what its name says.
    Verified {
        /// RFC 3339, UTC.
        time: String,
    },
    /// Some chunks are damaged.
    Damaged {
        /// RFC 3339, UTC.
        time: String,
        /// Disk and byte ranges: id, start, length.
        extents: Vec<(Name, u64, u64)>,
    },
}

/// The document of a note of damaged chunks.
#[derive(Serialize, Deserialize)]
struct DamagedNote {
    /// RFC 3339, UTC; for people.
    time: String,
    chunks: Vec<DamagedChunk>,
}

impl PointNote {
    /// When it was learnt: RFC 3339, UTC.
    pub fn time(&self) -> &str {
        match self {
            PointNote::Verified { time } | PointNote::Damaged { time, .. } => time,
        }
    }
}

/// Records damaged chunks.
///
/// # Errors
/// The store's.
pub fn put_damaged(repository: &Repository, chunks: &[DamagedChunk]) -> Result<()> {
    for chunks in chunks.chunks(CHUNKS_OF_A_NOTE) {
        let note = DamagedNote { time: crate::repository::now(), chunks: chunks.to_vec() };
        put(repository, "notes/damaged/", &note)?;
    }
    Ok(())
}

/// All damaged chunks on record, each pair of chunk and pack once, in the order of their ids. A note that is damaged itself
/// is left out, see [`damaged_notes`]: verify finds anew what it said, and it must not stand in the way of all backups.
///
/// # Errors
/// The store's.
pub fn damaged(repository: &Repository) -> Result<Vec<DamagedChunk>> {
    let mut seen = BTreeSet::new();
    let (notes, _) = read_damaged(repository)?;
    let mut chunks: Vec<_> = notes.into_iter().flat_map(|(_, note)| note.chunks).collect();
    chunks.retain(|chunk| seen.insert((chunk.id, chunk.pack.clone())));
    chunks.sort_by(|a, b| (&a.id, &a.pack).cmp(&(&b.id, &b.pack)));
    Ok(chunks)
}

/// Notes of damaged chunks that are damaged themselves, and what is wrong with each.
///
/// # Errors
/// The store's.
pub fn damaged_notes(repository: &Repository) -> Result<Vec<(Key, Error)>> {
    Ok(read_damaged(repository)?.1)
}

/// Forgets notes of damaged chunks all of whose packs are gone, and those that are damaged themselves; returns how many
/// notes were deleted.
///
/// # Errors
/// The store's.
pub fn forget_damaged(repository: &Repository, pack_is_gone: &dyn Fn(&str) -> bool) -> Result<u64> {
    let mut forgotten = 0;
    let (notes, unreadable) = read_damaged(repository)?;
    for (key, _) in unreadable {
        repository.store().delete(&key)?;
        forgotten += 1;
    }
    for (key, note) in notes {
        if note.chunks.iter().all(|chunk| pack_is_gone(&chunk.pack)) {
            repository.store().delete(&key)?;
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

/// Records something of a restore point.
///
/// # Errors
/// The store's.
pub fn put_point(repository: &Repository, vm: &Name, point: &Name, note: &PointNote) -> Result<()> {
    put(repository, &folder_of(vm, point), note)
}

/// What is on record of a restore point, the oldest first.
///
/// # Errors
/// The store's, `Corruption`.
pub fn of_point(repository: &Repository, vm: &Name, point: &Name) -> Result<Vec<PointNote>> {
    let mut notes = read_all::<PointNote>(repository, &folder_of(vm, point))?;
    notes.sort_by(|(a_key, a), (b_key, b)| (a.time(), a_key).cmp(&(b.time(), b_key)));
    Ok(notes.into_iter().map(|(_, note)| note).collect())
}

/// Forgets a pruned restore point's notes.
///
/// # Errors
/// The store's.
pub fn forget_point(repository: &Repository, vm: &Name, point: &Name) -> Result<()> {
    let store = repository.store();
    store.list(&folder_of(vm, point))?.iter().try_for_each(|listed| store.delete(&listed.key))
}

fn folder_of(vm: &Name, point: &Name) -> String {
    format!("notes/points/{vm}/{point}/")
}

fn put(repository: &Repository, folder: &str, note: &impl Serialize) -> Result<()> {
    repository.check_writable()?;
    let store = repository.store();
    let key = Key::new(format!("{folder}{}", ObjectName::random()?));
    match envelope::put(store, &key, Kind::Note, Protection::Sealed(repository.keys()), note)? {
        Put::Done => Ok(()),
        Put::Exists => Err(Error::new(ErrorKind::Internal, "another object has the name of a new note")
            .at(store.label_of(&key))),
    }
}

/// The notes of damaged chunks, and those that cannot be read.
type DamagedNotes = (Vec<(Key, DamagedNote)>, Vec<(Key, Error)>);

fn read_damaged(repository: &Repository) -> Result<DamagedNotes> {
    let store = repository.store();
    let protection = Protection::Sealed(repository.keys());
    let (mut notes, mut unreadable) = (Vec::new(), Vec::new());
    for listed in store.list("notes/damaged/")? {
        match envelope::get(store, &listed.key, Kind::Note, protection) {
            // One that is gone again was forgotten since it was listed.
            Ok(None) => {}
            Ok(Some(note)) => notes.push((listed.key, note)),
            Err(error) if error.kind() == ErrorKind::Corruption => unreadable.push((listed.key, error)),
            Err(error) => return Err(error),
        }
    }
    Ok((notes, unreadable))
}

fn read_all<T: DeserializeOwned>(repository: &Repository, folder: &str) -> Result<Vec<(Key, T)>> {
    let store = repository.store();
    let protection = Protection::Sealed(repository.keys());
    let mut notes = Vec::new();
    for listed in store.list(folder)? {
        // One that is gone again was forgotten since it was listed.
        if let Some(note) = envelope::get(store, &listed.key, Kind::Note, protection)? {
            notes.push((listed.key, note));
        }
    }
    Ok(notes)
}
