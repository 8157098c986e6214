//! A store that fails now and then: whatever works on it ends cleanly, with success or an error, and nothing is lost.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

#[path = "../../repository/tests/machine/mod.rs"]
mod machine;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use machine::{Content, back_up, content, init_at, name, open, open_at, restore};
use mover_engine::Control;
use mover_engine::pattern::SplitMix;
use mover_model::event::GcResult;
use mover_model::{Error, ErrorKind, Operation, Result};
use mover_repository::store::{DirectFile, Held, Key, Listed, LocalStore, Object, Put, Store, Upload};
use mover_repository::{Repository, gc, manifests};

/// Draws faults.
struct Faults {
    random: Mutex<SplitMix>,
    /// One operation in so many fails.
    one_in: u64,
}

impl Faults {
    /// An error before the operation, or after it was done; sometimes only a delay.
    fn around<T>(&self, operation: Operation, path: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let draw = self.random.lock().unwrap().below(self.one_in * 4);
        let failed = || Error::os(operation, path, 5);
        match draw {
            0 => Err(failed()),
            1 => work().and_then(|_| Err(failed())),
            2 => {
                std::thread::sleep(Duration::from_millis(3));
                work()
            }
            _ => work(),
        }
    }
}

struct Faulty {
    store: LocalStore,
    faults: Arc<Faults>,
}

struct FaultyObject {
    object: Box<dyn Object>,
    faults: Arc<Faults>,
    label: String,
}

struct FaultyUpload {
    upload: Box<dyn Upload>,
    faults: Arc<Faults>,
    label: String,
}

impl Store for Faulty {
    fn label(&self) -> String {
        self.store.label()
    }
    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.faults.around(Operation::Write, key.as_str(), || self.store.put(key, bytes))
    }
    fn put_held(&self, key: &Key, bytes: &[u8], held: &mut Vec<Held>) -> Result<Put> {
        self.store.put_held(key, bytes, held)
    }
    fn begin(&self, key: &Key, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        let upload =
            self.faults.around(Operation::Open, key.as_str(), || self.store.begin(key, expected_bytes))?;
        Ok(Box::new(FaultyUpload { upload, faults: self.faults.clone(), label: key.to_string() }))
    }
    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let object = self.faults.around(Operation::Read, key.as_str(), || self.store.open(key))?;
        let (faults, label) = (self.faults.clone(), key.to_string());
        Ok(object.map(|object| Box::new(FaultyObject { object, faults, label }) as Box<dyn Object>))
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.faults.around(Operation::List, prefix, || self.store.list(prefix))
    }
    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.faults.around(Operation::List, prefix, || self.store.list_folders(prefix))
    }
    fn delete(&self, key: &Key) -> Result<()> {
        self.faults.around(Operation::Delete, key.as_str(), || self.store.delete(key))
    }
    fn now(&self) -> Result<SystemTime> {
        self.store.now()
    }
    fn hold(&self, key: &Key) -> Result<Option<Held>> {
        self.store.hold(key)
    }
    fn is_held(&self, key: &Key) -> Result<Option<bool>> {
        self.store.is_held(key)
    }
    fn sweep(&self, living: &dyn Fn(&str) -> bool) -> Result<u64> {
        self.store.sweep(living)
    }
    fn enter(&self, session: &str) {
        self.store.enter(session);
    }
}

impl Object for FaultyObject {
    fn size(&self) -> u64 {
        self.object.size()
    }
    fn file(&self) -> Option<DirectFile<'_>> {
        None
    }
    /// Errors, and reads that end early.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if self.faults.random.lock().unwrap().below(self.faults.one_in * 8) == 0 {
            let half = buffer.len() / 2;
            self.object.read_at(offset, &mut buffer[..half])?;
            return Err(Error::new(ErrorKind::Corruption, "the object ends here").at(&self.label));
        }
        self.faults.around(Operation::Read, &self.label, || self.object.read_at(offset, buffer))
    }
    fn read_all(&self, most: u64) -> Result<Vec<u8>> {
        self.faults.around(Operation::Read, &self.label, || self.object.read_all(most))
    }
}

impl Upload for FaultyUpload {
    fn file(&self) -> Option<DirectFile<'_>> {
        None
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let upload = &mut self.upload;
        self.faults.around(Operation::Write, &self.label, || upload.write_at(offset, bytes))
    }
    fn commit(self: Box<Self>, length: u64) -> Result<Put> {
        let FaultyUpload { upload, faults, label } = *self;
        faults.around(Operation::Write, &label, || upload.commit(length))
    }
}

fn collect(repository: &Arc<Repository>, result: &mut GcResult) -> Result<()> {
    let options = gc::Options { wait: Duration::ZERO, repack_below: 0.7, dry_run: false };
    gc::collect(repository, &options, &Control::new(), &|_| {}, result)
}

/// All contents that were ever backed up: the one that a restore point has is told by its size.
fn made(number: usize) -> Content {
    content(10_000 * number as u64 + 2, 10 + number).iter().map(|seed| seed * 2).collect()
}

#[test]
fn a_store_that_fails_loses_nothing_and_everything_ends_cleanly() {
    let given = std::env::var("MOVER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or(0xfa17);
    println!("MOVER_SEED={seed}");
    let home = tempfile::tempdir().unwrap();
    let folder: PathBuf = home.path().join("repository");
    init_at(&folder);
    let mut random = SplitMix::new(seed);
    let mut committed = Vec::new();
    let (mut failed, rounds) = (0, if std::env::var_os("MOVER_LARGE").is_some() { 1000 } else { 60 });
    for round in 0..rounds {
        let faults =
            Arc::new(Faults { random: Mutex::new(SplitMix::new(random.below(u64::MAX))), one_in: 300 });
        let store = Faulty { store: LocalStore::new(&folder), faults };
        let ended = open(Arc::new(store)).and_then(|repository| match random.below(4) {
            0 | 1 => {
                let manifest = back_up(&repository, "a", &made(round), None)?;
                committed.push((manifest, round));
                Ok(())
            }
            2 => collect(&repository, &mut GcResult::default()),
            _ => match committed.last() {
                Some((manifest, round)) => restore(&repository, manifest, &made(*round)),
                None => Ok(()),
            },
        });
        if let Err(error) = ended {
            failed += 1;
            assert_ne!(error.kind(), ErrorKind::Internal, "round {round}: {error}");
        }
        // Sometimes one goes, by a store that works.
        if round % 5 == 4 && !committed.is_empty() {
            let (manifest, _) = committed.swap_remove(random.below(committed.len() as u64) as usize);
            machine::prune(&open_at(&folder), &manifest);
        }
    }
    println!("{failed} of {rounds} operations failed, {} points", committed.len());
    assert!(failed > 5 && !committed.is_empty());
    let repository = open_at(&folder);
    for pass in 0..2 {
        for (manifest, round) in &committed {
            restore(&repository, manifest, &made(*round)).unwrap();
        }
        let points = manifests::all(&repository, &name("a")).unwrap();
        assert!(points.unreadable.is_empty() && points.points.len() >= committed.len());
        for manifest in &points.points {
            let round = (manifest.disks[0].size / machine::CHUNK as u64) as usize - 10;
            restore(&repository, manifest, &made(round)).unwrap();
        }
        let mut result = GcResult::default();
        collect(&repository, &mut result).unwrap();
        if pass == 1 {
            assert_eq!(
                (result.packs_deleted, result.packs_waiting, result.objects_deleted),
                (0, 0, 0),
                "{result:?}"
            );
        }
    }
}
