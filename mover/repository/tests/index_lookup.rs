//! The index as sessions see it: against a map, with several workers, and with each of its objects damaged.

mod format_support;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use format_support::*;
use mover_model::{ChunkId, ErrorKind, Result};
use mover_repository::format::BLOCK;
use mover_repository::format::entry::Entry;
use mover_repository::format::pack::{PackHeader, encode_header, encode_tail, pack_key};
use mover_repository::format::segment::{segment_key, write_segment};
use mover_repository::index::doom::{self, DoomList};
use mover_repository::index::{Claim, Index, Location};
use mover_repository::notes::{DamagedChunk, put_damaged};
use mover_repository::store::{Key, Listed, Object, Put, Store, Upload};
use mover_repository::{InitOptions, ObjectName, Repository, Secret};
use proptest::prelude::*;

fn repository() -> (Arc<MemoryStore>, Arc<Repository>) {
    let store = Arc::new(MemoryStore::default());
    let repository = Repository::init(store.clone(), &InitOptions::default(), &Secret::None).unwrap();
    (store, Arc::new(repository))
}

fn places(pack: ObjectName, ids: impl IntoIterator<Item = ChunkId>) -> Vec<Location> {
    let entry = |(n, id)| Location { pack, entry: entry(id, 0, 4096 + n * 10, 10) };
    (0u64..).zip(ids).map(entry).collect()
}

fn ids(range: std::ops::Range<u64>) -> Vec<ChunkId> {
    range.map(|n| id(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n)).collect()
}

fn same(a: &Location, b: &Location) -> bool {
    a.pack == b.pack && Entry { pack: 0, ..a.entry } == Entry { pack: 0, ..b.entry }
}

/// A pack whose records are nothing, with its own index.
fn put_pack(repository: &Repository, pack: ObjectName, locations: &[Location]) {
    let header = PackHeader { repository: repository.id(), name: pack, seed: [1; 32] };
    let entries: Vec<Entry> = locations.iter().map(|location| location.entry).collect();
    let mut bytes = encode_header(repository.keys(), &header);
    let end = entries.iter().map(Entry::end).max().unwrap_or(BLOCK).next_multiple_of(BLOCK);
    bytes.resize(end as usize, 0);
    bytes.extend(encode_tail(repository.keys(), &header, &entries, end));
    repository.store().put(&pack_key(pack), &bytes).unwrap();
}

fn put_segment(repository: &Repository, name: ObjectName, superseded: &[ObjectName], locations: &[Location]) {
    let mut locations = locations.to_vec();
    locations.sort_by_key(|location| location.entry.id);
    let pack = locations[0].pack;
    let mut entries = locations.iter().map(|location| Ok(Entry { pack: 0, ..location.entry }));
    let (store, keys) = (repository.store(), repository.keys());
    write_segment(store, keys, repository.id(), name, &[pack], superseded, &mut entries).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn lookups_find_what_a_map_finds(
        batches in prop::collection::vec(prop::collection::vec((0u64..4, 0u64..40), 1..200), 1..8),
    ) {
        let (_, repository) = repository();
        let writer = Index::open(&repository).unwrap();
        let mut oracle: BTreeMap<ChunkId, Vec<Location>> = BTreeMap::new();
        for (number, batch) in (1u8..).zip(&batches) {
            // Several packs to a segment, ids twice in one and in several.
            let locations: Vec<Location> = (0..).zip(batch).map(|(n, (prefix, rest))| Location {
                pack: ObjectName([number, (n % 3) as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                entry: entry(id(*prefix, *rest), 0, 4096 + n * 10, 10),
            }).collect();
            let mut packs: Vec<ObjectName> = locations.iter().map(|location| location.pack).collect();
            packs.sort();
            packs.dedup();
            for location in &locations {
                let known = writer.claim(&location.entry.id).unwrap() == Claim::Known;
                prop_assert_eq!(known, oracle.contains_key(&location.entry.id));
                oracle.entry(location.entry.id).or_default().push(*location);
            }
            writer.add_pending(&locations);
            for location in &locations {
                prop_assert!(writer.find(&location.entry.id).unwrap().is_some());
            }
            writer.put_segment(&packs, locations).unwrap();
        }
        for index in [&writer, &Index::open(&repository).unwrap(), &Index::open_for_reading(&repository).unwrap()] {
            prop_assert_eq!(index.entries(), batches.iter().map(Vec::len).sum::<usize>() as u64);
            prop_assert!(index.degradations().is_empty());
            for (prefix, rest) in (0..5).flat_map(|prefix| (0..41).map(move |rest| (prefix, rest))) {
                let id = id(prefix, rest);
                let expected = oracle.get(&id).cloned().unwrap_or_default();
                let all = index.find_all(&id).unwrap();
                prop_assert_eq!(all.len(), expected.len());
                prop_assert!(expected.iter().all(|place| all.iter().any(|other| same(place, other))));
                let one = index.find(&id).unwrap();
                prop_assert_eq!(one.is_some(), !expected.is_empty());
                prop_assert!(one.is_none_or(|place| expected.iter().any(|other| same(&place, other))));
            }
        }
    }
}

#[test]
fn of_many_workers_exactly_one_stores_a_chunk_whatever_is_put_meanwhile() {
    let (_, repository) = repository();
    let index = Index::open(&repository).unwrap();
    let all = ids(0..20_000);
    let stored: Mutex<HashMap<ChunkId, u32>> = Mutex::default();
    let packs = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut mine = Vec::new();
                let put = |mine: &mut Vec<ChunkId>| {
                    let number = packs.fetch_add(1, Ordering::Relaxed);
                    let mut name = [9; 16];
                    name[..8].copy_from_slice(&number.to_le_bytes());
                    let locations = places(ObjectName(name), mine.drain(..));
                    index.add_pending(&locations);
                    index.put_segment(&[ObjectName(name)], locations).unwrap();
                };
                for id in &all {
                    if index.claim(id).unwrap() == Claim::Mine {
                        *stored.lock().unwrap().entry(*id).or_default() += 1;
                        mine.push(*id);
                        if mine.len() == 100 {
                            put(&mut mine);
                        }
                    }
                }
                put(&mut mine);
            });
        }
    });
    let stored = stored.into_inner().unwrap();
    assert!(stored.len() == all.len() && stored.values().all(|&times| times == 1));
    assert_eq!(index.entries(), all.len() as u64);
    for id in &all {
        assert_eq!(index.find_all(id).unwrap().len(), 1);
    }
}

#[test]
fn a_large_backup_leaves_two_bytes_a_chunk_behind() {
    let (_, repository) = repository();
    let index = Index::open(&repository).unwrap();
    let (empty, batch) = (index.memory_bytes(), 50_000u64);
    let mut sizes = Vec::new();
    for number in 0..4u64 {
        let ids = ids(number * batch..(number + 1) * batch);
        ids.iter().for_each(|id| assert_eq!(index.claim(id).unwrap(), Claim::Mine));
        let locations = places(name(number as u8 + 1), ids);
        index.add_pending(&locations);
        index.put_segment(&[name(number as u8 + 1)], locations).unwrap();
        sizes.push(index.memory_bytes() - empty);
    }
    // Claims and pending places are forgotten with their batch.
    let per_chunk = (sizes[3] - sizes[0]) as f64 / (3 * batch) as f64;
    assert!(per_chunk < 2.3, "{per_chunk} bytes a chunk: {sizes:?}");
}

#[test]
fn doomed_packs_and_damaged_chunks_are_absent_for_writers_and_last_for_readers() {
    let (_, repository) = repository();
    let all = ids(0..10);
    let index = Index::open(&repository).unwrap();
    for pack in [1, 2] {
        index.put_segment(&[name(pack)], places(name(pack), all[..6].to_vec())).unwrap();
    }
    index.put_segment(&[name(3)], places(name(3), all[6..].to_vec())).unwrap();

    let mark = SystemTime::UNIX_EPOCH + Duration::new(1_790_000_000, 123_456_789);
    doom::put(&repository, &DoomList::new(name(50), mark, &[name(1), name(3)])).unwrap();
    let note =
        |n: usize, pack: u8| DamagedChunk { id: all[n], pack: name(pack).to_string(), reason: "x".into() };
    put_damaged(&repository, &[note(0, 2), note(1, 1), note(2, 9)]).unwrap();

    for index in [Index::open(&repository).unwrap(), Index::open_for_reading(&repository).unwrap()] {
        assert_eq!(index.doomed().len(), 2);
        let pack = |n: usize| index.find(&all[n]).unwrap().unwrap().pack;
        // Chunk 0 is doomed in one pack and damaged in the other: any is better than none.
        assert!([name(1), name(2)].contains(&pack(0)));
        (1..6).for_each(|n| assert_eq!(pack(n), name(2), "{n}"));
        (6..10).for_each(|n| assert_eq!(pack(n), name(3), "{n}"));
        assert_eq!(
            index.find_all(&all[1]).unwrap().iter().map(|l| l.pack).collect::<Vec<_>>(),
            [name(2), name(1)]
        );
        let claims: Vec<bool> = all.iter().map(|id| index.claim(id).unwrap() == Claim::Mine).collect();
        assert_eq!(claims, [true, false, false, false, false, false, true, true, true, true]);
        // A second worker does not store it again.
        assert_eq!(index.claim(&all[0]).unwrap(), Claim::Known);
    }
}

#[test]
fn doom_lists_read_as_they_were_put() {
    let (store, repository) = repository();
    let mark = SystemTime::UNIX_EPOCH + Duration::new(1_790_000_000, 123_456_789);
    let first = DoomList::new(name(51), mark, &[name(1)]);
    let second = DoomList::new(name(50), mark + Duration::from_secs(1), &[]);
    assert_eq!((first.mark(), &first.marked[..4]), (mark, "2026"));
    for list in [&second, &first] {
        doom::put(&repository, list).unwrap();
    }
    assert_eq!(doom::put(&repository, &first).unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(doom::list(&repository).unwrap(), [first.clone(), second.clone()]);
    assert_eq!(doom::get(&repository, name(50)).unwrap(), Some(second.clone()));
    doom::delete(&repository, &second).unwrap();
    assert_eq!(doom::get(&repository, name(50)).unwrap(), None);

    // Without it a writer cannot know what it may rely on; a reader reads what there is.
    let mut bytes = store.bytes(&doom::key(name(51)));
    bytes[70] ^= 1;
    store.replace(&doom::key(name(51)), bytes);
    assert_eq!(Index::open(&repository).err().unwrap().kind(), ErrorKind::Corruption);
    let reader = Index::open_for_reading(&repository).unwrap();
    assert!(reader.degradations()[0].path.as_ref().unwrap().contains("doom/"), "{:?}", reader.degradations());
}

#[test]
fn a_superseded_segment_counts_only_where_its_successor_cannot_be_read() {
    let (store, repository) = repository();
    let (old, new) = (places(name(1), ids(0..100)), places(name(2), ids(50..150)));
    put_segment(&repository, name(20), &[], &old);
    put_segment(&repository, name(21), &[name(20)], &new);
    let opened = || Index::open(&repository).unwrap();
    assert_eq!((opened().entries(), opened().segments().len()), (100, 1));
    assert!(opened().find(&ids(0..1)[0]).unwrap().is_none());

    // The old one rots while it waits to be deleted: nobody needs it.
    let (whole, key) = (store.bytes(&segment_key(name(20))), segment_key(name(20)));
    store.replace(&key, whole[..4096].to_vec());
    assert!(opened().degradations().is_empty() && opened().entries() == 100);
    store.replace(&key, whole);

    // The new one rots: the old one is of use again.
    let key = segment_key(name(21));
    let mut bytes = store.bytes(&key);
    bytes[5] ^= 1;
    store.replace(&key, bytes);
    assert!(opened().find(&ids(0..1)[0]).unwrap().is_some());
    assert_eq!(opened().damaged_segments()[0].0, name(21));
    assert_eq!(opened().degradations()[0].about, "index");
}

/// A repository of two packs and two segments, one of them small.
fn two_segments() -> (Arc<MemoryStore>, Arc<Repository>, [Vec<Location>; 2]) {
    let (store, repository) = repository();
    let places = [places(name(1), ids(0..5000)), places(name(2), ids(5000..5100))];
    for (locations, number) in places.iter().zip([1, 2]) {
        put_pack(&repository, name(number), locations);
        put_segment(&repository, name(20 + number), &[], locations);
    }
    (store, repository, places)
}

#[test]
fn a_damaged_segment_is_left_out_by_writers_and_replaced_by_packs_for_readers() {
    for lost in [0usize, 1] {
        let (store, repository, places) = two_segments();
        let key = segment_key(name(21 + lost as u8));
        let mut bytes = store.bytes(&key);
        let length = bytes.len();
        bytes[length - 100] ^= 1;
        store.replace(&key, bytes);

        let writer = Index::open(&repository).unwrap();
        assert_eq!(writer.damaged_segments()[0].0, name(21 + lost as u8));
        let degradations = writer.degradations();
        assert!(degradations.len() == 1 && degradations[0].path.as_ref().unwrap().contains(key.as_str()));
        assert_eq!(writer.claim(&places[lost][0].entry.id).unwrap(), Claim::Mine);
        assert_eq!(writer.claim(&places[1 - lost][0].entry.id).unwrap(), Claim::Known);

        let reader = Index::open_for_reading(&repository).unwrap();
        for location in places.iter().flatten() {
            assert!(same(&reader.find(&location.entry.id).unwrap().unwrap(), location));
        }
        assert_eq!(reader.degradations().len(), 1);

        // The pack's own index is damaged too: its chunks are not found, and both are told.
        let key = pack_key(name(1 + lost as u8));
        let mut bytes = store.bytes(&key);
        bytes[200] ^= 1;
        store.replace(&key, bytes);
        let reader = Index::open_for_reading(&repository).unwrap();
        assert!(reader.find(&places[lost][0].entry.id).unwrap().is_none());
        assert!(reader.find(&places[1 - lost][0].entry.id).unwrap().is_some());
        assert_eq!(reader.degradations().len(), 2, "{:?}", reader.degradations());
    }
}

#[test]
fn a_damaged_page_is_absent_for_writers_and_read_from_its_packs_by_readers() {
    for damaged in [0usize, 1] {
        let (store, repository, places) = two_segments();
        let key = segment_key(name(21 + damaged as u8));
        let mut bytes = store.bytes(&key);
        bytes[4096 + 50] ^= 1;
        store.replace(&key, bytes);
        let mut lost: Vec<ChunkId> = places[damaged].iter().map(|location| location.entry.id).collect();
        lost.sort();
        lost.truncate(56);

        let writer = Index::open(&repository).unwrap();
        for location in places.iter().flatten() {
            let expected = if lost.contains(&location.entry.id) { Claim::Mine } else { Claim::Known };
            assert_eq!(writer.claim(&location.entry.id).unwrap(), expected);
        }
        assert_eq!(writer.damaged_segments().len(), 1);
        assert_eq!(writer.degradations().len(), 1, "told once, not for each lookup");
        assert!(writer.degradations()[0].reason.contains("page 0"), "{:?}", writer.degradations());

        let reader = Index::open_for_reading(&repository).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for location in places.iter().flatten() {
                        assert!(same(&reader.find(&location.entry.id).unwrap().unwrap(), location));
                        assert_eq!(reader.find_all(&location.entry.id).unwrap().len(), 1);
                    }
                });
            }
        });
        assert_eq!(reader.degradations().len(), 1);
    }
}

#[test]
fn thousands_of_small_segments_are_opened_and_searched() {
    let (_, repository) = repository();
    for number in 0..1500u64 {
        let mut name = [30; 16];
        name[..8].copy_from_slice(&number.to_le_bytes());
        put_segment(
            &repository,
            ObjectName(name),
            &[],
            &places(ObjectName(name), ids(number * 60..number * 60 + 60)),
        );
    }
    let index = Index::open(&repository).unwrap();
    assert_eq!((index.entries(), index.segments().len()), (90_000, 1500));
    ids(0..90_000).iter().step_by(37).for_each(|id| assert_eq!(index.find_all(id).unwrap().len(), 1));
    ids(90_000..91_000).iter().for_each(|id| assert!(index.find(id).unwrap().is_none()));
    assert!(index.memory_bytes() < 32 << 20, "{}", index.memory_bytes());
}

/// A store on which a gc finishes between this session's listing of the index and its reading it.
struct Racing {
    inner: Arc<MemoryStore>,
    repository: Mutex<Option<Arc<Repository>>>,
    races: AtomicUsize,
}

impl Store for Racing {
    fn label(&self) -> String {
        self.inner.label()
    }

    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.inner.put(key, bytes)
    }

    fn begin(&self, key: &Key, expected: u64) -> Result<Box<dyn Upload>> {
        self.inner.begin(key, expected)
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        self.inner.open(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let listed = self.inner.list(prefix)?;
        let repository = self.repository.lock().unwrap().clone();
        if let Some(repository) = repository.filter(|_| prefix == "index/")
            && self.races.load(Ordering::Relaxed) > 0
        {
            let race = self.races.fetch_sub(1, Ordering::Relaxed);
            let mut next = [70; 16];
            next[..8].copy_from_slice(&(race as u64).to_le_bytes());
            let old: Vec<ObjectName> = listed.iter().map(|o| o.key.last().parse().unwrap()).collect();
            put_segment(&repository, ObjectName(next), &old, &places(name(1), ids(0..5000)));
            listed.iter().for_each(|object| self.inner.delete(&object.key).unwrap());
        }
        Ok(listed)
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_folders(prefix)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }
}

#[test]
fn segments_that_a_gc_replaces_while_they_are_opened_are_found_in_their_successor() {
    for (races, opens) in [(1, true), (5, true), (1000, false)] {
        let (inner, _) = repository();
        let racing = Racing { inner, repository: Mutex::default(), races: AtomicUsize::new(races) };
        let racing = Arc::new(racing);
        let repository = Arc::new(Repository::open(racing.clone(), &Secret::None).unwrap());
        put_segment(&repository, name(60), &[], &places(name(1), ids(0..5000)));
        *racing.repository.lock().unwrap() = Some(repository.clone());
        match Index::open(&repository) {
            Ok(index) => {
                assert!(opens && index.entries() == 5000 && index.segments().len() == 1);
                assert!(index.find(&ids(7..8)[0]).unwrap().is_some());
            }
            Err(error) => assert!(!opens && error.kind() == ErrorKind::Busy, "{error}"),
        }
        *racing.repository.lock().unwrap() = None;
    }
}

#[test]
fn an_entry_of_a_pack_that_is_not_named_is_refused() {
    let (store, repository) = repository();
    let index = Index::open(&repository).unwrap();
    let error = index.put_segment(&[name(1)], places(name(2), ids(0..3))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert_eq!(index.put_segment(&[name(1)], Vec::new()).unwrap(), 0);
    assert!(store.keys("index/").is_empty());
}
