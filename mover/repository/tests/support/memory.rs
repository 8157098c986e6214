//! A store without files, locks or folders: what an object store promises, and nothing more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use mover_model::{Error, ErrorKind, Result};
use mover_repository::store::{DirectFile, Key, Listed, Object, Put, Store, Upload};

type Objects = Arc<Mutex<BTreeMap<Key, (Arc<Vec<u8>>, SystemTime)>>>;

/// Objects in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryStore {
    objects: Objects,
}

impl Store for MemoryStore {
    fn label(&self) -> String {
        "memory".to_owned()
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
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.clone(), bytes: Vec::new() }))
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let found = self.objects.lock().unwrap().get(key).map(|(bytes, _)| bytes.clone());
        Ok(found.map(|bytes| Box::new(MemoryObject { key: key.clone(), bytes }) as Box<dyn Object>))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let objects = self.objects.lock().unwrap();
        let below = objects.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        let listed = |(key, (bytes, modified)): (&Key, &(Arc<Vec<u8>>, SystemTime))| Listed {
            key: key.clone(),
            size: bytes.len() as u64,
            modified: *modified,
        };
        Ok(below.map(listed).collect())
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let objects = self.objects.lock().unwrap();
        let below = objects.keys().filter_map(|key| key.as_str().strip_prefix(prefix)?.split_once('/'));
        let mut folders: Vec<_> = below.map(|(folder, _)| folder.to_owned()).collect();
        folders.sort_unstable();
        folders.dedup();
        Ok(folders)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: Key,
    bytes: Vec<u8>,
}

impl Upload for MemoryUpload {
    fn file(&self) -> Option<DirectFile<'_>> {
        None
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset as usize + bytes.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn commit(mut self: Box<Self>, length: u64) -> Result<Put> {
        self.bytes.resize(length as usize, 0);
        self.store.put(&self.key, &self.bytes)
    }
}

struct MemoryObject {
    key: Key,
    bytes: Arc<Vec<u8>>,
}

impl Object for MemoryObject {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn file(&self) -> Option<DirectFile<'_>> {
        None
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(buffer.len()));
        match end.and_then(|end| self.bytes.get(end - buffer.len()..end)) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::new(ErrorKind::Corruption, "the object ends before that")
                .at(self.key.as_str())
                .offset(offset)),
        }
    }

    fn read_all(&self, most: u64) -> Result<Vec<u8>> {
        if self.size() > most {
            return Err(Error::new(ErrorKind::Corruption, "the object is too long").at(self.key.as_str()));
        }
        Ok(self.bytes.to_vec())
    }
}
