//! JSON bodies in authentic envelopes: config, key slot, manifest, aborted, session, doom list, notes.

use std::sync::Arc;

use mover_model::ErrorKind::{Corruption, Key as WrongKey, Unsupported, WrongIdentity};
use mover_model::{Error, Name};
use mover_repository::format::envelope::{Kind, Protection, decode, encode};
use mover_repository::index::Index;
use mover_repository::index::doom;
use mover_repository::keys::slots;
use mover_repository::notes;
use mover_repository::store::{Key, Store};
use mover_repository::{InitOptions, Repository, Secret, manifests, session};
use serde_json::{Value, json};

use super::{Source, refused};
use crate::format_support::MemoryStore;

const KINDS: &[mover_model::ErrorKind] = &[Corruption, Unsupported, WrongIdentity, WrongKey];
const ID: &str = "00112233445566778899aabbccddeeff";

/// What stands in place of a value: of other types, past the ends of numbers, text that is none.
fn instead(source: &mut Source<'_>) -> Value {
    match source.byte() % 16 {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(u64::MAX),
        3 => json!(i64::MIN),
        4 => json!(1.5e300),
        5 => json!(0),
        6 => json!(2),
        7 => json!(""),
        8 => json!("../../etc"),
        9 => json!([]),
        10 => json!({}),
        11 => json!("f".repeat(64)),
        12 => json!("0".repeat(64)),
        13 => json!(source.word()),
        14 => json!([[null], {"zstd": 20}, "x"]),
        _ => json!(String::from_utf8_lossy(source.some(12))),
    }
}

/// Values of a document, those within others too.
fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(all) => all.iter().map(values).sum(),
        Value::Object(all) => all.values().map(values).sum::<usize>(),
        _ => 0,
    }
}

/// Replaces, removes or doubles the value of a number.
fn change(value: &mut Value, number: &mut usize, source: &mut Source<'_>) {
    if *number == 0 {
        *value = instead(source);
        *number = usize::MAX;
        return;
    }
    *number -= 1;
    match value {
        Value::Array(all) => {
            for value in all.iter_mut() {
                change(value, number, source);
                if *number == usize::MAX {
                    break;
                }
            }
            if *number == usize::MAX && source.byte().is_multiple_of(8) {
                all.extend(all.clone());
            }
        }
        Value::Object(all) => {
            let mut changed = None;
            for (key, value) in all.iter_mut() {
                change(value, number, source);
                if *number == usize::MAX {
                    changed = Some(key.clone());
                    break;
                }
            }
            if let Some(key) = changed
                && source.byte().is_multiple_of(8)
            {
                all.remove(&key);
            }
        }
        _ => {}
    }
}

fn manifest(repository: &Repository) -> Value {
    json!({
        "version": 1, "repository": repository.config().id, "namespace": "", "vm": "vm", "vm_uuid": "u",
        "point": "p", "parent": "o", "sequence": 2, "run_key": "k", "labels": {"a": "b"},
        "started": "2026-11-20T03:00:00Z", "finished": "2026-11-20T03:00:01Z", "host": "h", "mover": "0.1.0",
        "damaged": true, "stored": {"new_chunks": 1, "new_bytes": 2, "stored_bytes": 3},
        "disks": [{
            "id": "vda", "size": 1048576, "chunk_size": 131072, "root": "0".repeat(64), "data_bytes": 0,
            "method": "changed", "reason": "r", "base": "o", "checkpoint": "c", "source": "d.raw", "path": "/d.raw",
            "identity": {"device": "8:1", "inode": 1, "size": 1048576, "mtime_ns": 1, "ctime_ns": 1, "btime_ns": 1},
            "common": {"vm": "a", "point": "b", "disk": "c"},
            "bad_extents": [{"start": 0, "length": 512}], "read_bytes": 1,
            "stored": {"new_chunks": 1, "new_bytes": 2, "stored_bytes": 3},
        }],
        "documents": {"vm.xml": "<domain/>"},
    })
}

/// A document in place of a good one, and what reads it.
pub fn documents(input: &[u8]) -> bool {
    let mut source = Source(input);
    let (which, raw) = (source.byte() % 8, source.byte().is_multiple_of(8));
    let store = Arc::new(MemoryStore::default());
    let encrypted = which == 1 || source.byte().is_multiple_of(4);
    let secret = if encrypted { Secret::KeyFile(vec![5; 32]) } else { Secret::None };
    let options = InitOptions { id_key: Some([7; 32]), ..InitOptions::default() };
    let repository = Arc::new(Repository::init(store.clone(), &options, &secret).unwrap());
    let sealed = Protection::Sealed(repository.keys());
    let slot = store.keys("keys/").pop();
    let (vm, point): (Name, Name) = ("vm".parse().unwrap(), "p".parse().unwrap());
    let there = |key: &Key| {
        let envelope = decode(key, "", Protection::Plain, &store.bytes(key)).unwrap();
        serde_json::from_slice::<Value>(&envelope.body).unwrap()
    };
    let (key, kind, protection, good) = match (which, slot) {
        (0, _) => {
            let key = Key::new("config");
            let good = there(&key);
            (key, Kind::Config, Protection::Plain, good)
        }
        (1, Some(key)) => {
            let good = there(&key);
            (key, Kind::KeySlot, Protection::Plain, good)
        }
        (2, _) => (manifests::manifest_key(&vm, &point), Kind::Manifest, sealed, manifest(&repository)),
        (3, _) => {
            let purposes = [
                json!({"purpose": "backup", "vm": "vm", "point": "p"}),
                json!({"purpose": "read", "verb": "restore"}),
                json!({"purpose": "gc"}),
                json!({"purpose": "prune"}),
            ];
            let mut good = json!({
                "id": ID, "host": "h", "host_id": "i", "pid": 1, "started": "2026-11-20T03:00:00Z",
            });
            let purpose = purposes[source.below(4)].clone();
            good.as_object_mut().unwrap().extend(purpose.as_object().unwrap().clone());
            (Key::new(format!("sessions/{ID}/0")), Kind::Session, sealed, good)
        }
        (4, _) => {
            let good = json!({"id": ID, "marked": "x", "mark_ns": 1_700_000_000_000_000_000u64, "packs": [ID, ID],
                "waits": {"list": ID, "sessions": [ID]}});
            (Key::new(format!("doom/{ID}")), Kind::Doom, sealed, good)
        }
        (5, _) => {
            let chunk = json!({"id": "ab".repeat(32), "pack": ID, "reason": "r"});
            let good = json!({"time": "2026-11-20T03:00:00Z", "chunks": [chunk, chunk]});
            (Key::new(format!("notes/damaged/{ID}")), Kind::Note, sealed, good)
        }
        (6, _) => {
            let good =
                json!({"note": "damaged", "time": "2026-11-20T03:00:00Z", "extents": [["vda", 0, 512]]});
            (Key::new(format!("notes/points/vm/p/{ID}")), Kind::Note, sealed, good)
        }
        _ => (manifests::manifest_key(&vm, &point), Kind::Aborted, sealed, json!({"ended": "x"})),
    };
    let mut document = good;
    let mut body = Vec::new();
    if !raw {
        for _ in 0..source.byte() % 3 {
            let mut number = source.below(values(&document));
            change(&mut document, &mut number, &mut source);
        }
        serde_json::to_writer(&mut body, &document).unwrap();
    }
    body.extend_from_slice(if raw || source.byte().is_multiple_of(16) { source.0 } else { b"" });
    store.replace(&key, encode(&key, kind, protection, [1; 16], &body).unwrap());

    let mut accepted = true;
    let mut read = |result: Result<(), Error>| {
        if let Err(error) = result {
            refused(&error, KINDS);
            accepted = false;
        }
    };
    match which {
        0 => {
            read(Repository::read_config(&*store).map(drop));
            read(Repository::open(store.clone(), &secret).map(drop));
        }
        1 => {
            let slots = slots::list(&*store, repository.config()).unwrap();
            assert_eq!(slots.slots.len() + slots.unreadable.len(), 1);
            slots.unreadable.iter().for_each(|(_, error)| refused(error, KINDS));
            // A key file costs no work; a passphrase's is bounded when the slot is read.
            read(Repository::open(store.clone(), &secret).map(drop));
        }
        2 | 7 => {
            read(manifests::get(&repository, &vm, &point).map(drop));
            let points = manifests::all(&repository, &vm).unwrap();
            points.unreadable.iter().for_each(|(_, error)| refused(error, KINDS));
        }
        3 => {
            // What cannot be read is a session all the same: nothing is deleted under it.
            let seen = session::others(&repository, None).unwrap();
            assert!(seen.len() <= 1);
        }
        4 => {
            read(doom::list(&repository).and_then(|lists| {
                lists.iter().try_for_each(|list| {
                    list.mark();
                    list.pack_names().map(drop)
                })
            }));
            read(Index::open(&repository).map(drop));
        }
        5 => {
            read(notes::damaged(&repository).map(drop));
            read(notes::forget_damaged(&repository, &|_| false).map(drop));
            let _ = Index::open(&repository).map_err(|error| refused(&error, KINDS));
        }
        _ => read(notes::of_point(&repository, &vm, &point).map(drop)),
    }
    store.delete(&key).unwrap();
    accepted
}
