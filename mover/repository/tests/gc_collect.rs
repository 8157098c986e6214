//! What gc gives back, what it leaves, and what it refuses.

mod machine;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use machine::{Backup, CHUNK, Content, back_up, chunk, content, init_at, name, prune, restore};
use mover_engine::Control;
use mover_model::event::{Event, GcResult};
use mover_model::{ErrorKind, Result};
use mover_repository::format::pack::pack_key;
use mover_repository::gc::{Options, collect};
use mover_repository::index::{Claim, Index};
use mover_repository::keys::ChunkKind;
use mover_repository::notes::{self, DamagedChunk, PointNote};
use mover_repository::session::{DEAD_AFTER, Purpose, Session};
use mover_repository::store::{Key, Listed, LocalStore, Object, Put, Store, Upload};
use mover_repository::write::Writer;
use mover_repository::{Repository, manifests};
use tempfile::TempDir;

fn options() -> Options {
    Options { wait: Duration::ZERO, repack_below: 0.7, dry_run: false }
}

fn try_gc(repository: &Arc<Repository>, options: &Options) -> (GcResult, Result<()>) {
    let mut result = GcResult::default();
    let ended = collect(repository, options, &Control::new(), &|_| {}, &mut result);
    (result, ended)
}

fn gc(repository: &Arc<Repository>) -> GcResult {
    let (result, ended) = try_gc(repository, &options());
    ended.unwrap();
    result
}

/// A second gc finds nothing to do.
fn assert_clean(repository: &Arc<Repository>) {
    let before = files(repository.store().label().as_ref());
    let again = gc(repository);
    assert_eq!(
        (again.packs_deleted, again.packs_rewritten, again.objects_deleted, again.packs_waiting),
        (0, 0, 0, 0),
        "{again:?}"
    );
    assert_eq!(files(repository.store().label().as_ref()), before);
}

/// All files and their sizes.
fn files(folder: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path().display().to_string(), entry.metadata().unwrap().len());
            }
        }
    }
    found
}

fn count(repository: &Repository, prefix: &str) -> usize {
    repository.store().list(prefix).unwrap().len()
}

fn repository() -> (TempDir, Arc<Repository>) {
    let folder = tempfile::tempdir().unwrap();
    let repository = init_at(&folder.path().join("repository"));
    (folder, repository)
}

/// Changes the disk's chunks in a range.
fn change(content: &Content, from: usize, to: usize, seed: u64) -> Content {
    let mut changed = content.clone();
    for (number, chunk) in changed.iter_mut().enumerate().take(to).skip(from) {
        *chunk = seed + number as u64;
    }
    changed
}

#[test]
fn nothing_is_deleted_that_a_restore_point_needs_and_each_node_is_read_once() {
    let (_folder, repository) = repository();
    // Three leaves; the second point shares two of them, the other machine all.
    let first = content(1000, 600);
    let second = change(&first, 0, 10, 5000);
    let a = back_up(&repository, "a", &first, None).unwrap();
    let b = back_up(&repository, "a", &second, Some(&first)).unwrap();
    let c = back_up(&repository, "c", &first, None).unwrap();
    assert_eq!(a.disks[0].root, c.disks[0].root);
    let before = files(repository.store().label().as_ref());
    let result = gc(&repository);
    // Root, top and three leaves; root, top and one leaf. And 600 chunks and ten new ones.
    assert_eq!(result.nodes_read, 5 + 3);
    assert_eq!(result.live_chunks, 8 + 610);
    assert_eq!((result.packs_deleted, result.packs_rewritten), (0, 0));
    assert_eq!(files(repository.store().label().as_ref()), before);
    for (manifest, content) in [(&a, &first), (&b, &second), (&c, &first)] {
        restore(&repository, manifest, content).unwrap();
    }
}

#[test]
fn what_only_pruned_points_needed_goes_and_little_living_packs_are_rewritten() {
    let (_folder, repository) = repository();
    let first = content(1001, 300);
    // Ten chunks of the first point live on: of its data pack one part in thirty.
    let second = change(&first, 10, 300, 100_001);
    let a = back_up(&repository, "a", &first, None).unwrap();
    let b = back_up(&repository, "a", &second, Some(&first)).unwrap();
    let other = content(900_001, 40);
    let c = back_up(&repository, "c", &other, None).unwrap();
    notes::put_point(&repository, &a.vm, &a.point, &PointNote::Verified { time: "x".into() }).unwrap();
    prune(&repository, &a);

    let dry = Options { dry_run: true, ..options() };
    let before = files(repository.store().label().as_ref());
    let (told, ended) = try_gc(&repository, &dry);
    ended.unwrap();
    assert_eq!(files(repository.store().label().as_ref()), before, "a dry run changes nothing");
    assert!(told.dry_run && told.packs_rewritten == 1 && told.packs_deleted >= 2, "{told:?}");

    let result = gc(&repository);
    assert_eq!(result.packs_rewritten, 1);
    assert_eq!(result.packs_deleted, told.packs_deleted);
    assert_eq!(result.rewritten_bytes, told.rewritten_bytes);
    let living: u64 = first[..10].iter().map(|seed| if seed % 2 == 1 { CHUNK as u64 } else { 0 }).sum();
    assert!(
        (living..living + 10 * 1024).contains(&result.rewritten_bytes),
        "{} bytes were read, {living} live",
        result.rewritten_bytes
    );
    assert!(result.freed_bytes > 140 * CHUNK as u64, "{result:?}");
    assert_eq!(count(&repository, "notes/points/"), 0, "a pruned point's notes go");
    restore(&repository, &b, &second).unwrap();
    restore(&repository, &c, &other).unwrap();
    assert_clean(&repository);
    // With everything pruned nothing is left but an empty index.
    prune(&repository, &b);
    prune(&repository, &c);
    gc(&repository);
    assert_eq!((count(&repository, "packs/"), count(&repository, "doom/")), (0, 0));
    assert_clean(&repository);
}

#[test]
fn a_backup_that_began_before_the_doom_list_may_rely_on_what_is_on_it() {
    let (_folder, repository) = repository();
    let old = content(1, 50);
    let a = back_up(&repository, "a", &old, None).unwrap();
    let backup = Backup::begin(&repository, "b").unwrap();
    prune(&repository, &a);
    let result = gc(&repository);
    assert!(result.packs_waiting > 0 && result.packs_deleted == 0, "{result:?}");
    assert_eq!(result.waiting_for.len(), 1);
    assert!(result.waiting_for[0].contains("backup of b@"), "{:?}", result.waiting_for);
    let manifest = backup.store(&old, None).unwrap();
    assert_eq!(manifest.stored.new_chunks, 0, "everything was known");
    // Still waited for, by a gc that finds the list.
    assert_eq!(gc(&repository).packs_deleted, 0);
    backup.commit(&manifest).unwrap();
    let result = gc(&repository);
    assert_eq!((result.packs_deleted, result.packs_waiting), (0, 0), "{result:?}");
    restore(&repository, &manifest, &old).unwrap();
    assert_eq!(count(&repository, "doom/"), 0);
    assert_clean(&repository);
}

#[test]
fn a_backup_that_began_after_the_doom_list_stores_again_and_does_not_hold_it_up() {
    let (_folder, repository) = repository();
    let old = content(1, 50);
    let a = back_up(&repository, "a", &old, None).unwrap();
    let reader = Session::begin(&repository, Purpose::Read { verb: "restore".into() }).unwrap();
    prune(&repository, &a);
    let waiting = gc(&repository).packs_waiting;
    assert!(waiting > 0);
    let backup = Backup::begin(&repository, "b").unwrap();
    let manifest = backup.store(&old, None).unwrap();
    assert!(manifest.stored.new_chunks > 50, "doomed chunks count as absent: {:?}", manifest.stored);
    reader.end().unwrap();
    // The backup still runs: the list waits for the reader only, which the first gc has told.
    let result = gc(&repository);
    // Its own packs, of which nothing is committed yet, are doomed now and wait for it.
    assert_eq!((result.packs_deleted, result.packs_waiting), (waiting, 2), "{result:?}");
    backup.commit(&manifest).unwrap();
    restore(&repository, &manifest, &old).unwrap();
    gc(&repository);
    restore(&repository, &manifest, &old).unwrap();
    assert_clean(&repository);
}

#[test]
fn a_newcomer_that_shares_subtrees_of_a_point_newer_than_the_mark_is_safe() {
    let (_folder, repository) = repository();
    let old = content(1, 600);
    let a = back_up(&repository, "a", &old, None).unwrap();
    // Begins before the list, and relies on what a had.
    let early = Backup::begin(&repository, "b").unwrap();
    prune(&repository, &a);
    assert!(gc(&repository).packs_waiting > 0);
    let parent = early.store(&old, None).unwrap();
    early.commit(&parent).unwrap();
    // Begins after the list, and shares all but one leaf with that.
    let newer = change(&old, 0, 1, 77_777);
    let late = Backup::begin(&repository, "b").unwrap();
    let child = late.store(&newer, Some(&old)).unwrap();
    assert!(child.stored.new_chunks < 10);
    let result = gc(&repository);
    assert_eq!(result.packs_deleted, 0, "{result:?}");
    late.commit(&child).unwrap();
    restore(&repository, &parent, &old).unwrap();
    restore(&repository, &child, &newer).unwrap();
    gc(&repository);
    restore(&repository, &parent, &old).unwrap();
    restore(&repository, &child, &newer).unwrap();
    assert_clean(&repository);
}

#[test]
fn gc_waits_for_a_session_to_end_and_stops_when_told() {
    let (_folder, repository) = repository();
    let a = back_up(&repository, "a", &content(1, 20), None).unwrap();
    let reader = Session::begin(&repository, Purpose::Read { verb: "export".into() }).unwrap();
    prune(&repository, &a);
    let control = Control::new();
    let mut result = GcResult::default();
    let long = Options { wait: Duration::from_secs(60), ..options() };
    let phases = Mutex::new(Vec::new());
    let stop_at_wait = |event: Event| {
        if let Event::Phase { phase } = event {
            if phase == "wait" {
                control.stop();
            }
            phases.lock().unwrap().push(phase);
        }
    };
    let error = collect(&repository, &long, &control, &stop_at_wait, &mut result).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(*phases.lock().unwrap(), ["mark", "wait"]);
    let ended = std::thread::scope(|scope| {
        let gc = scope.spawn(|| try_gc(&repository, &long));
        std::thread::sleep(Duration::from_millis(700));
        assert!(!gc.is_finished());
        reader.end().unwrap();
        gc.join().unwrap()
    });
    ended.1.unwrap();
    assert!(ended.0.packs_deleted > 0 && ended.0.packs_waiting == 0, "{:?}", ended.0);
    assert_eq!((count(&repository, "packs/"), count(&repository, "doom/")), (0, 0));
}

fn flip(repository: &Repository, key: &Key, at: u64) {
    use std::os::unix::fs::FileExt;
    let path = format!("{}/{key}", repository.store().label());
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

#[test]
fn a_manifest_or_a_node_that_cannot_be_read_stops_gc_before_anything_goes() {
    type Choose = fn(&Repository) -> Key;
    let damages: [(&str, Choose); 3] = [
        ("manifest", |repository| repository.store().list("manifests/b/").unwrap()[0].key.clone()),
        ("node", |repository| {
            // The smaller packs are those of nodes.
            let packs = repository.store().list("packs/").unwrap();
            packs.iter().min_by_key(|pack| pack.size).unwrap().key.clone()
        }),
        ("missing node pack", |repository| {
            let packs = repository.store().list("packs/").unwrap();
            packs.iter().min_by_key(|pack| pack.size).unwrap().key.clone()
        }),
    ];
    for (what, damage) in damages {
        let (_folder, repository) = repository();
        let a = back_up(&repository, "a", &content(1, 300), None).unwrap();
        back_up(&repository, "b", &content(30_001, 30), None).unwrap();
        prune(&repository, &a);
        let key = damage(&repository);
        if what.starts_with("missing") {
            repository.store().delete(&key).unwrap();
        } else {
            flip(
                &repository,
                &key,
                4096.min(
                    std::fs::metadata(format!("{}/{key}", repository.store().label())).unwrap().len() / 2,
                ),
            );
        }
        let before = files(repository.store().label().as_ref());
        let (_, ended) = try_gc(&repository, &options());
        let error = ended.expect_err(what);
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Corruption, 6), "{what}: {error}");
        if what == "manifest" {
            assert!(error.to_string().contains(key.as_str()), "{what}: {error}");
        }
        assert!(error.to_string().contains("verify"), "{what}: {error}");
        assert_eq!(files(repository.store().label().as_ref()), before, "{what}");
    }
}

/// A folder as it is seen when what is in it has grown old.
struct Later(LocalStore);

impl Store for Later {
    fn label(&self) -> String {
        self.0.label()
    }

    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.0.put(key, bytes)
    }

    fn begin(&self, key: &Key, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        self.0.begin(key, expected_bytes)
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        self.0.open(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.0.list(prefix)
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.0.list_folders(prefix)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.0.delete(key)
    }

    fn now(&self) -> Result<SystemTime> {
        Ok(self.0.now()? + DEAD_AFTER + Duration::from_secs(60))
    }
}

#[test]
fn what_dead_sessions_left_goes() {
    let (_folder, repository) = repository();
    let old = content(1, 20);
    let a = back_up(&repository, "a", &old, None).unwrap();
    // A backup that stored everything and was never committed: as if its process had died.
    let backup = Backup::begin(&repository, "a").unwrap();
    backup.store(&content(5001, 50), None).unwrap();
    let key = manifests::manifest_key(&backup.vm, &backup.point);
    drop(backup);
    let label = repository.store().label();
    std::fs::write(format!("{label}/tmp/{}-stump", "ab".repeat(16)), b"stump").unwrap();
    let result = gc(&repository);
    assert_eq!(result.sessions_ended, 1);
    assert!(result.packs_deleted >= 2, "{result:?}");
    assert_eq!(count(&repository, "sessions/"), 0);
    assert_eq!(std::fs::read_dir(format!("{label}/tmp")).unwrap().count(), 0);
    restore(&repository, &a, &old).unwrap();
    assert_clean(&repository);
    // The aborted record stays until nobody can commit any more.
    assert!(repository.store().open(&key).unwrap().is_some());
    gc(&repository);
    assert!(repository.store().open(&key).unwrap().is_some());
    // As seen much later.
    let later = Later(LocalStore::new(&label));
    gc(&machine::open(Arc::new(later)).unwrap());
    assert!(repository.store().open(&key).unwrap().is_none());
    assert_clean(&repository);
}

#[test]
fn a_pack_in_no_segment_goes_and_a_superseded_segment_too() {
    let (_folder, repository) = repository();
    let old = content(1, 20);
    let a = back_up(&repository, "a", &old, None).unwrap();
    let session = Session::begin(&repository, Purpose::Read { verb: "test".into() }).unwrap();
    let index = Arc::new(Index::open(&repository).unwrap());
    let writer = Writer::new(repository.clone(), index).unwrap();
    writer.put(ChunkKind::Data, &chunk(999)).unwrap();
    writer.finish().unwrap();
    session.end().unwrap();
    // Its segment is lost, as if the process had died before that was put.
    let mut segments = repository.store().list("index/").unwrap();
    segments.sort_by_key(|segment| segment.modified);
    repository.store().delete(&segments.last().unwrap().key).unwrap();
    let packs = count(&repository, "packs/");
    let result = gc(&repository);
    assert_eq!(result.packs_deleted, 1);
    assert_eq!(count(&repository, "packs/"), packs - 1);
    restore(&repository, &a, &old).unwrap();
    assert_clean(&repository);
}

#[test]
fn damaged_places_are_left_out_where_a_whole_one_is_known() {
    let (_folder, repository) = repository();
    let old = content(1, 40);
    let a = back_up(&repository, "a", &old, None).unwrap();
    let index = Index::open(&repository).unwrap();
    let id = repository.keys().chunk_id(ChunkKind::Data, &chunk(old[0]));
    let place = index.find(&id).unwrap().unwrap();
    flip(&repository, &pack_key(place.pack), place.entry.offset + 5);
    let bad = DamagedChunk { id, pack: place.pack.to_string(), reason: "test".into() };
    notes::put_damaged(&repository, &[bad]).unwrap();
    // A later backup counts it as absent.
    let b = back_up(&repository, "b", &old, None).unwrap();
    restore(&repository, &b, &old).unwrap();
    assert_eq!(Index::open(&repository).unwrap().find_all(&id).unwrap().len(), 2);
    // Something has to go for the index to be written anew.
    let c = back_up(&repository, "c", &content(70_001, 10), None).unwrap();
    prune(&repository, &c);
    let result = gc(&repository);
    assert!(result.packs_deleted > 0);
    let places = Index::open(&repository).unwrap().find_all(&id).unwrap();
    assert_eq!(places.len(), 1, "{places:?}");
    assert_ne!(places[0].pack, place.pack);
    assert_eq!(count(&repository, "notes/damaged/"), 1, "the pack is still there");
    restore(&repository, &a, &old).unwrap();
    // With the pack the note goes.
    prune(&repository, &a);
    prune(&repository, &b);
    gc(&repository);
    assert_eq!((count(&repository, "notes/damaged/"), count(&repository, "packs/")), (0, 0));
    assert_clean(&repository);
}

#[test]
fn a_pack_with_a_damaged_living_record_is_kept_not_copied() {
    let (_folder, repository) = repository();
    let first = content(1001, 300);
    let second = change(&first, 10, 300, 100_001);
    let a = back_up(&repository, "a", &first, None).unwrap();
    back_up(&repository, "a", &second, Some(&first)).unwrap();
    prune(&repository, &a);
    let index = Index::open(&repository).unwrap();
    let id = repository.keys().chunk_id(ChunkKind::Data, &chunk(first[4]));
    let place = index.find(&id).unwrap().unwrap();
    flip(&repository, &pack_key(place.pack), place.entry.offset + 9);
    let warnings = Mutex::new(Vec::new());
    let mut result = GcResult::default();
    let note = |event: Event| {
        if let Event::Warning { message } = event {
            warnings.lock().unwrap().push(message);
        }
    };
    collect(&repository, &options(), &Control::new(), &note, &mut result).unwrap();
    assert_eq!(result.packs_rewritten, 0);
    assert!(repository.store().open(&pack_key(place.pack)).unwrap().is_some());
    let warnings = warnings.into_inner().unwrap();
    assert!(warnings.iter().any(|said| said.contains(&place.pack.to_string())), "{warnings:?}");
}

#[test]
fn many_segments_become_one_and_nothing_else_changes() {
    let (_folder, repository) = repository();
    let mut points = Vec::new();
    for number in 0..20u64 {
        let content = content(1 + 1000 * number, 3);
        points.push((back_up(&repository, "a", &content, None).unwrap(), content));
    }
    assert!(count(&repository, "index/") > 16);
    let entries = Index::open(&repository).unwrap().entries();
    let result = gc(&repository);
    assert_eq!(result.packs_deleted, 0);
    assert_eq!(count(&repository, "index/"), 1);
    assert_eq!(Index::open(&repository).unwrap().entries(), entries);
    for (manifest, content) in &points {
        restore(&repository, manifest, content).unwrap();
    }
    assert_clean(&repository);
}

#[test]
fn a_doom_list_that_cannot_be_read_is_given_up() {
    let (_folder, repository) = repository();
    let old = content(1, 20);
    let a = back_up(&repository, "a", &old, None).unwrap();
    let reader = Session::begin(&repository, Purpose::Read { verb: "restore".into() }).unwrap();
    prune(&repository, &a);
    gc(&repository);
    reader.end().unwrap();
    for listed in repository.store().list("doom/").unwrap() {
        flip(&repository, &listed.key, listed.size / 2);
    }
    assert_eq!(Index::open(&repository).err().map(|error| error.kind()), Some(ErrorKind::Corruption));
    let result = gc(&repository);
    assert!(result.packs_deleted > 0 && result.packs_waiting == 0, "{result:?}");
    assert_eq!((count(&repository, "packs/"), count(&repository, "doom/")), (0, 0));
    let index = Index::open(&repository).unwrap();
    let id = repository.keys().chunk_id(ChunkKind::Data, &chunk(1));
    assert_eq!(index.claim(&id).unwrap(), Claim::Mine);
    assert_clean(&repository);
}

#[test]
fn only_one_gc_runs_at_a_time_but_a_dry_run_may() {
    let (_folder, repository) = repository();
    back_up(&repository, "a", &content(1, 5), None).unwrap();
    let other = Session::begin(&repository, Purpose::Gc).unwrap();
    let (_, ended) = try_gc(&repository, &options());
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Busy);
    try_gc(&repository, &Options { dry_run: true, ..options() }).1.unwrap();
    other.end().unwrap();
    gc(&repository);
    assert_eq!(name("a").as_str(), "a");
}
