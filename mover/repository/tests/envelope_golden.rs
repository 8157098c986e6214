//! Bytes that version 1 has written: every later version reads them, and this one writes the same.
//!
//! `MOVER_GOLDEN=update` writes them anew, which is right only before version 1 is released.

mod memory;

use std::path::PathBuf;

use memory::MemoryStore;
use mover_repository::format::envelope::{self, Kind, Protection};
use mover_repository::keys::{ChunkKind, slots};
use mover_repository::store::Key;
use mover_repository::{Compression, InitOptions, Keys, Repository, Secret};

const BODY: &[u8] = br#"{"fixed":"a document of version 1"}"#;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn is_update() -> bool {
    std::env::var_os("MOVER_GOLDEN").is_some_and(|value| value == "update")
}

/// The golden bytes; in an update what `make` makes becomes them.
fn bytes(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = golden(name);
    if is_update() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, make()).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn envelopes_of_version_1() {
    let key = Key::new("notes/golden");
    let (plain, encrypted) = (Keys::plain([3; 32]), Keys::encrypted([1; 32], [2; 32]));
    for (name, protection) in [
        ("envelope-unkeyed-v1.bin", Protection::Plain),
        ("envelope-keyed-v1.bin", Protection::Sealed(&plain)),
        ("envelope-encrypted-v1.bin", Protection::Sealed(&encrypted)),
    ] {
        let encode = |body: &[u8]| envelope::encode(&key, Kind::Note, protection, [0x5a; 16], body).unwrap();
        let written = bytes(name, || encode(BODY));
        let read = envelope::decode(&key, name, protection, &written).unwrap();
        assert_eq!((read.kind, read.nonce, &read.body[..]), (Kind::Note, [0x5a; 16], BODY));
        assert_eq!(encode(BODY), written, "{name}");

        // A compressor may change what it writes, never what it reads.
        let name = format!("zstd-{name}");
        let written = bytes(&name, || encode(&BODY.repeat(1000)));
        assert!(written.len() < 1000);
        assert_eq!(envelope::decode(&key, &name, protection, &written).unwrap().body, BODY.repeat(1000));
    }
}

/// The objects of a repository, as they lie in a golden folder.
fn repository(name: &str, secrets: &[Secret]) -> (std::sync::Arc<MemoryStore>, PathBuf) {
    let folder = golden(name);
    if is_update() {
        let store = MemoryStore::new();
        let options =
            InitOptions { chunk_size: 64 << 10, compression: Compression::Zstd(5), id_key: Some([4; 32]) };
        let made =
            Repository::init(store.clone(), &options, secrets.first().unwrap_or(&Secret::None)).unwrap();
        secrets.iter().skip(1).for_each(|secret| drop(slots::add(&made, secret, "second").unwrap()));
        let _ = std::fs::remove_dir_all(&folder);
        for key in store.keys() {
            let path = folder.join(&key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, store.bytes(&key)).unwrap();
        }
    }
    let store = MemoryStore::new();
    store.set("config", std::fs::read(folder.join("config")).unwrap());
    for slot in std::fs::read_dir(folder.join("keys")).into_iter().flatten() {
        let slot = slot.unwrap();
        store.set(
            &format!("keys/{}", slot.file_name().to_str().unwrap()),
            std::fs::read(slot.path()).unwrap(),
        );
    }
    (store, folder)
}

fn check(store: &std::sync::Arc<MemoryStore>, secret: &Secret) {
    let opened = Repository::open(store.clone(), secret).unwrap();
    opened.check_writable().unwrap();
    let config = opened.config();
    assert_eq!((config.version, config.chunk_size, config.compression), (1, 64 << 10, Compression::Zstd(5)));
    assert_eq!(config.encrypted, !secret.is_none());
    assert_eq!(opened.keys().id_key(), [4; 32]);
}

#[test]
fn repositories_of_version_1() {
    let secrets = [Secret::KeyFile(vec![6; 32]), Secret::Passphrase(b"golden".to_vec())];
    let (plain, _) = repository("plain-v1", &[]);
    check(&plain, &Secret::None);
    let (encrypted, _) = repository("encrypted-v1", &secrets);
    assert_eq!(encrypted.keys().len(), 3);
    secrets.iter().for_each(|secret| check(&encrypted, secret));
}

#[test]
fn names_of_version_1() {
    let keys = Keys::plain([4; 32]);
    let names = format!(
        "{}\n{}\n",
        keys.chunk_id(ChunkKind::Data, b"content"),
        keys.chunk_id(ChunkKind::Node, b"content")
    );
    assert_eq!(String::from_utf8(bytes("names-v1.txt", || names.clone().into())).unwrap(), names);
    // Encryption changes no name: repositories that share an id key agree.
    let encrypted = Keys::encrypted([9; 32], [4; 32]);
    assert_eq!(encrypted.chunk_id(ChunkKind::Data, b"content"), keys.chunk_id(ChunkKind::Data, b"content"));
}
