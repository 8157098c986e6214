//! The catalog agrees with the store, whatever happened to either.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod catalog_support;

use std::fs;
use std::os::unix::fs::FileExt;

use catalog_support::{Bench, common_disk, disk, name, point, wait_for_stamps};
use mover_engine::pattern::SplitMix;
use mover_model::manifest::Manifest;
use mover_model::{ChunkId, ErrorKind};
use mover_repository::catalog::{
    self, Catalog, CommonKey, PointSummary, Scope, SqliteCatalog, known_repository_at, reconcile, remember,
};
use mover_repository::notes::{self, DamagedChunk, PointNote};
use mover_repository::{Repository, manifests};

/// All that a catalog says of a repository.
fn everything(catalog: &dyn Catalog, id: &str) -> Vec<(String, Vec<PointSummary>)> {
    let machines = catalog.machines(id).unwrap().into_iter();
    machines.map(|m| (format!("{m:?}"), catalog.points(id, &m.vm).unwrap())).collect()
}

fn from_scratch(repository: &Repository) -> SqliteCatalog {
    let mut catalog = SqliteCatalog::in_memory().unwrap();
    reconcile(&mut catalog, repository, &Scope::All).unwrap();
    catalog
}

#[test]
fn machines_and_points_are_summed_up() {
    let bench = Bench::new();
    for sequence in 1..=3 {
        bench.commit(&point(&bench.repository, "web", sequence));
    }
    let mut damaged = point(&bench.repository, "web", 4);
    damaged.damaged = true;
    damaged.disks.push(disk("vdb", 9));
    bench.commit(&damaged);
    bench.commit(&point(&bench.repository, "db", 1));
    let aborted = manifests::manifest_key(&name("db"), &name("p0002"));
    manifests::abort(&bench.repository, &aborted).unwrap();

    let opened = bench.open_well();
    let machines = opened.catalog.machines(bench.id()).unwrap();
    assert_eq!(machines.iter().map(|m| m.vm.as_str()).collect::<Vec<_>>(), ["db", "web"]);
    assert_eq!((machines[0].points, machines[0].damaged), (1, 0));
    let web = &machines[1];
    assert_eq!((web.points, web.damaged, web.disks, web.size), (4, 1, 2, 2 << 30));
    assert_eq!(web.stored_bytes, 400);
    assert_eq!(web.latest, Some(name("p0003")));
    assert_eq!(web.latest_time, Some(point(&bench.repository, "web", 3).started));
    let points = opened.catalog.points(bench.id(), &name("web")).unwrap();
    assert_eq!(points.len(), 4);
    assert_eq!(
        (points[1].parent.clone(), points[1].sequence, points[1].new_bytes),
        (Some(name("p0001")), 2, 302)
    );
    assert!(points[3].damaged && !points[2].damaged);
    assert!(opened.catalog.points(bench.id(), &name("none")).unwrap().is_empty());
}

#[test]
fn a_random_history_gives_the_same_as_reading_everything() {
    let seed = 0x0ca7_a106;
    println!("seed {seed:#x}");
    let mut random = SplitMix::new(seed);
    let bench = Bench::new();
    let mut there: Vec<Manifest> = Vec::new();
    let mut next = [1u64; 4];
    for round in 0..40 {
        for _ in 0..random.below(6) {
            let vm = random.below(4) as usize;
            if random.below(3) > 0 || there.is_empty() {
                let mut manifest = point(&bench.repository, &format!("vm{vm}"), next[vm]);
                manifest.damaged = random.below(5) == 0;
                next[vm] += 1;
                if random.below(6) == 0 {
                    manifests::abort(
                        &bench.repository,
                        &manifests::manifest_key(&manifest.vm, &manifest.point),
                    )
                    .unwrap();
                    continue;
                }
                bench.commit(&manifest);
                there.push(manifest);
            } else {
                let gone = there.swap_remove(random.below(there.len() as u64) as usize);
                bench.delete(&gone);
            }
        }
        let opened = bench.open_well();
        let fresh = from_scratch(&bench.repository);
        assert_eq!(
            everything(&*opened.catalog, bench.id()),
            everything(&fresh, bench.id()),
            "seed {seed:#x}, round {round}"
        );
        let points: u64 = opened.catalog.machines(bench.id()).unwrap().iter().map(|m| m.points).sum();
        assert_eq!(points, there.len() as u64);
    }
}

#[test]
fn a_machine_whose_stamp_is_known_is_not_listed_again() {
    let bench = Bench::new();
    bench.commit(&point(&bench.repository, "web", 1));
    bench.commit(&point(&bench.repository, "db", 1));
    wait_for_stamps(&bench, "db");
    drop(bench.open_well());
    let mut catalog = SqliteCatalog::open(&bench.catalog_file()).unwrap();
    let stamps = catalog.stamps(bench.id()).unwrap();
    assert!(stamps.len() == 2 && stamps.values().all(Option::is_some), "{stamps:?}");
    // Nothing is read again, and what comes is.
    assert_eq!(reconcile(&mut catalog, &bench.repository, &Scope::All).unwrap().read, 0);
    bench.commit(&point(&bench.repository, "web", 2));
    assert_eq!(reconcile(&mut catalog, &bench.repository, &Scope::All).unwrap().read, 1);
    // The folder has just changed, so its stamp is not relied on.
    assert_eq!(catalog.stamps(bench.id()).unwrap()[&name("web")], None);
    bench.delete(&point(&bench.repository, "db", 1));
    assert_eq!(reconcile(&mut catalog, &bench.repository, &Scope::All).unwrap().removed, 1);
    let machines = catalog.machines(bench.id()).unwrap();
    assert_eq!((machines.len(), machines[0].points), (1, 2));
}

#[test]
fn a_late_process_with_an_early_view_does_no_lasting_harm() {
    let bench = Bench::new();
    bench.commit(&point(&bench.repository, "web", 1));
    wait_for_stamps(&bench, "web");
    // What a slow process has found, and takes in only after a faster one was done.
    let early = catalog::MachineChange {
        vm: name("web"),
        stamp: bench.repository.store().stamp("manifests/web/").unwrap(),
        added: vec![point(&bench.repository, "web", 1)],
        aborted: vec![],
        removed: vec![],
        gone: false,
    };
    bench.commit(&point(&bench.repository, "web", 2));
    bench.delete(&point(&bench.repository, "web", 1));
    let mut opened = bench.open_well();
    opened.catalog.apply(bench.id(), &[early]).unwrap();
    assert_eq!(opened.catalog.points(bench.id(), &name("web")).unwrap().len(), 2);
    let opened = bench.open_well();
    let points = opened.catalog.points(bench.id(), &name("web")).unwrap();
    assert_eq!(points.iter().map(|p| p.point.as_str()).collect::<Vec<_>>(), ["p0002"]);
}

#[test]
fn a_damaged_catalog_is_set_aside_and_made_anew() {
    let bench = Bench::new();
    for sequence in 1..=50 {
        bench.commit(&point(&bench.repository, "web", sequence));
    }
    drop(bench.open_well());
    let whole = fs::read(bench.catalog_file()).unwrap();
    let seed = 0x0da3_a6ed;
    println!("seed {seed:#x}");
    let mut random = SplitMix::new(seed);
    for round in 0..12 {
        let mut bytes = whole.clone();
        match round {
            0 => bytes = b"this is no database at all, and it is long enough to be looked at".repeat(100),
            1 => bytes.truncate(whole.len() / 2),
            2 => bytes[..100].fill(0xff),
            _ => {
                for _ in 0..1 + random.below(8) {
                    let page = 1 + random.below(whole.len() as u64 / 4096 - 1) as usize;
                    bytes[page * 4096..][..4096].iter_mut().for_each(|byte| *byte = random.next_u64() as u8);
                }
            }
        }
        fs::write(bench.catalog_file(), &bytes).unwrap();
        // Whatever is wrong with it: the list is right, at once or from memory.
        let opened = bench.open();
        let machines = opened.catalog.machines(bench.id());
        match machines {
            Ok(machines) => {
                assert_eq!((machines.len(), machines[0].points), (1, 50), "round {round}, {seed:#x}")
            }
            // Damage that reconciling did not come by: told, and never answered wrongly.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corruption, "round {round}, seed {seed:#x}"),
        }
        if round < 3 {
            assert_eq!(opened.warnings.len(), 1, "round {round}: {:?}", opened.warnings);
            assert!(opened.warnings[0].contains("made anew"), "{:?}", opened.warnings);
            assert!(opened.durable);
        }
        drop(opened);
        let _ = fs::remove_file(bench.catalog_file());
        let beside = ["-wal", "-shm"].map(|suffix| bench.state().join(format!("catalog.sqlite{suffix}")));
        beside.iter().for_each(|path| drop(fs::remove_file(path)));
    }
    let aside = fs::read_dir(bench.state()).unwrap().flatten();
    assert!(aside.filter(|entry| entry.file_name().to_string_lossy().contains("damaged-")).count() >= 3);
}

#[test]
fn a_catalog_of_another_version_or_program_is_left_alone() {
    let bench = Bench::new();
    bench.commit(&point(&bench.repository, "web", 1));
    drop(bench.open_well());
    let sql =
        |sql: &str| rusqlite::Connection::open(bench.catalog_file()).unwrap().execute_batch(sql).unwrap();
    for (change, back) in [
        ("PRAGMA user_version = 99", "PRAGMA user_version = 1"),
        ("PRAGMA application_id = 7", "PRAGMA application_id = 1297498964"),
    ] {
        sql(change);
        let opened = bench.open();
        assert!(!opened.durable && opened.warnings.len() == 1, "{:?}", opened.warnings);
        assert_eq!(opened.catalog.machines(bench.id()).unwrap().len(), 1);
        assert_eq!(
            known_repository_at(Some(&bench.state()), &bench.place()).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert_eq!(remember(Some(&bench.state()), &bench.place(), bench.id()).len(), 1);
        sql(back);
    }
    bench.open_well();
}

#[test]
fn a_catalog_that_cannot_be_made_is_no_error() {
    let bench = Bench::new();
    bench.commit(&point(&bench.repository, "web", 1));
    // A file where the state folder would be.
    fs::write(bench.state(), "").unwrap();
    let opened = bench.open();
    assert!(!opened.durable && opened.warnings.len() == 1, "{:?}", opened.warnings);
    assert_eq!(opened.catalog.machines(bench.id()).unwrap().len(), 1);
    assert_eq!(remember(Some(&bench.state()), &bench.place(), bench.id()).len(), 1);
}

#[test]
fn a_catalog_that_another_process_writes_is_waited_for() {
    let bench = Bench::new();
    bench.commit(&point(&bench.repository, "web", 1));
    drop(bench.open_well());
    bench.commit(&point(&bench.repository, "web", 2));
    let other = rusqlite::Connection::open(bench.catalog_file()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE; UPDATE machines SET points = points").unwrap();
    std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(500));
            other.execute_batch("COMMIT").unwrap();
            other
        });
        let opened = bench.open_well();
        assert_eq!(opened.catalog.machines(bench.id()).unwrap()[0].points, 2);
        late.join().unwrap();
    });
}

#[test]
fn several_processes_use_one_catalog_at_once() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                for sequence in 1..=15 {
                    bench.commit(&point(&bench.repository, &format!("vm{writer}"), sequence));
                    let opened = bench.open_well();
                    let points = opened.catalog.points(bench.id(), &name(&format!("vm{writer}"))).unwrap();
                    assert_eq!(points.len() as u64, sequence, "what was committed before is listed");
                }
            });
        }
    });
    let opened = bench.open_well();
    assert_eq!(
        everything(&*opened.catalog, bench.id()),
        everything(&from_scratch(&bench.repository), bench.id())
    );
}

#[test]
fn a_manifest_that_cannot_be_read_is_told_and_looked_at_again() {
    let bench = Bench::new();
    bench.commit(&point(&bench.repository, "web", 1));
    bench.commit(&point(&bench.repository, "web", 2));
    wait_for_stamps(&bench, "web");
    let path = bench.place().join("manifests/web/p0002");
    let whole = fs::read(&path).unwrap();
    let damage = |bytes: &[u8]| {
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(bytes, 0).unwrap();
    };
    let mut bad = whole.clone();
    bad[100] ^= 1;
    damage(&bad);
    let opened = bench.open();
    assert_eq!(opened.unreadable.len(), 1);
    assert_eq!(opened.unreadable[0].0.as_str(), "manifests/web/p0002");
    assert_eq!(opened.catalog.machines(bench.id()).unwrap()[0].points, 1);
    drop(opened);
    assert_eq!(bench.open().unreadable.len(), 1);
    // Put right in place, the folder's stamp is the same.
    damage(&whole);
    assert_eq!(bench.open_well().catalog.machines(bench.id()).unwrap()[0].points, 2);
}

#[test]
fn damage_that_was_found_later_is_counted_until_it_is_taken_back() {
    let bench = Bench::new();
    bench.commit(&point(&bench.repository, "web", 1));
    bench.commit(&point(&bench.repository, "web", 2));
    drop(bench.open_well());
    let note = |time: &str, damaged: bool| {
        let time = time.to_owned();
        let note = match damaged {
            true => PointNote::Damaged { time, extents: vec![(name("vda"), 0, 4096)] },
            false => PointNote::Verified { time },
        };
        notes::put_point(&bench.repository, &name("web"), &name("p0002"), &note).unwrap();
    };
    let damaged = || bench.open_well().catalog.machines(bench.id()).unwrap()[0].damaged;
    assert_eq!(damaged(), 0);
    note("2026-01-01T00:00:00Z", false);
    assert_eq!(damaged(), 0);
    let chunk = DamagedChunk { id: ChunkId([7; 32]), pack: "0".repeat(32), reason: "test".into() };
    notes::put_damaged(&bench.repository, &[chunk]).unwrap();
    note("2026-01-02T00:00:00Z", true);
    assert_eq!(damaged(), 1);
    assert!(bench.open_well().catalog.points(bench.id(), &name("web")).unwrap()[1].damaged);
    assert_eq!(damaged(), 1);
    note("2026-01-03T00:00:00Z", false);
    assert_eq!(damaged(), 0);
}

#[test]
fn common_disks_are_found_by_id_content_and_file() {
    let bench = Bench::new();
    for (vm, content, id, inode) in
        [("a", 1, "golden", 7), ("b", 1, "golden", 7), ("c", 1, "other", 8), ("d", 2, "x", 9)]
    {
        let mut manifest = point(&bench.repository, vm, 1);
        manifest.disks = vec![common_disk("base", content, id, inode)];
        bench.commit(&manifest);
    }
    bench.commit(&point(&bench.repository, "e", 1));
    let opened = bench.open_well();
    let found = |key: CommonKey<'_>| {
        let found = opened.catalog.commons(bench.id(), key, 10).unwrap();
        let mut vms: Vec<_> = found.iter().map(|disk| disk.vm.to_string()).collect();
        vms.sort();
        vms.concat()
    };
    assert_eq!(found(CommonKey::Id("golden")), "ab");
    assert_eq!(found(CommonKey::Id("none")), "");
    assert_eq!(found(CommonKey::Root(&ChunkId([1; 32]))), "abc");
    assert_eq!(found(CommonKey::File("8:1", 7)), "ab");
    assert_eq!(found(CommonKey::File("8:2", 7)), "");
    assert_eq!(opened.catalog.commons(bench.id(), CommonKey::Id("golden"), 1).unwrap().len(), 1);
    let machines = |id, root| opened.catalog.common_machines(bench.id(), id, &ChunkId([root; 32])).unwrap();
    assert_eq!(machines("golden", 99), [name("a"), name("b")]);
    assert_eq!(machines("golden", 1), [name("a"), name("b"), name("c")]);
    // It outlives the machine that stored it first, and another repository knows nothing of it.
    bench.delete(&point(&bench.repository, "a", 1));
    let opened = bench.open_well();
    let machines = opened.catalog.common_machines(bench.id(), "golden", &ChunkId([99; 32])).unwrap();
    assert_eq!(machines, [name("b")]);
    assert!(opened.catalog.commons("another", CommonKey::Id("golden"), 10).unwrap().is_empty());
}

#[test]
fn a_repository_is_known_at_its_place_when_that_is_empty() {
    let bench = Bench::new();
    let state = bench.state();
    assert_eq!(known_repository_at(Some(&state), &bench.place()).unwrap(), None);
    assert!(!state.exists(), "asking makes nothing");
    assert_eq!(remember(Some(&state), &bench.place(), bench.id()), [""; 0]);
    let link = bench.folder.path().join("link");
    std::os::unix::fs::symlink(bench.place(), &link).unwrap();
    let known = || {
        let at = |path: &std::path::Path| known_repository_at(Some(&state), path).unwrap();
        (at(&bench.place()), at(&link))
    };
    assert_eq!(known(), (Some(bench.id().to_owned()), Some(bench.id().to_owned())));
    fs::rename(bench.place(), bench.folder.path().join("unmounted")).unwrap();
    assert_eq!(known().0, Some(bench.id().to_owned()));
    assert_eq!(known_repository_at(Some(&state), &bench.folder.path().join("elsewhere")).unwrap(), None);
    let (path, repositories) = catalog::status(Some(&state)).unwrap();
    assert_eq!(path, bench.catalog_file());
    assert_eq!(repositories.len(), 1);
    assert_eq!(repositories[0].id, bench.id());
}

#[test]
fn a_rebuild_forgets_what_the_manifests_do_not_say() {
    let bench = Bench::new();
    bench.commit(&point(&bench.repository, "web", 1));
    let mut opened = bench.open_well();
    let ghost = catalog::MachineChange {
        vm: name("ghost"),
        stamp: None,
        added: vec![point(&bench.repository, "ghost", 1)],
        aborted: vec![],
        removed: vec![],
        gone: false,
    };
    opened.catalog.apply(bench.id(), &[ghost]).unwrap();
    assert_eq!(opened.catalog.machines(bench.id()).unwrap().len(), 2);
    let state = bench.state();
    let opened =
        catalog::open(Some(&state), &bench.repository, Some(&bench.place()), &Scope::All, true).unwrap();
    assert_eq!(opened.catalog.machines(bench.id()).unwrap().len(), 1);
    // One machine alone is brought up to date where only that is asked for.
    bench.commit(&point(&bench.repository, "web", 2));
    bench.commit(&point(&bench.repository, "db", 1));
    let opened = bench.open_scope(&Scope::Machine(name("db")));
    let machines = opened.catalog.machines(bench.id()).unwrap();
    assert_eq!(machines.iter().map(|m| m.points).collect::<Vec<_>>(), [1, 1]);
}
