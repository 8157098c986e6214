//! The mark: which entries of the index restore points need.
//!
//! One bit for each entry of each segment, so that memory is a bit a chunk beside the index. Of a chunk with several
//! places one is chosen and marked: a healthy one before a damaged one, one that no doom list names before one that is to
//! go, and then the pack of the least name, so that duplicates choose the same pack and leave the other one dead.
//!
//! A node whose entry is marked already has had its whole subtree marked: it is not read again, neither for another
//! restore point nor by the second mark of the same gc. Nodes are read in batches in the order of their places.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mover_engine::Control;
use mover_model::{ChunkId, Error, ErrorKind, Result};

use super::packs::Packs;
use super::stopped;
use crate::format::entry::Entry;
use crate::format::node::{Node, Root};
use crate::format::segment::Segment;
use crate::index::{Index, Location};
use crate::keys::ChunkKind;
use crate::names::ObjectName;
use crate::read::Chunks;
use crate::repository::Repository;
use crate::store::Key;

/// Nodes of a batch: with their children (32 bytes each) 8 MiB, and a few of these wait at each level.
const BATCH_NODES: usize = 1024;
/// Below this many a second thread costs more than it brings.
const PARALLEL_MIN: usize = 256;

/// A segment with its bits.
struct Marked {
    segment: Arc<Segment>,
    bits: Vec<AtomicU64>,
    /// From the segment's table of packs to ours.
    packs: Vec<u32>,
}

impl Marked {
    fn is_set(&self, ordinal: u64) -> bool {
        self.bits[(ordinal / 64) as usize].load(Ordering::Relaxed) & 1 << (ordinal % 64) != 0
    }

    /// True when it was not set before.
    fn set(&self, ordinal: u64) -> bool {
        let bit = 1 << (ordinal % 64);
        self.bits[(ordinal / 64) as usize].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}

/// A place of a chunk.
#[derive(Clone, Copy)]
struct Place {
    segment: usize,
    ordinal: u64,
    pack: u32,
    entry: Entry,
}

/// What became of a chunk that was to be marked.
enum Outcome {
    /// It was marked before.
    Known,
    /// It is marked now, at this place.
    New(Location),
    /// It is in no segment.
    Missing,
}

/// A node to be read. Level [`ROOT`] is a tree's root object.
struct Pending {
    level: u8,
    location: Location,
}

const ROOT: u8 = u8::MAX;

/// The mark of one gc.
pub(crate) struct Marks {
    repository: Arc<Repository>,
    chunks: Arc<Chunks>,
    segments: Vec<Marked>,
    damaged: HashSet<(ChunkId, ObjectName)>,
    pub packs: Packs,
    /// Distinct nodes read.
    pub nodes_read: u64,
    /// Distinct chunks and nodes marked.
    pub living: u64,
    /// Distinct data chunks that are needed and in no segment.
    pub missing: HashSet<ChunkId>,
    /// Distinct tree nodes that are needed and in no segment.
    pub missing_nodes: HashSet<ChunkId>,
    /// Segments of a gc that cannot be read, wholly or in part: see [`super::rebuild`].
    pub bad_segments: BTreeMap<ObjectName, Error>,
    /// What a verify finds, which goes on where a gc must stop; `None` for a gc.
    pub found: Option<Mutex<Findings>>,
}

/// Damage that a verify goes on beside.
#[derive(Default)]
pub(crate) struct Findings {
    /// Nodes that no place has whole, with the place that was tried.
    pub nodes: Vec<(ChunkId, Option<Location>, Error)>,
    /// Segments that cannot be read, wholly or in part.
    pub segments: BTreeMap<ObjectName, Error>,
    /// Chunks that are in no readable segment but in packs' own indexes.
    pub loose: HashMap<ChunkId, Location>,
}

impl Marks {
    /// Over an index; nothing is marked yet.
    ///
    /// Segments that cannot be read stand in `bad_segments`: packs that are named only there look dead.
    ///
    /// # Errors
    /// The store's.
    pub fn new(
        repository: &Arc<Repository>,
        index: Arc<Index>,
        damaged: HashSet<(ChunkId, ObjectName)>,
    ) -> Result<Self> {
        let mut marks = Marks {
            repository: repository.clone(),
            chunks: Arc::new(Chunks::new(repository.clone(), index.clone())),
            segments: Vec::new(),
            damaged,
            packs: Packs::default(),
            nodes_read: 0,
            living: 0,
            missing: HashSet::new(),
            missing_nodes: HashSet::new(),
            bad_segments: BTreeMap::new(),
            found: None,
        };
        marks.take_segments(index)?;
        Ok(marks)
    }

    /// The mark of a verify: damage is collected.
    ///
    /// # Errors
    /// The store's.
    pub fn collecting(
        repository: &Arc<Repository>,
        index: Arc<Index>,
        damaged: HashSet<(ChunkId, ObjectName)>,
    ) -> Result<Self> {
        let mut marks = Marks {
            repository: repository.clone(),
            chunks: Arc::new(Chunks::new(repository.clone(), index.clone())),
            segments: Vec::new(),
            damaged,
            packs: Packs::default(),
            nodes_read: 0,
            living: 0,
            missing: HashSet::new(),
            missing_nodes: HashSet::new(),
            bad_segments: BTreeMap::new(),
            found: Some(Mutex::default()),
        };
        marks.take_segments(index)?;
        Ok(marks)
    }

    /// Takes damage down where it may be gone on beside; else the error comes back.
    fn note(&self, error: Error, take: impl FnOnce(&mut Findings, Error)) -> Result<()> {
        match &self.found {
            Some(found) if error.kind() == ErrorKind::Corruption => {
                take(&mut found.lock().unwrap_or_else(|p| p.into_inner()), error);
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Takes the index as it is now, with segments that were put since, keeping what is marked.
    ///
    /// # Errors
    /// As for [`Marks::new`].
    pub fn refresh(&mut self, index: Arc<Index>, damaged: HashSet<(ChunkId, ObjectName)>) -> Result<()> {
        self.chunks = Arc::new(Chunks::new(self.repository.clone(), index.clone()));
        self.take_segments(index)?;
        let new: Vec<ChunkId> = damaged.difference(&self.damaged).map(|(id, _)| *id).collect();
        self.damaged = damaged;
        // What is known only now to be damaged at its place needs another one.
        let mut found = Vec::new();
        for id in new {
            let places = self.places(&id, &mut found)?;
            let marked = places.iter().any(|place| self.segments[place.segment].is_set(place.ordinal));
            if marked && let Some(best) = self.best(&places) {
                self.segments[best.segment].set(best.ordinal);
                self.packs.get(best.pack).lives(best.entry.stored);
            }
        }
        Ok(())
    }

    fn take_segments(&mut self, index: Arc<Index>) -> Result<()> {
        for (name, error) in index.damaged_segments() {
            if let Some(found) = &self.found {
                found.lock().unwrap_or_else(|p| p.into_inner()).segments.insert(name, error);
            } else {
                self.bad_segments.insert(name, error);
            }
        }
        let mut before: HashMap<ObjectName, Marked> =
            self.segments.drain(..).map(|marked| (marked.segment.name(), marked)).collect();
        self.packs.list(&self.repository)?;
        for segment in index.segments() {
            if let Some(marked) = before.remove(&segment.name()) {
                self.segments.push(marked);
                continue;
            }
            let packs: Vec<u32> = segment.packs().iter().map(|&name| self.packs.number(name)).collect();
            for &pack in &packs {
                self.packs.get_mut(pack).indexed = true;
            }
            // One pass over all pages: it counts, and it finds damage before anything is decided.
            for item in segment.iter() {
                let counted = item.and_then(|(_, entry)| {
                    let number = *packs.get(entry.pack as usize).ok_or_else(|| self.bad_entry(&segment))?;
                    self.packs.get_mut(number).record_bytes += u64::from(entry.stored);
                    Ok(())
                });
                match counted {
                    Err(error) if self.found.is_none() && error.kind() == ErrorKind::Corruption => {
                        self.bad_segments.entry(segment.name()).or_insert(error);
                    }
                    Err(error) => self.note(error, |found, error| {
                        found.segments.entry(segment.name()).or_insert(error);
                    })?,
                    Ok(()) => {}
                }
            }
            let words = segment.entries().div_ceil(64) + 1;
            let bits = (0..words).map(|_| AtomicU64::new(0)).collect();
            self.segments.push(Marked { segment, bits, packs });
        }
        if let Some(name) = before.into_keys().next() {
            return Err(Error::new(ErrorKind::Corruption, "an index segment vanished while gc was marking")
                .at(self.repository.store().label_of(&crate::format::segment::segment_key(name)))
                .hint("only one gc may run on a repository; look for what else deletes there"));
        }
        Ok(())
    }

    /// An error where a segment cannot be read.
    ///
    /// # Errors
    /// Its own.
    pub fn check_segments(&self) -> Result<()> {
        let Some((&name, error)) = self.bad_segments.first_key_value() else { return Ok(()) };
        Err(Error::new(
            error.kind(),
            format!("nothing can be deleted while an index segment cannot be read: {}", error.message()),
        )
        .at(self.repository.store().label_of(&crate::format::segment::segment_key(name)))
        .hint("`mover gc` without --dry-run makes it again from the packs; `mover verify` tells what it touches"))
    }

    fn bad_entry(&self, segment: &Segment) -> Error {
        Error::new(ErrorKind::Corruption, "an entry counts past the segment's table of packs")
            .at(self.repository.store().label_of(&crate::format::segment::segment_key(segment.name())))
            .hint("`mover verify` tells what it touches")
    }

    /// The segments, for their merge.
    pub fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.segments.iter().map(|marked| &marked.segment)
    }

    /// A reader of what is in the index.
    pub fn chunks(&self) -> &Arc<Chunks> {
        &self.chunks
    }

    /// Whether an entry of the segment number `segment` is still worth its room: one that is damaged and not the chosen
    /// place of a living chunk serves nobody, nor does a dead one in a pack that is not there.
    pub fn worth_keeping(&self, segment: usize, ordinal: u64, entry: &Entry, pack: ObjectName) -> bool {
        let there = self.packs.find(pack).is_some_and(|pack| pack.size.is_some());
        let bad = !there || self.damaged.contains(&(entry.id, pack));
        !bad || self.segments[segment].is_set(ordinal)
    }

    /// Whether a living chunk has its place at a record of a pack.
    ///
    /// # Errors
    /// The store's, `Corruption` of a page.
    pub fn is_marked_at(&self, entry: &Entry, pack: ObjectName) -> Result<bool> {
        let mut found = Vec::new();
        let places = self.places(&entry.id, &mut found)?;
        Ok(places.iter().any(|place| {
            place.entry.offset == entry.offset
                && self.packs.get(place.pack).name == pack
                && self.segments[place.segment].is_set(place.ordinal)
        }))
    }

    /// The marked entries that the segments have of a pack. Reads all segments: for what is rare.
    ///
    /// # Errors
    /// The store's.
    pub fn living_of(&self, pack: ObjectName) -> Result<Vec<Entry>> {
        let mut living = Vec::new();
        for marked in &self.segments {
            if !marked.segment.packs().contains(&pack) {
                continue;
            }
            for item in marked.segment.iter() {
                // A page that cannot be read was told of before.
                let Ok((ordinal, entry)) = item else { continue };
                if marked.segment.packs().get(entry.pack as usize) == Some(&pack) && marked.is_set(ordinal) {
                    living.push(entry);
                }
            }
        }
        Ok(living)
    }

    /// Marks everything below the roots. Each comes with the key of a manifest that names it.
    ///
    /// # Errors
    /// `Corruption` when a node is missing or damaged; `Stopped`; the store's.
    pub fn walk(&mut self, roots: &mut Vec<(ChunkId, String)>, control: &Control) -> Result<()> {
        roots.sort_unstable();
        roots.dedup_by_key(|(id, _)| *id);
        let ids: Vec<ChunkId> = roots.iter().map(|(id, _)| *id).collect();
        let mut stack = Vec::new();
        for (outcome, (id, manifest)) in self.mark(&ids)?.into_iter().zip(roots.drain(..)) {
            match outcome {
                Outcome::New(location) => stack.push(Pending { level: ROOT, location }),
                Outcome::Known => {}
                Outcome::Missing => {
                    self.missing_nodes.insert(id);
                    let key = Key::parse(&manifest).unwrap_or_else(|| Key::new("manifests"));
                    let error = self.no_node(&id).at(self.repository.store().label_of(&key));
                    self.note(error, |found, error| found.nodes.push((id, None, error)))?;
                }
            }
        }
        while !stack.is_empty() {
            if control.stopped() {
                return Err(stopped());
            }
            let batch = stack.split_off(stack.len().saturating_sub(BATCH_NODES));
            self.read(batch, &mut stack)?;
        }
        Ok(())
    }

    /// Reads a batch of nodes, marks their children, and puts nodes among these that are new on the stack.
    fn read(&mut self, mut batch: Vec<Pending>, stack: &mut Vec<Pending>) -> Result<()> {
        batch.sort_unstable_by_key(|pending| (pending.location.pack, pending.location.entry.offset));
        self.nodes_read += batch.len() as u64;
        let chunks = &self.chunks;
        let children = parallel(&batch, |pending| match children(chunks, pending) {
            Err(error) => {
                let location = pending.location;
                self.note(error, |found, error| {
                    found.nodes.push((location.entry.id, Some(location), error));
                })?;
                Ok((None, Vec::new()))
            }
            read => read,
        })?;
        let mut data = Vec::new();
        let mut nodes = Vec::new();
        for (level, ids) in children {
            match level {
                None => data.extend(ids),
                Some(level) => nodes.extend(ids.into_iter().map(|id| (id, level))),
            }
        }
        data.sort_unstable();
        data.dedup();
        for (outcome, id) in self.mark(&data)?.iter().zip(&data) {
            if let Outcome::Missing = outcome {
                self.missing.insert(*id);
            }
        }
        nodes.sort_unstable();
        nodes.dedup();
        let ids: Vec<ChunkId> = nodes.iter().map(|(id, _)| *id).collect();
        for (outcome, (id, level)) in self.mark(&ids)?.into_iter().zip(nodes) {
            match outcome {
                Outcome::New(location) => stack.push(Pending { level, location }),
                Outcome::Known => {}
                Outcome::Missing => {
                    self.missing_nodes.insert(id);
                    let error = self.no_node(&id);
                    self.note(error, |found, error| found.nodes.push((id, None, error)))?;
                }
            }
        }
        Ok(())
    }

    fn no_node(&self, id: &ChunkId) -> Error {
        Error::new(
            ErrorKind::Corruption,
            format!(
                "tree node {id} is in no index segment: what it refers to is unknown, so nothing is deleted"
            ),
        )
        .at(self.repository.store().label())
        .hint("`mover verify` tells which restore points it touches; prune these")
    }

    /// Marks distinct chunks, given in the order of their ids, so that a segment's pages are read in order.
    fn mark(&mut self, ids: &[ChunkId]) -> Result<Vec<Outcome>> {
        let marks = &*self;
        let outcomes = parallel(ids, |id| marks.mark_one(id))?;
        self.living += outcomes.iter().filter(|outcome| matches!(outcome, Outcome::New(_))).count() as u64;
        Ok(outcomes)
    }

    fn mark_one(&self, id: &ChunkId) -> Result<Outcome> {
        let places = self.places(id, &mut Vec::new())?;
        if places.iter().any(|place| self.segments[place.segment].is_set(place.ordinal)) {
            return Ok(Outcome::Known);
        }
        let Some(best) = self.best(&places) else {
            let Some(found) = &self.found else { return Ok(Outcome::Missing) };
            // Where segments are damaged the packs' own indexes may know it.
            let Some(location) = self.chunks.index().find(id)? else { return Ok(Outcome::Missing) };
            let mut found = found.lock().unwrap_or_else(|p| p.into_inner());
            return Ok(match found.loose.insert(*id, location) {
                Some(_) => Outcome::Known,
                None => Outcome::New(location),
            });
        };
        if !self.segments[best.segment].set(best.ordinal) {
            return Ok(Outcome::Known);
        }
        let pack = self.packs.get(best.pack);
        pack.lives(best.entry.stored);
        Ok(Outcome::New(Location { pack: pack.name, entry: best.entry }))
    }

    fn places(&self, id: &ChunkId, found: &mut Vec<(u64, Entry)>) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        for (segment, marked) in self.segments.iter().enumerate() {
            found.clear();
            if let Err(error) = marked.segment.find(id, found) {
                found.clear();
                self.note(error, |found, error| {
                    found.segments.entry(marked.segment.name()).or_insert(error);
                })?;
            }
            for &(ordinal, entry) in found.iter() {
                let Some(&pack) = marked.packs.get(entry.pack as usize) else {
                    return Err(self.bad_entry(&marked.segment));
                };
                places.push(Place { segment, ordinal, pack, entry });
            }
        }
        Ok(places)
    }

    fn best(&self, places: &[Place]) -> Option<Place> {
        let rank = |place: &&Place| {
            let pack = self.packs.get(place.pack);
            let damaged = self.damaged.contains(&(place.entry.id, pack.name));
            (pack.size.is_none(), damaged, pack.doomed, pack.name, place.entry.offset)
        };
        places.iter().min_by_key(rank).copied()
    }
}

/// The children of a node: of level `None` data chunks.
fn children(chunks: &Chunks, pending: &Pending) -> Result<(Option<u8>, Vec<ChunkId>)> {
    let id = pending.location.entry.id;
    let read = match chunks.get_at(&pending.location) {
        // Another place may have it whole.
        Err(error) if error.kind() == ErrorKind::Corruption => chunks.get(&id, ChunkKind::Node),
        other => other,
    };
    let decoded = read.and_then(|bytes| {
        if pending.level == ROOT {
            let root = Root::decode(&bytes)?;
            let top = (!root.top.is_hole()).then_some(root.top);
            return Ok((Some(root.level), top.into_iter().collect()));
        }
        let node = Node::decode(&bytes, pending.level)?;
        let ids = node.children.iter().filter(|id| !id.is_hole()).copied().collect();
        Ok((pending.level.checked_sub(1), ids))
    });
    decoded.map_err(|error| match error.kind() {
        ErrorKind::Corruption => Error::new(
            ErrorKind::Corruption,
            format!(
                "tree node {id} cannot be read: what it refers to is unknown, so nothing is deleted: {}",
                error.message()
            ),
        )
        .at(chunks.repository().store().label_of(&crate::format::pack::pack_key(pending.location.pack)))
        .offset(pending.location.entry.offset)
        .hint("`mover verify` tells which restore points it touches; prune these"),
        _ => error,
    })
}

/// Calls `work` for each item on a few threads; outcomes are in the order of the items.
fn parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let threads = threads.min(items.len() / PARALLEL_MIN).max(1);
    if threads == 1 {
        return items.iter().map(work).collect();
    }
    let work = &work;
    std::thread::scope(|scope| {
        let parts: Vec<_> = items
            .chunks(items.len().div_ceil(threads))
            .map(|part| scope.spawn(move || part.iter().map(work).collect::<Result<Vec<R>>>()))
            .collect();
        let mut all = Vec::with_capacity(items.len());
        for part in parts {
            let panicked = || Error::new(ErrorKind::Internal, "a thread that marks panicked");
            all.extend(part.join().map_err(|_| panicked())??);
        }
        Ok(all)
    })
}
