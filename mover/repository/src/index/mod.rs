//! Where chunks are: index segments, what this process has added, and what must not be relied on.
//!
//! A lookup asks, in this order: what this process has stored and no segment names yet; the entries of small segments,
//! in one map; each larger segment; and packs' own indexes where a segment or a page of one is damaged.

mod claims;
pub mod doom;
mod open;
mod places;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use mover_model::event::Degradation;
use mover_model::{ChunkId, Error, ErrorKind, Result};

use self::claims::Claims;
use self::open::is_damage;
use self::places::Places;
use crate::format::entry::Entry;
use crate::format::segment::{Segment, segment_key, write_segment};
use crate::names::ObjectName;
use crate::repository::Repository;

/// Segments with fewer entries are held in one map, so that many small backups do not make lookups slow,
const SMALL_ENTRIES: u64 = 4096;
/// as long as the map has no more entries than this: about 10 MiB.
const SMALL_ENTRIES_HELD: u64 = 64 << 10;

/// A chunk's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// In this pack
    pub pack: ObjectName,
    /// at this record (its `pack` field means nothing here).
    pub entry: Entry,
}

/// Whether a writer has to store a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is there, or another worker of this process is storing it.
    Known,
    /// The caller stores it: nobody else of this process will.
    Mine,
}

/// What the index is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Write,
    Read,
}

/// The index of a repository as one session sees it. Shared by all workers.
///
/// Made after the session's object was put, and in this order: doom lists, damaged chunks, segments. A gc that deletes a
/// pack has put its doom list before it looked for sessions, and deletes the list last: so either it waits for this
/// session, or this session sees the list, or the segments that name the pack are gone already.
pub struct Index {
    repository: Arc<Repository>,
    use_: Use,
    doomed: HashSet<ObjectName>,
    /// Packs that segments name and that are not there; only looked for where a segment is damaged.
    missing: HashSet<ObjectName>,
    /// Packs in which a chunk is on record as damaged.
    damaged: HashMap<ChunkId, Vec<ObjectName>>,
    segments: RwLock<Segments>,
    claims: Claims,
    rescued: RwLock<Rescued>,
    troubles: Mutex<Troubles>,
}

#[derive(Default)]
struct Segments {
    /// All that count.
    all: Vec<Arc<Segment>>,
    /// Those that are searched one by one, the newest last.
    searched: Vec<Arc<Segment>>,
    /// The entries of the others.
    small: Places,
    small_entries: u64,
}

/// What packs' own indexes say where segments are damaged.
#[derive(Default)]
struct Rescued {
    places: Places,
    /// Segments with damaged pages whose packs were read.
    segments: HashSet<ObjectName>,
    /// Whether the packs that no segment names were read.
    unnamed: bool,
}

#[derive(Default)]
struct Troubles {
    degradations: Vec<Degradation>,
    segments: Vec<(ObjectName, Error)>,
}

impl Index {
    /// Opens the index for a writer. Segments that cannot be read are left out, with a [`Degradation`] in
    /// [`Index::degradations`]: their chunks are stored again.
    ///
    /// # Errors
    /// The store's; `Corruption` of a doom list or a note of damage, without which nobody knows what may be relied on.
    pub fn open(repository: &Arc<Repository>) -> Result<Self> {
        Index::open_for(repository, Use::Write)
    }

    /// Opens the index for a reader. Where segments cannot be read, or a chunk is asked for that none names, the own
    /// indexes of all packs that no segment names are read instead, with a [`Degradation`] in [`Index::degradations`].
    ///
    /// # Errors
    /// The store's.
    pub fn open_for_reading(repository: &Arc<Repository>) -> Result<Self> {
        Index::open_for(repository, Use::Read)
    }

    fn open_for(repository: &Arc<Repository>, use_: Use) -> Result<Self> {
        let mut troubles = Troubles::default();
        // The order of these three is what the safety beside a gc stands on: see the type.
        let doomed = match doomed(repository) {
            Err(error) if use_ == Use::Read && is_damage(&error) => {
                troubles.tell("all doom lists", "the packs of all readable segments", &error);
                HashSet::new()
            }
            other => other?,
        };
        for (_, error) in crate::notes::damaged_notes(repository)? {
            let used = "the others; `mover verify` finds what it said anew";
            troubles.tell("all notes of damaged chunks", used, &error);
        }
        let damaged = match damaged(repository) {
            Err(error) if use_ == Use::Read && is_damage(&error) => {
                troubles.tell("the notes of damaged chunks", "all places of chunks alike", &error);
                HashMap::new()
            }
            other => other?,
        };
        let mut found = open::segments(repository)?;
        if use_ == Use::Write {
            found.segments.retain(|segment| {
                let unknown = segment.features().read_only_compatible;
                if unknown != 0 {
                    let error = Error::new(
                        ErrorKind::Unsupported,
                        format!("it uses unknown features ({unknown:#x})"),
                    )
                    .at(segment.label())
                    .hint("use a newer mover");
                    found.damaged.push((segment.name(), error));
                }
                unknown == 0
            });
        }

        let mut index = Index {
            repository: repository.clone(),
            use_,
            doomed,
            missing: HashSet::new(),
            damaged,
            segments: RwLock::default(),
            claims: Claims::default(),
            rescued: RwLock::default(),
            troubles: Mutex::default(),
        };
        let used = match use_ {
            Use::Write => "the others: what only these name is stored again",
            Use::Read => "the packs' own indexes",
        };
        for (name, error) in found.damaged {
            troubles.tell("all index segments", used, &error);
            troubles.segments.push((name, error));
        }
        let is_whole = troubles.segments.is_empty();
        *lock(&index.troubles) = troubles;

        // The smallest first, so that as few as can be are left to be searched one by one.
        found.segments.sort_by_key(|segment| (segment.entries(), segment.name()));
        for segment in found.segments {
            index.add_segment(segment)?;
        }
        if is_whole {
            return Ok(index);
        }
        match use_ {
            Use::Read => {
                let mut rescued = index.rescued.write().unwrap_or_else(PoisonError::into_inner);
                let packs = index.unnamed_packs()?;
                index.rescue(&mut rescued.places, &packs)?;
                rescued.unnamed = true;
                drop(rescued);
            }
            Use::Write => {
                // What a damaged segment stood for counts again where it is still there, and names packs that a gc has
                // deleted since.
                let there: HashSet<ObjectName> = open::all_packs(repository)?.into_iter().collect();
                index.missing = index.named_packs();
                index.missing.retain(|pack| !there.contains(pack));
            }
        }
        Ok(index)
    }

    /// What had to be left out or read another way, and why.
    pub fn degradations(&self) -> Vec<Degradation> {
        lock(&self.troubles).degradations.clone()
    }

    /// Segments that could not be read, wholly or in part, and why: verify reports them.
    pub fn damaged_segments(&self) -> Vec<(ObjectName, Error)> {
        lock(&self.troubles).segments.clone()
    }

    /// For writers: whether a chunk is there, in a pack that is neither doomed nor damaged at that chunk; if not, the
    /// caller has to store it. A damaged page counts as absent, with a [`Degradation`].
    ///
    /// # Errors
    /// The store's.
    pub fn claim(&self, id: &ChunkId) -> Result<Claim> {
        // Held while segments are searched: put_segment opens a segment before it forgets the claims of its chunks, so a
        // chunk is always in one of the two.
        let mut shard = self.claims.shard(id);
        if shard.claimed.contains(id) || shard.pending.contains_key(id) {
            return Ok(Claim::Known);
        }
        let mut healthy = false;
        self.search(id, &mut |location| healthy |= self.is_healthy(&location))?;
        if healthy {
            return Ok(Claim::Known);
        }
        shard.claimed.insert(*id);
        Ok(Claim::Mine)
    }

    /// For readers: where a chunk is; a place that is neither doomed nor damaged where there is one, else any.
    ///
    /// # Errors
    /// The store's.
    pub fn find(&self, id: &ChunkId) -> Result<Option<Location>> {
        let mut best: Option<(Location, bool)> = None;
        self.visit_all(id, &mut |location| {
            if !matches!(best, Some((_, true))) {
                let healthy = self.is_healthy(&location);
                if healthy || best.is_none() {
                    best = Some((location, healthy));
                }
            }
        })?;
        Ok(best.map(|(location, _)| location))
    }

    /// All places of a chunk, the healthy ones first.
    ///
    /// # Errors
    /// The store's.
    pub fn find_all(&self, id: &ChunkId) -> Result<Vec<Location>> {
        let mut all: Vec<Location> = Vec::new();
        self.visit_all(id, &mut |location| {
            let same =
                |other: &Location| other.pack == location.pack && other.entry.offset == location.entry.offset;
            if !all.iter().any(same) {
                all.push(location);
            }
        })?;
        all.sort_by_key(|location| !self.is_healthy(location));
        Ok(all)
    }

    /// Whether a place may be relied on: its pack is not doomed, and the chunk there not on record as damaged.
    pub fn is_healthy(&self, location: &Location) -> bool {
        let damaged = |packs: &Vec<ObjectName>| packs.contains(&location.pack);
        let noted = !self.damaged.is_empty() && self.damaged.get(&location.entry.id).is_some_and(damaged);
        let missing = !self.missing.is_empty() && self.missing.contains(&location.pack);
        !noted && !missing && (self.doomed.is_empty() || !self.doomed.contains(&location.pack))
    }

    /// Adds chunks whose pack is durable but in no segment yet, so that this process can read them (tree nodes).
    pub fn add_pending(&self, locations: &[Location]) {
        for location in locations {
            self.claims.shard(&location.entry.id).pending.insert(location.entry.id, *location);
        }
    }

    /// Puts a segment of packs that are durable, opens it in place of the pending entries and claims of its chunks, and
    /// returns its bytes. Without entries nothing is put.
    ///
    /// # Errors
    /// The store's; `Internal` for an entry of a pack that is not among `packs`.
    pub fn put_segment(&self, packs: &[ObjectName], mut entries: Vec<Location>) -> Result<u64> {
        if entries.is_empty() {
            return Ok(0);
        }
        entries.sort_unstable_by_key(|location| (location.entry.id, location.pack, location.entry.offset));
        let numbers: HashMap<ObjectName, u32> = packs.iter().copied().zip(0..).collect();
        let mut numbered = entries.iter().map(|location| match numbers.get(&location.pack) {
            Some(&pack) => Ok(Entry { pack, ..location.entry }),
            None => {
                Err(Error::new(ErrorKind::Internal, format!("no segment names the pack {}", location.pack)))
            }
        });
        let (repository, name) = (&self.repository, ObjectName::random()?);
        let (store, keys, id) = (repository.store(), repository.keys(), repository.id());
        let bytes = write_segment(store, keys, id, name, packs, &[], &mut numbered)?;
        let gone = || {
            Error::new(ErrorKind::Corruption, "an index segment is gone that was put just now")
                .at(store.label_of(&segment_key(name)))
        };
        let mut segment = Segment::open(store, keys, id, name)?.ok_or_else(gone)?;
        let files = self.read_segments().searched.len();
        if segment.entries() < SMALL_ENTRIES || files >= open::OPEN_FILES {
            segment.close(repository.store_arc());
        }
        self.add_segment(Arc::new(segment))?;
        self.claims.forget(entries.iter().map(|location| location.entry.id));
        Ok(bytes)
    }

    /// Packs on a doom list.
    pub fn doomed(&self) -> &HashSet<ObjectName> {
        &self.doomed
    }

    /// The open segments, for gc and verify.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.read_segments().all.clone()
    }

    /// Chunks in all segments.
    pub fn entries(&self) -> u64 {
        self.read_segments().all.iter().map(|segment| segment.entries()).sum()
    }

    /// Bytes of memory that the index holds.
    pub fn memory_bytes(&self) -> usize {
        let segments = self.read_segments();
        segments.all.iter().map(|segment| segment.memory_bytes()).sum::<usize>()
            + segments.small.memory_bytes()
            + self.read_rescued().places.memory_bytes()
            + self.claims.memory_bytes()
            + self.doomed.len() * size_of::<ObjectName>()
            + self.damaged.len() * size_of::<(ChunkId, Vec<ObjectName>)>()
    }

    /// Counts a segment in: its entries into the map where they fit, else itself among those that are searched.
    fn add_segment(&self, segment: Arc<Segment>) -> Result<()> {
        let held = self.read_segments().small_entries;
        let small = segment.entries() < SMALL_ENTRIES && held + segment.entries() <= SMALL_ENTRIES_HELD;
        let mut locations = Vec::new();
        let mut search = !small;
        if small {
            for item in segment.iter() {
                match item {
                    Ok((_, entry)) => {
                        locations.push(Location { pack: segment.packs()[entry.pack as usize], entry });
                    }
                    // The pages that are whole are of use still, one by one.
                    Err(error) if is_damage(&error) => {
                        self.damaged_page(&segment, error);
                        search = true;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        if search {
            segments.searched.push(segment.clone());
        } else {
            segments.small_entries += segment.entries();
            locations.into_iter().for_each(|location| segments.small.add(location));
        }
        segments.all.push(segment);
        Ok(())
    }

    /// Every place that segments and packs' own indexes name. Returns the segments of which a page is damaged that
    /// might have named more.
    fn search(&self, id: &ChunkId, visit: &mut dyn FnMut(Location)) -> Result<Vec<Arc<Segment>>> {
        let mut damaged = Vec::new();
        let segments = self.read_segments();
        segments.small.visit(id, visit);
        for segment in segments.searched.iter().rev() {
            let found = segment.visit(id, &mut |_, entry| {
                visit(Location { pack: segment.packs()[entry.pack as usize], entry });
            });
            match found {
                Err(error) if is_damage(&error) => {
                    self.damaged_page(segment, error);
                    damaged.push(segment.clone());
                }
                other => other?,
            }
        }
        drop(segments);
        self.read_rescued().places.visit(id, visit);
        Ok(damaged)
    }

    /// Every place: what this process has stored included, and where a page is damaged, what its packs say themselves.
    fn visit_all(&self, id: &ChunkId, visit: &mut dyn FnMut(Location)) -> Result<()> {
        if let Some(pending) = self.claims.shard(id).pending.get(id) {
            visit(*pending);
        }
        let found = Cell::new(false);
        let visit: &mut dyn FnMut(Location) = &mut |location| {
            found.set(true);
            visit(location);
        };
        let damaged = self.search(id, visit)?;
        for segment in damaged {
            if !self.read_rescued().segments.contains(&segment.name()) {
                // Whoever comes second waits for the lock, and finds the packs read.
                let mut rescued = self.rescued.write().unwrap_or_else(PoisonError::into_inner);
                if !rescued.segments.contains(&segment.name()) {
                    self.rescue(&mut rescued.places, segment.packs())?;
                    rescued.segments.insert(segment.name());
                }
            }
            self.read_rescued().places.visit(id, visit);
        }
        if !found.get() && self.use_ == Use::Read {
            self.visit_unnamed(id, visit)?;
        }
        Ok(())
    }

    /// What no segment names may be in a pack of a segment that is gone.
    fn visit_unnamed(&self, id: &ChunkId, visit: &mut dyn FnMut(Location)) -> Result<()> {
        if self.read_rescued().unnamed {
            // It was asked before.
            return Ok(());
        }
        let mut rescued = self.rescued.write().unwrap_or_else(PoisonError::into_inner);
        if !rescued.unnamed {
            let packs = self.unnamed_packs()?;
            if !packs.is_empty() {
                let reason =
                    format!("chunk {id} is in no index segment, and {} packs are in none", packs.len());
                let error = Error::new(ErrorKind::Corruption, reason)
                    .at(format!("{}/index", self.repository.store().label()));
                lock(&self.troubles).tell("index segments", "the packs' own indexes", &error);
            }
            self.rescue(&mut rescued.places, &packs)?;
            rescued.unnamed = true;
        }
        drop(rescued);
        self.read_rescued().places.visit(id, visit);
        Ok(())
    }

    fn named_packs(&self) -> HashSet<ObjectName> {
        self.read_segments().all.iter().flat_map(|segment| segment.packs().iter().copied()).collect()
    }

    /// Packs that no segment names.
    fn unnamed_packs(&self) -> Result<Vec<ObjectName>> {
        let named = self.named_packs();
        let mut packs = open::all_packs(&self.repository)?;
        packs.retain(|pack| !named.contains(pack));
        Ok(packs)
    }

    /// Reads packs' own indexes.
    fn rescue(&self, places: &mut Places, packs: &[ObjectName]) -> Result<()> {
        let damaged = open::read_packs(&self.repository, packs, places)?;
        let mut troubles = lock(&self.troubles);
        for (_, error) in damaged {
            troubles.tell("the packs' own indexes", "those that can be read", &error);
        }
        Ok(())
    }

    fn damaged_page(&self, segment: &Segment, error: Error) {
        let mut troubles = lock(&self.troubles);
        if !troubles.segments.iter().any(|(name, _)| *name == segment.name()) {
            troubles.tell(
                "all pages of the index",
                "the pages that are whole, and the packs' own indexes",
                &error,
            );
            troubles.segments.push((segment.name(), error));
        }
    }

    fn read_rescued(&self) -> RwLockReadGuard<'_, Rescued> {
        self.rescued.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_segments(&self) -> RwLockReadGuard<'_, Segments> {
        // What a panicking writer leaves is whole: it only adds.
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Troubles {
    fn tell(&mut self, wanted: &str, used: &str, error: &Error) {
        self.degradations.push(Degradation {
            about: "index".into(),
            wanted: wanted.into(),
            used: used.into(),
            reason: error.to_string(),
            path: error.record().path,
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn doomed(repository: &Repository) -> Result<HashSet<ObjectName>> {
    let mut packs = HashSet::new();
    for list in doom::list(repository)? {
        packs.extend(list.pack_names()?);
    }
    Ok(packs)
}

fn damaged(repository: &Repository) -> Result<HashMap<ChunkId, Vec<ObjectName>>> {
    let mut damaged: HashMap<ChunkId, Vec<ObjectName>> = HashMap::new();
    for chunk in crate::notes::damaged(repository)? {
        let pack = chunk.pack.parse().map_err(|_| {
            Error::new(ErrorKind::Corruption, format!("a note of damage names the pack {:?}", chunk.pack))
        })?;
        damaged.entry(chunk.id).or_default().push(pack);
    }
    Ok(damaged)
}
