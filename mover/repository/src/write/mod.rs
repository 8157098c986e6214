//! From content to packs. [`Writer`] is one backup's (or gc's) way into the repository; its [`ChunkSink`]s are what the
//! engine writes a disk to: each worker hashes, looks up, compresses and fills a pack of its own through its own ring,
//! while its other requests are in flight. `pack_builder` knows the layout, for rings and plain writes alike.
//!
//! Order, which makes every cut safe: records and tail of a pack are written → the pack is made durable and named → its
//! chunks go into a segment → nodes the same way → then, and only then, the manifest.

mod committer;
mod lane;
mod pack_builder;
mod plain;
mod sink;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mover_model::manifest::Stored;
use mover_model::{ChunkId, Error, Result};

use self::committer::Committer;
use self::pack_builder::SealedPack;
use self::plain::PlainPacks;
use crate::format::entry::Entry;
use crate::format::pack::PACK_BYTES;
use crate::index::{Claim, Index};
use crate::keys::ChunkKind;
use crate::repository::Repository;
use crate::tree::{IdFile, NodeSink};

pub use sink::{ChunkSink, scratch_bytes};

/// One run's way into the repository, shared by all workers.
///
/// Dropping it without [`Writer::finish`] gives up what is not durable yet; packs that are stay unreferenced, for gc.
pub struct Writer {
    repository: Arc<Repository>,
    index: Arc<Index>,
    committer: Committer,
    /// Data and nodes keep to packs of their own, so that gc never rewrites data for the sake of nodes.
    plain: [Mutex<PlainPacks>; 2],
    disks: Mutex<BTreeMap<usize, Arc<DiskCounters>>>,
    /// Bytes that the store is told of when a worker begins a pack.
    pack_bytes: AtomicU64,
    /// What was stored by plain writes.
    plain_counters: DiskCounters,
}

/// What one disk added.
#[derive(Default)]
pub(crate) struct DiskCounters {
    new_chunks: AtomicU64,
    new_bytes: AtomicU64,
    stored_bytes: AtomicU64,
}

impl DiskCounters {
    /// Counts one chunk.
    fn add(&self, plain: usize, stored: usize) {
        // Relaxed: statistics, read after the workers have been joined.
        self.new_chunks.fetch_add(1, Ordering::Relaxed);
        self.new_bytes.fetch_add(plain as u64, Ordering::Relaxed);
        self.stored_bytes.fetch_add(stored as u64, Ordering::Relaxed);
    }

    fn stored(&self) -> Stored {
        Stored {
            new_chunks: self.new_chunks.load(Ordering::Relaxed),
            new_bytes: self.new_bytes.load(Ordering::Relaxed),
            stored_bytes: self.stored_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Writer {
    /// Over an index. Threads that make packs durable are started as packs come.
    ///
    /// # Errors
    /// None now; kept for writers that need something from the start.
    pub fn new(repository: Arc<Repository>, index: Arc<Index>) -> Result<Arc<Self>> {
        let compression = repository.config().compression;
        Ok(Arc::new(Writer {
            committer: Committer::new(repository.clone(), index.clone()),
            plain: [ChunkKind::Data, ChunkKind::Node]
                .map(|kind| Mutex::new(PlainPacks::new(kind, compression))),
            disks: Mutex::default(),
            pack_bytes: AtomicU64::new(PACK_BYTES),
            plain_counters: DiskCounters::default(),
            repository,
            index,
        }))
    }

    /// A sink for one disk of a run of the engine; ids of its chunks go to `ids`. `number` counts the disks of the run;
    /// a disk may have several sinks. One sink of every run of the engine has to be [`ChunkSink::leading`].
    pub fn sink(self: &Arc<Self>, number: usize, ids: Arc<IdFile>, label: String) -> ChunkSink {
        ChunkSink::new(self.clone(), self.disk(number), ids, label)
    }

    /// Says how much each worker may have to store at most, so that no more room is reserved than may be needed.
    pub fn expect(&self, bytes_per_worker: u64) {
        self.pack_bytes.store(bytes_per_worker.min(PACK_BYTES), Ordering::Relaxed);
    }

    fn disk(&self, number: usize) -> Arc<DiskCounters> {
        self.disks.lock().unwrap_or_else(|p| p.into_inner()).entry(number).or_default().clone()
    }

    /// Stores one chunk by plain writes: nodes, and what gc moves. Returns its name; one that is known is not stored.
    ///
    /// # Errors
    /// The store's.
    pub fn put(&self, kind: ChunkKind, content: &[u8]) -> Result<ChunkId> {
        let id = self.repository.keys().chunk_id(kind, content);
        if self.index.claim(&id)? == Claim::Mine {
            self.put_again(kind, id, content)?;
        }
        Ok(id)
    }

    /// [`Writer::put`] of a chunk of one disk's data: counted as the disk's. A chunk of zeros is a hole.
    ///
    /// # Errors
    /// The store's.
    pub fn put_data(&self, number: usize, content: &[u8]) -> Result<ChunkId> {
        if content.iter().all(|&byte| byte == 0) {
            return Ok(ChunkId::HOLE);
        }
        let id = self.repository.keys().chunk_id(ChunkKind::Data, content);
        if self.index.claim(&id)? == Claim::Mine {
            let stored = self.put_plain(ChunkKind::Data, id, content)?;
            self.disk(number).add(content.len(), stored);
        }
        Ok(id)
    }

    /// Stores a chunk without asking whether it is known: for gc, whose chunks are known in packs that are about to go.
    /// `id` is the name of the content, which the caller has checked.
    ///
    /// # Errors
    /// The store's.
    pub fn put_again(&self, kind: ChunkKind, id: ChunkId, content: &[u8]) -> Result<()> {
        let stored = self.put_plain(kind, id, content)?;
        self.plain_counters.add(content.len(), stored);
        Ok(())
    }

    /// Stores a record as it was in another pack, without compressing it again: for gc. `record` is decrypted
    /// ([`crate::codec::PackKey::open`]) and still encoded as `entry` says; the entry's place and tag mean nothing. Nobody
    /// is asked whether the chunk is known.
    ///
    /// # Errors
    /// The store's.
    pub fn copy(&self, entry: &Entry, record: &[u8]) -> Result<()> {
        debug_assert_eq!(entry.stored as usize, record.len());
        let entry = Entry { tag: [0; 16], offset: 0, pack: 0, ..*entry };
        let full = self.latched(self.lock_plain(entry.kind).put_record(&self.repository, entry, record))?;
        self.plain_counters.add(entry.plain as usize, record.len());
        self.hand_over(full)
    }

    fn put_plain(&self, kind: ChunkKind, id: ChunkId, content: &[u8]) -> Result<usize> {
        let (stored, full) = self.latched(self.lock_plain(kind).put(&self.repository, id, content))?;
        self.hand_over(full)?;
        Ok(stored)
    }

    fn lock_plain(&self, kind: ChunkKind) -> std::sync::MutexGuard<'_, PlainPacks> {
        self.plain[kind as usize].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// An error of any part is one of all: a chunk that others count on is not there.
    fn latched<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error: &Error| self.committer.fail(error.clone()))
    }

    fn hand_over(&self, pack: Option<SealedPack>) -> Result<()> {
        pack.map_or(Ok(()), |pack| self.latched(self.committer.add(pack)))
    }

    /// What one disk added so far; its tree nodes are not counted.
    pub fn stored_by(&self, number: usize) -> Stored {
        self.disk(number).stored()
    }

    /// Makes everything durable: closes the plain pack, waits for all packs, puts the last segment. What was stored may
    /// be referenced by a manifest once this has returned.
    ///
    /// # Errors
    /// The first error of any pack or segment.
    pub fn finish(&self) -> Result<Stored> {
        for kind in [ChunkKind::Data, ChunkKind::Node] {
            let closed = self.latched(self.lock_plain(kind).close(&self.repository))?;
            self.hand_over(closed)?;
        }
        let (_, stored_bytes) = self.committer.finish()?;
        let mut total = self.plain_counters.stored();
        for disk in self.disks.lock().unwrap_or_else(|p| p.into_inner()).values() {
            let disk = disk.stored();
            total.new_chunks += disk.new_chunks;
            total.new_bytes += disk.new_bytes;
        }
        Ok(Stored { stored_bytes, ..total })
    }
}

impl NodeSink for &Writer {
    fn put(&mut self, bytes: &[u8]) -> Result<ChunkId> {
        Writer::put(self, ChunkKind::Node, bytes)
    }
}
