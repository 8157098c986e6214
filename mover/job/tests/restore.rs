//! Restores to files, standard places and over what is there: bit for bit, sparse, refused, compared, gone on with.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod restore_home;

use std::time::{Duration, Instant};

use mover_engine::Control;
use mover_engine::pattern::SplitMix;
use mover_job::repository::diff::{self, DiffOptions};
use mover_model::event::{DiskStatus, Event};
use mover_model::{ErrorKind, ExtentKind, Locator, PointSelector, extents_file};
use mover_repository::{Compression, Secret};
use restore_home::disks::{Content, Fill, chunk, disk};
use restore_home::{CHUNK, Given, Home, allocated, change, name, run, run_with};

fn random(seed: u64) -> SplitMix {
    eprintln!("seed {seed:#x}");
    SplitMix::new(seed)
}

fn given(random: &mut SplitMix, id: &'static str, size: u64) -> Given {
    Given::new(id, size, disk(random, Fill::Mixed, size, CHUNK, 60))
}

#[test]
fn disks_come_back_bit_for_bit_and_sparse() {
    let mut random = random(0x4e57);
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
        for secret in [Secret::None, Secret::KeyFile(vec![3; 32])] {
            let home = Home::new(compression, &secret);
            for size in [1, 511, 65_536, (5 << 20) + 4096, (7 << 20) + 777] {
                let vda = given(&mut random, "vda", size);
                home.commit("vm1", std::slice::from_ref(&vda), &[]);
                let path = home.path(&format!("{size}.raw"));
                let done = run(&home.options("vm1", &[("vda", Locator::Path(path.clone()))]));
                done.expect(0);
                assert!(std::fs::read(&path).unwrap() == vda.bytes(), "{compression} {secret:?} {size}");
                assert_eq!(done.statuses(), [("vda", DiskStatus::Restored)]);
                let pair = &done.result.pairs[0];
                assert!(pair.flushed && pair.disk.as_deref() == Some("vda") && pair.size == Some(size));
                assert!(allocated(&path) <= vda.content.len() as u64 * u64::from(CHUNK) + 4096);
                assert!(!home.path(&format!("{size}.raw.mover-restore")).exists(), "no mark stays");
            }
        }
    }
}

#[test]
fn a_sparse_disk_of_a_tebibyte_is_restored_at_once() {
    let home = Home::plain();
    let size = 1u64 << 40;
    let last = size / u64::from(CHUNK) - 1;
    let mut random = random(0x7e8);
    let content: Content =
        [0, 77_777, last].map(|at| (at, chunk(&mut random, Fill::Noise, CHUNK as usize))).into();
    home.commit("vm1", &[Given::new("vda", size, content.clone())], &[]);
    let path = home.path("big.raw");
    let begin = Instant::now();
    run(&home.options("vm1", &[("vda", Locator::Path(path.clone()))])).expect(0);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let file = std::fs::File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    for (at, bytes) in &content {
        use std::os::unix::fs::FileExt;
        let mut found = vec![0; CHUNK as usize];
        file.read_exact_at(&mut found, at * u64::from(CHUNK)).unwrap();
        assert!(found == *bytes);
    }
    assert!(allocated(&path) < 1 << 20);
}

#[test]
fn all_disks_go_into_a_folder_with_the_documents_beside_them() {
    let mut random = random(0x1270);
    let home = Home::plain();
    let disks = [given(&mut random, "vda", 3 << 20), given(&mut random, "vdb", (1 << 20) + 100)];
    let documents = [("domain.xml", "<domain/>"), ("../evil", "no"), ("vda.raw", "no")];
    home.commit("vm1", &disks, &documents);
    let mut options = home.options("vm1", &[("vdb", home.target("elsewhere.raw"))]);
    options.into = Some(home.path("out"));
    let done = run(&options);
    done.expect(0);
    assert!(std::fs::read(home.path("out/vda.raw")).unwrap() == disks[0].bytes());
    assert!(std::fs::read(home.path("elsewhere.raw")).unwrap() == disks[1].bytes());
    assert_eq!(std::fs::read_to_string(home.path("out/domain.xml")).unwrap(), "<domain/>");
    assert!(!home.path("evil").exists() && !home.path("out/vdb.raw").exists());
    assert_eq!(done.warnings().len(), 2, "{:?}", done.warnings());
    // A second time everything is in the way, and nothing is touched.
    let before = std::fs::metadata(home.path("out/vda.raw")).unwrap().modified().unwrap();
    let again = run(&options);
    again.expect(5);
    assert_eq!(std::fs::metadata(home.path("out/vda.raw")).unwrap().modified().unwrap(), before);
}

#[test]
fn what_is_refused_is_refused_before_a_byte_is_written() {
    let mut random = random(0x4ef);
    let home = Home::plain();
    home.commit("vm1", &[given(&mut random, "vda", 2 << 20), given(&mut random, "vdb", 1 << 20)], &[]);
    std::fs::write(home.path("full"), b"precious").unwrap();
    // The second is in the way: the first is not even made.
    let done = run(&home.options("vm1", &[("vda", home.target("new")), ("vdb", home.target("full"))]));
    done.expect(5);
    assert!(!home.path("new").exists());
    assert_eq!(std::fs::read(home.path("full")).unwrap(), b"precious");
    // A disk that is not there: which ones are.
    let done = run(&home.options("vm1", &[("vdx", home.target("new"))]));
    done.expect(10);
    assert!(done.message().contains("vda, vdb"), "{}", done.message());
    // Another machine, a folder of the repository, a link to nothing, one target twice.
    run(&home.options("vm2", &[("vda", home.target("new"))])).expect(10);
    run(&home.options("vm1", &[("vda", home.target("repo/packs/new"))])).expect(5);
    std::os::unix::fs::symlink(home.path("nowhere"), home.path("link")).unwrap();
    run(&home.options("vm1", &[("vda", home.target("link"))])).expect(5);
    run(&home.options("vm1", &[("vda", home.target("new")), ("vdb", home.target("new"))])).expect(5);
    let mut options = home.options("vm1", &[("vda", Locator::Stream)]);
    options.delta = true;
    run(&options).expect(2);
    run(&home.options("vm1", &[])).expect(2);
    // A dry run makes nothing.
    let mut options = home.options("vm1", &[]);
    (options.into, options.dry_run) = (Some(home.path("dry")), true);
    let done = run(&options);
    done.expect(0);
    assert_eq!(done.events.iter().filter(|event| matches!(event, Event::Plan(_))).count(), 2);
    assert!(!home.path("dry").exists() && !home.path("new").exists());
    // A larger file ends where the disk does, once that was asked for.
    std::fs::write(home.path("full"), vec![9; 3 << 20]).unwrap();
    let mut options = home.options("vm1", &[("vdb", home.target("full"))]);
    options.force = true;
    run(&options).expect(0);
    assert_eq!(std::fs::metadata(home.path("full")).unwrap().len(), 1 << 20);
}

#[test]
fn a_damaged_disk_fails_alone() {
    let mut random = random(0xda);
    let home = Home::plain();
    let good = given(&mut random, "vda", 2 << 20);
    home.commit("vm0", std::slice::from_ref(&good), &[]);
    let known = home.packs();
    let bad = Given::new("vdb", 2 << 20, disk(&mut random, Fill::Noise, 2 << 20, CHUNK, 100));
    home.commit("vm1", &[Given::new("vda", good.size, good.content.clone()), bad], &[]);
    let new = home.packs().into_iter().find(|pack| !known.contains(pack)).unwrap();
    change(&new, |bytes| bytes[(1 << 20) + 17] ^= 1);
    let mut options = home.options("vm1", &[]);
    options.into = Some(home.path("out"));
    let done = run(&options);
    done.expect(6);
    assert_eq!(done.statuses(), [("vda", DiskStatus::Restored), ("vdb", DiskStatus::Failed)]);
    assert!(std::fs::read(home.path("out/vda.raw")).unwrap() == good.bytes());
    let error = done.result.error.as_ref().unwrap();
    assert_eq!((error.kind, error.disk.as_deref()), (ErrorKind::Corruption, Some("vdb")));
    assert!(error.offset.is_some() && error.message.contains(new.to_str().unwrap()), "{}", done.message());
    assert!(error.hint.as_ref().unwrap().contains("mover verify"));
    // A pack that is gone.
    std::fs::remove_file(&new).unwrap();
    let mut options = home.options("vm1", &[("vda", home.target("a")), ("vdb", home.target("b"))]);
    options.force = true;
    let done = run(&options);
    done.expect(6);
    assert!(std::fs::read(home.path("a")).unwrap() == good.bytes());
}

#[test]
fn a_delta_writes_only_what_differs() {
    let mut random = random(0xde17a);
    for odd in [0, 777] {
        let home = Home::plain();
        let size = (8 << 20) + odd;
        let vda = Given::new("vda", size, disk(&mut random, Fill::Noise, size, CHUNK, 70));
        home.commit("vm1", std::slice::from_ref(&vda), &[]);
        let path = home.path("vda.raw");
        let mut options = home.options("vm1", &[("vda", Locator::Path(path.clone()))]);
        options.delta = true;
        run(&options).expect(0);
        assert!(std::fs::read(&path).unwrap() == vda.bytes());
        // Nothing differs, nothing is written.
        let done = run(&options);
        done.expect(0);
        let moved = done.result.pairs[0].moved;
        assert_eq!((moved.written_bytes, moved.zeroes, moved.verified_bytes), (0, 0, size));
        // One byte in a chunk of data, one in a hole, and the file is longer.
        let data = *vda.content.keys().nth(3).unwrap();
        let hole = (0..size / u64::from(CHUNK)).find(|at| !vda.content.contains_key(at)).unwrap();
        change(&path, |bytes| {
            bytes[(data * u64::from(CHUNK)) as usize + 5] ^= 1;
            bytes[(hole * u64::from(CHUNK)) as usize + 70] = 1;
            bytes.extend([1; 5000]);
        });
        let done = run(&options);
        done.expect(0);
        assert!(std::fs::read(&path).unwrap() == vda.bytes());
        let moved = done.result.pairs[0].moved;
        let chunk = u64::from(CHUNK);
        assert_eq!((moved.written_bytes, moved.zero_bytes), (chunk, chunk));
        assert_eq!(moved.verified_bytes, size - 2 * chunk);
        let reason = done.result.point.as_ref().unwrap().disks[0].reason.clone().unwrap();
        assert!(reason.contains(&(size - 2 * chunk).to_string()), "{reason}");
        // A file that is too short grows.
        change(&path, |bytes| bytes.truncate(3 * CHUNK as usize + 100));
        run(&options).expect(0);
        assert!(std::fs::read(&path).unwrap() == vda.bytes());
    }
}

#[test]
fn a_stopped_restore_is_gone_on_with() {
    let mut random = random(0x57095);
    let home = Home::plain();
    let size = 14 << 20;
    let vda = Given::new("vda", size, disk(&mut random, Fill::Noise, size, CHUNK, 100));
    let first = home.commit("vm1", std::slice::from_ref(&vda), &[]);
    let path = home.path("vda.raw");
    let mut options = home.options("vm1", &[("vda", Locator::Path(path.clone()))]);
    // Without a mark, --resume begins at the start and says so; a rate makes it slow enough to be stopped.
    options.resume = true;
    options.engine.rate = Some(4 << 20);
    let control = Control::new();
    let done = run_with(&options, &control, |event| {
        if matches!(event, Event::Progress(_)) {
            control.stop();
        }
    });
    done.expect(7);
    assert!(done.message().contains("--resume"), "{}", done.message());
    assert!(done.warnings().iter().any(|warning| warning.contains("no mark")), "{:?}", done.warnings());
    let mark = home.path("vda.raw.mover-restore");
    assert!(mark.exists());
    options.engine.rate = None;
    // Unasked it is not gone on with, but told of.
    options.resume = false;
    let done = run(&options);
    done.expect(5);
    assert!(done.message().contains("--resume"), "{}", done.message());
    options.resume = true;
    let done = run(&options);
    done.expect(0);
    assert!(std::fs::read(&path).unwrap() == vda.bytes());
    let moved = done.result.pairs[0].moved;
    assert!(moved.verified_bytes > 0 && moved.written_bytes < size, "{moved:?}");
    assert!(!mark.exists());
    // The mark of another restore point, or of another target, is refused.
    let control = Control::new();
    (options.engine.rate, options.force) = (Some(4 << 20), true);
    run_with(&options, &control, |event| {
        if matches!(event, Event::Progress(_)) {
            control.stop();
        }
    })
    .expect(7);
    (options.engine.rate, options.force) = (None, false);
    let other = given(&mut random, "vda", size);
    home.commit("vm1", &[other], &[]);
    run(&options).expect(5);
    options.point = PointSelector::Id(first);
    let copy = std::fs::read(&path).unwrap();
    std::fs::rename(&path, home.path("moved")).unwrap();
    std::fs::write(&path, copy).unwrap();
    let done = run(&options);
    done.expect(5);
    assert_eq!(done.result.error.as_ref().unwrap().kind, ErrorKind::WrongIdentity);
}

#[test]
fn a_difference_is_a_list_that_copy_takes() {
    let mut random = random(0xd1ff);
    let home = Home::plain();
    let size = 6 << 20;
    let old = given(&mut random, "vda", size);
    let mut content = old.content.clone();
    let changed = *content.keys().next().unwrap();
    content.insert(changed, chunk(&mut random, Fill::Noise, CHUNK as usize));
    let gone = *content.keys().last().unwrap();
    content.remove(&gone);
    let first = home.commit("vm1", &[old], &[]);
    let second = home.commit("vm1", &[Given::new("vda", size, content)], &[]);
    let options = DiffOptions {
        repository: home.repository_options(),
        old: (name("vm1"), PointSelector::Id(first.clone())),
        new: (name("vm1"), PointSelector::Latest),
        disk: None,
    };
    let document = diff::run(&options).unwrap();
    let chunk = u64::from(CHUNK);
    let found: Vec<_> = document.extents.iter().map(|e| (e.start, e.length, e.kind)).collect();
    assert_eq!(found, [(changed * chunk, chunk, ExtentKind::Data), (gone * chunk, chunk, ExtentKind::Hole)]);
    assert_eq!((document.base, document.point), (format!("vm1@{first}"), format!("vm1@{second}")));
    let document = diff::run(&options).unwrap();
    let mut text = Vec::new();
    document.write(&mut text).unwrap();
    for json in [text, serde_json::to_vec(&document).unwrap()] {
        let parsed = extents_file::parse(&json[..], Some(size)).unwrap();
        assert_eq!(parsed.extents, document.extents);
        assert_eq!(parsed.base.as_deref(), Some(document.base.as_str()));
    }
    let missing = DiffOptions { disk: Some(name("vdz")), ..options };
    assert_eq!(diff::run(&missing).unwrap_err().kind(), ErrorKind::NotFound);
}
