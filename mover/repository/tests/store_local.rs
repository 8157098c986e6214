//! A folder as a store: what dies, what is cut, what is full, what does not belong there.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod support;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mover_engine::Alignment;
use mover_engine::sys::lies_in_memory;
use mover_model::ErrorKind;
use mover_repository::store::{DirectFile, Held, Key, LocalStore, Put, Step, Steps, Store};
use nix::fcntl::{FcntlArg, fcntl};
use support::{Cut, CuttingSteps, Side};

fn key(text: &str) -> Key {
    Key::new(text)
}

/// Everything below a folder but itself, folders with a `/` behind them.
fn tree(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().unwrap().is_dir();
            let path = entry.path();
            let name = path.strip_prefix(folder).unwrap().display();
            found.insert(if is_folder { format!("{name}/") } else { name.to_string() });
            if is_folder {
                open.push(path);
            }
        }
    }
    found
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn files_and_folders_are_for_their_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("new/repository");
    let store = LocalStore::new(&root);
    store.put(&key("packs/aa/x"), b"x").unwrap();
    assert_eq!(tree(&root), set(&["packs/", "packs/aa/", "packs/aa/x", "tmp/"]));
    for (name, mode) in
        [("", 0o700), ("packs", 0o700), ("packs/aa", 0o700), ("tmp", 0o700), ("packs/aa/x", 0o600)]
    {
        assert_eq!(std::fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
}

/// The order that makes a cut safe, step by step.
#[test]
fn a_put_takes_its_steps_in_the_order_that_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("r");
    let counting = CuttingSteps::new(None);
    let store = LocalStore::with_steps(&root, counting.clone());
    let words = |from: usize| -> Vec<String> {
        let inside = |path: &PathBuf| match path.strip_prefix(&root) {
            Ok(path) if path.starts_with("tmp") && path != Path::new("tmp") => "tmp/…".to_owned(),
            Ok(path) => path.display().to_string(),
            Err(_) => "..".to_owned(),
        };
        let word = |step: &Step| match step {
            Step::Create(path) => format!("create {}", inside(path)),
            Step::Write(path) => format!("write {}", inside(path)),
            Step::SyncFile(path) => format!("sync {}", inside(path)),
            Step::Link(from, to) => format!("link {} {}", inside(from), inside(to)),
            Step::Rename(from, to) => format!("rename {} {}", inside(from), inside(to)),
            Step::MakeFolder(path) => format!("folder {}", inside(path)),
            Step::SyncFolder(path) => format!("sync folder {}", inside(path)),
            Step::Remove(path) => format!("remove {}", inside(path)),
        };
        counting.trace()[from..].iter().map(word).collect()
    };
    store.put(&key("packs/aa/x"), b"x").unwrap();
    let first = [
        "folder ",
        "folder tmp",
        "create tmp/…",
        "write tmp/…",
        "sync tmp/…",
        "folder packs",
        "folder packs/aa",
        "link tmp/… packs/aa/x",
        "sync folder packs/aa",
        "sync folder packs",
        "sync folder ",
        "sync folder ..",
        "remove tmp/…",
    ];
    assert_eq!(words(0), first);
    // The second one finds the folders, and knows that their names are durable.
    let from = counting.trace().len();
    let mut upload = store.begin(&key("packs/aa/y"), 10_000).unwrap();
    upload.write_at(0, b"y").unwrap();
    upload.commit(1).unwrap();
    let mut second = vec!["create tmp/…"];
    if !lies_in_memory(std::fs::File::open(&root).unwrap()) {
        second.push("write tmp/…");
    }
    second.extend([
        "write tmp/…",
        "write tmp/…",
        "sync tmp/…",
        "link tmp/… packs/aa/y",
        "sync folder packs/aa",
        "remove tmp/…",
    ]);
    assert_eq!(words(from), second);
    let from = counting.trace().len();
    store.delete_many(&[key("packs/aa/x"), key("packs/aa/y")]).unwrap();
    assert_eq!(words(from), ["remove packs/aa/x", "remove packs/aa/y", "sync folder packs/aa"]);
    // Another process knows nothing of the folder above.
    let from = counting.trace().len();
    LocalStore::with_steps(&root, counting.clone()).put(&key("packs/aa/z"), b"").unwrap();
    let words = words(from);
    assert!(
        words.contains(&"sync folder packs".to_owned()) && words.contains(&"sync folder ".to_owned()),
        "{words:?}"
    );
}

/// One life of a store: puts, an upload, deletes. Returns what it was told is done, and deleted.
fn live(
    store: &LocalStore,
    told: &mut Vec<(Key, Vec<u8>)>,
    deleted: &mut Vec<Key>,
) -> mover_model::Result<()> {
    for (name, length) in
        [("config", 100), ("packs/0a/p", 5000), ("sessions/s/0", 10), ("manifests/vm/1", 300)]
    {
        let bytes = vec![name.len() as u8; length];
        if store.put(&key(name), &bytes)? == Put::Done {
            told.push((key(name), bytes));
        }
    }
    let mut upload = store.begin(&key("packs/0b/u"), 9000)?;
    upload.write_at(0, &[5; 9000])?;
    if upload.commit(9000)? == Put::Done {
        told.push((key("packs/0b/u"), vec![5; 9000]));
    }
    store.delete_many(&[key("sessions/s/0"), key("packs/0a/p")])?;
    deleted.extend([key("sessions/s/0"), key("packs/0a/p")]);
    Ok(())
}

/// Lives once for each step and each side of it, then, with and without a power cut, looks at what is left.
#[test]
fn a_death_or_power_cut_at_any_step_takes_nothing_that_was_told_done() {
    // In memory where that is to be had: hundreds of lives with real syncs take a minute on a disk.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let counting = CuttingSteps::new(None);
    live(&LocalStore::with_steps(folder.path().join("all"), counting.clone()), &mut vec![], &mut vec![])
        .unwrap();
    let steps = counting.steps();
    assert!(steps > 40, "{steps}");
    let mut cuts = 0;
    for at in 0..steps {
        for side in [Side::Before, Side::After] {
            for seed in [None, Some(1), Some(2), Some(3)] {
                let root = folder.path().join(format!("{at}-{side:?}-{seed:?}"));
                let cutting = CuttingSteps::new(Some(Cut { at, side }));
                let (mut told, mut deleted) = (vec![], vec![]);
                let lived = live(&LocalStore::with_steps(&root, cutting.clone()), &mut told, &mut deleted);
                let about = format!("step {at} {side:?}, seed {seed:?}: {lived:?}");
                // The last steps may be ones that the system refuses, which have no other side.
                assert!(cutting.is_dead() || at + 3 > steps, "{about}");
                let undone = seed.map(|seed| cutting.power_cut(seed * 1000 + at as u64)).unwrap_or_default();
                let about = format!("{about} {undone:?}");
                check_after(&root, &told, &deleted, &about);
                cuts += 1;
                std::fs::remove_dir_all(&root).ok();
            }
        }
    }
    assert_eq!(cuts, steps * 8);
}

fn check_after(root: &Path, told: &[(Key, Vec<u8>)], deleted: &[Key], about: &str) {
    let store = LocalStore::new(root);
    let going = [key("sessions/s/0"), key("packs/0a/p")];
    for (name, bytes) in told {
        let found = store.open(name).unwrap().map(|object| object.read_all(u64::MAX).unwrap());
        match found {
            Some(found) => assert!(&found == bytes, "{name} is damaged: {about}"),
            // Its delete may have been under way.
            None => assert!(going.contains(name) && told.len() == 5, "{name} is lost: {about}"),
        }
    }
    for name in deleted {
        assert!(store.open(name).unwrap().is_none(), "{name} is back: {about}");
    }
    // Whatever else there is, is whole: no reader ever sees half an object.
    for listed in store.list("").unwrap() {
        let bytes = store.open(&listed.key).unwrap().unwrap().read_all(u64::MAX).unwrap();
        let (first, length) = match listed.key.as_str() {
            "packs/0b/u" => (5, 9000),
            "config" => (6, 100),
            "packs/0a/p" => (10, 5000),
            "sessions/s/0" => (12, 10),
            "manifests/vm/1" => (14, 300),
            other => panic!("{other}: {about}"),
        };
        assert!(bytes == vec![first; length], "{} is damaged: {about}", listed.key);
    }
    // And it goes on from there, with nothing left behind.
    let swept = || tree(root).iter().all(|name| !name.starts_with("tmp/") || name == "tmp/");
    // Another test's child process has this one's descriptors, and their locks, between fork and exec.
    for _ in 0..100 {
        store.sweep(&|_| false).unwrap();
        if swept() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(swept(), "{about}: {:?}", tree(root));
    store.put(&key("manifests/vm/2"), b"next").unwrap();
}

/// A test of the test: what it calls a power cut does take what was not synced.
#[test]
fn the_power_cut_takes_what_was_not_synced() {
    struct NoSync(Arc<CuttingSteps>);
    impl Steps for NoSync {
        fn before(&self, step: &Step) -> io::Result<()> {
            if matches!(step, Step::SyncFolder(_) | Step::SyncFile(_)) { Ok(()) } else { self.0.before(step) }
        }
        fn after(&self, step: &Step) -> io::Result<()> {
            if matches!(step, Step::SyncFolder(_) | Step::SyncFile(_)) { Ok(()) } else { self.0.after(step) }
        }
    }
    let (mut lost, mut damaged, mut kept, mut back) = (0, 0, 0, 0);
    for seed in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let cutting = CuttingSteps::new(None);
        let store = LocalStore::with_steps(folder.path(), Arc::new(NoSync(cutting.clone())));
        for name in ["a", "b", "b"] {
            store.put(&key(name), &[1; 10_000]).unwrap();
        }
        store.delete(&key("b")).unwrap();
        drop(store);
        cutting.power_cut(seed);
        let store = LocalStore::new(folder.path());
        match store.open(&key("a")).unwrap().map(|object| object.read_all(u64::MAX).unwrap()) {
            None => lost += 1,
            Some(bytes) if bytes == [1; 10_000] => kept += 1,
            Some(_) => damaged += 1,
        }
        back += usize::from(store.open(&key("b")).unwrap().is_some());
    }
    assert!(lost > 5 && damaged > 5 && kept > 1 && back > 5, "{lost} {damaged} {kept} {back}");
}

/// Answers one kind of step with an error.
struct Failing {
    errno: i32,
    at: fn(&Step) -> bool,
    seen: Mutex<Vec<Step>>,
}

impl Steps for Failing {
    fn before(&self, step: &Step) -> io::Result<()> {
        self.seen.lock().unwrap().push(step.clone());
        if (self.at)(step) { Err(io::Error::from_raw_os_error(self.errno)) } else { Ok(()) }
    }

    fn after(&self, _: &Step) -> io::Result<()> {
        Ok(())
    }
}

/// Holds the link of a manifest up.
struct Slow;

impl Steps for Slow {
    fn before(&self, step: &Step) -> io::Result<()> {
        if matches!(step, Step::Link(..)) {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        Ok(())
    }

    fn after(&self, _: &Step) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_object_is_not_older_than_a_listing_that_does_not_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let slow = LocalStore::with_steps(folder.path(), Arc::new(Slow));
    let quick = LocalStore::new(folder.path());
    std::thread::scope(|scope| {
        let putting =
            scope.spawn(move || slow.put(&key("manifests/a/x"), b"written long before its link").unwrap());
        std::thread::sleep(std::time::Duration::from_millis(150));
        // A gc's session, and then its mark.
        quick.put(&key("sessions/gc/0"), b"gc").unwrap();
        assert!(quick.list("manifests/").unwrap().is_empty(), "the link is not held up long enough");
        putting.join().unwrap();
    });
    let modified = |prefix| quick.list(prefix).unwrap()[0].modified;
    assert!(modified("manifests/") >= modified("sessions/"), "prune would take it for one that gc has seen");
}

fn failing(root: &Path, errno: i32, at: fn(&Step) -> bool) -> LocalStore {
    LocalStore::with_steps(root, Arc::new(Failing { errno, at, seen: Mutex::default() }))
}

#[test]
fn a_full_filesystem_is_told_as_such_and_leaves_nothing_behind() {
    let everywhere: [fn(&Step) -> bool; 6] = [
        |step| matches!(step, Step::Create(_)),
        |step| matches!(step, Step::Write(_)),
        |step| matches!(step, Step::SyncFile(_)),
        |step| matches!(step, Step::Link(..)),
        |step| matches!(step, Step::MakeFolder(path) if !path.ends_with("tmp")),
        |step| matches!(step, Step::SyncFolder(_)),
    ];
    for errno in [libc::ENOSPC, libc::EDQUOT] {
        for (number, at) in everywhere.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let store = failing(folder.path(), errno, at);
            let put = store.put(&key("packs/aa/x"), b"x").unwrap_err();
            let upload = store.begin(&key("packs/aa/y"), 5000).and_then(|mut upload| {
                upload.write_at(0, b"y")?;
                upload.commit(1)
            });
            for error in [put, upload.unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::Full, "{number}: {error}");
                let told = error.to_string();
                assert!(
                    told.contains(&folder.path().display().to_string()) && told.contains("make room"),
                    "{told}"
                );
            }
            let left = tree(folder.path());
            assert!(
                left.iter().all(|name| !name.starts_with("tmp/") || name == "tmp/"),
                "{number}: {left:?}"
            );
        }
    }
}

#[test]
fn without_hard_links_a_rename_does_and_that_is_told() {
    for errno in [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::EMLINK] {
        let folder = tempfile::tempdir().unwrap();
        let store = failing(folder.path(), errno, |step| matches!(step, Step::Link(..)));
        assert_eq!(store.put(&key("a"), b"1").unwrap(), Put::Done);
        assert_eq!(store.put(&key("a"), b"2").unwrap(), Put::Exists);
        assert_eq!(tree(folder.path()), set(&["a", "tmp/"]));
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"1");
        assert!(
            store.degraded().iter().any(|degradation| degradation.about == "hard_links"),
            "{:?}",
            store.degraded()
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let store = failing(folder.path(), libc::EIO, |step| matches!(step, Step::Link(..)));
    assert_eq!(store.put(&key("a"), b"1").unwrap_err().kind(), ErrorKind::Io);
    assert!(store.open(&key("a")).unwrap().is_none());
}

#[test]
fn credentials_without_delete_are_refused_by_name() {
    for errno in [libc::EACCES, libc::EPERM, libc::EROFS] {
        let folder = tempfile::tempdir().unwrap();
        LocalStore::new(folder.path()).put(&key("index/a"), b"").unwrap();
        let store = failing(folder.path(), errno, |step| matches!(step, Step::Remove(_)));
        let error = store.delete(&key("index/a")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("index/a"), "{error}");
    }
}

#[test]
fn a_failed_sync_is_an_error_and_the_object_is_not_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = failing(folder.path(), libc::EIO, |step| matches!(step, Step::SyncFile(_)));
    let error = store.put(&key("a"), b"1").unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Io, Some(libc::EIO)));
    assert_eq!(tree(folder.path()), set(&["tmp/"]));
}

#[test]
fn what_does_not_belong_there_is_neither_followed_nor_listed() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(folder.path().join("r"));
    store.put(&key("packs/aa/good"), b"good").unwrap();
    let root = folder.path().join("r");
    std::fs::write(folder.path().join("secret"), b"secret").unwrap();
    symlink(folder.path().join("secret"), root.join("packs/aa/link")).unwrap();
    symlink(folder.path(), root.join("packs/bb")).unwrap();
    nix::unistd::mkfifo(&root.join("packs/aa/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for odd in [".hidden", "sp ace", "ümlaut", "a~"] {
        std::fs::write(root.join("packs/aa").join(odd), b"odd").unwrap();
    }
    std::fs::write(root.join("tmp/none-0"), b"half").unwrap();
    let listed: Vec<_> = store.list("").unwrap().into_iter().map(|listed| listed.key.to_string()).collect();
    assert_eq!(listed, ["packs/aa/good"]);
    assert_eq!(store.list_folders("packs/").unwrap(), ["aa"]);
    assert!(store.list("tmp/").unwrap().is_empty() && store.list("packs/../").unwrap().is_empty());
    let error = store.open(&key("packs/aa/link")).err().unwrap();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    let error = store.open(&key("packs/aa/pipe")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
    assert_eq!(store.put(&key("packs/aa/link"), b"mine").unwrap(), Put::Exists);
    assert_eq!(std::fs::read(folder.path().join("secret")).unwrap(), b"secret");
    assert_eq!(store.put(&key("tmp/x"), b"").unwrap_err().kind(), ErrorKind::Internal);
}

#[test]
fn packs_go_past_the_page_cache_or_it_is_told_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(folder.path());
    let flags = |file: &DirectFile<'_>| fcntl(file.fd, FcntlArg::F_GETFL).unwrap() & libc::O_DIRECT;
    let check = |file: DirectFile<'_>| {
        assert_eq!(flags(&file) != 0, file.alignment != Alignment::NONE);
        let told = store.degraded().iter().any(|degradation| degradation.about == "direct");
        let in_memory = lies_in_memory(std::fs::File::open(folder.path()).unwrap());
        assert_eq!(flags(&file) == 0 && !in_memory, told, "{:?}", store.degraded());
    };
    let upload = store.begin(&key("packs/aa/x"), 1 << 20).unwrap();
    check(upload.file().unwrap());
    upload.commit(1 << 20).unwrap();
    let object = store.open(&key("packs/aa/x")).unwrap().unwrap();
    check(object.file().unwrap());
    store.put(&key("index/x"), b"small").unwrap();
    let object = store.open(&key("index/x")).unwrap().unwrap();
    let file = object.file().unwrap();
    assert_eq!((flags(&file), file.alignment), (0, Alignment::NONE));
}

#[test]
fn empty_folders_of_machines_and_sessions_go_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(folder.path());
    let all = [key("sessions/a/0"), key("packs/aa/x"), key("manifests/vm/1"), key("notes/damage/x/1")];
    for name in &all {
        store.put(name, b"").unwrap();
    }
    store.delete_many(&all).unwrap();
    assert_eq!(
        tree(folder.path()),
        set(&["manifests/", "notes/", "packs/", "packs/aa/", "sessions/", "tmp/"])
    );
}

#[test]
fn a_stamp_is_given_when_it_is_old_enough_and_changes_with_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(folder.path());
    assert_eq!(store.stamp("index/").unwrap(), None);
    let rest = Duration::from_millis(2100);
    let mut last = None;
    for change in 0..3 {
        match change {
            2 => store.delete(&key("index/0")).unwrap(),
            _ => assert_eq!(store.put(&key(&format!("index/{change}")), b"").unwrap(), Put::Done),
        }
        assert_eq!(store.stamp("index/").unwrap(), None, "a change within the clock's step would be missed");
        std::thread::sleep(rest);
        let stamp = store.stamp("index/").unwrap();
        assert!(stamp.is_some() && stamp != last, "{stamp:?} {last:?}");
        assert_eq!(store.stamp("index/").unwrap(), stamp);
        last = stamp;
    }
}

#[test]
fn a_lock_is_seen_while_it_is_held_and_from_the_first_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (store, other) = (LocalStore::new(folder.path()), LocalStore::new(folder.path()));
    let mut held: Vec<Held> = Vec::new();
    let name = key("sessions/a/0");
    assert_eq!(other.is_held(&name).unwrap(), Some(false));
    assert_eq!(store.put_held(&name, b"x", &mut held).unwrap(), Put::Done);
    assert_eq!((held.len(), other.is_held(&name).unwrap()), (1, Some(true)));
    assert_eq!(other.put_held(&name, b"y", &mut held).unwrap(), Put::Exists);
    assert_eq!(held.len(), 1);
    let second = other.hold(&name).unwrap().unwrap();
    held.clear();
    assert_eq!(store.is_held(&name).unwrap(), Some(true), "two may hold it");
    drop(second);
    assert_eq!(store.is_held(&name).unwrap(), Some(false));
    assert_eq!(store.hold(&key("sessions/none/0")).err().unwrap().kind(), ErrorKind::NotFound);
}

/// Starts this test's own program again, with only the test `name`, and waits for the file that it makes.
fn start(name: &str, folder: &Path) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("MOVER_TEST_FOLDER", folder)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !folder.join("ready").exists() {
        assert!(Instant::now() < deadline, "the other process does not get ready");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
#[ignore = "runs as another process, which is killed"]
fn child_uploads() {
    let folder = PathBuf::from(std::env::var_os("MOVER_TEST_FOLDER").unwrap());
    let store = LocalStore::new(folder.join("r"));
    store.enter("dead");
    let mut held = Vec::new();
    store.put_held(&key("sessions/dead/0"), b"x", &mut held).unwrap();
    let mut upload = store.begin(&key("packs/aa/x"), 1 << 20).unwrap();
    upload.write_at(0, &[1; 100_000]).unwrap();
    std::fs::write(folder.join("ready"), b"").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_upload_is_seen_by_nobody_and_swept() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = start("child_uploads", folder.path());
    let store = LocalStore::new(folder.path().join("r"));
    store.enter("mine");
    let mut mine = store.begin(&key("packs/aa/mine"), 4096).unwrap();
    assert_eq!(store.is_held(&key("sessions/dead/0")).unwrap(), Some(true));
    assert_eq!(store.sweep(&|_| false).unwrap(), 0, "its process lives, and so does ours");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.is_held(&key("sessions/dead/0")).unwrap(), Some(false));
    assert!(store.open(&key("packs/aa/x")).unwrap().is_none() && store.list("packs/").unwrap().is_empty());
    assert_eq!(store.sweep(&|session| session == "dead").unwrap(), 0);
    assert_eq!(store.sweep(&|session| session == "mine").unwrap(), 1);
    mine.write_at(0, b"mine").unwrap();
    assert_eq!(mine.commit(4).unwrap(), Put::Done);
    assert_eq!(store.sweep(&|_| false).unwrap(), 0);
}

/// One who sweeps all the time never takes a file from one who writes.
#[test]
fn sweeping_never_disturbs_a_living_upload() {
    let folder = tempfile::tempdir().unwrap();
    let writers = std::sync::atomic::AtomicUsize::new(3);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for me in 0..3 {
            let (folder, writers) = (folder.path(), &writers);
            scope.spawn(move || {
                let store = LocalStore::new(folder);
                for round in 0..150 {
                    assert_eq!(store.put(&key(&format!("index/{me}-{round}")), b"x").unwrap(), Put::Done);
                }
                writers.fetch_sub(1, relaxed);
            });
        }
        let store = LocalStore::new(folder.path());
        while writers.load(relaxed) > 0 {
            store.sweep(&|_| false).unwrap();
        }
    });
    assert_eq!(LocalStore::new(folder.path()).list("index/").unwrap().len(), 450);
}
