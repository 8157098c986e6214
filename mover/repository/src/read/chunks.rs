//! Reads chunks one at a time, with a bounded cache of open packs.

use std::sync::{Arc, Mutex};

use mover_model::{ChunkId, Error, ErrorKind, Operation, Result};

use super::recent::Recent;
use crate::codec::{self, PackKey};
use crate::config::CHUNK_SIZE_MAX;
use crate::format::entry::{Encoding, Entry};
use crate::format::pack::{self, PackIndex};
use crate::index::{Index, Location};
use crate::keys::ChunkKind;
use crate::names::ObjectName;
use crate::repository::Repository;
use crate::store::Object;

/// Packs that are kept open: each is a descriptor or two, and neighbours on a disk are neighbours in few packs.
const OPEN_PACKS: usize = 64;
/// Packs' own indexes that are kept: verify's workers are in few packs at a time, and one is 576 KiB at most.
const PACK_INDEXES: usize = 8;

/// What to do about anything that is not as it was written.
pub(crate) const VERIFY_HINT: &str = "run `mover verify`: it tells which backups the damage touches";

/// An open pack: its object and its key. The seed in its header is read once.
pub struct OpenPack {
    /// The pack.
    pub name: ObjectName,
    /// Its bytes.
    pub object: Box<dyn Object>,
    /// Its key.
    pub key: PackKey,
}

/// A reader of chunks. Shared by all threads of a process.
pub struct Chunks {
    repository: Arc<Repository>,
    index: Arc<Index>,
    packs: Mutex<Recent<ObjectName, Arc<OpenPack>>>,
    indexes: Mutex<Recent<ObjectName, Arc<PackIndex>>>,
}

impl Chunks {
    /// Over an index.
    pub fn new(repository: Arc<Repository>, index: Arc<Index>) -> Self {
        let packs = Mutex::new(Recent::new(OPEN_PACKS));
        Chunks { repository, index, packs, indexes: Mutex::new(Recent::new(PACK_INDEXES)) }
    }

    /// The index below.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// The repository below.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// A pack's object and key, from the cache where it is there.
    ///
    /// # Errors
    /// `Corruption` when the pack is missing or its header damaged; the store's.
    pub fn pack(&self, name: ObjectName) -> Result<Arc<OpenPack>> {
        if let Some(pack) = self.packs.lock().unwrap_or_else(|p| p.into_inner()).get(&name) {
            return Ok(pack);
        }
        // Opened without the lock: another thread may open it too, and then one of the two is closed again.
        let (object, label) = self.open(name)?;
        let keys = self.repository.keys();
        let header = pack::read_header(keys, self.repository.id(), name, &*object, &label)?;
        let pack = Arc::new(OpenPack { name, object, key: PackKey::new(keys, &header.seed) });
        self.packs.lock().unwrap_or_else(|p| p.into_inner()).put(name, pack.clone());
        Ok(pack)
    }

    /// A pack's own index, from the cache where it is there.
    ///
    /// # Errors
    /// As for [`Chunks::pack`].
    pub fn pack_index(&self, name: ObjectName) -> Result<Arc<PackIndex>> {
        if let Some(index) = self.indexes.lock().unwrap_or_else(|p| p.into_inner()).get(&name) {
            return Ok(index);
        }
        let (object, label) = self.open(name)?;
        let keys = self.repository.keys();
        let index = Arc::new(pack::read_index(keys, self.repository.id(), name, &*object, &label)?);
        self.indexes.lock().unwrap_or_else(|p| p.into_inner()).put(name, index.clone());
        Ok(index)
    }

    fn open(&self, name: ObjectName) -> Result<(Box<dyn Object>, String)> {
        let key = pack::pack_key(name);
        let label = self.repository.store().label_of(&key);
        match self.repository.store().open(&key)? {
            Some(object) => Ok((object, label)),
            None => Err(Error::new(ErrorKind::Corruption, "the pack is missing")
                .during(Operation::Open)
                .at(label)
                .hint(VERIFY_HINT)),
        }
    }

    /// The name of a pack in messages.
    pub fn label_of(&self, name: ObjectName) -> String {
        self.repository.store().label_of(&pack::pack_key(name))
    }

    /// The content of a chunk, checked. Tries every place where it is.
    ///
    /// # Errors
    /// `Corruption` when no place has it whole; the store's.
    pub fn get(&self, id: &ChunkId, kind: ChunkKind) -> Result<Vec<u8>> {
        // Nearly always the first place is good: the others are looked up only if not.
        let first = match self.index.find(id)? {
            None => return Err(not_indexed(id, kind)),
            Some(location) if location.entry.kind == kind => Some(location),
            Some(_) => None,
        };
        let failed = match first.map(|location| self.get_at(&location)) {
            Some(Ok(content)) => return Ok(content),
            Some(Err(error)) => Some(error),
            None => None,
        };
        match self.get_elsewhere(id, kind, first.as_ref())? {
            Some(content) => Ok(content),
            None => Err(failed.unwrap_or_else(|| not_indexed(id, kind))),
        }
    }

    /// The content of a chunk from any place but one that was bad; `None` when there is no other or none is good.
    ///
    /// # Errors
    /// The index's.
    pub(crate) fn get_elsewhere(
        &self,
        id: &ChunkId,
        kind: ChunkKind,
        bad: Option<&Location>,
    ) -> Result<Option<Vec<u8>>> {
        let is_bad = |place: &Location| {
            bad.is_some_and(|bad| (bad.pack, bad.entry.offset) == (place.pack, place.entry.offset))
        };
        let places = self.index.find_all(id)?;
        let mut places = places.iter().filter(|place| place.entry.kind == kind && !is_bad(place));
        Ok(places.find_map(|place| self.get_at(place).ok()))
    }

    /// The content of a chunk at a place, checked.
    ///
    /// # Errors
    /// As for [`Chunks::get`].
    pub fn get_at(&self, location: &Location) -> Result<Vec<u8>> {
        let entry = &location.entry;
        let pack = self.pack(location.pack)?;
        let broken = |error: Error| {
            // What the codec finds wrong it cannot place.
            Error::new(error.kind(), error.message())
                .during(Operation::Read)
                .at(self.label_of(location.pack))
                .offset(entry.offset)
                .hint(VERIFY_HINT)
        };
        check_place(entry, pack.object.size()).map_err(broken)?;
        let mut stored = vec![0; entry.stored as usize];
        pack.object.read_at(entry.offset, &mut stored)?;
        pack.key.open(entry, &mut stored).map_err(broken)?;
        let content = if entry.encoding == Encoding::Raw {
            stored
        } else {
            let mut content = vec![0; entry.plain as usize];
            codec::decompress(entry.encoding, &stored, &mut content).map_err(broken)?;
            content
        };
        codec::check(self.repository.keys(), entry, &content, &entry.id).map_err(broken)?;
        Ok(content)
    }
}

fn not_indexed(id: &ChunkId, kind: ChunkKind) -> Error {
    let what = if kind == ChunkKind::Node { "tree node" } else { "chunk" };
    Error::new(ErrorKind::Corruption, format!("{what} {id} is in no index segment")).hint(VERIFY_HINT)
}

/// Whether an entry can be true of a pack of `size` bytes: nothing is allocated or read before this was asked.
pub(crate) fn check_place(entry: &Entry, size: u64) -> Result<()> {
    let wrong = |message: String| Err(Error::new(ErrorKind::Corruption, message));
    if entry.plain > CHUNK_SIZE_MAX || entry.stored > entry.plain {
        return wrong(format!("the index tells {} bytes for {} of content", entry.stored, entry.plain));
    }
    if entry.encoding == Encoding::Raw && entry.stored != entry.plain {
        return wrong("the index tells two lengths for a raw chunk".into());
    }
    match entry.offset.checked_add(u64::from(entry.stored)) {
        Some(end) if end <= size => Ok(()),
        _ => wrong(format!(
            "the pack ends at {size} bytes, before the chunk's {} bytes at {}",
            entry.stored, entry.offset
        )),
    }
}
