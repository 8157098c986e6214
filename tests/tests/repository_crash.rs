//! Processes that are killed at random moments, and signals: every committed restore point stays restorable, gc
//! leaves no orphan, and what was interrupted goes on.

mod repository_home;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mover_tests::rng::{Rng, seed};
use repository_home::*;

/// Packs that are left after gc are needed: deleting any of them breaks a restore point.
#[track_caller]
fn assert_no_orphan(home: &Home) {
    let gc = home.gc();
    assert_eq!(gc["packs_waiting"], 0, "{gc}");
    let again = home.gc();
    assert_eq!(
        (&again["packs_deleted"], &again["freed_bytes"]),
        (&0.into(), &0.into()),
        "gc left something: {again}"
    );
    for key in home.objects() {
        let kind = key.split('/').next().unwrap();
        assert!(matches!(kind, "config" | "packs" | "index" | "manifests" | "notes"), "gc leaves {key}");
    }
    let needed = home.objects();
    let packs: Vec<&String> = needed.iter().filter(|key| key.starts_with("packs/")).collect();
    for pack in packs {
        let (path, away) = (home.repo.join(pack), home.scratch.file("away"));
        fs::rename(&path, &away).unwrap();
        let outcome = home.run("verify").run();
        assert_eq!(outcome.code, Some(6), "nobody needs {pack}\n{outcome}");
        fs::rename(&away, &path).unwrap();
        let _ = fs::remove_dir_all(home.repo.join("notes"));
    }
}

/// What must be restorable: machine, point, a copy of what was backed up.
struct Model {
    home: Home,
    rng: Rng,
    committed: Vec<(String, String, PathBuf)>,
    disk: PathBuf,
    copies: u64,
}

impl Model {
    fn new(name: &str) -> Model {
        let home = Home::new();
        let disk = home.disk("disk", 1, 6 * MIB);
        let mut model = Model { home, rng: Rng::new(seed(name)), committed: Vec::new(), disk, copies: 0 };
        let id = model.home.point("vm", &[("vda", &model.disk)]);
        model.remember(id);
        model
    }

    fn remember(&mut self, id: String) {
        self.copies += 1;
        let copy = self.home.copy_of(&self.disk, &format!("copy-{}", self.copies));
        self.committed.push(("vm".into(), id, copy));
    }

    fn change(&mut self) {
        for _ in 0..self.rng.range(1..6) {
            let mut bytes = vec![0; self.rng.range(1..200_000) as usize];
            mover_tests::layout::data(self.rng.bits(), 0, &mut bytes);
            write_at(&self.disk, self.rng.range(0..6 * MIB - 200_000), &bytes);
        }
    }

    /// Takes over what is in the repository though its process was killed: a commit is whole.
    #[track_caller]
    fn look(&mut self) {
        let points = self.home.points("vm");
        for (_, id, _) in &self.committed {
            assert!(points.contains(id), "the committed point {id} is gone: {points:?}");
        }
        for id in points {
            if !self.committed.iter().any(|(_, known, _)| *known == id) {
                self.remember(id);
            }
        }
    }

    #[track_caller]
    fn check(&self) {
        for (vm, id, copy) in &self.committed {
            self.home.assert_restores(&format!("{vm}@{id}"), "vda", copy);
        }
    }
}

#[test]
fn killed_backups_leave_garbage_at_most() {
    let mut model = Model::new("killed_backups_leave_garbage_at_most");
    for round in 0..12 {
        model.change();
        let run = model.home.backup("vm", &[("vda", &model.disk)]);
        let outcome = run.kill_within(&mut model.rng, Duration::from_millis(25)).run();
        assert!(outcome.code.is_none() || outcome.code == Some(0), "{outcome}");
        // Nothing that was committed is touched, and the next one is not held up by the dead one.
        model.look();
        if round % 3 == 0 {
            let id = model.home.point("vm", &[("vda", &model.disk)]);
            model.look();
            assert!(model.committed.iter().any(|(_, known, _)| *known == id));
        }
    }
    model.check();
    model.home.assert_whole();
    assert_no_orphan(&model.home);
    model.check();
}

#[test]
fn killed_gc_and_prune_lose_nothing() {
    let mut model = Model::new("killed_gc_and_prune_lose_nothing");
    for round in 0..8 {
        for _ in 0..2 {
            model.change();
            let id = model.home.point("vm", &[("vda", &model.disk)]);
            model.remember(id);
        }
        let longest = Duration::from_millis(25);
        let prune = model.home.run("prune").arguments(["--keep-last", "3"]);
        let outcome = prune.kill_within(&mut model.rng, longest).run();
        assert!(outcome.code.is_none() || outcome.code == Some(0), "{outcome}");
        // The three newest are there, whatever became of the rest.
        let points = model.home.points("vm");
        let kept = model.committed.len().saturating_sub(3);
        for (_, id, _) in &model.committed[kept..] {
            assert!(points.contains(id), "round {round}: {id} is among the last 3 and gone");
        }
        model.committed.retain(|(_, id, _)| points.contains(id));
        for _ in 0..2 {
            let gc = model.home.run("gc").arguments(["--wait", "5s", "--repack-below", "100"]);
            let outcome = gc.kill_within(&mut model.rng, longest).run();
            assert!(outcome.code.is_none() || outcome.code == Some(0), "{outcome}");
        }
        model.check();
    }
    model.home.run("prune").arguments(["--keep-last", "2"]).run().assert_code(0);
    let points = model.home.points("vm");
    model.committed.retain(|(_, id, _)| points.contains(id));
    assert_eq!(model.committed.len(), 2);
    assert_no_orphan(&model.home);
    model.check();
    model.home.assert_whole();
}

#[test]
fn a_killed_restore_goes_on_with_resume() {
    let home = Home::new();
    let mut rng = Rng::new(seed("a_killed_restore_goes_on_with_resume"));
    let disk = home.disk("disk", 1, 24 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let mut stopped = 0;
    for round in 0..6 {
        let target = home.scratch.file(&format!("target-{round}"));
        let run = || home.restore("vm", "vda", &target).arguments(["--rate", "40M"]);
        let delay = Duration::from_millis(rng.range(20..500));
        let outcome = run().kill_after(delay).run();
        if outcome.code == Some(0) {
            same(&disk, &target);
            continue;
        }
        stopped += 1;
        if target.exists() && fs::metadata(&target).unwrap().len() > 0 {
            // Not by accident: what is there looks like a disk.
            let refused = run().run();
            failed(&refused, 5, "refused", "--resume");
        }
        let resumed = home.restore("vm", "vda", &target).argument("--resume").run();
        resumed.assert_code(0);
        same(&disk, &target);
        // The mark is gone, so there is nothing to resume any more.
        let left: Vec<_> =
            fs::read_dir(home.scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let name = format!("target-{round}");
        let marks = left.iter().filter(|file| file.to_string_lossy().contains(&name)).count();
        assert_eq!(marks, 1, "{left:?}");
    }
    assert!(stopped > 0, "no round was killed");
    home.assert_whole();
    assert_no_orphan(&home);
}

#[test]
fn an_interrupted_restore_is_exit_7_and_goes_on() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 24 * MIB);
    home.point("vm", &[("vda", &disk)]);
    let target = home.scratch.file("target");
    let mut running = home.restore("vm", "vda", &target).arguments(["--rate", "16M"]).start();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !target.exists() || fs::metadata(&target).unwrap().len() == 0 {
        assert!(Instant::now() < deadline && !running.ended_within(Duration::ZERO), "no target");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    running.signal(libc::SIGINT);
    let outcome = running.wait();
    failed(&outcome, 7, "interrupted", "--resume");
    let resumed = home.restore("vm", "vda", &target).argument("--resume").run();
    resumed.assert_code(0);
    same(&disk, &target);
    let written = resumed.result()["moved"]["written_bytes"].as_u64().unwrap();
    assert!(written < 24 * MIB, "{written} bytes written again");
    // Of another restore point nothing is gone on with.
    write_at(&disk, 0, b"other");
    home.point("vm", &[("vda", &disk)]);
    let outcome = home.restore("vm", "vda", &target).argument("--resume").run();
    assert!(matches!(outcome.code, Some(0 | 5)), "{outcome}");
    if outcome.code == Some(0) {
        same(&disk, &target);
    }
}

#[test]
fn an_interrupted_backup_commits_nothing() {
    let home = Home::new();
    let disk = home.disk("disk", 1, 16 * MIB);
    let run = || home.backup("vm", &[("vda", &disk)]).arguments(["--rate", "8M"]);
    let mut running = run().start();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !home.objects().iter().any(|key| key.starts_with("sessions/")) {
        assert!(Instant::now() < deadline && !running.ended_within(Duration::ZERO), "no session");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    running.signal(libc::SIGTERM);
    let outcome = running.wait();
    failed(&outcome, 1, "stopped", "");
    assert_eq!(outcome.result()["point"]["committed"], false);
    assert!(!home.objects().iter().any(|key| key.starts_with("manifests/")), "{:?}", home.objects());
    home.point("vm", &[("vda", &disk)]);
    home.assert_restores("vm", "vda", &disk);
    assert_no_orphan(&home);
}
