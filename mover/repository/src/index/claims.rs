//! What this process is storing and no segment names yet.
//!
//! ```text
//! unknown ──claim──► claimed ──add_pending──► pending ──its segment is open──► (forgotten here, found there)
//! ```
//! In parts by the id, each with a lock of its own, so that workers rarely wait for each other.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mover_model::ChunkId;

use super::Location;

const SHARDS: usize = 64;

/// One part.
#[derive(Default)]
pub(super) struct Shard {
    /// Ids that some worker stores, or has stored.
    pub claimed: HashSet<ChunkId>,
    /// Those whose pack is durable, as far as they were told.
    pub pending: HashMap<ChunkId, Location>,
}

/// All parts.
pub(super) struct Claims([Mutex<Shard>; SHARDS]);

impl Default for Claims {
    fn default() -> Self {
        Claims(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Claims {
    /// The part of an id. Taken from the id's end: its beginning is what segments sort by, and a batch of neighbours
    /// there would meet in one part.
    pub(super) fn shard(&self, id: &ChunkId) -> MutexGuard<'_, Shard> {
        // A worker that panicked has ended the run; what it left is a whole set.
        self.0[usize::from(id.0[31]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets chunks that a segment names now, and gives back the memory that their batch needed.
    pub(super) fn forget(&self, ids: impl Iterator<Item = ChunkId>) {
        for id in ids {
            let mut shard = self.shard(&id);
            shard.claimed.remove(&id);
            shard.pending.remove(&id);
        }
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let (claimed, pending) = (shard.claimed.len(), shard.pending.len());
            shard.claimed.shrink_to(claimed * 2);
            shard.pending.shrink_to(pending * 2);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let of = |shard: &Shard| {
            shard.claimed.capacity() * (size_of::<ChunkId>() + 1)
                + shard.pending.capacity() * (size_of::<(ChunkId, Location)>() + 1)
        };
        self.0.iter().map(|shard| of(&shard.lock().unwrap_or_else(PoisonError::into_inner))).sum()
    }
}
