//! What workers record of finished segments: digests for `--verify` and `--digest-out`, entries for the
//! journal, and bad extents.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};

use mover_engine::{Recorder, Segment};
use mover_model::event::BadExtent;
use mover_model::limits;

use super::spool::{Record, Spool};

/// Bad extents of all pairs, as they are found.
pub(super) type BadExtents = Arc<Mutex<Vec<BadExtent>>>;

/// One worker's record of one pair.
pub(super) struct CopyRecorder<'a> {
    pub pair: u32,
    pub path: String,
    /// Where digests go, when they are wanted.
    pub spool: Option<&'a Spool>,
    pub batch: Vec<Record>,
    /// Where finished segments go, when there is a journal.
    pub journal: Option<SyncSender<Record>>,
    pub bad: BadExtents,
}

impl Recorder for CopyRecorder<'_> {
    fn finished(&mut self, segment: &Segment) {
        if self.spool.is_none() && self.journal.is_none() {
            return;
        }
        let record = Record {
            pair: self.pair,
            start: segment.start,
            length: segment.length,
            zero: segment.zero,
            digest: segment.digest.map_or(0, |digest| digest.0),
        };
        if let Some(journal) = &self.journal {
            // The keeper is gone only after an error of its own, which ends the run.
            let _ = journal.send(record);
        }
        if let Some(spool) = self.spool {
            self.batch.push(record);
            if self.batch.len() == limits::SPOOL_RECORDS {
                spool.add(std::mem::take(&mut self.batch));
            }
        }
    }

    fn bad(&mut self, start: u64, length: u64, errno: i32) {
        let mut bad = self.bad.lock().unwrap_or_else(|p| p.into_inner());
        bad.push(BadExtent { pair: self.pair as usize, path: self.path.clone(), start, length, errno });
    }
}

impl Drop for CopyRecorder<'_> {
    fn drop(&mut self) {
        if let Some(spool) = self.spool {
            spool.add(std::mem::take(&mut self.batch));
        }
    }
}

/// Joins neighbours and puts all in order.
pub(super) fn join_bad(mut bad: Vec<BadExtent>) -> Vec<BadExtent> {
    bad.sort_by_key(|extent| (extent.pair, extent.start));
    let mut joined: Vec<BadExtent> = Vec::with_capacity(bad.len());
    for extent in bad {
        match joined.last_mut() {
            Some(last)
                if last.pair == extent.pair
                    && last.start + last.length == extent.start
                    && last.errno == extent.errno =>
            {
                last.length += extent.length;
            }
            _ => joined.push(extent),
        }
    }
    joined
}
