//! What becomes of a backup when the store fails under it: one error with the store's own words, and nothing that a
//! manifest could come to rely on.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mover_engine::{
    Access, Alignment, Backend, Control, Lane, LaneSetup, ReadErrors, Recorder, Segment, Settings, Source,
    Task, TaskOptions, run, stats::Counters,
};
use mover_model::{Error, ErrorKind, Extent, Operation, Result};
use mover_repository::config::InitOptions;
use mover_repository::index::Index;
use mover_repository::keys::ChunkKind;
use mover_repository::store::{DirectFile, Key, Listed, LocalStore, Object, Put, Store, Upload};
use mover_repository::tree::IdFile;
use mover_repository::write::Writer;
use mover_repository::{Repository, Secret};

/// Where a store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fails {
    Never,
    /// The ring's writes: the file is one that is always full.
    Ring,
    /// There is no file, and plain writes find the store full.
    Write,
    /// There is no file, and all is well.
    NoFile,
    /// When a pack is made durable.
    Commit,
    /// When an index segment is put.
    Segment,
}

struct Faulty {
    inner: LocalStore,
    fails: Fails,
    armed: Arc<AtomicBool>,
}

impl Faulty {
    fn now(&self, fails: Fails) -> bool {
        self.armed.load(Ordering::Acquire) && self.fails == fails
    }
}

fn full(key: &str) -> Error {
    Error::os(Operation::Write, key, libc::ENOSPC)
}

impl Store for Faulty {
    fn label(&self) -> String {
        self.inner.label()
    }
    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        if self.now(Fails::Segment) && key.as_str().starts_with("index/") {
            return Err(full(key.as_str()));
        }
        self.inner.put(key, bytes)
    }
    fn begin(&self, key: &Key, expected: u64) -> Result<Box<dyn Upload>> {
        if self.now(Fails::Segment) && key.as_str().starts_with("index/") {
            return Err(full(key.as_str()));
        }
        let inner = self.inner.begin(key, expected)?;
        let fails = if self.armed.load(Ordering::Acquire) { self.fails } else { Fails::Never };
        let full = File::options().write(true).open("/dev/full").unwrap();
        Ok(Box::new(FaultyUpload { inner, fails, full, key: key.to_string() }))
    }
    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        self.inner.open(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.inner.list(prefix)
    }
    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_folders(prefix)
    }
    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    fails: Fails,
    full: File,
    key: String,
}

impl Upload for FaultyUpload {
    fn file(&self) -> Option<DirectFile<'_>> {
        match self.fails {
            Fails::Ring => Some(DirectFile { fd: self.full.as_fd(), alignment: Alignment::NONE }),
            Fails::Write | Fails::NoFile => None,
            _ => self.inner.file(),
        }
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.fails == Fails::Write {
            return Err(full(&self.key).offset(offset));
        }
        self.inner.write_at(offset, bytes)
    }
    fn commit(self: Box<Self>, length: u64) -> Result<Put> {
        if self.fails == Fails::Commit {
            return Err(full(&self.key));
        }
        self.inner.commit(length)
    }
}

/// Noise that depends on the offset alone.
struct Noise(u64);

struct NoiseLane;

fn noise(offset: u64, bytes: &mut [u8]) {
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        let mut value = (offset + at as u64 * 8).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value ^= value >> 27;
        // Half of it shrinks.
        let value = if (offset / (1 << 20)).is_multiple_of(2) { value } else { value & 0xff };
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

impl Lane for NoiseLane {
    fn begin(&mut self, operation: mover_engine::lane::LaneOperation, io: &mut mover_engine::Io<'_>) {
        noise(operation.offset, io.bytes(&operation));
        io.finish(&operation, Ok(operation.length));
    }
    fn advance(&mut self, _: u32, _: i32, _: &mut mover_engine::Io<'_>) {}
}

impl Source for Noise {
    fn label(&self) -> String {
        "noise".into()
    }
    fn size(&self) -> Option<u64> {
        Some(self.0)
    }
    fn access(&self) -> Access {
        Access::Direct
    }
    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }
    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        Ok(Box::new(std::iter::once(Ok(Extent::data(0, self.0)))))
    }
    fn lane(&self, _: Access, _: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(NoiseLane))
    }
}

struct Silent;

impl Recorder for Silent {
    fn finished(&mut self, _: &Segment) {}
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}

const SIZE: u64 = (20 << 20) + 77;

/// Two disks of one run; returns the first error of the run, then that of the writer's end.
fn back_up(fails: Fails, backend: Backend) -> (Option<Error>, Option<Error>) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let armed = Arc::new(AtomicBool::new(false));
    let store = Faulty { inner: LocalStore::new(folder.path().join("repo")), fails, armed: armed.clone() };
    let repository =
        Repository::init(Arc::new(store), &InitOptions::default(), &Secret::KeyFile(vec![3; 32])).unwrap();
    let repository = Arc::new(repository);
    let index = Arc::new(Index::open(&repository).unwrap());
    let writer = Writer::new(repository.clone(), index.clone()).unwrap();
    armed.store(true, Ordering::Release);
    let ids: Vec<_> = (0..2).map(|_| Arc::new(IdFile::new().unwrap())).collect();
    let sinks = [
        writer.sink(0, ids[0].clone(), "vda".into()).sized(Some(SIZE)).leading(),
        writer.sink(1, ids[1].clone(), "vdb".into()).sized(Some(SIZE / 2)),
    ];
    let sources = [Noise(SIZE), Noise(SIZE / 2)];
    let counters = [Counters::default(), Counters::default()];
    let options = TaskOptions {
        source_access: Access::Direct,
        sink_access: Access::Direct,
        zero_run: None,
        skip_zeros: true,
        keep_allocated: false,
        digest: false,
        join_gap: 0,
        read_errors: ReadErrors::Fail,
    };
    let tasks = sources.iter().zip(&sinks).zip(&counters).map(|((source, sink), counters)| Task {
        source,
        sink,
        extents: source.extents().unwrap(),
        options,
        counters,
        recorder: Box::new(|| Box::new(Silent) as Box<dyn Recorder>),
    });
    let settings = Settings { backend, workers: 2, ..Settings::default() };
    let control = Control::new();
    let report = run(&settings, tasks.collect(), &control, None);
    let failed = report.outcomes.iter().find_map(|outcome| outcome.error.clone());
    let ended = writer.finish().err();
    if fails == Fails::Never || fails == Fails::NoFile {
        let mut names = vec![mover_model::ChunkId::HOLE; SIZE.div_ceil(128 << 10) as usize];
        ids[0].get(0, &mut names).unwrap();
        let chunks = mover_repository::read::Chunks::new(repository, index);
        for (number, id) in (0u64..).zip(&names) {
            let start = number << 17;
            let mut expected = vec![0; (1u64 << 17).min(SIZE - start) as usize];
            noise(start, &mut expected);
            assert!(chunks.get(id, ChunkKind::Data).unwrap() == expected, "chunk {number}");
        }
    }
    drop((sinks, writer));
    let tmp = std::fs::read_dir(folder.path().join("repo/tmp")).map(Iterator::count).unwrap_or(0);
    assert_eq!(tmp, 0, "no file on its way is left");
    (failed, ended)
}

#[test]
fn a_store_that_works_keeps_every_chunk() {
    for backend in [Backend::Uring, Backend::Sync] {
        for fails in [Fails::Never, Fails::NoFile] {
            let (failed, ended) = back_up(fails, backend);
            assert!(failed.is_none() && ended.is_none(), "{fails:?} {failed:?} {ended:?}");
        }
    }
}

#[test]
fn a_full_store_fails_the_run_and_its_end_in_its_own_words() {
    for backend in [Backend::Uring, Backend::Sync] {
        for fails in [Fails::Ring, Fails::Write, Fails::Commit, Fails::Segment] {
            let (failed, ended) = back_up(fails, backend);
            println!("{backend:?} {fails:?}: {failed:?}");
            let error = ended.unwrap_or_else(|| panic!("{fails:?} must not come to a good end"));
            assert_eq!((error.kind(), error.errno()), (ErrorKind::Full, Some(libc::ENOSPC)), "{error}");
            assert!(
                error.to_string().contains(if fails == Fails::Segment { "index/" } else { "packs/" }),
                "{error}"
            );
            if matches!(fails, Fails::Ring | Fails::Write) {
                assert_eq!(failed.expect("the run fails").kind(), ErrorKind::Full);
            }
        }
    }
}
