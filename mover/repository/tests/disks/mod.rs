//! Repositories with disks in them, made by plain writes, and the engine's way to read a disk into memory.
#![allow(dead_code)] // several test crates use it, each in part
#![allow(clippy::print_stderr, reason = "captured, and shown when a test fails")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mover_engine::lane::{LaneOperation, OperationKind};
use mover_engine::pattern::SplitMix;
use mover_engine::stats::Counters;
use mover_engine::{
    Access, Alignment, Backend, Control, Io, Lane, LaneSetup, Recorder, Report, Segment, Settings, Sink,
    SinkOperation, Source, Task, TaskOptions, run,
};
use mover_model::event::Moved;
use mover_model::{ChunkId, Extent, ExtentKind, Result};
use mover_repository::format::node::Root;
use mover_repository::index::Index;
use mover_repository::read::{Chunks, ReadErrors, TreeMap, TreeSource};
use mover_repository::store::{LocalStore, Store};
use mover_repository::tree::{IdFile, Nodes, build};
use mover_repository::write::Writer;
use mover_repository::{Compression, InitOptions, Repository, Secret};

/// The bytes of a disk that is mostly holes: chunks by number, each of the chunk size but the disk's last.
pub type Content = BTreeMap<u64, Vec<u8>>;

/// An open repository and a writer of disks.
pub struct Home {
    pub repository: Arc<Repository>,
    /// Keeps the folder.
    pub folder: Option<tempfile::TempDir>,
}

pub fn options(chunk_size: u32, compression: Compression) -> InitOptions {
    InitOptions { chunk_size, compression, ..InitOptions::default() }
}

impl Home {
    pub fn in_store(store: Arc<dyn Store>, options: &InitOptions, secret: &Secret) -> Home {
        Home { repository: Arc::new(Repository::init(store, options, secret).unwrap()), folder: None }
    }

    /// In a folder on whatever the temporary folder lies on.
    pub fn local(options: &InitOptions, secret: &Secret) -> Home {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::new(folder.path().join("repo")));
        Home { folder: Some(folder), ..Home::in_store(store, options, secret) }
    }

    pub fn chunk_size(&self) -> u32 {
        self.repository.config().chunk_size
    }

    /// Stores a disk; each call makes packs and a segment of its own.
    pub fn store(&self, size: u64, content: &Content) -> (ChunkId, Root) {
        let index = Arc::new(Index::open(&self.repository).unwrap());
        let writer = Writer::new(self.repository.clone(), index.clone()).unwrap();
        let ids = IdFile::new().unwrap();
        for (number, bytes) in content {
            ids.set(*number, &[writer.put_data(0, bytes).unwrap()]).unwrap();
        }
        let nodes = Nodes::new(Arc::new(Chunks::new(self.repository.clone(), index)));
        let (id, root, _) = build(&nodes, &mut &*writer, None, &ids, size, self.chunk_size()).unwrap();
        writer.finish().unwrap();
        (id, root)
    }

    pub fn chunks(&self) -> Arc<Chunks> {
        let index = Arc::new(Index::open_for_reading(&self.repository).unwrap());
        Arc::new(Chunks::new(self.repository.clone(), index))
    }
}

/// How a chunk of a random disk is filled.
#[derive(Debug, Clone, Copy)]
pub enum Fill {
    Noise,
    Text,
    Mixed,
}

pub fn chunk(random: &mut SplitMix, fill: Fill, bytes: usize) -> Vec<u8> {
    let mut chunk = vec![0; bytes];
    random.fill(&mut chunk);
    let text = match fill {
        Fill::Noise => false,
        Fill::Text => true,
        Fill::Mixed => random.next_u64().is_multiple_of(2),
    };
    if text {
        // Few different letters: it compresses to about a half, and never to nothing.
        chunk.iter_mut().for_each(|byte| *byte = b'a' + *byte % 16);
    }
    chunk
}

/// A disk of `size` bytes of which about `percent` of the chunks are no holes.
pub fn disk(random: &mut SplitMix, fill: Fill, size: u64, chunk_size: u32, percent: u64) -> Content {
    let chunk_size = u64::from(chunk_size);
    let mut content = Content::new();
    for number in 0..size.div_ceil(chunk_size) {
        if random.next_u64() % 100 < percent {
            let bytes = (size - number * chunk_size).min(chunk_size) as usize;
            content.insert(number, chunk(random, fill, bytes));
        }
    }
    content
}

/// The bytes of a disk, holes included.
pub fn flat(size: u64, chunk_size: u32, content: &Content) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for (number, chunk) in content {
        let start = (number * u64::from(chunk_size)) as usize;
        bytes[start..start + chunk.len()].copy_from_slice(chunk);
    }
    bytes
}

/// A sink in memory.
#[derive(Clone)]
pub struct Memory {
    pub bytes: Arc<Mutex<Vec<u8>>>,
}

impl Memory {
    /// Filled with what nobody restores, so that what is not written shows.
    pub fn new(size: u64) -> Self {
        Memory { bytes: Arc::new(Mutex::new(vec![0xee; size as usize])) }
    }
}

struct MemoryLane(Memory);

impl Sink for Memory {
    fn label(&self) -> String {
        "memory".into()
    }
    fn capacity(&self) -> Option<u64> {
        None
    }
    fn access(&self) -> Access {
        Access::Direct
    }
    fn alignment(&self, _: Access) -> Alignment {
        Alignment::NONE
    }
    fn reads_zero(&self) -> bool {
        false
    }
    fn lane(&self, _: Access, _: &mut LaneSetup<'_>) -> Result<Box<dyn Lane>> {
        Ok(Box::new(MemoryLane(self.clone())))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn finish(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

impl Lane for MemoryLane {
    fn begin(&mut self, operation: LaneOperation, io: &mut Io<'_>) {
        let range = operation.offset as usize..(operation.offset + operation.length) as usize;
        let mut bytes = self.0.bytes.lock().unwrap();
        match operation.kind {
            OperationKind::Sink(SinkOperation::Write) => bytes[range].copy_from_slice(io.bytes(&operation)),
            _ => bytes[range].fill(0),
        }
        drop(bytes);
        io.finish(&operation, Ok(operation.length));
    }
    fn advance(&mut self, _: u32, _: i32, _: &mut Io<'_>) {}
}

struct NoRecord;

impl Recorder for NoRecord {
    fn finished(&mut self, _: &Segment) {}
    fn bad(&mut self, _: u64, _: u64, _: i32) {}
}

pub const PLAIN: TaskOptions = TaskOptions {
    source_access: Access::Direct,
    sink_access: Access::Direct,
    zero_run: None,
    skip_zeros: false,
    keep_allocated: false,
    digest: false,
    join_gap: 0,
    read_errors: mover_engine::ReadErrors::Fail,
};

/// One disk as it came out of the engine.
pub struct Came {
    pub bytes: Vec<u8>,
    pub moved: Moved,
}

/// Reads disks in one run of the engine, as their trees say or only the given extents.
pub fn read_all(
    settings: &Settings,
    chunks: &Arc<Chunks>,
    roots: &[Root],
    extents: Option<&[Extent]>,
    errors: &ReadErrors,
    control: &Control,
) -> (Report, Vec<Came>) {
    let nodes = Arc::new(Nodes::new(chunks.clone()));
    let sources: Vec<_> = roots
        .iter()
        .enumerate()
        .map(|(at, root)| {
            let map = Arc::new(TreeMap::new(nodes.clone(), *root));
            let source = TreeSource::new(map, chunks.clone(), errors.clone(), format!("vm@point d{at}"));
            if at == 0 { source } else { source.sharing() }
        })
        .collect();
    let sinks: Vec<_> = roots.iter().map(|root| Memory::new(root.size)).collect();
    let counters: Vec<_> = roots.iter().map(|_| Counters::default()).collect();
    let tasks = sources
        .iter()
        .zip(&sinks)
        .zip(&counters)
        .map(|((source, sink), counters)| Task {
            source,
            sink,
            extents: match extents {
                Some(extents) => Box::new(extents.iter().copied().map(Ok)),
                None => source.extents().unwrap(),
            },
            options: PLAIN,
            counters,
            recorder: Box::new(|| Box::new(NoRecord)),
        })
        .collect();
    let report = run(settings, tasks, control, None);
    let came = sinks
        .iter()
        .zip(&counters)
        .map(|(sink, counters)| Came { bytes: sink.bytes.lock().unwrap().clone(), moved: counters.moved() });
    (report, came.collect())
}

pub fn backends() -> Vec<Backend> {
    match mover_engine::capability::probe_uring() {
        Ok(_) => vec![Backend::Uring, Backend::Sync],
        Err(reason) => {
            eprintln!("without io_uring: {reason}");
            vec![Backend::Sync]
        }
    }
}

pub fn hole(start: u64, length: u64) -> Extent {
    Extent::new(start, length, ExtentKind::Hole)
}
