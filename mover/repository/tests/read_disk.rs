//! Disks read by the engine: every encoding, size and way, bit for bit; and what damage does.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod disks;
mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use disks::{Content, Fill, Home, backends, chunk, disk, flat, options, read_all};
use mover_engine::pattern::SplitMix;
use mover_engine::{Control, Settings};
use mover_model::{ChunkId, ErrorKind, Extent};
use mover_repository::format::pack::pack_key;
use mover_repository::index::Index;
use mover_repository::keys::ChunkKind;
use mover_repository::read::{BadChunk, ReadErrors};
use mover_repository::write::Writer;
use mover_repository::{Compression, InitOptions, Secret};
use support::MemoryStore;

const CHUNK: u32 = 64 << 10;

fn settings(backend: mover_engine::Backend) -> Settings {
    Settings { backend, block_size: 256 << 10, queue_depth: 16, bytes_in_flight: None, ..Settings::default() }
}

fn secrets() -> [Secret; 2] {
    [Secret::None, Secret::KeyFile(vec![7; 32])]
}

fn random(seed: u64) -> SplitMix {
    eprintln!("seed {seed:#x}");
    SplitMix::new(seed)
}

#[test]
fn every_encoding_and_size_comes_back_bit_for_bit() {
    let mut random = random(0xd15c);
    let compressions = [Compression::None, Compression::Lz4, Compression::Zstd(3)];
    for (compression, secret) in compressions.into_iter().flat_map(|c| secrets().map(|secret| (c, secret))) {
        let home = Home::local(&options(CHUNK, compression), &secret);
        for fill in [Fill::Noise, Fill::Text, Fill::Mixed] {
            for size in [1, 4096, 65_535, 65_536, 65_537, 3 << 20, (5 << 20) + 1234] {
                let content = disk(&mut random, fill, size, CHUNK, 70);
                let (_, root) = home.store(size, &content);
                for backend in backends() {
                    let (chunks, control) = (home.chunks(), Control::new());
                    let (report, came) =
                        read_all(&settings(backend), &chunks, &[root], None, &ReadErrors::Fail, &control);
                    let what = format!("{compression} {secret:?} {fill:?} {size} {backend:?}");
                    assert!(report.outcomes[0].error.is_none(), "{what}: {:?}", report.outcomes[0].error);
                    assert!(came[0].bytes == flat(size, CHUNK, &content), "{what}");
                    assert!(control.degraded(0).is_empty(), "{what}: {:?}", control.degraded(0));
                }
            }
        }
    }
}

#[test]
fn what_does_not_compress_is_not_copied() {
    let mut random = random(0xc0);
    for secret in secrets() {
        let home = Home::local(&options(CHUNK, Compression::Lz4), &secret);
        let size = 8 << 20;
        let content = disk(&mut random, Fill::Noise, size, CHUNK, 100);
        let (_, root) = home.store(size, &content);
        for backend in backends() {
            let chunks = home.chunks();
            let (report, came) =
                read_all(&settings(backend), &chunks, &[root], None, &ReadErrors::Fail, &Control::new());
            assert!(report.outcomes[0].error.is_none());
            assert_eq!(came[0].moved.copied_bytes, 0, "{backend:?}");
            assert_eq!(came[0].moved.read_bytes, size);
        }
    }
}

#[test]
fn requests_may_begin_and_end_anywhere_in_a_chunk() {
    let mut random = random(0xb175);
    for (compression, fill) in [(Compression::Lz4, Fill::Mixed), (Compression::None, Fill::Noise)] {
        let home = Home::local(&options(CHUNK, compression), &Secret::KeyFile(vec![9; 40]));
        let size = (4 << 20) + 777;
        let content = disk(&mut random, fill, size, CHUNK, 70);
        let (_, root) = home.store(size, &content);
        let bytes = flat(size, CHUNK, &content);
        let mut extents = Vec::new();
        let mut at = 0;
        while at < size {
            let start = at + random.below(40_000);
            let length = (1 + random.below(200_000)).min(size.saturating_sub(start));
            extents.extend((start < size && length > 0).then(|| Extent::data(start, length)));
            at = start + length + 1;
        }
        for (backend, block_size) in backends().into_iter().flat_map(|b| [(b, 12 << 10), (b, 1 << 20)]) {
            let settings = Settings { block_size, ..settings(backend) };
            let (report, came) = read_all(
                &settings,
                &home.chunks(),
                &[root],
                Some(&extents),
                &ReadErrors::Fail,
                &Control::new(),
            );
            assert!(report.outcomes[0].error.is_none(), "{:?}", report.outcomes[0].error);
            for extent in &extents {
                let range = extent.start as usize..extent.end() as usize;
                assert!(came[0].bytes[range.clone()] == bytes[range], "{extent:?} {backend:?} {block_size}");
            }
        }
    }
}

#[test]
fn a_disk_in_more_packs_than_a_ring_has_places_for() {
    let mut random = random(0x9ac5);
    let home = Home::local(&options(CHUNK, Compression::Lz4), &Secret::None);
    let chunks_each = 8;
    let mut all: Vec<Vec<u8>> = Vec::new();
    for _ in 0..40 {
        let some: Vec<_> =
            (0..chunks_each).map(|_| chunk(&mut random, Fill::Mixed, CHUNK as usize)).collect();
        let content: Content = (0..).zip(some.iter().cloned()).collect();
        home.store(chunks_each * u64::from(CHUNK), &content);
        all.extend(some);
    }
    // Each request has chunks of several packs, and no two neighbours lie side by side.
    for at in (1..all.len()).rev() {
        all.swap(at, random.below(at as u64 + 1) as usize);
    }
    let size = all.len() as u64 * u64::from(CHUNK);
    let content: Content = (0..).zip(all).collect();
    let (_, root) = home.store(size, &content);
    for (backend, workers) in backends().into_iter().flat_map(|b| [(b, 1), (b, 3)]) {
        let settings = Settings { workers, queue_depth: 32, ..settings(backend) };
        // Twice in one run: disks share places and scratch memory.
        let roots = [root, root];
        let (report, came) =
            read_all(&settings, &home.chunks(), &roots, None, &ReadErrors::Fail, &Control::new());
        for (outcome, came) in report.outcomes.iter().zip(&came) {
            assert!(outcome.error.is_none(), "{:?}", outcome.error);
            assert!(came.bytes == flat(size, CHUNK, &content));
        }
    }
}

#[test]
fn little_scratch_memory_makes_runs_wait_and_nothing_else() {
    let mut random = random(0x5c7a);
    let home = Home::local(&options(CHUNK, Compression::Zstd(1)), &Secret::None);
    let size = 24 << 20;
    let content = disk(&mut random, Fill::Text, size, CHUNK, 90);
    let (_, root) = home.store(size, &content);
    for backend in backends() {
        // Many requests and room for few: the scratch memory follows the bytes, not the depth.
        let settings = Settings {
            block_size: 64 << 10,
            queue_depth: 64,
            bytes_in_flight: Some(512 << 10),
            ..settings(backend)
        };
        let (report, came) =
            read_all(&settings, &home.chunks(), &[root], None, &ReadErrors::Fail, &Control::new());
        assert!(report.outcomes[0].error.is_none(), "{:?}", report.outcomes[0].error);
        assert!(came[0].bytes == flat(size, CHUNK, &content));
    }
}

#[test]
fn a_store_without_files_is_read_by_its_own_way() {
    let mut random = random(0x53);
    for secret in secrets() {
        let store = Arc::new(MemoryStore::default());
        let home = Home::in_store(store, &options(CHUNK, Compression::Lz4), &secret);
        let size = (3 << 20) + 5;
        let content = disk(&mut random, Fill::Mixed, size, CHUNK, 60);
        let (_, root) = home.store(size, &content);
        for backend in backends() {
            let (report, came) = read_all(
                &settings(backend),
                &home.chunks(),
                &[root],
                None,
                &ReadErrors::Fail,
                &Control::new(),
            );
            assert!(report.outcomes[0].error.is_none(), "{:?}", report.outcomes[0].error);
            assert!(came[0].bytes == flat(size, CHUNK, &content));
        }
    }
}

// ---- damage ----------------------------------------------------------------------------------------------

struct Damaged {
    home: Home,
    size: u64,
    content: Content,
    root: mover_repository::format::node::Root,
}

impl Damaged {
    fn new(init: &InitOptions, secret: &Secret, fill: Fill, random: &mut SplitMix) -> Damaged {
        let home = Home::local(init, secret);
        let size = (2 << 20) + 999;
        let content = disk(random, fill, size, CHUNK, 100);
        let (_, root) = home.store(size, &content);
        Damaged { home, size, content, root }
    }

    fn id(&self, number: u64) -> ChunkId {
        self.home.repository.keys().chunk_id(ChunkKind::Data, &self.content[&number])
    }

    /// The pack of a chunk, and where it is in it.
    fn place(&self, number: u64) -> (PathBuf, u64, u32) {
        let chunks = self.home.chunks();
        let location = chunks.index().find(&self.id(number)).unwrap().unwrap();
        let folder = self.home.folder.as_ref().unwrap().path().join("repo");
        let path = folder.join(pack_key(location.pack).as_str());
        (path, location.entry.offset, location.entry.stored)
    }

    fn flip(&self, number: u64) -> PathBuf {
        let (path, offset, stored) = self.place(number);
        change(&path, |bytes| bytes[(offset + u64::from(stored) / 2) as usize] ^= 4);
        path
    }

    fn read(
        &self,
        backend: mover_engine::Backend,
        errors: &ReadErrors,
        control: &Control,
    ) -> (Option<mover_model::Error>, Vec<u8>) {
        let (mut report, mut came) =
            read_all(&settings(backend), &self.home.chunks(), &[self.root], None, errors, control);
        (report.outcomes.remove(0).error, came.remove(0).bytes)
    }

    fn collect(&self, backend: mover_engine::Backend) -> (Vec<BadChunk>, Vec<u8>) {
        let list = Arc::new(Mutex::new(Vec::new()));
        let (error, bytes) = self.read(backend, &ReadErrors::Collect(list.clone()), &Control::new());
        assert!(error.is_none(), "{error:?}");
        let mut bad = list.lock().unwrap().clone();
        bad.sort_by_key(|bad| bad.number);
        (bad, bytes)
    }

    /// The disk with some chunks as zeros.
    fn without(&self, numbers: &[u64]) -> Vec<u8> {
        let mut content = self.content.clone();
        numbers.iter().for_each(|number| {
            content.remove(number);
        });
        flat(self.size, CHUNK, &content)
    }
}

fn change(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    how(&mut bytes);
    // Objects may be read-only: a new file takes the place.
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_is_told_with_disk_offset_chunk_and_pack() {
    let mut random = random(0xf11b);
    for (secret, fill) in secrets().into_iter().flat_map(|s| [(s.clone(), Fill::Noise), (s, Fill::Text)]) {
        let damaged = Damaged::new(&options(CHUNK, Compression::Lz4), &secret, fill, &mut random);
        let path = damaged.flip(5);
        for backend in backends() {
            let (error, _) = damaged.read(backend, &ReadErrors::Fail, &Control::new());
            let error = error.expect("the task fails");
            let text = error.to_string();
            assert_eq!(
                (error.kind(), error.at_offset()),
                (ErrorKind::Corruption, Some(5 * u64::from(CHUNK))),
                "{text}"
            );
            let named = ["vm@point d0", &damaged.id(5).to_string(), path.to_str().unwrap(), "mover verify"];
            named.iter().for_each(|part| assert!(text.contains(part), "{part} in {text}"));
            let (bad, bytes) = damaged.collect(backend);
            assert_eq!(bad.iter().map(|bad| (bad.number, bad.id)).collect::<Vec<_>>(), [(5, damaged.id(5))]);
            assert!(bad[0].location.is_some());
            assert!(bytes == damaged.without(&[5]), "all others are as they were");
        }
    }
}

#[test]
fn a_missing_pack_and_a_short_one_are_told() {
    let mut random = random(0x9055);
    for short in [false, true] {
        let damaged =
            Damaged::new(&options(CHUNK, Compression::None), &Secret::None, Fill::Noise, &mut random);
        let (path, offset, _) = damaged.place(3);
        if short {
            change(&path, |bytes| bytes.truncate(offset as usize));
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        for backend in backends() {
            let (error, _) = damaged.read(backend, &ReadErrors::Fail, &Control::new());
            let error = error.expect("the task fails");
            assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            assert!(text.contains(if short { "ends" } else { "missing" }), "{text}");
            let (bad, bytes) = damaged.collect(backend);
            let numbers: Vec<_> = bad.iter().map(|bad| bad.number).collect();
            assert!(numbers.contains(&3));
            assert!(bytes == damaged.without(&numbers));
            if !short {
                assert_eq!(numbers, damaged.content.keys().copied().collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn another_place_of_a_bad_chunk_takes_over_and_that_is_said() {
    let mut random = random(0x0e6);
    let damaged = Damaged::new(&options(CHUNK, Compression::Lz4), &Secret::None, Fill::Mixed, &mut random);
    let path = damaged.flip(9);
    let index = Arc::new(Index::open(&damaged.home.repository).unwrap());
    let writer = Writer::new(damaged.home.repository.clone(), index).unwrap();
    writer.put_again(ChunkKind::Data, damaged.id(9), &damaged.content[&9]).unwrap();
    writer.finish().unwrap();
    for backend in backends() {
        let control = Control::new();
        let (error, bytes) = damaged.read(backend, &ReadErrors::Fail, &control);
        assert!(error.is_none(), "{error:?}");
        assert!(bytes == damaged.without(&[]));
        let (bad, _) = damaged.collect(backend);
        assert!(bad.is_empty());
        // Whichever place was looked at first: if the bad one, it is told.
        for told in control.degraded(0) {
            assert_eq!(told.about, "damaged_pack");
            assert_eq!(told.path.as_deref(), path.to_str());
        }
    }
    let first = damaged.home.chunks().index().find(&damaged.id(9)).unwrap().unwrap();
    let bad_first = path.to_str().unwrap().contains(&first.pack.to_string());
    eprintln!("the bad place is the first: {bad_first}");
}

#[test]
fn a_lost_pack_fails_its_disk_and_no_other() {
    let mut random = random(0xa6);
    let damaged = Damaged::new(&options(CHUNK, Compression::Lz4), &Secret::None, Fill::Mixed, &mut random);
    // A second disk with chunks of its own, whose pack goes.
    let more = disk(&mut random, Fill::Mixed, damaged.size, CHUNK, 100);
    let (_, lost) = damaged.home.store(damaged.size, &more);
    let folder = damaged.home.folder.as_ref().unwrap().path().join("repo");
    let chunks = damaged.home.chunks();
    let id = damaged.home.repository.keys().chunk_id(ChunkKind::Data, &more[&0]);
    let location = chunks.index().find(&id).unwrap().unwrap();
    drop(chunks);
    let pack = folder.join(pack_key(location.pack).as_str());
    std::fs::remove_file(pack).unwrap();
    for backend in backends() {
        let roots = [damaged.root, lost];
        let (report, came) = read_all(
            &settings(backend),
            &damaged.home.chunks(),
            &roots,
            None,
            &ReadErrors::Fail,
            &Control::new(),
        );
        assert!(report.outcomes[0].error.is_none(), "{:?}", report.outcomes[0].error);
        assert!(came[0].bytes == damaged.without(&[]));
        let error = report.outcomes[1].error.as_ref().expect("the second fails");
        assert_eq!(error.kind(), ErrorKind::Corruption);
        assert!(error.to_string().contains("vm@point d1"), "{error}");
    }
}
