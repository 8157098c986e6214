//! A store in memory whose puts can fail before or after they happen, and a seeded source of numbers.
#![allow(dead_code)] // Each test takes what it needs.
#![allow(clippy::print_stdout, reason = "captured, and shown when a test fails")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use mover_model::{Error, ErrorKind, Result};
use mover_repository::store::{DirectFile, Key, Listed, Object, Put, Store, Upload};

/// How a put goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It did not happen.
    Before(ErrorKind),
    /// It happened, and the answer was lost.
    After(ErrorKind),
    /// It happened, and was repeated below us: its own object is in its way.
    Repeated,
}

/// An object's bytes, and when it was put.
type Stored = (Arc<[u8]>, SystemTime);

#[derive(Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Stored>>,
    faults: Mutex<VecDeque<Fault>>,
    puts: Mutex<usize>,
}

impl MemoryStore {
    pub fn new() -> Arc<Self> {
        Arc::new(MemoryStore::default())
    }

    /// The next puts, in order.
    pub fn fail(&self, faults: &[Fault]) {
        self.faults.lock().unwrap().extend(faults);
    }

    /// Puts since the last call.
    pub fn puts(&self) -> usize {
        std::mem::take(&mut *self.puts.lock().unwrap())
    }

    pub fn bytes(&self, key: &str) -> Vec<u8> {
        self.objects.lock().unwrap()[key].0.to_vec()
    }

    /// Changes what must not be changed.
    pub fn set(&self, key: &str, bytes: Vec<u8>) {
        self.objects.lock().unwrap().insert(key.to_owned(), (bytes.into(), SystemTime::now()));
    }

    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }
}

struct MemoryObject(Arc<[u8]>, String);

impl Object for MemoryObject {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn file(&self) -> Option<DirectFile<'_>> {
        None
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let there = self.0.get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(
            there.ok_or_else(|| Error::new(ErrorKind::Corruption, "ends early").at(&self.1))?,
        );
        Ok(())
    }

    fn read_all(&self, most: u64) -> Result<Vec<u8>> {
        assert!(self.size() <= most, "readers look at the size first");
        Ok(self.0.to_vec())
    }
}

impl Store for MemoryStore {
    fn label(&self) -> String {
        "memory".into()
    }

    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        *self.puts.lock().unwrap() += 1;
        let fault = self.faults.lock().unwrap().pop_front();
        if let Some(Fault::Before(kind)) = fault {
            return Err(Error::new(kind, "a fault before the put").at(self.label_of(key)));
        }
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(key.as_str()) {
            return match fault {
                Some(Fault::After(kind)) => Err(Error::new(kind, "a fault instead of an answer")),
                _ => Ok(Put::Exists),
            };
        }
        objects.insert(key.as_str().to_owned(), (bytes.into(), SystemTime::now()));
        match fault {
            Some(Fault::After(kind)) => Err(Error::new(kind, "a fault after the put").at(self.label_of(key))),
            Some(Fault::Repeated) => Ok(Put::Exists),
            _ => Ok(Put::Done),
        }
    }

    fn begin(&self, _key: &Key, _expected_bytes: u64) -> Result<Box<dyn Upload>> {
        unreachable!("metadata is put whole")
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let objects = self.objects.lock().unwrap();
        let found =
            objects.get(key.as_str()).map(|(bytes, _)| MemoryObject(bytes.clone(), self.label_of(key)));
        Ok(found.map(|object| Box::new(object) as Box<dyn Object>))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let objects = self.objects.lock().unwrap();
        let below = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(below
            .map(|(key, (bytes, modified))| Listed {
                key: Key::new(key.as_str()),
                size: bytes.len() as u64,
                modified: *modified,
            })
            .collect())
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let objects = self.objects.lock().unwrap();
        let rest = objects.keys().filter_map(|key| key.strip_prefix(prefix)?.split_once('/'));
        Ok(rest.map(|(folder, _)| folder.to_owned()).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.objects.lock().unwrap().remove(key.as_str());
        Ok(())
    }
}

/// Numbers from a seed (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// `MOVER_SEED`, or one that is new each time; printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let given = std::env::var("MOVER_SEED").ok().map(|seed| seed.parse().expect("MOVER_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
    });
    println!("MOVER_SEED={seed}");
    seed
}
