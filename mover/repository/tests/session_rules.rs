//! Sessions: who lives, who is dead, who may run beside whom.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use mover_model::{ErrorKind, Name, Result};
use mover_repository::manifests;
use mover_repository::session::{Pace, Purpose, Seen, Session, end_dead, others, others_at};
use mover_repository::store::{Key, Listed, LocalStore, Object, Put, Store, Upload};
use mover_repository::{InitOptions, Repository, Secret};
use support::MemoryStore;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn backup(vm: &str, point: &str) -> Purpose {
    Purpose::Backup { vm: name(vm), point: name(point) }
}

fn repository_in(store: Arc<dyn Store>) -> Arc<Repository> {
    Arc::new(Repository::init(store, &InitOptions::default(), &Secret::None).unwrap())
}

fn open(folder: &Path) -> Arc<Repository> {
    Arc::new(Repository::open(Arc::new(LocalStore::new(folder)), &Secret::None).unwrap())
}

fn sessions(repository: &Repository) -> Vec<String> {
    let listed = repository.store().list("sessions/").unwrap();
    listed.into_iter().map(|object| object.key.to_string()).collect()
}

/// Every kind of store; the folder, if any, lives as long as the answer.
fn repositories() -> Vec<(Option<tempfile::TempDir>, Arc<Repository>)> {
    let folder = tempfile::tempdir().unwrap();
    let local = repository_in(Arc::new(LocalStore::new(folder.path().join("r"))));
    vec![(Some(folder), local), (None, repository_in(Arc::new(MemoryStore::default())))]
}

const FAST: Pace = Pace {
    renew_every: Duration::from_millis(50),
    dead_after: Duration::from_millis(600),
    turn_wait: Duration::from_secs(5),
};

#[test]
fn a_session_is_seen_while_it_runs_and_leaves_nothing() {
    for (_folder, repository) in repositories() {
        let before = repository.store().now().unwrap() - Duration::from_millis(100);
        let read = Session::begin(&repository, Purpose::Read { verb: "restore".to_owned() }).unwrap();
        let own = Session::begin(&repository, backup("vm", "p1")).unwrap();
        let seen = others(&repository, Some(&own)).unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!((&seen[0].record, seen[0].alive), (read.record(), true));
        assert_eq!(seen[0].began, read.began());
        assert!(read.began() >= before);
        assert_eq!(others(&repository, None).unwrap().len(), 2);
        own.check().unwrap();
        own.end().unwrap();
        read.end().unwrap();
        assert!(others(&repository, None).unwrap().is_empty() && sessions(&repository).is_empty());
    }
}

#[test]
fn two_backups_of_one_machine_or_two_gcs_exclude_each_other_and_nothing_else_does() {
    for (_folder, repository) in repositories() {
        let first = Session::begin(&repository, backup("vm", "p1")).unwrap();
        let error = Session::begin(&repository, backup("vm", "p2")).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let record = first.record();
        for part in ["vm", &record.host, &record.pid.to_string(), &record.started] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        let beside =
            [backup("vm2", "p1"), Purpose::Gc, Purpose::Prune, Purpose::Read { verb: "verify".to_owned() }];
        let beside: Vec<_> =
            beside.into_iter().map(|purpose| Session::begin(&repository, purpose).unwrap()).collect();
        assert_eq!(Session::begin(&repository, Purpose::Gc).err().unwrap().kind(), ErrorKind::Busy);
        Session::begin(&repository, Purpose::Prune).unwrap().end().unwrap();
        // Those that were sent away have left nothing.
        assert_eq!(others(&repository, Some(&first)).unwrap().len(), beside.len());
        first.end().unwrap();
        Session::begin(&repository, backup("vm", "p3")).unwrap().end().unwrap();
        beside.into_iter().try_for_each(Session::end).unwrap();
        assert!(sessions(&repository).is_empty());
    }
}

#[test]
fn of_backups_that_begin_together_exactly_one_goes_on() {
    const THREADS: usize = 6;
    for (folder, repository) in repositories() {
        for round in 0..15 {
            let start = Barrier::new(THREADS);
            let outcomes: Vec<Result<Session>> = std::thread::scope(|scope| {
                let begin = |me: usize| {
                    // Each as a process of its own would: its own store.
                    let repository = match &folder {
                        Some(folder) => open(&folder.path().join("r")),
                        None => repository.clone(),
                    };
                    start.wait();
                    Session::begin(&repository, backup("vm", &format!("p{round}-{me}")))
                };
                let threads: Vec<_> = (0..THREADS).map(|me| scope.spawn(move || begin(me))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
            assert_eq!(
                won.len(),
                1,
                "round {round}: {:?}",
                lost.iter().map(|l| l.as_ref().err()).collect::<Vec<_>>()
            );
            for lost in lost {
                assert_eq!(lost.err().unwrap().kind(), ErrorKind::Busy);
            }
            won.into_iter().for_each(|session| session.unwrap().end().unwrap());
            assert!(sessions(&repository).is_empty());
        }
    }
}

#[test]
fn renewals_keep_a_session_alive_and_without_them_it_dies_of_age() {
    // A store without locks: age is all there is.
    let repository = repository_in(Arc::new(MemoryStore::default()));
    let lives = Session::begin_at(&repository, backup("vm", "p1"), FAST).unwrap();
    let dies = Session::begin_at(&repository, backup("vm2", "p1"), FAST).unwrap();
    let dead_id = dies.record().id.clone();
    drop(dies);
    let alive = |seen: &[Seen], id: &str| seen.iter().find(|seen| seen.record.id == id).unwrap().alive;
    assert!(alive(&others_at(&repository, None, FAST).unwrap(), &dead_id), "it is young");
    std::thread::sleep(FAST.dead_after * 2);
    let seen = others_at(&repository, None, FAST).unwrap();
    assert!(alive(&seen, &lives.record().id) && !alive(&seen, &dead_id));
    lives.check().unwrap();
    // A handful of objects however long it runs.
    let own = sessions(&repository).iter().filter(|key| key.contains(&lives.record().id)).count();
    assert!(own <= 4, "{:?}", sessions(&repository));
    assert_eq!(end_dead(&repository, &seen).unwrap().len(), 1);
    assert_eq!(others_at(&repository, Some(&lives), FAST).unwrap().len(), 0);
    assert_eq!(repository.store().list("manifests/vm2/").unwrap().len(), 1);
    assert!(manifests::get(&repository, &name("vm2"), &name("p1")).unwrap().is_none(), "it was aborted");
    lives.end().unwrap();
    assert!(sessions(&repository).is_empty());
}

#[test]
fn a_session_that_was_ended_by_another_must_not_go_on() {
    for (_folder, repository) in repositories() {
        let session = Session::begin(&repository, Purpose::Gc).unwrap();
        let mut seen = others(&repository, None).unwrap();
        seen[0].alive = false;
        end_dead(&repository, &seen).unwrap();
        let error = session.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    }
}

#[test]
fn a_session_whose_manifest_key_is_taken_has_ended() {
    for (_folder, repository) in repositories() {
        let session = Session::begin(&repository, backup("vm", "p1")).unwrap();
        let key = manifests::manifest_key(&name("vm"), &name("p1"));
        assert_eq!(manifests::abort(&repository, &key).unwrap(), Put::Done);
        assert!(others(&repository, None).unwrap().is_empty());
        // The next one begins while the first one still tidies up; gc takes away what stays.
        let next = Session::begin(&repository, backup("vm", "p2")).unwrap();
        end_dead(&repository, &[]).unwrap();
        assert!(
            sessions(&repository).iter().all(|key| key.contains(&next.record().id)),
            "{:?}",
            sessions(&repository)
        );
        next.end().unwrap();
        session.end().unwrap();
    }
}

#[test]
fn a_session_object_that_cannot_be_read_counts_until_it_is_old() {
    let repository = repository_in(Arc::new(MemoryStore::default()));
    let id = "0123456789abcdef0123456789abcdef";
    repository.store().put(&Key::new(format!("sessions/{id}/0")), b"garbage").unwrap();
    repository.store().put(&Key::new("sessions/no-session"), b"").unwrap();
    let seen = others_at(&repository, None, FAST).unwrap();
    assert_eq!((seen.len(), seen[0].alive, seen[0].record.id.as_str()), (1, true, id));
    std::thread::sleep(FAST.dead_after * 2);
    let seen = others_at(&repository, None, FAST).unwrap();
    assert!(!seen[0].alive);
    end_dead(&repository, &seen).unwrap();
    assert_eq!(sessions(&repository), ["sessions/no-session"]);
}

/// A store that can be told to refuse deletes, and to fail puts.
#[derive(Default)]
struct Moody {
    inner: MemoryStore,
    refuses: std::sync::atomic::AtomicBool,
    fails: std::sync::atomic::AtomicBool,
}

const RELAXED: std::sync::atomic::Ordering = std::sync::atomic::Ordering::Relaxed;

impl Store for Moody {
    fn label(&self) -> String {
        "moody".to_owned()
    }
    fn put(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        if self.fails.load(RELAXED) {
            return Err(mover_model::Error::new(ErrorKind::Unreachable, "no answer"));
        }
        self.inner.put(key, bytes)
    }
    fn begin(&self, key: &Key, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        self.inner.begin(key, expected_bytes)
    }
    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        self.inner.open(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.inner.list(prefix)
    }
    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_folders(prefix)
    }
    fn delete(&self, key: &Key) -> Result<()> {
        if self.refuses.load(RELAXED) {
            return Err(mover_model::Error::refused(key.as_str(), "may not delete"));
        }
        self.inner.delete(key)
    }
}

#[test]
fn without_the_right_to_delete_a_session_ends_by_an_object() {
    let store = Arc::new(Moody::default());
    let repository = repository_in(store.clone());
    store.refuses.store(true, RELAXED);
    let session = Session::begin_at(&repository, backup("vm", "p1"), FAST).unwrap();
    // Sent away and ended all the same.
    assert_eq!(
        Session::begin_at(&repository, backup("vm", "p2"), FAST).err().unwrap().kind(),
        ErrorKind::Busy
    );
    let id = session.record().id.clone();
    session.end().unwrap();
    assert!(others(&repository, None).unwrap().is_empty());
    assert!(sessions(&repository).contains(&format!("sessions/{id}/end")));
    let next = Session::begin_at(&repository, backup("vm", "p3"), FAST).unwrap();
    end_dead(&repository, &[]).unwrap();
    next.end().unwrap();
    // Who may delete tidies up after all of them.
    store.refuses.store(false, RELAXED);
    end_dead(&repository, &[]).unwrap();
    assert!(sessions(&repository).is_empty(), "{:?}", sessions(&repository));
}

#[test]
fn a_session_that_cannot_be_renewed_says_so_before_others_count_it_as_dead() {
    let store = Arc::new(Moody::default());
    let repository = repository_in(store.clone());
    let session = Session::begin_at(&repository, Purpose::Gc, FAST).unwrap();
    store.fails.store(true, RELAXED);
    let start = Instant::now();
    let error = loop {
        let dead = !others_at(&repository, None, FAST).unwrap()[0].alive;
        match session.check() {
            Err(error) => break error,
            Ok(()) => assert!(!dead, "others count it as dead, and it would go on"),
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("no answer"), "{error}");
    // It comes back: nobody has ended it, so it may go on.
    store.fails.store(false, RELAXED);
    std::thread::sleep(FAST.renew_every * 4);
    session.check().unwrap();
    session.end().unwrap();
}

#[test]
#[ignore = "runs as another process, which is killed"]
fn child_backs_up() {
    let folder = PathBuf::from(std::env::var_os("MOVER_TEST_FOLDER").unwrap());
    let _session = Session::begin(&open(&folder.join("r")), backup("vm", "p1")).unwrap();
    std::fs::write(folder.join("ready"), b"").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

fn start(folder: &Path) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_backs_up", "--ignored", "--nocapture"])
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
fn a_process_that_was_killed_is_seen_as_dead_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository_in(Arc::new(LocalStore::new(folder.path().join("r"))));
    let mut child = start(folder.path());
    let seen = others(&repository, None).unwrap();
    assert_eq!((seen.len(), seen[0].alive, seen[0].record.pid), (1, true, child.id()));
    let error = Session::begin(&repository, backup("vm", "p2")).err().unwrap();
    assert!(error.to_string().contains(&format!("process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    assert!(!others(&repository, None).unwrap()[0].alive);
    let next = Session::begin(&repository, backup("vm", "p2")).unwrap();
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    // Its restore point can never come.
    let key = manifests::manifest_key(&name("vm"), &name("p1"));
    assert_eq!(manifests::abort(&repository, &key).unwrap(), Put::Exists);
    assert!(sessions(&repository).iter().all(|key| key.contains(&next.record().id)));
    next.end().unwrap();
}
