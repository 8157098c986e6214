//! The journal of a copy: a durable ledger of finished extents. Format: docs/formats/journal.md.
//!
//! Ordering: a record is appended only after a flush of its target that began after its write had completed,
//! and the ledger is synced after the append. So after a crash every record that can be read names bytes
//! that are on the target's stable storage. A cut inside a record fails its checksum: reading ends there.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mover_endpoints::Identity;
use mover_engine::sys::whole_file;
use mover_model::{Error, ErrorKind, Extent, ExtentList, Operation, Result};
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::digests::temporary_beside;
use super::spool::Record;

const MAGIC: &[u8; 8] = b"MVRLEDGR";
const VERSION: u32 = 1;
const HEADER_ALIGN: usize = 4096;
/// Header: magic, version, bytes of the header, three feature masks; then JSON; the checksum is its last 8 bytes.
const FIXED: usize = 40;
const RECORD_BYTES: usize = 48;
const KIND_SEGMENT: u32 = 1;
const KIND_COMPLETE: u32 = 2;
const ZERO_BIT: u32 = 1 << 31;
/// How long the lock of another run is waited for.
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(1);
/// Largest header that is believed.
const HEADER_MAX: usize = 16 << 20;

/// What a run must have in common with the one that began the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// One for each pair, in order.
    pub pairs: Vec<PairHeader>,
    /// Bytes of one request: segments are cut at its multiples.
    pub block_size: u32,
    /// Digest of the list of extents, where one was given.
    pub extents: Option<String>,
    /// Whether zeros were kept allocated.
    pub keep_allocated: bool,
}

/// One pair of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairHeader {
    /// The source.
    pub source: FileFacts,
    /// The target.
    pub target: FileFacts,
}

/// A file as a journal knows it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Its path, for messages.
    pub path: String,
    /// Bytes of a source; 0 for a target file, which may still grow to its size.
    pub size: u64,
    /// Inode of a regular file; 0 for a device, whose node may change from boot to boot.
    pub inode: u64,
    /// Last change of a source file in nanoseconds since 1970; 0 for devices and targets.
    pub mtime_ns: i64,
    /// A name of a block device that survives a restart.
    pub block_device: Option<String>,
}

impl FileFacts {
    /// Of a source.
    pub fn source(path: String, identity: &Identity) -> Self {
        FileFacts {
            size: identity.size,
            mtime_ns: identity.mtime_ns as i64,
            ..FileFacts::target(path, identity)
        }
    }

    /// Of a target: its content and times change by what the run itself does.
    pub fn target(path: String, identity: &Identity) -> Self {
        let regular = identity.block_device.is_none();
        FileFacts {
            path,
            size: if regular { 0 } else { identity.size },
            inode: if regular { identity.inode } else { 0 },
            mtime_ns: 0,
            block_device: identity.block_device.clone(),
        }
    }

    fn differs(&self, now: &FileFacts) -> Option<&'static str> {
        if self.size != now.size {
            Some("its size is another")
        } else if self.block_device != now.block_device {
            Some("it is another device")
        } else if self.inode != now.inode {
            Some("it is another file (inode)")
        } else if self.mtime_ns != now.mtime_ns {
            Some("it was changed since (mtime)")
        } else {
            None
        }
    }
}

/// An open ledger that records are appended to.
pub struct Ledger {
    file: File,
    path: PathBuf,
    seed: u64,
    end: u64,
    records: u64,
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub struct Done {
    /// What each pair has at its target.
    pub extents: Vec<ExtentList>,
    /// A random sample of segments, to check both ends by.
    pub sample: Vec<Record>,
    /// Whether the earlier run came to its end.
    pub complete: bool,
}

/// What a journal file is before a run.
pub enum Existing {
    /// Not there, or empty.
    Nothing,
    /// A journal with its header.
    Ledger(Box<Opened>),
}

/// A ledger of an earlier run, its header read.
pub struct Opened {
    /// What the earlier run was.
    pub header: Header,
    ledger: Ledger,
}

/// Looks at a journal file.
///
/// # Errors
/// `Busy` when another run uses it, `Refused` when it is something else.
pub fn look(path: &Path) -> Result<Existing> {
    let label = path.display().to_string();
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            return Err(Error::refused(label, "is no regular file, so no journal")
                .hint("name another --journal file"));
        }
        _ => {}
    }
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Existing::Nothing),
        Err(error) => return Err(Error::io(Operation::Open, label, &error)),
    };
    let refused = |why: &str| {
        Err(Error::refused(&label, format!("is no journal of a copy: {why}"))
            .hint("name another --journal file"))
    };
    if file.metadata().is_ok_and(|meta| meta.len() == 0) {
        return Ok(Existing::Nothing);
    }
    lock(&file, &label)?;
    let io = |error: std::io::Error| Error::io(Operation::Read, &label, &error);
    let mut fixed = [0; FIXED];
    if file.read_exact(&mut fixed).is_err() || &fixed[..8] != MAGIC {
        return refused("it does not begin like one");
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
    let incompatible = u64::from_le_bytes(std::array::from_fn(|i| fixed[16 + i]));
    if word(8) != VERSION || incompatible != 0 {
        return refused("it is of a newer version of mover");
    }
    let length = word(12) as usize;
    if !length.is_multiple_of(HEADER_ALIGN) || !(HEADER_ALIGN..=HEADER_MAX).contains(&length) {
        return refused("its header is damaged");
    }
    let mut header = vec![0; length];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return refused("its header is damaged");
        }
        read => read.map_err(io)?,
    }
    let (body, check) = header.split_at(length - 8);
    let seed = xxh3_64_with_seed(body, 0);
    if check != seed.to_le_bytes() {
        return refused("its header is damaged");
    }
    let text = &body[FIXED..];
    let text = &text[..text.iter().position(|&b| b == 0).unwrap_or(text.len())];
    let Ok(header) = serde_json::from_slice::<Header>(text) else { return refused("its header is damaged") };
    let ledger = Ledger { file, path: path.to_owned(), seed, end: length as u64, records: 0 };
    Ok(Existing::Ledger(Box::new(Opened { header, ledger })))
}

/// Begins a journal: the header is durable under the file's name, or nothing is there. Only with `replace` may
/// a file of that name be there already.
///
/// # Errors
/// When it cannot be written.
pub fn create(path: &Path, header: &Header, replace: bool) -> Result<Ledger> {
    let label = path.display().to_string();
    let io = |error: std::io::Error| Error::io(Operation::Write, &label, &error);
    let text =
        serde_json::to_vec(header).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    let length = (FIXED + text.len() + 1 + 8).next_multiple_of(HEADER_ALIGN);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.resize(FIXED, 0);
    bytes.extend_from_slice(&text);
    bytes.resize(length - 8, 0);
    let seed = xxh3_64_with_seed(&bytes, 0);
    bytes.extend_from_slice(&seed.to_le_bytes());
    // Written beside and renamed, so that a journal is there whole or not at all. The lock is taken before it
    // has its name, so that no other run can find it without.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = temporary_beside(path, ".mover-journal-")?;
    lock(temporary.as_file(), &label)?;
    temporary.as_file().write_all_at(&bytes, 0).map_err(io)?;
    temporary.as_file().sync_all().map_err(io)?;
    let file = if replace { temporary.persist(path) } else { temporary.persist_noclobber(path) };
    let file = file.map_err(|error| match error.error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(ErrorKind::Busy, "another run has just made this journal")
                .during(Operation::Lock)
                .at(&label)
        }
        _ => io(error.error),
    })?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(Ledger { file, path: path.to_owned(), seed, end: length as u64, records: 0 })
}

impl Opened {
    /// Refuses to go on when source or target is not what the ledger says.
    ///
    /// # Errors
    /// `WrongIdentity`, naming what differs.
    pub fn check(&self, now: &Header) -> Result<()> {
        let wrong = |path: &str, why: String| {
            Err(Error::new(ErrorKind::WrongIdentity, why)
                .at(path)
                .hint("to copy anew, remove the journal and say --force"))
        };
        let journal = self.ledger.path.display().to_string();
        if self.header.pairs.len() != now.pairs.len() {
            return wrong(&journal, format!("the journal is of {} pairs", self.header.pairs.len()));
        }
        for (then, now) in self.header.pairs.iter().zip(&now.pairs) {
            if let Some(why) = then.source.differs(&now.source) {
                return wrong(
                    &now.source.path,
                    format!("is not the source the journal was begun with: {why}"),
                );
            }
            if let Some(why) = then.target.differs(&now.target) {
                return wrong(
                    &now.target.path,
                    format!("is not the target the journal was begun with: {why}"),
                );
            }
        }
        if self.header.extents != now.extents {
            return wrong(&journal, "the journal was begun with another list of extents".into());
        }
        if self.header.keep_allocated != now.keep_allocated {
            return wrong(&journal, "the journal was begun with another --sparse".into());
        }
        Ok(())
    }

    /// Reads all records; `each` sees every segment.
    ///
    /// # Errors
    /// When the file cannot be read. A torn end is no error: it is overwritten.
    pub fn read(mut self, sample: usize, mut each: impl FnMut(Record)) -> Result<(Ledger, Done)> {
        let label = self.ledger.path.display().to_string();
        let mut covered: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); self.header.pairs.len()];
        let mut done = Done::default();
        let mut seen = 0u64;
        let random = std::collections::hash_map::RandomState::new();
        let mut buffer = vec![0; RECORD_BYTES * 4096];
        'file: loop {
            let filled = read_some(&self.ledger.file, &mut buffer, self.ledger.end)
                .map_err(|error| Error::io(Operation::Read, &label, &error))?;
            for bytes in buffer[..filled].chunks(RECORD_BYTES) {
                let Some((record, kind)) = decode(bytes, self.ledger.seed, self.ledger.records) else {
                    break 'file;
                };
                self.ledger.records += 1;
                self.ledger.end += RECORD_BYTES as u64;
                if kind == KIND_COMPLETE {
                    done.complete = true;
                    continue;
                }
                let Some(covered) = covered.get_mut(record.pair as usize) else { break 'file };
                cover(covered, record.start, record.start + record.length);
                each(record);
                keep_sample(&mut done.sample, record, seen, sample, &random);
                seen += 1;
            }
            if filled < buffer.len() {
                break;
            }
        }
        done.extents = covered
            .into_iter()
            .map(|map| map.into_iter().map(|(start, end)| Extent::data(start, end - start)).collect())
            .collect();
        Ok((self.ledger, done))
    }
}

impl Ledger {
    /// Appends segments whose targets were flushed after they were written, and makes them durable.
    ///
    /// # Errors
    /// When the file cannot be written: nothing more may be believed of it then.
    pub fn append(&mut self, segments: &[Record]) -> Result<()> {
        self.write(segments.iter().map(|record| (*record, KIND_SEGMENT)))
    }

    /// Marks the run as done.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn complete(&mut self) -> Result<()> {
        let end = Record { pair: 0, start: 0, length: 0, zero: true, digest: 0 };
        self.write(std::iter::once((end, KIND_COMPLETE)))
    }

    fn write(&mut self, records: impl Iterator<Item = (Record, u32)>) -> Result<()> {
        let mut bytes = Vec::new();
        for (record, kind) in records {
            encode(&record, kind, self.seed, self.records, &mut bytes);
            self.records += 1;
        }
        let label = || self.path.display().to_string();
        self.file
            .write_all_at(&bytes, self.end)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| Error::io(Operation::Write, label(), &error).offset(self.end))?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

fn lock(file: &File, label: &str) -> Result<()> {
    let whole = whole_file(libc::F_WRLCK);
    let begin = std::time::Instant::now();
    let mut locked = fcntl(file, FcntlArg::F_OFD_SETLK(&whole));
    // A run that was just killed may take a moment to go.
    while matches!(locked, Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES))
        && begin.elapsed() < LOCK_WAIT
    {
        std::thread::sleep(std::time::Duration::from_millis(20));
        locked = fcntl(file, FcntlArg::F_OFD_SETLK(&whole));
    }
    match locked {
        Ok(_) => Ok(()),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
            Err(Error::new(ErrorKind::Busy, "another run of mover uses this journal")
                .during(Operation::Lock)
                .at(label))
        }
        Err(errno) => Err(Error::os(Operation::Lock, label, errno as i32)),
    }
}

fn encode(record: &Record, kind: u32, seed: u64, index: u64, out: &mut Vec<u8>) {
    let from = out.len();
    out.extend_from_slice(&record.start.to_le_bytes());
    out.extend_from_slice(&record.length.to_le_bytes());
    out.extend_from_slice(&record.digest.to_le_bytes());
    out.extend_from_slice(&(record.pair | if record.zero { ZERO_BIT } else { 0 }).to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    // Seeded by header and position: a record of another journal, or moved, is none.
    let check = xxh3_64_with_seed(&out[from..], seed ^ index);
    out.extend_from_slice(&check.to_le_bytes());
}

fn decode(bytes: &[u8], seed: u64, index: u64) -> Option<(Record, u32)> {
    if bytes.len() != RECORD_BYTES {
        return None;
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    if word(40) != xxh3_64_with_seed(&bytes[..40], seed ^ index) {
        return None;
    }
    let (tag, kind) = (word(32) as u32, (word(32) >> 32) as u32);
    let record = Record {
        pair: tag & !ZERO_BIT,
        start: word(0),
        length: word(8),
        digest: u128::from(word(16)) | u128::from(word(24)) << 64,
        zero: tag & ZERO_BIT != 0,
    };
    let sound = record.start.checked_add(record.length).is_some_and(|end| end <= i64::MAX as u64);
    (sound && matches!(kind, KIND_SEGMENT | KIND_COMPLETE)).then_some((record, kind))
}

fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Adds a range, joined with its neighbours: finished extents are few and large once joined.
fn cover(covered: &mut BTreeMap<u64, u64>, mut start: u64, mut end: u64) {
    if start == end {
        return;
    }
    if let Some((&before, &before_end)) = covered.range(..=start).next_back()
        && before_end >= start
    {
        start = before;
        end = end.max(before_end);
    }
    while let Some((&next, &next_end)) = covered.range(start..=end).next() {
        end = end.max(next_end);
        covered.remove(&next);
    }
    covered.insert(start, end);
}

/// Reservoir sampling: after n records each of them is in the sample with the same probability.
fn keep_sample(
    sample: &mut Vec<Record>,
    record: Record,
    seen: u64,
    most: usize,
    random: &std::collections::hash_map::RandomState,
) {
    use std::hash::BuildHasher;
    if sample.len() < most {
        sample.push(record);
    } else {
        let place = random.hash_one(seen) % (seen + 1);
        if let Some(slot) = sample.get_mut(place as usize) {
            *slot = record;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let facts =
            |path: &str| FileFacts { path: path.into(), size: 10, inode: 1, mtime_ns: 5, block_device: None };
        Header {
            pairs: vec![PairHeader { source: facts("a"), target: facts("b") }],
            block_size: 1 << 20,
            extents: None,
            keep_allocated: false,
        }
    }

    fn record(start: u64) -> Record {
        Record { pair: 0, start, length: 10, zero: false, digest: u128::from(start) }
    }

    fn read(path: &Path) -> (Vec<Record>, Done) {
        let Existing::Ledger(opened) = look(path).unwrap() else { panic!("no ledger") };
        opened.check(&header()).unwrap();
        let mut records = Vec::new();
        let (_, done) = opened.read(2, |record| records.push(record)).unwrap();
        (records, done)
    }

    #[test]
    fn a_cut_at_any_byte_loses_only_what_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert!(matches!(look(&path).unwrap(), Existing::Nothing));
        let mut ledger = create(&path, &header(), true).unwrap();
        ledger.append(&[record(0), record(10)]).unwrap();
        ledger.append(&[record(100)]).unwrap();
        ledger.complete().unwrap();
        drop(ledger);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 4096 + 4 * RECORD_BYTES);
        for cut in 4096..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (records, done) = read(&path);
            assert_eq!(records.len(), ((cut - 4096) / RECORD_BYTES).min(3), "cut at {cut}");
            assert_eq!(done.complete, cut == whole.len());
        }
        for cut in 1..4096 {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(look(&path).err().map(|e| e.exit_code()), Some(5), "cut at {cut}");
        }
        for flip in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[flip] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            match look(&path) {
                Err(error) => assert_eq!(error.exit_code(), 5),
                Ok(Existing::Ledger(opened)) => {
                    assert!(flip >= 4096, "a flip at {flip} in the header was not seen");
                    let (_, done) = opened.read(0, |_| {}).unwrap();
                    assert!(!done.complete);
                }
                Ok(Existing::Nothing) => panic!("flip at {flip}"),
            }
        }
    }

    #[test]
    fn appending_goes_on_behind_a_torn_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        create(&path, &header(), true).unwrap().append(&[record(0), record(10)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let Existing::Ledger(opened) = look(&path).unwrap() else { panic!("no ledger") };
        let (mut ledger, _) = opened.read(0, |_| {}).unwrap();
        ledger.append(&[record(50)]).unwrap();
        drop(ledger);
        let (records, done) = read(&path);
        assert_eq!(records, [record(0), record(50)]);
        assert_eq!(done.extents[0].iter().collect::<Vec<_>>(), [Extent::data(0, 10), Extent::data(50, 10)]);
    }

    #[test]
    fn two_runs_cannot_use_one_journal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let _held = create(&path, &header(), true).unwrap();
        assert_eq!(look(&path).err().map(|error| error.exit_code()), Some(9));
    }

    #[test]
    fn another_source_or_target_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        drop(create(&path, &header(), true).unwrap());
        let Existing::Ledger(opened) = look(&path).unwrap() else { panic!("no ledger") };
        let mut other = header();
        other.pairs[0].source.mtime_ns = 6;
        assert_eq!(opened.check(&other).unwrap_err().kind(), ErrorKind::WrongIdentity);
        let mut other = header();
        other.pairs[0].target.inode = 6;
        assert_eq!(opened.check(&other).unwrap_err().kind(), ErrorKind::WrongIdentity);
    }

    #[test]
    fn covered_ranges_join() {
        let mut covered = BTreeMap::new();
        for (start, end) in [(10, 20), (30, 40), (20, 30), (0, 5), (4, 12), (50, 50)] {
            cover(&mut covered, start, end);
        }
        assert_eq!(covered.into_iter().collect::<Vec<_>>(), [(0, 40)]);
    }
}
