//! Trees read back: chunk by chunk, as leaves, as extents, and as the difference of two, against plain models.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod disks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disks::{Content, Fill, Home, disk, hole, options};
use mover_engine::pattern::SplitMix;
use mover_model::{ChunkId, ErrorKind, Extent, ExtentKind, ExtentList};
use mover_repository::format::node::{FANOUT, Root};
use mover_repository::index::Index;
use mover_repository::keys::ChunkKind;
use mover_repository::read::Chunks;
use mover_repository::tree::{Base, DataExtents, IdFile, Leaves, Nodes, build, diff};
use mover_repository::write::Writer;
use mover_repository::{Compression, Secret};
use proptest::prelude::*;

const CHUNK: u32 = 16 << 10;
const SIZE: u64 = CHUNK as u64;

fn nodes(home: &Home) -> Nodes {
    Nodes::new(home.chunks())
}

/// A disk whose chunks are told apart by a number each: content costs nothing to make and to compare.
fn numbered(size: u64, chunks: &BTreeMap<u64, u64>) -> Content {
    let bytes = |number: u64| (size - number * SIZE).min(SIZE) as usize;
    let content = |number: u64, value: u64| {
        let mut chunk = vec![0u8; bytes(number)];
        let length = chunk.len().min(8);
        chunk[..length].copy_from_slice(&(value + 1).to_le_bytes()[..length]);
        chunk
    };
    chunks.iter().map(|(&number, &value)| (number, content(number, value))).collect()
}

fn expected_extents(size: u64, chunks: impl Iterator<Item = u64>) -> Vec<Extent> {
    let mut list = ExtentList::new();
    for number in chunks {
        list.push(Extent::data(number * SIZE, (size - number * SIZE).min(SIZE)));
    }
    list.fill_gaps(size, ExtentKind::Hole).iter().collect()
}

fn expected_diff(old: (u64, &Content), new: (u64, &Content)) -> Vec<Extent> {
    let mut list = ExtentList::new();
    for number in 0..new.0.div_ceil(SIZE) {
        let (before, after) = (old.1.get(&number), new.1.get(&number));
        if before != after {
            let kind = if after.is_some() { ExtentKind::Data } else { ExtentKind::Hole };
            list.push(Extent::new(number * SIZE, (new.0 - number * SIZE).min(SIZE), kind));
        }
    }
    list.iter().collect()
}

/// Sizes of one level and of two, whole chunks and not.
fn sizes() -> impl Strategy<Value = u64> {
    let chunks = prop_oneof![1u64..40, 200u64..320, 60_000u64..70_000];
    (chunks, prop_oneof![Just(0u64), 1u64..SIZE]).prop_map(|(chunks, odd)| chunks * SIZE - odd)
}

/// Likewise, and of three levels.
fn base_sizes() -> impl Strategy<Value = u64> {
    let edges = (1u64..400).prop_map(|leaf| leaf * FANOUT as u64);
    let chunks = prop_oneof![1u64..40, 200u64..1100, edges, 60_000u64..70_000, 140_000u64..141_000];
    (chunks, prop_oneof![Just(0u64), 1u64..SIZE]).prop_map(|(chunks, odd)| chunks * SIZE - odd)
}

fn chunk_sets(size: u64) -> impl Strategy<Value = BTreeMap<u64, u64>> {
    let last = size.div_ceil(SIZE);
    let run = (0..last, 1u64..30, 0u64..3);
    proptest::collection::vec(run, 0..8).prop_map(move |runs| {
        let each = runs.into_iter().flat_map(|(start, length, value)| {
            (start..(start + length).min(last)).map(move |number| (number, value * 1000 + number % 7))
        });
        each.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_says_what_was_put_in_it(
        (size, chunks) in sizes().prop_flat_map(|size| (Just(size), chunk_sets(size))),
        ranges in proptest::collection::vec((0u64..70_000, 1u64..600), 1..6),
    ) {
        let home = Home::local(&options(CHUNK, Compression::Lz4), &Secret::None);
        let content = numbered(size, &chunks);
        let (id, root) = home.store(size, &content);
        let nodes = nodes(&home);
        prop_assert_eq!(nodes.root(&id).unwrap(), root);
        let keys = home.repository.keys();
        let name = |number: u64| {
            content.get(&number).map_or(ChunkId::HOLE, |bytes| keys.chunk_id(ChunkKind::Data, bytes))
        };
        for (first, count) in ranges {
            let ids = nodes.chunk_ids(&root, first, count).unwrap();
            let expected: Vec<_> = (first..first + count).map(name).collect();
            prop_assert_eq!(ids, expected);
        }
        let extents: Vec<_> = DataExtents::new(&nodes, root).map(Result::unwrap).collect();
        prop_assert_eq!(extents, expected_extents(size, content.keys().copied()));
        let mut found = Vec::new();
        for leaf in Leaves::new(&nodes, root) {
            let (first, _, node) = leaf.unwrap();
            prop_assert!(first.is_multiple_of(FANOUT as u64) && !node.is_hole());
            let chunks = node.children.iter().enumerate().filter(|(_, child)| !child.is_hole());
            found.extend(chunks.map(|(at, child)| (first + at as u64, *child)));
        }
        let expected: Vec<_> = content.keys().map(|&number| (number, name(number))).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_difference_is_what_differs(
        (old_size, new_size, old, new) in (sizes(), sizes(), any::<bool>()).prop_flat_map(|(old, new, same)| {
            let new = if same { old } else { new };
            (Just(old), Just(new), chunk_sets(old), chunk_sets(new))
        }),
        shared in any::<bool>(),
    ) {
        let home = Home::local(&options(CHUNK, Compression::None), &Secret::None);
        // Two disks that share most, as a day's change leaves them, or two strangers.
        let mut new_chunks = new;
        if shared {
            let within = old.iter().filter(|(number, _)| **number < new_size.div_ceil(SIZE));
            within.for_each(|(number, value)| { new_chunks.entry(*number).or_insert(*value); });
        }
        let (before, after) = (numbered(old_size, &old), numbered(new_size, &new_chunks));
        let (_, old_root) = home.store(old_size, &before);
        let (_, new_root) = home.store(new_size, &after);
        let nodes = nodes(&home);
        let found: Vec<_> = diff(&nodes, &old_root, &new_root).unwrap().iter().collect();
        prop_assert_eq!(&found, &expected_diff((old_size, &before), (new_size, &after)));
        prop_assert!(diff(&nodes, &new_root, &new_root).unwrap().is_empty());
    }

    #[test]
    fn a_tree_made_from_another_is_what_one_made_from_nothing_is(
        (size, old, new, changed) in base_sizes().prop_flat_map(|size| {
            let last = size.div_ceil(SIZE);
            let runs = proptest::collection::vec((0..last, 1u64..700), 0..8);
            (Just(size), chunk_sets(size), chunk_sets(size), runs)
        }),
    ) {
        let home = Home::local(&options(CHUNK, Compression::None), &Secret::None);
        let last = size.div_ceil(SIZE);
        let is_changed = |number: u64| changed.iter().any(|&(start, length)| (start..start + length).contains(&number));
        // The naive way: the old disk's chunks where nothing changed, the new one's where something did.
        let mixed: BTreeMap<u64, u64> = old
            .iter()
            .filter(|(number, _)| !is_changed(**number))
            .chain(new.iter().filter(|(number, _)| is_changed(**number)))
            .map(|(&number, &value)| (number, value))
            .collect();
        let (before, after) = (numbered(size, &old), numbered(size, &mixed));
        let bytes = |content: &Content| content.values().map(|bytes| bytes.len() as u64).sum::<u64>();
        let (base, _) = home.store(size, &before);
        let mut list = ExtentList::new();
        for number in (0..last).filter(|&number| is_changed(number)) {
            list.push(Extent::data(number * SIZE, (size - number * SIZE).min(SIZE)));
        }
        let ids = IdFile::new().unwrap();
        let index = Arc::new(Index::open(&home.repository).unwrap());
        let writer = Writer::new(home.repository.clone(), index.clone()).unwrap();
        for (number, content) in after.iter().filter(|(number, _)| is_changed(**number)) {
            ids.set(*number, &[writer.put_data(0, content).unwrap()]).unwrap();
        }
        let nodes_of = Nodes::new(Arc::new(Chunks::new(home.repository.clone(), index)));
        let from = Base { root: &base, changed: &list, data_bytes: bytes(&before) };
        let (made, root, data_bytes) = build(&nodes_of, &mut &*writer, Some(from), &ids, size, CHUNK).unwrap();
        writer.finish().unwrap();
        let (expected, expected_root) = home.store(size, &after);
        prop_assert_eq!(made, expected);
        prop_assert_eq!(root, expected_root);
        prop_assert_eq!(data_bytes, bytes(&after));
        let nodes = nodes(&home);
        let found: Vec<_> = DataExtents::new(&nodes, root).map(Result::unwrap).collect();
        prop_assert_eq!(found, expected_extents(size, after.keys().copied()));
    }
}

#[test]
fn holes_and_shared_subtrees_cost_nothing_however_large() {
    let home = Home::local(&options(CHUNK, Compression::Lz4), &Secret::None);
    let size = 1u64 << 50;
    let end = size / SIZE;
    let far = numbered(size, &[(0, 1), (end / 2, 2), (end - 1, 3)].into());
    let (_, root) = home.store(size, &far);
    let mut changed = far.clone();
    changed.remove(&(end / 2));
    let (_, other) = home.store(size, &changed);
    let (_, empty) = home.store(size, &Content::new());
    let nodes = nodes(&home);
    let begin = Instant::now();
    let extents: Vec<_> = DataExtents::new(&nodes, root).map(Result::unwrap).collect();
    assert_eq!(extents.len(), 5);
    assert_eq!(extents, expected_extents(size, far.keys().copied()));
    assert_eq!(diff(&nodes, &root, &other).unwrap().iter().collect::<Vec<_>>(), [hole(end / 2 * SIZE, SIZE)]);
    assert_eq!(DataExtents::new(&nodes, empty).map(Result::unwrap).collect::<Vec<_>>(), [hole(0, size)]);
    assert_eq!(diff(&nodes, &empty, &root).unwrap().len(), 3);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn data_extents_come_before_all_of_a_full_disk_was_walked() {
    let home = Home::local(&options(CHUNK, Compression::Lz4), &Secret::None);
    let size = 3u64 << 30;
    let content = numbered(size, &(0..size / SIZE).map(|number| (number, number % 3)).collect());
    let (_, root) = home.store(size, &content);
    let nodes = nodes(&home);
    let extents: Vec<_> = DataExtents::new(&nodes, root).map(Result::unwrap).collect();
    assert_eq!(
        extents,
        [Extent::data(0, 1 << 30), Extent::data(1 << 30, 1 << 30), Extent::data(2 << 30, 1 << 30)]
    );
}

#[test]
fn trees_of_different_chunk_sizes_are_not_compared() {
    let home = Home::local(&options(CHUNK, Compression::Lz4), &Secret::None);
    let (_, root) = home.store(SIZE, &numbered(SIZE, &[(0, 1)].into()));
    let other = Root { chunk_size: 2 * CHUNK, ..root };
    let error = diff(&nodes(&home), &root, &other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}

#[test]
fn a_missing_node_is_corruption_that_names_it() {
    let home = Home::local(&options(CHUNK, Compression::Lz4), &Secret::None);
    let nodes = nodes(&home);
    let missing = ChunkId([7; 32]);
    let error = nodes.root(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption);
    assert!(error.message().contains(&missing.to_string()), "{error}");
    let root = Root { size: SIZE, chunk_size: CHUNK, level: 0, top: missing };
    assert!(nodes.chunk_ids(&root, 0, 1).is_err());
    let mut extents = DataExtents::new(&nodes, root);
    assert_eq!(extents.next().unwrap().unwrap_err().kind(), ErrorKind::Corruption);
    assert!(extents.next().is_none());
}

#[test]
fn nodes_are_read_by_many_threads_at_once() {
    let seed = 0x7ee5;
    eprintln!("seed {seed:#x}");
    let mut random = SplitMix::new(seed);
    let home = Home::local(&options(CHUNK, Compression::Lz4), &Secret::None);
    let size = 40 << 20;
    let content = disk(&mut random, Fill::Text, size, CHUNK, 30);
    let (_, root) = home.store(size, &content);
    let nodes = Arc::new(nodes(&home));
    std::thread::scope(|scope| {
        for at in 0..8u64 {
            let (nodes, content) = (&nodes, &content);
            scope.spawn(move || {
                for first in (at * 37 % 500..size / SIZE).step_by(97) {
                    let ids = nodes.chunk_ids(&root, first, 3).unwrap();
                    for (number, id) in (first..).zip(ids) {
                        assert_eq!(id.is_hole(), !content.contains_key(&number), "{number}");
                    }
                }
            });
        }
    });
}
