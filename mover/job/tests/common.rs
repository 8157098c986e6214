//! Common disks with real qcow2 images, links and ids: what a backup finds, and what a restore decides.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mover_job::repository::backup::{CommonRequest, DiskSpec};
use mover_job::repository::common::{Arranged, CommonPlan, Decision, Reading, arrange, decide, plan, settle};
use mover_model::event::Event;
use mover_model::manifest::{Disk, MANIFEST_VERSION, Manifest, Method, PointerKind, Stored};
use mover_model::{ChunkId, ErrorKind, Locator, Name};
use mover_repository::catalog::{self, Catalog, Scope};
use mover_repository::notes::{self, PointNote};
use mover_repository::store::{LocalStore, Put};
use mover_repository::{InitOptions, Repository, Secret, manifests};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

struct Bench {
    folder: tempfile::TempDir,
    repository: Arc<Repository>,
    events: Mutex<Vec<Event>>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::new(folder.path().join("repo")));
        let repository = Arc::new(Repository::init(store, &InitOptions::default(), &Secret::None).unwrap());
        Bench { folder, repository, events: Mutex::default() }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(file)
    }

    fn write(&self, file: &str, content: &[u8]) -> PathBuf {
        let path = self.path(file);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// An image over another one; `None` where there is no qemu-img.
    fn overlay(&self, file: &str, backing: &str) -> Option<PathBuf> {
        let path = self.path(file);
        let mut command = Command::new("qemu-img");
        command
            .current_dir(path.parent().unwrap())
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing]);
        match command.arg(&path).status() {
            Ok(status) => {
                assert!(status.success());
                Some(path)
            }
            Err(error) => {
                println!("skipped: qemu-img cannot be run: {error}");
                None
            }
        }
    }

    fn arrange(&self, specs: &[DiskSpec]) -> Vec<Arranged> {
        arrange(specs, &|event| self.events.lock().unwrap().push(event)).unwrap()
    }

    fn catalog(&self) -> Box<dyn Catalog> {
        let state = self.folder.path().join("state");
        let opened = catalog::open(Some(&state), &self.repository, None, &Scope::All, false).unwrap();
        assert_eq!(opened.warnings, [""; 0]);
        opened.catalog
    }

    fn plan(&self, disk: &Arranged) -> CommonPlan {
        plan(&self.repository, &*self.catalog(), disk, &|event| self.events.lock().unwrap().push(event))
            .unwrap()
    }

    fn reading(&self, disk: &Arranged) -> Reading {
        match self.plan(disk) {
            CommonPlan::Read(reading) => reading,
            other => panic!("{other:?}"),
        }
    }

    /// Backs up a disk as the backup does, with its content told by `root`.
    fn backup(&self, vm: &str, point: &str, disk: &Arranged, root: u8) -> Manifest {
        let made = match self.plan(disk) {
            CommonPlan::Reference { disk, .. } => disk,
            CommonPlan::Read(reading) => {
                let emit = |event| self.events.lock().unwrap().push(event);
                let root = ChunkId([root; 32]);
                let settled = settle(&self.repository, &*self.catalog(), disk, &reading, &root, &emit);
                let Locator::Path(path) = &disk.spec.locator else { panic!() };
                Disk {
                    id: disk.spec.id.clone(),
                    size: std::fs::metadata(path).unwrap().len(),
                    chunk_size: 128 << 10,
                    root,
                    data_bytes: 4096,
                    method: Method::Scan,
                    reason: None,
                    base: None,
                    checkpoint: None,
                    source: disk.spec.locator.to_string(),
                    path: Some(path.display().to_string()),
                    identity: settled.identity,
                    common: settled.common,
                    bad_extents: vec![],
                    read_bytes: 4096,
                    stored: Stored::default(),
                }
            }
            CommonPlan::NotCommon => panic!("not common"),
        };
        let time = jiff::Timestamp::now().to_string();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            repository: self.repository.config().id.clone(),
            namespace: String::new(),
            vm: name(vm),
            vm_uuid: None,
            point: name(point),
            parent: None,
            sequence: 1,
            run_key: None,
            labels: Default::default(),
            started: time.clone(),
            finished: time,
            host: "host".into(),
            mover: "0".into(),
            damaged: false,
            disks: vec![made],
            stored: Stored::default(),
            quiesce: None,
            time_point: None,
            documents: Default::default(),
        };
        assert_eq!(manifests::commit(&self.repository, &manifest).unwrap(), Put::Done);
        manifest
    }

    fn decide(&self, manifest: &Manifest, keep: bool) -> Decision {
        decide(&self.repository, &*self.catalog(), manifest, &manifest.disks[0], keep)
    }

    fn warned(&self, of: &str) -> bool {
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        let found = events.iter().any(|event| format!("{event:?}").contains(of));
        if !found {
            println!("{events:?}");
        }
        found
    }
}

fn spec(id: &str, path: &Path, common: CommonRequest) -> DiskSpec {
    DiskSpec { id: name(id), locator: Locator::Path(path.to_owned()), common }
}

fn settle_down() {
    std::thread::sleep(Duration::from_millis(2100));
}

fn changed(decision: Decision) -> (String, String) {
    match decision {
        Decision::Changed { old, new, error } => {
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::CommonChanged, 8));
            assert!(error.to_string().contains(&old) && error.to_string().contains(&new), "{error}");
            (old, new)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_backing_image_is_common_and_its_field_is_the_pointer() {
    let bench = Bench::new();
    let base = bench.write("base.raw", &[7; 1 << 20]);
    let Some(vm1) = bench.overlay("vm1.qcow2", "base.raw") else { return };
    let vm2 = bench.overlay("vm2.qcow2", &base.display().to_string()).unwrap();
    settle_down();

    let disks = bench.arrange(&[spec("vda", &vm1, CommonRequest::No)]);
    assert_eq!(disks.len(), 2);
    assert!(disks[0].pointer.is_none() && !disks[0].added);
    let added = &disks[1];
    assert_eq!((added.spec.id.as_str(), added.added), ("vda-base", true));
    let pointer = added.pointer.as_ref().unwrap();
    assert_eq!((pointer.kind, pointer.value.as_str()), (PointerKind::Qcow2Backing, "base.raw"));
    assert_eq!(pointer.resolved, base.display().to_string());
    assert!(bench.warned("backed up as the file it is"));
    assert_eq!(bench.plan(&disks[0]), CommonPlan::NotCommon);

    // The first machine reads it; the second one references it under whatever disk id.
    let first = bench.backup("vm1", "p1", added, 1);
    assert_eq!(first.disks[0].method, Method::Scan);
    let named =
        bench.arrange(&[spec("os", &vm2, CommonRequest::No), spec("golden", &base, CommonRequest::No)]);
    assert_eq!(named.len(), 2);
    assert_eq!(named[1].spec.common, CommonRequest::Auto);
    assert_eq!(named[1].pointer.as_ref().unwrap().holder, vm2.display().to_string());
    let second = bench.backup("vm2", "p1", &named[1], 99);
    let disk = &second.disks[0];
    assert_eq!((disk.method, disk.root, disk.read_bytes), (Method::Common, ChunkId([1; 32]), 0));
    assert_eq!(disk.common.as_ref().unwrap().id, first.disks[0].common.as_ref().unwrap().id);
    assert!(bench.warned("vm1@p1"));

    assert!(matches!(bench.decide(&second, true), Decision::Keep { .. }));
    let Decision::Restore { warning: Some(warning) } = bench.decide(&second, false) else { panic!() };
    assert!(warning.contains("vm1") && !warning.contains("vm2@"), "{warning}");

    // Another base under it.
    let other = bench.write("other.raw", &[8; 1 << 20]);
    let rebase =
        Command::new("qemu-img").args(["rebase", "-u", "-F", "raw", "-b"]).arg(&other).arg(&vm2).status();
    assert!(rebase.unwrap().success());
    let (old, new) = changed(bench.decide(&second, true));
    assert!(old.contains("base.raw") && new.contains("other.raw"), "{old} | {new}");
    assert!(matches!(bench.decide(&first, true), Decision::Keep { .. }));
    // The same name, another file.
    std::fs::rename(&other, &base).unwrap();
    let (old, new) = changed(bench.decide(&first, true));
    assert!(old.contains("base.raw") && new.contains("base.raw") && old != new, "{old} | {new}");
    std::fs::remove_file(&base).unwrap();
    assert!(changed(bench.decide(&first, true)).1.contains("nothing is there"));
    std::fs::remove_file(&vm1).unwrap();
    assert!(changed(bench.decide(&first, true)).1.contains("not to be read"));
}

#[test]
fn what_a_guest_wrote_into_a_raw_disk_is_not_followed() {
    let bench = Bench::new();
    bench.write("secret", &[7; 4096]);
    let Some(raw) = bench.overlay("vm.raw", "secret") else { return };
    let disks = bench.arrange(&[spec("vda", &raw, CommonRequest::No)]);
    assert_eq!(disks.len(), 1);
    assert!(bench.warned("a guest can write"));
    // Chains and loops end, and an id that is taken is an error.
    let looped = bench.overlay("loop.qcow2", "secret").unwrap();
    let rebase = Command::new("qemu-img")
        .args(["rebase", "-u", "-F", "qcow2", "-b"])
        .arg(&looped)
        .arg(&looped)
        .status();
    assert!(rebase.unwrap().success());
    assert_eq!(bench.arrange(&[spec("vda", &looped, CommonRequest::No)]).len(), 1);
    let top = bench.overlay("top.qcow2", "secret").unwrap();
    let other = bench.write("other", &[1; 512]);
    let taken = [spec("vda", &top, CommonRequest::No), spec("vda-base", &other, CommonRequest::No)];
    assert_eq!(arrange(&taken, &|_| ()).unwrap_err().kind(), ErrorKind::Usage);
    let both = [
        spec("a", &top, CommonRequest::No),
        spec("b", &bench.overlay("t2.qcow2", "secret").unwrap(), CommonRequest::No),
    ];
    assert_eq!(bench.arrange(&both).len(), 3, "one base for both");
}

#[test]
fn a_link_is_the_pointer_of_what_it_names() {
    let bench = Bench::new();
    let base = bench.write("base.raw", &[7; 4096]);
    let link = bench.path("link");
    std::os::unix::fs::symlink("base.raw", &link).unwrap();
    settle_down();
    let disk = &bench.arrange(&[spec("base", &link, CommonRequest::Auto)])[0];
    let pointer = disk.pointer.as_ref().unwrap();
    assert_eq!((pointer.kind, pointer.value.as_str()), (PointerKind::Symlink, "base.raw"));
    let first = bench.backup("vm1", "p1", disk, 1);
    // Nobody else has it yet.
    assert!(matches!(bench.decide(&first, true), Decision::Restore { warning: None }));
    let direct = &bench.arrange(&[spec("x", &base, CommonRequest::Auto)])[0];
    assert!(direct.pointer.is_none());
    let second = bench.backup("vm2", "p1", direct, 99);
    assert_eq!(second.disks[0].method, Method::Common);
    assert!(matches!(bench.decide(&first, true), Decision::Keep { .. }));
    assert!(matches!(bench.decide(&second, true), Decision::Keep { .. }));

    bench.write("new.raw", &[9; 4096]);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("new.raw", &link).unwrap();
    let (old, new) = changed(bench.decide(&first, true));
    assert!(old.contains("base.raw") && new.contains("new.raw"), "{old} | {new}");
    std::fs::remove_file(&link).unwrap();
    std::fs::write(&link, "").unwrap();
    assert!(changed(bench.decide(&first, true)).1.contains("no link any more"));
    assert!(matches!(bench.decide(&first, false), Decision::Restore { warning: Some(_) }));
    std::fs::remove_file(&base).unwrap();
    assert!(changed(bench.decide(&second, true)).1.contains("nothing is there"));
}

#[test]
fn an_explicit_id_is_read_again_once_its_file_has_changed() {
    let bench = Bench::new();
    let base = bench.write("base.raw", &[7; 4096]);
    settle_down();
    let golden = CommonRequest::Id("golden".into());
    let disk = bench.arrange(&[spec("base", &base, golden.clone())]).remove(0);
    let first = bench.backup("vm1", "p1", &disk, 1);
    assert_eq!(first.disks[0].common.as_ref().unwrap().id, "golden");
    assert_eq!(bench.backup("vm2", "p1", &disk, 99).disks[0].method, Method::Common);

    // Changed, and its old time given back: the time of change tells.
    let meta = std::fs::metadata(&base).unwrap();
    std::fs::write(&base, [8; 4096]).unwrap();
    std::fs::File::options().write(true).open(&base).unwrap().set_modified(meta.modified().unwrap()).unwrap();
    settle_down();
    let reading = bench.reading(&disk);
    assert!(reading.reason.unwrap().contains("time of change"));
    let third = bench.backup("vm3", "p1", &disk, 2);
    assert_eq!((third.disks[0].method, third.disks[0].root), (Method::Scan, ChunkId([2; 32])));
    let fourth = bench.backup("vm4", "p1", &disk, 99);
    assert_eq!((fourth.disks[0].method, fourth.disks[0].root), (Method::Common, ChunkId([2; 32])));
    // A copy is another file: read, and found to be of the same id by its content where none was given.
    let copy = bench.write("copy.raw", &[8; 4096]);
    settle_down();
    let disk = bench.arrange(&[spec("copy", &copy, CommonRequest::Auto)]).remove(0);
    let fifth = bench.backup("vm5", "p1", &disk, 2);
    assert_eq!(
        (fifth.disks[0].method, fifth.disks[0].common.as_ref().unwrap().id.as_str()),
        (Method::Scan, "golden")
    );
}

#[test]
fn young_stamps_writers_and_damage_are_not_trusted() {
    let bench = Bench::new();
    let base = bench.write("base.raw", &[7; 4096]);
    let disk = bench.arrange(&[spec("base", &base, CommonRequest::Auto)]).remove(0);
    let young = bench.backup("vm1", "p1", &disk, 1);
    assert!(young.disks[0].common.is_some() && young.disks[0].identity.is_none());
    assert!(bench.warned("less than two seconds"));
    settle_down();
    let reading = bench.reading(&disk);
    assert!(reading.trusted);

    // Someone opens it for writing before, or while it is read.
    let writer = std::fs::File::options().append(true).open(&base).unwrap();
    assert_eq!(bench.plan(&disk), CommonPlan::NotCommon);
    assert!(bench.warned("open for writing"));
    let root = ChunkId([1; 32]);
    let emit = |event| bench.events.lock().unwrap().push(event);
    assert_eq!(settle(&bench.repository, &*bench.catalog(), &disk, &reading, &root, &emit).common, None);
    drop(writer);
    std::fs::write(&base, [9; 4096]).unwrap();
    assert_eq!(settle(&bench.repository, &*bench.catalog(), &disk, &reading, &root, &emit).common, None);
    assert!(bench.warned("its file was changed"));

    settle_down();
    let whole = bench.backup("vm2", "p1", &disk, 3);
    assert!(matches!(bench.plan(&disk), CommonPlan::Reference { .. }));
    // Found damaged since: read again. Found whole after that: referenced again.
    let put = |note: PointNote| notes::put_point(&bench.repository, &whole.vm, &whole.point, &note).unwrap();
    put(PointNote::Damaged { time: "2026-01-01T00:00:00Z".into(), extents: vec![(name("base"), 0, 4096)] });
    bench.reading(&disk);
    assert!(bench.warned("is damaged"));
    put(PointNote::Verified { time: "2026-01-02T00:00:00Z".into() });
    assert!(matches!(bench.plan(&disk), CommonPlan::Reference { .. }));
    // What the catalog says is not believed: the manifest has to be there.
    let key = manifests::manifest_key(&whole.vm, &whole.point);
    let catalog = bench.catalog();
    bench.repository.store().delete(&key).unwrap();
    assert!(matches!(plan(&bench.repository, &*catalog, &disk, &emit).unwrap(), CommonPlan::Read(_)));
}
