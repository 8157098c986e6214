//! What verify needs of the inside of a repository: which records restore points need, pack by pack in the order in which
//! they lie, as one virtual disk that the engine reads; and which disks damage touches.

mod touched;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mover_engine::Control;
use mover_engine::pattern::SplitMix;
use mover_model::{ChunkId, Error, ErrorKind, Extent, ExtentKind, Result};

use crate::format::entry::Entry;
use crate::format::pack::PACK_ENTRIES_MAX;
use crate::gc::mark::Marks;
use crate::index::{Index, Location};
use crate::keys::ChunkKind;
use crate::names::ObjectName;
use crate::notes;
use crate::read::{ChunkMap, Chunks};
use crate::repository::Repository;

pub use touched::touched;

/// Packs that cannot be opened, and why.
pub type BadPacks = Vec<(ObjectName, Error)>;

/// A chunk that no place has whole, or a place of one that is not what it should be.
#[derive(Debug, Clone)]
pub struct Bad {
    /// Its name.
    pub id: ChunkId,
    /// What it is.
    pub kind: ChunkKind,
    /// The place that was tried; `None`: there is none.
    pub location: Option<Location>,
    /// What is wrong.
    pub error: Error,
    /// Whether another place has it whole: nothing is lost then.
    pub whole_elsewhere: bool,
}

/// What restore points need, found by reading all their tree nodes.
pub struct Survey {
    repository: Arc<Repository>,
    chunks: Arc<Chunks>,
    marks: Marks,
    /// Packs with living data, in the order of their numbers on the virtual disk.
    packs: Vec<ObjectName>,
    numbers: HashMap<ObjectName, u64>,
    /// Data chunks that are not on the virtual disk: a disk's last one, shorter than others.
    aside: Vec<Location>,
    /// Whole data chunks on the virtual disk.
    whole: u64,
    /// Bytes of records that were looked up to be read.
    stored_bytes: AtomicU64,
}

/// How many of the chunks are read, and which: drawn by a seed.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// So many of them.
    pub count: u64,
    /// The seed.
    pub seed: u64,
}

impl Survey {
    /// Reads all segments, and all nodes below the roots.
    ///
    /// # Errors
    /// The store's; `Stopped`.
    pub fn new(repository: &Arc<Repository>, roots: Vec<ChunkId>, control: &Control) -> Result<Self> {
        let noted = notes::damaged(repository)?;
        let noted: HashSet<(ChunkId, ObjectName)> =
            noted.into_iter().filter_map(|bad| Some((bad.id, bad.pack.parse().ok()?))).collect();
        let index = Arc::new(Index::open_for_reading(repository)?);
        let doomed = index.doomed().clone();
        let mut marks = Marks::collecting(repository, index, noted)?;
        // A gc whose list is older than this session does not wait for it: what is on the list may go at any time.
        marks.packs.doom(&doomed);
        let mut roots = roots.into_iter().map(|root| (root, String::new())).collect();
        marks.walk(&mut roots, control)?;
        let chunks = marks.chunks().clone();
        Ok(Survey {
            repository: repository.clone(),
            chunks,
            marks,
            packs: Vec::new(),
            numbers: HashMap::new(),
            aside: Vec::new(),
            whole: 0,
            stored_bytes: AtomicU64::new(0),
        })
    }

    /// Bytes of the records of the virtual disk that were read so far.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// A reader of what is in the index.
    pub fn chunks(&self) -> &Arc<Chunks> {
        &self.chunks
    }

    /// Distinct nodes that were read.
    pub fn nodes_read(&self) -> u64 {
        self.marks.nodes_read
    }

    /// What the index had to leave out, for the events of a run.
    pub fn degradations(&self) -> Vec<mover_model::event::Degradation> {
        self.chunks.index().degradations()
    }

    /// Index segments that cannot be read, wholly or in part.
    pub fn bad_segments(&self) -> BTreeMap<ObjectName, Error> {
        let Some(found) = &self.marks.found else { return BTreeMap::new() };
        found.lock().unwrap_or_else(|p| p.into_inner()).segments.clone()
    }

    /// Compares each pack's own index with what the segments say of it, and finds what cannot be read before a byte of
    /// data is. Packs that cannot be opened come back with the reason.
    ///
    /// # Errors
    /// The store's; `Stopped`.
    pub fn check_packs(&mut self, control: &Control) -> Result<(Vec<Bad>, BadPacks)> {
        let (mut bad, mut bad_packs) = (self.bad_nodes()?, Vec::new());
        let mut names: Vec<ObjectName> =
            self.marks.packs.iter().filter(|pack| pack.is_living()).map(|pack| pack.name).collect();
        names.sort_unstable();
        let chunk_size = self.repository.config().chunk_size;
        for name in names {
            if control.stopped() {
                return Err(crate::verify::stopped());
            }
            let index = match self.chunks.pack_index(name) {
                Ok(index) => index,
                Err(error) if error.kind() == ErrorKind::Corruption => {
                    for entry in self.marks.living_of(name)? {
                        bad.push(self.bad(entry, name, error.clone())?);
                    }
                    bad_packs.push((name, error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let expected = self.marks.packs.find(name).map_or(0, |pack| pack.living.load(Ordering::Relaxed));
            let mut living = 0;
            let mut whole = 0;
            for entry in &index.entries {
                if !self.marks.is_marked_at(entry, name)? {
                    continue;
                }
                living += 1;
                match entry.kind {
                    ChunkKind::Node => {}
                    ChunkKind::Data if entry.plain == chunk_size => whole += 1,
                    ChunkKind::Data => self.aside.push(Location { pack: name, entry: *entry }),
                }
            }
            if living < expected {
                let own: HashSet<(ChunkId, u64)> =
                    index.entries.iter().map(|entry| (entry.id, entry.offset)).collect();
                for entry in self.marks.living_of(name)? {
                    if !own.contains(&(entry.id, entry.offset)) {
                        let error = Error::new(
                            ErrorKind::Corruption,
                            "an index segment names a record that the pack's own index does not have",
                        );
                        bad.push(self.bad(entry, name, error.at(self.chunks.label_of(name)))?);
                    }
                }
            }
            if whole > 0 {
                self.whole += whole;
                self.numbers.insert(name, self.packs.len() as u64);
                self.packs.push(name);
            }
        }
        if let Some(found) = &self.marks.found {
            let found = found.lock().unwrap_or_else(|p| p.into_inner());
            self.aside.extend(found.loose.values().filter(|place| place.entry.kind == ChunkKind::Data));
        }
        for id in &self.marks.missing {
            bad.push(Bad {
                id: *id,
                kind: ChunkKind::Data,
                location: None,
                error: Error::new(ErrorKind::Corruption, format!("chunk {id} is in no index")),
                whole_elsewhere: false,
            });
        }
        Ok((bad, bad_packs))
    }

    fn bad_nodes(&self) -> Result<Vec<Bad>> {
        let Some(found) = &self.marks.found else { return Ok(Vec::new()) };
        let nodes = std::mem::take(&mut found.lock().unwrap_or_else(|p| p.into_inner()).nodes);
        Ok(nodes
            .into_iter()
            .map(|(id, location, error)| Bad {
                id,
                kind: ChunkKind::Node,
                location,
                error,
                // All places were tried.
                whole_elsewhere: false,
            })
            .collect())
    }

    fn bad(&self, entry: Entry, pack: ObjectName, error: Error) -> Result<Bad> {
        let location = Location { pack, entry };
        let whole_elsewhere = self.chunks.get_elsewhere(&entry.id, entry.kind, Some(&location))?.is_some();
        Ok(Bad { id: entry.id, kind: entry.kind, location: Some(location), error, whole_elsewhere })
    }

    /// Data chunks that were found, the ones aside included.
    pub fn data_chunks(&self) -> u64 {
        self.whole + self.aside.len() as u64
    }

    /// Reads a data chunk that is not on the virtual disk, or one whose pack gave others that are bad.
    ///
    /// # Errors
    /// The store's.
    pub fn read(&self, location: &Location) -> Result<Option<Bad>> {
        match self.chunks.get_at(location) {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::Corruption => {
                self.bad(location.entry, location.pack, error).map(Some)
            }
            Err(error) => Err(error),
        }
    }

    /// Data chunks that are not on the virtual disk.
    pub fn aside(&self) -> &[Location] {
        &self.aside
    }

    /// The places of all living data of a pack.
    ///
    /// # Errors
    /// The store's.
    pub fn living_data_of(&self, pack: ObjectName) -> Result<Vec<Location>> {
        let living = self.marks.living_of(pack)?;
        let data = living.into_iter().filter(|entry| entry.kind == ChunkKind::Data);
        Ok(data.map(|entry| Location { pack, entry }).collect())
    }

    /// The packs on the virtual disk.
    pub fn packs(&self) -> &[ObjectName] {
        &self.packs
    }

    /// The living whole chunks on the virtual disk, pack by pack as they lie, neighbours joined; of a draw only those that
    /// it chooses.
    pub fn extents(&self, draw: Option<Draw>) -> impl Iterator<Item = Result<Extent>> + Send + '_ {
        let mut random = SplitMix::new(draw.map_or(0, |draw| draw.seed));
        let mut left = self.whole;
        let mut wanted = draw.map_or(u64::MAX, |draw| draw.count.min(left));
        // Each of those that are left has the same chance: in the end exactly as many are chosen as are wanted.
        let mut choose = move || {
            let chosen = draw.is_none() || random.below(left.max(1)) < wanted;
            left = left.saturating_sub(1);
            wanted -= u64::from(chosen && draw.is_some());
            chosen
        };
        (0u64..).zip(&self.packs).flat_map(move |(number, &name)| {
            self.extents_of(number, name, &mut choose).unwrap_or_else(|error| vec![Err(error)])
        })
    }

    fn extents_of(
        &self,
        number: u64,
        name: ObjectName,
        choose: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Result<Extent>>> {
        let chunk_size = self.repository.config().chunk_size;
        let index = self.chunks.pack_index(name)?;
        let mut extents: Vec<Result<Extent>> = Vec::new();
        let mut open: Option<(u64, u64)> = None;
        let base = number * PACK_ENTRIES_MAX as u64;
        let extent = |(first, end): (u64, u64)| {
            let chunk = u64::from(chunk_size);
            Ok(Extent::new((base + first) * chunk, (end - first) * chunk, ExtentKind::Data))
        };
        for (at, entry) in (0u64..).zip(&index.entries) {
            let here = entry.kind == ChunkKind::Data
                && entry.plain == chunk_size
                && self.marks.is_marked_at(entry, name)?
                && choose();
            open = match (open, here) {
                (Some((first, end)), true) if end == at => Some((first, at + 1)),
                (before, true) => {
                    extents.extend(before.map(extent));
                    Some((at, at + 1))
                }
                (before, false) => before,
            };
        }
        extents.extend(open.map(extent));
        Ok(extents)
    }
}

/// The error of a verify that was stopped.
pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "stopped before everything was read").hint("run it again")
}

impl ChunkMap for Survey {
    fn size(&self) -> u64 {
        self.packs.len() as u64 * PACK_ENTRIES_MAX as u64 * u64::from(self.chunk_size())
    }

    fn chunk_size(&self) -> u32 {
        self.repository.config().chunk_size
    }

    fn extents(&self) -> Result<Box<dyn Iterator<Item = Result<Extent>> + Send + '_>> {
        Ok(Box::new(Survey::extents(self, None)))
    }

    fn chunks(&self, first: u64, count: u64, chunks: &mut Vec<Option<(ChunkId, Location)>>) -> Result<()> {
        for number in first..first + count {
            let (pack, at) = (number / PACK_ENTRIES_MAX as u64, number % PACK_ENTRIES_MAX as u64);
            let none = || Error::new(ErrorKind::Internal, "verify asked for a record that no pack has");
            let &pack = self.packs.get(pack as usize).ok_or_else(none)?;
            let index = self.chunks.pack_index(pack)?;
            let entry = *index.entries.get(at as usize).ok_or_else(none)?;
            self.stored_bytes.fetch_add(u64::from(entry.stored), Ordering::Relaxed);
            chunks.push(Some((entry.id, Location { pack, entry })));
        }
        Ok(())
    }
}
