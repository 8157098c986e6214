//! What every store promises. One suite; only the constructors differ.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod support;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use mover_engine::pattern::SplitMix;
use mover_model::ErrorKind;
use mover_repository::store::{Key, LocalStore, Put, Step, Steps, Store};
use support::MemoryStore;

/// A filesystem that has no hard links.
struct NoLinks;

impl Steps for NoLinks {
    fn before(&self, step: &Step) -> io::Result<()> {
        match step {
            Step::Link(..) => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            _ => Ok(()),
        }
    }

    fn after(&self, _: &Step) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a check on a fresh store of every kind.
fn on_every_store(check: impl Fn(Arc<dyn Store>)) {
    let on_disk = tempfile::tempdir().unwrap();
    check(Arc::new(LocalStore::new(on_disk.path().join("repository"))));
    let without_links = tempfile::tempdir().unwrap();
    check(Arc::new(LocalStore::with_steps(without_links.path(), Arc::new(NoLinks))));
    check(Arc::new(MemoryStore::default()));
    // Where there is one: other rules for O_DIRECT and fallocate.
    if Path::new("/dev/shm").is_dir() {
        let in_memory = tempfile::tempdir_in("/dev/shm").unwrap();
        check(Arc::new(LocalStore::new(in_memory.path())));
    }
}

fn key(text: &str) -> Key {
    Key::new(text)
}

fn content(store: &dyn Store, name: &str) -> Option<Vec<u8>> {
    store.open(&key(name)).unwrap().map(|object| object.read_all(u64::MAX).unwrap())
}

fn names(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix).unwrap().into_iter().map(|listed| listed.key.to_string()).collect()
}

#[test]
fn an_object_is_put_once_and_read_back() {
    on_every_store(|store| {
        let before = store.now().unwrap();
        assert_eq!(store.put(&key("notes/a/b"), b"first").unwrap(), Put::Done);
        assert_eq!(store.put(&key("notes/a/b"), b"second").unwrap(), Put::Exists);
        assert_eq!(content(&*store, "notes/a/b").unwrap(), b"first");
        assert_eq!(store.put(&key("empty"), b"").unwrap(), Put::Done);
        assert_eq!(content(&*store, "empty").unwrap(), b"");
        let listed = &store.list("notes/").unwrap()[0];
        assert_eq!((listed.size, listed.key.last()), (5, "b"));
        let slack = Duration::from_millis(100);
        let after = store.now().unwrap() + slack;
        assert!((before - slack..after).contains(&listed.modified), "{:?} is not now", listed.modified);
    });
}

#[test]
fn an_object_that_is_not_there_is_none() {
    on_every_store(|store| {
        assert!(store.open(&key("packs/aa/none")).unwrap().is_none());
        store.put(&key("packs/aa/one"), b"1").unwrap();
        for none in ["packs", "packs/aa", "packs/aa/one/more", "packs/aa/on", "packs/aa/one1"] {
            assert!(store.open(&key(none)).unwrap().is_none(), "{none}");
            store.delete(&key(none)).unwrap();
        }
        assert_eq!(content(&*store, "packs/aa/one").unwrap(), b"1");
    });
}

#[test]
fn ranges_are_read_whole_or_not_at_all() {
    on_every_store(|store| {
        let bytes: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
        store.put(&key("packs/00/x"), &bytes).unwrap();
        let object = store.open(&key("packs/00/x")).unwrap().unwrap();
        assert_eq!(object.size(), 10_000);
        for (offset, length) in [(0, 10_000), (1, 1), (4095, 2), (9_999, 1), (10_000, 0), (123, 9_000)] {
            let mut buffer = vec![0; length];
            object.read_at(offset as u64, &mut buffer).unwrap();
            assert_eq!(buffer, bytes[offset..offset + length]);
        }
        for (offset, length) in [(0, 10_001), (9_999, 2), (10_000, 1), (u64::MAX - 3, 8)] {
            let error = object.read_at(offset, &mut vec![0; length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corruption, "{offset}+{length}: {error}");
            assert!(error.to_string().contains("packs/00/x"), "{error}");
        }
        assert_eq!(object.read_all(10_000).unwrap(), bytes);
        let error = object.read_all(9_999).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
    });
}

#[test]
fn listings_are_in_order_and_know_folders() {
    on_every_store(|store| {
        assert!(names(&*store, "").is_empty() && names(&*store, "manifests/").is_empty());
        assert!(store.list_folders("manifests/").unwrap().is_empty());
        let all =
            ["config", "manifests/a-b/1", "manifests/a/1", "manifests/a/2", "manifests/b/1", "notes/x/y/z"];
        for name in all.iter().rev() {
            store.put(&key(name), name.as_bytes()).unwrap();
        }
        assert_eq!(names(&*store, ""), all);
        assert_eq!(names(&*store, "manifests/"), all[1..5]);
        assert_eq!(names(&*store, "manifests/a/"), all[2..4]);
        assert_eq!(store.list_folders("manifests/").unwrap(), ["a", "a-b", "b"]);
        assert_eq!(store.list_folders("").unwrap(), ["manifests", "notes"]);
        assert_eq!(store.list_folders("notes/x/").unwrap(), ["y"]);
        // A machine without points is none.
        store.delete_many(&[key("manifests/a/1"), key("manifests/a/2"), key("manifests/a/3")]).unwrap();
        assert_eq!(store.list_folders("manifests/").unwrap(), ["a-b", "b"]);
    });
}

#[test]
fn a_deleted_object_is_gone_and_deleting_it_again_is_no_error() {
    on_every_store(|store| {
        store.put(&key("doom/a"), b"a").unwrap();
        store.delete(&key("doom/a")).unwrap();
        store.delete(&key("doom/a")).unwrap();
        assert!(content(&*store, "doom/a").is_none() && names(&*store, "").is_empty());
        assert_eq!(store.put(&key("doom/a"), b"again").unwrap(), Put::Done);
        store.delete_many(&[]).unwrap();
    });
}

#[test]
fn an_upload_is_seen_when_it_is_committed_and_not_before() {
    on_every_store(|store| {
        let name = key("packs/7f/large");
        let mut upload = store.begin(&name, 1 << 20).unwrap();
        upload.write_at(8192, &[2; 100]).unwrap();
        upload.write_at(0, &[1; 8192]).unwrap();
        assert!(store.open(&name).unwrap().is_none() && names(&*store, "").is_empty());
        assert_eq!(upload.commit(8292).unwrap(), Put::Done);
        let mut expected = vec![1; 8192];
        expected.extend([2; 100]);
        assert_eq!(content(&*store, "packs/7f/large").unwrap(), expected);
        // The second one of the name changes nothing.
        let mut upload = store.begin(&name, 0).unwrap();
        upload.write_at(0, b"other").unwrap();
        assert_eq!(upload.commit(5).unwrap(), Put::Exists);
        assert_eq!(content(&*store, "packs/7f/large").unwrap(), expected);
        // One that is dropped never was.
        let mut upload = store.begin(&key("packs/7f/dropped"), 10).unwrap();
        upload.write_at(0, b"0123456789").unwrap();
        drop(upload);
        assert_eq!(names(&*store, "packs/"), ["packs/7f/large"]);
        assert_eq!(store.sweep(&|_| false).unwrap(), 0, "nothing was left of it");
    });
}

/// What a ring does, done by plain calls: whole blocks through the upload's own descriptor.
#[test]
fn blocks_written_to_the_file_and_bytes_written_beside_them_make_one_object() {
    on_every_store(|store| {
        let mut upload = store.begin(&key("packs/00/mixed"), 5 * 4096).unwrap();
        if upload.file().is_none() {
            return;
        }
        let mut random = SplitMix::new(7);
        let mut expected = vec![0; 4 * 4096 + 77];
        random.fill(&mut expected);
        // A buffer with a block's alignment, without unsafe code.
        let mut room = vec![0_u8; 2 * 4096];
        let shift = room.as_ptr().align_offset(4096);
        for block in [3, 0, 2, 1] {
            let range = block * 4096..(block + 1) * 4096;
            if block % 2 == 0 {
                room[shift..shift + 4096].copy_from_slice(&expected[range.clone()]);
                let target = upload.file().unwrap();
                let bytes = &room[shift..shift + 4096];
                assert!(target.alignment.allows(range.start as u64, 4096, bytes.as_ptr()));
                let file = std::fs::File::from(target.fd.try_clone_to_owned().unwrap());
                file.write_all_at(bytes, range.start as u64).unwrap();
            } else {
                upload.write_at(range.start as u64, &expected[range]).unwrap();
            }
        }
        upload.write_at(4 * 4096, &expected[4 * 4096..]).unwrap();
        assert_eq!(upload.commit(expected.len() as u64).unwrap(), Put::Done);
        assert!(content(&*store, "packs/00/mixed").unwrap() == expected);
        // And read as a ring reads.
        let object = store.open(&key("packs/00/mixed")).unwrap().unwrap();
        let source = object.file().unwrap();
        let file = std::fs::File::from(source.fd.try_clone_to_owned().unwrap());
        file.read_exact_at(&mut room[shift..shift + 4096], 2 * 4096).unwrap();
        assert!(room[shift..shift + 4096] == expected[2 * 4096..3 * 4096]);
    });
}

#[test]
fn of_many_puts_of_one_key_exactly_one_is_done() {
    const THREADS: usize = 8;
    on_every_store(|store| {
        for round in 0..20 {
            let name = key(&format!("sessions/r{round}/0"));
            let start = Barrier::new(THREADS);
            let outcomes: Vec<Put> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS)
                    .map(|me| {
                        let (store, name, start) = (&store, &name, &start);
                        scope.spawn(move || {
                            let bytes = vec![me as u8; 1000 + me];
                            start.wait();
                            // Half of them the long way.
                            if me % 2 == 0 {
                                return store.put(name, &bytes).unwrap();
                            }
                            let mut upload = store.begin(name, 2000).unwrap();
                            upload.write_at(0, &bytes).unwrap();
                            upload.commit(bytes.len() as u64).unwrap()
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let winners: Vec<_> = (0..THREADS).filter(|&me| outcomes[me] == Put::Done).collect();
            assert_eq!(winners.len(), 1, "{outcomes:?}");
            let bytes = content(&*store, name.as_str()).unwrap();
            assert_eq!(bytes, vec![winners[0] as u8; 1000 + winners[0]]);
        }
    });
}

/// Folders come and go with what is in them: puts, deletes and listings must not trip over each other's.
#[test]
fn puts_deletes_and_listings_of_one_folder_do_not_disturb_each_other() {
    on_every_store(|store| {
        std::thread::scope(|scope| {
            for me in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..40 {
                        let name = key(&format!("sessions/shared/deep/{me}-{round}"));
                        assert_eq!(store.put(&name, b"x").unwrap(), Put::Done);
                        assert!(store.open(&name).unwrap().is_some());
                        assert!(store.list("sessions/").unwrap().iter().any(|listed| listed.key == name));
                        store.delete(&name).unwrap();
                        store.list_folders("sessions/").unwrap();
                    }
                });
            }
        });
        assert!(names(&*store, "").is_empty());
    });
}

#[test]
#[allow(clippy::print_stdout)] // the seed, for whoever has to repeat it
fn a_store_behaves_as_a_map_with_names_that_are_taken_once() {
    let seed = 0x5eed_0001;
    println!("seed {seed:#x}");
    on_every_store(|store| {
        let mut random = SplitMix::new(seed);
        let mut model = BTreeMap::<String, Vec<u8>>::new();
        for _ in 0..300 {
            let name = format!(
                "{}/{}/{}",
                ["a", "b", "ab"][random.below(3) as usize],
                random.below(3),
                random.below(4)
            );
            let mut bytes = vec![0; random.below(6000) as usize];
            random.fill(&mut bytes);
            match random.below(5) {
                0 | 1 => {
                    let expected = if model.contains_key(&name) { Put::Exists } else { Put::Done };
                    assert_eq!(store.put(&key(&name), &bytes).unwrap(), expected);
                    model.entry(name).or_insert(bytes);
                }
                2 => {
                    store.delete(&key(&name)).unwrap();
                    model.remove(&name);
                }
                3 => assert_eq!(content(&*store, &name), model.get(&name).cloned()),
                _ => {
                    let prefix = ["", "a/", "ab/", "b/1/"][random.below(4) as usize];
                    let expected: Vec<_> =
                        model.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
                    assert_eq!(names(&*store, prefix), expected);
                }
            }
        }
    });
}
