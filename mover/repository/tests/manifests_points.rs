//! Manifests and notes: the commit, the order of restore points, and what is learnt of them later.

mod memory;

use std::sync::Arc;

use memory::MemoryStore;
use mover_model::manifest::{MANIFEST_VERSION, Manifest, Stored};
use mover_model::{ChunkId, ErrorKind, Name, PointSelector};
use mover_repository::format::envelope::{self, Kind, Protection};
use mover_repository::manifests::{self, manifest_key};
use mover_repository::notes::{self, DamagedChunk, PointNote};
use mover_repository::store::{Key, Put};
use mover_repository::{InitOptions, Repository, Secret};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn repository() -> (Arc<MemoryStore>, Repository) {
    let store = MemoryStore::new();
    let repository =
        Repository::init(store.clone(), &InitOptions::default(), &Secret::KeyFile(vec![1; 32])).unwrap();
    (store, repository)
}

fn manifest(repository: &Repository, vm: &str, point: &str, sequence: u64, started: &str) -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        repository: repository.config().id.clone(),
        namespace: String::new(),
        vm: name(vm),
        vm_uuid: None,
        point: name(point),
        parent: None,
        sequence,
        run_key: None,
        labels: Default::default(),
        started: started.into(),
        finished: started.into(),
        host: "host".into(),
        mover: "0".into(),
        damaged: false,
        disks: Vec::new(),
        stored: Stored::default(),
        quiesce: None,
        time_point: None,
        documents: Default::default(),
    }
}

fn commit(repository: &Repository, manifest: &Manifest) {
    assert_eq!(manifests::commit(repository, manifest).unwrap(), Put::Done);
}

fn order(repository: &Repository, vm: &str) -> Vec<String> {
    let points = manifests::all(repository, &name(vm)).unwrap();
    assert!(points.unreadable.is_empty(), "{:?}", points.unreadable);
    points.points.iter().map(|manifest| manifest.point.to_string()).collect()
}

#[test]
fn a_manifest_comes_back_as_it_was_committed() {
    let (_, repository) = repository();
    let mut manifest = manifest(&repository, "vm", "p1", 1, "2026-11-20T10:00:00Z");
    // Long enough to be compressed, and no clear text in the store.
    manifest.documents.insert("domain.xml".into(), "<domain/>".repeat(10_000));
    commit(&repository, &manifest);
    assert_eq!(manifests::get(&repository, &name("vm"), &name("p1")).unwrap(), Some(manifest));
    assert_eq!(manifests::get(&repository, &name("vm"), &name("p2")).unwrap(), None);
    assert_eq!(manifests::get(&repository, &name("other"), &name("p1")).unwrap(), None);
}

#[test]
fn of_a_commit_and_an_abort_exactly_one_wins() {
    let (_, repository) = repository();
    for round in 0..50 {
        let point = format!("p{round}");
        let manifest = manifest(&repository, "vm", &point, round, "2026-11-20T10:00:00Z");
        let key = manifest_key(&manifest.vm, &manifest.point);
        let (committed, aborted) = std::thread::scope(|scope| {
            let commit = scope.spawn(|| manifests::commit(&repository, &manifest).unwrap());
            let abort = scope.spawn(|| manifests::abort(&repository, &key).unwrap());
            (commit.join().unwrap(), abort.join().unwrap())
        });
        assert_ne!(committed, aborted);
        let found = manifests::get(&repository, &manifest.vm, &manifest.point).unwrap();
        assert_eq!(found.is_some(), committed == Put::Done);
    }
    assert_eq!(manifests::list(&repository, &name("vm")).unwrap().len(), 50);
}

#[test]
fn order_is_by_parent_and_never_by_clock_or_name() {
    let (store, repository) = repository();
    // The clock went back between them; two have the same parent.
    commit(&repository, &manifest(&repository, "vm", "z", 1, "2026-11-20T10:00:00Z"));
    commit(&repository, &manifest(&repository, "vm", "y", 2, "2026-11-20T09:00:00Z"));
    commit(&repository, &manifest(&repository, "vm", "b", 3, "2026-11-20T12:00:00Z"));
    commit(&repository, &manifest(&repository, "vm", "a", 3, "2026-11-20T11:00:00Z"));
    commit(&repository, &manifest(&repository, "vm2", "q", 1, "2026-11-20T11:00:00Z"));
    manifests::abort(&repository, &Key::new("manifests/vm/aborted")).unwrap();
    // What is no manifest's key is not looked at.
    store.set("manifests/vm/folder/below", vec![1]);
    store.set(&format!("manifests/vm/{}", "x".repeat(200)), vec![1]);
    assert_eq!(order(&repository, "vm"), ["z", "y", "a", "b"]);
    assert_eq!(order(&repository, "vm2"), ["q"]);
    assert!(order(&repository, "vm3").is_empty());
    assert_eq!(manifests::machines(&repository).unwrap(), [name("vm"), name("vm2")]);
    assert_eq!(manifests::list(&repository, &name("vm")).unwrap().len(), 5);
}

#[test]
fn a_selector_finds_its_point_or_says_what_there_is() {
    let (store, repository) = repository();
    let vm = name("vm");
    let at = |text: &str| PointSelector::At(text.parse::<jiff::Timestamp>().unwrap().as_nanosecond());
    let none = manifests::all(&repository, &vm).unwrap().select(&vm, &PointSelector::Latest).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    for n in 1..=7 {
        let mut manifest =
            manifest(&repository, "vm", &format!("p{n}"), n, &format!("2026-11-20T1{n}:00:00Z"));
        manifest.damaged = n == 7;
        commit(&repository, &manifest);
    }
    let points = manifests::all(&repository, &vm).unwrap();
    let select =
        |selector: PointSelector| points.select(&vm, &selector).map(|manifest| manifest.point.to_string());
    assert_eq!(select(PointSelector::Latest).unwrap(), "p6");
    assert_eq!(select(PointSelector::Id(name("p7"))).unwrap(), "p7");
    assert_eq!(select(at("2026-11-20T13:00:00Z")).unwrap(), "p3");
    assert_eq!(select(at("2026-11-20T13:59:59.999Z")).unwrap(), "p3");
    assert_eq!(select(at("2026-11-20T12:59:59.999999999Z")).unwrap(), "p2");
    let early = select(at("2026-11-20T10:59:59Z")).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::NotFound);
    let unknown = select(PointSelector::Id(name("p9"))).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let text = unknown.to_string();
    assert!(
        text.contains("p7, p6, p5, p4, p3;") && !text.contains("p2") && text.contains("mover list vm"),
        "{text}"
    );

    // One that cannot be read is neither passed over without a word nor in the way of the others.
    store.set("manifests/vm/p6", b"damaged".to_vec());
    let points = manifests::all(&repository, &vm).unwrap();
    assert_eq!((points.points.len(), points.unreadable[0].0.as_str()), (6, "manifests/vm/p6"));
    assert_eq!(points.select(&vm, &PointSelector::Id(name("p6"))).unwrap_err().kind(), ErrorKind::Corruption);
    let unknown = points.select(&vm, &PointSelector::Id(name("p9"))).unwrap_err();
    assert!(unknown.message().contains("1 that cannot be read"), "{unknown}");
}

#[test]
fn a_moved_foreign_or_newer_manifest_is_none() {
    let (store, ours) = repository();
    let vm = name("vm");
    commit(&ours, &manifest(&ours, "vm", "p1", 1, "2026-11-20T10:00:00Z"));
    store.set("manifests/vm/p2", store.bytes("manifests/vm/p1"));
    assert_eq!(manifests::get(&ours, &vm, &name("p2")).unwrap_err().kind(), ErrorKind::Corruption);

    let mut foreign = manifest(&ours, "vm", "p3", 1, "2026-11-20T10:00:00Z");
    foreign.repository = "another".into();
    assert_eq!(manifests::commit(&ours, &foreign).unwrap_err().kind(), ErrorKind::WrongIdentity);
    // Two repositories that share their id key and are not encrypted.
    let (one, other) = (MemoryStore::new(), MemoryStore::new());
    let options = InitOptions { id_key: Some([5; 32]), ..InitOptions::default() };
    let source = Repository::init(one.clone(), &options, &Secret::None).unwrap();
    let target = Repository::init(other.clone(), &options, &Secret::None).unwrap();
    commit(&source, &manifest(&source, "vm", "p1", 1, "2026-11-20T10:00:00Z"));
    other.set("manifests/vm/p1", one.bytes("manifests/vm/p1"));
    assert_eq!(manifests::get(&target, &vm, &name("p1")).unwrap_err().kind(), ErrorKind::WrongIdentity);

    let newer = serde_json::json!({"version": 2, "of": "another shape"});
    let put = |kind| {
        let key = Key::new(format!("manifests/vm/{kind:?}"));
        envelope::put(&*store, &key, kind, Protection::Sealed(ours.keys()), &newer).unwrap();
        manifests::get(&ours, &vm, &name(key.last())).unwrap_err().kind()
    };
    assert_eq!(put(Kind::Manifest), ErrorKind::Unsupported);
    assert_eq!(put(Kind::Note), ErrorKind::Corruption);
}

#[test]
fn new_points_sort_by_time_and_never_repeat() {
    let points: Vec<_> = (0..1000).map(|_| manifests::new_point().unwrap()).collect();
    let distinct: std::collections::HashSet<_> = points.iter().collect();
    assert_eq!(distinct.len(), points.len());
    let text = points[0].as_str();
    assert_eq!((text.len(), &text[8..9], &text[15..17]), (25, "T", "Z-"), "{text}");
    assert!(points[0].as_str()[..16] <= points[999].as_str()[..16]);
}

#[test]
fn notes_of_damage_are_kept_apart_together_and_until_their_packs_are_gone() {
    let (store, repository) = repository();
    assert!(notes::damaged(&repository).unwrap().is_empty());
    let chunk =
        |n: u8, pack: &str| DamagedChunk { id: ChunkId([n; 32]), pack: pack.into(), reason: "bad".into() };
    notes::put_damaged(&repository, &[]).unwrap();
    notes::put_damaged(&repository, &[chunk(2, "b"), chunk(1, "a")]).unwrap();
    notes::put_damaged(&repository, &[chunk(1, "a"), chunk(1, "c")]).unwrap();
    assert_eq!(notes::damaged(&repository).unwrap(), [chunk(1, "a"), chunk(1, "c"), chunk(2, "b")]);
    assert_eq!(notes::forget_damaged(&repository, &|pack| pack != "b").unwrap(), 1);
    assert_eq!(notes::damaged(&repository).unwrap(), [chunk(1, "a"), chunk(2, "b")]);
    store.set("notes/damaged/00", b"damaged itself".to_vec());
    // The others count all the same, it is told, and gc is rid of it.
    assert_eq!(notes::damaged(&repository).unwrap(), [chunk(1, "a"), chunk(2, "b")]);
    let bad = notes::damaged_notes(&repository).unwrap();
    assert_eq!(bad.len(), 1);
    assert_eq!((bad[0].0.as_str(), bad[0].1.kind()), ("notes/damaged/00", ErrorKind::Corruption));
    assert_eq!(notes::forget_damaged(&repository, &|_| false).unwrap(), 1);
    assert!(notes::damaged_notes(&repository).unwrap().is_empty());
}

#[test]
fn more_damage_than_one_note_holds_is_kept_in_several() {
    let (store, repository) = repository();
    let chunks: Vec<_> = (0..150_000u32)
        .map(|n| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            DamagedChunk { id: ChunkId(id), pack: "p".into(), reason: String::new() }
        })
        .collect();
    notes::put_damaged(&repository, &chunks).unwrap();
    assert_eq!(store.keys().iter().filter(|key| key.starts_with("notes/damaged/")).count(), 2);
    assert_eq!(notes::damaged(&repository).unwrap(), chunks);
}

#[test]
fn notes_of_a_point_are_in_order_and_go_with_it() {
    let (store, repository) = repository();
    let (vm, point) = (name("vm"), name("p"));
    let verified = |time: &str| PointNote::Verified { time: time.into() };
    let damaged = PointNote::Damaged {
        time: "2026-11-20T12:00:00Z".into(),
        extents: vec![(name("vda"), 4096, 131_072)],
    };
    let in_order = [verified("2026-11-20T11:00:00Z"), damaged, verified("2026-11-20T13:00:00Z")];
    for n in [2, 0, 1] {
        notes::put_point(&repository, &vm, &point, &in_order[n]).unwrap();
    }
    notes::put_point(&repository, &vm, &name("p2"), &verified("2026-11-20T11:00:00Z")).unwrap();
    assert_eq!(notes::of_point(&repository, &vm, &point).unwrap(), in_order);
    notes::forget_point(&repository, &vm, &point).unwrap();
    assert!(notes::of_point(&repository, &vm, &point).unwrap().is_empty());
    assert_eq!(notes::of_point(&repository, &vm, &name("p2")).unwrap().len(), 1);
    assert_eq!(store.keys().iter().filter(|key| key.starts_with("notes/")).count(), 1);
}
