//! Digests of what moved, kept in bounded memory: sorted runs in an unlinked temporary file, merged in the
//! order of the disk when they are asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use mover_model::{Digest, Error, Operation, Result, limits};

/// One segment that arrived at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Index of the pair.
    pub pair: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Whether it is a range of zeros that was not read; its digest means nothing then.
    pub zero: bool,
    /// Digest of its bytes.
    pub digest: u128,
}

const RECORD_BYTES: usize = 40;
/// Records of one run that are held in memory while runs are merged.
const MERGE_RECORDS: usize = 32;
const ZERO_BIT: u32 = 1 << 31;

impl Record {
    /// The digest, where there is one.
    pub fn digest(&self) -> Option<Digest> {
        (!self.zero).then_some(Digest(self.digest))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.start.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.digest.to_le_bytes());
        out.extend_from_slice(&(self.pair | if self.zero { ZERO_BIT } else { 0 }).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    fn decode(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let tag = word(32) as u32;
        Record {
            pair: tag & !ZERO_BIT,
            start: word(0),
            length: word(8),
            digest: u128::from(word(16)) | u128::from(word(24)) << 64,
            zero: tag & ZERO_BIT != 0,
        }
    }
}

/// All records of a run of the engine.
#[derive(Default)]
pub struct Spool {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    file: Option<File>,
    file_end: u64,
    runs: Vec<SortedRun>,
    error: Option<Error>,
}

enum SortedRun {
    Memory(Vec<Record>),
    File { offset: u64, records: u64 },
}

impl Spool {
    /// Takes a batch; what is more than fits memory goes to the file. An error is kept for [`Spool::sorted`].
    pub fn add(&self, mut batch: Vec<Record>) {
        if batch.is_empty() {
            return;
        }
        batch.sort_unstable();
        let mut inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Short batches come once, when a worker ends.
        if batch.len() < limits::SPOOL_RECORDS {
            inner.runs.push(SortedRun::Memory(batch));
            return;
        }
        if let Err(error) = inner.write_run(&batch) {
            let error = Error::io(Operation::Write, "the temporary file of digests", &error);
            inner.error.get_or_insert(error.hint("TMPDIR names the folder it lies in"));
        }
    }

    /// All records, in order of pair and start.
    ///
    /// # Errors
    /// When the temporary file could not be written.
    pub fn sorted(&self) -> Result<Sorted<'_>> {
        let inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(error) = &inner.error {
            return Err(error.clone());
        }
        let cursors = inner.runs.iter().map(|run| match run {
            SortedRun::Memory(records) => Cursor { buffer: records.clone(), next: 0, rest: None },
            SortedRun::File { offset, records } => {
                Cursor { buffer: Vec::new(), next: 0, rest: Some((*offset, *records)) }
            }
        });
        let mut sorted = Sorted { spool: self, cursors: cursors.collect(), heads: BinaryHeap::new() };
        drop(inner);
        for index in 0..sorted.cursors.len() {
            sorted.advance(index)?;
        }
        Ok(sorted)
    }

    fn read(&self, offset: u64, records: usize) -> std::io::Result<Vec<Record>> {
        let inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut bytes = vec![0; records * RECORD_BYTES];
        if let Some(file) = &inner.file {
            file.read_exact_at(&mut bytes, offset)?;
        }
        Ok(bytes.chunks_exact(RECORD_BYTES).map(Record::decode).collect())
    }
}

impl Inner {
    fn write_run(&mut self, batch: &[Record]) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(batch.len() * RECORD_BYTES);
        batch.iter().for_each(|record| record.encode(&mut bytes));
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        if let Some(file) = &self.file {
            file.write_all_at(&bytes, self.file_end)?;
        }
        self.runs.push(SortedRun::File { offset: self.file_end, records: batch.len() as u64 });
        self.file_end += bytes.len() as u64;
        Ok(())
    }
}

struct Cursor {
    buffer: Vec<Record>,
    next: usize,
    /// What of the run is still in the file: offset and records.
    rest: Option<(u64, u64)>,
}

/// Records in order; see [`Spool::sorted`].
pub struct Sorted<'a> {
    spool: &'a Spool,
    cursors: Vec<Cursor>,
    heads: BinaryHeap<Reverse<(Record, usize)>>,
}

impl Sorted<'_> {
    fn advance(&mut self, index: usize) -> Result<()> {
        let cursor = &mut self.cursors[index];
        if cursor.next == cursor.buffer.len() {
            let Some((offset, records)) = cursor.rest.filter(|&(_, records)| records > 0) else {
                return Ok(());
            };
            let count = (records as usize).min(MERGE_RECORDS);
            cursor.buffer = self
                .spool
                .read(offset, count)
                .map_err(|error| Error::io(Operation::Read, "the temporary file of digests", &error))?;
            cursor.next = 0;
            cursor.rest = Some((offset + (count * RECORD_BYTES) as u64, records - count as u64));
        }
        self.heads.push(Reverse((cursor.buffer[cursor.next], index)));
        cursor.next += 1;
        Ok(())
    }
}

impl Iterator for Sorted<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let Reverse((record, index)) = self.heads.pop()?;
        Some(self.advance(index).map(|()| record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order_whatever_the_batches() {
        let spool = Spool::default();
        let mut all = Vec::new();
        let mut state = 1u64;
        for size in [limits::SPOOL_RECORDS, 7, limits::SPOOL_RECORDS, 1, limits::SPOOL_RECORDS] {
            let batch: Vec<_> = (0..size)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    Record {
                        pair: (state >> 60) as u32 & 1,
                        start: state >> 20,
                        length: state & 0xfff,
                        zero: state & 0x1000 != 0,
                        digest: u128::from(state) << 64 | u128::from(!state),
                    }
                })
                .collect();
            all.extend_from_slice(&batch);
            spool.add(batch);
        }
        all.sort_unstable();
        let sorted: Vec<_> = spool.sorted().unwrap().map(Result::unwrap).collect();
        assert_eq!(sorted, all);
    }
}
