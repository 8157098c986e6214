//! Index segments against a map as an oracle; damage of every bit; the memory of a large one.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod format_support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use format_support::*;
use mover_model::{ChunkId, ErrorKind, Result};
use mover_repository::ObjectName;
use mover_repository::format::entry::Entry;
use mover_repository::format::segment::{PAGE_ENTRIES, Segment, segment_key, write_segment};
use mover_repository::store::{LocalStore, Store};
use proptest::prelude::*;

const NAME: ObjectName = ObjectName([6; 16]);

fn packs() -> Vec<ObjectName> {
    (0..4).map(name).collect()
}

fn write(store: &dyn Store, entries: &[Entry]) -> u64 {
    let mut items = entries.iter().map(|entry| Ok(*entry));
    write_segment(store, &plain_keys(), REPOSITORY, NAME, &packs(), &[name(9)], &mut items).unwrap()
}

fn open(store: &dyn Store) -> Result<Option<Segment>> {
    Segment::open(store, &plain_keys(), REPOSITORY, NAME)
}

/// Sorted entries of these ids; each has an offset of its own.
fn entries_of(mut ids: Vec<ChunkId>) -> Vec<Entry> {
    ids.sort();
    ids.iter().zip(0u64..).map(|(id, n)| entry(*id, (n % 4) as u32, 4096 + n * 10, 10)).collect()
}

fn numbered(count: u64) -> Vec<Entry> {
    entries_of((0..count).map(|n| id(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n)).collect())
}

/// Few prefixes and few prints, so that pages share both and equal ids run over the ends of pages; among uniform ones.
fn any_id() -> impl Strategy<Value = ChunkId> {
    let prefix = prop_oneof![3 => 0u64..3, 1 => Just(u64::MAX), 2 => any::<u64>()];
    let rest = prop_oneof![3 => 0u64..3, 1 => (0u64..4).prop_map(|n| n << 32), 2 => any::<u64>()];
    (prefix, rest).prop_map(|(prefix, rest)| id(prefix, rest))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_lookup_finds_what_a_map_finds(
        ids in prop::collection::vec((any_id(), prop_oneof![9 => Just(1usize), 1 => 1usize..150]), 0..150),
        others in prop::collection::vec(any_id(), 0..50),
        closed: bool,
    ) {
        let ids: Vec<ChunkId> = ids.into_iter().flat_map(|(id, times)| std::iter::repeat_n(id, times)).collect();
        let entries = entries_of(ids.clone());
        let mut oracle: BTreeMap<ChunkId, Vec<(u64, Entry)>> = BTreeMap::new();
        for (ordinal, entry) in (0..).zip(&entries) {
            oracle.entry(entry.id).or_default().push((ordinal, *entry));
        }
        let store = Arc::new(MemoryStore::default());
        let bytes = write(&*store, &entries);
        prop_assert_eq!(bytes, store.bytes(&segment_key(NAME)).len() as u64);
        let mut segment = open(&*store).unwrap().unwrap();
        if closed {
            segment.close(store.clone());
        }
        prop_assert_eq!(segment.entries(), entries.len() as u64);
        prop_assert_eq!((segment.packs(), segment.superseded()), (&packs()[..], &[name(9)][..]));
        for id in ids.iter().chain(&others) {
            let mut found = Vec::new();
            segment.find(id, &mut found).unwrap();
            prop_assert_eq!(found, oracle.get(id).cloned().unwrap_or_default(), "{}", id);
        }
        let all: Vec<(u64, Entry)> = segment.iter().map(Result::unwrap).collect();
        prop_assert_eq!(all, (0..).zip(entries).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_there_costs_one_read_and_what_is_not_nearly_none() {
    let store = MemoryStore::default();
    let entries = numbered(10_000);
    write(&store, &entries);
    let segment = open(&store).unwrap().unwrap();
    let reads = || store.reads.swap(0, Ordering::Relaxed);
    reads();
    let mut found = Vec::new();
    entries.iter().for_each(|entry| segment.find(&entry.id, &mut found).unwrap());
    // A page more for the few whose print another page that may have them shows as well.
    let there = reads();
    assert!(found.len() == entries.len() && (10_000..10_100).contains(&there), "{there} reads");
    for n in 0..10_000u64 {
        let hash = blake3::hash(&n.to_le_bytes());
        segment.find(&ChunkId(*hash.as_bytes()), &mut found).unwrap();
    }
    let absent = reads();
    assert!(found.len() == entries.len() && absent < 100, "{absent} reads");
}

#[test]
fn every_flipped_bit_is_refused_or_found_in_its_page() {
    let (store, key) = (MemoryStore::default(), segment_key(NAME));
    let entries = numbered(60);
    write(&store, &entries);
    let bytes = store.bytes(&key);
    assert_eq!(bytes.len(), 5 * 4096);
    let pages = 4096..3 * 4096;
    for at in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        store.replace(&key, bytes);
        match open(&store) {
            Err(error) => {
                let kinds = [ErrorKind::Corruption, ErrorKind::Unsupported, ErrorKind::WrongIdentity];
                assert!(!pages.contains(&(at / 8)) && kinds.contains(&error.kind()), "bit {at}: {error}");
                assert!(error.to_string().contains(key.as_str()), "{error}");
            }
            Ok(segment) => {
                let (segment, page) = (segment.unwrap(), at / 8 / 4096 - 1);
                assert!(pages.contains(&(at / 8)), "bit {at} goes unnoticed");
                let (whole, damaged): (Vec<_>, Vec<_>) = segment.iter().partition(Result::is_ok);
                assert_eq!(whole.len(), if page == 0 { 4 } else { PAGE_ENTRIES }, "bit {at}");
                let error = damaged[0].as_ref().unwrap_err();
                assert!(damaged.len() == 1 && error.kind() == ErrorKind::Corruption, "bit {at}: {error}");
                assert!(error.to_string().contains(&format!("page {page} of an index segment")), "{error}");
                assert_eq!(error.at_offset(), Some((page as u64 + 1) * 4096));
                let mut found = Vec::new();
                let (lost, kept) = if page == 0 { (0, 59) } else { (59, 0) };
                assert!(segment.find(&entries[lost].id, &mut found).is_err() && found.is_empty(), "bit {at}");
                assert!(segment.find(&entries[kept].id, &mut found).is_ok() && found.len() == 1, "bit {at}");
            }
        }
    }
}

#[test]
fn every_truncation_and_every_longer_one_is_refused() {
    let (store, key) = (MemoryStore::default(), segment_key(NAME));
    write(&store, &numbered(60));
    let bytes = store.bytes(&key);
    for length in (0..bytes.len()).chain([bytes.len() + 1, bytes.len() + 4096, bytes.len() + 8192]) {
        let mut bytes = bytes.clone();
        bytes.resize(length, 0);
        store.replace(&key, bytes);
        let error = open(&store).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{length}: {error}");
    }
}

#[test]
fn foreign_renamed_newer_and_moved_parts_are_told_apart() {
    let (store, key) = (MemoryStore::default(), segment_key(NAME));
    assert!(open(&store).unwrap().is_none());
    write(&store, &numbered(200));
    let bytes = store.bytes(&key);
    let kind =
        |repository, name| Segment::open(&store, &plain_keys(), repository, name).err().unwrap().kind();
    assert_eq!(kind([9; 16], NAME), ErrorKind::WrongIdentity);
    store.replace(&segment_key(name(7)), bytes.clone());
    assert_eq!(kind(REPOSITORY, name(7)), ErrorKind::Corruption);
    // A flipped bit in the version is damage, not a newer version: that one would be authentic.
    let mut flipped = bytes.clone();
    flipped[8] = 2;
    store.replace(&key, flipped);
    assert_eq!(kind(REPOSITORY, NAME), ErrorKind::Corruption);

    // Two pages change places: each is authentic, neither is where it belongs.
    let mut swapped = bytes.clone();
    swapped.copy_within(8192..12288, 4096);
    swapped[8192..12288].copy_from_slice(&bytes[4096..8192]);
    store.replace(&key, swapped);
    let segment = open(&store).unwrap().unwrap();
    assert_eq!(segment.iter().filter(Result::is_err).count(), 2);
    assert_eq!(segment.iter().filter(Result::is_ok).count(), 200 - 2 * PAGE_ENTRIES);
}

#[test]
fn a_writer_refuses_what_would_not_be_found() {
    let store = MemoryStore::default();
    let refused = |entries: &[Entry], what: &str| {
        let mut items = entries.iter().map(|entry| Ok(*entry));
        let error =
            write_segment(&store, &plain_keys(), REPOSITORY, NAME, &packs(), &[], &mut items).unwrap_err();
        assert!(error.kind() == ErrorKind::Internal && error.to_string().contains(what), "{error}");
        assert!(store.keys("").is_empty());
    };
    refused(&[entry(id(2, 0), 0, 4096, 1), entry(id(1, 0), 0, 4096, 1)], "order");
    refused(&[entry(id(2, 0), 4, 4096, 1)], "does not name");
    write(&store, &[]);
    let mut none = std::iter::empty();
    let again = write_segment(&store, &plain_keys(), REPOSITORY, NAME, &packs(), &[], &mut none).unwrap_err();
    assert!(again.to_string().contains("there already"), "{again}");
}

#[test]
fn golden_bytes_of_version_1() {
    let store = MemoryStore::default();
    write(&store, &numbered(3));
    golden("segment-v1.bin", &store.bytes(&segment_key(NAME)));
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A segment of `count` chunks on a disk: its memory, and how long lookups take.
fn large(count: u64) {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(folder.path().join("repository"));
    // Ids in order and uniformly distributed, made on the fly: nothing here grows with their number.
    let step = u64::MAX / count;
    let id_of = move |n: u64| id(n * step + n % 1000, n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut items = (0..count).map(|n| Ok(entry(id_of(n), (n % 4) as u32, 4096 + n * 128, 100)));
    let begun = Instant::now();
    let bytes = write_segment(&store, &plain_keys(), REPOSITORY, NAME, &packs(), &[], &mut items).unwrap();
    let written = begun.elapsed();

    let (resident, begun) = (resident_bytes(), Instant::now());
    let segment = open(&store).unwrap().unwrap();
    let (opened, resident) = (begun.elapsed(), resident_bytes().saturating_sub(resident));
    let per_chunk = segment.memory_bytes() as f64 / count as f64;
    let lookups = 200_000.min(count);
    let mut found = Vec::with_capacity(lookups as usize);
    let time = |ids: &mut dyn FnMut(u64) -> ChunkId, found: &mut Vec<(u64, Entry)>| {
        let begun = Instant::now();
        (0..lookups).for_each(|n| segment.find(&ids(n), found).unwrap());
        begun.elapsed().as_nanos() / u128::from(lookups)
    };
    let random = |n: u64| n.wrapping_mul(0xd134_2543_de82_ef95) % count;
    time(&mut |n| id_of(random(n)), &mut found);
    found.clear();
    let there_ns = time(&mut |n| id_of(random(n)), &mut found);
    assert_eq!(found.len() as u64, lookups);
    let absent_ns = time(&mut |n| id(id_of(random(n)).prefix() ^ 0xffff, n), &mut found);
    assert!(found.len() as u64 <= lookups + lookups / 1000);
    eprintln!(
        "{count} chunks: {bytes} bytes in {written:?}; opened in {opened:?}, {per_chunk:.2} bytes a chunk, resident \
         {:.2}; a lookup takes {there_ns} ns where there is one, {absent_ns} ns where not",
        resident as f64 / count as f64
    );
    assert!(per_chunk <= 2.2, "{per_chunk}");
    // What else the process allocates meanwhile does not count beside a large one.
    assert!(resident as u64 <= count * 4 + (8 << 20), "{resident}");
}

#[test]
fn a_segment_takes_two_bytes_of_memory_a_chunk() {
    large(200 << 10);
}

#[test]
fn twenty_million_chunks_take_two_bytes_of_memory_each() {
    if std::env::var_os("MOVER_LARGE").is_none_or(|value| value != "1") {
        eprintln!("skipped: writes 1.5 GB; MOVER_LARGE=1 runs it");
        return;
    }
    large(20_000_000);
}
