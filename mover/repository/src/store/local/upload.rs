//! Objects on their way into a folder.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use mover_engine::Alignment;
use mover_model::Result;

use super::place::Place;
use super::temporary::Temporary;
use crate::store::{DirectFile, Key, Put, Upload};

/// A temporary file, and a second descriptor of it for the ring.
///
/// Two descriptors of one file are safe beside each other as long as no block gets bytes through both: before a write
/// past the page cache the kernel writes back and drops what the cache has of its range, and writes of the cache
/// reach the disk in whole blocks. So [`Upload::file`] asks writers to keep to blocks of 4096 bytes.
pub(super) struct LocalUpload {
    place: Arc<Place>,
    key: Key,
    temporary: Temporary,
    direct: Option<(File, Alignment)>,
}

impl LocalUpload {
    pub(super) fn begin(place: &Arc<Place>, key: &Key, expected_bytes: u64) -> Result<Self> {
        let temporary = Temporary::create(place)?;
        temporary.reserve(expected_bytes)?;
        let direct = place.open_direct(&temporary.path, &temporary.file, true);
        Ok(LocalUpload { place: place.clone(), key: key.clone(), temporary, direct })
    }
}

impl Upload for LocalUpload {
    fn file(&self) -> Option<DirectFile<'_>> {
        Some(match &self.direct {
            Some((file, alignment)) => DirectFile { fd: file.as_fd(), alignment: *alignment },
            None => DirectFile { fd: self.temporary.file.as_fd(), alignment: Alignment::NONE },
        })
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.temporary.write_at(offset, bytes)
    }

    fn commit(mut self: Box<Self>, length: u64) -> Result<Put> {
        // What was reserved beyond the end goes; the fsync covers both descriptors, and the device's own cache.
        self.temporary.truncate(length)?;
        self.temporary.sync()?;
        self.place.publish(&mut self.temporary, &self.key)
    }
}
