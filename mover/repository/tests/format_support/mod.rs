//! A store in memory whose objects can be damaged, and what the format's tests have in common.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use mover_model::{ChunkId, Error, ErrorKind, Result};
use mover_repository::ObjectName;
use mover_repository::format::entry::{Encoding, Entry};
use mover_repository::keys::{ChunkKind, Keys};
use mover_repository::store::{DirectFile, Key, Listed, Object, Put, Store, Upload};

pub const REPOSITORY: [u8; 16] = [0x11; 16];

pub fn plain_keys() -> Keys {
    Keys::plain([7; 32])
}

pub fn encrypted_keys() -> Keys {
    Keys::encrypted([9; 32], [7; 32])
}

pub fn name(number: u8) -> ObjectName {
    ObjectName([number; 16])
}

/// An id whose beginning is `prefix` and whose rest is made of `rest`.
pub fn id(prefix: u64, rest: u64) -> ChunkId {
    let mut id = [0x5a; 32];
    id[..8].copy_from_slice(&prefix.to_be_bytes());
    id[8..16].copy_from_slice(&rest.to_le_bytes());
    ChunkId(id)
}

pub fn entry(id: ChunkId, pack: u32, offset: u64, stored: u32) -> Entry {
    let (tag, kind) = ([3; 16], ChunkKind::Data);
    Entry { id, tag, offset, stored, plain: stored + 1, pack, encoding: Encoding::Lz4, kind }
}

type Objects = Arc<Mutex<BTreeMap<Key, (Arc<Vec<u8>>, SystemTime)>>>;

/// A store in memory. Counts reads.
#[derive(Default)]
pub struct MemoryStore {
    objects: Objects,
    pub reads: Arc<AtomicU64>,
}

impl MemoryStore {
    pub fn bytes(&self, key: &Key) -> Vec<u8> {
        self.objects.lock().unwrap()[key].0.to_vec()
    }

    /// Puts an object in place of another, as damage does.
    pub fn replace(&self, key: &Key, bytes: Vec<u8>) {
        self.objects.lock().unwrap().insert(key.clone(), (Arc::new(bytes), SystemTime::now()));
    }

    pub fn keys(&self, prefix: &str) -> Vec<Key> {
        self.list(prefix).unwrap().into_iter().map(|listed| listed.key).collect()
    }
}

impl Store for MemoryStore {
    fn label(&self) -> String {
        "memory".into()
    }

    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(key) {
            return Ok(Put::Exists);
        }
        objects.insert(key.clone(), (Arc::new(bytes.to_vec()), SystemTime::now()));
        Ok(Put::Done)
    }

    fn begin(&self, key: &Key, _: u64) -> Result<Box<dyn Upload>> {
        Ok(Box::new(MemoryUpload { objects: self.objects.clone(), key: key.clone(), bytes: Vec::new() }))
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let found = self.objects.lock().unwrap().get(key).map(|(bytes, _)| bytes.clone());
        Ok(found.map(|bytes| {
            let object = MemoryObject { bytes, reads: self.reads.clone(), label: self.label_of(key) };
            Box::new(object) as Box<dyn Object>
        }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let objects = self.objects.lock().unwrap();
        let found = objects.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        Ok(found
            .map(|(key, (bytes, modified))| Listed {
                key: key.clone(),
                size: bytes.len() as u64,
                modified: *modified,
            })
            .collect())
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let next =
            |key: Key| key.as_str()[prefix.len()..].split_once('/').map(|(folder, _)| folder.to_owned());
        Ok(self.keys(prefix).into_iter().filter_map(next).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }
}

struct MemoryUpload {
    objects: Objects,
    key: Key,
    bytes: Vec<u8>,
}

impl Upload for MemoryUpload {
    fn file(&self) -> Option<DirectFile<'_>> {
        None
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        assert!(offset >= self.bytes.len() as u64, "{}: ranges overlap", self.key);
        self.bytes.resize(offset as usize, 0);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>, length: u64) -> Result<Put> {
        assert_eq!(length, self.bytes.len() as u64, "{}", self.key);
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(&self.key) {
            return Ok(Put::Exists);
        }
        objects.insert(self.key, (Arc::new(self.bytes), SystemTime::now()));
        Ok(Put::Done)
    }
}

/// An object in memory, also without a store.
pub struct MemoryObject {
    pub bytes: Arc<Vec<u8>>,
    pub reads: Arc<AtomicU64>,
    pub label: String,
}

impl MemoryObject {
    pub fn new(bytes: Vec<u8>) -> Self {
        MemoryObject { bytes: Arc::new(bytes), reads: Arc::default(), label: "memory/object".into() }
    }
}

impl Object for MemoryObject {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn file(&self) -> Option<DirectFile<'_>> {
        None
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.size());
        let end = end
            .ok_or_else(|| Error::new(ErrorKind::Corruption, "ends early").at(&self.label).offset(offset))?;
        buffer.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        Ok(())
    }

    fn read_all(&self, most: u64) -> Result<Vec<u8>> {
        assert!(self.size() <= most);
        Ok(self.bytes.to_vec())
    }
}

/// Compares with a golden file of format version 1; `MOVER_GOLDEN=write` makes it where there is none.
pub fn golden(name: &str, bytes: &[u8]) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("MOVER_GOLDEN").is_some_and(|value| value == "write")
        && !std::path::Path::new(&path).exists()
    {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert!(golden == bytes, "{path}: format version 1 never changes; what is written now differs from it");
}
