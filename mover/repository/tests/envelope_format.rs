//! The envelope: what was put comes back, and nothing else is taken for it.

mod memory;

use memory::{Fault, MemoryStore, Numbers, seed};
use mover_model::ErrorKind;
use mover_repository::Keys;
use mover_repository::format::envelope::{self, BODY_MAX, HEADER_BYTES, Kind, MAC_BYTES, Protection};
use mover_repository::store::{Key, Put, Store};
use proptest::prelude::*;

const KINDS: [Kind; 7] =
    [Kind::Config, Kind::KeySlot, Kind::Manifest, Kind::Aborted, Kind::Session, Kind::Doom, Kind::Note];

fn key() -> Key {
    Key::new("manifests/vm/point")
}

fn plain_keys() -> Keys {
    Keys::plain([3; 32])
}

fn encrypted_keys() -> Keys {
    Keys::encrypted([1; 32], [2; 32])
}

/// All three ways in which a body is protected.
fn each_protection(mut check: impl FnMut(Protection<'_>)) {
    let (plain, encrypted) = (plain_keys(), encrypted_keys());
    check(Protection::Plain);
    check(Protection::Sealed(&plain));
    check(Protection::Sealed(&encrypted));
}

fn encode(protection: Protection<'_>, body: &[u8]) -> Vec<u8> {
    envelope::encode(&key(), Kind::Note, protection, [9; 16], body).unwrap()
}

fn kind_of(protection: Protection<'_>, bytes: &[u8]) -> ErrorKind {
    let error = envelope::decode(&key(), "the/label", protection, bytes).unwrap_err();
    assert!(error.to_string().contains("the/label"), "{error}");
    error.kind()
}

/// The bytes with a change that their writer made.
fn rewritten(protection: Protection<'_>, bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut content = bytes[..bytes.len() - MAC_BYTES].to_vec();
    change(&mut content);
    let mac = envelope::authenticate(&key(), protection, &content);
    content.extend_from_slice(&mac);
    content
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            proptest::collection::vec(any::<u8>(), 4000..9000),
            (any::<u8>(), 0usize..300_000).prop_map(|(byte, length)| vec![byte; length]),
        ],
        nonce in any::<[u8; 16]>(),
        kind in (0..KINDS.len()).prop_map(|at| KINDS[at]),
    ) {
        each_protection(|protection| {
            let bytes = envelope::encode(&key(), kind, protection, nonce, &body).unwrap();
            let read = envelope::decode(&key(), "x", protection, &bytes).unwrap();
            assert_eq!((read.kind, read.nonce), (kind, nonce));
            assert!(read.body == body && read.may_be_changed());
        });
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_damage() {
    each_protection(|protection| {
        for body in [&b"{\"a\":1}"[..], &b"repeated ".repeat(600)] {
            let bytes = encode(protection, body);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(kind_of(protection, &flipped), ErrorKind::Corruption, "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert_eq!(kind_of(protection, &bytes[..length]), ErrorKind::Corruption, "cut at {length}");
            }
            assert_eq!(kind_of(protection, &[&bytes[..], &[0]].concat()), ErrorKind::Corruption);
        }
    });
}

#[test]
fn mutated_bytes_are_refused_without_a_panic() {
    let seed = seed();
    let mut numbers = Numbers(seed);
    for _ in 0..20_000 {
        each_protection(|protection| {
            let body = vec![numbers.next() as u8; [0, 10, 5000][numbers.below(3)]];
            let bytes = encode(protection, &body);
            let mut mutated = bytes.clone();
            for _ in 0..=numbers.below(4) {
                let at = numbers.below(mutated.len());
                match numbers.below(4) {
                    0 => mutated[at] = numbers.next() as u8,
                    1 => mutated.truncate(at.max(1)),
                    2 => mutated.insert(at, numbers.next() as u8),
                    _ => mutated[at..].fill(0xff),
                }
            }
            let read = envelope::decode(&key(), "x", protection, &mutated);
            assert!(read.is_err() || mutated == bytes, "seed {seed}");
            // What a writer with the keys has made, and may be anything all the same.
            if mutated.len() > HEADER_BYTES + MAC_BYTES {
                let _ = envelope::decode(&key(), "x", protection, &rewritten(protection, &mutated, |_| ()));
            }
        });
    }
}

#[test]
fn a_moved_object_and_other_keys_are_damage() {
    each_protection(|protection| {
        let bytes = encode(protection, b"body");
        for other in ["manifests/vm/poin", "manifests/vm/point2", "manifests/wm/point"] {
            let error = envelope::decode(&Key::new(other), other, protection, &bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corruption);
        }
    });
    let (plain, encrypted, other) = (plain_keys(), encrypted_keys(), Keys::encrypted([7; 32], [2; 32]));
    let all = [
        Protection::Plain,
        Protection::Sealed(&plain),
        Protection::Sealed(&encrypted),
        Protection::Sealed(&other),
    ];
    for (i, written) in all.iter().enumerate() {
        for (j, read) in all.iter().enumerate().filter(|(j, _)| *j != i) {
            assert_eq!(kind_of(*read, &encode(*written, b"body")), ErrorKind::Corruption, "{i} read as {j}");
        }
    }
}

#[test]
fn what_a_newer_version_wrote_is_told_from_damage() {
    each_protection(|protection| {
        let bytes = encode(protection, b"body");
        let newer_version = rewritten(protection, &bytes, |bytes| bytes[8] = 2);
        assert_eq!(kind_of(protection, &newer_version), ErrorKind::Unsupported);
        let newer_kind = rewritten(protection, &bytes, |bytes| bytes[12] = 99);
        assert_eq!(kind_of(protection, &newer_kind), ErrorKind::Unsupported);
        let incompatible = rewritten(protection, &bytes, |bytes| bytes[16 + 7] |= 0x80);
        assert_eq!(kind_of(protection, &incompatible), ErrorKind::Unsupported);
        // The length is the writer's, and wrong.
        let length = rewritten(protection, &bytes, |bytes| bytes[56] ^= 1);
        assert_eq!(kind_of(protection, &length), ErrorKind::Corruption);
    });
    let read_only = rewritten(Protection::Plain, &encode(Protection::Plain, b"body"), |bytes| bytes[24] = 1);
    let read = envelope::decode(&key(), "x", Protection::Plain, &read_only).unwrap();
    assert!(!read.may_be_changed() && read.body == b"body");
    let compatible = rewritten(Protection::Plain, &encode(Protection::Plain, b"body"), |bytes| bytes[32] = 1);
    assert!(envelope::decode(&key(), "x", Protection::Plain, &compatible).unwrap().may_be_changed());
}

#[test]
fn an_encrypted_body_shows_nothing_and_never_repeats() {
    let keys = encrypted_keys();
    let body = b"the name of a machine, the name of a machine";
    let one = envelope::encode(&key(), Kind::Note, Protection::Sealed(&keys), [1; 16], body).unwrap();
    let two = envelope::encode(&key(), Kind::Note, Protection::Sealed(&keys), [2; 16], body).unwrap();
    assert!(!one.windows(8).any(|window| body.windows(8).any(|plain| plain == window)));
    assert_ne!(one[HEADER_BYTES..], two[HEADER_BYTES..]);
}

#[test]
fn lengths_are_bounded_both_ways() {
    let longest = vec![0; BODY_MAX as usize];
    let bytes = encode(Protection::Plain, &longest);
    assert!(bytes.len() < 1 << 20, "a long body is compressed");
    assert_eq!(envelope::decode(&key(), "x", Protection::Plain, &bytes).unwrap().body, longest);
    let too_long = vec![0; BODY_MAX as usize + 1];
    let error = envelope::encode(&key(), Kind::Note, Protection::Plain, [0; 16], &too_long).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    // A frame that grows to more than any body, by a writer that means harm.
    let frame = zstd::bulk::compress(&too_long, 1).unwrap();
    let mut header = bytes[..HEADER_BYTES].to_vec();
    header[56..].copy_from_slice(&(frame.len() as u64).to_le_bytes());
    let mut bomb = [header, frame].concat();
    bomb.extend_from_slice(&envelope::authenticate(&key(), Protection::Plain, &bomb));
    assert_eq!(kind_of(Protection::Plain, &bomb), ErrorKind::Corruption);
}

fn put(store: &MemoryStore, body: &str) -> mover_model::Result<Put> {
    envelope::put(store, &key(), Kind::Note, Protection::Plain, &body)
}

fn there(store: &MemoryStore) -> Option<String> {
    envelope::get(store, &key(), Kind::Note, Protection::Plain).unwrap()
}

#[test]
fn a_put_of_unknown_outcome_is_settled() {
    use ErrorKind::{Full, Io, Unreachable};
    use Fault::{After, Before, Repeated};
    let done: &[&[Fault]] = &[
        &[],
        &[Repeated],
        &[After(Io)],
        &[After(Unreachable)],
        &[Before(Io)],
        &[Before(Unreachable), Repeated],
        // A store that does not answer twice, and can be asked.
        &[After(Unreachable), Before(Unreachable)],
    ];
    for faults in done {
        let store = MemoryStore::new();
        store.fail(faults);
        assert_eq!(put(&store, "ours").unwrap(), Put::Done, "{faults:?}");
        assert_eq!(there(&store).as_deref(), Some("ours"));
        // Another's is another's, whatever goes wrong.
        for faults in [&[][..], &[Repeated], &[After(Io)], &[Before(Unreachable)]] {
            store.fail(faults);
            assert_eq!(put(&store, "ours").unwrap(), Put::Exists, "{faults:?}");
        }
    }
    // Not durable for sure, full, or not there: the first error stands.
    for (faults, kind, puts) in [
        (&[After(Io), After(Io)][..], Io, 2),
        (&[After(Io), Before(Io)], Io, 2),
        (&[Before(Unreachable), Before(Unreachable)], Unreachable, 2),
        (&[Before(Full)], Full, 1),
        (&[After(Full)], Full, 1),
    ] {
        let store = MemoryStore::new();
        store.fail(faults);
        assert_eq!(put(&store, "ours").unwrap_err().kind(), kind, "{faults:?}");
        assert_eq!(store.puts(), puts, "{faults:?}");
    }
}

#[test]
fn get_tells_missing_from_another_kind_from_another_document() {
    let store = MemoryStore::new();
    assert_eq!(there(&store), None);
    assert_eq!(put(&store, "text").unwrap(), Put::Done);
    let get = |kind| envelope::get::<u64>(&*store, &key(), kind, Protection::Plain).unwrap_err();
    assert_eq!(get(Kind::Session).kind(), ErrorKind::Corruption);
    assert_eq!(get(Kind::Note).kind(), ErrorKind::Unsupported);
    assert!(get(Kind::Note).to_string().contains("memory/manifests/vm/point"));
    store.delete(&key()).unwrap();
    assert_eq!(there(&store), None);
}
