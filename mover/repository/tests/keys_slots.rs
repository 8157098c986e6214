//! Making and opening repositories: which secret opens what, and what is said where none does.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::{Fault, MemoryStore, seed};
use mover_model::{Error, ErrorKind};
use mover_repository::format::envelope::{self, Kind, MAC_BYTES, Protection};
use mover_repository::keys::{ChunkKind, slots};
use mover_repository::store::{Key, Put, Store};
use mover_repository::{InitOptions, Repository, Secret};
use serde_json::{Value, json};

fn key_file(byte: u8) -> Secret {
    Secret::KeyFile(vec![byte; 32])
}

fn passphrase(text: &str) -> Secret {
    Secret::Passphrase(text.as_bytes().to_vec())
}

fn init(secret: &Secret) -> (Arc<MemoryStore>, Repository) {
    let store = MemoryStore::new();
    let repository = Repository::init(store.clone(), &InitOptions::default(), secret).unwrap();
    (store, repository)
}

fn open(store: &Arc<MemoryStore>, secret: &Secret) -> Result<Repository, Error> {
    Repository::open(store.clone(), secret)
}

fn error(store: &Arc<MemoryStore>, secret: &Secret) -> Error {
    open(store, secret).map(|_| ()).unwrap_err()
}

fn slot_keys(store: &MemoryStore) -> Vec<String> {
    store.keys().into_iter().filter(|key| key.starts_with("keys/")).collect()
}

/// A document with a change by somebody who can write to the store and has no keys.
fn altered(store: &MemoryStore, key: &str, change: impl FnOnce(&mut Value)) {
    let key = Key::new(key);
    let (kind, body) = envelope::open(store, &key, Protection::Plain).unwrap().unwrap();
    let mut document = serde_json::from_slice(&body).unwrap();
    change(&mut document);
    let body = serde_json::to_vec(&document).unwrap();
    store.set(key.as_str(), envelope::encode(&key, kind, Protection::Plain, [0; 16], &body).unwrap());
}

#[test]
fn a_repository_without_encryption_opens_without_a_secret_only() {
    let (store, made) = init(&Secret::None);
    assert_eq!(store.keys(), ["config"]);
    let opened = open(&store, &Secret::None).unwrap();
    assert_eq!((opened.id(), opened.config()), (made.id(), made.config()));
    let name = |repository: &Repository, kind| repository.keys().chunk_id(kind, b"content");
    assert_eq!(name(&opened, ChunkKind::Data), name(&made, ChunkKind::Data));
    assert_ne!(name(&opened, ChunkKind::Data), name(&made, ChunkKind::Node));
    assert_ne!(name(&init(&Secret::None).1, ChunkKind::Data), name(&made, ChunkKind::Data));
    let refused = error(&store, &key_file(1));
    assert_eq!(refused.kind(), ErrorKind::Key);
    assert!(refused.message().contains("not encrypted"), "{refused}");
    assert_eq!(slots::add(&made, &key_file(1), "").unwrap_err().kind(), ErrorKind::Refused);
    assert!(slots::list(&*store, made.config()).unwrap().slots.is_empty());
}

#[test]
fn an_encrypted_repository_opens_with_any_of_its_secrets() {
    let (store, made) = init(&key_file(1));
    slots::add(&made, &passphrase("correct horse"), "people").unwrap();
    let name = |repository: &Repository| repository.keys().chunk_id(ChunkKind::Data, b"content");
    for secret in [key_file(1), passphrase("correct horse")] {
        assert_eq!(name(&open(&store, &secret).unwrap()), name(&made));
    }
    for secret in [key_file(2), passphrase("wrong horse"), Secret::Passphrase(vec![1; 32])] {
        let wrong = error(&store, &secret);
        assert_eq!(wrong.kind(), ErrorKind::Key);
        assert_eq!(wrong.message(), "wrong passphrase or key file");
    }
    let none = error(&store, &Secret::None);
    assert_eq!(none.kind(), ErrorKind::Key);
    assert!(none.to_string().contains("--passphrase-file"), "{none}");
    let all: Vec<u8> = store.keys().iter().flat_map(|key| store.bytes(key)).collect();
    let id_key = made.keys().id_key();
    assert!(!all.windows(32).any(|window| window == id_key));
    assert!(!String::from_utf8_lossy(&all).contains(&mover_repository::format::hex::encode(&id_key)));
}

#[test]
fn secrets_that_are_none_are_refused_with_the_way_to_a_better_one() {
    for secret in [Secret::KeyFile(vec![1; 31]), passphrase("")] {
        let store = MemoryStore::new();
        let refused =
            Repository::init(store.clone(), &InitOptions::default(), &secret).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Key);
        assert!(store.keys().is_empty());
    }
    assert!(Secret::KeyFile(vec![1]).check().unwrap_err().to_string().contains("head -c 32 /dev/urandom"));
    for chunk_size in [0, 1, 8192, 100_000, 8 << 20] {
        let options = InitOptions { chunk_size, ..InitOptions::default() };
        let refused = Repository::init(MemoryStore::new(), &options, &Secret::None).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Usage);
    }
}

#[test]
fn secrets_are_read_as_people_write_them() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("secret");
    let bytes = |secret: &Secret| match secret {
        Secret::KeyFile(bytes) | Secret::Passphrase(bytes) => bytes.clone(),
        Secret::None => Vec::new(),
    };
    for (content, meant) in [("a b", "a b"), ("a b\n", "a b"), ("a b\r\n", "a b"), ("a\n\n", "a\n")] {
        std::fs::write(&file, content).unwrap();
        assert_eq!(bytes(&Secret::from_passphrase_file(&file).unwrap()), meant.as_bytes(), "{content:?}");
    }
    std::fs::write(&file, "\n").unwrap();
    assert_eq!(Secret::from_passphrase_file(&file).unwrap_err().kind(), ErrorKind::Key);
    std::fs::write(&file, [b'\n'; 32]).unwrap();
    assert_eq!(bytes(&Secret::from_key_file(&file).unwrap()), [b'\n'; 32]);
    std::fs::write(&file, [0; 31]).unwrap();
    let short = Secret::from_key_file(&file).unwrap_err();
    assert!(short.to_string().contains(&file.display().to_string()), "{short}");
    let missing = Secret::from_key_file(&place.path().join("missing")).unwrap_err();
    assert_eq!((missing.kind(), missing.errno()), (ErrorKind::Key, None));
    assert!(Secret::from_key_file("/dev/zero".as_ref()).is_err());

    assert_eq!(bytes(&Secret::from_passphrase_command("echo one; echo two").unwrap()), b"one");
    assert_eq!(bytes(&Secret::from_passphrase_command("printf one").unwrap()), b"one");
    for command in ["exit 3", "echo one; exit 3", "true", "echo"] {
        let failed = Secret::from_passphrase_command(&format!("{command} # hunter2")).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Key);
        // A command may hold what opens a password store.
        assert!(!format!("{failed} {failed:?}").contains("hunter2"), "{failed}");
    }
    assert_eq!(
        format!("{:?} {:?}", key_file(65), passphrase("AAAA")),
        "Secret::KeyFile(…) Secret::Passphrase(…)"
    );
}

#[test]
fn an_object_that_is_damaged_is_named() {
    let (store, _) = init(&key_file(1));
    for key in ["config".to_owned(), slot_keys(&store).remove(0)] {
        let bytes = store.bytes(&key);
        let damaged = |bytes: Vec<u8>| {
            store.set(&key, bytes);
            let error = error(&store, &key_file(1));
            assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
            assert!(error.to_string().contains(&key), "{error}");
        };
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            damaged(flipped);
        }
        (0..bytes.len()).for_each(|length| damaged(bytes[..length].to_vec()));
        store.set(&key, bytes);
        open(&store, &key_file(1)).unwrap();
    }
}

#[test]
fn a_damaged_slot_keeps_no_other_one_from_opening() {
    let (store, made) = init(&key_file(1));
    let added = slots::add(&made, &key_file(2), "second").unwrap();
    let first =
        slots::list(&*store, made.config()).unwrap().slots.into_iter().find(|slot| *slot != added).unwrap();
    let key = format!("keys/{}", first.id);
    store.set(&key, b"damaged".to_vec());
    open(&store, &key_file(2)).unwrap();
    let wrong = error(&store, &key_file(1));
    assert_eq!(wrong.kind(), ErrorKind::Key);
    assert!(wrong.message().contains(&key), "{wrong}");
    let listed = slots::list(&*store, made.config()).unwrap();
    assert_eq!((listed.slots.len(), listed.unreadable[0].0.as_str()), (1, key.as_str()));
    // What cannot be read does not count as a slot that stays.
    assert_eq!(slots::remove(&made, &added.id).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn a_hostile_slot_gets_neither_memory_nor_time() {
    let (store, made) = init(&key_file(1));
    let key = slot_keys(&store).remove(0);
    let original = store.bytes(&key);
    for (memory_kib, passes, lanes) in [
        (1u64 << 30, 1u64, 1u64),
        (u64::MAX, 1, 1),
        (65536, 1 << 31, 1),
        (65536, 3, 1 << 20),
        (7, 1, 1),
        (65536, 0, 1),
    ] {
        store.set(&key, original.clone());
        altered(&store, &key, |slot| {
            slot["kdf"] = json!({"name": "argon2id", "memory_kib": memory_kib, "passes": passes, "lanes": lanes,
                "salt": "00".repeat(32)});
        });
        let begun = Instant::now();
        let refused = error(&store, &passphrase("x"));
        assert!(matches!(refused.kind(), ErrorKind::Corruption | ErrorKind::Unsupported), "{refused}");
        assert!(refused.to_string().contains(&key) && begun.elapsed() < Duration::from_secs(2), "{refused}");
    }
    // Nothing of a slot can be altered and still open.
    for field in ["label", "created", "nonce", "wrapped"] {
        store.set(&key, original.clone());
        altered(&store, &key, |slot| {
            let text = slot[field].as_str().unwrap().to_owned();
            let first = if text.starts_with('0') { "1" } else { "0" };
            slot[field] = json!(format!("{first}{}", &text[1..]));
        });
        assert_eq!(error(&store, &key_file(1)).kind(), ErrorKind::Key, "{field}");
    }
    store.set(&key, original);
    altered(&store, &key, |slot| slot["version"] = json!(2));
    assert_eq!(error(&store, &key_file(1)).kind(), ErrorKind::Unsupported);
    store.delete(&Key::new(key.as_str())).unwrap();
    assert_eq!(error(&store, &key_file(1)).kind(), ErrorKind::Corruption);
    drop(made);
}

#[test]
fn an_altered_config_opens_nothing() {
    let (store, _) = init(&key_file(1));
    let original = store.bytes("config");
    let check = |change: &dyn Fn(&mut Value), secret: &Secret, kind| {
        store.set("config", original.clone());
        altered(&store, "config", change);
        let refused = error(&store, secret);
        assert_eq!(refused.kind(), kind, "{refused}");
    };
    check(&|config| config["chunk_size"] = json!(65536), &key_file(1), ErrorKind::Key);
    check(&|config| config["chunk_size"] = json!(65537), &key_file(1), ErrorKind::Corruption);
    check(
        &|config| config["id"] = json!("00000000-0000-0000-0000-000000000000"),
        &key_file(1),
        ErrorKind::WrongIdentity,
    );
    check(&|config| config["version"] = json!(2), &key_file(1), ErrorKind::Unsupported);
    check(&|config| config["compression"] = json!({"zstd": 1000}), &key_file(1), ErrorKind::Corruption);
    check(&|config| config["compression"] = json!("brotli"), &key_file(1), ErrorKind::Unsupported);
    // Nobody is led to write in the clear.
    let downgrade = |config: &mut Value| {
        config["encrypted"] = json!(false);
        config["id_key"] = json!("00".repeat(32));
    };
    check(&downgrade, &key_file(1), ErrorKind::Key);
    check(&downgrade, &Secret::None, ErrorKind::Corruption);
    check(&|config| config["id_key"] = json!("00".repeat(32)), &key_file(1), ErrorKind::Corruption);
}

#[test]
fn features_of_a_newer_version_are_read_beside_and_not_written_beside() {
    let (store, _) = init(&Secret::None);
    let mut bytes = store.bytes("config");
    bytes.truncate(bytes.len() - MAC_BYTES);
    bytes[24] = 1;
    let key = Key::new("config");
    bytes.extend_from_slice(&envelope::authenticate(&key, Protection::Plain, &bytes));
    store.set("config", bytes);
    let opened = open(&store, &Secret::None).unwrap();
    assert_eq!(opened.check_writable().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn init_refuses_what_is_not_empty_and_goes_on_beside_one_that_was_cut() {
    let (store, made) = init(&Secret::None);
    let again =
        Repository::init(store.clone(), &InitOptions::default(), &Secret::None).map(|_| ()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Refused);
    assert_eq!(open(&store, &Secret::None).unwrap().id(), made.id());

    let store = MemoryStore::new();
    store.set("README", vec![1]);
    let foreign =
        Repository::init(store.clone(), &InitOptions::default(), &Secret::None).map(|_| ()).unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::Refused);
    assert!(foreign.message().contains("README"), "{foreign}");
    assert_eq!(error(&store, &Secret::None).kind(), ErrorKind::NotFound);
    store.set("packs/00/x", vec![1]);
    let lost = error(&store, &Secret::None);
    assert_eq!(lost.kind(), ErrorKind::Corruption);
    assert!(lost.to_string().contains("config"), "{lost}");

    // Killed between the slot and the config: the slot of the one that was cut opens nothing and counts for nothing.
    let store = MemoryStore::new();
    let down = ErrorKind::Unreachable;
    store.fail(&[Fault::Repeated, Fault::Before(down), Fault::Before(down)]);
    let cut = Repository::init(store.clone(), &InitOptions::default(), &key_file(1)).map(|_| ()).unwrap_err();
    assert_eq!((cut.kind(), store.keys().len()), (down, 1));
    assert_eq!(error(&store, &key_file(1)).kind(), ErrorKind::NotFound);
    let made = Repository::init(store.clone(), &InitOptions::default(), &key_file(2)).unwrap();
    assert_eq!(open(&store, &key_file(2)).unwrap().id(), made.id());
    let listed = slots::list(&*store, made.config()).unwrap();
    assert_eq!((listed.slots.len(), listed.unreadable.len()), (1, 1));
    assert_eq!(slots::remove(&made, &listed.slots[0].id).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn of_many_that_make_a_repository_at_once_one_does() {
    for secret in [Secret::None, key_file(1)] {
        let store = MemoryStore::new();
        let results: Vec<_> = std::thread::scope(|scope| {
            let init = || Repository::init(store.clone(), &InitOptions::default(), &secret);
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(init)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let made: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        assert_eq!(made.len(), 1);
        assert!(
            results.iter().filter_map(|result| result.as_ref().err()).all(|e| e.kind() == ErrorKind::Refused)
        );
        assert_eq!(open(&store, &secret).unwrap().id(), made[0].id());
        // Those that lost have taken their slots away.
        assert_eq!(slot_keys(&store).len(), usize::from(!secret.is_none()));
    }
}

#[test]
fn the_last_slot_stays_whoever_removes_at_once() {
    println!("threads race here; MOVER_SEED changes only how many: {}", seed());
    for round in 0..100 {
        let (store, made) = init(&key_file(0));
        (1..3 + round % 3).for_each(|byte| drop(slots::add(&made, &key_file(byte as u8), "").unwrap()));
        let ids: Vec<_> =
            slots::list(&*store, made.config()).unwrap().slots.into_iter().map(|slot| slot.id).collect();
        std::thread::scope(|scope| {
            // Each slot by two at once.
            for id in ids.iter().chain(&ids) {
                scope.spawn(|| slots::remove(&made, id).map(|_| ()));
            }
        });
        let left = slots::list(&*store, made.config()).unwrap().slots.len();
        assert!(left >= 1, "round {round}");
        // Nobody is stuck: with one more all the others can go.
        let kept = slots::add(&made, &key_file(9), "kept").unwrap();
        for slot in slots::list(&*store, made.config()).unwrap().slots {
            if slot.id != kept.id {
                slots::remove(&made, &slot.id).unwrap();
            }
        }
        assert_eq!(slots::list(&*store, made.config()).unwrap().slots, [kept]);
        open(&store, &key_file(9)).unwrap();
        assert!(!store.keys().iter().any(|key| key.starts_with("notes/keys/")), "marks go with their slots");
    }
}

#[test]
fn a_slot_that_another_process_is_removing_does_not_count_as_staying() {
    let (store, made) = init(&key_file(1));
    let first = slots::list(&*store, made.config()).unwrap().slots.remove(0);
    let second = slots::add(&made, &key_file(2), "").unwrap();
    let mark = Key::new(format!("notes/keys/{}/mark", first.id));
    let marked = envelope::put(&*store, &mark, Kind::Note, Protection::Sealed(made.keys()), &json!({}));
    assert_eq!(marked.unwrap(), Put::Done);
    assert_eq!(slots::remove(&made, &second.id).unwrap_err().kind(), ErrorKind::Refused);
    // The mark of the other stays, ours went; the other one goes on, in another process if need be.
    assert!(store.keys().contains(&mark.to_string()));
    slots::remove(&made, &first.id).unwrap();
    open(&store, &key_file(2)).unwrap();
}
