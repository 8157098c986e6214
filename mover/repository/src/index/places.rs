//! Places in memory: of small segments, and of packs that no readable segment names.

use std::collections::HashMap;

use mover_model::ChunkId;

use super::Location;

/// Places by chunk. Nearly every chunk has one place, so only further ones are in a list of their own.
#[derive(Default)]
pub(super) struct Places {
    first: HashMap<ChunkId, Location>,
    more: HashMap<ChunkId, Vec<Location>>,
}

impl Places {
    pub(super) fn add(&mut self, location: Location) {
        let id = location.entry.id;
        if let Some(first) = self.first.get(&id) {
            let more = self.more.entry(id).or_default();
            let same =
                |other: &Location| other.pack == location.pack && other.entry.offset == location.entry.offset;
            if !same(first) && !more.iter().any(same) {
                more.push(location);
            }
        } else {
            self.first.insert(id, location);
        }
    }

    pub(super) fn visit(&self, id: &ChunkId, visit: &mut dyn FnMut(Location)) {
        if let Some(first) = self.first.get(id) {
            visit(*first);
            self.more.get(id).into_iter().flatten().for_each(|location| visit(*location));
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let entry = size_of::<(ChunkId, Location)>() + 1;
        self.first.capacity() * entry + self.more.len() * (entry + 2 * size_of::<Location>())
    }
}
