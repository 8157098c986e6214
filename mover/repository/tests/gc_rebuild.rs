//! Index segments that are damaged or gone: readers go on with the packs' own indexes, writers rely on nothing that is not
//! there, and gc makes the index again before it calls anything dead.

mod machine;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use machine::{Content, back_up, chunk, content, init_at, prune, restore};
use mover_engine::Control;
use mover_model::event::{Event, GcResult};
use mover_model::manifest::Manifest;
use mover_model::{ErrorKind, Result};
use mover_repository::Repository;
use mover_repository::gc::{Options, collect};
use mover_repository::index::{Claim, Index};
use mover_repository::keys::ChunkKind;
use mover_repository::session::{Purpose, Session};
use mover_repository::store::Key;
use tempfile::TempDir;

struct Home {
    folder: TempDir,
    repository: Arc<Repository>,
    pruned: Content,
    points: Vec<(Manifest, Content)>,
}

/// Four points with two segments each: one of data, one of nodes. The first point is pruned.
fn home() -> Home {
    let folder = tempfile::tempdir().unwrap();
    let repository = init_at(&folder.path().join("repository"));
    let mut points: Vec<_> = (0..4u64)
        .map(|number| {
            let content = content(1 + 10_000 * number, 30);
            (back_up(&repository, &format!("vm{number}"), &content, None).unwrap(), content)
        })
        .collect();
    let (manifest, pruned) = points.remove(0);
    prune(&repository, &manifest);
    Home { folder, repository, pruned, points }
}

impl Home {
    fn keys(&self, prefix: &str) -> Vec<Key> {
        self.repository.store().list(prefix).unwrap().into_iter().map(|listed| listed.key).collect()
    }

    fn path(&self, key: &Key) -> std::path::PathBuf {
        self.folder.path().join("repository").join(key.as_str())
    }

    fn flip(&self, key: &Key, at: impl Fn(u64) -> u64) {
        let mut bytes = std::fs::read(self.path(key)).unwrap();
        let at = at(bytes.len() as u64) as usize;
        bytes[at] ^= 0x40;
        std::fs::write(self.path(key), bytes).unwrap();
    }

    fn gc(&self, dry_run: bool) -> (GcResult, Result<()>, Vec<String>) {
        let (mut result, said) = (GcResult::default(), Mutex::new(Vec::new()));
        let emit = |event: Event| {
            if let Event::Warning { message } = event {
                said.lock().unwrap().push(message);
            }
        };
        let options = Options { wait: Duration::ZERO, repack_below: 0.7, dry_run };
        let ended = collect(&self.repository, &options, &Control::new(), &emit, &mut result);
        (result, ended, said.into_inner().unwrap())
    }

    fn restore_all(&self) {
        for (manifest, content) in &self.points {
            restore(&self.repository, manifest, content).unwrap();
        }
    }

    /// As it should be after a gc: everything there and indexed, what was pruned gone, nothing left to do.
    fn assert_sound(&self, what: &str) {
        let index = Index::open(&self.repository).unwrap();
        assert!(index.degradations().is_empty(), "{what}: {:?}", index.degradations());
        for (_, content) in &self.points {
            for &seed in content {
                let id = self.repository.keys().chunk_id(ChunkKind::Data, &chunk(seed));
                assert_eq!(index.claim(&id).unwrap(), Claim::Known, "{what}: {seed}");
            }
        }
        for &seed in &self.pruned {
            let id = self.repository.keys().chunk_id(ChunkKind::Data, &chunk(seed));
            assert_eq!(index.claim(&id).unwrap(), Claim::Mine, "{what}: {seed}");
        }
        self.restore_all();
        let before: BTreeMap<_, _> = self.keys("").into_iter().map(|key| (key, ())).collect();
        let (again, ended, said) = self.gc(false);
        ended.unwrap();
        assert_eq!((again.packs_deleted, again.objects_deleted), (0, 0), "{what}: {again:?}");
        assert!(said.is_empty(), "{what}: {said:?}");
        assert_eq!(self.keys("").into_iter().map(|key| (key, ())).collect::<BTreeMap<_, _>>(), before);
    }
}

#[test]
fn damaged_segments_are_made_again_from_the_packs() {
    type Place = fn(u64) -> u64;
    let places: [(&str, Place); 4] = [
        ("header", |_| 100),
        ("page", |_| 4096 + 50),
        ("tables", |length| length - 4096 - 1),
        ("footer", |length| length - 4000),
    ];
    for number in 0..8 {
        let (what, at) = places[number % 4];
        let what = format!("{what} of segment {number}");
        let home = home();
        let key = home.keys("index/")[number].clone();
        home.flip(&key, at);
        home.restore_all();
        let (_, ended, _) = home.gc(true);
        let error = ended.expect_err(&what);
        assert_eq!(error.kind(), ErrorKind::Corruption, "{what}: {error}");
        assert!(error.to_string().contains(key.as_str()), "{what}: {error}");

        let (result, ended, said) = home.gc(false);
        ended.unwrap();
        assert!(
            said.iter().any(|said| said.contains(key.as_str()) && said.contains("made again")),
            "{said:?}"
        );
        assert_eq!(result.packs_deleted, 2, "{what}: {result:?}");
        assert!(!home.keys("index/").contains(&key), "{what}");
        home.assert_sound(&what);
    }
}

#[test]
fn a_pack_of_a_lost_segment_is_no_orphan() {
    // Each segment by itself, pairs of them, and all.
    for lost in
        (0..8).map(|number| vec![number]).chain((0..7).map(|n| vec![n, n + 1])).chain([(0..8).collect()])
    {
        let home = home();
        let keys = home.keys("index/");
        assert_eq!(keys.len(), 8);
        lost.iter().for_each(|&number| home.repository.store().delete(&keys[number]).unwrap());
        let what = format!("segments {lost:?} lost");
        home.restore_all();
        let (result, ended, _) = home.gc(false);
        ended.unwrap();
        assert_eq!(result.packs_deleted, 2, "{what}: {result:?}");
        home.assert_sound(&what);
    }
}

#[test]
fn readers_of_a_lost_segment_say_that_packs_are_in_none() {
    let home = home();
    home.keys("index/").iter().for_each(|key| home.repository.store().delete(key).unwrap());
    let index = Index::open_for_reading(&home.repository).unwrap();
    assert!(index.degradations().is_empty(), "nothing was asked for yet");
    let id = home.repository.keys().chunk_id(ChunkKind::Data, &chunk(home.points[0].1[3]));
    assert!(index.find(&id).unwrap().is_some());
    let said = index.degradations();
    assert!(said.len() == 1 && said[0].reason.contains("8 packs are in none"), "{said:?}");
    // A writer must not refer to what no segment names.
    let writer = Index::open(&home.repository).unwrap();
    assert_eq!(writer.find(&id).unwrap(), None);
    assert_eq!(writer.claim(&id).unwrap(), Claim::Mine);
}

#[test]
fn a_pack_that_does_not_tell_what_it_has_stops_gc_where_something_is_missing() {
    let home = home();
    let (manifest, wanted) = &home.points[0];
    let id = home.repository.keys().chunk_id(ChunkKind::Data, &chunk(wanted[3]));
    let index = Index::open(&home.repository).unwrap();
    let place = index.find(&id).unwrap().unwrap();
    let segments = index.segments();
    let segment = segments.iter().find(|segment| segment.packs().contains(&place.pack)).unwrap();
    home.repository.store().delete(&Key::new(format!("index/{}", segment.name()))).unwrap();
    let pack = mover_repository::format::pack::pack_key(place.pack);
    home.flip(&pack, |length| length - 2000);
    let before = home.keys("");
    for dry_run in [true, false] {
        let (_, ended, _) = home.gc(dry_run);
        let error = ended.unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Corruption, 6), "{error}");
        assert!(error.to_string().contains(pack.as_str()), "{error}");
        assert_eq!(home.keys(""), before, "nothing is deleted");
    }
    // Without the point that needs it the pack is one like others.
    prune(&home.repository, manifest);
    let (_, ended, _) = home.gc(false);
    ended.unwrap();
    assert!(!home.keys("packs/").contains(&pack));
    home.points[1..]
        .iter()
        .for_each(|(manifest, content)| restore(&home.repository, manifest, content).unwrap());
}

#[test]
fn a_writer_does_not_rely_on_packs_that_only_a_superseded_segment_names() {
    let home = home();
    // Somebody is there, so gc leaves the old segments beside the new one; and its packs are on an earlier list.
    let old: Vec<_> =
        home.keys("index/").into_iter().map(|key| (std::fs::read(home.path(&key)).unwrap(), key)).collect();
    home.gc(false).1.unwrap();
    for (bytes, key) in &old {
        std::fs::write(home.path(key), bytes).unwrap();
    }
    let id = home.repository.keys().chunk_id(ChunkKind::Data, &chunk(home.pruned[2]));
    assert_eq!(Index::open(&home.repository).unwrap().claim(&id).unwrap(), Claim::Mine);
    let new = home.keys("index/").into_iter().find(|key| old.iter().all(|(_, old)| old != key)).unwrap();
    home.flip(&new, |_| 100);
    let session = Session::begin(&home.repository, Purpose::Read { verb: "test".into() }).unwrap();
    let index = Index::open(&home.repository).unwrap();
    assert_eq!(index.damaged_segments().len(), 1);
    assert_eq!(index.claim(&id).unwrap(), Claim::Mine, "its pack was deleted");
    session.end().unwrap();
    let (_, ended, _) = home.gc(false);
    ended.unwrap();
    home.restore_all();
}
