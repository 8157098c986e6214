//! Records: whatever is compressed and encrypted comes back; whatever was changed does not.

mod format_support;

use std::time::Instant;

use format_support::*;
use mover_model::ErrorKind;
use mover_repository::Compression;
use mover_repository::codec::{Compressor, PackKey, check, compressed_bound, decompress};
use mover_repository::format::entry::{Encoding, Entry};
use mover_repository::keys::{ChunkKind, Keys};
use proptest::prelude::*;

const ALL: [Compression; 4] =
    [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(3)];

/// From content to an entry and the bytes of its record.
fn store(
    keys: &Keys,
    compressor: &mut Compressor,
    seed: &[u8; 32],
    offset: u64,
    plain: &[u8],
) -> (Entry, Vec<u8>) {
    let mut out = vec![0; compressed_bound(plain.len())];
    let (encoding, mut record) = match compressor.compress(plain, &mut out) {
        Some((encoding, length)) => (encoding, out[..length].to_vec()),
        None => (Encoding::Raw, plain.to_vec()),
    };
    let mut entry = Entry {
        id: keys.chunk_id(ChunkKind::Data, plain),
        tag: [0; 16],
        offset,
        stored: record.len() as u32,
        plain: plain.len() as u32,
        pack: 0,
        encoding,
        kind: ChunkKind::Data,
    };
    entry.tag = PackKey::new(keys, seed).seal(&entry, &mut record).unwrap();
    (entry, record)
}

fn load(keys: &Keys, seed: &[u8; 32], entry: &Entry, record: &[u8]) -> mover_model::Result<Vec<u8>> {
    let (mut record, mut content) = (record.to_vec(), vec![0; entry.plain as usize]);
    PackKey::new(keys, seed).open(entry, &mut record)?;
    decompress(entry.encoding, &record, &mut content)?;
    check(keys, entry, &content, &entry.id)?;
    Ok(content)
}

/// Text-like, repeated or random content.
fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..3000),
        prop::collection::vec(0u8..4, 1..70_000),
        (any::<Vec<u8>>(), 1usize..200).prop_map(|(part, times)| {
            let mut bytes = part.repeat(times);
            bytes.push(1);
            bytes
        }),
    ]
}

fn random_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn content_comes_back(plain in content(), which in 0..ALL.len(), encrypted: bool, seed: [u8; 32]) {
        let keys = if encrypted { encrypted_keys() } else { plain_keys() };
        let mut compressor = Compressor::new(ALL[which]).unwrap();
        let (entry, record) = store(&keys, &mut compressor, &seed, 4096, &plain);
        prop_assert_eq!(encrypted, entry.tag != [0; 16]);
        prop_assert!(entry.encoding == Encoding::Raw || record.len() + plain.len().div_ceil(16) <= plain.len());
        prop_assert_eq!(load(&keys, &seed, &entry, &record).unwrap(), plain);
    }

    /// Decoders that are given anything fill no more than they were told to, and do not panic.
    #[test]
    fn garbage_does_not_decode_beyond_its_length(
        garbage in prop::collection::vec(any::<u8>(), 0..500),
        length in 1usize..5000,
        zstd: bool,
    ) {
        let encoding = if zstd { Encoding::Zstd } else { Encoding::Lz4 };
        let mut out = vec![0; length];
        if let Err(error) = decompress(encoding, &garbage, &mut out) {
            prop_assert_eq!(error.kind(), ErrorKind::Corruption);
        }
    }
}

#[test]
fn every_flipped_bit_of_a_record_is_found() {
    let plain: Vec<u8> = (0..600u32).map(|n| (n / 7 % 23) as u8).collect();
    for keys in [plain_keys(), encrypted_keys()] {
        for compression in ALL {
            let mut compressor = Compressor::new(compression).unwrap();
            let (entry, record) = store(&keys, &mut compressor, &[1; 32], 4096, &plain);
            for bit in 0..record.len() * 8 {
                let mut damaged = record.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                match load(&keys, &[1; 32], &entry, &damaged) {
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Corruption, "{error}"),
                    // Compressed forms have bits that mean nothing; what comes back is whole, or it would not be checked.
                    Ok(content) => {
                        assert!(content == plain && keys_are_plain(&entry), "{compression} bit {bit}")
                    }
                }
            }
            for length in 0..record.len() {
                assert!(
                    load(&keys, &[1; 32], &entry, &record[..length]).is_err(),
                    "{compression} cut at {length}"
                );
            }
        }
    }
}

fn keys_are_plain(entry: &Entry) -> bool {
    entry.tag == [0; 16]
}

#[test]
fn a_record_belongs_to_its_place_pack_name_and_encoding() {
    let (keys, plain) = (encrypted_keys(), b"a chunk that is rather short".repeat(40));
    let mut compressor = Compressor::new(Compression::Lz4).unwrap();
    let (entry, record) = store(&keys, &mut compressor, &[1; 32], 4096, &plain);
    let other = Entry { id: id(1, 1), ..entry };
    let changed = [
        Entry { offset: 8192, ..entry },
        other,
        Entry { encoding: Encoding::Zstd, ..entry },
        Entry { kind: ChunkKind::Node, ..entry },
        Entry { plain: entry.plain - 1, ..entry },
        Entry { tag: [0; 16], ..entry },
    ];
    for entry in changed {
        let error = load(&keys, &[1; 32], &entry, &record).unwrap_err();
        assert!(error.kind() == ErrorKind::Corruption && error.at_offset() == Some(entry.offset), "{error}");
    }
    assert!(load(&keys, &[2; 32], &entry, &record).is_err(), "the key is the pack's own");
    assert!(load(&plain_keys(), &[1; 32], &entry, &record).is_err(), "a tag where nothing is encrypted");
    // The same content at two places of a pack has nothing in common.
    let (_, elsewhere) = store(&keys, &mut compressor, &[1; 32], 8192, &plain);
    assert_ne!(record, elsewhere);
}

#[test]
fn other_content_is_not_taken_for_a_chunk() {
    let keys = plain_keys();
    let mut compressor = Compressor::new(Compression::None).unwrap();
    let (entry, _) = store(&keys, &mut compressor, &[1; 32], 4096, b"content");
    check(&keys, &entry, b"content", &entry.id).unwrap();
    assert!(check(&keys, &entry, b"Content", &entry.id).is_err());
    assert!(check(&keys, &entry, b"content ", &entry.id).is_err());
    assert!(check(&keys, &entry, b"content", &id(1, 1)).is_err());
    assert!(check(&keys, &Entry { kind: ChunkKind::Node, ..entry }, b"content", &entry.id).is_err());
}

#[test]
fn what_does_not_compress_is_refused_quickly() {
    let chunk = random_bytes(128 << 10);
    let mut out = vec![0; compressed_bound(chunk.len())];
    for compression in ALL {
        let mut compressor = Compressor::new(compression).unwrap();
        let begun = Instant::now();
        (0..50).for_each(|_| assert_eq!(compressor.compress(&chunk, &mut out), None, "{compression}"));
        // 6.5 MB: a millisecond where it is fast, and a bound that a busy machine keeps.
        assert!(begun.elapsed().as_millis() < 1000, "{compression}: {:?}", begun.elapsed());
    }
    // Nearly nothing saved is nothing saved.
    let mut nearly = chunk;
    nearly[..7000].fill(0);
    assert_eq!(Compressor::new(Compression::Lz4).unwrap().compress(&nearly, &mut out), None);
    nearly[..9500].fill(0);
    assert!(Compressor::new(Compression::Lz4).unwrap().compress(&nearly, &mut out).is_some());
}

#[test]
fn golden_records_of_version_1_are_read() {
    let plain: Vec<u8> = (0..4000u32).map(|n| (n / 7 % 23) as u8).collect();
    for (encoding, file) in [(Encoding::Lz4, "record-lz4-v1.bin"), (Encoding::Zstd, "record-zstd-v1.bin")] {
        let path = format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"));
        let (keys, seed) = (encrypted_keys(), [4; 32]);
        let compression = if encoding == Encoding::Lz4 { Compression::Lz4 } else { Compression::Zstd(3) };
        let (entry, record) = store(&keys, &mut Compressor::new(compression).unwrap(), &seed, 4096, &plain);
        assert_eq!(entry.encoding, encoding);
        // A newer compressor may write other bytes; those of then are read by every later version.
        if std::env::var_os("MOVER_GOLDEN").is_some_and(|value| value == "write")
            && !std::path::Path::new(&path).exists()
        {
            std::fs::write(&path, [&entry.encode()[..], &record].concat()).unwrap();
        }
        let golden = std::fs::read(&path).unwrap();
        let (head, record) = golden.split_at(72);
        let entry = Entry::decode(head.try_into().unwrap()).unwrap();
        assert_eq!(load(&keys, &seed, &entry, record).unwrap(), plain);
    }
}
