//! Backups, prunes, gcs, verifies and restores at random in several processes, some of which are killed, against a model of
//! what must exist. Each process is this test's own executable; it writes what it does to a log that the model is read from.
#![allow(clippy::print_stdout, clippy::print_stderr)] // seeds, and what is skipped

#[path = "../../repository/tests/machine/mod.rs"]
mod machine;

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::{Backup, Content, content, init_at, name, open_at, restore};
use mover_engine::Control;
use mover_engine::pattern::SplitMix;
use mover_job::repository::access::RepositoryOptions;
use mover_job::repository::gc::{GcOptions, run as run_gc};
use mover_job::repository::verify::{VerifyOptions, run as run_verify};
use mover_model::ErrorKind;
use mover_model::manifest::Manifest;
use mover_repository::session::{self, Purpose, Session};
use mover_repository::{Repository, index, manifests};

const WORKERS: u64 = 3;
const CHUNKS: usize = 300;

/// A disk's content by the number in its restore point's label.
fn content_of(vm: &str, number: u64) -> Content {
    let first = 1000 * (1 + vm.bytes().map(u64::from).sum::<u64>());
    let mut content: Content = content(first, CHUNKS).iter().map(|seed| seed * 2).collect();
    let mut random = SplitMix::new(number);
    let from = random.below(CHUNKS as u64) as usize;
    let to = (from + 1 + random.below(40) as usize).min(CHUNKS);
    // Few numbers, so that what one point drops another takes up again.
    let seed = 1_000_000 + 2000 * random.below(4);
    (from..to).for_each(|at| content[at] = if at % 7 == 0 { 0 } else { seed + 2 * at as u64 });
    content
}

fn number_of(manifest: &Manifest) -> u64 {
    manifest.labels["number"].parse().unwrap()
}

struct Worker {
    folder: PathBuf,
    repository: Arc<Repository>,
    vm: String,
    log: PathBuf,
    random: SplitMix,
}

impl Worker {
    fn log(&self, what: &str, point: &str) {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        log.write_all(format!("{what} {point}\n").as_bytes()).unwrap();
    }

    fn options(&self) -> RepositoryOptions {
        RepositoryOptions { folder: self.folder.clone(), ..RepositoryOptions::default() }
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..4 => self.back_up(),
            4..6 => self.prune(),
            6..8 => self.gc(),
            8 => self.restore(),
            _ => {
                let options = VerifyOptions { repository: self.options(), ..VerifyOptions::default() };
                let result = run_verify(&options, &Control::new(), &|_| {});
                assert_eq!(result.exit_code, 0, "verify: {:?} {:?}", result.error, result.verify);
            }
        }
    }

    fn back_up(&mut self) {
        let backup = Backup::begin(&self.repository, &self.vm).unwrap();
        let number = self.random.below(1 << 40);
        let before = backup.parent.as_ref().map(|parent| content_of(&self.vm, number_of(parent)));
        // Sometimes everything is read, sometimes only what changed.
        let before = before.filter(|_| self.random.below(3) > 0);
        let mut manifest = backup.store(&content_of(&self.vm, number), before.as_ref()).unwrap();
        manifest.labels.insert("number".into(), number.to_string());
        if self.random.below(4) == 0 {
            std::thread::sleep(Duration::from_millis(self.random.below(300)));
        }
        let point = manifest.point.to_string();
        backup.commit(&manifest).unwrap();
        self.log("made", &point);
    }

    /// As prune does: what it knows is listed before it looks for gc and doom lists, and what is newer than these stays.
    fn prune(&mut self) {
        let session = Session::begin(&self.repository, Purpose::Prune).unwrap();
        let listed = manifests::list(&self.repository, &name(&self.vm)).unwrap();
        let mut marks: Vec<_> = session::others(&self.repository, Some(&session))
            .unwrap()
            .into_iter()
            .filter(|seen| seen.record.purpose == Purpose::Gc)
            .map(|seen| seen.began)
            .collect();
        marks.extend(index::doom::list(&self.repository).unwrap().iter().map(|list| list.mark()));
        let oldest = marks.into_iter().min();
        for listed in listed {
            let newer = oldest.is_some_and(|mark| listed.modified >= mark);
            if !newer && self.random.below(3) == 0 {
                self.log("prunes", listed.key.last());
                self.repository.store().delete(&listed.key).unwrap();
                self.log("pruned", listed.key.last());
            }
        }
        session.end().unwrap();
    }

    fn gc(&mut self) {
        let wait = Duration::from_millis(self.random.below(400));
        let options = GcOptions { repository: self.options(), wait, ..GcOptions::default() };
        let result = run_gc(&options, &Control::new(), &|_| {});
        let busy = result.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Busy);
        assert!(busy || result.exit_code == 0, "gc: {:?}", result.error);
    }

    fn restore(&mut self) {
        // Listed under a session of its own, which the restore's outlives.
        let points = manifests::all(&self.repository, &name(&self.vm)).unwrap().points;
        if !points.is_empty() {
            let point = &points[self.random.below(points.len() as u64) as usize];
            restore(&self.repository, point, &content_of(&self.vm, number_of(point))).unwrap();
        }
    }
}

/// Not a test of its own: what the processes of the schedule run.
#[test]
fn worker() {
    let Ok(folder) = std::env::var("MOVER_SCHEDULE_FOLDER") else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (worker, seed) = (number("MOVER_SCHEDULE_WORKER"), number("MOVER_SCHEDULE_SEED"));
    let folder = PathBuf::from(folder);
    let mut worker = Worker {
        repository: open_at(&folder),
        vm: format!("vm{worker}"),
        log: folder.with_extension(format!("log{worker}")),
        folder,
        random: SplitMix::new(seed),
    };
    loop {
        worker.step();
    }
}

fn spawn(folder: &Path, worker: u64, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["worker", "--exact", "--nocapture"])
        .env("MOVER_SCHEDULE_FOLDER", folder)
        .env("MOVER_SCHEDULE_WORKER", worker.to_string())
        .env("MOVER_SCHEDULE_SEED", seed.to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Ends a worker by SIGKILL; one that ended by itself has failed.
fn kill(child: &mut Child) {
    let alone = child.try_wait().unwrap();
    assert!(alone.is_none(), "a worker ended by itself: {alone:?}; its message is above");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn nothing_is_lost_whatever_runs_beside_what() {
    let given = std::env::var("MOVER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or(0x5c4e_d01e);
    println!("MOVER_SEED={seed}");
    let mut random = SplitMix::new(seed);
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("repository");
    init_at(&folder);
    let seconds = if std::env::var_os("MOVER_LARGE").is_some() { 600 } else { 12 };
    let begun = Instant::now();
    let mut children: Vec<Child> =
        (0..WORKERS).map(|worker| spawn(&folder, worker, random.below(u64::MAX))).collect();
    let mut kills = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(200 + random.below(900)));
        let worker = random.below(WORKERS);
        kill(&mut children[worker as usize]);
        children[worker as usize] = spawn(&folder, worker, random.below(u64::MAX));
        kills += 1;
    }
    children.iter_mut().for_each(kill);

    let repository = open_at(&folder);
    let made = check(&repository, &folder);
    println!("{kills} kills, {made} restore points made");
    assert!(made > 5, "only {made} restore points were made");
    let options = GcOptions {
        repository: RepositoryOptions { folder: folder.clone(), ..RepositoryOptions::default() },
        wait: Duration::ZERO,
        ..GcOptions::default()
    };
    let collect = || {
        let result = run_gc(&options, &Control::new(), &|_| {});
        assert_eq!(result.exit_code, 0, "{:?}", result.error);
        result.gc.unwrap()
    };
    // What was killed a moment ago may still hold its lock, and a doom list may wait for it.
    collect();
    collect();
    let again = collect();
    assert_eq!((again.packs_deleted, again.packs_waiting, again.packs_rewritten), (0, 0, 0), "{again:?}");
    check(&repository, &folder);
}

/// Compares with the model; returns how many points were made.
fn check(repository: &Arc<Repository>, folder: &Path) -> usize {
    let mut all = 0;
    for worker in 0..WORKERS {
        let vm = format!("vm{worker}");
        let log = std::fs::read_to_string(folder.with_extension(format!("log{worker}"))).unwrap_or_default();
        let of = |what: &str| -> HashSet<&str> {
            log.lines()
                .filter_map(|line| line.split_once(' '))
                .filter(|(said, _)| *said == what)
                .map(|(_, p)| p)
                .collect()
        };
        let (made, prunes, pruned) = (of("made"), of("prunes"), of("pruned"));
        all += made.len();
        let points = manifests::all(repository, &name(&vm)).unwrap();
        assert!(points.unreadable.is_empty(), "{:?}", points.unreadable);
        let there: HashSet<&str> = points.points.iter().map(|point| point.point.as_str()).collect();
        for point in made.difference(&prunes) {
            assert!(there.contains(point), "{vm}@{point} was committed and is gone");
        }
        for point in &pruned {
            assert!(!there.contains(point), "{vm}@{point} was pruned and is there");
        }
        for point in &points.points {
            restore(repository, point, &content_of(&vm, number_of(point))).unwrap();
        }
    }
    all
}
