//! Entries and packs: what is written is read; all else is refused, with the part that is wrong.

mod format_support;

use format_support::*;
use mover_model::{ChunkId, ErrorKind, Result};
use mover_repository::format::BLOCK;
use mover_repository::format::entry::{CHUNK_BYTES_MAX, ENTRY_BYTES, Encoding, Entry};
use mover_repository::format::pack::{
    PACK_ENTRIES_MAX, PackHeader, PackIndex, encode_header, encode_tail, pack_key, read_header, read_index,
};
use mover_repository::keys::{ChunkKind, Keys};
use proptest::prelude::*;

const HEADER: PackHeader =
    PackHeader { repository: REPOSITORY, name: mover_repository::ObjectName([2; 16]), seed: [4; 32] };

fn pack(keys: &Keys, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = encode_header(keys, &HEADER);
    let end = entries.iter().map(Entry::end).max().unwrap_or(BLOCK);
    bytes.resize(end.next_multiple_of(BLOCK) as usize, 0xaa);
    let at = bytes.len() as u64;
    bytes.extend(encode_tail(keys, &HEADER, entries, at));
    bytes
}

fn read(keys: &Keys, bytes: Vec<u8>) -> Result<PackIndex> {
    read_index(keys, REPOSITORY, HEADER.name, &MemoryObject::new(bytes), "memory/packs/02/02")
}

fn some_entries() -> Vec<Entry> {
    vec![entry(id(5, 1), 0, 4096, 100), entry(id(2, 2), 0, 4196, 77), entry(id(9, 3), 0, 8192, 4096)]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let kinds = prop_oneof![Just(ChunkKind::Data), Just(ChunkKind::Node)];
    let encodings = prop_oneof![Just(Encoding::Raw), Just(Encoding::Lz4), Just(Encoding::Zstd)];
    let lengths = (1..=CHUNK_BYTES_MAX, 1..=CHUNK_BYTES_MAX);
    (any::<([u8; 32], [u8; 16], u32, u32)>(), lengths, encodings, kinds).prop_map(
        |((id, tag, pack, offset), (stored, plain), encoding, kind)| Entry {
            id: ChunkId(id),
            tag,
            offset: u64::from(offset),
            stored,
            plain: if encoding == Encoding::Raw { stored } else { plain },
            pack,
            encoding,
            kind,
        },
    )
}

proptest! {
    #[test]
    fn an_entry_reads_as_it_was_written(entry in any_entry()) {
        prop_assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
    }

    #[test]
    fn a_pack_reads_as_it_was_written(entries in prop::collection::vec(any_entry(), 0..200), encrypted: bool) {
        let keys = if encrypted { encrypted_keys() } else { plain_keys() };
        let mut free = BLOCK;
        let placed: Vec<Entry> = entries.into_iter().map(|mut entry| {
            entry.stored = entry.stored % 5000 + 1;
            if entry.encoding == Encoding::Raw {
                entry.plain = entry.stored;
            }
            entry.offset = free;
            free += u64::from(entry.stored);
            entry
        }).collect();
        let mut shuffled = placed.clone();
        shuffled.reverse();
        let bytes = pack(&keys, &shuffled);
        let size = bytes.len() as u64;
        let index = read(&keys, bytes.clone()).unwrap();
        let expected: Vec<Entry> = placed.iter().map(|entry| Entry { pack: 0, ..*entry }).collect();
        prop_assert_eq!(&index.entries, &expected);
        prop_assert_eq!((index.header, index.size), (HEADER, size));
        for entry in &expected {
            prop_assert!(index.find(&entry.id).any(|found| found == entry));
        }
        let header = read_header(&keys, REPOSITORY, HEADER.name, &MemoryObject::new(bytes), "x").unwrap();
        prop_assert_eq!(header, HEADER);
    }
}

#[test]
fn an_entry_that_no_writer_writes_is_refused() {
    let good = entry(id(1, 1), 0, 4096, 100);
    let wrong = |change: &dyn Fn(&mut [u8; ENTRY_BYTES])| {
        let mut bytes = good.encode();
        change(&mut bytes);
        let error = Entry::decode(&bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
        error.message().to_owned()
    };
    assert!(wrong(&|bytes| bytes[68] = 3).contains("encoding is 3"));
    assert!(wrong(&|bytes| bytes[69] = 2).contains("kind is 2"));
    assert!(wrong(&|bytes| bytes[71] = 1).contains("reserved"));
    assert!(wrong(&|bytes| bytes[56..60].fill(0)).contains("0 bytes stored"));
    assert!(wrong(&|bytes| bytes[60..64].fill(0)).contains("of 0"));
    assert!(
        wrong(&|bytes| bytes[56..60].copy_from_slice(&(CHUNK_BYTES_MAX + 1).to_le_bytes()))
            .contains("8388609")
    );
    assert!(
        wrong(&|bytes| bytes[60..64].copy_from_slice(&(CHUNK_BYTES_MAX + 1).to_le_bytes()))
            .contains("8388609")
    );
    assert!(wrong(&|bytes| bytes[68] = 0).contains("two lengths"));
    assert!(wrong(&|bytes| bytes[48..56].fill(0xff)).contains("past all packs"));
    assert!(wrong(&|bytes| bytes[..32].fill(0)).contains("hole"));
}

#[test]
fn every_flipped_bit_outside_the_records_is_refused() {
    let (keys, entries) = (plain_keys(), some_entries());
    let bytes = pack(&keys, &entries);
    assert_eq!(bytes.len(), 5 * 4096);
    let records = 4096..12288;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            // What the index says is the same whatever happens to records: these are for their own tag and name.
            if records.contains(&at) && bit > 0 {
                continue;
            }
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            match read(&keys, bytes) {
                Ok(index) => {
                    assert!(records.contains(&at) && index.entries == entries, "byte {at} bit {bit}")
                }
                Err(error) => {
                    assert!(!records.contains(&at), "byte {at} bit {bit}: {error}");
                    let kinds = [ErrorKind::Corruption, ErrorKind::Unsupported, ErrorKind::WrongIdentity];
                    assert!(kinds.contains(&error.kind()), "byte {at} bit {bit}: {error}");
                    assert!(error.to_string().contains("memory/packs/02/02"), "{error}");
                }
            }
        }
    }
}

#[test]
fn every_truncation_and_every_longer_one_is_refused() {
    let (keys, bytes) = (plain_keys(), pack(&plain_keys(), &some_entries()));
    for length in 0..bytes.len() {
        let error = read(&keys, bytes[..length].to_vec()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{length}: {error}");
    }
    for longer in [1, 4095, 4096, 8192] {
        let mut bytes = bytes.clone();
        bytes.resize(bytes.len() + longer, 0);
        assert_eq!(read(&keys, bytes).unwrap_err().kind(), ErrorKind::Corruption);
    }
}

#[test]
fn foreign_renamed_newer_and_mixed_packs_are_told_apart() {
    let (keys, bytes) = (plain_keys(), pack(&plain_keys(), &some_entries()));
    let object = MemoryObject::new(bytes.clone());
    let error = read_index(&keys, [9; 16], HEADER.name, &object, "x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongIdentity, "{error}");
    let error = read_index(&keys, REPOSITORY, name(3), &object, "x").unwrap_err();
    assert!(error.kind() == ErrorKind::Corruption && error.to_string().contains("another name"), "{error}");
    // A copy of the repository with another key: the id is right, and nothing fits.
    let error = read_index(&Keys::plain([8; 32]), REPOSITORY, HEADER.name, &object, "x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");

    // A flipped bit in the version is damage, not a newer version: that one would be authentic.
    let mut flipped = bytes.clone();
    flipped[8] = 2;
    let error = read(&keys, flipped).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");

    // Header of one pack, tail of another of the same name: a name is never used twice, so somebody mixed them.
    let other = PackHeader { seed: [5; 32], ..HEADER };
    let mut mixed = bytes.clone();
    mixed[..4096].copy_from_slice(&encode_header(&keys, &other));
    let error = read(&keys, mixed).unwrap_err();
    assert!(error.to_string().contains("does not belong to its header"), "{error}");
}

#[test]
fn entries_outside_the_records_or_over_each_other_are_refused_though_authentic() {
    let keys = plain_keys();
    let refused = |entries: &[Entry], index_at: u64| {
        let mut bytes = encode_header(&keys, &HEADER);
        bytes.resize(index_at as usize, 0);
        bytes.extend(encode_tail(&keys, &HEADER, entries, index_at));
        let error = read(&keys, bytes).unwrap_err();
        assert!(
            error.to_string().contains("index of a pack") && error.at_offset() >= Some(index_at),
            "{error}"
        );
    };
    refused(&[entry(id(1, 1), 0, 4000, 100)], 8192);
    refused(&[entry(id(1, 1), 0, 8000, 200)], 8192);
    refused(&[entry(id(1, 1), 0, 4096, 100), entry(id(2, 1), 0, 4195, 100)], 8192);
}

#[test]
fn the_largest_pack_is_read_by_three_reads() {
    let keys = plain_keys();
    let entries: Vec<Entry> =
        (0..PACK_ENTRIES_MAX as u64).map(|n| entry(id(n, n), 0, 4096 + n * 64, 64)).collect();
    let object = MemoryObject::new(pack(&keys, &entries));
    let index = read_index(&keys, REPOSITORY, HEADER.name, &object, "x").unwrap();
    assert_eq!(index.entries, entries);
    assert_eq!(object.reads.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[test]
fn golden_bytes_of_version_1() {
    let keys = encrypted_keys();
    let bytes = pack(&keys, &some_entries());
    golden("pack-v1.bin", &bytes);
    assert_eq!(read(&keys, bytes).unwrap().entries, some_entries());
    assert_eq!(pack_key(name(2)).as_str(), format!("packs/02/{}", "02".repeat(16)));
}
