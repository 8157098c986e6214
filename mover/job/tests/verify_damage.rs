//! `verify` finds damage of every kind, says what it touches, and passes again once a backup has healed it.

#[path = "../../repository/tests/machine/mod.rs"]
mod machine;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use machine::{CHUNK, Content, back_up, chunk, content, init_at, name};
use mover_engine::Control;
use mover_job::repository::access::RepositoryOptions;
use mover_job::repository::verify::{Sample, VerifyOptions, run};
use mover_model::PointSelector;
use mover_model::event::{Event, RunResult};
use mover_repository::Repository;
use mover_repository::format::pack::pack_key;
use mover_repository::index::Index;
use mover_repository::index::doom::{self, DoomList};
use mover_repository::keys::ChunkKind;
use mover_repository::manifests::manifest_key;
use mover_repository::names::ObjectName;
use mover_repository::notes::{self, PointNote};
use mover_repository::store::Key;
use tempfile::TempDir;

struct Home {
    _folder: TempDir,
    path: PathBuf,
    repository: Arc<Repository>,
}

fn home() -> Home {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("repository");
    let repository = init_at(&path);
    Home { _folder: folder, path, repository }
}

impl Home {
    fn options(&self) -> VerifyOptions {
        VerifyOptions {
            repository: RepositoryOptions { folder: self.path.clone(), ..RepositoryOptions::default() },
            ..VerifyOptions::default()
        }
    }

    fn verify(&self) -> RunResult {
        run(&self.options(), &Control::new(), &|_| {})
    }

    fn flip(&self, key: &Key, at: u64) {
        use std::os::unix::fs::FileExt;
        let path = self.path.join(key.as_str());
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x11], at).unwrap();
    }

    /// Damages a chunk of the first disk that has it.
    fn damage(&self, seed: u64) {
        let id = self.repository.keys().chunk_id(ChunkKind::Data, &chunk(seed));
        let place = Index::open(&self.repository).unwrap().find(&id).unwrap().unwrap();
        self.flip(&pack_key(place.pack), place.entry.offset + 3);
    }
}

fn change(content: &Content, at: usize, seed: u64) -> Content {
    let mut changed = content.clone();
    changed[at] = seed;
    changed
}

#[test]
fn a_whole_repository_passes_and_every_chunk_is_read_once() {
    let home = home();
    let first = content(1, 600);
    let second = change(&first, 7, 9001);
    let a = back_up(&home.repository, "a", &first, None).unwrap();
    back_up(&home.repository, "a", &second, Some(&first)).unwrap();
    back_up(&home.repository, "b", &first, None).unwrap();
    let result = home.verify();
    assert_eq!(result.exit_code, 0, "{:?}", result.error);
    let found = result.verify.unwrap();
    assert_eq!((found.points, found.chunks, found.nodes), (3, 601, 5 + 3));
    assert_eq!((found.damaged_chunks, found.touched.len(), found.damaged_objects.len()), (0, 0, 0));
    let noted = notes::of_point(&home.repository, &a.vm, &a.point).unwrap();
    assert!(matches!(noted[..], [PointNote::Verified { .. }]), "{noted:?}");
    assert_eq!(home.repository.store().list("sessions/").unwrap().len(), 0);

    let one = VerifyOptions { vm: Some(name("a")), point: Some(PointSelector::Latest), ..home.options() };
    let found = run(&one, &Control::new(), &|_| {}).verify.unwrap();
    assert_eq!((found.points, found.chunks), (1, 600));

    for (sample, count) in [(Sample::Count(25), 25), (Sample::Percent(10.0), 61)] {
        let events = Mutex::new(Vec::new());
        let sampled = VerifyOptions { sample: Some(sample), ..home.options() };
        let result = run(&sampled, &Control::new(), &|event| events.lock().unwrap().push(event));
        assert_eq!((result.exit_code, result.verify.unwrap().chunks), (0, count));
        let told = |event: &Event| matches!(event, Event::Choice { about, reason, .. } if about == "sample" && reason.contains("seed"));
        assert!(events.into_inner().unwrap().iter().any(told));
    }
    let notes_now = notes::of_point(&home.repository, &a.vm, &a.point).unwrap();
    assert_eq!(notes_now.len(), 1, "a sample proves nothing of a point");
}

#[test]
fn damage_names_all_that_it_touches_and_a_later_backup_heals_it() {
    let home = home();
    let first = content(1, 600);
    let second = change(&first, 7, 9001);
    let a = back_up(&home.repository, "a", &first, None).unwrap();
    let b = back_up(&home.repository, "a", &second, Some(&first)).unwrap();
    let other = content(50_000, 10);
    let c = back_up(&home.repository, "c", &other, None).unwrap();
    home.damage(first[300]);
    home.damage(first[301]);
    home.damage(9001);
    let result = home.verify();
    assert_eq!(result.exit_code, 6);
    let found = result.verify.unwrap();
    assert_eq!(found.damaged_chunks, 3);
    let chunk = CHUNK as u64;
    let both = (300 * chunk, 2 * chunk);
    let touched: Vec<_> =
        found.touched.iter().map(|t| (t.vm.as_str(), t.point.as_str(), t.extents.clone())).collect();
    assert_eq!(
        touched,
        [("a", a.point.as_str(), vec![both]), ("a", b.point.as_str(), vec![(7 * chunk, chunk), both])]
    );
    assert_eq!(notes::damaged(&home.repository).unwrap().len(), 3);
    let noted = notes::of_point(&home.repository, &b.vm, &b.point).unwrap();
    assert!(matches!(&noted[..], [PointNote::Damaged { extents, .. }] if extents.len() == 2), "{noted:?}");
    let noted = notes::of_point(&home.repository, &c.vm, &c.point).unwrap();
    assert!(matches!(noted[..], [PointNote::Verified { .. }]), "{noted:?}");

    // What is read whole again is stored again, and with that earlier points are whole, too.
    let healing = back_up(&home.repository, "d", &second, None).unwrap();
    assert_eq!(healing.stored.new_chunks, 2 + 1);
    let result = home.verify();
    assert_eq!(result.exit_code, 0, "{:?}", result.error);
    assert_eq!(result.verify.unwrap().damaged_chunks, 0);
    assert_eq!(notes::damaged(&home.repository).unwrap().len(), 3, "until gc removes the packs");
}

#[test]
fn every_kind_of_object_is_named_when_it_is_damaged_or_missing() {
    for (prefix, delete) in [("manifests/b/", false), ("index/", false), ("packs/", false), ("packs/", true)]
    {
        let home = home();
        back_up(&home.repository, "a", &content(1, 40), None).unwrap();
        back_up(&home.repository, "b", &content(5001, 40), None).unwrap();
        let mut listed = home.repository.store().list(prefix).unwrap();
        listed.sort_by_key(|listed| std::cmp::Reverse(listed.size));
        let (key, size) = (listed[0].key.clone(), listed[0].size);
        if delete {
            home.repository.store().delete(&key).unwrap();
        } else {
            home.flip(&key, size - 40);
        }
        let result = home.verify();
        assert_eq!(result.exit_code, 6, "{key}: {:?}", result.error);
        let found = result.verify.unwrap();
        let named = found.damaged_objects.iter().any(|object| object.key.ends_with(key.as_str()));
        assert!(named, "{key} is not among {:?}", found.damaged_objects);
        if prefix == "packs/" {
            assert!(found.damaged_chunks >= 40 && !found.touched.is_empty(), "{found:?}");
        }
    }
}

#[test]
fn a_doomed_pack_that_goes_meanwhile_is_damage_only_where_a_restore_point_needs_it() {
    for pruned in [true, false] {
        let home = home();
        let manifest = back_up(&home.repository, "a", &content(1, 40), None).unwrap();
        back_up(&home.repository, "b", &content(5001, 40), None).unwrap();
        let id = home.repository.keys().chunk_id(ChunkKind::Data, &chunk(1));
        let pack = Index::open(&home.repository).unwrap().find(&id).unwrap().unwrap().pack;
        let list = DoomList::new(ObjectName::random().unwrap(), std::time::SystemTime::UNIX_EPOCH, &[pack]);
        doom::put(&home.repository, &list).unwrap();
        let emit = |event: Event| {
            // A gc that does not wait for this verify, as it began after the list.
            if matches!(event, Event::Phase { phase } if phase == "packs") {
                let store = home.repository.store();
                if pruned {
                    store.delete(&manifest_key(&manifest.vm, &manifest.point)).unwrap();
                }
                store.delete(&pack_key(pack)).unwrap();
            }
        };
        let result = run(&home.options(), &Control::new(), &emit);
        let found = result.verify.unwrap();
        let told = (result.exit_code, found.damaged_chunks, found.damaged_objects.len(), found.touched.len());
        assert_eq!(told, if pruned { (0, 0, 0, 0) } else { (6, 40, 1, 1) }, "{found:?}");
        assert_eq!(notes::damaged(&home.repository).unwrap().len(), if pruned { 0 } else { 40 });
    }
}

#[test]
fn verify_of_a_lost_segment_reads_all_and_says_that_packs_are_in_none() {
    let home = home();
    back_up(&home.repository, "a", &content(1, 40), None).unwrap();
    let all = home.verify();
    assert_eq!(all.exit_code, 0);
    // What is stored is less than what was read where chunks compress.
    let packs: u64 = home.repository.store().list("packs/").unwrap().iter().map(|pack| pack.size).sum();
    let (stored, plain) = (all.verify.as_ref().unwrap().stored_bytes, 40 * CHUNK as u64);
    assert!(stored < packs && stored < plain && stored > plain / 2, "{stored} of {packs}, {plain}");
    for listed in home.repository.store().list("index/").unwrap() {
        home.repository.store().delete(&listed.key).unwrap();
    }
    let lost = home.verify();
    assert_eq!(lost.exit_code, 0, "{:?}", lost.error);
    assert_eq!(lost.verify.unwrap().chunks, 40);
    let said = lost.degraded.iter().find(|degraded| degraded.about == "index").expect("it says so");
    assert!(said.reason.contains("packs are in none"), "{said:?}");
}
